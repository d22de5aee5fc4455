"""What the tests of Keras models and files share: weights, outputs, and what it means to come back exactly."""

from typing import Any

import numpy as np

from toolchain.cost import cost
from toolchain.graph import Graph
from toolchain.keras_reader import from_keras
from toolchain.keras_writer import to_keras
from toolchain.shapes import shapes


def randomize(model: Any, seed: int = 1) -> Any:
    """Weights that no layer has by itself: biases, means and variances too."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "int" in variable.dtype:
            continue
        spread = (
            rng.uniform(0.5, 2, variable.shape)
            if "variance" in variable.path
            else rng.normal(size=variable.shape) * 0.3
        )
        variable.assign(spread.astype(np.float32))
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Normalization":
            layer.finalize_state()
    return model


def outputs(model: Any, *pictures: np.ndarray) -> list[np.ndarray]:
    import keras

    found = model(list(pictures) if len(pictures) > 1 else pictures[0])
    return [np.asarray(output) for output in keras.tree.flatten(found)]


def layer_settings(model: Any) -> dict[str, Any]:
    """Every layer's config but for initializers."""
    return {
        layer.name: {key: value for key, value in layer.get_config().items() if not key.endswith("_initializer")}
        for layer in model.layers
    }


def assert_same_graph(first: Graph, second: Graph) -> None:
    assert [(n.name, n.op, n.inputs, n.shared_with) for n in first.nodes] == [
        (n.name, n.op, n.inputs, n.shared_with) for n in second.nodes
    ]
    assert first.outputs == second.outputs
    for one, other in zip(first.nodes, second.nodes, strict=True):
        # An op that was an operation gets the defaults of its layer on the way.
        assert dict(one.attributes) == {key: other.attributes.get(key) for key in one.attributes}, one.name
        assert list(one.weights) == list(other.weights)
        for name in one.weights:
            np.testing.assert_array_equal(one.weights[name], other.weights[name])


def assert_round_trip(model: Any, *, batch: int = 2) -> Graph:
    """Model, graph and model again are the same, to the last bit."""
    rng = np.random.default_rng(2)
    graph = from_keras(model)
    back = to_keras(graph)
    assert_same_graph(graph, from_keras(back))
    pictures = [rng.uniform(0, 2, (batch, *shape.shape[1:])).astype(np.float32) for shape in model.inputs]
    for expected, found in zip(outputs(model, *pictures), outputs(back, *pictures), strict=True):
        np.testing.assert_array_equal(found, expected)
    counts = cost(graph)
    assert counts.total == model.count_params()
    assert counts.trainable == sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)
    found_shapes = shapes(graph)
    assert [found_shapes[name] for name in graph.outputs] == [tuple(output.shape[1:]) for output in model.outputs]
    return graph
