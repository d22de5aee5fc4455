"""How far another program and slimdet agree on the same network: MediaPipe Tasks' ObjectDetector, or TensorFlow Lite's
Task Library.

    python -m benchmarks.client_agreement --client mediapipe --files OWN.tflite OWN_mediapipe.tflite --pictures DIR \\
        --client-python PYTHON

Neither shares an environment with TensorFlow, so a Python of its own runs its half, always with the client's file.
slimdet runs three times: with the client's file; with its own; and with its own on pictures that OpenCV has resized to
the network's input, each pixel repeated REPEATED times in both directions. Of the latter both programs' resizing takes
the very same pixels: what differs in the second comparison and not in the third comes of how the client resizes.
slimdet resizes for MediaPipe's file as MediaPipe does.

A detection's partner is one of the same class whose box overlaps by half at least, best first. A detection that is less
than 0.02 above the least score needs none: the other side may have it just below. Both clients cut x, y, width and
height to whole pixels: slimdet's boxes are cut likewise before they are compared.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from benchmarks.environment import environment
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.contract import CLIENTS, Client
from deploy.detector import Detector
from deploy.errors import InputError
from deploy.picture import read_picture
from deploy.source import locate

CONF = 0.25
REPEATED = 4
#: Two scores of one detection may differ by so much.
MARGIN = 0.02
_PARTNER_IOU = 0.5

#: x1, y1, x2, y2, score, class name.
Found = list[tuple[float, float, float, float, float, str]]


def slimdet_detections(own: Path, pictures: list[Path], *, resized: bool) -> list[Found]:
    """What slimdet detects in each picture, in pixels of what it is given."""
    detector = Detector(own, conf=CONF)
    labels, size = detector.contract.labels, detector.contract.input
    found = []
    for path in pictures:
        pixels = read_picture(path)
        if resized:
            pixels = cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_LINEAR)
            pixels = pixels.repeat(REPEATED, axis=0).repeat(REPEATED, axis=1)
        each = detector.detect(pixels)
        rows = np.column_stack([whole_pixels(each.boxes), each.scores]).tolist()
        found.append([(*row, labels[class_id]) for row, class_id in zip(rows, each.class_ids)])
    return found


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """float32 (n, 4) x1, y1, x2, y2 as clients give them: x, y, width and height cut to whole numbers."""
    corner, size = np.trunc(boxes[:, :2]), np.trunc(boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([corner, corner + size], axis=1)


def client_detections(
    client: Client, python: Path, file: Path, pictures: list[Path], resize: str
) -> tuple[list[Found], str]:
    """What the client detects, and its version. Raises InputError with its last words when it fails."""
    script = Path(__file__).with_name("client_child.py")
    command = [str(python), str(script), client, str(file), str(CONF), resize]
    names = "".join(f"{path}\n" for path in pictures)
    done = subprocess.run(command, input=names, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise InputError(f"{client} ended with {done.returncode} on {file}: {last}; its Python is {python}")
    told = json.loads(done.stdout.splitlines()[-1])
    return [[tuple(row) for row in rows] for rows in told["pictures"]], told["version"]


def overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where neither has an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - inside
    return float(inside / union) if union > 0 else 0.0


def compare(own: Found, other: Found) -> dict[str, Any]:
    """Partners' overlaps and differences of scores, and who has no partner though it should."""
    left, pairs, alone = list(other), [], 0
    for row in sorted(own, key=lambda row: -row[4]):
        near = [(overlap(row, one), one) for one in left if one[5] == row[5]]
        best = max(near, default=(0.0, None), key=lambda pair: pair[0])
        if best[1] is None or best[0] < _PARTNER_IOU:
            alone += row[4] >= CONF + MARGIN
            continue
        left.remove(best[1])
        pairs.append((best[0], abs(row[4] - best[1][4])))
    return {
        "pairs": pairs,
        "slimdet_alone": alone,
        "client_alone": sum(row[4] >= CONF + MARGIN for row in left),
    }


def agreement(
    own: Path, client: Client, file: Path, pictures: list[Path], python: Path, *, resized: bool
) -> dict[str, Any]:
    """The figures of one pair of files on all pictures, and each picture's own."""
    size = Detector(own).contract.input
    resize = f"{size.width}x{size.height}x{REPEATED}" if resized else "0"
    theirs, version = client_detections(client, python, file, pictures, resize)
    mine = slimdet_detections(own, pictures, resized=resized)
    rows = [{"picture": path.name, **compare(*both)} for path, *both in zip(pictures, mine, theirs, strict=True)]
    pairs = [pair for row in rows for pair in row["pairs"]]
    overlaps, scores = ([pair[place] for pair in pairs] for place in (0, 1))
    return {
        "own": own.name,
        "client": client,
        "client_file": file.name,
        "pictures": len(pictures),
        "resized_before": resized,
        "client_version": version,
        "pairs": len(pairs),
        "least_iou": min(overlaps, default=None),
        "median_iou": float(np.median(overlaps)) if overlaps else None,
        "iou_above_0.95": sum(value > 0.95 for value in overlaps),
        "greatest_score_difference": max(scores, default=None),
        "score_within_0.02": sum(value <= MARGIN for value in scores),
        "slimdet_alone": sum(row["slimdet_alone"] for row in rows),
        "client_alone": sum(row["client_alone"] for row in rows),
        "each": rows,
    }


_COLUMNS = (
    "slimdet's file", "the client's", "pictures", "pairs", "least IoU", "median IoU", "IoU > 0.95",
    "greatest score difference", "score ± 0.02", "slimdet alone", "client alone",
)  # fmt: skip


def as_markdown(found: list[dict[str, Any]]) -> str:
    """The figures as a table for a reader."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    for row in found:
        figures = [
            "–" if row[key] is None else f"{row[key]:.3f}"
            for key in ("least_iou", "median_iou", "greatest_score_difference")
        ]
        cells = (
            row["own"], row["client_file"], f"{row['pictures']}{', resized before' if row['resized_before'] else ''}",
            row["pairs"], *figures[:2], row["iou_above_0.95"], figures[2], row["score_within_0.02"],
            row["slimdet_alone"], row["client_alone"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--client", type=click.Choice(CLIENTS), required=True, help="The other program.")
@click.option(
    "--files", type=(_FILE, _FILE), multiple=True, required=True,
    help="slimdet's own file, and the one of the same network for the client. May be repeated.",
)  # fmt: skip
@click.option("--pictures", type=click.Path(exists=True, file_okay=False), required=True, help="Folder of pictures.")
@click.option("--count", type=click.IntRange(1), default=50, show_default=True, help="How many, evenly spaced.")
@click.option("--client-python", type=_FILE, required=True, help="A Python that has the client.")
@json_option("Write every figure here as JSON; - is standard output.")
@debug_option
def client_agreement(
    client: Client, files: tuple[tuple[Path, Path], ...], pictures: str, count: int, client_python: Path,
    json_file: str | None,
) -> None:  # fmt: skip
    """Compare another program's detections with slimdet's."""
    every = locate(pictures).files
    chosen = [every[index * len(every) // count] for index in range(count)] if len(every) > count else list(every)
    found = [
        agreement(mine, client, theirs, chosen, client_python, resized=resized)
        for own, theirs in files
        for mine, resized in ((theirs, False), (own, False), (own, True))
    ]
    if json_file is not None:
        write_json(json_file, {"environment": environment(), "agreement": found})
    if json_file != "-":
        click.echo(as_markdown(found))


if __name__ == "__main__":
    run(client_agreement, "python -m benchmarks.client_agreement")
