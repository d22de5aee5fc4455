"""Writes small labelled data sets in the layouts of COCO and YOLO."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def write_picture(path: Path, size: tuple[int, int] = (40, 20), color: tuple[int, int, int] = (0, 0, 255)) -> Path:
    """A picture of (width, height) in one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), color, np.uint8))
    return path


def write_label(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def coco_image(number: int, **other: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": 40, "height": 20, **other}


def coco_object(image: int, category: int, bbox: list[Any], crowd: int = 0, **other: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "iscrowd": crowd, **other}


#: Numbers with a gap, as COCO has them.
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 90, "name": "blue"}]


def write_coco(
    folder: Path,
    split: str,
    images: list[Any],
    annotations: list[Any],
    categories: list[Any] | None = None,
    pictures: str = "{split}",
) -> Path:
    """A split whose pictures lie in the folder `pictures`."""
    content = {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in images:
        write_picture(folder / pictures.format(split=split) / image["file_name"])
    return folder
