"""EmoDB (Burkhardt et al. 2005): acted German sentences of ten speakers, composed into conversations.

Layout: `wav/03a01Fa.wav` is speaker 03, text a01, emotion F, version a. Of its seven emotions the four of the
kit are composed; the others are counted among the skipped. Speakers are paired into sessions, and the folds
leave one session out.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from .. import runs
from ..settings import Settings, UserError
from . import composed, dynamics, files
from .conversation import Clip, Corpus, Count, Skipped, Utterance

NAME = re.compile(r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<version>[a-z])\.wav")
LETTERS = {"N": "neu", "F": "hap", "T": "sad", "W": "ang"}  # neutral, Freude, Trauer, Wut
OTHERS = {"L": "boredom", "E": "disgust", "A": "fear"}  # Langeweile, Ekel, Angst
PUBLISHED = {"neu": 79, "hap": 71, "sad": 62, "ang": 127}  # of its 535 recordings
WOMEN = ("08", "09", "13", "14", "16")
MEN = ("03", "10", "11", "12", "15")


def load(settings: Settings) -> Corpus:
    """Conversations of the usable files below `settings.root`; what is not used is listed as skipped.

    Raises UserError for a root of another shape, or for speakers too few to keep training, validation and
    test apart.
    """
    folder = _wav_folder(settings.root_path)
    utterances, hashes, skipped = _utterances(settings, folder)
    pairs = composed.pairs(_row({u.speaker for u in utterances}))
    if len(pairs) < 3:
        raise UserError(f"{folder} has usable files of {len({u.speaker for u in utterances})} speaker(s) in "
                        f"{', '.join(dynamics.EMOTIONS)}; six are needed to keep training, validation and "
                        "test apart: copy the whole corpus there")
    sessions = {"-".join(pair): [u for u in utterances if u.speaker in pair] for pair in pairs}
    conversations = composed.compose(sessions, settings.conversation)
    key = runs.key("emodb", settings.conversation, hashes, [[s.item, s.reason] for s in skipped],
                   runs.code_version(load))
    notes = (composed.note(conversations, len(hashes), "acted recordings"),
             "With two speakers a session, the swapped control's other conversation is of the same speakers.")
    found = Counter(u.emotion for u in utterances)
    return Corpus("emodb", tuple(conversations), dynamics.EMOTIONS, composed.leave_one_session_out(conversations),
                  tuple(skipped), key, notes, tuple(Count("all", e, PUBLISHED[e], found[e])
                                                    for e in dynamics.EMOTIONS))


def _wav_folder(root: Path) -> Path:
    """The folder of the recordings: `root/wav`, or `root` itself."""
    for folder in (root / "wav", root):
        if folder.is_dir() and any(NAME.fullmatch(p.name) for p in composed.listed(folder)):
            return folder
    within = root / "wav" if (root / "wav").is_dir() else root
    found = [composed.printable(str(p.relative_to(root))) for p in composed.listed(within)]
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "") if found else "nothing"
    raise UserError(f"root {root} is not EmoDB: expected wav/03a01Fa.wav and its like below it, found "
                    f"{shown}; give the folder that holds wav/, or wav/ itself")


def _utterances(settings: Settings, folder: Path) -> tuple[list[Utterance], list[list[str]], list[Skipped]]:
    """Usable utterances by name, (name, hash of the bytes) of each, and what was skipped."""
    utterances, hashes, skipped, others = [], [], [], Counter()
    paths = composed.listed(folder)
    parts = {p: NAME.fullmatch(p.name) for p in paths}
    heard = files.survey(settings, folder, (p for p in paths if parts[p] and parts[p]["emotion"] in LETTERS))
    for path in paths:
        if parts[path] is None:
            skipped.append(Skipped(composed.printable(path.name),
                                   "not named speaker, text, one of WLEAFTN, version (03a01Fa.wav)"))
        elif path not in heard:
            others[parts[path]["emotion"]] += 1
        elif reason := heard[path].fault:
            skipped.append(Skipped(path.name, reason))
        else:
            utterances.append(Utterance(path.stem, parts[path]["speaker"], 0.0, heard[path].seconds,
                                        LETTERS[parts[path]["emotion"]], Clip(path)))
            hashes.append([path.name, heard[path].sha256])
    skipped += [Skipped(f"{OTHERS[letter]} ({letter})", f"{others[letter]} files outside the label set "
                        f"{', '.join(dynamics.EMOTIONS)}") for letter in sorted(others)]
    return utterances, hashes, skipped


def _row(speakers: set[str]) -> list[str]:
    """Speakers in the order in which they are paired: a man and a woman in turn as far as they go."""
    women = [s for s in sorted(speakers) if s in WOMEN]
    men = [s for s in sorted(speakers) if s in MEN]
    row = [s for both in zip_longest(men, women) for s in both if s is not None]
    return row + sorted(speakers - {*WOMEN, *MEN})
