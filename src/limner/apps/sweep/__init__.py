"""`limner sweep`: the best sampling settings at each cost."""
