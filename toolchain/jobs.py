"""Runs the jobs of a build: each a stage with its settings and inputs, whose result the cache keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from toolchain import cache
from toolchain.cache import Checkpoint, Result, Source
from toolchain.code_version import code_version
from toolchain.stage_work import Facts, Progress, Work


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of step: a name for --skip, and a plain function. Its settings are checked by recipe.py."""

    name: str
    run: Callable[[Work], Facts]
    #: Why it cannot be skipped; "" where it can.
    needed: str = ""
    #: Whether its result holds for the machine that it ran on alone.
    measures: bool = False
    #: Whether it goes on from a checkpoint, and can be ended with one.
    trains: bool = False


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who is told how the build goes on."""

    started: Callable[[str], None] = lambda job: None
    progress: Progress = lambda done, total, text="": None
    finished: Callable[[str, Result], None] = lambda job, result: None


@dataclasses.dataclass
class Jobs:
    """Runs jobs and remembers them in order."""

    cache: Path
    table: Mapping[str, Stage]
    watch: Watch
    #: Whether trainings that were begun end with the best that they have reached.
    use_best: bool = False
    done: dict[str, Result] = dataclasses.field(default_factory=dict)

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Source],
        *,
        of: str = "",
        told: Mapping[str, Any] | None = None,
    ) -> Result:
        """The result, kept or new, of the stage of that name. told is for the function's eyes alone and no part of what
        the result depends on."""
        stage = self.table[name]
        job = f"{name} {of}".strip()
        code, libraries = code_version(stage.run)
        depends_on: dict[str, Any] = {"setting": settings, "code": code, "library": libraries}
        if stage.measures or settings.get("keep_if_faster"):
            machine = environment()
            depends_on["machine"] = {key: machine[key] for key in ("cpu", "usable_cores", "architecture")}

        def make(out: Path, checkpoint: Checkpoint) -> Facts:
            self.watch.started(job)
            given = checkpoint if stage.trains else None
            return stage.run(Work({**settings, **(told or {})}, inputs, out, self.watch.progress, given))

        end = self.use_best and stage.trains
        result = cache.find_or_make(self.cache, job.replace(" ", "-"), depends_on, inputs, make, end_early=end)
        self.done[job] = result
        self.watch.finished(job, result)
        return result
