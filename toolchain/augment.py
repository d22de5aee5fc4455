"""Changes pictures for a training, and their boxes with them: place, size, mirror, mosaic, colours.

A picture is drawn into a rectangle of whole pixels, which may stick out of the canvas. Unchanged, that is exactly where
and how deploy.preprocess draws it: what a network is trained on is what the device will show it. What the rectangle
does not cover is filled as the letterbox's bars are.

    change     drawn from                                                           after
    mirror     every second picture                                                 darknet's flip
    zoom       both sides by one factor, log-uniform in 1/(1 + scale) to 1 + scale;
               width over height by another, in the square root of that range       darknet's jitter and resize
    shift      uniform, by at most that share of the input's sides either way       darknet's jitter
    mosaic     four pictures in one, see `mosaic`                                   YOLOv4, section 3.4
    colours    hue by at most 0.1 of its circle; saturation and brightness times a
               factor, log-uniform in 1/1.5 to 1.5; at strength 1                   darknet's hue, saturation, exposure

(Bochkovskiy, Wang, Liao: YOLOv4, 2020, arXiv:2004.10934; darknet: src/data.c, load_data_detection.)

A box is cut where its picture is. One of which less than VISIBLE of its area is left, or less than LEAST_SIDE pixels of
a side, is no longer an object to find: what is left does not show what it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from deploy.contract import Input
from deploy.preprocess import place
from toolchain.training import Training

VISIBLE = 0.2
LEAST_SIDE = 2.0
#: A mosaic's centre lies between these shares of both sides.
CENTER = (0.2, 0.8)
#: The smallest that a mosaic shows a picture, of the size at which it would stand alone.
SMALLEST_TILE = 0.5
#: At strength 1: share of the colour circle, and by how much saturation and brightness grow.
_HUE, _GAIN = 0.1, 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A picture and its objects."""

    #: uint8 (h, w, 3), BGR.
    pixels: np.ndarray
    #: float (n, 5): x1, y1, x2, y2 in pixels of the picture, and the class.
    objects: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Rectangle:
    """Whole pixels of a canvas, and perhaps beyond it."""

    left: int
    top: int
    width: int
    height: int

    def within(self, other: _Rectangle) -> _Rectangle:
        """The part that both share; its width or height is 0 or less where there is none."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right = min(self.left + self.width, other.left + other.width)
        bottom = min(self.top + self.height, other.top + other.height)
        return _Rectangle(left, top, right - left, bottom - top)


@dataclasses.dataclass(frozen=True, eq=False)
class _Drawing:
    """How a picture is drawn."""

    rectangle: _Rectangle
    #: Not at the size at which the device would see it.
    resized: bool
    mirrored: bool
    #: What hue, saturation and value 0..255 become, uint8 (1, 256, 3); None: as they are.
    tables: np.ndarray | None


def single(canvas: np.ndarray, shown: Shown, input: Input, training: Training, rng: np.random.Generator) -> np.ndarray:
    """Fills the canvas with one picture, changed as the training says; returns its objects, float32 (m, 5), in pixels
    of the canvas.

    canvas: uint8 (input.height, input.width, 3), BGR, overwritten. With neither scale, shift, flip nor color it is what
    deploy.preprocess makes of the picture, to the last pixel.
    """
    canvas[:] = input.fill
    zoom_x, zoom_y = _zoom(training.scale, rng)
    shift_x, shift_y = rng.uniform(-training.shift, training.shift, 2)
    mirrored = _mirrored(training, rng)
    placement = place(shown.pixels.shape[:2], input)
    width, height = max(1, round(placement.width * zoom_x)), max(1, round(placement.height * zoom_y))
    # Unchanged: place's own bars, which are rounded down.
    left = math.floor((input.width - width) / 2 + shift_x * input.width)
    top = math.floor((input.height - height) / 2 + shift_y * input.height)
    rectangle = _Rectangle(left, top, width, height)
    resized = (width, height) != (placement.width, placement.height)
    drawing = _Drawing(rectangle, resized, mirrored, _tables(training.color, rng))
    return _draw(canvas, _Rectangle(0, 0, input.width, input.height), shown, drawing)


def mosaic(
    canvas: np.ndarray, shown: Sequence[Shown], input: Input, training: Training, rng: np.random.Generator
) -> np.ndarray:
    """Fills the canvas with four pictures that meet in one point; returns their objects, float32 (m, 5), in pixels of
    the canvas.

    canvas as `single` has it. The point is drawn from CENTER of both sides. Each of the four regions shows a part of
    its picture, at a size drawn log-uniform between the smallest that fills the region, but no less than SMALLEST_TILE
    of the size at which the picture would stand alone, and that size itself; then zoomed as a picture alone is. So
    objects are seen between half and full size (on darknet's mosaics all are at full size), and little of the canvas
    is bare. Which part is seen is drawn too; a picture that does not fill its region lies anywhere in it.
    """
    canvas[:] = input.fill
    x = round(rng.uniform(*CENTER) * input.width)
    y = round(rng.uniform(*CENTER) * input.height)
    corners = [(0, 0, x, y), (x, 0, input.width, y), (0, y, x, input.height), (x, y, input.width, input.height)]
    found = []
    for one, (left, top, right, bottom) in zip(shown, corners, strict=True):
        region = _Rectangle(left, top, right - left, bottom - top)
        placement = place(one.pixels.shape[:2], input)
        fills = max(region.width / placement.width, region.height / placement.height)
        size = math.exp(rng.uniform(math.log(min(max(fills, SMALLEST_TILE), 1.0)), 0.0))
        zoom_x, zoom_y = _zoom(training.scale, rng)
        mirrored = _mirrored(training, rng)
        width = max(1, round(placement.width * size * zoom_x))
        height = max(1, round(placement.height * size * zoom_y))
        rectangle = _Rectangle(
            region.left + round(rng.random() * (region.width - width)),
            region.top + round(rng.random() * (region.height - height)),
            width,
            height,
        )
        drawing = _Drawing(rectangle, True, mirrored, _tables(training.color, rng))
        found.append(_draw(canvas, region, one, drawing))
    return np.concatenate(found)


def _zoom(scale: float, rng: np.random.Generator) -> tuple[float, float]:
    both, apart = rng.uniform(-1, 1, 2) * math.log1p(scale)
    return math.exp(both + apart / 4), math.exp(both - apart / 4)


def _mirrored(training: Training, rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5) and training.flip


def _tables(strength: float, rng: np.random.Generator) -> np.ndarray | None:
    """As _Drawing has them. The same numbers are drawn at every strength."""
    turn, saturation, value = rng.uniform(-1, 1, 3)
    if not strength:
        return None
    levels = np.arange(256.0)
    gain = math.log1p(_GAIN * strength)
    hue = np.rint(levels + 256 * _HUE * strength * turn) % 256
    rest = [np.minimum(np.rint(levels * math.exp(gain * side)), 255) for side in (saturation, value)]
    return np.stack([hue, *rest], axis=-1).astype(np.uint8)[None]


def _draw(canvas: np.ndarray, region: _Rectangle, shown: Shown, drawing: _Drawing) -> np.ndarray:
    """Draws the picture as far as it lies in the region; returns the objects that are seen there, float32 (m, 5)."""
    rectangle = drawing.rectangle
    seen = rectangle.within(region)
    if seen.width <= 0 or seen.height <= 0:
        return np.zeros((0, 5), np.float32)
    window = canvas[seen.top : seen.top + seen.height, seen.left : seen.left + seen.width]
    pixels = _shrunk(shown.pixels, rectangle) if drawing.resized else shown.pixels
    if seen == rectangle:
        cv2.resize(pixels, (seen.width, seen.height), dst=window, interpolation=cv2.INTER_LINEAR)
        if drawing.mirrored:
            cv2.flip(window, 1, dst=window)
    else:
        _warp(pixels, window, rectangle, seen, drawing.mirrored)
    if drawing.tables is not None:
        colors = cv2.cvtColor(window, cv2.COLOR_BGR2HSV_FULL)
        cv2.cvtColor(cv2.LUT(colors, drawing.tables, dst=colors), cv2.COLOR_HSV2BGR_FULL, dst=window)
    return _objects(shown, rectangle, seen, drawing.mirrored)


def _shrunk(pixels: np.ndarray, rectangle: _Rectangle) -> np.ndarray:
    """The picture at most twice as large as the rectangle, so that linear interpolation passes over no pixel."""
    height, width = pixels.shape[:2]
    by_x, by_y = max(1, width // rectangle.width), max(1, height // rectangle.height)
    if max(by_x, by_y) < 2:
        return pixels
    return cv2.resize(pixels, (max(1, width // by_x), max(1, height // by_y)), interpolation=cv2.INTER_AREA)


def _warp(pixels: np.ndarray, window: np.ndarray, rectangle: _Rectangle, seen: _Rectangle, mirrored: bool) -> None:
    """Fills the window, which is what is seen of the rectangle, by one affine map.

    OpenCV counts from the centres of pixels: the window's pixel i covers the share (seen.left + i + 0.5 - left) / width
    of the rectangle, and of the picture, whose pixel j has its centre at j + 0.5.
    """
    height, width = pixels.shape[:2]
    step_x, step_y = width / rectangle.width, height / rectangle.height
    start_x = (seen.left - rectangle.left + 0.5) * step_x
    start_y = (seen.top - rectangle.top + 0.5) * step_y
    if mirrored:
        step_x, start_x = -step_x, width - start_x
    inverse = np.array([[step_x, 0, start_x - 0.5], [0, step_y, start_y - 0.5]])
    cv2.warpAffine(
        pixels,
        inverse,
        (seen.width, seen.height),
        dst=window,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _objects(shown: Shown, rectangle: _Rectangle, seen: _Rectangle, mirrored: bool) -> np.ndarray:
    height, width = shown.pixels.shape[:2]
    moved = np.array(shown.objects, np.float64).reshape(-1, 5)
    moved[:, :4] *= (rectangle.width / width, rectangle.height / height) * 2
    if mirrored:
        moved[:, [0, 2]] = rectangle.width - moved[:, [2, 0]]
    moved[:, :4] += (rectangle.left, rectangle.top) * 2
    area = (moved[:, 2:4] - moved[:, :2]).prod(axis=1)
    low = np.array((seen.left, seen.top) * 2)
    cut = np.clip(moved[:, :4], low, low + (seen.width, seen.height) * 2)
    sides = cut[:, 2:] - cut[:, :2]
    keep = (sides >= LEAST_SIDE).all(axis=1) & (sides.prod(axis=1) >= VISIBLE * area)
    return np.concatenate([cut, moved[:, 4:]], axis=1)[keep].astype(np.float32)
