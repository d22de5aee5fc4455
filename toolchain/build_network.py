"""The first half of a build: the model is loaded, and the recipe's list of stages makes another network of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from toolchain.build_pictures import calibration, training_data
from toolchain.cache import Result, Source
from toolchain.carried import built_in_networks
from toolchain.jobs import Jobs
from toolchain.recipe import Recipe
from toolchain.recipe_stages import COMPRESSING, TRAINING, GraphStage
from toolchain.recipe_training import Recovery, learns_from


@dataclasses.dataclass(frozen=True)
class Network:
    """The network after the recipe's list of stages, and what belongs to it."""

    graph: Result
    #: The jobs that made it of the model.
    stages: tuple[str, ...]
    #: As it was before the first stage that compresses it, None where none does; and the jobs until then.
    original: Result | None
    stages_of_original: tuple[str, ...]
    #: The drawn scenes, where the recipe has some.
    scenes: Result | None


def make_network(jobs: Jobs, recipe: Recipe, skip: frozenset[str]) -> Network:
    """Loads the model and runs the recipe's list of stages, without those of skip."""
    files: dict[str, Source] = dict(model_files(recipe))
    graph = jobs.run("load", model_settings(recipe), files)
    scenes = _scenes(jobs, recipe, graph)
    original: Result | None = None
    stages_of_original: tuple[str, ...] = ()
    done: list[str] = []
    prunings: list[Result] = []
    for entry, job in zip(recipe.stages, job_names(recipe), strict=True):
        if entry.name in skip:
            continue
        if original is None and entry.name in COMPRESSING:
            original, stages_of_original = graph, tuple(done)
        settings: dict[str, Any] = entry.settings.model_dump(mode="json")
        settings["allow_lambda"] = recipe.model.allow_lambda
        inputs: dict[str, Source] = {"graph": graph}
        if entry.name in TRAINING:
            more, read = _for_training(entry, recipe, scenes, original)
        elif entry.batch_norm:
            more, read = _for_batch_norm(entry.batch_norm.pictures, recipe, scenes, original, prunings)
        else:
            more, read = _for_compression(entry, calibration(recipe, scenes))
        graph = jobs.run(entry.name, settings | more, inputs | read, of=job.partition(" ")[2])
        done.append(job)
        if entry.prune:
            prunings.append(graph)
    return Network(graph, tuple(done), original, stages_of_original, scenes)


def job_names(recipe: Recipe) -> list[str]:
    """What the jobs of the recipe's list of stages are called: train, then train 2 and so on."""
    seen: dict[str, int] = {}
    names = []
    for entry in recipe.stages:
        seen[entry.name] = seen.get(entry.name, 0) + 1
        names.append(entry.name if seen[entry.name] == 1 else f"{entry.name} {seen[entry.name]}")
    return names


def _scenes(jobs: Jobs, recipe: Recipe, graph: Result) -> Result | None:
    if recipe.data is None or recipe.data.scenes is None:
        return None
    drawn = recipe.data.scenes
    splits = {"train": drawn.train, "val": drawn.val, "test": drawn.test}
    return jobs.run("scenes", {"splits": splits, "seed": drawn.seed, "size": max(graph.facts["input"])}, {})


def _for_training(
    entry: GraphStage, recipe: Recipe, scenes: Result | None, original: Result | None
) -> tuple[dict[str, Any], dict[str, Source]]:
    """What a stage that trains has beside its own settings and the network."""
    assert recipe.data is not None
    labels, distill = learns_from(entry.settings, labelled=recipe.data.labelled, compressed=original is not None)
    settings, inputs = training_data(recipe.data, scenes, labels=labels)
    if isinstance(entry.settings, Recovery):
        settings |= {"labels": labels, "distill": distill}
    if distill:
        assert original is not None
        inputs["teacher"] = original
    return settings, inputs


def _for_batch_norm(
    count: int | None, recipe: Recipe, scenes: Result | None, original: Result | None, prunings: list[Result]
) -> tuple[dict[str, Any], dict[str, Source]]:
    assert original is not None
    inputs: dict[str, Source] = {"original": original, "pictures": calibration(recipe, scenes, count)}
    return {}, inputs | {f"pruned_{index}": pruned for index, pruned in enumerate(prunings)}


def _for_compression(entry: GraphStage, pictures: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Source]]:
    """Where the recipe leaves open what a stage does with pictures, it does where there are some."""
    settings: dict[str, Any] = {}
    if entry.tucker and entry.tucker.weighted is None:
        settings["weighted"] = bool(pictures)
    if entry.prune and entry.prune.correct is None:
        settings["correct"] = bool(pictures)
    all_settings: Mapping[str, Any] = entry.settings.model_dump() | settings
    looks = any(all_settings.get(key) for key in ("weighted", "correct", "flops"))
    looks = looks or all_settings.get("criterion") == "taylor"
    return settings, {"pictures": pictures} if looks else {}


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """What stages.read_model must know of the model beside its files."""
    model = recipe.model
    resize = recipe.input.resize or (None if model.keras else "letterbox")  # a Keras model's HEAD.yaml says it itself
    yolov4 = model.yolov4.model_dump(mode="json") if model.yolov4 else None
    return {"allow_lambda": model.allow_lambda, "seed": model.seed, "resize": resize, "yolov4": yolov4}


def model_files(recipe: Recipe) -> dict[str, Path]:
    """The files that the model is read from, by the recipe's key."""
    if recipe.model.built_in is not None:
        cfg = built_in_networks()[recipe.model.built_in]
        return {"cfg": cfg, "names": cfg.with_suffix(".names")}
    keys = ("cfg", "weights", "names", "keras", "head")
    return {key: path for key in keys if (path := getattr(recipe.model, key)) is not None}


def seeds_of(recipe: Recipe, jobs: Collection[str]) -> dict[str, int]:
    """The seeds of the model, the scenes and those of the recipe's stages that are listed, by the job that draws."""
    found = {"model": recipe.model.seed} if recipe.model.built_in or recipe.model.yolov4 else {}
    if recipe.data and recipe.data.scenes:
        found["scenes"] = recipe.data.scenes.seed
    for entry, job in zip(recipe.stages, job_names(recipe), strict=True):
        if job in jobs and hasattr(entry.settings, "seed"):
            found[job] = entry.settings.seed
    return found
