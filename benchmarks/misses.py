"""Why a detector is wrong: one cause for each false positive and each missed truth at a score threshold.

The causes are those of TIDE (Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, section 2.2), in the order in which its program asks for them. With tf = 0.5 and tb = 0.1, and the
IoU with truths that are not difficult:

| a false positive is  | where it                                                                             |
|----------------------|--------------------------------------------------------------------------------------|
| `localisation`       | overlaps a truth of its class by tb or more, and none by tf                          |
| `class`              | overlaps a truth of another class by tf or more                                      |
| `duplicate`          | overlaps a truth of its class by tf or more, which a better detection has            |
| `background`         | overlaps no truth by more than tb                                                    |
| `both`               | is left: it overlaps a truth of another class by more than tb, and less than tf      |

A truth that no detection hits is missed for the reason `localisation` or `class` where a false positive of that cause
overlaps it most, in this order, and else is `missed`: nothing near it was found. TIDE counts these alone as missed, and
weighs causes by the AP that they cost; here they are counted. What is a hit, and whether tf itself counts as reached,
the protocol says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.box_pairs import best_of_each, close_pairs
from benchmarks.voc_metric import Found, Outcomes, Truths, side_edge

FALSE_POSITIVES = ("localisation", "class", "both", "duplicate", "background")
FALSE_NEGATIVES = ("localisation", "class", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Misses:
    """Of n detections and m truths."""

    #: (n,) place in FALSE_POSITIVES, -1 where it is none.
    positives: np.ndarray
    #: (n,) row of the truth that a false positive of the cause localisation, class or duplicate mistook, else -1.
    mistaken: np.ndarray
    #: (m,) place in FALSE_NEGATIVES, -1 where it is none.
    negatives: np.ndarray

    def costs(self, found: Found, truths: Truths, images: int) -> np.ndarray:
        """(images,) what each picture's errors cost: the scores of its false positives, and 1 for each missed truth."""
        wrong, missed = self.positives >= 0, self.negatives >= 0
        costs = np.bincount(found.images[wrong], found.scores[wrong].astype(np.float64), minlength=images)
        return costs + np.bincount(truths.images[missed], minlength=images)


def find_misses(truths: Truths, found: Found, seen: Outcomes, protocol: str) -> Misses:
    """The cause of each error. found: those from the score threshold on, in the protocol's coordinates, as truths;
    seen: what became of them."""
    # The least number above it makes `>=` of darknet's `>`.
    foreground = float(np.nextafter(FOREGROUND, 1)) if protocol == "darknet" else FOREGROUND
    wrong = np.flatnonzero(seen.counted & (seen.truth < 0))
    plain = np.flatnonzero(~truths.difficult)
    pairs = close_pairs(
        found.images[wrong],
        found.boxes[wrong],
        truths.images[plain],
        truths.boxes[plain],
        BACKGROUND,
        edge=side_edge(protocol),
    )
    same = found.class_ids[wrong][pairs.first] == truths.class_ids[plain][pairs.second]
    own, own_truth = best_of_each(pairs.take(same), len(wrong))
    other, other_truth = best_of_each(pairs.take(~same), len(wrong))
    asked = [
        (own >= BACKGROUND) & (own < foreground),
        other >= foreground,
        own >= foreground,
        np.maximum(own, other) <= BACKGROUND,
    ]
    names = ("localisation", "class", "duplicate", "background")
    cause = np.select(asked, [FALSE_POSITIVES.index(name) for name in names], FALSE_POSITIVES.index("both"))
    truth = np.select(asked[:3], [own_truth, other_truth, own_truth], -1)

    positives, mistaken = np.full(len(found), -1), np.full(len(found), -1)
    positives[wrong] = cause
    mistaken[wrong[truth >= 0]] = plain[truth[truth >= 0]]
    negatives = np.full(len(truths), FALSE_NEGATIVES.index("missed"))
    for name in ("class", "localisation"):  # the latter counts where both are true
        negatives[mistaken[positives == FALSE_POSITIVES.index(name)]] = FALSE_NEGATIVES.index(name)
    negatives[truths.difficult] = -1
    negatives[seen.truth[seen.truth >= 0]] = -1
    return Misses(positives, mistaken, negatives)


def misses_json(misses: Misses, truths: Truths, found: Found, names: Sequence[str], scored: Sequence[int]) -> Any:
    """How many errors of each cause, in sum and of each class: a false positive belongs to the class that it was taken
    for, a missed truth to its own; and `confused`, the most frequent pairs of classes of the cause `class`."""
    of = [
        (found.class_ids, misses.positives, FALSE_POSITIVES, "false_positives"),
        (truths.class_ids, misses.negatives, FALSE_NEGATIVES, "false_negatives"),
    ]
    counts = {
        key: np.array([np.bincount(ids[cause == place], minlength=len(names)) for place in range(len(causes))])
        for ids, cause, causes, key in of
    }
    told = {key: causes for _, _, causes, key in of}

    def named(key: str, numbers: np.ndarray) -> dict[str, int]:
        return dict(zip(told[key], numbers.tolist(), strict=True))

    return {
        "foreground_iou": FOREGROUND,
        "background_iou": BACKGROUND,
        **{key: named(key, counts[key][:, list(scored)].sum(axis=1)) for key in told},
        "per_class": {names[place]: {key: named(key, counts[key][:, place]) for key in told} for place in scored},
        "confused": _confused(misses, truths, found, names),
    }


def _confused(
    misses: Misses, truths: Truths, found: Found, names: Sequence[str], most: int = 20
) -> list[dict[str, Any]]:
    rows = np.flatnonzero(misses.positives == FALSE_POSITIVES.index("class"))
    taken_for, is_class = found.class_ids[rows], truths.class_ids[misses.mistaken[rows]]
    pairs, count = np.unique(np.stack([is_class, taken_for]), axis=1, return_counts=True)
    order = np.argsort(-count, kind="stable")[:most]
    return [
        {"is": names[pairs[0, place]], "taken_for": names[pairs[1, place]], "count": int(count[place])}
        for place in order
    ]
