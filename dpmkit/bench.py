"""`python -m dpmkit bench memory`: sentences a second of every rung, beside the plain PEFT loop in the same run.

Also what each rung changes in the answers of a trained SLLM on validation conversations, and how time, memory and
accuracy behave over a stream of hours. Arms take turns; figures are medians with the lowest and highest.

cost: Seconds and bytes that a label costs after so much audio: DPM's steps, or all of the history in one forward.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from . import cheaper, codes, corpora, finetune, machine, metrics, protocols, records, speakers, tables
from .algorithm1 import algorithm1
from .codes import CorpusCodes
from .corpora import Conversation
from .corpora.dynamics import EMOTIONS
from .finetune import Finetuned
from .machine import BUSY, MARK, NAMES, QUIET
from .memory import EMPTY, Part, tail
from .settings import MemorySettings, Settings
from .sllm import EmotionSLLM, Vocabulary
from .speakers import OffsetModel

# -- cost ----------------------------------------------------------------------

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
        exact, before = cheaper.memory(model, replace(settings, prefix_states="recompute")), EMPTY
        for turn, now in enumerate(tokens):
            if turn:
                exact.write([Part(before, now)], [0])
            context = torch.cat([before, now])
            before = tail(context, settings.prefix)
        exact.read([Part(EMPTY, context)], [0])

    def reuse() -> None:
        kept = cheaper.memory(model, replace(settings, prefix_states="reuse"))
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
    """What `method` of `protocols.METHODS` costs over these conversations, read as they come:
    `seconds_per_sentence`, `seconds_per_hour` (of audio), `flops_per_sentence`, `peak_bytes`, and `parameters` that
    a conversation changes."""
    model, spoken = tuned.sllm.in_precision(settings.memory.precision), protocols.grouped(
        conversations, settings.memory, method)

    def hear() -> None:
        for _ in protocols.listen(model, spoken, codes.codes, emotions, settings.memory, method,
                                  streams=settings.evaluation.streams):
            pass

    how = protocols.METHODS[method].settings(settings.memory, tuned.sllm.window)
    learns = protocols.METHODS[method].writes and how.steps
    changed = len(cheaper.memory(tuned.sllm, replace(how, scope="conversation")).lora.fresh) if learns else 0
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
    return {"seconds_per_sentence": spent["seconds"] / len(sentences), "seconds_per_hour": spent["seconds"] / hours,
            "flops_per_sentence": flops(hear) / len(sentences), "peak_bytes": spent["peak_bytes"]}


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
            below = table[measure][memory] < table[measure][other]
            lasting = below[::-1].cummin()[::-1]  # from here on at every longer one
            line[measure] = int(lasting.idxmax()) if lasting.any() else None
        out.append(line)
    return pd.DataFrame(out)


# -- bench ---------------------------------------------------------------------

RUNGS: dict[str, dict] = {
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
LOOP = "PEFT loop"
SENTENCES = 20  # of a conversation that is timed, at least: the loop's set-up is in its time
LARGE = 2048  # a side of the matrices whose product measures the peak
STREAM_ROWS = 10  # parts of a long stream, each with a row of its own
# Llamas of random weights, which time cannot tell: hidden, layers, heads, heads of keys and values, intermediate,
# precision; then n_r and streams.
SHAPES = {"8 layers of a 135 M Llama": (576, 8, 9, 3, 1536, torch.float32, 64, 8)}
GPU_SHAPES = {"135 M Llama": (576, 30, 9, 3, 1536, torch.float32, 64, 32),
              "7 B Llama": (4096, 32, 32, 32, 11008, torch.bfloat16, 1024, 1)}


def merged(sllm: EmotionSLLM) -> EmotionSLLM:
    """An SLLM whose adapter is part of its weights: PEFT takes no second adapter that is trained beside a first."""
    if not hasattr(sllm.model, "peft_config"):
        return sllm
    plain = EmotionSLLM(copy.deepcopy(sllm.model).merge_and_unload(), sllm.vocabulary, sllm.window)
    return plain.requires_grad_(False).eval()


def memory(settings: Settings, repeats: int = 3) -> Path:
    """Run the bench on the trained SLLM of these settings and on a larger shape; returns the record's path."""
    started = time.perf_counter()
    corpus, spoken, tuned, heard = _prepared(settings)
    real = [[spoken.codes[u.id] for u in c.utterances] for c in heard]
    device = finetune.device(settings)
    said = _conversations(list(itertools.chain(*real)), settings.memory.prefix, min(16, len(real)))
    shapes = {f"{settings.profile} SLLM": lambda: (tuned.sllm, settings.memory, said, 4)}
    for name, shape in (SHAPES if device.type == "cpu" else GPU_SHAPES).items():
        shapes[name] = functools.partial(_random, settings.memory, device, *shape)
    results = {"rates": [], "peak": _peak(device), "changes": _changes(settings, corpus, spoken, tuned)}
    for name, prepared in shapes.items():
        finished = results["rates"]
        for rates in _rates(name, *prepared(), repeats):  # a kill keeps the rounds before it
            results["rates"] = [*finished, *rates]
            path = records.save_bench(settings, "memory", results, time.perf_counter() - started)
    print(tables.rungs(results).to_string(index=False))
    return path


def _rates(shape: str, sllm: EmotionSLLM, base: MemorySettings, conversations: list, few: int,
           repeats: int) -> Iterator[list[dict]]:
    """Sentences per second of the loop (on the first `few` conversations) and of each rung, in turn: a row each,
    after every round."""
    plain = merged(sllm)

    def loop() -> int:
        with machine.tf32(plain):
            return sum(len(algorithm1(plain, c, base)[1]) for c in conversations[:few])

    engines = {name: cheaper.memory(sllm, dataclasses.replace(base, **rung), len(conversations))
               for name, rung in RUNGS.items()}
    arms = {LOOP: loop} | {name: lambda engine=engine: sum(1 for _ in engine.batch(conversations))
                           for name, engine in engines.items()}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    sentences = {name: sum(map(len, conversations[:few] if name == LOOP else conversations)) for name in arms}
    facts = {"shape": shape, "threads": torch.get_num_threads(), "sentences": len(conversations[0]),
             "codes": round(float(np.mean([len(c) for c in conversations[0]])))}
    counted = {name: flops(work) / sentences[name] for name, work in arms.items()}  # warms up, too
    for number in tqdm(range(1, repeats + 1), desc=f"bench: {shape}", unit="round"):
        for name, work in arms.items():
            rates[name].append(sentences[name] / _timed(work, sllm.device)[1])
        rows = []
        for name, measured in rates.items():
            ratio = [a / b for a, b in zip(measured, rates[LOOP], strict=True)]
            rows.append({**facts, "rung": name, "streams": 1 if name == LOOP else len(conversations), "n": number,
                         "flops_per_sentence": counted[name], "precision": str(next(
                             (engines[name].sllm if name in engines else sllm).parameters()).dtype),
                         "rate": float(np.median(measured)), "rate_range": [min(measured), max(measured)],
                         "ratio": float(np.median(ratio)), "ratio_range": [min(ratio), max(ratio)]})
        yield rows


def _conversations(sentences: Sequence[np.ndarray], prefix: int, streams: int) -> list[list[np.ndarray]]:
    """One for each stream, of these sentences over and over: SENTENCES of them, or as many as make twice n_r
    tokens, so that half of the steps have all of their prefix."""
    tokens = np.mean([len(codes) + 1 for codes in sentences])
    number = max(SENTENCES, math.ceil(2 * prefix / tokens))
    endless = itertools.cycle(sentences)
    return [list(itertools.islice(endless, number)) for _ in range(streams)]


def _changes(settings: Settings, corpus: corpora.Corpus, spoken: codes.CorpusCodes,
             tuned: finetune.Finetuned) -> list[dict]:
    """WA of each rung less that of exact mode, on validation conversations, and the share of other answers."""
    predicted = {name: protocols.predict(_with(settings, rung), corpus, spoken, tuned, "dpm", "validation",
                                         settings.ablation.conversations) for name, rung in RUNGS.items()}
    compared = metrics.compare(predicted, corpus.emotions, "exact", settings.evaluation)
    answers = {n: metrics.answers(t, corpus.emotions) for n, t in predicted.items()}
    columns = [f"p_{e}" for e in corpus.emotions]
    exact = predicted["exact"][columns].to_numpy()
    return [{"rung": row["method"], "WA": row["WA"], "WA_gain": row["WA_gain"],
             "WA_gain_interval": row["WA_gain_interval"], "changed": float((answers[n] != answers["exact"]).mean()),
             "largest_change": float(np.abs(predicted[n][columns].to_numpy() - exact).max())}
            for n, row in zip(predicted, compared, strict=True)]


def stream(settings: Settings, hours: float) -> Path:
    """One stream of so many hours that is never reset: validation conversations one after the other, over and over.
    A row an hour: wall and processor seconds a sentence, resident bytes, the memory's norm, mean L_t and accuracy.
    Returns the record's path."""
    started = time.perf_counter()
    corpus, spoken, tuned, conversations = _prepared(settings)
    said = [u for c in conversations for u in c.utterances]
    rate, names = spoken.facts["frame_rate"], list(corpus.emotions)
    lasting = sum(len(spoken.codes[u.id]) for u in said) / rate
    utterances = list(itertools.islice(itertools.cycle(said), int(hours * 3600 / lasting * len(said)) + 1))
    turns = cheaper.memory(tuned.sllm, settings.memory).listen(spoken.codes[u.id] for u in utterances)
    process, rows, heard, since, hits, losses = psutil.Process(), [], 0.0, _clocks(), [], []
    pairs = zip(utterances, turns, strict=True)
    for number, (u, turn) in enumerate(tqdm(pairs, total=len(utterances), desc="bench: stream", unit="utt"), 1):
        heard += len(spoken.codes[u.id]) / rate
        losses.append(turn.loss)
        if u.emotion is not None:
            hits.append(names[int(turn.probabilities.argmax())] == u.emotion)
        if number >= len(utterances) * (len(rows) + 1) / STREAM_ROWS:
            now = _clocks()
            rows.append({"hours": heard / 3600, "codes": round(heard * rate), "sentences": len(losses),
                         "seconds_per_sentence": (now[0] - since[0]) / len(losses),
                         "processor_seconds_per_sentence": (now[1] - since[1]) / len(losses),
                         "resident_bytes": process.memory_info().rss, "norm": turn.norm,
                         "L_t": float(np.nanmean(losses)), "WA": 100 * float(np.mean(hits))})
            since, hits, losses = now, [], []
    name = f"stream-{hours:g}h" + (f"-decay{settings.memory.decay:g}" if settings.memory.decay else "")
    print(tables.stream({"rows": rows}).to_string(index=False))
    return records.save_bench(settings, name, {"rows": rows, "lr": settings.memory.lr},
                              time.perf_counter() - started)


def context(settings: Settings) -> Path:
    """Seconds and peak bytes until a recording's last sentence has its label, after 1k to 128k codes, by every path
    of `cost`: real validation codes end to end, one measurement each. Returns the record's path."""
    started = time.perf_counter()
    _, spoken, tuned, conversations = _prepared(settings)
    said = [spoken.codes[u.id] for c in conversations for u in c.utterances]
    joined, sentence, rows = np.concatenate(said), round(np.mean([len(c) for c in said])), []
    for path in PATHS:
        label_after(tuned.sllm, joined[:4 * sentence], sentence, settings.memory, path)  # warms up
    for length, path in tqdm(list(itertools.product(settings.context.codes, PATHS)), desc="bench: context"):
        measured = label_after(tuned.sllm, np.resize(joined, length), sentence, settings.memory, path)
        rows.append({"codes": length, "path": path, **measured})
    print(tables.context({"rows": rows}).to_string(index=False))
    return records.save_bench(settings, "context", {"rows": rows, "sentence": sentence},
                              time.perf_counter() - started)


def _prepared(settings: Settings) -> tuple[corpora.Corpus, codes.CorpusCodes, finetune.Finetuned,
                                            tuple[corpora.Conversation, ...]]:
    """The corpus, its codes, the trained SLLM and the validation conversations of these settings."""
    corpus = corpora.load(settings)
    spoken = codes.make(settings, corpus)
    return (corpus, spoken, finetune.train(settings, corpus, spoken),
            corpus.select(corpus.folds[settings.fold - 1].validation))


def _with(settings: Settings, rung: dict) -> Settings:
    return settings.override({f"memory.{name}": value for name, value in rung.items()})


def _random(memory: MemorySettings, device: torch.device, hidden: int, layers: int, heads: int, kv_heads: int,
            intermediate: int, precision: torch.dtype, prefix: int,
            streams: int) -> tuple[EmotionSLLM, MemorySettings, list, int]:
    """A Llama of this shape with a head of 517 rows; for each stream a conversation in sentences of 128 tokens."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(512, EMOTIONS)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocabulary.size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, intermediate_size=intermediate, tie_word_embeddings=True,
            dtype=precision)).to(precision)
    rng = np.random.default_rng(0)
    sentences = _conversations([rng.integers(0, 512, 127) for _ in range(SENTENCES)], prefix, streams)
    return (EmotionSLLM(model, vocabulary, window=2048), dataclasses.replace(memory, prefix=prefix), sentences,
            min(2, streams))


def _peak(device: torch.device) -> dict[str, float]:
    """The most FLOP/s that a product of two large matrices reaches on this machine, by precision: the ceiling."""
    out = {}
    for precision in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, dtype=precision, device=device) for size in ((2 * LARGE, LARGE), (LARGE, LARGE)))
        seconds = [_timed(lambda a=a, b=b: a @ b, device)[1] for _ in range(12)]
        out[str(precision)] = 4 * LARGE ** 3 / min(seconds)
    return out


def _clocks() -> tuple[float, float]:
    """Wall and processor seconds; the second does not count what other processes take."""
    return time.perf_counter(), time.process_time()


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What a call returns, and its wall seconds."""
    start = time.perf_counter()
    made = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return made, time.perf_counter() - start


# -- threads -------------------------------------------------------------------

def threads(settings: Settings, repeats: int = 3) -> Path:
    """Sentences per second of the memory and steps per second of training, at the size of the profile, on a quiet
    machine and beside a busy process: OpenMP's default, each choice of `machine.choose` alone, and its own. In
    fresh processes, in turn; returns the record's path."""
    arms = {"default": {}, "quiet's choice": QUIET, "busy's choice": BUSY, "chosen": {}}
    rows: dict[tuple[str, str], list[dict]] = {}
    started = time.perf_counter()
    for around in ("quiet", "beside a busy process") * repeats:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if around != "quiet" else None
        try:
            for arm, given in arms.items():
                plain = {k: v for k, v in os.environ.items() if k not in (*NAMES, MARK, "OMP_NUM_THREADS")}
                first = "import torch; " if arm == "default" else ""  # then nothing is chosen any more
                code = f"{first}from dpmkit.bench import print_rates; print_rates({settings.profile!r})"
                done = subprocess.run([sys.executable, "-c", code], env={**plain, **given}, capture_output=True,
                                      text=True, check=True)
                rows.setdefault((around, arm), []).append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            if busy:
                busy.kill()
                busy.wait()
    results = [{"machine": around, "waiting": arm, "n": repeats, "chose": sorted({r["chose"] for r in made}),
                **{rate: sorted(r[rate] for r in made) for rate in ("sentences_per_second", "steps_per_second")}}
               for (around, arm), made in rows.items()]
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

    def train() -> int:
        optimizer.zero_grad()
        sllm(ids, weight, emotion)["loss"].backward()
        optimizer.step()
        return 1

    steps = _rate(train, seconds)
    talks = [[rng.integers(0, size, int(rng.integers(15, 40))) for _ in range(6)] for _ in range(16)]
    memory = cheaper.memory(sllm, settings.memory, len(talks))
    sentences = _rate(lambda: sum(1 for _ in memory.batch(talks)), seconds)
    chose = " ".join(f"{n}={os.environ[n]}" for n in NAMES if os.environ.get(n)) or "OpenMP's default"
    print(json.dumps({"sentences_per_second": sentences, "steps_per_second": steps, "chose": chose}))


def _rate(work: Callable[[], int], seconds: float) -> float:
    work()  # warms up
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)
