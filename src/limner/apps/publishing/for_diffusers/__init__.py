"""A trained model as diffusers takes it: its network, text encoder, scheduler, and pipeline.

`limner export` writes each of these modules out as one file that runs without Limner.
"""
