"""Reads a labelled data set in the layout of COCO (cocodataset.org/#format-data, object detection).

    FOLDER/annotations/instances_<split>.json     images: id, file_name, width, height; categories: id, name;
                                                  annotations: image_id, category_id, bbox, iscrowd
    FOLDER/<split>/<file_name>                    or FOLDER/images/<split>/<file_name>, or FOLDER/images/<file_name>

A bbox is x, y, width, height in pixels counted from 0; numbers of categories have gaps. A crowd becomes difficult: see
coco_metric.py for what that means. The file may come from strangers: what it says of one picture and cannot be used
leaves that picture out, and names of files stay within the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from benchmarks.annotations import (
    COORDINATE_LIMIT,
    Annotation,
    Dataset,
    Picture,
    Skipped,
    collected,
    is_plain_name,
)
from deploy.errors import InputError

#: Largest file of annotations that is read, in bytes: twice that of COCO's own 118,287 training pictures.
JSON_LIMIT = 1 << 30
_PREFIX = "instances_"


def splits(folder: Path) -> tuple[str, ...]:
    """The splits that the folder has annotations of, sorted."""
    return tuple(sorted(path.stem[len(_PREFIX) :] for path in (folder / "annotations").glob(f"{_PREFIX}*.json")))


def read_coco(folder: Path, split: str | None) -> Dataset:
    """Reads a split's annotations and finds its pictures, without opening them. split None: all splits.

    Raises InputError when the split is missing, its file is none of COCO's, or no picture of it is usable.
    """
    existing = splits(folder)
    if split is not None and split not in existing:
        raise InputError(
            f"a split of data in COCO layout is annotations/{_PREFIX}<split>.json: {folder} has none for {split!r}; "
            f"existing: {', '.join(existing) or 'none'}"
        )
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    for name in existing if split is None else (split,):
        _read(folder, name, pictures, skipped)
    return collected(pictures, skipped, f"all of {folder}" if split is None else f"{split!r} in {folder}")


def _read(folder: Path, split: str, pictures: list[Picture], skipped: list[Skipped]) -> None:
    path = folder / "annotations" / f"{_PREFIX}{split}.json"
    content = _content(path)
    class_of = _categories(content["categories"], path)
    by_image: dict[int, list[Any]] = {}
    for item in content["annotations"]:
        if not isinstance(item, dict) or not _is_whole(item.get("image_id")):
            raise InputError(f"every annotation has the image_id of a picture: one in {path} has none; write it anew")
        by_image.setdefault(item["image_id"], []).append(item)
    seen: set[int] = set()
    places = (folder / split, folder / "images" / split, folder / "images")
    for image in content["images"]:
        if not isinstance(image, dict) or not _is_whole(image.get("id")):
            raise InputError(f"every picture in {path} has an id, a whole number: one has none; write it anew")
        number, name = image["id"], image.get("file_name")
        try:
            if number in seen:
                raise InputError("its id stands more than once; counted once")
            seen.add(number)
            file = _picture_path(places, name)
            pictures.append(Picture(file.stem, file, _annotation(image, by_image.get(number, []), class_of)))
        except InputError as error:
            skipped.append(Skipped(f"{split} {number}", str(error)))


def _content(path: Path) -> Mapping[str, list[Any]]:
    if path.stat().st_size > JSON_LIMIT:
        raise InputError(f"annotations take at most {JSON_LIMIT >> 20} MiB: {path} is larger; split it")
    try:
        content = json.loads(path.read_bytes())
    # A depth that Python refuses is none that annotations have; ValueError is also UnicodeDecodeError.
    except (ValueError, RecursionError) as error:
        raise InputError(f"annotations are JSON: {path} cannot be read: {error}; copy it anew") from error
    keys = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise InputError(f"annotations of COCO have the lists {', '.join(keys)}: {path} lacks one; is it of COCO?")
    return content


def _categories(categories: list[Any], path: Path) -> dict[int, str]:
    class_of: dict[int, str] = {}
    for category in categories:
        number, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if not _is_whole(number) or not isinstance(name, str) or not name.strip() or number in class_of:
            raise InputError(
                f"a category has an id of its own and a name: one in {path} has {str(number)[:20]} and "
                f"{str(name)[:40]!r}; correct it"
            )
        class_of[number] = " ".join(name.split())
    return class_of


def _picture_path(places: tuple[Path, ...], name: object) -> Path:
    if not isinstance(name, str) or not all(is_plain_name(part) for part in name.split("/")):
        raise InputError(f"its file_name {str(name)[:80]!r} is no name of a file within the folder")
    for place in places:
        if (place / PurePosixPath(name)).is_file():
            return place / PurePosixPath(name)
    raise InputError(f"its picture {name} is missing")


def _annotation(image: Mapping[str, Any], items: list[Any], class_of: Mapping[int, str]) -> Annotation:
    boxes = np.array([_corners(item.get("bbox")) for item in items], np.float64).reshape(-1, 4)
    names = []
    for item in items:
        number = item.get("category_id")
        if not _is_whole(number) or number not in class_of:
            raise InputError(f"the category {str(number)[:20]!r} of one of its objects is not described")
        names.append(class_of[number])
    crowds = [item.get("iscrowd", 0) for item in items]
    if not all(_is_whole(crowd) and crowd in (0, 1) for crowd in crowds):
        raise InputError("iscrowd of one of its objects is neither 0 nor 1")
    width, height = image.get("width"), image.get("height")
    size = (int(width), int(height)) if _is_side(width) and _is_side(height) else None
    return Annotation(size, str(image["file_name"]), tuple(names), boxes, np.array(crowds, bool))


def _corners(bbox: object) -> list[float]:
    """xmin, ymin, xmax, ymax counted from 1, of x, y, width, height counted from 0."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise InputError(f"a bbox is four numbers of pixels, not {str(bbox)[:60]}")
    x, y, width, height = (float(value) for value in bbox)
    if width < 0 or height < 0:
        raise InputError(f"a bbox has no negative width or height, but one of its objects has {str(bbox)[:60]}")
    return [x + 1, y + 1, x + width, y + height]


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= COORDINATE_LIMIT  # false for NaN too


def _is_side(value: object) -> TypeGuard[float]:
    return _is_number(value) and value >= 1
