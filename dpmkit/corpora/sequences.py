"""Label sequences: who spoke in which emotion, of a corpus whose labels one has and whose sound one has not.

A CSV, conversation.sequences, with a row for each turn in order: `conversation, speaker, emotion`, the emotions by
the names that the recordings have. Conversations that are composed of recordings follow it instead of a chain.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from ..settings import Settings, UserError
from . import table
from .base import some

Dialogue = list[tuple[int, str]]  # a speaker, 0 or 1, and an emotion, turn by turn


class Row(BaseModel):
    """One turn."""

    conversation: table.Name
    speaker: table.Name
    emotion: Annotated[table.Words, AfterValidator(str.lower)]


def load(settings: Settings, recorded: Collection[str]) -> tuple[list[Dialogue], tuple[str, ...]]:
    """The conversations of the table, of their two busiest speakers, and a note on what was left out: turns of
    others, turns in no emotion that is `recorded`, and conversations of one speaker or of fewer than
    `conversation.min_turns` turns then. Nothing where no table is named. UserError for a table that cannot be read,
    or where nothing is left.
    """
    if not settings.conversation.sequences:
        return [], ()
    path = settings.home_path / Path(settings.conversation.sequences).expanduser()
    if not path.is_file():
        raise UserError(f"setting conversation.sequences: {path} is no file; give a CSV with the columns "
                        "conversation, speaker, emotion")
    rows, faults = table.read(path, Row)
    table.refuse(path, faults, "mend them, a row for each turn")
    spoken, left, least = defaultdict(list), Counter(), settings.conversation.min_turns
    for row in rows.values():
        spoken[row.conversation].append(row)
    dialogues = []
    for own in spoken.values():
        pair = [speaker for speaker, _ in Counter(row.speaker for row in own).most_common(2)]
        known = [row for row in own if row.speaker in pair and row.emotion in recorded]
        left["turns in other emotions"] += sum(row.emotion not in recorded for row in own)
        left["turns of further speakers"] += sum(row.speaker not in pair for row in own)
        whole = len({row.speaker for row in known}) == 2 and len(known) >= least
        left[f"conversations of one speaker or fewer than {least} turns"] += not whole
        dialogues += [[(pair.index(row.speaker), row.emotion) for row in known]] * whole
    emotions = sorted({row.emotion for row in rows.values()})
    if not dialogues:
        raise UserError(f"{path} has no conversation of two speakers and {least} turns (conversation.min_turns) in "
                        f"{some(sorted(recorded))}; its emotions are {some(emotions)}")
    without = ", ".join(f"{number:,} {what}" for what, number in left.items() if number) or "nothing"
    turns = sum(map(len, dialogues))
    return dialogues, (f"Emotions follow the {len(dialogues)} conversations of {path.name}, {turns:,} turns; left "
                       f"out: {without}.",)
