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

#: Per network: its names file, and mAP@0.5 of the 991 pictures by OpenCV's own darknet reader, plain stretch resize: the
#: darknet protocol and VOC's 11-point one. None where no figure by another engine is known.
NETWORKS: dict[str, tuple[str, float | None, float | None]] = {
    "voc-yolo-fastest-xl": ("voc.names", 69.49, 68.37),
    "MobileNetV2-YOLOv3-Nano-voc": ("voc.names", 63.79, 63.55),
    "voc-yolo-fastest": ("voc.names", 60.76, 60.75),
    "yolo-lite-voc-trial3-noBatch": ("voc.names", 32.73, 34.95),
    "yolov4-tiny": ("coco.names", None, None),
}


def slimdet(*arguments: str) -> None:
    """Runs a slimdet command in a process of its own. Raises InputError with its last line when it fails."""
    done = subprocess.run([sys.executable, "-m", "toolchain", *arguments], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise InputError(f"slimdet {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")


def script(module: str, *arguments: str) -> dict[str, Any]:
    """Runs one of this package's measuring scripts and returns the JSON that it prints."""
    done = subprocess.run([sys.executable, "-m", module, *arguments, "--json", "-"], stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def measure_network(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Converts one network to float32 and int8 and measures both: mAP in 0..1, latency in milliseconds."""
    names, darknet, voc07 = NETWORKS[name]
    weights = data / "weights"
    files = [str(weights / f"{name}.cfg"), str(weights / f"{name}.weights")]
    inspected = out / f"{name}.inspect.json"
    slimdet("inspect", *files, "--names", str(weights / names), "--json", str(inspected))
    found: dict[str, Any] = {"reference": {"darknet": darknet, "voc07": voc07}, "inspect": json.loads(inspected.read_text())["totals"]}
    for precision in ("float32", "int8"):
        model = out / f"{name}_{precision}.tflite"
        calibration = ["--calibration", str(data / "voc2007" / "calibration200" / "JPEGImages")]
        slimdet("convert", *files, "--names", str(weights / names), "--precision", precision, "--resize", "stretch", *calibration,
                "-o", str(model))  # fmt: skip
        found[precision] = {"bytes": model.stat().st_size}
        for protocol in ("darknet", "voc07"):
            result = out / f"{name}_{precision}.{protocol}.json"
            slimdet("bench", "accuracy", str(model), "--data", str(data / "voc2007" / "test991"), "--split", "test",
                    "--protocol", protocol, "--json", str(result))  # fmt: skip
            found[precision][protocol] = json.loads(result.read_text())
        result = out / f"{name}_{precision}.latency.json"
        slimdet("bench", "latency", str(model), "--json", str(result))
        found[precision]["latency"] = json.loads(result.read_text())
    return found


def import_seconds(repetitions: int = 7) -> float:
    """Median seconds that `import deploy.detector` takes in a fresh process."""
    code = "import time; start = time.perf_counter(); import deploy.detector; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repetitions)]
    return statistics.median(float(done.stdout) for done in runs)


def build_seconds(out: Path) -> dict[str, float]:
    """Seconds of the embedded default's first build and of the second, in which nothing has changed."""
    seconds = {}
    for which in ("first", "second"):
        start = time.perf_counter()
        slimdet("build", "shapes", "--out", str(out / "shapes"))
        seconds[which] = time.perf_counter() - start
    return seconds


def as_markdown(evidence: dict[str, Any]) -> str:
    """The evidence as tables for a reader."""
    machine = evidence["environment"]
    lines = [
        "# Evidence",
        "",
        f"Written by `python -m benchmarks.evidence`, on {machine['cpu']}, {machine['cores']} cores. Percentages are mAP@0.5 of 991",
        "VOC2007 test pictures (every fifth), input stretched; int8 is calibrated on 64 trainval pictures with plain settings.",
        "*Reference* is another engine's figure (OpenCV's darknet reader) on the same pictures. Latency: XNNPACK, one thread.",
        "",
        "| network | parameters | reference | float32 | int8 | int8 − float32 | float32, VOC 11-point (reference) | float32 p50 ms | int8 p50 ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in evidence["networks"].items():
        float32, int8 = (100 * found[precision]["darknet"]["map"] for precision in ("float32", "int8"))
        voc07 = 100 * found["float32"]["voc07"]["map"]
        reference, reference07 = (found["reference"][protocol] or "–" for protocol in ("darknet", "voc07"))
        parameters = found["inspect"]["trainable"] + found["inspect"]["non_trainable"]
        times = [found[precision]["latency"]["p50_ms"] for precision in ("float32", "int8")]
        lines.append(
            f"| {name} | {parameters:,} | {reference} | {float32:.2f} | {int8:.2f} | {int8 - float32:+.2f} | {voc07:.2f} ({reference07}) "
            f"| {times[0]:.2f} | {times[1]:.2f} |"
        )
    runs = [found["float32"]["darknet"] for found in evidence["networks"].values()]
    ratios = [run["wall_s"] / (run["decode_s"] + run["invoke_s"]) for run in runs]
    host = {name: case["p50_ms"] for name, case in evidence["host_work"]["cases"].items()}
    lines += [
        "",
        "| what | measured |",
        "|---|---|",
        f"| accuracy run on 991 pictures, wall time over the sum of decoding and invoking | {min(ratios):.2f} to {max(ratios):.2f} |",
        f"| host-side work per live frame at 416, median of the slowest case | {max(host.values()):.3f} ms ({max(host, key=lambda n: host[n])}) |",
        f"| VOC metric alone, VOC-test size ({evidence['metric']['detections']:,} detections) | {evidence['metric']['seconds']:.3f} s |",
        f"| `import deploy.detector` in a fresh process, median | {evidence['import_s']:.3f} s |",
        f"| first build of the embedded default | {evidence['build_s']['first']:.1f} s |",
        f"| second build, unchanged | {evidence['build_s']['second']:.2f} s |",
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder of real data.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for files and results.")
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
