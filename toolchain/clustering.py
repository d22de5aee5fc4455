"""Leaves a kernel only a few different values while the network is trained on, by tensorflow-model-optimization.

Every weight takes the value of the nearest of n centroids, and it is the centroids that are learned (Han, Mao and Dally
2016, Deep compression, section 3). The converter multiplies each output channel with the batch norm behind it, so that
in the file each channel has n values of its own; gzip finds them there all the same. 16 clusters, yolov4-tiny: 22.5 MB
of float32 weights become 5.1 after gzip, int8 weights of 5.0 MB 3.5. The file itself stays as long, and nothing gets
faster: each value is stored and read as if it were the only one.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal

from deploy.errors import InputError
from toolchain.graph import Graph, Node
from toolchain.kernel_report import kernel_of, kernel_reports, packed_bytes, share_of_zeros
from toolchain.pass_report import PassResult
from toolchain.tfmot_training import Wrapped, layer_reasons, train_in_child, train_wrapped
from toolchain.training import Progress, Training, TrainingData

Init = Literal["kmeans++", "linear", "density", "random"]
#: tensorflow-model-optimization's names.
_INITS = {"kmeans++": "KMEANS_PLUS_PLUS", "linear": "LINEAR", "density": "DENSITY_BASED", "random": "RANDOM"}
_CLUSTERED = ("Conv2D", "Conv2DTranspose", "Dense", "SeparableConv2D")
#: Each weight is held against every centroid in every step: more would take too much memory, and win nothing.
_MOST = 256


@dataclasses.dataclass(frozen=True)
class Clustering:
    """How many values a kernel has. Raises InputError for a setting outside its range."""

    #: Different values of each kernel in scope, 2 to 256.
    clusters: int = 16
    #: Where the centroids start.
    init: Init = "kmeans++"
    #: What is 0 stays 0: for a network that was made sparse before. One of the clusters is 0 then.
    keep_zeros: bool = False
    #: Patterns as scope.py has them.
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = 3 if self.keep_zeros else 2
        if isinstance(self.clusters, bool) or not isinstance(self.clusters, int) or not least <= self.clusters <= _MOST:
            raise InputError(
                f"clusters are {least} to {_MOST}{', zero among them' if self.keep_zeros else ''}: got"
                f" {self.clusters!r}; 16 is usual"
            )
        if self.init not in typing.get_args(Init):
            raise InputError(f"clusters start as {', '.join(typing.get_args(Init))}: got {self.init!r}; choose one")


def cluster(
    graph: Graph,
    settings: Clustering,
    training: Training,
    data: TrainingData,
    *,
    teacher: Graph | None = None,
    allow_lambda: bool = False,
    progress: Progress | None = None,
) -> PassResult:
    """The graph with few different values in each kernel, trained on with them. facts: zeros (share in all kernels,
    before and after), packed_bytes (of all weights, before and after) and what tfmot_training.train_in_child tells.

    Raises what tfmot_training.layer_reasons and train_wrapped raise.
    """
    why_not = functools.partial(_why_not, clusters=settings.clusters)
    reasons = layer_reasons(graph, settings.include, settings.exclude, training, why_not, predictions_stay=True)
    changed, facts = train_wrapped(
        "toolchain.clustering:cluster_in_child",
        graph,
        {
            "layers": [name for name, reason in reasons.items() if not reason],
            "clusters": settings.clusters,
            "init": settings.init,
            "keep_zeros": settings.keep_zeros,
        },
        training,
        data,
        step="clustering",
        teacher=teacher,
        allow_lambda=allow_lambda,
        progress=progress,
    )
    packed = packed_bytes(graph), packed_bytes(changed)
    facts = {**facts, "zeros": [share_of_zeros(graph), share_of_zeros(changed)], "packed_bytes": list(packed)}
    return PassResult(changed, kernel_reports(graph, changed, reasons), (_note(settings, *packed),), facts=facts)


def _why_not(node: Node, clusters: int) -> str:
    if node.op not in _CLUSTERED:
        return f"{node.op}: tensorflow-model-optimization leaves its few weights alone"
    size = kernel_of(node).size
    return f"it has no more weights than clusters: {size}" if size <= clusters else ""


def _note(settings: Clustering, before: int, after: int) -> str:
    return (
        "clustering makes the compressed file smaller and nothing faster: the float32 weights take"
        f" {after / 1e6:.2f} MB after gzip, {before / 1e6:.2f} MB before; the file itself stays as long as it was, and"
        f" where a batch norm follows each output channel has {settings.clusters} values of its own in it; what makes a"
        " file itself smaller, and faster, is int8"
    )


def cluster_in_child(settings: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
    """What cluster does in its own process. settings: those of Clustering and layers, the names of those that are
    clustered."""
    return train_in_child(functools.partial(_wrapped, settings=settings), **arguments)


def _wrapped(model: Any, steps: int, settings: Mapping[str, Any]) -> Wrapped:
    import tensorflow_model_optimization as tfmot
    import tf_keras

    clustering = tfmot.clustering.keras
    init = clustering.CentroidInitialization[_INITS[settings["init"]]]
    layers = frozenset(settings["layers"])

    def wrapper(layer: Any) -> Any:
        if layer.name not in layers:
            return layer
        return clustering.cluster_weights(
            layer, settings["clusters"], init, preserve_sparsity=settings["keep_zeros"]
        )

    wrapped = tf_keras.models.clone_model(model, clone_function=wrapper)
    return Wrapped(wrapped, strip=lambda: clustering.strip_clustering(wrapped))
