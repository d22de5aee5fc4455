"""Measures the latency of a .tflite on this machine, in a fresh process for each measured configuration.

The process loads the file, runs it once (first_ms), warms up, and then times every run whole, in its three parts:
pre-processing of one picture, invoke (setting the input and reading the outputs included), post-processing. As in
TFLite's benchmark_model, runs go on until there are at least `runs` of them and `min_secs` have passed, and end at
`max_secs`. No run is left out of the statistics: the tail is what users feel.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment, load_average
from deploy import errors
from deploy.errors import BackendError, InputError

#: From this share of the cores on, others' work is said to disturb the figures.
BUSY_SHARE = 0.25


def measure_latency(
    model: Path,
    *,
    backend: str = "cpu",
    threads: int = 1,
    runs: int = 50,
    min_secs: float = 1.0,
    max_secs: float = 150.0,
    warmup_runs: int = 1,
    warmup_min_secs: float = 0.5,
    picture: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Latency of one configuration, as plain JSON; times in milliseconds.

    p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms, mean_ms, std_ms are of invoke alone; `parts` has the same for
    preprocess, invoke, postprocess and their total. load_ms (reading the file and its metadata, opening the model),
    allocate_ms (memory, and packing of weights), first_ms (the first invoke) come once. cpu_ms is the processor time
    of all threads per invoke. peak_memory_mb is that of the whole process. picture: what is looked at; a drawn scene
    where None. progress is called now and then with the measured runs done and the number expected.

    Raises InputError for a model, picture or setting that cannot be used, BackendError when the backend is not to be
    had or its process dies.
    """
    limits = (
        ("runs", runs, 1),
        ("min_secs", min_secs, 0),
        ("max_secs", max_secs, 0),
        ("warmup_runs", warmup_runs, 0),
        ("warmup_min_secs", warmup_min_secs, 0),
    )
    for name, value, least in limits:
        if not least <= value < 1e9:
            raise InputError(f"{name} is a number from {least}, not {value}; give one")
    busy = load_average()
    settings = {
        "model": str(model),
        "backend": backend,
        "threads": threads,
        "runs": runs,
        "min_secs": min_secs,
        "max_secs": max_secs,
        "warmup_runs": warmup_runs,
        "warmup_min_secs": warmup_min_secs,
        "picture": None if picture is None else str(picture),
    }
    measured = _run_child(settings, progress)
    result = {**time_statistics(measured["parts_ns"]["invoke"]), "threads": threads, "backend": backend}
    for key, value in measured.items():
        if key != "parts_ns":
            result[key] = value
    result["parts"] = {name: time_statistics(times) for name, times in measured["parts_ns"].items()}
    result["environment"] = {**environment(), "load_average_before": busy or "unavailable"}
    result["warnings"] = _warnings(busy, threads, result)
    return result


def time_statistics(times_ns: Sequence[int]) -> dict[str, float]:
    """Of at least one time in nanoseconds, in milliseconds: p50_ms, p90_ms, p95_ms, p99_ms (linear between the two
    nearest ranks), min_ms, max_ms, mean_ms, and std_ms, the sample standard deviation (0 for a single run)."""
    times = np.asarray(times_ns, np.float64) / 1e6
    found = {f"p{rank}_ms": float(np.percentile(times, rank)) for rank in (50, 90, 95, 99)}
    found |= {"min_ms": float(times.min()), "max_ms": float(times.max()), "mean_ms": float(times.mean())}
    return found | {"std_ms": float(times.std(ddof=1)) if len(times) > 1 else 0.0}


def _warnings(busy: list[float] | None, threads: int, result: dict[str, Any]) -> list[str]:
    found = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if busy and busy[0] > BUSY_SHARE * cores:
        found.append(f"the machine was busy before (load {busy[0]:.2f} on {cores} cores): figures may be too high")
    if threads > cores:
        found.append(f"{threads} threads on {cores} cores: threads wait for each other")
    if result["stopped_by"] == "max_secs":
        found.append(f"max_secs ended it after {result['runs']} runs: percentiles of few runs say little")
    if result["delegation"]["software"] is True:
        found.append(f"{result['delegation']['adapter']} computes on the processor: its times are no GPU's")
    return found


def _run_child(settings: dict[str, Any], progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    """Runs latency_child with the settings and returns what it measured. Its standard output is JSON lines."""
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a file of the current folder never takes the place of a module.
    command = [sys.executable, "-P", "-m", "benchmarks.latency_child", json.dumps(settings)]
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            assert child.stdout is not None  # PIPE was asked for
            for line in child.stdout:
                if not line.endswith(b"\n"):
                    break  # the process died while it wrote
                answer = json.loads(line)
                if progress and "progress" in answer:
                    progress(*answer["progress"])
            child.wait()
        finally:
            child.kill()  # does nothing where it has ended
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        noise.seek(0)
        last_words = noise.read().decode(errors="replace").strip().splitlines()[-1:]
    if "error" in answer:
        raise _error_class(answer["error"])(answer["message"])
    if "measured" in answer:
        measured: dict[str, Any] = answer["measured"]
        return measured
    raise BackendError(
        f"latency is measured in a process of its own, which {_end(child.returncode)}{_quoted(last_words)}; "
        f"try another --backend than {settings['backend']}, or fewer threads"
    )


def _error_class(name: str) -> type[errors.SlimdetError]:
    found = getattr(errors, name, errors.SlimdetError)
    return found if isinstance(found, type) and issubclass(found, errors.SlimdetError) else errors.SlimdetError


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no result"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-code}"


def _quoted(words: list[str]) -> str:
    return f" ({words[0].strip()[:200]})" if words else ""
