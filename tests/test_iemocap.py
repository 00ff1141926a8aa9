"""IEMOCAP's layout is read as it is: every turn is heard or listed, the published counts are held, and no speaker
of a test session is trained or validated on."""

import os
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import soundfile
import tree_iemocap
from hypothesis import given
from hypothesis import strategies as st

from dpmkit import audio, corpora
from dpmkit.corpora import iemocap
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.settings import Settings, UserError

real = pytest.mark.skipif(bool(tree_iemocap.ABSENT), reason=tree_iemocap.ABSENT or "there")
SESSIONS = ("Ses01", "Ses02", "Ses03", "Ses04", "Ses05")


def settings(root, home, overrides=None, **source):
    """Settings of group `source` by name, any other by its dotted name."""
    values = {**(overrides or {}), **{f"source.{name}": value for name, value in source.items()}}
    return Settings.of("smoke", values, corpus="iemocap", root=str(root), home=str(home))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tree_iemocap.make(tmp_path_factory.mktemp("iemocap"), scale=0.01, shortest=0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def corpus(tree, home):
    return corpora.load(settings(tree, home))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tree_iemocap.small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def copy(pristine, tmp_path):
    """A small tree to spoil, of 12 dialogues in 3 sessions, 8 turns each."""
    return shutil.copytree(pristine, tmp_path / "IEMOCAP_full_release")


@pytest.fixture
def load(copy, tmp_path):
    return lambda **source: corpora.load(settings(copy, tmp_path / "home", allow_partial=True, **source))


def labelled(corpus, ids):
    return [u for c in corpus.select(ids) for u in c.utterances if u.emotion]


def text(tree, dialogue="Ses01F_impro01"):
    return tree / f"Session{dialogue[4]}" / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"


def wav(tree, turn):
    return tree / f"Session{turn[4]}" / "sentences" / "wav" / turn.rpartition("_")[0] / f"{turn}.wav"


def replace(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


# ---- the published corpus ----

def test_the_published_table_adds_up():
    table = pd.DataFrame(iemocap.PUBLISHED).T
    assert table.sum().to_dict() == {"ang": 1103, "hap": 595, "exc": 1041, "neu": 1708, "sad": 1084, "fru": 1849}
    assert table.drop(columns="fru").sum(axis=1).tolist() == [1085, 1023, 1151, 1031, 1241]
    assert sum(tree_iemocap.TURNS.values()) == 10_039
    assert tree_iemocap.FRUSTRATED == table.fru.to_dict()


@real
def test_four_classes_count_as_published(corpus):
    assert corpus.emotions == EMOTIONS and not corpus.skipped and not corpus.notes
    utterances = [u for c in corpus.conversations for u in c.utterances]
    assert len(utterances) == len({u.id for u in utterances}) == 10_039
    assert Counter(u.emotion for u in utterances) == {"ang": 1103, "hap": 1636, "neu": 1708, "sad": 1084,
                                                      None: 4508}
    assert [sum(c.session == s for c in corpus.conversations) for s in SESSIONS] == [28, 30, 32, 30, 31]
    assert [len(labelled(corpus, f.test)) for f in corpus.folds] == [1085, 1023, 1151, 1031, 1241]
    assert len(corpus.counts) == 20 and all(c.published == c.found for c in corpus.counts)
    assert corpus.counts[:4] == tuple(corpora.Count("Ses01", e, n, n) for e, n in
                                      (("neu", 384), ("hap", 278), ("sad", 194), ("ang", 229)))


@real
def test_six_classes_count_as_published(tree, home, corpus):
    six = corpora.load(settings(tree, home, classes=6))
    assert six.emotions == ("ang", "exc", "fru", "hap", "neu", "sad") and six.key != corpus.key
    rows = Counter((c.session, u.emotion) for c in six.conversations for u in c.utterances if u.emotion)
    assert rows == {(s, e): n for s, row in iemocap.PUBLISHED.items() for e, n in row.items()}
    assert sum(rows.values()) == 7380 and len(six.counts) == 30
    assert six.folds == corpus.folds


@real
def test_turns_are_those_of_the_release(corpus):
    table = pd.read_csv(tree_iemocap.CSV).set_index("utterance")
    by_id = {u.id: u for c in corpus.conversations for u in c.utterances}
    assert {i: u.emotion for i, u in by_id.items() if u.emotion} == table.emotion.replace("exc", "hap").to_dict()
    for conversation in corpus.conversations:
        starts = [u.start for u in conversation.utterances]
        assert starts == sorted(starts) and conversation.id[:5] == conversation.session
        assert {u.speaker for u in conversation.utterances} == {f"{conversation.session}_{g}" for g in "FM"}
        for u in conversation.utterances:
            assert u.speaker == f"{u.id[:5]}_{u.id[-4]}"  # the turn's, whoever the dialogue is named after
            assert (u.audio.path.stem, u.audio.start, u.audio.end) == (u.id, 0.0, None)
            assert u.audio.path.parent.name == conversation.id
    overlaps = sum(b.start < a.end for c in corpus.conversations
                   for a, b in zip(c.utterances, c.utterances[1:], strict=False))
    assert overlaps > 1000
    some = by_id["Ses05M_script01_1b_F000"]
    assert audio.load(some.audio.path).seconds == pytest.approx(some.seconds, abs=2e-4)


@real
def test_folds_leave_a_session_out_and_validate_inside_the_others(corpus):
    assert corpus.speaker_independent and len(corpus.folds) == 5
    everything = {c.id for c in corpus.conversations}
    session = {c.id: c.session for c in corpus.conversations}
    for number, fold in enumerate(corpus.folds):
        assert {session[i] for i in fold.test} == {SESSIONS[number]}
        train, validation, test = map(set, (fold.train, fold.validation, fold.test))
        assert train | validation | test == everything and len(train) + len(validation) + len(test) == 151
        spoken = {u.speaker for c in corpus.select(fold.train + fold.validation) for u in c.utterances}
        assert not spoken & {u.speaker for c in corpus.select(fold.test) for u in c.utterances}
        assert len(validation) == -(-(151 - len(test)) // 10)
        strata = Counter((session[i], "impro" in i) for i in train | validation)
        held = Counter((session[i], "impro" in i) for i in validation)
        assert len(strata) == 8
        for stratum, size in strata.items():  # within one dialogue of its share
            assert abs(held[stratum] - size * len(validation) / (151 - len(test))) < 1


@real
def test_the_parent_is_a_root_too(pristine, home):
    own, above = (corpora.load(settings(at, home, allow_partial=True)) for at in (pristine, pristine.parent))
    assert len(own.conversations) == 12 and above == own


@real
def test_a_tree_of_other_counts_is_refused_or_noted_as_partial(tree, home, corpus):
    lost = [u for c in corpus.conversations for u in c.utterances if u.emotion == "ang"][:2]
    unlabelled = next(u for c in corpus.conversations for u in c.utterances if u.emotion is None)
    for u in (*lost, unlabelled):
        u.audio.path.rename(u.audio.path.with_suffix(".away"))
    try:
        with pytest.raises(UserError) as refused:
            corpora.load(settings(tree, home))
        words = str(refused.value)
        assert "published IEMOCAP: of 5,531 recordings with a label 5,529 are here (Ses01 ang 227 of 229)" in words
        assert "; 3 item(s) are skipped, e.g. Ses01" in words and ": its wav is missing; fetch" in words
        assert str(refused.value).endswith("source.allow_partial=true")
        partial = corpora.load(settings(tree, home, allow_partial=True))
    finally:
        for u in (*lost, unlabelled):
            u.audio.path.with_suffix(".away").rename(u.audio.path)
    assert [c for c in partial.counts if c.published != c.found] == [corpora.Count("Ses01", "ang", 229, 227)]
    assert {s.item for s in partial.skipped} == {u.id for u in (*lost, unlabelled)}
    assert "of 5,531 recordings with a label 5,529 are here (Ses01 ang 227 of 229)." in partial.notes[0]
    assert partial.key != corpus.key


@real
def test_a_lost_turn_without_a_label_is_no_reason_to_refuse(tree, home, corpus):
    unlabelled = next(u for c in corpus.conversations for u in c.utterances if u.emotion is None)
    unlabelled.audio.path.rename(unlabelled.audio.path.with_suffix(".away"))
    try:
        found = corpora.load(settings(tree, home))
    finally:
        unlabelled.audio.path.with_suffix(".away").rename(unlabelled.audio.path)
    assert found.skipped == (corpora.Skipped(unlabelled.id, "its wav is missing"),)
    assert not found.notes


@real
def test_a_session_that_is_missing(tree, home):
    (tree / "Session3").rename(tree / "away")
    try:
        with pytest.raises(UserError) as refused:
            corpora.load(settings(tree, home))
        partial = corpora.load(settings(tree, home, allow_partial=True))
        with pytest.raises(UserError, match="has folds 1 to 4"):
            corpora.load(settings(tree, home, {"fold": 5}, allow_partial=True))
    finally:
        (tree / "away").rename(tree / "Session3")
    assert "(Ses03 neu 0 of 320, Ses03 hap 0 of 286, Ses03 sad 0 of 305, Ses03 ang 0 of 240); fetch" in (
        str(refused.value))
    assert [len(labelled(partial, f.test)) for f in partial.folds] == [1085, 1023, 1031, 1241]


# ---- trees as they are found ----

def test_a_small_tree_is_whole_but_partial(pristine, home):
    found = corpora.load(settings(pristine, home, allow_partial=True))
    assert not found.skipped and [len(c.utterances) for c in found.conversations] == [8] * 12
    assert [len(f.test) for f in found.folds] == [4, 4, 4] and len(found.notes) == 2
    first = found.conversations[0]
    assert [u.emotion for u in first.utterances] == ["neu", "hap", "sad", None, "ang", "hap", None, "neu"]
    assert [u.speaker for u in first.utterances[:3]] == ["Ses01_F", "Ses01_M", "Ses01_F"]
    with pytest.raises(UserError, match=r"\(Ses01 neu 8 of 384, .*…\); fetch"):
        corpora.load(settings(pristine, home))


def test_a_folder_inside_a_folder_of_its_name_is_a_root_too(copy, load, tmp_path):
    (tmp_path / "outer" / "__MACOSX" / "Session1").mkdir(parents=True)
    (tmp_path / "outer" / "IEMOCAP_full_release").mkdir()
    (tmp_path / "outer" / "IEMOCAP_full_release" / "IEMOCAP_full_release").symlink_to(copy)
    nested = corpora.load(settings(tmp_path / "outer", tmp_path / "home", allow_partial=True))
    assert nested.key == load().key and nested.folds == load().folds


def unmatched(tree):
    (tree / "Session1" / "sentences" / "wav" / "Ses01F_impro09").mkdir()
    for turn in ("Ses01F_impro09_F000", "Ses01F_impro09_F001", "Ses01F_impro01_F099"):
        shutil.copy(wav(tree, "Ses01F_impro01_F000"), wav(tree, turn))


WAVS = "Session1/sentences/wav"
EIGHT = [f"{gender}{number:03d}" for number in range(4) for gender in "FM"]


def of(turn):
    return f"{WAVS}/Ses01F_impro01/Ses01F_impro01_{turn}.wav"


FAULTS = {  # what is done to a tree -> what is listed (item -> words of the reason)
    "a wav is missing": (lambda t: wav(t, "Ses01F_impro01_F000").unlink(),
                         {"Ses01F_impro01_F000": "its wav is missing"}),
    "a wav is empty": (lambda t: wav(t, "Ses01F_impro01_F000").write_bytes(b""),
                       {"Ses01F_impro01_F000": "its wav is empty"}),
    "a wav is cut off": (lambda t: os.truncate(wav(t, "Ses01F_impro01_F000"), 999),
                         {"Ses01F_impro01_F000": "its wav is cut off"}),
    "a wav is no audio": (lambda t: wav(t, "Ses01F_impro01_F000").write_bytes(b"<html>"),
                          {"Ses01F_impro01_F000": "its wav is not audio"}),
    "a turn twice in a file": (lambda t: replace(text(t), b"Ses01F_impro01_F001\tsad", b"Ses01F_impro01_F000\tsad"),
                               {"Ses01F_impro01.txt, line 13": "a turn's second line", of("F001"): "no annotated"}),
    "a turn of another dialogue": (lambda t: replace(text(t), b"Ses01F_impro01_F000", b"Ses01M_impro02_F000"),
                                   {"Ses01F_impro01.txt, line 3": "a turn like Ses01F_impro01_F000",
                                    of("F000"): "no annotated"}),
    "a malformed line": (lambda t: replace(text(t), b"[0.1500 - ", b"[0.1500 "),
                         {"Ses01F_impro01.txt, line 8": "is not [start - end]", of("M000"): "no annotated"}),
    "a line that breaks off": (lambda t: text(t).write_bytes(text(t).read_bytes().rpartition(b"neu")[0]),
                               {"Ses01F_impro01.txt, line 38": "is not [start - end]", of("M003"): "no annotated"}),
    "an end before the start": (lambda t: replace(text(t), b"[0.1500 - 0.2500]", b"[0.2500 - 0.1500]"),
                                {"Ses01F_impro01.txt, line 8": "ends before", of("M000"): "no annotated"}),
    "an odd gender": (lambda t: replace(text(t), b"Ses01F_impro01_F000", b"Ses01F_impro01_X000"),
                      {"Ses01F_impro01.txt, line 3": "a turn like", of("F000"): "no annotated"}),
    "an empty dialogue": (lambda t: text(t).write_bytes(b"% [START_TIME - END_TIME]\r\n\r\n"),
                          dict.fromkeys(map(of, EIGHT), "no annotated")),
    "a dialogue without wavs": (lambda t: shutil.rmtree(wav(t, "Ses01F_impro01_F000").parent),
                                {f"Ses01F_impro01_{turn}": "its wav is missing" for turn in EIGHT}),
    "a dialogue without a text": (lambda t: text(t).unlink(), dict.fromkeys(map(of, EIGHT), "no annotated")),
    "wavs without a line": (unmatched, dict.fromkeys(
        (of("F099"), *(f"{WAVS}/Ses01F_impro09/Ses01F_impro09_F00{i}.wav" for i in (0, 1))), "no annotated")),
    "a wav in another dialogue's folder": (
        lambda t: shutil.copy(wav(t, "Ses01M_impro02_F001"), wav(t, "Ses01F_impro01_F000").with_name(
            "Ses01M_impro02_F000.wav")),
        {f"{WAVS}/Ses01F_impro01/Ses01M_impro02_F000.wav": "of its folder's dialogue"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_listed_and_the_rest_is_heard(fault, copy, load):
    spoil, expected = FAULTS[fault]
    spoil(copy)
    found = load()
    assert {s.item for s in found.skipped} == set(expected)
    for item, reason in expected.items():
        assert reason in next(s.reason for s in found.skipped if s.item == item)
    heard = Counter(u.id for c in found.conversations for u in c.utterances)
    assert max(heard.values()) == 1
    per_turn = 0 if fault in ("wavs without a line", "a wav in another dialogue's folder") else 1
    whole = {"an empty dialogue": 8, "a dialogue without wavs": 8, "a dialogue without a text": 8}
    assert len(heard) == 96 - whole.get(fault, per_turn)


def test_the_first_of_two_lines_and_the_wav_in_its_own_folder_count(copy, load):
    replace(text(copy), b"Ses01F_impro01_F001\tsad", b"Ses01F_impro01_F000\tsad")
    other = wav(copy, "Ses01F_impro01_F001").with_name("Ses01M_impro02_F000.wav")
    shutil.copy(wav(copy, "Ses01F_impro01_F001"), other)
    heard = {u.id: u for c in load().conversations for u in c.utterances}
    assert heard["Ses01F_impro01_F000"].emotion == "neu"
    assert heard["Ses01M_impro02_F000"].audio.path == wav(copy, "Ses01M_impro02_F000")


def test_an_unknown_label_is_heard_without_one(copy, load):
    replace(text(copy), b"F000\tneu", b"F000\tbored")
    found = load()
    first = found.conversations[0].utterances[0]
    assert (first.id, first.emotion) == ("Ses01F_impro01_F000", None) and not found.skipped


@pytest.mark.parametrize("change", [
    lambda data: data.replace(b"\n", b"\r\n"), lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.rstrip(),
    lambda data: data.replace(b"(curious)", b"(na\xefve, d\xe9j\xe0 vu \x85[ ])"), lambda data: data.replace(
        b"(curious)", "(naïve … “)".encode()), lambda data: data.replace(b"\tneu\t", b"  NEU  ")])
def test_line_ends_a_bom_and_the_encoding_of_comments_change_nothing(copy, load, change):
    before = load().conversations
    for path in copy.glob("Session*/dialog/EmoEvaluation/*.txt"):
        path.write_bytes(change(path.read_bytes()))
    found = load()
    assert found.conversations == before and not found.skipped


def test_files_of_the_file_system_and_other_parts_of_the_release_are_no_faults(copy, load):
    before = load()
    for path in (text(copy), wav(copy, "Ses01F_impro01_F000")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        path.with_name(".DS_Store").write_bytes(b"\0")
    (copy / "._Session1").write_bytes(b"\0")
    (copy / "Documentation").mkdir()
    (copy / "README.txt").touch()
    shutil.rmtree(copy / "Session1" / "dialog" / "transcriptions")
    shutil.rmtree(copy / "Session1" / "dialog" / "wav")
    assert load() == before


def test_another_case_of_names_is_read(copy, load):
    before = load()
    for path in copy.glob("Session*/sentences/wav/*/*.wav"):
        path.rename(path.with_suffix(".WAV"))
    for session in copy.glob("Session*"):
        (session / "dialog" / "EmoEvaluation").rename(session / "dialog" / "emoevaluation")
        (session / "sentences").rename(session / "SENTENCES")
        session.rename(session.with_name(session.name.upper()))
    assert load().key == before.key


def test_overlapping_turns_are_kept_in_order_of_their_start(copy, load):
    replace(text(copy), b"[0.3000 - 0.4000]", b"[0.0100 - 0.0700]")  # F001 lies inside F000, before M000
    heard = load().conversations[0].utterances
    assert [u.id[-4:] for u in heard[:3]] == ["F000", "F001", "M000"]
    assert (heard[1].start, heard[1].end) == (0.01, 0.07)


def test_a_wav_of_another_length_is_heard_whole(copy, load):
    soundfile.write(wav(copy, "Ses01F_impro01_F000"), np.full(16_000, 0.1), 16_000)
    found = load()
    assert not found.skipped
    clip = found.conversations[0].utterances[0].audio
    assert len(audio.read(clip.path, clip.start, clip.end)) == 16_000


def test_validation_follows_its_seed_alone(pristine, home):
    first = corpora.load(settings(pristine, home, allow_partial=True))
    assert corpora.load(settings(pristine, home, {"seed": 3, "memory.lr": 0.1}, allow_partial=True)) == first
    seeded = corpora.load(settings(pristine, home, {"conversation.seed": 2**40 + 1}, allow_partial=True))
    assert seeded.folds != first.folds and seeded.key != first.key
    assert [f.test for f in seeded.folds] == [f.test for f in first.folds]


def test_the_order_of_the_directory_changes_nothing(copy, load, monkeypatch):
    unmatched(copy)
    first = load()
    walk = os.walk

    def reversed_walk(root, **options):
        for folder, folders, names in walk(root, **options):
            folders.reverse()
            yield folder, folders, names[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert load() == first


def test_the_key_follows_what_is_heard_and_not_where_it_lies(copy, load, tmp_path):
    keys = [load().key]
    os.utime(wav(copy, "Ses01F_impro01_F000"), (0, 0))
    assert load().key == keys[0]
    moved = shutil.copytree(copy, tmp_path / "elsewhere")
    assert corpora.load(settings(moved, tmp_path / "home", allow_partial=True)).key == keys[0]
    for change in (lambda: soundfile.write(wav(copy, "Ses01F_impro01_F000"), np.zeros(1600), 16_000),
                   lambda: replace(text(copy), b"F000\tneu", b"F000\tsad"),
                   lambda: replace(text(copy), b"[0.1500 - ", b"[0.1501 - "),
                   lambda: unmatched(copy)):
        change()
        keys.append(load().key)
    assert len(set(keys)) == len(keys)


# ---- trees that are refused ----

@pytest.mark.parametrize(("names", "found"), [
    ((), "found nothing"), (("wav/a.wav", "readme.txt"), "found readme.txt, wav"),
    (("dialog/", "sentences/"), "found dialog, sentences"), (("IEMOCAP_full_release.tar.gz",), "release.tar.gz"),
    (("Session1",), "found Session1"), (("a", "b", "c", "d", "e", "f"), "a, b, c, d, e, …;")])
def test_a_root_of_another_shape_is_refused(tmp_path, names, found):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(UserError, match=r"is not IEMOCAP: expected Session1/dialog/EmoEvaluation") as refused:
        corpora.load(settings(tmp_path, tmp_path))
    assert found in str(refused.value) and "\n" not in str(refused.value)


def test_two_releases_below_a_root_are_refused(tmp_path):
    for name in ("old", "new"):
        text(tmp_path / name).parent.mkdir(parents=True)
        text(tmp_path / name).touch()
    with pytest.raises(UserError, match=r"in one folder below it, found new/, old/; give the folder"):
        corpora.load(settings(tmp_path, tmp_path))


def test_a_missing_root_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        corpora.load(settings(tmp_path / "absent", tmp_path))
    with pytest.raises(UserError, match="needs a root"):
        corpora.load(settings("", tmp_path))


def test_a_fold_needs_two_sessions(tmp_path):
    tree_iemocap.small(tmp_path, (2,))
    with pytest.raises(UserError, match=r"4 dialogue\(s\) of 1 session\(s\)"):
        corpora.load(settings(tmp_path, tmp_path / "home", allow_partial=True))


def test_two_sessions_are_two_folds_and_a_lone_dialogue_cannot_train(copy, load):
    shutil.rmtree(copy / "Session2")
    found = load()
    assert [found.select(f.test)[0].session for f in found.folds] == ["Ses01", "Ses03"]
    assert [(len(f.train), len(f.validation)) for f in found.folds] == [(3, 1), (3, 1)]
    for dialogue in ("Ses03F_impro01", "Ses03F_script01_1", "Ses03M_impro02"):
        text(copy, dialogue).unlink()
    with pytest.raises(UserError, match=r"5 dialogue\(s\) of 2 session\(s\).*two dialogues of others"):
        load()


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.25, 2), (0.5, 4), (0.99, 7)])
def test_a_small_tree_validates_as_evenly_as_it_can(load, monkeypatch, share, held):
    monkeypatch.setattr(iemocap, "VALIDATION", share)
    for fold in load().folds:
        sessions = Counter(i[:5] for i in fold.validation)
        assert sum(sessions.values()) == held and len(fold.train) == 8 - held
        if held == 4:
            assert len({(i[:5], "impro" in i) for i in fold.validation}) == 4


# ---- the lines ----

def test_the_lines_of_a_file_as_the_release_has_them():
    data = (b"% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
            b"[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n"
            b"A-E3:\tval 3; act 2; dom  2;\t()\n\n[10.0100 - 11.3925]\tSes01F_impro01_M012\txxx\t[2, 2.5, 1]\n")
    turns, skipped = iemocap._turns("Ses01F_impro01", data)
    assert turns == {"Ses01F_impro01_F000": ("Ses01_F", 6.2901, 8.2357, "neu"),
                     "Ses01F_impro01_M012": ("Ses01_M", 10.01, 11.3925, "xxx")}
    assert not skipped


@pytest.mark.parametrize("name", ["Ses01F_impro01b_F000", "Ses01F_impro02_F000", "Ses01F_impro01_F000_2",
                                  "Ses01F_impro01_000", "xSes01F_impro01_F000", "Ses01F_impro01"])
def test_a_turn_is_named_after_its_dialogue(name):
    turns, skipped = iemocap._turns("Ses01F_impro01", f"[1.0 - 2.0]\t{name}\tneu\t[1, 1, 1]".encode())
    assert not turns and "a turn like Ses01F_impro01_F000" in skipped[0].reason


PIECES = st.sampled_from([b"[", b"]", b" - ", b"\t", b"\n", b"\r", b"1.5", b"0", b"9" * 400, b"Ses01F_impro01_F000",
                          b"Ses01F_impro01_", b"neu", b"[2, 2, 2]", b"nan", b"\xff\xfe", b"\x85", b"%"])


@given(st.lists(PIECES | st.binary(max_size=4)).map(b"".join) | st.lists(
    st.tuples(st.sampled_from([b"1.5", b"0", b"2", b"9" * 400, b"-1"]), st.sampled_from([b"3", b"1.5", b"1e3"]),
              st.sampled_from([b"Ses01F_impro01_F000", b"Ses01F_impro01_M01", b"Ses01F_impro01_", b"F000"]))
    .map(lambda parts: b"[%b - %b]\t%b\tneu\t[1, 2, 3]" % parts)).map(b"\n".join))
def test_no_bytes_break_the_reader_and_every_turn_line_is_a_turn_or_listed(data):
    turns, skipped = iemocap._turns("Ses01F_impro01", data)
    assert all(0 <= start < end < float("inf") and speaker in ("Ses01_F", "Ses01_M")
               for speaker, start, end, _ in turns.values())
    lines = [line for line in data.decode("ascii", "replace").splitlines() if line.lstrip().startswith("[")]
    assert len(turns) + len(skipped) == len(lines)
