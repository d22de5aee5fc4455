"""Graphs as files: the same bytes for the same graph, everything back, and nothing else accepted."""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from deploy.contract import Input, Scale, YoloHead
from deploy.errors import GraphError, InputError
from toolchain.graph import Graph, Node
from toolchain.graph_file import from_bytes, load, save, to_bytes

_SETTINGS = hypothesis.settings(deadline=None, max_examples=60)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.float64, np.int8, np.int32, np.int64, np.bool_]),
    hnp.array_shapes(min_dims=0, max_side=4),
)


@st.composite
def _graphs(draw: st.DrawFn) -> Graph:
    names = draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True))
    nodes = []
    for index, name in enumerate(names):
        inputs = tuple(draw(st.lists(st.sampled_from(names[:index]), max_size=3))) if index else ()
        shared = draw(st.sampled_from(["", *names[:index]]))
        attributes = draw(st.dictionaries(st.text(max_size=5), _JSON, max_size=3))
        weights = draw(st.dictionaries(st.text(max_size=5), _ARRAYS, max_size=3))
        nodes.append(Node(name, draw(st.text(max_size=6)), inputs, attributes, weights, shared))
    return Graph(draw(st.text(max_size=6)), tuple(nodes), tuple(draw(st.lists(st.sampled_from(names), max_size=2))))


def _assert_equal(first: Graph, second: Graph) -> None:
    for field in ("name", "outputs", "input", "head", "labels"):
        assert getattr(first, field) == getattr(second, field)
    assert len(first.nodes) == len(second.nodes)
    for one, other in zip(first.nodes, second.nodes, strict=True):
        for field in ("name", "op", "inputs", "attributes", "shared_with"):
            assert getattr(one, field) == getattr(other, field)
        assert list(one.weights) == list(other.weights), "the order of the weights is Keras's"
        for array, same in zip(one.weights.values(), other.weights.values(), strict=True):
            assert array.dtype == same.dtype and array.shape == same.shape and array.tobytes() == same.tobytes()


def _detector() -> Graph:
    kernel = np.arange(1 * 1 * 3 * 21, dtype=np.float32).reshape(1, 1, 3, 21)
    nodes = (
        Node("image", "InputLayer", (), {"shape": [32, 64, 3]}),
        Node("conv", "Conv2D", ("image",), {"strides": [32, 32], "use_bias": False}, {"kernel": kernel}),
    )
    head = YoloHead((Scale(32, ((10.0, 13.5), (16.0, 30.0), (1.0, 2.0)), {"raw": "conv"}, 1.05),), "scaled", "softmax")
    entry = Input("image", 32, 64, "stretch", "BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 114)
    return Graph("détecteur", nodes, ("conv",), entry, head, ("person", "traffic light"))


@_SETTINGS
@hypothesis.given(_graphs())
def test_everything_comes_back(graph: Graph) -> None:
    content = to_bytes(graph)
    back = from_bytes(content, "here")
    _assert_equal(graph, back)
    assert to_bytes(back) == content


def test_a_detector_comes_back_from_a_file(tmp_path: Path) -> None:
    save(_detector(), tmp_path / "net.graph")
    _assert_equal(_detector(), load(tmp_path / "net.graph"))
    assert os.listdir(tmp_path) == ["net.graph"]


def test_bytes_do_not_depend_on_order_of_attributes_memory_layout_or_tuples() -> None:
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    one = Node("a", "Dense", (), {"x": [1, 2], "y": 2.0}, {"kernel": kernel})
    other = Node(
        "a", "Dense", (), {"y": 2.0, "x": (1, np.int64(2))}, {"kernel": np.asfortranarray(kernel).astype(">f4")}
    )
    assert to_bytes(Graph("g", (one,), ())) == to_bytes(Graph("g", (other,), ()))


def test_any_zip_reader_and_numpy_can_read_it() -> None:
    with zipfile.ZipFile(io.BytesIO(to_bytes(_detector()))) as archive:
        assert archive.testzip() is None
        array = np.load(io.BytesIO(archive.read("weights/00000.npy")), allow_pickle=False)
    np.testing.assert_array_equal(array, _detector().nodes[1].weights["kernel"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), "\ud800"])
def test_what_is_no_plain_json_is_not_written(value: Any) -> None:
    with pytest.raises(GraphError):
        to_bytes(Graph("g", (Node("a", "ReLU", (), {"x": value}),), ()))


def test_objects_are_no_weights() -> None:
    with pytest.raises(GraphError, match="w of ReLU 'a' is object"):
        to_bytes(Graph("g", (Node("a", "ReLU", (), {}, {"w": np.array([None])}),), ()))


def test_a_file_cut_anywhere_is_refused() -> None:
    content = to_bytes(_detector())
    for length in range(0, len(content), 7):
        with pytest.raises(InputError, match="here"):
            from_bytes(content[:length], "here")


@_SETTINGS
@hypothesis.given(st.integers(0, len(to_bytes(_detector())) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(position: int, mask: int) -> None:
    content = bytearray(to_bytes(_detector()))
    content[position] ^= mask
    try:
        back = from_bytes(bytes(content), "here")
    except InputError as error:
        assert "\n" not in str(error)
        return
    # Dates and such in the zip's own tables mean nothing.
    _assert_equal(back, _detector())


def _rewritten(change: Any) -> bytes:
    """The detector's file with one of its entries changed, and graph.json's digest made to fit."""
    with zipfile.ZipFile(io.BytesIO(to_bytes(_detector()))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    parsed = json.loads(files["graph.json"])
    change(parsed, files)
    files["graph.json"] = json.dumps(parsed).encode()
    files["graph.sha256"] = hashlib.sha256(files["graph.json"]).hexdigest().encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _other_weights(parsed: dict[str, Any], files: dict[str, bytes]) -> None:
    files["weights/00000.npy"] = files["weights/00000.npy"][:-4] + b"\0\0\0\1"


def _pickle(parsed: dict[str, Any], files: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([os.system], dtype=object), allow_pickle=True)
    files["weights/00000.npy"] = buffer.getvalue()
    parsed["weights"] = [hashlib.sha256(buffer.getvalue()).hexdigest()]


def _huge_header(parsed: dict[str, Any], files: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    files["weights/00000.npy"] = buffer.getvalue() + b"1234"
    parsed["weights"] = [hashlib.sha256(files["weights/00000.npy"]).hexdigest()]


def _set(key: str, value: Any) -> Any:
    return lambda parsed, files: parsed.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_other_weights, "weights/00000.npy in here was changed"),
        (_pickle, "holds what its header says"),
        (_huge_header, "holds what its header says"),
        (lambda parsed, files: files.pop("weights/00000.npy"), "names 1 and holds 0"),
        (lambda parsed, files: files.__setitem__("../evil", b""), "names 1 and holds 2"),
        (_set("format", 2), "has form 1"),
        (_set("more", 2), "has form 1"),
        (_set("nodes", 3), "as save writes it"),
        (_set("nodes", [{"name": "a"}]), "as save writes it"),
        (_set("input", {"name": "image"}), "as save writes it"),
        (_set("head", {"scales": [], "box": "round"}), "as save writes it"),
        (lambda parsed, files: parsed["nodes"][1]["weights"].append(["bias", 5]), "as save writes it"),
        (lambda parsed, files: parsed["nodes"][1].__setitem__("op", 5), "as save writes it"),
    ],
)
def test_tampering_that_keeps_the_digest_is_refused(change: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        from_bytes(_rewritten(change), "here")
    assert "\n" not in str(caught.value)


def test_a_cycle_in_a_file_is_refused() -> None:
    def change(parsed: dict[str, Any], files: dict[str, bytes]) -> None:
        parsed["nodes"][0]["inputs"] = ["conv"]

    with pytest.raises(GraphError, match="part of a cycle"):
        from_bytes(_rewritten(change), "here")


def test_a_packed_file_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("graph.json", b" " * 2**20)
        archive.writestr("graph.sha256", b"")
    with pytest.raises(InputError, match="is packed"):
        from_bytes(buffer.getvalue(), "here")


def test_a_missing_file_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "none")
    with pytest.raises(InputError, match="cannot write"):
        save(_detector(), tmp_path / "none" / "net.graph")
