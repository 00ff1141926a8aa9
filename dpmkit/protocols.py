"""Who is a target and what it may hear: the SLLM's methods, their controls, and both protocols of the paper.

`metrics.targets` takes a protocol's targets (paper, Table 1) from a table of answers to every utterance. The paper
hears each target's history anew (`one_by_one`); as an answer is a function of what was heard so far, `predict` goes
once through a conversation, and gives the same numbers. Nothing later and no true label reaches an answer. An
utterance outside the label set (emotion None) is heard, written and answered as any other, and never scored.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import cheaper, metrics, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus, Fold
from .corpora.dynamics import emotion_prior, transition_matrix
from .finetune import Finetuned
from .memory import EMPTY, DynamicParameterMemory, Turn, tail
from .settings import MemorySettings, Settings, UserError
from .sllm import EmotionSLLM, even


@dataclass(frozen=True)
class Method:
    """What one method hears, in words and in tokens."""

    hears: str
    writes: bool = False  # earlier sentences and the target into a temporary LoRA
    donor: str = ""  # whose sentences are written, where not the conversation's own: stranger | speaker | shuffled
    memory: Mapping[str, Any] = field(default_factory=dict)  # settings of its own
    bound: bool = False  # no method: it learns every true emotion once it has answered

    def settings(self, asked: MemorySettings, window: int) -> MemorySettings:
        """The memory's settings for this method; a cache takes half of the SLLM's window."""
        cache = {"prefix": window // 2 - self.memory["sinks"]} if "sinks" in self.memory else {}
        return asked.but(**self.memory, **cache)


RESET = 5  # sentences between two resets of the control `dpm-reset`
METHODS = {
    "window": Method("the target and the n_r tokens before it; no memory"),
    "current": Method("the target alone", memory={"prefix": 0}),
    # Paper, Table 1: 'SLLM (whole sample at once)'; Table 4 shortens its window.
    "at-once": Method("the target and all history that fits the SLLM's window, cut from the end",
                      memory={"prefix": sys.maxsize}),
    "kv-window": Method("the target; of the history, the keys and values of 4 first tokens and of the last ones, "
                        "half a window in all, as they were when first heard (StreamingLLM)", writes=True,
                        memory={"steps": 0, "prefix_states": "reuse", "read": "before", "sinks": 4,
                                "rule": "semantic", "target": "sharpened", "stepping": "sentence",
                                "reset_every": 0, "history_emotions": "none"}),
    "own-answers": Method("as window, with the SLLM's own emotion tokens in the history; an SLLM trained with them",
                          memory={"history_emotions": "predicted"}),
    # Paper, Algorithm 1; Table 3 is the setting memory.stepping.
    "dpm": Method("the target and the n_r tokens before it; earlier sentences and the target through a temporary "
                  "LoRA (Algorithm 1)", writes=True),
    "dpm-swapped": Method("control: as dpm, but the temporary LoRA was written from another conversation of other "
                          "speakers", writes=True, donor="stranger"),
    "dpm-same-speaker": Method("control: as dpm, but written from another conversation of one of the speakers "
                               "(of strangers, where there is none)", writes=True, donor="speaker"),
    "dpm-shuffled": Method("control: as dpm, but the codes of each sentence are written in random order",
                           writes=True, donor="shuffled"),
    "dpm-reset": Method(f"control: as dpm, but the temporary LoRA is fresh every {RESET} sentences", writes=True,
                        memory={"reset_every": RESET}),
    "dpm-still": Method("control: as dpm at a learning rate of 0", writes=True, memory={"lr": 0.0}),
    "dpm-told": Method("BOUND, no method: as dpm, but after each answer one more step lowers the loss of that "
                       "sentence's true emotion", writes=True, bound=True),
}
TOKENS = 4096  # of a forward without a memory, padding counted
GROUP = 4  # conversations per stream in a file of predictions: a kill loses at most these
Chain = tuple[np.ndarray, np.ndarray]  # of emotions: transitions, (emotions, emotions), and prior, (emotions,)


@dataclass(frozen=True)
class Listener:
    """An SLLM, its settings, and what it may hear: utterance id -> codes, (frames,)."""

    settings: Settings
    sllm: EmotionSLLM
    codes: Mapping[str, np.ndarray]
    emotions: tuple[str, ...]
    inertia: Chain | None = None  # for memory.target = filtered
    kept: dict[MemorySettings, DynamicParameterMemory] = field(default_factory=dict)  # with what a GPU has recorded

    def hears(self, method: str) -> dict[str, Any]:
        """What its answers are a function of; of two methods that hear the same, the same."""
        how, window = METHODS[method], self.sllm.window
        asked = how.settings(self.settings.memory, window)
        if how.writes:
            return {"memory": asked, "donor": how.donor, "bound": how.bound, "seed": self.settings.seed,
                    "inertia": self.inertia and [a.tolist() for a in self.inertia]}
        return {"prefix": min(asked.prefix, window), "history": asked.history_emotions,
                "precision": asked.precision}

    def memory(self, asked: MemorySettings, conversations: int) -> DynamicParameterMemory:
        """A memory for so many conversations, of `evaluation.streams` streams at most."""
        streams = min(self.settings.evaluation.streams, max(1, conversations))
        if asked not in self.kept or self.kept[asked].streams < streams:
            self.kept[asked] = cheaper.memory(self.sllm, asked, streams, self.settings.seed, self.inertia)
        return self.kept[asked]


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, method: str,
            split: str = "test", limit: int = 0) -> pd.DataFrame:
    """Predictions of `method` on a split of `settings.fold`, a row per utterance, in order.

    Columns: those of `answered`, and of the memory: loss (L_t of what was written; NaN where nothing was), own_loss
    (L_t of the utterance itself under the memory before it is written, from each conversation's second on; of a
    swapped control another's memory, of `dpm-still` none), norm (of the memory's change), pieces (writes of this
    sentence) and skipped (updates left out so far, as they were not finite). Kept group by group, so that a killed
    run goes on; `limit`: the first conversations of the split (0: all). UserError for an unknown method or split.
    """
    listener, conversations, given = _asked(settings, corpus, codes, tuned, method, split, limit)
    made = runs.Artefact(settings, "predictions", predict, sllm=tuned.key, split=split,
                         conversations=[c.id for c in conversations], **listener.hears(method))
    # Longest first, so that no stream is left alone with a long one, whatever the caller's order. In groups, as one
    # that is heard again after a kill has the same company, and so the same bits.
    queue = sorted(conversations, key=lambda c: (-len(c.utterances), c.id))
    size = GROUP * settings.evaluation.streams
    groups = [queue[start:start + size] for start in range(0, len(queue), size)]

    def answers(group: Sequence[Conversation]) -> pd.DataFrame:
        return pd.concat(tqdm(listen(listener, group, method, given), method, len(group), unit="conversation"))

    try:
        return _in_order([made.table(runs.key([c.id for c in group]), partial(answers, group)) for group in groups],
                         conversations)
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory cannot hold {settings.evaluation.streams} streams: lower "
                        "evaluation.streams, memory.prefix or memory.rank, or set memory.layers=top-2, and run "
                        "again; finished conversations are kept") from error


def one_by_one(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, method: str,
               protocol: str = "all-lengths", limit: int = 0) -> pd.DataFrame:
    """As `predict` on the test split, but each target of the protocol (`all-lengths` or `complete`) is a recording
    that ends with it, and all of its history is heard again: what the paper does, and what `predict` saves."""
    listener, conversations, given = _asked(settings, corpus, codes, tuned, method, "test", limit)
    targets = set(metrics.targets(rows(conversations), protocol)["utterance"])
    recordings = [replace(c, utterances=c.utterances[:turn + 1]) for c in conversations
                  for turn, utterance in enumerate(c.utterances) if utterance.id in targets]
    return _in_order([table.tail(1) for table in listen(listener, recordings, method, given)], conversations)


def _asked(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, method: str, split: str,
           limit: int) -> tuple[Listener, Sequence[Conversation], dict[str, Conversation]]:
    """Who hears; the conversations of a split; and the donor of each, where the method takes another one's."""
    if method not in METHODS or split not in Fold.__annotations__:
        raise UserError(f"method {method!r} on split {split!r} is not known; choose one of {', '.join(METHODS)} on "
                        f"{', '.join(Fold.__annotations__)}")
    fold, donor = corpus.folds[settings.fold - 1], METHODS[method].donor
    conversations, given = corpus.select(getattr(fold, split)[:limit or None]), {}
    if donor in ("stranger", "speaker"):
        chosen = donors(rows(conversations), "conversation", shared=donor == "speaker")
        given = dict(zip(chosen, corpus.select(tuple(chosen.values())), strict=True))
    chain = inertia_of(corpus, fold) if settings.memory.target == "filtered" else None
    return Listener(settings, tuned.sllm, codes.codes, corpus.emotions, chain), conversations, given


def listen(listener: Listener, conversations: Sequence[Conversation], method: str,
           donors: Mapping[str, Conversation] | None = None) -> Iterator[pd.DataFrame]:
    """Hear these conversations by a method, `evaluation.streams` of them side by side, and answer every utterance:
    a table per conversation (columns: see `predict`), as they end. `donors`: conversation id -> the one that its
    memory is written from."""
    how, settings, codes = METHODS[method], listener.settings, listener.codes
    memory = how.settings(settings.memory, listener.sllm.window)
    heard = [[codes[u.id] for u in c.utterances] for c in conversations]
    if how.writes:
        written, writers = None, conversations
        if how.donor == "shuffled":
            written = [[np.random.default_rng([settings.seed, turn]).permutation(sentence)
                        for turn, sentence in enumerate(sentences)] for sentences in heard]
        elif how.donor:
            writers = [donors[c.id] for c in conversations]
            written = [[codes[u.id] for u in c.utterances] for c in writers]
        known = {emotion: i for i, emotion in enumerate(listener.emotions)} if how.bound else {}
        turns = listener.memory(memory, len(heard)).batch(
            heard, written, [[u.speaker for u in c.utterances] for c in writers],
            [[known.get(u.emotion) for u in c.utterances] for c in conversations])
    else:
        turns = _without_memory(listener.sllm.in_precision(memory.precision), heard, memory.prefix,
                                memory.history_emotions == "predicted")
    so_far: dict[int, list[Turn]] = defaultdict(list)
    for number, turn in turns:
        so_far[number].append(turn)
        if len(so_far[number]) == len(heard[number]):
            done = pd.DataFrame(map(vars, so_far.pop(number)))
            p = np.stack(done.pop("probabilities"))
            yield answered(rows([conversations[number]]), listener.emotions, p).join(done)


@torch.no_grad()
def _without_memory(sllm: EmotionSLLM, conversations: Sequence[Sequence[np.ndarray]], prefix: int,
                    own_answers: bool) -> Iterator[tuple[int, Turn]]:
    """(number of the conversation, its next turn), each read after its own tokens and the `prefix` before them, of
    as many as fit the window; `own_answers`: the SLLM's emotion tokens stand in the history.

    Without those all answers are independent: contexts of about one length share a forward, whose padding is next
    to nothing.
    """
    turns = [(i, turn) for i, c in enumerate(conversations) for turn in range(len(c))]
    rounds = [turns]
    if own_answers:
        rounds = [[at for at in turns if at[1] == turn] for turn in range(max(map(len, conversations)))]
    histories, answers = [EMPTY] * len(conversations), {}  # all tokens so far, (tokens,); turn -> (emotions,)
    for asked in rounds:
        contexts = []
        for i, turn in asked:
            sentence = sllm.sentence(conversations[i][turn])
            contexts.append(torch.cat([tail(histories[i], prefix), sentence])[-sllm.window:])
            histories[i] = torch.cat([histories[i], sentence])
        for batch in even(contexts, TOKENS):
            p = sllm.emotion_logits([contexts[row] for row in batch]).softmax(-1).cpu().numpy()  # (rows, emotions)
            answers.update(zip([asked[row] for row in batch], p, strict=True))
        for i, turn in asked if own_answers else ():
            histories[i] = torch.cat([histories[i], sllm.answer(int(answers[i, turn].argmax()))])
    for i, turn in turns:
        yield i, Turn(answers[i, turn], np.nan, np.nan, 0.0, 0, 0)


def inertia_of(corpus: Corpus, fold: Fold) -> Chain:
    """How emotions follow one another in the training conversations."""
    train = corpus.select(fold.train)
    return transition_matrix(train, corpus.emotions), emotion_prior(train, corpus.emotions)


def donors(table: pd.DataFrame, of: str, shared: bool = False) -> dict[str, str]:
    """For each `of` a table (conversation, or speaker) another one, the next in order: one that has no speaker (or
    conversation) in common with it, or, where `shared`, has one, if there is such; and no shorter, as a memory of
    fewer updates would be no control. UserError for a single conversation."""
    parts = table.groupby(of)["speaker" if of == "conversation" else "conversation"].agg(set)
    names, sizes, chosen = sorted(parts.index), table[of].value_counts(), {}
    if of == "conversation" and len(names) < 2:
        raise UserError("a control with another's memory needs two conversations or more in the split")
    for i, name in enumerate(names):
        others = names[i + 1:] + names[:i] or names
        fitting = [other for other in others if bool(parts[name] & parts[other]) == shared] or others
        chosen[name] = max(fitting, key=lambda other: min(sizes[other], sizes[name]))
    return chosen


def rows(conversations: Sequence[Conversation]) -> pd.DataFrame:
    """A row per utterance, in order: conversation, session, utterance, speaker, turn, start and end (seconds) and
    emotion (the true one; None outside the label set)."""
    return pd.DataFrame([{"conversation": c.id, "session": c.session, "utterance": u.id, "speaker": u.speaker,
                          "turn": turn, "start": u.start, "end": u.end, "emotion": u.emotion}
                         for c in conversations for turn, u in enumerate(c.utterances)])


def answered(table: pd.DataFrame, emotions: tuple[str, ...], probabilities: np.ndarray) -> pd.DataFrame:
    """`rows` with a method's answers, (utterances, emotions), as columns p_<emotion>."""
    return table.assign(**{f"p_{e}": p for e, p in zip(emotions, probabilities.T.astype(float), strict=True)})


def _in_order(tables: Iterable[pd.DataFrame], conversations: Sequence[Conversation]) -> pd.DataFrame:
    """The answers as `rows` of these conversations, in whatever order and company they were heard."""
    listed, table = rows(conversations), pd.concat(tables, ignore_index=True)
    return listed.merge(table.drop(columns=listed.columns.drop("utterance")), on="utterance")
