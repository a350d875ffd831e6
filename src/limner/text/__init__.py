"""Text: tokenisation, encoding, and the conditioning of the denoiser."""
