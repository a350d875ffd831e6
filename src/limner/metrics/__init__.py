"""Metrics computed from tensors, with confidence intervals."""
