"""`python -m dpmkit bench workers`: sentences a second against Ray workers, and what Ray itself takes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from . import backbones, cluster, codes, corpora, protocols, records, runs, summaries
from .finetune import Finetuned
from .settings import Settings
from .sllm import EmotionSLLM

CONVERSATIONS = 32  # that the workers share
CELLS = 5  # empty tasks, one after the other


def workers(settings: Settings, repeats: int = 3) -> Path:
    """DPM on 1, 2, … workers (up to the processors of this machine), in turn, on an SLLM of these settings' shape
    as it is before training, which time cannot tell. One worker is this process with all processors; of several,
    each has its share of them. Then the seconds that Ray takes to start, and for tasks that do nothing. Returns
    the record's path."""
    started = time.perf_counter()
    corpus = corpora.load(settings)
    spoken = codes.make(settings, corpus)
    cores, out = os.cpu_count() or 1, {}
    counts = [n for n in (1, 2, 4, 8, 16) if n <= cores]
    began = time.perf_counter()
    next(cluster.results(_nothing, [()], settings.grid.address or cluster.LOCAL, settings.grid))
    start = time.perf_counter() - began
    for number in tqdm(range(repeats + 1), desc="bench: workers", unit="round"):
        sllm = EmotionSLLM.create(replace(settings.backbone, source=backbones.fetched(settings)), settings.finetune,
                                  spoken.facts["codebook_size"], corpus.emotions, number)
        sllm = sllm.to(runs.device(settings)).requires_grad_(False).eval()
        for n in counts:
            asked = settings.replace("evaluation.workers", n).replace("grid.cpus", cores // n)
            tuned = Finetuned(sllm, f"untrained {os.getpid()} {number} {n}", Path(), [], 0)  # a key of its own
            began = time.perf_counter()
            heard = len(protocols.predict(asked, corpus, spoken, tuned, "dpm", limit=CONVERSATIONS))
            if number:  # the first round warms up
                out.setdefault(n, []).append(heard / (time.perf_counter() - began))
    empty = []
    for _ in range(CELLS):
        began = time.perf_counter()
        next(cluster.results(_nothing, [()], settings.grid.address or cluster.LOCAL, settings.grid))
        empty.append(time.perf_counter() - began)
    results = {"rates": [{"workers": n, "threads": cores // n, "n": repeats, "rate": float(np.median(rates)),
                          "rate_range": [min(rates), max(rates)],
                          "ratio": float(np.median(np.divide(rates, out[1])))} for n, rates in out.items()],
               "conversations": CONVERSATIONS, "ray_start_seconds": start,
               "ray_task_seconds": float(np.median(empty)), "ray_task_seconds_range": [min(empty), max(empty)]}
    print(summaries.workers_table(results).to_string(index=False))
    return records.save_bench(settings, "workers", results, time.perf_counter() - started)


def _nothing() -> None:
    return None
