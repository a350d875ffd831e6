"""Precomputed latents and text embeddings, stored in shards."""
