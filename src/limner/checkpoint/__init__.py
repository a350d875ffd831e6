"""A folder that says everything about itself: how it is written, found, opened, and inherited from."""
