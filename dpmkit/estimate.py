"""What fine-tuning a pretrained backbone will take, told before it starts: memory and time, from shapes alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import PartialState

from . import backbones
from .codes import CorpusCodes
from .corpora import Corpus
from .dialogues import Dialogues, collate_sequences
from .machine import device
from .settings import FinetuneSettings, Settings, UserError
from .sllm import EmotionSLLM, Vocabulary

SPARE = 0.95  # of the memory at hand may be asked for
UTILISATION = 0.4  # of the rate of a large product, which training reaches


@dataclass(frozen=True)
class Estimate:
    """Counts of an epoch and of its largest forward; bytes; seconds of all epochs on `device`."""

    parameters: int
    trained: int
    tokens: int  # an epoch, padding included
    largest: int  # tokens of the largest forward
    memory: dict[str, int]  # weights, optimiser, activations, logits; bytes
    flops: float  # of all epochs
    rate: float  # FLOP/s of a large product here
    available: int  # bytes
    device: str

    @property
    def seconds(self) -> float:
        return self.flops / (UTILISATION * self.rate)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.memory.items())
        return (f"fine-tuning {self.parameters / 1e6:.0f} M parameters ({self.trained / 1e6:.1f} M trained) on "
                f"{self.tokens / 1e6:.2f} M tokens an epoch: about {sum(self.memory.values()) / 1e9:.1f} GB "
                f"({parts}) of {self.available / 1e9:.1f} GB, and {self.seconds / 3600:.1f} h at "
                f"{UTILISATION:.0%} of the measured {self.rate / 1e12:.2f} TFLOP/s ({self.device})")

    def checked(self) -> Estimate:
        """Itself; UserError with the numbers where the memory cannot hold it."""
        if sum(self.memory.values()) > SPARE * self.available:
            raise UserError(f"it does not fit: {self}. Lower finetune.forward_tokens (its largest forward has "
                            f"{self.largest} tokens), set finetune.checkpointing=true, keep fewer layers "
                            "(backbone.keep_layers), or take a larger device")
        return self


def training(settings: Settings, corpus: Corpus, codes: CorpusCodes, model: EmotionSLLM | None = None) -> Estimate:
    """For `settings`, whose backbone is pretrained, on the training conversations of its fold; loads no weights."""
    tune, model = settings.finetune, model or shell(settings, corpus, codes)
    data = Dialogues(model, corpus.select(corpus.folds[settings.fold - 1].train), codes.codes, corpus.emotions,
                     settings, True)
    collate, forwards = collate_sequences(model.vocabulary.end), []
    for i in range(0, len(data), tune.batch):
        batch = collate([data[j] for j in range(i, min(i + tune.batch, len(data)))])
        rows, longest = batch["input_ids"].shape
        at_once = max(1, tune.forward_tokens // longest) if tune.forward_tokens else rows
        forwards += [(len(part), longest, int((part > 0).sum())) for part in batch["code_weight"].split(at_once)]
    return _of(settings, model, forwards)


def shell(settings: Settings, corpus: Corpus, codes: CorpusCodes) -> EmotionSLLM:
    """The SLLM of a pretrained backbone without weights, on torch's meta device."""
    model = backbones.shape(backbones.fetched(settings), settings.backbone.keep_layers)
    vocabulary = Vocabulary(codes.facts["codebook_size"], corpus.emotions,
                            base=model.get_input_embeddings().num_embeddings)
    return EmotionSLLM(model, vocabulary, settings.backbone.window)


def _of(settings: Settings, shell: EmotionSLLM, forwards: Sequence[tuple[int, int, int]]) -> Estimate:
    """`forwards`: rows, tokens a row and predicted tokens of each forward of an epoch."""
    tune, config, where = settings.finetune, shell.causal_lm.config, device(settings)
    dtype = getattr(torch, settings.backbone.dtype)
    linear = list(shell.linear_layers().values())
    inside = sum(m.weight.numel() for m in linear)
    new = 2 * (shell.vocabulary.size - shell.vocabulary.base) * config.hidden_size  # of the embedding and the head
    own_head = shell.vocabulary.base * config.hidden_size if config.tie_word_embeddings else 0
    parameters = sum(p.numel() for p in shell.causal_lm.parameters()) + own_head + new
    lora = tune.lora_rank * sum(m.in_features + m.out_features for m in linear)
    trained = lora + new if tune.lora_rank else parameters
    largest = max(rows * tokens for rows, tokens, _ in forwards)
    predicted = max(asked for *_, asked in forwards)
    sounds = shell.vocabulary.codebook_size + 1
    classes = sounds if tune.loss_vocabulary == "codes" else shell.vocabulary.size
    own = 4 if tune.lora_rank else 0  # PEFT keeps what it trains in float32, beside the backbone's rows
    memory = {"weights": parameters * dtype.itemsize + own * trained,
              "optimiser": trained * (8 + 4),  # AdamW's moments and the gradient
              "activations": largest * _activations(config, dtype.itemsize, tune),
              "logits": predicted * classes * (dtype.itemsize + 3 * 4)}
    tokens = sum(rows * longest for rows, longest, _ in forwards)
    passes = (4 if tune.checkpointing else 3) - (1 if tune.lora_rank else 0)  # frozen weights get no gradient
    attention = sum(rows * longest ** 2 for rows, longest, _ in forwards) * 4 * config.hidden_size
    flops = passes * 2 * inside * tokens + (passes + 1) * attention * config.num_hidden_layers
    flops += 3 * 2 * sum(asked for *_, asked in forwards) * classes * config.hidden_size
    available = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _free_memory()
    return Estimate(parameters, trained, tokens, largest, memory, flops * tune.epochs, matmul_rate(where, dtype),
                    available, torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU")


def _free_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may still take: of the machine, or of the container or job (control group) that it
    runs in, whichever is less."""
    free = [psutil.virtual_memory().available]
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):  # version 1
                place, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            elif not controllers:  # version 2
                place, limit, used = root, "memory.max", "memory.current"
            else:
                continue
            within = place / path.lstrip("/")
            for group in (within, *within.parents):  # a container may see its own group as the root
                with suppress(OSError, ValueError):  # no such file; no limit ("max")
                    cached = 0  # given back when it is needed
                    if (group / "memory.stat").is_file():
                        lines = (group / "memory.stat").read_text().splitlines()
                        cached = next((int(n.split()[1]) for n in lines if n.startswith("inactive_file ")), 0)
                    free.append(int((group / limit).read_text()) - int((group / used).read_text()) + cached)
                if group == place:
                    break
    return max(0, min(free))


def _activations(config, size: int, tune: FinetuneSettings) -> int:
    """Bytes a token that the blocks keep for the way back: their inputs and those of every product; norms count in
    float32, and a LoRA keeps its inputs in it, after their dropout. With checkpointing, each block's input, and one
    block's at a time."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_key_value_heads / config.num_attention_heads
    block = size * (hidden * (7 + 2 * heads) + 4 * inner) + 4 * 4 * hidden + 7 * 4 * tune.lora_rank
    if tune.lora_rank:
        own = 4 if size < 4 or tune.lora_dropout else 0  # else they are the layers' own inputs
        block += (own + bool(tune.lora_dropout)) * (6 * hidden + inner)
    if tune.checkpointing:
        return int(config.num_hidden_layers * size * hidden + block)
    return int(config.num_hidden_layers * block)


def matmul_rate(where: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of a product of two `size` x `size` matrices."""
    a = torch.randn(size, size, device=where).to(dtype)
    a @ a
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ a
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        done += 1
    return done * 2 * size ** 3 / (time.perf_counter() - start)


def told(settings: Settings, corpus: Corpus, codes: CorpusCodes) -> None:
    """Print the estimate; UserError, with its numbers, where the run cannot fit."""
    made = training(settings, corpus, codes)
    if PartialState().is_main_process:
        print(made, flush=True)

