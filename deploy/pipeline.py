"""Frames in, detections out, while the parts of neighbouring frames overlap.

One thread preprocesses, one runs the interpreter, and whoever iterates postprocesses: of frame n, n - 1 and n - 2 at
the same time. The interpreter and OpenCV release Python's lock meanwhile, so on two cores the interpreter hardly ever
waits. Frames stay in order, and none is left out: which frames come is the feeds' affair (turns.py).
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from deploy.command_line import UNINTERRUPTIBLE
from deploy.detections import Detections
from deploy.detector import Detector
from deploy.errors import InputError
from deploy.preprocess import Placement
from deploy.source import Frame

#: One for each part.
_SLOTS = 3
#: Seconds by which a live frame is ready before the interpreter is expected to be.
_MARGIN = 0.001
#: Inferences from whose median the next one's end is expected.
_RECENT = 9
#: Seconds after which a thread that waits looks whether it shall end.
_LOOK = 0.2
#: Seconds that an inference is waited for at the end.
_PATIENCE = 0.5

#: The next frame and the feed's name; None when no more will come. The event that it is given is set when it shall
#: return soon without one.
Take = Callable[[threading.Event], tuple[str, Frame] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What was found in a frame."""

    #: The feed's name.
    feed: str
    frame: Frame
    #: Finite boxes and scores.
    found: Detections
    #: Of "wait" (from its arrival, for frames that have one), "preprocess", "invoke" and "postprocess".
    milliseconds: dict[str, float]
    #: Which of the detectors found it.
    variant: int


class _Slot:
    """A frame on its way, and the buffers that it needs there."""

    feed: str
    frame: Frame
    variant: int
    tensor: np.ndarray
    placement: Placement

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.preprocessors = [detector.preprocessor() for detector in detectors]
        self.kept: list[dict[str, np.ndarray]] = [{} for _ in detectors]
        self.milliseconds: dict[str, float] = {}

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        return self.kept[self.variant]

    def keep(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Copies the outputs, which the next run of the interpreter overwrites."""
        kept = self.kept[self.variant]
        for name, array in outputs.items():
            if name not in kept:
                kept[name] = np.array(array)
            else:
                np.copyto(kept[name], array)


class Pipeline:
    """Runs one of the detectors over frames. Iterate once; leave with `close`, or by a with statement.

    Iterating raises what the detector or `take` raised, after all that came before, and InputError where the model
    gives numbers that are none.
    """

    def __init__(self, detectors: Sequence[Detector], take: Take, *, live: bool = False) -> None:
        """detectors: variants of one model, of which `variant` says the one that runs.

        live: a frame is taken as late as it can be without keeping the interpreter waiting, so that it is the newest.
        """
        self._detectors, self._take, self._live = detectors, take, live
        #: Which of the detectors runs; may be set at any time, and holds from the next frame on.
        self.variant = 0
        self._stop = threading.Event()
        self._free: SimpleQueue[_Slot | None] = SimpleQueue()
        self._ready: SimpleQueue[_Slot | BaseException | None] = SimpleQueue()
        self._done: SimpleQueue[_Slot | BaseException | None] = SimpleQueue()
        for _ in range(_SLOTS):
            self._free.put(_Slot(detectors))
        # When the interpreter is expected to be free: written by its own thread, read by the one before.
        self._turn = threading.Event()
        self._handed = self._begun = self._ended = 0
        self._begin = self._expected_end = self._preprocess_s = 0.0
        self._threads = [
            threading.Thread(target=self._guarded, args=(part, queue), name=name, daemon=True)
            for name, part, queue in (
                ("slimdet-preprocess", self._preprocess, self._ready),
                (UNINTERRUPTIBLE, self._invoke, self._done),
            )
        ]

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Ends the iteration before its next frame. May be called from a signal handler and from any thread."""
        self._stop.set()
        self._turn.set()
        self._free.put(None)
        self._done.put(None)

    def close(self) -> None:
        """Ends the threads, within _PATIENCE: an inference cannot be interrupted, so the interpreter's thread may end
        later, when the one that it is in is over; command_line.run does not wait for it."""
        self.stop()
        self._ready.put(None)
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0))

    @property
    def waiting(self) -> int:
        """Frames that are ready and wait for the interpreter."""
        return max(self._handed - self._begun, 0)

    @property
    def inferred(self) -> int:
        """Frames that the interpreter is done with."""
        return self._ended

    @property
    def busy_seconds(self) -> float:
        """How long the inference that runs has taken so far; 0.0 while none does."""
        return time.perf_counter() - self._begin if self._begun > self._ended else 0.0

    def __iter__(self) -> Iterator[Found]:
        for thread in self._threads:
            thread.start()
        while True:
            slot = self._done.get()
            if isinstance(slot, BaseException):
                raise slot
            if slot is None or self._stop.is_set():
                return
            found = self._postprocess(slot)
            self._free.put(slot)
            yield found

    def _guarded(self, part: Callable[[], None], behind: SimpleQueue[Any]) -> None:
        """Runs a thread's part, and hands its end on, be it an error."""
        try:
            part()
        except BaseException as error:  # it is raised again by whoever iterates
            behind.put(error)
        else:
            behind.put(None)

    def _preprocess(self) -> None:
        while (slot := self._free.get()) is not None:
            if self._live:
                self._await_turn()
            taken = None if self._stop.is_set() else self._take(self._stop)
            if taken is None:
                return
            begin = time.perf_counter()
            slot.feed, slot.frame = taken
            slot.milliseconds = {}
            if slot.frame.captured:
                slot.milliseconds["wait"] = max(time.monotonic() - slot.frame.captured, 0.0) * 1000
            slot.variant = self.variant
            slot.tensor, slot.placement = slot.preprocessors[slot.variant](slot.frame.pixels)
            self._preprocess_s = time.perf_counter() - begin
            slot.milliseconds["preprocess"] = self._preprocess_s * 1000
            self._handed += 1
            self._ready.put(slot)

    def _await_turn(self) -> None:
        """Returns when a frame that is taken now will be ready just as the interpreter is."""
        while not self._stop.is_set():
            self._turn.clear()
            left = _LOOK
            if self._begun == self._handed:  # else one waits for the interpreter already
                idle = self._ended == self._begun
                left = 0.0 if idle else self._expected_end - self._preprocess_s - _MARGIN - time.perf_counter()
            if left <= 0:
                return
            self._turn.wait(left)

    def _invoke(self) -> None:
        recent = [deque([0.0], _RECENT) for _ in self._detectors]
        while (slot := self._ready.get()) is not None:
            if isinstance(slot, BaseException):
                raise slot
            begin = self._begin = time.perf_counter()
            self._expected_end = begin + statistics.median(recent[slot.variant])
            self._begun += 1
            if self._live:
                self._turn.set()
            slot.keep(self._detectors[slot.variant].invoke(slot.tensor))
            seconds = time.perf_counter() - begin
            recent[slot.variant].append(seconds)
            slot.milliseconds["invoke"] = seconds * 1000
            self._ended += 1
            self._done.put(slot)
            if self._live:
                self._turn.set()

    def _postprocess(self, slot: _Slot) -> Found:
        begin = time.perf_counter()
        found = self._detectors[slot.variant].postprocess(slot.outputs, slot.placement)
        _check(slot.frame, found)
        slot.milliseconds["postprocess"] = (time.perf_counter() - begin) * 1000
        return Found(slot.feed, slot.frame, found, slot.milliseconds, slot.variant)


def _check(frame: Frame, found: Detections) -> None:
    """Raises InputError where a box or score is not finite: it can neither be drawn nor be put in JSON."""
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise InputError(
            f"boxes and scores are finite numbers, the model gave others for frame {frame.index} of {frame.source}; "
            "it is damaged or badly quantized"
        )
