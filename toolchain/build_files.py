"""The second half of a build: a verified, measured .tflite of the network for each precision, and its lineage."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.command_line import write_atomically
from toolchain import cache, stages
from toolchain.build_network import Network, model_files, seeds_of
from toolchain.build_pictures import calibration, others
from toolchain.cache import Result, Source
from toolchain.calibration import lineage_of
from toolchain.decoded_file import client_file
from toolchain.jobs import Jobs
from toolchain.recipe import Recipe
from toolchain.recipe_stages import COMPRESSING
from toolchain.stage_work import Facts

#: How the file of the network before it was compressed is called, behind the recipe's name.
ORIGINAL = "original_float32"
#: So many of the calibration pictures show where a quantized file goes off.
_COMPARED = 8


def make_files(jobs: Jobs, recipe: Recipe, out: Path, skip: frozenset[str], network: Network) -> list[dict[str, Any]]:
    """Makes, verifies, packages and measures a file for each precision; returns the report's entries."""
    graph, scenes = network.graph, network.scenes
    calibrating, verification, drawn = _pictures(jobs, recipe, graph, scenes)
    trust = {"allow_lambda": recipe.model.allow_lambda}
    entries = []
    finish = functools.partial(_finished, jobs, out, skip, verification)
    if network.original:
        original = network.original
        float32 = jobs.run("convert", trust, {"graph": original, "pictures": verification}, of="original")
        file = _File(f"{recipe.name}_{ORIGINAL}.tflite", "float32", "original")
        entries.append(finish(file, _lineage_of_original(jobs, recipe, network), original, float32, float32))
    # The precisions share one float32 file, which also carries the model's own outputs to verify against.
    float32 = jobs.run("convert", trust, {"graph": graph, "pictures": verification})
    for precision in recipe.all_precisions:
        tflite = float32
        if precision != "float32":
            inputs: dict[str, Source] = {"graph": graph, "float32": float32}
            settings: dict[str, Any] = {"precision": precision, **trust}
            if precision.startswith("int8"):
                inputs["pictures"] = calibrating
                settings["int8"] = _int8(recipe, precision)
            if precision == "int8_mixed":
                inputs["validation"] = others(recipe, scenes, calibrating)
            tflite = jobs.run("quantize", settings, inputs, of=precision)
        file = _File(f"{recipe.name}_{precision}.tflite", precision, precision)
        entries.append(finish(file, _lineage(jobs, recipe, precision, network), graph, tflite, float32))
    for entry in entries:
        entry["verified_on_drawn_pictures"] = drawn
        if recipe.clients:
            entry["clients"] = [_for_client(jobs, out, entry, client) for client in recipe.clients]
        if "compare" not in skip and entry["precision"].startswith("int8"):
            entry["layers"] = _compared(jobs, graph, float32, calibrating, entry["of"])
        if "benchmark" not in skip:
            entry |= _benchmark(jobs, recipe, scenes, entry)
    return entries


def _int8(recipe: Recipe, precision: str) -> dict[str, Any]:
    """quantize.Int8 as plain JSON, with what the precision depends on."""
    from toolchain.quantize import Int8

    told = recipe.int8
    rule = recipe.calibration.ranges if recipe.calibration else Int8.ranges
    given = told.max_map_loss if precision == "int8_mixed" else None
    loss = Int8.max_map_loss if given is None else given
    return dataclasses.asdict(Int8(rule, told.equalize, told.float_io, loss))


@dataclasses.dataclass(frozen=True)
class _File:
    """A file that a build makes, and what its jobs are called."""

    name: str
    precision: str
    of: str


def _finished(
    jobs: Jobs, out: Path, skip: frozenset[str], pictures: tuple[Path, ...], file: _File, lineage: Mapping[str, Any],
    graph: Result, tflite: Result, float32: Result,
) -> dict[str, Any]:  # fmt: skip
    """Verifies and packages one .tflite and puts it into the output folder; returns its entry of the report."""
    run = functools.partial(jobs.run, of=file.of)
    verified: Facts | None = None
    if "verify" not in skip:
        inputs: dict[str, Source] = {"graph": graph, "tflite": tflite, "reference": float32, "pictures": pictures}
        verified = run("verify", {"precision": file.precision}, inputs).facts
    if file.precision.startswith("int8"):
        lineage = {**lineage, **lineage_of(tflite.facts["calibration"])}
    settings: dict[str, Any] = {"file": file.name, "precision": file.precision, "lineage": lineage}
    settings["measured"] = {"verification": verified or "skipped"}
    packaged = run("package", settings, {"graph": graph, "tflite": tflite})
    publish(packaged, file.name, out)
    found = {"path": file.name, "precision": file.precision, "bytes": packaged.facts["bytes"], "of": file.of}
    notes = dict.fromkeys((*tflite.facts["notes"], *float32.facts["notes"]))
    found |= {"verification": verified, "notes": list(notes)}
    if file.precision.startswith("int8"):
        found["calibration"] = tflite.facts["calibration"]
    return found


def _compared(jobs: Jobs, graph: Result, float32: Result, pictures: tuple[Path, ...], of: str) -> Facts:
    from toolchain.quantize import evenly_spaced

    looked = tuple(evenly_spaced(pictures, _COMPARED))
    quantized = jobs.done[f"quantize {of}"]
    settings = {"scaled": bool(quantized.facts["calibration"]["scaled_convolutions"])}
    inputs: dict[str, Source] = {"graph": graph, "tflite": quantized, "float32": float32}
    return jobs.run("compare", settings, inputs | {"pictures": looked}, of=of).facts


def _for_client(jobs: Jobs, out: Path, entry: Mapping[str, Any], client: str) -> dict[str, Any]:
    """Makes of a packaged file one that another program opens; returns its entry of the report."""
    name = client_file(entry["path"], client)
    settings = {"file": name, "source": entry["path"], "client": client}
    packaged = jobs.done[f"package {entry['of']}"]
    result = jobs.run("decode", settings, {"packaged": packaged}, of=f"{client} {entry['of']}")
    publish(result, name, out)
    return {"path": name, "for": client, "bytes": result.facts["bytes"], "notes": result.facts["notes"]}


def _benchmark(jobs: Jobs, recipe: Recipe, scenes: Result | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**recipe.benchmark.model_dump(mode="json", exclude={"data"}), "file": entry["path"]}
    inputs: dict[str, Source] = {"model": jobs.done[f"package {entry['of']}"]}
    if recipe.benchmark.data:
        inputs["data"] = recipe.benchmark.data
    elif scenes:
        inputs["scenes"] = scenes
    return _measured(jobs.run("benchmark", settings, inputs, of=entry["of"]).facts)


def _measured(facts: Facts) -> dict[str, Any]:
    found: dict[str, Any] = {"latency": facts["latency"]}
    if "accuracy" in facts:
        # Where the cache keeps the file is no part of the result.
        accuracy = {key: value for key, value in facts["accuracy"].items() if key != "model"}
        found |= {"map": accuracy["map"], "accuracy": accuracy}
    return found


def _pictures(
    jobs: Jobs, recipe: Recipe, graph: Result, scenes: Result | None
) -> tuple[tuple[Path, ...], tuple[Path, ...], bool]:
    """Pictures to calibrate on, to verify on, and whether the latter were drawn for want of others."""
    from toolchain.quantize import evenly_spaced

    calibrating = calibration(recipe, scenes)
    if recipe.verify.pictures:
        verification = stages.pictures_in(recipe.verify.pictures)
    else:
        verification = calibrating
    if verification:
        return calibrating, tuple(evenly_spaced(verification, recipe.verify.count)), False
    settings = {"count": recipe.verify.count, "size": max(64, *graph.facts["input"])}
    result = jobs.run("pictures", settings, {})
    return calibrating, tuple(result.file(name) for name in result.files), True


def _lineage(jobs: Jobs, recipe: Recipe, precision: str, network: Network) -> dict[str, Any]:
    """Where a file came from: what shaped it, and nothing that did not, so that it keeps its bytes when a benchmark
    changes."""
    others = {"benchmark", "verify", "precisions", "package"}
    if not precision.startswith("int8"):
        others.add("int8")
    if not precision.startswith("int8") and not {job.split()[0] for job in network.stages} & set(COMPRESSING):
        others.add("calibration")
    return _described(jobs, recipe, others, network.stages)


def _lineage_of_original(jobs: Jobs, recipe: Recipe, network: Network) -> dict[str, Any]:
    others = {"benchmark", "verify", "precisions", "calibration", "package"}
    others |= set() if network.stages_of_original else {"stages", "data"}
    return _described(jobs, recipe, others, network.stages_of_original)


def _described(jobs: Jobs, recipe: Recipe, others: set[str], done: Sequence[str]) -> dict[str, Any]:
    shaping = recipe.model_dump(mode="json", exclude=others)
    text = json.dumps(_file_names(shaping), sort_keys=True, separators=(",", ":"))
    lineage = {
        "recipe": recipe.name,
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "inputs": {name: cache.digest(path) for name, path in model_files(recipe).items()},
        "seeds": seeds_of(recipe, done),
        "stages": [job.split()[0] for job in done],
    }
    ended = {job: why for job in done if (why := jobs.done[job].facts.get("training", {}).get("ended"))}
    return lineage | ({"ended_early": ended} if ended else {})


def _file_names(value: Any) -> Any:
    """Absolute paths cut to their last part: where the user's files lie is no part of what was built."""
    if isinstance(value, dict):
        return {key: _file_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_file_names(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def publish(result: Result, name: str, out: Path) -> None:
    """Makes OUT's file equal to the result's, in one step, if it is not already."""
    source, destination = result.file(name), out / name
    if not destination.is_file() or cache.file_digest(destination) != cache.file_digest(source):
        write_atomically(destination, source.read_bytes())
