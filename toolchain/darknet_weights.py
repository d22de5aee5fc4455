"""Darknet's .weights bytes <-> arrays.

The file, little-endian: three int32 major, minor, revision; then the number of pictures seen in training, as uint64
from version 0.2 on and as uint32 before; then float32 alone. Convolutions follow each other in the order of the cfg:
    biases (out); with batch norm scales, rolling means, rolling variances (out each); kernel (out, in/groups, kh, kw).
With batch norm the biases are its beta and the scales its gamma. No name and no count stands in the file: it fits a cfg
when its length does.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.errors import InputError

#: Most parameters that a network without a file may have: 1 GiB of them.
MAX_RANDOM_PARAMETERS = 2**28


@dataclasses.dataclass(frozen=True)
class ConvolutionShape:
    """What a cfg says of one convolution's weights."""

    #: Node name, for messages.
    name: str
    filters: int
    #: Input channels that each filter reads: in/groups.
    channels: int
    #: Kernel height and width.
    size: int
    batch_normalize: bool

    @property
    def parameters(self) -> int:
        return self.filters * ((4 if self.batch_normalize else 1) + self.channels * self.size**2)


@dataclasses.dataclass(frozen=True, eq=False)
class ConvolutionWeights:
    """One convolution's float32 arrays, in the file's layout; without batch norm three of them are None."""

    #: (out,)
    biases: np.ndarray
    #: (out, in/groups, kh, kw)
    kernel: np.ndarray
    scales: np.ndarray | None = None
    means: np.ndarray | None = None
    variances: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Header:
    """How a file begins; the default is what darknet writes today."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    #: Pictures seen in training.
    seen: int = 0


def read_weights(path: Path, shapes: Sequence[ConvolutionShape]) -> tuple[Header, tuple[ConvolutionWeights, ...]]:
    """Reads a file of exactly these convolutions; nothing is allocated before its length has been checked.

    Raises InputError when the file is missing, no darknet file, too short or too long, or when a value in it is not
    finite or a variance negative.
    """
    try:
        with open(path, "rb") as file:
            header, start = _read_header(file.read(20), path)
            _check_length(path, file.seek(0, 2), start, shapes)
            file.seek(start)
            values = np.frombuffer(file.read(), "<f4").astype(np.float32, copy=False)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}") from error
    layers = tuple(_split(values, shapes))
    for shape, layer in zip(shapes, layers):
        _check_values(path, shape, layer)
    return header, layers


def write_weights(header: Header, layers: Sequence[ConvolutionWeights]) -> bytes:
    """The file's bytes; reading them gives the same arrays, bit by bit."""
    start = struct.pack("<iii", header.major, header.minor, header.revision)
    start += struct.pack("<Q" if _wide(header.major, header.minor) else "<I", header.seen)
    arrays = [
        np.ascontiguousarray(array, "<f4")
        for layer in layers
        for array in (layer.biases, layer.scales, layer.means, layer.variances, layer.kernel)
        if array is not None
    ]
    return start + b"".join(array.tobytes() for array in arrays)


def random_weights(
    shapes: Sequence[ConvolutionShape], predictions: Mapping[str, int], seed: int
) -> tuple[ConvolutionWeights, ...]:
    """Weights to begin a training with, the same for the same arguments.

    Kernels are normal with variance 2 / fan-in (He et al. 2015, equation 10), batch norm is the identity. A convolution
    in `predictions` (name -> outputs for each anchor, 5 + classes) begins with a small kernel and an objectness of 0.01
    (Lin et al. 2017, section 4.1): of each anchor's outputs the fifth has the bias log(0.01 / 0.99).

    Raises InputError for more than MAX_RANDOM_PARAMETERS parameters.
    """
    if (total := sum(shape.parameters for shape in shapes)) > MAX_RANDOM_PARAMETERS:
        raise InputError(
            f"a network without weights has at most {MAX_RANDOM_PARAMETERS:,} parameters; this one has {total:,}: give"
            " it fewer filters, or its weights"
        )
    layers = []
    for index, shape in enumerate(shapes):
        deviation = 0.01 if shape.name in predictions else math.sqrt(2.0 / (shape.channels * shape.size**2))
        normal = np.random.default_rng([seed, index]).standard_normal(_kernel_shape(shape), np.float32)
        biases = np.zeros(shape.filters, np.float32)
        if shape.name in predictions:
            biases[4 :: predictions[shape.name]] = math.log(0.01 / 0.99)
        layer = ConvolutionWeights(biases, normal * np.float32(deviation))
        if shape.batch_normalize:
            ones, zeros = np.ones(shape.filters, np.float32), np.zeros(shape.filters, np.float32)
            layer = dataclasses.replace(layer, scales=ones, means=zeros, variances=ones)
        layers.append(layer)
    return tuple(layers)


def to_keras_kernel(kernel: np.ndarray, depthwise: bool, inputs: int) -> np.ndarray:
    """A kernel (out, in/groups, kh, kw) as Keras has it: Conv2D (kh, kw, in/groups, out), and DepthwiseConv2D
    (kh, kw, in, multiplier), whose output channel in*multiplier+m is darknet's filter of the same number."""
    if depthwise:
        kernel = kernel.reshape(inputs, -1, *kernel.shape[2:]).swapaxes(0, 1)
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


def from_keras_kernel(kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    """The inverse of to_keras_kernel."""
    kernel = kernel.transpose(3, 2, 0, 1)
    if depthwise:
        kernel = kernel.swapaxes(0, 1).reshape(-1, 1, *kernel.shape[2:])
    return np.ascontiguousarray(kernel)


def _kernel_shape(shape: ConvolutionShape) -> tuple[int, int, int, int]:
    return shape.filters, shape.channels, shape.size, shape.size


def _wide(major: int, minor: int) -> bool:
    return major * 10 + minor >= 2


def _read_header(start: bytes, path: Path) -> tuple[Header, int]:
    """The header and its length in bytes."""
    if len(start) >= 16:
        major, minor, revision = struct.unpack("<iii", start[:12])
        if 0 <= major < 1000 and 0 <= minor < 1000:
            if not _wide(major, minor):
                return Header(major, minor, revision, *struct.unpack("<I", start[12:16])), 16
            if len(start) == 20:
                return Header(major, minor, revision, *struct.unpack("<Q", start[12:20])), 20
    raise InputError(f"{path}: a darknet .weights file begins with its version, such as 0.2.5; this one does not")


def _check_length(path: Path, length: int, start: int, shapes: Sequence[ConvolutionShape]) -> None:
    parameters = sum(shape.parameters for shape in shapes)
    wanted, end = start + 4 * parameters, start
    if length == wanted:
        return
    sentence = f"the cfg has {parameters:,} parameters, with the header {wanted:,} bytes; {path} has {length:,}"
    if length > wanted:
        raise InputError(f"{sentence}: {length - wanted:,} too many; these weights belong to another cfg")
    for shape in shapes:
        end += 4 * shape.parameters
        if end > length:
            break
    raise InputError(
        f"{sentence}: {wanted - length:,} too few, it ends inside {shape.name}; the file was cut, or belongs to"
        " another cfg"
    )


def _split(values: np.ndarray, shapes: Sequence[ConvolutionShape]) -> Iterator[ConvolutionWeights]:
    position = 0
    for shape in shapes:
        parts = []
        for count in [shape.filters] * (4 if shape.batch_normalize else 1) + [math.prod(_kernel_shape(shape))]:
            parts.append(values[position : position + count])
            position += count
        yield ConvolutionWeights(parts[0], parts[-1].reshape(_kernel_shape(shape)), *parts[1:-1])


def _check_values(path: Path, shape: ConvolutionShape, layer: ConvolutionWeights) -> None:
    for field in dataclasses.fields(layer):
        array = getattr(layer, field.name)
        if array is not None and (wrong := array.size - int(np.count_nonzero(np.isfinite(array)))):
            raise InputError(
                f"{path}: weights are finite numbers; {wrong} of {array.size} in {shape.name}'s {field.name} are not:"
                " the training went astray, or these weights belong to another cfg"
            )
    if layer.variances is not None and (layer.variances < 0).any():
        raise InputError(
            f"{path}: a variance is not negative; one of {shape.name} is {layer.variances.min():g}: these weights"
            " belong to another cfg"
        )
