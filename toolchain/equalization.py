"""Channels of a float .tflite scaled so that they fill one int8 range together; the file computes what it computed.

Weights have an int8 step for each output channel, a tensor between two layers has one for all its channels: a channel
that is small beside another is left with few of the 256 values. A channel may be divided by any s > 0 where a
convolution writes it (its filter and bias), and multiplied by s again where convolutions read it, if all in between
maps x/s to f(x)/s: ReLU and LeakyReLU do, poolings, paddings, sums and concatenations of channels that share their s
(Nagel et al. 2019, Data-free quantization through weight equalization and bias correction, section 4.1). Where SiLU,
sigmoid or ReLU6 come between, nothing is scaled.

How much of a channel's spread goes to its readers' weights (Xiao et al. 2023, SmoothQuant, equation 4):

    s = r^a / w^(1-a)        r: greatest value of the channel on the pictures
                             w: greatest share that a weight on it has in its filter's greatest weight

A depthwise convolution has a step for each channel, so that a scale costs it nothing: read by such alone, s = r.

A channel that is never above 0 before a LeakyReLU of slope α comes out of it α times as wide, and so with α times the
values that int8 has for it. There s is negative behind the LeakyReLU and s/α before it: a channel that is never below
0, and passes through unchanged. It computes what it computed wherever the channel stays as it was on the pictures, and
a value above 0, which int8's range would have cut off before, becomes one just below it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: a above. Signal to noise of the outputs on calibration pictures with 0.6, 0.7 and 0.8: voc-yolo-fastest-xl 15.3, 16.7
#: and 15.7 dB, voc-yolo-fastest 17.3, 17.5 and 15.9, MobileNetV2-YOLOv3-Nano 18.2, 17.8 and 17.7.
_SHARE = 0.7
#: Weights below half of an int8 step beside the filter's greatest are 0 anyway.
_LEAST_WEIGHT = 0.5 / 127
#: f(x/s) = f(x)/s, channel by channel.
_HOMOGENEOUS = (
    "LEAKY_RELU",
    "RELU",
    "PAD",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
    "RESIZE_NEAREST_NEIGHBOR",
    "RESIZE_BILINEAR",
)
#: Of these, what does not map -x to -f(x).
_SIGNED = ("LEAKY_RELU", "RELU", "MAX_POOL_2D")
#: Fused activations that are homogeneous: none, ReLU.
_FUSED = (0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Equalized:
    """The file's content, and what every changed tensor's channels were divided by: (C,) float32 by tensor index."""

    content: bytes
    scales: Mapping[int, np.ndarray]
    #: Names of the convolutions whose outputs were scaled.
    layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str
    inputs: tuple[int, ...]
    output: int
    options: Any


def scalable(content: bytes) -> frozenset[int]:
    """Indices of the tensors of a float .tflite whose channels can be scaled."""
    channels = _Channels(_File(bytearray(content)))
    return frozenset(tensor for tensor, members in channels.of.items() if channels.free[members].all())


def equalized(content: bytes, greatest: Mapping[int, np.ndarray], highest: Mapping[int, np.ndarray]) -> Equalized:
    """Scales every channel that can be.

    Args:
        content: a float32 .tflite.
        greatest: by index of a tensor that an operation writes, (C,) its channels' greatest absolute values.
        highest: likewise their highest values on any picture, with their sign.
    """
    changed = bytearray(content)
    file = _File(changed)
    channels = _Channels(file)
    turned = channels.turned(highest)
    spread, share, dense = np.zeros(channels.count), np.zeros(channels.count), np.zeros(channels.count, bool)
    for tensor, members in channels.of.items():
        if tensor in greatest:
            values = greatest[tensor]
            if tensor in channels.slopes:
                values = np.where(turned[members], values * channels.slopes[tensor], values)
            np.maximum.at(spread, members, values)
    for operation in channels.convolutions:
        if operation.name == "CONV_2D":
            kernel = np.abs(file.constant(operation.inputs[1]))
            of_filter = np.maximum(kernel.max((1, 2, 3), keepdims=True), np.finfo(np.float32).tiny)
            members = channels.of[operation.inputs[0]]
            np.maximum.at(share, members, (kernel / of_filter).max((0, 1, 2)))
            dense[members] = True
    free = channels.free & (spread > 0) & np.isfinite(spread)
    scale = np.ones(channels.count)
    weighted = spread[free] ** _SHARE / np.maximum(share[free], _LEAST_WEIGHT) ** (1 - _SHARE)
    scale[free] = np.where(dense[free], weighted, spread[free])
    scale[free & turned] *= -1
    of_tensor = {tensor: scale[members] for tensor, members in channels.of.items()}
    for tensor, slope in channels.slopes.items():
        own = of_tensor[tensor]
        of_tensor[tensor] = np.where(own < 0, own / slope, own)
    for operation in channels.convolutions:
        before, after = of_tensor[operation.inputs[0]], of_tensor[operation.output]
        kernel = file.constant(operation.inputs[1])
        filters = after if operation.name == "DEPTHWISE_CONV_2D" else after[:, None, None, None]
        kernel[:] = kernel * before / filters
        if len(operation.inputs) > 2 and operation.inputs[2] >= 0:
            bias = file.constant(operation.inputs[2])
            bias[:] = bias / after
    scales = {tensor: values.astype(np.float32) for tensor, values in of_tensor.items() if (values != 1).any()}
    layers = tuple(file.name(one.output) for one in channels.convolutions if one.output in scales)
    return Equalized(bytes(changed), scales, layers)


class _File:
    """A .tflite's operations, and its constants as arrays that can be written to."""

    def __init__(self, content: bytearray) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._model = schema.Model.GetRootAs(content, 0)
        self._graph = self._model.Subgraphs(0)
        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        kinds = [
            names.get(self._model.OperatorCodes(place).BuiltinCode(), "")
            for place in range(self._model.OperatorCodesLength())
        ]
        options = {
            "CONV_2D": schema.Conv2DOptions,
            "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptions,
            "ADD": schema.AddOptions,
            "CONCATENATION": schema.ConcatenationOptions,
            "MAX_POOL_2D": schema.Pool2DOptions,
            "AVERAGE_POOL_2D": schema.Pool2DOptions,
            "LEAKY_RELU": schema.LeakyReluOptions,
        }
        self.operations: list[_Operation] = []
        self.others: list[tuple[list[int], list[int]]] = []
        for place in range(self._graph.OperatorsLength()):
            operator = self._graph.Operators(place)
            inputs = [int(index) for index in operator.InputsAsNumpy()]
            outputs = [int(index) for index in operator.OutputsAsNumpy()]
            name = kinds[operator.OpcodeIndex()]
            told = None
            if name in options and (table := operator.BuiltinOptions()) is not None:
                told = options[name]()
                told.Init(table.Bytes, table.Pos)
            if len(outputs) == 1:
                self.operations.append(_Operation(name, tuple(inputs), outputs[0], told))
            else:
                self.others.append((inputs, outputs))
        ends = self._graph.InputsAsNumpy(), self._graph.OutputsAsNumpy()
        self.ends = [int(index) for some in ends for index in some]
        tensors = range(self._graph.TensorsLength())
        self._uses = Counter(self._graph.Tensors(index).Buffer() for index in tensors)
        self._readers = Counter(index for one in self.operations for index in one.inputs)

    def shape(self, tensor: int) -> tuple[int, ...]:
        if not self._graph.Tensors(tensor).ShapeLength():
            return ()
        return tuple(int(side) for side in self._graph.Tensors(tensor).ShapeAsNumpy())

    def name(self, tensor: int) -> str:
        return str(self._graph.Tensors(tensor).Name().decode())

    def readers(self, tensor: int) -> int:
        return self._readers[tensor]

    def is_constant(self, tensor: int) -> bool:
        return bool(self._model.Buffers(self._graph.Tensors(tensor).Buffer()).DataLength())

    def is_own(self, tensor: int) -> bool:
        """Whether a constant belongs to one operation alone, or is 0 throughout, which every scale leaves as it is."""
        alone = self._uses[self._graph.Tensors(tensor).Buffer()] == 1 and self._readers[tensor] == 1
        return self.is_constant(tensor) and (alone or not self.constant(tensor).any())

    def constant(self, tensor: int) -> np.ndarray:
        data = self._model.Buffers(self._graph.Tensors(tensor).Buffer()).DataAsNumpy()
        return np.asarray(data.view(np.float32).reshape(self.shape(tensor)))


class _Channels:
    """Which channels share their scale."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self._parent: list[int] = []
        self._members: dict[int, np.ndarray] = {}
        self.convolutions: list[_Operation] = []
        #: By tensor that LeakyReLU alone reads its slope.
        self.slopes: dict[int, float] = {}
        #: Channels that operations write or read which want their sign, one entry for each.
        self._signed: list[np.ndarray] = []
        fixed = list(file.ends)
        for operation in file.operations:
            if not self._link(operation):
                fixed += [operation.output, *operation.inputs]
        for inputs, outputs in file.others:
            fixed += [*inputs, *outputs]
        self.count = len(self._parent)
        self._roots = np.array([self._root(index) for index in range(self.count)], np.int64)
        #: By tensor, (C,) the channel that stands for all that share its scale.
        self.of = {tensor: self._roots[members] for tensor, members in self._members.items()}
        self.free = self._free([tensor for tensor in fixed if tensor in self.of])

    def turned(self, highest: Mapping[int, np.ndarray]) -> np.ndarray:
        """(count,) bool: channels that a LeakyReLU does nothing to but multiply, and nothing else that wants their
        sign."""
        never = np.zeros(self.count, bool)
        written = {operation.output for operation in self.convolutions}
        for tensor in self.slopes.keys() & written & highest.keys():
            never[self.of[tensor][highest[tensor] <= 0]] = True
        times = np.zeros(self.count, np.int64)
        for members in self._signed:
            np.add.at(times, np.unique(self._roots[members]), 1)
        return np.asarray(never & self.free & (times == 1))

    def _free(self, fixed: Sequence[int]) -> np.ndarray:
        """(count,) bool. A channel that must stay holds all that it shares a tensor with: their scales would no longer
        fit to each other."""
        free = np.ones(self.count, bool)
        for tensor in fixed:
            free[self.of[tensor]] = False
        while True:
            held = [one for one in self.of.values() if free[one].any() and not free[one].all()]
            if not held:
                return free
            for members in held:
                free[members] = False

    def _link(self, operation: _Operation) -> bool:
        """Joins the channels that an operation hands on. False where it can hand on no scale."""
        fused = getattr(operation.options, "FusedActivationFunction", int)()
        read = [tensor for tensor in operation.inputs if tensor >= 0 and not self._file.is_constant(tensor)]
        shapes = [self._file.shape(tensor) for tensor in (*read, operation.output)]
        if not read or fused not in _FUSED or any(len(shape) != 4 for shape in shapes):
            return False
        channels = [self._of(tensor) for tensor in read]
        written = self._of(operation.output)
        if operation.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            if not self._is_plain(operation, shapes[0][3]):
                return False
            self.convolutions.append(operation)
            return True
        if operation.name in _HOMOGENEOUS and len(read) == 1 and shapes[0][3] == shapes[1][3]:
            self._join(channels[0], written)
            if operation.name in _SIGNED:
                self._signed.append(written)
            if operation.name == "LEAKY_RELU" and self._file.readers(read[0]) == 1 and operation.options.Alpha() > 0:
                self.slopes[read[0]] = operation.options.Alpha()
            return True
        if operation.name == "ADD" and len(read) == 2 and len(set(shapes)) == 1:
            self._join(channels[0], written)
            self._join(channels[1], written)
            # Twice, so that it is never the one operation: what is added to them has its own sign.
            self._signed += [written, written]
            return True
        if operation.name == "CONCATENATION" and operation.options.Axis() in (-1, 3):
            if len(read) == len(operation.inputs):
                self._join(np.concatenate(channels), written)
                return True
        return False

    def _is_plain(self, operation: _Operation, channels: int) -> bool:
        """Whether a convolution reads every channel by weights of its own."""
        constants = [tensor for tensor in operation.inputs[1:] if tensor >= 0]
        if not constants or not all(self._file.is_own(tensor) for tensor in constants):
            return False
        if operation.name == "DEPTHWISE_CONV_2D":
            return bool(operation.options.DepthMultiplier() == 1)
        return self._file.shape(operation.inputs[1])[3] == channels

    def _of(self, tensor: int) -> np.ndarray:
        if tensor not in self._members:
            first, channels = len(self._parent), self._file.shape(tensor)[-1]
            self._parent += range(first, first + channels)
            self._members[tensor] = np.arange(first, first + channels)
        return self._members[tensor]

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def _join(self, first: np.ndarray, second: np.ndarray) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self._parent[self._root(other)] = self._root(one)
