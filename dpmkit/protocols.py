"""Who is a target and what it may hear: the methods, run over conversations in the order of their utterances.

For every target: all earlier sentences are heard (for DPM: written, the first one excepted), then the target's own
codes, then its emotion is read. Nothing later and no true label reaches a prediction. `predict` goes once through
a conversation and reads every utterance as it comes (`streaming`); as each method is a function of what was heard
so far, these are also the numbers of `all-lengths` (every labelled utterance is a target) and `complete` (the last
one is), which `one_by_one` hears anew for every target, as the paper does.

Unlabelled utterances (outside the label set), by one rule for every method, filter, reference classifier and
memory: each is an utterance like any other. It is encoded and stepped through with its own evidence, and has its
row in every table of predictions, emotion None; it is never scored, and no emotion loss is trained on it. Which
ones have a label is thus never told. (Transitions are counted from a speaker's labelled one to the next.)
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus, Fold
from .corpora.dynamics import emotion_prior, transition_matrix
from .finetune import Finetuned
from .history import EMPTY, tail
from .memory import DynamicParameterMemory, Turn
from .settings import MemorySettings, Settings, UserError
from .sllm import EmotionSLLM

GROUP = 4  # conversations a stream between two writes of predictions: a kill loses at most these


@dataclass(frozen=True)
class Method:
    """How one SLLM method listens. `prefix`: tokens before the target's own, None for memory.prefix (n_r); `donor`:
    whose sentences its memory is written from, where not the conversation's own; `memory`: settings of its own;
    `bound`: no method, as it learns every true emotion once it has answered."""

    hears: str
    prefix: int | None = None
    writes: bool = False
    donor: str = ""
    memory: tuple[tuple[str, Any], ...] = ()
    control: bool = False
    bound: bool = False

    def settings(self, asked: MemorySettings, window: int) -> MemorySettings:
        """The memory's settings for this method; a cache takes half of the SLLM's window."""
        own = dict(self.memory)
        return replace(asked, **own, **({"prefix": window // 2 - own["sinks"]} if "sinks" in own else {}))


RESET = 5  # sentences between two resets of the control `dpm-reset`
METHODS = {
    "window": Method("the target and the n_r tokens before it; no memory"),
    "current": Method("the target alone", prefix=0),
    "at-once": Method("the target and all history that fits the SLLM's window, cut from the end",
                      prefix=sys.maxsize),
    "kv-window": Method("the target; of the history, the keys and values of 4 first tokens and of the last ones, "
                        "half a window in all, as they were when first heard (StreamingLLM)", writes=True,
                        memory=(("steps", 0), ("prefix_states", "reuse"), ("read", "before"), ("sinks", 4),
                                ("rule", "semantic"), ("target", "sharpened"), ("stepping", "sentence"),
                                ("reset_every", 0), ("history_emotions", "none"))),
    "own-answers": Method("as window, with the SLLM's own emotion tokens in the history; an SLLM trained with them",
                          memory=(("history_emotions", "predicted"),)),
    "dpm": Method("the target and the n_r tokens before it; earlier sentences and the target through a temporary "
                  "LoRA (Algorithm 1)", writes=True),
    "dpm-swapped": Method("control: as dpm, but the temporary LoRA was written from another conversation of other "
                          "speakers", writes=True, donor="stranger", control=True),
    "dpm-same-speaker": Method("control: as dpm, but written from another conversation of one of the speakers "
                               "(of strangers, where there is none)", writes=True, donor="speaker", control=True),
    "dpm-shuffled": Method("control: as dpm, but the codes of each sentence are written in random order",
                           writes=True, donor="shuffled", control=True),
    "dpm-reset": Method(f"control: as dpm, but the temporary LoRA is fresh every {RESET} sentences", writes=True,
                        memory=(("reset_every", RESET),), control=True),
    "dpm-still": Method("control: as dpm at a learning rate of 0", writes=True, memory=(("lr", 0.0),),
                        control=True),
    "dpm-told": Method("BOUND, no method: as dpm, but after each answer one more step lowers the loss of that "
                       "sentence's true emotion", writes=True, bound=True),
}


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, method: str,
            split: str = "test", limit: int = 0) -> pd.DataFrame:
    """Predictions of `method` on a split of `settings.fold`, one row an utterance, in order.

    Columns: conversation, session, utterance, speaker, turn, start and end (seconds), emotion (None outside the
    label set), p_<emotion>, loss (L_t of what was written; NaN where nothing was), own_loss (L_t of the utterance
    itself under the memory before it is written, from each conversation's second on: of `dpm` its own memory, of a
    swapped control another's, of `dpm-still` none), norm (of the memory's change), pieces (writes of this
    sentence) and skipped (updates left out so far, as they were not finite). Cached a group of
    conversations, so that a killed run goes on; `limit` takes the first conversations of the split (0: all).
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is not known; choose one of {', '.join(METHODS)}")
    if split not in ("train", "validation", "test"):
        raise UserError(f"split {split!r} is not known; choose train, validation or test")
    how, fold = METHODS[method], corpus.folds[settings.fold - 1]
    asked = how.settings(settings.memory, tuned.sllm.window)
    conversations = corpus.select(getattr(fold, split)[:limit or None])
    spoken = grouped(conversations, settings.memory, method)
    donors = donors_of(spoken, how.donor) if how.donor in ("stranger", "speaker") else {}
    inertia = _inertia(asked, corpus, fold) if how.writes else None
    made = runs.artefact(
        settings, "predictions", predict, sllm=tuned.key, method=method, seed=settings.seed, split=split,
        memory=asked if how.writes else [how.prefix, asked.prefix, asked.history_emotions, asked.precision],
        conversations=[c.id for c in conversations], inertia=inertia and [a.tolist() for a in inertia])
    # Longest first, so that no stream is left alone with a long one; the order does not depend on the caller's. In
    # groups, as a group heard again after a kill has the same company, and so the same bits.
    queue = sorted(spoken, key=lambda c: (-len(c.utterances), c.id))
    streams = settings.evaluation.streams
    groups = [queue[start:start + GROUP * streams] for start in range(0, len(queue), GROUP * streams)]
    parts = [made.folder / f"{runs.key([c.id for c in group])}.parquet" for group in groups]
    model = tuned.sllm if all(part.is_file() for part in parts) else tuned.sllm.in_precision(asked.precision)
    shared = (model, codes.codes, corpus.emotions, settings.memory, method, donors, settings.seed, inertia)
    with made.making(*parts), tqdm(total=sum(len(c.utterances) for c in queue), desc=f"{method} ({split})",
                                   unit="utt") as bar:
        bar.update(sum(len(c.utterances) for group, part in zip(groups, parts, strict=True) if part.is_file()
                       for c in group))
        for group, part in zip(groups, parts, strict=True):
            if not part.is_file():
                streams = _hear(*shared, group, part, streams, bar)
    tables = [_read(part) for part in parts]
    return _in_order(pd.concat(tables, ignore_index=True), conversations)


def _hear(model: EmotionSLLM, codes: Mapping[str, np.ndarray], emotions: tuple[str, ...], settings: MemorySettings,
          method: str, donors: Mapping[str, Conversation], seed: int, inertia: tuple | None,
          group: Sequence[Conversation], part: Path, streams: int, bar: tqdm) -> int:
    """Write the predictions of one group to `part`. Where the GPU's memory cannot hold so many streams the group is
    heard again with half as many; returns how many it held."""
    while True:
        made = []
        try:
            for table in listen(model, group, codes, emotions, settings, method, donors, seed, streams, inertia):
                made.append(table)
                bar.update(len(table))
            break
        except torch.OutOfMemoryError as error:
            bar.update(-sum(len(table) for table in made))
            if streams == 1:
                raise UserError("the GPU's memory cannot hold one conversation: lower memory.prefix or memory.rank "
                                "or set memory.layers=top-2; finished conversations are kept") from error
            streams //= 2
        # Out of the handler, whose traceback holds what filled the memory.
        torch.cuda.empty_cache()
        tqdm.write(f"CUDA out of memory: going on with {streams} stream(s); evaluation.streams={streams} would "
                   "have started there", file=sys.stderr)
    with runs.atomic(part) as temporary:
        pd.concat(made, ignore_index=True).to_parquet(temporary, index=False)
    return streams


def listen(model: EmotionSLLM, conversations: Sequence[Conversation], codes: Mapping[str, np.ndarray],
           emotions: tuple[str, ...], settings: MemorySettings, method: str,
           donors: Mapping[str, Conversation] | None = None, seed: int = 0, streams: int = 16,
           inertia: tuple[np.ndarray, np.ndarray] | None = None) -> Iterator[pd.DataFrame]:
    """Hear these conversations by a method, `streams` of them side by side, and read the emotion of every
    utterance: a table a conversation (columns: see `predict`), as they end.

    `donors`: conversation id -> the one that its memory is written from, for the controls that ask for it;
    `inertia`: transitions and prior, where the memory asks for them.
    """
    how = METHODS[method]
    settings = how.settings(settings, model.window)
    model = model.in_precision(settings.precision)
    if how.writes and settings.scope == "speaker":
        if any(len({u.speaker for u in c.utterances}) > 1 for c in conversations):
            raise UserError("setting memory.scope = speaker needs each speaker's utterances as a conversation: "
                            "protocols.grouped")
        settings = replace(settings, scope="conversation")
    heard = [[codes[u.id] for u in c.utterances] for c in conversations]
    if how.writes:
        told, spoken = None, conversations
        if how.donor == "shuffled":
            told = [[np.random.default_rng([seed, turn]).permutation(c) for turn, c in enumerate(h)] for h in heard]
        elif how.donor:
            spoken = [donors[c.id] for c in conversations]
            told = [[codes[u.id] for u in c.utterances] for c in spoken]
        engine = DynamicParameterMemory(model, settings, min(streams, max(1, len(heard))), seed, inertia)
        true = {emotion: i for i, emotion in enumerate(emotions)} if how.bound else {}
        turns = engine.batch(heard, told, [[u.speaker for u in c.utterances] for c in spoken],
                             [[true.get(u.emotion) for u in c.utterances] for c in conversations])
    else:
        prefix = settings.prefix if how.prefix is None else how.prefix
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
                "loss": t.loss, "own_loss": t.own_loss, "norm": t.norm, "pieces": t.pieces, "skipped": t.skipped,
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
                yield first + i, Turn(p, float("nan"), float("nan"), 0.0, 0, 0)


def one_by_one(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, method: str,
               protocol: str = "all-lengths", split: str = "test", limit: int = 0) -> pd.DataFrame:
    """As `predict`, but each target of the protocol (`all-lengths` or `complete`) is a recording of its own that
    ends with it, and all of its history is heard again: what the paper does, and what `streaming` saves."""
    fold = corpus.folds[settings.fold - 1]
    conversations = corpus.select(getattr(fold, split)[:limit or None])
    how, spoken = METHODS[method], grouped(conversations, settings.memory, method)
    whole = donors_of(spoken, how.donor) if how.donor in ("stranger", "speaker") else {}
    labelled = [[u.id for u in c.utterances if u.emotion is not None] for c in conversations]
    targets = {name for c in labelled for name in (c if protocol == "all-lengths" else c[-1:])}
    cut, donors = [], {}
    for conversation in spoken:
        for turn, utterance in enumerate(conversation.utterances):
            if utterance.id in targets:
                part = replace(conversation, id=f"{conversation.id}#{turn}",
                               utterances=conversation.utterances[:turn + 1])
                cut.append(part)
                donors[part.id] = whole.get(conversation.id)
    inertia = _inertia(how.settings(settings.memory, tuned.sllm.window), corpus, fold)
    tables = listen(tuned.sllm, cut, codes.codes, corpus.emotions, settings.memory, method, donors, settings.seed,
                    settings.evaluation.streams, inertia)
    return _in_order(pd.concat([table.tail(1) for table in tables], ignore_index=True), conversations)


def _inertia(asked: MemorySettings, corpus: Corpus, fold: Fold) -> tuple[np.ndarray, np.ndarray] | None:
    """Transitions and prior of the training conversations, where the write rule needs them."""
    if asked.rule == "semantic" or asked.target != "filtered":
        return None
    train = corpus.select(fold.train)
    return transition_matrix(train, corpus.emotions), emotion_prior(train, corpus.emotions)


def _in_order(table: pd.DataFrame, conversations: Sequence[Conversation]) -> pd.DataFrame:
    """The rows in the order of these conversations, and each in its own, whatever it was heard in."""
    place = {u.id: (n, c.id, turn) for n, c in enumerate(conversations) for turn, u in enumerate(c.utterances)}
    order = sorted(range(len(table)), key=lambda row: place[table["utterance"].iloc[row]][::2])
    table = table.iloc[order].reset_index(drop=True)
    return table.assign(conversation=[place[u][1] for u in table["utterance"]],
                        turn=[place[u][2] for u in table["utterance"]])


def grouped(conversations: Sequence[Conversation], settings: MemorySettings, method: str) -> Sequence[Conversation]:
    """What a method hears as conversations. With `memory.scope = speaker` and a memory: each speaker's utterances,
    through all of the conversations in their order."""
    if settings.scope != "speaker" or not METHODS[method].writes:
        return conversations
    said: dict[tuple[str, str], list] = defaultdict(list)
    for c in conversations:
        for u in c.utterances:
            said[c.session, u.speaker].append(u)
    return [Conversation(f"{session} {speaker}", session, tuple(us)) for (session, speaker), us in said.items()]


def donors_of(conversations: Sequence[Conversation], kind: str) -> dict[str, Conversation]:
    """Another conversation for each, of other speakers (`stranger`) or with one of the same (`speaker`) where the
    split has any, and no shorter (a memory of fewer updates would be no control): the next such one in order of
    ids."""
    ordered = sorted(conversations, key=lambda c: c.id)
    if len(ordered) < 2:
        raise UserError("a control with another's memory needs two conversations or more in the split")
    voices = {c.id: {u.speaker for u in c.utterances} for c in ordered}
    donors = {}
    for i, conversation in enumerate(ordered):
        others, turns = ordered[i + 1:] + ordered[:i], len(conversation.utterances)
        fit = [o for o in others if bool(voices[conversation.id] & voices[o.id]) == (kind == "speaker")]
        donors[conversation.id] = max(fit or others, key=lambda o: min(len(o.utterances), turns))
    return donors


def _read(part: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(part)
    except (OSError, ValueError) as error:
        raise UserError(f"{part} cannot be read: delete it and run again ({error})") from error
