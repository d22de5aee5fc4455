"""Measures what README claims of Tucker decomposition and pruning, through the commands that everyone has.

    python -m benchmarks.compression --data FOLDER --out DIR [--only reference|tucker|pruning|flops]

FOLDER is laid out as benchmarks.evidence wants it. DIR receives the builds, compression.json and compression.md; a part
that is there already is measured anew, the others are kept. Nothing is trained: every figure is of the network right
after the compression.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.alternate import alternate
from benchmarks.bootstrap import ratio_interval
from benchmarks.environment import environment
from benchmarks.evidence import slimdet
from deploy.command_line import debug_option, run, write_atomically, write_json
from deploy.errors import InputError

#: Published: parameters and MFLOPs after each form, and how many times faster it was.
PUBLISHED = {
    "reference_compressed_1": (10.59e6, 11459.69, 2.24),
    "reference_compressed_2": (10.71e6, 14442.96, 2.22),
}
#: v of the published ranks, as shares of the input and output channels: trained weights that are not public any more.
FRACTIONS = "{vbmf: 0.2, v: [0.05547, 0.02969]}"
#: Beside the published forms, the second on multiples of the widest kernels' tiles, timed with them.
WIDE = ("reference_compressed_2", 32)
#: Of yolov4-tiny the deep layers, which have nine tenths of all parameters of its dense convolutions.
DEEP = "conv_26 ~ conv_35"
#: Share of the squared norm of the layers' outputs that the ranks keep.
ENERGIES = (0.99, 0.985, 0.95)
#: Networks that are pruned, and by how much, with their names file.
PRUNED = {
    "yolov4-tiny": ("coco.names", (0.05, 0.1)),
    "MobileNetV2-YOLOv3-Nano-voc": ("voc.names", (0.05, 0.1)),
    "voc-yolo-fastest-xl": ("voc.names", (0.1,)),
    "yolo-lite-voc-trial3-noBatch": ("voc.names", (0.1,)),
}
#: Shares of their FLOPs that are left to networks, with their names file.
LEFT = {
    "yolov4-tiny": ("coco.names", (0.9, 0.8)),
    "MobileNetV2-YOLOv3-Nano-voc": ("voc.names", (0.9, 0.8, 0.5)),
    "voc-yolo-fastest-xl": ("voc.names", (0.9, 0.8)),
    "yolo-lite-voc-trial3-noBatch": ("voc.names", (0.9, 0.8)),
}
_RECIPE = """name: {name}
model: {{cfg: weights/{net}.cfg, weights: weights/{net}.weights, names: weights/{names}}}
input: {{resize: stretch}}
stages:
  - {stage}
precisions: [float32]
calibration: {{pictures: voc2007/calibration200/JPEGImages, count: 200}}
benchmark: {{data: voc2007/test991, split: test, protocol: darknet, threads: 2, runs: 10}}
"""


def build(recipe: Path | str, out: Path, folder: Path | None = None) -> dict[str, Any]:
    """Builds a recipe and returns the content of its report."""
    slimdet("build", str(recipe), "--out", str(out), *(["--from", str(folder)] if folder else []))
    content: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    return content


def measured_build(recipe: Path | str, out: Path) -> dict[str, float]:
    """Builds up to the packaged files, without what only measures; seconds and greatest memory in MB of all its
    processes together."""
    command = [sys.executable, "-m", "toolchain", "build", str(recipe), "--out", str(out), "--skip", "benchmark"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = [0.0]
    watch = threading.Thread(target=_watch_memory, args=(process, peak), daemon=True)
    watch.start()
    _, noise = process.communicate()
    watch.join()
    if process.returncode:
        raise InputError(f"slimdet build {recipe} ended with {process.returncode}: {noise.decode()[-500:]}")
    return {"seconds": time.perf_counter() - start, "peak_memory_mb": peak[0]}


def _watch_memory(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], _tree_memory_mb(process.pid))
        time.sleep(0.1)


def _tree_memory_mb(pid: int) -> float:
    """Resident memory, shared pages counted once for each process, of a process and all that it has started, in MB."""
    total = 0.0
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += _tree_memory_mb(int(child))
    except (OSError, IndexError):
        pass  # it has ended meanwhile
    return total


def reference(data: Path, out: Path) -> dict[str, Any]:
    """The published recipe, both forms, from seeded random weights, and how much faster they are."""
    found: dict[str, Any] = {}
    carried = Path(__file__).parents[1] / "toolchain" / "recipes"
    for name in PUBLISHED:
        text = (carried / f"{name}.yaml").read_text(encoding="utf-8")
        recipe = out / f"{name}.yaml"
        recipe.write_text(text.replace("{vbmf: 0.2}\n", f"{FRACTIONS}\n"), encoding="utf-8")
        click.echo(f"building {name}", err=True)
        found[name] = measured_build(recipe, out / name)
        report = json.loads((out / name / "report.json").read_bytes())
        last = report["stages"][-1]
        found[name] |= {key: last[key] for key in ("trainable", "non_trainable", "flops")}
    found["tucker_35"] = _all_head_convolutions(out, text)
    found["wide"] = _on_wide_multiples(out)
    files = {name: out / name / f"{name}_float32.tflite" for name in PUBLISHED}
    files["wide"] = out / "wide" / f"{WIDE[0]}_float32.tflite"
    first = next(iter(PUBLISHED))
    files = {"original": out / first / f"{first}_original_float32.tflite", **files}
    click.echo("timing the original and all forms in alternation", err=True)
    times = alternate(files, runs=20, min_secs=1.0, max_secs=240.0)
    for name in (*PUBLISHED, "wide"):
        ratio, low, high = ratio_interval(times["original"], times[name])
        found[name] |= {"faster": ratio, "faster_low": low, "faster_high": high}
    return found


def _on_wide_multiples(out: Path) -> dict[str, Any]:
    name, multiple = WIDE
    text, recipe = (out / f"{name}.yaml").read_text(encoding="utf-8"), out / "wide.yaml"
    recipe.write_text(text.replace("multiple: 16\n", f"multiple: {multiple}\n"), encoding="utf-8")
    click.echo(f"building {name} on multiples of {multiple}", err=True)
    slimdet("build", str(recipe), "--out", str(out / "wide"), "--skip", "benchmark", "--skip", "verify")
    last = json.loads((out / "wide" / "report.json").read_bytes())["stages"][-1]
    return {key: last[key] for key in ("trainable", "flops")}


def _all_head_convolutions(out: Path, text: str) -> dict[str, Any]:
    """Seconds of the stage that splits all 35 convolutions of the head but the predictions, 1x1 too."""
    recipe = out / "tucker_35.yaml"
    stage = (
        "  - tucker: {ranks: {ratio: 0.2}, pointwise: true, include: [conv2d*], exclude: [conv2d_37, conv2d_29, "
        "conv2d_21]}\n"
    )
    head, _, rest = text.partition("stages:\n")
    recipe.write_text(f"{head}stages:\n{stage}precisions:{rest.partition('precisions:')[2]}", encoding="utf-8")
    click.echo("splitting all 35 convolutions of the head", err=True)
    slimdet("build", str(recipe), "--out", str(out / "tucker_35"), "--skip", "benchmark", "--skip", "verify")
    report = json.loads((out / "tucker_35" / "report.json").read_bytes())
    (entry,) = (entry for entry in report["stages"] if entry["name"] == "tucker")
    changed = [layer for layer in entry["layers"] if layer["ranks"]]
    return {"seconds": entry["seconds"], "layers": len(changed), "flops": entry["flops"]}


def _map_of(report: Mapping[str, Any], which: str) -> float:
    (value,) = (file["map"] for file in report["files"] if file["of"] == which)
    return float(value)


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    first, last = report["stages"][0], report["stages"][-1]
    times = {file["of"]: file["latency"]["p50_ms"] for file in report["files"]}
    return {
        "map_before": _map_of(report, "original"),
        "map": _map_of(report, "float32"),
        "parameters": [stage["trainable"] + stage["non_trainable"] for stage in (first, last)],
        "flops": [first["flops"], last["flops"]],
        "ms": [times["original"], times["float32"]],
    }


def tucker(data: Path, out: Path) -> list[dict[str, Any]]:
    """yolov4-tiny at several sizes: its outputs kept (weighted by input statistics), and at the very same ranks its
    kernels (plain)."""
    found = []
    for energy in ENERGIES:
        rows: dict[str, Any] = {"energy": energy}
        ranks = f"{{energy: {energy}}}"
        for kind in ("weighted", "plain"):
            stage = (
                f"tucker: {{ranks: {ranks}, include: [{DEEP}], weighted: {str(kind == 'weighted').lower()}}}"
            )
            click.echo(f"yolov4-tiny, energy {energy}, {kind}", err=True)
            report = _built("tucker", "yolov4-tiny", "coco.names", stage, data, out)
            rows[kind] = _figures(report)
            (layers,) = (entry["layers"] for entry in report["stages"] if entry["name"] == "tucker")
            pairs = {layer["name"]: layer["ranks"] for layer in layers if layer["ranks"]}
            ranks = f"{{layers: {json.dumps(pairs)}}}"
        found.append(rows)
    return found


def pruning(data: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Several networks, pruned with and without the correction of biases and batch norm statistics."""
    found: dict[str, list[dict[str, Any]]] = {}
    for net, (names, ratios) in PRUNED.items():
        found[net] = []
        for ratio in ratios:
            rows: dict[str, Any] = {"ratio": ratio}
            for kind in ("corrected", "plain"):
                stage = f"prune: {{ratio: {ratio}, correct: {str(kind == 'corrected').lower()}}}"
                click.echo(f"{net}, ratio {ratio}, {kind}", err=True)
                rows[kind] = _figures(_built(f"pruned-{net}", net, names, stage, data, out))
            found[net].append(rows)
    return found


def flops(data: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Several networks, pruned to a share of their FLOPs by what their detections mind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for net, (names, shares) in LEFT.items():
        found[net] = []
        for share in shares:
            click.echo(f"{net}, {share} of its FLOPs", err=True)
            report = _built(f"flops-{net}", net, names, f"prune: {{flops: {share}}}", data, out)
            found[net].append({"share": share, **_figures(report)})
    return found


def _built(name: str, net: str, names: str, stage: str, data: Path, out: Path) -> dict[str, Any]:
    """The report of one network with one stage. All of a network are built in one folder, so that the original is
    measured once."""
    recipe = out / f"{name}.yaml"
    recipe.write_text(_RECIPE.format(name=name, net=net, names=names, stage=stage), encoding="utf-8")
    return build(recipe, out / name, data)


PARTS: dict[str, Callable[[Path, Path], Any]] = {
    "reference": reference, "tucker": tucker, "pruning": pruning, "flops": flops,
}  # fmt: skip


def as_markdown(found: Mapping[str, Any]) -> str:
    """The evidence as tables for a reader."""
    machine = found["environment"]
    lines = [
        "# What compression costs and wins, before any training",
        "",
        f"Written by `python -m benchmarks.compression` on {machine['cpu']}, {machine['usable_cores']} cores.",
    ]
    if "reference" in found:
        lines += ["", "## The published reference recipe", "", *_reference_lines(found["reference"])]
    if "tucker" in found:
        lines += ["", "## Tucker decomposition of yolov4-tiny", "", *_tucker_lines(found["tucker"])]
    if "pruning" in found:
        lines += ["", "## Pruning", "", *_pruning_lines(found["pruning"])]
    if "flops" in found:
        lines += ["", "## Pruning to a share of the FLOPs", "", *_flops_lines(found["flops"])]
    return "\n".join([*lines, ""])


def _reference_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "YOLOv4 on EfficientNet-B1, 512x512, 20 classes, seeded random weights, v as in the published ranks. Seconds",
        "and memory: the whole `slimdet build` up to the packaged files, that of the original network among them,",
        "without the benchmark. Times faster: XNNPACK, one thread, original and both forms in one alternating run,",
        "median of the rounds' ratios with its 95 % interval.",
        "",
        "| recipe | trainable M (published) | MFLOPs (published) | times faster (published) | seconds | memory MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, (parameters, mflops, faster) in PUBLISHED.items():
        row = found[name]
        lines.append(
            f"| {name} | {row['trainable'] / 1e6:.3f} ({parameters / 1e6:.2f}, "
            f"{100 * (row['trainable'] / parameters - 1):+.1f} %) | {row['flops'] / 1e6:,.2f} ({mflops:,.2f}, "
            f"{100 * (row['flops'] / 1e6 / mflops - 1):+.1f} %) | {row['faster']:.2f} [{row['faster_low']:.2f}, "
            f"{row['faster_high']:.2f}] ({faster}) | {row['seconds']:.0f} | {row['peak_memory_mb']:,.0f} |"
        )
    split, wide = found["tucker_35"], found["wide"]
    return [
        *lines,
        "",
        f"{WIDE[0]} on multiples of {WIDE[1]}, in the same run: {wide['trainable'] / 1e6:.3f} M trainable, "
        f"{wide['flops'] / 1e6:,.2f} MFLOPs, {wide['faster']:.2f} [{wide['faster_low']:.2f}, "
        f"{wide['faster_high']:.2f}] times faster.",
        "",
        f"Tucker decomposition of all {split['layers']} head convolutions but the predictions: "
        f"{split['seconds']:.0f} s.",
    ]


_PROTOCOL = (
    "mAP@0.5 in percent on 991 pictures of VOC2007 test (every fifth), darknet protocol, input stretched; 200 trainval",
    "pictures for the statistics. No training.",
)


def _tucker_lines(found: list[Mapping[str, Any]]) -> list[str]:
    before = 100 * found[0]["plain"]["map_before"]
    lines = [
        *_PROTOCOL,
        f"20 VOC classes of the COCO weights, {before:.2f} before; {DEEP} are split. *Weighted* minimises the error of",
        "each layer's output over its real inputs, *plain* that of its kernel, both at the same ranks.",
        "",
        "| energy kept | parameters | MFLOPs | weighted | plain |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        weighted, plain = row["weighted"], row["plain"]
        lines.append(f"| {row['energy']} | {_sizes(weighted)} | {_points(weighted)} | {_points(plain)} |")
    return lines


def _pruning_lines(found: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    lines = [
        *_PROTOCOL,
        "L2 norms, SLAMP, channels on multiples of 8. *Corrected*: what the removed channels gave is made up for.",
        "",
        "| network | ratio | parameters | MFLOPs | corrected | plain |",
        "|---|---|---|---|---|---|",
    ]
    for net, rows in found.items():
        for row in rows:
            corrected, plain = row["corrected"], row["plain"]
            lines.append(
                f"| {net} | {row['ratio']} | {_sizes(corrected)} | {_points(corrected)} | {_points(plain)} |"
            )
    return lines


def _flops_lines(found: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    lines = [
        *_PROTOCOL,
        "Channels go, and are made up for, by what the detections on the pictures mind.",
        "",
        "| network | share | parameters | MFLOPs | ms | mAP |",
        "|---|---|---|---|---|---|",
    ]
    for net, rows in found.items():
        for row in rows:
            before, after = row["ms"]
            lines.append(f"| {net} | {row['share']} | {_sizes(row)} | {before:.2f} to {after:.2f} | {_points(row)} |")
    return lines


def _sizes(row: Mapping[str, Any]) -> str:
    before, after = row["parameters"]
    flops_before, flops = row["flops"]
    return f"{after:,} ({before / after:.1f}x) | {flops / 1e6:,.1f} ({flops_before / flops:.1f}x)"


def _points(row: Mapping[str, Any]) -> str:
    return f"{100 * row['map']:.2f} ({100 * (row['map'] - row['map_before']):+.2f})"


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder of real data."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for files and results."
)
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure this part alone. May be repeated.")
@debug_option
def compression(data: Path, out: Path, only: tuple[str, ...]) -> None:
    """Measure everything that README states of compression, anew."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "compression.json"
    found: dict[str, Any] = json.loads(kept.read_bytes()) if kept.is_file() and only else {}
    found["environment"] = environment()
    for name in only or PARTS:
        found[name] = PARTS[name](data, out)
        write_json(str(kept), found)
    write_atomically(out / "compression.md", as_markdown(found).encode())
    click.echo(as_markdown(found))


if __name__ == "__main__":
    run(compression, "python -m benchmarks.compression")
