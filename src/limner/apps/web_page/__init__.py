"""`limner export --format web`: a page in one file that draws in a browser."""
