"""What a recipe's list of stages may hold: the settings of each stage that changes the network, as strict data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**32)]
#: A name, a shell pattern, `re:…`, `type:…` or `A ~ B`: see scope.py.
Pattern = Annotated[str, Field(min_length=1, max_length=1000)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=1000)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Rank = Annotated[int, Field(ge=1, le=2**20)]


class Impossible(ValueError):
    """Settings that are each allowed but not together; `place` are the keys to which the sentence belongs."""

    def __init__(self, place: tuple[str | int, ...], sentence: str) -> None:
        super().__init__(sentence)
        self.place = place


class Settings(BaseModel):
    """Base of every part of a recipe: frozen, of exact types, and without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Train(Settings):
    """Trains all weights on the data's split train."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    batch: Annotated[int, Field(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    """The highest step size, reached after the warm-up."""
    flip: bool = True
    """Mirror every second picture."""
    seed: Seed = 1


class Ranks(Settings):
    """How a Tucker decomposition finds its ranks: one of vbmf, energy or ratio; or of layers alone."""

    vbmf: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Estimated by variational Bayes (VBMF), then moved by this calibration ratio: with v the estimate and C the
    channels, rank = v + int((C - v) * ratio), for a negative ratio v - int((C - v) * |ratio|)."""
    v: tuple[_Share, _Share] | None = None
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


class Scope(Settings):
    """Which layers a stage may change."""

    include: Patterns = ()
    """Names, shell patterns (conv_*), regular expressions (re:…), types (type:Conv2D) or ranges (A ~ B) of layers;
    everything where there are none."""
    exclude: Patterns = ()
    """The same, of layers that stay as they are; a pattern that takes nothing is an error."""


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

    ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the filters in scope. A ratio p removes about 1 - (1-p)² of the parameters."""
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
    """Of taylor's random directions."""


class GraphStage(Settings):
    """One stage of the list `stages`, under its name. Each takes the network of the stage before it."""

    train: Train | None = None
    tucker: Tucker | None = None
    prune: Prune | None = None

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
    def settings(self) -> Train | Tucker | Prune:
        settings: Train | Tucker | Prune = getattr(self, self.name)
        return settings
