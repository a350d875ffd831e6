"""The shapes in which people have pictures and captions: one file for each."""
