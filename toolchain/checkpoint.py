"""The state of a training on disk: everything that the next step depends on, so that a killed training goes on as if
nothing had happened.

    FOLDER/state.npz    all variables (v0, v1, …) and, as JSON in "facts", step, history, best figure and so on
    FOLDER/best.zip     the graph with the best weights so far
    FOLDER/logs/        TensorBoard's, where they are asked for

Each file is written under another name and renamed, so that at every moment it is whole. No pickle is read.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import InputError
from toolchain import graph_file
from toolchain.graph import Graph

_STATE, _BEST = "state.npz", "best.zip"


def save_state(folder: Path, variables: Sequence[np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes a state. facts: plain JSON."""
    arrays = {f"v{index}": _plain(array) for index, array in enumerate(variables)}
    part = folder / f".{_STATE}.part"
    with open(part, "wb") as file:
        np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    os.replace(part, folder / _STATE)


def _plain(array: np.ndarray) -> np.ndarray:
    # bfloat16 is a type that numpy does not write without pickle; float32 holds each of its values.
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def load_state(folder: Path) -> tuple[list[np.ndarray], dict[str, Any]] | None:
    """The state in a folder, None where there is none. Raises InputError for a damaged one."""
    path = folder / _STATE
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            return [arrays[f"v{index}"] for index in range(len(arrays.files) - 1)], facts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"a training goes on from a whole checkpoint: {path} is damaged; remove it") from error


def told(folder: Path) -> dict[str, Any] | None:
    """The facts of the state in a folder, None where there is none."""
    state = load_state(folder)
    return state[1] if state else None


def save_best(folder: Path, graph: Graph) -> None:
    """Writes the best graph so far."""
    part = folder / f".{_BEST}.part"
    graph_file.save(graph, part)
    os.replace(part, folder / _BEST)


def load_best(folder: Path) -> Graph | None:
    """The best graph so far, None where no epoch has ended yet."""
    path = folder / _BEST
    return graph_file.load(path) if path.is_file() else None
