"""Reads a labelled data set in the layout that darknet and ultralytics train on.

    FOLDER/images/<split>/<picture>   labels in FOLDER/labels/<split>/<picture>.txt
    FOLDER/<split>/images/<picture>   labels in FOLDER/<split>/labels/<picture>.txt
    FOLDER/images/<picture>           labels in FOLDER/labels/<picture>.txt: no splits, all pictures
    FOLDER/<split>.txt                one picture's path in FOLDER a line; its label lies beside it, or, where the path
                                      has a part `images` or `JPEGImages`, in `labels` instead of the last of these
    FOLDER/classes.txt, FOLDER/*.names   a class's name a line

A label is a line `class x y width height`: the class counted from 0, the box's centre and its sides as parts of the
picture's. A line of more numbers, `class x1 y1 x2 y2 x3 y3 …`, is an outline, and stands for the box around it. A
picture without a file of labels shows nothing.

The files may come from strangers: a label that cannot be used leaves its picture out, and no path leads out of the
folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.annotations import Annotation, Dataset, Picture, Skipped, collected, is_plain_name
from deploy.errors import InputError
from deploy.picture import picture_size
from deploy.source import PICTURE_SUFFIXES

#: Largest file of one picture's labels, and largest list of pictures or names, in bytes.
LABEL_LIMIT, LIST_LIMIT = 4 << 20, 64 << 20
#: How far outside the picture a box may reach, in parts of it: what rounding does.
_SLACK = 1e-3
_PICTURE_PARTS = frozenset({"images", "JPEGImages"})


def is_yolo(folder: Path, split: str | None) -> bool:
    """Whether the folder has pictures and labels where this layout has them."""
    return bool(_pairs(folder, split)) or _list(folder, split) is not None


def read_yolo(folder: Path, split: str | None, names: tuple[str, ...] = ()) -> Dataset:
    """Reads the labels of a split and finds its pictures; of those that show something the header is read. split None:
    all pictures that lie beside labels.

    names: of the classes, in their order; () reads them from the folder.

    Raises InputError when the folder has no such layout, the split or the names are missing, a path leads out of the
    folder, or no picture is usable.
    """
    found = pictures_and_labels(folder, split)
    names = names or _names(folder)
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    for picture, label in found:
        picture_id = picture.relative_to(folder).with_suffix("").as_posix()
        try:
            if picture in seen:
                raise InputError("stands more than once in the split; counted once")
            seen.add(picture)
            if not picture.is_file():
                raise InputError(f"its picture {picture.name} is missing")
            pictures.append(Picture(picture_id, picture, _annotation(picture, label, names)))
        except InputError as error:
            skipped.append(Skipped(picture_id, str(error)))
    return collected(pictures, skipped, f"all of {folder}" if split is None else f"{split!r} in {folder}")


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line. Raises InputError where one is empty, or it is no text."""
    names = [" ".join(line.split()) for line in _lines(path, LIST_LIMIT, "a list of names")]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise InputError(f"a list of names has a name a line: {path} has an empty line; write them in their order")
    return tuple(names)


def pictures_and_labels(folder: Path, split: str | None) -> list[tuple[Path, Path]]:
    """Each picture and the file of its labels, in the order of the list, or by name; either file may be missing.

    Raises InputError where there is no such split, or a path leads out of the folder.
    """
    listed = _list(folder, split)
    if listed is not None:
        return _listed(folder, listed)
    pairs = _pairs(folder, split)
    if not pairs:
        existing = ", ".join(_splits(folder)) or "none"
        raise InputError(
            f"a split of data in YOLO layout is images/<split> beside labels/<split>, <split>/images beside "
            f"<split>/labels, or a list <split>.txt: {folder} has none for {split!r}; existing: {existing}"
        )
    return [
        (picture, (labels / picture.relative_to(images)).with_suffix(".txt"))
        for images, labels in pairs
        for picture in _pictures(images)
    ]


def _pairs(folder: Path, split: str | None) -> list[tuple[Path, Path]]:
    """Folders of pictures and, beside them, of labels."""
    if split is None:
        nested = [] if not folder.is_dir() else sorted(place for place in folder.iterdir() if place.is_dir())
        pairs = [(place / "images", place / "labels") for place in (folder, *nested)]
    elif not is_plain_name(split):
        return []
    else:
        pairs = [(folder / "images" / split, folder / "labels" / split)]
        pairs.append((folder / split / "images", folder / split / "labels"))
    return [(images, labels) for images, labels in pairs if images.is_dir() and labels.is_dir()]


def _list(folder: Path, split: str | None) -> Path | None:
    if split is None or not is_plain_name(split):
        return None
    path = folder / f"{split}.txt"
    return path if path.is_file() else None


def _splits(folder: Path) -> list[str]:
    """The splits that there are, for who asked for another."""
    below = [place.name for place in (folder / "images").glob("*/") if (folder / "labels" / place.name).is_dir()]
    above = [place.parent.name for place in folder.glob("*/images/") if (place.parent / "labels").is_dir()]
    lists = [path.stem for path in folder.glob("*.txt") if path.name != "classes.txt"]
    return sorted({*below, *above, *lists})


def _pictures(folder: Path) -> list[Path]:
    """All below the folder, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _listed(folder: Path, listed: Path) -> list[tuple[Path, Path]]:
    lines = [line.strip() for line in _lines(listed, LIST_LIMIT, "a list of pictures")]
    paths = [line for line in lines if line]
    if not paths:
        raise InputError(f"a split lists at least one picture: {listed} is empty; write one path a line")
    # What a list says counts by its letters: a link within the folder may lead anywhere, as its owner made it.
    root = Path(os.path.abspath(folder))
    found = []
    for number, text in enumerate(paths, 1):
        below = Path(os.path.abspath(root / text))
        if not text.isprintable() or not below.is_relative_to(root) or below == root:
            raise InputError(
                f"a list names pictures within {folder}: {text[:80]!r}, entry {number} of {listed}, leads elsewhere; "
                "write paths from the folder on"
            )
        inside = below.relative_to(root)
        found.append((folder / inside, folder / _label_of(inside)))
    return found


def _label_of(picture: Path) -> Path:
    parts = list(picture.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in _PICTURE_PARTS:
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _names(folder: Path) -> tuple[str, ...]:
    files = [path for path in (folder / "classes.txt", *sorted(folder.glob("*.names"))) if path.is_file()]
    if len(files) != 1:
        told = f"it has {len(files)}, {files[0].name} and {files[1].name}" if files else "it has none"
        raise InputError(
            f"data in YOLO layout name their classes in one classes.txt or *.names in {folder}: {told}; write a name a "
            "line, or give the names"
        )
    return read_names(files[0])


def _lines(path: Path, limit: int, what: str) -> list[str]:
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{what} has at most {limit >> 20} MiB: {path.name} is larger; is it one?")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is text: {path.name} is not; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error


def _annotation(picture: Path, label: Path, names: tuple[str, ...]) -> Annotation:
    lines = _lines(label, LABEL_LIMIT, "a file of labels") if label.is_file() else []
    rows = [_row(line, names) for line in lines if line.strip()]
    if not rows:
        return Annotation(None, picture.name, (), np.zeros((0, 4)), np.zeros(0, bool))
    size = picture_size(picture)
    edges = np.array([box for _, box in rows]) * (size * 2)
    return Annotation(
        size, picture.name, tuple(name for name, _ in rows), edges + (1, 1, 0, 0), np.zeros(len(rows), bool)
    )


def _row(line: str, names: tuple[str, ...]) -> tuple[str, tuple[float, float, float, float]]:
    """The class's name, and the box's edges as parts of the picture's sides."""
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"a label is numbers alone, not {line.strip()[:60]!r}") from error
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise InputError(
            f"a label is a class and four numbers, or the corners of an outline, not {len(numbers)} numbers"
        )
    index, places = numbers[0], numbers[1:]
    if not 0 <= index < len(names) or not index.is_integer():  # false for NaN too
        raise InputError(f"a label's class is 0 to {len(names) - 1}, as many as there are names, not {words[0][:20]!r}")
    if not all(-_SLACK <= place <= 1 + _SLACK for place in places):
        raise InputError(f"a label's places are parts of the picture, 0 to 1, not {line.strip()[:60]!r}")
    if len(places) > 4:
        return names[int(index)], (min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2]))
    x, y, width, height = places
    if width < 0 or height < 0:
        raise InputError(f"a label has no negative width or height, not {line.strip()[:60]!r}")
    return names[int(index)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
