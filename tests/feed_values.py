"""Results and snapshots of a run that never was, for the tests of outputs."""

import time
from typing import Any

import numpy as np

from deploy.detections import Detections
from deploy.result import Event, Result
from deploy.source import Frame
from deploy.status import FeedStatus, OutputStatus, Snapshot, Spread

LABELS = ("dog", "person", "bench")
#: One person, one dog.
FOUND = Detections(
    np.array([[10, 12, 30.126, 40.5], [0, 20, 17, 38]], np.float32),
    np.array([0.75, 0.5], np.float32),
    np.array([1, 0], np.int32),
)


def result(
    index: int = 0,
    feed: str = "door",
    size: tuple[int, int] = (48, 64),
    tracks: tuple[int, ...] | None = (7, 0),
    **changes: Any,
) -> Result:
    """A result whose frame arrived just now, 20 ms before it was known. size: (height, width)."""
    now = time.monotonic()
    pixels = np.full((*size, 3), 40 * index % 256, np.uint8)
    values: dict[str, Any] = {
        "feed": feed,
        "frame": Frame("rtsp://cam/door", index, index / 10, pixels, now - 0.02),
        "found": FOUND,
        "tracks": None if tracks is None else np.array(tracks, np.int64),
        "events": (),
        "counts": {"path": {"in": 2, "out": 1}},
        "milliseconds": {"wait": 1.0, "preprocess": 0.5, "invoke": 18.0, "postprocess": 0.25},
        "finished": now,
    }
    return Result(**{**values, **changes})


def event(kind: Any = "running", feed: str = "door", **facts: Any) -> Event:
    return Event(feed, kind, 1_700_000_000.0625, f"{feed} is {kind}", facts)


def feed_status(name: str = "door", state: str = "running", **changes: Any) -> FeedStatus:
    values = {
        "address": "rtsp://cam/door",
        "seconds": 12.5,
        "live": True,
        "captured": 300,
        "dropped": 20,
        "corrupt": 1,
        "reconnects": 2,
        "fps": 25.5,
        "size": (480, 640),
    }
    return FeedStatus(name, state=state, **{**values, **changes})


def snapshot(**changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "seconds": 60.5,
        "model": "yolo_int8.tflite",
        "models": ("yolo_int8.tflite", "small_int8.tflite"),
        "results": 280,
        "fps": 24.5,
        "milliseconds": {"preprocess": Spread(0.5, 0.75), "invoke": Spread(18.0, 21.5)},
        "age": Spread(40.0, 62.5),
        "detections": {"person": 412, "dog": 7},
        "feeds": (feed_status(), feed_status("yard", "stalled", reason="no frame for 2 s", size=None)),
        "outputs": (OutputStatus("page", 280, 3, 0, 1, ""), OutputStatus("mqtt", 0, 9, 4, 2, "Connection refused")),
        "temperature": 61.5,
        "memory": 90 << 20,
        "waiting": 1,
    }
    return Snapshot(**{**values, **changes})
