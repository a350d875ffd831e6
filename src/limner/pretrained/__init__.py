"""Pretrained autoencoders and text encoders."""
