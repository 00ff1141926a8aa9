"""Dynamic Parameter Memory: a temporary LoRA that hears a conversation by gradient steps (Algorithm 1).

`TemporaryLoRA` holds the low-rank factors of B conversations side by side and adds them to the frozen backbone
while a `with` block lasts. `DynamicParameterMemory` writes sentences into it, reads emotions with it, and resets
it. A stream's numbers do not depend on which other streams share the batch: gradients, moments, clipping and
step counts are kept a stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .settings import MemorySettings, UserError
from .sllm import EmotionSLLM

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # AdamW's usual ones, as in torch


class TemporaryLoRA:
    """Low-rank factors of `streams` conversations for some linear layers of an SLLM.

    `flat`, shape (streams, parameters), float32, holds every layer's A, shape (rank, inputs), and B, shape
    (outputs, rank), one after the other. A starts as PEFT starts it (Kaiming uniform, one draw for all streams)
    and B at zero, so that a fresh memory answers exactly as the backbone.
    """

    def __init__(self, sllm: EmotionSLLM, streams: int, rank: int, alpha: float, layers: str = "all",
                 seed: int = 0):
        modules = _chosen(sllm, layers)
        self.modules, self.rank, self.scaling = modules, rank, alpha / rank
        self.shapes = [shape for m in modules.values()
                       for shape in ((rank, m.in_features), (m.out_features, rank))]
        generator = torch.Generator().manual_seed(seed)
        fresh = []
        for module in modules.values():
            bound = 1 / math.sqrt(module.in_features)  # kaiming_uniform_(a=sqrt(5))
            fresh.append((torch.rand(rank * module.in_features, generator=generator) * 2 - 1) * bound)
            fresh.append(torch.zeros(module.out_features * rank))
        self.fresh = torch.cat(fresh).to(sllm.device)
        self.flat = self.fresh.repeat(streams, 1)

    @property
    def parameters(self) -> int:
        """Numbers in one stream's memory."""
        return len(self.fresh)

    def norm(self) -> Tensor:
        """Frobenius norm of the change to the weights, (alpha / rank) B A over all layers; shape (streams,)."""
        squares = [((b.transpose(1, 2) @ b) * (a @ a.transpose(1, 2))).sum((1, 2))  # trace of (BA)'(BA)
                   for a, b in self.factors(self.flat)]
        return self.scaling * torch.stack(squares).sum(0).clamp_min(0).sqrt()

    def factors(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`flat`, shape (n, parameters), as (A, B) a layer: shapes (n, rank, inputs) and (n, outputs, rank)."""
        parts = flat.split([r * c for r, c in self.shapes], dim=1)
        shaped = [p.view(len(flat), *shape) for p, shape in zip(parts, self.shapes, strict=True)]
        return list(zip(shaped[::2], shaped[1::2], strict=True))

    @contextmanager
    def active(self, flat: Tensor) -> Iterator[None]:
        """Row i of a batch hears through row i of `flat`, shape (batch, parameters), while the block lasts.

        Forward hooks leave the backbone's modules and weights as they are.
        """
        handles = []
        try:
            for module, (a, b) in zip(self.modules.values(), self.factors(flat), strict=True):
                handles.append(module.register_forward_hook(self._hook(a, b)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, a: Tensor, b: Tensor):
        def add(_module, inputs, output):
            x = inputs[0].to(a.dtype)
            return output + (self.scaling * (x @ a.transpose(1, 2)) @ b.transpose(1, 2)).to(output.dtype)
        return add


class DynamicParameterMemory:
    """B conversations, each with its own temporary LoRA, optimiser moments and step count.

    write(prefixes, sentences, streams): `settings.steps` optimiser steps on L_t for these streams.
    read(prefixes, streams): emotion probabilities with the memory active.
    reset(streams): forget. The backbone's weights are the same bits before and after.
    """

    def __init__(self, sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0):
        if settings.prefix >= sllm.window:
            raise UserError(f"n_limit = {sllm.window} tokens must hold n_max + n_r, but memory.prefix alone is "
                            f"n_r = {settings.prefix} and leaves no room for a sentence (n_max >= 1): lower "
                            "memory.prefix or raise backbone.window")
        sllm.requires_grad_(False).eval()
        self.sllm, self.settings, self.streams = sllm, settings, streams
        self.lora = TemporaryLoRA(sllm, streams, settings.rank, settings.alpha, settings.layers, seed)
        self.reset()

    def reset(self, streams: Sequence[int] | None = None) -> None:
        """A fresh memory, moments and counts for these streams (default: all), in place."""
        if streams is None:
            size = self.lora.flat.shape
            self.moment1 = torch.zeros(size, device=self.lora.flat.device)
            self.moment2 = torch.zeros(size, device=self.lora.flat.device)
            self.updates = torch.zeros(self.streams, dtype=torch.long, device=self.lora.flat.device)
            self.skipped = torch.zeros_like(self.updates)  # updates left out: loss or gradient was not finite
            streams = range(self.streams)
        index = list(streams)
        self.lora.flat[index] = self.lora.fresh
        self.moment1[index] = self.moment2[index] = 0.0
        self.updates[index] = self.skipped[index] = 0

    def write(self, prefixes: Sequence[Tensor], sentences: Sequence[Tensor],
              streams: Sequence[int] | None = None) -> Tensor:
        """One sentence into each stream; returns L_t before the first of its steps, shape (len(streams),).

        `prefixes`: the n_r tokens before each sentence; both are tokens of `EmotionSLLM.sentence`. A stream
        whose loss or gradient is not finite keeps its last memory and counts in `skipped`.
        Raises UserError where n_limit < n_max + n_r.
        """
        index = self._index(streams)
        first = None
        for _ in range(max(1, self.settings.steps)):
            with torch.enable_grad():
                leaf = self.lora.flat[index].requires_grad_()
                with self.lora.active(leaf):
                    losses = self.sllm.next_code_loss(prefixes, sentences)
                # Each stream's loss depends on its own row alone, so the sum's gradient is each one's own.
                gradient, = torch.autograd.grad(losses.sum(), leaf)
            first = losses.detach() if first is None else first
            if self.settings.steps:
                self._step(index, leaf.detach(), gradient, torch.isfinite(losses.detach()))
        return first

    @torch.no_grad()
    def read(self, prefixes: Sequence[Tensor], streams: Sequence[int] | None = None) -> Tensor:
        """Emotion probabilities, shape (len(streams), emotions), after each prefix (ends in `<audio_end>`)."""
        with self.lora.active(self.lora.flat[self._index(streams)]):
            return self.sllm.emotion_logits(prefixes).softmax(-1)

    def _index(self, streams: Sequence[int] | None) -> Tensor:
        chosen = range(self.streams) if streams is None else streams
        return torch.tensor(list(chosen), device=self.lora.flat.device)

    def _step(self, index: Tensor, old: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """One AdamW or SGD step (torch's equations) of the streams in `index` that are finite."""
        finite = finite & torch.isfinite(gradient).all(1)
        self.skipped[index[~finite]] += 1
        index, old, gradient = index[finite], old[finite], gradient[finite]
        if self.settings.clip:
            gradient = gradient * (self.settings.clip / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        self.updates[index] += 1
        new = old * (1 - self.settings.lr * self.settings.weight_decay)
        if self.settings.optimizer == "sgd":
            new = new - self.settings.lr * gradient
        else:
            count = self.updates[index].unsqueeze(1)
            self.moment1[index] = BETA1 * self.moment1[index] + (1 - BETA1) * gradient
            self.moment2[index] = BETA2 * self.moment2[index] + (1 - BETA2) * gradient.square()
            denominator = (self.moment2[index] / (1 - BETA2 ** count)).sqrt() + EPSILON
            new = new - self.settings.lr * (self.moment1[index] / (1 - BETA1 ** count)) / denominator
        self.lora.flat[index] = new


def _chosen(sllm: EmotionSLLM, layers: str) -> dict:
    """The linear layers that carry a memory: `all`, or those of the `top-k` blocks."""
    modules = sllm.linear_layers()
    if layers == "all":
        return modules
    blocks = sorted({int(name.split(".")[0]) for name in modules})
    kind, _, count = layers.partition("-")
    if kind != "top" or not count.isdigit() or not 1 <= int(count) <= len(blocks):
        raise UserError(f"setting memory.layers must be 'all' or 'top-k' with k from 1 to {len(blocks)}, "
                        f"not {layers!r}")
    return {name: m for name, m in modules.items() if int(name.split(".")[0]) in blocks[-int(count):]}
