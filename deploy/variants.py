"""Several files of one model, the most exact first: opened together, and told apart by how long each takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.detector import Detector
from deploy.errors import InputError

#: Of the runs that a variant is timed by, the fastest counts; the first one also lays out memory.
_RUNS = 3


def open_variants(models: Sequence[Path], backend: str, threads: int, conf: float, iou: float) -> list[Detector]:
    """A detector for each file.

    Raises InputError where two have not the same labels, beside what Detector raises.
    """
    detectors = [Detector(model, backend, threads, conf, iou) for model in models]
    for model, detector in zip(models[1:], detectors[1:], strict=True):
        if detector.contract.labels != detectors[0].contract.labels:
            raise InputError(
                f"variants are of one model: {model.name} has {len(detector.contract.labels)} labels that are not the "
                f"{len(detectors[0].contract.labels)} of {models[0].name}; give files with the same labels"
            )
    return detectors


def time_variants(detectors: Sequence[Detector]) -> list[float]:
    """Milliseconds of one inference of each, now."""
    found = []
    for detector in detectors:
        side = detector.contract.input
        tensor, _ = detector.preprocess(np.zeros((side.height, side.width, 3), np.uint8))
        times = []
        for _ in range(_RUNS):
            begin = time.perf_counter()
            detector.invoke(tensor)
            times.append(time.perf_counter() - begin)
        found.append(min(times) * 1000)
    return found
