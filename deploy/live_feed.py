"""A camera or a stream as a feed that does not die: it watches the child that reads it, and begins anew when frames
stay away, with pauses that grow.

What it does after a failure depends on what failed:
  unreachable  nobody answers there, or no camera is there. An attempt costs next to nothing, so it is made every
               second, and frames are back within three seconds of the server's return
  refused      somebody answers, but gives no frames: pauses grow up to most_wait
  lost, stalled, died   the frames ended, stayed away, or the decoder crashed: the first attempt follows at once, and
               pauses grow up to most_wait when that happens again and again
  resized      the stream's frames have another size: it is opened again at once
  slow         one thread does not decode it in time: it is opened again at once, with more
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deploy.address import PROTOCOLS, Address, secrets
from deploy.capture import CaptureOptions
from deploy.capture_process import CaptureProcess, without_secrets
from deploy.errors import InputError
from deploy.status import FeedStatus

if TYPE_CHECKING:
    import numpy as np

    from deploy.result import Event
    from deploy.source import Frame

#: Seconds before the first attempt after a failure; each further pause is twice as long.
_FIRST_WAIT = 0.25
#: Seconds between attempts at most while nobody answers.
_UNREACHABLE_WAIT = 1.0
#: Every pause is longer or shorter by this share at random, so that many feeds don't knock all at once.
_JITTER = 0.25
#: Seconds of frames after which a failure is the first one again.
_SOUND_SECONDS = 10.0
#: Seconds that an attempt, and the first key frame after it, may take.
_OPEN_SECONDS = 10.0
#: Seconds after which a failure that goes on is told again.
_TELL_AGAIN_SECONDS = 60.0
#: Seconds that rates are told of.
_RATE_SECONDS = 5.0
#: How soon close() is noticed.
_TICK_SECONDS = 0.1
_UNREACHABLE = re.compile(
    r"refused|timed out|time-?out|resolve|unreachable|no route|reset|network is|broken pipe|host is down|input/output",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class _Failure:
    kind: str
    reason: str
    #: The child waits for another attempt.
    child_lives: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Newest:
    """A frame that nobody took yet, in its slot."""

    process: CaptureProcess
    slot: int
    #: The slot's own memory.
    pixels: np.ndarray
    at: float
    index: int


class LiveFeed:
    """See capture.Feed and capture.open_feed."""

    live = True

    def __init__(
        self,
        name: str,
        address: Address,
        options: CaptureOptions,
        wake: threading.Event,
        tell: Callable[[Event], None],
    ) -> None:
        self.name = name
        self._address, self._options = address, options
        self._wake, self._tell = wake, tell
        self._secrets = secrets(address)
        self._lock = threading.Lock()
        self._newest: _Newest | None = None
        self._counts = collections.Counter[str]()
        self._arrivals = collections.deque[float](maxlen=2048)
        self._first_at = math.nan
        self._size: tuple[int, int] | None = None
        self._state, self._since, self._reason = "opening", time.monotonic(), ""
        self._told: dict[tuple[str, str], float] = {}
        self._down_since = time.monotonic()
        self._decoder_threads = 1
        self._stop = threading.Event()
        # It never waits within FFmpeg or a driver, so it could be cut off at the program's end without harm.
        self._thread = threading.Thread(target=self._run, name=f"feed {name}", daemon=True)
        self._thread.start()

    # Called by whoever uses the feed.

    def take(self) -> Frame | None:
        from deploy.source import Frame

        with self._lock:
            newest, self._newest = self._newest, None
        if newest is None:
            return None
        pixels = newest.pixels.copy()
        newest.process.free(newest.slot)
        return Frame(self._address.shown, newest.index, newest.at - self._first_at, pixels, newest.at)

    def status(self) -> FeedStatus:
        now = time.monotonic()
        with self._lock:
            counts, arrivals = dict(self._counts), list(self._arrivals)
            state, since, reason = self._state, self._since, self._reason
        recent = sum(at > now - _RATE_SECONDS for at in arrivals)
        span = min(_RATE_SECONDS, now - arrivals[0]) if arrivals else 0.0
        return FeedStatus(
            name=self.name,
            address=self._address.shown,
            state=state,
            seconds=now - since,
            live=True,
            captured=counts.get("captured", 0),
            dropped=counts.get("dropped", 0),
            corrupt=counts.get("corrupt", 0),
            reconnects=counts.get("reconnects", 0),
            fps=recent / span if span > 0 else 0.0,
            size=self._size,
            reason=reason,
        )

    @property
    def ended(self) -> bool:
        return self._state == "ended"

    def close(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(2)

    # All below runs in the feed's own thread.

    def _run(self) -> None:
        process: CaptureProcess | None = None
        attempt, previous, opening_told = 0, "", False
        try:
            while not self._stop.is_set():
                began = self._counts["captured"], time.monotonic()
                try:
                    process = process or CaptureProcess(self._settings(), self._secrets)
                    if not opening_told:
                        opening_told = True
                        self._change("opening", f"opening {self._address.shown}", {})
                    failure = self._watch(process)
                except OSError as error:
                    failure = _Failure("refused", f"the capture's process cannot be started: {error.strerror}")
                except (InputError, LookupError, TypeError, ValueError):
                    # Nothing is believed of a process that reads what strangers send.
                    failure = _Failure("died", "the capture's process told what is no frame and")
                if failure is None:
                    break
                if process is not None and not failure.child_lives:
                    failure = self._end(process, failure)
                    process = None
                ran = self._counts["captured"] > began[0] and time.monotonic() - began[1] > _SOUND_SECONDS
                attempt = 0 if ran or failure.kind != previous else attempt + 1
                previous = failure.kind
                self._wait(failure, attempt)
        finally:
            self._forget_newest()
            if process is not None:
                process.end(gently=True)
            self._change("ended", f"{self._address.shown} is closed", {})

    def _settings(self) -> dict[str, Any]:
        address, options = self._address, self._options
        camera = address.kind == "camera"
        text = f"/dev/video{int(address.text)}" if camera and address.text.isdecimal() else address.text
        protocols = "" if camera else PROTOCOLS[text.partition("://")[0].lower()]
        return dataclasses.asdict(options) | {
            "address": text,
            "camera": camera,
            "protocols": protocols,
            "threads": self._decoder_threads,
            "hasty": True,
            "open_seconds": _OPEN_SECONDS,
        }

    def _watch(self, process: CaptureProcess) -> _Failure | None:
        """Opens the source and takes its frames until it fails; None when the feed is closed."""
        process.forget_words()
        process.open()
        opened: Mapping[str, Any] = {}
        running, decoding = False, process.decoding
        told_dropped, told_corrupt, told_complaints = 0, 0, process.complaints
        # Seconds listened for in vain. A machine that sleeps does not listen: a wait counts as a tick at most, so that
        # what waits to be heard when it wakes up is heard.
        silence, most_silence = 0.0, _OPEN_SECONDS + 1
        while not self._stop.is_set():
            began = time.monotonic()
            messages = process.messages(_TICK_SECONDS)
            silence += min(time.monotonic() - began, _TICK_SECONDS)
            if messages is None:
                return _Failure("died", "the capture's process")
            for message in messages:
                if "failed" in message:
                    return self._failure(process, message, running)
                if "opened" in message:
                    opened = _checked(message["opened"])
                    silence, most_silence = 0.0, max(_OPEN_SECONDS, 2 * self._options.stall)
                if "frame" in message:
                    dropped, told_dropped = message["dropped"] - told_dropped, message["dropped"]
                    corrupt, told_corrupt = message["corrupt"] - told_corrupt, message["corrupt"]
                    # One that the decoder complained of, and patched up, is damaged too.
                    self._take_in(process, message, dropped, max(corrupt, process.complaints > told_complaints))
                    told_complaints = process.complaints
                    silence, most_silence = 0.0, self._options.stall
                    if not running:
                        running, decoding = True, process.decoding
                        self._running(opened)
            if running and process.decoding != decoding:
                return _Failure("resized", "its frames have changed their size")
            if silence >= most_silence:
                if running:
                    reason = f"no frame for {self._options.stall:g} s"
                    self._change("stalled", reason, {"seconds": self._options.stall}, reason)
                    return _Failure("stalled", reason)
                return _Failure("unreachable", f"no frame within {_OPEN_SECONDS:g} s of the attempt")
        return None

    def _failure(self, process: CaptureProcess, message: Mapping[str, Any], ran: bool) -> _Failure:
        reason, kind = without_secrets(str(message["failed"]), self._secrets), str(message["kind"])
        words = process.words()
        if kind == "slow":
            self._decoder_threads = os.cpu_count() or 1
        elif not kind:
            kind = "unreachable" if _UNREACHABLE.search(words) or not words else "refused"
            reason = words or "nobody answers"
        elif kind == "lost" and not ran:
            reason = words or reason
        # One that has decoded is not used again: whatever it has piled up in months goes with it.
        return _Failure(kind, reason, child_lives=not ran and kind != "slow")

    def _end(self, process: CaptureProcess, failure: _Failure) -> _Failure:
        self._forget_newest()
        # Of one that dies its pipe ends a moment before itself: waited for, it says by which signal.
        how = process.end(gently=failure.kind in ("lost", "slow", "resized", "died"))
        return dataclasses.replace(failure, reason=f"{failure.reason} {how}") if failure.kind == "died" else failure

    def _take_in(self, process: CaptureProcess, message: Mapping[str, Any], dropped: int, corrupt: int) -> None:
        """Makes a frame the newest. Raises InputError for one that is not there, ValueError for what is none."""
        slot, at, height, width = message["frame"], message["at"], message["height"], message["width"]
        if slot not in range(len(process.slots)) or not 0 <= at <= time.monotonic():
            raise ValueError
        pixels = process.slots[slot].pixels(height, width)
        with self._lock:
            index = self._counts["captured"] + dropped
            old, self._newest = self._newest, _Newest(process, slot, pixels, at, index)
            self._counts["captured"] += dropped + 1
            self._counts["dropped"] += dropped + (old is not None)
            self._counts["corrupt"] += corrupt
            self._arrivals.append(at)
            self._size = (height, width)
            if math.isnan(self._first_at):
                self._first_at = at
        if old is not None:
            process.free(old.slot)
        self._wake.set()

    def _forget_newest(self) -> None:
        """A frame of a child that has ended is too old to be looked at."""
        with self._lock:
            self._counts["dropped"] += self._newest is not None
            self._newest = None

    def _running(self, opened: Mapping[str, Any]) -> None:
        again = ("running", "") in self._told
        height, width = self._size or (0, 0)
        rate = f" at {opened['fps']:g} frames/s" if opened.get("fps") else ""
        codec = f", {opened['codec']}" if opened.get("codec") else ""
        text = f"{width}x{height}{rate}{codec}"
        wishes = {key: getattr(self._options, key) for key in ("width", "height", "fps", "codec")}
        asked = {key: value for key, value in wishes.items() if value is not None and self._address.kind == "camera"}
        granted = {"height": height, "width": width, "fps": opened.get("fps"), "codec": opened.get("codec")}
        if any(granted[key] != value for key, value in asked.items()):
            text += f" (asked for {', '.join(f'{key} {value}' for key, value in asked.items())})"
        facts: dict[str, Any] = {**granted, "asked": asked}
        if again:
            self._counts["reconnects"] += 1
            facts["down_seconds"] = round(time.monotonic() - self._down_since, 3)
            text += f", again after {facts['down_seconds']:.1f} s"
        self._told.clear()
        self._change("running", text, facts)

    def _wait(self, failure: _Failure, attempt: int) -> None:
        cap = _UNREACHABLE_WAIT if failure.kind == "unreachable" else math.inf
        wait = min(cap, self._options.most_wait, _FIRST_WAIT * 2 ** min(attempt, 20))
        wait *= random.uniform(1 - _JITTER, 1 + _JITTER)
        text = f"{failure.reason}; the next attempt in {wait:.1f} s"
        self._change("waiting", text, {"reason": failure.reason, "seconds": round(wait, 3)}, failure.reason)
        self._stop.wait(wait)
        if not self._stop.is_set():
            with self._lock:
                # Told as no event: it would come every second for as long as the source is away.
                self._state, self._since = "opening", time.monotonic()

    def _change(self, state: Any, text: str, facts: Mapping[str, Any], reason: str = "") -> None:
        # Here, so that the child is on its way before its parent loads OpenCV: both are loaded side by side.
        from deploy.result import Event

        now = time.monotonic()
        with self._lock:
            if self._state == "running" and state != "running":
                self._down_since = now
            self._state, self._since, self._reason = state, now, reason
        self._wake.set()
        key = state, re.sub(r"\w*\d\w*", "0", reason)  # places in a stream are another number each time
        if now - self._told.get(key, -math.inf) >= _TELL_AGAIN_SECONDS:
            self._told[key] = now
            self._tell(Event(self.name, state, time.time(), text, facts))


def _checked(opened: Mapping[str, Any]) -> dict[str, Any]:
    """What a camera granted, or a stream is. Raises ValueError or TypeError for what is none."""
    codec = without_secrets(str(opened["codec"]), ())[:8]
    return {"codec": codec, "fps": None if opened["fps"] is None else float(opened["fps"])}
