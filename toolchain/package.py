"""Puts the .tflite and all that a device must know of it into the one file, after a last look at what was written.

The contract is made of the graph (labels, input, head) and of the file's own tensors (names, shapes, dtypes, scales),
so that nothing in it is a guess; deploy opens and checks the result before it gets its name. Standard metadata tells
other readers of the format what they can understand of it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy import interpreter, model_file
from deploy.command_line import write_atomically
from deploy.contract import PRECISIONS, ROLES, Contract, Scale, YoloHead
from deploy.detector import Detector
from deploy.errors import ConversionError, InputError
from toolchain.graph import Graph
from toolchain.tflite_metadata import with_own_metadata

#: Whose versions say what a file was made with.
_MAKERS = ("slimdet", "tensorflow", "keras", "ai-edge-litert", "litert-quantizer", "numpy")


def contract_of(
    graph: Graph,
    tflite: bytes,
    precision: str,
    *,
    lineage: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Contract:
    """The contract of a .tflite that convert wrote for the graph. Raises ConversionError when the graph is no detector,
    or has another number of labels than its classes output has classes; ContractError when the file's tensors do not
    fit."""
    if precision not in PRECISIONS:
        raise ConversionError(f"a precision is one of {', '.join(PRECISIONS)}, not {precision!r}; choose one")
    if graph.input is None or not isinstance(graph.head, YoloHead):
        raise ConversionError(f"a detector has an input and a head: {graph.name!r} lacks one; describe it first")
    model = interpreter.Model(tflite)
    contract = Contract(
        name=graph.name,
        labels=graph.labels,
        input=dataclasses.replace(graph.input, name="image"),
        head=dataclasses.replace(graph.head, scales=tuple(_named(scale) for scale in graph.head.scales)),
        precision=precision,
        tensors=(*model.inputs, *model.outputs),
        lineage={"made_with": versions(), **(lineage or {})},
        measured=dict(measured or {}),
    )
    interpreter.check(model, contract)
    return contract


def package(
    tflite: Path,
    graph: Graph,
    precision: str,
    destination: Path,
    *,
    lineage: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Contract:
    """Writes the file that is deployed, atomically: the .tflite with its contract inside; returns the contract.

    lineage (recipe's hash, hashes of sources) and measured (verification, mAP, latency) are plain JSON; the versions of
    what made the file are added to the lineage. deploy.Detector has opened the new file before it takes the
    destination's name.

    Raises ContractError when the result cannot be read back, InputError when it cannot be written.
    """
    body = tflite.read_bytes()
    contract = contract_of(graph, body, precision, lineage=lineage, measured=measured)
    body = with_own_metadata(body, contract)
    write_opened(destination, model_file.write(body, contract))
    return contract


def write_opened(destination: Path, content: bytes) -> None:
    """Writes a detector's file, atomically, once deploy.Detector has opened it under another name. Raises what Detector
    raises, and InputError when it cannot be written."""
    trial = destination.with_name(f".{destination.name}.{os.getpid()}.trial")
    try:
        write_atomically(trial, content)
        Detector(trial)
        os.replace(trial, destination)
    except OSError as error:
        raise InputError(f"cannot write {destination}: {error.strerror or error}; choose another place") from error
    finally:
        trial.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Version of each installed package that has a part in making a file."""
    return {name: found for name in _MAKERS if (found := _version(name))}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _named(scale: Scale) -> Scale:
    """The scale with the names that its outputs have in the file."""
    return dataclasses.replace(scale, outputs={role: f"{role}_{scale.stride}" for role in ROLES})
