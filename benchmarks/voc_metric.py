"""Average precision by the rules of the Pascal VOC devkit, and by darknet's own `detector map`.

Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, as its devkit computes it
(VOCevaldet.m):

- Detections of one class are taken by falling score, ties in the order in which they came.
- A detection belongs to the truth of its image and class that it overlaps most, the first of several equals, *even if
  that one is already taken*. From `iou` on (>=) it is a hit if the truth is free, and a false alarm if it is taken. A
  truth marked difficult absorbs any number of detections, which then count as neither; it is missed by nobody.
- Coordinates are whole pixels, both ends included: a width is x2 - x1 + 1.

| protocol  | curve                                             | difficult truths  | widths | threshold |
|-----------|---------------------------------------------------|-------------------|--------|-----------|
| `voc07`   | mean of the best precision at recalls 0, .1, … 1  | absorb            | + 1    | >=        |
| `voc`     | area under the falling envelope (VOC2010 onwards) | absorb            | + 1    | >=        |
| `darknet` | area under the falling envelope                   | dropped beforehand| plain  | >         |

A class with truths and no detection has AP 0. A class without a (not difficult) truth has none, NaN here, and no part
in the mean. darknet itself counts such a class as 0, which would punish a model for every class that the pictures do
not show.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

VocProtocol = Literal["voc07", "voc", "darknet"]

#: The devkit's `0:0.1:1`, in the floating-point values that Octave and numpy.arange give it.
RECALLS = np.arange(11) * 0.1
#: Where a curve is told: COCO's recalls.
CURVE_RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True)
class Truths:
    """The annotated objects of a whole data set, m of them."""

    #: (m,) integers: index of the image.
    images: np.ndarray
    #: (m,) integers from 0.
    class_ids: np.ndarray
    #: (m, 4) x1, y1, x2, y2 in pixels.
    boxes: np.ndarray
    #: (m,) bool.
    difficult: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class Found:
    """The detections on a whole data set, n of them."""

    #: (n,) integers: index of the image.
    images: np.ndarray
    #: (n,) integers from 0.
    class_ids: np.ndarray
    #: (n, 4) x1, y1, x2, y2 in pixels.
    boxes: np.ndarray
    #: (n,) floats.
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of each of n detections."""

    #: (n,) integers: row of the truth that it hit, -1 for none.
    truth: np.ndarray
    #: (n,) bool: whether it counts at all; a hit does, and what is absorbed by a difficult truth does not.
    counted: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Precision against recall of each class, NaN for a class without a truth that is not difficult."""

    #: (classes,) float64, 0..1: AP.
    average: np.ndarray
    #: (classes, 101) float64, 0..1: the best precision at a recall of at least 0, .01, … 1; 0 where none reaches it.
    precision: np.ndarray


def average_precisions(
    truths: Truths, found: Found, classes: int, protocol: VocProtocol, iou: float = 0.5
) -> np.ndarray:
    """AP of each class, (classes,) float64 in 0..1, NaN for a class without a truth that is not difficult.

    Class ids of both are in 0..classes-1; boxes are taken as they are, without any offset between the two.
    """
    return precision_recall(truths, found, classes, protocol, iou).average


def precision_recall(truths: Truths, found: Found, classes: int, protocol: VocProtocol, iou: float = 0.5) -> Curves:
    """AP and the curve of each class; see average_precisions."""
    seen = outcomes(truths, found, classes, protocol, iou)
    positives = np.bincount(truths.class_ids[~truths.difficult], minlength=classes)
    curves = Curves(np.full(classes, np.nan), np.full((classes, len(CURVE_RECALLS)), np.nan))
    for class_id, rows in enumerate(_by_class_and_score(found, classes)):
        if positives[class_id]:
            hit = seen.truth[rows[seen.counted[rows]]] >= 0
            recall, envelope = _curve(hit, int(positives[class_id]))
            curves.average[class_id] = _area(recall, envelope, eleven_points=protocol == "voc07")
            curves.precision[class_id] = envelope[np.searchsorted(recall, CURVE_RECALLS, side="left")]
    return curves


def outcomes(truths: Truths, found: Found, classes: int, protocol: VocProtocol, iou: float = 0.5) -> Outcomes:
    """What becomes of each detection by the protocol's rule. That of one does not depend on those of a lower score."""
    kept = np.flatnonzero(~truths.difficult) if protocol == "darknet" else np.arange(len(truths))
    truths = Truths(truths.images[kept], truths.class_ids[kept], truths.boxes[kept], truths.difficult[kept])
    overlap, truth = _best_truths(truths, found, classes, side_edge(protocol))
    belongs = overlap > iou if protocol == "darknet" else overlap >= iou
    seen = Outcomes(np.full(len(found), -1), np.ones(len(found), bool))
    for rows in _by_class_and_score(found, classes):
        hit, seen.counted[rows] = _outcomes(truth[rows], belongs[rows], truths.difficult)
        seen.truth[rows[hit]] = kept[truth[rows[hit]]]
    return seen


def side_edge(protocol: str) -> float:
    """What the protocol adds to a box's width and height: 1 where both ends are pixels of it."""
    return 1.0 if protocol in ("voc07", "voc") else 0.0


def _best_truths(truths: Truths, found: Found, classes: int, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the overlap (n,) with the truth of its image and class that it overlaps most, and that truth's
    index (n,); overlap 0 and index -1 where there is none. The work grows with the pairs that share image and class."""
    best = np.zeros(len(found))
    index = np.full(len(found), -1)
    keys = truths.images.astype(np.int64) * classes + truths.class_ids
    order = np.argsort(keys, kind="stable")
    groups, first, size = np.unique(keys[order], return_index=True, return_counts=True)
    if not len(groups):
        return best, index
    wanted = found.images.astype(np.int64) * classes + found.class_ids
    group = np.minimum(np.searchsorted(groups, wanted), len(groups) - 1)
    rows = np.flatnonzero(groups[group] == wanted)
    # Columns, so that each step below reads memory in one line; truths lie in the order of their groups.
    x1, y1, x2, y2 = truths.boxes[order].astype(np.float64).T
    u1, v1, u2, v2 = np.ascontiguousarray(found.boxes[rows].astype(np.float64).T)
    truth_area, area = (x2 - x1 + edge) * (y2 - y1 + edge), (u2 - u1 + edge) * (v2 - v1 + edge)
    start, size = first[group[rows]], size[group[rows]]
    overlap, place = np.zeros(len(rows)), np.full(len(rows), -1)
    left = np.arange(len(rows))
    for step in range(int(size.max(initial=0))):  # the step-th truth of every group at once
        left = left[size[left] > step]
        other = start[left] + step
        width = np.minimum(u2[left], x2[other]) - np.maximum(u1[left], x1[other]) + edge
        height = np.minimum(v2[left], y2[other]) - np.maximum(v1[left], y1[other]) + edge
        common = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[left] + truth_area[other] - common
        ratio = np.divide(common, union, out=np.zeros(len(left)), where=(common > 0) & (union > 0))
        better = ratio > overlap[left]
        overlap[left[better]] = ratio[better]
        place[left[better]] = order[other[better]]
    best[rows], index[rows] = overlap, place
    return best, index


def _by_class_and_score(found: Found, classes: int) -> list[np.ndarray]:
    """For each class the rows of its detections by falling score, stable."""
    # Small integers are sorted by radix, many times faster than by comparison.
    order = np.argsort(found.class_ids.astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(found.class_ids, minlength=classes))[:-1]
    return [rows[np.argsort(-found.scores[rows], kind="stable")] for rows in np.split(order, ends)]


def _outcomes(truth: np.ndarray, belongs: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For detections of one class, best first: whether each is a hit, and whether it counts at all."""
    hit = np.zeros(len(truth), bool)
    counted = np.ones(len(truth), bool)
    rows = np.flatnonzero(belongs)
    absorbed = difficult[truth[rows]]
    counted[rows[absorbed]] = False
    rows = rows[~absorbed]
    hit[rows[np.unique(truth[rows], return_index=True)[1]]] = True  # unique gives the first of each truth
    return hit, counted


def _curve(hit: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one class's outcomes, best score first: recall (n,), and the best precision from each on (n + 1,), which ends
    in 0."""
    hits = np.cumsum(hit)
    precision = hits / np.arange(1, len(hit) + 1)
    return hits / positives, np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)


def _area(recall: np.ndarray, envelope: np.ndarray, eleven_points: bool) -> float:
    if eleven_points:
        return float(envelope[np.searchsorted(recall, RECALLS, side="left")].sum() / len(RECALLS))
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())
