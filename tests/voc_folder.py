"""Writes small data sets in VOC layout, and spoils them."""

from pathlib import Path

import cv2
import numpy as np

#: BGR of the classes that toy_detector tells apart.
COLORS = {"red": (0, 0, 255), "blue": (255, 0, 0)}


def xml(size: tuple[int, int], objects: list[tuple[str, tuple[float, ...], int]], filename: str = "") -> str:
    """An annotation; objects are name, box and difficult."""
    width, height = size
    text = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, difficult in objects
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{text}</annotation>"
    )


def add_picture(
    folder: Path,
    picture_id: str,
    color: str = "red",
    label: str | None = None,
    difficult: int = 0,
    suffix: str = ".png",
) -> None:
    """A picture of 40 x 20 pixels in one colour, whose one object fills it, at the end of the split `test`."""
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{picture_id}{suffix}"), np.full((20, 40, 3), COLORS[color], np.uint8))
    note = xml((40, 20), [(label or color, (1, 1, 40, 20), difficult)])
    (folder / "Annotations" / f"{picture_id}.xml").write_text(note)
    with open(folder / "ImageSets" / "Main" / "test.txt", "a") as file:
        file.write(f"{picture_id}\n")


def small_set(folder: Path) -> Path:
    """Two red and two blue pictures: 000 and 002, 001 and 003."""
    for index in range(4):
        add_picture(folder, f"{index:03d}", ("red", "blue")[index % 2])
    return folder
