"""All that a run of `detect` needs to know, checked before anything is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from deploy.address import Address
from deploy.capture import CaptureOptions

#: x, y as fractions of the frame's width and height, 0..1.
Points = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """A feed."""

    #: Unique in a run.
    name: str
    address: Address
    options: CaptureOptions = CaptureOptions()
    #: By name, polygons of three points or more.
    zones: Mapping[str, Points] = dataclasses.field(default_factory=dict)
    #: By name, lines of two points.
    lines: Mapping[str, Points] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PageSettings:
    host: str = "127.0.0.1"
    #: 0 takes a free one.
    port: int = 8080
    #: What a visitor has to know. None: nothing on a loopback address, a token drawn anew elsewhere.
    token: str | None = dataclasses.field(default=None, repr=False)
    #: Pictures a second at most.
    fps: float = 10.0
    #: Seconds without a result of a feed after which the run is not healthy.
    healthy_seconds: float = 10.0
    #: Connections at once; a visitor takes two and one more a feed.
    clients: int = 64


@dataclasses.dataclass(frozen=True)
class RecordSettings:
    #: Made where it is missing.
    folder: Path
    #: Pictures a second in the file. Of a faster feed pictures are left out, of a slower one they are repeated.
    fps: float = 15.0
    #: Length of a segment in seconds.
    seconds: float = 600.0
    #: "h264" needs an ffmpeg with libx264; "auto" takes it where there is one, else mpeg4, which OpenCV itself writes.
    codec: Literal["auto", "h264", "mpeg4"] = "auto"
    #: Bytes that all segments in the folder may take; the oldest ones are removed. None: no limit.
    most_bytes: int | None = None
    #: Wider frames are scaled down to it; None: never.
    most_width: int | None = None


@dataclasses.dataclass(frozen=True)
class LinkSettings:
    """Where events go over the network. Address and secret may hold a password, so neither is printed or logged."""

    #: mqtt(s):// or http(s)://, with [user:password@]host[:port]/path. Only its host is ever told.
    url: str = dataclasses.field(repr=False)
    #: Of a webhook: sent as "Authorization: Bearer SECRET".
    secret: str | None = dataclasses.field(default=None, repr=False)
    #: Of a webhook: seconds between two results that are sent, for each feed. None: events alone.
    results_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class DetectSettings:
    #: Variants of one model, the most exact first and the fastest last.
    models: tuple[Path, ...]
    sources: tuple[SourceSettings, ...]
    backend: str = "cpu"
    threads: int = 1
    #: Least score of what is shown, and of some labels another one.
    conf: float = 0.25
    classes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    iou: float = 0.45
    track: bool = False
    jsonl: str | None = None
    record: RecordSettings | None = None
    page: PageSettings | None = None
    mqtt: LinkSettings | None = None
    webhook: LinkSettings | None = None
    show: bool = False
    #: Milliseconds and degrees above which a faster variant runs. None: twice the interval of the fastest feed, and no
    #: bound.
    most_age: float | None = None
    most_temperature: float | None = None
    #: Seconds after which the run ends by itself.
    seconds: float | None = None
