"""Finds the layer at which a .tflite and its model part, by comparing what is inside both, in graph order.

The converter names a tensor after the layers that it was made of, the last one first
("conv_3_bn_1/batchnorm/add_1;conv_3_1/…"), so that most layers have their tensor in the file; those that were folded
into a later one have none and are passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploy.contract import Contract, Tensor
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain import child_process
from toolchain.graph import Graph
from toolchain.graph_file import load, save
from toolchain.intermediates import Intermediates, channel_factors, node_names


def first_difference(
    graph: Graph, tflite: bytes, contract: Contract, picture: Path, differs: Callable[[np.ndarray, np.ndarray], bool]
) -> str:
    """Name of the first node whose output in the file differs from the model's own on a picture; "" where none does.

    differs(expected, found) tells, both (1, h, w, channels) float32.
    """
    inside = _inside_file(graph, tflite, contract, picture)
    with child_process.folder() as place:
        save(graph, place / "original")
        arguments = {
            "original": str(place / "original"),
            "picture": str(picture),
            "destination": str(place / "layers.npz"),
            "names": list(inside),
        }
        step = f"run of {graph.name!r} in Keras"
        child_process.run("toolchain.first_difference:run_layers", arguments, place, step=step)
        with np.load(place / "layers.npz", allow_pickle=False) as expected:
            for name, found in inside.items():
                if expected[name].shape != found.shape:
                    continue
                wanted = expected[name]
                if contract.precision.startswith("int8") and name not in graph.outputs:
                    # Its channels may have been scaled, which is no difference.
                    wanted = wanted * channel_factors(found, wanted)
                if differs(wanted, found):
                    return name
    return ""


def run_layers(original: str, picture: str, destination: str, names: list[str]) -> None:
    """Runs in a child: writes the named nodes' outputs on the picture as .npz."""
    import dataclasses

    from toolchain.keras_writer import to_keras

    graph = load(Path(original))
    assert graph.input is not None
    size = (1, graph.input.height, graph.input.width, 3)
    tensor, _ = Preprocessor(graph.input, Tensor(graph.input.name, size, "float32"))(read_picture(Path(picture)))
    # Whoever asks where file and model part has run the model already: a Lambda in it was allowed by the user.
    model = to_keras(dataclasses.replace(graph, outputs=tuple(names), head=None), allow_lambda=True)
    outputs = model(tensor, training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    arrays = {name: np.asarray(output) for name, output in zip(names, outputs)}
    np.savez(destination, **arrays)  # type: ignore[arg-type]


def _inside_file(graph: Graph, tflite: bytes, contract: Contract, picture: Path) -> dict[str, np.ndarray]:
    """Node -> its output in the file on the picture, dequantized, in graph order."""
    inside = Intermediates(tflite)
    (given,) = (tensor for tensor in contract.tensors if tensor.name == contract.input.name)
    inside.run(Preprocessor(contract.input, given)(read_picture(picture))[0])
    written: dict[str, int] = {}
    for index in inside.written():
        known = [name for name in node_names(inside.details[index]["name"]) if name in graph.by_name]
        written |= {name: index for name in known[:1]}
    return {node.name: inside.values(written[node.name]) for node in graph.nodes if node.name in written}
