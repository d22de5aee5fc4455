"""The build side: from a trained detector to a verified .tflite."""
