"""Feature extractors for the metrics."""
