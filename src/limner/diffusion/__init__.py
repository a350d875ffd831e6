"""Noise schedules, training objectives, solvers, and guidance."""
