"""A small detector with every kind of layer that conversion has a rule for, its pictures, and its converted files.

Input 64x64, two classes, two anchors, scales of stride 16 and 8. TensorFlow takes seconds to start: the files are made
once a test run.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from deploy.contract import Input, Scale, YoloHead
from toolchain.convert import convert
from toolchain.graph import Graph, Node

SIDE = 64
ANCHORS = ((10.0, 14.0), (23.0, 27.0))
LABELS = ("circle", "square")
#: Output channels of a scale: anchors * (x, y, w, h, objectness and the classes).
RAW = 2 * (5 + 2)


class Layers:
    """Nodes of a toy network, with seeded random weights that keep the size of what passes through."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes = [Node("image", "InputLayer", (), {"shape": [SIDE, SIDE, 3]})]

    def add(
        self, name: str, op: str, *inputs: str, weights: dict[str, np.ndarray] | None = None, **attributes: object
    ) -> str:
        self.nodes.append(Node(name, op, inputs, attributes, weights or {}))
        return name

    def conv(self, name: str, source: str, cin: int, cout: int, size: int = 3, **attributes: object) -> str:
        groups = int(attributes.get("groups", 1))  # type: ignore[call-overload]
        kernel = self.random.normal(0, np.sqrt(2 / (size**2 * cin / groups)), (size, size, cin // groups, cout))
        settings = {"filters": cout, "kernel_size": [size, size], "padding": "same", "use_bias": False, **attributes}
        return self.add(name, "Conv2D", source, weights={"kernel": kernel.astype(np.float32)}, **settings)

    def norm(self, name: str, source: str, channels: int) -> str:
        """A batch norm with scales of both signs, far from the identity."""
        values = {
            "gamma": self.random.uniform(0.5, 1.5, channels) * self.random.choice([-1, 1], channels),
            "beta": self.random.normal(0, 0.3, channels),
            "moving_mean": self.random.normal(0, 0.3, channels),
            "moving_variance": self.random.uniform(0.5, 2, channels),
        }
        weights = {key: value.astype(np.float32) for key, value in values.items()}
        return self.add(name, "BatchNormalization", source, weights=weights, epsilon=1e-5)

    def prediction(self, name: str, source: str, cin: int) -> str:
        kernel = self.random.normal(0, np.sqrt(2 / cin), (1, 1, cin, RAW)).astype(np.float32)
        bias = self.random.normal(0, 1, RAW).astype(np.float32)
        settings = {"filters": RAW, "kernel_size": [1, 1], "use_bias": True}
        return self.add(name, "Conv2D", source, weights={"kernel": kernel, "bias": bias}, **settings)


def toy_graph(activation: str = "silu") -> Graph:
    """Seven convolutions deep at stride 8; activation is that of the layer "shaped"."""
    net = Layers()
    net.add("conv_0_pad", "ZeroPadding2D", "image", padding=[[1, 1], [1, 1]])
    net.conv("conv_0", "conv_0_pad", 3, 16, strides=[2, 2], padding="valid")
    net.norm("conv_0_bn", "conv_0", 16)
    net.add("conv_0_activation", "LeakyReLU", "conv_0_bn", negative_slope=0.1)
    net.conv("conv_1", "conv_0_activation", 16, 32, strides=[2, 2])
    net.norm("conv_1_bn", "conv_1", 32)
    net.add("conv_1_activation", "Activation", "conv_1_bn", activation="relu6")
    net.conv("grouped", "conv_1_activation", 32, 32, groups=4)
    net.add("shaped", "Activation", "grouped", activation=activation)
    kernel = net.random.normal(0, 0.5, (3, 3, 32, 1)).astype(np.float32)
    bias = net.random.normal(0, 0.5, 32).astype(np.float32)
    net.add(
        "depthwise",
        "DepthwiseConv2D",
        "shaped",
        weights={"depthwise_kernel": kernel, "bias": bias},
        padding="same",
        kernel_size=[3, 3],
        strides=[2, 2],
    )
    net.add("dropout", "Dropout", "depthwise", rate=0.5)
    net.add("linear", "Activation", "dropout", activation="linear")
    net.conv("conv_2", "linear", 32, 32)
    net.add("residual", "Add", "conv_2", "linear")
    net.add("pool", "MaxPooling2D", "residual", pool_size=[2, 2], strides=[2, 2])
    net.conv("conv_3", "pool", 32, 48, size=1)
    net.prediction("far", "conv_3", 48)
    net.add("up", "UpSampling2D", "conv_3", size=[2, 2], interpolation="nearest")
    net.add("joined", "Concatenate", "up", "residual", axis=-1)
    net.prediction("near", "joined", 48 + 32)
    scales = (Scale(16, ANCHORS, {"raw": "far"}), Scale(8, ANCHORS, {"raw": "near"}))
    return Graph("toy", tuple(net.nodes), ("far", "near"), Input("image", SIDE, SIDE), YoloHead(scales), LABELS)


def write_pictures(folder: Path, count: int = 12) -> list[Path]:
    """Smooth coloured patterns of several shapes, none of which reaches black or white."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        coarse = np.random.default_rng(index).integers(40, 200, (6, 6, 3), dtype=np.uint8)
        paths.append(folder / f"{index:02d}.png")
        cv2.imwrite(str(paths[-1]), cv2.resize(coarse, (48 + 4 * index, 60), interpolation=cv2.INTER_LINEAR))
    return paths


@functools.cache
def converted() -> Path:
    """Folder with pictures/, float32.tflite, float16.tflite, dynamic.tflite, int8.tflite and reference.npz of
    toy_graph()."""
    folder = Path(tempfile.mkdtemp(prefix="slimdet-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pictures = write_pictures(folder / "pictures")
    graph, float_file = toy_graph(), folder / "float32.tflite"
    convert(graph, "float32", float_file, pictures=pictures, reference=folder / "reference.npz")
    for precision in ("float16", "dynamic", "int8"):
        convert(graph, precision, folder / f"{precision}.tflite", pictures=pictures, float_file=float_file)
    return folder
