"""The text-to-image networks: diffusion transformers and text encoders."""
