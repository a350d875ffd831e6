"""From words to what the denoiser reads."""
