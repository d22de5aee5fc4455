"""Scaled channels: the file computes what it computed, int8's range is filled, and what cannot be scaled stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tflite import Builder

from toolchain.equalization import Equalized, equalized, scalable

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors")

NONE, RELU, RELU6 = (getattr(schema.ActivationFunctionType, name) for name in ("NONE", "RELU", "RELU6"))
SIDE = 6
#: Of float32: half the distance from 1 to the next.
EPSILON = 2.0**-24


class Net:
    """A float .tflite whose channels differ in size by up to four powers of ten.

    absolute: with all weights, biases and the picture without their sign. What it computes bounds, by the triangle
    inequality, every sum of absolute products behind a value of the plain one.
    """

    def __init__(self, absolute: bool = False, seed: int = 0, decades: float = 2.0) -> None:
        self._builder, self._random = Builder(), np.random.default_rng(seed)
        self._absolute, self._decades = absolute, decades
        #: Roundings along a path through all layers, at most.
        self.roundings = 0
        self.names: dict[str, int] = {}
        self.image = self._tensor("image", (1, SIDE, SIDE, 3))

    def _tensor(self, name: str, shape: Sequence[int]) -> int:
        self.names[name] = self._builder.tensor(name, shape)
        return self.names[name]

    def shape(self, tensor: int) -> list[int]:
        return list(self._builder.graph.tensors[tensor].shape)

    def constant(self, name: str, values: np.ndarray) -> int:
        return self._builder.tensor(name, values.shape, data=np.abs(values) if self._absolute else values)

    def weights(self, filters: int, size: int, cin: int) -> np.ndarray:
        sizes = 10.0 ** self._random.uniform(-self._decades, self._decades, (filters, 1, 1, 1))
        return self._random.normal(0, 1, (filters, size, size, cin)) * sizes

    def conv(
        self, name: str, source: int, filters: int, size: int = 1, fused: int = NONE, kernel: int | None = None,
        bias: int | None = None,
    ) -> int:  # fmt: skip
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = 1
        options.fusedActivationFunction = fused
        _, height, width, cin = self.shape(source)
        drawn = self.weights(filters, size, cin)
        kernel = self.constant(f"{name}_kernel", drawn) if kernel is None else kernel
        if bias is None:
            bias = self.constant(f"{name}_bias", self._random.normal(0, 1, filters) * np.abs(drawn).max((1, 2, 3)))
        written = self._tensor(name, (1, height, width, filters))
        self._builder.operation("CONV_2D", [source, kernel, bias], [written], options)
        # A product and a sum for each weight, the bias, and the weight and the bias that were rounded when scaled.
        self.roundings += 2 * size**2 * cin + 3
        return written

    def depthwise(self, name: str, source: int, fused: int = NONE, multiplier: int = 1) -> int:
        options = schema.DepthwiseConv2DOptionsT()
        options.strideH = options.strideW = 1
        options.depthMultiplier, options.fusedActivationFunction = multiplier, fused
        shape = self.shape(source)
        channels = shape[3] * multiplier
        kernel = self.constant(f"{name}_kernel", self._random.normal(0, 1, (1, 3, 3, channels)))
        bias = self.constant(f"{name}_bias", self._random.normal(0, 1e-3, channels))
        written = self._tensor(name, (*shape[:3], channels))
        self._builder.operation("DEPTHWISE_CONV_2D", [source, kernel, bias], [written], options)
        self.roundings += 2 * 3 * 3 + 3
        return written

    def plain(self, name: str, code: str, sources: Sequence[int], options: object = None, channels: int = 0) -> int:
        """An operation that keeps height and width."""
        shape = self.shape(sources[0])
        written = self._tensor(name, (*shape[:3], channels or shape[3]))
        self._builder.operation(code, list(sources), [written], options)
        self.roundings += 1
        return written

    def leaky(self, name: str, source: int) -> int:
        options = schema.LeakyReluOptionsT()
        options.alpha = 0.1
        return self.plain(name, "LEAKY_RELU", [source], options)

    def add(self, name: str, first: int, second: int) -> int:
        return self.plain(name, "ADD", [first, second], schema.AddOptionsT())

    def concat(self, name: str, *sources: int) -> int:
        options = schema.ConcatenationOptionsT()
        options.axis = -1
        channels = sum(self.shape(source)[3] for source in sources)
        return self.plain(name, "CONCATENATION", sources, options, channels)

    def pool(self, name: str, code: str, source: int) -> int:
        options = schema.Pool2DOptionsT()
        options.strideH = options.strideW = 1
        options.filterHeight = options.filterWidth = 3
        self.roundings += 3 * 3 - 1
        return self.plain(name, code, [source], options)

    def finish(self, *outputs: int) -> bytes:
        return self._builder.finish({"image": self.image}, {f"out_{index}": one for index, one in enumerate(outputs)})


def picture(absolute: bool = False) -> np.ndarray:
    values = np.random.default_rng(99).normal(0, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
    return np.abs(values) if absolute else values


def inside(content: bytes, image: np.ndarray) -> dict[str, np.ndarray]:
    """What every tensor holds, by name."""
    interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    tensors = {one["name"]: one["index"] for one in interpreter.get_tensor_details() if one["name"]}
    return {name: interpreter.get_tensor(index).copy() for name, index in tensors.items()}


def scaled(net: Net, content: bytes) -> tuple[Equalized, dict[str, np.ndarray]]:
    """Scaled by what one picture shows; and what all tensors held before."""
    before = inside(content, picture())
    free = scalable(content)
    return equalized(content, *ends(net, before, free)), before


def ends(net: Net, before: dict[str, np.ndarray], of: Collection[int]) -> list[dict[int, np.ndarray]]:
    """Greatest absolute values, and highest values, of the channels of some tensors."""
    wanted = {index: before[name].max((0, 1, 2)) for name, index in net.names.items() if index in of}
    sizes = {index: np.abs(before[name]).max((0, 1, 2)) for name, index in net.names.items() if index in of}
    return [sizes, wanted]


def chain(net: Net) -> list[int]:
    first = net.conv("first", net.image, 4, 3, RELU)
    deep = net.leaky("leaky", net.depthwise("deep", first))
    return [net.conv("near", deep, 5), net.conv("far", net.conv("second", deep, 4), 2)]


def residual(net: Net) -> list[int]:
    first = net.leaky("first_leaky", net.conv("first", net.image, 4))
    second = net.leaky("second_leaky", net.conv("second", first, 4, 3))
    return [net.conv("out", net.add("sum", first, second), 3)]


def joined(net: Net) -> list[int]:
    first, second = net.conv("first", net.image, 4, 1, RELU), net.conv("second", net.image, 3)
    pooled = net.pool("mean", "AVERAGE_POOL_2D", net.pool("greatest", "MAX_POOL_2D", first))
    return [net.conv("out", net.concat("both", pooled, second), 3), net.conv("beside", second, 2)]


SCALED = {"chain": ("first", "deep", "second"), "residual": ("first", "second"), "joined": ("first", "second")}
NETS: dict[str, Callable[[Net], list[int]]] = {"chain": chain, "residual": residual, "joined": joined}


def same(name: str, seed: int, decades: float) -> Equalized:
    """Scales a network and holds the outputs against those before. Both files round each value on a path once a
    rounding, by EPSILON of the sum of absolute products at most; to first order the roundings add up."""
    net = Net(seed=seed, decades=decades)
    found, before = scaled(net, net.finish(*NETS[name](net)))
    bound = Net(absolute=True, seed=seed, decades=decades)
    sums = inside(bound.finish(*NETS[name](bound)), picture(absolute=True))
    after = inside(found.content, picture())
    for output in ("out", "near", "far", "beside"):
        if output in net.names:
            assert (np.abs(after[output] - before[output]) <= 2 * net.roundings * EPSILON * sums[output]).all()
    return found


@pytest.mark.parametrize("name", NETS)
def test_the_scaled_file_computes_what_it_computed(name: str) -> None:
    found = same(name, 0, 2.0)
    assert found.layers == SCALED[name]
    # Channels of several sizes were really brought together.
    assert all(values.max() > 10 * values.min() > 0 for values in found.scales.values())


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(NETS)), seed=st.integers(0, 10**6), decades=st.floats(0, 4))
def test_any_weights_keep_what_is_computed(name: str, seed: int, decades: float) -> None:
    same(name, seed, decades)


def test_channels_that_only_a_depthwise_convolution_reads_become_equally_large() -> None:
    net = Net()
    found, before = scaled(net, net.finish(*chain(net)))
    sizes = np.abs(before["first"]).max((0, 1, 2))
    np.testing.assert_array_equal(found.scales[net.names["first"]], sizes.astype(np.float32))
    # 3 * 3 * 3 products and sums, the bias, and the scaled weights; their absolute sum before the scale.
    absolute = Net(absolute=True)
    sums = inside(absolute.finish(*chain(absolute)), picture(absolute=True))["first"].max((0, 1, 2)) / sizes
    after = np.abs(inside(found.content, picture())["first"]).max((0, 1, 2))
    assert (np.abs(after - 1) <= 2 * (2 * 27 + 3) * EPSILON * sums).all()


def test_a_dense_reader_pays_with_its_weights() -> None:
    """s = r^0.7 / w^0.3, w being a weight's share in its filter's greatest."""
    net = Net()
    kernel = np.array([[2.0, -1.0], [0.5, 4.0], [0.0, 1.0]]).reshape(3, 1, 1, 2)
    first = net.conv("first", net.image, 2)
    content = net.finish(net.conv("out", first, 3, kernel=net.constant("kernel", kernel)))
    found = equalized(content, {first: np.array([32.0, 1e-5])}, {})
    # Channel 0 is all of filter 0 and 1/8 of filter 1; channel 1 all of filter 1.
    np.testing.assert_allclose(found.scales[first], [32**0.7 / 1.0**0.3, 1e-5**0.7], rtol=2 * EPSILON)


def test_a_channel_that_hardly_a_weight_reads_counts_as_half_a_step() -> None:
    net = Net()
    kernel = np.stack([np.ones((3, 1, 1)), np.full((3, 1, 1), 0.4 / 127)], axis=-1)
    first = net.conv("first", net.image, 2)
    content = net.finish(net.conv("out", first, 3, kernel=net.constant("kernel", kernel)))
    found = equalized(content, {first: np.array([1.0, 2.0])}, {})
    np.testing.assert_allclose(found.scales[first], [1.0, 2**0.7 / (0.5 / 127) ** 0.3], rtol=2 * EPSILON)


def test_summands_share_their_scales_and_a_concatenation_keeps_its_parts_own() -> None:
    net = Net()
    found, _ = scaled(net, net.finish(*residual(net)))
    for name in ("second", "second_leaky", "first_leaky", "sum"):
        np.testing.assert_array_equal(found.scales[net.names[name]], found.scales[net.names["first"]])
    net = Net()
    found, _ = scaled(net, net.finish(*joined(net)))
    parts = [found.scales[net.names[name]] for name in ("mean", "second")]
    np.testing.assert_array_equal(found.scales[net.names["both"]], np.concatenate(parts))
    assert found.scales[net.names["both"]].shape == (4 + 3,)


def fused_relu6(net: Net) -> list[int]:
    return [net.conv("out", net.conv("first", net.image, 4, 1, RELU6), 3)]


def silu(net: Net) -> list[int]:
    first = net.conv("first", net.image, 4)
    gate = net.plain("gate", "LOGISTIC", [first])
    return [net.conv("out", net.plain("silu", "MUL", [first, gate], schema.MulOptionsT()), 3)]


def one_kernel_for_two(net: Net) -> list[int]:
    kernel = net.constant("kernel", net.weights(4, 1, 4))
    first = net.conv("first", net.conv("before", net.image, 4, 1, RELU6), 4, kernel=kernel)
    return [net.conv("out", net.conv("second", first, 4, kernel=kernel), 3)]


def an_output_that_is_read_on(net: Net) -> list[int]:
    first = net.conv("first", net.image, 4)
    return [first, net.conv("out", first, 3)]


def several_outputs_a_channel(net: Net) -> list[int]:
    first = net.conv("first", net.image, 2)
    return [net.conv("out", net.depthwise("deep", first, multiplier=2), 3)]


def in_groups(net: Net) -> list[int]:
    first = net.conv("first", net.image, 4)
    return [net.conv("out", first, 4, kernel=net.constant("kernel", net.weights(4, 1, 2)))]


def a_sum_with_what_stays(net: Net) -> list[int]:
    first, second = net.conv("first", net.image, 4), net.conv("second", net.image, 4, 1, RELU6)
    return [net.conv("out", net.add("sum", first, second), 3)]


def joined_with_what_stays(net: Net) -> list[int]:
    """first's channels could be scaled, but they share a tensor, and so a step, with the picture's."""
    first = net.conv("first", net.image, 4)
    return [net.conv("out", net.concat("both", first, net.image), 3)]


def a_sum_with_a_constant(net: Net) -> list[int]:
    first = net.conv("first", net.image, 4)
    offset = net.constant("offset", np.ones((1, SIDE, SIDE, 4)))
    return [net.conv("out", net.add("sum", first, offset), 3)]


def joined_with_a_constant(net: Net) -> list[int]:
    first = net.conv("first", net.image, 4)
    return [net.conv("out", net.concat("both", first, net.constant("more", np.ones((1, SIDE, SIDE, 2)))), 3)]


STAYING = (
    fused_relu6, silu, one_kernel_for_two, an_output_that_is_read_on, several_outputs_a_channel, in_groups,
    a_sum_with_what_stays, joined_with_what_stays, a_sum_with_a_constant, joined_with_a_constant,
)  # fmt: skip


@pytest.mark.parametrize("build", STAYING)
def test_what_cannot_be_scaled_stays(build: Callable[[Net], list[int]]) -> None:
    net = Net()
    content = net.finish(*build(net))
    assert scalable(content) == frozenset()
    # Not even where it is told of every tensor.
    before = inside(content, picture())
    found = equalized(content, *ends(net, before, net.names.values()))
    assert (found.content, dict(found.scales), found.layers) == (content, {}, ())


def test_two_convolutions_may_share_a_bias_of_zeros() -> None:
    net = Net()
    bias = net.constant("bias", np.zeros(4))
    first = net.conv("first", net.image, 4, 1, RELU, bias=bias)
    content = net.finish(net.conv("out", net.conv("second", first, 4, bias=bias), 3))
    found, before = scaled(net, content)
    assert found.layers == ("first", "second")
    assert not inside(found.content, picture())["bias"].any()
    net = Net()
    bias = net.constant("bias", np.ones(4))
    first = net.conv("first", net.image, 4, 1, RELU, bias=bias)
    assert scalable(net.finish(net.conv("out", net.conv("second", first, 4, bias=bias), 3))) == frozenset()


def test_a_dead_channel_and_one_that_is_not_finite_keep_their_size() -> None:
    net = Net()
    content = net.finish(*chain(net))
    first = net.names["first"]
    found = equalized(content, {first: np.array([0.0, np.inf, 1e-3, 4.0])}, {})
    np.testing.assert_array_equal(found.scales[first], np.array([1, 1, 1e-3, 4], np.float32))
    # Nothing is told of the others.
    assert set(found.scales) == {first} and found.layers == ("first",)
    assert equalized(content, {}, {}).content == content


#: Biases that leave the first two channels below 0 everywhere, one of them far, and the third above.
BELOW = np.array([-1e3, -1e5, 1e3, 0.0])


def below(net: Net, between: Callable[[Net, int], int] = lambda _, tensor: tensor) -> list[int]:
    kernel = net.constant("kernel", np.random.default_rng(5).normal(0, 1, (4, 1, 1, 3)))
    first = net.conv("first", net.image, 4, kernel=kernel, bias=net.constant("bias", BELOW))
    return [net.conv("out", net.depthwise("deep", between(net, net.leaky("leaky", first))), 3)]


def test_a_channel_that_stays_below_zero_passes_a_leaky_relu_with_its_sign_turned() -> None:
    net = Net()
    found, before = scaled(net, net.finish(*below(net)))
    first, leaky = (found.scales[net.names[name]] for name in ("first", "leaky"))
    assert (leaky[:2] < 0).all() and (leaky[2:] > 0).all()
    # 10 times as wide as without the turn, once rounded in the division by LeakyReLU's own 0.1.
    np.testing.assert_allclose(leaky[:2], -np.abs(before["leaky"]).max((0, 1, 2))[:2], rtol=4 * EPSILON)
    np.testing.assert_allclose(first, np.where(leaky < 0, leaky / 0.1, leaky), rtol=4 * EPSILON)
    after = inside(found.content, picture())
    assert (after["first"][..., :2] > 0).all()
    np.testing.assert_array_equal(after["leaky"][..., :3], after["first"][..., :3])
    bound = Net(absolute=True)
    sums = inside(bound.finish(*below(bound)), picture(absolute=True))
    # Without signs a channel below 0 leaves LeakyReLU 10 times as large: the bound is as much wider.
    assert (np.abs(after["out"] - before["out"]) <= 2 * net.roundings * EPSILON * sums["out"]).all()


@pytest.mark.parametrize(
    "between",
    [
        lambda net, tensor: net.pool("pool", "MAX_POOL_2D", tensor),
        lambda net, tensor: net.leaky("again", tensor),
        lambda net, tensor: net.add("sum", tensor, net.conv("beside", net.image, 4)),
    ],
)
def test_no_sign_is_turned_where_another_operation_wants_it(between: Callable[[Net, int], int]) -> None:
    net = Net()
    found, before = scaled(net, net.finish(*below(net, between)))
    assert found.layers and all((values > 0).all() for values in found.scales.values())


def test_no_sign_is_turned_where_more_than_a_leaky_relu_reads_the_channel() -> None:
    net = Net()
    first = net.conv("first", net.image, 4, bias=net.constant("bias", BELOW))
    found, _ = scaled(net, net.finish(net.conv("out", net.leaky("leaky", first), 3), net.conv("beside", first, 2)))
    assert found.layers == ("first",) and (found.scales[first] > 0).all()
