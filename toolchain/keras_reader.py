"""Reads Keras files as graphs: .keras (Keras 3) and .h5 (Keras 3, and tf.keras before it), told apart by their first
bytes.

A file is other people's: sizes are checked before anything is read, code in it (Lambda) is refused unless allowed,
and nothing but Keras's own layers is built from it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import GraphError, InputError, SlimdetError
from toolchain.graph import Graph
from toolchain.keras_config import refuse_foreign_objects
from toolchain.keras_graph import from_keras as from_keras
from toolchain.keras_legacy import metadata_version, set_legacy_weights, to_keras_3, written_before_3
from toolchain.keras_writer import darknet_reorg_layer, to_keras
from toolchain.shapes import shapes

_LARGEST_CONFIG = 64 * 2**20
#: In bytes, of one array and of all in a .keras file.
LARGEST_WEIGHTS = 8 * 2**30
#: Trained weights hardly shrink; what unpacks to more than this many times its size is no model.
_LARGEST_RATIO = 200


def read_keras(path: Path, *, allow_lambda: bool = False, input_size: tuple[int, int] | None = None) -> Graph:
    """The graph of a model in a .keras or .h5 file, without head and labels.

    Args:
        path: the file; its suffix does not matter.
        allow_lambda: run the Python code of Lambda layers in the file. Only for files that are trusted.
        input_size: (height, width) of the input, for a model that leaves them open, or instead of its own.

    Raises InputError where the file is missing, cut, too large, no model or only weights, and GraphError where the
    model has what a graph cannot hold (see from_keras) or an input size is missing.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; give an existing .keras or .h5 file"
        ) from error
    if magic.startswith(b"PK\x03\x04"):
        model = _read_zip(path, allow_lambda)
    elif magic == b"\x89HDF\r\n\x1a\n":
        model = _read_h5(path, allow_lambda)
    else:
        raise InputError(
            f"a Keras model is a .keras (zip) or .h5 (HDF5) file: {path} begins with {magic!r} and is neither"
        )
    graph = from_keras(model, allow_lambda=allow_lambda)
    if input_size is not None:
        graph = _with_input_size(graph, input_size, allow_lambda)
    # Says now, by name, where a size is open or does not fit.
    shapes(graph)
    return graph


def _with_input_size(graph: Graph, size: tuple[int, int], allow_lambda: bool) -> Graph:
    """The graph for another picture size; opaque ops' shapes are recorded anew."""
    images = [node for node in graph.nodes if node.op == "InputLayer" and len(node.attributes["shape"]) == 3]
    if not images:
        raise GraphError(f"input_size is for pictures: {graph.name!r} has no input (height, width, channels)")
    changed = {
        node.name: dataclasses.replace(
            node, attributes={**node.attributes, "shape": [*size, node.attributes["shape"][2]]}
        )
        for node in images
    }
    nodes = tuple(changed.get(node.name, node) for node in graph.nodes)
    return from_keras(
        to_keras(dataclasses.replace(graph, nodes=nodes), allow_lambda=allow_lambda), allow_lambda=allow_lambda
    )


def _read_zip(path: Path, allow_lambda: bool) -> Any:
    """The model in a .keras file: a zip of config.json and model.weights.h5."""
    import h5py

    try:
        with zipfile.ZipFile(path) as archive:
            config = _parse_config(zip_member(archive, "config.json", _LARGEST_CONFIG, path), path)
            version = metadata_version(zip_member(archive, "metadata.json", _LARGEST_CONFIG, path))
            weights = zip_member(archive, "model.weights.h5", LARGEST_WEIGHTS, path)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(f"a .keras file is a whole zip: {path} is cut or damaged ({error}); copy it again") from error
    with _keras_errors(path), h5py.File(io.BytesIO(weights), "r") as file:
        elements = stored_elements(file, path)
    if written_before_3(version):
        config = _converted(config, True, path)
    model = _build(config, elements, allow_lambda, path)
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "model.weights.h5"
        copied.write_bytes(weights)
        with _keras_errors(path):
            model.load_weights(copied)
    return model


def zip_member(archive: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    """The content of one file in a .keras file; path is the .keras file's name in messages.

    Raises InputError where it is missing, claims more than limit bytes, or unpacks to another length than it claims.
    """
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise InputError(f"a .keras file holds config.json and model.weights.h5: {path} has no {name}") from None
    if entry.file_size > min(limit, entry.compress_size * _LARGEST_RATIO + 2**20):
        raise InputError(
            f"a .keras file unpacks to about its own size: {name} in {path} has {entry.compress_size} bytes and claims"
            f" {entry.file_size}"
        )
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise InputError(
            f"a .keras file is a whole zip: {name} in {path} has {len(content)} bytes, expected {entry.file_size}"
        )
    return content


def _parse_config(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"a model's config is JSON: that of {path} is not ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list) or "class_name" not in config:
        raise InputError(f"a model's config has class_name and config: that of {path} has not")
    return config


def _read_h5(path: Path, allow_lambda: bool) -> Any:
    """The model in an .h5 file: attribute model_config (JSON) and group model_weights."""
    import h5py

    with _keras_errors(path), h5py.File(path, "r") as file:
        elements = stored_elements(file, path)
        text = file.attrs.get("model_config")
        if text is None:
            raise InputError(
                f"an .h5 file holds a whole model: {path} has only weights; save it with model.save, not save_weights"
            )
        config = _converted(_parse_config(text, path), written_before_3(file.attrs.get("keras_version")), path)
        model = _build(config, elements, allow_lambda, path)
        set_legacy_weights(model, file["model_weights"], path)
    return model


def _converted(config: dict[str, Any], before_3: bool, path: Path) -> dict[str, Any]:
    try:
        return to_keras_3(config, before_3=before_3)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise InputError(f"a model's config is as Keras writes it: that of {path} is not ({error!r})") from error


def _build(config: dict[str, Any], elements: int, allow_lambda: bool, path: Path) -> Any:
    """The Keras model of a config, after a look at how many weights it would allocate."""
    import keras

    # How the model was trained is of no use here, and may name objects of the user's own.
    config.pop("compile_config", None)
    try:
        refuse_foreign_objects(config, allow_lambda=allow_lambda, place=str(path))
    except RecursionError as error:
        raise InputError(f"a config is nested some ten levels deep: that of {path} is nested without end") from error
    darknet_reorg_layer()

    def build() -> Any:
        with _keras_errors(path):
            # Keras empties the config that it reads.
            return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=not allow_lambda)

    claimed = _claimed_elements(build)
    # Weights of random generators are not always stored.
    if claimed > elements + 2**16:
        raise InputError(
            f"a model's weights are in its file: the config of {path} wants {claimed} numbers, the file has {elements}"
        )
    return build()


def _claimed_elements(build: Any) -> int:
    """The number of weights that building the model would allocate, without allocating them."""
    import keras
    from keras.src.backend.common import global_state

    waiting = "uninitialized_variables"
    before = list(global_state.get_global_attribute(waiting, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = build()
            return sum(math.prod(variable.shape) for variable in getattr(model, "weights", ()))
    finally:
        # The model is dropped; Keras must not allocate its variables later.
        global_state.set_global_attribute(waiting, before)


def stored_elements(file: Any, path: Path) -> int:
    """The number of numbers in all datasets of an open h5py.File; path is its name in messages.

    Raises InputError for links out of the file, and for datasets that claim more than the file holds; what h5py
    raises for a damaged file is left to the caller.
    """
    import h5py

    total, waiting, seen = 0, [file["/"]], set()
    while waiting:
        group = waiting.pop()
        if hash(group.id) in seen:
            continue
        seen.add(hash(group.id))
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise InputError(f"weights are in the file itself: {name!r} in {path} is a link to elsewhere")
            value = group[name]
            if isinstance(value, h5py.Group):
                waiting.append(value)
            elif isinstance(value, h5py.Dataset):
                total += _checked_size(value, path)
    return total


def _checked_size(dataset: Any, path: Path) -> int:
    stored = dataset.id.get_storage_size()
    if (
        dataset.external
        or dataset.is_virtual
        or dataset.nbytes > stored * _LARGEST_RATIO + 2**16
        or dataset.nbytes > LARGEST_WEIGHTS
    ):
        raise InputError(
            f"weights are in the file itself: {dataset.name!r} in {path} claims {dataset.nbytes} bytes and stores"
            f" {stored}"
        )
    return int(np.prod(dataset.shape, dtype=np.int64)) if dataset.shape else 1


@contextlib.contextmanager
def _keras_errors(path: Path) -> Iterator[None]:
    """Turns what Keras, h5py and TensorFlow raise for a bad file into one sentence."""
    import tensorflow as tf

    try:
        yield
    except SlimdetError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OSError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
    ) as error:
        raise InputError(f"Keras reads the file: {path} was refused: {_sentence(error)}") from error
    except tf.errors.OpError as error:
        raise InputError(f"Keras reads the file: {path} was refused: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"
