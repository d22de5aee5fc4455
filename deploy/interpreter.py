"""The LiteRT interpreter on one file: named tensors in, named tensors out, on the CPU or an external delegate."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from deploy import external_delegate
from deploy.backend import CPU_BACKENDS, Backend, parse_backend
from deploy.chatter import without_chatter
from deploy.contract import ROLES, Contract, Input, Scale, Tensor, YoloHead
from deploy.delegated import Delegated, delegated, stand_ins
from deploy.errors import BackendError, ContractError, InputError

if TYPE_CHECKING:
    from deploy.open_model import OpenModel

_MOST_THREADS = 256
_RESOLVERS = {
    "cpu": OpResolverType.AUTO,
    "cpu-builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "cpu-reference": OpResolverType.BUILTIN_REF,
    # XNNPACK takes of the rest what it can.
    "delegate": OpResolverType.AUTO,
}
_SIGNATURE = "serving_default"


class Model:
    """A .tflite in the interpreter, on a CPU backend or an external delegate. Not for several threads at once.

    `inputs` and `outputs` stand under their signature's names, or under the tensors' own where the file has no
    signature.

    Raises InputError where the content is no readable .tflite, BackendError where the backend is not to be had or
    cannot run the file.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __init__(self, content: bytes, backend: str = "cpu", threads: int = 1) -> None:
        chosen = _interpreters(backend)
        if not 1 <= threads <= _MOST_THREADS:
            raise InputError(f"threads is a whole number from 1 to {_MOST_THREADS}, not {threads}; the default is 1")
        self.backend, self.threads = backend, threads
        self._interpreter = _open(content, _RESOLVERS[chosen.kind], threads)
        opened = time.perf_counter_ns()
        #: Nodes that stand for what the external delegate took; None where there is none.
        self._claims: frozenset[int] | None = None
        try:
            with without_chatter():
                if chosen.kind == "delegate":
                    self._interpreter = _with_delegate(content, chosen, threads)
                    self._claims = stand_ins(self._operations())
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                f"backend {backend} cannot run this file ({_first_line(error)}); it holds built-in operations only, "
                "and other backends are " + ", ".join(name for name in CPU_BACKENDS if name != backend)
            ) from error
        #: Milliseconds that laying out the tensors in memory took, delegates included.
        self.allocate_ms = (time.perf_counter_ns() - opened) / 1e6
        try:
            #: The signature under whose names they stand, None where the file has none.
            self.signature = _signature(self._interpreter)
            inputs, outputs = _details(self._interpreter, self.signature)
        except UnicodeDecodeError as error:
            raise InputError(f"the .tflite is damaged: a tensor's name is no text ({error}); copy it anew") from error
        self.inputs = tuple(_tensor(name, details) for name, details in inputs.items())
        self.outputs = tuple(_tensor(name, details) for name, details in outputs.items())
        self._input_indices = {name: int(details["index"]) for name, details in inputs.items()}
        self._output_indices = {name: int(details["index"]) for name, details in outputs.items()}
        self._views = {name: self._interpreter.tensor(index) for name, index in self._output_indices.items()}
        self._memory = {name: self._output_memory(name) for name in self._views}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, as the file gives them (quantized ones stay so). They are read-only and lie in the
        interpreter's own memory: valid until the next run, so copy what is kept longer.

        Raises InputError where a name, shape or dtype is not the file's, BackendError where the run fails.
        """
        check_inputs(self.inputs, inputs)
        for name, index in self._input_indices.items():
            self._interpreter.set_tensor(index, inputs[name])
        self.invoke()
        return {tensor.name: self._output(tensor) for tensor in self.outputs}

    def invoke(self) -> None:
        """Computes again on the inputs of the last run, and neither copies them nor looks at the outputs: what is timed
        where the kernels alone count. Raises BackendError where it fails."""
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"backend {self.backend} failed on this input: {_first_line(error)}") from error

    @functools.cached_property
    def delegated(self) -> Delegated:
        """What the external delegate took of the file's nodes, or XNNPACK where there is none."""
        return delegated(self._operations(), self._claims)

    def _operations(self) -> list[dict[str, Any]]:
        try:
            return self._interpreter._get_ops_details()
        except UnicodeDecodeError as error:  # it spells out every tensor's name
            raise InputError(f"the .tflite is damaged: a tensor's name is no text ({error}); copy it anew") from error

    def outputs_of(self, operation: str) -> list[tuple[str, ...]]:
        """For every node of that name, such as TFLite_Detection_PostProcess: the names of the file's outputs that it
        writes, in the node's order; "" for a tensor that is no output of the file."""
        names = {index: name for name, index in self._output_indices.items()}
        return [
            tuple(names.get(int(index), "") for index in node["outputs"])
            for node in self._operations()
            if node["op_name"] == operation
        ]

    def _output_memory(self, name: str) -> np.ndarray | None:
        """The output's memory, None where there is none before a run."""
        try:
            memory = self._views[name]()
        except ValueError:
            return None
        return np.asarray(_OutputMemory(self._interpreter, memory))

    def _output(self, tensor: Tensor) -> np.ndarray:
        array = self._memory[tensor.name]
        if array is not None and np.may_share_memory(_first(array), _first(self._views[tensor.name]())):
            return array
        # Allocated anew in runs, because its shape is computed: such memory can vanish, so it is copied from now on.
        self._memory[tensor.name] = None
        copied = self._interpreter.get_tensor(self._output_indices[tensor.name])
        if copied.shape != tensor.shape:
            raise BackendError(
                f"outputs have fixed shapes, but {tensor.name!r} became {copied.shape} instead of {tensor.shape}; "
                "convert the model with a fixed input shape"
            )
        return copied


class _OutputMemory:
    """An output's memory as numpy reads it.

    The array that `Interpreter.tensor` returns counts as a reference to its inner object, and while one exists the
    interpreter refuses to run. This one holds the interpreter itself: the memory lives as long as the array does.
    """

    def __init__(self, interpreter: Interpreter, memory: np.ndarray) -> None:
        self.interpreter = interpreter
        read_only = True
        self.__array_interface__ = {
            "data": (_address(memory), read_only),
            "shape": memory.shape,
            "typestr": memory.dtype.str,
            "version": 3,
        }


def _first(array: np.ndarray) -> np.ndarray:
    """The first value alone: two arrays begin in one place where these share it, which is found five times as fast as
    their addresses are."""
    return array.reshape(-1)[:1]


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def check_inputs(tensors: Sequence[Tensor], inputs: Mapping[str, np.ndarray]) -> None:
    """Raises InputError where the inputs are not, by name, shape and dtype, those that the file reads."""
    if len(inputs) != len(tensors):
        known = ", ".join(tensor.name for tensor in tensors)
        raise InputError(f"the file reads {known}, each once, not {', '.join(inputs) or 'nothing'}")
    for tensor in tensors:
        array = inputs.get(tensor.name)
        if array is None or array.shape != tensor.shape or array.dtype != tensor.dtype:
            got = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise InputError(f"input {tensor.name!r} is {tensor.dtype} {tensor.shape}, not {got}; convert it")


def check(model: OpenModel, contract: Contract) -> None:
    """Raises ContractError, naming the tensor, where the file's tensors are not those that its metadata tells of, or
    cannot hold what its head says."""
    actual = {tensor.name: tensor for tensor in (*model.inputs, *model.outputs)}
    stated = {tensor.name: tensor for tensor in contract.tensors}
    for name in [*actual, *stated]:
        if actual.get(name) != stated.get(name):
            raise ContractError(
                f"the metadata contradicts the file: tensor {name!r} is {_words(actual.get(name))}, but the metadata "
                f"says {_words(stated.get(name))}; build the file anew"
            )
    if len(model.inputs) != 1:
        raise ContractError(f"a detector reads one picture, but this file has {len(model.inputs)} inputs; give another")
    _check_input(model.inputs[0], contract.input)
    outputs = {tensor.name: tensor for tensor in model.outputs}
    for name, (shape, dtypes) in _expected_outputs(contract).items():
        tensor = outputs.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype not in dtypes:
            raise ContractError(
                f"the metadata's head contradicts the file: output {name!r} must be {' or '.join(dtypes)} {shape}, "
                f"but is {_words(tensor)}; build the file anew"
            )


def _check_input(tensor: Tensor, stated: Input) -> None:
    shape = (1, stated.height, stated.width, 3)
    quantized = tensor.dtype in ("int8", "uint8") and tensor.scale > 0
    if tensor.name != stated.name or tensor.shape != shape or not (quantized or tensor.dtype == "float32"):
        raise ContractError(
            f"the metadata contradicts the file: its input {stated.name!r} must be float32, or quantized int8 or "
            f"uint8, {shape}, but the file reads {tensor.name!r}, {_words(tensor)}; build the file anew"
        )


def _expected_outputs(contract: Contract) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape and dtypes of every output that the head reads, by name."""
    head, size = contract.head, contract.input
    if isinstance(head, YoloHead):
        dtypes = ("float32", "int8", "uint8")
        return {
            scale.outputs[role]: (shape, dtypes)
            for scale in head.scales
            for role, shape in _grid(scale, size, len(contract.labels)).items()
        }
    shapes = {tensor.name: tensor.shape for tensor in contract.tensors}
    rows = next(iter(shapes.get(head.scores, ())[1:]), 0)
    return {
        head.boxes: ((1, rows, 4), ("float32",)),
        head.classes: ((1, rows), ("float32",)),
        head.scores: ((1, rows), ("float32",)),
        head.count: ((1,), ("float32",)),
    }


def _grid(scale: Scale, size: Input, classes: int) -> dict[str, tuple[int, ...]]:
    if size.height % scale.stride or size.width % scale.stride:
        raise ContractError(
            f"a stride divides the input's height and width, but the metadata says stride {scale.stride} at "
            f"{size.height}x{size.width}; build the file anew"
        )
    height, width, anchors = size.height // scale.stride, size.width // scale.stride, len(scale.anchors)
    depth = {"xy": 2, "wh": 2, "objectness": 1, "classes": classes}
    return {role: (1, height, width, anchors * depth[role]) for role in ROLES}


def _words(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    quantized = f", scale {tensor.scale!r}, zero point {tensor.zero_point}" if tensor.scale else ""
    return f"{tensor.dtype} {tensor.shape}{quantized}"


def _open(content: bytes, resolver: OpResolverType, threads: int) -> Interpreter:
    if content[4:8] != b"TFL3":
        raise InputError("a .tflite has TFL3 at bytes 4 to 8, which this content lacks; give a .tflite")
    try:
        return Interpreter(model_content=content, num_threads=threads, experimental_op_resolver_type=resolver)
    except (RuntimeError, ValueError) as error:
        reason = _first_line(error)
        raise InputError(f"the .tflite is damaged or cut short ({reason}); copy or build it anew") from error


def _interpreters(backend: str) -> Backend:
    """The backend, which is one of the interpreter's. Raises BackendError where it is not."""
    chosen = parse_backend(backend)
    if chosen.kind == "npu":
        raise BackendError(
            "backend npu needs a chip with its maker's runtime and compiler, which slimdet cannot drive yet; where the "
            "maker has a TensorFlow Lite delegate, use delegate:LIBRARY, and else cpu or gpu"
        )
    if chosen.kind not in _RESOLVERS:
        raise BackendError(f"the interpreter has no backend {backend}; open the file with open_model, or choose cpu")
    return chosen


def _with_delegate(content: bytes, backend: Backend, threads: int) -> Interpreter:
    """An interpreter whose nodes the delegate has claimed. Raises BackendError where it is not to be had or fails."""
    loaded = external_delegate.load(backend)
    try:
        return Interpreter(model_content=content, num_threads=threads, experimental_delegates=[loaded])
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"the delegate {backend.path} failed on this file ({_first_line(error)}); give it other options, or "
            "choose cpu"
        ) from error


def _signature(interpreter: Interpreter) -> str | None:
    """The name of the signature that is run, None where the file has none."""
    signatures = interpreter.get_signature_list()
    if not signatures:
        return None
    key: str = next(iter(signatures)) if len(signatures) == 1 else _SIGNATURE
    if key not in signatures:
        raise InputError(f"of several signatures, {_SIGNATURE!r} is run, but this file has {', '.join(signatures)}")
    return key


def _details(interpreter: Interpreter, signature: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The runtime's own description of inputs and outputs by name."""
    if signature is not None:
        # Its runner counts as a reference to the interpreter's memory, so it is not kept.
        runner = interpreter.get_signature_runner(signature)
        return runner.get_input_details(), runner.get_output_details()
    inputs = {details["name"]: details for details in interpreter.get_input_details()}
    outputs = {details["name"]: details for details in interpreter.get_output_details()}
    if len(outputs) < len(interpreter.get_output_details()):
        raise InputError("outputs are told apart by name, but this file has one twice; give a file with a signature")
    return inputs, outputs


def _tensor(name: str, details: Mapping[str, Any]) -> Tensor:
    scale, zero_point = details["quantization"]
    return Tensor(
        name=name,
        shape=tuple(int(side) for side in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scale),
        zero_point=int(zero_point),
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
