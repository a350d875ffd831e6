"""`limner caption`: captions written by a model."""
