"""`limner export` and `limner publish`."""
