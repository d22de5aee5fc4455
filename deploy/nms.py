"""Non-maximum suppression: of boxes of one class that overlap, the best stays."""

from __future__ import annotations

import numpy as np

#: Boxes that are compared with each other at once; bounds the number of pairs that are in memory.
_BLOCK = 256


def nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    iou: float,
    limit: int = 300,
    candidates: int = 10_000,
) -> np.ndarray:
    """Indices of the boxes that stay, best first, at most `limit`: int64.

    Greedy, in each class by itself, as darknet does it: going down from the best score a box stays unless its
    intersection over union with one that stayed is more than `iou`. Among equal scores the earlier comes first. Only
    the best `candidates` boxes are looked at: a bound on time for a threshold near 0.

    boxes: float32 (n, 4) x1, y1, x2, y2, finite; scores: (n,); class_ids: (n,); iou: 0..1.
    """
    order = np.argsort(-scores, kind="stable")[:candidates]
    boxes, class_ids = boxes[order], class_ids[order]
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        # Sorted by class, and within a class best first, the boxes to compare with lie side by side.
        block = start + np.argsort(class_ids[start : start + _BLOCK], kind="stable")
        if len(kept):
            kept = kept[np.argsort(class_ids[kept], kind="stable")]
            first = np.searchsorted(class_ids[kept], class_ids[block], "left")
            last = np.searchsorted(class_ids[kept], class_ids[block], "right")
            _, suppressed = _overlapping(boxes[kept], boxes[block], first, last, iou)
            block = np.delete(block, suppressed)
        ids = class_ids[block]
        first = np.searchsorted(ids, ids, "left")
        better, worse = _overlapping(boxes[block], boxes[block], first, np.arange(len(block)), iou)
        kept = np.concatenate([kept, block[_greedy(len(block), better, worse)]])
        if len(kept) >= limit:
            break
    return order[np.sort(kept)[:limit]]


def _greedy(count: int, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """bool (count,): which boxes stay, where box better[k] overlaps the later box worse[k].

    A box stays if no better one that stays overlaps it. Applying that rule to all boxes at once, the first k are
    right after k rounds whatever the guess before, and what no longer changes is the greedy answer; mostly a few
    rounds do.
    """
    stays = np.ones(count, bool)
    while True:
        again = np.ones(count, bool)
        again[worse[stays[better]]] = False
        if np.array_equal(again, stays):
            return stays
        stays = again


def _overlapping(
    others: np.ndarray, boxes: np.ndarray, first: np.ndarray, last: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (i, j) of every pair of others[i] and boxes[j], first[j] <= i < last[j], whose intersection over union
    is above iou. Boxes without area overlap nothing."""
    counts = last - first
    j = np.repeat(np.arange(len(boxes)), counts)
    i = np.arange(len(j)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    one, two = others.T.copy(), boxes.T.copy()  # columns side by side: gathered three times as fast
    width = np.minimum(one[2][i], two[2][j]) - np.maximum(one[0][i], two[0][j])
    height = np.minimum(one[3][i], two[3][j]) - np.maximum(one[1][i], two[1][j])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = _areas(one)[i] + _areas(two)[j] - intersection
    above = np.flatnonzero(intersection > np.float32(iou) * union)
    return i[above], j[above]


def _areas(columns: np.ndarray) -> np.ndarray:
    return (columns[2] - columns[0]) * (columns[3] - columns[1])
