"""A result is kept while nothing that it depends on has changed, and is whole or not there."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from toolchain import cache
from toolchain.cache import Checkpoint, Result, Source


def make(content: str = "made") -> Any:
    def write(folder: Path, _: Checkpoint) -> Mapping[str, Any]:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text(content)
        return {"length": len(content)}

    return write


def find(folder: Path, depends_on: Mapping[str, Any] | None = None, content: str = "made", **inputs: Source) -> Result:
    return cache.find_or_make(folder, "job", depends_on or {}, inputs, make(content))


def test_keeps_files_and_facts(tmp_path: Path) -> None:
    first, second = find(tmp_path), find(tmp_path, content="not called")
    assert (first.ran, second.ran) == (True, False)
    assert first.facts == second.facts == {"length": 4}
    assert second.files == ("below/file",)
    assert second.file("below/file").read_text() == "made"
    assert second.reason == first.reason == "first build"


def test_facts_are_the_same_kept_or_new(tmp_path: Path) -> None:
    def write(folder: Path, _: Checkpoint) -> Mapping[str, Any]:
        return {"pair": (1, 2)}

    both = [cache.find_or_make(tmp_path, "job", {}, {}, write).facts for _ in range(2)]
    # A tuple is a list in JSON; a caller must not see the one at first and the other later.
    assert both == [{"pair": [1, 2]}] * 2


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"setting": {"count": 64}}, {"setting": {"count": 32}}, "setting count changed from 64 to 32"),
        ({"setting": {"a": {"b": 1}}}, {"setting": {"a": {"b": 2}}}, "setting a.b changed from 1 to 2"),
        ({"setting": {"a": "x" * 200}}, {"setting": {"a": "y"}}, "setting a changed"),
        ({"setting": {}}, {"setting": {"new": True}}, "setting new changed from nothing to True"),
        ({"setting": {"old": 1}}, {"setting": {}}, "setting old changed from 1 to nothing"),
        ({"library": {"numpy": "2.1"}}, {"library": {"numpy": "2.2"}}, "library numpy changed from 2.1 to 2.2"),
        ({"code": "aa"}, {"code": "bb"}, "this stage's code changed"),
        ({"code": "a", "setting": {"n": 1}}, {"code": "b", "setting": {"n": 2}},
         "this stage's code changed; setting n changed from 1 to 2"),
    ],
)  # fmt: skip
def test_says_what_changed(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], reason: str) -> None:
    find(tmp_path, before)
    result = find(tmp_path, after)
    assert (result.ran, result.reason) == (True, reason)
    # The older result is gone.
    assert len(list((tmp_path / "job").iterdir())) == 1


def test_a_failed_run_leaves_the_older_result(tmp_path: Path) -> None:
    find(tmp_path, {"code": "a"})

    def fail(folder: Path, _: Checkpoint) -> Mapping[str, Any]:
        (folder / "half").write_text("half")
        raise InputError("no")

    with pytest.raises(InputError):
        cache.find_or_make(tmp_path, "job", {"code": "b"}, {}, fail)
    assert not find(tmp_path, {"code": "a"}).ran


def test_inputs_by_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("content")
    two.write_text("content")
    kept = tmp_path / "cache"
    find(kept, data=one)
    assert not find(kept, data=two).ran
    two.write_text("changed")
    assert find(kept, data=two).reason == "input data changed"


def test_an_earlier_result_counts_by_its_content(tmp_path: Path) -> None:
    def source(code: str, content: str) -> Result:
        return cache.find_or_make(tmp_path, "source", {"code": code}, {}, make(content))

    find(tmp_path, data=source("a", "same"))
    assert not find(tmp_path, data=source("b", "same")).ran
    assert find(tmp_path, data=source("b2", "other")).ran


def test_a_folder_counts_by_names_sizes_and_times(tmp_path: Path) -> None:
    folder, kept = tmp_path / "data", tmp_path / "cache"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a").write_text("one")
    find(kept, data=folder)
    assert not find(kept, data=folder).ran
    os.utime(folder / "below" / "a", ns=(0, 1))
    assert find(kept, data=folder).ran
    (folder / "below" / "a").rename(folder / "below" / "b")
    assert find(kept, data=folder).ran
    (folder / "c").write_text("")
    assert find(kept, data=folder).ran


def test_missing_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*gone: No such file"):
        find(tmp_path / "cache", data=tmp_path / "gone")


@given(st.binary(max_size=200), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_any_damage_of_a_record_is_noticed(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    find(folder)
    (record,) = folder.glob("job/*/record.json")
    content = record.read_bytes()
    at %= len(content)
    damaged = content[:at] + noise + content[at + len(noise) :]
    record.write_bytes(damaged)
    result = find(folder)
    assert result.facts == {"length": 4}
    # White space between the parts of the JSON is no damage.
    assert result.ran or json.loads(damaged) == json.loads(content)


def test_two_builds_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from toolchain import cache\n"
    code += "with cache.lock(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    folder = tmp_path / "out" / ".cache"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=rf"one build at a time.*process {child.pid}.*choose another --out"):
            with cache.lock(folder):
                pass
        child.kill()
    # However the other ended, the folder is free.
    with cache.lock(folder):
        pass


def test_leftovers_are_removed_and_results_stay(tmp_path: Path) -> None:
    find(tmp_path)
    (tmp_path / "job" / f"{cache._PART}7").mkdir()
    cache.remove_leftovers(tmp_path)
    assert not (tmp_path / "job" / f"{cache._PART}7").exists()
    assert not find(tmp_path).ran


class Interrupted(Exception):
    pass


def trained(folder: Path, settings: Mapping[str, Any], until: int, **keywords: bool) -> Result:
    """A job of nine steps that goes on where it was, and is interrupted at a step."""

    def write(out: Path, checkpoint: Checkpoint) -> Mapping[str, Any]:
        state = checkpoint.folder / "state"
        reached = int(state.read_text()) if state.exists() else 0
        if not checkpoint.end:
            checkpoint.folder.mkdir(exist_ok=True)
            state.write_text(str(until))
            if until < 9:
                raise Interrupted
        (out / "steps").write_text(f"{reached} to {int(state.read_text())}")
        return {}

    return cache.find_or_make(folder, "job", {"setting": settings}, {}, write, **keywords)


def left(folder: Path) -> list[str]:
    """What is in the job's folder, checkpoints told by what they have reached."""
    return sorted(
        (place / "state").read_text() if place.name.startswith(".resume-") else "result"
        for place in (folder / "job").iterdir()
    )


def test_a_job_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    for until in (3, 5):
        with pytest.raises(Interrupted):
            trained(tmp_path, {"a": 1}, until)
        cache.remove_leftovers(tmp_path)
        assert left(tmp_path) == [str(until)]
    done = trained(tmp_path, {"a": 1}, 9)
    assert (done.file("steps").read_text(), done.reason) == ("5 to 9", "first build")
    assert left(tmp_path) == ["result"]


def test_a_checkpoint_belongs_to_its_settings_alone(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, {"a": 1}, 3)
    with pytest.raises(Interrupted):
        trained(tmp_path, {"a": 2}, 5)
    # Changed back: what was reached is still there, until a result is whole.
    assert trained(tmp_path, {"a": 1}, 9).file("steps").read_text() == "3 to 9"
    assert left(tmp_path) == ["result"]
    assert trained(tmp_path, {"a": 2}, 9).file("steps").read_text() == "0 to 9"


def test_a_job_that_is_ended_early_can_still_go_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, {"a": 1}, 3)
    early = trained(tmp_path, {"a": 1}, 9, end_early=True)
    assert (early.file("steps").read_text(), early.ran) == ("3 to 3", True)
    assert left(tmp_path) == ["3", "result"]
    assert not trained(tmp_path, {"a": 1}, 9, end_early=True).ran
    with pytest.raises(Interrupted):
        trained(tmp_path, {"a": 1}, 6)
    again = trained(tmp_path, {"a": 1}, 9, end_early=True)
    assert again.file("steps").read_text() == "6 to 6"
    assert again.reason == "what was reached is taken, as --use-best asks"
    done = trained(tmp_path, {"a": 1}, 9)
    assert (done.file("steps").read_text(), done.reason) == ("6 to 9", "it goes on after an early end")
    assert done.key not in (early.key, again.key)
    # The whole result is better than any that ended early.
    assert trained(tmp_path, {"a": 1}, 9, end_early=True).key == done.key
    assert left(tmp_path) == ["result"]


def test_without_a_checkpoint_nothing_ends_early(tmp_path: Path) -> None:
    assert trained(tmp_path, {"a": 1}, 9, end_early=True).file("steps").read_text() == "0 to 9"
