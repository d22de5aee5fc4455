"""What the pipeline hands to outputs: what was found in a frame, and what happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from deploy.detections import Detections
from deploy.source import Frame


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened at a moment: a feed changed its state, someone crossed a line."""

    #: The feed's name; "" where it concerns all.
    feed: str
    #: Of a feed: its new state, or "skipped": a folder's picture that cannot be read. Of zones and lines what was done
    #: there. "model": another variant runs from now on.
    kind: Literal[
        "opening", "running", "stalled", "waiting", "ended", "failed", "skipped", "entered", "left", "crossed", "model"
    ]
    #: Seconds since 1970 (time.time()).
    at: float
    #: One line for people, without any password.
    text: str
    #: The same for programs: plain JSON values, such as {"zone": "door", "track": 7, "label": "person"}.
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was found in a frame. Shared by all outputs, so none of them changes anything in it, pixels included."""

    #: Of the source, unique in a run: "0" for the first one unless the user names it.
    feed: str
    frame: Frame
    #: Finite boxes and scores.
    found: Detections
    #: int64 (n,): each detection's identity over time, from 1; 0 for one that has none yet. None where nothing tracks.
    tracks: np.ndarray | None
    #: Of zones and lines, in this frame.
    events: tuple[Event, ...]
    #: What each zone holds and each line has counted: plain JSON values by its name.
    counts: Mapping[str, Any]
    #: Of each stage that this frame went through: "wait" (from captured to preprocess), "preprocess", "invoke",
    #: "postprocess", "track".
    milliseconds: Mapping[str, float]
    #: time.monotonic() when all of that was known; less frame.captured it is the age of the result.
    finished: float


class Output(Protocol):
    """Takes results and events, always in one and the same thread, which is its own (outbox.py)."""

    #: Such as "mqtt", unique in a run.
    name: str

    def result(self, result: Result) -> None:
        """Raises InputError or OSError where it fails; it is called again with the next one."""

    def event(self, event: Event) -> None:
        """As result."""

    def close(self) -> None:
        """Finishes what it began, within a second."""
