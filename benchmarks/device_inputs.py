"""Which files a command reads, so that they can be copied to the device that it runs on."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.errors import InputError


@dataclasses.dataclass(frozen=True)
class Input:
    """What one option or argument names."""

    #: As the user wrote it.
    text: str
    #: The name that it has on the device, below a folder of its own.
    name: str
    #: The files by their path below that folder; the first part of each is `name`.
    files: Mapping[str, Path]


def one_file(text: str, _: Mapping[str, Any]) -> Input:
    """A model, a picture or a list of names. Raises InputError where there is no such file."""
    path = Path(text)
    if not path.is_file():
        raise InputError(f"a file is copied to the device: there is no file {text!r}; check the path")
    return Input(text, path.name, {path.name: path})


def source(text: str, _: Mapping[str, Any]) -> Input | None:
    """What `detect` looks at: a file, or a folder's pictures. None for what the device has itself: a stream, a camera,
    the pattern.

    Raises InputError as deploy.source.locate does, but for what does not exist here: the device may have it.
    """
    from deploy.source import locate  # OpenCV loads here

    path = Path(text)
    if "://" in text or not text or (text == "pattern" and not path.exists()):
        return None
    try:
        if stat.S_ISCHR(path.stat().st_mode):
            return None
    except FileNotFoundError:
        if not text.isdecimal() and not text.startswith("/dev/"):
            raise InputError(
                f"a source is copied to the device: there is no {text!r} here; check the path, or name a camera of "
                "the device by its number or as /dev/video0"
            ) from None
        return None
    located = locate(text)
    name = path.resolve().name or "source"
    if located.kind == "folder":
        return Input(text, name, {f"{name}/{file.name}": file for file in located.files})
    return Input(text, path.name, {path.name: path})


def labelled(text: str, given: Mapping[str, Any]) -> Input:
    """The pictures and annotations of a split, in whichever layout. given: the command's values, split and names.

    Raises InputError as read_dataset does, for the same faults.
    """
    from benchmarks.coco_dataset import splits
    from benchmarks.dataset import read_dataset
    from benchmarks.voc_dataset import is_voc
    from benchmarks.yolo_dataset import read_names

    folder, split = Path(text), given.get("split") or None
    names = read_names(given["names"]) if given.get("names") else ()
    pictures = [picture.path for picture in read_dataset(folder, split, names).pictures]
    if is_voc(folder):
        notes = _voc_notes(folder, split)
    elif splits(folder):
        notes = [folder / "annotations" / f"instances_{one}.json" for one in ([split] if split else splits(folder))]
    else:
        notes = _yolo_notes(folder, split)
    name = folder.resolve().name or "data"
    # A note that is missing is missing there too, where it is told as it would be here.
    files = {path.relative_to(folder).as_posix(): path for path in (*notes, *pictures) if path.is_file()}
    return Input(text, name, {f"{name}/{inside}": path for inside, path in files.items()})


def _voc_notes(folder: Path, split: str | None) -> list[Path]:
    from benchmarks.voc_dataset import read_split

    if split is None:
        return sorted((folder / "Annotations").glob("*.xml"))
    ids = dict.fromkeys(read_split(folder, split))
    return [folder / "ImageSets" / "Main" / f"{split}.txt"] + [folder / "Annotations" / f"{one}.xml" for one in ids]


def _yolo_notes(folder: Path, split: str | None) -> list[Path]:
    from benchmarks.yolo_dataset import pictures_and_labels

    lists = [folder / "classes.txt", *sorted(folder.glob("*.names"))]
    if split is not None:
        lists.append(folder / f"{split}.txt")
    # Pictures too, since one whose label is wrong is no picture of the data set, and is told there as it would be here.
    return lists + [path for pair in pictures_and_labels(folder, split) for path in pair]


#: By the name of the option or argument: what it names. What names a path and stands neither here nor among the results
#: cannot be used on a device.
INPUTS: Mapping[str, Callable[[str, Mapping[str, Any]], Input | None]] = {
    "model": one_file,
    "variant": one_file,
    "picture": one_file,
    "names": one_file,
    "source": source,
    "data": labelled,
}
