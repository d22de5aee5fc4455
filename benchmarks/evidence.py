"""Measures what README claims of real networks, through the commands that everyone has, and writes it down as a table.

    python -m benchmarks.evidence --data FOLDER --out DIR

FOLDER holds weights/ (darknet cfg, weights and names files), voc2007/test991 and voc2007/calibration200 in VOC layout.
DIR receives the .tflite files, evidence.json and evidence.md. Nothing is taken from an earlier run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.environment import environment
from deploy.command_line import debug_option, run, write_atomically, write_json
from deploy.errors import InputError

#: Per network: its names file, and mAP@0.5 in percent of the 991 pictures by OpenCV's own darknet reader with a plain
#: stretch resize, by the darknet protocol and by VOC's 11-point one. None where no figure by another engine is known.
NETWORKS: dict[str, tuple[str, float | None, float | None]] = {
    "voc-yolo-fastest-xl": ("voc.names", 69.49, 68.37),
    "MobileNetV2-YOLOv3-Nano-voc": ("voc.names", 63.79, 63.55),
    "voc-yolo-fastest": ("voc.names", 60.76, 60.75),
    "yolo-lite-voc-trial3-noBatch": ("voc.names", 32.73, 34.95),
    "yolov4-tiny": ("coco.names", None, None),
}
PRECISIONS = ("float32", "int8")


def slimdet(*arguments: str) -> None:
    """Runs a slimdet command in a process of its own. Raises InputError with its last words when it fails."""
    command = [sys.executable, "-m", "toolchain", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise InputError(f"slimdet {' '.join(arguments)} ended with {done.returncode}: {last}")


def script(module: str) -> dict[str, Any]:
    """Runs one of this package's measuring scripts and returns the JSON that it prints."""
    command = [sys.executable, "-m", module, "--json", "-"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def measure_network(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Converts one network to float32 and int8 and measures both."""
    names, darknet, voc07 = NETWORKS[name]
    weights, voc = data / "weights", data / "voc2007"
    model = [f"{weights / name}.cfg", f"{weights / name}.weights", "--names", str(weights / names)]
    slimdet("inspect", *model, "--json", str(out / f"{name}.inspect.json"))
    found: dict[str, Any] = {
        "reference": {"darknet": darknet, "voc07": voc07},
        "totals": json.loads((out / f"{name}.inspect.json").read_text())["totals"],
    }
    for precision in PRECISIONS:
        file = str(out / f"{name}_{precision}.tflite")
        calibration = ["--calibration", str(voc / "calibration200" / "JPEGImages")]
        slimdet("convert", *model, "--precision", precision, "--resize", "stretch", *calibration, "-o", file)
        found[precision] = {"bytes": Path(file).stat().st_size}
        for protocol in ("darknet", "voc07"):
            result = Path(f"{file}.{protocol}.json")
            test = ["--data", str(voc / "test991"), "--split", "test", "--protocol", protocol]
            slimdet("bench", "accuracy", file, *test, "--json", str(result))
            found[precision][protocol] = json.loads(result.read_text())
        result = Path(f"{file}.latency.json")
        slimdet("bench", "latency", file, "--json", str(result))
        found[precision]["latency"] = json.loads(result.read_text())
    return found


def import_seconds(repetitions: int = 7) -> float:
    """Median seconds that the device side's import takes in a fresh process."""
    code = "import time; start = time.perf_counter(); import deploy.detector; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repetitions)]
    return statistics.median(float(done.stdout) for done in runs)


def build_seconds(out: Path) -> dict[str, float]:
    """Seconds of the embedded example's first build and of the second, in which nothing has changed."""
    seconds = {}
    for which in ("first", "second"):
        start = time.perf_counter()
        slimdet("build", "shapes", "--out", str(out / "shapes"))
        seconds[which] = time.perf_counter() - start
    return seconds


def as_markdown(evidence: dict[str, Any]) -> str:
    """The evidence as tables for a reader."""
    machine = evidence["environment"]
    runs = [found[precision]["darknet"] for found in evidence["networks"].values() for precision in PRECISIONS]
    ratios = sorted(run["wall_ratio"] for run in runs)
    host = max(evidence["host_work"]["measurements"], key=lambda row: row["total_p50_ms"])
    metric, seconds = evidence["metric"], evidence["build_s"]
    measured = {
        "accuracy run on 991 pictures, wall time over the sum of decoding and invoking": (
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}"
        ),
        "host-side work per live frame at 416 (resize, quantize, decode, NMS), median": (
            f"{host['total_p50_ms']:.2f} ms in the slowest case, {host['precision']} with {host['classes']} classes"
        ),
        f"VOC metric alone, VOC-test size, {metric['detections']:,} detections": f"{metric['seconds']:.2f} s",
        "`import deploy.detector` in a fresh process, median": f"{evidence['import_s']:.2f} s",
        "first build of the embedded example": f"{seconds['first']:.0f} s",
        "second build, unchanged": f"{seconds['second']:.1f} s",
    }
    return "\n".join(
        [
            "# Evidence",
            "",
            f"Written by `python -m benchmarks.evidence` on {machine['cpu']}, {machine['usable_cores']} cores.",
            "",
            "mAP@0.5 in percent on 991 pictures of VOC2007 test (every fifth), darknet protocol, input stretched.",
            "int8: post-training quantization alone, 64 trainval pictures. *Reference*: OpenCV's own darknet reader",
            "on the same pictures. Latency: XNNPACK, one thread, p50 and p90 of the invoke alone, one file",
            "after the other.",
            "",
            "| network | parameters | reference | float32 | int8 | int8 less float32 | 11-point float32 (reference) "
            "| float32 ms | int8 ms | float32 MB | int8 MB |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(_network_row(name, found) for name, found in evidence["networks"].items()),
            "",
            "| what | measured |",
            "|---|---|",
            *(f"| {what} | {value} |" for what, value in measured.items()),
            "",
        ]
    )


def _network_row(name: str, found: dict[str, Any]) -> str:
    darknet, voc07 = (found["reference"][protocol] or "–" for protocol in ("darknet", "voc07"))
    float32, int8 = (100 * found[precision]["darknet"]["map"] for precision in PRECISIONS)
    times = [found[precision]["latency"] for precision in PRECISIONS]
    cells = [
        name,
        f"{found['totals']['parameters']:,}",
        darknet,
        f"{float32:.2f}",
        f"{int8:.2f}",
        f"{int8 - float32:+.2f}",
        f"{100 * found['float32']['voc07']['map']:.2f} ({voc07})",
        *(f"{time['p50_ms']:.1f} ({time['p90_ms']:.1f})" for time in times),
        *(f"{found[precision]['bytes'] / 1e6:.2f}" for precision in PRECISIONS),
    ]
    return f"| {' | '.join(map(str, cells))} |"


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder of real data."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for files and results."
)
@debug_option
def evidence(data: Path, out: Path) -> None:
    """Measure everything that README states, anew."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"environment": environment()}
    found["import_s"] = import_seconds()
    found["host_work"] = script("benchmarks.host_work")
    found["metric"] = script("benchmarks.metric_speed")
    click.echo("building the embedded default twice", err=True)
    found["build_s"] = build_seconds(out)
    found["networks"] = {}
    for name in NETWORKS:
        click.echo(f"measuring {name}", err=True)
        found["networks"][name] = measure_network(name, data, out)
    write_json(str(out / "evidence.json"), found)
    write_atomically(out / "evidence.md", as_markdown(found).encode())
    click.echo(as_markdown(found))


if __name__ == "__main__":
    run(evidence, "python -m benchmarks.evidence")
