"""What one stream has heard, as tokens, and from that what is to be written and read of its next sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .settings import MemorySettings, UserError

EMPTY = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Part:
    """Tokens to be heard after a prefix; `writes`: with a step on them; `other`: they are another conversation's,
    written in place of the stream's own (a control)."""

    prefix: Tensor
    piece: Tensor
    writes: bool
    other: bool = False


@dataclass(frozen=True)
class Plan:
    """`extra`: parts heard one after the other; then `main`, after which the emotion is read; `unwritten`: tokens
    that wait for their stride to be full."""

    extra: tuple[Part, ...]
    main: Part
    unwritten: int = 0


class History:
    """Of one stream: the last tokens that it heard (`own`), those that its memory was written from (`told`; the
    same but in the control), how many of these wait for a step, the turns so far, and for each speaker what the
    emotion is believed to be (rule emotion, target filtered)."""

    def __init__(self, settings: MemorySettings, window: int):
        self.settings, self.window, self.prefix = settings, window, settings.prefix + settings.sinks
        kind, _, count = settings.stepping.partition("-")
        self.stride, self.every = (int(count) if kind == name else 0 for name in ("stride", "every"))
        if self.prefix + max(1, self.stride) > window:
            raise UserError(f"n_limit = {window} tokens must hold n_max + n_r, but memory.prefix is n_r = "
                            f"{self.prefix} and leaves {max(0, window - self.prefix)} for a sentence "
                            f"(n_max >= 1) or a stride ({settings.stepping}): lower memory.prefix or raise "
                            "backbone.window")
        self.own = self.told = EMPTY
        self.unwritten = self.turns = 0
        self.beliefs: dict[str, np.ndarray] = {}

    def plan(self, sentence: Tensor, other: Tensor | None = None) -> Plan:
        """For the next sentence; `other`: what is written instead of it. A conversation's first sentence is not
        written (Algorithm 1); one longer than the window less n_r is written in pieces, each after the n_r tokens
        before it."""
        n_r, first, longer = self.prefix, self.turns == 0, self.stride or self.every
        written = sentence if other is None else other
        pieces, unwritten = self._longer(written) if longer else (self._pieces(self.told, written), 0)
        extra = () if first else tuple(Part(p, s, True, other is not None) for p, s in pieces)
        if self.settings.prefix_states == "reuse":  # every piece is heard once, so that its states are at hand
            writes = other is None and not first
            own = [Part(p, s, writes) for p, s in self._pieces(self.own, sentence)]
            return Plan((*(() if other is None else extra), *own[:-1]), own[-1])
        if self.settings.prefix_states == "recompute" and len(extra) == 1 and other is None and not longer:
            return Plan((), extra[0])  # the same tokens are written and read
        context = torch.cat([tail(self.own, n_r), sentence])[-self.window:]
        return Plan(extra, Part(EMPTY, context, False), unwritten)

    def heard(self, sentence: Tensor, other: Tensor | None, unwritten: int) -> None:
        """Add a sentence; of all that was heard, only what a later prefix needs is kept."""
        self.own = tail(torch.cat([self.own, sentence]), self.prefix)
        written = sentence if other is None else other
        self.told = tail(torch.cat([self.told, written]), self.prefix + unwritten)
        self.unwritten, self.turns = unwritten, self.turns + 1

    def _pieces(self, before: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        n_r, start = self.prefix, len(before)
        heard, room = torch.cat([before, tokens]), self.window - n_r
        return [(tail(heard[:i], n_r), heard[i:i + room]) for i in range(start, len(heard), room)]

    def _longer(self, written: Tensor) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Pieces of a stride that are full by now, or all that waits at every so many sentences; and the number of
        tokens left over."""
        if self.turns == 0:
            return [], 0
        heard, left, pieces = torch.cat([self.told, written]), self.unwritten + len(written), []
        due = self.stride or self.turns % self.every == 0
        while due and left >= max(1, self.stride):
            start, size = len(heard) - left, self.stride or min(left, self.window - self.prefix)
            pieces.append((tail(heard[:start], self.prefix), heard[start:start + size]))
            left -= size
        return pieces, left


def tail(tokens: Tensor, count: int) -> Tensor:
    """The last `count` tokens."""
    return tokens[max(0, len(tokens) - count):]
