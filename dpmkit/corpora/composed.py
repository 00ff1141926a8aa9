"""Conversations composed of single utterances, each kept as it was recorded, and leave-one-session-out folds.

Two speakers of a session take turns; each stays itself, and its emotion follows a chain of `dynamics`
(IEMOCAP's measured one for the kit's four emotions). No utterance is heard twice in a conversation, so a
speaker's recordings bound its length. A chain that is bent to what is left loses its inertia (EmoDB at 20 to 60
turns: happiness stays .77 of the time, not .85). So a conversation ends before a speaker's turn when that
speaker has no recording left of the emotion it is in: an end that is settled before the draw leaves every drawn
transition as the chain has it. That makes conversations shorter than `min_turns` where recordings are few, and
the turn that ends one stays in its emotion somewhat more often than others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..settings import ConversationSettings, UserError, plain
from . import dynamics
from .conversation import Conversation, Fold, Utterance

KEEP_TURN = 0.22  # chance that the speaker of the last turn speaks again: 2,009 of 8,951 in MELD's training
PAUSE = (0.1, 1.3)  # seconds between two turns, uniform: the middle half of MELD's


def compose(sessions: Mapping[str, Sequence[Utterance]], wanted: ConversationSettings,
            emotions: Sequence[str] = dynamics.EMOTIONS,
            matrix: np.ndarray = dynamics.IEMOCAP_INERTIA) -> list[Conversation]:
    """`wanted.conversations` conversations of every session, from its utterances (id: the source's own).

    `matrix`: the chain that each speaker's emotions follow, rows from, columns to, (emotions, emotions). Turns
    are uniform in [min_turns, max_turns], fewer where the recordings end (see above). The same utterances and
    settings give the same conversations, in whatever order either is listed. Raises UserError for a session of
    fewer than two speakers.
    """
    conversations = []
    for index, (session, utterances) in enumerate(sorted(sessions.items())):
        speakers = sorted({u.speaker for u in utterances})
        if len(speakers) < 2:
            raise UserError(f"session {session!r} has {len(speakers)} speaker(s); a conversation takes two")
        ordered = sorted(utterances, key=lambda u: u.id)
        for number in range(wanted.conversations):
            rng = np.random.default_rng([wanted.seed, index, number])
            pair = tuple(speakers[i] for i in rng.choice(len(speakers), size=2, replace=False))
            name = f"{session}_{number:03d}"
            most = int(rng.integers(wanted.min_turns, wanted.max_turns + 1))
            turns = _turns(rng, pair, ordered, most, emotions, matrix)
            conversations.append(Conversation(name, session, _timeline(rng, name, turns)))
    return conversations


def pairs(speakers: Sequence[str]) -> list[tuple[str, ...]]:
    """Speakers two by two, as they are listed; an odd one joins the last pair."""
    row = [tuple(speakers[i:i + 2]) for i in range(0, len(speakers), 2)]
    return row if len(row) < 2 or len(row[-1]) == 2 else [*row[:-2], row[-2] + row[-1]]


def leave_one_session_out(conversations: Sequence[Conversation]) -> tuple[Fold, ...]:
    """A fold a session, in the order of their names: it is the test, the next one (cyclic) the validation,
    the others the training. UserError for fewer than three sessions."""
    sessions = sorted({c.session for c in conversations})
    if len(sessions) < 3:
        raise UserError(f"{len(sessions)} session(s) of two speakers; training, validation and test take one "
                        "each: give a corpus of six speakers or more")
    ids = {s: tuple(c.id for c in conversations if c.session == s) for s in sessions}
    folds = []
    for i, test in enumerate(sessions):
        validation = sessions[(i + 1) % len(sessions)]
        train = tuple(c for s in sessions if s not in (test, validation) for c in ids[s])
        folds.append(Fold(train, ids[validation], ids[test]))
    return tuple(folds)


def note(conversations: Sequence[Conversation], recordings: int, kind: str) -> str:
    """What a reader of results on composed conversations must know."""
    heard = sum(len(c.utterances) for c in conversations) / recordings
    return (f"Conversations are composed of {recordings} {kind}, each heard about {heard:.1f} times in the corpus, "
            "and a test session has two speakers: the true intervals are wider than those over conversations.")


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without the file system's own (.DS_Store, ._a.wav); UserError where that
    may not be read."""
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: plain(p.name))
    except OSError as error:
        raise UserError(f"cannot list {printable(str(folder))}: {error.strerror}; make it readable") from error


def printable(name: str) -> str:
    """A file's name as `plain` text, with what is not UTF-8 in it as '?': fit for an id and a record."""
    return plain(name.encode("utf-8", "replace").decode())


def _turns(rng: np.random.Generator, pair: tuple[str, str], utterances: Sequence[Utterance], most: int,
           emotions: Sequence[str], matrix: np.ndarray) -> list[Utterance]:
    """At most `most` utterances of a pair of speakers, none twice."""
    left = {s: [[u for u in utterances if (u.speaker, u.emotion) == (s, e)] for e in emotions]
            for s in pair}
    state: dict[str, int | None] = dict.fromkeys(pair)
    now, turns = 0, []
    while len(turns) < most:
        if turns and rng.random() >= KEEP_TURN:
            now = 1 - now
        speaker, partner = pair[now], pair[1 - now]
        own = state[speaker]
        if own is not None and not left[speaker][own]:
            break
        chances = dynamics.next_distribution(own, state[partner], dynamics.CONTAGION, matrix)
        # Only an emotion that the speaker was never recorded in can be missing here.
        chances = chances * [bool(recordings) for recordings in left[speaker]]
        if not chances.sum():
            break
        emotion = int(rng.choice(len(chances), p=chances / chances.sum()))
        recordings = left[speaker][emotion]
        turns.append(recordings.pop(int(rng.integers(len(recordings)))))
        state[speaker] = emotion
    return turns


def _timeline(rng: np.random.Generator, name: str, turns: Sequence[Utterance]) -> tuple[Utterance, ...]:
    """The turns one after the other with pauses between them, named `<conversation>_<turn>`."""
    placed, clock = [], 0.0
    for i, turn in enumerate(turns):
        placed.append(replace(turn, id=f"{name}_{i:03d}", start=clock, end=clock + turn.seconds))
        clock = placed[-1].end + float(rng.uniform(*PAUSE))
    return tuple(placed)
