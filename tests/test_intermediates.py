"""What a .tflite computes inside: every layer is seen, as the real numbers that it stands for."""

import numpy as np
import pytest
from toy_network import converted

from deploy.errors import InputError
from deploy.interpreter import Model
from toolchain.intermediates import Intermediates, node_names


def _image(file: Intermediates) -> np.ndarray:
    (tensor,) = file.inputs
    pixels = np.random.default_rng(0).integers(0, 256, tensor.shape)
    if tensor.dtype == "float32":
        return (pixels / 255).astype(np.float32)
    return (pixels - 128).astype(np.int8)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_outputs_are_those_of_the_file(precision: str) -> None:
    content = (converted() / f"{precision}.tflite").read_bytes()
    file, model = Intermediates(content), Model(content, "cpu-builtin")
    image = _image(file)
    file.run(image)
    expected = model.run({"image": image})
    assert set(file.output_names.values()) == set(expected)
    tensors = {tensor.name: tensor for tensor in model.outputs}
    for index, name in file.output_names.items():
        scale, zero_point = tensors[name].scale or 1.0, tensors[name].zero_point
        real = (expected[name].astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        np.testing.assert_array_equal(file.values(index), real)
        assert file.shape(index) == real.shape


def test_layers_inside_stay_as_they_were_written() -> None:
    """Memory that later layers take over otherwise: the padded picture is still there at the end."""
    file = Intermediates((converted() / "float32.tflite").read_bytes())
    image = _image(file)
    file.run(image)
    (pad,) = (index for index in file.written() if file.details[index]["name"].startswith("conv_0_pad"))
    np.testing.assert_array_equal(file.values(pad), np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)]))
    assert file.span(pad) is None


def test_written_are_values_in_the_order_in_which_they_come() -> None:
    file = Intermediates((converted() / "int8.tflite").read_bytes())
    written = file.written()
    places = {index: place for place, (_, _, outputs) in enumerate(file.operations) for index in outputs}
    assert [places[index] for index in written] == sorted(places[index] for index in written)
    assert set(file.output_names) <= set(written) == set(places)
    for index in written:
        low, high, step = file.span(index) or (0.0, 0.0, 0.0)
        assert low <= 0 <= high and high - low == pytest.approx(255 * step)


def test_a_damaged_file_is_refused() -> None:
    content = (converted() / "int8.tflite").read_bytes()
    with pytest.raises(InputError, match="tflite"):
        Intermediates(content[:3000])


@pytest.mark.parametrize(
    ("tensor", "nodes"),
    [
        ("conv_3_bn_1/batchnorm/add_1;conv_3_1/convolution", ("conv_3_bn", "conv_3_bn_1")),
        ("resize/ResizeNearestNeighbor", ("resize",)),
        ("xy_32", ("xy_32",)),
        # A node whose own name ends so is found as well.
        ("conv_1/BiasAdd", ("conv", "conv_1")),
    ],
)
def test_a_tensor_is_called_after_its_node(tensor: str, nodes: tuple[str, ...]) -> None:
    assert node_names(tensor) == nodes
