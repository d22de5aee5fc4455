"""The known name that a misspelt one most likely means, for errors. Needs nothing of the build side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known word that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
