"""Several processes, and a model in shards."""
