"""Generating pictures from prompts."""
