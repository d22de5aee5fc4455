"""A build: the stages of a recipe one after the other, each kept in the cache, and what they made put into the output
folder.

    load ─▶ [tucker …] ─▶ convert ─▶ quantize ─▶ verify ─▶ package ─▶ [decode] ─▶ compare ─▶ benchmark ─▶ report
    graph   graph         .tflite    .tflite     evidence  the file   others'     layers     p50, mAP     json, md, html
    build_network.py      build_files.py

Where a stage compresses the network, what it was before the first such stage, the original, becomes a float32 file too
that is verified and measured, so that the report says what the compression cost and won; and what is trained after that
learns from it.

OUT holds the packaged files and the report; OUT/.cache each stage's last result (cache.py). A file of OUT is replaced
when the stage that makes it has ended, in one step; a killed build leaves the old ones, and the next goes on where it
was, in the middle of a training too.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from deploy.errors import InputError
from toolchain import cache, stages, training_stages
from toolchain.build_files import ORIGINAL, make_files, publish
from toolchain.build_network import make_network, model_files, seeds_of
from toolchain.build_pictures import refuse_test_pictures
from toolchain.decoded_file import client_file
from toolchain.jobs import Jobs, Stage, Watch
from toolchain.nearest import nearest
from toolchain.recipe import Recipe, RecipeFile
from toolchain.recipe_checks import check_stages
from toolchain.recipe_settings import Impossible
from toolchain.recipe_stages import COMPRESSING, TRAINING


#: All stages, in the order of a build. Those between load and convert run as often as the recipe's `stages` list them.
STAGES = (
    Stage("load", stages.load, needed="every other stage starts from the model"),
    Stage("scenes", stages.scenes, needed="the recipe's other stages read its pictures"),
    Stage("tucker", stages.tucker),
    Stage("prune", stages.prune),
    Stage("sparsify", training_stages.sparsify),
    Stage("cluster", training_stages.cluster),
    Stage("quantization_aware", training_stages.quantization_aware),
    Stage("train", training_stages.train, trains=True),
    Stage("finetune", training_stages.train, trains=True),
    Stage("batch_norm", training_stages.batch_norm),
    Stage("pictures", stages.pictures, needed="the model's own outputs are noted on its pictures"),
    Stage("convert", stages.convert, needed="every file is made of the .tflite that it makes"),
    Stage(
        "quantize", stages.quantize, needed="the recipe's precisions ask for it; take them out of `precisions` instead"
    ),
    Stage("verify", stages.verify),
    Stage("package", stages.package, needed="it makes the files that you asked for"),
    Stage("decode", stages.decode, needed="the recipe's `package` asks for its files; take it out of there instead"),
    Stage("compare", stages.compare),
    Stage("benchmark", stages.benchmark, measures=True),
    Stage("report", stages.report, needed="it says what was done, and what was skipped"),
)
BY_NAME = {stage.name: stage for stage in STAGES}
REPORT_FILES = ("report.json", "report.md", "report.html")


def check_skips(skip: frozenset[str], recipe: Recipe) -> None:
    """Raises InputError for a stage that there is not, or that this recipe's files need."""
    for name in sorted(skip):
        if name not in BY_NAME:
            raise InputError(
                f"there is no stage {name!r}{nearest(name, list(BY_NAME))}; stages are {', '.join(BY_NAME)}"
            )
        stage = BY_NAME[name]
        idle = {"quantize": recipe.all_precisions == ("float32",), "decode": not recipe.clients}
        if stage.needed and not idle.get(name):
            raise InputError(f"the stage {name} cannot be skipped: {stage.needed}")
    try:
        pictures = bool(recipe.data or (recipe.calibration and recipe.calibration.pictures))
        check_stages(recipe.stages, recipe.data, pictures=pictures, skip=skip)
    except Impossible as error:
        raise InputError(f"{str(error).rpartition(';')[0]}; skip it too") from error


def build(
    recipe_file: RecipeFile,
    out: Path,
    skip: frozenset[str] = frozenset(),
    watch: Watch = Watch(),
    *,
    use_best: bool = False,
) -> dict[str, Any]:
    """Builds a recipe into a folder and returns the content of its report.json.

    use_best: a training that was begun in an earlier build and not ended is not gone on with: the best that it has
    reached is taken. A later build without it goes on training.

    Raises InputError when the folder cannot be written or another build works in it, and what the stages raise.
    """
    recipe = recipe_file.recipe
    check_skips(skip, recipe)
    _refuse_to_overwrite(recipe, out)
    refuse_test_pictures(recipe)
    with cache.lock(out / ".cache"):
        cache.remove_leftovers(out / ".cache")
        for name in _names(recipe):
            for leftover in out.glob(f".{name}.*.part"):
                leftover.unlink()
        jobs = Jobs(out / ".cache", BY_NAME, watch, use_best)
        network = make_network(jobs, recipe, skip)
        files = make_files(jobs, recipe, out, skip, network)
        return _report(jobs, recipe_file, out, skip, files)


def _report(
    jobs: Jobs, recipe_file: RecipeFile, out: Path, skip: frozenset[str], files: list[dict[str, Any]]
) -> dict[str, Any]:
    """Writes the report of all jobs so far, and returns the content of its report.json.

    Whether a job ran in this very build is told in it and no part of what it depends on: a build in which nothing ran
    leaves the report as it was.
    """
    entries: list[dict[str, Any]] = []
    model: dict[str, Any] = {}
    original: dict[str, Any] = {}
    for job, result in jobs.done.items():
        if job.split()[0] in COMPRESSING:
            original = original or model
        if "trainable" in result.facts:
            model = {key: result.facts[key] for key in ("trainable", "non_trainable", "flops", "flops_unknown")}
        of = original if job.endswith(" original") else model
        entries.append({"name": job, **of, "seconds": result.seconds, "reason": result.reason})
        if job.split()[0] in ("load", "batch_norm", *COMPRESSING, *TRAINING):
            keys = ("layers", "error", "notes", "training")
            entries[-1] |= {key: result.facts[key] for key in keys if key in result.facts}
    settings = {
        "format": 1,
        "name": recipe_file.recipe.name,
        "recipe": {"file": recipe_file.path.name, "sha256": recipe_file.sha256},
        "slimdet": _version(),
        "seeds": seeds_of(recipe_file.recipe, jobs.done),
        "skipped": sorted(skip),
        "files": files,
        "stages": entries,
    }
    told = [{**entry, "build": "ran" if jobs.done[entry["name"]].ran else "kept"} for entry in entries]
    samples = [
        result for job, result in jobs.done.items() if job.startswith("benchmark") and stages.SAMPLE in result.files
    ]
    inputs = {"sample": samples[-1]} if samples else {}
    result = jobs.run("report", settings, inputs, told={"stages": told, "machine": environment()})
    for name in (*REPORT_FILES, *([stages.SAMPLE] if samples else [])):
        publish(result, name, out)
    content: dict[str, Any] = json.loads(result.file("report.json").read_bytes())
    return content


def _version() -> str:
    try:
        return metadata.version("slimdet")
    except metadata.PackageNotFoundError:
        return "not installed"


def _names(recipe: Recipe) -> list[str]:
    """All files that a build may put into its folder."""
    files = [f"{recipe.name}_{precision}.tflite" for precision in (*recipe.all_precisions, ORIGINAL)]
    files += [client_file(file, client) for file in files for client in recipe.clients]
    return [*files, *REPORT_FILES, stages.SAMPLE]


def _refuse_to_overwrite(recipe: Recipe, out: Path) -> None:
    made = {(out / name).resolve() for name in _names(recipe)}
    for path in model_files(recipe).values():
        if path.resolve() in made:
            raise InputError(f"a build never overwrites what it reads: it would write {path}; choose another --out")
