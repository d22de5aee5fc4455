"""The process in which `latency.py` measures one configuration: `python -m benchmarks.cold_start SETTINGS`.

It notes the time before it loads anything, so that the import of the libraries is a part of the cold start of its own.
"""

from __future__ import annotations

import sys
import time

#: Of the monotonic clock, which all processes of a machine share: when Python itself had started.
BEGUN_NS = time.monotonic_ns()

if __name__ == "__main__":
    from benchmarks.latency_child import main

    sys.exit(main(BEGUN_NS, time.monotonic_ns()))
