"""Autoencoders and text encoders that others trained, and where they are found."""
