"""Measures every rung of precision on real networks: size, mAP and time, through the commands that everyone has.

    python -m benchmarks.ladder --data FOLDER --out DIR [--only NETWORK]

FOLDER is laid out as benchmarks.evidence wants it. Calibrated on 64 pictures of calibration200, int8_mixed measured on
500 of its others and of trainval940; the 991 test pictures give the final figures alone. *TFLiteConverter* is its own
int8 quantizer on the same float graph and pictures (python -m toolchain.plain_int8). DIR receives the builds,
ladder.json and ladder.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.alternate import alternate
from benchmarks.bootstrap import ratio_interval
from benchmarks.environment import environment
from benchmarks.evidence import slimdet
from deploy.command_line import debug_option, run, write_atomically, write_json
from deploy.contract import PRECISIONS

#: Per network its names file.
NETWORKS = {
    "voc-yolo-fastest-xl": "voc.names",
    "MobileNetV2-YOLOv3-Nano-voc": "voc.names",
    "voc-yolo-fastest": "voc.names",
    "yolov4-tiny": "coco.names",
}
PLAIN = "TFLiteConverter"
#: Of mAP, for int8_mixed.
ALLOWED = 0.005
_RECIPE = """name: {name}
model: {{cfg: weights/{name}.cfg, weights: weights/{name}.weights, names: weights/{names}}}
input: {{resize: stretch}}
precisions: [{precisions}]
int8: {{max_map_loss: {allowed}}}
calibration: {{pictures: voc2007/calibration200/JPEGImages, count: 64}}
data: {{pictures: [voc2007/trainval940/JPEGImages]}}
benchmark: {{data: voc2007/test991, split: test, protocol: darknet, runs: 10, min_secs: 0.1}}
"""


def measure(name: str, data: Path, out: Path) -> dict[str, Any]:
    """All rungs of one network."""
    recipe = out / f"{name}.yaml"
    listed = ", ".join(PRECISIONS)
    recipe.write_text(
        _RECIPE.format(name=name, names=NETWORKS[name], precisions=listed, allowed=ALLOWED), encoding="utf-8"
    )
    slimdet("build", str(recipe), "--out", str(out / name), "--from", str(data))
    report = json.loads((out / name / "report.json").read_bytes())
    rungs = {
        file["precision"]: {
            "bytes": file["bytes"],
            "map": file["map"],
            "notes": [note for note in file["notes"] if "stay float" in note],
            "decibels": min(output["decibels"] for output in file["verification"]["outputs"]),
        }
        for file in report["files"]
    }
    files = {precision: out / name / f"{name}_{precision}.tflite" for precision in rungs}
    files[PLAIN] = out / f"{name}_{PLAIN}.tflite"
    rungs[PLAIN] = _plain(name, data, files[PLAIN])
    times = alternate(files, runs=30, min_secs=2.0, max_secs=240.0)
    for rung, own in times.items():
        rungs[rung]["ms"] = sorted(own)[len(own) // 2] / 1e6
        rungs[rung]["faster"] = ratio_interval(times["float32"], own)
    return rungs


def _plain(name: str, data: Path, file: Path) -> dict[str, Any]:
    weights, voc = data / "weights", data / "voc2007"
    model = [str(weights / f"{name}.cfg"), str(weights / f"{name}.weights"), str(weights / NETWORKS[name])]
    calibration = ["--calibration", str(voc / "calibration200" / "JPEGImages")]
    subprocess.run([sys.executable, "-m", "toolchain.plain_int8", *model, *calibration, "-o", str(file)], check=True)
    result = Path(f"{file}.json")
    test = ["--data", str(voc / "test991"), "--split", "test", "--protocol", "darknet"]
    slimdet("bench", "accuracy", str(file), *test, "--json", str(result))
    return {"bytes": file.stat().st_size, "map": json.loads(result.read_bytes())["map"], "notes": []}


def as_markdown(found: Mapping[str, Any]) -> str:
    """The figures as tables for a reader."""
    machine = found["environment"]
    lines = [
        "# The ladder of precisions",
        "",
        f"Written by `python -m benchmarks.ladder` on {machine['cpu']}, {machine['usable_cores']} cores.",
        "",
        "mAP@0.5 in percent on 991 pictures of VOC2007 test (every fifth), darknet protocol, input stretched. No",
        "training; 64 trainval pictures fix the int8 ranges, 500 others say what int8_mixed loses (0.5 allowed).",
        "Times: XNNPACK, one thread, all files of a network in one alternating run; faster than float32 by the",
        "median of the rounds' ratios with its 95 % interval. *TFLiteConverter*: its own int8 on the same float graph",
        "and pictures.",
    ]
    for name, rungs in found["networks"].items():
        lines += ["", f"## {name}", "", "| file | MB | mAP | ms | times faster |", "|---|---|---|---|---|"]
        lines += [_row(rung, own, rungs["float32"]["map"]) for rung, own in rungs.items()]
        lines += ["", *(f"- {rung}: {note}." for rung, own in rungs.items() for note in own["notes"][:1])]
    return "\n".join([*lines, ""])


def _row(rung: str, own: Mapping[str, Any], float32: float) -> str:
    ratio, low, high = own["faster"]
    lost = f" ({100 * (own['map'] - float32):+.2f})" if rung != "float32" else ""
    return (
        f"| {rung} | {own['bytes'] / 1e6:.2f} | {100 * own['map']:.2f}{lost} | {own['ms']:.1f}"
        f" | {ratio:.2f} [{low:.2f}, {high:.2f}] |"
    )


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder of real data."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for files and results."
)
@click.option("--only", type=click.Choice(list(NETWORKS)), multiple=True, help="This network alone. May be repeated.")
@debug_option
def ladder(data: Path, out: Path, only: Sequence[str]) -> None:
    """Measure size, mAP and time of every precision, anew."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "ladder.json"
    found: dict[str, Any] = json.loads(kept.read_bytes()) if kept.is_file() and only else {"networks": {}}
    found["environment"] = environment()
    for name in only or NETWORKS:
        click.echo(f"measuring {name}", err=True)
        found["networks"][name] = measure(name, data, out)
        write_json(str(kept), found)
    write_atomically(out / "ladder.md", as_markdown(found).encode())
    click.echo(as_markdown(found))


if __name__ == "__main__":
    run(ladder, "python -m benchmarks.ladder")
