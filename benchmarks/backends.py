"""The accuracy of one file on several backends: the mAP of each, and how far its boxes drift from the first's.

One backend runs after the other over the same pictures; kept are the detections of the first and of the one at work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import Measured, measure
from benchmarks.box_drift import box_drift
from deploy.errors import InputError

#: What is told of each backend; a result has not all of them.
_TOLD = (
    *("backend", "map", "map50", "map75", "detections", "working", "per_class"),
    *("delegated_nodes", "nodes", "delegation", "preprocess_s", "invoke_s", "postprocess_s"),
)


def measure_backends(
    model: Path,
    data: Path,
    split: str | None,
    protocol: str,
    backends: Sequence[str],
    *,
    worst: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The result of measure_accuracy on the first backend, and under `backends` what each of them found, with `drift`,
    that of box_drift at the working threshold against the first (null for itself).

    settings: those of measure_accuracy. worst: where the first backend's worst pictures are drawn.

    Raises what measure_accuracy raises, and InputError for a backend that comes twice, and where a picture could be
    read for one backend and not for the other.
    """
    if not backends or len(set(backends)) < len(backends):
        raise InputError(f"different backends are measured, not {', '.join(backends) or 'none'}; name each once")
    first: Measured | None = None
    rows = []
    for place, backend in enumerate(backends):
        tell = None if progress is None else _later(progress, place, len(backends))
        found = measure(
            model, data, split, protocol, backend=backend, worst=worst if not place else None, progress=tell, **settings
        )
        first = first or found
        if found.picture_ids != first.picture_ids:
            raise InputError(
                f"backends are compared on the same pictures: {len(first.picture_ids)} could be read for "
                f"{backends[0]}, {len(found.picture_ids)} for {backend}; measure again while nobody changes {data}"
            )
        drift = box_drift(first.found, found.found, found.result["working_conf"]) if place else None
        rows.append({**{key: found.result[key] for key in _TOLD if key in found.result}, "drift": drift})
    assert first is not None  # there is a backend
    return {**first.result, "backends": rows}


def _later(progress: Callable[[int, int], None], place: int, count: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(place * total + done, count * total)
