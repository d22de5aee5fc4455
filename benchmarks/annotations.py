"""What a labelled data set says of its pictures, whatever its layout.

A picture that cannot be used is left out of pictures and truth alike, and told with the reason in `Dataset.skipped`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.errors import InputError

#: No picture is as large as that; a coordinate beyond it is damage.
COORDINATE_LIMIT = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """What the data say of one picture, n objects."""

    #: (width, height) of the picture in pixels, None where it does not say.
    size: tuple[int, int] | None
    #: File name of the picture, "" where it does not say.
    filename: str
    #: Class name of each object.
    names: tuple[str, ...]
    #: float64 (n, 4): xmin, ymin, xmax, ymax as they stand, in VOC's way: pixels counted from 1, both ends included. A
    #: box whose outer edges are x1 and x2, counted from 0, has xmin = x1 + 1 and xmax = x2.
    boxes: np.ndarray
    #: bool (n,): VOC's difficult objects, COCO's crowds.
    difficult: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """One usable picture of the split and its annotation."""

    id: str
    path: Path
    annotation: Annotation


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A picture that is not counted, and why."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A split in the order of its list."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]
    #: Every class name that an annotation uses, sorted.
    names: tuple[str, ...]


def collected(pictures: Sequence[Picture], skipped: Sequence[Skipped], place: str) -> Dataset:
    """The data set of these pictures. Raises InputError, with the first reason, when none of place is usable."""
    if not pictures:
        first = f", the first ({skipped[0].id}) because {skipped[0].reason}" if skipped else ""
        raise InputError(
            f"data have at least one usable picture: {place} has none, {len(skipped)} were skipped{first}; "
            "check the folder"
        )
    names = sorted({name for picture in pictures for name in picture.annotation.names})
    return Dataset(tuple(pictures), tuple(skipped), tuple(names))


def fit_boxes(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Clips boxes to a picture of that many pixels.

    boxes: (n, 4) xmin, ymin, xmax, ymax. Returns the boxes, a mask (n,) of those to keep, and how many of them were
    clipped. Not kept are boxes that lie outside altogether, or have no width or height: the first pixel xmin begins at
    xmin - 1, so one whose xmax is that or less. 0 is let pass beside VOC's 1, since many tools count from 0.
    """
    limits = np.array([width, height, width, height], np.float64)
    clipped = np.clip(boxes, 0, limits)
    inside = (boxes[:, :2] <= limits[:2]).all(axis=1) & (boxes[:, 2:] >= 0).all(axis=1)
    keep = inside & (boxes[:, :2] - 1 < boxes[:, 2:]).all(axis=1)
    return clipped, np.asarray(keep), int(((clipped != boxes).any(axis=1) & keep).sum())


def is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder, and does nothing to a terminal."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\:")
