"""A run's state in Prometheus' text format, version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from deploy.status import Snapshot, Spread

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: The states of a feed, each a series that is 1 or 0, as Prometheus' own state sets are.
_STATES = ("opening", "running", "stalled", "waiting", "ended", "failed")

#: Labels and value.
_Sample = tuple[Mapping[str, str], float]


def as_text(snapshot: Snapshot) -> str:
    """All metrics of the run. What the machine does not tell is left without a sample, as Prometheus wants it."""
    one = snapshot
    parts = [
        _metric("slimdet_run_seconds", "gauge", "Seconds since the run began.", [({}, one.seconds)]),
        _metric("slimdet_model", "gauge", "1 for the variant that runs, 0 for the others.", _models(one)),
        _metric("slimdet_results_total", "counter", "Frames that were looked at.", [({}, one.results)]),
        _metric("slimdet_results_per_second", "gauge", "In the last seconds.", [({}, one.fps)]),
        _metric(
            "slimdet_stage_seconds",
            "gauge",
            "Quantiles of a stage's time in the last seconds.",
            [sample for stage, spread in one.milliseconds.items() for sample in _quantiles({"stage": stage}, spread)],
        ),
        _metric(
            "slimdet_result_age_seconds",
            "gauge",
            "Quantiles of the time from a frame's arrival to its result, in the last seconds.",
            _quantiles({}, one.age) if one.age else [],
        ),
        _metric(
            "slimdet_detections_total", "counter", "Detections.", [({"label": k}, v) for k, v in one.detections.items()]
        ),
        *_feeds(one),
        *_outputs(one),
        _metric(
            "slimdet_temperature_celsius",
            "gauge",
            "The hottest sensor.",
            [] if one.temperature is None else [({}, one.temperature)],
        ),
        _metric("slimdet_waiting_frames", "gauge", "Frames that wait for the interpreter.", [({}, one.waiting)]),
        _metric("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, one.memory)]),
    ]
    return "".join(parts)


def _models(one: Snapshot) -> list[_Sample]:
    return [({"model": name}, float(name == one.model)) for name in dict.fromkeys((*one.models, one.model))]


def _feeds(one: Snapshot) -> list[str]:
    def each(name: str) -> list[_Sample]:
        return [({"feed": feed.name}, getattr(feed, name)) for feed in one.feeds]

    states = [({"feed": feed.name, "state": s}, float(s == feed.state)) for feed in one.feeds for s in _STATES]
    return [
        _metric("slimdet_feed_state", "gauge", "1 for the state that the feed is in, 0 for the others.", states),
        _metric("slimdet_feed_state_seconds", "gauge", "Seconds in that state.", each("seconds")),
        _metric("slimdet_feed_frames_total", "counter", "Frames that arrived.", each("captured")),
        _metric("slimdet_feed_frames_dropped_total", "counter", "Those that nobody looked at.", each("dropped")),
        _metric("slimdet_feed_frames_corrupt_total", "counter", "Frames that could not be decoded.", each("corrupt")),
        _metric("slimdet_feed_reconnects_total", "counter", "Connections made anew.", each("reconnects")),
        _metric("slimdet_feed_frames_per_second", "gauge", "That arrived in the last seconds.", each("fps")),
    ]


def _outputs(one: Snapshot) -> list[str]:
    def each(name: str) -> list[_Sample]:
        return [({"output": output.name}, getattr(output, name)) for output in one.outputs]

    return [
        _metric("slimdet_output_sent_total", "counter", "Results and events that were sent.", each("sent")),
        _metric("slimdet_output_dropped_total", "counter", "Those that it was too slow for.", each("dropped")),
        _metric("slimdet_output_failed_total", "counter", "Those that it failed with.", each("failed")),
        _metric("slimdet_output_waiting", "gauge", "Those that wait.", each("waiting")),
    ]


def _quantiles(labels: Mapping[str, str], spread: Spread) -> list[_Sample]:
    return [
        ({**labels, "quantile": quantile}, milliseconds / 1000)
        for quantile, milliseconds in (("0.5", spread.p50), ("0.95", spread.p95))
    ]


def _metric(name: str, kind: Literal["counter", "gauge"], words: str, samples: Iterable[_Sample]) -> str:
    lines = [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A label's value: backslash, quote and line feed are escaped; what UTF-8 cannot hold is replaced."""
    legible = text.encode("utf-8", "replace").decode()
    return legible.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))
