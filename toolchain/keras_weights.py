"""Weights of single layers out of a Keras file, by the layers' names, for a network that is built here.

The files, told apart by what is in them, and read without Keras:
    .h5 with weights alone or a whole model (Keras 2 and 3): group LAYER, whose attribute weight_names lists its arrays
    .weights.h5 (Keras 3): groups layers/…/vars with arrays 0, 1, …; their attribute name is the layer's
    .keras (Keras 3): a zip with such a file in it
A layer's arrays are in Keras's own order, which is the order of a Node's weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import InputError
from toolchain.graph import Node
from toolchain.keras_legacy import stored_names
from toolchain.keras_reader import LARGEST_WEIGHTS, stored_elements, zip_member

#: The arrays of each layer that has any, by the layer's name, in Keras's order: h5py.Dataset, not yet read.
StoredWeights = Mapping[str, tuple[Any, ...]]


@contextlib.contextmanager
def open_layer_weights(path: Path) -> Iterator[StoredWeights]:
    """The stored arrays of every layer, as long as the file is open; of nested models only the outer names count.

    Raises InputError where the file is missing, cut or damaged, is no Keras file, claims more than it holds, or names
    no layers.
    """
    import h5py

    with _file_errors(path), contextlib.ExitStack() as stack:
        with open(path, "rb") as opened:
            magic = opened.read(8)
        source: Any = path
        if magic.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(zip_member(archive, "model.weights.h5", LARGEST_WEIGHTS, path))
        elif magic != b"\x89HDF\r\n\x1a\n":
            raise InputError(
                f"weights are a .h5 (HDF5) or .keras (zip) file: {path} begins with {magic!r} and is neither; give one"
                " that Keras saved"
            )
        file = stack.enter_context(h5py.File(source, "r"))
        stored_elements(file, path)
        groups = file["model_weights"] if "model_weights" in file else file
        stored = _layers_of_3(file) if "layers" in file else _layers_of_h5(groups)
        if not stored:
            raise InputError(
                f"a weights file names its layers: {path} names none that has weights; save the model anew with"
                " model.save('model.keras')"
            )
        yield stored


def with_stored_weights(nodes: Sequence[Node], stored: StoredWeights, path: Path) -> tuple[Node, ...]:
    """The nodes with the weights of the layers of their names, float32; nodes that the file does not name stay.

    Raises InputError, naming the layer, for arrays of another number or shape, or with values that are not finite.
    """
    return tuple(_with_arrays(node, stored[node.name], path) if node.name in stored else node for node in nodes)


def _with_arrays(node: Node, datasets: Sequence[Any], path: Path) -> Node:
    found, expected = [dataset.shape for dataset in datasets], [array.shape for array in node.weights.values()]
    if found != expected:
        raise InputError(
            f"stored weights fit their layer: {node.name!r} has {found} in {path}, this network wants {expected}; give"
            " the file of this network, with its classes and anchors"
        )
    weights = {name: read_finite(dataset, path) for name, dataset in zip(node.weights, datasets, strict=True)}
    return dataclasses.replace(node, weights=weights)


def read_finite(dataset: Any, path: Path) -> np.ndarray:
    """A stored array as float32. Raises InputError where it is not made of finite floating-point numbers."""
    # What is too large for float32 becomes infinite, and is refused.
    with np.errstate(over="ignore"):
        array = np.asarray(dataset[()], np.float32) if dataset.dtype.kind == "f" else None
    if array is None or not np.isfinite(array).all():
        raise InputError(
            f"weights are finite floating-point numbers: {dataset.name!r} in {path} has others; give a file without"
            " them"
        )
    return array


def _layers_of_h5(groups: Any) -> dict[str, tuple[Any, ...]]:
    found = {}
    for layer in stored_names(groups, "layer_names"):
        names = stored_names(groups[layer], "weight_names")
        if names:
            found[layer] = tuple(groups[layer][name] for name in names)
    return found


def _layers_of_3(file: Any) -> dict[str, tuple[Any, ...]]:
    found = {}
    for group in file["layers"].values():
        # Groups are counted by class; files of the first versions of Keras 3 do not say the names.
        arrays = group.get("vars")
        if arrays is not None and len(arrays) and isinstance(name := arrays.attrs.get("name"), str):
            found[name] = tuple(arrays[key] for key in sorted(arrays, key=int))
    return found


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turns what zipfile and h5py raise for a bad file into one sentence."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}; give an existing file") from error
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
    ) as error:
        first = (str(error).splitlines() or ["no reason given"])[0][:300]
        raise InputError(f"a weights file is whole: {path} is cut or damaged ({first}); copy it again") from error
