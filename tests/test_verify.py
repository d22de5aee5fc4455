"""Verification passes what is right, and names what is wrong."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from toy_network import converted, toy_graph, write_pictures

from deploy.contract import ROLES, Contract
from deploy.errors import InputError, VerificationError
from deploy.interpreter import Model
from toolchain import verify as module
from toolchain.convert import convert
from toolchain.graph import Graph
from toolchain.package import contract_of
from toolchain.quantize import CALIBRATION_PICTURES, evenly_spaced
from toolchain.reference import VERIFICATION_PICTURES, by_role, write_reference
from toolchain.verify import to_json, verify

OUTPUTS = {f"{role}_{stride}" for role in ROLES for stride in (16, 8)}

#: int8 in its other forms: test_quantize.py.
_PRECISIONS = ("float32", "float16", "dynamic", "int8")


def _file(precision: str) -> tuple[Graph, bytes, Contract]:
    graph, content = toy_graph(), (converted() / f"{precision}.tflite").read_bytes()
    return graph, content, contract_of(graph, content, precision)


@pytest.mark.parametrize("precision", _PRECISIONS)
def test_a_right_file_passes(precision: str) -> None:
    found = verify(*_file(precision), reference=converted() / "reference.npz")
    assert {output.output for output in found.outputs} == OUTPUTS
    assert found.pictures == 12
    assert {output.layer for output in found.outputs} == {"far", "near"}
    told = to_json(found)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    quantized = precision == "int8"
    assert all((output.steps > 0) == quantized for output in found.outputs)


def _changed(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """The reference with something changed, which to verify looks as if the file were wrong there."""
    with np.load(converted() / "reference.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(tmp_path / "changed.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "changed.npz"


def _swap(arrays: dict[str, np.ndarray]) -> None:
    arrays["xy_16"], arrays["wh_16"] = arrays["wh_16"], arrays["xy_16"]


def _other_order(arrays: dict[str, np.ndarray]) -> None:
    arrays["xy_16"] = arrays["xy_16"][..., ::-1]


def _shift(arrays: dict[str, np.ndarray]) -> None:
    arrays["xy_16"] = np.roll(arrays["xy_16"], 1, axis=1)


def _noise(arrays: dict[str, np.ndarray]) -> None:
    shape = arrays["xy_16"].shape
    arrays["xy_16"] = arrays["xy_16"] + np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the search for the layer, and with it TensorFlow's start."""
    monkeypatch.setattr(module, "first_difference", lambda *_: "")


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("change", [_swap, _other_order, _shift, _noise])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_wrong_output_is_named(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], precision: str
) -> None:
    with pytest.raises(VerificationError, match="'(xy|wh)_16' .layer 'far'"):
        verify(*_file(precision), reference=_changed(tmp_path, change))


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(("spread", "words"), [(1e-3, "of a quantization step, as of an"), (1e3, "; calibrate on")])
def test_a_refused_int8_file_says_what_can_be_done(tmp_path: Path, spread: float, words: str) -> None:
    """An output that hardly differs from cell to cell has no place in its steps; any other is a matter of ranges."""

    def replace(arrays: dict[str, np.ndarray]) -> None:
        shape = arrays["xy_16"].shape
        arrays["xy_16"] = np.random.default_rng(0).normal(0, spread, shape).astype(np.float32)

    with pytest.raises(VerificationError, match=f"'xy_16'.*{words}.*or take float16$"):
        verify(*_file("int8"), reference=_changed(tmp_path, replace))


@pytest.mark.usefixtures("no_search")
def test_a_float_file_is_held_to_epsilons(tmp_path: Path) -> None:
    """A thousandth of the output, which int8 would not show, is far outside a float's bound."""

    def scale(arrays: dict[str, np.ndarray]) -> None:
        arrays["classes_8"] = arrays["classes_8"] * np.float32(1.001)

    reference = _changed(tmp_path, scale)
    verify(*_file("int8"), reference=reference)
    with pytest.raises(VerificationError, match="'classes_8' .layer 'near'.*float epsilons.*all others are right"):
        verify(*_file("float32"), reference=reference)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (1.5, "the same everywhere")]
)
def test_outputs_that_say_nothing_are_refused(tmp_path: Path, value: float, words: str) -> None:
    def fill(arrays: dict[str, np.ndarray]) -> None:
        arrays["objectness_8"] = np.full_like(arrays["objectness_8"], value)

    with pytest.raises(VerificationError, match=f"{words}.*objectness_8.*'near'"):
        verify(*_file("float32"), reference=_changed(tmp_path, fill))


def test_a_wrong_layer_inside_is_named() -> None:
    """The kernel of one layer is another in the file than in the model."""
    graph, content, contract = _file("float32")
    node = graph.by_name["conv_3"]
    # The file's layout is (cout, kh, kw, cin).
    kernel = np.ascontiguousarray(node.weights["kernel"].transpose(3, 0, 1, 2))
    assert content.count(kernel.tobytes()) == 1
    other = content.replace(kernel.tobytes(), np.ascontiguousarray(kernel[::-1]).tobytes())
    with pytest.raises(VerificationError, match="part at layer 'conv_3'"):
        verify(graph, other, contract, reference=converted() / "reference.npz")


def test_a_wrong_input_scale_is_refused() -> None:
    """As in badly quantized files that are about: pixels enter with scale 1, and nearly all of them saturate."""
    graph, content, contract = _file("int8")
    assert graph.input is not None
    # The file's own input scale, in single precision, stands in it once: the preprocessing takes it from there.
    scale = np.float32(Model(content).inputs[0].scale).tobytes()
    assert content.count(scale) >= 1
    wrong = content.replace(scale, np.float32(1.0).tobytes())
    with pytest.raises(VerificationError):
        verify(graph, wrong, contract_of(graph, wrong, "int8"), reference=converted() / "reference.npz")


def test_the_models_own_outputs_need_readable_pictures(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(InputError, match="verified on pictures: none of the 1 given can be read"):
        write_reference(toy_graph(), [tmp_path / "bad.png"], tmp_path / "reference.npz")
    assert not (tmp_path / "reference.npz").exists()


def test_a_raw_tensor_is_taken_apart_by_anchor() -> None:
    graph = toy_graph()
    assert graph.head is not None
    raw = np.arange(2 * 7, dtype=np.float32).reshape(1, 1, 1, -1)
    parts = by_role({"far": raw}, graph.head.scales[0])
    assert {role: values.ravel().tolist() for role, values in parts.items()} == {
        "xy": [0, 1, 7, 8],
        "wh": [2, 3, 9, 10],
        "objectness": [4, 11],
        "classes": [5, 6, 12, 13],
    }


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["yolo-lite-voc-trial3-noBatch", "voc-yolo-fastest"])
def test_real_networks_pass_in_all_precisions(real_data: Path, tmp_path: Path, name: str) -> None:
    from toolchain.darknet_reader import read_darknet

    weights = real_data / "weights"
    graph = read_darknet(weights / f"{name}.cfg", weights / f"{name}.weights", weights / "voc.names", resize="stretch")
    pictures = sorted((real_data / "voc2007" / "calibration200" / "JPEGImages").iterdir())
    reference, float_file = tmp_path / "reference.npz", tmp_path / "float32.tflite"
    convert(graph, "float32", float_file, pictures=evenly_spaced(pictures, VERIFICATION_PICTURES), reference=reference)
    for precision in _PRECISIONS:
        destination = tmp_path / f"{precision}.tflite"
        if precision != "float32":
            calibration = evenly_spaced(pictures, CALIBRATION_PICTURES) if precision == "int8" else []
            convert(graph, precision, destination, pictures=calibration, float_file=float_file)
        content = destination.read_bytes()
        verify(graph, content, contract_of(graph, content, precision), reference=reference)
        delegated = Model(content).delegated
        # All but the resize of the one network that has one.
        assert delegated.total - delegated.nodes == (name == "voc-yolo-fastest")


def test_a_graph_keeps_its_outputs_when_only_its_name_changes() -> None:
    """The name is no part of what is compared."""
    graph, content, contract = _file("float32")
    renamed = dataclasses.replace(graph, name="other")
    assert verify(renamed, content, contract, reference=converted() / "reference.npz").pictures == 12


def _mish(sections: Sequence[str]) -> str:
    conv = "batch_normalize=1 pad=1 activation=mish"
    text = "[net]\nwidth=128\nheight=128\nchannels=3\n"
    for section in sections:
        name, *settings = section.replace("CONV", f"convolutional {conv}").split()
        text += "\n".join([f"[{name}]", *settings, ""])
    return text


def _csp_block(filters: int) -> tuple[str, ...]:
    """Halves the grid, then YOLOv4's cross-stage block with one residual."""
    half = filters // 2
    return (
        f"CONV filters={filters} size=3 stride=2",
        f"CONV filters={half} size=1 stride=1",
        "route layers=-2",
        f"CONV filters={half} size=1 stride=1",
        f"CONV filters={half} size=1 stride=1",
        f"CONV filters={half} size=3 stride=1",
        "shortcut from=-3 activation=linear",
        f"CONV filters={half} size=1 stride=1",
        "route layers=-1,-7",
        f"CONV filters={filters} size=1 stride=1",
    )


@pytest.mark.slow
def test_mish_keeps_15_decibels_in_int8(tmp_path: Path) -> None:
    """Cross-stage blocks of YOLOv4 with Mish, 29 of them one behind the other and beside each other, random weights."""
    from toolchain.darknet_reader import read_darknet

    prediction = "convolutional size=1 stride=1 pad=1 filters=14 activation=linear"
    sections = ("CONV filters=16 size=3 stride=1", *_csp_block(32), *_csp_block(64), *_csp_block(128), *_csp_block(128))
    sections += (prediction, "yolo mask=0,1 anchors=30,40,60,90 num=2 classes=2")
    cfg, names = tmp_path / "mish.cfg", tmp_path / "mish.names"
    cfg.write_text(_mish(sections))
    names.write_text("one\ntwo\n")
    graph = read_darknet(cfg, None, names)
    assert sum(node.attributes.get("activation") == "mish" for node in graph.nodes) == 1 + 4 * 7
    pictures, reference, file = write_pictures(tmp_path / "pictures"), tmp_path / "r.npz", tmp_path / "int8.tflite"
    convert(graph, "int8", file, pictures=pictures, reference=reference)
    content = file.read_bytes()
    found = verify(graph, content, contract_of(graph, content, "int8"), reference=reference)
    assert {output.output: output.decibels for output in found.outputs if output.decibels < 15} == {}
    # Integers throughout, all of them XNNPACK's.
    delegated = Model(content).delegated
    assert delegated.nodes == delegated.total
