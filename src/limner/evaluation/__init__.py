"""What a model reaches, measured."""
