"""Writes an int8 .tflite by TFLiteConverter's own quantizer, to be measured beside ours.

    python -m toolchain.plain_int8 CFG WEIGHTS NAMES --calibration DIR -o M.tflite

The same float graph, split by role, and the same pictures as `slimdet convert --precision int8 --resize stretch`:
what differs is the quantizer, its ranges, and that channels are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from deploy.command_line import debug_option, run
from deploy.contract import Tensor
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain import child_process
from toolchain.convert import output_names, traced
from toolchain.graph_file import load, save
from toolchain.lower import lower
from toolchain.one_file import Origin, read_origin
from toolchain.package import package
from toolchain.quantize import CALIBRATION_PICTURES, evenly_spaced
from toolchain.stages import pictures_in


def convert_in_child(lowered: str, pictures: list[str], result: str) -> None:
    """Converts a lowered graph's file with the pictures as its representative data set."""
    import tensorflow as tf

    graph = load(Path(lowered))
    assert graph.input is not None
    size = (1, graph.input.height, graph.input.width, 3)
    names = {node: name for name, node in output_names(graph).items()}
    preprocess = Preprocessor(graph.input, Tensor(graph.input.name, size, "float32"))

    def representative() -> Iterator[list[Any]]:
        for path in pictures:
            yield [preprocess(read_picture(Path(path)))[0].copy()]

    function = traced(graph, names, size, allow_lambda=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    Path(result).write_bytes(converter.convert())


@click.command()
@click.argument("cfg", type=click.Path(exists=True, path_type=Path))
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@click.argument("names", type=click.Path(exists=True, path_type=Path))
@click.option("--calibration", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@debug_option
def plain_int8(cfg: Path, weights: Path, names: Path, calibration: Path, output: Path) -> None:
    """Convert a darknet network to int8 by TFLiteConverter alone."""
    graph = read_origin(Origin(cfg, weights, names, None, "stretch", False))
    pictures = evenly_spaced(pictures_in(calibration), CALIBRATION_PICTURES)
    with child_process.folder() as place:
        save(lower(graph, "int8").graph, place / "lowered")
        arguments = {
            "lowered": str(place / "lowered"),
            "pictures": [str(path) for path in pictures],
            "result": str(place / "model.tflite"),
        }
        step = f"TFLiteConverter on {graph.name!r}"
        child_process.run("toolchain.plain_int8:convert_in_child", arguments, place, step=step)
        package(place / "model.tflite", graph, "int8", output)


if __name__ == "__main__":
    run(plain_int8, "python -m toolchain.plain_int8")
