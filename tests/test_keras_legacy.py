"""Files that tf.keras wrote before Keras 3."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras_models import outputs

from deploy.errors import GraphError, InputError, SlimdetError
from toolchain.cost import cost
from toolchain.keras_reader import read_keras
from toolchain.keras_writer import to_keras


def _call(*names: str, **keywords: Any) -> list[Any]:
    return [[[name, 0, 0, keywords] for name in names]]


def _layer(kind: str, name: str, inbound: list[Any], **config: Any) -> dict[str, Any]:
    return {
        "class_name": kind,
        "config": {"name": name, "trainable": True, "dtype": "float32", **config},
        "name": name,
        "inbound_nodes": inbound,
    }


def _function(layer: str, function: str, source: str, **keywords: Any) -> dict[str, Any]:
    return _layer("TFOpLambda", layer, [[source, 0, 0, keywords]], function=function)


_CONV = {
    "padding": "same",
    "data_format": "channels_last",
    "strides": [1, 1],
    "dilation_rate": [1, 1],
    "activation": "linear",
    "use_bias": True,
    "bias_initializer": {"class_name": "Zeros", "config": {}},
    "bias_regularizer": None,
    "activity_regularizer": None,
    "bias_constraint": None,
}
_KERNEL = {
    "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
    "kernel_regularizer": None,
    "kernel_constraint": None,
    "groups": 1,
}
_DEPTHWISE = {
    "depth_multiplier": 1,
    "depthwise_initializer": {"class_name": "VarianceScaling", "config": {}},
    "depthwise_regularizer": None,
}


def _legacy_layers() -> list[dict[str, Any]]:
    """As tf.keras 2.x writes them, with what Keras 3 refuses or would compute otherwise."""
    return [
        {
            "class_name": "InputLayer",
            "name": "in",
            "inbound_nodes": [],
            "config": {
                "batch_input_shape": [None, 8, 8, 3],
                "dtype": "float32",
                "sparse": False,
                "ragged": False,
                "name": "in",
            },
        },
        _layer(
            "Conv2D",
            "a/conv",
            _call("in"),
            filters=4,
            kernel_size=[3, 3],
            **(_CONV | {"activation": "swish"}),
            **_KERNEL,
        ),
        _layer(
            "BatchNormalization",
            "normal",
            _call("a/conv"),
            axis=[3],
            momentum=0.99,
            epsilon=0.001,
            center=True,
            scale=True,
            fused=True,
        ),
        _layer("Activation", "swish", _call("normal"), activation="swish"),
        _layer("DepthwiseConv2D", "depth", _call("swish"), kernel_size=[3, 3], **_CONV, **_KERNEL, **_DEPTHWISE),
        _layer("Activation", "old_hard", _call("depth"), activation="hard_sigmoid"),
        _layer("LeakyReLU", "leaky", _call("old_hard"), alpha=0.25),
        _function("tf.math.multiply", "math.multiply", "leaky", y=["swish", 0, 0], name=None),
        _layer(
            "TFOpLambda",
            "tf.math.subtract",
            [["_CONSTANT_VALUE", -1, 1.0, {"y": ["tf.math.multiply", 0, 0]}]],
            function="math.subtract",
        ),
        _function("tf.nn.relu6", "nn.relu6", "tf.math.subtract"),
        _layer(
            "SlicingOpLambda",
            "tf.__operators__.getitem",
            [
                [
                    "tf.nn.relu6",
                    0,
                    0,
                    {"slice_spec": [{"class_name": "__ellipsis__"}, {"start": None, "stop": 3, "step": None}]},
                ]
            ],
            function="__operators__.getitem",
        ),
        _layer(
            "TFOpLambda",
            "tf.concat",
            [[["tf.nn.relu6", 0, 0, {"axis": -1}], ["tf.__operators__.getitem", 0, 0, {"axis": -1}]]],
            function="concat",
        ),
        _function("tf.image.resize", "image.resize", "tf.concat", size=[16, 16], method="nearest"),
        _layer("Add", "add", [[["tf.image.resize", 0, 0, {}], ["tf.image.resize", 0, 0, {}]]]),
    ]


_STORED = {
    "a/conv": {"kernel:0": (3, 3, 3, 4), "bias:0": (4,)},
    "normal": {"gamma:0": (4,), "beta:0": (4,), "moving_mean:0": (4,), "moving_variance:0": (4,)},
    "depth": {"depthwise_kernel:0": (3, 3, 4, 1), "bias:0": (4,)},
}


def _write_legacy(
    path: Path, layers: list[Any], stored: dict[str, dict[str, tuple[int, ...]]], names: list[str] | None = None
) -> dict[str, np.ndarray]:
    """An .h5 file as tf.keras 2.15 writes it; returns the weights by layer/name. names: the layers' own."""
    import h5py

    rng = np.random.default_rng(5)
    names = names or [layer["name"] for layer in layers]
    config = {"name": "old", "layers": layers, "input_layers": [["in", 0, 0]], "output_layers": [[names[-1], 0, 0]]}
    arrays = {
        f"{layer}/{name}": rng.uniform(0.1, 1, shape).astype(np.float32)
        for layer, inner in stored.items()
        for name, shape in inner.items()
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in names]
        for layer in names:
            inner = group.create_group(layer)
            inner.attrs["weight_names"] = [f"{layer}/{name}".encode() for name in stored.get(layer, {})]
            for name in stored.get(layer, {}):
                inner[f"{layer}/{name}"] = arrays[f"{layer}/{name}"]
    return arrays


def test_a_legacy_file(tmp_path: Path) -> None:
    import keras

    arrays = _write_legacy(tmp_path / "old.h5", _legacy_layers(), _STORED)
    graph = read_keras(tmp_path / "old.h5")
    assert [node.op for node in graph.nodes] == [
        "InputLayer",
        "Conv2D",
        "BatchNormalization",
        "Activation",
        "DepthwiseConv2D",
        "Rescaling",
        "ReLU",
        "LeakyReLU",
        "Multiply",
        "Rescaling",
        "Activation",
        "Slice",
        "Concatenate",
        "Resize",
        "Add",
    ]
    assert graph.nodes[1].name == "a_conv" and graph.by_name["tf.__operators__.getitem"].attributes["stop"] == 3
    ops, picture = keras.ops, np.random.default_rng(6).normal(size=(2, 8, 8, 3)).astype(np.float32)
    x = ops.silu(ops.conv(picture, arrays["a/conv/kernel:0"], padding="same") + arrays["a/conv/bias:0"])
    scale = arrays["normal/gamma:0"] / np.sqrt(arrays["normal/moving_variance:0"] + 0.001)
    swish = ops.silu((x - arrays["normal/moving_mean:0"]) * scale + arrays["normal/beta:0"])
    x = ops.depthwise_conv(swish, arrays["depth/depthwise_kernel:0"], padding="same") + arrays["depth/bias:0"]
    # Keras 2's hard_sigmoid, which Keras 3 computes with other numbers.
    x = ops.leaky_relu(ops.clip(0.2 * x + 0.5, 0, 1), 0.25)
    x = ops.relu6(1.0 - x * swish)
    x = np.asarray(ops.concatenate([x, x[..., :3]], -1)).repeat(2, 1).repeat(2, 2)
    # Two ways to the same sums of at most 27 terms in float32.
    np.testing.assert_allclose(outputs(to_keras(graph), picture)[0], x + x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("index", "change", "sentence"),
    [
        (3, {"config": {"name": "swish", "activation": "my_swish"}}, "'swish' uses 'my_swish'"),
        (1, {"class_name": "MyConv"}, "layer 'a/conv' is a 'MyConv', which Keras does not have"),
        (1, {"class_name": "Custom>Conv"}, "'Custom>Conv'"),
        (4, {"config": {"name": "depth", "kernel_size": [3, 3], "groups": 2}}, "'depth' has 2"),
        (
            5,
            {
                "class_name": "Lambda",
                "config": {"name": "code", "function": ["4wEA", None, None], "function_type": "lambda"},
            },
            "a Lambda runs code",
        ),
        (9, {"config": {"name": "f", "function": "nn.conv2d"}}, "'tf.nn.relu6' calls tf.nn.conv2d, which is not known"),
        (
            12,
            {"inbound_nodes": [["tf.concat", 0, 0, {"size": [16, 16], "antialias": True}]]},
            "tf.image.resize in 'tf.image.resize' are not",
        ),
        (13, {"inbound_nodes": _call("nowhere", "nowhere")}, "old.h5"),
        (2, {"class_name": "TensorFlowOpLayer"}, "'TensorFlowOpLayer'"),
        (1, {"config": _legacy_layers()[1]["config"] | {"activation": "hard_sigmoid"}}, "no hard_sigmoid of Keras 2"),
    ],
)
def test_a_legacy_file_with_other_peoples_code_is_refused(
    tmp_path: Path, index: int, change: dict[str, Any], sentence: str
) -> None:
    layers = _legacy_layers()
    layers[index] |= change
    _write_legacy(tmp_path / "old.h5", layers, _STORED)
    with pytest.raises((GraphError, InputError), match=sentence) as caught:
        read_keras(tmp_path / "old.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({key: value for key, value in _STORED.items() if key != "normal"}, r"lacks those of \['normal'\]"),
        (_STORED | {"swish": {"alpha:0": (4,)}}, r"has others for \['swish'\]"),
        (_STORED | {"normal": {"gamma:0": (4,)}}, r"'normal' in .* has \[\(4,\)\]"),
        (_STORED | {"depth": {"depthwise_kernel:0": (3, 3, 4, 2), "bias:0": (4,)}}, "'depth' in .*old.h5"),
    ],
)
def test_legacy_weights_that_do_not_fit_are_refused(tmp_path: Path, stored: Any, sentence: str) -> None:
    _write_legacy(tmp_path / "old.h5", _legacy_layers(), stored)
    with pytest.raises(InputError, match=sentence):
        read_keras(tmp_path / "old.h5")


_OLD_KERAS = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, tensorflow as tf, tf_keras as keras
layers = keras.layers
inner = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), include_top=False, alpha=0.35)
for layer in inner.layers[:40]:
    layer.trainable = False
column = keras.Sequential(
    [keras.Input((2, 2, 1280)), layers.Conv2D(5, 1, name="q"), layers.BatchNormalization(), layers.LeakyReLU(0.1)]
)
entry = keras.Input((64, 64, 3))
shared = layers.Conv2D(5, 3, padding="same")
x = shared(layers.ReLU()(shared(column(inner(entry, training=False)))))
x = layers.add([x, column(inner(entry))])
if sys.argv[1] == "h5":
    x = tf.nn.leaky_relu(tf.concat([x, tf.nn.silu(x) * 0.5], -1)[..., 1:7] / 3.0, alpha=0.1)
    x = tf.pad(tf.image.resize(x, (4, 4), method="nearest"), [[0, 0], [1, 1], [0, 2], [0, 0]])
    x = layers.Activation("hard_sigmoid")(x)
x = layers.Bidirectional(layers.LSTM(3))(layers.Reshape((-1, x.shape[-1]))(x))
model = keras.Model(entry, [x, layers.Dense(2, activation="softmax")(x)])
rng = np.random.default_rng(1)
for weight in model.weights:
    wide = "variance" in weight.name
    weight.assign(rng.uniform(0.5, 2, weight.shape) if wide else rng.normal(size=weight.shape) * 0.3)
model.save(sys.argv[2])
picture = rng.uniform(0, 1, (2, 64, 64, 3)).astype("f")
first, second = model(picture)
trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
np.savez(sys.argv[3], picture=picture, first=first, second=second, counts=[model.count_params(), trainable])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None, reason="tf_keras, which makes old files, is not installed"
)
@pytest.mark.parametrize("form", ["h5", "keras"])
def test_files_that_tf_keras_itself_wrote(tmp_path: Path, form: str) -> None:
    model, values = tmp_path / f"old.{form}", tmp_path / "values.npz"
    subprocess.run(
        [sys.executable, "-c", _OLD_KERAS, form, str(model), str(values)], check=True, capture_output=True, timeout=300
    )
    graph = read_keras(model)
    with np.load(values) as expected:
        counts = cost(graph)
        assert [counts.total, counts.trainable] == expected["counts"].tolist()
        found = outputs(to_keras(graph), expected["picture"])
        for name, output in zip(("first", "second"), found, strict=True):
            # tf.keras fuses batch norm otherwise: float32 steps through some sixty layers.
            np.testing.assert_allclose(output, expected[name], rtol=0, atol=1e-5)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [at, *(place for key, inner in items for place in _places(inner, (*at, key)))]


_JUNK = [
    None,
    True,
    -1,
    10**12,
    0.5,
    "",
    "conv2d",
    "in",
    "../x",
    [],
    [[]],
    {},
    {"class_name": "Dense", "config": {}},
    [None, None, None],
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@hypothesis.settings(deadline=None, max_examples=30, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_a_spoilt_config_is_read_or_refused_in_a_sentence(scratch: Path, data: st.DataObject) -> None:
    layers = copy.deepcopy(_legacy_layers())
    *parents, last = data.draw(st.sampled_from(_places(layers)[1:]))
    holder: Any = layers
    for key in parents:
        holder = holder[key]
    holder[last] = data.draw(st.sampled_from(_JUNK))
    _write_legacy(scratch / "old.h5", layers, _STORED, names=[layer["name"] for layer in _legacy_layers()])
    try:
        read_keras(scratch / "old.h5")
    except SlimdetError as error:
        assert "\n" not in str(error)
