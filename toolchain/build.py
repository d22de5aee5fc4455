"""A build: the stages of a recipe one after the other, each kept in the cache, and what they made put into the output
folder.

    load ─▶ [tucker, prune, train …] ─▶ convert ─▶ quantize ─▶ verify ─▶ package ─▶ benchmark ─▶ report
    graph   graph                       .tflite    .tflite     evidence  the file   p50, mAP     json, md, html

Where a stage compresses the network, what it was before the first such stage, the original, becomes a float32 file too
that is verified and measured, so that the report says what the compression cost and won.

OUT holds the packaged files and the report; OUT/.cache each stage's last result (cache.py). A file of OUT is replaced
when the stage that makes it has ended, in one step; a killed build leaves the old ones, and the next goes on where it
was.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.dataset import SUFFIXES, read_split
from benchmarks.environment import environment
from deploy.command_line import write_atomically
from deploy.errors import InputError
from toolchain import cache, stages
from toolchain.cache import Result, Source
from toolchain.carried import built_in_networks
from toolchain.code_version import code_version
from toolchain.nearest import nearest
from toolchain.recipe import Recipe, RecipeFile
from toolchain.recipe_stages import GraphStage
from toolchain.stages import Facts, Work


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of step: a name for --skip, and a plain function. Its settings are checked by recipe.py."""

    name: str
    run: Callable[[Work], Facts]
    #: Why it cannot be skipped; "" where it can.
    needed: str = ""
    #: Whether its result holds for the machine that it ran on alone.
    measures: bool = False


#: All stages, in the order of a build. Those between load and convert run as often as the recipe's `stages` list them.
STAGES = (
    Stage("load", stages.load, needed="every other stage starts from the model"),
    Stage("scenes", stages.scenes, needed="the recipe's other stages read its pictures"),
    Stage("tucker", stages.tucker),
    Stage("prune", stages.prune),
    Stage("train", stages.train),
    Stage("pictures", stages.pictures, needed="the model's own outputs are noted on its pictures"),
    Stage("convert", stages.convert, needed="every file is made of the .tflite that it makes"),
    Stage(
        "quantize", stages.quantize, needed="the recipe's precisions ask for it; take them out of `precisions` instead"
    ),
    Stage("verify", stages.verify),
    Stage("package", stages.package, needed="it makes the files that you asked for"),
    Stage("benchmark", stages.benchmark, measures=True),
    Stage("report", stages.report, needed="it says what was done, and what was skipped"),
)
BY_NAME = {stage.name: stage for stage in STAGES}
#: Stages that make another network of the model.
COMPRESSING = ("tucker", "prune")
#: How the file of the network before them is called, behind the recipe's name.
ORIGINAL = "original_float32"
REPORT_FILES = ("report.json", "report.md", "report.html")


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who is told how the build goes on."""

    started: Callable[[str], None] = lambda job: None
    #: Done, and of how much; 0 where that is not known.
    progress: stages.Progress = lambda done, total: None
    finished: Callable[[str, Result], None] = lambda job, result: None


@dataclasses.dataclass
class _Jobs:
    """Runs jobs, each a stage with its settings and inputs, and remembers them in order."""

    cache: Path
    watch: Watch
    done: dict[str, Result] = dataclasses.field(default_factory=dict)

    def run(
        self,
        stage: Stage,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Source],
        *,
        of: str = "",
        told: Mapping[str, Any] | None = None,
    ) -> Result:
        """The job's result, kept or new. told is for the function's eyes alone and no part of what the result depends
        on."""
        job = f"{stage.name} {of}".strip()
        code, libraries = code_version(stage.run)
        depends_on: dict[str, Any] = {"setting": settings, "code": code, "library": libraries}
        if stage.measures or settings.get("keep_if_faster"):
            machine = environment()
            depends_on["machine"] = {key: machine[key] for key in ("cpu", "usable_cores", "architecture")}

        def make(out: Path) -> Facts:
            self.watch.started(job)
            return stage.run(Work({**settings, **(told or {})}, inputs, out, self.watch.progress))

        result = cache.find_or_make(self.cache, job.replace(" ", "-"), depends_on, inputs, make)
        self.done[job] = result
        self.watch.finished(job, result)
        return result


def check_skips(skip: frozenset[str], recipe: Recipe) -> None:
    """Raises InputError for a stage that there is not, or that this recipe's files need."""
    for name in sorted(skip):
        if name not in BY_NAME:
            raise InputError(
                f"there is no stage {name!r}{nearest(name, list(BY_NAME))}; stages are {', '.join(BY_NAME)}"
            )
        stage = BY_NAME[name]
        if stage.needed and not (name == "quantize" and recipe.precisions == ("float32",)):
            raise InputError(f"the stage {name} cannot be skipped: {stage.needed}")


def build(
    recipe_file: RecipeFile, out: Path, skip: frozenset[str] = frozenset(), watch: Watch = Watch()
) -> dict[str, Any]:
    """Builds a recipe into a folder and returns the content of its report.json.

    Raises InputError when the folder cannot be written or another build works in it, and what the stages raise.
    """
    recipe = recipe_file.recipe
    check_skips(skip, recipe)
    _refuse_to_overwrite(recipe, out)
    _refuse_test_pictures(recipe)
    with cache.lock(out / ".cache"):
        cache.remove_leftovers(out / ".cache")
        for name in _names(recipe):
            for leftover in out.glob(f".{name}.*.part"):
                leftover.unlink()
        jobs = _Jobs(out / ".cache", watch)
        network = _network(jobs, recipe, skip)
        files = _files(jobs, recipe, out, skip, network)
        return _report(jobs, recipe_file, out, skip, files)


@dataclasses.dataclass(frozen=True)
class _Network:
    """The network after the recipe's list of stages, and what belongs to it."""

    graph: Result
    #: As it was before the first stage that compresses it, None where none does; and the stages until then.
    original: Result | None
    stages_of_original: tuple[str, ...]
    #: The drawn scenes, where the recipe has some.
    scenes: Result | None


def _network(jobs: _Jobs, recipe: Recipe, skip: frozenset[str]) -> _Network:
    """Loads the model and runs the recipe's list of stages."""
    inputs: dict[str, Source] = dict(model_files(recipe))
    graph = jobs.run(BY_NAME["load"], model_settings(recipe), inputs)
    scenes = None
    if recipe.data is not None:
        drawn = recipe.data.scenes
        splits = {"train": drawn.train, "val": drawn.val, "test": drawn.test}
        settings: dict[str, Any] = {"splits": splits, "seed": drawn.seed, "size": max(graph.facts["input"])}
        scenes = jobs.run(BY_NAME["scenes"], settings, {})
    seen: dict[str, int] = {}
    original: Result | None = None
    stages_of_original: tuple[str, ...] = ()
    done: list[str] = []
    for entry in recipe.stages:
        seen[entry.name] = seen.get(entry.name, 0) + 1
        if entry.name in skip:
            continue
        if original is None and entry.name in COMPRESSING:
            original, stages_of_original = graph, tuple(done)
        done.append(entry.name)
        nth = str(seen[entry.name]) if seen[entry.name] > 1 else ""
        settings = entry.settings.model_dump(mode="json")
        inputs = {"graph": graph}
        if entry.train:
            inputs |= {"scenes": scenes} if scenes else {}
        else:
            calibration = _calibration(recipe, scenes)
            settings |= {"allow_lambda": recipe.model.allow_lambda, **_from_pictures(entry, bool(calibration))}
            if any(settings.get(key) for key in ("weighted", "correct")) or settings.get("criterion") == "taylor":
                inputs["pictures"] = calibration
        graph = jobs.run(BY_NAME[entry.name], settings, inputs, of=nth)
    return _Network(graph, original, stages_of_original, scenes)


def _from_pictures(entry: GraphStage, given: bool) -> dict[str, bool]:
    """What a stage does with pictures, where the recipe leaves it open: it does where there are some."""
    if entry.tucker:
        return {"weighted": given} if entry.tucker.weighted is None else {}
    return {"correct": given} if entry.prune and entry.prune.correct is None else {}


def _files(jobs: _Jobs, recipe: Recipe, out: Path, skip: frozenset[str], network: _Network) -> list[dict[str, Any]]:
    """Makes, verifies, packages and measures a file for each precision; returns the report's entries."""
    graph, scenes = network.graph, network.scenes
    calibration, verification, drawn = _pictures(jobs, recipe, graph, scenes)
    trust = {"allow_lambda": recipe.model.allow_lambda}
    entries = []
    finish = functools.partial(_finished, jobs, out, skip, verification)
    if network.original:
        original = network.original
        float32 = jobs.run(BY_NAME["convert"], trust, {"graph": original, "pictures": verification}, of="original")
        file = _File(f"{recipe.name}_{ORIGINAL}.tflite", "float32", "original")
        entries.append(finish(file, _lineage_of_original(recipe, network), original, float32, float32))
    # The precisions share one float32 file, which also carries the model's own outputs to verify against.
    float32 = jobs.run(BY_NAME["convert"], trust, {"graph": graph, "pictures": verification})
    for precision in recipe.precisions:
        tflite = float32
        if precision != "float32":
            inputs: dict[str, Source] = {"graph": graph, "float32": float32}
            inputs |= {"pictures": calibration} if precision == "int8" else {}
            tflite = jobs.run(BY_NAME["quantize"], {"precision": precision, **trust}, inputs, of=precision)
        file = _File(f"{recipe.name}_{precision}.tflite", precision, precision)
        entries.append(finish(file, _lineage(recipe, precision, skip), graph, tflite, float32))
    for entry in entries:
        entry["verified_on_drawn_pictures"] = drawn
        if "benchmark" not in skip:
            entry |= _benchmark(jobs, recipe, scenes, entry)
    return entries


@dataclasses.dataclass(frozen=True)
class _File:
    """A file that a build makes, and what its jobs are called."""

    name: str
    precision: str
    of: str


def _finished(
    jobs: _Jobs, out: Path, skip: frozenset[str], pictures: tuple[Path, ...], file: _File, lineage: Mapping[str, Any],
    graph: Result, tflite: Result, float32: Result,
) -> dict[str, Any]:  # fmt: skip
    """Verifies and packages one .tflite and puts it into the output folder; returns its entry of the report."""
    run = functools.partial(jobs.run, of=file.of)
    verified: Facts | None = None
    if "verify" not in skip:
        inputs: dict[str, Source] = {"graph": graph, "tflite": tflite, "reference": float32, "pictures": pictures}
        verified = run(BY_NAME["verify"], {"precision": file.precision}, inputs).facts
    settings: dict[str, Any] = {"file": file.name, "precision": file.precision, "lineage": lineage}
    settings["measured"] = {"verification": verified or "skipped"}
    packaged = run(BY_NAME["package"], settings, {"graph": graph, "tflite": tflite})
    _publish(packaged, file.name, out)
    found = {"path": file.name, "precision": file.precision, "bytes": packaged.facts["bytes"], "of": file.of}
    notes = dict.fromkeys((*tflite.facts["notes"], *float32.facts["notes"]))
    found |= {"verification": verified, "notes": list(notes)}
    if file.precision == "int8":
        found["calibration"] = tflite.facts["calibration"]
    return found


def _benchmark(jobs: _Jobs, recipe: Recipe, scenes: Result | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**recipe.benchmark.model_dump(mode="json", exclude={"data"}), "file": entry["path"]}
    inputs: dict[str, Source] = {"model": jobs.done[f"package {entry['of']}"]}
    if recipe.benchmark.data:
        inputs["data"] = recipe.benchmark.data
    elif scenes:
        inputs["scenes"] = scenes
    return _measured(jobs.run(BY_NAME["benchmark"], settings, inputs, of=entry["of"]).facts)


def _measured(facts: Facts) -> dict[str, Any]:
    found: dict[str, Any] = {"latency": facts["latency"]}
    if "accuracy" in facts:
        # Where the cache keeps the file is no part of the result.
        accuracy = {key: value for key, value in facts["accuracy"].items() if key != "model"}
        found |= {"map": accuracy["map"], "accuracy": accuracy}
    return found


def _pictures(
    jobs: _Jobs, recipe: Recipe, graph: Result, scenes: Result | None
) -> tuple[tuple[Path, ...], tuple[Path, ...], bool]:
    """Pictures to calibrate on, to verify on, and whether the latter were drawn for want of others."""
    from toolchain.quantize import evenly_spaced

    calibration = _calibration(recipe, scenes)
    if recipe.verify.pictures:
        verification = stages.pictures_in(recipe.verify.pictures)
    else:
        verification = calibration
    if verification:
        return calibration, tuple(evenly_spaced(verification, recipe.verify.count)), False
    settings = {"count": recipe.verify.count, "size": max(64, *graph.facts["input"])}
    result = jobs.run(BY_NAME["pictures"], settings, {})
    return calibration, tuple(result.file(name) for name in result.files), True


def _calibration(recipe: Recipe, scenes: Result | None) -> tuple[Path, ...]:
    """The pictures that the recipe names to calibrate on, or the drawn scenes' split train; () where it has neither."""
    from toolchain.quantize import evenly_spaced

    count = recipe.calibration.count if recipe.calibration else 64
    if recipe.calibration and recipe.calibration.pictures:
        return tuple(evenly_spaced(stages.pictures_in(recipe.calibration.pictures), count))
    if scenes is None:
        return ()
    paths = [scenes.file(name) for name in scenes.files if name.startswith(f"{stages.SCENES}/JPEGImages/train_")]
    return tuple(evenly_spaced(paths, count))


def _lineage(recipe: Recipe, precision: str, skip: frozenset[str]) -> dict[str, Any]:
    """Where a file came from: what shaped it, and nothing that did not, so that it keeps its bytes when a benchmark
    changes."""
    others = {"benchmark", "verify", "precisions"}
    done = [entry.name for entry in recipe.stages if entry.name not in skip]
    if precision != "int8" and not set(done) & set(COMPRESSING):
        others.add("calibration")
    return _described(recipe, others, done)


def _lineage_of_original(recipe: Recipe, network: _Network) -> dict[str, Any]:
    others = {"benchmark", "verify", "precisions", "calibration"}
    others |= set() if network.stages_of_original else {"stages", "data"}
    return _described(recipe, others, network.stages_of_original)


def _described(recipe: Recipe, others: set[str], done: Sequence[str]) -> dict[str, Any]:
    shaping = recipe.model_dump(mode="json", exclude=others)
    text = json.dumps(_file_names(shaping), sort_keys=True, separators=(",", ":"))
    return {
        "recipe": recipe.name,
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "inputs": {name: cache.digest(path) for name, path in model_files(recipe).items()},
        "seeds": _seeds(recipe),
        "stages": list(done),
    }


def _file_names(value: Any) -> Any:
    """Absolute paths cut to their last part: where the user's files lie is no part of what was built."""
    if isinstance(value, dict):
        return {key: _file_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_file_names(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


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


def _seeds(recipe: Recipe) -> dict[str, int]:
    found = {"model": recipe.model.seed} if recipe.model.built_in or recipe.model.yolov4 else {}
    if recipe.data:
        found["scenes"] = recipe.data.scenes.seed
    for entry in recipe.stages:
        found[entry.name] = entry.settings.seed
    return found


def _report(
    jobs: _Jobs, recipe_file: RecipeFile, out: Path, skip: frozenset[str], files: list[dict[str, Any]]
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
        if job.split()[0] in ("load", *COMPRESSING):
            entries[-1] |= {key: result.facts[key] for key in ("layers", "notes") if key in result.facts}
    settings = {
        "format": 1,
        "name": recipe_file.recipe.name,
        "recipe": {"file": recipe_file.path.name, "sha256": recipe_file.sha256},
        "slimdet": _version(),
        "seeds": _seeds(recipe_file.recipe),
        "skipped": sorted(skip),
        "files": files,
        "stages": entries,
    }
    told = [{**entry, "build": "ran" if jobs.done[entry["name"]].ran else "kept"} for entry in entries]
    samples = [
        result for job, result in jobs.done.items() if job.startswith("benchmark") and stages.SAMPLE in result.files
    ]
    inputs = {"sample": samples[-1]} if samples else {}
    result = jobs.run(BY_NAME["report"], settings, inputs, told={"stages": told, "machine": environment()})
    for name in (*REPORT_FILES, *([stages.SAMPLE] if samples else [])):
        _publish(result, name, out)
    content: dict[str, Any] = json.loads(result.file("report.json").read_bytes())
    return content


def _version() -> str:
    try:
        return metadata.version("slimdet")
    except metadata.PackageNotFoundError:
        return "not installed"


def _publish(result: Result, name: str, out: Path) -> None:
    """Makes OUT's file equal to the result's, in one step, if it is not already."""
    source, destination = result.file(name), out / name
    if not destination.is_file() or cache.file_digest(destination) != cache.file_digest(source):
        write_atomically(destination, source.read_bytes())


def _names(recipe: Recipe) -> list[str]:
    """All files that a build may put into its folder."""
    files = [f"{recipe.name}_{precision}.tflite" for precision in (*recipe.precisions, ORIGINAL)]
    return [*files, *REPORT_FILES, stages.SAMPLE]


def _refuse_to_overwrite(recipe: Recipe, out: Path) -> None:
    made = {(out / name).resolve() for name in _names(recipe)}
    for path in model_files(recipe).values():
        if path.resolve() in made:
            raise InputError(f"a build never overwrites what it reads: it would write {path}; choose another --out")


def _refuse_test_pictures(recipe: Recipe) -> None:
    """Refuses to calibrate on pictures that the mAP is measured on, under whatever name: equal bytes are the same
    picture."""
    if recipe.calibration is None or recipe.calibration.pictures is None or recipe.benchmark.data is None:
        return
    folder = recipe.benchmark.data / "JPEGImages"
    ids = read_split(recipe.benchmark.data, recipe.benchmark.split)
    by_size: dict[int, list[Path]] = {}
    for path in (folder / f"{name}{suffix}" for name in ids for suffix in SUFFIXES):
        if path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(path)
    digest = functools.cache(cache.file_digest)
    pictures = [path for path in stages.pictures_in(recipe.calibration.pictures) if path.is_file()]
    same = [
        (picture, path)
        for picture in pictures
        for path in by_size.get(picture.stat().st_size, ())
        if digest(path) == digest(picture)
    ]
    if same:
        raise InputError(
            f"int8 is never calibrated on test pictures: {len(same)} of the {len(pictures)} in "
            f"{recipe.calibration.pictures} are in the "
            f"split {recipe.benchmark.split!r}, the first {same[0][0].name}; name a folder of other pictures"
        )
