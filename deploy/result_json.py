"""Results, events and the state of a run as plain JSON values, the same in every output."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.output import to_json
from deploy.result import Event, Result
from deploy.status import Snapshot, Spread


def event_json(event: Event) -> dict[str, Any]:
    """kind, feed, at (seconds since 1970, to the millisecond), text, and the event's own facts."""
    return {
        "kind": event.kind,
        "feed": event.feed,
        "at": round(event.at, 3),
        "text": event.text,
        "facts": plain(event.facts),
    }


def result_json(result: Result, labels: Sequence[str]) -> dict[str, Any]:
    """A line of --jsonl (output.to_json) with what a feed adds.

    feed; at: when the frame arrived, seconds since 1970; age_ms: from then to the result (both null for a picture);
    events; counts of zones and lines; in each detection track, where the run tracks (0: none yet).
    """
    live = result.frame.captured > 0
    captured = time.time() - (time.monotonic() - result.frame.captured)
    line = {
        "feed": result.feed,
        **to_json(result.frame, result.found, labels),
        "at": round(captured, 3) if live else None,
        "age_ms": round(age_ms(result), 3) if live else None,
        "events": [event_json(event) for event in result.events],
        "counts": plain(result.counts),
    }
    if result.tracks is not None:
        for detection, track in zip(line["detections"], result.tracks.tolist(), strict=True):
            detection["track"] = track
    return line


def age_ms(result: Result) -> float:
    """Milliseconds from the frame's arrival to its result."""
    return (result.finished - result.frame.captured) * 1000


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot's fields by their own names; what a machine does not tell is null."""
    values = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    return {name: plain(value) for name, value in values.items()}


def plain(value: Any) -> Any:
    """The value as JSON holds it: mappings, tuples and our small values become objects and lists, numpy's numbers
    Python's, and a number that is not finite null. Anything else becomes its text."""
    if isinstance(value, Spread):
        return {"p50": plain(value.p50), "p95": plain(value.p95)}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
