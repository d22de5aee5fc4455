"""A detector's graph becomes a .tflite of built-in operations, with batch 1 and raw logits under names in its
signature.

The way is graph -> lower -> Keras -> one function with a static input -> TFLiteConverter -> float32 .tflite, and from
that file litert-quantizer derives the other precisions (quantize.py). The converter folds batch norms into the
convolutions.

The weights go into the function as constants. With Keras 3 a bare function on a Keras model loses its variables (NaN),
and a module that holds them takes three times as long, all of it for saving and restoring them.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.command_line import write_atomically
from deploy.contract import PRECISIONS, ROLES
from deploy.errors import ConversionError
from toolchain import child_process
from toolchain.calibration import Calibration
from toolchain.graph import Graph
from toolchain.graph_file import load, save
from toolchain.lower import Lowered, lower
from toolchain.quantize import Int8, quantize
from toolchain.reference import run_reference

SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was done on the way: lower's notes, and the pictures that int8 was calibrated on."""

    notes: tuple[str, ...]
    calibration: Calibration = Calibration()


def convert(
    graph: Graph,
    precision: str,
    destination: Path,
    *,
    pictures: Iterable[Path] = (),
    validation: Iterable[Path] = (),
    int8: Int8 = Int8(),
    float_file: Path | None = None,
    reference: Path | None = None,
    allow_lambda: bool = False,
    progress: Callable[[float, float], object] | None = None,
) -> Conversion:
    """Writes the graph as a .tflite in one precision, atomically, each dangerous step in a process of its own.

    Its input is "image", (1, height, width, 3); its outputs are "<role>_<stride>" (xy_32, wh_32, objectness_32,
    classes_32, …), raw logits. For int8 all of them are int8, calibrated on all the pictures: choose, for instance by
    quantize.evenly_spaced(…, CALIBRATION_PICTURES). int8, validation and progress: see quantize.

    float_file is what convert wrote for this very graph in float32, if it is there: the other precisions are derived
    from it without TensorFlow, except where lower needs another float graph for int8. reference, if given, receives the
    model's own outputs on the pictures (see reference.py), which costs no second start of TensorFlow here. allow_lambda
    lets a Lambda's Python code run: only for a model that is trusted.

    Raises ConversionError when the graph is no detector, a weight is not finite, or converter or quantizer refuse or
    die; InputError when int8 has no readable picture or a file cannot be written. The destination's old content stays
    then.
    """
    if precision not in PRECISIONS:
        raise ConversionError(f"a precision is one of {', '.join(PRECISIONS)}, not {precision!r}; choose one")
    lowered, chosen = lower(graph, precision), list(pictures)

    def derived(source: Path) -> Conversion:
        calibration = quantize(
            source, precision, destination, graph=graph, original=float_file, pictures=chosen, validation=validation,
            int8=int8, progress=progress,
        )  # fmt: skip
        return Conversion((*lowered.notes, *calibration.notes), calibration)

    if float_file is not None and precision != "float32" and reference is None and not lowered.int8_only:
        return derived(float_file)
    with child_process.folder() as place:
        made = _export(graph, lowered, chosen, place, reference, allow_lambda)
        if precision == "float32":
            write_atomically(destination, made.read_bytes())
            return Conversion(lowered.notes)
        return derived(made)


def output_names(graph: Graph) -> dict[str, str]:
    """Name in the .tflite's signature -> node, of a graph that is split by role."""
    assert graph.head is not None
    return {f"{role}_{scale.stride}": scale.outputs[role] for scale in graph.head.scales for role in ROLES}


def _export(
    graph: Graph, lowered: Lowered, pictures: list[Path], place: Path, reference: Path | None, allow_lambda: bool
) -> Path:
    result = place / "float32.tflite"
    save(lowered.graph, place / "lowered")
    arguments: dict[str, Any] = {"lowered": str(place / "lowered"), "result": str(result), "allow_lambda": allow_lambda}
    if reference is not None:
        save(graph, place / "original")
        arguments["reference"] = {
            "original": str(place / "original"),
            "pictures": [str(path) for path in pictures],
            "destination": str(place / "reference.npz"),
        }
    step = f"conversion of {graph.name!r} to float32"
    child_process.run("toolchain.convert:export_float", arguments, place, step=step)
    if reference is not None:
        write_atomically(reference, (place / "reference.npz").read_bytes())
    return result


def export_float(lowered: str, result: str, allow_lambda: bool, reference: dict[str, Any] | None = None) -> None:
    """Runs in a child: writes the float32 .tflite of a lowered graph's file, and the model's own outputs if asked
    for."""
    graph = load(Path(lowered))
    names = {node: name for name, node in output_names(graph).items()}
    assert graph.input is not None
    size = (1, graph.input.height, graph.input.width, 3)
    Path(result).write_bytes(float_tflite(graph, names, size, allow_lambda=allow_lambda))
    if reference is not None:
        run_reference(**reference, allow_lambda=allow_lambda)


def float_tflite(graph: Graph, names: Mapping[str, str], size: tuple[int, ...], *, allow_lambda: bool = False) -> bytes:
    """The float32 .tflite of a lowered graph with one input, called "image", of the given size with its batch. names:
    what each output node is called in the file. Loads TensorFlow: for a child process."""
    import tensorflow as tf

    detect = traced(graph, names, size, allow_lambda)
    # The Keras model, which refers to itself, is gone when the converter begins: of a large network that saves a
    # quarter of all memory.
    gc.collect()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([detect], tf.Module())
    content: bytes = converter.convert()
    return content


def traced(graph: Graph, names: Mapping[str, str], size: tuple[int, ...], allow_lambda: bool) -> Any:
    """The graph as one concrete function, its weights constants of it."""
    import tensorflow as tf

    from toolchain.keras_writer import to_keras

    model = to_keras(graph, allow_lambda=allow_lambda)
    weights = [tf.constant(variable.value) for variable in model.trainable_variables]
    others = [tf.constant(variable.value) for variable in model.non_trainable_variables]

    def detect(image: Any) -> dict[str, Any]:
        outputs, _ = model.stateless_call(weights, others, image, training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return {names[node]: output for node, output in zip(graph.outputs, outputs)}

    return tf.function(detect, input_signature=[tf.TensorSpec(size, tf.float32, name="image")]).get_concrete_function()
