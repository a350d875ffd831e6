"""`limner check-data`: what is wrong with a data set."""
