"""A moving scene that the program draws itself, with truth: a feed that needs no camera, the same in every run.

Shapes go straight across a cloudy picture, over and under each other. One that has left comes back on the other side as
somebody new. They are those that `slimdet build shapes` learns, so its detector finds them.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from deploy.detections import Detections
from deploy.errors import InputError
from deploy.outlines import CLASSES, OUTLINES
from deploy.polygon import inside

#: Radius of a shape and how far it goes in a second, in parts of the picture's shorter side.
_RADIUS = (0.09, 0.17)
_SPEED = (0.10, 0.35)
#: Pixels; smaller ones show no shapes, and a larger one is none that a camera gives.
_SIDES = (32, 8192)
_MOST_OBJECTS = 100
#: cv2 takes vertices in sixteenths of a pixel.
_SHIFT = 4
#: Truth says nothing of a shape of which a smaller part of its box than this is in the picture.
_LEAST_INSIDE = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What a frame shows, in the order in which it is drawn: the last one lies on top."""

    #: Scores are 1, boxes lie around the outlines and end at the picture's border. Class numbers are those of CLASSES.
    found: Detections
    #: int64 (n,), from 1: who each is. Truth says where someone is who is hidden behind others, too.
    identities: np.ndarray


class Pattern:
    """Any frame of the scene, in any order. The same arguments give the same pixels (with the same OpenCV).

    Raises InputError for a size, rate or number of objects that makes no sense.
    """

    #: Of class numbers in the truth.
    labels = CLASSES

    def __init__(
        self, width: int = 640, height: int = 480, fps: float = 25.0, objects: int = 6, seed: int = 0
    ) -> None:
        """width, height: pixels. fps: frames a second. objects: how many shapes are on their way at any time, most of
        them in the picture."""
        if not (_SIDES[0] <= width <= _SIDES[1] and _SIDES[0] <= height <= _SIDES[1]):
            raise InputError(
                f"a pattern's sides are {_SIDES[0]} to {_SIDES[1]} pixels, not {width}x{height}; give some such as "
                "640x480"
            )
        if not 0 < fps <= 1000:
            raise InputError(f"a pattern's rate is above 0 and at most 1000 frames a second, not {fps}; give 25")
        if not 1 <= objects <= _MOST_OBJECTS:
            raise InputError(f"a pattern has 1 to {_MOST_OBJECTS} objects, not {objects}; give some such as 6")
        self.width, self.height, self.fps = width, height, fps
        rng = np.random.default_rng(seed)
        side = min(width, height)
        self._background = _background(rng, width, height)
        self._radius = rng.uniform(*_RADIUS, objects) * side
        self._shapes = rng.permutation(np.arange(objects) % len(CLASSES))
        angle, speed = rng.uniform(0, 2 * np.pi, objects), rng.uniform(*_SPEED, objects) * side
        self._velocity = np.stack([np.cos(angle), np.sin(angle)], axis=1) * speed[:, None]
        #: A world that is larger than the picture by each shape, so that it leaves whole before it comes back.
        self._world = np.array([width, height]) + 2 * self._radius[:, None]
        self._start = rng.uniform(0, 1, (objects, 2)) * self._world
        self._colours = [_colour(rng) for _ in range(objects)]

    def frame(self, number: int) -> tuple[np.ndarray, Truth]:
        """Pixels, uint8 (height, width, 3) BGR, and what they show. number: from 0, without an end."""
        if number < 0:
            raise InputError(f"a pattern's frames count from 0, not {number}; give 0 or more")
        travelled = self._start + self._velocity * (number / self.fps)
        laps = np.floor(travelled / self._world).astype(np.int64)
        centers = travelled - laps * self._world - self._radius[:, None]
        picture = self._background.copy()
        boxes, visible = np.zeros((len(centers), 4)), np.zeros((len(centers), 4))
        for index, (center, shape, radius) in enumerate(zip(centers, self._shapes, self._radius, strict=True)):
            outline = OUTLINES[shape] * radius + center
            boxes[index] = (*outline.min(axis=0), *outline.max(axis=0))
            visible[index] = _bounds(outline, self.width, self.height)
            # A pixel's centre is at .5 here and at 0 in cv2.
            vertices = np.rint((outline - 0.5) * 2**_SHIFT).astype(np.int32)
            cv2.fillPoly(picture, [vertices], self._colours[index], cv2.LINE_AA, _SHIFT)
        return picture, self._truth(boxes, visible, laps)

    def _truth(self, boxes: np.ndarray, visible: np.ndarray, laps: np.ndarray) -> Truth:
        shown = np.prod(visible[:, 2:] - visible[:, :2], axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        there = np.flatnonzero(shown >= _LEAST_INSIDE)
        found = Detections(
            visible[there].astype(np.float32), np.ones(len(there), np.float32), self._shapes[there].astype(np.int32)
        )
        # Of the laps across and the laps down one number, the same for no other two: each turned to 0, 1, 2, ... by its
        # sign, then Cantor's pairing.
        across, down = np.where(self._velocity < 0, -laps, laps)[there].T
        pairing = (across + down) * (across + down + 1) // 2 + down
        return Truth(found, 1 + there + len(boxes) * pairing)


def _bounds(outline: np.ndarray, width: int, height: int) -> np.ndarray:
    """x1, y1, x2, y2 of what a polygon (n, 2) shows within the picture; zeros where that is nothing.

    It is extreme at an end of what lies within of one of its edges, or at a corner of the picture.
    """
    limits = np.array([width, height], float)
    along = np.roll(outline, -1, axis=0) - outline
    # Each edge is outline + t * along; t where it meets the picture's borders (Liang and Barsky 1984).
    still = along == 0
    ends = np.stack([-outline, limits - outline]) / np.where(still, 1, along)
    within = (outline >= 0) & (outline <= limits)
    first = np.where(still, np.where(within, -np.inf, np.inf), ends.min(axis=0)).max(axis=1, initial=0)
    last = np.where(still, np.where(within, np.inf, -np.inf), ends.max(axis=0)).min(axis=1, initial=1)
    shown = first <= last
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    points = np.concatenate(
        [(outline + t[:, None] * along)[shown] for t in (np.where(shown, first, 0), np.where(shown, last, 0))]
        + [corners[inside(corners, outline)]]
    )
    points = np.clip(points, 0, limits)  # which rounding may have left
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else np.zeros(4)


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A gradient of middle brightness with clouds, uint8 (height, width, 3)."""
    corners = rng.uniform(70, 150, (2, 2, 3)).astype(np.float32)
    coarse = cv2.resize(corners, (9, 9), interpolation=cv2.INTER_LINEAR)
    coarse = coarse + 8 * rng.standard_normal((9, 9, 3), np.float32)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(texture, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """BGR, one that stands out from the background: light or dark."""
    low, high = (190, 256) if rng.random() < 0.6 else (0, 40)
    blue, green, red = rng.integers(low, high, 3).tolist()
    return blue, green, red
