"""IEMOCAP (Busso et al. 2008): five sessions, each with a woman and a man, 151 improvised and scripted dialogues.

Layout: `SessionN/dialog/EmoEvaluation/<dialogue>.txt` has times and label of every turn, and
`SessionN/sentences/wav/<dialogue>/<turn>.wav` its audio; nothing else of the release is read. Every turn is heard,
also one outside the label set. Each fold tests a session; a share of the others' dialogues validates, so that
validation knows its speakers and test does not.
"""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import train_test_split

from .. import runs
from ..settings import Settings, UserError
from . import dynamics, files
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, checked

PUBLISHED = {  # utterances a session and label
    "Ses01": {"ang": 229, "hap": 135, "exc": 143, "neu": 384, "sad": 194, "fru": 280},
    "Ses02": {"ang": 137, "hap": 117, "exc": 210, "neu": 362, "sad": 197, "fru": 325},
    "Ses03": {"ang": 240, "hap": 135, "exc": 151, "neu": 320, "sad": 305, "fru": 382},
    "Ses04": {"ang": 327, "hap": 65, "exc": 238, "neu": 258, "sad": 143, "fru": 481},
    "Ses05": {"ang": 170, "hap": 143, "exc": 299, "neu": 384, "sad": 245, "fru": 381},
}
TURNS = 10_039  # of the release, whatever their label
LABELS = (*PUBLISHED["Ses01"], "sur", "fea", "dis", "oth", "xxx")  # xxx: the annotators disagree
# source.classes -> the emotions, and the labels that are merged into others
CLASSES = {4: (dynamics.EMOTIONS, {"exc": "hap"}), 6: (("ang", "exc", "fru", "hap", "neu", "sad"), {})}
SLACK = 0.04  # seconds that a wav may be longer or shorter than its turn's times: a frame at 25 Hz

PLACE = re.compile(r"(?P<release>(.*/)?)session[1-5]/(dialog/emoevaluation/(?P<text>[^/]+)|"
                   r"sentences/wav/(.*/)?[^/]+(?P<wav>\.wav))", re.IGNORECASE)
DIALOGUE = re.compile(r"(Ses0[1-5])[FM]_(impro|script)\w+")
LINE = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*\]\s+(\S+)\s+(\S+)\s+\[[^\]]*\]")


@dataclass(frozen=True)
class Turn:
    """A line of an EmoEvaluation file; `speaker` is session and gender of the turn (Ses01_F), times in seconds."""

    id: str
    speaker: str
    start: float
    end: float
    label: str


def load(settings: Settings) -> Corpus:
    """The release at or below `settings.root`; what is not used is listed as skipped.

    A wav that is longer or shorter than its turn's times is heard whole, and a note counts such turns. Raises
    UserError for a root of another shape, for counts that are not the published ones (unless
    `source.allow_partial`), and for a tree too small for its folds.
    """
    root = settings.root_path
    texts, sounds = _places(root)
    dialogues, skipped = _dialogues(texts)
    turns = [t for of in dialogues.values() for t in of]
    wavs, strays = _wavs(sounds, {t.id for t in turns} | {s.item for s in skipped})
    audio = files.survey(settings, root, [wavs[t.id] for t in turns if t.id in wavs])
    skipped += _unheard(dialogues, wavs, audio) + strays

    emotions, merged = CLASSES[settings.source.classes]
    heard = [t for t in turns if t.id in wavs and not audio[wavs[t.id]].fault]
    placed: dict[str, list[Utterance]] = {}
    for t in sorted(heard, key=lambda t: (t.start, t.end, t.id)):
        emotion = merged.get(t.label, t.label)
        placed.setdefault(t.id.rpartition("_")[0], []).append(Utterance(
            t.id, t.speaker, t.start, t.end, emotion if emotion in emotions else None, Clip(wavs[t.id])))
    conversations = tuple(Conversation(d, DIALOGUE.fullmatch(d)[1], tuple(placed[d])) for d in sorted(placed))

    found = Counter((c.session, u.emotion) for c in conversations for u in c.utterances)
    counts = tuple(Count(session, e, sum(n for label, n in row.items() if merged.get(label, label) == e),
                         found[session, e]) for session, row in PUBLISHED.items() for e in emotions)
    notes = checked(settings, root, "IEMOCAP", counts, skipped)
    share, seed = settings.source.validation, settings.conversation.seed % 2**32  # scikit-learn takes no more
    folds = _folds(root, conversations, share, seed)
    lengths = {t.id: (audio[wavs[t.id]].seconds, t.end - t.start) for t in heard}
    content = sorted([t.id, t.speaker, t.start, t.end, t.label, audio[wavs[t.id]].sha256] for t in heard)
    key = runs.key("iemocap", settings.source.classes, share, seed, content,
                   [[s.item, s.reason] for s in skipped], runs.code_version(load))
    return Corpus("iemocap", conversations, emotions, folds, tuple(skipped), key, (*notes, *_notes(folds, lengths)),
                  counts)


def _places(root: Path) -> tuple[dict[Path, str], dict[Path, str]]:
    """Annotations and sentence wavs, with their names below the release, which is the root or a folder below it
    (archives nest); any case that an unpacker left."""
    found = [(path, name, place) for path, name in files.walk(root) if (place := PLACE.fullmatch(name))]
    releases = sorted({place["release"] for _, _, place in found})
    if len(releases) > 1:
        raise UserError(f"root {root} holds {len(releases)} folders of sessions ({', '.join(releases)}): give one "
                        "of them as root")
    if not releases:
        raise UserError(f"root {root} is not IEMOCAP: expected Session1/dialog/EmoEvaluation/Ses01F_impro01.txt, "
                        f"Session1/sentences/wav and their like in it or below it, found {files.listing(root)}; "
                        "give the folder that holds the SessionN folders")
    names = {path: name.removeprefix(releases[0]) for path, name, _ in found}
    return ({path: names[path] for path, _, place in found if place["text"]},
            {path: names[path] for path, _, place in found if place["wav"]})


def _dialogues(texts: Mapping[Path, str]) -> tuple[dict[str, list[Turn]], list[Skipped]]:
    """Turns by dialogue, as annotated, and what cannot be used of the annotation."""
    dialogues, skipped = {}, []
    for path, name in texts.items():
        if path.suffix.lower() != ".txt" or not DIALOGUE.fullmatch(path.stem):
            reason = "not named as a dialogue is (Ses01F_impro01.txt)"
        elif path.stem in dialogues:
            reason = f"a second file of dialogue {path.stem}; the first one counts"
        else:
            try:
                dialogues[path.stem], more = _turns(path.stem, path.read_bytes())
                skipped += more
                reason = "" if dialogues[path.stem] else "has no turn that can be used"
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
        if reason:
            skipped.append(Skipped(name, reason))
    return dialogues, skipped


def _turns(dialogue: str, data: bytes) -> tuple[list[Turn], list[Skipped]]:
    """The turns of an EmoEvaluation file in its order, and the lines of turns that cannot be used.

    Lines that do not begin with `[` are the header and the single annotators' votes. All that is read is ASCII,
    so that comments may be in any encoding. A turn of an unknown label is heard without one.
    """
    turns, skipped = {}, []
    text = data.removeprefix(codecs.BOM_UTF8).decode("ascii", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("["):
            continue
        parts = LINE.fullmatch(line.strip())
        if parts is None:
            skipped.append(Skipped(f"{dialogue}.txt, line {number}",
                                   "is not [start - end], turn, label, [valence, activation, dominance]"))
            continue
        start, end, name, label = float(parts[1]), float(parts[2]), parts[3], parts[4].lower()
        speaker = re.fullmatch(re.escape(dialogue) + r"_([A-Za-z])[A-Za-z0-9]*", name)
        if speaker is None:
            reason = f"is no turn of dialogue {dialogue}, in whose file it stands"
        elif speaker[1] not in "FM":
            reason = f"has speaker {speaker[1]}, who is neither F nor M"
        elif name in turns:
            reason = f"stands a second time in {dialogue}.txt, on line {number}; the first one counts"
        elif not start < end < math.inf:
            reason = f"ends at {end} s, not after its start at {start} s"
        else:
            turns[name] = Turn(name, f"{dialogue[:5]}_{speaker[1]}", start, end, label)
            reason = "" if label in LABELS else f"has the unknown label {label}; it is heard without one"
        if reason:
            skipped.append(Skipped(name, reason))
    return list(turns.values()), skipped


def _wavs(sounds: Mapping[Path, str], named: set[str]) -> tuple[dict[str, Path], list[Skipped]]:
    """The sentence wavs by turn, and those that belong to no annotated turn: one line for a folder of such."""
    sizes = Counter(p.parent for p in sounds)
    stray = Counter(p.parent for p in sounds if p.stem not in named)
    whole = [folder for folder, number in stray.items() if number == sizes[folder] > 1]
    skipped = [Skipped(name.rpartition("/")[0], f"{stray[folder]} wavs, none of an annotated turn")
               for folder, name in {p.parent: name for p, name in sounds.items()}.items() if folder in whole]
    wavs: dict[str, Path] = {}
    # A wav in its dialogue's own folder comes before a copy elsewhere.
    for path in sorted(sounds, key=lambda p: not p.stem.startswith(f"{p.parent.name}_")):
        if path.stem not in named and path.parent not in whole:
            skipped.append(Skipped(sounds[path], "belongs to no annotated turn"))
        elif path.stem in named and wavs.setdefault(path.stem, path) != path:
            skipped.append(Skipped(sounds[path], f"a second wav of turn {path.stem}"))
    return wavs, skipped


def _unheard(dialogues: Mapping[str, Sequence[Turn]], wavs: Mapping[str, Path],
             audio: Mapping[Path, files.File]) -> list[Skipped]:
    """Annotated turns without audio: one line for a dialogue that has none at all."""
    skipped = []
    for dialogue, turns in dialogues.items():
        faults = {t.id: audio[wavs[t.id]].fault if t.id in wavs else "is missing" for t in turns}
        if turns and not any(t.id in wavs for t in turns):
            skipped.append(Skipped(dialogue, f"none of its {len(turns)} turns has a wav in sentences/wav"))
        else:
            skipped += [Skipped(i, f"its wav {fault}") for i, fault in faults.items() if fault]
    return skipped


def _folds(root: Path, conversations: Sequence[Conversation], share: float, seed: int) -> tuple[Fold, ...]:
    """A fold a session; of the others' dialogues this share, rounded up, validates, drawn from each session and
    kind (improvised, scripted) alike; from each session, or from all, where a tree is too small for that."""
    sessions = sorted({c.session for c in conversations})
    folds = []
    for test in sessions:
        rest = [c for c in conversations if c.session != test]
        if len(rest) < 2:
            break
        held = min(math.ceil(share * len(rest)), len(rest) - 1)
        kinds = [f"{c.session} {DIALOGUE.fullmatch(c.id)[2]}" for c in rest]
        for strata in (kinds, [c.session for c in rest], ["any"] * len(rest)):
            sizes = Counter(strata)
            if min(sizes.values()) > 1 and len(sizes) <= min(held, len(rest) - held):
                break
        train, validation = train_test_split([c.id for c in rest], test_size=held, random_state=seed,
                                             stratify=strata)
        folds.append(Fold(tuple(sorted(train)), tuple(sorted(validation)),
                          tuple(c.id for c in conversations if c.session == test)))
    if len(folds) < max(2, len(sessions)):
        raise UserError(f"{root} has {len(conversations)} dialogue(s) of {len(sessions)} session(s) that can "
                        "be heard; a fold tests one session and needs two dialogues of others: fetch more sessions")
    return tuple(folds)


def _notes(folds: Sequence[Fold], lengths: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """What differs from the release. `lengths`: seconds of a turn's wav, and by its times."""
    if len(folds) < len(PUBLISHED):
        yield f"Folds 1 to {len(folds)} test {', '.join(f.test[0][:5] for f in folds)}."
    if len(lengths) != TURNS:
        yield f"{len(lengths):,} turns are heard where the release has {TURNS:,}."
    off = sorted(((abs(wav - times), i, wav, times) for i, (wav, times) in lengths.items()
                  if abs(wav - times) > SLACK), reverse=True)
    if off:
        worst = ", ".join(f"{i}: {wav:.2f} s for {times:.2f} s" for _, i, wav, times in off[:3])
        yield (f"{len(off):,} turns' wavs differ from their annotated times by more than {SLACK} s, most of all "
               f"{worst}; each wav is heard whole.")
