"""What the stages of tensorflow-model-optimization are tried on: a few scenes, and a training of seconds."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deploy.contract import Input, Scale, YoloHead
from run_here import run_here
from toolchain.graph import Graph
from toolchain.scenes import write_scenes
from toolchain.training import PictureFolder, Training, TrainingData
from toy_network import ANCHORS, LABELS, SIDE, Layers

PICTURES = 16
TRAINING = Training(epochs=2, batch=8, optimizer="sgd", learning_rate=1e-4, clip=10.0, seed=3)


def small_graph(activation: str = "silu") -> Graph:
    """Four layers with weights and one scale: TensorFlow traces a step of it in half the time that toy_graph's takes.
    activation is that of the layer "shaped"."""
    net = Layers()
    net.conv("conv_0", "image", 3, 8, strides=[2, 2])
    net.norm("conv_0_bn", "conv_0", 8)
    net.add("conv_0_activation", "LeakyReLU", "conv_0_bn", negative_slope=0.1)
    net.conv("conv_1", "conv_0_activation", 8, 32, strides=[2, 2], groups=2)
    net.norm("conv_1_bn", "conv_1", 32)
    net.add("conv_1_activation", "Activation", "conv_1_bn", activation="relu6")
    kernel = net.random.normal(0, 0.5, (3, 3, 32, 1)).astype(np.float32)
    settings = {"padding": "same", "kernel_size": [3, 3], "strides": [2, 2], "use_bias": False}
    net.add("depthwise", "DepthwiseConv2D", "conv_1_activation", weights={"depthwise_kernel": kernel}, **settings)
    net.add("shaped", "Activation", "depthwise", activation=activation)
    net.add("dropout", "Dropout", "shaped", rate=0.5)
    net.prediction("near", "dropout", 32)
    head = YoloHead((Scale(8, ANCHORS, {"raw": "near"}),))
    return Graph("small", tuple(net.nodes), ("near",), Input("image", SIDE, SIDE), head, LABELS)


@functools.cache
def data() -> TrainingData:
    folder = Path(tempfile.mkdtemp(prefix="slimdet-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_scenes(folder / "scenes", splits={"train": PICTURES, "val": 4}, seed=0, size=SIDE)
    scenes = folder / "scenes"
    return TrainingData((PictureFolder(scenes, "train"),), (PictureFolder(scenes, "val"),))


def train_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in this process. tensorflow-model-optimization is imported, and what that does to the environment of other
    tests' processes is undone."""
    import keras  # noqa: F401
    import tensorflow_model_optimization  # noqa: F401

    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    run_here(monkeypatch)
