"""EfficientNet as nodes, held against keras.applications."""

import dataclasses
import typing

import numpy as np
import pytest

from deploy.errors import InputError
from toolchain.efficientnet import Variant, efficientnet
from toolchain.graph import Graph, Node
from toolchain.shapes import shapes

#: Of B0 to B3: channels at stride 8, 16 and 32, where YOLOv4 reads them, and the number of blocks.
TAPS = [("b0", 240, 672, 1280, 16), ("b1", 240, 672, 1280, 23), ("b2", 288, 720, 1408, 23), ("b3", 288, 816, 1536, 26)]


@pytest.mark.parametrize(("variant", "at_8", "at_16", "at_32", "blocks"), TAPS)
def test_channels_and_blocks(variant: Variant, at_8: int, at_16: int, at_32: int, blocks: int) -> None:
    nodes = efficientnet(variant, (96, 64), seed=1)
    found = shapes(Graph(variant, nodes, ("top_activation",)))
    assert found["block4a_expand_activation"] == (96 // 8, 64 // 8, at_8)
    assert found["block6a_expand_activation"] == (96 // 16, 64 // 16, at_16)
    assert found["top_activation"] == (96 // 32, 64 // 32, at_32)
    assert sum(node.op == "DepthwiseConv2D" for node in nodes) == blocks
    # Input and stem 5, top 3; a block 13 nodes, its skip 2; no expansion (3) in the first stage, a pad at four strides.
    first = sum(node.name.startswith("block1") and node.op == "DepthwiseConv2D" for node in nodes)
    assert len(nodes) == 5 + 3 + 13 * blocks - 3 * first + 2 * (blocks - 7) + 4


@pytest.mark.parametrize("size", [(512, 500), (0, 32), (-32, 32), (512,), (64.0, 64)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="multiples of 32.*came; give for instance"):
        efficientnet("b0", size, seed=1)


@pytest.mark.slow
def test_the_layers_are_those_of_keras() -> None:
    """Names, ops, inputs, settings and weights' shapes of B0 to B3 and, with the same weights, B0's output."""
    import keras
    from keras_models import outputs

    from toolchain.keras_graph import from_keras
    from toolchain.keras_writer import to_keras

    for variant, *_ in TAPS:
        name = f"EfficientNet{variant.upper()}"
        model = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(64, 64, 3))
        expected = _without_normalization(from_keras(model))
        nodes = [_perturbed(node) for node in efficientnet(typing.cast(Variant, variant), (64, 64), seed=1)]
        assert [(node.name, node.op, node.inputs) for node in nodes] == [
            (node.name, node.op, node.inputs) for node in expected
        ]
        for node, other in zip(nodes, expected, strict=True):
            # Of batch norm Keras counts the channels' axis from the front.
            assert {**node.attributes} == {
                key: -1 if key == "axis" else other.attributes.get(key) for key in node.attributes
            }, node.name
            assert other.attributes.get("axis", 3) == 3
            assert {key: array.shape for key, array in node.weights.items()} == {
                key: array.shape for key, array in other.weights.items()
            }
        if variant != "b0":
            continue
        # What the nodes leave to Keras's defaults is the same as well.
        ours = to_keras(Graph(variant, tuple(nodes), ("top_activation",)))
        theirs = {layer.name: layer.get_config() for layer in model.layers}
        for layer in ours.layers[1:]:
            own, other = layer.get_config(), theirs[layer.name]
            different = {key for key in own if own[key] != other[key] and not key.endswith("_initializer")}
            assert different <= {"dtype", "axis"}, layer.name
        for node in nodes:
            if node.weights:
                model.get_layer(node.name).set_weights(list(node.weights.values()))
        rest = keras.Model(model.get_layer("stem_conv_pad").input, model.output)
        picture = np.random.default_rng(3).normal(size=(2, 64, 64, 3)).astype(np.float32)
        (found,), (wanted,) = outputs(ours, picture), outputs(rest, picture)
        assert np.isfinite(wanted).all() and wanted.std() > 0
        # The same operations on the same numbers.
        np.testing.assert_array_equal(found, wanted)


def _without_normalization(graph: Graph) -> list[Node]:
    """The nodes without the layers in front that normalize pictures; the input is called "image"."""
    front = [node.name for node in graph.nodes if node.op in ("InputLayer", "Rescaling", "Normalization")]
    kept = [graph.nodes[0], *(node for node in graph.nodes if node.name not in front)]
    return [
        dataclasses.replace(
            node,
            name="image" if node.op == "InputLayer" else node.name,
            inputs=tuple("image" if source in front else source for source in node.inputs),
        )
        for node in kept
    ]


def _perturbed(node: Node) -> Node:
    """The node with biases and statistics that do something."""
    rng = np.random.default_rng(len(node.name))
    weights = {
        name: array if array.ndim == 4 else rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        for name, array in node.weights.items()
    }
    return dataclasses.replace(node, weights=weights)
