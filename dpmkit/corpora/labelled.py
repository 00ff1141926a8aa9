"""Labelled recordings, composed into conversations (`composed`): published corpora, and folders of one's own.

- A published corpus (`LAYOUTS`) is every sound below the root, in whatever folder and format, whose name is as its
  owners have it; of several files of one clip the first of `audio.SUFFIXES` counts. source.classes of its emotions
  are used, and their counts checked against the published ones.
- `folders` is every sound below the root. source.pattern, a regular expression that is searched for in a file's
  name, finds its named groups speaker and emotion; without the group emotion that is the folder in the root. Of a
  recording and its copies the first counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import runs
from ..settings import Settings, UserError
from . import composed, dynamics, files
from .base import Clip, Corpus, Count, Skipped, Utterance, checked, example, leave_one_out


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
    "emodb": Layout("EmoDB", "wav/03a01Fa.wav", r"(?P<speaker>\d\d)[ab]\d\d(?P<emotion>[NFTWEAL])[a-z]", {
        "N": ("neu", 79), "F": ("hap", 71), "T": ("sad", 62), "W": ("ang", 127), "E": ("dis", 46),
        "A": ("fea", 69), "L": ("boredom", 81)}),
    # Cao et al. 2014; level none, low, medium, high. The owners' own 1040_ITH_SAD_X is one of the 7,442.
    "cremad": Layout("CREMA-D", "AudioWAV/1001_DFA_ANG_XX.wav",
                     r"(?P<speaker>1\d{3})_[A-Z]{3}_(?P<emotion>NEU|HAP|SAD|ANG|DIS|FEA)_(XX?|LO|MD|HI)", {
        "NEU": ("neu", 1087), "HAP": ("hap", 1271), "SAD": ("sad", 1271), "ANG": ("ang", 1271),
        "DIS": ("dis", 1271), "FEA": ("fea", 1271)}),
    # Livingstone and Russo 2018, speech alone: modality 03, channel 01, emotion, level, sentence, take, actor
    "ravdess": Layout("RAVDESS", "Actor_12/03-01-05-01-02-01-12.wav",
                      r"03-01-(?P<emotion>0[1-8])-0[12]-0[12]-0[12]-(?P<speaker>\d\d)", {
        "01": ("neu", 96), "03": ("hap", 192), "04": ("sad", 192), "05": ("ang", 192), "07": ("dis", 192),
        "06": ("fea", 192), "02": ("calm", 192), "08": ("surprise", 192)}),
    # Christop 2024
    "nemo": Layout("nEMO", "samples/EB0_anger_1.wav",
                   r"(?P<speaker>\w+?)_(?P<emotion>neutral|happiness|sadness|anger|fear|surprised)_\d+", {
        "neutral": ("neu", 809), "happiness": ("hap", 749), "sadness": ("sad", 769), "anger": ("ang", 749),
        "fear": ("fea", 736), "surprised": ("surprise", 669)}),
}
LEAST = 6  # speakers: two each for training, validation and test

Labels = dict[Path, tuple[str, str]]  # speaker and emotion of each file


def load(settings: Settings) -> Corpus:
    """Conversations of the sounds below `settings.root`; what is not used is listed as skipped.

    Raises UserError for a root of another shape, a pattern that is none, counts that are not the published ones
    (unless `source.allow_partial`), fewer than two emotions or six speakers.
    """
    root, seed, layout = settings.root_path, settings.conversation.seed, LAYOUTS.get(settings.corpus)
    names = dict(files.walk(root))
    if layout:
        labels, skipped = _published(layout, root, names)
        numbers = dict(list(layout.emotions.values())[:settings.source.classes])
    else:
        labels, skipped = _own(settings.source.pattern, names)
        numbers = dict.fromkeys(dynamics.label_set(emotion for _, emotion in labels.values()))
    emotions = tuple(numbers)
    outside = Counter(emotion for _, emotion in labels.values() if emotion not in emotions)
    skipped += [Skipped(f"{number} file(s) of {emotion}", "outside the emotions that are used")
                for emotion, number in sorted(outside.items())]
    surveyed = files.survey(settings, root, [path for path, (_, emotion) in labels.items() if emotion in emotions])
    skipped = [Skipped(names[path], file.fault) for path, file in surveyed.items() if file.fault] + skipped
    utterances, first = [], {}
    for path in sorted((path for path, file in surveyed.items() if not file.fault), key=names.get):
        twin = path if layout else first.setdefault(surveyed[path].sha256, path)
        if twin is path:
            utterances.append(Utterance(path.stem if layout else names[path], labels[path][0], 0.0,
                                        surveyed[path].seconds, labels[path][1], Clip(path)))
        else:
            skipped.append(Skipped(names[path], f"is the same recording as {names[twin]}"))

    found = Counter(u.emotion for u in utterances)
    counts = tuple(Count("all", emotion, number, found[emotion]) for emotion, number in numbers.items())
    notes = checked(settings, root, layout.title, counts, skipped) if layout else ()
    session = composed.sessions((u.speaker for u in utterances), seed)
    if len(session) < LEAST or len(emotions) < 2:
        raise UserError(f"root {root} has {len(utterances)} usable recordings of {len(session)} speaker(s) and "
                        f"{len(emotions)} emotion(s); {LEAST} speakers and two emotions are needed: add recordings "
                        "as <root>/<emotion>/<speaker>_<number>.wav (mp3, m4a, …), or mend the setting "
                        f"source.pattern{example(skipped)}")
    chain = dynamics.chain(emotions)
    dialogues, followed = composed.sequences(settings, {u.emotion for u in utterances})
    notes += followed
    if emotions != dynamics.EMOTIONS and not dialogues:
        notes += (f"Emotions follow a chain that nobody measured: a speaker keeps its emotion {chain[0, 0]:.0%} of "
                  "the time, as in IEMOCAP on average, and moves to each other one alike.",)
    conversations = composed.compose(utterances, session, settings.conversation, emotions, chain, dialogues)
    notes = (*composed.notes(conversations, len(utterances), session, seed), *notes)
    content = [[u.id, u.speaker, u.emotion, surveyed[u.audio.path].sha256] for u in utterances]
    wanted = settings.conversation.but(sequences="")  # what they say counts, not where they lie
    key = runs.key(settings.corpus, wanted, dialogues, runs.code_version(load), content, skipped)
    folds = leave_one_out({c.id: c.session for c in conversations})
    return Corpus(settings.corpus, tuple(conversations), emotions, folds, tuple(skipped), key, notes, counts)


def _published(layout: Layout, root: Path, names: Mapping[Path, str]) -> tuple[Labels, list[Skipped]]:
    """The files that are named as a corpus' owners have it, and those that are not or stand for a clip again."""
    labels, first, skipped, copies = {}, {}, [], []
    for path in files.sounds(names):
        match = re.fullmatch(layout.name, path.stem)
        if not match:
            skipped.append(Skipped(names[path], f"is not named like {layout.example}"))
        elif first.setdefault(path.stem, path) is not path:
            copies.append(f"{names[first[path.stem]]} rather than {names[path]}")
        else:
            labels[path] = match["speaker"], layout.emotions[match["emotion"]][0]
    if not labels:
        raise UserError(f"root {root} is not {layout.title}: expected {layout.example} and its like below it, "
                        f"found {files.listing(root)}; give the folder that holds them")
    return labels, skipped + files.copies(copies)


def _own(text: str, names: Mapping[Path, str]) -> tuple[Labels, list[Skipped]]:
    """The files that their names, as source.pattern `text` has it, or their folders label, and the others."""
    try:
        pattern = re.compile(files.plain(text))
        groups = set(pattern.groupindex)
    except (re.error, OverflowError, RecursionError):
        groups = set()
    if groups not in ({"speaker"}, {"speaker", "emotion"}):
        raise UserError(f"setting source.pattern {text!r} must be a regular expression with the named group "
                        "speaker and, if you like, emotion, e.g. '^(?P<speaker>[^_]+)_' for spk1_003.wav")
    labels, skipped = {}, []
    for path in files.sounds(names):
        folder, inside, _ = names[path].partition("/")
        match = pattern.search(files.plain(path.name))
        found = {"emotion": folder if inside else "", **match.groupdict()} if match else {}
        if not match or not all(match.groupdict().values()):
            skipped.append(Skipped(names[path], f"source.pattern {text!r} does not find its groups in its name"))
        elif not found["emotion"]:
            skipped.append(Skipped(names[path], "lies in the root, not in a folder named after its emotion"))
        else:
            labels[path] = found["speaker"], " ".join(found["emotion"].lower().split())
    return labels, skipped
