"""Which stages of a recipe's list are possible, with its data and after one another."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from toolchain.recipe_data import Data
from toolchain.recipe_settings import Impossible
from toolchain.recipe_stages import COMPRESSING, TRAINING, GraphStage
from toolchain.recipe_training import learns_from


def check_stages(
    stages: Sequence[GraphStage], data: Data | None, *, pictures: bool, skip: Collection[str] = ()
) -> None:
    """Raises Impossible for the first stage that lacks something, when those of skip are left out.

    pictures: whether there are some to calibrate on.
    """
    compressed = False
    for index, stage in enumerate(stages):
        if stage.name not in skip:
            compressed = compressed or stage.name in COMPRESSING
            _check_stage(stage, ("stages", index, stage.name), data, pictures, compressed)


def _check_stage(
    stage: GraphStage, place: tuple[str | int, ...], data: Data | None, pictures: bool, compressed: bool
) -> None:
    """Raises Impossible for a stage that lacks something.

    pictures: whether there are some to calibrate on; compressed: whether the stage or one before it compresses.
    """
    if stage.name in TRAINING:
        _check_training(stage, place, data, compressed)
    elif stage.batch_norm and not compressed:
        raise Impossible(
            place, "the stage batch_norm makes up for a compression, and no stage before it compresses; leave it out"
        )
    elif (key := _needs_pictures(stage)) and not pictures:
        at = key if key == stage.name else f"{key} of the stage {stage.name}"
        raise Impossible(
            place if key == stage.name else (*place, key),
            f"{at} needs pictures, and the recipe names none; add `calibration: {{pictures: FOLDER}}` or leave it out",
        )


def _needs_pictures(stage: GraphStage) -> str:
    """The setting of a stage that needs calibration pictures, or the stage's own name; "" where nothing does."""
    if stage.tucker:
        return next((key for key in ("weighted", "correct") if getattr(stage.tucker, key)), "")
    if stage.prune and stage.prune.flops is not None:
        return "flops"
    if stage.prune and stage.prune.criterion == "taylor":
        return "criterion"
    if stage.batch_norm:
        return stage.name
    return "correct" if stage.prune and stage.prune.correct else ""


def _check_training(stage: GraphStage, place: tuple[str | int, ...], data: Data | None, compressed: bool) -> None:
    if data is None:
        raise Impossible(
            place,
            f"the stage {stage.name} needs data to train on; add `data: {{train: [{{folder: FOLDER}}]}}`, or `data: "
            f"{{scenes: {{}}}}`, or leave {stage.name} out",
        )
    settings = stage.settings
    labels, distill = learns_from(settings, labelled=data.labelled, compressed=compressed)
    if labels and not data.labelled:
        told = "labels" in settings.model_fields_set
        raise Impossible(
            (*place, "labels") if told else place,
            f"the stage {stage.name} learns from labels, and `data` has pictures alone; give labelled ones as `train`",
        )
    if distill and not compressed:
        raise Impossible(
            (*place, "distill"),
            f"distill of the stage {stage.name} learns from the network before a compression, and no stage before it "
            "compresses; leave it out",
        )
    if not labels and not distill:
        raise Impossible(
            place,
            f"the stage {stage.name} learns from labels or from the network before a compression, and here from "
            "neither; give `data` labelled pictures as `train`, or distill a weight behind a stage that compresses",
        )
    if getattr(settings, "features", ()) and not distill:
        raise Impossible(
            (*place, "features"),
            f"features of the stage {stage.name} are compared with the network before a compression, and distill is 0; "
            "leave them out",
        )
