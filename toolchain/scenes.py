"""Scenes that the program draws itself: pictures of plain shapes with exact boxes, in the layout of Pascal VOC.

A scene is a gradient with cloudy texture, distractor lines and dots, one to six shapes and sensor noise. A shape is a
closed outline, stretched, turned, scaled and filled in a colour that stands out from what lies under it; two shapes
overlap a little at most. Every scene depends on (seed, split, index) alone, so a longer split begins with the shorter
one's scenes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from deploy import outlines
from deploy.errors import InputError

#: Class names; a truth's class is its index here.
CLASSES = outlines.CLASSES
#: Half the extent of a shape before it is stretched and turned, as a part of the picture's side.
_RADIUS = (0.08, 0.22)
_MOST_SHAPES = 6
#: Two boxes share at most this part of the smaller one.
_OVERLAP = 0.2
#: A fill is at least this many grey levels lighter or darker than what lies under it is on average.
_CONTRAST = 60.0
#: cv2 takes vertices in sixteenths of a pixel.
_SHIFT = 4


def write_scenes(folder: Path, *, splits: Mapping[str, int], seed: int, size: int) -> None:
    """Writes JPEGImages/*.jpg, Annotations/*.xml and ImageSets/Main/<split>.txt; splits: each split's number of scenes.

    The pictures are size x size. The same arguments give the same bytes (with the same OpenCV). The folder appears when
    it is complete or not at all. Raises InputError when it is there already and not empty, cannot be written, or a
    number makes no sense.
    """
    if size < 64 or size > 4096:
        raise InputError(f"a scene's side is 64 to 4096 pixels: got {size}; choose the network's input size")
    for name, count in splits.items():
        if not name.isidentifier() or count < 1:
            raise InputError(f"a split has a plain name and at least one scene: got {name!r} with {count}; correct it")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"scenes go into a new folder: {folder} is not empty; choose another or remove it")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _write(part, splits, seed, size)
        os.replace(part, folder)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; choose another place or free some"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(folder: Path, splits: Mapping[str, int], seed: int, size: int) -> None:
    images, annotations, sets = folder / "JPEGImages", folder / "Annotations", folder / "ImageSets" / "Main"
    for place in (images, annotations, sets):
        place.mkdir(parents=True)
    for split, count in splits.items():
        names = [f"{split}_{index:05d}" for index in range(count)]
        for index, name in enumerate(names):
            picture, boxes, classes = draw_scene((seed, *split.encode()), index, size)
            _, jpeg = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 92))
            (images / f"{name}.jpg").write_bytes(jpeg.tobytes())
            (annotations / f"{name}.xml").write_text(_annotation(f"{name}.jpg", size, boxes, classes))
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def draw_scene(key: tuple[int, ...], index: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws scene `index` of the series `key`.

    Returns the picture, uint8 (size, size, 3) BGR; boxes, float64 (n, 4), x1, y1, x2, y2 in pixels, the left edge of
    the first pixel being 0, exactly around the shapes' outlines; and classes, int64 (n,), indices into CLASSES. n >= 1.
    """
    rng = np.random.default_rng((*key, index))
    picture = _background(rng, size)
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    wanted = int(rng.integers(1, _MOST_SHAPES + 1))
    for _ in range(wanted):
        shape = int(rng.integers(len(CLASSES)))
        outline = _outline(rng, shape, size)
        placed = _place(rng, outline, boxes, size)
        if placed is None:
            continue
        box = np.concatenate([placed.min(axis=0), placed.max(axis=0)])
        _fill(rng, picture, placed, box)
        boxes.append(box)
        classes.append(shape)
    noise = rng.integers(-8, 9, picture.shape, dtype=np.int8)
    return cv2.add(picture, noise, dtype=cv2.CV_8U), np.array(boxes), np.array(classes, np.int64)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A colour gradient with clouds of two grains, lines and dots, uint8 (size, size, 3)."""
    corners = rng.uniform(20, 235, (2, 2, 3)).astype(np.float32)
    coarse = cv2.resize(corners, (9, 9), interpolation=cv2.INTER_LINEAR)
    coarse = coarse + np.float32(rng.uniform(2, 18)) * rng.standard_normal((9, 9, 3), np.float32)
    fine = cv2.resize(coarse, (33, 33), interpolation=cv2.INTER_CUBIC)
    fine = fine + np.float32(rng.uniform(1, 9)) * rng.standard_normal((33, 33, 1), np.float32)
    texture = cv2.resize(fine, (size, size), interpolation=cv2.INTER_LINEAR)
    picture = np.clip(texture, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 6))):
        ends = (rng.uniform(-0.1, 1.1, (2, 2)) * size).astype(int).tolist()
        thickness = int(rng.integers(1, max(2, size // 50) + 1))
        cv2.line(picture, ends[0], ends[1], _color(rng), thickness, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 8))):
        center = rng.integers(0, size, 2).tolist()
        cv2.circle(picture, center, int(rng.integers(1, max(2, size // 60) + 1)), _color(rng), -1, cv2.LINE_AA)
    return picture


def _color(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(rng.uniform(0, 255, 3).tolist())


def _outline(rng: np.random.Generator, shape: int, size: int) -> np.ndarray:
    """The class's outline about the origin in pixels: scaled (small sizes as often as large), stretched and turned."""
    radius = np.exp(rng.uniform(*np.log(_RADIUS))) * size
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = rng.uniform(-0.45, 0.45)
    cos, sin = np.cos(angle), np.sin(angle)
    return outlines.OUTLINES[shape] * radius * (stretch, 1 / stretch) @ np.array([[cos, sin], [-sin, cos]])


def _place(rng: np.random.Generator, outline: np.ndarray, taken: list[np.ndarray], size: int) -> np.ndarray | None:
    """The outline moved to a spot inside the picture that is free enough, or None when 20 trials found none."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    for _ in range(20):
        shift = rng.uniform(1 - low, size - 1 - high)
        if all(_overlap(np.concatenate([low + shift, high + shift]), box) <= _OVERLAP for box in taken):
            return outline + shift
    return None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Shared area of two boxes, x1 y1 x2 y2, as a part of the smaller one's, 0..1."""
    shared = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    smaller = min(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))
    return float(np.prod(np.maximum(shared, 0)) / smaller)


def _fill(rng: np.random.Generator, picture: np.ndarray, outline: np.ndarray, box: np.ndarray) -> None:
    """Draws a shape into the picture, in a colour that stands out, every second one with an edge of another shade."""
    x1, y1, x2, y2 = box.astype(int)
    under = np.array(cv2.mean(picture[y1 : y2 + 1, x1 : x2 + 1])[:3])
    color = rng.uniform(0, 255, 3)
    while abs(color.mean() - under.mean()) < _CONTRAST:
        color = rng.uniform(0, 255, 3)
    # A pixel's centre is at .5 here and at 0 in cv2.
    vertices = np.rint((outline - 0.5) * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(picture, [vertices], color.tolist(), cv2.LINE_AA, _SHIFT)
    if rng.random() < 0.5:
        shade = np.clip(color * rng.uniform(0.4, 1.5), 0, 255)
        middle = outline.mean(axis=0)
        inner = np.rint((middle + (outline - middle) * rng.uniform(0.6, 0.85) - 0.5) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(picture, [inner], shade.tolist(), cv2.LINE_AA, _SHIFT)


def _annotation(filename: str, size: int, boxes: np.ndarray, classes: np.ndarray) -> str:
    """VOC's XML. Its corners count pixels from 1 and lie inside the box, so an outline from 3.2 to 9.7 is 4 to 10."""
    lines = [
        "<annotation>",
        f"  <filename>{filename}</filename>",
        f"  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>",
    ]
    for (x1, y1, x2, y2), shape in zip(boxes, classes, strict=True):
        corners = {"xmin": np.floor(x1) + 1, "ymin": np.floor(y1) + 1, "xmax": np.ceil(x2), "ymax": np.ceil(y2)}
        inside = "".join(f"<{key}>{int(value)}</{key}>" for key, value in corners.items())
        lines.append(
            f"  <object><name>{CLASSES[shape]}</name><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox>{inside}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])
