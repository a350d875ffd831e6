"""Decoding picture files to sRGB."""
