"""A .tflite on the GPU, whole or not at all: LiteRT's CompiledModel.

The runtime is asked for the GPU alone: what it then compiles runs there altogether, and what it refuses is an error
here, never a result of the CPU. Its own `is_fully_accelerated` is not asked: it is true without a GPU as well.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import ai_edge_litert
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options
from ai_edge_litert.environment import Environment

from deploy import gpu_refusal
from deploy.backend import parse_backend
from deploy.chatter import caught_stderr
from deploy.contract import Tensor
from deploy.delegated import Delegated
from deploy.errors import BackendError
from deploy.interpreter import Model, check_inputs

#: What the runtime's buffers hold; the file's other types have no way in or out.
_DTYPES = ("float32", "float16", "int32", "int8", "uint8", "bool")
#: The library that drives GPUs of Linux and Windows, through Vulkan or Direct3D.
_WEBGPU = "LiteRtWebGpuAccelerator"
_ADAPTER = re.compile(r"Selected adapter: (.+)")
#: Why there is no adapter.
_VULKAN = re.compile(r"Warning: (Couldn't load Vulkan|vkCreateInstance)")
#: Vulkan drivers that compute on the processor, by what they call themselves.
_SOFTWARE = re.compile(r"adapterType=CPU|swiftshader|llvmpipe|lavapipe|softpipe", re.IGNORECASE)


class GpuModel:
    """A .tflite compiled for the GPU, ready to run. Not for several threads at once. See OpenModel.

    Tensors stand under the same names as on the CPU. threads is what the backends of the CPU take, and changes nothing.

    Raises InputError where the content is no readable .tflite, BackendError where there is no GPU to be had or it
    cannot compute the whole file.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __init__(self, content: bytes, backend: str = "gpu", threads: int = 1) -> None:
        self.backend, self.threads = backend, threads
        # The GPU's runtime knows no scales and zero points, and lists outputs in another order.
        described = Model(content, "cpu-builtin", threads)
        self.inputs, self.outputs = described.inputs, described.outputs
        _check_dtypes(backend, (*self.inputs, *self.outputs))
        nodes = described.delegated.total
        started = time.perf_counter_ns()
        gpu = _gpu()
        with caught_stderr() as caught:
            failed: RuntimeError | ValueError | None = None
            try:
                self._compile(gpu, content, described.signature, parse_backend(backend).fp32)
            except (RuntimeError, ValueError) as error:
                # Without its frames, which hold what the runtime would speak of again when it is freed.
                failed = error.with_traceback(None)
        refusal = gpu_refusal.refusal(backend, gpu.completed(caught.text), failed, nodes)
        if refusal is not None:
            raise refusal from failed
        #: Milliseconds that compiling and laying out the tensors took.
        self.allocate_ms = (time.perf_counter_ns() - started) / 1e6
        self.delegated = Delegated(nodes, nodes, (), gpu.adapter, gpu.software)
        self._results: dict[str, np.ndarray] = {}

    def _compile(self, gpu: _Gpu, content: bytes, signature: str | None, fp32: bool) -> None:
        options = Options(hardware_accelerators=HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=fp32))
        self._compiled = CompiledModel.from_buffer(content, environment=gpu.environment, options=options)
        self._signature = 0 if signature is None else self._compiled.get_signature_index(signature)
        names = list(self._compiled.get_signature_list().values())[self._signature]
        # A list each, which is what is run, and the same by name.
        self._input_list = self._compiled.create_input_buffers(self._signature)
        self._output_list = self._compiled.create_output_buffers(self._signature)
        self._input_buffers = dict(zip(names["inputs"], self._input_list, strict=True))
        self._output_buffers = dict(zip(names["outputs"], self._output_list, strict=True))
        for tensor in self.inputs:
            # So that what the runtime sets up, and tells, at the first writing happens here.
            self._input_buffers[tensor.name].write(np.zeros(tensor.shape, tensor.dtype))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, as the file gives them (quantized ones stay so), read-only.

        Raises InputError where a name, shape or dtype is not the file's, BackendError where the run fails.
        """
        check_inputs(self.inputs, inputs)
        for name, array in inputs.items():
            self._input_buffers[name].write(array)
        self.invoke()
        return dict(self._results)

    def invoke(self) -> None:
        """Computes again on the inputs of the last run, and reads the outputs: the GPU works on its own, and only who
        reads waits until it is done. Raises BackendError where it fails."""
        try:
            self._compiled.run_by_index(self._signature, self._input_list, self._output_list)
            self._results = {tensor.name: self._read(tensor) for tensor in self.outputs}
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                f"backend {self.backend} failed on this input: {gpu_refusal.last_line(str(error))}"
            ) from error

    def _read(self, tensor: Tensor) -> np.ndarray:
        buffer = self._output_buffers[tensor.name]
        array: np.ndarray = buffer.read(math.prod(tensor.shape), np.dtype(tensor.dtype)).reshape(tensor.shape)
        array.flags.writeable = False
        return array


class _Gpu:
    """What all models of a process share: the runtime's environment, and what it tells of the machine, once."""

    adapter: str
    software: bool | None

    def __init__(self) -> None:
        if list(Path(ai_edge_litert.__file__).parent.glob(f"*{_WEBGPU}.*")):
            # It has no use for OpenCL, and tells on standard output, among our results, that there is none.
            os.environ.setdefault("LITERT_DISABLE_OPENCL", "1")
        with caught_stderr() as caught:
            self.environment = Environment.create()
        if "GPU accelerator could not be loaded" in caught.text and "Dynamically loaded GPU" not in caught.text:
            raise BackendError(gpu_refusal.NO_LIBRARY)
        self.adapter, self.software, self._vulkan = "unavailable", None, ""

    def completed(self, said: str) -> str:
        """What the runtime said of one model, with what it tells of the machine once a process."""
        found = _ADAPTER.search(said)
        if found:
            line = found[1].strip()
            self.adapter, self.software = line.split(", ")[0], bool(_SOFTWARE.search(line))
        self._vulkan += "".join(line for line in said.splitlines(keepends=True) if _VULKAN.match(line))
        return self._vulkan + said


@functools.cache
def _gpu() -> _Gpu:
    return _Gpu()


def _check_dtypes(backend: str, tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise BackendError(
                f"backend {backend} reads and writes {', '.join(_DTYPES)}, but {tensor.name!r} is {tensor.dtype}; "
                "convert the model with other inputs and outputs, or choose cpu"
            )
