"""What one stream has heard, as tokens, and from that what is to be written and read of its next sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .corpora.dynamics import forward_step
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
    """`main`, after which the emotion is read, and what is heard apart from it: `reads` before it, `writes` before
    or after it (`memory.read`); `unwritten`: tokens that wait for their stride to be full; `copied`: the writes
    start from the stream's own states, not from another's."""

    main: Part
    writes: tuple[Part, ...] = ()
    reads: tuple[Part, ...] = ()
    unwritten: int = 0
    copied: bool = False


@dataclass(frozen=True)
class Turn:
    """What came of one sentence: `probabilities` of the emotions, shape (emotions,); `loss`: L_t of what was
    written (NaN where nothing was), mean of its `pieces`; `own_loss`: L_t of the sentence itself under the memory
    before that, whatever it was written from (NaN for a conversation's first); `norm` of the memory's change;
    `skipped`: updates left out so far."""

    probabilities: np.ndarray
    loss: float
    own_loss: float
    norm: float
    pieces: int
    skipped: int


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
        writes = () if first else tuple(Part(p, s, True, other is not None) for p, s in pieces)
        if self.settings.prefix_states == "reuse":  # every piece is heard once, so that its states are at hand
            own = self.pieces(sentence)
            if first or other is not None:
                *reads, main = (Part(p, s, False) for p, s in own)
                return Plan(main, writes, tuple(reads))
            if len(own) == 1 or self.settings.read == "after":
                return Plan(writes[-1], writes[:-1])
            *reads, main = (Part(p, s, False) for p, s in own)  # read before any piece is written
            return Plan(main, tuple(replace(part, other=True) for part in writes), tuple(reads), copied=True)
        if self.settings.prefix_states == "recompute" and len(writes) == 1 and other is None and not longer:
            return Plan(writes[0])  # the same tokens are written and read
        context = torch.cat([tail(self.own, n_r), sentence])[-self.window:]
        return Plan(Part(EMPTY, context, False), writes, unwritten=unwritten)

    def pieces(self, sentence: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(prefix, tokens) of an own next sentence, as many as the window asks for."""
        return self._pieces(self.own, sentence)

    def heard(self, sentence: Tensor, other: Tensor | None, unwritten: int, answer: Tensor = EMPTY) -> None:
        """Add a sentence and its emotion token, if that stands in the history; of all that was heard, only what a
        later prefix needs is kept. The token waits with its sentence, where that does."""
        sentence = torch.cat([sentence, answer])
        self.own = tail(torch.cat([self.own, sentence]), self.prefix)
        written = sentence if other is None else other
        if unwritten and other is None:
            unwritten += len(answer)
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


def taught(histories: Sequence[History], speakers: Sequence[str], answers: Tensor, ends: Sequence[bool],
           inertia: tuple[np.ndarray, np.ndarray] | None) -> Tensor:
    """What rule `emotion` teaches, (rows, emotions), from the answers before the step, of the same shape. An own
    answer as it is (`soft`) teaches nothing unless rule `both` has moved the answer away from it in an earlier
    step. A belief (`filtered`) moves on where a sentence `ends`, so once a sentence."""
    target = histories[0].settings.target
    p = answers.square() if target == "sharpened" else answers.clone()
    for row in [row for row, end in enumerate(ends) if end and target == "filtered"]:
        beliefs, who = histories[row].beliefs, speakers[row]
        beliefs[who] = forward_step(beliefs.get(who), p[row].cpu().numpy().astype(float), *inertia)
        p[row] = torch.from_numpy(beliefs[who]).to(p)
    return p / p.sum(-1, keepdim=True)


def tail(tokens: Tensor, count: int) -> Tensor:
    """The last `count` tokens."""
    return tokens[max(0, len(tokens) - count):]
