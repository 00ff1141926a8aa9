"""What training and a whole reproduction will take, before a run starts: memory and hours, from shapes and lengths.

FLOPs are counted; hours follow from a rate that is measured (or given) and from the share of it that training and
writing are taken to reach. Of a pretrained backbone only the shape is loaded, and no audio is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.benchmark import Timer

from . import backbones, records
from .codes import CorpusCodes
from .corpora import Corpus
from .machine import device
from .settings import FinetuneSettings, Settings, UserError
from .sllm import EmotionSLLM, Vocabulary

SPARE = 0.95  # of the memory at hand may be asked for
UTILISATION = 0.4  # of the rate of a large product, which training reaches
PUBLISHED = {"s3-v2-25hz": (6561, 25.0), "mimi": (2048, 12.5)}  # codes and rate where the setting is 0
LARGE = {"gpu": 4096, "cpu": 1024}  # a processor without bfloat16 takes minutes for more of it
PASSES = 2  # of a frozen backbone per step: forward, and the gradient of its activations


@dataclass(frozen=True)
class Estimate:
    """What training takes on `device`: counts, FLOPs of all epochs, and bytes at its largest moment."""

    parameters: int
    trained: int
    tokens: int  # per epoch, padding included
    largest: int  # tokens of the largest forward
    memory: dict[str, int]  # weights, optimiser, activations, logits
    flops: float
    rate: float  # FLOP/s of a large product here
    available: int  # bytes
    device: str

    @property
    def bytes(self) -> int:
        """Of all kinds."""
        return sum(self.memory.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.memory.items())
        return (f"fine-tuning {self.parameters / 1e6:.0f} M parameters ({self.trained / 1e6:.1f} M trained) on "
                f"{self.tokens / 1e6:.2f} M tokens per epoch: about {self.bytes / 1e9:.1f} GB ({parts}) of "
                f"{self.available / 1e9:.1f} GB, and {self.flops / (UTILISATION * self.rate) / 3600:.1f} h at "
                f"{UTILISATION:.0%} of the measured {self.rate / 1e12:.2f} TFLOP/s ({self.device})")

    def checked(self) -> Estimate:
        """Itself; UserError with the numbers where the memory cannot hold it."""
        if self.bytes > SPARE * self.available:
            raise UserError(f"it does not fit: {self}. Lower finetune.forward_tokens (its largest forward has "
                            f"{self.largest} tokens), or set finetune.checkpointing=true, or backbone.keep_layers")
        return self


def shell(settings: Settings, codebook_size: int, emotions: tuple[str, ...]) -> EmotionSLLM:
    """The SLLM of a pretrained backbone without weights, on torch's meta device."""
    source = backbones.again(backbones.origin(settings.backbone.source), settings.home_path)
    model = backbones.load(source, settings.backbone.dtype, settings.backbone.keep_layers, weights=False)
    vocabulary = Vocabulary(codebook_size, emotions, base=model.get_input_embeddings().num_embeddings)
    return EmotionSLLM(model, vocabulary, settings.backbone.window)


def training(settings: Settings, sllm: EmotionSLLM, sizes: Sequence[tuple[int, int, int]]) -> Estimate:
    """What an epoch of forwards of these sizes (rows, tokens per row, predicted tokens) takes of memory, and all
    epochs of time; `sllm` may be a `shell`."""
    tune, config, words, where = settings.finetune, sllm.causal_lm.config, sllm.vocabulary, device(settings)
    linear = list(sllm.linear_layers().values())
    inside = sum(m.weight.numel() for m in linear)
    new = 2 * (words.size - words.base) * config.hidden_size  # of the embedding and the head
    untied = words.base * config.hidden_size if config.tie_word_embeddings else 0
    parameters = sum(p.numel() for p in sllm.causal_lm.parameters()) + untied + new
    lora = tune.lora_rank * sum(m.in_features + m.out_features for m in linear)
    trained = lora + new if tune.lora_rank else parameters
    rows, longest, predicted = np.array(sizes).T
    tokens, largest = int((rows * longest).sum()), int((rows * longest).max())
    classes = words.codebook_size + 1 if tune.loss_vocabulary == "codes" else words.size
    dtype = getattr(torch, settings.backbone.dtype)
    adapter = 4 * trained if tune.lora_rank else 0  # PEFT keeps it in float32, beside the backbone's rows
    memory = {"weights": parameters * dtype.itemsize + adapter,
              "optimiser": trained * (8 + 4),  # AdamW's moments and the gradient
              "activations": largest * _activations(config, dtype.itemsize, tune),
              "logits": int(predicted.max()) * classes * (dtype.itemsize + 3 * 4)}
    passes = (4 if tune.checkpointing else 3) - (1 if tune.lora_rank else 0)  # frozen weights get no gradient
    attention = int((rows * longest ** 2).sum()) * 4 * config.hidden_size * config.num_hidden_layers
    flops = (passes * 2 * inside * tokens + (passes + 1) * attention
             + 3 * 2 * int(predicted.sum()) * classes * config.hidden_size)
    available = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _free_memory()
    return Estimate(parameters, trained, tokens, largest, memory, flops * tune.epochs, matmul_rate(where, dtype),
                    available, str(where))


def _activations(config, size: int, tune: FinetuneSettings) -> int:
    """Bytes per token that the blocks keep for the way back: their inputs and those of every product; norms count
    in float32, and a LoRA keeps its inputs in it, after their dropout. With checkpointing, each block's input, and
    one block's at a time."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_key_value_heads / config.num_attention_heads
    block = size * (hidden * (7 + 2 * heads) + 4 * inner) + 4 * 4 * hidden + 7 * 4 * tune.lora_rank
    if tune.lora_rank:
        own = 4 if size < 4 or tune.lora_dropout else 0  # else they are the layers' own inputs
        block += (own + bool(tune.lora_dropout)) * (6 * hidden + inner)
    kept = size * hidden if tune.checkpointing else block
    return int(config.num_hidden_layers * kept + tune.checkpointing * block)


def _free_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may still take: of the machine, or of the control groups that it runs in (a container
    or job), whichever is less."""
    free = [psutil.virtual_memory().available]
    lines = own.read_text().splitlines() if own.is_file() else []
    within = root.joinpath(*(line.removeprefix("0::/") for line in lines if line.startswith("0::/")))
    for group in (within, *within.parents):
        with suppress(OSError, ValueError, KeyError):  # no such file; no limit ("max")
            free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free[-1] += int(stat["inactive_file"])  # cached: given back when it is needed
    return max(0, min(free))


def matmul_rate(where: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices, of LARGE rows."""
    size = LARGE["cpu" if where.type == "cpu" else "gpu"]
    a = torch.randn(size, size, device=where).to(dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * size ** 3 / timer.blocked_autorange(min_run_time=0.3).median


def plan(settings: Settings, corpus: Corpus, folds: Sequence[int], seeds: int, sizes: Callable, writers: int,
         teraflops: float = 0.0) -> Path:
    """GPU hours of all folds and seeds: the row of this corpus in bench/plan-<profile>.json, whose path is given.
    `teraflops`: rate of a large product on the device planned for, if another; the rest: see `cell`."""
    started = time.perf_counter()
    if not settings.backbone.source:
        raise UserError("a plan is for a pretrained backbone: name a profile that has one (smollm2, paper), or set "
                        "backbone.source")
    rate = teraflops * 1e12 or matmul_rate(device(settings), getattr(torch, settings.backbone.dtype))
    cells = [cell(settings.replace("fold", fold), corpus, sizes, writers) for fold in folds]
    hours = [(c["training"] + c["writing"] + c["reading"]) / (UTILISATION * rate) / 3600 for c in cells] * seeds
    known = next(records.of_bench(settings, "plan"), {"results": {"rows": []}})["results"]["rows"]
    rows = [row for row in known if row["corpus"] != settings.corpus]
    rows.append({"profile": settings.profile, "corpus": settings.corpus, "seeds": seeds, "teraflops": rate / 1e12,
                 "utilisation": UTILISATION, "cells": cells, "gpu_hours": sum(hours), "longest_hours": max(hours)})
    return records.save_bench(settings, "plan", {"rows": rows}, time.perf_counter() - started)


def cell(settings: Settings, corpus: Corpus, sizes: Callable, writers: int) -> dict[str, float]:
    """One fold and one seed: FLOPs of all epochs of training, of all that writes a memory (the grid of rates, every
    row, the bound), and of all that only reads (the other methods, the states that the speakers' memory is fitted
    on); gigabytes in training. `sizes`: `finetune.sizes`; `writers`: methods that write, less the bound."""
    size, rate = PUBLISHED.get(settings.codes.tokenizer, (256, 25.0))
    size, rate = settings.codes.codebook_size or size, settings.codes.frame_rate or rate
    silent = {u.id: np.zeros(max(1, round(u.seconds * rate)), np.int64)  # of the right number
              for c in corpus.conversations for u in c.utterances}
    sllm = shell(settings, size, corpus.emotions)
    config, inside = sllm.causal_lm.config, sum(m.weight.numel() for m in sllm.linear_layers().values())
    trained = training(settings, sllm, sizes(settings, corpus, CorpusCodes("silent", silent, {}, {}), sllm))

    def once(split: str, prefix: int = settings.memory.prefix, most: int | None = None) -> float:
        """FLOPs of one forward for every sentence of a split (its first `most` conversations) behind a prefix."""
        lengths = [[len(silent[u.id]) + 1 for u in c.utterances]
                   for c in corpus.select(getattr(corpus.folds[settings.fold - 1], split)[:most])]
        rows = np.concatenate([np.minimum(np.cumsum([0, *c[:-1]]), prefix) + c for c in lengths])
        rows = np.minimum(rows, sllm.window).astype(float)
        attention = 4.0 * config.hidden_size * config.num_hidden_layers * rows ** 2
        return float((2.0 * inside * rows + attention).sum())

    rates = sum(rate > 0 for rate in settings.ablation.lr)
    tried, test = rates * once("validation", most=settings.ablation.conversations), once("test")
    step, written = PASSES * max(1, settings.memory.steps) + 1, tried + test  # the steps, then the read
    return {"fold": settings.fold, "training": trained.flops,
            # dpm-told, the bound, makes one more step per sentence
            "writing": (PASSES + step) * written + step * (tried + writers * test + once("validation")),
            "reading": once("train") + sum(3 * once(split) + once(split, 0) + once(split, sllm.window)
                                           for split in ("validation", "test")),
            "gigabytes": trained.bytes / 1e9}
