"""A graph as one file: a stored zip of graph.json, graph.sha256 and one .npy a weight, the same bytes for the same
graph.

graph.json names every weight's SHA-256, and graph.sha256 is graph.json's own: what was cut or changed is refused.
Nothing in the file is code, pickled or compressed, so that reading never takes more memory than the file is long.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.command_line import write_atomically
from deploy.contract import Input, YoloHead
from deploy.errors import GraphError, InputError
from toolchain.graph import Graph, Node, plain

#: Version of the form. A reader refuses every other one.
FORMAT = 1
_DATE = (1980, 1, 1, 0, 0, 0)
_DTYPES = frozenset("float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split())
_LARGEST_JSON = 64 * 2**20
_KEYS = frozenset(("format", "name", "nodes", "outputs", "input", "head", "labels", "weights"))


def save(graph: Graph, path: Path) -> None:
    """Writes the graph to a file, atomically.

    Raises GraphError where an attribute is no plain JSON or a weight no plain number, InputError where the file
    cannot be written.
    """
    write_atomically(path, to_bytes(graph))


def load(path: Path) -> Graph:
    """The graph that save wrote. Raises InputError where the file is missing, cut, changed, or no such file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give an existing graph file") from error
    return from_bytes(content, str(path))


def to_bytes(graph: Graph) -> bytes:
    """The file's content, see save."""
    arrays: list[bytes] = []
    nodes = [_node_to_json(node, arrays) for node in graph.nodes]
    content = {
        "format": FORMAT,
        "name": graph.name,
        "nodes": nodes,
        "outputs": list(graph.outputs),
        "input": _to_json(Input, graph.input),
        "head": _to_json(YoloHead, graph.head),
        "labels": list(graph.labels),
        "weights": [hashlib.sha256(array).hexdigest() for array in arrays],
    }
    try:
        text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
    except ValueError as error:
        raise GraphError(
            f"attributes are finite numbers and valid text: graph {graph.name!r} has others ({error})"
        ) from error
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "graph.json", text)
        _add(archive, "graph.sha256", hashlib.sha256(text).hexdigest().encode())
        for index, array in enumerate(arrays):
            _add(archive, _weight_file(index), array)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    # The same on every system.
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _weight_file(index: int) -> str:
    return f"weights/{index:05d}.npy"


def _node_to_json(node: Node, arrays: list[bytes]) -> dict[str, Any]:
    try:
        attributes = plain(node.attributes)
    except TypeError as error:
        raise GraphError(f"attributes are plain JSON: those of {node.op} {node.name!r} are not: {error}") from error
    weights = []
    for name, array in node.weights.items():
        if array.dtype.name not in _DTYPES:
            raise GraphError(f"weights are plain numbers: {name} of {node.op} {node.name!r} is {array.dtype.name}")
        buffer = io.BytesIO()
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
        weights.append([name, len(arrays)])
        arrays.append(buffer.getvalue())
    return {
        "name": node.name,
        "op": node.op,
        "inputs": list(node.inputs),
        "attributes": attributes,
        "weights": weights,
        "shared_with": node.shared_with,
    }


def _to_json(kind: type, value: Any) -> Any:
    import pydantic

    return None if value is None else pydantic.TypeAdapter(kind).dump_python(value, mode="json")


def _from_json(kind: type, value: Any) -> Any:
    import pydantic

    return None if value is None else pydantic.TypeAdapter(kind).validate_json(json.dumps(value), strict=True)


def from_bytes(content: bytes, place: str) -> Graph:
    """The graph in a file's content; place names the file in messages. See load."""
    files = _entries(content, place)
    for name in ("graph.json", "graph.sha256"):
        if name not in files:
            raise InputError(f"a graph file holds graph.json and graph.sha256: {place} has no {name}")
    text = files.pop("graph.json")
    if len(text) > _LARGEST_JSON or hashlib.sha256(text).hexdigest().encode() != files.pop("graph.sha256"):
        raise InputError(f"a graph file is as it was written: graph.json in {place} was changed; build it again")
    try:
        parsed = json.loads(text)
        if not isinstance(parsed, dict) or parsed.get("format") != FORMAT or parsed.keys() != _KEYS:
            raise InputError(f"a graph file has form {FORMAT}: {place} has another; build it again")
        return _graph(parsed, _arrays(parsed["weights"], files, place))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(
            f"a graph file is as save writes it: {place} is not ({_one_line(error)}); build it again"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _entries(content: bytes, place: str) -> dict[str, bytes]:
    """The files in the zip, by name. They are stored, not packed: together no longer than the zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise InputError(f"a graph file is stored, not packed: {place} is packed; build it again")
            if sum(entry.file_size for entry in entries) > len(content) or len(
                {entry.filename for entry in entries}
            ) < len(entries):
                raise InputError(
                    f"a graph file is as long as its parts: {place} has {len(content)} bytes and claims more"
                )
            return {entry.filename: archive.read(entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
    ) as error:
        raise InputError(f"a graph file is a whole zip: {place} is cut or damaged ({error}); build it again") from error


def _arrays(digests: list[str], files: Mapping[str, bytes], place: str) -> list[np.ndarray]:
    names = [_weight_file(index) for index in range(len(digests))]
    if files.keys() != set(names):
        raise InputError(
            f"a graph file holds the weights that it names: {place} names {len(names)} and holds {len(files)}"
        )
    arrays = []
    for name, digest in zip(names, digests, strict=True):
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise InputError(f"a graph file is as it was written: {name} in {place} was changed; build it again")
        arrays.append(_array(files[name], f"{name} in {place}"))
    return arrays


def _array(content: bytes, place: str) -> np.ndarray:
    """A read-only view of a .npy file's numbers, after its header was checked against its length."""
    buffer = io.BytesIO(content)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise InputError(f"weights are .npy files of version 1.0: {place} is not")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    body = memoryview(content)[buffer.tell() :]
    if dtype.name not in _DTYPES or fortran or math.prod(shape) * dtype.itemsize != len(body):
        raise InputError(
            f"a .npy file holds what its header says: {place} has {len(body)} bytes for {dtype.name} {shape}"
        )
    return np.frombuffer(body, dtype).reshape(shape)


def _graph(parsed: Mapping[str, Any], arrays: list[np.ndarray]) -> Graph:
    nodes = []
    for node in parsed["nodes"]:
        weights = {str(name): arrays[index] for name, index in node["weights"]}
        texts = [node["name"], node["op"], node["shared_with"], *node["inputs"]]
        if not all(isinstance(text, str) for text in texts) or not isinstance(node["attributes"], dict):
            raise ValueError(f"node {node['name']!r} is malformed")
        nodes.append(
            Node(node["name"], node["op"], tuple(node["inputs"]), node["attributes"], weights, node["shared_with"])
        )
    return Graph(
        str(parsed["name"]),
        tuple(nodes),
        tuple(parsed["outputs"]),
        _from_json(Input, parsed["input"]),
        _from_json(YoloHead, parsed["head"]),
        tuple(parsed["labels"]),
    )
