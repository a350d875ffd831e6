"""Monitoring of a run: progress, logging, previews, and metrics."""
