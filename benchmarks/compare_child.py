"""One of the processes in which `compare.py` runs its models in alternation; child.py says how it answers."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.alternate import in_rounds, inference
from benchmarks.child import answer_with
from benchmarks.latency_child import peak_memory_mb
from benchmarks.pinning import pin


def main() -> int:
    answer_with(measure)
    return 0


def measure(settings: dict[str, Any], _: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Nanoseconds of every inference by model. Which model is opened first, and gets the first places in memory, is
    drawn."""
    if settings["cores"]:
        pin(tuple(settings["cores"]))
    seed, names = settings["seed"], list(settings["models"])
    random.Random(seed).shuffle(names)
    given = {"backend": settings["backend"], "threads": settings["threads"], "seed": seed}
    calls = {name: inference(name, Path(name), **given) for name in names}
    in_rounds(calls, runs=1, min_secs=settings["warmup_secs"], max_secs=settings["max_secs"], seed=seed)
    start = time.perf_counter()
    limits = {key: settings[key] for key in ("runs", "min_secs", "max_secs")}
    times = in_rounds(calls, **limits, seed=seed)
    seconds = time.perf_counter() - start
    rounds = len(times[names[0]])
    return {
        "times_ns": times,
        "full": rounds >= settings["runs"] and seconds >= settings["min_secs"],
        "measured_s": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "processor_s": time.process_time(),
    }


if __name__ == "__main__":
    sys.exit(main())
