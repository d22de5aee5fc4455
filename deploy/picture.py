"""Pictures from files: 8-bit BGR as OpenCV has it, turned upright, whatever the format."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from deploy.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

#: More pixels than this are refused from the header, before any memory is taken (268 MB as BGR): above what cameras
#: make.
MOST_PIXELS = 89_478_485
_MOST_BYTES = 512 * 2**20
#: All that Pillow's readers are known to raise on damaged files.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, OverflowError, struct.error)

#: EXIF's tag of how the camera was held, and those of its values that are a quarter turn.
_ORIENTATION, _LYING = 0x0112, frozenset({5, 6, 7, 8})
#: Pillow's names of the formats whose orientation OpenCV follows. Of a TIFF Pillow gives the upright size itself.
_TURNED_BY_OPENCV = frozenset({"JPEG", "MPO", "PNG", "WEBP"})


def read_picture(path: Path | str) -> np.ndarray:
    """uint8 (h, w, 3), BGR, 0..255, turned as its EXIF orientation says. Grey becomes three equal channels,
    transparency is left out, 16 bits become 8, of an animation the first picture counts. OpenCV decodes what it can,
    Pillow the rest.

    Raises InputError for a file that is missing, empty, cut short, larger than MOST_PIXELS, or no picture.
    """
    path = Path(path)
    content = _content(path)
    _check_header(path, content)
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    return _decode_with_pillow(path, content) if picture is None else picture


def picture_size(path: Path | str) -> tuple[int, int]:
    """(width, height) that read_picture gives the picture, from its header alone: nothing is decoded.

    Raises InputError as read_picture does, but for damage that only decoding brings to light.
    """
    path = Path(path)
    content = _content(path)
    _check_header(path, content)
    with _pillow(content) as header:
        width, height = header.size
        try:
            lies = header.format in _TURNED_BY_OPENCV and header.getexif().get(_ORIENTATION) in _LYING
        except _PILLOW_ERRORS:
            lies = False  # OpenCV passes over a damaged orientation too
    return (height, width) if lies else (width, height)


def to_bgr(picture: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) BGR from grey (h, w) or (h, w, 1), BGR (h, w, 3) or BGRA (h, w, 4), all uint8; BGR is not copied.

    Raises InputError for other shapes and dtypes.
    """
    if picture.dtype == np.uint8 and picture.size:
        channels = 1 if picture.ndim == 2 else picture.shape[2] if picture.ndim == 3 else 0
        if channels == 3:
            return picture
        if channels == 1:
            return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
        if channels == 4:
            return cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR)
    raise InputError(
        "a picture is uint8 (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) and not empty, "
        f"not {picture.dtype} {picture.shape}; convert it"
    )


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if not content:
        raise InputError(f"{path} is empty (0 bytes); copy the picture anew")
    if len(content) > _MOST_BYTES:
        raise InputError(f"a picture has at most {_MOST_BYTES >> 20} MiB, but {path} has more; make it smaller")
    return content


def _check_header(path: Path, content: bytes) -> None:
    from PIL import Image

    try:
        with _pillow(content) as header:
            (width, height), kind = header.size, header.format
    except Image.DecompressionBombError as error:
        raise InputError(f"a picture has at most {MOST_PIXELS} pixels, but {path} has more; make it smaller") from error
    except _PILLOW_ERRORS as error:
        known = "a JPEG, PNG, BMP, TIFF or WebP"
        raise InputError(f"{path} is no picture, or a damaged one; copy it anew, or give {known}") from error
    if not 0 < width * height <= MOST_PIXELS:
        raise InputError(f"a picture has 1 to {MOST_PIXELS} pixels, but {path} has {width}x{height}; make it smaller")
    # OpenCV fills what is missing of a JPEG with grey and says nothing.
    if kind in ("JPEG", "MPO") and not _jpeg_ends(content):
        raise InputError(f"{path} is cut short: its picture has no end; copy it anew")
    # Of a PNG that is cut, libpng would say so on standard error by itself.
    if kind == "PNG" and b"IEND" not in content:
        raise InputError(f"{path} is cut short: its picture has no end; copy it anew")


@contextmanager
def _pillow(content: bytes) -> Iterator[Image.Image]:
    """The picture, opened; its pixels are read when they are asked for."""
    # Only now: OpenCV alone serves whoever brings arrays.
    from PIL import Image

    with warnings.catch_warnings():
        # Of large pictures, which are refused, and of odd metadata, which is not used.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as picture:
            yield picture


def _jpeg_ends(content: bytes) -> bool:
    """True where the end marker follows the picture's data. Thumbnails have one too, inside segments that are
    skipped."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker == b"\xda":
            return content.find(b"\xff\xd9", place) >= 0
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        # Fill bytes may stand before a marker.
        place += 1 if marker == b"\xff" else 2 + length
    return False


def _decode_with_pillow(path: Path, content: bytes) -> np.ndarray:
    from PIL import ImageOps

    try:
        with _pillow(content) as picture:
            rgb = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise InputError(f"{path} is a damaged picture; copy it anew") from error
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
