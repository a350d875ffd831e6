"""Data sets: rows of pictures and captions, from files to training examples."""
