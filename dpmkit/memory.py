"""Dynamic Parameter Memory, exact (Algorithm 1 of the paper): a temporary LoRA that a conversation is written into.

B conversations side by side: each is a stream with a temporary LoRA, an optimiser's state and a history of its own,
and the numbers of `algorithm1`. What is cheaper, and other rules of what to write, are in `cheaper`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, repeat, starmap
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import Graphs, TemporaryLoRA, bucket, fused, replaceable
from .settings import MemorySettings, UserError
from .sllm import Batch, EmotionSLLM

EXACT = ("all", "sentence", "semantic", "after", "recompute")  # Algorithm 1's layers, stepping, rule, …: `is_exact`
TOGETHER = 8  # rows of a forward on a processor, of about one length: wider, more of it would be padding
EMPTY = torch.empty(0, dtype=torch.long)


class Sentence(NamedTuple):
    """A stream's next sentence, in tokens of `EmotionSLLM.sentence`."""

    tokens: Tensor
    donor: Tensor | None = None  # what is written in its place, in a control; EMPTY once the donor has ended
    speaker: str = ""  # of what is written
    label: int | None = None  # index of the true emotion, of a bound


class Part(NamedTuple):
    """A row of tokens: what is written, or read, after the n_r tokens before it. Both fit the window."""

    prefix: Tensor  # (n,), n <= n_r
    piece: Tensor  # (m,)
    sentence: Sentence = Sentence(EMPTY)  # that it is a piece of


@dataclass(frozen=True)
class Turn:
    """What came of one sentence."""

    probabilities: np.ndarray  # of the emotions, (emotions,)
    loss: float  # L_t of what was written, mean of its pieces; NaN where nothing was
    own_loss: float  # L_t of the sentence itself under the memory before that; NaN for a conversation's first
    norm: float  # of the memory's change
    pieces: int
    skipped: int  # updates left out so far, as loss or gradient was not finite


@dataclass
class History:
    """What a stream has behind it."""

    own: Tensor = EMPTY  # its last n_r tokens
    written: Tensor = EMPTY  # the last ones that its memory was written from: the same, but in a control
    turns: int = 0
    skipped: int = 0


class DynamicParameterMemory:
    """B conversations, each with its own temporary LoRA. `listen`: one, turn by turn; `batch`: many, B at a time.

    The backbone's weights are the same bits before and after. In float32 a stream's numbers do not depend on who
    shares the batch (to 8e-7 in 96 sentences, on a CPU and an H100); in bfloat16 products of other shapes round
    elsewhere (by 0.009 on the H100).
    """

    past: ClassVar[type[History]] = History

    def __init__(self, sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0):
        """UserError for settings that this class or this backbone cannot honour."""
        if type(self) is DynamicParameterMemory and not is_exact(settings):
            raise UserError("DynamicParameterMemory is Algorithm 1 alone: make a memory of other settings (layers, "
                            "stepping, rule, read, prefix_states) with dpmkit.cheaper.memory(sllm, settings)")
        self.n_r = settings.prefix + settings.sinks
        if self.n_r >= sllm.window:
            raise UserError(f"n_limit = {sllm.window} tokens must hold n_max + n_r, but memory.prefix is n_r = "
                            f"{self.n_r}: lower memory.prefix or raise backbone.window")
        self.sllm = sllm.merged().in_precision(settings.precision).requires_grad_(False).eval()
        self.settings, self.streams = settings, streams
        self.decoder = self.sllm.causal_lm.get_decoder()
        self.lora = TemporaryLoRA(self._layers(), streams, settings, seed)
        self.learns = bool(settings.lr and settings.steps)  # else a write only measures L_t
        self.on_gpu = self.sllm.device.type == "cuda"
        able = is_exact(settings) and replaceable(self.decoder, sllm.window)
        if settings.shapes == "bucketed" and not able:
            raise UserError("setting memory.shapes = bucketed needs Algorithm 1 as it is (memory.layers, stepping, "
                            "rule, read, prefix_states) and a backbone that attends to all earlier tokens: set it "
                            "free, or lower backbone.window to what every layer sees")
        self.bucketed = able and (settings.shapes == "bucketed" or (settings.shapes == "auto" and self.on_gpu))
        self.gradient = torch.zeros_like(self.lora.flat.data) if self.bucketed and self.learns else None
        self.graphs = {True: Graphs(), False: Graphs()}  # of a pass that learns, and of one that does not
        self.histories = [self.past() for _ in range(streams)]

    def _layers(self) -> dict[str, nn.Module]:
        """The linear layers that carry a memory."""
        return self.sllm.linear_layers()

    def reset(self, streams: Sequence[int] | None = None) -> None:
        """A fresh memory, optimiser's state and history for these streams (default: all), in place."""
        for i in range(self.streams) if streams is None else streams:
            self.lora.reset(i)
            self.histories[i] = self.past()

    def listen(self, sentences: Iterable[np.ndarray], fresh: bool = True,
               speakers: Iterable[str] = ()) -> Iterator[Turn]:
        """A turn for each sentence, codes of shape (frames,), of one conversation, as they come. `speakers`: who
        says each, where that is known. With `fresh=False` it goes on, e.g. after `load_state_dict`."""
        if fresh:
            self.reset([0])
        for sentence in self._sentences(sentences, None, speakers, ()):
            yield self.turn({0: sentence})[0]

    def batch(self, conversations: Iterable[Iterable[np.ndarray]],
              donors: Iterable[Iterable[np.ndarray]] | None = None, speakers: Iterable[Iterable[str]] | None = None,
              labels: Iterable[Iterable[int | None]] | None = None) -> Iterator[tuple[int, Turn]]:
        """(number of the conversation, its next turn) for all turns of all conversations, B at a time: a stream
        whose conversation ends takes the next one. The numbers are those of `listen`.

        `donors`: the memory of conversation i is written from donors[i] instead (a control). `speakers`: who says
        each sentence that i is written from. `labels`: i's true emotions (index, or None), for a bound: see `turn`.
        """
        none = repeat(())
        waiting = enumerate(zip(conversations, donors or repeat(None), speakers or none, labels or none,
                                strict=False))

        def queue(stream: int) -> Iterator[tuple[int, Sentence]]:
            for number, conversation in waiting:
                self.reset([stream])
                for sentence in self._sentences(*conversation):
                    yield number, sentence

        queues = [queue(stream) for stream in range(self.streams)]
        while now := {i: found for i, q in enumerate(queues) if (found := next(q, None))}:
            order = sorted(now, key=lambda i: len(self.histories[i].own) + len(now[i][1].tokens))
            size = len(order) if self.on_gpu or self.bucketed else TOGETHER
            for some in (order[start:start + size] for start in range(0, len(order), size)):
                for stream, turn in self.turn({i: now[i][1] for i in sorted(some)}).items():
                    yield now[stream][0], turn

    def _sentences(self, own: Iterable[np.ndarray], donor: Iterable[np.ndarray] | None, speakers: Iterable[str],
                   labels: Iterable[int | None]) -> Iterator[Sentence]:
        tokens = self.sllm.sentence
        written = repeat(None) if donor is None else chain(map(tokens, donor), repeat(EMPTY))
        return map(Sentence, map(tokens, own), written, chain(speakers, repeat("")), chain(labels, repeat(None)))

    def turn(self, sentences: Mapping[int, Sentence]) -> dict[int, Turn]:
        """The next sentence of some streams: written, the first of a conversation excepted, then its emotion read.

        Of a sentence with a label one more step lowers L_e of it (equations 5 and 6): it bears on later ones only.
        """
        streams, every = list(sentences), self.settings.reset_every
        for i in streams:
            if every and self.histories[i].turns and self.histories[i].turns % every == 0:
                self.lora.reset(i)
        own = self._own_losses({i: s for i, s in sentences.items() if self.histories[i].turns})
        losses, logits = self._written_and_read(sentences)
        probabilities, norms = logits.softmax(-1).cpu().numpy(), self.lora.norm(streams).tolist()
        self._learn({i: s for i, s in sentences.items() if s.label is not None})
        turns = {}
        for n, i in enumerate(streams):
            loss = float(np.mean(losses[i])) if losses[i] else np.nan
            turns[i] = Turn(probabilities[n], loss, own.get(i, loss), norms[n], len(losses[i]),
                            self.histories[i].skipped)
            answer = self.sllm.answer(int(probabilities[n].argmax()))
            self._remember(i, sentences[i], answer if self.settings.history_emotions == "predicted" else EMPTY)
        return turns

    def _written_and_read(self, sentences: Mapping[int, Sentence]) -> tuple[dict[int, list[float]], Tensor]:
        """L_t of each piece that a stream writes now, and the emotion logits after that, (streams, emotions)."""
        losses, logits = defaultdict(list), {}
        due = {i: self._due(i, sentence) for i, sentence in sentences.items()}
        for streams, parts in side_by_side(due):
            written, answers = self.write(parts, streams)
            for i, loss, answer in zip(streams, written.tolist(), answers, strict=True):
                losses[i].append(loss)
                if not self.learns and len(due[i]) == 1 and self._writes_itself(sentences[i]):
                    logits[i] = answer  # nothing has moved since
        if left := {i: s for i, s in sentences.items() if i not in logits}:
            logits |= zip(left, self.read(list(starmap(self._context, left.items())), list(left)), strict=True)
        return losses, torch.stack([logits[i] for i in sentences])

    def _due(self, stream: int, sentence: Sentence) -> list[Part]:
        """What is written now: the sentence, or nothing where it is the conversation's first."""
        history = self.histories[stream]
        written = sentence.tokens if sentence.donor is None else sentence.donor
        return self._pieces(history.written, written, sentence) if history.turns else []

    def _pieces(self, before: Tensor, tokens: Tensor, sentence: Sentence) -> list[Part]:
        """Tokens as one part, or, where the window cannot hold them, as several, each after the n_r before it."""
        whole, room = torch.cat([before, tokens]), self.sllm.window - self.n_r
        return [Part(tail(whole[:start], self.n_r), whole[start:start + room], sentence)
                for start in range(len(before), len(whole), room)]

    def _context(self, stream: int, sentence: Sentence) -> Part:
        """What an emotion is read after: the n_r tokens before the sentence, and the sentence."""
        return Part(EMPTY, torch.cat([self.histories[stream].own, sentence.tokens])[-self.sllm.window:], sentence)

    def write(self, parts: Sequence[Part], streams: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A step on L_t, or as many as `settings.steps`, of each of these streams. Returns, of the forward before
        the first: L_t, (rows,), and the emotion logits, (rows, emotions).

        A stream whose loss or gradient is not finite keeps its memory and counts in `skipped`. Raises UserError
        where n_limit < n_max + n_r.
        """
        self.sllm.fits([p.prefix for p in parts], [p.piece for p in parts])
        first = None
        for _ in range(self.settings.steps if self.learns else 1):
            losses, answers, gradient = self._passed(parts, streams, self.learns)
            first = first or (losses, answers)
            if self.learns:
                self._step(streams, losses, gradient)
        return first

    def read(self, parts: Sequence[Part], streams: Sequence[int]) -> Tensor:
        """Emotion logits at each row's end, (rows, emotions): no other logits bear on the answer (equation 5)."""
        return self._passed(parts, streams, predicted=False)[1]

    def _passed(self, parts: Sequence[Part], streams: Sequence[int], learn: bool = False, predicted: bool = True,
                ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One forward: L_t of each piece, teacher forced (as L_a, equations 3 and 4), (rows,); the emotion logits
        at its end, (rows, emotions); and, to `learn`, the gradient of what a step lowers, (rows, parameters)."""
        if self.bucketed:  # a row for every stream, of one token for those that wait
            asked = dict(zip(streams, parts, strict=True))
            parts = [asked.get(i, Part(EMPTY, self.sllm.answer(0))) for i in range(self.streams)]
        texts = rows(parts)
        # Nothing predicts the very first token.
        first = [max(1, len(part.prefix)) for part in parts] if predicted else []
        if not self.bucketed:
            lowered = partial(self._lowered, parts, streams) if learn else None
            return self._pass(self.sllm.batch(texts, first), parts, streams, lowered)
        most = max(len(part.piece) for part in parts) * predicted
        batch = self.sllm.batch(texts, first, bucket(max(map(len, texts))), bucket(most))
        losses, answers = self.graphs[learn](partial(self._fixed, learn), *batch)
        index = torch.tensor(streams, device=losses.device)
        return losses[index], answers[index], self.gradient[index] if learn else None

    def _fixed(self, learn: bool, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """The forward of all streams in their order; its gradient goes to `self.gradient`."""
        with fused(self.decoder):
            losses, answers, gradient = self._pass(
                Batch(*batch), (), range(self.streams), (lambda losses, _: losses) if learn else None)
        if learn:
            self.gradient.copy_(gradient)
        return losses, answers

    def _pass(self, batch: Batch, parts: Sequence[Part], streams: Sequence[int],
              lowered: Callable[[Tensor, Tensor], Tensor] | None) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.set_grad_enabled(lowered is not None), self.lora.active(streams) as leaf:
            hidden = self._hidden(batch, parts)  # (rows, longest, hidden)
            answers = self.sllm.emotions(hidden, batch)
            losses = self.sllm.losses(hidden, batch, self.settings.loss_vocabulary)
            gradient = None  # of all rows' sum: what a row lowers depends on its stream's memory alone
            if lowered:
                gradient, = torch.autograd.grad(lowered(losses, answers).sum(), leaf)
        return losses.detach(), answers.detach(), gradient

    def _hidden(self, batch: Batch, parts: Sequence[Part]) -> Tensor:
        """Last hidden states, (rows, longest, hidden), through the memory that is active."""
        return self.sllm.hidden(batch.ids)

    def _lowered(self, parts: Sequence[Part], streams: Sequence[int], losses: Tensor, answers: Tensor) -> Tensor:
        """What a step lowers, (rows,): L_t."""
        return losses

    def _step(self, streams: Sequence[int], losses: Tensor, gradient: Tensor) -> None:
        """One optimiser step of each of these streams by its gradient, (len(streams), parameters)."""
        norms = torch.linalg.vector_norm(gradient, dim=1)
        finite = (losses.isfinite() & norms.isfinite()).tolist()
        for i, fine in zip(streams, finite, strict=True):
            self.histories[i].skipped += not fine
        self.lora.step({i: row for i, row, fine in zip(streams, gradient, finite, strict=True) if fine})

    def _own_losses(self, sentences: Mapping[int, Sentence]) -> dict[int, float]:
        """L_t of the streams' own sentences under their memories as they are, where others are written."""
        losses = defaultdict(list)
        for streams, parts in side_by_side({i: self._pieces(self.histories[i].own, s.tokens, s) for i, s in
                                            sentences.items() if not self._writes_itself(s)}):
            for i, loss in zip(streams, self._passed(parts, streams)[0].tolist(), strict=True):
                losses[i].append(loss)
        return {i: float(np.mean(values)) for i, values in losses.items()}

    def _writes_itself(self, sentence: Sentence) -> bool:
        """Whether what is written with a sentence is the sentence."""
        return sentence.donor is None

    def _learn(self, sentences: Mapping[int, Sentence]) -> None:
        """The step of a bound, on the true emotions of these streams' sentences."""
        if sentences:
            parts, streams = list(starmap(self._context, sentences.items())), list(sentences)
            labels = torch.tensor([s.label for s in sentences.values()], device=self.sllm.device)
            losses, _, gradient = self._pass(
                self.sllm.batch(rows(parts)), parts, streams,
                lambda _, answers: F.cross_entropy(answers, labels, reduction="none"))
            self._step(streams, losses, gradient)

    def _remember(self, stream: int, sentence: Sentence, answer: Tensor) -> None:
        """Add a sentence, and its emotion token where that stands in the history; only the last n_r are kept."""
        history, own = self.histories[stream], torch.cat([sentence.tokens, answer])
        written = own if sentence.donor is None else sentence.donor
        history.own = tail(torch.cat([history.own, own]), self.n_r)
        history.written = tail(torch.cat([history.written, written]), self.n_r)
        history.turns += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the conversations have left here, for `torch.save`."""
        return {"backbone": self.sllm.fingerprint(), "memories": [memory.data for memory in self.lora.memories],
                "optimizer": self.lora.optimizer.state_dict(), "histories": list(map(asdict, self.histories))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a memory of the same settings has left: `listen(…, fresh=False)` goes on with the numbers
        that it would have had. UserError where that memory had another backbone."""
        if state["backbone"] != self.sllm.fingerprint():
            raise UserError(f"this memory was written over the backbone {state['backbone']}, not over "
                            f"{self.sllm.fingerprint()}: make one with the SLLM that it was written with")
        for memory, values in zip(self.lora.memories, state["memories"], strict=True):
            memory.data.copy_(values)
        self.lora.optimizer.load_state_dict(state["optimizer"])
        self.histories = [self.past(**history) for history in state["histories"]]


def is_exact(settings: MemorySettings) -> bool:
    """Whether these are settings of Algorithm 1."""
    return (settings.layers, settings.stepping, settings.rule, settings.read, settings.prefix_states) == EXACT


def rows(parts: Iterable[Part]) -> list[Tensor]:
    """Each prefix and piece as one row, (n + m,)."""
    return [torch.cat([part.prefix, part.piece]) for part in parts]


def side_by_side(parts: Mapping[int, Sequence[Part]]) -> Iterator[tuple[list[int], list[Part]]]:
    """(streams, a part of each): the first parts of all streams, then the second ones of those that have two, …"""
    for number in range(max(map(len, parts.values()), default=0)):
        streams = [i for i, some in parts.items() if number < len(some)]
        yield streams, [parts[i][number] for i in streams]


def tail(tokens: Tensor, count: int) -> Tensor:
    """The last `count` tokens."""
    return tokens[max(0, len(tokens) - count):]
