"""Opens a .tflite on the backend that was asked for, and on no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from deploy.backend import parse_backend
from deploy.contract import Tensor
from deploy.delegated import Delegated
from deploy.interpreter import Model


class OpenModel(Protocol):
    """A .tflite that is open, whatever the backend; deploy.interpreter.Model says what each means."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    backend: str
    threads: int
    allocate_ms: float

    @property
    def delegated(self) -> Delegated: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def invoke(self) -> None: ...


def open_model(content: bytes, backend: str = "cpu", threads: int = 1) -> OpenModel:
    """The .tflite on the backend, which is named as parse_backend reads it. No other takes its place.

    Raises InputError where the content is no readable .tflite, BackendError where the backend is not to be had or
    cannot run the file.
    """
    if parse_backend(backend).kind == "gpu":
        # Loaded here: most models run without it.
        from deploy.compiled_model import GpuModel

        return GpuModel(content, backend, threads)
    return Model(content, backend, threads)
