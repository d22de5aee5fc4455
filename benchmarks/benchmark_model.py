"""Reads what TensorFlow Lite's `benchmark_model` prints (tensorflow/lite/tools/benchmark), in terms of `bench latency`.

Times are in microseconds there and in milliseconds here. What it measures means the same as ours where the key is the
same: the invoke alone, every run counted, and a sample's own median. What it does not print is "unavailable".
"""

from __future__ import annotations

import re
from typing import Any

from benchmarks.environment import UNAVAILABLE
from deploy.errors import DeviceError

_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_INIT = re.compile(rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER})")
_COUNT = re.compile(r"^.*\bcount=\d+ .*$", re.MULTILINE)
_FIELD = re.compile(rf"\b([a-z]+\d*)=({_NUMBER})(?=\s|$)")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({_NUMBER})")
_DELTA = re.compile(rf"Memory footprint delta from the start of the tool \(MB\): init=({_NUMBER}) overall=({_NUMBER})")
_DELEGATE = re.compile(
    r"Explicitly applied (\S+) delegate, and the model graph will be (completely|partially) executed by the delegate"
    r"(?: w/ (\d+) delegate kernels)?"
)
#: Name of a statistic here, and there.
_STATISTICS = {
    "p50_ms": "median", "p90_ms": "p90", "p95_ms": "p95", "p99_ms": "p99", "min_ms": "min", "max_ms": "max",
    "mean_ms": "avg", "std_ms": "std",
}  # fmt: skip
#: No statistic has more: benchmark_model prints microseconds, whose sum over a run is below an hour.
_MOST_US = 1e12


def parse(text: str, name: str) -> dict[str, Any]:
    """The figures in what benchmark_model printed. name: of the device, for messages.

    Times: p50_ms … std_ms, first_ms, and init_ms, which holds our load_ms and allocate_ms together. Beside them runs,
    warmup_runs, warmup_s, measured_s, peak_memory_mb, memory_delta_mb, delegation.

    Raises DeviceError where there are no timings.
    """
    once = _INIT.search(text)
    # The first line is the warm-up's, the last the measured runs'.
    counts = [_fields(line) for line in _COUNT.findall(text)]
    if once is None or len(counts) < 2:
        said = [line.strip() for line in text.splitlines() if re.match(r"\s*(ERROR|FATAL)\b", line)]
        last = (said or text.strip().splitlines() or ["nothing"])[-1].strip()
        raise DeviceError(
            f"{name}: benchmark_model prints its timings at the end: it printed none, but at last {_shown(last)!r}; "
            "check the model, and that the program is one for this device's processor"
        )
    warmup, measured = counts[0], counts[-1]
    # Newer ones print percentiles in a line of their own, after the counts.
    for line in text.splitlines():
        if "count=" not in line and ("median=" in line or "p95=" in line):
            measured.update(_fields(line))
    statistics = {ours: _milliseconds(measured.get(theirs)) for ours, theirs in _STATISTICS.items()}
    runs = int(measured["count"])
    peak, delta = _PEAK.search(text), _DELTA.search(text)
    return {
        **statistics,
        "p5_ms": _milliseconds(measured.get("p5")),
        "runs": runs,
        "stopped_by": UNAVAILABLE,
        "measured_s": measured["avg"] * runs / 1e6 if "avg" in measured else UNAVAILABLE,
        "load_ms": UNAVAILABLE,
        "allocate_ms": UNAVAILABLE,
        "init_ms": _milliseconds(float(once[1])),
        "first_ms": _milliseconds(float(once[2])),
        "warmup_runs": int(warmup["count"]),
        "warmup_s": warmup["avg"] * warmup["count"] / 1e6 if "avg" in warmup else UNAVAILABLE,
        "cpu_ms": UNAVAILABLE,
        "peak_memory_mb": float(peak[1]) if peak else UNAVAILABLE,
        "memory_delta_mb": {"init": float(delta[1]), "overall": float(delta[2])} if delta else UNAVAILABLE,
        "delegated_nodes": UNAVAILABLE,
        "nodes": UNAVAILABLE,
        "delegation": _delegation(text),
        "parts": {"preprocess": UNAVAILABLE, "invoke": statistics, "postprocess": UNAVAILABLE, "total": UNAVAILABLE},
    }


def _fields(line: str) -> dict[str, float]:
    found = {name: float(value) for name, value in _FIELD.findall(line)}
    return {name: value for name, value in found.items() if abs(value) < _MOST_US}


def _milliseconds(microseconds: float | None) -> float | str:
    return UNAVAILABLE if microseconds is None else microseconds / 1000


def _delegation(text: str) -> dict[str, Any] | str:
    """What was delegated: all, part or none, and the delegate's name; unavailable where no line tells."""
    found = _DELEGATE.search(text)
    if found:
        state = "all" if found[2] == "completely" else "part"
        return {"state": state, "delegate": found[1], "kernels": int(found[3]) if found[3] else UNAVAILABLE}
    if re.search(r"Though (\S+) delegate is explicitly applied, the model graph will not be executed", text):
        return {"state": "none"}
    return UNAVAILABLE


def _shown(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in line)[:200]
