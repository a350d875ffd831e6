"""Training a model from a configuration."""
