"""The recipes and networks that the package carries, by name. Needs nothing of the build side."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def carried_recipes() -> dict[str, Path]:
    """Recipe files."""
    return _carried(".yaml")


def built_in_networks() -> dict[str, Path]:
    """darknet cfg files, each with a .names file beside it."""
    return _carried(".cfg")


def _carried(suffix: str) -> dict[str, Path]:
    folder = Path(str(resources.files("toolchain.recipes")))
    return {path.stem: path for path in sorted(folder.glob(f"*{suffix}"))}
