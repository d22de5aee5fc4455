"""A result as a picture: boxes, labels, track numbers, zones and lines, drawn on a copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from deploy import draw
from deploy.draw import Captions
from deploy.result import Result

#: Of zones and lines, BGR: apart from every class's colour.
_SHAPE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A zone or a line to show in the pictures of a feed."""

    name: str
    #: x, y as fractions of the frame's width and height, 0..1; two or more.
    points: tuple[tuple[float, float], ...]
    #: A zone is; a line is not.
    closed: bool


def annotated(
    result: Result, captions: Captions, shapes: Sequence[Shape] = (), most_width: int | None = None
) -> np.ndarray:
    """uint8 (h, w, 3) BGR, new; scaled down to most_width pixels of width where the frame is wider.

    A label has the class, the track's number behind a # where there is one, and the score.
    """
    height, width = result.frame.pixels.shape[:2]
    if most_width is not None and width > most_width:
        size = most_width, max(1, round(height * most_width / width))
        # Boxes are drawn after scaling, so that lines and letters stay sharp.
        picture = cv2.resize(result.frame.pixels, size, interpolation=cv2.INTER_LINEAR)
    else:
        picture = result.frame.pixels.copy()
    _draw_shapes(picture, shapes, captions.font)
    ratio = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2, np.float32)
    classes = result.found.class_ids.tolist()
    tracks = [0] * len(classes) if result.tracks is None else result.tracks.tolist()
    texts = [
        (f"{draw.caption(captions, number)}{f' #{track}' if track else ''}", f"{score:.2f}")
        for number, track, score in zip(classes, tracks, result.found.scores.tolist(), strict=True)
    ]
    colours = [draw.colour(number) for number in classes]
    draw.draw_boxes(picture, result.found.boxes * ratio, texts, colours, captions.font)
    return picture


def _draw_shapes(picture: np.ndarray, shapes: Sequence[Shape], font: str | None) -> None:
    height, width = picture.shape[:2]
    thickness = max(1, round((height + width) / 700))
    for shape in shapes:
        points = np.rint(np.array(shape.points) * (width - 1, height - 1)).astype(np.int32)
        # Dark below light, to be seen on every ground.
        cv2.polylines(picture, [points], shape.closed, (0, 0, 0), thickness + 2)
        cv2.polylines(picture, [points], shape.closed, _SHAPE, thickness)
        draw.draw_label(picture, shape.name, _SHAPE, tuple(points[0].tolist()), font)
