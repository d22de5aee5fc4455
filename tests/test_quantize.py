"""The other precisions, made of the one float file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from toy_network import converted, toy_graph, write_pictures

from deploy.detector import Detector
from deploy.errors import ConversionError, InputError
from deploy.interpreter import Model
from deploy.picture import read_picture
from toolchain import quantize as module
from toolchain.calibration import written
from toolchain.convert import convert
from toolchain.intermediates import Intermediates
from toolchain.package import package
from toolchain.quantize import Int8, evenly_spaced, prepare, quantize
from toolchain.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors")


def _tensors(content: bytes) -> dict[str, list[str]]:
    """dtype names of all that each kind of operation reads and writes."""
    interpreter = Interpreter(model_content=content)
    kinds = {details["index"]: np.dtype(details["dtype"]).name for details in interpreter.get_tensor_details()}
    found: dict[str, list[str]] = {}
    for operation in interpreter._get_ops_details():
        used = [kinds[index] for index in (*operation["inputs"], *operation["outputs"]) if index >= 0]
        found.setdefault(operation["op_name"], []).extend(used)
    return found


def test_int8_is_integer_throughout_and_keeps_leaky_relu() -> None:
    found = _tensors((converted() / "int8.tflite").read_bytes())
    assert "LEAKY_RELU" in found
    assert {dtype for used in found.values() for dtype in used} == {"int8", "int32"}


def test_int8_input_keeps_the_exact_grid_of_pixels() -> None:
    """Though the calibration pictures span 40 to 199 only."""
    model = Model((converted() / "int8.tflite").read_bytes())
    (image,) = model.inputs
    assert image.zero_point == -128
    assert image.scale == np.float32(1 / 255)


def test_input_range_follows_mean_and_std(tmp_path: Path) -> None:
    graph = toy_graph()
    assert graph.input is not None
    entry = dataclasses.replace(graph.input, mean=(127.5,) * 3, std=(127.5, 100.0, 127.5))
    pictures = write_pictures(tmp_path / "pictures", 2)
    described = dataclasses.replace(graph, input=entry)
    quantize(converted() / "float32.tflite", "int8", tmp_path / "m.tflite", graph=described, pictures=pictures)
    (image,) = Model((tmp_path / "m.tflite").read_bytes()).inputs
    # The widest channel spans -1.275 to 1.275.
    assert image.scale == pytest.approx(2 * 1.275 / 255, rel=1e-6)


def test_each_int8_output_has_its_own_scale() -> None:
    outputs = Model((converted() / "int8.tflite").read_bytes()).outputs
    assert len({tensor.scale for tensor in outputs}) == len(outputs)
    assert min(tensor.scale for tensor in outputs) > 0


def test_float16_and_dynamic_keep_what_they_should() -> None:
    half, dynamic = (_tensors((converted() / f"{name}.tflite").read_bytes()) for name in ("float16", "dynamic"))
    assert set(half["DEQUANTIZE"]) == {"float16", "float32"}
    assert "int8" in dynamic["CONV_2D"]
    # A depthwise convolution of a dynamic-range file would fall to a slow kernel.
    assert set(dynamic["DEPTHWISE_CONV_2D"]) == {"float32", "int32"} or set(dynamic["DEPTHWISE_CONV_2D"]) == {"float32"}


def test_sizes_shrink_in_order() -> None:
    sizes = {name: (converted() / f"{name}.tflite").stat().st_size for name in ("float32", "float16", "int8")}
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]


def test_pictures_that_cannot_be_read_are_skipped_and_told(tmp_path: Path) -> None:
    good = write_pictures(tmp_path / "good", 3)
    empty, text, cut = tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "cut.png"
    empty.write_bytes(b"")
    text.write_text("no picture")
    cut.write_bytes(good[0].read_bytes()[:60])
    pictures = [good[0], empty, good[1], text, cut, good[2]]
    graph, float_file = toy_graph(), converted() / "float32.tflite"
    found = convert(graph, "int8", tmp_path / "some.tflite", pictures=pictures, float_file=float_file)
    assert found.calibration.used == 3
    assert [note.partition(":")[0] for note in found.calibration.skipped] == ["empty.jpg", "text.png", "cut.png"]
    convert(graph, "int8", tmp_path / "good.tflite", pictures=good, float_file=float_file)
    assert (tmp_path / "some.tflite").read_bytes() == (tmp_path / "good.tflite").read_bytes()
    with pytest.raises(InputError, match=r"none of 2 can be read; the first: empty.jpg"):
        convert(graph, "int8", tmp_path / "none.tflite", pictures=[empty, text], float_file=float_file)
    assert not (tmp_path / "none.tflite").exists()


def test_an_operation_without_integers_is_refused_by_name(tmp_path: Path) -> None:
    """As litert-quantizer leaves it: here without the detour that gives LEAKY_RELU its int8 kernel."""
    content = (converted() / "dynamic.tflite").read_bytes()
    with pytest.raises(ConversionError, match="integers throughout: .*CONV_2D at"):
        module._refuse_floats(content, frozenset())


def test_the_detour_changes_codes_and_nothing_else() -> None:
    content = (converted() / "float32.tflite").read_bytes()
    aliased, own = module._aliased(content)
    assert len(own) == 1 and len(aliased) == len(content)
    assert sum(a != b for a, b in zip(content, aliased)) == 2
    assert module._with_codes(aliased, own) == content


def test_a_float_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"0000TFL3" + bytes(64))
    with pytest.raises(ConversionError, match="quantization of bad.tflite to float16"):
        quantize(tmp_path / "bad.tflite", "float16", tmp_path / "m.tflite")


@pytest.mark.parametrize(("count", "limit", "expected"), [(5, 8, [0, 1, 2, 3, 4]), (8, 4, [0, 2, 4, 6]), (0, 4, [])])
def test_evenly_spaced(count: int, limit: int, expected: list[int]) -> None:
    items = [Path(str(index)) for index in range(count)]
    assert evenly_spaced(items, limit) == [items[index] for index in expected]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy's int8 files in every form, packaged: plain, float_io, float_head, mixed."""
    folder, graph = tmp_path_factory.mktemp("forms"), toy_graph()
    pictures = sorted((converted() / "pictures").iterdir())
    made = {
        "plain": ("int8", Int8()),
        "float_io": ("int8", Int8(float_io=True)),
        "float_head": ("int8_float_head", Int8()),
        "mixed": ("int8_mixed", Int8(max_map_loss=1.0)),
    }
    for name, (precision, int8) in made.items():
        bare = folder / f"bare_{name}.tflite"
        arguments: dict[str, Any] = {"graph": graph, "pictures": pictures, "int8": int8}
        if name == "mixed":
            arguments["progress"] = lambda done, of: told.append((done, of))
        told: list[tuple[float, float]] = []
        calibration = quantize(converted() / "float32.tflite", precision, bare, **arguments)
        notes = {"calibration": dataclasses.asdict(calibration), "told": told}
        (folder / f"{name}.json").write_text(json.dumps(notes))
        package(bare, graph, precision, folder / f"{name}.tflite")
    return {path.name: path for path in folder.iterdir()}


def test_the_whole_output_layers_are_float_and_nothing_else(forms: dict[str, Path]) -> None:
    content = forms["bare_float_head.tflite"].read_bytes()
    model = Model(content)
    assert {tensor.dtype for tensor in model.inputs} == {"int8"}
    assert {tensor.dtype for tensor in model.outputs} == {"float32"}
    plain, found = (_dtypes(one) for one in ((converted() / "int8.tflite").read_bytes(), content))
    inner = written((converted() / "float32.tflite").read_bytes()).values()
    outputs = module.output_writers((converted() / "float32.tflite").read_bytes())
    assert len(outputs) == 2 * 4 and {plain[name] for name in inner} == {"int8"}
    assert {name for name in inner if found[name] == "float32"} == outputs
    notes = json.loads(forms["float_head.json"].read_text())["calibration"]["notes"]
    assert notes[0].startswith("channels of 3 convolutions brought to one size: ")
    roles = [f"{role}_{stride}" for role in ("classes", "objectness", "wh", "xy") for stride in (16, 8)]
    assert notes[1:] == [f"{name}: stays float, it writes an output" for name in roles]


def test_a_file_with_float_ends_computes_with_the_same_integers(forms: dict[str, Path]) -> None:
    content = forms["bare_float_io.tflite"].read_bytes()
    model = Model(content)
    assert {tensor.dtype for tensor in (*model.inputs, *model.outputs)} == {"float32"}
    found = _tensors(content)
    changes = {"QUANTIZE", "DEQUANTIZE"}
    assert {dtype for name, used in found.items() if name not in changes for dtype in used} == {"int8", "int32"}
    # The same pictures on the same integers: what deploy finds is equal but for float32's rounding of a logit.
    plain, other = (Detector(forms[f"{name}.tflite"], conf=0.05) for name in ("plain", "float_io"))
    for path in sorted((converted() / "pictures").iterdir())[:4]:
        one, two = plain.detect(read_picture(path)), other.detect(read_picture(path))
        assert len(one) == len(two) > 0
        np.testing.assert_array_equal(one.class_ids, two.class_ids)
        np.testing.assert_allclose(two.scores, one.scores, rtol=1e-5)
        np.testing.assert_allclose(two.boxes, one.boxes, rtol=1e-5, atol=1e-3)


def test_detections_of_a_float_head_are_nearer_than_a_step(forms: dict[str, Path]) -> None:
    """What enters the last layers is equal: they differ by the rounding of their weights, of at most half a step of
    1/127 of the filter's greatest, and of what they write, by half a step."""
    content = forms["bare_float_head.tflite"].read_bytes()
    plain, head = Detector(forms["plain.tflite"]), Detector(forms["float_head.tflite"])
    assert plain.contract.precision == "int8" and head.contract.precision == "int8_float_head"
    scales = {tensor.name: (tensor.scale, tensor.zero_point) for tensor in plain.model.outputs}
    weights = _kernels(content)
    for path in sorted((converted() / "pictures").iterdir())[:4]:
        picture = read_picture(path)
        integers = {name: values.copy() for name, values in plain.invoke(plain.preprocess(picture)[0]).items()}
        floats = head.invoke(head.preprocess(picture)[0])
        enters = _enters(content, head.preprocess(picture)[0])
        for name, values in floats.items():
            scale, zero_point = scales[name]
            kernel, entered = weights[name], enters[name]
            # (filters,) half a step of each weight, times (rows, columns) the sum of what it meets.
            of_weights = np.abs(kernel).max((1, 2, 3)) / 127 / 2 * np.abs(entered).sum(-1)[..., None]
            near = (integers[name].astype(np.float32) - zero_point) * scale
            low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
            # The bias of int8 has steps as well, finer than the output's; beyond the range values are cut off.
            inside = (near > low) & (near < high)
            assert inside.mean() > 0.9
            assert (np.abs(near - values) <= 1.01 * (of_weights + scale))[inside].all()


def test_a_mixture_says_how_it_was_measured_and_how_far_it_is(forms: dict[str, Path]) -> None:
    assert forms["bare_mixed.tflite"].read_bytes() == (converted() / "int8.tflite").read_bytes()
    told = json.loads(forms["mixed.json"].read_text())
    assert told["told"] == [[1, 2 * 9]]
    notes = told["calibration"]["notes"]
    assert notes[1].startswith("0 of 14 convolutions stay float, with 0 % of the multiplications: int8 ")
    assert notes[2] == "the loss was measured on the calibration's own pictures, for want of others"
    assert Detector(forms["mixed.tflite"]).contract.precision == "int8_mixed"


@pytest.mark.parametrize("name", ["float_io", "float_head", "mixed"])
def test_every_form_is_verified_against_the_model(forms: dict[str, Path], name: str) -> None:
    content = forms[f"bare_{name}.tflite"].read_bytes()
    contract = Detector(forms[f"{name}.tflite"]).contract
    reference = converted() / "reference.npz"
    plain = Detector(forms["plain.tflite"]).contract
    before = (converted() / "int8.tflite").read_bytes()
    files = (content, contract), (before, plain)
    found, other = (verify(toy_graph(), one, told, reference=reference) for one, told in files)
    assert len(found.outputs) == 2 * 4
    for one, two in zip(found.outputs, other.outputs, strict=True):
        if name == "float_head":
            # What was rounded before remains; but the outputs have no steps.
            assert one.measured >= one.bound == two.bound and one.steps == 0.0 < two.steps
        else:
            # Equal integers; a step and a zero point are multiplied in float32, in other orders.
            assert one.measured == pytest.approx(two.measured, rel=1e-4)


def test_without_equalization_nothing_is_scaled(forms: dict[str, Path]) -> None:
    graph, content = toy_graph(), (converted() / "float32.tflite").read_bytes()
    assert graph.input is not None
    found = prepare(content, graph.input, sorted((converted() / "pictures").iterdir())[:2], Int8("minmax", False))
    assert found.content == content
    assert (found.calibration.scaled_convolutions, found.calibration.rule, found.calibration.notes) == (0, "minmax", ())
    scaled = json.loads(forms["plain.json"].read_text())["calibration"]
    assert (scaled["scaled_convolutions"], scaled["rule"]) == (3, "mean")


def _dtypes(content: bytes) -> dict[str, str]:
    details = Interpreter(model_content=content).get_tensor_details()
    return {one["name"]: np.dtype(one["dtype"]).name for one in details}


def _last(content: bytes) -> tuple[Intermediates, dict[str, tuple[int, int]]]:
    """By output, the tensors that the convolution reads which writes it: what enters, and the kernel."""
    inside = Intermediates(content)
    writers = {written[0]: read for _, read, written in inside.operations}
    return inside, {name: (writers[index][0], writers[index][1]) for index, name in inside.output_names.items()}


def _kernels(content: bytes) -> dict[str, np.ndarray]:
    inside, last = _last(content)
    return {name: inside.values(kernel) for name, (_, kernel) in last.items()}


def _enters(content: bytes, image: np.ndarray) -> dict[str, np.ndarray]:
    inside, last = _last(content)
    inside.run(image)
    return {name: inside.values(source) for name, (source, _) in last.items()}
