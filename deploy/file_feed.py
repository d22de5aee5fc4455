"""Pictures, folders, video files and the drawn pattern as feeds, read ahead by a thread."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deploy.capture import CaptureOptions
from deploy.errors import InputError
from deploy.result import Event
from deploy.source import ASSUMED_FPS, Frame, Source, Video, locate, read_pictures
from deploy.status import FeedStatus

#: Frames that are read before they are asked for.
_AHEAD = 2
#: Seconds that rates are told of.
_RATE_SECONDS = 5.0
#: Frames from their beginning; takes what tells of a picture that is left out.
Frames = Callable[[Callable[[Path, str], None]], Generator[Frame, None, None]]


@dataclasses.dataclass(frozen=True)
class Played:
    """What a FileFeed plays."""

    shown: str
    frames: Frames
    #: Frames in all; 0 where nothing tells before the end.
    announced: int
    #: Played by its own clock, and only the newest frame counts.
    realtime: bool


def played_file(text: str, options: CaptureOptions) -> Played:
    """What `text` names. Raises InputError as deploy.source.locate() does, and for a video that cannot be opened."""
    source = locate(text)
    if source.kind != "video":
        announced = 0 if options.loop else len(source.files)
        return Played(text, lambda skip: _pictures(source, options.loop, skip), announced, False)
    with Video(source.path) as video:
        announced = 0 if options.loop else video.announced
    return Played(text, lambda _: _film(source, options.loop), announced, options.realtime)


def played_pattern(options: CaptureOptions) -> Played:
    """The drawn scene, at its rate, without end."""
    from deploy.pattern import Pattern

    pattern = Pattern(**{key: getattr(options, key) for key in ("width", "height", "fps") if getattr(options, key)})

    def frames(_: object) -> Generator[Frame, None, None]:
        number = 0
        while True:
            pixels, _ = pattern.frame(number)
            yield Frame("pattern", number, number / pattern.fps, pixels, time.monotonic())
            number += 1

    return Played("pattern", frames, 0, True)


def _pictures(source: Source, loop: bool, skip: Callable[[Path, str], None]) -> Generator[Frame, None, None]:
    while True:
        count = 0
        for frame in read_pictures(source, skip):
            count += 1
            yield dataclasses.replace(frame, captured=time.monotonic())
        if not count:
            raise InputError(
                f"not one of {len(source.files)} pictures in {source.path} can be read; see the lines above"
            )
        if not loop:
            return


def _film(source: Source, loop: bool) -> Generator[Frame, None, None]:
    """Numbers and times go on where the film begins anew."""
    index, offset = 0, 0.0
    while True:
        with Video(source.path) as video:
            # The feed's own thread is ahead already.
            for frame in video.frames(ahead=False):
                yield dataclasses.replace(frame, index=index, time=offset + frame.time) if loop else frame
                index += 1
        if not loop:
            return
        offset += frame.time + 1 / (video.fps or ASSUMED_FPS)


class FileFeed:
    """See capture.Feed and capture.open_feed."""

    def __init__(
        self, name: str, played: Played, wake: threading.Event, tell: Callable[[Event], None]
    ) -> None:
        self.name = name
        self.live = played.realtime
        #: Frames in all; 0 where nothing tells before the end, or there is none.
        self.announced = played.announced
        self._played = played
        self._wake, self._tell = wake, tell
        self._changed = threading.Condition()
        self._waiting = collections.deque[Frame]()
        self._counts = collections.Counter[str]()
        self._arrivals = collections.deque[float](maxlen=2048)
        self._size: tuple[int, int] | None = None
        self._state, self._since, self._reason = "opening", time.monotonic(), ""
        self._closed = False
        # Not a daemon thread: one that dies inside FFmpeg at the program's end aborts the process.
        self._thread = threading.Thread(target=self._run, name=f"feed {name}")
        self._thread.start()

    # Called by whoever uses the feed.

    def take(self) -> Frame | None:
        with self._changed:
            if not self._waiting:
                return None
            frame = self._waiting.popleft()
            self._changed.notify()
            return frame

    def status(self) -> FeedStatus:
        now = time.monotonic()
        with self._changed:
            counts, arrivals = dict(self._counts), list(self._arrivals)
            state, since, reason, size = self._state, self._since, self._reason, self._size
        recent = sum(at > now - _RATE_SECONDS for at in arrivals)
        span = min(_RATE_SECONDS, now - arrivals[0]) if arrivals else 0.0
        return FeedStatus(
            name=self.name,
            address=self._played.shown,
            state=state,
            seconds=now - since,
            live=self.live,
            captured=counts.get("captured", 0),
            dropped=counts.get("dropped", 0),
            corrupt=counts.get("corrupt", 0),
            reconnects=0,
            fps=recent / span if span > 0 else 0.0,
            size=size,
            reason=reason,
        )

    @property
    def ended(self) -> bool:
        with self._changed:
            return self._state in ("ended", "failed") and not self._waiting

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    # All below runs in the feed's own thread.

    def _run(self) -> None:
        self._change("opening", f"opening {self._played.shown}", {})
        try:
            begin = time.monotonic()
            with closing(self._played.frames(self._skip)) as frames:
                for frame in frames:
                    if self.live and not self._wait_until(begin + frame.time):
                        break
                    if not self._put(frame):
                        break
        except (InputError, OSError) as error:
            text = " ".join(str(error).split())
            self._change("failed", text, {"reason": text}, text)
        else:
            self._change("ended", f"{self._counts['captured']} frames", {"frames": self._counts["captured"]})

    def _wait_until(self, due: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, max(due - time.monotonic(), 0))
            return not self._closed

    def _put(self, frame: Frame) -> bool:
        """False when the feed is closed."""
        with self._changed:
            if self.live:
                self._counts["dropped"] += len(self._waiting)
                self._waiting.clear()
                frame = dataclasses.replace(frame, captured=time.monotonic())
            else:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < _AHEAD)
            if self._closed:
                return False
            self._waiting.append(frame)
            self._counts["captured"] += 1
            self._arrivals.append(time.monotonic())
            self._size = (frame.pixels.shape[0], frame.pixels.shape[1])
        if self._state != "running":
            text = f"{self._size[1]}x{self._size[0]}"
            self._change("running", text, {"height": self._size[0], "width": self._size[1]})
        self._wake.set()
        return True

    def _skip(self, path: Path, reason: str) -> None:
        with self._changed:
            self._counts["corrupt"] += 1
        self._tell(Event(self.name, "skipped", time.time(), " ".join(reason.split()), {"file": str(path)}))

    def _change(self, state: Any, text: str, facts: Mapping[str, Any], reason: str = "") -> None:
        with self._changed:
            self._state, self._since, self._reason = state, time.monotonic(), reason
        self._tell(Event(self.name, state, time.time(), text, facts))
        self._wake.set()
