"""Real .tflite files of a few hundred bytes, built without TensorFlow, for the tests of deploy."""

from __future__ import annotations

import dataclasses

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from deploy.contract import ROLES, Contract, Input, Scale, Tensor, YoloHead

HEIGHT, WIDTH, STRIDE = 32, 64, 16
ANCHORS = ((20.0, 10.0), (8.0, 30.0))
LABELS = ("red", "blue")
#: Of the int8 outputs: logits of -12.8 to 12.7.
STEP = 0.1

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
    "int16": schema.TensorType.INT16,
    "int64": schema.TensorType.INT64,
}


@dataclasses.dataclass
class Builder:
    """Collects tensors and operations of one subgraph; tensors are told by their index."""

    model: schema.ModelT = dataclasses.field(default_factory=schema.ModelT)
    graph: schema.SubGraphT = dataclasses.field(default_factory=schema.SubGraphT)

    def __post_init__(self) -> None:
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes, self.model.subgraphs = [], [self.graph]
        self.graph.tensors, self.graph.operators = [], []

    def tensor(self, name, shape, dtype="float32", scale=0.0, zero_point=0, data=None) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), _TYPES[dtype], 0
        if scale:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(data, dtype).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operation(self, code, inputs, outputs, options=None, custom=None) -> None:
        """code: the name of a built-in operation, or of a custom one, whose options then stand in `custom`."""
        kind = schema.OperatorCodeT()
        kind.version = 1
        number = getattr(schema.BuiltinOperator, code, schema.BuiltinOperator.CUSTOM)
        kind.builtinCode, kind.deprecatedBuiltinCode = number, min(number, 127)
        if number == schema.BuiltinOperator.CUSTOM:
            kind.customCode = code
        operation = schema.OperatorT()
        operation.opcodeIndex, operation.inputs, operation.outputs = len(self.model.operatorCodes), inputs, outputs
        if options is not None:
            operation.builtinOptions = options
            operation.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        if custom is not None:
            operation.customOptions = np.frombuffer(bytes(custom), np.uint8)
        self.model.operatorCodes.append(kind)
        self.graph.operators.append(operation)

    def finish(self, inputs, outputs, signatures=("serving_default",)) -> bytes:
        """inputs, outputs: name in the signatures -> index."""
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        self.model.signatureDefs = [_signature(key, inputs, outputs) for key in signatures]
        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _signature(key, inputs, outputs) -> schema.SignatureDefT:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = key, 0
    signature.inputs, signature.outputs = [], []
    for entries, tensors in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for name, index in tensors.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            entries.append(entry)
    return signature


def yolo(dtype="float32", signatures=("serving_default",), resize="letterbox", color="RGB") -> tuple[bytes, Contract]:
    """A detector that sees coloured dots: a cell whose upper left pixel is red or blue, on black, holds that class with
    each anchor; the boxes lie centred in the cell and have the anchors' sizes. Logits are linear in the pixel (r, g,
    b):

    objectness 12 r + 12 b - 6,  red 8 r - 4,  blue 8 b - 4,  x = y = w = h = 0.
    """
    quantized = dtype == "int8"
    rows, columns, anchors = HEIGHT // STRIDE, WIDTH // STRIDE, len(ANCHORS)
    per_anchor = {
        "xy": [([0, 0, 0], 0), ([0, 0, 0], 0)],
        "wh": [([0, 0, 0], 0), ([0, 0, 0], 0)],
        "objectness": [([12, 0, 12], -6)],
        "classes": [([8, 0, 0], -4), ([0, 0, 8], -4)],
    }
    builder = Builder()
    pixel_scale = float(np.float32(1 / 255))
    image = Tensor("image", (1, HEIGHT, WIDTH, 3), dtype, *((pixel_scale, -128) if quantized else ()))
    source = builder.tensor("serving_default_image:0", image.shape, dtype, image.scale, image.zero_point)
    tensors, outputs = [image], {}
    for role in ROLES:
        kernel = np.array([weights for weights, _ in per_anchor[role]] * anchors, np.float64)
        bias = np.array([offset for _, offset in per_anchor[role]] * anchors, np.float64)
        step = float(np.float32(STEP)) if quantized else 0.0
        tensor = Tensor(f"{role}_{STRIDE}", (1, rows, columns, len(bias)), dtype, step)
        weight_scale = 12 / 127
        w = builder.tensor(
            f"{role} kernel",
            (len(bias), 1, 1, 3),
            dtype,
            weight_scale if quantized else 0.0,
            data=np.rint(kernel / weight_scale) if quantized else kernel,
        )
        b = builder.tensor(
            f"{role} bias",
            (len(bias),),
            "int32" if quantized else "float32",
            pixel_scale * weight_scale if quantized else 0.0,
            data=np.rint(bias / (pixel_scale * weight_scale)) if quantized else bias,
        )
        outputs[tensor.name] = builder.tensor(f"StatefulPartitionedCall:{role}", tensor.shape, dtype, tensor.scale)
        options = schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = schema.Padding.VALID, STRIDE, STRIDE
        options.dilationHFactor = options.dilationWFactor = 1
        builder.operation("CONV_2D", [source, w, b], [outputs[tensor.name]], options)
        tensors.append(tensor)
    content = builder.finish({"image": source}, outputs, signatures)
    head = YoloHead((Scale(STRIDE, ANCHORS, {role: f"{role}_{STRIDE}" for role in ROLES}),))
    contract = Contract(
        "dots",
        LABELS,
        Input("image", HEIGHT, WIDTH, resize, color),
        head,
        "int8" if quantized else "float32",
        tuple(tensors),
        {"recipe": "none"},
        {"map": 0.5},
    )
    return content, contract


def postprocess(input_dtype="uint8", operation="TFLite_Detection_PostProcess") -> bytes:
    """What TensorFlow's object detection API exports, as small as it gets: 4 x 4 pixels, 12 anchors, 3 classes.

    The boxes' offsets are the picture's pixels over 128 less 1, four after four; anchor i has class i % 3 with the
    score 0.9 - 0.05 i, so that a grey picture gives the anchors themselves.
    """
    builder = Builder()
    quantized = input_dtype != "float32"
    source = builder.tensor("normalized_input", (1, 4, 4, 3), input_dtype, *((1 / 128, 128) if quantized else ()))
    pixels = source
    if quantized:
        pixels = builder.tensor("pixels", (1, 4, 4, 3))
        builder.operation("DEQUANTIZE", [source], [pixels])
    offsets = builder.tensor("offsets", (1, 12, 4))
    shape = builder.tensor("shape", (3,), "int32", data=[1, 12, 4])
    options = schema.ReshapeOptionsT()
    options.newShape = [1, 12, 4]
    builder.operation("RESHAPE", [pixels, shape], [offsets], options)
    scores = np.zeros((12, 1 + 3))
    scores[np.arange(12), 1 + np.arange(12) % 3] = 0.9 - 0.05 * np.arange(12)
    # Centres (y, x) on a grid of 3 x 4, so that no two overlap.
    anchors = [[(1 + 2 * (i // 4)) / 6, (1 + 2 * (i % 4)) / 8, 0.2, 0.1] for i in range(12)]
    classes = builder.tensor("class scores", (1, 12, 4), data=scores)
    anchors = builder.tensor("anchors", (12, 4), data=anchors)
    found = [
        builder.tensor(f"{operation}{suffix}", shape)
        for suffix, shape in (("", (1, 10, 4)), (":1", (1, 10)), (":2", (1, 10)), (":3", (1,)))
    ]
    settings = {"max_detections": 10, "max_classes_per_detection": 1, "num_classes": 3, "use_regular_nms": False}
    settings |= {"nms_score_threshold": 0.1, "nms_iou_threshold": 0.5}
    settings |= {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
    builder.operation(operation, [offsets, classes, anchors], found, custom=flexbuffers.Dumps(settings))
    return builder.finish({"normalized_input": source}, {f"out_{i}": index for i, index in enumerate(found)}, ())
