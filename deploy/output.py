"""Where detections go: JSON lines, annotated pictures, an annotated video, and words for people.

Nothing half-written ever bears a real name: each file grows under a temporary name in its folder, which ends in ".part"
or ".part.mp4", and is renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import click
import cv2
import numpy as np

from deploy.command_line import write_atomically
from deploy.detections import Detections
from deploy.errors import InputError
from deploy.source import ASSUMED_FPS, Frame, Source

#: Picture formats that OpenCV writes in colour; a picture of another one is annotated as NAME.EXTENSION.png.
_WRITABLE = frozenset(".bmp .jpe .jpeg .jpg .png .tif .tiff .webp".split())


def printable(text: str | Path) -> str:
    """The text without what would disturb a terminal or a strict reader: control characters and undecodable bytes."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def label_of(labels: Sequence[str], class_id: int) -> str:
    """The class's label, or "class" and its number where the file has none."""
    return labels[class_id] if 0 <= class_id < len(labels) else f"class {class_id}"


def to_json(frame: Frame, found: Detections, labels: Sequence[str]) -> dict[str, Any]:
    """A line of --jsonl: boxes as x1, y1, x2, y2 in pixels of the source, to a hundredth, scores to six decimals.

    found holds finite numbers: JSON has no others.
    """
    return {
        "source": os.fsencode(frame.source).decode("utf-8", "replace"),
        "frame": frame.index,
        "time": round(frame.time, 6),
        "detections": [
            {
                "label": label_of(labels, int(class_id)),
                "class_id": int(class_id),
                "score": round(float(score), 6),
                "box": [round(float(v), 2) for v in box],
            }
            for box, score, class_id in zip(found.boxes, found.scores, found.class_ids, strict=True)
        ],
    }


def in_words(counts: Mapping[int, int], labels: Sequence[str], most: int = 8) -> str:
    """Detections counted by class number, such as "2 dogs, 1 person", the `most` most frequent classes first."""
    parts = []
    for class_id, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        label = printable(label_of(labels, class_id))
        ending = ""
        if count > 1 and label.isascii() and label[-1:].isalpha() and not label.endswith("s"):
            ending = "es" if label.endswith(("ch", "sh", "x")) else "s"
        parts.append(f"{count} {label}{ending}")
    if len(parts) > most:
        parts[most:] = [f"{len(parts) - most} more classes"]
    return ", ".join(parts) or "nothing found"


class JsonLines:
    """Writes one line of JSON a frame, each at once and whole.

    A regular file grows under a temporary name. At the end, and after Ctrl-C, it takes its real name; after an error
    only where no older file has that name, so an older one stays as it was. After a kill the lines stand in the
    temporary file alone. "-" is standard output, and a pipe or device is written to directly.
    """

    def __init__(self, destination: str, labels: Sequence[str]) -> None:
        """Raises InputError where the file cannot be made."""
        self._labels = labels
        self._destination = None if destination == "-" else Path(os.path.realpath(destination))
        self._temporary: Path | None = None
        #: Bytes of the finished lines: what a full disk cut short, or Ctrl-C, is not among them.
        self._finished = 0
        if self._destination is None:
            return
        if os.path.isdir(self._destination):
            raise InputError(f"cannot write {destination}: it is a folder; name a file in it")
        target = self._destination
        if os.path.isfile(target) or not os.path.exists(target):
            target = self._temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            # Without a buffer no half line is left behind to fail once more when the file is closed.
            self._file = open(target, "wb", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write {self._destination}: {error.strerror or error}; choose another place or free some"
        )

    def write(self, frame: Frame, found: Detections) -> None:
        """Raises InputError where the line cannot be written."""
        self.write_line(to_json(frame, found, self._labels))

    def write_line(self, value: Mapping[str, Any]) -> None:
        """value: plain JSON values. Raises InputError where the line cannot be written."""
        line = json.dumps(value, allow_nan=False)
        if self._destination is None:
            click.echo(line)
            return
        rest = memoryview(line.encode() + b"\n")
        length = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failure(error) from error
        self._finished += length

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if self._destination is None:
            return
        if self._temporary is None:
            self._file.close()
            return
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt) and self._finished > 0
        keep = kind is None or interrupted or (self._finished > 0 and not self._destination.exists())
        try:
            if keep:
                self._file.truncate(self._finished)
                os.fsync(self._file.fileno())
            self._file.close()
            if keep:
                os.replace(self._temporary, self._destination)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def annotated_name(file: Path) -> str:
    """The name of a picture's annotated copy: its own, with .png added where OpenCV cannot write its format."""
    return file.name if file.suffix.lower() in _WRITABLE else f"{file.name}.png"


def output_folder(out: Path, source: Source) -> None:
    """Makes the folder for annotated pictures where it is missing.

    Raises InputError where it cannot be made or written to, or where the source lies right in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror or error}; choose another place") from error
    if any(os.path.samefile(out, folder) for folder in {source.files[0].parent, source.path.resolve().parent}):
        raise InputError(f"--out {out} is the source's folder, where it would be overwritten; choose another folder")
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {out}: Permission denied; choose another place")


def write_picture(out: Path, file: Path, picture: np.ndarray) -> None:
    """Writes the annotated copy of `file` to the folder. picture: uint8 (h, w, 3) BGR.

    Raises InputError where it cannot be written, or where its name leads to the source.
    """
    destination = out / annotated_name(file)
    if destination.exists() and os.path.samefile(destination, file):
        raise InputError(f"{destination} is the source itself, which must not be overwritten; choose another folder")
    try:
        done, content = cv2.imencode(destination.suffix.lower(), picture)
    except cv2.error:
        done = False
    if not done:  # such as JPEG beyond 65,500 pixels a side
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise InputError(f"OpenCV cannot write {size} pixels as {destination}; scale the picture down")
    write_atomically(destination, content.tobytes())


class VideoFile:
    """Writes an annotated video, mp4 with MPEG-4 part 2 (the one codec for mp4 in OpenCV's packages).

    The codec wants even sides: the last row or column of an odd one is left out. The file takes its real name at the
    end and after Ctrl-C, when every frame is found to be in it; after an error it is removed and an older one stays.
    """

    def __init__(self, destination: Path, fps: float, size: tuple[int, int]) -> None:
        """fps: 0.0 where unknown (then ASSUMED_FPS). size: (height, width) in pixels.

        Raises InputError where the file cannot be made.
        """
        self._destination = destination
        self._size = size
        self._frames = 0
        # OpenCV tells the container by the ending.
        self._temporary = destination.with_name(f".{destination.stem}.{os.getpid()}.part.mp4")
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, fourcc, fps or ASSUMED_FPS, size[::-1])
        if not self._writer.isOpened():
            self._remove()
            raise InputError(
                f"cannot write a video of {size[1]}x{size[0]} pixels as {destination}; "
                "the folder is not writable, the disk full, or the size not one that MPEG-4 holds"
            )

    def write(self, picture: np.ndarray) -> None:
        """picture: uint8 (h, w, 3) BGR of the size given at first; another one raises InputError."""
        if picture.shape[:2] != self._size:
            raise InputError(
                f"all frames of a video have one size; frame {self._frames} has {picture.shape[1]}x{picture.shape[0]}, "
                f"not {self._size[1]}x{self._size[0]}; use --jsonl, or split the video there"
            )
        self._writer.write(picture)
        self._frames += 1

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        try:
            self._writer.release()
            if self._frames and (kind is None or issubclass(kind, KeyboardInterrupt)):
                self._finish()
        finally:
            self._remove()

    def _finish(self) -> None:
        # OpenCV keeps a failed write to itself, so the file is asked.
        written = cv2.VideoCapture(str(self._temporary), cv2.CAP_FFMPEG)
        frames = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if frames != self._frames:
            raise InputError(
                f"cannot write {self._destination}: of {self._frames} frames {max(frames, 0)} can be read back; "
                "the disk is full or the file has reached its greatest size; free some place"
            )
        try:
            os.replace(self._temporary, self._destination)
        except OSError as error:
            raise InputError(f"cannot write {self._destination}: {error.strerror or error}; choose another") from error

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


class Progress:
    """Tells standard error how far a run is, from its third second on.

    A terminal gets one line that is rewritten ten times a second, anything else a line every ten seconds.
    """

    def __init__(self, total: int, unit: str, stream: TextIO | None = None) -> None:
        """total: 0 where unknown. unit: such as "frames"."""
        self._total, self._unit, self._stream = total, unit, stream or sys.stderr
        self._live = self._stream.isatty()
        self._begin = time.monotonic()
        self._next = self._begin + 2.0
        self._width = 0
        self.done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, *_: object) -> None:
        """One more is done; what it was doesn't matter."""
        self.done += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.1 if self._live else 10.0)
        rate = self.done / max(now - self._begin, 1e-9)
        of = f"/{self._total}" if self._total else ""
        left = f", {(self._total - self.done) / rate:.0f} s left" if self._total > self.done else ""
        line = f"{self.done}{of} {self._unit}, {rate:.1f}/s{left}"
        # Spaces wipe what a longer line left behind.
        self._stream.write(f"\r{line:<{self._width}}" if self._live else f"{line}\n")
        self._stream.flush()
        self._width = len(line)

    def close(self) -> None:
        """Wipes the rewritten line."""
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
