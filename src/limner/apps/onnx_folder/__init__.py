"""A model as ONNX files, and the program that draws with them: numpy and onnxruntime alone."""
