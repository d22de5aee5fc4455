"""What a recipe's list of stages may hold: the settings of each stage that changes the network, as strict data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolchain.recipe_settings import Scope, Seed, Settings, Share
from toolchain.recipe_training import Cluster, Finetune, QuantizationAware, Sparsify, Train

_Rank = Annotated[int, Field(ge=1, le=2**20)]


class Ranks(Settings):
    """How a Tucker decomposition finds its ranks: one of vbmf, energy or ratio; or of layers alone."""

    vbmf: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Estimated by variational Bayes (VBMF), then moved by this calibration ratio: with v the estimate and C the
    channels, rank = v + int((C - v) * ratio), for a negative ratio v - int((C - v) * |ratio|)."""
    v: tuple[Share, Share] | None = None
    """With vbmf: these shares of the input and the output channels in place of the estimate."""
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    """The smallest ranks that keep this share of the squared norm."""
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """This share of the input and of the output channels."""
    layers: dict[str, tuple[_Rank, _Rank]] = {}
    """Ranks of the input and the output channels of single layers, by name; before everything else."""

    @model_validator(mode="after")
    def _one_rule(self) -> Ranks:
        given = [key for key in ("vbmf", "energy", "ratio") if getattr(self, key) is not None]
        if len(given) > 1 or not (given or self.layers):
            raise ValueError(
                f"ranks follow one rule, vbmf, energy or ratio, but {' and '.join(given) or 'none'} came; give exactly"
                " one, or `layers` alone"
            )
        if self.v is not None and given != ["vbmf"]:
            raise ValueError("v stands in place of what vbmf estimates; give vbmf too or leave v out")
        return self


#: The precision whose kernels are timed.
_Timed = Literal["float32", "int8"] | None


class Tucker(Scope):
    """Splits convolutions in three (Tucker-2): 1x1, a small k x k, 1x1."""

    ranks: Ranks
    pointwise: bool = False
    """Split 1x1 convolutions too."""
    weighted: bool | None = None
    """Keep the layers' outputs on the calibration's pictures, not the kernels alone. Without it: where the recipe has
    such pictures."""
    correct: bool = False
    """Measure batch norms' statistics anew on the calibration's pictures."""
    keep_if_faster: _Timed = None
    """Split a layer only where that makes it faster on the interpreter, timed in this precision."""
    seed: Seed = 1
    """Of the places in the pictures that are looked at."""


class Prune(Scope):
    """Removes channels, of all layers that share them together."""

    flops: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the network's FLOPs that stays. Each layer loses what its readers miss least, by the calibration's
    pictures; criterion, cut and policy are those of ratio."""
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """In place of flops: share of the filters in scope that goes. A ratio p removes about 1 - (1-p)² of the
    parameters."""
    criterion: Literal["l1", "l2", "bn_scale", "geometric_median", "taylor"] = "l2"
    """What makes a filter important; taylor is measured on the calibration's pictures."""
    cut: Literal["slamp", "uniform", "global"] = "slamp"
    """uniform takes the same share of every layer, global the least important of all, slamp (structured layer-adaptive
    magnitude pruning) weighs each against what its layer would have left."""
    policy: Literal["average", "sum", "maximum", "union", "intersection"] = "average"
    """How layers that share channels decide together."""
    multiple: Annotated[int, Field(ge=1, le=1024)] = 8
    """Channels end on a multiple of it, which the kernels like."""
    correct: bool | None = None
    """Make up for the removed channels with those that stay, biases and batch norm statistics, by what the network
    computes on the calibration's pictures. Without it: where the recipe has such pictures."""
    keep_if_faster: _Timed = None
    """Narrow layers only where that makes them faster on the interpreter, timed in this precision."""
    seed: Seed = 1
    """Of taylor's random directions, and of the places in the pictures that are looked at."""

    @model_validator(mode="after")
    def _one_aim(self) -> Prune:
        if (self.flops is None) == (self.ratio is None):
            came = "neither" if self.flops is None else "both"
            raise ValueError(f"pruning has one aim, flops (what stays) or ratio (what goes), but {came} came; give one")
        told = [key for key in ("criterion", "cut", "policy") if key in self.model_fields_set]
        if self.flops is not None and told:
            raise ValueError(
                f"{told[0]} chooses the filters of a ratio, and with flops the readers' errors choose; leave it out"
            )
        return self


class BatchNorm(Settings):
    """Measures the batch norms' statistics anew on the calibration's pictures: the cheapest way to make up for a
    compression, without any training.

    What counts is how they differ from those of the network before the first stage that compressed it, on the same
    pictures.
    """

    pictures: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many of the calibration's pictures; without it all of them."""


class GraphStage(Settings):
    """One stage of the list `stages`, under its name. Each takes the network of the stage before it."""

    tucker: Tucker | None = None
    prune: Prune | None = None
    train: Train | None = None
    finetune: Finetune | None = None
    batch_norm: BatchNorm | None = None
    sparsify: Sparsify | None = None
    cluster: Cluster | None = None
    quantization_aware: QuantizationAware | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> GraphStage:
        if len(self.model_fields_set) != 1 or self.settings is None:
            raise ValueError(
                "an entry of stages is one stage, such as `- train: {epochs: 10}`; write each as an entry of its own"
            )
        return self

    @property
    def name(self) -> str:
        (name,) = self.model_fields_set
        return name

    @property
    def settings(self) -> Settings:
        settings: Settings = getattr(self, self.name)
        return settings


#: Stages that make a network which computes something else than the one before it.
COMPRESSING = ("tucker", "prune", "sparsify", "cluster", "quantization_aware")
#: Stages that train, on the recipe's data.
TRAINING = ("train", "finetune", "sparsify", "cluster", "quantization_aware")
