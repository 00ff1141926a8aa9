"""What a whole reproduction would take: GPU hours of every fold and seed, from shapes and lengths, before any run.

FLOPs are counted as `estimate` does; hours follow from a rate that was measured, and from the share of it that
training and hearing are taken to reach (`estimate.UTILISATION`). Of the backbone only the shape is loaded, and no
audio is heard: an utterance has as many codes as its seconds at the tokenizer's frame rate.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from . import estimate, records
from .codes import CorpusCodes
from .corpora import Corpus
from .machine import device
from .methods import TUNED
from .settings import Settings, UserError

PUBLISHED = {"s3-v2-25hz": (6561, 25.0), "mimi": (2048, 12.5)}  # codes and rate where the setting is 0
GPUS = (1, 15)
PASSES = 2  # of a frozen backbone in a step: forward, and the gradient of its activations


@dataclass(frozen=True)
class Cell:
    """One fold and one seed: FLOPs of notebooks 02 and 03, and what there is to hear."""

    fold: int
    training: float  # all epochs
    writing: float  # every method that writes a memory: the grid of rates, dpm, dpm-tuned, their controls, dpm-told
    reading: float  # the methods without one, and the states that the speakers' memory is fitted on
    sentences: int  # of the test split
    gigabytes: float  # at the largest moment of training

    def hours(self, rate: float) -> float:
        """On one device whose large products run at `rate` FLOP/s."""
        return (self.training + self.writing + self.reading) / (estimate.UTILISATION * rate) / 3600


def cell(settings: Settings, corpus: Corpus) -> Cell:
    """What `settings`, whose backbone is pretrained, take on one fold."""
    codes = silent(settings, corpus)
    shell = estimate.shell(settings, corpus, codes)
    told = estimate.training(settings, corpus, codes, shell)
    fold = corpus.folds[settings.fold - 1]
    lengths = {split: [[len(codes.codes[u.id]) + 1 for u in c.utterances]
                       for c in corpus.select(getattr(fold, split))] for split in ("train", "validation", "test")}
    test, some = lengths["test"], lengths["validation"][:settings.ablation.conversations]

    config, inside = shell.causal_lm.config, sum(m.weight.numel() for m in shell.linear_layers().values())

    def heard(conversations: list[list[int]], prefix: int = settings.memory.prefix) -> float:
        """FLOPs of one forward for every sentence, behind its prefix."""
        rows = np.concatenate([np.minimum(np.cumsum([0, *c[:-1]]), prefix) + c for c in conversations])
        rows = np.minimum(rows, shell.window).astype(float)
        attention = 4.0 * config.hidden_size * config.num_hidden_layers * rows ** 2
        return float((2.0 * inside * rows + attention).sum())

    tried = [rate for rate in settings.ablation.lr if rate > 0]
    bound = len(tried) * heard(some) + heard(test)  # dpm-told, which makes one more step per sentence
    # Each step, then the read.
    writing = PASSES * bound + (PASSES * max(1, settings.memory.steps) + 1) * (
        bound + len(tried) * heard(some) + (len(("dpm", "dpm-swapped")) + len(TUNED)) * heard(test))
    windows = sum(heard(lengths[split]) for split in lengths) + heard(lengths["validation"]) + 2 * heard(test)
    reading = windows + heard(test, 0) + heard(test, shell.window)
    return Cell(settings.fold, told.flops, writing, reading, sum(map(len, test)), sum(told.memory.values()) / 1e9)


def silent(settings: Settings, corpus: Corpus) -> CorpusCodes:
    """Codes of the right number, all of them 0."""
    size, rate = PUBLISHED.get(settings.codes.tokenizer, (256, 25.0))
    size, rate = settings.codes.codebook_size or size, settings.codes.frame_rate or rate
    codes = {u.id: np.zeros(max(1, round(u.seconds * rate)), np.int64)
             for c in corpus.conversations for u in c.utterances}
    return CorpusCodes("silent", codes, {}, {"codebook_size": size, "frame_rate": rate})


def write(settings: Settings, corpus: Corpus, folds: Sequence[int], seeds: int, teraflops: float = 0.0,
          price: float = 0.0) -> Path:
    """Add the row of this corpus to bench/plan-<profile>.json, in place of an earlier one; returns its path.

    `teraflops`: rate of a large product on the device that is planned for, where it is not this one; `price`: of a
    GPU hour.
    """
    started = time.perf_counter()
    if not settings.backbone.source:
        raise UserError("a plan is for a pretrained backbone: name a profile that has one (smollm2, paper), or set "
                        "backbone.source")
    rate = teraflops * 1e12 or estimate.matmul_rate(device(settings), getattr(torch, settings.backbone.dtype), 4096)
    cells = [cell(settings.replace("fold", fold), corpus) for fold in folds]
    hours = [c.hours(rate) for c in cells for _ in range(seeds)]
    row = {"profile": settings.profile, "corpus": settings.corpus, "seeds": seeds, "teraflops": rate / 1e12,
           "measured_here": not teraflops, "utilisation": estimate.UTILISATION, "price": price,
           "cells": [asdict(c) for c in cells], "gpu_hours": sum(hours),
           "hours_on": {str(n): makespan(hours, n) for n in GPUS}}
    known = (records.load_bench(settings, "plan") or {"results": {"rows": []}})["results"]["rows"]
    rows = [r for r in known if (r["profile"], r["corpus"]) != (row["profile"], row["corpus"])]
    rows = sorted([*rows, row], key=lambda r: (r["profile"], r["corpus"]))
    return records.save_bench(settings, "plan", {"rows": rows}, time.perf_counter() - started)


def makespan(hours: Sequence[float], gpus: int) -> float:
    """Hours until all cells have ended, the longest first, each on the GPU that is free soonest."""
    free = [0.0] * gpus
    for h in sorted(hours, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + h)
    return max(free)
