"""What is shown, logged, drawn, and measured while a model learns."""
