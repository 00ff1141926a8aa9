"""Seconds and bytes that a label costs after so much audio: DPM's steps, or all of the history in one forward."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from . import protocols, speakers
from .codes import CorpusCodes
from .corpora import Conversation
from .finetune import Finetuned
from .lora import TemporaryLoRA
from .memory import DynamicParameterMemory
from .offsets import OffsetModel
from .settings import MemorySettings, Settings
from .sllm import EmotionSLLM

PATHS = ("dpm", "dpm, reuse", "full context", "full context in chunks", "window")
CHUNK = 512  # tokens of one forward of a full context that is heard in chunks, keys and values kept


def label_after(model: EmotionSLLM, codes: np.ndarray, sentence: int, settings: MemorySettings,
                path: str) -> dict[str, float]:
    """Cost of the emotion of the last sentence of a recording given as `codes`, shape (frames,), cut into
    sentences of `sentence` codes.

    path: `dpm` hears every sentence (a write each) and reads once; `dpm, reuse` keeps the prefix's keys and values
    from earlier steps and reads every sentence; `full context` puts everything into one forward, whatever the
    window (its cost alone is meant: no backbone answers well beyond its window), or into chunks that keep all
    keys and values; `window` reads the last sentence and the n_r tokens before it. Returns `seconds` and
    `peak_bytes`, the most memory that the process (or GPU) held at once beyond what it held before.
    """
    model = model.in_precision(settings.precision)
    tokens = [model.sentence(codes[i:i + sentence]) for i in range(0, len(codes), sentence)]
    wide = EmotionSLLM(model.model, model.vocabulary, window=sum(map(len, tokens)) + 1)

    def dpm() -> None:
        memory = DynamicParameterMemory(model, settings)
        before = tokens[0][:0]
        for i, now in enumerate(tokens):
            if i:
                memory.write([before], [now])
            context = torch.cat([before, now])
            before = context[max(0, len(context) - settings.prefix):]
        memory.read([context])

    def reuse() -> None:
        kept = DynamicParameterMemory(model, replace(settings, prefix_states="reuse"))
        for _ in kept.listen(codes[i:i + sentence] for i in range(0, len(codes), sentence)):
            pass

    def in_chunks() -> None:
        with torch.no_grad():
            wide.emotion_logits_in_chunks(torch.cat(tokens), CHUNK)

    def full_context() -> None:
        with torch.no_grad():
            wide.emotion_logits([torch.cat(tokens)])

    def window() -> None:
        before = torch.cat(tokens[:-1]) if len(tokens) > 1 else tokens[0][:0]
        with torch.no_grad():
            model.emotion_logits([torch.cat([before[max(0, len(before) - settings.prefix):], tokens[-1]])])

    ways = dict(zip(PATHS, (dpm, reuse, full_context, in_chunks, window), strict=True))
    return measured(ways[path], model.device)


def of_method(settings: Settings, tuned: Finetuned, codes: CorpusCodes, conversations: Sequence[Conversation],
              emotions: tuple[str, ...], method: str) -> dict[str, float]:
    """What `method` of `protocols.METHODS` costs over these conversations, read as they come: `seconds_a_sentence`,
    `seconds_an_hour` (of audio), `flops_a_sentence`, `peak_bytes`, and `parameters` that a conversation changes."""
    model, spoken = tuned.sllm.in_precision(settings.memory.precision), protocols.grouped(
        conversations, settings.memory, method)

    def hear() -> None:
        for _ in protocols.listen(model, spoken, codes.codes, emotions, settings.memory, method,
                                  streams=settings.evaluation.streams):
            pass

    how = protocols.METHODS[method].settings(settings.memory, tuned.sllm.window)
    learns = protocols.METHODS[method].writes and how.steps
    changed = TemporaryLoRA(tuned.sllm, 1, how.rank, how.alpha, how.layers).parameters if learns else 0
    return {**_priced(hear, codes, conversations, tuned.sllm.device), "parameters": changed}


def of_speakers(settings: Settings, tuned: Finetuned, codes: CorpusCodes, conversations: Sequence[Conversation],
                emotions: tuple[str, ...], model: OffsetModel, power: float) -> dict[str, float]:
    """The same of `speaker-memory`; its `parameters` are the numbers kept of one speaker."""
    def hear() -> None:
        speakers.remembered(settings, conversations, codes.codes, emotions, tuned, model, power)

    size, paths = len(model.within), settings.speaker.paths
    return {**_priced(hear, codes, conversations, tuned.sllm.device),
            "parameters": paths * (size + 1 + len(emotions)) + size * size}


def _priced(hear: Callable[[], None], codes: CorpusCodes, conversations: Sequence[Conversation],
            device: torch.device) -> dict[str, float]:
    sentences = [codes.codes[u.id] for c in conversations for u in c.utterances]
    hours = sum(map(len, sentences)) / codes.facts["frame_rate"] / 3600
    hear()  # warms up
    spent = measured(hear, device)
    return {"seconds_a_sentence": spent["seconds"] / len(sentences), "seconds_an_hour": spent["seconds"] / hours,
            "flops_a_sentence": flops(hear) / len(sentences), "peak_bytes": spent["peak_bytes"]}


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the products in one call, those of fused attention included, wherever it runs.
    Torch's own count knows no attention of grouped queries, and none that is fused on a CPU."""
    def forward(query, key, value, *_, **__) -> int:
        return sdpa_flop_count(query, *_ungrouped(query, key, value))

    def backward(gradient, query, key, value, *_, **__) -> int:
        return sdpa_backward_flop_count(gradient, query, *_ungrouped(query, key, value))

    counts = {getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{way}"): count
              for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
              for way, count in (("", forward), ("_backward", backward))}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        work()
    return counter.get_total_flops()


def _ungrouped(query: torch.Size, *shared: torch.Size) -> list[tuple[int, ...]]:
    """Shapes of keys and values, (batch, heads, tokens, dimensions), as each of the queries' heads sees them."""
    return [(query[0], query[1], *shape[2:]) for shape in shared]


def measured(work: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Wall seconds of one call and the peak of memory during it, in bytes, beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated(device) - held}
    _give_back_freed_memory()
    process = psutil.Process()
    held = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - start
        peak = max(peak, process.memory_info().rss)
        done.set()
        watcher.join()
    return {"seconds": seconds, "peak_bytes": peak - held}


def _give_back_freed_memory() -> None:
    # What an earlier measurement freed but the allocator kept would hide this one's peak (glibc only).
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def crossings(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The shortest measured history, in codes, from which on a memory is cheaper than the full context, in seconds
    and in peak memory; none where it never is. `rows`: `codes`, `path`, `seconds`, `peak_bytes`."""
    table = pd.DataFrame(rows).pivot(index="codes", columns="path", values=["seconds", "peak_bytes"])
    out = []
    for memory, other in itertools.product(("dpm", "dpm, reuse"), ("full context", "full context in chunks")):
        line = {"memory": memory, "cheaper than": other}
        for measure in ("seconds", "peak_bytes"):
            cheaper = table[measure][memory] < table[measure][other]
            lasting = cheaper[::-1].cummin()[::-1]  # from here on at every longer one
            line[measure] = int(lasting.idxmax()) if lasting.any() else None
        out.append(line)
    return pd.DataFrame(out)
