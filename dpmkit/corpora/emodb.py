"""EmoDB (Burkhardt et al. 2005): acted German sentences of ten speakers, composed into conversations.

Layout: `wav/03a01Fa.wav` is speaker 03, text a01, emotion F, version a. Of its seven emotions the four of the
kit are composed; the others are counted among the skipped. Speakers are paired into sessions, and the folds
leave one session out.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from .. import runs, speech
from ..settings import Settings, UserError
from . import composed, conversation, dynamics
from .conversation import Clip, Corpus, Skipped, Utterance

NAME = re.compile(r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<version>[a-z])\.wav")
LETTERS = {"N": "neu", "F": "hap", "T": "sad", "W": "ang"}  # neutral, Freude, Trauer, Wut
OTHERS = {"L": "boredom", "E": "disgust", "A": "fear"}  # Langeweile, Ekel, Angst
WOMEN = ("08", "09", "13", "14", "16")
MEN = ("03", "10", "11", "12", "15")


def load(settings: Settings) -> Corpus:
    """Conversations of the usable files below `settings.root`; what is not used is listed as skipped.

    Raises UserError for a root of another shape, or for speakers too few to keep training, validation and
    test apart.
    """
    folder = _wav_folder(settings.root_path)
    utterances, hashes, skipped = _utterances(folder)
    pairs = _pairs({u.speaker for u in utterances})
    if len(pairs) < 3:
        raise UserError(f"{folder} has usable files of {len({u.speaker for u in utterances})} speaker(s) in "
                        f"{', '.join(dynamics.EMOTIONS)}; six are needed to keep training, validation and "
                        "test apart: copy the whole corpus there")
    sessions = {"-".join(pair): [u for u in utterances if u.speaker in pair] for pair in pairs}
    conversations = composed.compose(sessions, settings.conversation)
    code = runs.code_version(sys.modules[__name__], composed, dynamics, conversation, speech)
    key = runs.key("emodb", settings.conversation, hashes, [[s.item, s.reason] for s in skipped], code)
    folds = composed.leave_one_session_out(conversations)
    heard = sum(len(c.utterances) for c in conversations) / len(hashes)
    notes = (f"Conversations are composed of {len(hashes)} acted recordings, each heard about {heard:.0f} times in "
             "the corpus, and a test session has two speakers: the true intervals are wider than those over "
             "conversations.",
             "With two speakers a session, the swapped control's other conversation is of the same speakers.")
    return Corpus("emodb", tuple(conversations), dynamics.EMOTIONS, folds, tuple(skipped), key, notes)


def _wav_folder(root: Path) -> Path:
    """The folder of the recordings: `root/wav`, or `root` itself."""
    for folder in (root / "wav", root):
        if folder.is_dir() and any(NAME.fullmatch(p.name) for p in folder.iterdir()):
            return folder
    within = root / "wav" if (root / "wav").is_dir() else root
    found = sorted(str(p.relative_to(root)) for p in within.iterdir())
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "") if found else "nothing"
    raise UserError(f"root {root} is not EmoDB: expected wav/03a01Fa.wav and its like below it, found "
                    f"{shown}; give the folder that holds wav/, or wav/ itself")


def _utterances(folder: Path) -> tuple[list[Utterance], list[list[str]], list[Skipped]]:
    """Usable utterances by name, (name, hash of the bytes) of each, and what was skipped."""
    utterances, hashes, skipped, others = [], [], [], Counter()
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.name.startswith("."):  # ._03a01Fa.wav, .DS_Store: the file system's, not the corpus'
            continue
        parts = NAME.fullmatch(path.name)
        if parts is None:
            skipped.append(Skipped(path.name, "not named speaker, text, one of WLEAFTN, version (03a01Fa.wav)"))
        elif parts["emotion"] in OTHERS:
            others[parts["emotion"]] += 1
        elif reason := speech.fault(path):
            skipped.append(Skipped(path.name, reason))
        else:
            utterances.append(Utterance(path.stem, parts["speaker"], 0.0, speech.seconds(path),
                                        LETTERS[parts["emotion"]], Clip(path)))
            hashes.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
    skipped += [Skipped(f"{OTHERS[letter]} ({letter})", f"{others[letter]} files outside the label set "
                        f"{', '.join(dynamics.EMOTIONS)}") for letter in sorted(others)]
    return utterances, hashes, skipped


def _pairs(speakers: set[str]) -> list[tuple[str, ...]]:
    """Speakers in pairs, a man and a woman as far as they go; an odd one joins the last pair."""
    women = [s for s in sorted(speakers) if s in WOMEN]
    men = [s for s in sorted(speakers) if s in MEN]
    row = [s for both in zip_longest(men, women) for s in both if s is not None]
    row += sorted(speakers - {*WOMEN, *MEN})
    pairs = [tuple(row[i:i + 2]) for i in range(0, len(row), 2)]
    if len(pairs) > 1 and len(pairs[-1]) == 1:
        last = pairs.pop()
        pairs[-1] += last
    return pairs
