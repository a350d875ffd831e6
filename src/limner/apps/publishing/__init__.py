"""`limner export` and `limner publish`: a model for others."""
