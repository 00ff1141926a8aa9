"""The memory off Algorithm 1's path: cheaper rungs, and other rules of what to write. Settings choose among them.

- layers = top-k: a memory in the last k blocks alone; those below run once per sentence.
- read = before: the answer is that of the forward that writes.
- prefix_states = reuse: the prefix's keys and values are those of earlier steps (Temp-LoRA, Wang et al. 2024, arXiv
  2401.11504); with sinks the first tokens' stay (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453).
- stepping: a step per so many tokens or sentences.
- rule: a step lowers the surprise at a target made of the own answer, instead of L_t or beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

from .corpora.dynamics import forward_step
from .memory import EMPTY, DynamicParameterMemory, History, Part, Sentence, is_exact, rows, side_by_side, tail
from .settings import MemorySettings, UserError
from .sllm import Batch, EmotionSLLM

Chain = tuple[np.ndarray, np.ndarray]  # of emotions: transitions, (emotions, emotions), and prior, (emotions,)


def memory(sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0,
           inertia: Chain | None = None) -> DynamicParameterMemory:
    """The memory that the settings ask for: the exact one, or a `CheaperMemory`."""
    if is_exact(settings):
        return DynamicParameterMemory(sllm, settings, streams, seed)
    return CheaperMemory(sllm, settings, streams, seed, inertia)


@dataclass
class LongHistory(History):
    """What a stream has behind it, and what of that is still of use."""

    before: Tensor = EMPTY  # the n_r tokens before those that wait
    waiting: Tensor = EMPTY  # tokens that are to be written and wait for their step
    beliefs: dict[str, list[float]] = field(default_factory=dict)  # speaker -> probability of each emotion
    states: dict[bool, Tensor] = field(default_factory=dict)  # of the own prefix (False) and a donor's: see `Rows`


class Rows(list[Part]):
    """Parts as they go through the decoder, and what that has left."""

    def __init__(self, parts: Sequence[Part], states: list[Tensor] | None = None):
        super().__init__(parts)
        self.states = states  # keys and values before each row, (blocks, 2, heads, tokens, dimensions)
        self.below: Tensor | None = None  # what goes into the memory's lowest block, (rows, longest, hidden)
        self.left: list[Any] = []  # each block's keys and values, those before the rows included


def layers(sllm: EmotionSLLM, settings: MemorySettings) -> dict[str, nn.Module]:
    """Name -> each linear layer that has a memory of these settings. UserError for more blocks than there are."""
    modules = sllm.linear_layers()
    if settings.layers == "all":
        return modules
    blocks, count = len(sllm.causal_lm.get_decoder().layers), int(settings.layers.removeprefix("top-"))
    if count > blocks:
        raise UserError(f"setting memory.layers = top-k must have a k from 1 to {blocks}, not {count}")
    return {name: m for name, m in modules.items() if int(name.split(".")[0]) >= blocks - count}


class CheaperMemory(DynamicParameterMemory):
    """As `DynamicParameterMemory`, by any settings. `inertia`: for the target `filtered`."""

    past = LongHistory

    def __init__(self, sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0,
                 inertia: Chain | None = None):
        super().__init__(sllm, settings, streams, seed)
        kind, _, count = settings.stepping.partition("-")
        self.stride, self.every = (int(count) if kind == name else 0 for name in ("stride", "every"))
        if self.n_r + self.stride > sllm.window:
            raise UserError(f"n_limit = {sllm.window} tokens must hold n_r = {self.n_r} (memory.prefix) and a "
                            f"stride (memory.stepping = {settings.stepping}): lower one or raise backbone.window")
        if settings.target == "filtered" and inertia is None:
            raise UserError("setting memory.target = filtered needs the emotions' transitions and prior: pass "
                            "inertia=(transition, prior)")
        self.inertia, self.reuse = inertia, settings.prefix_states == "reuse"
        self.nothing = self._no_states() if self.reuse else None
        self.targets: Tensor | None = None  # of the write that is going on, (rows, emotions)
        self.lowest = min(int(name.split(".")[0]) for name in self.lora.modules)  # block with a memory

    def _layers(self) -> dict[str, nn.Module]:
        return layers(self.sllm, self.settings)

    def _no_states(self) -> Tensor:
        """Keys and values of no token. UserError where what is kept of a prefix could not be moved to the front."""
        config, turns = self.decoder.config, getattr(self.decoder.rotary_emb, "inv_freq", ())
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        if 2 * len(turns) != size:  # Gemma 3 has two sets, StableLM turns parts of heads
            raise UserError("setting memory.prefix_states = reuse needs a backbone whose heads turn whole and "
                            f"alike with the position, not a {config.model_type}: choose recompute")
        heads = getattr(config, "num_key_value_heads", None) or heads
        return turns.new_empty(len(self.decoder.layers), 2, heads, 0, size, dtype=self.sllm.causal_lm.dtype)

    # -- when to write and to read -----------------------------------------------------------------------------

    def _written_and_read(self, sentences: Mapping[int, Sentence]) -> tuple[dict[int, list[float]], Tensor]:
        before, losses, logits = self.settings.read == "before", defaultdict(list), {}
        due = {i: self._due(i, sentence) for i, sentence in sentences.items()}
        # An answer is read from the very tokens that are written, or apart from them.
        shared = {i for i, s in sentences.items()
                  if due[i] and self._writes_itself(s) and (self.reuse or len(due[i]) == 1)}
        apart = {i: s for i, s in sentences.items() if i not in shared}
        if before:
            logits |= self._read_apart(apart)
        for streams, parts in side_by_side(due):
            passed = self._prepared(parts, streams)
            written, answers = self.write(passed, streams)
            if not before and self.learns and (self.reuse or shared & set(streams)):
                answers = self.read(passed, streams)  # under the memory after the write
            for i, loss, answer in zip(streams, written.tolist(), answers, strict=True):
                losses[i].append(loss)
                logits |= {i: answer} if i in shared else {}
        if not before:
            logits |= self._read_apart(apart)
        return losses, torch.stack([logits[i] for i in sentences])

    def _read_apart(self, sentences: Mapping[int, Sentence]) -> dict[int, Tensor]:
        """Emotion logits after sentences that are not written, or not as they are read."""
        logits = {}
        heard = {i: self._pieces(self.histories[i].own, s.tokens, Sentence(s.tokens)) if self.reuse
                 else [self._context(i, s)] for i, s in sentences.items()}
        for streams, parts in side_by_side(heard):
            logits |= zip(streams, self.read(parts, streams), strict=True)
        return logits

    def _writes_itself(self, sentence: Sentence) -> bool:
        return super()._writes_itself(sentence) and self.settings.stepping == "sentence"

    def _due(self, stream: int, sentence: Sentence) -> list[Part]:
        """With a step per stride or so many sentences: the tokens whose step has come."""
        history, parts = self.histories[stream], []
        if not history.turns or self.settings.stepping == "sentence":
            return super()._due(stream, sentence)
        written = sentence.tokens if sentence.donor is None else sentence.donor
        history.waiting = torch.cat([history.waiting, written])
        due, size = self.stride or history.turns % self.every == 0, self.stride or self.sllm.window - self.n_r
        while due and len(history.waiting) >= max(1, self.stride):
            parts.append(Part(history.before, history.waiting[:size], sentence))
            history.before = tail(torch.cat(parts[-1][:2]), self.n_r)
            history.waiting = history.waiting[size:]
        return parts

    def _remember(self, stream: int, sentence: Sentence, answer: Tensor) -> None:
        super()._remember(stream, sentence, answer)
        history = self.histories[stream]
        if not len(history.waiting):
            history.before = history.written
        elif sentence.donor is None:
            history.waiting = torch.cat([history.waiting, answer])  # with its sentence

    # -- what a step lowers -------------------------------------------------------------------------------------

    def write(self, parts: Sequence[Part], streams: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As the exact memory's, by `memory.rule`."""
        passed, self.targets = self._prepared(parts, streams), None
        written = super().write(passed, streams)
        self._keep(passed, streams)
        if self.settings.target == "filtered" and self.targets is not None:
            for part, i, target in zip(passed, streams, self.targets.tolist(), strict=True):
                if self._ends(part):  # a belief moves on once a sentence
                    self.histories[i].beliefs[part.sentence.speaker] = target
        return written

    def read(self, parts: Sequence[Part], streams: Sequence[int]) -> Tensor:
        """As the exact memory's."""
        passed = self._prepared(parts, streams)
        answers = super().read(passed, streams)
        self._keep(passed, streams)
        return answers

    def _lowered(self, parts: Sequence[Part], streams: Sequence[int], losses: Tensor, answers: Tensor) -> Tensor:
        """With rule emotion: the cross-entropy at `<audio_end>` of a target made of the answer before the steps."""
        if self.settings.rule == "semantic":
            return losses
        if self.targets is None:
            self.targets = self._target(parts, streams, answers.detach().softmax(-1))
        surprise = -(self.targets * answers.log_softmax(-1)).sum(-1)  # (rows,)
        # A target that is the answer teaches nothing; AdamW would make full steps of rounding noise.
        new = (self.targets - answers.detach().softmax(-1)).abs().amax(-1) > 1e-6
        surprise = surprise * (new & torch.tensor([self._ends(p) for p in parts], device=new.device))
        return surprise if self.settings.rule == "emotion" else losses + surprise

    def _target(self, parts: Sequence[Part], streams: Sequence[int], p: Tensor) -> Tensor:
        """What the probabilities of an answer become, (rows, emotions): the filter's belief, or squared."""
        if self.settings.target == "filtered":
            believed = [forward_step(self.histories[i].beliefs.get(part.sentence.speaker), row, *self.inertia)
                        for i, part, row in zip(streams, parts, p.cpu().numpy().astype(float), strict=True)]
            return torch.from_numpy(np.array(believed)).to(p)
        return p.square() / p.square().sum(-1, keepdim=True)

    def _ends(self, part: Part) -> bool:
        return int(part.piece[-1]) == self.sllm.vocabulary.end

    # -- the prefix and the lower blocks ------------------------------------------------------------------------

    def _prepared(self, parts: Sequence[Part], streams: Sequence[int]) -> Rows:
        """With `reuse`: parts that go on after the states of their prefixes. The last token of a prefix runs again,
        as it predicts what follows."""
        if isinstance(parts, Rows):
            return parts
        if not self.reuse:
            return Rows(parts)
        states = [self.histories[i].states.get(_donated(p), self.nothing).to(self.nothing.device)
                  for i, p in zip(streams, parts, strict=True)]
        anew = [n for n, p in enumerate(parts) if len(p.prefix) > 1 and not _tokens(states[n])]
        if anew:
            prefixes = Rows([Part(EMPTY, parts[n].prefix[:-1]) for n in anew], [self.nothing] * len(anew))
            self._passed(prefixes, [streams[n] for n in anew], predicted=False)
            for n, left in zip(anew, self._left(prefixes, 0), strict=True):
                states[n] = left
        return Rows([Part(p.prefix[-1:], p.piece, p.sentence) for p in parts], states)

    def _keep(self, passed: Rows, streams: Sequence[int]) -> None:
        """With `reuse`: of what the last pass has left, the last n_r - 1 tokens' and the sinks'. Keys are turned to
        the positions 0, 1, … of what is kept, as only distances count."""
        if not self.reuse:
            return
        size, sinks = max(0, self.n_r - 1), self.settings.sinks
        for i, part, states in zip(streams, passed, self._left(passed, 1), strict=True):
            if (over := _tokens(states) - size) > 0:
                first, keys, values = states[..., :sinks, :], *states[..., sinks + over:, :].float().unbind(1)
                angle = torch.cat([-over * self.decoder.rotary_emb.inv_freq.float()] * 2)  # (dimensions,)
                keys = keys * angle.cos() + rotate_half(keys) * angle.sin()
                states = torch.cat([first, torch.stack([keys, values], 1).to(states.dtype)], -2)[..., :size, :]
            self.histories[i].states[_donated(part)] = states.clone()

    def _left(self, passed: Rows, again: int) -> Iterator[Tensor]:
        """Of each row: the states before it and its own, less those of its `again` last tokens."""
        longest = max(map(_tokens, passed.states))
        for n, (row, states) in enumerate(zip(rows(passed), passed.states, strict=True)):
            window = slice(longest - _tokens(states), longest + len(row) - again)
            yield torch.stack([torch.stack([block.keys[n, :, window], block.values[n, :, window]])
                               for block in passed.left]).detach()

    def _hidden(self, batch: Batch, parts: Sequence[Part]) -> Tensor:
        """Each row after the states before it; the blocks below the memory run once for these rows."""
        passed = parts if isinstance(parts, Rows) else Rows(parts)
        first = 0 if passed.below is None else self.lowest
        with self._once_below(passed):
            if passed.states is None:
                return super()._hidden(batch, passed)
            before = torch.tensor([[_tokens(states)] for states in passed.states])
            size, (count, longest) = int(before.max()), batch.ids.shape
            cache = DynamicCache(torch.stack([F.pad(states, (0, 0, size - _tokens(states), 0))
                                              for states in passed.states], 2))  # (blocks, 2, rows, heads, size, …)
            known = torch.arange(size + longest).expand(count, -1) >= size - before  # all but padding on the left
            hidden = self.decoder(
                inputs_embeds=self.sllm.embedded(batch.ids), past_key_values=cache, use_cache=True,
                attention_mask=known.to(self.sllm.device),
                position_ids=(before + torch.arange(longest)).to(self.sllm.device)).last_hidden_state
            passed.left[first:] = cache.layers[first:]
            return hidden

    @contextmanager
    def _once_below(self, passed: Rows) -> Iterator[None]:
        """What goes into the memory's lowest block is kept in a first pass, and given to it in every other one, in
        which the blocks below pass on what they are given."""
        lower = self.decoder.layers[:self.lowest] if passed.below is not None else ()

        def given(_: nn.Module, inputs: tuple) -> tuple:
            passed.below = inputs[0] if passed.below is None else passed.below
            return passed.below, *inputs[1:]

        hook = self.decoder.layers[self.lowest].register_forward_pre_hook(given)
        try:
            for block in lower:
                block.__dict__["forward"] = lambda hidden, *_, **__: hidden
            yield
        finally:
            hook.remove()
            for block in lower:
                block.__dict__.pop("forward")


def _donated(part: Part) -> bool:
    return part.sentence.donor is not None


def _tokens(states: Tensor) -> int:
    return states.shape[-2]
