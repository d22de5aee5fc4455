import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.contract import Input
from deploy.errors import GraphError, InputError, SlimdetError
from toolchain import darknet_sections as cfg
from toolchain.cost import cost
from toolchain.darknet_cfg import parse_cfg
from toolchain.darknet_keys import KEYS
from toolchain.darknet_layers import read_sections
from toolchain.darknet_reader import read_darknet, to_darknet_weights
from toolchain.darknet_weights import ConvolutionWeights, Header, read_weights, write_weights
from toolchain.graph import Graph
from toolchain.shapes import shapes

#: Parameters of the real networks, from the files' own lengths: (bytes - header) / 4.
PARAMETERS = {
    "voc-yolo-fastest-xl": 872_006,
    "MobileNetV2-YOLOv3-Nano-voc": 769_750,
    "voc-yolo-fastest": 315_726,
    "yolo-lite-voc-trial3-noBatch": 572_317,
    "yolov4-tiny": 6_062_814,
    "coco-yolo-fastest-1.1-xl": 923_486,
}


def text(*lines: str, height: int = 32, width: int = 32) -> str:
    """A cfg from lines "section key=value key=value"."""
    head = f"[net]\nwidth={width}\nheight={height}\nchannels=3\n"
    return head + "".join(f"[{line.split()[0]}]\n" + "\n".join(line.split()[1:]) + "\n" for line in lines)


def line_of(content: str, layer: int) -> int:
    """Where a layer's section begins."""
    return [at for at, line in enumerate(content.splitlines(), 1) if line.startswith("[")][1 + layer]


def read(folder: Path, content: str, layers: tuple[ConvolutionWeights, ...] | None = None, names: str = "") -> Graph:
    path = folder / "a.cfg"
    path.write_text(content)
    (folder / "a.names").write_text(names)
    if layers is None:
        return read_darknet(path, None, folder / "a.names" if names else None)
    (folder / "a.weights").write_bytes(write_weights(Header(), layers))
    return read_darknet(path, folder / "a.weights", folder / "a.names" if names else None)


def some_layers(content: str, seed: int = 0) -> tuple[ConvolutionWeights, ...]:
    """Weights of a trained network's size, with negative scales too."""
    rng = np.random.default_rng(seed)
    layers = []
    for shape in read_sections(*parse_cfg(content.encode(), "a.cfg"), "a.cfg").convolutions:
        kernel = rng.standard_normal((shape.filters, shape.channels, shape.size, shape.size)).astype(np.float32)
        kernel /= np.float32(np.sqrt(shape.channels * shape.size**2))
        biases, scales, means = rng.standard_normal((3, shape.filters)).astype(np.float32)
        norm = (scales, means, rng.uniform(0.5, 2, shape.filters).astype(np.float32)) if shape.batch_normalize else ()
        layers.append(ConvolutionWeights(biases, kernel, *norm))
    return tuple(layers)


def run(graph: Graph, picture: np.ndarray) -> list[np.ndarray]:
    """The outputs (c, h, w) for a picture (3, h, w)."""
    from toolchain.keras_writer import to_keras

    outputs = to_keras(graph)(picture.transpose(1, 2, 0)[None], training=False)
    return [np.asarray(out)[0].transpose(2, 0, 1) for out in (outputs if isinstance(outputs, list) else [outputs])]


# What darknet does, written down from its loops, in its layout (c, h, w) and in float64.


def reference(content: str, layers: tuple[ConvolutionWeights, ...], picture: np.ndarray) -> list[np.ndarray | None]:
    """The output of every section; None for detections."""
    outputs: list[np.ndarray | None] = []
    current, weights = picture.astype(np.float64), iter(layers)
    for index, section in enumerate(parse_cfg(content.encode(), "a.cfg")[1]):
        earlier = {number: out for at, out in enumerate(outputs) for number in (at, at - index)}
        current = reference_section(section, current, earlier, weights)
        outputs.append(current)
    return outputs


def reference_section(section, x, earlier, weights):
    match section:
        case cfg.Convolutional():
            return activate(section.activation, convolve(section, x, next(weights)))
        case cfg.MaxPool():
            return max_pool(section, x)
        case cfg.AvgPool():
            return x.mean((1, 2), keepdims=True)
        case cfg.Upsample():
            return x.repeat(section.stride, 1).repeat(section.stride, 2)
        case cfg.Reorg():
            return reorg(x, section.stride)
        case cfg.Route():
            parts = [earlier[number] for number in section.layers]
            sizes = [len(part) // section.groups for part in parts]
            first = section.group_id
            return np.concatenate([part[first * size : (first + 1) * size] for part, size in zip(parts, sizes)])
        case cfg.Shortcut():
            total = x.copy()
            for other in (earlier[number] for number in section.layers):
                shared = min(len(total), len(other))
                total[:shared] += other[:shared]
            return activate(section.activation, total)
        case cfg.Scale():
            return activate(section.activation, earlier[section.layer] * x)
        case cfg.Detection():
            return None
    return x


def convolve(section, x, layer):
    """im2col and a matrix product, for each group."""
    pad, reach = section.padding * section.dilation, (section.size - 1) * section.dilation + 1
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    rows = range(0, padded.shape[1] - reach + 1, section.stride[0])
    columns = range(0, padded.shape[2] - reach + 1, section.stride[1])
    step = section.dilation
    windows = np.array([[padded[:, i : i + reach : step, j : j + reach : step] for j in columns] for i in rows])
    inputs, filters = len(x) // section.groups, section.filters // section.groups
    parts = []
    for group in range(section.groups):
        kernel = layer.kernel[group * filters : (group + 1) * filters].astype(np.float64)
        parts.append(np.einsum("hwcyx,ocyx->ohw", windows[:, :, group * inputs : (group + 1) * inputs], kernel))
    out, column = np.concatenate(parts), (-1, 1, 1)
    if section.batch_normalize:
        deviation = np.sqrt(layer.variances.astype(np.float64) + 1e-6).reshape(column)
        out = (out - layer.means.reshape(column)) / deviation * layer.scales.reshape(column)
    return out + layer.biases.reshape(column)


def max_pool(section, x):
    height, width = ((n + section.padding - section.size) // s + 1 for n, s in zip(x.shape[1:], section.stride))
    out = np.full((len(x), height, width), -np.inf)
    for i in range(height):
        for j in range(width):
            top = i * section.stride[0] - section.padding // 2
            left = j * section.stride[1] - section.padding // 2
            window = x[:, max(top, 0) : top + section.size, max(left, 0) : left + section.size]
            out[:, i, j] = window.max((1, 2))
    return out


def reorg(x, stride):
    channels, height, width = x.shape
    source, out, small = x.ravel(), np.empty(x.size), channels // stride**2
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                column = i * stride + (k // small) % stride
                row = j * stride + (k // small) // stride
                at = column + width * stride * (row + height * stride * (k % small))
                out[i + width * (j + height * k)] = source[at]
    return out.reshape(channels * stride**2, height // stride, width // stride)


def activate(name, x):
    return {
        "linear": lambda: x,
        "leaky": lambda: np.where(x > 0, x, 0.1 * x),
        "relie": lambda: np.where(x > 0, x, 0.01 * x),
        "relu": lambda: np.maximum(x, 0),
        "relu6": lambda: np.clip(x, 0, 6),
        "logistic": lambda: 1 / (1 + np.exp(-x)),
        "swish": lambda: x / (1 + np.exp(-x)),
        "mish": lambda: x * np.tanh(np.log1p(np.exp(x))),
        "tanh": lambda: np.tanh(x),
        "elu": lambda: np.where(x >= 0, x, np.expm1(np.minimum(x, 0))),
    }[name]()


NETWORKS = {
    "activations": text(
        *(f"conv filters=6 size=3 pad=1 batch_normalize=1 activation={name}" for name in cfg.ACTIVATIONS),
        height=8,
        width=10,
    ),
    "stride 2 on even and odd sides": text(
        "conv filters=6 size=3 pad=1 stride=2 activation=linear",
        "conv filters=6 size=3 pad=1 stride=2 activation=linear",
        "conv filters=6 size=5 pad=1 stride=2 activation=linear",
        height=21,
        width=38,
    ),
    "strides apart": text(
        "conv filters=6 size=3 pad=1 stride_x=2 stride_y=1 activation=linear",
        "conv filters=6 size=3 pad=1 stride_x=1 stride_y=2 groups=6 activation=leaky",
        "maxpool size=3 stride_x=2 stride_y=1",
        "maxpool size=2 stride=1 stride_y=2",
        height=13,
        width=22,
    ),
    "odd paddings": text(
        "conv filters=4 size=3 padding=2 activation=linear",
        "conv filters=4 size=4 pad=1 stride=3 activation=linear",
        "conv filters=4 size=2 stride=2 activation=linear",
        "conv filters=4 size=1 stride=2 pad=1 activation=linear",
        height=40,
        width=31,
    ),
    "dilation": text(
        "conv filters=4 size=3 pad=1 dilation=2 activation=linear",
        "conv filters=4 size=5 pad=1 dilation=3 activation=leaky",
        "conv filters=4 groups=4 size=3 pad=1 dilation=2 activation=linear",
        height=9,
        width=14,
    ),
    "groups": text(
        "conv filters=8 size=3 pad=1 stride=2 activation=linear",
        "conv filters=12 groups=4 size=3 pad=1 batch_normalize=1 activation=leaky",
        "conv filters=12 groups=12 size=3 pad=1 stride=2 batch_normalize=1 activation=leaky",
        "conv filters=24 groups=12 size=3 pad=1 activation=swish",
        "conv filters=6 groups=3 size=1 activation=linear",
    ),
    "max pools": text(
        "conv filters=3 size=1 activation=linear",
        "maxpool size=3 stride=2",
        "maxpool size=3 stride=2",
        "maxpool size=2 stride=2",
        "maxpool size=2 stride=1",
        "maxpool size=4 stride=2",
        height=43,
        width=36,
    ),
    "max pools with a padding of their own": text(
        "conv filters=3 size=1 activation=linear",
        "maxpool size=2 stride=2 padding=0",
        "maxpool size=3 stride=1 padding=1",
        "maxpool size=4 stride=3 padding=4",
        height=27,
        width=36,
    ),
    "spatial pyramid": text(
        "conv filters=4 size=3 pad=1 stride=2 activation=linear",
        "maxpool size=5 stride=1",
        "route layers=-2",
        "maxpool size=9 stride=1",
        "route layers=-4",
        "maxpool size=13 stride=1",
        "route layers=-1,-3,-5,-6",
        height=8,
        width=12,
    ),
    "routes with groups, upsample, dropout": text(
        "conv filters=8 size=3 pad=1 stride=2 activation=leaky",
        "route layers=-1 groups=2 group_id=1",
        "conv filters=4 size=3 pad=1 stride=2 activation=leaky",
        "dropout probability=.5",
        "upsample stride=2",
        "route layers=-1,0 groups=4 group_id=2",
        "upsample stride=3",
    ),
    "shortcuts": text(
        "conv filters=6 size=3 pad=1 stride=2 activation=linear",
        "conv filters=4 size=3 pad=1 activation=linear",
        "conv filters=6 size=3 pad=1 activation=linear",
        "shortcut from=-3 activation=linear",
        "shortcut from=1 activation=leaky",
        "conv filters=4 size=1 activation=linear",
        "shortcut from=-3,0 activation=mish",
        "shortcut from=-1",
        height=14,
        width=10,
    ),
    "squeeze and excite, attention": text(
        "conv filters=6 size=3 pad=1 stride=2 activation=linear",
        "avgpool",
        "conv filters=2 size=1 activation=swish",
        "conv filters=6 size=1 activation=logistic",
        "scale_channels from=-4",
        "conv filters=1 size=1 activation=logistic",
        "scale_channels from=-2 scale_wh=1 activation=leaky",
        "conv filters=6 size=3 pad=1 activation=logistic",
        "sam from=-2",
        height=14,
        width=10,
    ),
    "reorg": text("conv filters=8 size=3 pad=1 activation=linear", "reorg stride=2", height=6, width=10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_darknet_computes(tmp_path, name):
    content = NETWORKS[name]
    layers = some_layers(content)
    graph = read(tmp_path, content, layers)
    height, width, _ = shapes(graph)["image"]
    picture = np.random.default_rng(1).standard_normal((3, height, width)).astype(np.float32)
    (found,) = run(graph, picture)
    expected = reference(content, layers, picture)[-1]
    assert expected.min() < 0  # else a zero in a pad could hide among the maxima
    # Ten layers at most, each a float32 sum of at most 108 products: some 10 * sqrt(108) * 6e-8 of the largest value.
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert shapes(graph)[graph.outputs[0]] == (*expected.shape[1:], expected.shape[0])
    assert write_weights(Header(), to_darknet_weights(graph)) == (tmp_path / "a.weights").read_bytes()


def pads(graph: Graph) -> dict[str, object]:
    return {node.name: node.attributes["padding"] for node in graph.nodes if node.name.endswith("_pad")}


def test_pads_stand_only_where_tensorflows_same_is_another(tmp_path):
    even = [f"conv filters=4 size=3 pad=1 stride={stride}" for stride in (1, 2, 2)]
    graph = read(tmp_path, text(*even, "maxpool size=2 stride=2", "maxpool size=3 stride=1", "conv filters=4"))
    assert pads(graph) == {"conv_1_pad": [[1, 0], [1, 0]], "conv_2_pad": [[1, 0], [1, 0]]}
    paddings = {node.name: node.attributes["padding"] for node in graph.nodes if "strides" in node.attributes}
    assert list(paddings) == ["conv_0", "conv_1", "conv_2", "maxpool_3", "maxpool_4", "conv_5"]
    assert list(paddings.values()) == ["same", "valid", "valid", "valid", "same", "valid"]
    odd = read(tmp_path, text(*even, "maxpool size=3 stride=2", "maxpool size=2 stride=2", height=45, width=45))
    assert pads(odd) == {"maxpool_3_pad": [[1, 0], [1, 0]]}
    mixed = read(tmp_path, text(*even[:2], height=45, width=44))
    assert pads(mixed) == {"conv_1_pad": [[1, 1], [1, 0]]}


YOLO = "yolo anchors=1,2,3,4,5,6 num=3 classes=2"


def detector(*lines: str, size: int = 32) -> str:
    first = "conv filters=8 size=3 stride=8 pad=1 batch_normalize=1 activation=leaky"
    return text(first, *lines, height=size, width=size)


def test_a_detector(tmp_path):
    content = detector(
        "conv filters=14 size=1 activation=linear",
        f"{YOLO} mask=1,2 scale_x_y=1.1",
        "route layers=0",
        "upsample stride=2",
        "conv filters=7 size=1 activation=linear",
        f"{YOLO} mask=0",
    )
    graph = read(tmp_path, content, names="cat\ndog\n")
    assert [(node.name, node.op, node.inputs) for node in graph.nodes] == [
        ("image", "InputLayer", ()),
        ("conv_0_pad", "ZeroPadding2D", ("image",)),
        ("conv_0", "Conv2D", ("conv_0_pad",)),
        ("conv_0_bn", "BatchNormalization", ("conv_0",)),
        ("conv_0_activation", "LeakyReLU", ("conv_0_bn",)),
        ("conv_1", "Conv2D", ("conv_0_activation",)),
        ("upsample_4", "UpSampling2D", ("conv_0_activation",)),
        ("conv_5", "Conv2D", ("upsample_4",)),
    ]
    assert graph.name == "a" and graph.labels == ("cat", "dog") and graph.outputs == ("conv_1", "conv_5")
    assert graph.input == Input("image", 32, 32, "letterbox")
    first, second = graph.head.scales
    assert graph.head.box == "exp" and graph.head.class_activation == "sigmoid"
    assert (first.stride, first.anchors, first.outputs) == (8, ((3.0, 4.0), (5.0, 6.0)), {"raw": "conv_1"})
    assert (second.stride, second.anchors, second.outputs) == (4, ((1.0, 2.0),), {"raw": "conv_5"})
    assert (first.scale_x_y, second.scale_x_y) == (1.1, 1.0)
    biases = graph.by_name["conv_1"].weights["bias"]
    assert np.flatnonzero(biases).tolist() == [4, 7 + 4] and biases.min() < -4
    assert list(graph.by_name["conv_0_bn"].weights) == ["gamma", "beta", "moving_mean", "moving_variance"]


def test_new_coords_give_the_logits_before_their_logistic(tmp_path):
    content = detector("conv filters=7 size=1 activation=logistic", "yolo anchors=1,2 num=1 classes=2 new_coords=1")
    graph = read(tmp_path, content)
    assert graph.head.box == "scaled" and graph.outputs == ("conv_1",) and "conv_1_activation" not in graph.by_name
    with pytest.raises(GraphError, match=r"a\.cfg:\d+: new_coords=1 stands after .* activation=logistic"):
        read(tmp_path, content.replace("activation=logistic", "activation=linear"))


def test_a_region_has_anchors_in_cells(tmp_path):
    content = detector("conv filters=14 activation=linear", "region anchors=.5,1,2,2.5 num=2 classes=2 softmax=1")
    graph = read(tmp_path, content)
    assert graph.head.class_activation == "softmax"
    assert graph.head.scales[0].anchors == ((0.5 * 8, 1 * 8.0), (2 * 8.0, 2.5 * 8))


def test_a_network_without_detections_has_no_head(tmp_path):
    graph = read(tmp_path, text("conv filters=4 size=3 activation=leaky"))
    assert graph.head is None and graph.outputs == ("conv_0_activation",) and graph.labels == ()


def test_nodes_that_no_output_depends_on_are_left_out(tmp_path):
    lines = ["conv filters=7 activation=linear", "yolo anchors=1,2 num=1 classes=2", "route layers=0", "conv"]
    graph = read(tmp_path, detector(*lines))
    assert "conv_4" not in graph.by_name


def test_random_weights_depend_on_the_seed_alone(tmp_path):
    path = tmp_path / "a.cfg"
    path.write_text(detector("conv filters=7 activation=linear", "yolo anchors=1,2 num=1 classes=2"))
    graphs = [read_darknet(path, None, None, seed=seed) for seed in (0, 0, 1)]
    contents = [write_weights(Header(), to_darknet_weights(graph)) for graph in graphs]
    assert contents[0] == contents[1] != contents[2]


def test_resize_is_told_to_whoever_runs_it(tmp_path):
    (tmp_path / "a.cfg").write_text(text("conv", height=32, width=64))
    graph = read_darknet(tmp_path / "a.cfg", None, None, resize="stretch")
    assert graph.input == Input("image", 32, 64, "stretch")


@pytest.mark.parametrize(
    ("content", "layer", "words"),
    [
        (text("conv", "route layers=1"), 1, "layer 1 reads earlier layers, 0 to 0; 1 is itself"),
        (text("conv", "route layers=2", "conv"), 1, "2 is a later one, a cycle"),
        (text("conv", "route layers=-2"), 1, "-2 is none"),
        (text("conv", "shortcut from=7"), 1, "7 is a later one, a cycle"),
        (text("conv", "sam from=-3"), 1, "-3 is none"),
        (text("conv", "conv stride=2", "route layers=0,1"), 2, "one height and width; layer 2 joins 32x32, 16x16"),
        (text("conv filters=3", "route layers=0 groups=2"), 1, "2 do not divide 3"),
        (text("conv filters=3 groups=2"), 0, "2 groups do not divide 3 in and 3 out"),
        (text("conv", "conv stride=2", "shortcut from=0"), 2, "layer 2 adds 16x16 and 32x32"),
        (text("conv filters=2", "conv filters=4", "shortcut from=0,0"), 2, "channels alike; layer 2's are not"),
        (text("conv filters=4", "scale_channels from=0"), 1, r"scales by channel: its input is \(1, 1, 4\)"),
        (text("conv filters=4", "conv filters=2", "scale_channels from=0 scale_wh=1"), 2, "scales by pixel"),
        (text("conv filters=4", "conv filters=2", "sam from=0"), 2, "scales by element"),
        (text("conv filters=6", "reorg stride=2"), 1, "reorg's stride divides both sides"),
        (text("conv size=33"), 0, "a window of 33 does not fit into 32x32"),
        (text("conv", "maxpool size=40 stride=2 padding=0"), 1, "a window of 40 does not fit"),
        (text("conv", "maxpool size=2 stride=3 padding=3"), 1, "half of a window lies inside"),
        (text("conv size=3 dilation=2"), 0, "a dilated convolution keeps its input's size"),
        (text("conv size=3 pad=1 dilation=2 stride=2"), 0, "a stride or a dilation above 1, not both"),
        (text("conv filters=1000000", "upsample stride=1000000"), 1, "at most 2,147,483,648 elements"),
        (detector("conv filters=8", YOLO), 2, r"3 anchors with 5 \+ 2 outputs each need 21 channels; .* has 8"),
        (detector("conv filters=21", YOLO, "conv"), 3, "layer 3 reads the detection before it"),
        (detector("conv filters=21", YOLO, "route layers=2"), 3, "layer 3 reads layer 2, a detection"),
        (detector("conv filters=21", YOLO, size=36), 2, "grid of 5x5 does not divide the input of 36x36"),
        (detector("conv filters=21", YOLO, "route layers=-2", "conv filters=24", f"{YOLO[:-1]}3"), 5, "classes is not"),
    ],
)
def test_layers_that_do_not_fit_are_named_by_line(tmp_path, content, layer, words):
    with pytest.raises(GraphError, match=rf"^a\.cfg:{line_of(content, layer)}: .*{words}"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (b"cat\n", r"a\.cfg:15: the network has 2 classes; .*a\.names names 1"),
        (b"cat\ndog\ncow\n", "names 3"),
        (b"cat\n\ndog\n", r"a\.names:2: .*this line is blank"),
        (b"cat\ncat\n", r"a\.names: every class has a name of its own, but 'cat' stands 2 times"),
        (b"", "names 0"),
        (b"cat\nd\xe9g\n", "UTF-8"),
        (b"x" * (2**20 + 1), "at most 1,048,576 bytes"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, names, words):
    (tmp_path / "a.cfg").write_text(detector("conv filters=21 activation=linear", YOLO))
    (tmp_path / "a.names").write_bytes(names)
    with pytest.raises(InputError, match=words):
        read_darknet(tmp_path / "a.cfg", None, tmp_path / "a.names")


def test_names_may_have_a_byte_order_mark_and_blank_lines_at_the_end(tmp_path):
    (tmp_path / "a.cfg").write_text(detector("conv filters=21 activation=linear", YOLO))
    (tmp_path / "a.names").write_bytes(b"\xef\xbb\xbf traffic light \r\ndog\r\n\r\n")
    assert read_darknet(tmp_path / "a.cfg", None, tmp_path / "a.names").labels == ("traffic light", "dog")


def test_missing_files_are_refused(tmp_path):
    (tmp_path / "a.cfg").write_text(detector("conv filters=21 activation=linear", YOLO))
    none = tmp_path / "none"
    for arguments in ((none, None, None), (tmp_path / "a.cfg", none, None), (tmp_path / "a.cfg", None, none)):
        with pytest.raises(InputError, match=f"cannot read the .*{none}"):
            read_darknet(*arguments)


def test_weights_of_another_network_are_refused(tmp_path):
    content = detector("conv filters=21 activation=linear", YOLO)
    layers = some_layers(content)
    read(tmp_path, content, layers)
    with pytest.raises(InputError, match="too few, it ends inside conv_1"):
        read(tmp_path, content, layers[:1])


_KINDS = st.sampled_from(
    "conv maxpool avgpool upsample route shortcut scale_channels sam dropout reorg yolo region".split()
)
_SMALL = st.integers(-3, 5) | st.sampled_from((8, 21, 10**6, 10**9))
_COUNTS = st.sampled_from(
    "filters size stride pad groups dilation padding scale_wh group_id num classes new_coords softmax".split()
)


@st.composite
def any_cfg(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        layers = ",".join(map(str, draw(st.lists(_SMALL, min_size=1, max_size=3))))
        kind = draw(_KINDS)
        own = {"route": f" layers={layers}", "shortcut": f" from={layers}"}.get(kind, "")
        own += f" from={draw(_SMALL)}" if kind in ("sam", "scale_channels") else ""
        own += " anchors=1,2" if kind in ("yolo", "region") else ""
        keys = draw(st.dictionaries(_COUNTS, _SMALL, max_size=3))
        lines.append(kind + own + "".join(f" {key}={value}" for key, value in keys.items() if key in KEYS[kind].read))
    return text(*lines, height=draw(st.integers(1, 40)), width=draw(st.integers(1, 40)))


@settings(deadline=None, max_examples=300)
@given(any_cfg())
def test_any_cfg_is_a_graph_or_refused_with_its_line(content):
    try:
        net, sections = parse_cfg(content.encode(), "a.cfg")
        network = read_sections(net, sections, "a.cfg")
    except SlimdetError as error:
        assert re.match(r"a\.cfg:\d+: ", str(error))
        return
    outputs = [output for output in network.outputs if output is not None]
    found = shapes(Graph("a", tuple(network.nodes), tuple(output.node for output in outputs)))
    for output in outputs:
        assert found[output.node] == (output.height, output.width, output.channels)


@pytest.mark.real_data
@pytest.mark.parametrize("name", PARAMETERS)
def test_real_networks_are_read_and_written_bit_by_bit(real_data, name):
    folder = real_data / "weights"
    names = folder / ("coco.names" if name.startswith(("coco", "yolov4")) else "voc.names")
    path = folder / f"{name}.weights"
    graph = read_darknet(folder / f"{name}.cfg", path, names)
    assert cost(graph).total == PARAMETERS[name]
    assert len(graph.labels) == (80 if names.name == "coco.names" else 20)
    network = read_sections(*parse_cfg((folder / f"{name}.cfg").read_bytes(), name), name)
    header, _ = read_weights(path, network.convolutions)
    assert write_weights(header, to_darknet_weights(graph)) == path.read_bytes()


@pytest.mark.real_data
def test_heads_of_real_networks(real_data):
    folder = real_data / "weights"
    tiny = read_darknet(folder / "yolov4-tiny.cfg", None, folder / "coco.names")
    first, second = tiny.head.scales
    assert (first.stride, first.scale_x_y, first.anchors) == (32, 1.05, ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0)))
    assert (second.stride, second.anchors) == (16, ((23.0, 27.0), (37.0, 58.0), (81.0, 82.0)))
    lite = read_darknet(folder / "yolo-lite-voc-trial3-noBatch.cfg", None, folder / "voc.names")
    assert lite.head.scales[0].anchors[0] == pytest.approx((1.08 * 32, 1.19 * 32))


@pytest.mark.real_data
def test_damaged_real_weights_are_refused(real_data, tmp_path):
    folder = real_data / "weights"
    content = (folder / "voc-yolo-fastest.weights").read_bytes()
    cases = {"4 too few": content[:-4], "1 too many": content + b"\0", "inside conv_0": content[:99]}
    for words, damaged in cases.items():
        (tmp_path / "a.weights").write_bytes(damaged)
        with pytest.raises(InputError, match=words):
            read_darknet(folder / "voc-yolo-fastest.cfg", tmp_path / "a.weights", None)


def test_a_graph_can_be_given_other_weights_and_written(tmp_path):
    """What a training does: new arrays in the nodes, a .weights file again."""
    content = text("conv filters=4 groups=1 size=3", "conv filters=8 groups=4 size=3")
    graph = read(tmp_path, content)
    double = [dataclasses.replace(n, weights={k: v * 2 for k, v in n.weights.items()}) for n in graph.nodes]
    before, after = to_darknet_weights(graph), to_darknet_weights(dataclasses.replace(graph, nodes=tuple(double)))
    assert all((2 * old.kernel == new.kernel).all() for old, new in zip(before, after))
