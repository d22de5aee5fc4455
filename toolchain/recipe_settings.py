"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**32)]
#: A name, a shell pattern, `re:…`, `type:…` or `A ~ B`: see scope.py.
Pattern = Annotated[str, Field(min_length=1, max_length=1000)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


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


class Scope(Settings):
    """Which layers a stage may change."""

    include: Patterns = ()
    """Names, shell patterns (conv_*), regular expressions (re:…), types (type:Conv2D) or ranges (A ~ B) of layers;
    everything where there are none."""
    exclude: Patterns = ()
    """The same, of layers that stay as they are; a pattern that takes nothing is an error."""
