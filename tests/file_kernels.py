"""The kernels of a float32 .tflite, in the file's order of operations."""

from pathlib import Path

import numpy as np


def file_kernels(path: Path) -> list[np.ndarray]:
    """Those of convolutions (cout, kh, kw, cin) and depthwise convolutions (1, kh, kw, channels)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D")
    return [
        interpreter.get_tensor(int(operation["inputs"][1]))
        for operation in interpreter._get_ops_details()
        if operation["op_name"] in kinds
    ]
