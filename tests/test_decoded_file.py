"""Files for other people's programs: they detect what slimdet's own file detects, on the same body."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_tflite
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType
from flatbuffers import number_types
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tflite_metadata import metadata, root
from toy_network import SIDE, converted, toy_graph
from voc_folder import COLORS, add_picture, xml

from benchmarks.accuracy import measure_accuracy
from deploy import model_file
from deploy.contract import PRECISIONS, Client, Contract, PostprocessHead, YoloHead
from deploy.decode import decode
from deploy.detections import Detections
from deploy.detector import Detector
from deploy.errors import ContractError, ConversionError, InputError
from deploy.interpreter import Model
from toolchain import decoded_file
from toolchain.convert import convert
from toolchain.decoded_file import CONF, IOU, LIMIT, client_file, decoded, write_decoded
from toolchain.flatbuffer_graph import FlatbufferGraph, unpacked
from toolchain.package import contract_of
from toolchain.quantize import Int8


@functools.cache
def own_body(precision: str) -> bytes:
    file = converted() / f"{precision}.tflite"
    if not file.exists():
        pictures = sorted((converted() / "pictures").iterdir())
        float_file = converted() / "float32.tflite"
        # Any loss is allowed, so that no layer of int8_mixed stays float.
        loose = Int8(max_map_loss=1.0)
        convert(toy_graph(), precision, file, pictures=pictures, float_file=float_file, int8=loose)
    return file.read_bytes()


def own(precision: str = "float32", **input: object) -> tuple[bytes, Contract]:
    """The toy network's file, whose pictures are stretched."""
    body = own_body(precision)
    contract = contract_of(toy_graph(), body, precision)
    changed = dataclasses.replace(contract.input, **{"resize": "stretch", **input})  # type: ignore[arg-type]
    return body, dataclasses.replace(contract, input=changed)


def as_mediapipe_feeds(contract: Contract) -> Contract:
    """For a file of ours that is to see the very pixels that MediaPipe's shows its network."""
    return dataclasses.replace(contract, input=dataclasses.replace(contract.input, resize="stretch_asymmetric"))


def with_head(contract: Contract, box: str, classes: str, scale_x_y: float) -> Contract:
    head = contract.head
    assert isinstance(head, YoloHead)
    scales = tuple(dataclasses.replace(scale, scale_x_y=scale_x_y) for scale in head.scales)
    changed = dataclasses.replace(head, box=box, class_activation=classes, scales=scales)  # type: ignore[arg-type]
    return dataclasses.replace(contract, head=changed)


def detections(content: bytes, folder: Path) -> list[Detections]:
    """What deploy finds with the file on every picture of the toy network."""
    (folder / "m.tflite").write_bytes(content)
    detector = Detector(folder / "m.tflite")
    paths = sorted((converted() / "pictures").iterdir())
    return [detector.detect(cv2.imread(str(path))) for path in paths]


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    assert sum(map(len, expected)) > 20
    for new, old in zip(found, expected, strict=True):
        # Equal scores may come in another order: each has its own nearest of its class.
        assert len(new) == len(old)
        apart = np.abs(new.boxes[:, None] - old.boxes[None]).max(2) + np.abs(new.scores[:, None] - old.scores[None])
        nearest = np.where(new.class_ids[:, None] == old.class_ids[None], apart, np.inf).argmin(1)
        assert len(set(nearest.tolist())) == len(old)
        old = old.take(nearest)
        np.testing.assert_array_equal(new.class_ids, old.class_ids)
        # _STEPS roundings of 1 plus the box's side, in pixels of a picture as large as the largest; clipped sides are
        # at most that.
        rounding = decoded_file._STEPS * 2.0**-23
        np.testing.assert_allclose(new.boxes, old.boxes, rtol=0, atol=rounding * 2 * 100)
        np.testing.assert_allclose(new.scores, old.scores, rtol=0, atol=rounding)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("box", "classes", "wide"), [("exp", "sigmoid", 1.0), ("scaled", "softmax", 1.2)])
def test_it_detects_what_the_own_file_detects(
    tmp_path: Path, precision: str, box: str, classes: str, wide: float
) -> None:
    body, contract = own(precision)
    contract = with_head(contract, box, classes, wide)
    expected = detections(model_file.write(body, as_mediapipe_feeds(contract)), tmp_path)
    content = decoded(body, contract, "mediapipe")
    assert_same(detections(content, tmp_path), expected)
    (tmp_path / "m.tflite").write_bytes(content)
    found = Detector(tmp_path / "m.tflite")
    assert found.contract.labels == contract.labels and found.contract.precision == precision
    assert isinstance(found.contract.head, PostprocessHead)
    (entry,) = found.model.inputs
    assert (entry.dtype, entry.shape) == ("float32", (1, SIDE, SIDE, 3))
    # Beside the one operation that is not built in, XNNPACK leaves alone what it left alone before.
    (tmp_path / "own.tflite").write_bytes(model_file.write(body, contract))
    alone = Detector(tmp_path / "own.tflite").model.delegated
    assert found.model.delegated.total - found.model.delegated.nodes == alone.total - alone.nodes + 1


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    ("color", "mean", "std"),
    [
        ("BGR", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
        # In int8 whole steps and thirds of them: nothing lies halfway, where the last bit decides.
        ("RGB", (3.0, 2.0, 0.0), (255.0, 765.0, 255.0)),
        ("BGR", (3.0, 2.0, 0.0), (255.0, 765.0, 255.0)),
    ],
)
def test_other_colours_and_channels_are_put_right_inside(
    tmp_path: Path, precision: str, color: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    body, contract = own(precision, color=color, mean=mean, std=std)
    content = decoded(body, contract, "mediapipe")
    (tmp_path / "m.tflite").write_bytes(content)
    outside = Detector(tmp_path / "m.tflite").contract.input
    assert (outside.color, outside.mean, outside.std) == ("RGB", (0.0,) * 3, (1.0,) * 3)
    if precision == "int8":
        # Integers enter the body either way; a float's last bit would grow from layer to layer.
        same_pixels = model_file.write(body, as_mediapipe_feeds(contract))
        assert_same(detections(content, tmp_path), detections(same_pixels, tmp_path))


def logits_are_the_picture() -> tuple[bytes, Contract]:
    """A body that hands the values of its input on as raw outputs, one after the other."""
    _, contract = tiny_tflite.yolo(resize="stretch")
    builder = tiny_tflite.Builder()
    image = builder.tensor("image", (1, tiny_tflite.HEIGHT, tiny_tflite.WIDTH, 3))
    count = tiny_tflite.HEIGHT * tiny_tflite.WIDTH * 3

    def reshaped(source: int, name: str, shape: tuple[int, ...]) -> int:
        made = builder.tensor(name, shape)
        sides = builder.tensor(f"{name} sides", (len(shape),), "int32", data=shape)
        builder.operation("RESHAPE", [source, sides], [made], schema.ReshapeOptionsT(newShape=list(shape)))
        return made

    row, place, outputs = reshaped(image, "row", (1, count)), 0, {}
    for tensor in contract.tensors[1:]:
        size = int(np.prod(tensor.shape))
        begin = builder.tensor(f"{tensor.name} begin", (2,), "int32", data=(0, place))
        length = builder.tensor(f"{tensor.name} size", (2,), "int32", data=(1, size))
        part = builder.tensor(f"{tensor.name} part", (1, size))
        builder.operation("SLICE", [row, begin, length], [part], schema.SliceOptionsT())
        outputs[tensor.name] = reshaped(part, tensor.name, tensor.shape)
        place += size
    return builder.finish({"image": image}, outputs), contract


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.1, 3.0, 30.0, 1000.0]),
    kinds=st.sampled_from([("exp", "sigmoid", 1.0), ("scaled", "softmax", 1.2), ("exp", "softmax", 1.05)]),
)
def test_any_logits_are_decoded_as_deploy_does(seed: int, spread: float, kinds: tuple[str, str, float]) -> None:
    body, contract = logits_are_the_picture()
    contract = with_head(contract, *kinds)
    assert isinstance(contract.head, YoloHead)
    joined = decoded_file._joined(body, contract, contract.head, contract.input)
    shape = contract.tensors[0].shape
    picture = np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)
    expected = decode(Model(body).run({"image": picture}), contract, 0.0)
    found = Model(joined).run({"image": picture})
    assert decoded_file._off(found["boxes"][0], found["scores"][0], expected, contract.input) <= 1


def test_one_mean_for_all_channels_stays_what_it_was() -> None:
    body, contract = own(mean=(127.5,) * 3, std=(127.5,) * 3)
    model = unpacked(decoded(body, contract, "mediapipe"))
    codes = {code.builtinCode for code in model.operatorCodes}
    assert not codes & {BuiltinOperator.SUB, BuiltinOperator.DIV}
    (subgraph,) = root(metadata(decoded(body, contract, "mediapipe"))).tables(3)
    (unit,) = subgraph.tables(2)[0].tables(4)
    assert unit.union(1).numbers(0, number_types.Float32Flags) == [127.5] * 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_body_stays_to_the_bit(precision: str) -> None:
    body, contract = own(precision)
    before, after = unpacked(body), unpacked(decoded(body, contract, "task-library"))

    def constants(model: object, count: int) -> list[bytes]:
        graph = model.subgraphs[0]  # type: ignore[attr-defined]
        buffers = model.buffers  # type: ignore[attr-defined]
        contents = [buffers[tensor.buffer].data for tensor in graph.tensors[:count]]
        return [b"" if content is None else bytes(content) for content in contents]

    count = len(before.subgraphs[0].tensors)
    assert constants(after, count) == constants(before, count) and sum(map(len, constants(before, count))) > 10_000
    front = precision.startswith("int8")
    body_part = after.subgraphs[0].operators[front : front + len(before.subgraphs[0].operators)]
    for old, new in zip(before.subgraphs[0].operators, body_part, strict=True):
        assert (new.inputs, new.outputs, new.builtinOptionsType) == (old.inputs, old.outputs, old.builtinOptionsType)


@pytest.mark.parametrize(("client", "resize"), [("mediapipe", "stretch_asymmetric"), ("task-library", "stretch")])
def test_slimdet_feeds_a_clients_file_as_the_client_does(client: Client, resize: str, tmp_path: Path) -> None:
    body, contract = own()
    (tmp_path / "m.tflite").write_bytes(decoded(body, contract, client))
    assert Detector(tmp_path / "m.tflite").contract.input.resize == resize


def test_no_tensor_is_beyond_what_delegates_take() -> None:
    model = unpacked(decoded(*own(), "mediapipe"))
    for tensor in model.subgraphs[0].tensors:
        assert len(tensor.shape) <= 4 and tensor.type in (TensorType.FLOAT32, TensorType.INT32)


def test_what_is_fixed_inside_is_what_deploy_takes_by_default() -> None:
    defaults = {name: value.default for name, value in inspect.signature(Detector.__init__).parameters.items()}
    assert (CONF, IOU, LIMIT) == (defaults["conf"], defaults["iou"], defaults["limit"])


def test_other_programs_find_the_outputs_by_name() -> None:
    found = root(metadata(decoded(*own(), "mediapipe")))
    assert "MediaPipe Tasks" in found.text(1)
    (subgraph,) = found.tables(3)
    names = ["location", "category", "score", "number of detections"]
    assert [output.text(0) for output in subgraph.tables(3)] == names


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    body, contract = own("int8")
    (tmp_path / "own.tflite").write_bytes(model_file.write(body, contract))
    notes = [write_decoded(tmp_path / "own.tflite", "task-library", tmp_path / name) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert notes[0] == notes[1] and "Task Library" in notes[0][0] and str(CONF) in notes[0][0]
    assert client_file("net_int8.tflite", "task-library") == "net_int8_task-library.tflite"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: dataclasses.replace(c, input=dataclasses.replace(c.input, resize="letterbox")), "grey bars"),
        (lambda c: dataclasses.replace(c, head=PostprocessHead("a", "b", "c", "d")), "not postprocess"),
    ],
)
def test_what_cannot_serve_is_refused(change: Callable[[Contract], Contract], sentence: str) -> None:
    body, contract = own()
    with pytest.raises(ConversionError, match=sentence):
        decoded(body, change(contract), "mediapipe")


def test_a_file_with_two_signatures_is_refused() -> None:
    body, _ = tiny_tflite.yolo(signatures=("serving_default", "other"))
    with pytest.raises(ConversionError, match="one subgraph and one signature, not 1 and 2"):
        FlatbufferGraph(body)


@pytest.mark.parametrize("place", ["boxes", "scores"])
def test_decoding_that_went_wrong_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    body, contract = own()
    (tmp_path / "own.tflite").write_bytes(model_file.write(body, contract))
    (tmp_path / "new.tflite").write_bytes(b"old")
    real = getattr(decoded_file, f"_scale_{place}")

    def wrong(graph: FlatbufferGraph, *arguments: object) -> int:
        made = real(graph, *arguments)
        return graph.binary("ADD", made, graph.constant("off", np.array([1e-4], np.float32)))

    monkeypatch.setattr(decoded_file, f"_scale_{place}", wrong)
    with pytest.raises(ConversionError, match="float roundings off"):
        write_decoded(tmp_path / "own.tflite", "mediapipe", tmp_path / "new.tflite")
    assert (tmp_path / "new.tflite").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.tflite", "own.tflite"]


def test_a_destination_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    body, contract = own()
    (tmp_path / "own.tflite").write_bytes(model_file.write(body, contract))
    with pytest.raises(InputError, match="cannot write"):
        write_decoded(tmp_path / "own.tflite", "mediapipe", tmp_path / "missing" / "new.tflite")


def test_labels_that_were_exchanged_are_refused(tmp_path: Path) -> None:
    content = decoded(*own(), "mediapipe")
    (tmp_path / "m.tflite").write_bytes(content[: content.index(b"PK\3\4")])
    with pytest.raises(ContractError, match="no slimdet metadata"):
        model_file.read(tmp_path / "m.tflite")


def dots(folder: Path) -> Path:
    """VOC layout: a dot in a cell's corner, where the tiny detector sees a box of its first anchor around the cell's
    middle."""
    width, height = tiny_tflite.ANCHORS[0]
    for index, color in enumerate(("red", "blue")):
        add_picture(folder, f"{index:03d}", color)
        row, column = 0, 1 + index
        pixels = np.zeros((tiny_tflite.HEIGHT, tiny_tflite.WIDTH, 3), np.uint8)
        pixels[row * tiny_tflite.STRIDE, column * tiny_tflite.STRIDE] = COLORS[color]
        cv2.imwrite(str(folder / "JPEGImages" / f"{index:03d}.png"), pixels)
        x, y = (column + 0.5) * tiny_tflite.STRIDE, (row + 0.5) * tiny_tflite.STRIDE
        box = (x - width / 2 + 1, y - height / 2 + 1, x + width / 2, y + height / 2)
        note = xml((tiny_tflite.WIDTH, tiny_tflite.HEIGHT), [(color, box, 0)])
        (folder / "Annotations" / f"{index:03d}.xml").write_text(note)
    return folder


def test_accuracy_is_measured_on_it(tmp_path: Path) -> None:
    body, contract = tiny_tflite.yolo("int8", resize="stretch")
    (tmp_path / "m.tflite").write_bytes(decoded(body, contract, "task-library"))
    result = measure_accuracy(tmp_path / "m.tflite", dots(tmp_path / "voc"), "test", "voc")
    # The second anchor's box is a false alarm with the same score.
    assert result["images"] == 2 and result["map"] >= 0.5
    (tmp_path / "own.tflite").write_bytes(model_file.write(body, contract))
    own_result = measure_accuracy(tmp_path / "own.tflite", tmp_path / "voc", "test", "voc", conf=CONF, iou=IOU)
    assert result["per_class"] == own_result["per_class"]
