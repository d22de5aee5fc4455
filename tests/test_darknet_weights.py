import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from toolchain.darknet_weights import (
    MAX_RANDOM_PARAMETERS,
    ConvolutionShape,
    ConvolutionWeights,
    Header,
    from_keras_kernel,
    random_weights,
    read_weights,
    to_keras_kernel,
    write_weights,
)

#: Biases, scales, means, variances and kernel of the first; biases and kernel of the second.
SHAPES = (ConvolutionShape("conv_0", 4, 3, 3, True), ConvolutionShape("conv_1", 2, 4, 1, False))
COUNT = 4 * 4 + 4 * 3 * 3 * 3 + 2 + 2 * 4 * 1 * 1


def written(tmp_path: Path, values: np.ndarray, header: bytes = struct.pack("<iiiQ", 0, 2, 5, 64)) -> Path:
    path = tmp_path / "a.weights"
    path.write_bytes(header + values.astype("<f4").tobytes())
    return path


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (struct.pack("<iiiI", 0, 1, 0, 2**32 - 1), Header(0, 1, 0, 2**32 - 1)),
        (struct.pack("<iiiQ", 0, 2, 0, 2**40), Header(0, 2, 0, 2**40)),
        (struct.pack("<iiiQ", 0, 2, 5, 7), Header(0, 2, 5, 7)),
        (struct.pack("<iiiQ", 1, 0, 0, 7), Header(1, 0, 0, 7)),
    ],
)
def test_arrays_stand_in_the_files_order(tmp_path, header, expected):
    path = written(tmp_path, np.arange(COUNT), header)
    found, (first, second) = read_weights(path, SHAPES)
    assert found == expected
    assert first.biases.tolist() == [0, 1, 2, 3] and first.scales.tolist() == [4, 5, 6, 7]
    assert first.means.tolist() == [8, 9, 10, 11] and first.variances.tolist() == [12, 13, 14, 15]
    assert first.kernel.shape == (4, 3, 3, 3) and first.kernel[1, 2, 0, 1] == 16 + 1 * 27 + 2 * 9 + 0 * 3 + 1
    assert second.biases.tolist() == [124, 125] and second.scales is None and second.kernel[1, 3, 0, 0] == COUNT - 1
    assert write_weights(found, (first, second)) == path.read_bytes()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1))
def test_what_is_written_is_read_again(tmp_path_factory, seen, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(COUNT).astype(np.float32)
    values[12:16] = np.abs(values[12:16])
    path = written(tmp_path_factory.mktemp("w"), values, struct.pack("<iiiQ", 0, 2, 5, seen))
    assert write_weights(*read_weights(path, SHAPES)) == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (-40, rf"{COUNT} parameters, with the header {20 + 4 * COUNT} bytes; .* has {4 * COUNT - 20}: 40 too few"),
        (-1, "1 too few, it ends inside conv_1"),
        (-4 * 11, "44 too few, it ends inside conv_0"),
        (1, "1 too many"),
        (4000, "4,000 too many"),
    ],
)
def test_a_wrong_length_is_refused_with_its_numbers(tmp_path, change, words):
    path = written(tmp_path, np.zeros(COUNT))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(InputError, match=words):
        read_weights(path, SHAPES)


def test_the_length_is_checked_before_anything_is_allocated(tmp_path):
    path = written(tmp_path, np.zeros(4))
    with pytest.raises(InputError, match="1,000,000,001,000,000 parameters"):
        read_weights(path, [ConvolutionShape("conv_0", 1_000_000, 1000, 1000, False)])


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 15, struct.pack("<iiiI", 0, 2, 0, 0), b"version of a pointer to a large file\n", b"\xff" * 60],
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.weights: a darknet .weights file begins with its version"):
        read_weights(path, SHAPES)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.weights", tmp_path):
        with pytest.raises(InputError, match="cannot read the weights"):
            read_weights(path, SHAPES)


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (COUNT - 1, np.nan, "1 of 8 in conv_1's kernel are not"),
        (5, np.inf, "1 of 4 in conv_0's scales are not"),
        (0, -np.inf, "conv_0's biases"),
        (13, -0.5, "one of conv_0 is -0.5"),
    ],
)
def test_values_that_no_training_leaves_are_refused_by_layer(tmp_path, position, value, words):
    values = np.ones(COUNT)
    values[position] = value
    with pytest.raises(InputError, match=words):
        read_weights(written(tmp_path, values), SHAPES)


def test_parameters():
    assert [shape.parameters for shape in SHAPES] == [4 * 4 + 4 * 3 * 3 * 3, 2 + 2 * 4]
    assert sum(shape.parameters for shape in SHAPES) == COUNT


def test_kernels_in_keras_layout():
    kernel = np.arange(6 * 2 * 3 * 3, dtype=np.float32).reshape(6, 2, 3, 3)
    keras = to_keras_kernel(kernel, False, 0)
    assert keras.shape == (3, 3, 2, 6) and keras[2, 1, 0, 5] == kernel[5, 0, 2, 1]
    assert (from_keras_kernel(keras, False) == kernel).all()


def test_depthwise_kernels_in_keras_layout():
    """Filter 5 of 6 over 3 channels is the second of channel 2."""
    kernel = np.arange(6 * 1 * 3 * 3, dtype=np.float32).reshape(6, 1, 3, 3)
    keras = to_keras_kernel(kernel, True, 3)
    assert keras.shape == (3, 3, 3, 2) and keras[2, 1, 2, 1] == kernel[5, 0, 2, 1]
    assert (from_keras_kernel(keras, True) == kernel).all()


def test_random_weights():
    shapes = (ConvolutionShape("conv_0", 64, 32, 3, True), ConvolutionShape("conv_1", 21, 64, 1, False))
    first, second = random_weights(shapes, {"conv_1": 7}, 0)
    # 18,432 draws: their standard deviation is known to 1/sqrt(2*18432) = 0.5 %; four times that.
    assert first.kernel.std() == pytest.approx(math.sqrt(2 / (32 * 3 * 3)), rel=0.021)
    assert second.kernel.std() < 0.012
    assert (first.scales == 1).all() and (first.variances == 1).all()
    assert not first.means.any() and not first.biases.any()
    expected = np.zeros(21, np.float32)
    expected[[4, 11, 18]] = math.log(0.01 / 0.99)
    assert second.biases.tolist() == expected.tolist()


def test_random_weights_depend_on_the_seed_alone():
    def content(seed: int) -> bytes:
        return write_weights(Header(), random_weights(SHAPES, {}, seed))

    assert content(0) == content(0) != content(1)
    kernels = random_weights([ConvolutionShape(f"conv_{index}", 4, 3, 3, False) for index in range(2)], {}, 0)
    assert (kernels[0].kernel != kernels[1].kernel).any()


def test_random_weights_have_a_limit():
    with pytest.raises(InputError, match=f"at most {MAX_RANDOM_PARAMETERS:,} parameters"):
        random_weights([ConvolutionShape("conv_0", 10**6, 10**6, 1, False)], {}, 0)


def test_convolution_weights_write_without_batch_norm():
    layer = ConvolutionWeights(np.zeros(1, np.float32), np.ones((1, 1, 1, 1), np.float32))
    assert write_weights(Header(), [layer])[20:] == struct.pack("<ff", 0, 1)
