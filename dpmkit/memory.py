"""Dynamic Parameter Memory: a temporary LoRA that hears a conversation by gradient steps (Algorithm 1).

B conversations side by side, each with its own low-rank factors, optimiser moments, step count and history.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import machine, runs
from .cheaper import Prefixes
from .history import EMPTY, History, Part, Turn, taught
from .lora import TemporaryLoRA
from .optimizer import StreamOptimizer
from .prefix import Batch, Decoder
from .settings import MemorySettings, UserError
from .sllm import EmotionSLLM

FORMAT = 2  # of a saved memory


class DynamicParameterMemory:
    """B conversations, each with its own temporary LoRA.

    listen(sentences): one conversation, turn by turn. batch(conversations): many, B at a time.
    hear(sentences): one sentence of several streams; write, read, reset: the steps of it.
    The backbone's weights are the same bits before and after. In float32 a stream's numbers do not depend on which
    others share the batch, and equal a plain PEFT loop's: probabilities alone, in 2 and in 16 differ by at most
    7e-7 (CPU, demo shape, 96 sentences) and 8e-7 (H100). In bfloat16 that is not promised: products of other shapes
    round elsewhere, by 0.009 on the H100; the CPU gave the same bits.
    """

    def __init__(self, sllm: EmotionSLLM, settings: MemorySettings, streams: int = 1, seed: int = 0,
                 inertia: tuple[np.ndarray, np.ndarray] | None = None):
        """`inertia`: transitions, shape (emotions, emotions), and prior, (emotions,), for the target `filtered`.

        UserError for settings that contradict each other, or that this backbone cannot honour.
        """
        if settings.scope == "speaker":
            raise UserError("setting memory.scope = speaker: DynamicParameterMemory takes what it is given for one "
                            "conversation; give it each speaker's utterances (protocols.grouped), with "
                            "memory.scope = conversation")
        if settings.target == "filtered" and inertia is None:
            raise UserError("setting memory.target = filtered needs the emotions' transitions and prior: pass "
                            "DynamicParameterMemory(…, inertia=(transition, prior))")
        self.inertia = inertia
        self.histories = [History(settings, sllm.window) for _ in range(streams)]
        sllm = sllm.in_precision(settings.precision).requires_grad_(False).eval()
        self.sllm, self.settings, self.streams, self.seed = sllm, settings, streams, seed
        self.end = sllm.sentence(EMPTY.numpy())
        self.lora = TemporaryLoRA(sllm, streams, settings.rank, settings.alpha, settings.layers, seed)
        self.optimizer = StreamOptimizer(settings, self.lora.flat, self.lora.fresh)
        self.decoder = Decoder(sllm, self.lora.lowest)
        self.decoder.check()
        self.prefixes = Prefixes(settings, self.decoder, self.lora)

    def reset(self, streams: Sequence[int] | None = None) -> None:
        """A fresh memory, moments, counts and history for these streams (default: all), in place."""
        index = list(range(self.streams) if streams is None else streams)
        self.optimizer.reset(index)
        for i in index:
            self.histories[i] = History(self.settings, self.sllm.window)
        self.prefixes.reset(index)

    # -- whole conversations ---------------------------------------------------------------------------------

    def listen(self, sentences: Iterable[np.ndarray], stream: int = 0, fresh: bool = True,
               speakers: Iterable[str] = ()) -> Iterator[Turn]:
        """A turn for each sentence, as they come; sentences: codes, shape (frames,), one array each; `speakers`:
        who says each, where that is known.

        With `fresh=False` the stream goes on where it is, e.g. after `load`.
        """
        if fresh:
            self.reset([stream])
        for codes, speaker in zip(sentences, itertools.chain(speakers, itertools.repeat("")), strict=False):
            yield self.hear({stream: self.sllm.sentence(codes)}, speakers={stream: speaker})[stream]

    def batch(self, conversations: Iterable[Iterable[np.ndarray]],
              donors: Iterable[Iterable[np.ndarray]] | None = None,
              speakers: Iterable[Iterable[str]] | None = None,
              labels: Iterable[Iterable[int | None]] | None = None) -> Iterator[tuple[int, Turn]]:
        """(number of the conversation, its next turn) for all turns of all conversations, B at a time: a stream
        whose conversation ends takes the next one. The numbers are those of `listen`.

        `donors`: the memory of conversation i is written from donors[i] instead (a control). `speakers`: who says
        each sentence that i is written from. `labels`: i's true emotions (index, or None), for a bound: see `hear`.
        """
        none = itertools.repeat(())
        waiting = zip(itertools.count(), conversations, donors or itertools.repeat(None), speakers or none,
                      labels or none, strict=False)
        live: dict[int, tuple[int, Iterator]] = {}
        while True:
            now = {}
            for stream in range(self.streams):
                while stream not in now:
                    if stream not in live:
                        if (following := next(waiting, None)) is None:
                            break
                        live[stream] = following[0], self._turns(*following[1:])
                        self.reset([stream])
                    if (turn := next(live[stream][1], None)) is None:
                        del live[stream]
                    else:
                        now[stream] = turn
            if not now:
                return
            given = ({i: turn[n] for i, turn in now.items() if turn[n] is not None} for n in range(4))
            for stream, turn in self.hear(*given).items():
                yield live[stream][0], turn

    def _turns(self, own: Iterable[np.ndarray], other: Iterable[np.ndarray] | None, speakers: Iterable[str],
               labels: Iterable[int | None]) -> Iterator[tuple]:
        """A conversation's sentences: tokens, those to be written instead, who says these, and a true emotion."""
        said, after = self.sllm.sentence, itertools.chain
        told = itertools.repeat(None) if other is None else after(map(said, other), itertools.repeat(EMPTY))
        return zip(map(said, own), told, after(speakers, itertools.repeat("")),
                   after(labels, itertools.repeat(None)), strict=False)

    def hear(self, sentences: Mapping[int, Tensor], told: Mapping[int, Tensor] | None = None,
             speakers: Mapping[int, str] | None = None,
             labels: Mapping[int, int | None] | None = None) -> dict[int, Turn]:
        """The next sentence (tokens of `EmotionSLLM.sentence`) of some streams: written, the first of a
        conversation excepted, then its emotion read (`memory.read = before`: before any of it is written).

        `told`: the sentences that a stream's memory is written from, where they are not its own; `speakers`: who
        says them. `labels`: true emotions, for a bound: once all has been read, one more step lowers the
        cross-entropy of each at its sentence's `<audio_end>`, over the emotion logits alone (as L_e). A label bears
        on later sentences only.
        """
        told, streams, self.speakers = told or {}, list(sentences), speakers or {}
        every, before = self.settings.reset_every, self.settings.read == "before"
        if due := [i for i in streams if every and self.histories[i].turns and not self.histories[i].turns % every]:
            self.optimizer.forget(due)
        plans = {i: self.histories[i].plan(sentences[i], told.get(i)) for i in streams}
        losses: dict[int, list[float]] = {i: [] for i in streams}
        own = self._own_losses({i: sentences[i] for i in streams if self.histories[i].turns
                                and (i in told or self.settings.stepping != "sentence")})
        if copied := [i for i in streams if plans[i].copied]:
            self.prefixes.told.take(copied, self.prefixes.own, copied)
        if not before:
            self._apart({i: p.writes for i, p in plans.items()}, losses)
        self._apart({i: p.reads for i, p in plans.items()}, losses)
        batch, kept = self.prefixes.prepared([plans[i].main for i in streams], streams, self.prefixes.own), []
        logits = torch.empty(len(streams), len(self.sllm.vocabulary.emotions), device=self.sllm.device)
        writers = [n for n, i in enumerate(streams) if plans[i].main.writes]
        readers = [n for n in range(len(streams)) if not (before and n in writers)]
        if writers:
            part = batch.select(writers)
            written, answers = self._write(part, [streams[n] for n in writers])
            for n, loss in zip(writers, written.tolist(), strict=True):
                losses[streams[n]].append(loss)
            if before:
                logits[writers] = answers
                kept.append((writers, part))
        if readers:
            part = batch if len(readers) == len(streams) else batch.select(readers)
            logits[readers] = self._read(part, [streams[n] for n in readers])
            kept.append((readers, part))
        if before:
            self._apart({i: p.writes for i, p in plans.items()}, losses)
        probabilities, norms = logits.softmax(-1).cpu().numpy(), self.lora.norm().tolist()
        out = {}
        for n, i in enumerate(streams):
            loss = float(np.mean(losses[i])) if losses[i] else float("nan")
            answer = self.sllm.answer(int(probabilities[n].argmax()))
            self.histories[i].heard(sentences[i], told.get(i), plans[i].unwritten,
                                    answer if self.settings.history_emotions == "predicted" else EMPTY)
            out[i] = Turn(probabilities[n], loss, own.get(i, loss), norms[i], len(losses[i]),
                          int(self.optimizer.skipped[i]))
        if known := [n for n, i in enumerate(streams) if (labels or {}).get(i) is not None]:
            self._label(batch.select(known), [streams[n] for n in known], [labels[streams[n]] for n in known])
        for rows, part in kept:
            self.prefixes.advance(self.prefixes.own, [streams[n] for n in rows], part)
        return out

    # -- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything that a conversation has left here, as one safetensors file, written atomically."""
        tensors = {name: getattr(self.optimizer, name) for name in (*StreamOptimizer.STATE, "flat")}
        for i, history in enumerate(self.histories):
            tensors |= {f"own.{i}": history.own, f"told.{i}": history.told}
        for name, states in self.prefixes.kept.items():
            tensors |= {f"{name}.{key}": value for key, value in states.tensors().items()}
        facts = {"version": FORMAT, "backbone": self.sllm.fingerprint(), "settings": asdict(self.settings),
                 "streams": self.streams, "seed": self.seed,
                 "inertia": self.inertia and [part.tolist() for part in self.inertia],
                 "histories": [[h.unwritten, h.turns, {who: belief.tolist() for who, belief in h.beliefs.items()}]
                               for h in self.histories]}
        with runs.atomic(Path(path)) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary,
                      metadata={"dpmkit": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path, sllm: EmotionSLLM) -> DynamicParameterMemory:
        """The memory that `save` wrote, over the backbone that it was written with; `listen(…, fresh=False)` goes
        on with the numbers that it would have had. UserError for another backbone or a file of another kind."""
        try:
            with safe_open(path, "pt", device=str(sllm.device)) as file:
                facts = json.loads(file.metadata()["dpmkit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if facts["version"] != FORMAT:
                raise ValueError(f"format {facts['version']}, not {FORMAT}")
            inertia = facts["inertia"] and tuple(np.array(part) for part in facts["inertia"])
            memory = cls(sllm, MemorySettings(**facts["settings"]), facts["streams"], facts["seed"], inertia)
            if facts["backbone"] != memory.sllm.fingerprint():
                raise UserError(f"the memory in {path} was written over the backbone {facts['backbone']}, not over "
                                f"{memory.sllm.fingerprint()}: load the SLLM that it was saved with")
            for name in (*StreamOptimizer.STATE, "flat"):
                getattr(memory.optimizer, name).copy_(tensors[name])
            for i, history in enumerate(memory.histories):
                history.own, history.told = (tensors[f"{which}.{i}"].cpu() for which in ("own", "told"))
                history.unwritten, history.turns, beliefs = facts["histories"][i]
                history.beliefs = {who: np.array(belief) for who, belief in beliefs.items()}
            for name, states in memory.prefixes.kept.items():
                states.restore({k.removeprefix(f"{name}."): v for k, v in tensors.items()
                                if k.startswith(f"{name}.")})
            return memory
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not a memory that this version of dpmkit saved ({error}); hear the "
                            "conversation again") from error

    # -- the steps -------------------------------------------------------------------------------------------

    def write(self, prefixes: Sequence[Tensor], sentences: Sequence[Tensor],
              streams: Sequence[int] | None = None) -> Tensor:
        """One sentence into each stream; returns L_t before the first of its steps, shape (len(streams),).

        `prefixes`: the n_r tokens before each sentence; both are tokens of `EmotionSLLM.sentence`. A stream
        whose loss or gradient is not finite keeps its last memory and counts in `skipped`.
        Raises UserError where n_limit < n_max + n_r.
        """
        streams = list(range(self.streams) if streams is None else streams)
        self.sllm.fits(prefixes, sentences)
        self.prefixes.reset(streams)  # what stands before is given
        parts = [Part(p, s, True) for p, s in zip(prefixes, sentences, strict=True)]
        return self._write(self.prefixes.prepared(parts, streams, self.prefixes.own), streams)[0]

    def read(self, prefixes: Sequence[Tensor], streams: Sequence[int] | None = None) -> Tensor:
        """Emotion probabilities, shape (len(streams), emotions), after each prefix (ends in `<audio_end>`)."""
        streams = list(range(self.streams) if streams is None else streams)
        batch = self.decoder.lower(Batch(tuple(prefixes), (1,) * len(streams)))
        return self._read(batch, streams).softmax(-1)

    def _apart(self, parts: Mapping[int, Sequence[Part]], losses: dict[int, list[float]]) -> None:
        """Hear parts, a stream's one after the other: those that write with a step."""
        longest = max(map(len, parts.values()), default=0)
        for number, writes, other in itertools.product(range(longest), (True, False), (True, False)):
            streams = [i for i, p in parts.items() if number < len(p)
                       and (p[number].writes, p[number].other) == (writes, other)]
            if not streams:
                continue
            states = self.prefixes.told if other else self.prefixes.own
            batch = self.prefixes.prepared([parts[i][number] for i in streams], streams, states)
            if writes:
                for i, loss in zip(streams, self._write(batch, streams)[0].tolist(), strict=True):
                    losses[i].append(loss)
            if self.settings.prefix_states == "reuse":
                if not writes or self.settings.read == "after":
                    self._read(batch, streams)  # its states are those of the memory after the write
                self.prefixes.advance(states, streams, batch)

    @torch.no_grad()
    def _own_losses(self, sentences: Mapping[int, Tensor]) -> dict[int, float]:
        """L_t of these streams' next sentences under their memories as they are: no step, no state kept."""
        pieces = {i: self.histories[i].pieces(s) for i, s in sentences.items()}
        losses: dict[int, list[float]] = {i: [] for i in sentences}
        for number in range(max(map(len, pieces.values()), default=0)):
            streams = [i for i, p in pieces.items() if number < len(p)]
            states = self.prefixes.own if self.settings.prefix_states == "reuse" and not number else None
            batch = self.prefixes.prepared([Part(*pieces[i][number], False) for i in streams], streams, states)
            with self.lora.active(self.lora.flat[streams]):
                got = self._losses(self.decoder.upper(batch), batch)
            for i, loss in zip(streams, got.tolist(), strict=True):
                losses[i].append(loss)
        return {i: float(np.mean(values)) for i, values in losses.items()}

    def _losses(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.sllm.code_losses(hidden, batch.rows, batch.first, self.settings.loss_vocabulary)

    def _label(self, batch: Batch, streams: list[int], labels: list[int]) -> None:
        """One step on the cross-entropy of each stream's true emotion, at the end of its row."""
        with torch.enable_grad(), machine.tf32(self.sllm):
            leaf = self.lora.flat[streams].requires_grad_()
            with self.lora.active(leaf):
                answered = self.sllm.emotions_after(self.decoder.upper(batch), batch.rows)
            lowered = F.cross_entropy(answered, torch.tensor(labels, device=answered.device), reduction="none")
            gradient, = torch.autograd.grad(lowered.sum(), leaf)
        self.optimizer.step(streams, gradient, torch.isfinite(lowered.detach()))

    def _write(self, batch: Batch, streams: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The steps on a batch's L_t: the loss before the first of them, (rows,), and the emotion logits of that
        same forward, (rows, emotions), where they are what is read."""
        index, first, answers, target = list(streams), None, None, None
        for step in range(max(1, self.settings.steps)):
            if step:  # what the first forward left in a cache is that of the memory before
                batch = batch.select(range(len(batch.rows)))
            with torch.set_grad_enabled(self.settings.steps > 0):
                leaf = self.lora.flat[index].requires_grad_(self.settings.steps > 0)
                with self.lora.active(leaf):
                    hidden = self.decoder.upper(batch)
                losses = lowered = self._losses(hidden, batch)
                if self.settings.rule != "semantic":
                    answered = self.sllm.emotions_after(hidden, batch.rows)
                    ends = [torch.equal(row[-1:], self.end) for row in batch.rows]
                    said = answered.detach().softmax(-1)
                    if target is None:
                        target = taught([self.histories[i] for i in index],
                                        [self.speakers.get(i, "") for i in index], said, ends, self.inertia)
                    surprise = -(target * answered.log_softmax(-1)).sum(-1)
                    # A target that is the answer teaches nothing; AdamW would make full steps of rounding noise.
                    new = (target - said).abs().amax(-1) > 1e-6
                    surprise = surprise * (new & torch.tensor(ends).to(new))  # not of a sentence's earlier pieces
                    lowered = surprise if self.settings.rule == "emotion" else losses + surprise
            if first is None:
                first = losses.detach()
                if self.settings.read == "before":
                    answers = self.sllm.emotions_after(hidden.detach(), batch.rows)
            if self.settings.steps:
                # Each stream's loss depends on its own row alone, so the sum's gradient is each one's own.
                with machine.tf32(self.sllm):
                    gradient, = torch.autograd.grad(lowered.sum(), leaf)
                self.optimizer.step(index, gradient, torch.isfinite(lowered.detach()))
        return first, answers

    @torch.no_grad()
    def _read(self, batch: Batch, streams: Sequence[int]) -> Tensor:
        with self.lora.active(self.lora.flat[list(streams)]):
            return self.sllm.emotions_after(self.decoder.upper(batch), batch.rows)
