"""The device side: the file's contract, the interpreter, pictures in, boxes out. Never imports TensorFlow."""
