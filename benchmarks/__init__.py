"""Latency and accuracy of a .tflite, measured where the interpreter runs. Never imports TensorFlow."""
