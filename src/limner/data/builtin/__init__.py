"""The built-in data sets: emoji and shapes."""
