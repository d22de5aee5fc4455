"""What is inside a .tflite while it runs: the values of all tensors that its operations write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy import interpreter

#: Of values; what else an operation writes is a shape or an index.
_VALUES = (np.float32, np.int8, np.uint8, np.int16)


class Intermediates:
    """A .tflite that keeps what all its operations write. Raises BackendError for one that is damaged."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        #: As deploy sees them, under their names in the signature.
        self.inputs = interpreter.Model(content, "cpu-builtin").inputs
        # The runtime's own kernels show every layer; XNNPACK keeps to itself what is inside.
        self._interpreter = Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            num_threads=2,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter.allocate_tensors()
        #: By tensor's index: "name", "dtype", "shape", "quantization" and more.
        self.details: Mapping[int, Mapping[str, Any]] = {
            int(one["index"]): one for one in self._interpreter.get_tensor_details()
        }
        self._entry = int(self._interpreter.get_input_details()[0]["index"])
        #: (operation, indices that it reads, indices that it writes), in the order in which they run.
        self.operations = [
            (str(one["op_name"]), [int(index) for index in one["inputs"]], [int(index) for index in one["outputs"]])
            for one in self._interpreter._get_ops_details()
        ]
        #: Outputs under their names in the signature, which other files share rather than the converter's own; these
        #: where there is no signature.
        self.output_names = _output_names(self._interpreter)

    def run(self, image: np.ndarray) -> None:
        """Runs the network on its first input as preprocessing makes it."""
        self._interpreter.set_tensor(self._entry, image)
        self._interpreter.invoke()

    def values(self, index: int) -> np.ndarray:
        """A tensor's values as the real numbers that they stand for, float32."""
        values = self._interpreter.get_tensor(index).astype(np.float32)
        scale, zero_point = self.details[index]["quantization"]
        return (values - np.float32(zero_point)) * np.float32(scale) if scale else values

    def written(self) -> list[int]:
        """Index of each float or quantized tensor that an operation writes, in order."""
        found: dict[int, None] = {}
        for _, _, outputs in self.operations:
            for index in outputs:
                details = self.details[index]
                # Weights that are widened before use stand beside the network.
                if details["dtype"] in _VALUES and len(details["shape"]) > 1:
                    found[index] = None
        return list(found)

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(side) for side in self.details[index]["shape"])

    def span(self, index: int) -> tuple[float, float, float] | None:
        """Least and greatest value that a quantized tensor can hold, and its step; None for float."""
        scale, zero_point = self.details[index]["quantization"]
        if not scale:
            return None
        limits = np.iinfo(self.details[index]["dtype"])
        return (limits.min - zero_point) * float(scale), (limits.max - zero_point) * float(scale), float(scale)


def channel_factors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(C,) float32: what each channel of expected, (…, C), is multiplied by to come nearest to found, by least
    squares, below 0 where its sign was turned; 1 where nothing does."""
    axes = tuple(range(expected.ndim - 1))
    both = np.sum(found * expected, axes, dtype=np.float64)
    alone = np.sum(np.square(expected), axes, dtype=np.float64)
    good = (both != 0) & (alone > 0) & np.isfinite(both) & np.isfinite(alone)
    return np.where(good, both / np.where(good, alone, 1.0), 1.0).astype(np.float32)


def short_name(tensor_name: str) -> str:
    """Without the layers that were folded into the one that a tensor is named after first."""
    return tensor_name.partition(";")[0]


def node_names(tensor_name: str) -> tuple[str, ...]:
    """What the node may be called that a tensor's name begins with: a layer's scope is its name and "_1", an
    operation's its name."""
    scope = short_name(tensor_name).partition("/")[0]
    return (scope.removesuffix("_1"), scope) if scope.endswith("_1") else (scope,)


def _output_names(model: Any) -> dict[int, str]:
    signatures = model.get_signature_list()
    if not signatures:
        return {int(details["index"]): details["name"] for details in model.get_output_details()}
    runner = model.get_signature_runner(next(iter(signatures)))
    return {int(details["index"]): name for name, details in runner.get_output_details().items()}
