"""Feeds: whatever frames come from, a camera as much as a folder, behind one small interface.

A live feed gives its newest frame and forgets older ones; a file gives every frame, in order.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from deploy.address import Address
from deploy.errors import InputError

if TYPE_CHECKING:
    from deploy.result import Event
    from deploy.source import Frame
    from deploy.status import FeedStatus


@dataclasses.dataclass(frozen=True)
class CaptureOptions:
    """How to read a source. None leaves it to the camera. Raises InputError for values out of range."""

    #: Asked of a camera, which grants what it can.
    width: int | None = None
    height: int | None = None
    #: Frames a second.
    fps: float | None = None
    #: Four letters, such as MJPG or YUYV.
    codec: str | None = None
    #: A file is played by its own clock, and frames that nobody took in time are dropped.
    realtime: bool = False
    #: A file begins anew at its end.
    loop: bool = False
    #: Of RTSP. Over UDP lost packets are damaged frames.
    transport: Literal["tcp", "udp"] = "tcp"
    #: FFmpeg neither probes nor buffers a stream: its first frame is there sooner. Some streams cannot be opened so.
    low_delay: bool = False
    #: Seconds without a frame after which a live feed is opened anew.
    stall: float = 2.0
    #: Seconds between two attempts at most, for a source that answers but gives nothing.
    most_wait: float = 10.0

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if value is not None and not 1 <= value <= 65535:
                raise InputError(f"{name} is 1 to 65535 pixels, not {value}; give one that the camera has")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"fps is above 0 and at most 1000, not {self.fps:g}; give one that the camera has")
        if self.codec is not None and not (len(self.codec) == 4 and self.codec.isascii() and self.codec.isprintable()):
            raise InputError("a camera's codec is four letters, such as MJPG or YUYV; `v4l2-ctl --list-formats` tells")
        if self.transport not in ("tcp", "udp"):
            raise InputError("the transport of RTSP is tcp or udp; choose one of them")
        for name, seconds in (("stall", self.stall), ("most_wait", self.most_wait)):
            if not (math.isfinite(seconds) and 0.2 <= seconds <= 3600):
                raise InputError(f"{name} is 0.2 to 3600 seconds, not {seconds:g}; give one in between")


class Feed(Protocol):
    """One source, read in the background."""

    name: str
    #: Whether frames that are not taken in time are lost.
    live: bool

    def take(self) -> Frame | None:
        """The newest frame that was not taken yet, of a file the next one; None while there is none. Never waits. Its
        pixels are the caller's own."""

    def status(self) -> FeedStatus:
        """How it is doing now."""

    @property
    def ended(self) -> bool:
        """No more frames will come, and all that there were have been taken."""

    def close(self) -> None:
        """Ends it, within a second, whatever it is doing; more than once does nothing more."""


def open_feed(
    name: str, address: Address, options: CaptureOptions, wake: threading.Event, tell: Callable[[Event], None]
) -> Feed:
    """A feed that begins at once; this returns without waiting for it.

    wake is set whenever a frame has come or the state has changed. tell takes each change of the state, in a thread of
    the feed's own, and must not wait.

    Raises InputError for a file that is not there or none that can be read.
    """
    if address.kind in ("camera", "stream"):
        from deploy.live_feed import LiveFeed

        return LiveFeed(name, address, options, wake, tell)
    from deploy.file_feed import FileFeed, played_file, played_pattern

    played = played_pattern(options) if address.kind == "pattern" else played_file(address.text, options)
    return FileFeed(name, played, wake, tell)
