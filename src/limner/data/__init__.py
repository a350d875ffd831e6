"""Rows and their captions, from files to the examples of training."""
