"""Draws the pictures whose errors cost most: truths, hits, false positives with their cause, and what was missed.

A picture costs the sum of its false positives' scores, and 1 for each truth that is missed, at the working threshold.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.annotations import Picture
from benchmarks.misses import FALSE_NEGATIVES, FALSE_POSITIVES, Misses
from benchmarks.voc_metric import Found, Outcomes, Truths
from deploy.command_line import write_atomically
from deploy.draw import captions, draw_boxes, label
from deploy.errors import InputError
from deploy.picture import read_picture

COST = "sum of the false positives' scores, and 1 for each missed truth"
CONTACT_SHEET = "contact_sheet.jpg"
#: BGR.
HIT, FALSE_POSITIVE, MISSED = (80, 175, 40), (40, 40, 225), (230, 120, 20)
FOUND_TRUTH, DIFFICULT = (255, 255, 255), (150, 150, 150)
_LEGEND = (
    ("hit", HIT),
    ("false positive", FALSE_POSITIVE),
    ("missed truth", MISSED),
    ("truth that was found", FOUND_TRUTH),
    ("difficult truth", DIFFICULT),
)
#: A box in pixels of the picture, its label, and its colour.
Layer = tuple[np.ndarray, str, tuple[int, int, int]]
#: Least longer side of a drawn picture.
_SIDE = 640
#: Of the contact sheet: a picture's cell, and how many stand side by side.
_CELL_WIDTH, _CELL_HEIGHT, _STRIP, _ACROSS, _GAP = 320, 240, 20, 4, 8
_BACK = (36, 28, 24)
#: Most bytes of the contact sheet that is put into the result, and its width in pixels.
_SMALL_BYTES, _SMALL_WIDTH = 130_000, 1000


def check_folder(folder: Path, data: Path) -> None:
    """Makes the folder. Raises InputError where it lies in the data, which stay as they are, or cannot be made."""
    if folder.resolve().is_relative_to(data.resolve()):
        raise InputError(f"the worst pictures are never drawn into the data: {folder} lies in {data}; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}; choose another") from error


def write_worst(
    folder: Path,
    count: int,
    pictures: Sequence[Picture],
    truths: Truths,
    found: Found,
    seen: Outcomes,
    misses: Misses,
    names: Sequence[str],
) -> dict[str, Any]:
    """Draws at most count pictures that have an error, the worst first, and one contact sheet of them, into the folder.

    pictures: by the image indices of truths (in VOC's way) and found (those from the working threshold on, in pixels).
    Returns plain JSON: what a cost is, id, cost, counts and file of each, and the contact sheet, small, as a JPEG in
    base64, so that a report needs no other file; null where no picture has an error.

    Raises InputError where a file cannot be written.
    """
    costs = misses.costs(found, truths, len(pictures))
    worst = [int(place) for place in np.argsort(-costs, kind="stable")[:count] if costs[place] > 0]
    font = captions(names).font
    texts = captions(names).texts
    told, cells = [], []
    for rank, place in enumerate(worst, 1):
        pixels = read_picture(pictures[place].path)
        layers = _layers(place, truths, found, seen, misses, texts)
        name = f"{rank:02d}_{re.sub('[^A-Za-z0-9._-]', '_', pictures[place].id)[-80:]}.jpg"
        _write(folder / name, _jpeg(_drawn(pixels, layers, _SIDE, font), 90))
        wrong = int((misses.positives[found.images == place] >= 0).sum())
        missed = int((misses.negatives[truths.images == place] >= 0).sum())
        cost = float(costs[place])
        told.append({"id": pictures[place].id, "cost": cost, "false_positives": wrong, "missed": missed, "file": name})
        # Without words, which would hide what so small a picture shows.
        plain = [(box, "", colour) for box, _, colour in layers]
        cells.append(_cell(_drawn(pixels, plain, _CELL_WIDTH, None), f"{rank}. {pictures[place].id[-24:]}: {cost:.2f}"))
    sheet = None
    if cells:
        whole = _sheet(cells)
        _write(folder / CONTACT_SHEET, _jpeg(whole, 90))
        sheet = base64.b64encode(_small(whole)).decode()
    return {"cost": COST, "folder": str(folder), "pictures": told, "contact_sheet": sheet}


def _layers(
    place: int, truths: Truths, found: Found, seen: Outcomes, misses: Misses, texts: Sequence[str]
) -> list[Layer]:
    """All boxes of a picture; what is wrong comes first, and lies on top."""
    mine, here = np.flatnonzero(found.images == place), np.flatnonzero(truths.images == place)
    hit = np.isin(here, seen.truth[mine])
    edges = truths.boxes - np.array([1, 1, 0, 0])
    layers: list[Layer] = []
    for row in here[misses.negatives[here] >= 0]:
        why = FALSE_NEGATIVES[misses.negatives[row]]
        cause = "" if why == "missed" else f": {why}"
        layers.append((edges[row], f"missed {texts[truths.class_ids[row]]}{cause}", MISSED))
    for row in mine[misses.positives[mine] >= 0]:
        text = f"{texts[found.class_ids[row]]} {found.scores[row]:.2f}: {FALSE_POSITIVES[misses.positives[row]]}"
        layers.append((found.boxes[row], text, FALSE_POSITIVE))
    for row in mine[seen.truth[mine] >= 0]:
        layers.append((found.boxes[row], f"{texts[found.class_ids[row]]} {found.scores[row]:.2f}", HIT))
    layers += [(edges[row], "", FOUND_TRUTH) for row in here[hit]]
    layers += [(edges[row], "", DIFFICULT) for row in here[truths.difficult[here]]]
    return layers


def _drawn(pixels: np.ndarray, layers: Sequence[Layer], side: int, font: str | None) -> np.ndarray:
    """The picture with its boxes, its longer side at least `side`: small ones grow, so that letters fit."""
    height, width = pixels.shape[:2]
    scale = max(1.0, side / max(height, width))
    size = (round(width * scale), round(height * scale))
    pixels = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC))
    # Far outside the picture a box would overflow what OpenCV counts in.
    limits = np.array([size[0], size[1]] * 2)
    boxes = np.clip(np.array([box for box, _, _ in layers]).reshape(-1, 4) * scale, -limits, 2 * limits)
    draw_boxes(pixels, boxes, [text for _, text, _ in layers], [colour for _, _, colour in layers], font)
    return pixels


def _cell(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture, fitted into a cell of the sheet, and its name above."""
    scale = min(_CELL_WIDTH / picture.shape[1], _CELL_HEIGHT / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    cell = np.full((_STRIP + _CELL_HEIGHT, _CELL_WIDTH, 3), _BACK, np.uint8)
    left, top = (_CELL_WIDTH - size[0]) // 2, _STRIP
    cell[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _put(cell, label("".join(c if c.isprintable() else "?" for c in text), _BACK, 13, None), 0)
    return cell


def _put(cell: np.ndarray, drawn: np.ndarray, left: int) -> None:
    drawn = drawn[: cell.shape[0], : cell.shape[1] - left]
    cell[: drawn.shape[0], left : left + drawn.shape[1]] = drawn


def _sheet(cells: Sequence[np.ndarray]) -> np.ndarray:
    across = min(_ACROSS, len(cells))
    down = -(-len(cells) // across)
    height, width = cells[0].shape[:2]
    top = _STRIP + _GAP
    # Wide enough for the legend.
    whole = max(across * (width + _GAP) + _GAP, 2 * width)
    sheet = np.full((top + down * (height + _GAP), whole, 3), _BACK, np.uint8)
    left = _GAP
    for text, colour in _LEGEND:
        drawn = label(text, colour, 13, None)
        _put(sheet[_GAP // 2 :], drawn, left)
        left += drawn.shape[1] + _GAP
    for place, cell in enumerate(cells):
        row, column = divmod(place, across)
        y, x = top + row * (height + _GAP), _GAP + column * (width + _GAP)
        sheet[y : y + height, x : x + width] = cell
    return sheet


def _small(sheet: np.ndarray) -> bytes:
    """The sheet in few bytes: the best quality that fits."""
    scale = min(1.0, _SMALL_WIDTH / sheet.shape[1])
    size = (round(sheet.shape[1] * scale), round(sheet.shape[0] * scale))
    small = cv2.resize(sheet, size, interpolation=cv2.INTER_AREA)
    for quality in (80, 65, 50):
        content = _jpeg(small, quality)
        if len(content) <= _SMALL_BYTES:
            return content
    return _jpeg(small, 35)


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def _write(path: Path, content: bytes) -> None:
    if path.is_symlink():
        raise InputError(f"{path} is a link, which may lead into the data; remove it, or choose another folder")
    write_atomically(path, content)
