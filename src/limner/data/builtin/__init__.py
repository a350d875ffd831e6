"""The data sets that come with Limner: emoji, and drawn shapes."""
