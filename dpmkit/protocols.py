"""Who is a target and what it may hear: the methods, run over conversations in the order of their utterances.

For every target: all earlier sentences are heard (for DPM: written, the first one excepted), then the target's own
codes, then its emotion is read. Nothing later and no true label reaches a prediction.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import memory, runs, sllm
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .finetune import Finetuned
from .memory import DynamicParameterMemory
from .settings import MemorySettings, Settings, UserError
from .sllm import EmotionSLLM

EMPTY = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Method:
    """How one SLLM method listens. `prefix`: tokens before the target's own, None for memory.prefix (n_r)."""

    hears: str
    prefix: int | None = None
    writes: bool = False
    swapped: bool = False


METHODS = {
    "window": Method("the target and the n_r tokens before it; no memory"),
    "current": Method("the target alone", prefix=0),
    "at-once": Method("the target and all history that fits the SLLM's window, cut from the end",
                      prefix=sys.maxsize),
    "dpm": Method("the target and the n_r tokens before it; earlier sentences and the target through a temporary "
                  "LoRA (Algorithm 1)", writes=True),
    "dpm-swapped": Method("control: as dpm, but the temporary LoRA was written from another conversation",
                          writes=True, swapped=True),
}


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, method: str,
            split: str = "test", limit: int | None = None) -> pd.DataFrame:
    """Predictions of `method` on a split of `settings.fold`, one row an utterance, in order.

    Columns: conversation, session, utterance, speaker, turn, start and end (seconds), emotion (None outside the
    label set), p_<emotion>, loss (L_t; NaN where nothing was written), norm (of the memory's change), pieces
    (writes of this sentence) and skipped (updates left out so far, as they were not finite). Cached a batch of
    conversations, so that a killed run goes on; `limit` takes the first conversations of the split (default:
    `settings.evaluation.limit`; 0: all).
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is not known; choose one of {', '.join(METHODS)}")
    if split not in ("train", "validation", "test"):
        raise UserError(f"split {split!r} is not known; choose train, validation or test")
    how, dpm = METHODS[method], settings.memory
    prefix = dpm.prefix if how.prefix is None else how.prefix
    ids = getattr(corpus.folds[settings.fold - 1], split)
    limit = settings.evaluation.limit if limit is None else limit
    conversations = corpus.select(ids[:limit] if limit else ids)
    donors = _donors(conversations) if how.swapped else {}
    key = runs.key(tuned.key, method, dpm if how.writes else [prefix, dpm.history_emotions], settings.seed,
                   split, [c.id for c in conversations],
                   runs.code_version(sllm, memory, sys.modules[__name__]))
    folder = runs.folder(settings, "predictions", key)
    # Alike lengths side by side, so that no stream waits; the order does not depend on the caller's.
    queue = sorted(conversations, key=lambda c: (len(c.utterances), c.id))
    parts = []
    with tqdm(total=sum(len(c.utterances) for c in queue), desc=f"{method} ({split})", unit="utt") as bar:
        for start in range(0, len(queue), settings.evaluation.streams):
            batch = queue[start:start + settings.evaluation.streams]
            part = folder / f"{start // settings.evaluation.streams:04d}-{runs.key([c.id for c in batch])}.parquet"
            if not part.is_file():
                table = listen(tuned.sllm, batch, codes.codes, corpus.emotions, dpm, prefix, how.writes,
                               [donors.get(c.id, c) for c in batch], settings.seed)
                with runs.atomic(part) as temporary:
                    table.to_parquet(temporary, index=False)
            parts.append(_read(part))
            bar.update(len(parts[-1]))
    table = pd.concat(parts, ignore_index=True)
    order = {c.id: i for i, c in enumerate(conversations)}
    return table.iloc[np.lexsort((table["turn"], table["conversation"].map(order)))].reset_index(drop=True)


def listen(model: EmotionSLLM, conversations: Sequence[Conversation], codes: dict[str, np.ndarray],
           emotions: tuple[str, ...], settings: MemorySettings, prefix: int, writes: bool = False,
           donors: Sequence[Conversation] | None = None, seed: int = 0) -> pd.DataFrame:
    """Hear these conversations side by side, one sentence a step, and read the emotion of every utterance.

    With `writes`, stream i's memory is written from `donors[i]` (default: the conversation itself).
    """
    heard = [_Stream(model, c, codes, settings.history_emotions == "predicted") for c in conversations]
    told = heard
    if writes and donors is not None and any(d is not c for d, c in zip(donors, conversations, strict=True)):
        told = [_Stream(model, d, codes, False) for d in donors]
    engine = DynamicParameterMemory(model, settings, len(heard), seed) if writes else None
    rows = []
    for turn in range(max(len(s.sentences) for s in heard)):
        live = [i for i, s in enumerate(heard) if turn < len(s.sentences)]
        losses, pieces = {}, {}
        if engine and turn:  # the first sentence gives no update (Algorithm 1)
            writers = [i for i in live if turn < len(told[i].sentences)]
            losses, pieces = _write(engine, told, writers, turn)
        contexts = [torch.cat([heard[i].history(turn, prefix), heard[i].sentences[turn]])[-model.window:]
                    for i in live]
        if engine:
            probabilities = engine.read(contexts, live).cpu().numpy()
            norms = engine.lora.norm().cpu().numpy()
        else:
            with torch.no_grad():
                probabilities = model.emotion_logits(contexts).softmax(-1).cpu().numpy()
        for i, p in zip(live, probabilities, strict=True):
            heard[i].answer(turn, int(p.argmax()))
            c, u = conversations[i], conversations[i].utterances[turn]
            rows.append({"conversation": c.id, "session": c.session, "utterance": u.id, "speaker": u.speaker,
                         "turn": turn, "start": u.start, "end": u.end, "emotion": u.emotion,
                         **{f"p_{e}": float(v) for e, v in zip(emotions, p, strict=True)},
                         "loss": losses.get(i, np.nan), "norm": float(norms[i]) if engine else 0.0,
                         "pieces": pieces.get(i, 0), "skipped": int(engine.skipped[i]) if engine else 0})
    return pd.DataFrame(rows)


class _Stream:
    """One conversation as tokens: its sentences, and the history before each."""

    def __init__(self, model: EmotionSLLM, conversation: Conversation, codes: dict[str, np.ndarray],
                 answers_in_history: bool):
        self.model, self.answers_in_history = model, answers_in_history
        self.sentences = [model.sentence(codes[u.id]) for u in conversation.utterances]
        self.said: dict[int, Tensor] = {}

    def answer(self, turn: int, emotion: int) -> None:
        """Keep the model's own answer for later histories (ablation `history_emotions: predicted`)."""
        if self.answers_in_history:
            answered = self.model.sentence(np.empty(0, dtype=np.int64), emotion)[1:]
            self.said[turn] = torch.cat([self.sentences[turn], answered])

    def history(self, turn: int, tokens: int) -> Tensor:
        """The last `tokens` tokens before sentence `turn`."""
        kept, length = [EMPTY], 0
        for i in range(turn - 1, -1, -1):
            if length >= tokens:
                break
            kept.append(self.said.get(i, self.sentences[i]))
            length += len(kept[-1])
        history = torch.cat(kept[::-1])
        return history[max(0, len(history) - tokens):]


def _write(engine: DynamicParameterMemory, told: Sequence[_Stream], writers: Sequence[int],
           turn: int) -> tuple[dict[int, float], dict[int, int]]:
    """Write sentence `turn` of these streams; one longer than window - n_r goes in pieces, each after the n_r
    tokens before it. Returns the mean L_t and the number of pieces a stream."""
    n_r, room = engine.settings.prefix, engine.sllm.window - engine.settings.prefix
    losses: dict[int, list[float]] = {i: [] for i in writers}
    start = 0
    while now := [i for i in writers if start < len(told[i].sentences[turn])]:
        before = [torch.cat([told[i].history(turn, n_r), told[i].sentences[turn][:start]]) for i in now]
        before = [b[max(0, len(b) - n_r):] for b in before]
        written = engine.write(before, [told[i].sentences[turn][start:start + room] for i in now], now)
        for i, loss in zip(now, written.tolist(), strict=True):
            losses[i].append(loss)
        start += room
    return {i: float(np.mean(v)) for i, v in losses.items()}, {i: len(v) for i, v in losses.items()}


def _donors(conversations: Sequence[Conversation]) -> dict[str, Conversation]:
    """Another conversation for each, of other speakers and no shorter where the split has any (a memory of fewer
    updates would be no control): the next such one in order of ids."""
    ordered = sorted(conversations, key=lambda c: c.id)
    if len(ordered) < 2:
        raise UserError("the swapped control needs two conversations or more in the split")
    donors = {}
    for i, conversation in enumerate(ordered):
        others = ordered[i + 1:] + ordered[:i]
        speakers, turns = {u.speaker for u in conversation.utterances}, len(conversation.utterances)
        strangers = [o for o in others if not speakers & {u.speaker for u in o.utterances}]
        donors[conversation.id] = max(strangers or others, key=lambda o: min(len(o.utterances), turns))
    return donors


def _read(part: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(part)
    except (OSError, ValueError) as error:
        raise UserError(f"{part} cannot be read: delete it and run again ({error})") from error
