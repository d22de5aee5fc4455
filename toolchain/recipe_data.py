"""The pictures that belong to a recipe as a whole: drawn scenes, or the user's own to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from toolchain.recipe_settings import Seed, Settings

Split = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]


class Scenes(Settings):
    """Scenes that the program draws itself, in VOC layout with the splits train, val and test."""

    train: Annotated[int, Field(ge=1, le=100_000)] = 800
    """Pictures to train and calibrate on."""
    val: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Pictures on which a training is watched."""
    test: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Pictures for the final figures alone."""
    seed: Seed = 1


class Folder(Settings):
    """Labelled pictures in the layout of VOC, COCO or YOLO."""

    folder: Path
    split: Split | None = None
    """All pictures that the folder has where it is left out."""


class Validation(Settings):
    """Pictures on which a training is watched, and never trained on: labelled ones, pictures alone, or a share."""

    folder: Path | None = None
    """Labelled pictures in the layout of VOC, COCO or YOLO."""
    split: Split | None = None
    """Of folder; all pictures that it has where it is left out."""
    pictures: Path | None = None
    """A folder of pictures alone."""
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the pictures to train on that are held out."""

    @model_validator(mode="after")
    def _one_kind(self) -> Validation:
        given = [key for key in ("folder", "pictures", "share") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a validation is one of folder, pictures or share, but {' and '.join(given) or 'none'} came; give"
                " exactly one"
            )
        if self.split is not None and self.folder is None:
            raise ValueError("a validation's split is that of a folder, and none came; give folder too")
        return self


class Data(Settings):
    """Pictures that belong to the recipe as a whole: drawn scenes, or your own to train on."""

    scenes: Scenes | None = None
    train: Annotated[tuple[Folder, ...], Field(max_length=100)] = ()
    """Labelled pictures."""
    pictures: Annotated[tuple[Path, ...], Field(max_length=100)] = ()
    """Folders of pictures alone. A stage that learns from labels leaves them aside."""
    validation: Validation | None = None
    """A tenth of the others where it is left out."""

    @model_validator(mode="after")
    def _one_kind(self) -> Data:
        if bool(self.scenes) == bool(self.train or self.pictures):
            came = "both" if self.scenes else "none"
            raise ValueError(
                f"data are drawn scenes or your own pictures (train, pictures), but {came} came; give one of them"
            )
        if self.scenes and self.validation:
            raise ValueError("drawn scenes have a split val to be watched on; leave validation out")
        if self.train and self.validation and self.validation.pictures:
            raise ValueError("a training from labels is watched on labelled pictures; give validation a folder")
        return self

    @property
    def labelled(self) -> bool:
        """Whether there are labels to learn from."""
        return bool(self.scenes or self.train)
