"""Folders of labelled recordings: every file is used or listed, and none stands on two sides of a fold."""

import os
import random
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from tree_meld import write_clip

from dpmkit import audio, corpora
from dpmkit.corpora import Skipped, dynamics, folders
from dpmkit.settings import Settings, UserError

HOME = tempfile.TemporaryDirectory()
SMALL = {"conversation.conversations": 4, "conversation.min_turns": 4, "conversation.max_turns": 8}
KNOWN = {"source.speaker": "^([^_]+)_"}
FOUR = ("neutral", "Happy", "sadness", "anger")


def load(root, **overrides):
    return corpora.load(Settings.of("smoke", {**SMALL, **overrides}, corpus="folders", root=str(root),
                                    home=HOME.name))


def refused(root, match, **overrides):
    with pytest.raises(UserError, match=match) as caught:
        load(root, **overrides)
    assert "\n" not in str(caught.value)


def tree(root, emotions=FOUR, speakers="abcdef", each=2, suffix="wav"):
    """`<root>/<emotion>/<speaker>_<number>.wav`, 0.1 s of noise of its own a file."""
    rng = np.random.default_rng(0)
    for emotion in emotions:
        (root / emotion).mkdir(parents=True)
        for name in (f"{s}_{i}.{suffix}" for s in speakers for i in range(each)):
            soundfile.write(root / emotion / name, rng.uniform(-0.5, 0.5, 1600), 16_000)
    return root


def recordings(corpus):
    return {u.audio.path for c in corpus.conversations for u in c.utterances}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("folders") / "root")


@pytest.fixture
def copy(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "root")


def test_known_speakers_are_paired_and_no_fold_shares_one(pristine):
    corpus = load(pristine, **KNOWN)
    assert corpus.emotions == dynamics.EMOTIONS and corpus.speaker_independent and not corpus.skipped
    assert sorted({c.session for c in corpus.conversations}) == ["a-b", "c-d", "e-f"] and len(corpus.folds) == 3
    for c in corpus.conversations:
        for u in c.utterances:
            assert u.speaker == u.audio.path.name[0] and u.speaker in c.session
            assert folders.NAMES[u.audio.path.parent.name.lower()] == u.emotion and u.seconds == pytest.approx(0.1)
    for fold in corpus.folds:
        sides = [{u.speaker for c in corpus.select(ids) for u in c.utterances}
                 for ids in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == len(set().union(*sides)) == 6
    assert [(c.group, c.emotion, c.published, c.found) for c in corpus.counts] == [
        ("all", e, None, 12) for e in dynamics.EMOTIONS]


def test_unknown_speakers_are_eight_stand_ins_and_no_recording_stands_on_two_sides(pristine):
    corpus = load(pristine, **{"conversation.conversations": 20})
    assert not corpus.speaker_independent and any("dealt at random to eight stand-in" in n for n in corpus.notes)
    assert sorted({c.session for c in corpus.conversations}) == [f"part{i}-part{i + 1}" for i in (1, 3, 5, 7)]
    for fold in corpus.folds:
        sides = [{u.audio.path for c in corpus.select(ids) for u in c.utterances}
                 for ids in (fold.train, fold.validation, fold.test)]
        assert all(sides) and sum(map(len, sides)) == len(set().union(*sides))
    dealt = Counter((u.speaker, u.audio.path) for c in corpus.conversations for u in c.utterances)
    assert len({path for _, path in dealt}) == len(dealt)  # one speaker a recording
    assert load(pristine, **{"conversation.seed": 1}).conversations != load(pristine).conversations


def test_each_stand_in_has_its_share_of_every_emotion():
    said = [folders.Utterance(f"{e}{i}", "", 0.0, 1.0, e, folders.Clip(Path(f"{e}{i}")))
            for e, count in (("calm", 11), ("joy", 6), ("rage", 24)) for i in range(count)]
    dealt = folders._dealt(said, 0)
    assert sorted(u.id for u in dealt) == sorted(u.id for u in said)
    for of in ("calm", "joy", "rage", None):
        shares = Counter(u.speaker for u in dealt if of in (None, u.emotion))
        shares = [shares[p] for p in folders.PARTS]
        assert max(shares) - min(shares) <= 1, of
    assert [u.id for u in dealt] != [u.id for u in said]  # shuffled, each emotion by itself
    assert [u.emotion for u in dealt] == [u.emotion for u in said]


@pytest.mark.parametrize(("names", "emotions"), [
    (("NEU", "joy", "sad", "ang"), dynamics.EMOTIONS),
    (("angry", "happiness", "neutral", "sad"), dynamics.EMOTIONS),
    (("angry", "happy", "sad"), ("angry", "happy", "sad")),
    (("Calm", "angry", "happy", "neutral", "sad"), ("angry", "calm", "happy", "neutral", "sad")),
    (("angry", "happy", "joy", "neutral", "sad"), ("angry", "happy", "joy", "neutral", "sad")),
    (("boredom", " Fear "), ("boredom", "fear")),
])
def test_folders_name_the_emotions(tmp_path, names, emotions):
    corpus = load(tree(tmp_path, names), **KNOWN)
    assert corpus.emotions == emotions
    assert {c.emotion: c.found for c in corpus.counts} == dict.fromkeys(emotions, 12)
    assert any("a chain that nobody measured" in n for n in corpus.notes) == (emotions != dynamics.EMOTIONS)


def test_other_emotions_keep_iemocaps_mean_inertia(tmp_path):
    corpus = load(tree(tmp_path, ("calm", "fear", "joy"), each=8), **KNOWN, **{"conversation.conversations": 200})
    measured = dynamics.transition_matrix(corpus.conversations, corpus.emotions)
    want = dynamics.chain(corpus.emotions)  # less its contagion; some 500 draws a row: two standard errors are 0.03
    assert np.abs(measured - (0.95 * want + 0.05 / 3)).max() < 0.05 and measured.diagonal().min() > 0.75


def test_flac_ogg_mp3_and_deeper_files_are_heard(tmp_path):
    for emotion, suffix in (("sad", "flac"), ("calm", "OGG"), ("glad", "mp3")):
        tree(tmp_path, (emotion,), suffix=suffix)
    (tmp_path / "calm" / "a" / "b").mkdir(parents=True)
    (tmp_path / "calm" / "a_0.OGG").rename(tmp_path / "calm" / "a" / "b" / "a_0.OGG")
    corpus = load(tmp_path, **KNOWN)
    assert not corpus.skipped and corpus.emotions == ("calm", "glad", "sad")
    assert [c.found for c in corpus.counts] == [12, 12, 12]


def test_what_is_not_used_is_listed(copy):
    (copy / "loose.wav").write_bytes(b"x")
    (copy / "README.txt").write_bytes(b"x")
    (copy / "empty").mkdir()
    (copy / "papers" / "deep").mkdir(parents=True)
    (copy / "papers" / "deep" / "a.pdf").write_bytes(b"x")
    (copy / "anger" / "a_0.txt").write_bytes(b"x")
    (copy / "anger" / "b_0.txt").write_bytes(b"x")
    (copy / "anger" / "LICENSE").write_bytes(b"x")
    (copy / "anger" / "a_0.wav").write_bytes(b"")
    (copy / "anger" / "nobody.wav").write_bytes((copy / "anger" / "a_1.wav").read_bytes()[::-1])
    soundfile.write(copy / "anger" / "anyone.wav", np.zeros(9), 8000)
    shutil.copy(copy / "anger" / "b_0.wav", copy / "anger" / "b_9.wav")
    shutil.copy(copy / "anger" / "c_0.wav", copy / "sadness" / "c_9.wav")
    (copy / "anger" / "link").symlink_to(copy / "sadness")
    (copy / "anger" / "._a_0.wav").write_bytes(b"x")  # the file system's own, not listed
    (copy / ".git").mkdir()
    corpus = load(copy, **KNOWN)
    listed = {s.item: s.reason for s in corpus.skipped}
    assert len(listed) == len(corpus.skipped)
    assert {i: r.split(":")[0][:30] for i, r in listed.items()} == {
        "loose.wav": "lies in the root, not in a fol", "README.txt": "lies in the root, not in a fol",
        "empty/": "holds nothing named as sound i", "papers/": "holds nothing named as sound i",
        "papers/….pdf": "1 file(s) not named as sound i", "anger/….txt": "2 file(s) not named as sound i",
        "anger/…LICENSE": "1 file(s) not named as sound i", "anger/link": "is a link to a folder",
        "anger/a_0.wav": "is empty (0 bytes)", "anger/nobody.wav": "is not audio that can be decod",
        "anger/anyone.wav": "source.speaker '^([^_]+)_' fin", "anger/b_9.wav": "is the same recording as anger",
        "anger/c_0.wav": "is the same recording as anoth", "sadness/c_9.wav": "is the same recording as anoth"}
    assert not {p.relative_to(copy).as_posix() for p in recordings(corpus)} & set(listed)
    assert sum(c.found for c in corpus.counts) == 48 - 2  # a_0 and c_0


def test_names_are_read_in_one_form(copy):
    """As an unpacker of a Mac leaves them (NFD): speakers, emotions and ids are those of any other copy."""
    keys = set()
    for kind in ("NFC", "NFD"):
        folder = next(copy.glob("*ger"))
        for path in folder.iterdir():
            path.rename(path.with_name(unicodedata.normalize(kind, path.name.replace("a_", "André_"))))
        folder.rename(copy / unicodedata.normalize(kind, "Ärger"))
        corpus = load(copy, **{"source.speaker": unicodedata.normalize(kind, "^(Andr[é]|[^_])_")})
        assert not corpus.skipped and "ärger" in corpus.emotions
        assert "André" in {u.speaker for c in corpus.conversations for u in c.utterances}
        keys.add(corpus.key)
    assert len(keys) == 1


def test_files_of_all_kinds_of_sound_are_heard(copy):
    for number, suffix in enumerate((".m4a", ".opus", ".MTS")):
        path = copy / "anger" / f"{'abc'[number]}_0.wav"
        codec = {".m4a": "aac", ".opus": "libopus", ".MTS": "ac3"}[suffix]
        write_clip(path.with_suffix(suffix), audio.read(path), 48_000, codec=codec,
                   kind="flt" if suffix == ".opus" else "fltp")
        path.unlink()
    corpus = load(copy, **KNOWN)
    assert not corpus.skipped and sum(c.found for c in corpus.counts) == 48


@pytest.mark.skipif(sys.platform != "linux", reason="names need not be UTF-8 on Linux alone")
def test_names_that_are_not_utf8_are_listed_as_far_as_they_go(copy):
    os.rename(os.fsencode(copy / "anger" / "a_0.wav"), os.fsencode(copy / "anger") + b"/a_\xff.wav")
    os.rename(os.fsencode(copy / "sadness"), os.fsencode(copy) + b"/sadn\xe9ss")
    corpus = load(copy, **KNOWN)
    assert Skipped("anger/a_?.wav", "has a name that is not UTF-8: rename it") in corpus.skipped
    assert corpus.emotions == ("anger", "happy", "neutral") and len(corpus.skipped) == 14


def test_a_folder_in_the_root_may_be_a_link(copy, tmp_path):
    expected = load(copy, **KNOWN)
    (copy / "anger").rename(tmp_path / "elsewhere")
    (copy / "anger").symlink_to(tmp_path / "elsewhere")
    assert load(copy, **KNOWN) == expected


@pytest.mark.parametrize(("pattern", "match"), [
    ("(", r"source\.speaker '\(' is not a regular expression \(missing \)"), ("[a", "is not a regular expression"),
    ("a{99999999999}", "is not a regular expression"), ("^[a-f]", "has 0 groups; give the speaker one"),
    ("(.)_(.)", "has 2 groups"), ("^(z)", r"finds a speaker in no file's name, e\.g\. not in a_0\.wav"),
    ("^(z)?", "finds a speaker in no file's name"), ("^([ab])", r"recordings of 2 speaker\(s\); six are needed"),
    ("^([a-e])", r"recordings of 5 speaker\(s\)"),
])
def test_a_pattern_that_finds_no_speakers_is_refused(pristine, pattern, match):
    refused(pristine, match, **{"source.speaker": pattern})


def test_an_odd_speaker_joins_the_last_pair(tmp_path):
    corpus = load(tree(tmp_path, speakers="abcdefg", each=1), **KNOWN)
    assert sorted({c.session for c in corpus.conversations}) == ["a-b", "c-d", "e-f-g"]


def test_pairs_of_one_name_are_refused(tmp_path):
    speakers = ("b", "b+-c", "b-b+", "c", "d", "e")
    assert sorted(speakers) == list(speakers) and "-".join(speakers[:2]) == "-".join(speakers[2:4])
    refused(tree(tmp_path, speakers=speakers, each=1), "pairs have one name", **KNOWN)


@pytest.mark.parametrize(("emotions", "match"), [
    ((), r"of 0 emotion\(s\) \(\); two or more are needed, as <root>/<emotion>/<file>\.wav"),
    (("sad",), r"of 1 emotion\(s\) \(sad\)"), (("sad", " SAD"), r"of 1 emotion\(s\) \(sad\)"),
])
def test_a_root_of_another_shape_is_refused(tmp_path, emotions, match):
    refused(tree(tmp_path, emotions), match)
    (tmp_path / "a.wav").write_bytes(b"x")
    refused(tmp_path, match + ".*; a.wav lies in the root")
    refused(tmp_path / "absent", "is not a folder")


def test_few_recordings_are_refused(tmp_path):
    refused(tree(tmp_path / "four", FOUR[:2], "a", 2), r"has 4 usable recordings; six are needed")
    corpus = load(tree(tmp_path / "sixteen", FOUR[:2], "a", 8))
    assert len(recordings(corpus)) <= 16 and len(corpus.folds) == 4


def test_the_order_of_the_directory_changes_nothing(pristine, monkeypatch):
    first, listed = load(pristine), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(random.sample(found := list(listed(path)), len(found))))
    assert load(pristine) == first


def test_the_key_follows_content_names_and_settings(copy):
    keys = [load(copy, **KNOWN).key]
    assert load(copy, **KNOWN, **{"memory.lr": 0.1, "source.classes": 6}).key == keys[0]
    os.utime(copy / "anger" / "a_0.wav", (0, 0))
    assert load(copy, **KNOWN).key == keys[0]
    keys += [load(copy).key, load(copy, **KNOWN, **{"conversation.seed": 1}).key]
    soundfile.write(copy / "anger" / "a_0.wav", np.zeros(1600), 16_000)
    keys.append(load(copy, **KNOWN).key)
    (copy / "anger" / "a_0.wav").rename(copy / "anger" / "a_7.wav")
    keys.append(load(copy, **KNOWN).key)
    (copy / "anger" / "a_7.wav").unlink()
    keys.append(load(copy, **KNOWN).key)
    assert len(set(keys)) == 6


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@budget(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=st.text(alphabet="ab_()[]^$.*+?{}\\|1", max_size=6))
def test_any_pattern_loads_or_is_refused(pristine, pattern):
    try:
        corpus = folders.load(Settings.of("smoke", {**SMALL, "source.speaker": pattern}, corpus="folders",
                                          root=str(pristine), home=HOME.name))
    except UserError:
        return
    assert sum(c.found for c in corpus.counts) + len(corpus.skipped) == 48
