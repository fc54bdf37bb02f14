"""Somebody's own ONNX file as a model: what it says of itself, what goes in, what it costs, what it answers."""
