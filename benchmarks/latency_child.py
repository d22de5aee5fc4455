"""The process in which `latency.py` measures one configuration; cold_start.py starts it, child.py says how it answers.

Where the interval of the median is to be narrow, it is looked at when there are enough runs, and then whenever there
are half as many again. Looking at the width alone, and not at the median, and seldom, costs the interval little of its
confidence, and nothing in the limit of narrow ones (Y. S. Chow and H. Robbins, "On the asymptotic theory of fixed-width
sequential confidence intervals for the mean", Annals of Mathematical Statistics 36, 1965). The interval takes into
account that runs depend on each other: see bootstrap.py.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.bootstrap import percentile_intervals
from benchmarks.child import answer_with
from benchmarks.pinning import pin
from deploy.detector import Detector
from deploy.picture import read_picture

#: Detections below this are not looked at, as on a device.
CONF, IOU = 0.25, 0.45

PROGRESS_SECONDS = 0.5

PARTS = ("preprocess", "invoke", "postprocess", "total")


#: By how much more runs there are when the interval is looked at the next time.
LOOK_GROWTH = 1.5


def main(begun_ns: int, imported_ns: int) -> int:
    """Answers what is measured. begun_ns, imported_ns: of the monotonic clock, when this process had started and when
    its libraries were there."""

    def measured(settings: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        before = {"spawn_ms": (begun_ns - settings["started_ns"]) / 1e6, "import_ms": (imported_ns - begun_ns) / 1e6}
        return measure(settings, before, answer)

    answer_with(measured)
    return 0


def measure(
    settings: dict[str, Any], cold_start: dict[str, float], answer: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """All that is measured, times of the parts in nanoseconds for every run. cold_start: milliseconds of its first
    steps."""
    if settings["cores"]:
        pin(tuple(settings["cores"]))
    cv2.setNumThreads(settings["threads"])  # pre-processing uses no more cores than the model was given
    before = peak_memory_mb()
    detector, loading = _load(settings)
    picture = scene() if settings["picture"] is None else read_picture(Path(settings["picture"]))
    first = _timed_run(detector, picture)
    steps = cold_start | loading | {f"first_{name}_ms": took / 1e6 for name, took in zip(PARTS, first[:3])}
    limits = _Limits(settings["warmup_runs"], settings["warmup_min_secs"], settings["max_secs"])
    warmup = _repeat(detector, picture, limits, None)
    limits = _Limits(settings["runs"], settings["min_secs"], settings["max_secs"], settings["until_within"])
    measured = _repeat(detector, picture, limits, answer, settings["seed"])
    delegated = detector.model.delegated
    return {
        "runs": len(measured.times),
        "stopped_by": measured.stopped_by,
        "looks": measured.looks,
        "measured_s": measured.seconds,
        **loading,
        "first_ms": first[1] / 1e6,
        "cold_start_ms": sum(steps.values()),
        "cold_start": steps,
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
        "processor_s": time.process_time(),
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
class _Limits:
    runs: int
    min_secs: float
    max_secs: float
    #: Share of the median that its interval is to be narrower than; None where it need not be.
    until_within: float | None = None


@dataclasses.dataclass(frozen=True)
class _Runs:
    #: Of every run the nanoseconds of PARTS.
    times: list[tuple[int, int, int, int]]
    #: Processor time of all invokes together, of all threads.
    cpu_ns: int
    seconds: float
    #: "runs" where all that was asked for is done, "until_within" where the interval was narrow enough, "max_secs"
    #: where the time was up before.
    stopped_by: str
    #: How often the interval was looked at.
    looks: int


def _repeat(
    detector: Detector,
    picture: np.ndarray,
    limits: _Limits,
    answer: Callable[[dict[str, Any]], None] | None,
    seed: int = 0,
) -> _Runs:
    """Runs until there are enough and the least seconds have passed and the interval is narrow, or the time is up."""
    times: list[tuple[int, int, int, int]] = []
    cpu_ns, looks, next_look = 0, 0, limits.runs
    start = told = time.perf_counter()
    while True:
        now = time.perf_counter()
        enough = len(times) >= limits.runs and now - start >= limits.min_secs
        if enough and limits.until_within is None:
            return _Runs(times, cpu_ns, now - start, "runs", looks)
        if times and now - start >= limits.max_secs:
            return _Runs(times, cpu_ns, now - start, "max_secs", looks)
        if enough and limits.until_within is not None and len(times) >= next_look:
            looks, next_look = looks + 1, math.ceil(len(times) * LOOK_GROWTH)
            if _width([run[1] for run in times], seed) <= limits.until_within:
                return _Runs(times, cpu_ns, now - start, "until_within", looks)
            _timed_run(detector, picture)  # looking has filled the caches with other things
        if answer and now - told >= PROGRESS_SECONDS:
            told = now
            by_time = int(len(times) * limits.min_secs / (now - start))
            answer({"progress": [len(times), max(limits.runs, by_time, next_look if enough else 0)]})
        *parts, cpu = _timed_run(detector, picture)
        times.append((parts[0], parts[1], parts[2], sum(parts)))
        cpu_ns += cpu


def _width(times: list[int], seed: int) -> float:
    """How wide the 95 % interval of the median is, as a share of the median."""
    low, high = percentile_intervals(times, (50,), seed=seed)[50]
    return (high - low) / float(np.median(times))


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
