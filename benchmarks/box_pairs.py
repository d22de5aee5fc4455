"""Which boxes of two sets lie on each other, and who belongs to whom: for COCO's hits, the causes of misses, and how
far two backends part."""

from __future__ import annotations

import dataclasses

import numpy as np

#: Pairs that are looked at together: some 50 MB.
_BLOCK = 1 << 19


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """p pairs of a row of a first set and a row of a second one, in the order of the first and then of the second."""

    #: (p,) integers.
    first: np.ndarray
    #: (p,) integers.
    second: np.ndarray
    #: (p,) float64, 0..1.
    iou: np.ndarray

    def __len__(self) -> int:
        return len(self.iou)

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs at the rows; a boolean mask of length p works too."""
        return Pairs(self.first[rows], self.second[rows], self.iou[rows])


def close_pairs(
    first_keys: np.ndarray,
    first_boxes: np.ndarray,
    second_keys: np.ndarray,
    second_boxes: np.ndarray,
    least: float,
    *,
    edge: float = 0.0,
    share_of_first: bool = False,
) -> Pairs:
    """All pairs of equal key whose IoU is `least` or more, least > 0.

    keys: (n,) and (m,) integers: of the image, or of the image and the class. boxes: (n, 4) and (m, 4) x1, y1, x2, y2.
    edge: what is added to a side's length, 1 for VOC's pixels. share_of_first: in place of the IoU the overlap's share
    of the first box, as COCO has it for crowds. Memory is that of the pairs found, and of _BLOCK that are looked at.
    """
    order = np.argsort(second_keys, kind="stable")
    start = np.searchsorted(second_keys[order], first_keys, "left")
    count = np.searchsorted(second_keys[order], first_keys, "right") - start
    ends = np.cumsum(count)
    found, row = [], 0
    while row < len(first_keys):
        done = ends[row - 1] if row else 0
        last = max(int(np.searchsorted(ends, done + _BLOCK, "right")), row + 1)  # one row at least, however many pairs
        rows = np.repeat(np.arange(row, last), count[row:last])
        begin = start[row:last] - (ends[row:last] - count[row:last] - done)
        others = order[np.arange(len(rows)) + np.repeat(begin, count[row:last])]
        iou = _overlap(first_boxes[rows], second_boxes[others], edge, share_of_first)
        near = iou >= least
        found.append(Pairs(rows[near], others[near], iou[near]))
        row = last
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate([getattr(part, name) for part in found]) for name in ("first", "second", "iou")))


def _overlap(first: np.ndarray, second: np.ndarray, edge: float, share_of_first: bool) -> np.ndarray:
    """(p,) float64 of (p, 4) each; 0 where there is nothing to divide by."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]) + edge
    common = np.maximum(sides, 0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + edge).prod(axis=1) for boxes in (first, second)]
    whole = areas[0] if share_of_first else areas[0] + areas[1] - common
    return np.divide(common, whole, out=np.zeros(len(common)), where=(common > 0) & (whole > 0))


def greedy(pairs: Pairs, scores: np.ndarray) -> Pairs:
    """A matching: the rows of the first set choose by falling score, equal ones in their order, each the free row of
    the second that it overlaps most, of equals the last, as pycocotools does. scores: (n,) of the first set.

    In the order of choice a pair is taken exactly where it is the earliest one left of both its rows, so all such pairs
    are taken at once, until none is left.
    """
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    left = pairs.take(np.lexsort((-pairs.second, -pairs.iou, rank[pairs.first])))
    taken = []
    while len(left):
        earliest = np.zeros((2, len(left)), bool)
        for which, rows in enumerate((left.first, left.second)):
            earliest[which, np.unique(rows, return_index=True)[1]] = True
        chosen = left.take(earliest[0] & earliest[1])
        taken.append(chosen)
        left = left.take(~np.isin(left.first, chosen.first) & ~np.isin(left.second, chosen.second))
    if not taken:
        return pairs
    matched = Pairs(*(np.concatenate([getattr(part, name) for part in taken]) for name in ("first", "second", "iou")))
    return matched.take(np.argsort(matched.first, kind="stable"))


def best_of_each(pairs: Pairs, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the first set's rows the greatest IoU (rows,), 0 where there is none, and with which row of the
    second (rows,), the first of equals, -1 where there is none."""
    ordered = pairs.take(np.lexsort((pairs.second, -pairs.iou, pairs.first)))
    present, place = np.unique(ordered.first, return_index=True)
    iou, other = np.zeros(rows), np.full(rows, -1)
    iou[present], other[present] = ordered.iou[place], ordered.second[place]
    return iou, other
