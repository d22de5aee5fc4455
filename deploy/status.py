"""How a run is doing, at a moment: for the page, the metrics, the health check and the summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class FeedStatus:
    name: str
    #: Address without any password, or the file.
    address: str
    #: As Event.kind has them: "opening", "running", "stalled", "waiting", "ended" or "failed".
    state: str
    #: Seconds in that state.
    seconds: float
    live: bool
    #: Frames that arrived, of them those that nobody looked at, and those that could not be decoded.
    captured: int
    dropped: int
    corrupt: int
    #: How often a connection was made anew.
    reconnects: int
    #: Frames a second that arrived in the last seconds.
    fps: float
    #: (height, width) of the newest frame, None before the first.
    size: tuple[int, int] | None
    #: Why it is not running, one line; "" while it is.
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class OutputStatus:
    name: str
    sent: int
    #: Results and events that it was too slow for.
    dropped: int
    failed: int
    waiting: int
    #: Of the last failure, one line, "" where there was none since the last success.
    error: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of the last seconds."""

    p50: float
    p95: float


@dataclasses.dataclass(frozen=True)
class Snapshot:
    #: Seconds since the run began.
    seconds: float
    #: File name of the variant that runs now, and of all.
    model: str
    models: tuple[str, ...]
    results: int
    #: Results a second in the last seconds.
    fps: float
    #: By stage, milliseconds; stages as Result.milliseconds names them.
    milliseconds: Mapping[str, Spread]
    #: From a frame's arrival to its result, milliseconds; None without results of live feeds.
    age: Spread | None
    #: Detections so far, by label.
    detections: Mapping[str, int]
    feeds: tuple[FeedStatus, ...]
    outputs: tuple[OutputStatus, ...]
    #: Hottest sensor in degrees Celsius; None where the machine tells none.
    temperature: float | None
    #: Resident memory in bytes.
    memory: int
    #: Frames that are ready and wait for the interpreter.
    waiting: int = 0
