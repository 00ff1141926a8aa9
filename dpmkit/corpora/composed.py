"""Conversations composed of single utterances, each kept as it was recorded.

Two speakers of a session take turns; each stays itself, and its emotion follows a chain of `dynamics`. No
utterance is heard twice in a conversation. A chain that is bent to what recordings are left loses its inertia. So a
conversation ends, even below `min_turns`, before the turn of a speaker who has no recording left of the emotion
that it is in: an end that is settled before the draw leaves every drawn transition as the chain has it.

Instead of a chain they may follow the labels of a corpus whose sound one has not: conversation.sequences, a CSV
with a row for each turn in order, `conversation, speaker, emotion`, emotions by the names that the recordings have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel

from ..settings import ConversationSettings, Settings, UserError
from . import dynamics, table
from .base import Conversation, Utterance, some

SESSIONS = 5  # where speakers are enough for it
KEEP_TURN = 0.22  # chance that the speaker of the last turn speaks again: 2,009 of 8,951 in MELD's training
PAUSE = (0.1, 1.3)  # seconds between two turns, uniform: the middle half of MELD's

Dialogue = list[tuple[int, str]]  # a speaker, 0 or 1, and an emotion, turn by turn


class Row(BaseModel):
    """One turn of a label sequence."""

    conversation: table.Name
    speaker: table.Name
    emotion: Annotated[table.Words, AfterValidator(str.lower)]


def sessions(speakers: Iterable[str], seed: int) -> dict[str, str]:
    """Speaker -> session, drawn by the seed: five sessions of about as many speakers each, fewer (three at least)
    where one would have less than three."""
    names = sorted(set(speakers))
    number = max(3, min(SESSIONS, len(names) // 3))
    drawn = np.random.default_rng(seed).permutation(len(names))
    return {names[i]: f"s{place % number + 1}" for place, i in enumerate(drawn)}


def compose(utterances: Iterable[Utterance], session: Mapping[str, str], wanted: ConversationSettings,
            emotions: Sequence[str], matrix: np.ndarray, dialogues: Sequence[Dialogue] = ()) -> list[Conversation]:
    """`wanted.conversations` conversations of every session, from the utterances (id: the source's own) of its
    speakers, two or more.

    `session`: of every speaker. `matrix`: the chain that each speaker's emotions follow, rows from, columns to,
    (emotions, emotions); of `dialogues`, if there are any, each conversation follows one, drawn at random. Turns
    are uniform in [min_turns, max_turns], fewer where the recordings end (see above), or the dialogue.
    """
    by_session, conversations = defaultdict(list), []
    for utterance in sorted(utterances, key=lambda u: u.id):
        by_session[session[utterance.speaker]].append(utterance)
    for index, (own_session, own) in enumerate(sorted(by_session.items())):
        speakers = sorted({u.speaker for u in own})
        for number in range(wanted.conversations):
            rng = np.random.default_rng([wanted.seed, index, number])
            pair = tuple(speakers[i] for i in rng.choice(len(speakers), size=2, replace=False))
            name = f"{own_session}_{number:03d}"
            most = int(rng.integers(wanted.min_turns, wanted.max_turns + 1))
            if dialogues:
                turns = _following(rng, pair, own, dialogues[int(rng.integers(len(dialogues)))][:most])
            else:
                turns = _turns(rng, pair, own, most, emotions, matrix)
            conversations.append(Conversation(name, own_session, _timeline(rng, name, turns)))
    return conversations


def sequences(settings: Settings, recorded: Collection[str]) -> tuple[list[Dialogue], tuple[str, ...]]:
    """The conversations of the table, of their two busiest speakers in emotions that are `recorded`, and a note on
    how much of it they are; those of one speaker or of fewer than `conversation.min_turns` turns then are left out.
    Nothing where no table is named. UserError for a table that cannot be read, or where nothing is left.
    """
    if not settings.conversation.sequences:
        return [], ()
    path = settings.home_path / Path(settings.conversation.sequences).expanduser()
    if not path.is_file():
        raise UserError(f"setting conversation.sequences: {path} is no file; give a CSV with the columns "
                        "conversation, speaker, emotion")
    rows, faults = table.read(path, Row)
    table.refuse(path, faults, "mend them, a row for each turn")
    spoken, dialogues, least = defaultdict(list), [], settings.conversation.min_turns
    for row in rows.values():
        spoken[row.conversation].append(row)
    for own in spoken.values():
        pair = [speaker for speaker, _ in Counter(row.speaker for row in own).most_common(2)]
        turns = [(pair.index(row.speaker), row.emotion) for row in own
                 if row.speaker in pair and row.emotion in recorded]
        if len({who for who, _ in turns}) == 2 and len(turns) >= least:
            dialogues.append(turns)
    if not dialogues:
        raise UserError(f"{path} has no conversation of two speakers and {least} turns (conversation.min_turns) in "
                        f"{some(sorted(recorded))}; its emotions are "
                        f"{some(sorted({row.emotion for row in rows.values()}))}")
    note = (f"Emotions follow {len(dialogues)} of {len(spoken)} conversations of {path.name}, "
            f"{sum(map(len, dialogues)):,} of {len(rows):,} turns: those of two speakers in the emotions of the "
            "recordings.")
    return dialogues, (note,)


def notes(conversations: Sequence[Conversation], recordings: int, session: Mapping[str, str],
          seed: int) -> tuple[str, ...]:
    """What a reader of results on composed conversations must know. `session`: of every speaker."""
    heard = sum(len(c.utterances) for c in conversations) / recordings
    sizes = Counter(session.values()).values()
    composed = (f"Conversations are composed of {recordings} recordings, each heard about {heard:.1f} times in the "
                f"corpus: intervals over conversations are narrower than the truth. {len(session)} speakers were "
                f"drawn into {len(sizes)} sessions of {min(sizes)} to {max(sizes)} (conversation.seed {seed}); "
                "folds leave one session out.")
    few = ("With fewer than four speakers a session, the swapped control's other conversation may be of the same "
           "speakers.")
    return (composed, few) if min(sizes) < 4 else (composed,)


def _turns(rng: np.random.Generator, pair: tuple[str, str], utterances: Sequence[Utterance], most: int,
           emotions: Sequence[str], matrix: np.ndarray) -> list[Utterance]:
    """At most `most` utterances of a pair of speakers, none twice."""
    left = [[[u for u in utterances if (u.speaker, u.emotion) == (s, e)] for e in emotions] for s in pair]
    last: list[int | None] = [None, None]  # emotion of each
    now, turns = 0, []
    while len(turns) < most:
        if turns and rng.random() >= KEEP_TURN:
            now = 1 - now
        if last[now] is not None and not left[now][last[now]]:
            break
        chances = dynamics.next_distribution(last[now], last[1 - now], dynamics.CONTAGION, matrix)
        # Only an emotion that the speaker was never recorded in can be missing here.
        chances = chances * [bool(recordings) for recordings in left[now]]
        if not chances.sum():
            break
        last[now] = int(rng.choice(len(chances), p=chances / chances.sum()))
        recordings = left[now][last[now]]
        turns.append(recordings.pop(int(rng.integers(len(recordings)))))
    return turns


def _following(rng: np.random.Generator, pair: tuple[str, str], utterances: Sequence[Utterance],
               dialogue: Dialogue) -> list[Utterance]:
    """Utterances of a pair of speakers, none twice, in the emotions of a dialogue, as far as there are such."""
    left, turns = defaultdict(list), []
    for utterance in utterances:
        left[utterance.speaker, utterance.emotion].append(utterance)
    for number, emotion in dialogue:
        if not (recordings := left[pair[number], emotion]):
            break
        turns.append(recordings.pop(int(rng.integers(len(recordings)))))
    return turns


def _timeline(rng: np.random.Generator, name: str, turns: Sequence[Utterance]) -> tuple[Utterance, ...]:
    """The turns one after the other with pauses between them, named `<conversation>_<turn>`."""
    placed, clock = [], 0.0
    for i, turn in enumerate(turns):
        placed.append(replace(turn, id=f"{name}_{i:03d}", start=clock, end=clock + turn.seconds))
        clock = placed[-1].end + float(rng.uniform(*PAUSE))
    return tuple(placed)
