"""Noise schedules, what is predicted, solvers, and guidance."""
