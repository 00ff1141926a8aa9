"""Labelled recordings, composed into conversations (`composed`): published corpora, and folders of one's own.

- A published corpus (`LAYOUTS`) is every sound below the root, in whatever folder and format, whose name is as its
  owners have it; of several files of one clip the first of `audio.SUFFIXES` counts. source.classes of its emotions
  are used, and their counts checked against the published ones.
- `folders` is every sound below the root. source.pattern, a regular expression that is searched for in a file's
  name, finds its named groups speaker and emotion. Without the group emotion that is the folder in the root, in
  lower case; four emotions that are the kit's by their usual names (`NAMES`) become neu, hap, sad, ang. Without the
  group speaker, recordings are dealt at random to stand-in speakers, emotion by emotion, so that none stands on two
  sides of a fold. Voices do: the corpus is then not speaker-independent, and a note says so. A copy of a recording
  is skipped, as it could stand on two sides of a fold; one under two emotions wholly.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import audio, runs
from ..settings import Settings, UserError
from . import composed, dynamics, files
from .base import Clip, Corpus, Count, Skipped, Utterance, checked


@dataclass(frozen=True)
class Layout:
    """How a corpus' owners name their files, less the suffix (groups speaker and emotion), and how many they
    publish: code -> (emotion, files). The first four are the kit's, the first six make six classes."""

    title: str
    example: str
    name: str
    emotions: Mapping[str, tuple[str, int]]


LAYOUTS = {
    # Burkhardt et al. 2005; F Freude, T Trauer, W Wut, E Ekel, A Angst, L Langeweile
    "emodb": Layout("EmoDB", "wav/03a01Fa.wav", r"(?P<speaker>\d\d)[ab]\d\d(?P<emotion>\w)[a-z]", {
        "N": ("neu", 79), "F": ("hap", 71), "T": ("sad", 62), "W": ("ang", 127), "E": ("dis", 46),
        "A": ("fea", 69), "L": ("boredom", 81)}),
    # Cao et al. 2014; level none, low, medium, high. The owners' own 1040_ITH_SAD_X is one of the 7,442.
    "cremad": Layout("CREMA-D", "AudioWAV/1001_DFA_ANG_XX.wav",
                     r"(?P<speaker>1\d{3})_[A-Z]{3}_(?P<emotion>\w{3})_(XX?|LO|MD|HI)", {
        "NEU": ("neu", 1087), "HAP": ("hap", 1271), "SAD": ("sad", 1271), "ANG": ("ang", 1271),
        "DIS": ("dis", 1271), "FEA": ("fea", 1271)}),
    # Livingstone and Russo 2018, speech alone: modality 03, channel 01, emotion, level, sentence, take, actor
    "ravdess": Layout("RAVDESS", "Actor_12/03-01-05-01-02-01-12.wav",
                      r"03-01-(?P<emotion>\d\d)-0[12]-0[12]-0[12]-(?P<speaker>\d\d)", {
        "01": ("neu", 96), "03": ("hap", 192), "04": ("sad", 192), "05": ("ang", 192), "07": ("dis", 192),
        "06": ("fea", 192), "02": ("calm", 192), "08": ("surprise", 192)}),
    # Christop 2024
    "nemo": Layout("nEMO", "samples/EB0_anger_1.wav", r"(?P<speaker>\w+?)_(?P<emotion>[a-z]+)_\d+", {
        "neutral": ("neu", 809), "happiness": ("hap", 749), "sadness": ("sad", 769), "anger": ("ang", 749),
        "fear": ("fea", 736), "surprised": ("surprise", 669)}),
}
NAMES = {"neutral": "neu", "neu": "neu", "happy": "hap", "happiness": "hap", "joy": "hap", "hap": "hap",
         "sad": "sad", "sadness": "sad", "angry": "ang", "anger": "ang", "ang": "ang"}
STANDINS = 9  # speakers, in three sessions of three, where none is known
LEAST = 6  # speakers: two each for training, validation and test


@dataclass(frozen=True)
class Recordings:
    """What of a corpus is composed. A `speaker` is "" where it is unknown; `sha256`: of every file."""

    utterances: list[Utterance]
    counts: tuple[Count, ...]
    skipped: list[Skipped]
    sha256: Mapping[Path, str]
    notes: tuple[str, ...] = ()


def load(settings: Settings) -> Corpus:
    """Conversations of the sounds below `settings.root`; what is not used is listed as skipped.

    Raises UserError for a root of another shape, a pattern that is none, counts that are not the published ones
    (unless `source.allow_partial`), fewer than two emotions or six speakers (recordings, where none is known).
    """
    root, seed = settings.root_path, settings.conversation.seed
    recordings = _published(settings, root) if settings.corpus in LAYOUTS else _own(settings, root)
    utterances, notes = sorted(recordings.utterances, key=lambda u: u.id), recordings.notes
    known = all(u.speaker for u in utterances)
    if not known:
        utterances = _dealt(utterances, seed)
        notes += (f"No speaker is known: recordings were dealt at random to {STANDINS} stand-in speakers, each of "
                  "many voices: test voices were trained on, and a memory of who speaks can win nothing.",)
    session = composed.sessions((u.speaker for u in utterances), seed)
    if len(session) < LEAST:
        raise UserError(f"root {root} has {len(utterances)} usable recordings of {len(session)} speaker(s); "
                        f"{LEAST} speakers (where none is known: recordings) are needed to keep training, "
                        "validation and test apart: add some")
    emotions = tuple(c.emotion for c in recordings.counts)
    chain = dynamics.chain(emotions)
    if set(emotions) != set(dynamics.EMOTIONS):
        notes += (f"Emotions follow a chain that nobody measured: a speaker keeps its emotion {chain[0, 0]:.0%} of "
                  "the time, as in IEMOCAP on average, and moves to each other one alike.",)
    conversations = composed.compose(utterances, session, settings.conversation, emotions, chain)
    notes = (*composed.notes(conversations, len(utterances), session, seed), *notes)
    key = runs.key(settings.corpus, settings.conversation, runs.code_version(load),
                   [[u.id, u.speaker, u.emotion, recordings.sha256[u.audio.path]] for u in utterances],
                   [[s.item, s.reason] for s in recordings.skipped])
    return Corpus(settings.corpus, tuple(conversations), emotions, composed.leave_one_session_out(conversations),
                  tuple(recordings.skipped), key, notes, recordings.counts, speaker_independent=known)


def _published(settings: Settings, root: Path) -> Recordings:
    """What is named as the owners of a corpus name it; UserError where counts are off and that is not allowed."""
    layout = LAYOUTS[settings.corpus]
    used = dict(list(layout.emotions.items())[:settings.source.classes])
    sounds, others = _sounds(root)
    first, parts, left, copies, outside = {}, {}, [], [], Counter()
    for path in sorted(sounds, key=lambda p: audio.SUFFIXES.index(p.suffix.lower())):  # stable: then by path
        match = re.fullmatch(layout.name, path.stem)
        if not match or match["emotion"] not in layout.emotions:
            left.append(Skipped(sounds[path], f"is not named like {layout.example}"))
        elif first.setdefault(path.stem, path) != path:
            copies.append(f"{sounds[first[path.stem]]} rather than {sounds[path]}")
        elif match["emotion"] in used:
            parts[path] = match
        else:
            outside[layout.emotions[match["emotion"]][0]] += 1
    if not first:
        raise UserError(f"root {root} is not {layout.title}: expected {layout.example} and its like below it, "
                        f"found {files.listing(root)}; give the folder that holds them")
    read, faults = _read(settings, root, parts, sounds)
    utterances = [Utterance(path.stem, parts[path]["speaker"], 0.0, file.seconds, used[parts[path]["emotion"]][0],
                            Clip(path)) for path, file in read.items()]
    found = Counter(u.emotion for u in utterances)
    counts = tuple(Count("all", emotion, number, found[emotion]) for emotion, number in used.values())
    notes = checked(settings, root, layout.title, counts, faults + left)
    if copies:
        left.append(Skipped(f"{len(copies)} file(s)", f"another file of the same clip counts: {copies[0]}"))
    left += [Skipped(f"{number} file(s) of {emotion}", "outside the emotions that are used")
             for emotion, number in sorted(outside.items())]
    return Recordings(utterances, counts, faults + left + others,
                      {path: file.sha256 for path, file in read.items()}, notes)


def _own(settings: Settings, root: Path) -> Recordings:
    """Whatever is labelled by the names of files or folders; UserError for fewer than two emotions."""
    pattern = _pattern(settings.source.pattern)
    sounds, others = _sounds(root)
    found, left = {}, []
    for path, name in sounds.items():
        match = pattern.search(files.plain(path.name))
        parts = {group: text for group, text in match.groupdict().items() if text} if match else {}
        lacking = [group for group in pattern.groupindex if group not in parts]
        if lacking:
            left.append(Skipped(name, f"source.pattern {pattern.pattern!r} finds no {lacking[0]} in its name"))
        elif "emotion" not in parts and "/" not in name:
            left.append(Skipped(name, "lies in the root, not in a folder named after its emotion"))
        else:
            emotion = parts.get("emotion", name.partition("/")[0])
            found[path] = parts.get("speaker", ""), " ".join(emotion.lower().split())
    read, faults = _read(settings, root, found, sounds)
    utterances = [Utterance(sounds[path], found[path][0], 0.0, file.seconds, found[path][1], Clip(path))
                  for path, file in read.items()]
    sha256 = {path: file.sha256 for path, file in read.items()}
    utterances, copies = _distinct(utterances, sha256)
    skipped = faults + left + copies + others
    labels = tuple(sorted({u.emotion for u in utterances}))
    if len(labels) < 2:
        why = "".join(f"; {s.item} {s.reason}" for s in skipped[:3])
        raise UserError(f"root {root} has usable recordings of {len(labels)} emotion(s) ({', '.join(labels)}); two "
                        "or more are needed, as <root>/<emotion>/<file>.wav (mp3, m4a, …), or in files' names by "
                        f"the setting source.pattern{why}")
    if len(labels) == 4 and {NAMES.get(e) for e in labels} == set(dynamics.EMOTIONS):
        labels, utterances = dynamics.EMOTIONS, [replace(u, emotion=NAMES[u.emotion]) for u in utterances]
    number = Counter(u.emotion for u in utterances)
    return Recordings(utterances, tuple(Count("all", e, None, number[e]) for e in labels), skipped, sha256)


def _distinct(utterances: Sequence[Utterance], sha256: Mapping[Path, str]) -> tuple[list[Utterance], list[Skipped]]:
    """The first of each recording, and its copies; none of one that has several emotions."""
    twins, kept, copies = defaultdict(list), [], []
    for u in utterances:
        twins[sha256[u.audio.path]].append(u)
    for first, *others in twins.values():
        if odd := next((u for u in others if u.emotion != first.emotion), None):
            copies += [Skipped(u.id, "is the same recording as another emotion's: "
                               + (first if u.emotion != first.emotion else odd).id) for u in (first, *others)]
        else:
            kept.append(first)
            copies += [Skipped(u.id, f"is the same recording as {first.id}") for u in others]
    return kept, copies


def _pattern(text: str) -> re.Pattern[str]:
    """The compiled source.pattern (empty: it asks for nothing); UserError where it is none, or of other groups."""
    try:
        pattern = re.compile(files.plain(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"setting source.pattern {text!r} is not a regular expression ({error}); e.g. "
                        "'^(?P<speaker>[^_]+)_' for spk1_003.wav") from None
    if text and (not pattern.groupindex or {*pattern.groupindex} - {"speaker", "emotion"}):
        raise UserError(f"setting source.pattern {text!r} must have the named groups speaker, emotion or both, and "
                        "no other, e.g. '^(?P<speaker>[^_]+)_' for spk1_003.wav")
    return pattern


def _sounds(root: Path) -> tuple[dict[Path, str], list[Skipped]]:
    """Files that are named as sound is, and their names below the root; and what else lies there."""
    sounds, skipped, others = {}, [], Counter()
    for path, name in files.walk(root):
        if path.suffix.lower() not in audio.SUFFIXES:
            others[(Path(name).parent / f"…{Path(name).suffix}").as_posix()] += 1
        elif "\ufffd" in name:
            skipped.append(Skipped(name, "has a name that is not UTF-8: rename it"))
        else:
            sounds[path] = name
    skipped += [Skipped(item, f"{number} file(s) not named as sound is") for item, number in others.items()]
    return sounds, skipped


def _read(settings: Settings, root: Path, paths: Mapping[Path, object],
          names: Mapping[Path, str]) -> tuple[dict[Path, files.File], list[Skipped]]:
    """The files that can be heard, and why the others cannot."""
    read = files.survey(settings, root, paths)
    return ({path: file for path, file in read.items() if not file.fault},
            [Skipped(names[path], file.fault) for path, file in read.items() if file.fault])


def _dealt(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Each utterance in the mouth of a stand-in speaker: emotion by emotion, shuffled, one to each in turn."""
    rng = np.random.default_rng(seed)
    dealt: list[Utterance] = []
    for emotion in sorted({u.emotion for u in utterances}):
        same = [u for u in utterances if u.emotion == emotion]
        dealt += [replace(same[i], speaker=f"part{(len(dealt) + turn) % STANDINS + 1}")
                  for turn, i in enumerate(rng.permutation(len(same)))]
    return dealt
