"""Matches the classes of a model to those of a data set, by name.

VOC, COCO and Open Images call the same thing by different names (aeroplane and airplane, sofa and couch): such synonyms
match, and so do spellings that differ in case, blanks, hyphens or underscores. Nothing else is guessed: what has no
partner is told, on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

#: Names of one thing, each group in canonical spelling (see `canonical`).
SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(group.split())
    for group in (
        "aeroplane airplane plane",
        "motorbike motorcycle",
        "bicycle bike",
        "sofa couch",
        "tvmonitor tv television",
        "diningtable kitchendiningroomtable",
        "pottedplant houseplant",
        "cow cattle",
        "cellphone mobilephone",
        "hairdrier hairdryer",
        "donut doughnut",
        "refrigerator fridge",
        "remote remotecontrol",
        "teddybear teddy",
        "trafficlight stoplight",
        "skis ski",
        "mouse computermouse",
        "microwave microwaveoven",
        "keyboard computerkeyboard",
    )
)


@dataclasses.dataclass(frozen=True)
class Matching:
    """Which label of the model is which class of the data."""

    #: Index of a model's label to the index of its class in the data; one to one.
    pairs: dict[int, int]
    #: Labels of the model that the data set does not have; places kept free in a label file (`???`) are none.
    model_only: tuple[str, ...]
    #: Classes of the data that the model does not know.
    data_only: tuple[str, ...]


def canonical(name: str) -> str:
    """The letters and digits of a name, in lower case: "TV monitor", "tv-monitor" and "tvmonitor" are the same."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def match_classes(labels: Sequence[str], names: Sequence[str]) -> Matching:
    """Matches a model's labels to a data set's class names, one to one.

    A name takes the first label of the same canonical spelling, or else the first free one that is a synonym.
    """
    spelled = [canonical(label) for label in labels]
    pairs: dict[int, int] = {}
    left: list[int] = []
    for index, name in enumerate(names):
        same = [
            place for place, label in enumerate(spelled) if label and label == canonical(name) and place not in pairs
        ]
        if same:
            pairs[same[0]] = index
        else:
            left.append(index)
    data_only: list[str] = []
    for index in left:
        also = next((group for group in SYNONYMS if canonical(names[index]) in group), frozenset[str]())
        free = [place for place, label in enumerate(spelled) if label in also and place not in pairs]
        if free:
            pairs[free[0]] = index
        else:
            data_only.append(names[index])
    model_only = tuple(label for place, label in enumerate(labels) if place not in pairs and spelled[place])
    return Matching(dict(sorted(pairs.items())), model_only, tuple(data_only))
