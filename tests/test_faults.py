"""What users' trees have in them: each fault is heard all the same, listed, or refused in words; never a traceback.

Each case is a small good tree with one fault, loaded as a user would; what must come of it is declared beside it:
`heard` (nothing is lost), `skip` (these utterances and no others are lost, and are listed) or `error` (a UserError
that has these words). The last test counts and prints the outcomes: `pytest tests/test_faults.py -s`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
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
from faults_text import TEXTS, TURNS, Want, heard, skip
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dpmkit import audio, codes, corpora
from dpmkit.corpora import manifest, meld
from dpmkit.settings import Settings, UserError

SCRATCH = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # where it is quick
BASE = Path(SCRATCH.name)
BASE.chmod(0o755)  # a test is another user's
SMALL = {"conversation.conversations": 4, "conversation.min_turns": 4, "conversation.max_turns": 6,
         "codes.codebook_size": 8}
ASKED = {"iemocap": {"source.allow_partial": True}, "emodb": {"source.allow_partial": True},
         "folders": {"source.pattern": "^(?P<speaker>[^_]+)_"}}
VICTIM = {"emodb": "wav/03a01Na", "iemocap": "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000",
          "meld": "train/train_splits/dia0_utt1", "manifest": "clips/c0u1", "folders": "neu/spk1_1"}
SUFFIXES = {"iemocap": {".wav"}, **{reader: {*audio.SUFFIXES} for reader in ("emodb", "meld", "folders")}}
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
            rows.append((f"c{c}", f"c{c}u{u}", f"s{2 * c + u % 2}", ("neu", "hap")[u // 2],
                         ("train", "train", "dev", "test")[c], f"clips/c{c}u{u}.wav"))
    columns = ("conversation", "utterance", "speaker", "emotion", "split", "path")
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
            assert np.isfinite(audio.read(u.audio.path, u.audio.start, u.audio.end)).all()


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


def suffix_of(name):
    return Path(name).suffix if Path(name).suffix in {".flac", ".ogg", ".mp3", ".mp4", ".mkv"} else ".wav"


def sounds():
    for name, (data, words) in faults.AUDIO.items():
        suffix = suffix_of(name)
        for reader in VICTIM:
            if suffix in SUFFIXES.get(reader, {suffix}) and not (reader == "iemocap" and words is None):
                want = heard() if words is None else skip(words, lost=[LOST.get(reader, 1)])
                yield Case(reader, "audio", name, place(reader, lambda p, data=data: put(p, data), suffix), want)
    for name, (spoil, words) in faults.PLACED.items():
        for reader in VICTIM:
            listed = ELSEWHERE.get((reader, name), (words,))
            yield Case(reader, "placed", name, place(reader, spoil), skip(*listed, lost=[LOST.get(reader, 1)]))


# What is not an audio file is told in a reader's own words where it looks before it hears.
ELSEWHERE = {
    ("emodb", "full folder"): ("is a folder", "a.wav: is not named like"),
    ("iemocap", "full folder"): ("is a folder", "a.wav: belongs to no annotated turn"),
    ("meld", "full folder"): ("is a folder", "a.wav: is not named"),
    ("folders", "full folder"): ("is a folder", "a.wav: source.pattern")}
CASES = [*sounds(), *(Case(reader, group, name, act, want) for reader, group, name, act, want in TEXTS)]


SEEN: dict[tuple[str, str, str], str] = {}  # (reader, group, fault) -> what came of it, for the count


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_is_heard_listed_or_refused_in_words(case):
    root = fresh(case.reader)
    case.act(root)
    check(case.reader, told(asked(case.reader, root)), case.want)
    SEEN[case.reader, case.group, case.fault] = case.want.kind


@contextmanager
def nobody():
    """As a user who may not read everything; root may, so that it becomes one who may not."""
    if os.geteuid():
        yield
        return
    home = BASE / "nobody"
    home.mkdir(exist_ok=True)
    home.chmod(0o777)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


NOT_ENTERED = "folder that may be listed, not entered"


@pytest.mark.parametrize(("reader", "what"), [
    (reader, what) for reader in VICTIM for what in ("file", "folder", NOT_ENTERED, "table")
    if what != "table" or reader in ("manifest", "meld")])
def test_what_may_not_be_read_is_listed_or_refused(reader, what):
    root = fresh(reader)
    path = root / f"{VICTIM[reader]}.wav"
    if what == "table":
        path = root / {"manifest": "manifest.csv", "meld": "dev_sent_emo.csv"}[reader]
    data = path.read_bytes()
    put(path, data)
    spoilt = path.parent if what.startswith("folder") else path
    spoilt.chmod(0o444 if what == NOT_ENTERED else 0)
    try:
        with nobody():
            got = told(asked(reader, root, "nobody"))
    finally:
        spoilt.chmod(0o755)
    if isinstance(got, UserError):
        assert str(root) in str(got) or "train_splits/dia0_utt0.wav: cannot be read" in str(got)
    else:
        lost = pristine(reader)[1] - utterances(got)
        assert lost and what != "table"
        names = (path.stem, LOST.get(reader, path.stem))
        assert any(w in f"{s.item}: {s.reason}" for s in got.skipped for w in names) or \
            "Ses01F_impro01" in {s.item for s in got.skipped}  # one line for all of its turns
    SEEN[reader, "access", what] = "error" if isinstance(got, UserError) else "skip"


FILES = {**{n: (lambda p, d=d: put(p, d), w) for n, (d, w) in faults.AUDIO.items()},
         **{n: c for n, c in faults.PLACED.items()}}


@pytest.mark.parametrize("name", FILES)
def test_a_single_file_is_read_or_refused_in_words(name, tmp_path):
    spoil, words = FILES[name]
    path = tmp_path / f"recording{suffix_of(name)}"
    spoil(path)
    if words is None:
        waveform = audio.read(path)
        assert waveform.dtype == np.float32 and len(waveform) and np.isfinite(waveform).all()
        assert np.abs(waveform).max() <= 1
    else:
        with pytest.raises(UserError) as raised:
            audio.read(path)
        assert str(path) in str(raised.value) and words in str(raised.value) and "\n" not in str(raised.value)
        found, skipped = manifest.prepare(asked("", ""), [path], tmp_path / "table")
        assert found.empty and len(skipped) == 1 and str(path) in skipped[0].item and words in skipped[0].reason
    SEEN["speech", "placed" if name in faults.PLACED else "audio", name] = "error" if words is not None else "heard"


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a\0b.wav", "", "a.wav/b.wav", "\udcff.wav"], ids=ascii)
def test_a_path_that_leads_nowhere_is_refused_in_words(name, tmp_path):
    put(tmp_path / "a.wav", faults.PCM)
    with pytest.raises(UserError, match="cannot read"):
        audio.read(tmp_path / name)
    SEEN["speech", "path", ascii(name)] = "error"


MEANWHILE = {  # between load and codes.make -> words of the error, None: it is no fault
    "vanished": (lambda path: path.unlink(), "does not exist"),
    "emptied": (lambda path: put(path, b""), "is empty"),
    "cut off": (lambda path: put(path, path.read_bytes()[:1000]), "cut off"),
    "a page": (lambda path: put(path, b"<html>"), "is not audio"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "shorter": (lambda path: put(path, faults.wav(faults.NOISE[:400])), "changed since"),
    "another sound": (lambda path: put(path, faults.wav(np.random.default_rng(5).uniform(-.3, .3, 1600))),
        "changed"),
}


@pytest.mark.parametrize("fault", MEANWHILE)
def test_audio_that_changes_between_load_and_codes_is_named(fault, tmp_path):
    root = fresh("manifest")
    settings = asked("manifest", root, tmp_path / "home")
    corpus = corpora.load(settings)
    path = root / f"{VICTIM['manifest']}.wav"
    spoil, words = MEANWHILE[fault]
    spoil(path)
    with pytest.raises(UserError) as raised:
        codes.make(settings, corpus)
    assert str(path) in str(raised.value) and words in str(raised.value)
    SEEN["codes", "meanwhile", fault] = "error"


SETTINGS = {"conversation.min_turns": 0, "source.classes": 5, "codes.frame_rate": -1,
            "codes.codebook_size": "many", "conversation.turns": 3, "codes": 1, "segments.threshold": "nan",
            "source.pattern": 3, "fold": 2.5}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_is_named(name):
    with pytest.raises(UserError, match=name):
        asked("manifest", "x", **{name: SETTINGS[name]})
    SEEN["settings", "value", name] = "error"


@lru_cache
def whole(suffix):
    return {".wav": faults.PCM, ".flac": faults.FLAC, ".mp4": faults.MP4, ".mkv": faults.MKV}[suffix]


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.sampled_from([".wav", ".flac", ".mp4", ".mkv"]),
       st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1),
           st.binary(max_size=50))
def test_no_damage_of_a_file_gives_anything_but_words_or_sound(suffix, flips, share, tail):
    data = bytearray(whole(suffix))
    for place, value in flips:
        data[int(place * (len(data) - 1) * (0.1 if place < 0.5 else 1))] = value  # a header is short
    path = BASE / f"damaged{suffix}"
    put(path, bytes(data[:int(len(data) * min(1, 2 * share))]) + tail)
    try:
        assert np.isfinite(audio.read(path)).all()
    except audio.Unreadable as error:
        assert str(error).splitlines() == [str(error)]


EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), st.one_of(
    st.binary(max_size=6), st.sampled_from([b",", b'"', b"\r\n", b"[", b"]", b"\t", b"nan", b"-1", b"\0"]))),
    min_size=1, max_size=4)


def edited(data, edits):
    for at, gone, new in edits:
        data = data[:at] + new + data[at + gone:]
    return data


@hypothesis_settings(max_examples=60, deadline=None)
@given(EDITS)
def test_any_edit_of_melds_table_is_refused_or_every_row_accounted_for(edits):
    root = fresh("meld")
    path = root / "dev_sent_emo.csv"
    put(path, edited(path.read_bytes(), edits))
    got = told(asked("meld", root))
    if not isinstance(got, UserError):
        rows = {f"dev_dia{dialogue}_utt{number}" for _, dialogue, number in meld.read_rows(path, "dev")}
        listed = " ".join(f"{s.item} {s.reason}" for s in got.skipped)
        lost = (rows | pristine("meld")[1]) - utterances(got)
        assert all(i in listed or i.removeprefix("dev_") in listed for i in lost), (lost, listed)


@hypothesis_settings(max_examples=60, deadline=None)
@given(EDITS)
def test_any_edit_of_an_annotation_is_refused_or_every_turn_accounted_for(edits):
    root = fresh("iemocap")
    path = root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    put(path, edited(path.read_bytes(), edits))
    got = told(asked("iemocap", root))
    if not isinstance(got, UserError):
        listed = [s.item for s in got.skipped]
        lost = pristine("iemocap")[1] - utterances(got)
        folder = "Session1/sentences/wav/Ses01F_impro01"  # one line for all of its wavs
        assert lost <= {*TURNS} and (folder in listed or all(i in " ".join(listed) for i in lost)), (lost, listed)


SHARED = ("audio", "placed", "name", "access", "root")  # groups of which several readers meet the same fault


def test_the_count(capsys):
    """Runs last; of a part of the file there is nothing to count."""
    if not {*VICTIM, "speech", "codes", "settings"} <= {reader for reader, _, _ in SEEN}:
        pytest.skip("only a part of the cases ran")
    rows = pd.DataFrame([(*key, kind) for key, kind in SEEN.items()], columns=["reader", "group", "fault",
        "outcome"])
    distinct = len({(g if g in SHARED else (r, g), f) for r, g, f in SEEN})
    with capsys.disabled():
        print(f"\n{distinct} distinct faults, {len(rows)} pairs of fault and reader\n",
              pd.crosstab(rows.reader, rows.outcome, margins=True, margins_name="all"), sep="\n")
    assert distinct >= 200 and len(rows) > distinct
