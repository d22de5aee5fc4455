"""Where the time of an inference goes, operation by operation.

An operation inside a delegate has the name that the delegate gives it ("Convolution (NHWC, F32) IGEMM"), with the
number of its place there; one of the runtime's own has its name in TFLite ("CONV_2D") and the number of its node.
Profiling costs time itself, and runs in a process of its own on an input of zeros: shares are to be read, and totals to
be taken from the latency.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import run_child
from benchmarks.environment import UNAVAILABLE
from deploy.errors import SlimdetError

#: Backends whose operations can be timed. The profiler's way to a model has no reference kernels, and of others'
#: delegates the runtime knows nothing.
BACKENDS = ("cpu", "cpu-builtin")


def profile(model: Path, *, backend: str = "cpu", threads: int = 1, cores: Sequence[int] = ()) -> dict[str, Any] | str:
    """As plain JSON, or "unavailable: " and why, since the way to it depends on the runtime's version.

    runs; run_ms: median of the whole run, with the profiler on; ops: by kind of operation, the longest first, `op`,
    `where` (delegate or runtime), `count`, `ms` (sum of the medians) and `share` of all of them, 0 to 1; operations:
    each one in the order of execution, `op`, `where`, `index`, `ms` (median) and `share`.
    """
    if backend not in BACKENDS:
        return f"{UNAVAILABLE}: operations are timed on {', '.join(BACKENDS)}, not on {backend}"
    settings = {"model": str(model), "backend": backend, "threads": threads, "cores": list(cores)}
    try:
        found = run_child("benchmarks.litert_profiler", settings, remedy="the latency stands without it")
    except SlimdetError as error:
        return f"{UNAVAILABLE}: {error}"
    return summary(found["operations"], found["whole_ms"])


def summary(operations: Sequence[tuple[str, str, int, Sequence[int]]], whole_ms: Sequence[float]) -> dict[str, Any]:
    """See profile. operations: name, where, index and microseconds of each run; whole_ms: of each run as a whole."""
    medians = [statistics.median(times) / 1e3 for _, _, _, times in operations]
    total = sum(medians)
    rows: list[dict[str, Any]] = [
        {"op": name, "where": where, "index": index, "ms": ms, "share": ms / total if total else 0.0}
        for (name, where, index, _), ms in zip(operations, medians, strict=True)
    ]
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        kind = kinds.setdefault(
            (row["op"], row["where"]), {"op": row["op"], "where": row["where"], "count": 0, "ms": 0.0, "share": 0.0}
        )
        kind["count"] += 1
        kind["ms"] += row["ms"]
        kind["share"] += row["share"]
    return {
        "runs": len(whole_ms),
        "run_ms": statistics.median(whole_ms),
        "ops": sorted(kinds.values(), key=lambda kind: -kind["ms"]),
        "operations": rows,
    }
