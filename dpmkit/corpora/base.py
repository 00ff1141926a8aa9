"""The nouns of every corpus: utterance, conversation, fold, corpus; and notes on signs of a damaged copy."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..settings import Settings, UserError
from . import files

ALIKE = 10  # clips of one length, to the millisecond, that are no chance; and half of all


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


def checked(settings: Settings, root: Path, title: str, counts: Sequence[Count],
            skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """A note where counts are not the published ones; UserError where `source.allow_partial` does not allow that,
    as figures on such a tree do not compare."""
    off = [f"{c.group} {c.emotion} {c.found:,} of {c.published:,}".removeprefix("all ")
           for c in counts if c.found != c.published]
    if not off:
        return ()
    words = (f"not the published {title}: of {sum(c.published for c in counts):,} recordings with a label "
             f"{sum(c.found for c in counts):,} are here ({files.some(off)})")
    if settings.source.allow_partial:
        return (f"This is {words}.",)
    why = f"; {len(skipped)} item(s) cannot be used, e.g. {skipped[0].item}: {skipped[0].reason}" if skipped else ""
    raise UserError(f"{root} is {words}{why}; fetch what is missing from its source again, or use the tree as it "
                    "is with the setting source.allow_partial=true")


def damage(conversations: Sequence[Conversation]) -> Iterator[str]:
    """Notes on signs of a damaged copy: speakers of nearly one name, clips of one length, inverted channels."""
    utterances = [u for c in conversations for u in c.utterances]
    near = defaultdict(set)
    for speaker in {u.speaker for u in utterances}:
        near[_near(speaker)].add(speaker)
    if pairs := sorted(" and ".join(map(repr, sorted(names))) for names in near.values() if len(names) > 1):
        yield (f"Speakers with nearly one name count as several: {files.some(pairs, '; ')}. Write them alike if "
               "they are one, who may else stand on two sides of a fold.")
    lengths = Counter({u.audio: round(u.seconds, 3) for u in utterances}.values())
    length, alike = next(iter(lengths.most_common(1)), (0.0, 0))
    if alike >= ALIKE and 2 * alike >= lengths.total():
        yield (f"{alike} of {lengths.total()} clips last {length:.3f} s, no more and no less, as natural "
               "speech does not: they may have been cut or padded; compare them with the corpus' source.")
    if inverted := sorted({u.audio.path.name for u in utterances if u.audio.path in files.INVERTED}):
        yield (f"{len(inverted)} recording(s) have channels that cancel each other, as one is inverted "
               f"({files.some(inverted)}): the loudest alone is heard, not their mean.")


def _near(speaker: str) -> str:
    """A speaker's name without case, accents, blanks, invisible characters and zeros before a number."""
    text = unicodedata.normalize("NFKD", speaker).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf") and not c.isspace())
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)
