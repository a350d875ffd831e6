"""Data that comes in large files, here or far away, and is read piece by piece."""
