"""AdamW and SGD (torch's equations) for many streams at once, each with moments and a step count of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import MemorySettings

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # AdamW's usual ones, as in torch


class StreamOptimizer:
    """Steps on `flat`, shape (streams, parameters), in place, by `memory.optimizer`, `lr`, `weight_decay`, `clip`
    (a stream) and `decay` (towards `fresh`, shape (parameters,)). `skipped`: steps left out, as loss or gradient
    was not finite, shape (streams,)."""

    STATE = ("moment1", "moment2", "updates", "skipped")

    def __init__(self, settings: MemorySettings, flat: Tensor, fresh: Tensor):
        self.settings, self.flat, self.fresh = settings, flat, fresh
        self.moment1, self.moment2 = torch.zeros_like(flat), torch.zeros_like(flat)
        self.updates = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        self.skipped = torch.zeros_like(self.updates)

    def forget(self, streams: list[int]) -> None:
        """Fresh parameters, moments and updates of these streams."""
        self.flat[streams] = self.fresh
        self.moment1[streams] = self.moment2[streams] = 0.0
        self.updates[streams] = 0

    def reset(self, streams: list[int]) -> None:
        """`forget`, and nothing skipped so far."""
        self.forget(streams)
        self.skipped[streams] = 0

    @torch.no_grad()
    def step(self, streams: list[int], gradient: Tensor, finite: Tensor) -> None:
        """One step of these streams along their rows of `gradient`, shape (len(streams), parameters); one that is
        not `finite`, in its loss or its gradient, keeps what it has."""
        finite = finite & torch.isfinite(gradient.sum(1))
        if not finite.all():
            fine = finite.tolist()
            self.skipped[[i for i, ok in zip(streams, fine, strict=True) if not ok]] += 1
            streams, gradient = [i for i, ok in zip(streams, fine, strict=True) if ok], gradient[finite]
        if not streams:
            return
        s, whole = self.settings, streams == list(range(len(self.flat)))
        rows = slice(None) if whole else streams  # a view of all, or a copy of some that is put back
        if s.clip:
            gradient = gradient * (s.clip / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        self.updates[rows] += 1
        new = self.flat[rows].mul_(1 - s.lr * s.weight_decay)
        if s.optimizer == "sgd":
            new.add_(gradient, alpha=-s.lr)
        else:
            count = self.updates[rows].unsqueeze(1)
            moment1 = self.moment1[rows].lerp_(gradient, 1 - BETA1)
            moment2 = self.moment2[rows].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            if not whole:
                self.moment1[rows], self.moment2[rows] = moment1, moment2
            denominator = moment2.sqrt().mul_((1 - BETA2 ** count).rsqrt()).add_(EPSILON)
            new.sub_(denominator.reciprocal_().mul_(moment1).mul_(s.lr / (1 - BETA1 ** count)))
        if s.decay:
            new.lerp_(self.fresh.expand_as(new), s.decay)
        if not whole:
            self.flat[rows] = new
