"""Reads a labelled data set in the layout of Pascal VOC.

    FOLDER/ImageSets/Main/<split>.txt   one picture's id a line; what follows the id (VOC's -1, 0, 1 flags) is ignored
    FOLDER/Annotations/<id>.xml
    FOLDER/JPEGImages/<id>.jpg          or another suffix of SUFFIXES, or the name that the XML gives

Where all pictures are asked for, ImageSets may be missing. The files may come from strangers: an XML with a
document type (the carrier of entity bombs and external entities) is refused, and so is an id or file name that leads
out of the folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

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

SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG", ".bmp", ".webp", ".tif", ".tiff")

#: Largest XML and largest list of ids that are read, in bytes: some hundred times what real ones have.
XML_LIMIT, SPLIT_LIMIT = 4 << 20, 64 << 20


def is_voc(folder: Path) -> bool:
    """Whether the folder has what data in this layout have."""
    return (folder / "ImageSets" / "Main").is_dir() or all(
        (folder / part).is_dir() for part in ("Annotations", "JPEGImages")
    )


def read_voc(folder: Path, split: str | None) -> Dataset:
    """Reads the split's annotations and finds its pictures, without opening them. split None: all annotations that
    there are, sorted by name.

    Raises InputError when the folder has no VOC layout, the split is missing, empty or names something outside the
    folder, or no picture of it is usable.
    """
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for picture_id in _annotated(folder) if split is None else read_split(folder, split):
        if picture_id in seen:
            skipped.append(Skipped(picture_id, "stands more than once in the split; counted once"))
            continue
        seen.add(picture_id)
        try:
            annotation = parse_annotation(_content(folder / "Annotations" / f"{picture_id}.xml"))
            pictures.append(
                Picture(picture_id, _picture_path(folder / "JPEGImages", picture_id, annotation), annotation)
            )
        except InputError as error:
            skipped.append(Skipped(picture_id, str(error)))
    return collected(pictures, skipped, f"all of {folder}" if split is None else f"{split!r} in {folder}")


def _annotated(folder: Path) -> list[str]:
    ids = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    if not ids:
        raise InputError(f"data in VOC layout have Annotations/<id>.xml: {folder} has none; name another folder")
    return ids


def read_split(folder: Path, split: str) -> list[str]:
    """The ids of a split, in order. Raises InputError as read_voc does."""
    lists = folder / "ImageSets" / "Main"
    if not lists.is_dir():
        nested = sorted(place.parents[1].name for place in folder.glob("*/ImageSets/Main"))
        hint = f"; did you mean its folder {nested[0]}?" if nested else ""
        raise InputError(
            f"data in VOC layout have ImageSets/Main, Annotations and JPEGImages: {lists} is missing{hint}"
        )
    path = lists / f"{split}.txt"
    if not is_plain_name(split) or not path.is_file():
        existing = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise InputError(f"a split is a list in {lists}: there is no {split!r}; existing: {existing}")
    if path.stat().st_size > SPLIT_LIMIT:
        raise InputError(f"a list of ids has at most {SPLIT_LIMIT >> 20} MB: {path} is larger; is it a list?")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"a split is a text file of picture ids: {path} is not text; write one id a line") from error
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise InputError(f"a split lists at least one picture: {path} is empty; write one id a line")
    for number, picture_id in enumerate(ids, 1):
        if not is_plain_name(picture_id):
            raise InputError(
                f"a picture's id is a plain file name: {picture_id!r}, entry {number} of {path}, leads elsewhere"
            )
    return ids


class _NoDocumentType(ElementTree.TreeBuilder):
    """Builds the tree and refuses a document type, before any entity that it declares could be used."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("its XML declares a document type, which annotations do not need and attacks do")


def parse_annotation(content: bytes) -> Annotation:
    """Reads the text of an annotation. Raises InputError with the reason, one clause."""
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDocumentType()))
    # LookupError comes of an encoding that Python does not know.
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"its XML cannot be read: {error}") from error
    if root.tag != "annotation":
        raise InputError(f"its XML is no annotation but <{root.tag[:40]}>")
    objects = root.findall("object")
    boxes = np.array([_box(item) for item in objects], np.float64).reshape(-1, 4)
    names = tuple(_class_name(item) for item in objects)
    difficult = np.array([_is_difficult(item) for item in objects], bool)
    return Annotation(_size(root), (root.findtext("filename") or "").strip(), names, boxes, difficult)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"its annotation {path.name} is missing")
    if path.stat().st_size > XML_LIMIT:
        raise InputError(f"its annotation {path.name} is larger than {XML_LIMIT >> 20} MB")
    return path.read_bytes()


def _picture_path(folder: Path, picture_id: str, annotation: Annotation) -> Path:
    for suffix in SUFFIXES:
        path = folder / f"{picture_id}{suffix}"
        if path.is_file():
            return path
    name = annotation.filename
    if name and not is_plain_name(name):
        raise InputError(f"its XML names the file {name[:80]!r}, which leads out of the folder")
    if name and (folder / name).is_file():
        return folder / name
    raise InputError(f"its picture {picture_id}.jpg is missing")


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    width, height = (root.findtext(f"size/{side}") or "0" for side in ("width", "height"))
    if not (width.strip().isdecimal() and height.strip().isdecimal()) or len(width) + len(height) > 20:
        return None
    return (int(width), int(height)) if int(width) and int(height) else None


def _class_name(item: ElementTree.Element) -> str:
    name = " ".join((item.findtext("name") or "").split())
    if not name:
        raise InputError("an object in its XML has no name")
    return name


def _is_difficult(item: ElementTree.Element) -> bool:
    text = (item.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise InputError(f"an object's difficult in its XML is 0 or 1, not {text[:20]!r}")
    return text == "1"


def _box(item: ElementTree.Element) -> list[float]:
    corners = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = item.findtext(f"bndbox/{side}") or ""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= COORDINATE_LIMIT:  # false for NaN too
            raise InputError(f"an object's {side} in its XML is a number of pixels, not {text[:20]!r}")
        corners.append(value)
    return corners
