"""What the model itself computes on real pictures: the values that a .tflite is held against.

The graph runs as it was read, unchanged, in Keras; only its outputs are taken apart by role, here in numpy and not in
the graph, so that the graph's own splitting is under test too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deploy.contract import ROLES, Scale, Tensor
from deploy.errors import ConversionError, InputError
from toolchain import child_process
from toolchain.graph import Graph
from toolchain.graph_file import load, save

#: As many pictures show a fault of the conversion as surely as a hundred do.
VERIFICATION_PICTURES = 8


def write_reference(graph: Graph, pictures: Iterable[Path], destination: Path, *, allow_lambda: bool = False) -> None:
    """Writes the model's own outputs on pictures as .npz, by a process with TensorFlow.

    One array for each role and scale, named as in the .tflite, (n, h, w, channels) float32 for n pictures; and
    "pictures", their paths. Those that cannot be read are left out.

    Raises InputError when no picture can be read, ConversionError when Keras cannot run the model or dies.
    """
    with child_process.folder() as place:
        save(graph, place / "original")
        arguments = {
            "original": str(place / "original"),
            "pictures": [str(path) for path in pictures],
            "destination": str(destination),
            "allow_lambda": allow_lambda,
        }
        child_process.run("toolchain.reference:run_reference", arguments, place, step=f"run of {graph.name!r} in Keras")


def run_reference(original: str, pictures: Sequence[str], destination: str, allow_lambda: bool = False) -> None:
    """Runs in a child."""
    from deploy.picture import read_picture
    from deploy.preprocess import Preprocessor
    from toolchain.keras_writer import to_keras

    graph = load(Path(original))
    if graph.input is None or graph.head is None:
        raise ConversionError(f"a detector has an input and a head: {graph.name!r} lacks one; describe it first")
    read, reasons = [], []
    for name in pictures:
        try:
            read.append((name, read_picture(Path(name))))
        except InputError as error:
            reasons.append(str(error))
    if not read:
        reason = f"none of the {len(reasons)} given can be read; first {reasons[0]}" if reasons else "none were given"
        raise InputError(f"a .tflite is verified on pictures: {reason}")
    model = to_keras(graph, allow_lambda=allow_lambda)
    size = (1, graph.input.height, graph.input.width, 3)
    preprocess = Preprocessor(graph.input, Tensor(graph.input.name, size, "float32"))
    found: dict[str, list[np.ndarray]] = {}
    for _, picture in read:
        outputs = model(np.copy(preprocess(picture)[0]), training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        by_node = {name: np.asarray(output) for name, output in zip(graph.outputs, outputs)}
        for scale in graph.head.scales:
            for role, array in by_role(by_node, scale).items():
                found.setdefault(f"{role}_{scale.stride}", []).append(array)
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    np.savez(destination, pictures=np.array([name for name, _ in read]), **arrays)  # type: ignore[arg-type]


def by_role(outputs: dict[str, np.ndarray], scale: Scale) -> dict[str, np.ndarray]:
    """One scale's outputs, each (1, h, w, A*n), from a graph's: a raw (1, h, w, A*(5+C)) tensor is anchor-major, and
    each anchor holds x, y, w, h, objectness, classes (contract.Scale)."""
    if "raw" not in scale.outputs:
        return {role: outputs[scale.outputs[role]] for role in ROLES}
    raw = outputs[scale.outputs["raw"]]
    anchors = raw.reshape(*raw.shape[:3], len(scale.anchors), -1)
    parts = {"xy": slice(0, 2), "wh": slice(2, 4), "objectness": slice(4, 5), "classes": slice(5, None)}
    return {role: anchors[..., part].reshape(*raw.shape[:3], -1) for role, part in parts.items()}
