"""What draw.py of an exported folder is made of: it needs numpy and onnxruntime, and no Limner."""
