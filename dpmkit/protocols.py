"""Who is a target and what it may hear: the methods, run over conversations in the order of their utterances.

For every target: all earlier sentences are heard (for DPM: written, the first one excepted), then the target's own
codes, then its emotion is read. Nothing later and no true label reaches a prediction.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import history, lora, memory, optimizer, runs, sllm, vocabulary
from . import prefix as prefixes
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .finetune import Finetuned
from .history import EMPTY, tail
from .memory import DynamicParameterMemory, Turn
from .settings import MemorySettings, Settings, UserError
from .sllm import EmotionSLLM

GROUP = 4  # conversations a stream between two writes of predictions: a kill loses at most these


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
    (writes of this sentence) and skipped (updates left out so far, as they were not finite). Cached a group of
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
                   runs.code_version(sllm, vocabulary, lora, prefixes, history, optimizer, memory,
                                     sys.modules[__name__]))
    folder = runs.folder(settings, "predictions", key)
    # Longest first, so that no stream is left alone with a long one; the order does not depend on the caller's. In
    # groups, as a group heard again after a kill has the same company, and so the same bits.
    queue = sorted(conversations, key=lambda c: (-len(c.utterances), c.id))
    size, tables = GROUP * settings.evaluation.streams, []
    with tqdm(total=sum(len(c.utterances) for c in queue), desc=f"{method} ({split})", unit="utt") as bar:
        for group in (queue[start:start + size] for start in range(0, len(queue), size)):
            part = folder / f"{runs.key([c.id for c in group])}.parquet"
            if not part.is_file():
                heard = listen(tuned.sllm, group, codes.codes, corpus.emotions, dpm, prefix, how.writes,
                               [donors[c.id] for c in group] if donors else None, settings.seed,
                               settings.evaluation.streams)
                made = []
                for table in heard:
                    made.append(table)
                    bar.update(len(table))
                with runs.atomic(part) as temporary:
                    pd.concat(made, ignore_index=True).to_parquet(temporary, index=False)
            else:
                bar.update(sum(len(c.utterances) for c in group))
            tables.append(_read(part))
    table = pd.concat(tables, ignore_index=True)
    order = {c.id: i for i, c in enumerate(conversations)}
    return table.iloc[np.lexsort((table["turn"], table["conversation"].map(order)))].reset_index(drop=True)


def listen(model: EmotionSLLM, conversations: Sequence[Conversation], codes: dict[str, np.ndarray],
           emotions: tuple[str, ...], settings: MemorySettings, prefix: int, writes: bool = False,
           donors: Sequence[Conversation] | None = None, seed: int = 0,
           streams: int = 16) -> Iterator[pd.DataFrame]:
    """Hear these conversations, `streams` of them side by side, and read the emotion of every utterance: a table a
    conversation (columns: see `predict`), as they end.

    With `writes`, stream i's memory is written from `donors[i]` (default: the conversation itself).
    """
    heard = [[codes[u.id] for u in c.utterances] for c in conversations]
    if writes:
        told = None if donors is None else [[codes[u.id] for u in d.utterances] for d in donors]
        turns = DynamicParameterMemory(model, settings, min(streams, max(1, len(heard))), seed).batch(heard, told)
    else:
        turns = _without_memory(model, heard, prefix, settings.history_emotions == "predicted", streams)
    said: dict[int, list[Turn]] = defaultdict(list)
    for number, turn in turns:
        said[number].append(turn)
        if len(said[number]) == len(heard[number]):
            c = conversations[number]
            yield pd.DataFrame([{
                "conversation": c.id, "session": c.session, "utterance": u.id, "speaker": u.speaker, "turn": i,
                "start": u.start, "end": u.end, "emotion": u.emotion,
                **{f"p_{e}": float(v) for e, v in zip(emotions, t.probabilities, strict=True)},
                "loss": t.loss, "norm": t.norm, "pieces": t.pieces, "skipped": t.skipped,
            } for i, (u, t) in enumerate(zip(c.utterances, said.pop(number), strict=True))])


@torch.no_grad()
def _without_memory(model: EmotionSLLM, conversations: Sequence[Sequence[np.ndarray]], prefix: int,
                    answers: bool, streams: int) -> Iterator[tuple[int, Turn]]:
    """(number of the conversation, its next turn), each read after its own tokens and the `prefix` before them,
    of as many as fit the window; `answers`: the model's own emotion tokens stand in the history."""
    for first in range(0, len(conversations), streams):
        batch = conversations[first:first + streams]
        histories = [EMPTY] * len(batch)
        for turn in range(max(map(len, batch))):
            live = [i for i, c in enumerate(batch) if turn < len(c)]
            now = [model.sentence(batch[i][turn]) for i in live]
            contexts = [torch.cat([tail(histories[i], prefix), s])[-model.window:]
                        for i, s in zip(live, now, strict=True)]
            probabilities = model.emotion_logits(contexts).softmax(-1).cpu().numpy()
            for i, sentence, p in zip(live, now, probabilities, strict=True):
                said = [model.answer(int(p.argmax()))] if answers else []
                histories[i] = tail(torch.cat([histories[i], sentence, *said]), min(prefix, model.window))
                yield first + i, Turn(p, float("nan"), 0.0, 0, 0)


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
