"""Reads a labelled data set, in whichever of three layouts it is.

| layout | told by | module |
|---|---|---|
| Pascal VOC | ImageSets/Main, or Annotations and JPEGImages | `voc_dataset.py` |
| COCO | annotations/instances_<split>.json | `coco_dataset.py` |
| YOLO | images and labels, or a list <split>.txt | `yolo_dataset.py` |

A folder that fits several is read as the first of them: COCO's annotations say more than YOLO labels made of them.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.annotations import Dataset
from benchmarks.coco_dataset import read_coco
from benchmarks.coco_dataset import splits as coco_splits
from benchmarks.voc_dataset import is_voc, read_voc
from benchmarks.yolo_dataset import is_yolo, read_yolo
from deploy.errors import InputError

__all__ = ["read_dataset", "read_voc"]


def read_dataset(folder: Path, split: str | None, names: tuple[str, ...] = ()) -> Dataset:
    """The pictures of a split and what they show, in VOC's way of counting pixels. split None: all that there are.

    names: of the classes of a data set in YOLO layout that does not name them itself, in their order.

    Raises InputError for a folder in none of the layouts, and as the layout's own reader does.
    """
    if is_voc(folder):
        return read_voc(folder, split)
    if coco_splits(folder):
        return read_coco(folder, split)
    if is_yolo(folder, split) or is_yolo(folder, None):
        return read_yolo(folder, split, names)
    if not folder.is_dir():
        raise InputError(f"labelled data are in a folder: there is no {folder}; check the path")
    raise InputError(
        f"labelled data are in VOC layout (ImageSets/Main, or Annotations and JPEGImages), in COCO's "
        f"(annotations/instances_<split>.json), or in YOLO's (images and labels, or <split>.txt): {folder} has none of "
        f"these{_hint(folder)}"
    )


def _hint(folder: Path) -> str:
    nested = [place.name for place in sorted(folder.iterdir()) if place.is_dir() and _is_any(place)]
    return f"; did you mean its folder {nested[0]}?" if nested else "; name the folder that has"


def _is_any(folder: Path) -> bool:
    return is_voc(folder) or bool(coco_splits(folder)) or is_yolo(folder, None)
