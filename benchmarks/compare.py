"""Compares several .tflite with the first of them on this machine: in alternation, in several fresh processes.

How many times as fast a file is comes from the two times of each round, and its interval from what differs from process
to process and from round to round: see ratio_interval in bootstrap.py. Limits (budget.py) are judged by intervals;
where one is undecided, half as many processes again are measured, until it is decided or max_secs have passed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.alternate import check_limits
from benchmarks.bootstrap import ratio_interval
from benchmarks.budget import TIMED, Limit, judged, limits_for
from benchmarks.child import run_child
from benchmarks.environment import environment
from benchmarks.latency import time_intervals, time_statistics
from benchmarks.machine_state import change, machine_state, state_warnings
from benchmarks.pinning import chosen_cores
from deploy.errors import InputError

#: Of the JSON. A field may be added without a new number.
SCHEMA = "slimdet.compare/1"

#: Processes at first. That all of n come out on one side of the truth has the chance 2 / 2**n, here 3 %.
PROCESSES = 6
#: By how much more processes there are when limits are judged the next time.
GROWTH = 1.5


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
    """Files against the first of them, as plain JSON. The limits of time are alternate's, all processes together.

    For each model its time statistics and `intervals` in milliseconds (see measure_latency), size_mb (millions of
    bytes), and against the first, how many times as fast it is (`speedup`, with the two ends of its 95 % interval).
    `rounds_of_processes` says how many rounds each process did, `gate` every limit with its verdict: see budget.py.
    stopped_by: runs where nothing was to be judged, decided where every limit was, or max_secs.

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
    before = machine_state()
    found = _measured(names, settings, [limit for limit in limits if limit.measure in TIMED], progress)
    after = machine_state()
    between = change(before, after, found.processor_s)
    times, sizes = found.times, found.sizes
    other: dict[str, dict[str, Any]] = {name: {"size_mb": Path(name).stat().st_size / 1e6} for name in names}
    for name in dict.fromkeys(limit.model for limit in limits if limit.measure == "peak_memory_mb"):
        other[name]["peak_memory_mb"] = _peak_memory(name, settings)
    return {
        "schema": SCHEMA,
        "rounds": len(times[names[0]]),
        "rounds_of_processes": sizes,
        "stopped_by": found.stopped_by,
        "looks": found.looks,
        "measured_s": found.seconds,
        "settings": settings,
        "models": [_row(name, times, sizes, other[name], seed) for name in names],
        "gate": judged(limits, times, other, max(found.looks, 1), sizes=sizes, seed=seed),
        "environment": {**environment(), "load_average_before": before["load_average"]},
        "machine": {"before": before, "after": after, "change": between},
        "warnings": state_warnings(before, after, between),
    }


def _row(
    name: str, times: Mapping[str, Sequence[int]], sizes: Sequence[int], other: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    speedup, low, high = ratio_interval(next(iter(times.values())), times[name], sizes=sizes, seed=seed)
    return {
        "model": name,
        **time_statistics(times[name]),
        "intervals": time_intervals(times[name], seed, sizes),
        "speedup": speedup,
        "speedup_interval": [low, high],
        **other,
    }


@dataclasses.dataclass
class _Found:
    #: Nanoseconds by model, of one process after the other.
    times: dict[str, list[int]]
    #: Rounds of each process.
    sizes: list[int] = dataclasses.field(default_factory=list)
    #: How often limits were judged.
    looks: int = 0
    stopped_by: str = "runs"
    #: Of the rounds alone, and of the processor all in all.
    seconds: float = 0.0
    processor_s: float = 0.0


def _measured(
    names: Sequence[str],
    settings: Mapping[str, Any],
    limits: Sequence[Limit],
    progress: Callable[[int, int], None] | None,
) -> _Found:
    """Rounds of PROCESSES processes, and of more where limits are undecided and there is time."""
    found, begin, wanted = _Found({name: [] for name in names}), time.perf_counter(), PROCESSES
    while True:
        while len(found.sizes) < wanted:
            left = max(begin + settings["max_secs"] - time.perf_counter(), 0.0)
            if found.stopped_by == "max_secs" and len(found.sizes) >= PROCESSES:
                break
            _add_process(found, names, settings, left / max(1, PROCESSES - len(found.sizes)))
            if progress:
                progress(len(found.sizes), wanted)
        if not limits:
            return found
        found.looks += 1
        rows = judged(limits, found.times, {}, found.looks, sizes=found.sizes, seed=settings["seed"])
        if all(row["verdict"] != "undecided" for row in rows):
            found.stopped_by = "decided"
            return found
        if found.stopped_by == "max_secs" or time.perf_counter() - begin >= settings["max_secs"]:
            found.stopped_by = "max_secs"
            return found
        wanted = math.ceil(wanted * GROWTH)


def _add_process(found: _Found, names: Sequence[str], settings: Mapping[str, Any], most_seconds: float) -> None:
    number = len(found.sizes)
    part = {
        "runs": math.ceil(settings["runs"] / PROCESSES),
        "min_secs": settings["min_secs"] / PROCESSES,
        "max_secs": most_seconds,
        "warmup_secs": settings["warmup_secs"] / PROCESSES,
        # Another order, other inputs and other draws in each process.
        "seed": settings["seed"] * 1_000_000 + number,
    }
    measured = _child([*names], {**settings, **part})
    for name in names:
        found.times[name] += measured["times_ns"][name]
    found.sizes.append(len(measured["times_ns"][names[0]]))
    found.seconds += measured["measured_s"]
    found.processor_s += measured["processor_s"]
    if not measured["full"]:
        found.stopped_by = "max_secs"


def _child(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    remedy = f"try another --backend than {settings['backend']}, or fewer threads"
    return run_child("benchmarks.compare_child", {**settings, "models": list(names)}, remedy=remedy)


def _peak_memory(name: str, settings: Mapping[str, Any]) -> float | str:
    """Of a process that runs this model alone, in MB."""
    peak: float | str = _child([name], {**settings, "runs": 1, "min_secs": 0.0, "warmup_secs": 0.0})["peak_memory_mb"]
    return peak
