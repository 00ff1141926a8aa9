"""Labelled recordings in folders, composed into conversations: `<root>/<emotion>/…/<file>`.

- A folder's name is the emotion, in lower case; its files (`speech.SUFFIXES`) may lie deeper. Four folders that
  are the kit's emotions by their usual names (`NAMES`), one each, become neu, hap, sad, ang; any others stay.
- The setting source.speaker, a regular expression with one group, finds the speaker in a file's name. Speakers
  are paired in sorted order into sessions, and the folds leave one session out.
- Without it, recordings are dealt at random to eight stand-in speakers, emotion by emotion, so that none stands
  on two sides of a fold. Voices do: the corpus is then not speaker-independent, and a note says so.
- A copy of a recording is skipped, as it could stand on two sides of a fold; one in two emotions' folders wholly.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import audio, runs
from ..settings import Settings, UserError, plain
from . import composed, dynamics, files
from .conversation import Clip, Corpus, Count, Skipped, Utterance

NAMES = {"neutral": "neu", "neu": "neu", "happy": "hap", "happiness": "hap", "joy": "hap", "hap": "hap",
         "sad": "sad", "sadness": "sad", "angry": "ang", "anger": "ang", "ang": "ang"}
PARTS = tuple(f"part{i}" for i in range(1, 9))  # stand-in speakers: four sessions


def load(settings: Settings) -> Corpus:
    """Conversations of the audio below `settings.root`; what is not used is listed as skipped.

    Raises UserError for a root of another shape, a pattern that is none, fewer than two emotions, and speakers
    (or, where none are known, recordings) too few to keep training, validation and test apart.
    """
    root, pattern = settings.root_path, _pattern(settings.source.speaker)
    found, skipped = _found(root)
    utterances, hashes = _utterances(root, found, files.survey(settings, root, found), pattern, skipped)
    utterances, emotions = _labelled(utterances)
    if len(emotions) < 2:
        left = "".join(f"; {s.item} {s.reason}" for s in skipped[:3])
        raise UserError(f"root {root} has usable recordings of {len(emotions)} emotion(s) ({', '.join(emotions)}); "
                        f"two or more are needed, as <root>/<emotion>/<file>.wav (mp3, m4a, …){left}")
    if pattern is None:
        utterances = _dealt(utterances, settings.conversation.seed)
    speakers = sorted({u.speaker for u in utterances})
    if len(speakers) < 6:
        raise UserError(f"root {root} has usable recordings of {len(speakers)} speaker(s); six are needed to keep "
                        "training, validation and test apart: add some, or leave the setting source.speaker empty "
                        "(recordings are then dealt to stand-in speakers)" if pattern else
                        f"root {root} has {len(utterances)} usable recordings; six are needed: add some")
    sessions = {"-".join(pair): [u for u in utterances if u.speaker in pair] for pair in composed.pairs(speakers)}
    if len(sessions) < len(speakers) // 2:
        raise UserError(f"setting source.speaker {pattern.pattern!r} finds speakers whose pairs have one name "
                        "('a' with 'b-c', 'a-b' with 'c'): choose a group that ends before the '-'")
    conversations = composed.compose(sessions, settings.conversation, emotions, dynamics.chain(emotions))
    key = runs.key("folders", settings.conversation, settings.source.speaker, hashes,
                   [[s.item, s.reason] for s in skipped], runs.code_version(load))
    notes = (composed.note(conversations, len(utterances), "recordings"), *_notes(emotions, pattern is not None))
    recorded = Counter(u.emotion for u in utterances)
    return Corpus("folders", tuple(conversations), emotions, composed.leave_one_session_out(conversations),
                  tuple(skipped), key, notes, tuple(Count("all", e, None, recorded[e]) for e in emotions),
                  speaker_independent=pattern is not None)


def _pattern(text: str) -> re.Pattern[str] | None:
    """The compiled pattern of a speaker, None where it is empty; UserError where it is none or lacks the group."""
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"setting source.speaker {text!r} is not a regular expression ({error}); e.g. "
                        "'^([^_]+)_' for spk1_003.wav") from None
    if pattern.groups != 1:
        raise UserError(f"setting source.speaker {text!r} has {pattern.groups} groups; give the speaker one, e.g. "
                        "'^([^_]+)_' for spk1_003.wav, and write any other as (?:…)")
    return pattern


def _found(root: Path) -> tuple[dict[Path, str], list[Skipped]]:
    """Audio files by name -> emotion (their folder below the root, in lower case), and what else lies there."""
    found, skipped, others = {}, [], Counter()
    for entry in composed.listed(root):
        if not entry.is_dir():
            skipped.append(Skipped(composed.printable(entry.name),
                                   "lies in the root, not in a folder named after its emotion"))
            continue
        before = len(found)
        for path in _below(entry):
            name = path.relative_to(root).as_posix()
            if os.path.isdir(path):
                skipped.append(Skipped(composed.printable(name), "is a link to a folder: only those that lie in "
                                       "the root are followed" if path.is_symlink() else "is an empty folder"))
            elif path.suffix.lower() not in audio.SUFFIXES:
                others[f"{entry.name}/…{path.suffix or path.name}"] += 1
            elif composed.printable(name) != plain(name):
                skipped.append(Skipped(composed.printable(name), "has a name that is not UTF-8: rename it"))
            else:
                found[path] = " ".join(composed.printable(entry.name.lower()).split())
        if len(found) == before:
            skipped.append(Skipped(composed.printable(f"{entry.name}/"), "holds nothing named as sound is"))
    skipped += [Skipped(composed.printable(name), f"{number} file(s) not named as sound is")
                for name, number in sorted(others.items())]
    return found, skipped


def _below(folder: Path) -> list[Path]:
    """Files, links to folders and empty folders, at any depth; what may not be entered counts as a file."""
    return [p for path in composed.listed(folder)
            for p in ((_below(path) if os.path.isdir(path) and not path.is_symlink() else []) or [path])]


def _utterances(root: Path, found: Mapping[Path, str], heard: Mapping[Path, files.File],
                pattern: re.Pattern[str] | None, skipped: list[Skipped]) -> tuple[list[Utterance], list[list[str]]]:
    """Usable recordings (the speaker empty without a pattern), and name and hash of each; UserError for a pattern
    that fits none of their names."""
    names = {path: plain(path.relative_to(root).as_posix()) for path in found}
    skipped += [Skipped(names[path], heard[path].fault) for path in found if heard[path].fault]
    usable = [path for path in found if not heard[path].fault]
    speakers = {path: "" for path in usable}
    if pattern:
        matches = {path: pattern.search(plain(path.name)) for path in usable}
        speakers = {path: match[1] for path, match in matches.items() if match and match[1]}
        if usable and not speakers:
            raise UserError(f"setting source.speaker {pattern.pattern!r} finds a speaker in no file's name, e.g. "
                            f"not in {usable[0].name}; mend it, or leave it empty")
        skipped += [Skipped(names[path], f"source.speaker {pattern.pattern!r} finds no speaker in its name")
                    for path in usable if path not in speakers]
    twins = defaultdict(list)
    for path in speakers:
        twins[heard[path].sha256].append(path)
    utterances, hashes = [], []
    for path, speaker in speakers.items():
        same = twins[heard[path].sha256]
        if len({found[p] for p in same}) > 1:
            skipped.append(Skipped(names[path], "is the same recording as another emotion's: "
                                   f"{names[next(p for p in same if found[p] != found[path])]}"))
        elif path != same[0]:
            skipped.append(Skipped(names[path], f"is the same recording as {names[same[0]]}"))
        else:
            utterances.append(Utterance(names[path], speaker, 0.0, heard[path].seconds, found[path], Clip(path)))
            hashes.append([names[path], heard[path].sha256])
    return utterances, hashes


def _labelled(utterances: Sequence[Utterance]) -> tuple[list[Utterance], tuple[str, ...]]:
    """Utterances under the names of the label set, and that: the kit's four, or the folders' names, sorted."""
    labels = sorted({u.emotion for u in utterances})
    if len(labels) == 4 and {NAMES.get(e) for e in labels} == set(dynamics.EMOTIONS):
        return [replace(u, emotion=NAMES[u.emotion]) for u in utterances], dynamics.EMOTIONS
    return list(utterances), tuple(labels)


def _dealt(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Each utterance in the mouth of a stand-in speaker: emotion by emotion, shuffled, one to each in turn."""
    rng = np.random.default_rng(seed)
    dealt: list[Utterance] = []
    for emotion in sorted({u.emotion for u in utterances}):
        same = [u for u in utterances if u.emotion == emotion]
        dealt += [replace(same[i], speaker=PARTS[(len(dealt) + turn) % len(PARTS)])
                  for turn, i in enumerate(rng.permutation(len(same)))]
    return dealt


def _notes(emotions: Sequence[str], known: bool) -> list[str]:
    """What a reader of results must know beside `composed.note`."""
    notes = ["With two speakers a session, the swapped control's other conversation is of the same speakers."]
    if not known:
        notes.append("No speaker is known: recordings were dealt at random to eight stand-in speakers, each of "
                     "many voices: test voices were trained on, and a memory of who speaks can win nothing.")
    if set(emotions) != set(dynamics.EMOTIONS):
        notes.append("Emotions follow a chain that nobody measured: a speaker keeps its emotion "
                     f"{dynamics.chain(emotions)[0, 0]:.0%} of the time, as in IEMOCAP on average, and moves to "
                     "each other one alike.")
    return notes
