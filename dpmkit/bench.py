"""What is measured side by side: `python -m dpmkit bench memory | stream | context | threads`.

Arms take turns; rates are medians with the lowest and the highest. Each bench writes a record and returns its path.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from . import cheaper, codes, corpora, cost, estimate, finetune, machine, metrics, protocols, records, tables
from .algorithm1 import algorithm1, merged
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import EMOTIONS
from .finetune import Finetuned
from .machine import BUSY, MARK, NAMES, QUIET
from .settings import MemorySettings, Settings
from .sllm import EmotionSLLM, Vocabulary

RUNGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, read before the write": {"read": "before"},
    "detach": {"prefix_states": "detach"},
    "reuse": {"prefix_states": "reuse"},
    "stride-256": {"stepping": "stride-256"},
    "top-2": {"layers": "top-2"},
    "top-2 + reuse": {"layers": "top-2", "prefix_states": "reuse"},
    "bf16": {"precision": "bfloat16"},
    "bf16, read before the write": {"precision": "bfloat16", "read": "before"},
    "bf16 + top-2 + reuse": {"precision": "bfloat16", "layers": "top-2", "prefix_states": "reuse"},
    "bf16 + top-2 + reuse, read before": {"precision": "bfloat16", "layers": "top-2", "prefix_states": "reuse",
                                          "read": "before"},
}
LOOP = "PEFT loop"  # `algorithm1`, one conversation after the other
SENTENCES = 20  # of a conversation that is timed, at least: the loop's set-up is in its time
LARGE = 2048  # a side of the matrices whose product measures the peak
STREAM_ROWS = 10  # parts of a long stream, each with a row of its own
# Llamas of random weights, which time cannot tell: hidden, layers, heads, heads of keys and values, intermediate,
# precision; then n_r and streams.
SHAPES = {"8 layers of a 135 M Llama": (576, 8, 9, 3, 1536, torch.float32, 64, 8)}
GPU_SHAPES = {"135 M Llama": (576, 30, 9, 3, 1536, torch.float32, 64, 32),
              "7 B Llama": (4096, 32, 32, 32, 11008, torch.bfloat16, 1024, 1)}



# -- memory: every rung beside Algorithm 1 in plain PEFT -----------------------------------------------------

def memory(settings: Settings, repeats: int = 3) -> Path:
    """Sentences per second of each rung and of the plain PEFT loop, on the trained SLLM of these settings and on a
    larger shape; and what each rung changes in that SLLM's answers on validation conversations."""
    started, device = time.perf_counter(), machine.device(settings)
    corpus, spoken, tuned, conversations = _prepared(settings)
    sentences = [spoken.codes[u.id] for c in conversations for u in c.utterances]
    real = _conversations(sentences, settings.memory.prefix, min(16, len(conversations)))
    shapes = {f"{settings.profile} SLLM": lambda: (tuned.sllm, settings.memory, real, 4)}
    for name, shape in (SHAPES if device.type == "cpu" else GPU_SHAPES).items():
        shapes[name] = partial(_random, settings.memory, device, *shape)
    peak = {str(p): estimate.matmul_rate(device, p, LARGE) for p in (torch.float32, torch.bfloat16)}
    results = {"rates": [], "peak": peak, "changes": _changes(settings, corpus, spoken, tuned)}
    for name, prepared in shapes.items():
        finished = results["rates"]
        for rates in _rates(name, *prepared(), repeats):  # a kill keeps the rounds before it
            results["rates"] = [*finished, *rates]
            path = records.save_bench(settings, "memory", results, time.perf_counter() - started)
    print(tables.bench(results).to_string(index=False))
    return path


def _rates(shape: str, sllm: EmotionSLLM, base: MemorySettings, conversations: list, few: int,
           repeats: int) -> Iterator[list[dict]]:
    """Sentences per second of the loop (on the first `few` conversations) and of each rung, in turn: a row each,
    after every round."""
    plain = merged(sllm)

    def loop() -> None:
        with machine.tf32(plain):
            for conversation in conversations[:few]:
                algorithm1(plain, conversation, base)

    streams = len(conversations)
    memories = {name: cheaper.memory(sllm, replace(base, **rung), streams) for name, rung in RUNGS.items()}
    arms = {LOOP: loop} | {name: lambda memory=memory: list(memory.batch(conversations))
                           for name, memory in memories.items()}
    sentences = {name: sum(map(len, conversations[:few] if name == LOOP else conversations)) for name in arms}
    facts = {"shape": shape, "threads": torch.get_num_threads(), "sentences": len(conversations[0]),
             "codes": round(float(np.mean([len(sentence) for sentence in conversations[0]])))}
    counted = {name: cost.flops(work) / sentences[name] for name, work in arms.items()}  # warms up, too
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in tqdm(range(1, repeats + 1), desc=f"bench: {shape}", unit="round"):
        for name, work in arms.items():
            rates[name].append(sentences[name] / cost.seconds(work, sllm.device))
        rows = []
        for name, found in rates.items():
            ratio = [one / other for one, other in zip(found, rates[LOOP], strict=True)]
            used = memories[name].sllm if name in memories else sllm
            rows.append({**facts, "rung": name, "streams": 1 if name == LOOP else streams, "n": number,
                         "flops_per_sentence": counted[name], "precision": str(next(used.parameters()).dtype),
                         "rate": float(np.median(found)), "rate_range": [min(found), max(found)],
                         "ratio": float(np.median(ratio)), "ratio_range": [min(ratio), max(ratio)]})
        yield rows


def _changes(settings: Settings, corpus: Corpus, spoken: CorpusCodes, tuned: Finetuned) -> list[dict]:
    """WA of each rung less that of exact mode, on validation conversations, and the share of other answers."""
    predicted = {}
    for name, rung in RUNGS.items():
        asked = settings.override({f"memory.{option}": value for option, value in rung.items()})
        predicted[name] = protocols.predict(asked, corpus, spoken, tuned, "dpm", "validation",
                                            settings.ablation.conversations)
    compared = metrics.compare(predicted, corpus.emotions, "exact", settings.evaluation)
    answers = {name: metrics.answers(table, corpus.emotions) for name, table in predicted.items()}
    p = {name: table[[f"p_{e}" for e in corpus.emotions]].to_numpy() for name, table in predicted.items()}
    return [{"rung": name, **{column: row[column] for column in ("WA", "WA_gain", "WA_gain_interval")},
             "changed": float((answers[name] != answers["exact"]).mean()),
             "largest_change": float(np.abs(p[name] - p["exact"]).max())}
            for name, row in zip(predicted, compared, strict=True)]


def _conversations(sentences: Sequence[np.ndarray], prefix: int, streams: int) -> list[list[np.ndarray]]:
    """One for each stream, of these sentences over and over: SENTENCES of them, or as many as make twice n_r
    tokens, so that half of the steps have all of their prefix."""
    tokens = np.mean([len(codes) + 1 for codes in sentences])
    number = max(SENTENCES, math.ceil(2 * prefix / tokens))
    endless = itertools.cycle(sentences)
    return [list(itertools.islice(endless, number)) for _ in range(streams)]


def _random(memory: MemorySettings, device: torch.device, hidden: int, layers: int, heads: int, kv_heads: int,
            intermediate: int, precision: torch.dtype, prefix: int,
            streams: int) -> tuple[EmotionSLLM, MemorySettings, list, int]:
    """A Llama of this shape with a head of 517 rows; for each stream a conversation in sentences of 128 tokens."""
    torch.manual_seed(0)
    vocabulary, rng = Vocabulary(512, EMOTIONS), np.random.default_rng(0)
    config = LlamaConfig(vocab_size=vocabulary.size, hidden_size=hidden, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=intermediate,
                         tie_word_embeddings=True, dtype=precision)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(precision)
    spoken = _conversations([rng.integers(0, 512, 127) for _ in range(SENTENCES)], prefix, streams)
    return EmotionSLLM(model, vocabulary, window=2048), replace(memory, prefix=prefix), spoken, min(2, streams)


def _prepared(settings: Settings) -> tuple[Corpus, CorpusCodes, Finetuned, tuple[Conversation, ...]]:
    """The corpus, its codes, the trained SLLM and the validation conversations of these settings."""
    corpus = corpora.load(settings)
    spoken = codes.make(settings, corpus)
    validation = corpus.select(corpus.folds[settings.fold - 1].validation)
    return corpus, spoken, finetune.train(settings, corpus, spoken), validation


# -- stream, context, threads ----------------------------------------------------------------------------------

def stream(settings: Settings, hours: float) -> Path:
    """One stream of so many hours that is never reset: validation conversations one after the other, over and over.
    A row per part: wall and processor seconds per sentence, resident bytes, the memory's norm, mean L_t, WA."""
    started = time.perf_counter()
    corpus, spoken, tuned, conversations = _prepared(settings)
    known = [u for c in conversations for u in c.utterances]
    rate, process, rows = spoken.facts["frame_rate"], psutil.Process(), []
    lasting = sum(len(spoken.codes[u.id]) for u in known) / rate
    utterances = list(itertools.islice(itertools.cycle(known), int(hours * 3600 / lasting * len(known)) + 1))
    turns = cheaper.memory(tuned.sllm, settings.memory).listen(spoken.codes[u.id] for u in utterances)
    turns = iter(tqdm(turns, total=len(utterances), desc="bench: stream", unit="utt"))
    for part in np.array_split(np.arange(len(utterances)), STREAM_ROWS):
        wall, processor = time.perf_counter(), time.process_time()
        some = [(utterances[n], turn) for n, turn in zip(part, turns, strict=False)]
        reached = sum(len(spoken.codes[u.id]) for u in utterances[:part[-1] + 1])
        rows.append({
            "hours": reached / rate / 3600, "codes": reached, "sentences": len(some),
            "seconds_per_sentence": (time.perf_counter() - wall) / len(some),
            "processor_seconds_per_sentence": (time.process_time() - processor) / len(some),
            "resident_bytes": process.memory_info().rss, "norm": some[-1][1].norm,
            "L_t": float(np.nanmean([turn.loss for _, turn in some])),
            "WA": 100 * float(np.mean([corpus.emotions[turn.probabilities.argmax()] == u.emotion for u, turn in some
                                       if u.emotion is not None]))})
    name = f"stream-{hours:g}h" + (f"-decay{settings.memory.decay:g}" if settings.memory.decay else "")
    print(tables.bench({"rows": rows}).to_string(index=False))
    return records.save_bench(settings, name, {"rows": rows, "lr": settings.memory.lr},
                              time.perf_counter() - started)


def context(settings: Settings) -> Path:
    """Seconds and peak bytes until a recording's last sentence has its label, after 1k to 128k codes, by every path
    of `cost.label_after`: real validation codes end to end, one measurement each."""
    started = time.perf_counter()
    _, spoken, tuned, conversations = _prepared(settings)
    sentences = [spoken.codes[u.id] for c in conversations for u in c.utterances]
    joined, sentence, rows = np.concatenate(sentences), round(np.mean([len(s) for s in sentences])), []
    for path in cost.PATHS:
        cost.label_after(tuned.sllm, joined[:4 * sentence], sentence, settings.memory, path)  # warms up
    for length, path in tqdm(list(itertools.product(settings.context.codes, cost.PATHS)), desc="bench: context"):
        spent = cost.label_after(tuned.sllm, np.resize(joined, length), sentence, settings.memory, path)
        rows.append({"codes": length, "path": path, **spent})
    print(tables.bench({"rows": rows}).to_string(index=False))
    return records.save_bench(settings, "context", {"rows": rows, "sentence": sentence},
                              time.perf_counter() - started)


def threads(settings: Settings, repeats: int = 3) -> Path:
    """Sentences per second of the memory and steps per second of training, at the size of the profile, on a quiet
    machine and beside a busy process: OpenMP's default, each choice of `machine.choose` alone, and its own. In
    fresh processes, in turn."""
    arms = {"default": {}, "quiet's choice": QUIET, "busy's choice": BUSY, "chosen": {}}
    rows: dict[tuple[str, str], list[dict]] = {}
    started = time.perf_counter()
    for load in ("quiet", "beside a busy process") * repeats:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load != "quiet" else None
        try:
            for arm, given in arms.items():
                plain = {k: v for k, v in os.environ.items() if k not in (*NAMES, MARK, "OMP_NUM_THREADS")}
                first = "import torch; " if arm == "default" else ""  # then nothing is chosen any more
                code = f"{first}from dpmkit.bench import print_rates; print_rates({settings.profile!r})"
                done = subprocess.run([sys.executable, "-c", code], env={**plain, **given}, capture_output=True,
                                      text=True, check=True)
                rows.setdefault((load, arm), []).append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            if busy:
                busy.kill()
                busy.wait()
    results = [{"machine": load, "waiting": arm, "n": repeats, "chose": sorted({r["chose"] for r in made}),
                **{rate: sorted(r[rate] for r in made) for rate in ("sentences_per_second", "steps_per_second")}}
               for (load, arm), made in rows.items()]
    return records.save_bench(settings, "threads", {"rows": results}, time.perf_counter() - started)


def print_rates(profile: str, seconds: float = 4.0) -> None:
    """Print this process' rates as JSON, on random weights and codes of the profile's shape."""
    settings, rng = Settings.of(profile), np.random.default_rng(0)
    size = settings.codes.codebook_size or 256
    sllm = EmotionSLLM.create(settings.backbone, settings.finetune, size, EMOTIONS)
    ids = torch.from_numpy(rng.integers(0, size, (8, settings.backbone.window)))
    weight, emotion = torch.full(ids.shape, 1 / ids.shape[1]), torch.full(ids.shape, -100)
    emotion[:, ::30] = 1
    optimizer = torch.optim.AdamW(sllm.parameters(), lr=1e-4)

    def train() -> None:
        optimizer.zero_grad()
        sllm(ids, weight, emotion)["loss"].backward()
        optimizer.step()

    def rate(work: Callable[[], Any]) -> float:
        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        return 1 / timer.blocked_autorange(min_run_time=seconds).median

    steps = rate(train)
    talks = [[rng.integers(0, size, int(rng.integers(15, 40))) for _ in range(6)] for _ in range(16)]
    memory = cheaper.memory(sllm, settings.memory, len(talks))
    sentences = sum(map(len, talks)) * rate(lambda: list(memory.batch(talks)))
    chose = " ".join(f"{n}={os.environ[n]}" for n in NAMES if os.environ.get(n)) or "OpenMP's default"
    print(json.dumps({"sentences_per_second": sentences, "steps_per_second": steps, "chose": chose}))
