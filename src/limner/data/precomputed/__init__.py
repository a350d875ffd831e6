"""Latents and text embeddings, computed once and kept in shards."""
