"""Runs a detector over all pictures of a data set, and keeps what it found beside the truth.

Pictures are decoded in a thread of their own while the model runs on the ones before; few wait at a time, so memory
stays bounded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from benchmarks.annotations import Dataset, Picture, Skipped, fit_boxes
from deploy.detections import Detections
from deploy.detector import Detector
from deploy.errors import InputError
from deploy.picture import read_picture

#: Decoded pictures that wait for the model: enough to even out large and small ones, few enough for a small board's
#: memory.
AHEAD = 4


@dataclasses.dataclass(eq=False)
class Seen:
    """What has been seen so far: per scored picture its truths and detections, and where the time went."""

    pictures: list[Picture] = dataclasses.field(default_factory=list)
    truths: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    found: list[Detections] = dataclasses.field(default_factory=list)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    other_size: list[str] = dataclasses.field(default_factory=list)
    clipped: int = 0
    dropped: int = 0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("decode_s", "preprocess_s", "invoke_s", "postprocess_s"), 0.0)
    )


def run_over(
    dataset: Dataset,
    detect: Callable[[np.ndarray, dict[str, float]], Detections],
    progress: Callable[[int, int], None] | None,
) -> Seen:
    """Runs a detector, which adds to the seconds that it is given, over all pictures that can be read."""
    seen = Seen()
    with contextlib.closing(_decoded(dataset.pictures)) as decoded:
        for done, (picture, pixels, seconds) in enumerate(decoded, 1):
            seen.seconds["decode_s"] += seconds
            if isinstance(pixels, InputError):
                seen.skipped.append(Skipped(picture.id, str(pixels)))
            else:
                _note_truths(seen, picture, *pixels.shape[:2])
                seen.found.append(detect(pixels, seen.seconds))
            if progress:
                progress(done, len(dataset.pictures))
    return seen


def _decoded(pictures: tuple[Picture, ...]) -> Generator[tuple[Picture, np.ndarray | InputError, float], None, None]:
    """Each picture in order with its pixels, or why there are none, and the seconds that took. Decodes AHEAD of them
    in a thread, which has ended when the iterator is closed or exhausted."""

    def decode(picture: Picture) -> tuple[Picture, np.ndarray | InputError, float]:
        start = time.perf_counter()
        try:
            pixels: np.ndarray | InputError = read_picture(picture.path)
        except InputError as error:
            pixels = error
        return picture, pixels, time.perf_counter() - start

    waiting: deque[Future[tuple[Picture, np.ndarray | InputError, float]]] = deque()
    pool = ThreadPoolExecutor(1, "decode")
    try:
        for picture in pictures:
            waiting.append(pool.submit(decode, picture))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def timed_detect(detector: Detector, bgr: np.ndarray, seconds: dict[str, float]) -> Detections:
    """Detections in pixels of the picture, not cut at its border; adds to the seconds."""
    clock = [time.perf_counter()]
    tensor, placement = detector.preprocess(bgr)
    clock.append(time.perf_counter())
    outputs = detector.invoke(tensor)
    clock.append(time.perf_counter())
    found = detector.postprocess(outputs, placement, clip=False)
    clock.append(time.perf_counter())
    for name, spent in zip(("preprocess_s", "invoke_s", "postprocess_s"), np.diff(clock), strict=True):
        seconds[name] += float(spent)
    return found


def _note_truths(seen: Seen, picture: Picture, height: int, width: int) -> None:
    """Fits the picture's truths to its real size; what had to be changed is counted."""
    seen.pictures.append(picture)
    annotation = picture.annotation
    boxes, keep, clipped = fit_boxes(annotation.boxes, width, height)
    names = np.array(annotation.names, object)
    seen.truths.append((boxes[keep], names[keep], annotation.difficult[keep]))
    seen.clipped += clipped
    seen.dropped += int((~keep).sum())
    if annotation.size not in (None, (width, height)):
        seen.other_size.append(picture.id)
