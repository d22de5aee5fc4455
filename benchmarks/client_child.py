"""Detects in pictures with another program; run as a file, by a Python that has it and OpenCV.

    python client_child.py CLIENT MODEL.tflite CONF RESIZE < names of pictures, one a line

CLIENT is mediapipe (MediaPipe Tasks' ObjectDetector; package mediapipe) or task-library (TensorFlow Lite's Task
Library; package tflite-support). RESIZE is 0, or WIDTHxHEIGHTxN: OpenCV resizes each picture to that first, then each
pixel is repeated N times in both directions. Prints JSON: the package's version, and for each picture a list of
[x1, y1, x2, y2, score, class name], x and y in pixels of what the detector was given. Of a box with several classes
MediaPipe makes one detection; here each class is one.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys


def main() -> None:
    """Reads the names from standard input, writes to standard output."""
    import cv2
    import numpy as np

    client, model, conf, resize = sys.argv[1:]
    detect = {"mediapipe": mediapipe, "task-library": task_library}[client](model, float(conf))
    found = []
    for name in sys.stdin.read().splitlines():
        pixels = cv2.imread(name)
        if pixels is None:
            sys.exit(f"OpenCV cannot read {name}")
        if resize != "0":
            width, height, times = map(int, resize.split("x"))
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
            pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
        found.append(detect(np.ascontiguousarray(pixels[..., ::-1])))
    package = {"mediapipe": "mediapipe", "task-library": "tflite-support"}[client]
    print(json.dumps({"version": importlib.metadata.version(package), "pictures": found}))


def mediapipe(model, conf):  # type: ignore[no-untyped-def]
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ObjectDetectorOptions(base_options=BaseOptions(model_asset_path=model), score_threshold=conf)
    detector = vision.ObjectDetector.create_from_options(options)

    def detect(rgb):  # type: ignore[no-untyped-def]
        result = detector.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb))
        return [row for detection in result.detections for row in _rows(detection)]

    return detect


def task_library(model, conf):  # type: ignore[no-untyped-def]
    from tflite_support.task import core, processor, vision

    options = vision.ObjectDetectorOptions(
        base_options=core.BaseOptions(file_name=model),
        detection_options=processor.DetectionOptions(score_threshold=conf),
    )
    detector = vision.ObjectDetector.create_from_options(options)

    def detect(rgb):  # type: ignore[no-untyped-def]
        # It keeps the address of the pixels alone: rgb must outlive the call, as the caller's argument does.
        result = detector.detect(vision.TensorImage.create_from_array(rgb))
        return [row for detection in result.detections for row in _rows(detection)]

    return detect


def _rows(detection):  # type: ignore[no-untyped-def]
    box = detection.bounding_box
    corners = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
    return [[*corners, float(category.score), category.category_name] for category in detection.categories]


if __name__ == "__main__":
    main()
