"""A detector small enough to be written byte by byte: the picture's mean colour decides between two classes.

Input (1, 32, 32, 3) in 0..1; one mean over all pixels, and a 1x1 convolution for each output of one 32-pixel cell.
Its one box is the whole input. Its class logits are 20 * (red - blue) for "red" and the opposite for "blue".
"""

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from deploy import model_file
from deploy.contract import Contract, Input, Scale, Tensor, YoloHead

SIDE = 32
#: Output name: weights (channels, 3) and bias (channels,).
OUTPUTS = {
    "xy_32": (np.zeros((2, 3)), np.zeros(2)),
    "wh_32": (np.zeros((2, 3)), np.zeros(2)),
    "objectness_32": (np.zeros((1, 3)), np.full(1, 10.0)),
    "classes_32": (np.array([[20.0, 0, -20], [-20, 0, 20]]), np.zeros(2)),
}


def tflite() -> bytes:
    """The plain flatbuffer."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    model.operatorCodes = [_code(schema.BuiltinOperator.AVERAGE_POOL_2D), _code(schema.BuiltinOperator.CONV_2D)]
    graph = schema.SubGraphT()
    graph.tensors = [_tensor("image", (1, SIDE, SIDE, 3)), _tensor("mean", (1, 1, 1, 3))]
    pool = schema.Pool2DOptionsT()
    pool.filterWidth = pool.filterHeight = pool.strideW = pool.strideH = SIDE
    pool.padding = schema.Padding.VALID
    graph.operators = [_operator(0, [0], [1], schema.BuiltinOptions.Pool2DOptions, pool)]
    graph.inputs, graph.outputs = [0], []
    for name, (weights, bias) in OUTPUTS.items():
        places = []
        for part, values in (("kernel", weights.reshape(-1, 1, 1, 3)), ("bias", bias)):
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
            model.buffers.append(buffer)
            graph.tensors.append(_tensor(f"{name}_{part}", values.shape, len(model.buffers) - 1))
            places.append(len(graph.tensors) - 1)
        graph.tensors.append(_tensor(name, (1, 1, 1, len(bias))))
        output = len(graph.tensors) - 1
        options = schema.Conv2DOptionsT()
        options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
        graph.operators.append(_operator(1, [1, *places], [output], schema.BuiltinOptions.Conv2DOptions, options))
        graph.outputs.append(output)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def contract(labels: tuple[str, str] = ("red", "blue")) -> Contract:
    shapes = {name: (1, 1, 1, len(bias)) for name, (_, bias) in OUTPUTS.items()}
    tensors = [Tensor("image", (1, SIDE, SIDE, 3), "float32")]
    tensors += [Tensor(name, shape, "float32") for name, shape in shapes.items()]
    roles = {name.removesuffix("_32"): name for name in OUTPUTS}
    return Contract(
        name="toy",
        labels=labels,
        input=Input("image", SIDE, SIDE, resize="stretch"),
        head=YoloHead((Scale(SIDE, ((float(SIDE), float(SIDE)),), roles),)),
        precision="float32",
        tensors=tuple(tensors),
    )


def write_toy(path: Path, labels: tuple[str, str] = ("red", "blue")) -> Path:
    path.write_bytes(model_file.write(tflite(), contract(labels)))
    return path


def _code(builtin: int) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    return code


def _tensor(name: str, shape: tuple[int, ...], buffer: int = 0) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name, list(shape), buffer, schema.TensorType.FLOAT32
    return tensor


def _operator(code: int, inputs: list[int], outputs: list[int], kind: int, options: object) -> schema.OperatorT:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    operator.builtinOptionsType, operator.builtinOptions = kind, options
    return operator
