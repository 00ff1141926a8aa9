"""Folds of conversations that come with no sessions of their own: who is linked by a speaker, who is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..settings import UserError
from .base import Conversation, Fold
from .files import some

MOST = 5  # folds


def linked(speakers: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Conversation -> the first, by name, of those that it shares a speaker with, be it through others. The
    speaker "" is unknown and links nothing."""
    names = sorted(speakers)
    voices = {s: i for i, s in enumerate(sorted({s for n in names for s in speakers[n]} - {""}), len(names))}
    edges = [(i, voices[s]) for i, n in enumerate(names) for s in speakers[n] if s]
    ends, size = np.array(edges, int).reshape(-1, 2).T, len(names) + len(voices)
    group = connected_components(coo_array((np.ones(len(edges)), ends), (size, size)), directed=False)[1]
    first: dict[int, str] = {}
    return {name: first.setdefault(int(g), name) for name, g in zip(names, group, strict=False)}


def folds(source: object, conversations: Sequence[Conversation], splits: Mapping[str, str],
          speakers: Mapping[str, Iterable[str]]) -> tuple[tuple[Fold, ...], bool, tuple[str, ...]]:
    """Folds, whether no speaker of a fold's test stands on its other sides, and notes where one may.

    `splits`: conversation id -> train, validation or test, which is the one fold; all empty: at most five folds
    leave out sessions, or single conversations where fewer than three sessions have a label. `speakers`:
    conversation id -> speakers, "" for an unknown one. Raises UserError, which names `source`, for a split
    without conversations, and for fewer than three conversations with a label.
    """
    labels = {c.id: {u.emotion for u in c.utterances} - {None} for c in conversations}
    weight = {c.id: sum(u.emotion is not None for u in c.utterances) for c in conversations}
    sessions = {c.session for c in conversations if weight[c.id]}
    apart = any(splits.values()) or len(sessions) >= 3
    if any(splits.values()):
        ids = {side: tuple(sorted(c for c, s in splits.items() if s == side))
               for side in ("train", "validation", "test")}
        if empty := [side for side in ids if not ids[side]]:
            raise UserError(f"{source}, column split: no conversation that can be heard is of {empty[0]}; give it "
                            "one, or empty the column, and folds are made")
        made = (Fold(**ids),)
    elif (number := sum(w > 0 for w in weight.values())) < 3:
        raise UserError(f"{source}: {number} conversation(s) with an emotion can be heard; three are needed, one "
                        "each for training, validation and test")
    else:
        made = _dealt({c.id: c.session if apart else c.id for c in conversations}, weight)
    notes, lacking, shared = [], [], set()
    for number, fold in enumerate(made, 1):
        shared |= _among(speakers, fold.test) & _among(speakers, fold.train + fold.validation) - {""}
        if unseen := _among(labels, fold.test) - _among(labels, fold.train):
            lacking.append(f"Fold {number}: {', '.join(sorted(unseen))} in the test, never in training.")
    unknown = sum("" in s for s in speakers.values())
    if not apart:
        notes.append(f"Only {len(sessions)} session(s) (groups without a common speaker) have a label: folds "
                     "leave out conversations, not speakers, and test speakers may have been trained on.")
    elif shared:
        notes.append(f"Not speaker-independent: {len(shared)} speaker(s) of a fold's test ({some(sorted(shared))}) "
                     "stand in its training or validation, too.")
    if unknown:
        notes.append(f"{unknown} of {len(conversations)} conversations have unknown speakers, who count as new "
                     "ones in each: whether test voices were trained on cannot be known.")
    return made, apart and not shared and not unknown, (*notes, *lacking)


def _dealt(unit: Mapping[str, str], weight: Mapping[str, int]) -> tuple[Fold, ...]:
    """Folds that leave units (conversation id -> unit) out, in up to five groups of about equal weight; the next
    group is the validation. A unit of no weight always trains.

    Heaviest first to the lightest group, as in scikit-learn's GroupKFold, which leaves ties to an unstable sort.
    """
    loads = Counter()
    for name, own in unit.items():
        loads[own] += weight[name]
    heavy = sorted((u for u in loads if loads[u]), key=lambda u: (-loads[u], u))
    totals, group = [0] * min(MOST, len(heavy)), {}
    for own in heavy:
        group[own] = totals.index(min(totals))
        totals[group[own]] += loads[own]
    order = list(dict.fromkeys(group[own] for own in sorted(heavy)))  # fold 1 tests the first unit by name
    sides = [tuple(sorted(c for c, u in unit.items() if group.get(u) == i)) for i in order]
    out = []
    for i, test in enumerate(sides):
        validation = sides[(i + 1) % len(sides)]
        out.append(Fold(tuple(sorted({*unit} - {*test, *validation})), validation, test))
    return tuple(out)


def _among(values: Mapping[str, Iterable[str]], names: Iterable[str]) -> set[str]:
    """All values of these names."""
    return set().union(*(values[n] for n in names))
