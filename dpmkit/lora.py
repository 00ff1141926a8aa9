"""The temporary LoRA: low-rank factors of many conversations side by side, added to a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn


class TemporaryLoRA:
    """Low-rank factors of B conversations for some linear layers of a frozen SLLM.

    `memories`: a parameter per stream, shape (parameters,), float32: every layer's A, shape (rank, inputs), and B,
    shape (outputs, rank), one after the other. `fresh`: where all start, as PEFT does (A Kaiming uniform, B zero).
    """

    def __init__(self, modules: Mapping[str, nn.Module], streams: int, rank: int, alpha: float, seed: int):
        self.modules, self.scaling = modules, alpha / rank
        self.shapes = [shape for m in modules.values() for shape in ((rank, m.in_features), (m.out_features, rank))]
        generator, start = torch.Generator().manual_seed(seed), []
        for module in modules.values():
            bound = 1 / math.sqrt(module.in_features)  # kaiming_uniform_(a=sqrt(5))
            start += [(torch.rand(rank * module.in_features, generator=generator) * 2 - 1) * bound,
                      torch.zeros(module.out_features * rank)]
        self.fresh = torch.cat(start).to(next(iter(modules.values())).weight.device)
        self.memories = [nn.Parameter(self.fresh.clone()) for _ in range(streams)]

    def factors(self, streams: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """(A, B) of each layer: shapes (streams, rank, inputs) and (streams, outputs, rank)."""
        flat = torch.stack([self.memories[i] for i in streams])  # (streams, parameters)
        parts = flat.split([rows * columns for rows, columns in self.shapes], dim=1)
        shaped = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return list(zip(shaped[::2], shaped[1::2], strict=True))

    @torch.no_grad()
    def norm(self, streams: Sequence[int]) -> Tensor:
        """Frobenius norm of the change to the weights, (alpha / rank) B A over all layers; shape (streams,)."""
        squares = [((b.transpose(1, 2) @ b) * (a @ a.transpose(1, 2))).sum((1, 2))  # trace of (BA)'(BA)
                   for a, b in self.factors(streams)]
        return self.scaling * torch.stack(squares).sum(0).clamp_min(0).sqrt()

    @contextmanager
    def active(self, streams: Sequence[int]) -> Iterator[None]:
        """While the block lasts row i of a batch goes through the memory of streams[i]: W x + (alpha / rank) B A x.
        Forward hooks leave the backbone's modules and weights as they are."""
        with ExitStack() as hooks:
            for module, (a, b) in zip(self.modules.values(), self.factors(streams), strict=True):
                hooks.callback(module.register_forward_hook(partial(self._added, a, b)).remove)
            yield

    def _added(self, a: Tensor, b: Tensor, _module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = inputs[0]  # (rows, tokens, inputs)
        low = x @ a.to(x.dtype).transpose(1, 2)  # (rows, tokens, rank)
        return torch.baddbmm(output, low, b.to(x.dtype).transpose(1, 2), alpha=self.scaling)
