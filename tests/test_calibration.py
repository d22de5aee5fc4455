"""Ranges by each rule, against arithmetic and brute force; and values that are not finite."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import converted, toy_graph

from deploy.errors import ConversionError, InputError
from toolchain import calibration as module
from toolchain.calibration import RULES, Calibration, Observed, Rule, lineage_of, observe, ranges, written
from toolchain.quantize import quantize

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors")

BINS, STEPS = 2048, 255
#: What the toy's first layer writes.
FIRST = "conv_0_bn_1/batchnorm/add_1;conv_0_1/convolution;conv_0_bn_1/batchnorm/sub1"


def content() -> bytes:
    return (converted() / "float32.tflite").read_bytes()


def pictures() -> list[Path]:
    return sorted((converted() / "pictures").iterdir())


@functools.cache
def observed() -> Observed:
    image = toy_graph().input
    assert image is not None
    return observe(content(), image, pictures(), frozenset())


@functools.cache
def by_rule(rule: Rule) -> dict[str, tuple[float, float]]:
    image = toy_graph().input
    assert image is not None
    found = ranges(content(), observed(), image, pictures(), rule)
    assert all(ends[key].shape == (1,) and ends[key].dtype == np.float32 for ends in found.values() for key in ends)
    return {name: (float(ends["min"][0]), float(ends["max"][0])) for name, ends in found.items()}


def outputs() -> set[str]:
    return {name for name in written(content()).values() if name.startswith("PartitionedCall")}


def test_mean_and_moving_average_by_arithmetic() -> None:
    low, high = np.array([-1.0, -2.0, -6.0]), np.array([1.0, 5.0, 3.0])
    assert module._averaged(low, high, "mean") == (-3.0, 3.0)
    # new = 0.9 old + 0.1 picture: the first has 0.9², the second 0.1 * 0.9.
    found = module._averaged(low, high, "moving_average")
    expected = 0.9 * (0.9 * -1 + 0.1 * -2) + 0.1 * -6, 0.9 * (0.9 * 1 + 0.1 * 5) + 0.1 * 3
    assert found == pytest.approx(expected, rel=1e-12)
    assert module._averaged(low[:1], high[:1], "moving_average") == (-1.0, 1.0)


def test_percentile_by_arithmetic() -> None:
    """Bins of 1 from 0 on: 5 of 100,000 values may lie beyond either end."""
    counts = np.zeros(BINS, np.int64)
    counts[[0, 1, 2]] = 2, 3, 1  # 5 below 2, 6 below 3
    counts[1000] = 100_000 - 12
    counts[[2046, 2047]] = 2, 4  # 4 above 2047, 6 above 2046
    assert module._percentile(counts, 0.0, float(BINS)) == (2.0, 2047.0)
    counts = np.zeros(BINS, np.int64)
    counts[7] = 10
    # One bin holds everything.
    assert module._percentile(counts, 0.0, float(BINS)) == (7.0, 8.0)


def _cost(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The sum of squared errors, by the formula in _least_squares, of the values themselves; and by how much it may
    differ where each is taken for the middle of its bin, half a width h away at most: of (e - x)² it is
    h |e - x| + h²/4. No value changes its side of the ends, which are edges of bins."""
    width, step = (values.max() - values.min()) / BINS, (high - low) / STEPS
    inside = (values >= low) & (values <= high)
    beyond = np.where(values < low, low - values, values - high)[~inside]
    return step**2 / 12 * inside.sum() + (beyond**2).sum(), (width * beyond + width**2 / 4).sum()


def _counts(values: np.ndarray) -> np.ndarray:
    return np.histogram(values, BINS, (values.min(), values.max()))[0]


def _samples(seed: int, tail: float) -> np.ndarray:
    """Values from -1024 to 1024 with a tail; none but the ends lies on an edge of a bin, which are whole numbers."""
    random = np.random.default_rng(seed)
    values = np.clip(random.normal(0, 60, 4000) * (1 + tail * random.exponential(1, 4000)), -1023, 1023)
    inner = np.floor(values) + random.uniform(0.1, 0.9, 4000)
    return np.array([-1024.0, 1024.0, *inner])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), tail=st.floats(0, 3))
def test_least_squares_is_the_best_of_all_ends(seed: int, tail: float) -> None:
    values = _samples(seed, tail)
    low, high = module._least_squares(_counts(values), -1024.0, 1024.0)
    found, doubt = _cost(values, low, high)
    # The ends that it may choose: every 16th edge, of which 0 is one.
    for one in range(-1024, 1, 64):
        for other in range(0, 1025, 64):
            if one < other:
                best, less = _cost(values, float(one), float(other))
                assert found <= best + doubt + less + 1e-9 * found


@pytest.mark.parametrize("rule", RULES)
def test_input_and_outputs_by_every_rule(rule: Rule) -> None:
    found, whole = by_rule(rule), by_rule("minmax")
    assert set(found) == {"serving_default_image:0", *written(content()).values()}
    # A pixel of 0 to 255 is 0 to 1, though no picture is black or white.
    assert found["serving_default_image:0"] == (0.0, 1.0)
    assert len(outputs()) == 2 * 4
    assert {name: found[name] for name in outputs()} == {name: whole[name] for name in outputs()}
    # A bin of rounding may lie beyond.
    for name, (low, high) in found.items():
        width = whole[name][1] - whole[name][0]
        assert whole[name][0] - width / BINS <= low < high <= whole[name][1] + width / BINS


def test_minmax_and_mean_are_those_of_the_pictures() -> None:
    for index, name in observed().names.items():
        low, high = observed().low[index], observed().high[index]
        assert low.shape == high.shape == (12, 1)
        assert by_rule("minmax")[name] == (low.min(), high.max())
        if name not in outputs():
            assert by_rule("mean")[name] == pytest.approx((low.mean(), high.mean()), rel=1e-6)


def test_ends_of_channels_and_their_scales() -> None:
    ends = np.array([[-1.0, -8.0], [-3.0, 0.0]]), np.array([[4.0, 1.0], [0.0, 1.0]])
    made = Observed({5: ends[0]}, {5: ends[1]}, {5: "five"}, Calibration())
    # Means of the low ends -2 and -4, of the high ones 2 and 1.
    np.testing.assert_array_equal(made.greatest(5), [2.0, 4.0])
    scaled = made.scaled({5: np.array([2.0, 4.0]), 6: np.array([1.0])})
    np.testing.assert_array_equal(scaled.greatest(5), [1.0, 1.0])
    assert set(scaled.low) == {5} and scaled.names == made.names
    # On any picture, not as a mean; a negative scale exchanges low and high.
    np.testing.assert_array_equal(made.highest(5), [4.0, 1.0])
    np.testing.assert_array_equal(made.scaled({5: np.array([-2.0, 1.0])}).high[5], [[0.5, 1.0], [1.5, 1.0]])


def test_the_manifest_names_every_picture_by_its_content(tmp_path: Path) -> None:
    image, broken = toy_graph().input, tmp_path / "broken.png"
    assert image is not None
    broken.write_bytes(b"no picture")
    good = pictures()[:2]
    found = observe(content(), image, [*good, broken], frozenset()).calibration
    assert found.pictures == tuple((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in good)
    assert found.used == 2 and [text.partition(":")[0] for text in found.skipped] == ["broken.png"]
    with pytest.raises(InputError, match="int8 needs calibration pictures: none of 1 can be read; the first: broken"):
        observe(content(), image, [broken], frozenset())


def test_the_lineage_holds_what_shaped_the_file_and_no_paths() -> None:
    made = Calibration(3, ("a.jpg: damaged",), (("b.jpg", "0" * 64),), "mse", 7, ("note",))
    assert lineage_of(dataclasses.asdict(made)) == {"calibrated_on": 3, "ranges": "mse", "scaled_convolutions": 7}


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_a_value_that_is_not_finite_is_one_sentence_with_the_layer(tmp_path: Path, value: float, word: str) -> None:
    spoilt = tmp_path / "spoilt.tflite"
    spoilt.write_bytes(_with_weight(content(), value))
    sentence = f"int8 ranges are finite: '{FIRST}' computes {word} on 00.png; train or read the weights anew"
    image = toy_graph().input
    assert image is not None
    with pytest.raises(ConversionError) as caught:
        observe(spoilt.read_bytes(), image, pictures(), frozenset())
    assert str(caught.value) == sentence
    if word == "NaN":
        # Also out of the process that quantizes; and nothing is written.
        with pytest.raises(ConversionError, match="computes NaN on 00.png") as caught:
            quantize(spoilt, "int8", tmp_path / "m.tflite", graph=toy_graph(), pictures=pictures()[:1])
        assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == [spoilt.name]


def _with_weight(float_file: bytes, value: float) -> bytes:
    """The file with the bias of its first convolution at this value."""
    changed = bytearray(float_file)
    model = schema.Model.GetRootAs(changed, 0)
    graph = model.Subgraphs(0)
    operators = (graph.Operators(place) for place in range(graph.OperatorsLength()))
    first = next(one for one in operators if one.InputsLength() == 3)
    bias = model.Buffers(graph.Tensors(int(first.Inputs(2))).Buffer()).DataAsNumpy().view(np.float32)
    bias[0] = value
    return bytes(changed)
