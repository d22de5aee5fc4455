"""Compares several .tflite with the first of them on this machine: in alternation, in one fresh process.

How many times as fast a file is comes from the two times of each round: see ratio_interval in bootstrap.py. Limits
(budget.py) are judged by intervals; where one is undecided, rounds go on until it is decided or max_secs have passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.alternate import check_limits
from benchmarks.bootstrap import ratio_interval
from benchmarks.budget import TIMED, judged, limits_for
from benchmarks.child import run_child
from benchmarks.environment import environment
from benchmarks.latency import time_intervals, time_statistics
from benchmarks.machine_state import change, machine_state, state_warnings
from benchmarks.pinning import chosen_cores
from deploy.errors import InputError

#: Of the JSON. A field may be added without a new number.
SCHEMA = "slimdet.compare/1"


def compare(
    models: Sequence[Path],
    *,
    backend: str = "cpu",
    threads: int = 1,
    runs: int = 30,
    min_secs: float = 1.0,
    max_secs: float = 60.0,
    warmup_secs: float = 0.5,
    seed: int = 0,
    pin: str | None = None,
    fail_below: float | None = None,
    budget: Mapping[str, Mapping[str, float]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Files against the first of them, as plain JSON. The limits of time, backend, threads and seed are alternate's.

    For each model its time statistics and `intervals` in milliseconds (see measure_latency), size_mb (millions of
    bytes), and against the first, how many times as fast it is (`speedup`, with the two ends of its 95 % interval).
    `gate` has every limit with its verdict: see budget.py. stopped_by: runs where nothing was to be judged, decided
    where every limit was, or max_secs.

    pin: cores, see pinning.py. fail_below: the least speed-up of every file but the first. budget: of read_budget.

    Raises what alternate raises, and InputError for fewer than two files or one that comes twice, and for limits that
    do not fit the files.
    """
    names = [str(path) for path in models]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"different files are compared, two at least, not {', '.join(names) or 'none'}; name others")
    check_limits(runs=runs, min_secs=min_secs, max_secs=max_secs, warmup_secs=warmup_secs)
    limits = limits_for(names, budget or {}, fail_below)
    settings: dict[str, Any] = {
        "backend": backend,
        "threads": threads,
        "runs": runs,
        "min_secs": min_secs,
        "max_secs": max_secs,
        "warmup_secs": warmup_secs,
        "seed": seed,
        "cores": [] if pin is None else list(chosen_cores(pin, threads)),
    }
    timed = [[limit.model, limit.measure, limit.bound] for limit in limits if limit.measure in TIMED]
    before = machine_state()
    measured = _measured(names, settings | {"limits": timed}, progress)
    after = machine_state()
    between = change(before, after, measured["processor_s"])
    times = measured["times_ns"]
    other: dict[str, dict[str, Any]] = {name: {"size_mb": Path(name).stat().st_size / 1e6} for name in names}
    for name in dict.fromkeys(limit.model for limit in limits if limit.measure == "peak_memory_mb"):
        other[name]["peak_memory_mb"] = _peak_memory(name, settings)
    # Where the time was up before the next look, this is that look.
    look = measured["looks"] if measured["stopped_by"] == "decided" else measured["looks"] + 1
    return {
        "schema": SCHEMA,
        "rounds": len(times[names[0]]),
        "stopped_by": measured["stopped_by"],
        "looks": measured["looks"],
        "measured_s": measured["measured_s"],
        "settings": settings,
        "models": [_row(name, times, other[name], seed) for name in names],
        "gate": judged(limits, times, other, look, seed),
        "environment": {**environment(), "load_average_before": before["load_average"]},
        "machine": {"before": before, "after": after, "change": between},
        "warnings": state_warnings(before, after, between),
    }


def _row(name: str, times: Mapping[str, Sequence[int]], other: Mapping[str, Any], seed: int) -> dict[str, Any]:
    speedup, low, high = ratio_interval(next(iter(times.values())), times[name], seed=seed)
    return {
        "model": name,
        **time_statistics(times[name]),
        "intervals": time_intervals(times[name], seed),
        "speedup": speedup,
        "speedup_interval": [low, high],
        **other,
    }


def _measured(
    names: Sequence[str], settings: Mapping[str, Any], progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    remedy = f"try another --backend than {settings['backend']}, or fewer threads"
    return run_child("benchmarks.compare_child", {**settings, "models": list(names)}, progress, remedy=remedy)


def _peak_memory(name: str, settings: Mapping[str, Any]) -> float | str:
    """Of a process that runs this model alone, in MB."""
    alone = {**settings, "runs": 1, "min_secs": 0.0, "warmup_secs": 0.0, "limits": []}
    peak: float | str = _measured([name], alone, None)["peak_memory_mb"]
    return peak
