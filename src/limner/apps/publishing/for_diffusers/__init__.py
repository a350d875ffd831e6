"""Diffusers components of a trained model: transformer, text encoder, scheduler, and pipeline.

`limner export` writes each module as a standalone file that does not require Limner.
"""
