import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.process_usage import process_usage
from deploy.errors import BackendError

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has /proc")


def test_this_process() -> None:
    before = process_usage(os.getpid())
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    with open(os.devnull, "rb"):
        more = process_usage(os.getpid())
    release.set()
    thread.join()
    assert before is not None and more is not None
    assert more.descriptors == before.descriptors + 1 and more.threads == before.threads + 1
    assert before.memory_mb > 10


def test_children_count_and_the_ended_do_not() -> None:
    alone = process_usage(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        both, only = process_usage(os.getpid()), process_usage(child.pid)
        assert alone is not None and both is not None and only is not None
        assert (alone.processes + 1, only.processes) == (both.processes, 1)
        # Two ends of pipes here; three standard ones there.
        assert both.descriptors == alone.descriptors + 2 + only.descriptors and only.descriptors == 3
        child.communicate(b"\n")
    assert process_usage(child.pid) is None


def test_no_proc(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="only Linux"):
        process_usage(os.getpid(), tmp_path)
