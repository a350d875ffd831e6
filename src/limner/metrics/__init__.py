"""Numbers from tensors, with their intervals."""
