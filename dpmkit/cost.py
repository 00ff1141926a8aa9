"""What a label costs after so much audio, and what a method costs per sentence: seconds, FLOPs, bytes."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from . import cheaper, protocols, speakers
from .codes import CorpusCodes
from .corpora import Conversation
from .finetune import Finetuned
from .memory import EMPTY, Part, tail
from .settings import MemorySettings, Settings
from .sllm import EmotionSLLM
from .speakers import OffsetModel

PATHS = ("dpm", "dpm, reuse", "full context", "full context in chunks", "window")
CHUNK = 512  # tokens of one forward of a full context in chunks, keys and values kept


def label_after(model: EmotionSLLM, codes: np.ndarray, sentence: int, settings: MemorySettings,
                path: str) -> dict[str, float]:
    """Cost of the emotion of the last sentence of a recording given as `codes`, shape (frames,), cut into sentences
    of `sentence` codes: `seconds`, and `peak_bytes` beyond what was held before.

    path: `dpm` writes every sentence and reads once; `dpm, reuse` keeps the prefix's keys and values from earlier
    steps and reads every sentence; `full context` is one forward of everything, or one per chunk, whatever the
    window (its cost alone is meant: no backbone answers well beyond its window); `window` reads the last sentence
    and the n_r tokens before it.
    """
    model = model.in_precision(settings.precision)
    spoken = [codes[i:i + sentence] for i in range(0, len(codes), sentence)]
    tokens = [model.sentence(part) for part in spoken]
    whole = torch.cat(tokens)
    wide = EmotionSLLM(model.model, model.vocabulary, window=len(whole) + 1)

    def dpm() -> None:
        memory, before = cheaper.memory(model, settings.but(prefix_states="recompute")), EMPTY
        for turn, now in enumerate(tokens):
            if turn:
                memory.write([Part(before, now)], [0])
            before = tail(torch.cat([before, now]), settings.prefix)
        memory.read([Part(EMPTY, tail(whole, settings.prefix + len(now)))], [0])

    def reuse() -> None:
        for _ in cheaper.memory(model, settings.but(prefix_states="reuse")).listen(spoken):
            pass

    ways = {"dpm": dpm, "dpm, reuse": reuse,
            "full context": lambda: wide.emotion_logits([whole]),
            "full context in chunks": lambda: wide.emotion_logits_in_chunks(whole, CHUNK),
            "window": lambda: model.emotion_logits([tail(whole, settings.prefix + len(tokens[-1]))])}
    with torch.no_grad():  # a step turns gradients on
        return measured(ways[path], model.device)


def of_method(settings: Settings, tuned: Finetuned, codes: CorpusCodes, conversations: Sequence[Conversation],
              emotions: tuple[str, ...], method: str) -> dict[str, float]:
    """What `method` of `protocols.METHODS` costs over these conversations, read as they come:
    `seconds_per_sentence`, `seconds_per_hour` (of audio), `flops_per_sentence`, `peak_bytes`, and `parameters` that
    a conversation changes."""
    model = tuned.sllm.in_precision(settings.memory.precision)
    grouped, how = protocols.grouped(conversations, settings.memory, method), protocols.METHODS[method]
    asked, changed = how.settings(settings.memory, tuned.sllm.window), 0
    if how.writes and asked.steps:
        changed = len(cheaper.memory(tuned.sllm, asked.but(scope="conversation")).lora.fresh)

    def work() -> None:
        for _ in protocols.listen(model, grouped, codes.codes, emotions, settings.memory, method,
                                  streams=settings.evaluation.streams):
            pass

    return {**_cost(work, codes, conversations, tuned.sllm.device), "parameters": changed}


def of_speakers(settings: Settings, tuned: Finetuned, codes: CorpusCodes, conversations: Sequence[Conversation],
                emotions: tuple[str, ...], model: OffsetModel, power: float) -> dict[str, float]:
    """The same of `speaker-memory`; its `parameters` are the numbers kept of one speaker."""
    def work() -> None:
        speakers.remembered(settings, conversations, codes.codes, emotions, tuned, model, power)

    size, paths = len(model.within), settings.speaker.paths
    return {**_cost(work, codes, conversations, tuned.sllm.device),
            "parameters": paths * (size + 1 + len(emotions)) + size * size}


def _cost(work: Callable[[], Any], codes: CorpusCodes, conversations: Sequence[Conversation],
          device: torch.device) -> dict[str, float]:
    sentences = [codes.codes[u.id] for c in conversations for u in c.utterances]
    hours = sum(map(len, sentences)) / codes.facts["frame_rate"] / 3600
    work()  # warms up
    spent = measured(work, device)
    return {"seconds_per_sentence": spent["seconds"] / len(sentences), "seconds_per_hour": spent["seconds"] / hours,
            "flops_per_sentence": flops(work) / len(sentences), "peak_bytes": spent["peak_bytes"]}


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the products in one call, those of fused attention included, wherever it runs.
    Torch's own count knows no attention of grouped queries, and none that is fused on a CPU."""
    def ungrouped(query: torch.Size, *shared: torch.Size) -> list[tuple[int, ...]]:
        return [(*query[:2], *shape[2:]) for shape in shared]  # (batch, the queries' heads, tokens, dimensions)

    def forward(query, key, value, *_, **__) -> int:
        return sdpa_flop_count(query, *ungrouped(query, key, value))

    def backward(gradient, query, key, value, *_, **__) -> int:
        return sdpa_backward_flop_count(gradient, query, *ungrouped(query, key, value))

    counts = {getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{way}"): count
              for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
              for way, count in (("", forward), ("_backward", backward))}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        work()
    return counter.get_total_flops()


def measured(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Wall `seconds` of one call, and the `peak_bytes` that it held beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        spent = seconds(work, device)
        return {"seconds": spent, "peak_bytes": torch.cuda.max_memory_allocated(device) - held}
    with contextlib.suppress(OSError, AttributeError):  # what was freed but kept would hide a peak (glibc only)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, done = psutil.Process(), threading.Event()
    sizes = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.002):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        spent = seconds(work, device)
        sizes.append(process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    return {"seconds": spent, "peak_bytes": max(sizes) - sizes[0]}


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def crossings(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The shortest measured history, in codes, from which on a memory is cheaper than the full context, in seconds
    and in peak memory; none where it never is. `rows`: `codes`, `path`, `seconds`, `peak_bytes`."""
    table = pd.DataFrame(rows).pivot(index="codes", columns="path", values=["seconds", "peak_bytes"])
    out = []
    for dpm, other in itertools.product(("dpm", "dpm, reuse"), ("full context", "full context in chunks")):
        line = {"memory": dpm, "cheaper than": other}
        for measure in ("seconds", "peak_bytes"):
            below = table[measure][dpm] < table[measure][other]
            lasting = below[::-1].cummin()[::-1]  # from here on at every longer one
            line[measure] = int(lasting.idxmax()) if lasting.any() else None
        out.append(line)
    return pd.DataFrame(out)
