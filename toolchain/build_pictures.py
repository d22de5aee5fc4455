"""Which pictures a recipe names, to train on, to be watched on and to calibrate on; and that none is measured on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.dataset import read_dataset
from benchmarks.voc_dataset import SUFFIXES, read_split
from deploy.errors import InputError
from toolchain import cache
from toolchain.cache import Result, Source
from toolchain.recipe import Recipe
from toolchain.recipe_data import Data
from toolchain.stage_work import SCENES
from toolchain.stages import pictures_in

#: Pictures to calibrate on without `calibration` in the recipe.
_COUNT = 64
#: More than any folder has.
_ALL = 10**9
#: Of the pictures to train on, without `validation` in the recipe.
_SHARE = 0.1
#: The classes of a data set that names none, where only its pictures matter.
_NUMBERS = tuple(map(str, range(10_000)))


def training_data(data: Data, scenes: Result | None, *, labels: bool) -> tuple[dict[str, Any], dict[str, Source]]:
    """From what training_stages.data_of reads the pictures to train on: settings and inputs of the stage.

    labels: whether it learns from labels, and leaves pictures without any aside.
    """
    if scenes is not None:
        return {}, {"scenes": scenes}
    folders: dict[str, list[tuple[Path, str | None, bool]]] = {"train": [], "validation": []}
    folders["train"] = [(each.folder, each.split, True) for each in data.train]
    folders["train"] += [(each, None, False) for each in data.pictures if not labels]
    watched = data.validation
    if watched and watched.folder:
        folders["validation"] = [(watched.folder, watched.split, True)]
    elif watched and watched.pictures:
        folders["validation"] = [(watched.pictures, None, False)]
    settings: dict[str, Any] = {"share": watched.share if watched and watched.share else _SHARE}
    inputs: dict[str, Source] = {}
    for kind, entries in folders.items():
        settings[kind] = [{"split": split, "labelled": labelled} for _, split, labelled in entries]
        inputs |= {f"{kind}_{index}": folder for index, (folder, _, _) in enumerate(entries)}
    return {"data": settings}, inputs


def calibration(recipe: Recipe, scenes: Result | None, count: int | None = None) -> tuple[Path, ...]:
    """The pictures that the recipe names to calibrate on, or those of its data; () where it has neither.

    count: how many, evenly spaced; as many as the recipe says where it is left out.
    """
    from toolchain.quantize import evenly_spaced

    count = count or (recipe.calibration.count if recipe.calibration else _COUNT)
    if recipe.calibration and recipe.calibration.pictures:
        return tuple(evenly_spaced(pictures_in(recipe.calibration.pictures), count))
    if scenes is not None:
        drawn = f"{SCENES}/JPEGImages/train_"
        return tuple(evenly_spaced([scenes.file(name) for name in scenes.files if name.startswith(drawn)], count))
    if recipe.data is None:
        return ()
    labelled = [one for each in recipe.data.train for one in _classes_of(each.folder, each.split)]
    alone = [path for folder in recipe.data.pictures for path in pictures_in(folder)]
    if not labelled:
        return tuple(evenly_spaced(alone, count))
    # Each kind has its share of the pictures.
    of_labelled = max(1, round(min(count, len(labelled) + len(alone)) * len(labelled) / (len(labelled) + len(alone))))
    return (*spread_over_classes(labelled, of_labelled), *evenly_spaced(alone, max(0, count - of_labelled)))


def spread_over_classes(pictures: Sequence[tuple[Path, frozenset[str]]], count: int) -> tuple[Path, ...]:
    """At most count of the pictures, in their order, with no class far behind another: again and again the next one,
    evenly spaced, that shows the class that was shown least so far. pictures: with the classes that they show; those
    that show none come last."""
    if len(pictures) <= count:
        return tuple(path for path, _ in pictures)
    # Evenly spaced: the order in which the places come by halving intervals does not favour the list's beginning.
    order = sorted(range(len(pictures)), key=lambda index: (int(f"{index:032b}"[::-1], 2), index))
    waiting: dict[str, list[int]] = {}
    for index in order:
        for name in pictures[index][1] or {""}:
            waiting.setdefault(name, []).append(index)
    shown = dict.fromkeys(sorted(waiting), 0)
    taken: set[int] = set()
    while len(taken) < count:
        left = [name for name in shown if waiting[name]]
        name = min(left, key=lambda one: (one == "", shown[one], len(waiting[one])))
        index = waiting[name].pop(0)
        if index not in taken:
            taken.add(index)
            for other in pictures[index][1] or {""}:
                shown[other] += 1
    return tuple(pictures[index][0] for index in sorted(taken))


def others(recipe: Recipe, scenes: Result | None, calibrating: Sequence[Path]) -> tuple[Path, ...]:
    """Pictures from where those to calibrate on came and those of the recipe's data, without these: to measure a loss
    on. () where there are none."""
    from toolchain.quantize import PICTURES_TO_MEASURE, evenly_spaced

    found = list(calibration(recipe, scenes, _ALL))
    if recipe.data is not None and scenes is None:
        found += [path for each in recipe.data.train for path in _pictures_of(each.folder, each.split)]
        found += [path for folder in recipe.data.pictures for path in pictures_in(folder)]
    used = set(calibrating)
    found = [path for path in dict.fromkeys(found) if path not in used]
    return tuple(evenly_spaced(found, PICTURES_TO_MEASURE))


def _classes_of(folder: Path, split: str | None) -> list[tuple[Path, frozenset[str]]]:
    """The usable pictures of a data set with the classes that they show."""
    found = read_dataset(folder, split, _NUMBERS).pictures
    return [(picture.path, frozenset(picture.annotation.names)) for picture in found]


def _pictures_of(folder: Path, split: str | None) -> list[Path]:
    """The pictures of a data set, as far as they are there, without a look at what they show where that can be."""
    if split is not None and (folder / "ImageSets" / "Main").is_dir():
        names = (f"{picture_id}{suffix}" for picture_id in read_split(folder, split) for suffix in SUFFIXES)
        return [path for name in names if (path := folder / "JPEGImages" / name).is_file()]
    return [picture.path for picture in read_dataset(folder, split, _NUMBERS).pictures]


def refuse_test_pictures(recipe: Recipe) -> None:
    """Refuses to calibrate, to train or to be watched on pictures that the mAP is measured on, under whatever name:
    equal bytes are the same picture."""
    if recipe.benchmark.data is None:
        return
    used: list[tuple[str, Path, Sequence[Path]]] = []
    if recipe.calibration and (folder := recipe.calibration.pictures):
        used.append(("int8 is never calibrated on test pictures", folder, pictures_in(folder)))
    if data := recipe.data:
        law = "no network is trained or watched on test pictures"
        used += [(law, each.folder, _pictures_of(each.folder, each.split)) for each in data.train]
        used += [(law, folder, pictures_in(folder)) for folder in data.pictures]
        if data.validation and data.validation.folder:
            folder = data.validation.folder
            used.append((law, folder, _pictures_of(folder, data.validation.split)))
        if data.validation and data.validation.pictures:
            used.append((law, data.validation.pictures, pictures_in(data.validation.pictures)))
    by_size: dict[int, list[Path]] = {}
    for path in _pictures_of(recipe.benchmark.data, recipe.benchmark.split) if used else ():
        by_size.setdefault(path.stat().st_size, []).append(path)
    digest = functools.cache(cache.file_digest)
    for law, folder, pictures in used:
        there = [path for path in pictures if path.is_file()]
        same = [
            picture
            for picture in there
            if any(digest(path) == digest(picture) for path in by_size.get(picture.stat().st_size, ()))
        ]
        if same:
            raise InputError(
                f"{law}: {len(same)} of the {len(there)} in {folder} are in the split {recipe.benchmark.split!r}, the "
                f"first {same[0].name}; name a folder of other pictures"
            )
