"""What things cost: `python -m dpmkit bench memory | context | reproduce`, and a method's sentence.

A bench writes a record and returns its path. Arms take turns; rates are medians with the lowest and the highest.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from . import cheaper, codes, corpora, estimate, finetune, machine, metrics, protocols, records, speakers
from .algorithm1 import algorithm1
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import EMOTIONS
from .finetune import Finetuned
from .memory import EMPTY, Part, tail
from .settings import EvaluationSettings, MemorySettings, Settings
from .sllm import EmotionSLLM, Vocabulary
from .speakers import OffsetModel

LEAST = {"precision": "bfloat16", "layers": "top-2", "prefix_states": "reuse"}
RUNGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, read before the write": {"read": "before"},
    "reuse": {"prefix_states": "reuse"},
    "stride-256": {"stepping": "stride-256"},
    "top-2": {"layers": "top-2"},
    "bf16": {"precision": "bfloat16"},
    "bf16 + top-2 + reuse": LEAST,
    "bf16 + top-2 + reuse, read before": LEAST | {"read": "before"},
}
LOOP = "PEFT loop"  # `algorithm1`, one conversation after the other
SENTENCES = 20  # of a conversation that is timed, at least: the loop's set-up is in its time
# Llamas of random weights, which time cannot tell: hidden, layers, heads, heads of keys and values, intermediate,
# precision; then n_r and streams.
SHAPES = {"8 layers of a 135 M Llama": (576, 8, 9, 3, 1536, torch.float32, 64, 8)}
GPU_SHAPES = {"135 M Llama": (576, 30, 9, 3, 1536, torch.float32, 64, 32),
              "7 B Llama": (4096, 32, 32, 32, 11008, torch.bfloat16, 1024, 1)}
PATHS = ("dpm", "dpm, reuse", "full context", "window")  # to a label


def memory(settings: Settings, repeats: int = 3) -> Path:
    """Sentences per second of each rung and of the plain PEFT loop, on the trained SLLM of these settings and on a
    larger shape; and what each rung changes in that SLLM's answers on validation conversations, which stand beside
    the record."""
    started, device = time.perf_counter(), machine.device(settings)
    corpus, spoken, tuned, conversations = _prepared(settings)
    sentences = [spoken.codes[u.id] for c in conversations for u in c.utterances]
    real = _conversations(sentences, settings.memory.prefix, min(16, len(conversations)))
    shapes = {f"{settings.profile} SLLM": lambda: (tuned.sllm, settings.memory, real)}
    for name, shape in (SHAPES if device.type == "cpu" else GPU_SHAPES).items():
        shapes[name] = partial(_random, settings.memory, device, *shape)
    peak = {str(p): estimate.matmul_rate(device, p) for p in (torch.float32, torch.bfloat16)}
    answers = {name: protocols.predict(
        settings.override({f"memory.{option}": value for option, value in rung.items()}), corpus, spoken, tuned,
        "dpm", "validation", settings.ablation.conversations) for name, rung in RUNGS.items()}
    results = {"rates": [], "peak": peak, "changes": _changes(answers, corpus.emotions, settings.evaluation)}
    for name, prepared in shapes.items():
        finished = results["rates"]
        for rates in _rates(name, *prepared(), repeats):  # a kill keeps the rounds before it
            results["rates"] = [*finished, *rates]
            path = records.save_bench(settings, "memory", results, time.perf_counter() - started)
    records.save_answers(path, answers)
    return path


def _rates(shape: str, sllm: EmotionSLLM, base: MemorySettings, conversations: list,
           repeats: int) -> Iterator[list[dict]]:
    """Sentences per second of the loop (on two of the conversations) and of each rung, in turn: a row each, after
    every round."""
    plain, few, streams = sllm.merged(), conversations[:2], len(conversations)

    def loop() -> None:
        with machine.tf32(plain):
            for conversation in few:
                algorithm1(plain, conversation, base)

    memories = {name: cheaper.memory(sllm, base.but(**rung), streams) for name, rung in RUNGS.items()}
    arms = {LOOP: loop} | {name: lambda memory=memory: list(memory.batch(conversations))
                           for name, memory in memories.items()}
    sentences = {name: sum(map(len, few if name == LOOP else conversations)) for name in arms}
    facts = {"shape": shape, "threads": torch.get_num_threads(), "sentences": len(conversations[0]),
             "codes": round(np.mean([*map(len, conversations[0])]))}
    counted = {LOOP: flops(loop) / sentences[LOOP]}  # warms up, too; rungs run freely: no replay can be counted
    for name, rung in RUNGS.items():
        free = cheaper.memory(sllm, base.but(**rung, shapes="free"), streams)
        counted[name] = flops(lambda free=free: list(free.batch(conversations))) / sentences[name]
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in tqdm(range(1, repeats + 1), desc=f"bench: {shape}", unit="round"):
        for name, work in arms.items():
            rates[name].append(sentences[name] / seconds(work, sllm.device))
        rows = []
        for name, found in rates.items():
            ratio = [one / other for one, other in zip(found, rates[LOOP], strict=True)]
            used = memories[name].sllm if name in memories else sllm
            rows.append({**facts, "rung": name, "streams": 1 if name == LOOP else streams, "n": number,
                         "flops_per_sentence": counted[name], "precision": str(next(used.parameters()).dtype),
                         "rate": float(np.median(found)), "rate_range": [min(found), max(found)],
                         "ratio": float(np.median(ratio)), "ratio_range": [min(ratio), max(ratio)]})
        yield rows


def _changes(answers: dict[str, pd.DataFrame], emotions: tuple[str, ...], how: EvaluationSettings) -> list[dict]:
    """WA of each rung less that of exact mode, and the share of other answers."""
    compared = metrics.compare(answers, emotions, "exact", how)
    p = {name: table[[f"p_{e}" for e in emotions]].to_numpy() for name, table in answers.items()}
    return [{"rung": name, **{column: row[column] for column in ("WA", "WA_gain", "WA_gain_interval")},
             "changed": float((p[name].argmax(1) != p["exact"].argmax(1)).mean()),
             "largest_change": float(np.abs(p[name] - p["exact"]).max())}
            for name, row in zip(answers, compared, strict=True)]


def _conversations(sentences: Sequence[np.ndarray], prefix: int, streams: int) -> list[list[np.ndarray]]:
    """One for each stream, of these sentences over and over: SENTENCES of them, or as many as make twice n_r
    tokens, so that half of the steps have all of their prefix."""
    number = max(SENTENCES, math.ceil(2 * prefix / np.mean([len(codes) + 1 for codes in sentences])))
    endless = itertools.cycle(sentences)
    return [list(itertools.islice(endless, number)) for _ in range(streams)]


def _random(memory: MemorySettings, device: torch.device, hidden: int, layers: int, heads: int, kv_heads: int,
            intermediate: int, precision: torch.dtype, prefix: int,
            streams: int) -> tuple[EmotionSLLM, MemorySettings, list]:
    """A Llama of this shape with a head of 517 rows; for each stream a conversation in sentences of 128 tokens."""
    vocabulary = Vocabulary(512, EMOTIONS)
    config = LlamaConfig(vocab_size=vocabulary.size, hidden_size=hidden, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=intermediate,
                         tie_word_embeddings=True, dtype=precision)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(precision)
    spoken = _conversations(np.random.default_rng(0).integers(0, 512, (SENTENCES, 127)), prefix, streams)
    return EmotionSLLM(model, vocabulary, window=2048), memory.but(prefix=prefix), spoken


def _prepared(settings: Settings) -> tuple[Corpus, CorpusCodes, Finetuned, tuple[Conversation, ...]]:
    """The corpus, its codes, the trained SLLM and the validation conversations of these settings."""
    corpus = corpora.load(settings)
    spoken = codes.make(settings, corpus)
    validation = corpus.select(corpus.folds[settings.fold - 1].validation)
    return corpus, spoken, finetune.train(settings, corpus, spoken), validation


def context(settings: Settings) -> Path:
    """Seconds and peak bytes until a recording's last sentence has its label, after each of `context.codes`, by
    every path of `label_after`: real validation codes end to end, one measurement each."""
    started = time.perf_counter()
    _, spoken, tuned, conversations = _prepared(settings)
    sentences = [spoken.codes[u.id] for c in conversations for u in c.utterances]
    joined, sentence, rows = np.concatenate(sentences), round(np.mean([len(s) for s in sentences])), []
    for path in PATHS:
        label_after(tuned.sllm, joined[:4 * sentence], sentence, settings.memory, path)  # warms up
    for length, path in tqdm(list(itertools.product(settings.context.codes, PATHS)), desc="bench: context"):
        spent = label_after(tuned.sllm, np.resize(joined, length), sentence, settings.memory, path)
        rows.append({"codes": length, "path": path, **spent})
    return records.save_bench(settings, "context", {"rows": rows, "sentence": sentence},
                              time.perf_counter() - started)


def label_after(model: EmotionSLLM, codes: np.ndarray, sentence: int, settings: MemorySettings,
                path: str) -> dict[str, float]:
    """`measured` until the last sentence of a recording, (frames,) in sentences of so many codes, has its emotion.

    `dpm` writes every sentence and reads once, `dpm, reuse` reads every one; `full context` is one forward,
    whatever the window, as its cost alone is meant; `window` has the n_r tokens before the sentence.
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

    ways = {"dpm": dpm,
            "dpm, reuse": lambda: list(cheaper.memory(model, settings.but(prefix_states="reuse")).listen(spoken)),
            "full context": lambda: wide.emotion_logits([whole]),
            "window": lambda: model.emotion_logits([tail(whole, settings.prefix + len(tokens[-1]))])}
    with torch.no_grad():  # a step turns gradients on
        return measured(ways[path], model.device)


def crossings(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The shortest measured history, in codes, from which on a memory is cheaper than the full context, by seconds
    and by peak memory; none where it never is. `rows`: those of `context`."""
    table = pd.DataFrame(rows).pivot(index="codes", columns="path", values=["seconds", "peak_bytes"])
    out = []
    for dpm in PATHS[:2]:
        below = table.xs(dpm, axis=1, level=1) < table.xs("full context", axis=1, level=1)
        lasting = below[::-1].cummin()[::-1]  # from here on at every longer one
        out.append({"memory": dpm, "cheaper than": "full context",
                    **{what: int(column.idxmax()) if column.any() else None for what, column in lasting.items()}})
    return pd.DataFrame(out)


def reproduce(settings: Settings) -> Path:
    """Seconds of each notebook of the profile, from an empty home: on this machine as it is, beside a busy loop."""
    from .reproduce import NOTEBOOKS, run

    rows, started = [], time.perf_counter()
    for load, code in {"quiet": "pass", "beside a busy process": "while True: pass"}.items():
        with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as after:
            after.callback(subprocess.Popen([sys.executable, "-c", code]).kill)
            for name in NOTEBOOKS:
                start = time.perf_counter()
                run(settings.but(home=home), [name], settings.changed)
                rows.append({"machine": load, "notebook": name, "seconds": time.perf_counter() - start})
    return records.save_bench(settings, "reproduce", {"rows": rows}, time.perf_counter() - started)


# -- what a method costs per sentence: seconds, FLOPs, bytes -------------------------------------------------

def of_method(settings: Settings, tuned: Finetuned, codes: CorpusCodes, conversations: Sequence[Conversation],
              emotions: tuple[str, ...], method: str, speaker: OffsetModel | None = None,
              rounds: int = 1) -> dict[str, Any]:
    """What a method (`speaker-memory`: by this model) costs on these conversations, read as they come:
    `seconds_per_sentence`, median and range, `flops_per_sentence` and `peak_bytes`."""
    if speaker:
        hear = partial(speakers.remembered, settings, conversations, codes.codes, emotions, tuned, speaker)
    else:
        model = tuned.sllm.in_precision(settings.memory.precision)
        listener = protocols.Listener(settings, model, codes.codes, emotions)
        hear = partial(protocols.listen, listener, conversations, method)

    def work() -> None:
        list(hear())

    sentences, counted = sum(len(c.utterances) for c in conversations), flops(work)  # warms up, too
    spent = pd.DataFrame([measured(work, tuned.sllm.device) for _ in range(rounds)])
    each = spent["seconds"] / sentences
    return {"seconds_per_sentence": each.median(), "seconds_per_sentence_range": [each.min(), each.max()],
            "flops_per_sentence": counted / sentences, "peak_bytes": int(spent["peak_bytes"].max())}


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the products in one call, those of fused attention included, wherever it runs.
    Torch's own count knows no attention of grouped queries, and none that is fused on a CPU."""
    def count(formula: Callable[..., int], operands: int, *sizes: torch.Size, **_) -> int:
        *before, query, key, value = sizes[:operands]  # each (batch, heads, tokens, dimensions)
        return formula(*before, query, *((*query[:2], *shared[2:]) for shared in (key, value)))

    counts = {getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{way}"): partial(count, formula, operands)
              for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
              for way, formula, operands in (("", sdpa_flop_count, 3), ("_backward", sdpa_backward_flop_count, 4))}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        work()
    return counter.get_total_flops()


def measured(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Wall `seconds` of one call, and the `peak_bytes` that it held beyond what was held before. (Only Linux keeps
    a peak and can forget it: elsewhere it is what is held afterwards.)"""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        spent = seconds(work, device)
        return {"seconds": spent, "peak_bytes": torch.cuda.max_memory_allocated(device) - held}
    with contextlib.suppress(OSError, AttributeError):  # what was freed but kept would hide a peak (glibc only)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process = psutil.Process()
    held = process.memory_info().rss
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    spent, peak = seconds(work, device), process.memory_info().rss
    with contextlib.suppress(OSError):
        peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[1])
    return {"seconds": spent, "peak_bytes": max(0, peak - held)}


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of one call."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
