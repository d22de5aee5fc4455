"""The process in which `compare.py` runs its models in alternation; child.py says how it answers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.alternate import in_rounds, inference
from benchmarks.budget import Limit, judged
from benchmarks.child import answer_with
from benchmarks.latency_child import LOOK_GROWTH, PROGRESS_SECONDS, peak_memory_mb
from benchmarks.pinning import pin


def main() -> int:
    answer_with(measure)
    return 0


def measure(settings: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Nanoseconds of every inference by model, and how it ended."""
    if settings["cores"]:
        pin(tuple(settings["cores"]))
    given = {key: settings[key] for key in ("backend", "threads", "seed")}
    calls = {name: inference(name, Path(name), **given) for name in settings["models"]}
    seed, limits = settings["seed"], [Limit(*limit) for limit in settings["limits"]]
    in_rounds(calls, runs=1, min_secs=settings["warmup_secs"], max_secs=settings["max_secs"], seed=seed)
    looks, next_look, decided = 0, 0, not limits
    start = told = time.perf_counter()

    def enough(times: dict[str, list[int]]) -> bool:
        nonlocal looks, next_look, decided, told
        rounds = len(next(iter(times.values())))
        now = time.perf_counter()
        if now - told >= PROGRESS_SECONDS:
            told = now
            by_time = int(rounds * settings["min_secs"] / (now - start))
            answer({"progress": [rounds, max(settings["runs"], by_time, next_look)]})
        if limits and rounds >= next_look:
            looks, next_look = looks + 1, math.ceil(rounds * LOOK_GROWTH)
            decided = all(row["verdict"] != "undecided" for row in judged(limits, times, {}, looks, seed))
            if not decided:
                for call in calls.values():  # judging has filled the caches with other things
                    call()
        return decided

    limits_of_time = {key: settings[key] for key in ("runs", "min_secs", "max_secs")}
    times = in_rounds(calls, **limits_of_time, seed=seed, enough=enough)
    rounds, seconds = len(next(iter(times.values()))), time.perf_counter() - start
    full = rounds >= settings["runs"] and seconds >= settings["min_secs"]
    return {
        "times_ns": times,
        "stopped_by": ("decided" if limits else "runs") if full and decided else "max_secs",
        "looks": looks,
        "measured_s": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "processor_s": time.process_time(),
    }


if __name__ == "__main__":
    sys.exit(main())
