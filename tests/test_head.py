"""HEAD.yaml, its way into the graph, and the split by role."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.contract import ROLES, Input, Scale, YoloHead
from deploy.errors import GraphError, InputError
from toolchain.graph import Graph, Node
from toolchain.head import HeadFile, attach_head, read_head, split_by_role
from toolchain.shapes import shapes

_YAML = """\
labels: [cat, dog]
scales:
  - output: predict
    stride: 32
    anchors: [[10, 13], [16.5, 30], [33, 23]]
"""
_CHANNELS = 3 * (5 + 2)


def _write(folder: Path, text: str) -> Path:
    path = folder / "HEAD.yaml"
    path.write_text(text)
    return path


def _detector(*tail: Node, channels: int = _CHANNELS, op: str = "Conv2D", **attributes: Any) -> Graph:
    """Input 64x96, a convolution of stride 32 named predict, then the tail."""
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(1, 1, 3, channels)).astype(np.float32), rng.normal(size=channels).astype(np.float32)
    nodes = (
        Node("pictures", "InputLayer", (), {"shape": [64, 96, 3]}),
        Node("pool", "AveragePooling2D", ("pictures",), {"pool_size": 32}),
        Node(
            "predict",
            op,
            ("pool",),
            {"filters": channels, "kernel_size": [1, 1], **attributes},
            {"kernel": kernel, "bias": bias},
        ),
        *tail,
    )
    return Graph("net", nodes, ((*tail, nodes[2])[-1 if not tail else len(tail) - 1].name,))


def _run(graph: Graph, picture: np.ndarray) -> list[np.ndarray]:
    from toolchain.keras_writer import to_keras

    outputs = to_keras(graph)(picture)
    return [np.asarray(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def _picture() -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 1, (2, 64, 96, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("416", "input.size: .* but 416 came"),
        ("[416]", "input.size is too short: it has no item 2; add it"),
        ("[416, 416, 3]", "input.size: .* came"),
        ("[0, 416]", r"input.size\[0\]: .* but 0 came"),
        ("[416, 8193]", r"input.size\[1\]: .* but 8193 came"),
        ("[416.5, 416]", r"input.size\[0\]: .* but 416.5 came"),
    ],
)
def test_an_input_size_is_two_whole_numbers(tmp_path: Path, size: str, sentence: str) -> None:
    entry = "input: {size: %s}\n"
    assert read_head(_write(tmp_path, _YAML + entry % "[320, 416]")).input.size == (320, 416)
    with pytest.raises(InputError, match=rf"HEAD.yaml:6:\d+: {sentence}"):
        read_head(_write(tmp_path, _YAML + entry % size))


def test_the_example_in_the_docstring_is_a_head_file(tmp_path: Path) -> None:
    import toolchain.head

    assert toolchain.head.__doc__ is not None
    lines = toolchain.head.__doc__.splitlines()
    (tmp_path / "voc.names").write_text("cat\nrain bow\n\n", encoding="utf-8")
    found = read_head(_write(tmp_path, "\n".join(line[4:] for line in lines if line.startswith("    "))))
    assert found.labels == ("cat", "rain bow")
    assert [scale.output for scale in found.scales] == ["predict_conv_1", "predict_conv_2"]
    # The example shows the defaults.
    short = read_head(_write(tmp_path, _YAML))
    assert dataclasses.astuple(Input("image", 1, 1)) == (
        "image", 1, 1, *short.input.model_dump(exclude={"size"}).values()
    )  # fmt: skip
    assert short.input.size is None
    assert short.input == found.input and short.scales[0].layout == found.scales[0].layout == ROLES
    assert (short.box, short.class_activation, short.anchors_in) == (
        found.box,
        found.class_activation,
        found.anchors_in,
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("labels:", "lables:", "HEAD.yaml:1:1: unknown key 'lables' in a head file; did you mean 'labels'\\?"),
        (
            "stride: 32",
            "strides: 32",
            "HEAD.yaml:4:5: unknown key 'strides' in scales\\[0\\]; did you mean 'stride'\\?",
        ),
        ("    stride: 32\n", "", "the key 'stride' is missing in scales\\[0\\]; add it"),
        ("stride: 32", "stride: 32.5", "HEAD.yaml:4:5: scales\\[0\\].stride: .*32.5 came"),
        ("stride: 32", "stride: '32'", "scales\\[0\\].stride: .*'32' came"),
        ("stride: 32", "stride: -1", "greater than or equal to 1"),
        ("output: predict", "output: 1.5", "HEAD.yaml:3:5: scales\\[0\\].output: .*1.5 came"),
        ("output: predict", "output: -1", "scales\\[0\\].output"),
        ("[10, 13]", "[10, 13, 5]", "HEAD.yaml:5:15: scales\\[0\\].anchors\\[0\\]"),
        ("[10, 13]", "[10, 0]", "scales\\[0\\].anchors\\[0\\]\\[1\\]: .*greater than 0"),
        ("[10, 13]", "[10, .inf]", "scales\\[0\\].anchors\\[0\\]\\[1\\]"),
        ("[cat, dog]", "[]", "labels"),
        ("[cat, dog]", "[cat, no]", "labels\\[1\\]: .*False came"),
        ("[cat, dog]", "[cat, '']", "labels\\[1\\]"),
        ("[cat, dog]", "none.names", "HEAD.yaml:1:1: cannot read the labels .*none.names"),
        ("scales:", "input: {fill: 300}\nscales:", "HEAD.yaml:2:9: input.fill"),
        ("scales:", "input: {std: [1, 0, 1]}\nscales:", "std divides and is positive"),
        ("scales:", "input: {colour: RGB}\nscales:", "unknown key 'colour' in input; did you mean 'color'\\?"),
        ("scales:", "box: round\nscales:", "box: .*'round' came"),
        (
            "stride: 32",
            "stride: 32\n    layout: [xy, wh, classes]",
            "layout names each of xy, wh, objectness, classes once",
        ),
        (
            "  - output",
            "  - {output: predict, stride: 16, anchors: [[1, 1]]}\n  - output",
            "every scale has a output of its own",
        ),
        ("labels", "labels: *a\nb", "alias"),
    ],
)
def test_a_wrong_head_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = _write(tmp_path, _YAML.replace(old, new, 1))
    with pytest.raises(InputError, match=sentence) as caught:
        read_head(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"cat\n\ndog\n", b"\xff\xfe\x00", b"x" * (2**20 + 1)])
def test_wrong_names_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "my.names").write_bytes(content)
    with pytest.raises(InputError, match="HEAD.yaml:1:1: .*labels"):
        read_head(_write(tmp_path, _YAML.replace("[cat, dog]", "my.names")))


@pytest.mark.parametrize("labels", ["[cat, cat]", "my.names"])
def test_a_class_name_stands_once(tmp_path: Path, labels: str) -> None:
    (tmp_path / "my.names").write_text("cat\ncat\n")
    with pytest.raises(InputError, match="HEAD.yaml:1:.*'cat' stands 2 times"):
        read_head(_write(tmp_path, _YAML.replace("[cat, dog]", labels)))


def test_a_missing_head_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*HEAD.yaml"):
        read_head(tmp_path / "HEAD.yaml")


def _head(**changes: Any) -> HeadFile:
    scale = {"output": "predict", "stride": 32, "anchors": ((10.0, 13.0), (16.5, 30.0), (33.0, 23.0))}
    scale |= changes.pop("scale", {})
    return HeadFile.model_validate({"labels": ("cat", "dog"), "scales": (scale,), **changes})


def test_a_head_is_attached() -> None:
    graph = attach_head(_detector(), _head(box="scaled", anchors_in="cells"))
    anchors = ((10.0 * 32, 13.0 * 32), (16.5 * 32, 30.0 * 32), (33.0 * 32, 23.0 * 32))
    assert graph.head == YoloHead((Scale(32, anchors, {"raw": "predict"}),), "scaled")
    assert graph.input == Input("image", 64, 96)
    assert graph.labels == ("cat", "dog") and graph.outputs == ("predict",)


_RESHAPE = Node("shaped", "Reshape", ("predict",), {"target_shape": [2, 3, 3, 7]})
_FLAT = Node("flat", "Reshape", ("predict",), {"target_shape": [-1, 7]})
_LINEAR = Node("linear", "Activation", ("predict",), {"activation": "linear"})


@pytest.mark.parametrize(
    "tail", [[_RESHAPE], [_FLAT], [_LINEAR], [_LINEAR, dataclasses.replace(_RESHAPE, inputs=("linear",))]]
)
@pytest.mark.parametrize("by_index", [True, False])
def test_a_reshape_of_the_logits_is_traced_back(tail: list[Node], by_index: bool) -> None:
    graph = attach_head(_detector(*tail), _head(scale={"output": 0 if by_index else tail[-1].name}))
    assert graph.outputs == ("predict",)
    assert [node.name for node in graph.nodes] == ["pictures", "pool", "predict"]


def test_a_reshape_that_makes_the_grid_is_itself_the_output() -> None:
    kernel = np.zeros((3, 2 * 3 * _CHANNELS), np.float32)
    nodes = (
        Node("pictures", "InputLayer", (), {"shape": [64, 96, 3]}),
        Node("mean", "GlobalAveragePooling2D", ("pictures",)),
        Node("dense", "Dense", ("mean",), {"units": kernel.shape[1]}, {"kernel": kernel}),
        Node("predict", "Reshape", ("dense",), {"target_shape": [2, 3, _CHANNELS]}),
    )
    assert attach_head(Graph("yolo1", nodes, ("predict",)), _head()).outputs == ("predict",)


@pytest.mark.parametrize(
    ("graph", "head", "sentence"),
    [
        (_detector(), _head(scale={"output": "predcit"}), "has no layer 'predcit'; did you mean 'predict'\\?"),
        (_detector(), _head(scale={"output": 1}), "below the model's 1 outputs: 1 came"),
        (_detector(), _head(labels=("cat",)), "'predict' has 21, and 3 \\* \\(5 \\+ 1\\) is 18"),
        (_detector(), _head(scale={"stride": 16}), "2x3 cells of 16, the input is 64x96"),
        (
            _detector(Node("all", "Activation", ("predict",), {"activation": "sigmoid"})),
            _head(scale={"output": "all"}),
            "'all' ends in a sigmoid over all channels \\(Activation 'all'\\); name the layer before it, 'predict'",
        ),
        (_detector(activation="sigmoid"), _head(), "build the model with activation='linear'"),
        (
            _detector(Node("mean", "GlobalAveragePooling2D", ("predict",))),
            _head(scale={"output": "mean"}),
            "'mean' is \\(21,\\); name the convolution",
        ),
        (
            Graph(
                "two",
                (Node("a", "InputLayer", (), {"shape": [8, 8, 3]}), Node("b", "InputLayer", (), {"shape": [8, 8, 3]})),
                (),
            ),
            _head(),
            "a detector has one input",
        ),
        (Graph("grey", (Node("a", "InputLayer", (), {"shape": [8, 8, 1]}),), ()), _head(), "a detector has one input"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(graph: Graph, head: HeadFile, sentence: str) -> None:
    with pytest.raises(GraphError, match=sentence) as caught:
        attach_head(graph, head)
    assert "\n" not in str(caught.value)


def test_another_layout_is_put_in_order() -> None:
    graph = _detector()
    layout = ("objectness", "classes", "xy", "wh")
    ordered = attach_head(graph, _head(scale={"layout": layout}))
    (expected,), (found,) = _run(graph, _picture()), _run(ordered, _picture())
    for anchor in range(3):
        start = anchor * 7
        # objectness, two classes, x, y, w, h become x, y, w, h, objectness and the classes.
        order = [start + 3, start + 4, start + 5, start + 6, start, start + 1, start + 2]
        np.testing.assert_array_equal(found[..., start : start + 7], expected[..., order])


def _expected_parts(raw: np.ndarray) -> list[np.ndarray]:
    apart = raw.reshape(*raw.shape[:3], 3, 7)
    return [
        part.reshape(*raw.shape[:3], -1) for part in (apart[..., :2], apart[..., 2:4], apart[..., 4:5], apart[..., 5:])
    ]


@pytest.mark.parametrize("kind", ["convolution", "shared", "added", "groups"])
def test_the_split_by_role_is_exact(kind: str) -> None:
    if kind == "convolution":
        graph = attach_head(_detector(), _head())
    elif kind == "added":
        graph = attach_head(_detector(Node("sum", "Add", ("predict", "predict"))), _head(scale={"output": "sum"}))
    elif kind == "shared":
        graph = attach_head(
            _detector(Node("again", "Conv2D", ("pool",), {"filters": _CHANNELS}, shared_with="predict")),
            _head(scale={"output": "again"}),
        )
    else:
        rng = np.random.default_rng(3)
        nodes = list(_detector().nodes)
        weights = {
            "kernel": rng.normal(size=(1, 1, 1, _CHANNELS)).astype(np.float32),
            "bias": np.zeros(_CHANNELS, np.float32),
        }
        nodes[2] = dataclasses.replace(nodes[2], attributes={**nodes[2].attributes, "groups": 3}, weights=weights)
        graph = attach_head(Graph("net", tuple(nodes), ("predict",)), _head())
    split = split_by_role(graph)
    raw = graph.outputs[0]
    assert split.outputs == tuple(f"{raw}_{role}" for role in ROLES)
    assert split.head is not None and dict(split.head.scales[0].outputs) == {role: f"{raw}_{role}" for role in ROLES}
    found = shapes(split)
    assert [found[name] for name in split.outputs] == [(2, 3, 3 * 2), (2, 3, 3 * 2), (2, 3, 3), (2, 3, 3 * 2)]
    (whole,), parts = _run(graph, _picture()), _run(split, _picture())
    for part, expected in zip(parts, _expected_parts(whole), strict=True):
        # One column of a matrix product may be summed in another order than in a wider product: a few float steps.
        np.testing.assert_allclose(part, expected, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(whole).max())


def test_the_split_of_a_convolution_is_four_convolutions_with_its_own_columns() -> None:
    graph = attach_head(_detector(), _head())
    split = split_by_role(graph)
    kernel = graph.by_name["predict"].weights["kernel"]
    assert "predict" not in split.by_name
    assert all(split.by_name[name].op == "Conv2D" for name in split.outputs)
    np.testing.assert_array_equal(split.by_name["predict_objectness"].weights["kernel"], kernel[..., [4, 11, 18]])
    np.testing.assert_array_equal(
        split.by_name["predict_wh"].weights["bias"], graph.by_name["predict"].weights["bias"][[2, 3, 9, 10, 16, 17]]
    )
    assert split_by_role(split).nodes == split.nodes


def test_a_prediction_that_others_read_stays() -> None:
    graph = _detector(Node("more", "ReLU", ("predict",)))
    described = dataclasses.replace(attach_head(graph, _head()), nodes=graph.nodes, outputs=("predict", "more"))
    split = split_by_role(described)
    assert "predict" in split.by_name
    assert split.outputs == (*(f"predict_{role}" for role in ROLES), "more")


def test_several_scales_keep_their_order() -> None:
    nodes = _detector().nodes
    finer = (
        Node("pool_16", "AveragePooling2D", ("pictures",), {"pool_size": 16}),
        dataclasses.replace(nodes[2], name="fine", inputs=("pool_16",)),
    )
    graph = Graph("net", (*nodes, *finer), ("fine", "predict"))
    scales = tuple(
        {"output": index, "stride": stride, "anchors": ((1.0, 1.0),) * 3} for index, stride in ((1, 32), (0, 16))
    )
    described = attach_head(graph, HeadFile.model_validate({"labels": ("cat", "dog"), "scales": scales}))
    assert described.outputs == ("predict", "fine")
    assert [name.rsplit("_", 1)[0] for name in split_by_role(described).outputs] == ["predict"] * 4 + ["fine"] * 4


def test_only_detectors_are_split() -> None:
    with pytest.raises(GraphError, match="has no head"):
        split_by_role(_detector())
    wrong = dataclasses.replace(_detector(), head=YoloHead((Scale(32, ((1.0, 1.0),) * 4, {"raw": "predict"}),)))
    with pytest.raises(GraphError, match="'predict' has 21 for 4 anchors"):
        split_by_role(wrong)
