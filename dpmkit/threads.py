"""How torch's threads wait for one another, chosen before torch is imported: OpenMP asks once, when it is loaded.

By default they spin, which is fastest on a quiet machine; beside a busy process each spins in the time slices that
the others need, and a step takes several times as long. `python -m dpmkit bench threads` measures both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

import psutil

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
MARK = "DPMKIT_CHOSE_WAITING"  # the choice is this kit's, so that a child process may choose anew
QUIET = {"GOMP_SPINCOUNT": "10000"}  # turns of the loop before a thread sleeps; libgomp's own are 300,000
BUSY = {"OMP_WAIT_POLICY": "PASSIVE"}  # sleeps at once
SAMPLE = 0.1  # seconds


def choose(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads wait in this process and those that it starts, by whether others keep more than half
    a processor busy just now. Numbers do not depend on it. A user's own setting stays; too late after torch."""
    asked = any(name in environment for name in NAMES) and MARK not in environment
    if asked or environment.get("OMP_NUM_THREADS") == "1" or "torch" in sys.modules:
        return
    for name in NAMES:
        environment.pop(name, None)
    others = psutil.cpu_percent(SAMPLE) / 100 * (psutil.cpu_count() or 1)  # this process sleeps meanwhile
    environment.update(BUSY if others > 0.5 else QUIET, **{MARK: "1"})
