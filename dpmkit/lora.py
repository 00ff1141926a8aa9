"""TemporaryLoRA: the low-rank factors of many conversations side by side, added to a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .settings import UserError
from .sllm import EmotionSLLM


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
        self.lowest = min(int(name.split(".")[0]) for name in modules)  # blocks below it never change
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
            x = inputs[0]
            low = x @ a.to(x.dtype).transpose(1, 2)
            return torch.baddbmm(output, low, b.to(x.dtype).transpose(1, 2), alpha=self.scaling)
        return add


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
