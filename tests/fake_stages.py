"""Stand-ins for a build's stages: as fast as writing a line, each with a log of its runs, so that the build itself is
seen.

As a program, `python -m fake_stages RECIPE OUT [STOP]`, it builds with them, and stays in the stage STOP until it is
killed.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from toolchain import build, jobs, stages
from toolchain.jobs import Stage
from toolchain.recipe import read_recipe
from toolchain.stage_work import GRAPH, KEPT, SCENES, Facts, Work

#: Where each run is noted, a line "stage" each; a stage named by STOP_IN writes half of its file and waits for ever.
LOG, STOP_IN = "SLIMDET_TEST_LOG", "SLIMDET_TEST_STOP_IN"

COUNTS = {"trainable": 90, "non_trainable": 10, "flops": 2_000_000, "flops_unknown": []}


def _write(work: Work, stage: str, name: str, content: str) -> None:
    """Writes a file whose content follows from settings and inputs alone."""
    with open(os.environ[LOG], "a") as log:
        log.write(f"{stage}\n")
    (work.out / name).parent.mkdir(parents=True, exist_ok=True)
    if os.environ.get(STOP_IN) == stage:
        (work.out / name).write_text(content[: len(content) // 2])
        print("stopped", flush=True)
        time.sleep(600)
    (work.out / name).write_text(content)


def load(work: Work) -> Facts:
    content = "".join(work.path(name).read_text() for name in sorted(work.inputs))
    _write(work, "load", GRAPH, json.dumps([content, work.settings["resize"]]))
    return {**COUNTS, "model": "fake", "input": [64, 64], "classes": 2}


def scenes(work: Work) -> Facts:
    _write(work, "scenes", f"{SCENES}/ImageSets/Main/test.txt", "test_0\n")
    for index in range(work.settings["splits"]["train"]):
        (work.out / SCENES / "JPEGImages").mkdir(exist_ok=True)
        (work.out / SCENES / "JPEGImages" / f"train_{index}.jpg").write_text(f"{work.settings['seed']} {index}")
    return {}


def _trained(work: Work, stage: str) -> Facts:
    """Each of two epochs is written down; a training that is named by STOP_IN stays in its second."""
    assert work.checkpoint is not None
    reached = work.checkpoint.folder / "reached"
    before = int(reached.read_text()) if reached.exists() else 0
    last = before if work.checkpoint.end else 2
    for epoch in range(before, last):
        if epoch == 1 and os.environ.get(STOP_IN) == stage:
            _write(work, stage, GRAPH, "half")
        work.checkpoint.folder.mkdir(exist_ok=True)
        reached.write_text(str(epoch + 1))
    learned = " from a teacher" * ("teacher" in work.inputs) + " from labels" * work.settings.get("labels", True)
    learned += " " + " ".join(sorted(work.inputs)) + f" {json.dumps(work.settings.get('data'))}"
    graph = work.file("graph", GRAPH).read_text()
    _write(work, stage, GRAPH, f"{graph} trained {work.settings['epochs']}{learned}, epochs {before} to {last};")
    history = [{"epoch": epoch + 1, "epochs": 2, "loss": 4.0 - epoch, "map": 0.5 + 0.25 * epoch, "val_loss": 3.0}
               for epoch in range(last)]  # fmt: skip
    told = {"history": history, "pictures": 9, "validation_pictures": 1, "steps": 4, "best_epoch": last,
            "watched": "map", "device": "a CPU", "precision": "float32", "seconds_per_step": 0.25, "left_out": [],
            "ended": f"after epoch {last} of 2, as asked" if last < 2 else ""}  # fmt: skip
    told["settings"] = {"epochs": 2, "labels": True, "distill": 0.0}
    return {**COUNTS, "flops": 1_000_000, "training": told}


def train(work: Work) -> Facts:
    return _trained(work, "train")


def finetune(work: Work) -> Facts:
    return _trained(work, "finetune")


def batch_norm(work: Work) -> Facts:
    graph = work.file("graph", GRAPH).read_text()
    _write(work, "batch_norm", GRAPH, f"{graph} measured anew {' '.join(sorted(work.inputs))};")
    return {**COUNTS, "flops": 500_000, "notes": [f"{len(work.paths('pictures'))} pictures"]}


def _compressed(work: Work, stage: str) -> Facts:
    graph = work.file("graph", GRAPH).read_text()
    looked = " ".join(path.read_text() for path in work.paths("pictures"))
    _write(work, stage, GRAPH, f"{graph} {stage} {json.dumps(work.settings, sort_keys=True)} {looked}")
    whole = {"op": "Conv2D", "kernel": [3, 3, 8, 8], "parameters": [576, 100], "flops": [5760, 1000], "error": 0.25}
    layer = {"name": "conv_1", "reason": "", "ranks": [2, 3], "channels": None, "milliseconds": [2.0, 1.0]}
    left = {"name": "conv_2", "reason": "left out by the scope", "ranks": None, "channels": None, "milliseconds": None}
    layers = [{**whole, **layer}, {**whole, **left, "parameters": [576, 576]}]
    return {**COUNTS, "trainable": 40, "flops": 500_000, "input": [64, 64], "layers": layers, "notes": [],
            "error": f"that of {stage}"}  # fmt: skip


def tucker(work: Work) -> Facts:
    return _compressed(work, "tucker")


def prune(work: Work) -> Facts:
    (work.out / KEPT).write_text("kept")
    return _compressed(work, "prune")


def pictures(work: Work) -> Facts:
    _write(work, "pictures", "0000.png", "drawn")
    return {}


def convert(work: Work) -> Facts:
    _write(work, "convert", stages.TFLITE, "float32 " + work.file("graph", GRAPH).read_text())
    (work.out / stages.REFERENCE).write_text("reference")
    return {"notes": ["split by role"]}


def quantize(work: Work) -> Facts:
    calibrated = " ".join(path.read_text() for path in work.paths("pictures"))
    content = f"{work.settings['precision']} {work.file('float32', stages.TFLITE).read_text()} {calibrated}"
    if "validation" in work.inputs:
        looked = " ".join(path.read_text() for path in work.paths("validation"))
        content += f" measured on {looked} {json.dumps(work.settings['int8'], sort_keys=True)}"
    _write(work, "quantize", stages.TFLITE, content)
    calibration = {"used": len(work.paths("pictures")), "skipped": [], "rule": "mean", "scaled_convolutions": 0}
    return {"notes": [], "calibration": calibration}


def verify(work: Work) -> Facts:
    _write(work, "verify", "evidence", "")
    output = {"output": "xy_32", "layer": "conv", "measured": 1.0, "bound": 4.0, "unit": "float epsilons"}
    return {"precision": work.settings["precision"], "pictures": 1, "outputs": [output]}


def package(work: Work) -> Facts:
    text = work.file("tflite", stages.TFLITE).read_text() + json.dumps(work.settings["lineage"], sort_keys=True)
    _write(work, "package", work.settings["file"], text)
    return {"bytes": len(text)}


def compare(work: Work) -> Facts:
    text = f"{work.file('tflite', stages.TFLITE).read_text()} {work.file('float32', stages.TFLITE).read_text()}"
    _write(work, "compare", "compared", text)
    layer = {"name": "conv_1_1/Relu;conv_1_1/convolution", "op": "CONV_2D", "dtype": "int8", "decibels": 20.0,
             "added": 0.01, "range": [0.0, 1.0], "holds": [0.0, 2.0], "clipped": 0.0, "used": 0.5}  # fmt: skip
    return {"pictures": len(work.paths("pictures")), "layers": [layer], "warnings": [], "notes": [], "skipped": [],
            "not_compared": []}  # fmt: skip


def decode(work: Work) -> Facts:
    text = work.settings["client"] + work.file("packaged", work.settings["source"]).read_text()
    _write(work, "decode", work.settings["file"], text)
    return {"bytes": len(text), "notes": [f"for {work.settings['client']}"]}


def benchmark(work: Work) -> Facts:
    _write(work, "benchmark", "measured", "")
    is_int8 = "int8" in work.settings["file"]
    latency = {"p50_ms": 2.0 if is_int8 else 8.0, "p90_ms": 2.5 if is_int8 else 10.0, "warnings": []}
    facts = {"latency": latency}
    if "data" in work.inputs or "scenes" in work.inputs:
        (work.out / stages.SAMPLE).write_bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
        score = 0.86 if is_int8 else 0.9
        accuracy = {"map": score, "per_class": {"cat": score}, "protocol": "voc", "images": 3, "model": "x"}
        facts["accuracy"] = accuracy
    return facts


FAKES = {
    function.__name__: function
    for function in (
        load, scenes, train, finetune, batch_norm, tucker, prune, pictures, convert, quantize, verify, package,
        compare, decode, benchmark,
    )
}  # fmt: skip


def fake_table() -> dict[str, Stage]:
    """The real table with these functions; the report is the real one."""
    return {stage.name: dataclasses.replace(stage, run=FAKES.get(stage.name, stage.run)) for stage in build.STAGES}


def fake_code_version(function: Callable[[Work], Facts]) -> tuple[str, dict[str, str]]:
    """As if no code ever changed."""
    return function.__name__, {"numpy": "2"}


def runs() -> list[str]:
    """Names of the stages that ran since the last call."""
    log = Path(os.environ[LOG])
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def main() -> None:
    build.BY_NAME.update(fake_table())
    jobs.code_version = fake_code_version
    build.build(read_recipe(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
