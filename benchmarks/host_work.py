"""What a live frame costs beside the network: resize, quantize, decode, NMS, on one core.

    python -m benchmarks.host_work [--json FILE]

A 640x480 picture of noise goes to 416x416 by letterbox; the outputs are made up, for a YOLOv3 head (three scales,
10,647 boxes) that sees OBJECTS objects, each in up to twelve overlapping boxes, in front of a background with weak
responses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import cv2
import numpy as np

from deploy.command_line import json_option, run, write_json
from deploy.contract import ROLES, Contract, Input, Scale, Tensor, YoloHead
from deploy.decode import decode
from deploy.nms import nms
from deploy.preprocess import Preprocessor, to_source

SIZE = 416
ANCHORS = {
    32: ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
    16: ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    8: ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
}
OBJECTS = 15
#: Logits of -12.8 to 12.7 in int8, a range that real heads have.
STEP = 0.1
CONF, IOU, LIMIT = 0.25, 0.45, 300


def measure(precision: str, classes: int, frames: int) -> dict[str, Any]:
    """Median and 95th percentile in milliseconds of every part and of all together, over that many frames."""
    contract = _contract(precision, classes)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (480, 640, 3), np.uint8)
    outputs = _outputs(contract, rng)
    preprocess = Preprocessor(contract.input, contract.tensors[0])
    _, placement = preprocess(picture)
    decoded = decode(outputs, contract, CONF)

    def suppress() -> np.ndarray:
        return nms(decoded.boxes, decoded.scores, decoded.class_ids, IOU, LIMIT)

    def every() -> None:
        preprocess(picture)
        found = decode(outputs, contract, CONF)
        kept = nms(found.boxes, found.scores, found.class_ids, IOU, LIMIT)
        to_source(found.take(kept).boxes, placement)

    parts: dict[str, Callable[[], object]] = {
        "preprocess": lambda: preprocess(picture),
        "decode": lambda: decode(outputs, contract, CONF),
        "nms": suppress,
        "total": every,
    }
    return {
        "precision": precision,
        "classes": classes,
        "candidates": len(decoded),
        "kept": len(suppress()),
        **{f"{name}_{key}": value for name, part in parts.items() for key, value in _time(part, frames).items()},
    }


def _time(part: Callable[[], object], frames: int) -> dict[str, float]:
    milliseconds = []
    for _ in range(frames + frames // 10):
        start = time.perf_counter()
        part()
        milliseconds.append((time.perf_counter() - start) * 1e3)
    counted = milliseconds[frames // 10 :]
    return {"p50_ms": float(np.percentile(counted, 50)), "p95_ms": float(np.percentile(counted, 95))}


def _contract(precision: str, classes: int) -> Contract:
    quantized = precision == "int8"
    input = Input("image", SIZE, SIZE)
    tensors = [Tensor("image", (1, SIZE, SIZE, 3), precision, 1 / 255 if quantized else 0.0, -128 if quantized else 0)]
    depth = {"xy": 2, "wh": 2, "objectness": 1, "classes": classes}
    scales = []
    for stride, anchors in ANCHORS.items():
        scales.append(Scale(stride, anchors, {role: f"{role}_{stride}" for role in ROLES}))
        for role in ROLES:
            shape = (1, SIZE // stride, SIZE // stride, len(anchors) * depth[role])
            tensors.append(Tensor(f"{role}_{stride}", shape, precision, STEP if quantized else 0.0, 0))
    labels = tuple(f"class {i}" for i in range(classes))
    head = YoloHead(tuple(scales))
    return Contract("host work", labels, input, head, "int8" if quantized else "float32", tuple(tensors))


def _outputs(contract: Contract, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Logits of a background around -6, and of objects where four cells of one scale meet, that all anchors of the
    four see as nearly the same box of one class."""
    logits = {tensor.name: rng.normal(-6, 1, tensor.shape).astype(np.float32) for tensor in contract.tensors[1:]}
    classes = len(contract.labels)
    for _ in range(OBJECTS):
        stride = int(rng.choice(list(ANCHORS)))
        y, x = rng.integers(0, SIZE // stride - 1, 2)
        cells = np.s_[0, y : y + 2, x : x + 2]
        size = np.array(ANCHORS[stride])[rng.integers(3)]
        logits[f"objectness_{stride}"][cells] = rng.normal(0, 2, (2, 2, 3))
        logits[f"classes_{stride}"][cells][..., int(rng.integers(classes)) :: classes] = 3
        toward = np.stack(np.meshgrid([4, -4], [4, -4]), axis=-1)[:, :, None]
        logits[f"xy_{stride}"][cells] = (toward + rng.normal(0, 1, (2, 2, 3, 2))).reshape(2, 2, 6)
        nearly = np.log(size / ANCHORS[stride]) + rng.normal(0, 0.1, (2, 2, 3, 2))
        logits[f"wh_{stride}"][cells] = nearly.reshape(2, 2, 6)
    if contract.precision == "float32":
        return logits
    return {name: np.clip(np.rint(values / STEP), -128, 127).astype(np.int8) for name, values in logits.items()}


@click.command(epilog="Example: python -m benchmarks.host_work --frames 500")
@click.option("--frames", type=click.IntRange(10), default=1000, show_default=True, help="Frames to measure.")
@json_option("Write the figures to FILE.")
def main(frames: int, json_file: str | None) -> None:
    """Time of everything but the network for a live frame at 416, in milliseconds on one core."""
    cv2.setNumThreads(1)
    rows = [measure(precision, classes, frames) for precision in ("float32", "int8") for classes in (20, 80)]
    for row in rows:
        click.echo(
            f"{row['precision']:8} {row['classes']} classes, {row['candidates']} candidates, {row['kept']} kept: "
            f"preprocess {row['preprocess_p50_ms']:.3f}, decode {row['decode_p50_ms']:.3f}, "
            f"nms {row['nms_p50_ms']:.3f}, "
            f"together {row['total_p50_ms']:.3f} ms (p95 {row['total_p95_ms']:.3f})",
            err=json_file == "-",
        )
    if json_file:
        write_json(json_file, {"size": SIZE, "picture": [640, 480], "conf": CONF, "iou": IOU, "measurements": rows})


if __name__ == "__main__":
    run(main, "python -m benchmarks.host_work")
