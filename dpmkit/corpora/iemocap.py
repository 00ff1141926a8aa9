"""IEMOCAP (Busso et al. 2008): five sessions, each with a woman and a man, 151 improvised and scripted dialogues.

`SessionN/dialog/EmoEvaluation/<dialogue>.txt` has times and label of every turn, and
`SessionN/sentences/wav/<dialogue>/<turn>.wav` its audio. Every turn is heard, also one outside the label set. Each
fold tests a session; a share of the others' dialogues validates: it knows its speakers, the test does not.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
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
VALIDATION = 0.1  # share of the dialogues of the sessions that are not tested
# source.classes -> the emotions, and the labels that are merged into others
CLASSES = {4: (dynamics.EMOTIONS, {"exc": "hap"}), 6: (("ang", "exc", "fru", "hap", "neu", "sad"), {})}
PLACE = re.compile(r"(?P<release>(.*/)?)session[1-5]/(dialog/emoevaluation/(?P<dialogue>ses0[1-5][fm]_"
                   r"(impro|script)\w+)\.txt|sentences/wav/(.*/)?[^/]+\.wav)", re.IGNORECASE)
# A turn's line in the file of its dialogue: start, end, turn, its speaker's gender, label.
LINE = (r"\[\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*\]\s+(DIALOGUE_([FM])[A-Za-z0-9]*)\s+(\S+)\s+"
        r"\[[^\]]*\]")

# Of a line: the turn's speaker, session and gender (Ses01_F), start and end in seconds, label.
Turn = tuple[str, float, float, str]


def load(settings: Settings) -> Corpus:
    """The release at or below `settings.root`; what is not used is listed as skipped.

    Each wav is heard whole. Raises UserError for a root of another shape, for counts that are not the published
    ones (unless `source.allow_partial`), and for a tree too small for its folds.
    """
    root = settings.root_path
    texts, sounds = _places(root)
    turns, skipped = {}, []
    for dialogue, path in texts.items():
        own, unread = _turns(dialogue, files.read(path))
        turns |= own
        skipped += unread
    wavs = {path.stem: path for path in sounds if path.parent.name == path.stem.rpartition("_")[0]}
    skipped += [Skipped(name, "belongs to no annotated turn of its folder's dialogue")
                for path, name in sounds.items() if path.stem not in turns or wavs.get(path.stem) != path]
    surveyed = files.survey(settings, root, [wavs[i] for i in turns if i in wavs])
    faults = {i: surveyed[wavs[i]].fault if i in wavs else "is missing" for i in turns}
    skipped = [Skipped(i, f"its wav {fault}") for i, fault in faults.items() if fault] + skipped

    emotions, merged = CLASSES[settings.source.classes]
    placed: dict[str, list[Utterance]] = defaultdict(list)
    for i, (speaker, start, end, label) in turns.items():
        if not faults[i]:
            emotion = merged.get(label, label)
            placed[i.rpartition("_")[0]].append(
                Utterance(i, speaker, start, end, emotion if emotion in emotions else None, Clip(wavs[i])))
    conversations = tuple(Conversation(d, d[:5], tuple(sorted(own, key=lambda u: (u.start, u.end, u.id))))
                          for d, own in sorted(placed.items()))

    found = Counter((c.session, u.emotion) for c in conversations for u in c.utterances)
    counts = tuple(Count(session, e, sum(n for label, n in row.items() if merged.get(label, label) == e),
                         found[session, e]) for session, row in PUBLISHED.items() for e in emotions)
    notes = checked(settings, root, "IEMOCAP", counts, skipped)
    seed = settings.conversation.seed % 2**32  # scikit-learn takes no more
    folds = _folds(root, conversations, seed)
    content = [[i, *turns[i], surveyed[wavs[i]].sha256] for i in sorted(turns) if not faults[i]]
    key = runs.key("iemocap", settings.source.classes, seed, content, skipped, runs.code_version(load))
    return Corpus("iemocap", conversations, emotions, folds, tuple(skipped), key, notes, counts)


def _places(root: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """The annotation of each dialogue, and sentence wavs with their names below the release, which is the root or a
    folder below it (archives nest); any case that an unpacker left."""
    found = [(path, name, place) for path, name in files.walk(root) if (place := PLACE.fullmatch(name))]
    releases = sorted({place["release"] for _, _, place in found})
    if len(releases) != 1:
        raise UserError(f"root {root} is not IEMOCAP: expected Session1/dialog/EmoEvaluation/Ses01F_impro01.txt, "
                        "Session1/sentences/wav and their like in it or in one folder below it, found "
                        f"{', '.join(releases) or files.listing(root)}; give the folder that holds the SessionN "
                        "folders")
    texts, sounds = {}, {}
    for path, name, place in found:
        if place["dialogue"]:
            texts.setdefault(place["dialogue"], path)
        else:
            sounds[path] = name.removeprefix(releases[0])
    return texts, sounds


def _turns(dialogue: str, data: bytes) -> tuple[dict[str, Turn], list[Skipped]]:
    """The turns of an EmoEvaluation file by id, in its order, and the lines of turns that cannot be used.

    Lines that do not begin with `[` are the header and the single annotators' votes. All that is read is ASCII,
    so that comments may be in any encoding.
    """
    turns, skipped = {}, []
    form = re.compile(LINE.replace("DIALOGUE", dialogue), re.ASCII)
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        parts = form.fullmatch(line.strip())
        if parts and parts[3] not in turns and float(parts[1]) < float(parts[2]) < math.inf:
            turns[parts[3]] = f"{dialogue[:5]}_{parts[4]}", float(parts[1]), float(parts[2]), parts[5].lower()
        elif line.lstrip().startswith("["):
            skipped.append(Skipped(f"{dialogue}.txt, line {number}",
                                   f"is not [start - end], a turn like {dialogue}_F000, label, [valence, "
                                   "activation, dominance], ends before it starts, or is a turn's second line"))
    return turns, skipped


def _folds(root: Path, conversations: Sequence[Conversation], seed: int) -> tuple[Fold, ...]:
    """A fold a session; of the others' dialogues VALIDATION, rounded up, validates, drawn from each session and
    kind (improvised, scripted) alike, where a tree is not too small for that."""
    sessions = Counter(c.session for c in conversations)
    if len(conversations) - max(sessions.values(), default=0) < 2:
        raise UserError(f"{root} has {len(conversations)} dialogue(s) of {len(sessions)} session(s) that can be "
                        "heard; a fold tests one session and needs two dialogues of others: fetch more sessions")
    folds = []
    for test in sorted(sessions):
        rest = [c for c in conversations if c.session != test]
        held = min(math.ceil(VALIDATION * len(rest)), len(rest) - 1)
        kinds = [f"{c.session} {'impro' if 'impro' in c.id else 'script'}" for c in rest]
        sizes = Counter(kinds)
        alike = min(sizes.values()) > 1 and len(sizes) <= min(held, len(rest) - held)
        train, validation = train_test_split([c.id for c in rest], test_size=held, random_state=seed,
                                             stratify=kinds if alike else None)
        folds.append(Fold(tuple(sorted(train)), tuple(sorted(validation)),
                          tuple(c.id for c in conversations if c.session == test)))
    return tuple(folds)
