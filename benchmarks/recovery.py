"""Measures what fine-tuning wins back after a compression, through the command that everyone has.

    python -m benchmarks.recovery --data FOLDER --out DIR [--only PART] [--epochs N]

PART: curve, long, objectives, tiny or tiny_objectives. FOLDER is laid out as benchmarks.evidence wants it. Trained on
trainval940 and calibration200, a tenth of them held out to choose the weights by; the 991 test pictures give the final
figures alone. DIR receives the builds, recovery.json and recovery.md. A build that is interrupted goes on where it was.
With a GPU some minutes, on two cores hours: --epochs takes less, and the tables say how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.alternate import alternate
from benchmarks.bootstrap import ratio_interval
from benchmarks.environment import environment
from benchmarks.evidence import slimdet
from deploy.command_line import debug_option, run, write_atomically, write_json

#: Shares of its FLOPs that are left to the network by each pruning, one after the other: half of them in the end. Every
#: one is followed by a recovery, the last by one that is four times as long.
STEPS = (0.8, 0.8, 0.78)
#: What yolov4-tiny loses: ranks that keep this share of the energy, then this share of the FLOPs is left.
ENERGY, LEFT = 0.95, 0.71
#: What is learned from, by the words of a recipe.
OBJECTIVES = {
    "teacher alone": "labels: false, distill: 1.0, features: [{features}]",
    "labels and teacher": "labels: true, distill: 1.0, features: [{features}]",
    "labels alone": "labels: true, distill: 0.0",
}
_LABELLED = "train: [{folder: voc2007/trainval940, split: trainval}, {folder: voc2007/calibration200}]"
_ALONE = "pictures: [voc2007/trainval940/JPEGImages, voc2007/calibration200/JPEGImages]"
_RECIPE = """name: {name}
model: {{cfg: weights/{net}.cfg, weights: weights/{net}.weights, names: weights/{names}}}
input: {{resize: stretch}}
data:
  {data}
stages:
{stages}
precisions: [float32]
calibration: {{pictures: voc2007/calibration200/JPEGImages, count: 64}}
benchmark: {{data: voc2007/test991, split: test, protocol: darknet, threads: 2, runs: 10}}
"""


def built(name: str, recipe: Mapping[str, str], stages: Sequence[str], data: Path, out: Path) -> dict[str, Any]:
    """The figures of a recipe. recipe: net, names and data of _RECIPE. name: of its folder, whose cache it begins with.
    """
    path = out / f"{name}.yaml"
    lines = "\n".join(f"  - {stage}" for stage in stages)
    path.write_text(_RECIPE.format(name=name, stages=lines, **recipe), encoding="utf-8")
    slimdet("build", str(path), "--out", str(out / name), "--from", str(data))
    report = _report(out / name)
    last = [entry for entry in report["stages"] if "training" in entry][-1]
    training = last["training"]
    return {
        "map_original": _map_of(report, "original"),
        "map": _map_of(report, "float32"),
        "flops": [report["stages"][0]["flops"], last["flops"]],
        "parameters": [stage["trainable"] + stage["non_trainable"] for stage in (report["stages"][0], last)],
        "training": {key: training[key] for key in ("steps", "best_epoch", "device", "precision", "seconds_per_step")},
        "epochs": training["settings"]["epochs"],
    }


def _report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_bytes())
    return content


def _map_of(report: Mapping[str, Any], which: str) -> float:
    (value,) = (file["map"] for file in report["files"] if file["of"] == which)
    return float(value)


_NANO = {"net": "MobileNetV2-YOLOv3-Nano-voc", "names": "voc.names", "data": _LABELLED}
#: What one block hands to the next keeps all its channels, and is compared with the original's.
_BETWEEN = "conv_2, conv_5, conv_12, conv_23, conv_38, conv_49"
_FEATURES = "shortcut_*, conv_12_bn, conv_23_bn, conv_38_bn, conv_49_bn"


def _nano_stages(steps: int, epochs: int, objective: str = "teacher alone") -> list[str]:
    stages = []
    for index, left in enumerate(STEPS[:steps]):
        last = index == len(STEPS) - 1
        words = OBJECTIVES[objective if last else "teacher alone"].format(features=_FEATURES)
        count = epochs if last else max(1, epochs // 4)
        stages.append(f"prune: {{flops: {left}, exclude: [{_BETWEEN}]}}")
        stages.append(f"finetune: {{epochs: {count}, {_GENTLY}, {words}}}")
    return stages


#: A network that finds most things already needs no pictures that are hard to make out.
_GENTLY = "learning_rate: 0.0006, ema: 0.98, mosaic: 0, scale: 0.3, shift: 0.05, color: 0.5"


def curve(data: Path, out: Path, epochs: int) -> list[dict[str, Any]]:
    """MobileNetV2-YOLOv3-Nano pruned step by step to half its FLOPs, and recovered after each by its own outputs."""
    found = []
    for steps in range(1, len(STEPS) + 1):
        click.echo(f"MobileNetV2-YOLOv3-Nano-voc, step {steps} of {len(STEPS)}", err=True)
        found.append(built("nano", _NANO, _nano_stages(steps, epochs), data, out))
    return found


#: What a longer training wants, to which the same pictures would come again and again.
_MIXED = _GENTLY.replace("mosaic: 0,", "mosaic: 0.5,")


def long(data: Path, out: Path, epochs: int) -> dict[str, Any]:
    """The curve's last network, recovered for three times as many epochs more, with mosaics."""
    stages = _nano_stages(len(STEPS), epochs)
    learned = OBJECTIVES["teacher alone"].format(features=_FEATURES)
    stages.append(f"finetune: {{epochs: {3 * epochs}, {_MIXED}, {learned}}}")
    click.echo("MobileNetV2-YOLOv3-Nano-voc at half the FLOPs, a longer training", err=True)
    return built("nano", _NANO, stages, data, out)


def objectives(data: Path, out: Path, epochs: int) -> dict[str, Any]:
    """The last step of the curve, recovered in three ways with equal steps, a quarter of the curve's."""
    found = {}
    for name in OBJECTIVES:
        click.echo(f"MobileNetV2-YOLOv3-Nano-voc at half the FLOPs, {name}", err=True)
        stages = _nano_stages(len(STEPS), epochs, name)
        stages[-1] = stages[-1].replace(f"epochs: {epochs}", f"epochs: {max(1, epochs // 4)}")
        found[name] = built("nano", _NANO, stages, data, out)
    return found


def _tiny_stages(epochs: int, last: str, objective: str = "teacher alone") -> list[str]:
    """last: how long, and on what pictures, the last training learns."""
    before, words = (OBJECTIVES[name].format(features="conv_*_bn") for name in ("teacher alone", objective))
    return [
        f"tucker: {{ranks: {{energy: {ENERGY}}}}}",
        f"finetune: {{epochs: {max(1, epochs // 4)}, batch: 8, {_GENTLY}, {before}}}",
        # Tucker's inner layers alone: all that the original has keeps its channels, and is compared with it.
        f"prune: {{flops: {LEFT}, include: [conv_*_tucker_0, conv_*_tucker_1]}}",
        f"finetune: {{batch: 8, {last}, {words}}}",
    ]


def tiny_objectives(data: Path, out: Path, epochs: int) -> dict[str, Any]:
    """The last step of `tiny`, recovered in three ways with equal steps, a quarter of its own; with labels of VOC's 20
    classes, which the others of the network's 80 never see."""
    recipe = {"net": "yolov4-tiny", "names": "coco.names", "data": _LABELLED}
    found = {}
    for name in OBJECTIVES:
        click.echo(f"yolov4-tiny at a third of the FLOPs, {name}", err=True)
        stages = _tiny_stages(epochs, f"epochs: {max(1, epochs // 4)}, {_GENTLY}", name)
        found[name] = built("tiny_objectives", recipe, stages, data, out)
    return found


def tiny(data: Path, out: Path, epochs: int) -> dict[str, Any]:
    """yolov4-tiny by Tucker and pruning to a third of its FLOPs, recovered from pictures without labels; the last
    training has mosaics."""
    recipe = {"net": "yolov4-tiny", "names": "coco.names", "data": _ALONE}
    click.echo("yolov4-tiny at a third of the FLOPs, without labels", err=True)
    found = built("tiny", recipe, _tiny_stages(epochs, f"epochs: {epochs}, {_MIXED}"), data, out)
    files = {of: out / "tiny" / f"tiny_{of}.tflite" for of in ("original_float32", "float32")}
    times = alternate(files, runs=30, min_secs=1.0, max_secs=120.0)
    ratio, low, high = ratio_interval(times["original_float32"], times["float32"])
    return {**found, "faster": ratio, "faster_low": low, "faster_high": high}


PARTS: dict[str, Callable[[Path, Path, int], Any]] = {
    "curve": curve,
    "long": long,
    "objectives": objectives,
    "tiny": tiny,
    "tiny_objectives": tiny_objectives,
}

_HEADER = (
    "| network | FLOPs | parameters | mAP of the original | recovered | steps, best epoch |",
    "|---|---|---|---|---|---|",
)


def as_markdown(found: Mapping[str, Any]) -> str:
    """The evidence as tables for a reader."""
    machine = found["environment"]
    lines = [
        "# What fine-tuning wins back after a compression",
        "",
        f"Written by `python -m benchmarks.recovery` on {machine['cpu']}, {machine['usable_cores']} cores. mAP@0.5 in",
        "percent on 991 pictures of VOC2007 test (every fifth), darknet protocol, input stretched. Trained on some 940",
        "other pictures (trainval940 and calibration200 less a tenth, by which the best epoch was chosen).",
    ]
    if "curve" in found:
        rows = [_row("MobileNetV2-YOLOv3-Nano", row) for row in found["curve"]]
        lines += ["", "## mAP against FLOPs, pruned and recovered step by step", "", *_HEADER, *rows]
    if "long" in found:
        row = _row("MobileNetV2-YOLOv3-Nano", found["long"])
        lines += ["", "## The last of them trained on, with mosaics", "", *_HEADER, row]
    for part, network in (("objectives", "MobileNetV2-YOLOv3-Nano"), ("tiny_objectives", "yolov4-tiny")):
        if part in found:
            rows = [_row(name, row) for name, row in found[part].items()]
            lines += ["", f"## {network}: what is learned from, at equal steps", "", *_HEADER, *rows]
    if "tiny" in found:
        row = found["tiny"]
        faster = f"{row['faster']:.2f} [{row['faster_low']:.2f}, {row['faster_high']:.2f}]"
        lines += ["", "## Tucker and pruning, recovered without labels", "", *_HEADER, _row("yolov4-tiny", row)]
        lines += ["", f"Through XNNPACK with one thread, in one alternating run, {faster} times faster."]
    return "\n".join([*lines, ""])


def _row(name: str, row: Mapping[str, Any]) -> str:
    before, after = row["flops"]
    weights_before, weights = row["parameters"]
    original, training = row["map_original"], row["training"]
    value = f"{100 * row['map']:.2f} ({100 * (row['map'] - original):+.2f})"
    return (
        f"| {name} | {after / 1e6:,.1f} M ({after / before:.2f}) | {weights:,} ({weights / weights_before:.2f})"
        f" | {100 * original:.2f} | {value} | {training['steps']}, {training['best_epoch']:.0f} of "
        f"{row['epochs']}, {training['device']} |"
    )


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder of real data."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for files and results."
)
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure this part alone. May be repeated.")
@click.option("--epochs", default=100, show_default=True, help="Of each training.")
@debug_option
def recovery(data: Path, out: Path, only: tuple[str, ...], epochs: int) -> None:
    """Measure what fine-tuning wins back, anew."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "recovery.json"
    found: dict[str, Any] = json.loads(kept.read_bytes()) if kept.is_file() and only else {}
    found["environment"] = environment()
    for name in only or PARTS:
        found[name] = PARTS[name](data, out, epochs)
        write_json(str(kept), found)
    write_atomically(out / "recovery.md", as_markdown(found).encode())
    click.echo(as_markdown(found))


if __name__ == "__main__":
    run(recovery, "python -m benchmarks.recovery")
