"""The memory off Algorithm 1's path: cheaper rungs, and other rules of what to write. Settings choose among them.

- layers = top-k: a memory in the last k blocks alone; those below run once per sentence.
- read = before: the answer is that of the forward that writes.
- prefix_states = detach: no gradient through the prefix. reuse: its keys and values are those of earlier steps
  (Temp-LoRA, Wang et al. 2024, arXiv 2401.11504); with sinks the first tokens' stay (StreamingLLM, Xiao et al.
  2024, arXiv 2309.17453).
- stepping: a step per so many tokens or sentences.
- rule: a step lowers the surprise at a target made of the own answer, instead of L_t or beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .corpora.dynamics import forward_step
from .memory import DynamicParameterMemory, is_exact
from .settings import MemorySettings, UserError
from .sllm import Batch, EmotionSLLM
from .streams import EMPTY, Part, Sentence, rows, side_by_side, tail


def memory(sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0,
           inertia: tuple[np.ndarray, np.ndarray] | None = None) -> DynamicParameterMemory:
    """The memory that the settings ask for: the exact one, or a `CheaperMemory`. `inertia`: transitions, shape
    (emotions, emotions), and prior, (emotions,), for the target `filtered`."""
    if is_exact(settings):
        return DynamicParameterMemory(sllm, settings, streams, seed)
    if settings.target == "filtered" and inertia is None:
        raise UserError("setting memory.target = filtered needs the emotions' transitions and prior: pass "
                        "cheaper.memory(…, inertia=(transition, prior))")
    made = CheaperMemory(sllm, settings, streams, seed)
    made.inertia = inertia
    return made


class Rows(list[Part]):
    """Parts as they go through the decoder, and what that has left."""

    states: list[Tensor | None] | None = None  # before each row: (blocks, 2, heads, tokens, dimensions)
    below: Tensor | None = None  # hidden states under the memory's lowest block, (rows, longest, hidden)

    def __init__(self, parts: Sequence[Part]):
        super().__init__(parts)
        self.left: list[Any] = []  # each block's keys and values, those before the rows included


class CheaperMemory(DynamicParameterMemory):
    """As `DynamicParameterMemory`, by any settings: see `memory`."""

    inertia: tuple[np.ndarray, np.ndarray] | None = None

    def __init__(self, sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0):
        super().__init__(sllm, settings, streams, seed)
        if settings.shapes == "bucketed":
            raise UserError("setting memory.shapes = bucketed goes with Algorithm 1 alone: set it free, or leave "
                            "memory.layers, stepping, rule, read and prefix_states as they are")
        kind, _, count = settings.stepping.partition("-")
        self.stride, self.every = (int(count) if kind == name else 0 for name in ("stride", "every"))
        if self.n_r + self.stride > sllm.window:
            raise UserError(f"n_limit = {sllm.window} tokens must hold n_r = {self.n_r} (memory.prefix) and a "
                            f"stride (memory.stepping = {settings.stepping}): lower one or raise backbone.window")
        self.reuse = settings.prefix_states == "reuse"
        self.waiting = [0] * streams  # tokens at the end of what is to be written that wait for their step
        self.beliefs: list[dict[str, np.ndarray]] = [{} for _ in range(streams)]  # speaker -> (emotions,)
        self.kept: dict[tuple[int, bool], Tensor] = {}  # (stream, its donor's) -> states
        if settings.prefix_states != "recompute":
            self.frequencies = _frequencies(self.decoder, settings)
        lowest = min(int(name.split(".")[0]) for name in self.lora.modules)
        self.split = lowest if hasattr(self.decoder, "norm") else 0  # Llama and its kin have it
        if self.split:
            self._check_split()

    def _layers(self) -> dict[str, nn.Module]:
        modules, layers = super()._layers(), self.settings.layers
        if layers == "all":
            return modules
        blocks = sorted({int(name.split(".")[0]) for name in modules})
        kind, _, count = layers.partition("-")
        if kind != "top" or not count.isdigit() or not 1 <= int(count) <= len(blocks):
            raise UserError(f"setting memory.layers must be 'all' or 'top-k' with k from 1 to {len(blocks)}, "
                            f"not {layers!r}")
        return {name: m for name, m in modules.items() if int(name.split(".")[0]) in blocks[-int(count):]}

    def reset(self, streams: Sequence[int] | None = None) -> None:
        """As the exact memory's; what waits to be written, beliefs and kept states go, too."""
        super().reset(streams)
        for i in range(self.streams) if streams is None else streams:
            self.waiting[i], self.beliefs[i] = 0, {}
            for donated in (False, True):
                self.kept.pop((i, donated), None)

    # -- when to write and to read -----------------------------------------------------------------------------

    def _written_and_read(self, sentences: Mapping[int, Sentence]) -> tuple[dict[int, list[float]], Tensor]:
        before, losses, logits = self.settings.read == "before", defaultdict(list), {}
        due = {i: self._due(i, sentence) for i, sentence in sentences.items()}
        # An answer is read from the very tokens that are written, or apart from them.
        shared = {i for i, s in sentences.items() if due[i] and self._writes_itself(s) and (
            self.reuse or (self.settings.prefix_states == "recompute" and len(due[i]) == 1))}
        apart = {i: s for i, s in sentences.items() if i not in shared}
        if before:
            logits |= self._read_apart(apart)
        for streams, parts in side_by_side(due):
            passed = self._prepared(parts, streams)
            written, answers = self.write(passed, streams)
            if not before and self.learns and (self.reuse or shared & set(streams)):
                answers = self.read(passed, streams)  # under the memory after the write
            self._keep(passed, streams)
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
            passed = self._prepared(parts, streams)
            logits |= dict(zip(streams, self.read(passed, streams), strict=True))
            self._keep(passed, streams)
        return logits

    def _writes_itself(self, sentence: Sentence) -> bool:
        return super()._writes_itself(sentence) and self.settings.stepping == "sentence"

    def _due(self, stream: int, sentence: Sentence) -> list[Part]:
        """With a step per stride or so many sentences: the tokens whose step has come."""
        history, parts = self.histories[stream], []
        if not history.turns or self.settings.stepping == "sentence":
            return super()._due(stream, sentence)
        written = sentence.tokens if sentence.donor is None else sentence.donor
        whole, waiting = torch.cat([history.written, written]), self.waiting[stream] + len(written)
        due = self.stride or history.turns % self.every == 0
        while due and waiting >= max(1, self.stride):
            start, size = len(whole) - waiting, self.stride or min(waiting, self.sllm.window - self.n_r)
            parts.append(Part(tail(whole[:start], self.n_r), whole[start:start + size], sentence))
            waiting -= size
        self.waiting[stream] = waiting
        return parts

    def _remember(self, stream: int, sentence: Sentence, answer: Tensor) -> None:
        before = self.histories[stream].written
        super()._remember(stream, sentence, answer)
        if self.waiting[stream]:  # the answer waits with its sentence
            own = sentence.donor is None
            self.waiting[stream] += len(answer) if own else 0
            written = torch.cat([before, *((sentence.tokens, answer) if own else (sentence.donor,))])
            self.histories[stream].written = tail(written, self.n_r + self.waiting[stream])

    # -- what a step lowers -------------------------------------------------------------------------------------

    def write(self, parts: Sequence[Part], streams: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As the exact memory's, by `memory.rule`."""
        parts = parts if isinstance(parts, Rows) else self._prepared(parts, streams)
        losses, answers = super().write(parts, streams)
        if self.settings.rule != "semantic" and self.settings.target == "filtered":
            for part, i, target in zip(parts, streams, self._target(parts, streams, answers), strict=True):
                if self._ends(part):  # a belief moves on once a sentence
                    self.beliefs[i][part.sentence.speaker] = target.cpu().numpy().astype(float)
        return losses, answers

    def _lowered(self, parts: Sequence[Part], streams: Sequence[int], before: Tensor | None, losses: Tensor,
                 answers: Tensor) -> Tensor:
        """With rule emotion: the cross-entropy at `<audio_end>` of a target made of the answer before the steps."""
        if self.settings.rule == "semantic":
            return losses
        target = self._target(parts, streams, answers.detach() if before is None else before)
        surprise = -(target * answers.log_softmax(-1)).sum(-1)  # (rows,)
        # A target that is the answer teaches nothing; AdamW would make full steps of rounding noise.
        new = (target - answers.detach().softmax(-1)).abs().amax(-1) > 1e-6
        surprise = surprise * (new & torch.tensor([self._ends(p) for p in parts], device=new.device))
        return surprise if self.settings.rule == "emotion" else losses + surprise

    def _target(self, parts: Sequence[Part], streams: Sequence[int], answers: Tensor) -> Tensor:
        """What the answers' probabilities become, (rows, emotions): squared, the filter's belief, or kept."""
        p = answers.softmax(-1)
        if self.settings.target == "filtered":
            believed = [forward_step(self.beliefs[i].get(part.sentence.speaker), row, *self.inertia)
                        for i, part, row in zip(streams, parts, p.cpu().numpy().astype(float), strict=True)]
            return torch.from_numpy(np.array(believed)).to(p)
        p = p.square() if self.settings.target == "sharpened" else p
        return p / p.sum(-1, keepdim=True)

    def _ends(self, part: Part) -> bool:
        return int(part.piece[-1]) == self.sllm.vocabulary.end

    # -- the prefix and the lower blocks ------------------------------------------------------------------------

    def _prepared(self, parts: Sequence[Part], streams: Sequence[int]) -> Rows:
        """With `reuse` or `detach`: parts that go on after the states of their prefixes. The last token of a prefix
        runs again, as it predicts what follows."""
        if self.settings.prefix_states == "recompute" or not (self.reuse or any(len(p.prefix) for p in parts)):
            return Rows(parts)
        passed = Rows([Part(p.prefix[-1:], p.piece, p.sentence) for p in parts])
        passed.states = [self.kept.get((i, _donated(p))) for i, p in zip(streams, parts, strict=True)]
        anew = [n for n, p in enumerate(parts) if len(p.prefix) > 1
                and (not self.reuse or _tokens(passed.states[n]) != len(p.prefix) - 1)]
        if anew:
            prefixes = Rows([Part(EMPTY, parts[n].prefix[:-1]) for n in anew])
            prefixes.states = [None] * len(anew)
            self._passed(prefixes, [streams[n] for n in anew], predicted=False)
            for n, states in zip(anew, self._left(prefixes, 0), strict=True):
                passed.states[n] = states
        return passed

    def _keep(self, passed: Rows, streams: Sequence[int]) -> None:
        """With `reuse`: of what the last pass has left, the last n_r - 1 tokens' and the sinks'. Keys are turned to
        the positions 0, 1, … of what is kept, as only distances count."""
        if not self.reuse:
            return
        size, sinks = max(0, self.n_r - 1), self.settings.sinks
        for i, part, states in zip(streams, passed, self._left(passed, 1), strict=True):
            if (over := _tokens(states) - size) > 0:
                first, keys, values = states[..., :sinks, :], *states[..., sinks + over:, :].float().unbind(1)
                angle = torch.cat([-over * self.frequencies.float()] * 2)  # (dimensions,)
                half = keys.shape[-1] // 2
                turned = keys * angle.cos() + torch.cat([-keys[..., half:], keys[..., :half]], -1) * angle.sin()
                states = torch.cat([first, torch.stack([turned, values], 1).to(states.dtype)], -2)[..., :size, :]
            self.kept[i, _donated(part)] = states.clone()

    def _left(self, passed: Rows, again: int) -> Iterator[Tensor]:
        """Of each row: the states before it and its own, less those of its `again` last tokens."""
        longest = max(map(_tokens, passed.states))
        for n, (row, states) in enumerate(zip(rows(passed), passed.states, strict=True)):
            window = slice(longest - _tokens(states), longest + len(row) - again)
            yield torch.stack([torch.stack([block.keys[n, :, window], block.values[n, :, window]])
                               for block in passed.left]).detach()

    def _hidden(self, batch: Batch, parts: Sequence[Part]) -> Tensor:
        """The blocks below the memory, once for these rows and without a gradient; then the others."""
        passed = parts if isinstance(parts, Rows) else Rows(parts)
        if passed.below is None:
            with torch.no_grad():
                embedded = self.sllm.embedded(batch.ids)
                passed.below = self._run(embedded, passed, 0, self.split) if self.split else embedded
        return self._run(passed.below, passed, self.split, None)

    def _run(self, hidden: Tensor, passed: Rows, first: int, stop: int | None) -> Tensor:
        """Some blocks of the decoder, each row after the states before it."""
        with _blocks(self.decoder, first, stop):
            if passed.states is None:
                return self.decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state
            cache, (count, longest, _) = DynamicCache(), hidden.shape
            before = torch.tensor([_tokens(states) for states in passed.states])
            if size := int(before.max()):
                like = next(states for states in passed.states if states is not None)[..., :0, :]
                states = torch.stack([F.pad(like if s is None else s, (0, 0, size - _tokens(s), 0))
                                      for s in passed.states])  # (rows, blocks, 2, heads, size, dimensions)
                for block in range(states.shape[1]):
                    cache.update(states[:, block, 0], states[:, block, 1], block)
            known = torch.arange(size) >= size - before[:, None]  # (rows, size)
            causal = torch.ones(longest, longest, dtype=torch.bool).tril()
            seen = torch.cat([known[:, None].expand(-1, longest, -1), causal.expand(count, -1, -1)], 2)[:, None]
            mask = torch.zeros(seen.shape, dtype=hidden.dtype)
            mask = mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)  # (rows, 1, longest, size + longest)
            positions = before[:, None] + torch.arange(longest)  # (rows, longest)
            mask, positions = mask.to(hidden.device), positions.to(hidden.device)
            hidden = self.decoder(inputs_embeds=hidden, attention_mask=mask, position_ids=positions,
                                  past_key_values=cache, use_cache=True).last_hidden_state
            passed.left[first:] = cache.layers[first:stop]
            return hidden

    @torch.no_grad()
    def _check_split(self) -> None:
        """UserError where the decoder in two parts is not the decoder: one whose blocks differ by their number
        (Gemma 2 and 3) or that scales what it is given (Gemma)."""
        wide = getattr(self.decoder.config, "sliding_window", None) or 0  # a row must be longer to tell
        parts = [Part(EMPTY, torch.arange(min(self.sllm.window, wide + 16)) % self.sllm.vocabulary.size)]
        batch = self.sllm.batch(rows(parts))
        whole = super()._hidden(batch, parts)
        if (self._hidden(batch, parts) - whole).abs().max() > 1e-3 * whole.abs().max():
            raise UserError(f"setting memory.layers = top-k does not go with {type(self.sllm.causal_lm).__name__}, "
                            "whose blocks are not alike: in two parts it answers otherwise; set memory.layers=all")

    # -- on disk ----------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        def lists(arrays):
            return arrays and [a.tolist() for a in arrays]

        beliefs = [dict(zip(of, lists(of.values()) or [], strict=True)) for of in self.beliefs]
        return super()._state() | {"waiting": self.waiting, "beliefs": beliefs, "inertia": lists(self.inertia),
                                   "kept": self.kept}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.waiting, self.inertia = state["waiting"], state["inertia"] and list(map(np.array, state["inertia"]))
        self.beliefs = [{who: np.array(belief) for who, belief in of.items()} for of in state["beliefs"]]
        self.kept = {key: states.to(self.sllm.device) for key, states in state["kept"].items()}


def _donated(part: Part) -> bool:
    return part.sentence.donor is not None


def _tokens(states: Tensor | None) -> int:
    return 0 if states is None else states.shape[-2]


def _frequencies(decoder: nn.Module, settings: MemorySettings) -> Tensor:
    """By how much keys turn from one position to the next, (dimensions / 2,)."""
    config, rotary = decoder.config, decoder.rotary_emb
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if 2 * len(getattr(rotary, "inv_freq", ())) != head:  # Gemma 3 has two sets, StableLM turns parts of heads
        raise UserError(f"setting memory.prefix_states = {settings.prefix_states} needs a backbone whose heads "
                        f"turn whole and alike with the position, not a {config.model_type}: choose recompute")
    return rotary.inv_freq


@contextmanager
def _blocks(decoder: nn.Module, first: int, stop: int | None) -> Iterator[None]:
    """The decoder of these blocks alone, normalised at its end where they are the last ones."""
    layers, norm = decoder.layers, getattr(decoder, "norm", None)
    if first == 0 and stop is None:
        yield
        return
    try:
        decoder._modules["layers"] = layers[first:stop]
        if stop is not None:
            decoder._modules["norm"] = nn.Identity()
        yield
    finally:
        decoder._modules["layers"], decoder._modules["norm"] = layers, norm
