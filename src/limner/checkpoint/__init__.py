"""A folder that says everything about itself: written, found, opened, and inherited from."""
