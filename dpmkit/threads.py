"""How torch's threads wait for one another, chosen before torch is imported: OpenMP asks once, when it is loaded.

By default they spin, which is fastest on a quiet machine; beside a busy process each spins in the time slices that
the others need, and a step takes several times as long. `python -m dpmkit bench threads` measures both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from .settings import Settings

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


def measure(settings: Settings, repeats: int = 3) -> Path:
    """Sentences per second of the memory and steps per second of training, at the size of the profile, on a quiet
    machine and beside a busy process: OpenMP's default, each choice of `choose` alone, and what it chooses. In
    fresh processes, in turn; returns the record's path."""
    from . import records

    arms = {"default": {}, "quiet's choice": QUIET, "busy's choice": BUSY, "chosen": {}}
    rows: dict[tuple[str, str], list[dict]] = {}
    started = time.perf_counter()
    for machine in ("quiet", "beside a busy process") * repeats:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if machine != "quiet" else None
        try:
            for arm, given in arms.items():
                plain = {k: v for k, v in os.environ.items() if k not in (*NAMES, MARK, "OMP_NUM_THREADS")}
                first = "import torch; " if arm == "default" else ""  # then nothing is chosen any more
                code = f"{first}from dpmkit.threads import print_rates; print_rates({settings.profile!r})"
                done = subprocess.run([sys.executable, "-c", code], env={**plain, **given}, capture_output=True,
                                      text=True, check=True)
                rows.setdefault((machine, arm), []).append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            if busy:
                busy.kill()
                busy.wait()
    results = [{"machine": machine, "waiting": arm, "n": repeats, "chose": sorted({r["chose"] for r in made}),
                **{rate: sorted(r[rate] for r in made) for rate in ("sentences_per_second", "steps_per_second")}}
               for (machine, arm), made in rows.items()]
    return records.save_bench(settings, "threads", {"rows": results}, time.perf_counter() - started)


def print_rates(profile: str, seconds: float = 4.0) -> None:
    """Print this process' rates as JSON, on random weights and codes of the profile's shape."""
    import numpy as np
    import torch

    from .corpora.dynamics import EMOTIONS
    from .memory import DynamicParameterMemory
    from .settings import Settings
    from .sllm import EmotionSLLM

    settings, rng = Settings.of(profile), np.random.default_rng(0)
    size = settings.codes.codebook_size or 256
    sllm = EmotionSLLM.create(settings.backbone, settings.finetune, size, EMOTIONS)
    ids = torch.from_numpy(rng.integers(0, size, (8, settings.backbone.window)))
    weight, emotion = torch.full(ids.shape, 1 / ids.shape[1]), torch.full(ids.shape, -100)
    emotion[:, ::30] = 1
    optimizer = torch.optim.AdamW(sllm.parameters(), lr=1e-4)

    def train() -> int:
        optimizer.zero_grad()
        sllm(ids, weight, emotion)["loss"].backward()
        optimizer.step()
        return 1

    steps = _rate(train, seconds)
    talks = [[rng.integers(0, size, int(rng.integers(15, 40))) for _ in range(6)] for _ in range(16)]
    memory = DynamicParameterMemory(sllm, settings.memory, len(talks))
    sentences = _rate(lambda: sum(1 for _ in memory.batch(talks)), seconds)
    chose = " ".join(f"{n}={os.environ[n]}" for n in NAMES if os.environ.get(n)) or "OpenMP's default"
    print(json.dumps({"sentences_per_second": sentences, "steps_per_second": steps, "chose": chose}))


def _rate(work: Callable[[], int], seconds: float) -> float:
    work()  # warms up
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)
