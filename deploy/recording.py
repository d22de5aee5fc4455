"""Annotated mp4 of feeds that last: paced by the clock, in segments, in the room that was granted.

A segment grows as NAME.part.mp4 and takes its real name when it is finished, so a killed run leaves whole
what was finished.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from deploy.annotate import Shape, annotated
from deploy.detect_settings import RecordSettings
from deploy.draw import captions
from deploy.errors import InputError
from deploy.result import Event, Result
from deploy.status import Snapshot

#: A pause of a feed that is longer, in seconds, ends the segment instead of being filled with its last picture.
_LONGEST_PAUSE = 3.0
#: Seconds that an encoder has to finish its file, and that nothing is recorded after a failure.
_FINISH, _REST = 5.0, 10.0


class Recording:
    """Records each feed that it is given results of, into FOLDER/FEED_YYYYMMDDTHHMMSSZ.mp4 (UTC).

    A new segment begins after settings.seconds, when the frame's size changes and after a pause of three seconds; after
    a failure, such as a full disk, ten seconds later.
    """

    name = "mp4"

    def __init__(
        self,
        settings: RecordSettings,
        labels: Sequence[str],
        snapshot: Callable[[], Snapshot] | None = None,
        shapes: Mapping[str, Sequence[Shape]] | None = None,
    ) -> None:
        """snapshot: tells which feeds are live, by default all. shapes: by feed.

        Raises InputError where the folder cannot be written to, or h264 is asked for in vain.
        """
        self._settings, self._snapshot, self._shapes = settings, snapshot, shapes or {}
        self._live: dict[str, bool] = {}
        #: By feed: the last failure, and until when it rests (time.monotonic()).
        self._resting: dict[str, tuple[str, float]] = {}
        self._captions = captions(labels)
        self._segments: dict[str, _Segment] = {}
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {settings.folder}: {error.strerror}; choose another") from error
        if not os.access(settings.folder, os.W_OK | os.X_OK):
            raise InputError(f"cannot write to the folder {settings.folder}: Permission denied; choose another place")
        if settings.codec == "h264" and not has_h264():
            raise InputError("H.264 is written by an ffmpeg with libx264, which is not here; install it or use mpeg4")
        #: What it records with.
        self.codec = "h264" if settings.codec != "mpeg4" and has_h264() else "mpeg4"

    def result(self, result: Result) -> None:
        """Raises InputError where the segment cannot be written, and while it rests after that."""
        reason, end = self._resting.get(result.feed, ("", 0.0))
        if time.monotonic() < end:
            raise InputError(reason)
        now = self._time(result)
        segment = self._segments.get(result.feed)
        if segment and not segment.wants(now):
            return  # its picture would be left out, so it is not drawn either
        picture = annotated(result, self._captions, self._shapes.get(result.feed, ()), self._settings.most_width)
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]  # the codecs want even sides
        try:
            if segment and not segment.continues(now, picture):
                self._finish(result.feed)
                segment = None
            if segment is None:
                segment = self._segments[result.feed] = _Segment(self._settings, self.codec, result.feed, now, picture)
            segment.add(now, picture)
        except InputError as error:
            # An encoder a frame, each of which fails, would take the machine away from the detector.
            self._resting[result.feed] = str(error), time.monotonic() + _REST
            if (broken := self._segments.pop(result.feed, None)) is not None:
                broken.discard()
            raise

    def event(self, event: Event) -> None:
        """A feed that ended has its segment finished."""
        if event.kind in ("ended", "failed") and event.feed in self._segments:
            self._finish(event.feed)

    def close(self) -> None:
        for feed in list(self._segments):
            self._finish(feed)

    def _time(self, result: Result) -> float:
        """Seconds by which the film is paced: of the clock when the frame arrived; of a file, which is read as fast as
        it goes, the file's own."""
        if result.feed not in self._live:
            feeds = self._snapshot().feeds if self._snapshot else ()
            self._live[result.feed] = next((feed.live for feed in feeds if feed.name == result.feed), True)
        if not self._live[result.feed]:
            return result.frame.time
        return result.frame.captured or result.finished

    def _finish(self, feed: str) -> None:
        self._segments.pop(feed).finish()
        if self._settings.most_bytes is not None:
            growing = {segment.temporary for segment in self._segments.values()}
            _make_room(self._settings.folder, self._settings.most_bytes, growing)


class _Writer(Protocol):
    def write(self, picture: np.ndarray) -> None: ...

    def finish(self) -> None: ...

    def discard(self) -> None: ...


class _Segment:
    """One file: a fixed rate, whose pictures are chosen by the clock."""

    def __init__(self, settings: RecordSettings, codec: str, feed: str, now: float, picture: np.ndarray) -> None:
        self._fps, self._begin, self._end = settings.fps, now, now + settings.seconds
        self._shape = picture.shape
        self._written = 0
        self._newest = now
        self._path = _free_name(settings.folder, feed)
        self.temporary = self._path.with_name(f"{self._path.stem}.part.mp4")
        size = picture.shape[1], picture.shape[0]
        make: Callable[..., _Writer] = _Ffmpeg if codec == "h264" else _OpenCv
        self._writer = make(self.temporary, settings.fps, size)

    def wants(self, now: float) -> bool:
        return self._due(now) > self._written or now >= self._end or now < self._newest

    def continues(self, now: float, picture: np.ndarray) -> bool:
        return now < self._end and picture.shape == self._shape and 0 <= now - self._newest < _LONGEST_PAUSE

    def add(self, now: float, picture: np.ndarray) -> None:
        """As often as the clock asks for: what a pause left open is filled with the newest picture."""
        for _ in range(self._due(now) - self._written):
            self._writer.write(picture)
            self._written += 1
        self._newest = now

    def finish(self) -> None:
        self._writer.finish()
        try:
            os.replace(self.temporary, self._path)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; free some place") from error

    def discard(self) -> None:
        """After a failure: what can be played of it stays, under its temporary name."""
        self._writer.discard()
        if not is_readable(self.temporary):
            with contextlib.suppress(OSError):
                self.temporary.unlink()

    def _due(self, now: float) -> int:
        """Pictures that the file should hold at this time."""
        return int((now - self._begin) * self._fps + 0.5) + 1


class _OpenCv:
    """MPEG-4 part 2, the one codec for mp4 in OpenCV's packages."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._path = path
        self._writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self._writer.isOpened():
            raise InputError(f"cannot write a video of {size[0]}x{size[1]} pixels as {path}; free some place")

    def write(self, picture: np.ndarray) -> None:
        self._writer.write(picture)

    def finish(self) -> None:
        self._writer.release()
        # OpenCV keeps a failed write to itself. A file with no end cannot be opened.
        if not is_readable(self._path):
            raise InputError(f"cannot read {self._path} back; the disk is full, free some place")

    def discard(self) -> None:
        self._writer.release()


class _Ffmpeg:
    """H.264 through an ffmpeg process, which gets the pictures through its standard input.

    The file is fragmented: also what a power cut leaves of it, under its temporary name, can be played.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._path = path
        raw = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:g}", "-i", "pipe:0"]
        coded = ["-c:v", "libx264", "-threads", "1", "-preset", "veryfast", "-crf", "24", "-pix_fmt", "yuv420p"]
        coded += ["-g", str(max(1, round(fps * 2))), "-movflags", "+frag_keyframe+empty_moov+default_base_moof"]
        command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *raw, *coded, "-f", "mp4"]
        # In a session of its own, so that Ctrl-C leaves it the time to finish its file.
        self._process = subprocess.Popen(
            [*command, os.path.abspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)  # detection goes first

    def write(self, picture: np.ndarray) -> None:
        assert self._process.stdin is not None  # a pipe was asked for
        rest = np.ascontiguousarray(picture).data.cast("B")
        try:
            while rest:
                rest = rest[self._process.stdin.write(rest) or 0 :]
        except OSError as error:
            raise InputError(f"ffmpeg ended while it wrote {self._path}; the disk is full, free some place") from error

    def finish(self) -> None:
        self._close_input()
        try:
            code = self._process.wait(_FINISH)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code:
            raise InputError(f"ffmpeg could not finish {self._path} (exit code {code}); free some place")

    def discard(self) -> None:
        self._close_input()
        self._process.kill()
        self._process.wait()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


@functools.cache
def has_h264() -> bool:
    """Whether this machine has an ffmpeg with libx264."""
    if shutil.which("ffmpeg") is None:
        return False
    try:
        listed = subprocess.run(["ffmpeg", "-hide_banner", "-encoders"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b" libx264 " in listed.stdout


def is_readable(path: Path) -> bool:
    """Whether the file opens as a video and gives a picture."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return capture.isOpened() and capture.read()[0]
    finally:
        capture.release()


def _free_name(folder: Path, feed: str) -> Path:
    """Of the feed's name only harmless letters are left."""
    harmless = re.sub(r"[^A-Za-z0-9-]+", "-", feed).strip("-") or "feed"
    stem = f"{harmless}_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    names = (stem if number == 0 else f"{stem}-{number}" for number in range(1000))
    for name in names:
        taken = [folder / f"{name}.mp4", folder / f"{name}.part.mp4"]
        if not any(path.exists() for path in taken):
            return taken[0]
    raise InputError(f"no name is free for another segment {stem} in {folder}; clear the folder")


def _make_room(folder: Path, most_bytes: int, growing: Collection[Path]) -> None:
    """Removes the oldest segments, those that an earlier run left unfinished included, until the others take no more
    than most_bytes. The newest one stays, and so do those that grow."""
    named = re.compile(r"[A-Za-z0-9-]+_\d{8}T\d{6}Z(-\d+)?(\.part)?\.mp4")
    found = [
        (path.stat(), path)
        for path in folder.iterdir()
        if named.fullmatch(path.name) and path.is_file() and path not in growing
    ]
    found.sort(key=lambda one: one[0].st_mtime, reverse=True)
    total = 0
    for place, (status, path) in enumerate(found):
        total += status.st_size
        if total > most_bytes and place:
            path.unlink(missing_ok=True)
