"""A finished .tflite as a graph to which operations are added, in front and behind, without TensorFlow.

Tensors are named by their index. What is added is float32; what was there stays as it was, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deploy.errors import ConversionError

#: An element-wise operation without options of its own, by arity.
_UNARY = ("LOGISTIC", "EXP", "LOG", "SOFTMAX")
_BINARY = ("ADD", "SUB", "MUL", "DIV", "MINIMUM", "MAXIMUM")


def unpacked(content: bytes) -> Any:
    """The flatbuffer as objects of the schema's own classes."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(content))
    # Of a file whose weights lie behind the flatbuffer they come as bytes, which would be packed one by one.
    for buffer in model.buffers:
        if isinstance(buffer.data, bytes | bytearray):
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return model


def packed(model: Any) -> bytes:
    """The flatbuffer of the objects; the same objects give the same bytes."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    return bytes(convert_object_to_bytearray(model))


class FlatbufferGraph:
    """One subgraph with one signature. Raises ConversionError for a file that has others."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema: Any = schema
        self._model = unpacked(content)
        if len(self._model.subgraphs) != 1 or len(self._model.signatureDefs or ()) != 1:
            raise ConversionError(
                f"operations are added to a file of one subgraph and one signature, not {len(self._model.subgraphs)} "
                f"and {len(self._model.signatureDefs or ())}; convert the model with slimdet"
            )
        (self._graph,), (self._signature,) = self._model.subgraphs, self._model.signatureDefs
        #: Where the next operation goes; None is the end.
        self._place: int | None = None

    def content(self) -> bytes:
        """The flatbuffer; the same steps give the same bytes."""
        return packed(self._model)

    @property
    def inputs(self) -> dict[str, int]:
        """Name in the signature -> tensor."""
        return {entry.name.decode(): entry.tensorIndex for entry in self._signature.inputs}

    @inputs.setter
    def inputs(self, tensors: Mapping[str, int]) -> None:
        self._signature.inputs, self._graph.inputs = self._maps(tensors), list(tensors.values())

    @property
    def outputs(self) -> dict[str, int]:
        """Name in the signature -> tensor."""
        return {entry.name.decode(): entry.tensorIndex for entry in self._signature.outputs}

    @outputs.setter
    def outputs(self, tensors: Mapping[str, int]) -> None:
        self._signature.outputs, self._graph.outputs = self._maps(tensors), list(tensors.values())

    def _maps(self, tensors: Mapping[str, int]) -> list[Any]:
        return [self._schema.TensorMapT(name=name.encode(), tensorIndex=index) for name, index in tensors.items()]

    @contextlib.contextmanager
    def in_front(self) -> Iterator[None]:
        """What is added meanwhile runs before everything that was there."""
        self._place = 0
        yield
        self._place = None

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(side) for side in self._graph.tensors[tensor].shape)

    def is_float(self, tensor: int) -> bool:
        return bool(self._graph.tensors[tensor].type == self._schema.TensorType.FLOAT32)

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "FLOAT32", buffer: int = 0) -> int:
        """A new tensor that some operation will write, or the file's user."""
        made = self._schema.TensorT(
            shape=list(shape), type=getattr(self._schema.TensorType, dtype), buffer=buffer, name=name.encode()
        )
        made.hasRank = True
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, name: str, values: np.ndarray) -> int:
        """values: float32 or int32."""
        content = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self._model.buffers.append(self._schema.BufferT(data=content))
        return self.tensor(name, values.shape, values.dtype.name.upper(), len(self._model.buffers) - 1)

    def as_float(self, tensor: int) -> int:
        """The tensor itself, or what DEQUANTIZE makes of it."""
        if self.is_float(tensor):
            return tensor
        return self._operation("DEQUANTIZE", [tensor], self.shape(tensor), version=2)

    def feed(self, value: int, body: int) -> None:
        """Gives the float tensor to all that read the body's input until now, by QUANTIZE where that is integer."""
        if not self.is_float(body):
            self._add("QUANTIZE", [value], [body])
            return
        for operator in self._graph.operators:
            operator.inputs = [value if index == body else index for index in operator.inputs]

    def unary(self, operation: str, tensor: int) -> int:
        """LOGISTIC, EXP, LOG, or SOFTMAX along the last axis."""
        assert operation in _UNARY
        options = (self._schema.BuiltinOptions.SoftmaxOptions, self._schema.SoftmaxOptionsT(beta=1.0))
        return self._operation(
            operation, [tensor], self.shape(tensor), options=options if operation == "SOFTMAX" else None
        )

    def binary(self, operation: str, one: int, other: int) -> int:
        """ADD, SUB, MUL, DIV, MINIMUM or MAXIMUM; the shapes broadcast."""
        assert operation in _BINARY
        shape = np.broadcast_shapes(self.shape(one), self.shape(other))
        name = "MaximumMinimum" if operation in ("MINIMUM", "MAXIMUM") else operation.capitalize()
        kind = getattr(self._schema.BuiltinOptions, f"{name}Options")
        options = getattr(self._schema, f"{name}OptionsT")()
        return self._operation(operation, [one, other], shape, options=(kind, options))

    def reshape(self, tensor: int, shape: Sequence[int]) -> int:
        options = (self._schema.BuiltinOptions.ReshapeOptions, self._schema.ReshapeOptionsT(newShape=list(shape)))
        return self._operation("RESHAPE", [tensor, self._shape_constant(shape)], shape, options=options)

    def slice(self, tensor: int, begin: Sequence[int], size: Sequence[int]) -> int:
        ends = [self._shape_constant(begin), self._shape_constant(size)]
        return self._operation("SLICE", [tensor, *ends], size)

    def concatenate(self, tensors: Sequence[int], axis: int) -> int:
        shape = list(self.shape(tensors[0]))
        shape[axis] = sum(self.shape(tensor)[axis] for tensor in tensors)
        options = self._schema.ConcatenationOptionsT(axis=axis)
        kind = self._schema.BuiltinOptions.ConcatenationOptions
        return self._operation("CONCATENATION", tensors, shape, options=(kind, options))

    def custom(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: bytes) -> None:
        """An operation that is not built in, with its options as a flexbuffer."""
        code = self._schema.OperatorCodeT(customCode=name.encode())
        code.builtinCode = code.deprecatedBuiltinCode = self._schema.BuiltinOperator.CUSTOM
        self._model.operatorCodes.append(code)
        made = self._schema.OperatorT(len(self._model.operatorCodes) - 1, list(inputs), list(outputs))
        made.customOptions = np.frombuffer(options, np.uint8)
        made.customOptionsFormat = self._schema.CustomOptionsFormat.FLEXBUFFERS
        self._graph.operators.append(made)

    def _operation(
        self, operation: str, inputs: Sequence[int], shape: Sequence[int], *, options: Any = None, version: int = 1
    ) -> int:
        made = self.tensor(self._free_name(operation), shape)
        self._add(operation, inputs, [made], options, version)
        return made

    def _add(
        self, operation: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 1
    ) -> None:
        made = self._schema.OperatorT(self._code(operation, version), list(inputs), list(outputs))
        if options is not None:
            made.builtinOptionsType, made.builtinOptions = options
        if self._place is None:
            self._graph.operators.append(made)
        else:
            self._graph.operators.insert(self._place, made)
            self._place += 1

    def _code(self, operation: str, version: int) -> int:
        number = getattr(self._schema.BuiltinOperator, operation)
        codes = self._model.operatorCodes
        for place, code in enumerate(codes):
            if code.builtinCode == number and code.version >= version:
                return place
        # Older readers have the number in one byte alone; every operation here is below 127.
        codes.append(self._schema.OperatorCodeT(deprecatedBuiltinCode=number, version=version, builtinCode=number))
        return len(codes) - 1

    def _shape_constant(self, sides: Sequence[int]) -> int:
        return self.constant(self._free_name("sides"), np.array(sides, np.int32))

    def _free_name(self, what: str) -> str:
        return f"decoding/{what}_{len(self._graph.tensors)}"
