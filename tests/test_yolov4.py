"""The built-in YOLOv4: the published reference network, its weights, and weights files."""

import dataclasses
import itertools
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deploy.contract import Input, Scale
from deploy.errors import InputError
from toolchain.cost import cost, node_costs
from toolchain.efficientnet import efficientnet
from toolchain.graph import Graph, Node
from toolchain.initial_weights import glorot_uniform
from toolchain.keras_legacy import stored_names
from toolchain.shapes import shapes
from toolchain.yolov4 import ANCHORS, YoloV4, build_yolov4

LABELS = tuple(f"class {index}" for index in range(20))
PREDICTIONS = ("conv2d_37", "conv2d_29", "conv2d_21")
SMALL = YoloV4(("one", "two"), "efficientnet-b0", "lite", (64, 96))


@pytest.fixture(scope="module")
def reference() -> Graph:
    """YOLOv4 on EfficientNet-B1 at 512x512 with 20 classes."""
    return build_yolov4(YoloV4(LABELS), seed=1)[0]


@pytest.fixture(scope="module")
def small() -> Graph:
    return build_yolov4(SMALL, seed=1)[0]


def test_the_published_counts(reference: Graph) -> None:
    found = cost(reference)
    assert (found.trainable, found.non_trainable, found.total) == (65_321_441, 100_496, 65_421_937)
    assert found.flops == 61_871_821_972
    assert found.flops_unknown == ()
    assert len(reference.nodes) == 457
    convolutions = [node.name for node in reference.nodes if node.op in ("Conv2D", "DepthwiseConv2D")]
    assert len(convolutions) == 153
    assert convolutions[-38:] == ["conv2d", *(f"conv2d_{index}" for index in range(1, 38))]
    parts = node_costs(reference)
    assert sum(parts[node.name].flops for node in reference.nodes if node.op == "MaxPooling2D") == 45_056_000


@pytest.mark.parametrize(("size", "mflops"), [(320, 24170.04), (416, 40845.83), (608, 87248.02)])
def test_the_published_flops_at_other_sizes(reference: Graph, size: int, mflops: float) -> None:
    image, *rest = reference.nodes
    image = dataclasses.replace(image, attributes={"shape": [size, size, 3]})
    found = cost(dataclasses.replace(reference, nodes=(image, *rest)))
    assert found.flops / 1e6 == pytest.approx(mflops, abs=0.005)


def test_the_names_that_the_published_recipes_exclude(reference: Graph) -> None:
    names = [node.name for node in reference.nodes]
    kept = ("block1a_se_reduce", "block7b_add", "top_conv", "conv2d_20", *PREDICTIONS[::-1], "conv2d_28", "conv2d_36")
    assert not set(kept) - set(names)
    between = names[names.index("block1a_se_reduce") : names.index("block7b_add") + 1]
    assert not [name for name in between if not name.startswith("block")]


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *(("conv2d", (1, 1, 1280, 640)), ("conv2d_1", (3, 3, 640, 1280)), ("conv2d_2", (1, 1, 1280, 640))),
        *(("conv2d_3", (1, 1, 4 * 640, 640)), ("conv2d_4", (3, 3, 640, 1280)), ("conv2d_5", (1, 1, 1280, 640))),
        *(("conv2d_6", (1, 1, 640, 336)), ("conv2d_7", (1, 1, 672, 336)), ("conv2d_8", (1, 1, 2 * 336, 336))),
        *(("conv2d_12", (1, 1, 672, 336)), ("conv2d_13", (1, 1, 336, 120)), ("conv2d_14", (1, 1, 240, 120))),
        *(("conv2d_20", (3, 3, 120, 240)), ("conv2d_21", (1, 1, 240, 3 * 25)), ("conv2d_22", (3, 3, 120, 336))),
        *(("conv2d_28", (3, 3, 336, 672)), ("conv2d_29", (1, 1, 672, 3 * 25)), ("conv2d_30", (3, 3, 336, 640))),
        *(("conv2d_36", (3, 3, 640, 1280)), ("conv2d_37", (1, 1, 1280, 3 * 25))),
    ],
)
def test_the_published_head(reference: Graph, name: str, kernel: tuple[int, ...]) -> None:
    node = reference.by_name[name]
    assert node.weights["kernel"].shape == kernel
    assert ("bias" in node.weights) == (name in PREDICTIONS)
    if name not in PREDICTIONS:
        (norm,) = reference.readers[name]
        (activation,) = reference.readers[norm.name]
        assert (norm.op, activation.op, activation.attributes["negative_slope"]) == (
            "BatchNormalization",
            "LeakyReLU",
            0.1,
        )


def test_the_head_reads_the_backbone_where_it_is_published(reference: Graph) -> None:
    assert reference.by_name["conv2d"].inputs == ("top_activation",)
    assert reference.by_name["conv2d_7"].inputs == ("block6a_expand_activation",)
    assert reference.by_name["conv2d_14"].inputs == ("block4a_expand_activation",)
    assert [node.name for node in reference.readers["leaky_re_lu_5"]] == ["conv2d_6", "concatenate_4"]
    sizes = [node.attributes["pool_size"] for node in reference.readers["leaky_re_lu_2"] if node.op == "MaxPooling2D"]
    assert sizes == [[5, 5], [9, 9], [13, 13]]
    # The predictions have no batch norm and are not counted there.
    assert reference.by_name["batch_normalization_21"].inputs == ("conv2d_22",)


def test_input_head_and_labels(reference: Graph) -> None:
    assert reference.labels == LABELS
    assert reference.input == Input("image", 512, 512)
    assert reference.outputs == PREDICTIONS
    assert reference.head is not None
    assert reference.head.scales == (
        Scale(32, ((142, 110), (192, 243), (459, 401)), {"raw": "conv2d_37"}, 1.05),
        Scale(16, ((36, 75), (76, 55), (72, 146)), {"raw": "conv2d_29"}, 1.1),
        Scale(8, ((12, 16), (19, 36), (40, 28)), {"raw": "conv2d_21"}, 1.2),
    )


def _tucker_2(node: Node, source: tuple[int, ...], out: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """Parameters and FLOPs of a convolution in its three parts, the last with a bias, less those of the whole one."""
    rows, columns, inputs, outputs = node.weights["kernel"].shape
    first, last, window = int(inputs * ratio), int(outputs * ratio), rows * columns
    before, after = source[0] * source[1], out[0] * out[1]
    parts = inputs * first + window * first * last + last * outputs
    products = before * inputs * first + after * (window * first * last + last * outputs)
    whole = window * inputs * outputs
    return parts + outputs - whole, 2 * (products - after * whole) + after * outputs


@pytest.mark.parametrize(
    ("smallest", "count", "trainable", "mflops"), [(2, 15, 20_017_571, 18715.67), (1, 35, 16_686_001, 15463.28)]
)
def test_the_published_sizes_after_tucker(
    reference: Graph, smallest: int, count: int, trainable: int, mflops: float
) -> None:
    """Ranks of a fifth of the channels in the head: what is made of every layer is in the arithmetic."""
    found, whole = shapes(reference), cost(reference)
    scope = [
        node
        for node in reference.nodes
        if node.name.startswith("conv2d") and node.name not in PREDICTIONS and len(node.weights["kernel"]) >= smallest
    ]
    changes = [_tucker_2(node, found[node.inputs[0]], found[node.name], 0.2) for node in scope]
    assert len(scope) == count
    assert whole.trainable + sum(parameters for parameters, _ in changes) == trainable
    assert (whole.flops + sum(flops for _, flops in changes)) / 1e6 == pytest.approx(mflops, abs=0.005)


def test_the_published_size_after_uniform_pruning(reference: Graph) -> None:
    """A fifth of the filters of every convolution in the head but those before the predictions and these."""
    whole = shapes(reference)
    channels = {name: shape[-1] for name, shape in whole.items()}
    nodes = []
    for node in reference.nodes:
        sources = [channels[name] for name in node.inputs]
        weights, attributes = dict(node.weights), dict(node.attributes)
        if node.name.startswith("conv2d"):
            if node.name not in ("conv2d_20", "conv2d_28", "conv2d_36", *PREDICTIONS):
                channels[node.name] = int(channels[node.name] * 0.2)
            attributes["filters"] = channels[node.name]
            weights["kernel"] = weights["kernel"][:, :, : sources[0], : channels[node.name]]
        elif node.op == "Concatenate":
            channels[node.name] = sum(sources)
        elif len(sources) == 1 and whole[node.name][-1] == whole[node.inputs[0]][-1]:
            channels[node.name] = sources[0]
        if node.op == "BatchNormalization":
            weights = {name: array[: sources[0]] for name, array in weights.items()}
        nodes.append(dataclasses.replace(node, weights=weights, attributes=attributes))
    found = cost(dataclasses.replace(reference, nodes=tuple(nodes)))
    assert found.trainable == 10_747_371
    assert found.flops / 1e6 == pytest.approx(10320.95, abs=0.005)


@pytest.mark.parametrize("head", ["full", "lite"])
@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3"])
def test_every_variant_predicts_on_three_grids(variant: str, head: Any) -> None:
    anchors = tuple((float(side), float(side)) for side in (8, 16, 32, 48, 64, 96))
    backbone: Any = f"efficientnet-{variant}"
    graph, notes = build_yolov4(YoloV4(("one", "two"), backbone, head, (96, 160), anchors), seed=0)
    found = shapes(graph)
    channels = 2 * (5 + 2)
    assert [found[name] for name in graph.outputs] == [(96 // s, 160 // s, channels) for s in (32, 16, 8)]
    assert graph.head is not None
    assert [scale.anchors for scale in graph.head.scales] == [anchors[4:], anchors[2:4], anchors[:2]]
    assert notes == ("weights: random, seed 0",)
    assert cost(graph).flops_unknown == ()


def test_the_lite_head_separates_every_3x3_convolution(small: Graph, reference: Graph) -> None:
    wide = [node for node in small.nodes if node.name.startswith("conv_dw") and node.op == "DepthwiseConv2D"]
    assert len(wide) == sum(n.name.startswith("conv2d") and len(n.weights["kernel"]) == 3 for n in reference.nodes)
    for node in wide:
        assert ("bias" in node.weights) == (node.attributes["strides"] == [1, 1])
        assert small.by_name[node.name.replace("_dw_", "_pw_")].attributes["use_bias"] is False
    numbered = [node.name for node in small.nodes if node.name.startswith("conv2d")]
    assert numbered == ["conv2d", *(f"conv2d_{index}" for index in range(1, 38 - len(wide)))]
    assert [node.name for node in wide[:3]] == ["conv_dw_8_1", "conv_dw_8_2", "conv_dw_9_1"]


def test_random_weights_depend_on_seed_and_name_alone(small: Graph, reference: Graph) -> None:
    again, _ = build_yolov4(SMALL, seed=1)
    other, _ = build_yolov4(SMALL, seed=2)
    for node, same, different in zip(small.nodes, again.nodes, other.nodes, strict=True):
        for name, array in node.weights.items():
            np.testing.assert_array_equal(array, same.weights[name])
            assert (name == "kernel") == (not np.array_equal(array, different.weights[name]))
    # In other surroundings: another head, backbone, size and labels.
    first, second = (graph.by_name["conv2d"].weights["kernel"] for graph in (small, reference))
    np.testing.assert_array_equal(first, second)
    kernel = reference.by_name["conv2d_36"].weights["kernel"]
    np.testing.assert_array_equal(kernel, glorot_uniform(1, "conv2d_36", kernel.shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ()}, "a detector has classes, each with a name, but .. came"),
        ({"labels": ("cat", " ")}, "each with a name"),
        ({"labels": ("cat", "dog", "cat")}, "'cat' stands 2 times"),
        ({"size": (512, 510)}, r"multiples of 32, .*\(512, 510\) came"),
        ({"anchors": ANCHORS[:8]}, "as many anchors as the others, but 8 came"),
        ({"anchors": ()}, "but 0 came"),
        ({"anchors": ((1.0, 2.0), (3.0, 0.0), (5.0, 6.0))}, "both above 0"),
        ({"anchors": ((1.0, 2.0), (3.0, float("nan")), (5.0, 6.0))}, "both above 0"),
        ({"anchors": ANCHORS[::-1]}, "from small to large, .*; sort them"),
        ({"backbone": "efficientnet-b9"}, "a backbone is one of efficientnet-b0, .*'efficientnet-b9' came"),
        ({"head": "heavy"}, "a head is one of full, lite, but 'heavy' came"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        YoloV4(**{"labels": ("cat",), **changes})
    assert "\n" not in str(caught.value)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="a seed is a whole number from 0 on, but -1 came"):
        build_yolov4(SMALL, seed=-1)


def _save(path: Path, nodes: Sequence[Node], **more: list[np.ndarray]) -> Path:
    """An .h5 of weights as Keras 2 laid it out, with more layers than the nodes'."""
    layers = {node.name: list(node.weights.values()) for node in nodes if node.weights} | more
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/array_{index}:0".encode() for index in range(len(arrays))]
            for index, array in enumerate(arrays):
                group.create_dataset(f"{name}/array_{index}:0", data=array)
    return path


@pytest.fixture(scope="module")
def whole(small: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of the small network, read only."""
    return _save(tmp_path_factory.mktemp("whole") / "whole.h5", small.nodes)


def _assert_same_weights(first: Sequence[Node], second: Sequence[Node]) -> None:
    for one, other in itertools.zip_longest(first, second):
        assert list(one.weights) == list(other.weights)
        for name in one.weights:
            np.testing.assert_array_equal(one.weights[name], other.weights[name])


def test_all_weights_from_a_file(small: Graph, whole: Path) -> None:
    graph, notes = build_yolov4(SMALL, seed=2, weights=whole)
    _assert_same_weights(graph.nodes, small.nodes)
    assert notes[0] == "all weights from whole.h5"
    assert graph.input == small.input


def test_a_backbone_from_keras_applications_imagenet(small: Graph, tmp_path: Path) -> None:
    """The published files hold the standard deviations as variances; the model divides by their root once more."""
    backbone = efficientnet("b0", SMALL.size, seed=5)
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    path = _save(tmp_path / "notop.h5", backbone, normalization=[mean, deviation, np.int64(0)])
    graph, notes = build_yolov4(SMALL, seed=1, weights=path)
    _assert_same_weights(graph.nodes[: len(backbone)], backbone)
    _assert_same_weights(graph.nodes[len(backbone) :], small.nodes[len(backbone) :])
    assert graph.input is not None
    assert (graph.input.mean, graph.input.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert notes == (
        "backbone weights from notop.h5; head random, seed 1",
        "pictures enter as (u - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]",
    )
    assert graph.input.color == "RGB"


def test_another_normalization_is_taken_as_it_is(tmp_path: Path) -> None:
    backbone = efficientnet("b0", SMALL.size, seed=5)
    arrays = [np.float32([0, 0.5, 1]), np.float32([1, 0.25, 0.0625]), np.float32(0)]
    graph, _ = build_yolov4(SMALL, seed=1, weights=_save(tmp_path / "a.h5", backbone, normalization_3=arrays))
    assert graph.input is not None
    assert (graph.input.mean, graph.input.std) == ((0, 127.5, 255), (255, 127.5, 63.75))


def _with_layers(path: Path, layers: dict[str, list[np.ndarray] | None]) -> None:
    """Puts layers into a weights file, in place of those of the same names; None takes one out."""
    with h5py.File(path, "r+") as file:
        kept = [name for name in stored_names(file, "layer_names") if name not in layers]
        kept += [name for name, arrays in layers.items() if arrays is not None]
        file.attrs["layer_names"] = [name.encode() for name in kept]
        for name, arrays in layers.items():
            if name in file:
                del file[name]
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{index}:0".encode() for index in range(len(arrays or []))]
            for index, array in enumerate(arrays or []):
                group.create_dataset(f"{index}:0", data=array)


KERNEL = np.ones((3, 3, 3, 32), np.float32)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"stem_conv": [KERNEL[..., :-1]]}, r"'stem_conv' has \[\(3, 3, 3, 31\)\].*wants \[\(3, 3, 3, 32\)\]"),
        ({"stem_conv": [KERNEL, KERNEL]}, "'stem_conv' has .*this network wants"),
        ({"conv2d_22": [np.ones((1, 1, 1280, 18)), np.ones(18)]}, "'conv2d_22' has .*with its classes and anchors"),
        ({"stem_conv": [KERNEL * np.nan]}, "finite .*'/stem_conv/.* has others"),
        ({"stem_conv": [KERNEL.astype(np.float64) * 1e300]}, "finite floating-point numbers"),
        ({"stem_conv": [KERNEL.astype(np.int8)]}, "finite floating-point numbers"),
        ({"stem_conv": [np.full(KERNEL.shape, "text", h5py.string_dtype())]}, "finite floating-point numbers"),
        ({"stem_conv": None}, "lacks 1 of 130 layers, the first 'stem_conv'"),
        ({"conv2d_3": None}, "all of the head or nothing: .*lacks 'conv2d_3'"),
        ({"block1b_dwconv": [KERNEL]}, "has 'block1b_dwconv', which this one has not"),
        ({"normalization": [np.ones(1), np.ones(1)]}, "one layer at most normalizes pictures"),
        ({"normalization": [np.ones(3)] * 2, "normalization_1": [np.ones(3)] * 2}, "normalization, normalization_1"),
        ({"normalization": [np.zeros(3), np.zeros(3)]}, "variances are above 0"),
    ],
)
def test_files_of_other_networks(
    whole: Path, tmp_path: Path, layers: dict[str, list[np.ndarray] | None], message: str
) -> None:
    path = tmp_path / "other.h5"
    shutil.copy(whole, path)
    _with_layers(path, layers)
    with pytest.raises(InputError, match=message) as caught:
        build_yolov4(SMALL, seed=1, weights=path)
    assert "other.h5" in str(caught.value) and "\n" not in str(caught.value)


def test_the_file_of_a_larger_efficientnet_is_no_smaller_one(tmp_path: Path) -> None:
    path = _save(tmp_path / "b1.h5", efficientnet("b1", (64, 64), seed=1))
    with pytest.raises(InputError, match="of the same EfficientNet: .* has 'block1b_bn'"):
        build_yolov4(SMALL, seed=1, weights=path)
    path = _save(tmp_path / "b0.h5", efficientnet("b0", (64, 64), seed=1))
    with pytest.raises(InputError, match="lacks .* the first 'block1b_dwconv'"):
        build_yolov4(dataclasses.replace(SMALL, backbone="efficientnet-b1"), seed=1, weights=path)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with pytest.raises(InputError, match="cannot read the weights .*weights: No such file.*give an existing file"):
        build_yolov4(SMALL, seed=1, weights=path)
    with pytest.raises(InputError, match="cannot read the weights .*directory"):
        build_yolov4(SMALL, seed=1, weights=tmp_path)
    for content in (b"", b"[net]\n", b"PK\x03\x04 no zip", b"\x89HDF\r\n\x1a\n no hdf"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="weights") as caught:
            build_yolov4(SMALL, seed=1, weights=path)
        assert "\n" not in str(caught.value)
    _save(path, efficientnet("b0", (64, 64), seed=1))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="cut or damaged"):
        build_yolov4(SMALL, seed=1, weights=path)
    with h5py.File(path, "w") as file:
        file.create_dataset("array", data=np.zeros(3))
    with pytest.raises(InputError, match="names its layers: .* names none"):
        build_yolov4(SMALL, seed=1, weights=path)
    with h5py.File(path, "w") as file:
        file["stem_conv"] = h5py.ExternalLink("other.h5", "/stem_conv")
    with pytest.raises(InputError, match="a link to elsewhere"):
        build_yolov4(SMALL, seed=1, weights=path)


@pytest.mark.slow
def test_the_files_that_keras_writes(tmp_path: Path) -> None:
    """A B0 of keras.applications with its own weights, in the formats of Keras 3 and of Keras 2."""
    import keras
    import tf_keras

    model = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 96, 3))
    old = tf_keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 96, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "net.keras")
        model.save(tmp_path / "net.h5")
        model.save_weights(tmp_path / "net.weights.h5")
        old.save(tmp_path / "old.h5")
        old.save_weights(tmp_path / "old_notop.h5")
    for name in ("net.keras", "net.h5", "net.weights.h5", "old.h5", "old_notop.h5"):
        graph, notes = build_yolov4(SMALL, seed=1, weights=tmp_path / name)
        assert notes[0] == f"backbone weights from {name}; head random, seed 1"
        for node in graph.nodes[: len(efficientnet("b0", (64, 96), seed=1))]:
            if node.weights:
                layer = (old if name.startswith("old") else model).get_layer(node.name)
                for found, wanted in zip(node.weights.values(), layer.get_weights(), strict=True):
                    np.testing.assert_array_equal(found, wanted)
        # Its Normalization has seen no pictures: mean 0, variance 1.
        assert graph.input == Input("image", 64, 96)
