"""Runs in this process, where TensorFlow is up already, what belongs into a child's; and what a network computes."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolchain import activation_runs, child_process
from toolchain.graph import Graph


def run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls what is meant for a child, with what JSON leaves of values in and out, but leaves TensorFlow's global
    settings alone."""

    def run(function: str, arguments: Mapping[str, Any], place: Path, *, step: str, trains: bool = False) -> Any:
        module, _, name = function.partition(":")
        given = json.loads(json.dumps(dict(arguments)))
        return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**given)))

    monkeypatch.setattr(child_process, "run", run)
    monkeypatch.setattr("tensorflow.config.experimental.enable_op_determinism", lambda: None)


def values(graph: Graph, names: Sequence[str], pictures: Sequence[Path], folder: Path) -> dict[str, np.ndarray]:
    """Outputs of the nodes on all pictures, (n, ...) float32, each node once."""
    from toolchain.keras_writer import to_keras

    assert graph.input is not None
    pixels = activation_runs.read_pictures(graph, [str(path) for path in pictures], folder)
    part = activation_runs.part(graph, names)
    found = to_keras(part)(activation_runs.values_of(pixels, graph.input), training=False)
    return dict(zip(part.outputs, map(np.asarray, found if isinstance(found, list) else [found]), strict=True))
