"""The nouns of every corpus: utterance, conversation, fold, corpus; and whether counts are the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import pandas as pd

from ..settings import Settings, UserError


@dataclass(frozen=True)
class Clip:
    """Where an utterance's audio lies: a file, and the part of it in seconds (None: to its end)."""

    path: Path
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Utterance:
    """One turn. `start` and `end` are seconds within the conversation; `emotion` is None for a turn outside
    the label set, which is heard but never scored."""

    id: str
    speaker: str
    start: float
    end: float
    emotion: str | None
    audio: Clip

    @property
    def seconds(self) -> float:
        """How long the turn is."""
        return self.end - self.start


@dataclass(frozen=True)
class Conversation:
    """Utterances ordered by start time, and the session (speaker-disjoint group) that they belong to."""

    id: str
    session: str
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True)
class Fold:
    """Conversation ids of one split; no conversation stands in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A file or turn that was left out, and why: listed in notebook 01 and in its record."""

    item: str
    reason: str


@dataclass(frozen=True)
class Count:
    """Labelled utterances (recordings, where conversations are composed of them) of one emotion in a session or
    split, found on disk, beside the number that the corpus' owners or its literature publish (None: none)."""

    group: str
    emotion: str
    published: int | None
    found: int


@dataclass(frozen=True)
class Corpus:
    """Conversations, the label set, the folds, what was skipped, and a key that changes with the content.

    `notes`: what a reader of results on it must know, in whole sentences; they go into every table's caption.
    `speaker_independent`: no speaker of a fold's test stands in its training or validation conversations.
    """

    name: str
    conversations: tuple[Conversation, ...]
    emotions: tuple[str, ...]
    folds: tuple[Fold, ...]
    skipped: tuple[Skipped, ...]
    key: str
    notes: tuple[str, ...] = ()
    counts: tuple[Count, ...] = ()
    speaker_independent: bool = True

    def select(self, ids: tuple[str, ...]) -> tuple[Conversation, ...]:
        """The conversations of these ids, in this order."""
        by_id = {c.id: c for c in self.conversations}
        return tuple(by_id[i] for i in ids)

    def counts_table(self) -> pd.DataFrame:
        """`counts` as rows of group, emotion, published (<NA> where nothing is), found."""
        rows = pd.DataFrame([vars(c) for c in self.counts], columns=["group", "emotion", "published", "found"])
        return rows.astype({"published": "Int64", "found": "Int64"})

    def table(self, fold: int = 1) -> pd.DataFrame:
        """One row per utterance of the conversations of fold `fold` (from 1): split, session, conversation,
        utterance, speaker, emotion (None outside the label set), start, end and seconds."""
        chosen = self.folds[fold - 1]
        split = {i: name for name in ("train", "validation", "test") for i in getattr(chosen, name)}
        return pd.DataFrame([{
            "split": split[c.id], "session": c.session, "conversation": c.id, "utterance": u.id,
            "speaker": u.speaker, "emotion": u.emotion, "start": u.start, "end": u.end, "seconds": u.seconds,
        } for c in self.conversations if c.id in split for u in c.utterances])


def leave_one_out(group: Mapping[str, str]) -> tuple[Fold, ...]:
    """A fold per group of conversations, in the order of their names: it is the test, the next one (cyclic) the
    validation, the others the training. `group`: of each conversation id."""
    names = sorted(set(group.values()))
    ids = {name: tuple(c for c, own in group.items() if own == name) for name in names}
    return tuple(Fold(tuple(c for name in names if name not in (test, validation) for c in ids[name]),
                      ids[validation], ids[test])
                 for test, validation in zip(names, names[1:] + names[:1], strict=True))


def in_turn(utterances: Sequence[Utterance]) -> tuple[Utterance, ...]:
    """Turns that follow one another without a pause, in this order."""
    ends = list(accumulate(u.seconds for u in utterances))
    return tuple(replace(u, start=start, end=end)
                 for u, start, end in zip(utterances, [0.0, *ends], ends, strict=False))


def some(items: Sequence[str]) -> str:
    """The first five items, for a message."""
    return ", ".join([*items[:5], *["…"][:len(items) > 5]]) or "nothing"


def example(skipped: Sequence[Skipped]) -> str:
    """How much was left out, and the first of it, for the end of a message."""
    return f"; {len(skipped)} item(s) are skipped, e.g. {skipped[0].item}: {skipped[0].reason}" if skipped else ""


def checked(settings: Settings, root: Path, title: str, counts: Sequence[Count],
            skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """A note where counts are not the published ones; UserError where `source.allow_partial` does not allow that,
    as figures on such a tree do not compare."""
    off = [f"{c.group} {c.emotion} {c.found:,} of {c.published:,}".removeprefix("all ")
           for c in counts if c.found != c.published]
    if not off:
        return ()
    words = (f"not the published {title}: of {sum(c.published for c in counts):,} recordings with a label "
             f"{sum(c.found for c in counts):,} are here ({some(off)})")
    if settings.source.allow_partial:
        return (f"This is {words}.",)
    raise UserError(f"{root} is {words}{example(skipped)}; fetch what is missing (of Git LFS: git lfs pull), or "
                    "use the tree as it is with the setting source.allow_partial=true")
