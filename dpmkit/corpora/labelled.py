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

from .. import runs
from ..settings import Settings, UserError
from . import composed, dynamics, files
from .base import Clip, Corpus, Count, Skipped, Utterance, checked, leave_one_out


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


def load(settings: Settings) -> Corpus:
    """Conversations of the sounds below `settings.root`; what is not used is listed as skipped.

    Raises UserError for a root of another shape, a pattern that is none, counts that are not the published ones
    (unless `source.allow_partial`), fewer than two emotions or six speakers (recordings, where none is known).
    """
    root, seed = settings.root_path, settings.conversation.seed
    names = dict(files.walk(root))
    layout = LAYOUTS.get(settings.corpus)
    labels, numbers, left = (_published(layout, settings.source.classes, root, names) if layout
                             else _own(settings.source.pattern, names))
    surveyed = files.survey(settings, root, labels)
    skipped = [Skipped(names[path], file.fault) for path, file in surveyed.items() if file.fault] + left
    utterances = sorted([Utterance(path.stem if layout else names[path], labels[path][0], 0.0, file.seconds,
                                   labels[path][1], Clip(path))
                         for path, file in surveyed.items() if not file.fault], key=lambda u: u.id)
    if not layout:
        utterances, copies = _distinct(utterances, surveyed)
        skipped += copies
    emotions, found = tuple(numbers), Counter(u.emotion for u in utterances)
    counts = tuple(Count("all", emotion, number, found[emotion]) for emotion, number in numbers.items())
    notes = checked(settings, root, layout.title, counts, skipped) if layout else ()
    known = all(u.speaker for u in utterances)
    if not known:
        utterances = _dealt(utterances, seed)
        notes += (f"No speaker is known: recordings were dealt at random to {STANDINS} stand-in speakers, each of "
                  "many voices: test voices were trained on, and a memory of who speaks can win nothing.",)
    session = composed.sessions((u.speaker for u in utterances), seed)
    if len(session) < LEAST or len(emotions) < 2:
        why = f"; skipped, e.g.: {skipped[0].item}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"root {root} has {len(utterances)} usable recordings of {len(session)} speaker(s) and "
                        f"{len(emotions)} emotion(s); {LEAST} speakers (where none is known: recordings) and two "
                        "emotions are needed: add recordings, as <root>/<emotion>/<file>.wav (mp3, m4a, …) or with "
                        f"both in files' names and the setting source.pattern{why}")
    chain = dynamics.chain(emotions)
    if set(emotions) != set(dynamics.EMOTIONS):
        notes += (f"Emotions follow a chain that nobody measured: a speaker keeps its emotion {chain[0, 0]:.0%} of "
                  "the time, as in IEMOCAP on average, and moves to each other one alike.",)
    conversations = composed.compose(utterances, session, settings.conversation, emotions, chain)
    notes = (*composed.notes(conversations, len(utterances), session, seed), *notes)
    key = runs.key(settings.corpus, settings.conversation, runs.code_version(load),
                   [[u.id, u.speaker, u.emotion, surveyed[u.audio.path].sha256] for u in utterances],
                   [[s.item, s.reason] for s in skipped])
    folds = leave_one_out({c.id: c.session for c in conversations})
    return Corpus(settings.corpus, tuple(conversations), emotions, folds, tuple(skipped), key, notes, counts,
                  speaker_independent=known)


# Speaker ("": unknown) and emotion of each file; how many are published of each emotion; the other files.
Labels = tuple[dict[Path, tuple[str, str]], dict[str, int | None], list[Skipped]]


def _published(layout: Layout, classes: int, root: Path, names: Mapping[Path, str]) -> Labels:
    """The files that are named as a corpus' owners have it, of its first `classes` emotions."""
    used = list(layout.emotions)[:classes]
    labels, first, skipped, copies, outside = {}, {}, [], [], Counter()
    for path in files.sounds(names):
        match = re.fullmatch(layout.name, path.stem)
        if not match or match["emotion"] not in layout.emotions:
            skipped.append(Skipped(names[path], f"is not named like {layout.example}"))
        elif first.setdefault(path.stem, path) is not path:
            copies.append(f"{names[first[path.stem]]} rather than {names[path]}")
        elif match["emotion"] in used:
            labels[path] = match["speaker"], layout.emotions[match["emotion"]][0]
        else:
            outside[layout.emotions[match["emotion"]][0]] += 1
    if not first:
        raise UserError(f"root {root} is not {layout.title}: expected {layout.example} and its like below it, "
                        f"found {files.listing(root)}; give the folder that holds them")
    skipped += files.copies(copies)
    skipped += [Skipped(f"{number} file(s) of {emotion}", "outside the emotions that are used")
                for emotion, number in sorted(outside.items())]
    return labels, dict(layout.emotions[code] for code in used), skipped


def _own(text: str, names: Mapping[Path, str]) -> Labels:
    """The files that are labelled by their names, as source.pattern `text` has it, or by their folders'."""
    try:
        pattern = re.compile(files.plain(text))
        groups = set(pattern.groupindex)
    except (re.error, OverflowError, RecursionError):
        groups = {"none"}
    if groups - {"speaker", "emotion"} or (text and not groups):
        raise UserError(f"setting source.pattern {text!r} must be a regular expression with the named groups "
                        "speaker, emotion or both, and no other, e.g. '^(?P<speaker>[^_]+)_' for spk1_003.wav")
    labels, skipped = {}, []
    for path in files.sounds(names):
        match = pattern.search(files.plain(path.name))
        parts = {group: text for group, text in match.groupdict().items() if text} if match else {}
        folder, _, rest = names[path].partition("/")
        if groups - set(parts):
            skipped.append(Skipped(names[path], f"source.pattern {text!r} does not find its groups in its name"))
        elif "emotion" not in parts and not rest:
            skipped.append(Skipped(names[path], "lies in the root, not in a folder named after its emotion"))
        else:
            labels[path] = parts.get("speaker", ""), " ".join(parts.get("emotion", folder).lower().split())
    emotions = sorted({emotion for _, emotion in labels.values()})
    if len(emotions) == 4 and {NAMES.get(e) for e in emotions} == set(dynamics.EMOTIONS):
        labels = {path: (speaker, NAMES[emotion]) for path, (speaker, emotion) in labels.items()}
        emotions = dynamics.EMOTIONS
    return labels, dict.fromkeys(emotions), skipped


def _distinct(utterances: Sequence[Utterance],
              surveyed: Mapping[Path, files.File]) -> tuple[list[Utterance], list[Skipped]]:
    """The first of each recording and its copies; none of one that has several emotions."""
    twins, kept, copies = defaultdict(list), [], []
    for u in utterances:
        twins[surveyed[u.audio.path].sha256].append(u)
    for own in twins.values():
        keep = 1 if len({u.emotion for u in own}) == 1 else 0
        kept += own[:keep]
        copies += [Skipped(u.id, f"is the same recording as {own[u is own[0]].id}, of "
                           f"{'this' if keep else 'another'} emotion") for u in own[keep:]]
    return kept, copies


def _dealt(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Each utterance in the mouth of a stand-in speaker: emotion by emotion, shuffled, one to each in turn."""
    rng = np.random.default_rng(seed)
    dealt: list[Utterance] = []
    for emotion in sorted({u.emotion for u in utterances}):
        same = [u for u in utterances if u.emotion == emotion]
        dealt += [replace(same[i], speaker=f"part{(len(dealt) + turn) % STANDINS + 1}")
                  for turn, i in enumerate(rng.permutation(len(same)))]
    return dealt
