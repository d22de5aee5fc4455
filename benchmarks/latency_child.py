"""The process in which `latency.py` measures one configuration: `python -m benchmarks.latency_child SETTINGS`.

SETTINGS is JSON. It answers on standard output in lines of JSON: {"progress": [done, expected]} now and then, and at
last {"measured": …} or {"error": class, "message": …}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deploy.detector import Detector
from deploy.errors import SlimdetError
from deploy.picture import read_picture

#: Detections below this are not looked at, as on a device.
CONF, IOU = 0.25, 0.45

PROGRESS_SECONDS = 0.5

PARTS = ("preprocess", "invoke", "postprocess", "total")


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process without a word; its parent says one
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, allow_nan=False) + "\n")
        answers.flush()

    try:
        answer({"measured": measure(json.loads(sys.argv[1]), answer)})
    except SlimdetError as error:
        answer({"error": type(error).__name__, "message": str(error)})
    return 0


def measure(settings: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All that is measured, times of the parts in nanoseconds for every run."""
    cv2.setNumThreads(settings["threads"])  # pre-processing uses no more cores than the model was given
    before = peak_memory_mb()
    detector, loading = _load(settings)
    picture = scene() if settings["picture"] is None else read_picture(Path(settings["picture"]))
    first = _timed_run(detector, picture)
    warmup = _repeat(
        detector, picture, settings["warmup_runs"], settings["warmup_min_secs"], settings["max_secs"], None
    )
    measured = _repeat(detector, picture, settings["runs"], settings["min_secs"], settings["max_secs"], answer)
    delegated = detector.model.delegated
    return {
        "runs": len(measured.times),
        "stopped_by": measured.stopped_by,
        "measured_s": measured.seconds,
        **loading,
        "first_ms": first[1] / 1e6,
        "warmup_runs": len(warmup.times),
        "warmup_s": warmup.seconds,
        "cpu_ms": measured.cpu_ns / 1e6 / len(measured.times),
        "memory_before_mb": before,
        "peak_memory_mb": peak_memory_mb(),
        "delegated_nodes": delegated.nodes,
        "nodes": delegated.total,
        "delegation": delegated.as_json(),
        "precision": detector.contract.precision,
        "resize": detector.contract.input.resize,
        "input": [detector.contract.input.height, detector.contract.input.width],
        "picture": settings["picture"] or "drawn scene",
        "picture_size": [picture.shape[0], picture.shape[1]],
        "conf": CONF,
        "iou": IOU,
        "parts_ns": {name: [run[place] for run in measured.times] for place, name in enumerate(PARTS)},
    }


def _load(settings: dict[str, Any]) -> tuple[Detector, dict[str, float]]:
    """The detector, and the milliseconds that its steps took."""
    start = time.perf_counter_ns()
    detector = Detector(settings["model"], settings["backend"], settings["threads"], CONF, IOU)
    whole = (time.perf_counter_ns() - start) / 1e6
    # A foreign file is opened once more before, to read its contract: that counts as loading.
    allocation = detector.model.allocate_ms
    return detector, {"load_ms": whole - allocation, "allocate_ms": allocation}


@dataclasses.dataclass(frozen=True)
class _Runs:
    #: Of every run the nanoseconds of PARTS.
    times: list[tuple[int, int, int, int]]
    #: Processor time of all invokes together, of all threads.
    cpu_ns: int
    seconds: float
    #: "runs" where all that was asked for is done, "max_secs" where the time was up before.
    stopped_by: str


def _repeat(
    detector: Detector,
    picture: np.ndarray,
    runs: int,
    min_secs: float,
    max_secs: float,
    answer: Callable[[dict[str, Any]], None] | None,
) -> _Runs:
    """Runs until there are `runs` and `min_secs` have passed, or `max_secs` have."""
    times: list[tuple[int, int, int, int]] = []
    cpu_ns = 0
    start = told = time.perf_counter()
    while True:
        now = time.perf_counter()
        enough = len(times) >= runs and now - start >= min_secs
        if enough or (times and now - start >= max_secs):
            return _Runs(times, cpu_ns, now - start, "runs" if enough else "max_secs")
        if answer and now - told >= PROGRESS_SECONDS:
            told = now
            by_time = int(len(times) * min_secs / (now - start))
            answer({"progress": [len(times), max(runs, by_time)]})
        *parts, cpu = _timed_run(detector, picture)
        times.append((parts[0], parts[1], parts[2], sum(parts)))
        cpu_ns += cpu


def _timed_run(detector: Detector, picture: np.ndarray) -> tuple[int, int, int, int]:
    """Nanoseconds of pre-processing, invoke and post-processing, and the processor time of invoke."""
    start = time.perf_counter_ns()
    tensor, placement = detector.preprocess(picture)
    prepared, cpu = time.perf_counter_ns(), time.process_time_ns()
    outputs = detector.invoke(tensor)
    invoked, cpu = time.perf_counter_ns(), time.process_time_ns() - cpu
    detector.postprocess(outputs, placement)
    return prepared - start, invoked - prepared, time.perf_counter_ns() - invoked, cpu


def scene(height: int = 480, width: int = 640) -> np.ndarray:
    """A drawn picture, uint8 (height, width, 3) BGR, always the same: a sky, a ground, a few boxes and discs."""
    rows, columns = np.mgrid[:height, :width]
    blue, green = 255 - 200 * rows // height, 60 + 150 * columns // width
    picture = np.stack([blue, green, (rows + columns) % 256], axis=2).astype(np.uint8)
    for step in range(6):
        left, top, side = width * step // 6, height * (step % 3) // 4, height // (4 + step)
        cv2.rectangle(picture, (left, top), (left + side, top + side), (40 * step, 255 - 40 * step, 80), -1)
        cv2.circle(picture, (left + side, height - side), side // 2, (255 - 40 * step, 30, 40 * step), -1)
    return picture


def peak_memory_mb() -> float | str:
    """Largest resident memory of this process so far, in MB, or "unavailable".

    Linux keeps ru_maxrss across exec, so that a child of a large process would be told its parent's; VmHWM starts anew.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0][1]) / 1024
    except OSError:
        pass  # no Linux: ask the next
    try:
        import resource
    except ImportError:  # Windows
        return "unavailable"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    sys.exit(main())
