"""Where pictures come from: one picture, a folder of them, or a video file. Every frame, in order.

A stream or a camera wants the newest frame instead of every one: live_feed.py.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from deploy.errors import InputError
from deploy.picture import MOST_PIXELS, read_picture

#: What a folder's pictures end in, in any case of letters.
PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
VIDEO_SUFFIXES = frozenset(".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())

#: How the containers of videos begin. FFmpeg alone would also take text for a film and open the files that a playlist
#: names, wherever they lie, so a file that begins otherwise never reaches it.
_CONTAINERS = (
    re.compile(rb"RIFF....AVI ", re.DOTALL),
    re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL),  # ISO base media: mp4, mov, 3gp
    re.compile(rb"\x1a\x45\xdf\xa3"),  # EBML: Matroska, WebM
    re.compile(rb"\x00\x00\x01[\xba\xb3]"),  # MPEG program stream, MPEG video
    re.compile(rb"(.{4})?\x47.{187}(.{4})?\x47", re.DOTALL),  # MPEG transport stream, and as on discs
    re.compile(rb"FLV\x01"),
    re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF, WMV
    re.compile(rb"OggS"),
)
_HEAD_BYTES = 1024

#: Frames a second of a video that doesn't say its own rate.
ASSUMED_FPS = 25.0


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture to look at."""

    #: The file, as the user named it or below the folder that the user named; of a camera or stream its address without
    #: any password.
    source: Path | str
    #: Number within the source, from 0; 0 for a picture.
    index: int
    #: Seconds since the video's first frame; 0.0 for a picture.
    time: float
    #: uint8 (h, w, 3), BGR.
    pixels: np.ndarray
    #: time.monotonic() when the frame had arrived, decoded; 0.0 for a picture.
    captured: float = 0.0


@dataclasses.dataclass(frozen=True)
class Source:
    """What --source names, found but not yet read."""

    kind: Literal["picture", "folder", "video"]
    path: Path
    #: The files to read, in order: one, or a folder's pictures.
    files: tuple[Path, ...]


def locate(source: str) -> Source:
    """Finds what `source` names.

    A folder gives the pictures right in it, told by PICTURE_SUFFIXES, sorted by name, without hidden ones. A symbolic
    link among them is read through, wherever it leads. A file is a video if it begins like one, else a picture.

    Raises InputError for what doesn't exist, for a folder without pictures, a damaged video, a stream or a camera.
    """
    path = Path(source)
    try:
        mode = path.stat().st_mode if source else None
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot look at {source!r}: {reason}; check the path") from error
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) or (mode is None and re.fullmatch(r"\d+|/dev/video\d+", source)):
        # The address stays out of the sentence: it may hold a password.
        raise InputError("only files are read here, no stream and no camera; give a picture, a folder or a video file")
    if mode is None:
        raise InputError(f"there is no {source!r}; give a picture, a folder of pictures or a video file")
    if stat.S_ISDIR(mode):
        return Source("folder", path, _pictures(path))
    if stat.S_ISCHR(mode):
        raise InputError(f"only files are read here, and {path} is a device; give a picture, a folder or a video file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is neither a file nor a folder; give a picture, a folder or a video file")
    return Source("video" if _is_video(path) else "picture", path, (path,))


def _pictures(folder: Path) -> tuple[Path, ...]:
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if Path(entry.name).suffix.lower() in PICTURE_SUFFIXES
            and not entry.name.startswith(".")
            and not entry.is_dir()
        )
    if not names:
        known = " ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"no pictures in {folder}; their names end in one of {known}, folders within are not searched")
    return tuple(folder / name for name in names)


def _is_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return False
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if any(container.match(head) for container in _CONTAINERS):
        return True
    if suffix in VIDEO_SUFFIXES:
        found = "it has zero bytes" if not head else "it does not begin like any video container"
        raise InputError(f"{path} is not a video: {found}; give a whole video file")
    return False


def read_pictures(source: Source, skip: Callable[[Path, str], None]) -> Iterator[Frame]:
    """The source's pictures. In a folder, one that cannot be read is told to skip(path, reason) and left out.

    Raises InputError when the only picture cannot be read.
    """
    for path in source.files:
        try:
            if not path.is_file():
                raise InputError(f"{path} is a broken link or no regular file")
            pixels = read_picture(path)
        except (InputError, OSError) as error:
            if source.kind != "folder":
                raise
            skip(path, str(error))
            continue
        yield Frame(path, 0, 0.0, pixels)


class Video:
    """A video file, opened.

    Raises InputError when it cannot be opened or its frames are larger than a picture may be.
    """

    path: Path
    #: Frames a second as the file says, 0.0 where it doesn't.
    fps: float
    #: How many frames the file says it has, 0 where it doesn't.
    announced: int
    #: (height, width) in pixels.
    size: tuple[int, int]

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not a daemon thread: one that dies inside FFmpeg at the program's end aborts the process.
        self._reader = ThreadPoolExecutor(1)
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise InputError(f"{path} cannot be opened as a video; it is cut, damaged or in a codec that OpenCV lacks")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0
        # A container without a count makes OpenCV answer a huge negative number.
        self.announced = int(min(max(self._capture.get(cv2.CAP_PROP_FRAME_COUNT), 0), 1e12))
        self.size = (
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        )
        if self.size[0] * self.size[1] > MOST_PIXELS:
            self.close()
            raise InputError(
                f"a frame has at most {MOST_PIXELS} pixels, those of {path} {self.size[1]}x{self.size[0]}; scale it"
            )

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the frame being decoded, then lets go of the file."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._capture.release()

    def frames(self, ahead: bool = True) -> Iterator[Frame]:
        """Every frame in order, up to the end or to the first one that cannot be decoded.

        Frame.time is the container's own timestamp; where that is missing or does not grow, index / fps (fps as the
        file says, or ASSUMED_FPS). ahead: the next frame is decoded in a thread while the caller works on this one.
        Iterate once.

        Raises InputError when not a single frame can be decoded.
        """
        previous = -1.0
        index = 0
        for stamp, pixels, at in self._reads(ahead):
            if pixels is None:
                break
            if not (math.isfinite(stamp) and stamp > previous):
                stamp = index / (self.fps or ASSUMED_FPS)
            yield Frame(self.path, index, stamp, pixels, at)
            previous = stamp
            index += 1
        if index == 0:
            raise InputError(f"not one frame of {self.path} can be decoded; the file is cut or damaged")

    def _reads(self, ahead: bool) -> Iterator[tuple[float, np.ndarray | None, float]]:
        while not ahead:
            yield self._read()
        upcoming = self._reader.submit(self._read)
        while True:
            done = upcoming.result()
            if done[1] is not None:
                upcoming = self._reader.submit(self._read)
            yield done

    def _read(self) -> tuple[float, np.ndarray | None, float]:
        done, pixels = self._capture.read()
        # After a read, this is the time of the frame that was read.
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, pixels if done else None, time.monotonic()
