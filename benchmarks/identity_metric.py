"""How well identities follow objects over a film: MOTA and IDF1.

MOTA: Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics", 2008. IDF1:
Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", 2016. Both as their
authors define them, for boxes that are the same where their intersection over union is at least 0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.assignment import assign
from deploy.errors import InputError
from deploy.tracking import overlaps

IOU = 0.5
#: MOT17's longest truth has 50,000 lines.
_MOST_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """Who is where in a frame."""

    #: int64 (n,), each once.
    identities: np.ndarray
    #: (n, 4) x1, y1, x2, y2 in pixels.
    boxes: np.ndarray


def identity_figures(truth: Sequence[Named], found: Sequence[Named]) -> dict[str, Any]:
    """Of a film, frame by frame, as plain JSON.

    mota, idf1 (both at most 1; None where there is no truth), switches (truths that go on under another identity),
    missed, false (boxes), truths, found (boxes), true_identities, identities.
    """
    missed = false = switches = 0
    last: dict[int, int] = {}
    together: dict[tuple[int, int], int] = {}
    for true, seen in zip(truth, found, strict=True):
        close = overlaps(true.boxes.astype(np.float64), seen.boxes.astype(np.float64))
        close[close < IOU] = 0
        for row, column in np.argwhere(close > 0).tolist():
            pair = int(true.identities[row]), int(seen.identities[column])
            together[pair] = together.get(pair, 0) + 1
        pairs = _pairs(true, seen, close, last)
        switches += sum(last.get(one, other) != other for one, other in pairs.items())
        last |= pairs
        missed += len(true.identities) - len(pairs)
        false += len(seen.identities) - len(pairs)
    truths, boxes = (sum(len(frame.identities) for frame in frames) for frames in (truth, found))
    true_names, names = ({int(name) for frame in frames for name in frame.identities} for frames in (truth, found))
    return {
        "mota": 1 - (missed + false + switches) / truths if truths else None,
        "idf1": 2 * _most_together(together) / (truths + boxes) if truths else None,
        "switches": switches,
        "missed": missed,
        "false": false,
        "truths": truths,
        "found": boxes,
        "true_identities": len(true_names),
        "identities": len(names),
    }


def _pairs(true: Named, seen: Named, close: np.ndarray, last: dict[int, int]) -> dict[int, int]:
    """Which identity stands for which truth in a frame: those that did so the last time still do where they are close;
    of the rest as many as can be, and of these as close as can be."""
    gain = np.where(close > 0, len(true.identities) + close, 0)
    places = {int(name): column for column, name in enumerate(seen.identities)}
    pairs: dict[int, int] = {}
    for row, name in enumerate(true.identities.tolist()):
        column = places.get(last.get(name, -1), -1)
        if column >= 0 and close[row, column] > 0 and int(seen.identities[column]) not in pairs.values():
            pairs[name] = int(seen.identities[column])
            gain[row], gain[:, column] = 0, 0
    rows, columns = assign(gain)
    pairs.update(zip(true.identities[rows].tolist(), seen.identities[columns].tolist(), strict=True))
    return pairs


def _most_together(together: dict[tuple[int, int], int]) -> int:
    """Frames in which each truth is with its identity, where each truth has one identity for the whole film."""
    ones, others = (sorted({pair[side] for pair in together}) for side in (0, 1))
    frames = np.zeros((len(ones), len(others)))
    for (one, other), count in together.items():
        frames[ones.index(one), others.index(other)] = count
    return int(frames[assign(frames)].sum())


def read_mot(path: Path, frames: int) -> list[Named]:
    """The truth of a film of that many frames, in MOTChallenge's form: lines of frame (from 1), identity, left, top,
    width, height and, where there are more, whether the line counts, class (1 are persons) and visibility.

    Lines that don't count and those of other classes are left out. Raises InputError where the file cannot be read, a
    line is none, or a frame is not in the film.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"a truth has at most {_MOST_BYTES} bytes, {path} has more; cut it to the film's frames")
    rows: list[list[tuple[float, ...]]] = [[] for _ in range(frames)]
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            values = tuple(float(value) for value in line.split(","))
        except ValueError:
            values = ()
        if len(values) < 6 or not np.isfinite(values).all() or not 1 <= values[0] <= frames:
            raise InputError(
                f"a line of a MOT truth is frame (1 to {frames}), identity, left, top, width, height, ..., line "
                f"{number} of {path} is {line[:60]!r}; give the truth of this film"
            )
        if (len(values) < 7 or values[6]) and (len(values) < 8 or values[7] == 1):
            rows[int(values[0]) - 1].append(values)
    named = []
    for frame in rows:
        table = np.array([row[:6] for row in frame]).reshape(-1, 6)
        named.append(Named(table[:, 1].astype(np.int64), np.hstack([table[:, 2:4], table[:, 2:4] + table[:, 4:6]])))
    return named
