"""The newest picture of each feed as JPEG: made only when someone asks, and once for all who ask."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import cv2

from deploy.annotate import Shape, annotated
from deploy.draw import captions
from deploy.result import Result

#: Widths in pixels that pictures are made in; a client's is rounded up to one of them, so that many share one.
WIDTHS = (320, 480, 640, 960, 1280)
_QUALITY = 80


@dataclasses.dataclass(frozen=True)
class Jpeg:
    #: Of the result within its feed, from 1.
    number: int
    content: bytes
    #: time.monotonic() when it was made.
    made: float


class Pictures:
    """Keeps the newest result of each feed."""

    def __init__(self, labels: Sequence[str], shapes: Mapping[str, Sequence[Shape]], fps: float) -> None:
        """shapes: by feed. fps: JPEGs a second that are made at most, of each feed and width."""
        self._captions, self._shapes, self._interval = captions(labels), shapes, 1 / fps
        self._changed = threading.Condition()
        self._newest: dict[str, tuple[int, Result]] = {}
        self._made: dict[tuple[str, int], Jpeg] = {}
        self._making: defaultdict[tuple[str, int], threading.Lock] = defaultdict(threading.Lock)
        self._closed = False

    def put(self, result: Result) -> None:
        with self._changed:
            number, _ = self._newest.get(result.feed, (0, result))
            self._newest[result.feed] = number + 1, result
            self._changed.notify_all()

    def close(self) -> None:
        """Lets all go that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def feeds(self) -> list[str]:
        """Those of which there is a picture."""
        with self._changed:
            return list(self._newest)

    def wait(self, feed: str, after: int, width: int, timeout: float) -> Jpeg | None:
        """The feed's newest picture, as soon as it is another one than number `after`; None if none comes in timeout
        seconds. A client that is slow gets fewer pictures, never older ones."""
        width = next((one for one in WIDTHS if one >= width), WIDTHS[-1])

        def another() -> bool:
            return self._closed or self._newest.get(feed, (after,))[0] != after

        with self._changed:
            if not self._changed.wait_for(another, timeout) or self._closed:
                return None
            making = self._making[feed, width]
        with making:
            made = self._made.get((feed, width))
            early = made.made + self._interval - time.monotonic() if made else 0.0
            if made and early > 0:
                if made.number != after:
                    return made
                time.sleep(early)
            with self._changed:
                number, result = self._newest[feed]
            if made is None or made.number != number:
                picture = annotated(result, self._captions, self._shapes.get(feed, ()), width)
                _, content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
                made = self._made[feed, width] = Jpeg(number, content.tobytes(), time.monotonic())
            return made
