"""Measures the latency of a .tflite on this machine, in a fresh process for each measured configuration.

The process loads the file, runs it once (first_ms), warms up, and then times every run whole, in its three parts:
pre-processing of one picture, invoke (setting the input and reading the outputs included), post-processing. As in
TFLite's benchmark_model, runs go on until there are at least `runs` of them and `min_secs` have passed, and end at
`max_secs`. With `until_within` they go on until the interval of the median is narrow: see latency_child.py. No run is
left out of the statistics: the tail is what users feel.

The cold start is what a program waits for its first detections: a process is spawned, the libraries are imported, the
model is loaded and its memory allocated, one picture is processed. The files lie in the system's cache as they did
before; the first start after the machine itself has started takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bootstrap import percentile_intervals
from benchmarks.child import run_child
from benchmarks.environment import environment, usable_cores
from benchmarks.machine_state import change, machine_state, state_warnings
from benchmarks.op_profile import profile
from benchmarks.pinning import chosen_cores
from deploy.errors import InputError

#: Of the JSON. A field may be added without a new number.
SCHEMA = "slimdet.latency/1"

RANKS = (5, 50, 90, 95, 99)
#: Percentiles that are told with an interval.
INTERVAL_RANKS = (50, 90, 95, 99)


def measure_latency(
    model: Path,
    *,
    backend: str = "cpu",
    threads: int = 1,
    runs: int = 50,
    min_secs: float = 1.0,
    max_secs: float = 150.0,
    until_within: float | None = None,
    warmup_runs: int = 1,
    warmup_min_secs: float = 0.5,
    picture: Path | None = None,
    pin: str | None = None,
    seed: int = 0,
    ops: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Latency of one configuration, as plain JSON; times in milliseconds.

    p5_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms, mean_ms, std_ms are of invoke alone, `intervals` has the two
    ends of the 95 % intervals of four of these; `parts` and `part_intervals` have the same for preprocess, invoke,
    postprocess and their total. load_ms (reading the file and its metadata, opening the model), allocate_ms (memory,
    and packing of weights), first_ms (the first invoke) come once; cold_start_ms is from before the process was started
    to the first detections, `cold_start` has its steps. cpu_ms is the processor time of all threads per invoke.
    peak_memory_mb is that of the whole process. stopped_by: runs, until_within or max_secs. `machine` has the clock,
    temperature and more before and after: see machine_state.py.

    until_within: share of the median, above 0, that its 95 % interval must be narrower than. picture: what is looked
    at; a drawn scene where None. pin: cores, see pinning.py. seed: of the intervals. ops: whether to time each
    operation too, in a process of its own: `profile`, see op_profile.py. progress is called now and then with the
    measured runs done and the number expected.

    Raises InputError for a model, picture or setting that cannot be used, BackendError when the backend is not to be
    had or its process dies.
    """
    limits = (
        ("runs", runs, 1),
        ("min_secs", min_secs, 0),
        ("max_secs", max_secs, 0),
        ("warmup_runs", warmup_runs, 0),
        ("warmup_min_secs", warmup_min_secs, 0),
        ("until_within", 0 if until_within is None else until_within, 0),
        ("seed", seed, 0),
    )
    for name, value, least in limits:
        if not least <= value < 1e9:
            raise InputError(f"{name} is a number from {least}, not {value}; give one")
    cores = [] if pin is None else list(chosen_cores(pin, threads))
    settings = {
        "model": str(model),
        "backend": backend,
        "threads": threads,
        "runs": runs,
        "min_secs": min_secs,
        "max_secs": max_secs,
        "until_within": until_within,
        "warmup_runs": warmup_runs,
        "warmup_min_secs": warmup_min_secs,
        "picture": None if picture is None else str(picture),
        "cores": cores,
        "seed": seed,
    }
    before = machine_state()
    remedy = f"try another --backend than {backend}, or fewer threads"
    measured = run_child("benchmarks.cold_start", settings, progress, remedy=remedy)
    after = machine_state()
    between = change(before, after, measured["processor_s"])
    parts_ns = measured.pop("parts_ns")
    result = {"schema": SCHEMA, **time_statistics(parts_ns["invoke"]), "threads": threads, "backend": backend}
    part_intervals = {name: time_intervals(times, seed) for name, times in parts_ns.items()}
    result |= measured | {
        "model": str(model),
        "intervals": part_intervals["invoke"],
        "seed": seed,
        "until_within": until_within,
        "pinned_cores": cores or "no",
        "parts": {name: time_statistics(times) for name, times in parts_ns.items()},
        "part_intervals": part_intervals,
        "environment": {**environment(), "load_average_before": before["load_average"]},
        "machine": {"before": before, "after": after, "change": between},
    }
    result["warnings"] = [*state_warnings(before, after, between), *_warnings(threads, cores, result)]
    if ops:
        result["profile"] = profile(model, backend=backend, threads=threads, cores=cores)
    return result


def time_statistics(times_ns: Sequence[int]) -> dict[str, float]:
    """Of at least one time in nanoseconds, in milliseconds: p5_ms, p50_ms, p90_ms, p95_ms, p99_ms (linear between the
    two nearest ranks), min_ms, max_ms, mean_ms, and std_ms, the sample standard deviation (0 for a single run)."""
    times = np.asarray(times_ns, np.float64) / 1e6
    found = {f"p{rank}_ms": float(value) for rank, value in zip(RANKS, np.percentile(times, RANKS))}
    found |= {"min_ms": float(times.min()), "max_ms": float(times.max()), "mean_ms": float(times.mean())}
    return found | {"std_ms": float(times.std(ddof=1)) if len(times) > 1 else 0.0}


def time_intervals(times_ns: Sequence[int], seed: int, sizes: Sequence[int] = ()) -> dict[str, list[float]]:
    """Of at least one time in nanoseconds of consecutive runs: the ends of the 95 % intervals, in milliseconds, of
    p50_ms, p90_ms, p95_ms and p99_ms. sizes: runs of each process, where there are several."""
    found = percentile_intervals(times_ns, INTERVAL_RANKS, sizes=sizes, seed=seed)
    return {f"p{rank}_ms": [low / 1e6, high / 1e6] for rank, (low, high) in found.items()}


def _warnings(threads: int, pinned: Sequence[int], result: dict[str, Any]) -> list[str]:
    found = []
    cores = len(pinned or usable_cores())
    if threads > cores:
        found.append(f"{threads} threads on {cores} cores: threads wait for each other")
    if result["stopped_by"] == "max_secs":
        share = result["until_within"]
        wide = "" if share is None else f", and the interval is wider than {100 * share:g} %"
        found.append(f"max_secs ended it after {result['runs']} runs: percentiles of few runs say little{wide}")
    if result["delegation"]["software"] is True:
        found.append(f"{result['delegation']['adapter']} computes on the processor: its times are no GPU's")
    return found
