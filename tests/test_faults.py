"""What users' trees have in them: every fault is heard all the same, listed, or refused in words; never a traceback.

Each case is a small good tree with one fault, loaded as a user would; what must come of it is declared beside it:
`heard` (nothing is lost), `skip` (these utterances and no others are lost, and are listed) or `error` (a UserError
that has these words). The last test counts and prints the outcomes: `pytest tests/test_faults.py -s`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import faults
import numpy as np
import pandas as pd
import pytest
import tree_iemocap
import tree_meld
from faults_text import TEXTS, Want, error, heard, skip

from dpmkit import corpora, speech
from dpmkit.corpora import folders, meld, recording
from dpmkit.settings import Settings, UserError

SCRATCH = tempfile.TemporaryDirectory()
BASE = Path(SCRATCH.name)
BASE.chmod(0o755)  # a test is another user's
SMALL = {"conversation.conversations": 2, "conversation.min_turns": 2, "conversation.max_turns": 4,
         "codes.codebook_size": 8}
ASKED = {"iemocap": {"source.allow_partial": True}, "folders": {"source.speaker": "^([^_]+)_"}}
VICTIM = {"emodb": "wav/03a01Na", "iemocap": "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000",
          "meld": "train/train_splits/dia0_utt1", "manifest": "clips/c0u1", "folders": "neu/spk1_1"}
SUFFIXES = {"emodb": {".wav"}, "iemocap": {".wav"}, "meld": {*meld.SUFFIXES}, "folders": {*folders.AUDIO}}
LOST = {"iemocap": "Ses01F_impro01_F000", "meld": "train_dia0_utt1", "manifest": "c0u1"}  # the victim's utterance


def emodb_tree(root):
    for i, (speaker, text, letter) in enumerate((s, t, e) for s in ("03", "08", "09", "10", "11", "13")
                                                for t in ("a01", "a02") for e in "NFTW"):
        put(root / "wav" / f"{speaker}{text}{letter}a.wav", sound(i))


def folders_tree(root):
    for i, (emotion, speaker) in enumerate((e, s) for e in ("neu", "hap", "sad", "ang") for s in range(1, 7)):
        put(root / emotion / f"spk{speaker}_1.wav", sound(i))


def manifest_tree(root):
    rows = []
    for c in range(4):
        for u in range(4):
            put(root / "clips" / f"c{c}u{u}.wav", sound(4 * c + u))
            rows.append((f"c{c}", f"c{c}u{u}", f"s{2 * c + u % 2}", ("neu", "hap")[u // 2], f"clips/c{c}u{u}.wav"))
    columns = ("conversation", "utterance", "speaker", "emotion", "path")
    pd.DataFrame(rows, columns=columns).to_csv(root / "manifest.csv", index=False)


def iemocap_tree(root):
    made = tree_iemocap.small(root, (1, 2), turns=4)
    for session in made.iterdir():
        session.rename(root / session.name)
    made.rmdir()


TREES = {"emodb": emodb_tree, "iemocap": iemocap_tree, "manifest": manifest_tree, "folders": folders_tree,
         "meld": lambda root: tree_meld.make(root, (2, 1, 1), spoiled=False, suffix=".wav")}


def sound(seed):
    return faults.wav(np.random.default_rng(100 + seed).uniform(-0.3, 0.3, 1600))


def put(path, data):
    """A file anew: what stood there is a hard link to the pristine tree's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def asked(reader, root, home="home", **overrides):
    return Settings.of("smoke", {**SMALL, **ASKED.get(reader, {}), **overrides}, corpus=reader, root=str(root),
                       home=str(BASE / home))


@lru_cache
def pristine(reader):
    """The good tree, and what is heard of it."""
    root = BASE / "pristine" / reader
    root.mkdir(parents=True)
    TREES[reader](root)
    corpus = corpora.load(asked(reader, root))
    assert not corpus.skipped
    return root, utterances(corpus)


def fresh(reader):
    """A copy of the good tree, always at the same place, so that what is known of its files is not heard again."""
    root = BASE / "work" / reader
    shutil.rmtree(root, ignore_errors=True)
    return shutil.copytree(pristine(reader)[0], root, copy_function=os.link)


def utterances(corpus):
    """Ids of what is heard; of composed corpora, which repeat and leave out, how many recordings an emotion has."""
    if corpus.name in ("emodb", "folders"):
        return {(c.emotion, i) for c in corpus.counts for i in range(c.found)}
    return {u.id for c in corpus.conversations for u in c.utterances}


def told(settings):
    """The corpus or the UserError; whatever else is raised, or takes longer than 30 s, fails the test."""
    out = []

    def load():
        try:
            out.append(corpora.load(settings))
        except BaseException as raised:
            out.append(raised)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(30)
    assert out, "the corpus never comes: something is waited for without end"
    if not isinstance(out[0], corpora.Corpus | UserError):
        raise out[0]
    return out[0]


def check(reader, got, want):
    """What came of it is what must come of it; its kind, for the count."""
    before = pristine(reader)[1]
    if isinstance(got, UserError):
        assert want.kind == "error", f"refused: {got}"
        assert all(w in str(got) for w in want.words), f"{want.words} not in: {got}"
        assert "Traceback" not in str(got) and str(got).strip()
        return
    assert want.kind != "error", f"heard, listing {got.skipped}"
    lost = before - utterances(got)
    listed = [f"{s.item}: {s.reason}" for s in got.skipped]
    assert len(lost) == len(want.lost) if reader in ("emodb", "folders") else lost == set(want.lost), (lost, listed)
    for words in want.words:
        assert any(words in line for line in listed), (words, listed)
    assert len(listed) == len(want.words), listed
    for u in (u for c in got.conversations for u in c.utterances):
        if u.audio.path.stat().st_nlink == 1:  # not the pristine tree's
            assert np.isfinite(speech.read(u.audio.path, u.audio.start, u.audio.end)).all()


@dataclass(frozen=True)
class Case:
    reader: str
    group: str
    fault: str
    act: object = field(repr=False)  # (root) -> None
    want: Want = field(repr=False)

    def __str__(self):
        return ascii(f"{self.reader}: {self.group}: {self.fault}")[1:-1]


def place(reader, spoil, suffix=".wav"):
    """What puts a fault in the victim's place."""
    def act(root):
        victim = root / f"{VICTIM[reader]}.wav"
        victim.unlink()
        spoil(victim.with_suffix(suffix))
        if reader == "manifest" and suffix != ".wav":
            path = root / "manifest.csv"
            put(path, path.read_bytes().replace(b"c0u1.wav", f"c0u1{suffix}".encode()))
    return act


def sounds():
    for name, (data, words) in faults.AUDIO.items():
        suffix = Path(name).suffix if Path(name).suffix in {".flac", ".ogg", ".mp3", ".mp4", ".mkv"} else ".wav"
        for reader in VICTIM:
            if suffix in SUFFIXES.get(reader, {suffix}):
                want = heard() if words is None else skip(words, lost=[LOST.get(reader, 1)])
                yield Case(reader, "audio", name, place(reader, lambda p, data=data: put(p, data), suffix), want)
    for name, (spoil, words) in faults.PLACED.items():
        for reader in VICTIM:
            if name == "unreadable" or (reader, name) in ELSEWHERE:
                continue
            yield Case(reader, "placed", name, place(reader, spoil), skip(words, lost=[LOST.get(reader, 1)]))


ELSEWHERE: dict[tuple[str, str], Want] = {}
CASES = [*sounds(), *(Case(reader, group, name, act, want) for reader, group, name, act, want in TEXTS)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_is_heard_listed_or_refused_in_words(case):
    root = fresh(case.reader)
    case.act(root)
    check(case.reader, told(asked(case.reader, root)), case.want)
