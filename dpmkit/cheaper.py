"""Where the states of a prefix come from: heard with the tokens after it (exact), or by one of the rungs below."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .history import Part
from .lora import TemporaryLoRA
from .prefix import Batch, Decoder, PrefixStates
from .settings import MemorySettings


class Prefixes:
    """`memory.prefix_states`: `recompute` puts a prefix and the tokens after it into one row; `detach` hears the
    prefix first, under the memory as it is, without a gradient; `reuse` keeps keys and values from the steps that
    heard it, of each stream's `own` tokens and of those that its memory was written from, `told`."""

    def __init__(self, settings: MemorySettings, decoder: Decoder, lora: TemporaryLoRA):
        self.settings, self.decoder, self.lora = settings, decoder, lora
        self.own = self.told = None
        if settings.prefix_states != "recompute":
            self.own, self.told = (self._none(len(lora.flat)) for _ in range(2))

    @property
    def kept(self) -> dict[str, PrefixStates]:
        """By name, where there are any."""
        return {"own": self.own, "told": self.told} if self.own else {}

    def reset(self, streams: Sequence[int]) -> None:
        """Nothing heard."""
        for states in self.kept.values():
            states.reset(streams)

    def prepared(self, parts: Sequence[Part], streams: Sequence[int], states: PrefixStates | None) -> Batch:
        """Parts as a batch that has gone through the lower blocks: prefix and tokens in one row, or the tokens
        after the states of the prefix."""
        prefixes = [p.prefix for p in parts]
        anew = self.settings.prefix_states == "detach"
        if states is None or (anew and not any(map(len, prefixes))):
            rows = tuple(torch.cat([p.prefix, p.piece]) for p in parts)
            return self.decoder.lower(Batch(rows, tuple(max(len(p), 1) for p in prefixes)))
        if anew:
            past = self._anew(prefixes, streams).past(range(len(streams)))
        else:
            known = zip(states.length[list(streams)].tolist(), prefixes, strict=True)
            if stale := [n for n, (length, p) in enumerate(known) if length != max(0, len(p) - 1)]:
                found = self._anew([prefixes[n] for n in stale], [streams[n] for n in stale])
                states.take([streams[n] for n in stale], found, range(len(stale)))
            past = states.past(streams)
        rows = tuple(torch.cat([p.prefix[-1:], p.piece]) for p in parts)
        return self.decoder.lower(Batch(rows, (1,) * len(rows), past))

    def advance(self, states: PrefixStates | None, streams: Sequence[int], batch: Batch) -> None:
        """Keep, with `reuse`, what the last pass over this batch has left."""
        if self.settings.prefix_states == "reuse":
            states.advance(streams, batch.past, [len(r) for r in batch.rows])

    def _anew(self, prefixes: Sequence[Tensor], streams: Sequence[int]) -> PrefixStates:
        """States of these prefixes under the memory as it is now, without a gradient."""
        states = self._none(len(streams))
        if some := [n for n, p in enumerate(prefixes) if len(p)]:
            batch = self.decoder.lower(Batch(tuple(prefixes[n] for n in some), (1,) * len(some), states.past(some)))
            with torch.no_grad(), self.lora.active(self.lora.flat[[streams[n] for n in some]]):
                self.decoder.upper(batch)
            states.advance(some, batch.past, [len(r) for r in batch.rows])
        return states

    def _none(self, streams: int) -> PrefixStates:
        settings = self.settings
        return PrefixStates(self.decoder.sllm, streams, settings.prefix + settings.sinks, settings.sinks)
