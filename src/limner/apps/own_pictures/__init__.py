"""`limner train FOLDER`: settings for pictures and a machine that nobody has described."""
