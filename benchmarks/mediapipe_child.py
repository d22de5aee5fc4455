"""Detects in pictures with MediaPipe Tasks' ObjectDetector; run as a file, by a Python that has mediapipe and OpenCV.

    python mediapipe_child.py MODEL.tflite CONF RESIZE < names of pictures, one a line

RESIZE is 0, or WIDTHxHEIGHTxN: OpenCV resizes each picture to that first, then each pixel is repeated N times in both
directions. Prints JSON: the version of mediapipe, and for
each picture a list of [x1, y1, x2, y2, score, class name], x and y in pixels of what the detector was given. Of a box
with several classes MediaPipe makes one detection; here each class is one.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Reads the names from standard input, writes to standard output."""
    import cv2
    import mediapipe
    import numpy as np
    from mediapipe.tasks.python import BaseOptions, vision

    model, conf, resize = sys.argv[1:]
    options = vision.ObjectDetectorOptions(
        base_options=BaseOptions(model_asset_path=model), score_threshold=float(conf)
    )
    found = []
    with vision.ObjectDetector.create_from_options(options) as detector:
        for name in sys.stdin.read().splitlines():
            pixels = cv2.imread(name)
            if pixels is None:
                sys.exit(f"OpenCV cannot read {name}")
            if resize != "0":
                width, height, times = map(int, resize.split("x"))
                pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
                pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
            rgb = np.ascontiguousarray(pixels[..., ::-1])
            result = detector.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb))
            found.append([row for detection in result.detections for row in _rows(detection)])
    print(json.dumps({"mediapipe": mediapipe.__version__, "pictures": found}))


def _rows(detection):  # type: ignore[no-untyped-def]
    box = detection.bounding_box
    corners = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
    return [[*corners, float(category.score), category.category_name] for category in detection.categories]


if __name__ == "__main__":
    main()
