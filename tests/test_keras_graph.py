"""Keras models as graphs and back, exactly."""

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras_models import assert_round_trip, assert_same_graph, layer_settings, outputs, randomize

from deploy.errors import GraphError
from toolchain.cost import cost
from toolchain.keras_reader import from_keras
from toolchain.keras_writer import to_keras


def _application(name: str) -> None:
    import keras

    model = randomize(getattr(keras.applications, name)(weights=None, input_shape=(128, 128, 3), classes=10))
    graph = assert_round_trip(model, batch=1)
    back = to_keras(graph)
    assert [operation.name for operation in back.operations] == [operation.name for operation in model.operations]
    ours = layer_settings(back)
    assert {layer: ours[layer] for layer in layer_settings(model)} == layer_settings(model)
    assert cost(graph).flops_unknown == ()


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_published_networks_come_back_exactly(name: str) -> None:
    _application(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "ResNet50", "DenseNet121", "ConvNeXtTiny"])
def test_more_published_networks_come_back_exactly(name: str) -> None:
    import keras

    if name != "ConvNeXtTiny":
        _application(name)
        return
    # Its LayerScale is no public layer.
    with pytest.raises(GraphError, match="LayerScale"):
        from_keras(keras.applications.ConvNeXtTiny(weights=None, input_shape=(64, 64, 3), classes=10))


def _one(layer: Any, shape: tuple[int, ...] = (8, 8, 6)) -> Any:
    import keras

    entry = keras.Input(shape)
    return randomize(keras.Model(entry, layer(entry)))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            "Conv2D",
            {
                "filters": 4,
                "kernel_size": 3,
                "groups": 2,
                "dilation_rate": 2,
                "activation": "silu",
                "kernel_regularizer": "l2",
            },
        ),
        (
            "Conv2D",
            {
                "filters": 4,
                "kernel_size": 3,
                "kernel_constraint": "max_norm",
                "bias_regularizer": "l1",
                "trainable": False,
            },
        ),
        ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2, "padding": "same", "use_bias": False}),
        ("SeparableConv2D", {"filters": 4, "kernel_size": 3, "strides": 2, "activation": "relu"}),
        ("Conv2DTranspose", {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1}),
        ("Dense", {"units": 5, "activation": "softmax"}),
        ("BatchNormalization", {"epsilon": 1e-2, "center": False}),
        ("BatchNormalization", {"axis": 1, "scale": False, "trainable": False}),
        ("LayerNormalization", {"axis": [-1, -2]}),
        ("GroupNormalization", {"groups": 3}),
        ("UnitNormalization", {}),
        ("Normalization", {"axis": -1}),
        ("Normalization", {"mean": [1.0] * 6, "variance": [2.0] * 6}),
        ("Rescaling", {"scale": [1.0, 2, 3, 4, 5, 6], "offset": -0.5}),
        ("PReLU", {"shared_axes": [1, 2], "alpha_regularizer": "l2"}),
        ("PReLU", {}),
        ("ReLU", {"max_value": 1.5, "negative_slope": 0.1, "threshold": 0.2}),
        ("LeakyReLU", {"negative_slope": 0.1}),
        ("ELU", {"alpha": 0.7}),
        ("Softmax", {"axis": -2}),
        ("Activation", {"activation": "mish"}),
        ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}),
        ("AveragePooling2D", {"pool_size": 2}),
        ("GlobalAveragePooling2D", {"keepdims": True}),
        ("GlobalMaxPooling2D", {}),
        ("ZeroPadding2D", {"padding": ((1, 2), (3, 0))}),
        ("Cropping2D", {"cropping": ((1, 2), (3, 0))}),
        ("UpSampling2D", {"size": 2, "interpolation": "bilinear"}),
        ("Reshape", {"target_shape": (-1, 12)}),
        ("Permute", {"dims": (3, 1, 2)}),
        ("Flatten", {}),
        ("Dropout", {"rate": 0.3, "seed": 4}),
        ("SpatialDropout2D", {"rate": 0.3}),
        ("GaussianNoise", {"stddev": 0.3}),
        # Without rules: kept as they are.
        ("Conv1D", {"filters": 4, "kernel_size": 3}),
        ("EinsumDense", {"equation": "abcd,de->abce", "output_shape": (8, 8, 4), "bias_axes": "e"}),
        ("Resizing", {"height": 5, "width": 4}),
        ("CenterCrop", {"height": 5, "width": 4}),
        ("TimeDistributed", "Dense"),
        ("Bidirectional", "LSTM"),
        ("SpectralNormalization", "Conv2D"),
    ],
)
def test_layers_come_back_exactly(kind: str, settings: Any) -> None:
    import keras

    if isinstance(settings, str):
        inner = {
            "Dense": lambda: keras.layers.Dense(3),
            "LSTM": lambda: keras.layers.LSTM(3),
            "Conv2D": lambda: keras.layers.Conv2D(3, 1),
        }
        settings = {"layer": inner[settings]()}
    shape = (8, 6) if kind in ("Conv1D", "Bidirectional") else (8, 8, 6)
    model = _one(getattr(keras.layers, kind)(**settings), shape)
    back = to_keras(assert_round_trip(model))
    assert layer_settings(back).keys() == layer_settings(model).keys()
    if kind not in ("TimeDistributed", "Bidirectional", "SpectralNormalization", "EinsumDense"):
        assert layer_settings(back) == layer_settings(model)


def _operations(x: Any) -> dict[str, Any]:
    import keras

    ops = keras.ops
    return {
        "Rescaling": [x * 2.0, 2 * x, x + 1.0, 1.0 + x, x - 0.3, 0.3 - x, x / 4.0, -x],
        "Add": [x + x],
        "Subtract": [x - ops.relu(x)],
        "Multiply": [x * ops.mean(x, axis=(1, 2), keepdims=True)],
        "Maximum": [ops.maximum(x, 0.1 * x)],
        "Minimum": [ops.minimum(x, -x)],
        "Activation": [
            ops.sigmoid(x),
            ops.silu(x),
            ops.relu6(x),
            ops.tanh(x),
            ops.hard_silu(x),
            ops.gelu(x, approximate=False),
        ],
        "LeakyReLU": [ops.leaky_relu(x, 0.1)],
        "ELU": [ops.elu(x, 0.3)],
        "Softmax": [ops.softmax(x, axis=-1)],
        "Slice": [x[..., 1:3], x[:, 2:5], x[:, :, :, -2:], ops.split(x, 2, axis=-1)[0], ops.split(x, [2], axis=-1)[1]],
        "Concatenate": [ops.concatenate([x, x], axis=-1), ops.concatenate([x, x], 1)],
        "Reshape": [ops.reshape(x, (-1, 16, 24))],
        "Permute": [ops.transpose(x, (0, 3, 1, 2))],
        "ZeroPadding2D": [ops.pad(x, ((0, 0), (1, 2), (3, 4), (0, 0)))],
        "MirrorPad": [
            ops.pad(x, ((0, 0), (1, 2), (3, 4), (0, 0)), mode="symmetric"),
            ops.pad(x, ((0, 0), (1, 2), (3, 4), (0, 0)), "reflect"),
        ],
        "GlobalAveragePooling2D": [ops.mean(x, axis=(1, 2)), ops.mean(x, axis=[-2, -3], keepdims=True)],
        "GlobalMaxPooling2D": [ops.max(x, axis=(1, 2))],
        "MaxPooling2D": [ops.max_pool(x, 2), ops.max_pool(x, (3, 2), 1, "same")],
        "AveragePooling2D": [ops.average_pool(x, 2)],
        "Resize": [
            ops.image.resize(x, (16, 16), interpolation="nearest", data_format="channels_last"),
            ops.image.resize(x, (5, 7), interpolation="bilinear", data_format="channels_last"),
        ],
        "ops.TrueDivide": [x / 3.0, 1.0 / (x + 9.0)],
        "ops.Add": [x + np.arange(6, dtype=np.float32)],
        "ops.Multiply": [x * np.float64(3.0)],
        "ops.Power": [ops.power(x + 9.0, 3)],
        "ops.GetItem": [x[:, 0], x[:, ::2], x[..., 1:2, 0:3], x[:, None]],
        "ops.Mean": [ops.mean(x, axis=-1)],
        "ops.Reshape": [ops.reshape(x, (-1, 12))],
        "ops.Gelu": [ops.gelu(x)],
        "ops.Pad": [ops.pad(x, ((0, 0), (1, 2), (3, 4), (0, 0)), constant_values=2.0)],
        "ops.Stack": [ops.stack([x, x], axis=1)],
        "ops.Clip": [ops.clip(x, -0.5, 0.5)],
        "ops.Cast": [ops.cast(x, "int32")],
        "ops.Einsum": [ops.einsum("bhwc,bhwd->bcd", x, x)],
        "ops.Where": [ops.where(x > 0.5, x, 0.0)],
        "ops.ExpandDims": [ops.expand_dims(x, 1)],
    }


def test_operations_are_ops_of_graphs_or_stay_as_they_are() -> None:
    import keras

    entry = keras.Input((8, 8, 6))
    for kind, tensors in _operations(entry).items():
        for tensor in tensors:
            graph = assert_round_trip(keras.Model(entry, tensor))
            assert graph.by_name[graph.outputs[0]].op == kind, tensor


@pytest.mark.parametrize("exact", [0.1, 1 / 3, 1e-30, 7, -2.5])
def test_constants_enter_exactly(exact: float) -> None:
    import keras

    entry = keras.Input((4, 4, 2))
    assert_round_trip(keras.Model(entry, [entry * exact, entry + exact, exact - entry, entry / exact]))


def test_nested_shared_and_frozen_models() -> None:
    import keras

    layers = keras.layers
    inner_entry = keras.Input((8, 8, 4), name="inner_input")
    frozen = layers.BatchNormalization(name="normal")
    frozen.trainable = False
    inner = keras.Model(
        inner_entry,
        layers.Dropout(0.5, name="dropout")(frozen(layers.Conv2D(4, 3, padding="same", name="conv")(inner_entry))),
        name="inner",
    )
    column = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1, name="conv"), layers.ReLU()], name="column")
    entry = keras.Input((8, 8, 4), name="image")
    shared, relu = layers.Conv2D(4, 1, name="shared"), layers.ReLU(name="relu")
    x = inner(entry, training=False)
    x = column(inner(relu(shared(relu(shared(x))))))
    model = randomize(keras.Model(entry, [layers.add([x, column(x)]), x], name="outer"))
    graph = assert_round_trip(model)
    names = [node.name for node in graph.nodes]
    assert names[:4] == ["image", "inner_conv", "inner_normal", "inner_dropout"]
    assert {"shared", "shared_call_2", "relu", "relu_call_2", "column_conv", "inner_conv_call_2"} < set(names)
    assert graph.by_name["shared_call_2"].shared_with == "shared" and not graph.by_name["shared_call_2"].weights
    assert graph.by_name["inner_conv_call_2"].shared_with == "inner_conv"
    assert graph.by_name["relu_call_2"].shared_with == "", "a layer without weights shares nothing"
    assert graph.by_name["inner_normal"].attributes["call"]["kwargs"] == {"training": False}
    assert len(graph.outputs) == 2


def test_a_nested_model_in_a_nested_model_has_both_names() -> None:
    import keras

    def wrap(model: Any, name: str) -> Any:
        entry = keras.Input((4, 4, 3))
        return keras.Model(entry, model(entry), name=name)

    graph = assert_round_trip(randomize(wrap(wrap(wrap(keras.layers.Conv2D(2, 1, name="conv"), "a"), "b"), "c")))
    assert graph.outputs == ("b_a_conv",)


def test_calls_with_keywords_several_inputs_and_several_outputs() -> None:
    import keras

    layers = keras.layers
    first, second = keras.Input((7, 6), name="first"), keras.Input((5, 6), name="second")
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    x = attention(first, second, key=second, use_causal_mask=True)
    x = layers.BatchNormalization()(x, training=False)
    x = layers.Dot(axes=2)([x, second])
    graph = assert_round_trip(randomize(keras.Model([first, second], [x, layers.Average()([first, first])])))
    assert cost(graph).flops_unknown == ("attention", "dot")


def test_a_sequential_model_and_a_fixed_batch() -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 3), batch_size=2), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
    )
    graph = assert_round_trip(randomize(model), batch=2)
    assert graph.nodes[0].attributes == {"shape": [8, 8, 3], "batch_size": 2}


def test_mixed_precision_is_read_as_float32() -> None:
    import keras

    entry = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, dtype="mixed_float16")(entry) * 2.0
    x = keras.layers.Bidirectional(keras.layers.LSTM(2, dtype="mixed_float16"), dtype="mixed_float16")(
        keras.layers.Reshape((-1, 4))(x)
    )
    model = keras.Model(entry, x)
    graph = from_keras(model)
    assert {array.dtype for node in graph.nodes for array in node.weights.values()} == {np.dtype(np.float32)}
    back = to_keras(graph)
    assert back.output.dtype == "float32"
    picture = np.random.default_rng(1).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    # float16 has 11 bits; a convolution and 36 steps of a recurrent layer in it.
    np.testing.assert_allclose(outputs(back, picture)[0], outputs(model, picture)[0], rtol=0, atol=36 * 2.0**-11)


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_random_networks_come_back_exactly(steps: list[tuple[int, int, int]]) -> None:
    import keras

    layers = keras.layers
    tensors = [keras.Input((6, 6, 4))]
    for kind, first, second in steps:
        a, b = tensors[first % len(tensors)], tensors[second % len(tensors)]
        made = [
            lambda: layers.Conv2D(4, 3, padding="same")(a),
            lambda: layers.BatchNormalization()(a),
            lambda: layers.Add()([a, b]),
            lambda: a * b,
            lambda: layers.Concatenate()([a, b])[..., 2:6],
            lambda: keras.ops.image.resize(
                layers.MaxPooling2D(2)(a), (6, 6), interpolation="nearest", data_format="channels_last"
            ),
            lambda: layers.Multiply()([a, layers.GlobalAveragePooling2D(keepdims=True)(b)]),
            lambda: layers.Activation("mish")(a),
            lambda: keras.ops.maximum(a, 0.1 * b),
            lambda: layers.DepthwiseConv2D(3, padding="same", activation="silu")(a),
        ][kind]()
        tensors.insert(0, made)
    assert_round_trip(randomize(keras.Model(tensors[-1], tensors[:2])))


def test_what_a_graph_cannot_hold_is_refused_by_name() -> None:
    import keras

    layers, entry = keras.layers, keras.Input((8, 8, 6))

    class Own(layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    class Conv2D(layers.Conv2D):
        pass

    class Subclassed(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    sequence = layers.Reshape((64, 6))(entry)
    cases = [
        (keras.Model(entry, Own(name="mine")(entry)), "'mine' is a .*Own"),
        (keras.Model(entry, Conv2D(2, 1, name="mine")(entry)), "'mine' is a .*Conv2D"),
        (keras.Model(entry, layers.Lambda(lambda x: x, name="code")(entry)), "Lambda 'code' has one; allow it"),
        (keras.Model(entry, layers.Activation(_own_function, name="mine")(entry)), "'mine' uses '_own_function'"),
        (
            keras.Model(entry, layers.Conv2D(2, 1, kernel_regularizer=_own_function, name="mine")(entry)),
            "'mine' uses '_own_function'",
        ),
        (
            keras.Model(entry, layers.MaxPooling2D(2, data_format="channels_first", name="first")(entry)),
            "'first' has channels_first",
        ),
        (keras.Model(entry, layers.LSTM(3, return_state=True, name="states")(sequence)), "LSTM 'states' has 3"),
        (
            keras.Model(entry, keras.ops.max(keras.ops.stack(keras.ops.unstack(entry, 8, axis=1)), 0)),
            "Unstack 'unstack.*' has 8",
        ),
        (Subclassed(name="classy"), "'Subclassed' is a class of its own"),
        (keras.Sequential([layers.Dense(3)], name="open"), "Sequential 'open' has none"),
    ]
    for model, sentence in cases:
        with pytest.raises(GraphError, match=sentence) as caught:
            from_keras(model)
        assert "\n" not in str(caught.value)
    quantized = _one(layers.Dense(4, name="small"))
    quantized.quantize("int8")
    with pytest.raises(GraphError, match="Dense 'small' is quantized"):
        from_keras(quantized)


def _own_function(x: Any) -> Any:
    return x


def test_graphs_are_equal_only_if_they_are() -> None:
    """The comparison above can fail."""
    import keras

    graph = from_keras(_one(keras.layers.Conv2D(4, 1)))
    other = dataclasses.replace(graph.nodes[1], weights={**graph.nodes[1].weights, "bias": np.zeros(4, np.float32)})
    with pytest.raises(AssertionError):
        assert_same_graph(graph, dataclasses.replace(graph, nodes=(graph.nodes[0], other, *graph.nodes[2:])))
