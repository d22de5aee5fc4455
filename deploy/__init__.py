"""The device side: the file's contract, the interpreter, pictures in, boxes out. Never imports TensorFlow.

from deploy import Detector, read_picture

found = Detector("detector.tflite").detect(read_picture("street.jpg"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.contract import Contract
    from deploy.detections import Detections
    from deploy.detector import Detector
    from deploy.errors import SlimdetError
    from deploy.picture import read_picture

__all__ = ["Contract", "Detections", "Detector", "SlimdetError", "read_picture"]

if not TYPE_CHECKING:
    _MODULES = {
        "Contract": "contract",
        "Detections": "detections",
        "Detector": "detector",
        "SlimdetError": "errors",
        "read_picture": "picture",
    }

    def __getattr__(name: str) -> Any:
        # Imported when first asked for: the build side reads errors and contract without OpenCV and the interpreter.
        if name in _MODULES:
            return getattr(importlib.import_module(f"deploy.{_MODULES[name]}"), name)
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
