"""Networks that see pictures: their features are compared."""
