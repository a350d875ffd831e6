"""Checkpoints: writing, finding, loading, and inheriting their settings."""
