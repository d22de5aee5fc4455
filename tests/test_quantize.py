"""The other precisions, made of the one float file."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from toy_network import converted, toy_graph, write_pictures

from deploy.errors import ConversionError, InputError
from deploy.interpreter import Model
from toolchain import quantize as module
from toolchain.convert import convert
from toolchain.quantize import evenly_spaced, quantize


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
