"""One forward in parts: blocks that no memory changes apart from those above, tokens after what was heard before.

`Batch` is some streams' tokens, padded; `Decoder` runs them through the lower and the upper blocks of the SLLM;
`PrefixStates` keeps the keys and values of each stream's last n_r tokens, so that a sentence need not hear them
again (Temp-LoRA's cache reuse, Wang et al. 2024, arXiv 2401.11504).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from . import machine
from .settings import UserError
from .sllm import EmotionSLLM


@dataclass(frozen=True)
class Batch:
    """Rows of tokens; `first[i]`: the first token of row i that is to be predicted; `past`: what stands before
    the rows; `hidden`: the states below the memory's lowest block, once `Decoder.lower` has run."""

    rows: tuple[Tensor, ...]
    first: tuple[int, ...]
    past: Past | None = None
    hidden: Tensor | None = None

    def select(self, index: Sequence[int]) -> Batch:
        """Some of the rows, in this order."""
        return replace(self, rows=tuple(self.rows[i] for i in index), first=tuple(self.first[i] for i in index),
                       past=self.past and self.past.select(index),
                       hidden=None if self.hidden is None else self.hidden[list(index)])


class Decoder:
    """The SLLM's decoder; blocks below `split` are run without a gradient and once for several passes."""

    def __init__(self, sllm: EmotionSLLM, split: int):
        self.sllm, self.decoder = sllm, sllm.causal_lm.get_decoder()
        parts = hasattr(self.decoder, "norm")  # the name of the last normalisation in Llama and its kin
        self.split = split if parts else 0

    def check(self) -> None:
        """UserError where this decoder in two parts is not the decoder: one whose blocks differ by their number
        (Gemma 2 and 3) or that scales what it is given (Gemma)."""
        if not self.split:
            return
        wide = getattr(self.decoder.config, "sliding_window", None) or 0  # a row must be longer to tell
        rows = (torch.arange(min(self.sllm.window, wide + 16)) % self.sllm.vocabulary.size,)
        with torch.no_grad():
            whole = self._run(self.sllm.embedded(rows), None)
            apart = (self.upper(self.lower(Batch(rows, (1,)))) - whole).abs().max()
        if apart > 1e-3 * whole.abs().max():
            raise UserError(f"setting memory.layers = top-k does not go with {type(self.sllm.causal_lm).__name__}, "
                            "whose blocks are not alike: in two parts it answers otherwise; set memory.layers=all")

    def lower(self, batch: Batch) -> Batch:
        """The batch with its `hidden`, shape (rows, longest, hidden): embedded, and through the lower blocks."""
        with torch.no_grad(), machine.tf32(self.sllm):
            hidden = self.sllm.embedded(batch.rows)
            if self.split:
                with self._only(0, self.split):
                    hidden = self._run(hidden, batch.past)
        return replace(batch, hidden=hidden)

    def upper(self, batch: Batch) -> Tensor:
        """Last hidden states, shape (rows, longest, hidden), from the batch's `hidden` on."""
        with machine.tf32(self.sllm), self._only(self.split, None):
            return self._run(batch.hidden, batch.past)

    def _run(self, hidden: Tensor, past: Past | None) -> Tensor:
        if past is None:
            return self.decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state
        mask, positions = past.attention(hidden)
        return self.decoder(inputs_embeds=hidden, attention_mask=mask, position_ids=positions,
                            past_key_values=past, use_cache=True).last_hidden_state

    @contextmanager
    def _only(self, first: int, stop: int | None) -> Iterator[None]:
        """The decoder of these blocks alone, normalised at its end where they are the last ones."""
        layers, norm = self.decoder.layers, getattr(self.decoder, "norm", None)
        if first == 0 and stop is None:
            yield
            return
        try:
            self.decoder._modules["layers"] = layers[first:stop]
            if stop is not None:
                self.decoder._modules["norm"] = nn.Identity()
            yield
        finally:
            self.decoder._modules["layers"], self.decoder._modules["norm"] = layers, norm


class PrefixStates:
    """Keys and values of the last `size` tokens but one that each stream heard, a block.

    The last token itself is heard anew with what follows it, as it predicts the first of that. Keys stand at
    rotary positions 0 … size - 1, filled from the right; after every advance they are turned back, as only
    distances count. The first `sinks` tokens of a stream are kept beside the last ones (StreamingLLM, Xiao et al.
    2024, arXiv 2309.17453); `size` counts them.
    """

    def __init__(self, sllm: EmotionSLLM, streams: int, size: int, sinks: int = 0):
        config, rotary = sllm.causal_lm.config, sllm.causal_lm.get_decoder().rotary_emb
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if 2 * len(getattr(rotary, "inv_freq", ())) != head:  # Gemma 3 has two sets, StableLM turns parts of heads
            raise UserError("setting memory.prefix_states = reuse or detach needs a backbone whose heads turn "
                            f"whole and alike with the position, not a {config.model_type}: choose recompute")
        self.frequencies, self.size, self.streams, self.sinks = rotary.inv_freq, max(0, size - 1), streams, sinks
        self.length = torch.zeros(streams, dtype=torch.long, device=sllm.device)
        self.blocks: dict[int, tuple[Tensor, Tensor]] = {}  # (streams, heads, size, dimensions) each

    def reset(self, streams: Sequence[int]) -> None:
        """Nothing heard."""
        self.length[list(streams)] = 0

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name; `restore` takes it back."""
        named = {f"{block}.{kind}": tensor for block, pair in self.blocks.items()
                 for kind, tensor in zip(("keys", "values"), pair, strict=True)}
        return {"length": self.length, **named}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """What `tensors` gave."""
        self.length.copy_(tensors["length"])
        names = {name.split(".")[0] for name in tensors if name.endswith(".keys")}
        self.blocks = {int(b): (tensors[f"{b}.keys"], tensors[f"{b}.values"]) for b in names}

    def past(self, streams: Sequence[int]) -> Past:
        """What these streams heard, as transformers asks a cache for it."""
        return Past(self, list(streams), {})

    def advance(self, streams: Sequence[int], past: Past, lengths: Sequence[int]) -> None:
        """Keep, for these streams, the last of what a pass over rows of these lengths has left in `past`."""
        index = torch.tensor(list(streams), device=self.length.device)
        moved = torch.tensor(lengths, device=self.length.device) - 1  # the last token is heard anew
        slots, length = torch.arange(self.size, device=moved.device), past.states.length[past.streams]
        window, shift = moved[:, None] + slots, -moved[:, None]
        if self.sinks:
            full = (length + moved > self.size)[:, None] & (slots < self.sinks)
            window = torch.where(full, (self.size - length)[:, None] + slots, window)
            shift = slots - window
        angle = shift[..., None] * self.frequencies.float()
        cosine, sine = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
        window = window[:, None, :, None]
        for block, (keys, values) in past.new.items():
            old_keys, old_values = past.old(block, keys)
            keys, values = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
            at = window.expand(-1, keys.shape[1], -1, keys.shape[3])
            keys, values = keys.gather(2, at).float(), values.gather(2, at)
            half = keys.shape[3] // 2
            turned = keys * cosine + torch.cat([-keys[..., half:], keys[..., :half]], -1) * sine
            self._keep(index, block, turned.to(values.dtype), values)
        self.length[index] = (length + moved).clamp(max=self.size)

    def take(self, streams: Sequence[int], other: PrefixStates, theirs: Sequence[int]) -> None:
        """For these streams the states of some streams of `other`."""
        for block, (keys, values) in other.blocks.items():
            self._keep(list(streams), block, keys[list(theirs)], values[list(theirs)])
        self.length[list(streams)] = other.length[list(theirs)]

    def _keep(self, index: Tensor | list[int], block: int, *pair: Tensor) -> None:
        if block not in self.blocks:
            self.blocks[block] = tuple(new.new_zeros((self.streams, *new.shape[1:])) for new in pair)
        for kept, new in zip(self.blocks[block], pair, strict=True):
            kept[index] = new


@dataclass(frozen=True)
class Past:
    """A cache of transformers' kind over the states of some streams; `new` holds what the last pass added."""

    states: PrefixStates
    streams: list[int]
    new: dict[int, tuple[Tensor, Tensor]]

    def select(self, index: Sequence[int]) -> Past:
        """Some of the streams, with what is new of them."""
        return Past(self.states, [self.streams[i] for i in index],
                    {block: (k[list(index)], v[list(index)]) for block, (k, v) in self.new.items()})

    def old(self, block: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values from before, shape (rows, heads, size, dimensions); `like`: the new keys."""
        if block in self.states.blocks:
            keys, values = self.states.blocks[block]
            return keys[self.streams], values[self.streams]
        empty = like.new_zeros((len(self.streams), like.shape[1], self.states.size, like.shape[3]))
        return empty, empty

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """What an attention layer calls: its new keys and values; returns all to attend to."""
        self.new[layer_idx] = keys.detach(), values.detach()
        old_keys, old_values = self.old(layer_idx, keys)
        return torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)

    def get_seq_length(self, *_args) -> int:
        """Tokens before the rows, padding included."""
        return self.states.size

    def attention(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the scores, 0 or (where nothing may be attended to) as low as can be, shape (rows, 1,
        longest, size + longest), and the rows' positions, (rows, longest); hidden: (rows, longest, …)."""
        longest, device = hidden.shape[1], hidden.device
        size, length = self.states.size, self.states.length[self.streams].to(device)
        before = torch.arange(size, device=device)[None] >= size - length[:, None]
        among = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        rows = len(self.streams)
        seen = torch.cat([before[:, None].expand(-1, longest, -1), among[None].expand(rows, -1, -1)], 2)[:, None]
        mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        return mask, (size + torch.arange(longest, device=device)).expand(rows, -1)
