"""`limner sweep`: the best way to draw at each cost."""
