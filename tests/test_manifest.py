"""A manifest is read as it says, every row is used or listed, and all of its faults are told at once."""

import csv
import io
import os
import re
import shutil
import tempfile
import unicodedata
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import tree_manifest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from dpmkit import audio, corpora
from dpmkit.corpora import Fold, Skipped, manifest
from dpmkit.settings import Settings, UserError

HOME = tempfile.TemporaryDirectory()
COLUMNS = tree_manifest.COLUMNS


def load(root, **overrides):
    return corpora.load(Settings.of("smoke", overrides, corpus="manifest", root=str(root), home=HOME.name))


def refused(root, match):
    with pytest.raises(UserError, match=match) as caught:
        load(root)
    return str(caught.value)


def turns(corpus):
    return [u for c in corpus.conversations for u in c.utterances]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("manifest")
    return root, tree_manifest.make(root)


@pytest.fixture
def tree(pristine, tmp_path):
    """(root, rows): a copy of the manifest corpus of `tree_manifest`."""
    return shutil.copytree(pristine[0], tmp_path / "root"), [dict(r) for r in pristine[1]]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder of noise: a.wav to d.wav of 2, 1.5, 1 and 0.5 s, and broken.wav, which is none."""
    root, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for name, seconds in (("a", 2.0), ("b", 1.5), ("c", 1.0), ("d", 0.5)):
        audio.write(root / f"{name}.wav", rng.uniform(-0.5, 0.5, round(seconds * audio.RATE)).astype(np.float32))
    (root / "broken.wav").write_bytes(b"RIFF")
    return root


# Three conversations of one turn each stand below every small table, so that there is something to train on.
REST = [{"conversation": c, "utterance": "1", "speaker": c, "emotion": e, "path": "d.wav", "split": s}
        for c, e, s in (("x", "neu", "train"), ("y", "sad", "train"), ("z", "neu", "dev"), ("w", "sad", "test"))]


def turn(cells):
    names = ("utterance", "speaker", "start", "end", "path")
    return {**dict(zip(names, cells, strict=True)), "conversation": "c", "emotion": "neu", "split": "train"}


def one(root, *rows, rest=REST):
    """The conversation `c` of these (utterance, speaker, start, end, path), among the rest."""
    tree_manifest.write(root, [*map(turn, rows), *rest])
    return next(c.utterances for c in load(root).conversations if c.id == "c")


def test_rows_become_turns_and_sessions_are_splits(pristine):
    root, rows = pristine
    corpus = load(root)
    assert corpus.emotions == ("neu", "hap", "sad", "ang") and corpus.speaker_independent and not corpus.skipped
    assert len(turns(corpus)) == len(rows) == 72
    assert [n[:37] for n in corpus.notes] == ["72 of 72 clips last 0.500 s, no more "]
    told = {r["utterance"]: r for r in rows}
    for c in corpus.conversations:
        assert [u.start for u in c.utterances] == sorted(u.start for u in c.utterances)
        assert c.session == tree_manifest.SPLITS[int(c.id[1])].replace("dev", "validation")
        for u in c.utterances:
            row = told[u.id]
            assert (c.id, u.speaker, u.emotion or "") == (row["conversation"], row["speaker"], row["emotion"])
            if row["start"]:
                assert (f"{u.start:.3f}", f"{u.end:.3f}") == (row["start"], row["end"])
            assert u.audio.path == root / row["path"]
            assert len(audio.read(u.audio.path, u.audio.start, u.audio.end)) == round(u.seconds * audio.RATE)
    assert sum(u.emotion is None for u in turns(corpus)) == 12
    assert corpus.counts_table()["found"].sum() == 60


@pytest.mark.parametrize(("start", "end", "heard"), [
    ("0.5", "1.5", (0.5, 1.5)), ("0", "2.0", (0.0, 2.0)), ("0,5", "1,5", (0.5, 1.5)), ("0.5", "2.05", (0.5, 2.0)),
    ("", "1", (0.0, 1.0)),
    *((start, end, None) for start, end in (
        ("0.5", "2.06"), ("1.9999", "2.04"), ("5", "7"), ("1", "1"), ("1.5", "1"), ("1", "1.0005"), ("0", "inf"),
        ("0", "0"), ("2", "")))])
def test_times_cut_the_file(sounds, start, end, heard):
    row = ("1", "s", start, end, "a.wav")  # of 2 s
    if heard is None:
        tree_manifest.write(sounds, [turn(row), *REST])
        refused(sounds, r"has 1 fault.*\n  row 2, start, end: .* is no part of 'a.wav', which lasts 2\.000 s; give "
                        "seconds, or neither")
        return
    said, = one(sounds, row)
    assert (said.audio.start, said.audio.end) == (said.start, said.end) == heard


@pytest.mark.parametrize(("start", "end", "column"), [
    ("-1", "1", "start"), ("nan", "1", "start"), ("0", "nan", "end"), ("0:01", "2", "start"), ("x", "1", "start")])
def test_times_are_seconds(sounds, start, end, column):
    tree_manifest.write(sounds, [turn(("1", "s", start, end, "a.wav")), *REST])
    refused(sounds, rf"has 1 fault.*\n  row 2, {column}: '.*': input should be")


def test_without_times_whole_files_follow_one_another(sounds):
    said = one(sounds, ("2", "s", "", "", "c.wav"), ("1", "t", "", "", "a.wav"), ("3", "s", "", "", "b.wav"))
    assert [(u.audio.path.name, u.start, u.end) for u in said] == [
        ("c.wav", 0.0, 1.0), ("a.wav", 1.0, 3.0), ("b.wav", 3.0, 4.5)]
    tree_manifest.write(sounds, REST, ("conversation", "utterance", "speaker", "emotion", "path", "split"))
    assert [u.seconds for u in turns(load(sounds))] == [0.5] * 4


def test_start_orders_turns_of_one_clock_and_overlaps_stay(sounds):
    said = one(sounds, ("3", "t", 0.5, 2, "a.wav"), ("2", "s", 0, 1.5, "a.wav"), ("1", "t", 0, 1.5, "a.wav"))
    assert [(u.id[-1], u.start, u.end) for u in said] == [("1", 0.0, 1.5), ("2", 0.0, 1.5), ("3", 0.5, 2.0)]


def test_several_recordings_follow_one_another_as_the_rows_do(sounds):
    cuts = [("1", "b", 1, 1.5, "b.wav"), ("2", "a", 0.5, 1, "a.wav"), ("3", "b", 0, 0.5, "b.wav"),
            ("4", "a", 0, 0.5, "a.wav")]
    assert [(u.id[-1], u.start, u.end) for u in one(sounds, *cuts)] == [
        (str(i), 0.5 * (i - 1), 0.5 * i) for i in (1, 2, 3, 4)]
    own = [("1", "s", 0, 2.004, "a.wav"), ("2", "t", 0, 0.5, "d.wav"), ("3", "s", 0, 1, "c.wav")]
    assert [(u.id[-1], u.start, u.end) for u in one(sounds, *own)] == [
        ("1", 0.0, 2.0), ("2", 2.0, 2.5), ("3", 2.5, 3.5)]


def test_ids_stay_where_all_differ(sounds):
    assert [u.id for u in one(sounds, ("7", "s", "", "", "a.wav"), rest=[
        dict(r, utterance=f"u{i}") for i, r in enumerate(REST)])] == ["7"]
    assert [u.id for u in one(sounds, ("1", "s", "", "", "a.wav"))] == ["c_1"]
    tree_manifest.write(sounds, [*REST, dict(REST[0], conversation="a", utterance="b_1"),
                                 dict(REST[0], conversation="a_b", utterance="1")])
    refused(sounds, r"has 1 fault.*\n  row 7, utterance: 'a_b_1' is what row 6 is called, too")


@pytest.mark.parametrize("encode", [
    lambda t: t.encode("utf-8-sig"),
    lambda t: t.replace("\r\n", "\n").encode(),
    lambda t: t.replace("\r\n", "\r").encode(),
    lambda t: t.replace(",", "\t").encode(),
    lambda t: t.replace(",", ";").replace(".", ",").replace(",wav", ".wav").encode(),
    lambda t: t.replace(",", " , ").encode(),
    lambda t: (t + "\r\n,,,,,,,\r\n\r\n").encode(),
    lambda t: re.sub("^[a-z,]+|neu|hap|sad|ang", lambda m: m[0].upper(), t).encode(),
    lambda t: "".join('"' + line.replace(",", '", "') + '"\r\n' for line in t.split("\r\n") if line).encode(),
], ids=["bom", "lf", "cr", "tabs", "semicolons", "blanks", "empty rows", "capitals", "quoted"])
def test_spreadsheets_write_it_in_many_ways(tree, encode):
    root, path = tree[0], tree[0] / "manifest.csv"
    expected = load(root)
    path.write_bytes(encode(path.read_bytes().decode()))
    assert load(root) == expected


def test_other_columns_are_not_read(tree):
    root, rows = tree
    expected = load(root)
    for number, row in enumerate(rows):
        row.update({"": number, "text": 'said "so", and left', "Season": 1, "arousal": 0.5})
    tree_manifest.write(root, rows, ("", *COLUMNS, "text", "Season", "arousal"))
    assert load(root) == expected
    path = root / "manifest.csv"  # rows that lose their times so cannot pass for whole files
    tree_manifest.write(root, rows)
    path.write_text(path.read_text().replace("start,end", "start_s,end_s", 1))
    refused(root, r"has 24 fault.*\n  row 4, path: 's0c0.wav' is the sound of row 2, too; give start and end")


def test_every_fault_is_told_by_row_and_column(sounds):
    rows = [{"conversation": "c", "utterance": "1", "speaker": "s", "emotion": "neu", "path": "a.wav", "start": "0",
             "end": "1", "split": "train"}]
    wrong = [({"start": "0:01"}, "start: '0:01': input should be a valid number"),
             ({"end": "9"}, "start, end: 0.004 to 9.0 is no part of 'a.wav', which lasts 2.000 s"),
             ({"conversation": ""}, "conversation: '': string should have at least 1 character"),
             ({"utterance": " "}, "utterance: '': string should"), ({"path": ""}, "path: '': string should"),
             ({"split": "holdout"}, "split: 'holdout': input should be"),
             ({"utterance": "1"}, "utterance: 'c_1' is what row 2 is called, too"),
             ({"split": "dev"}, "split: 'validation' is not 'train' as above"),
             ({"conversation": "d", "split": ""}, "split: '': input should be"),
             ({"conversation": "e", "path": "c.wav", "start": "", "end": ""}, None),
             ({"conversation": "e", "path": "c.wav", "start": "", "end": ""}, "path: 'c.wav' is the sound of row")]
    wrong += [({"start": "0.5", "end": "0.4"}, "is no part of")] * 11
    for number, (cells, _) in enumerate(wrong, 3):
        rows.append({**rows[0], "utterance": str(number), "start": f"0.{number:03d}", **cells})
    path = tree_manifest.write(sounds, rows)
    with open(path, "a") as file:
        file.write("c,41,s\nc,42,s,0,1,neu,a.wav,train,9\n")
    message = refused(sounds, r"manifest.csv has \d+ fault\(s\); mend them")
    shown = message.split("\n")[1:]
    assert len(shown) == 21 and shown[-1].endswith(" more")
    lines = [int(line.split(",")[0][6:]) for line in shown[:-1]]
    assert lines == sorted(lines)
    for at, words in [(i, words) for i, (_, words) in enumerate(wrong, 3) if words][:10]:
        assert any(line.startswith(f"  row {at}, ") and words in line for line in shown), (at, words, shown)


@pytest.mark.parametrize(("data", "words"), [
    (b"", "has no column conversation, .* its columns are none"), (b"\xef\xbb\xbf\r\n \n", "has no column"),
    (b"\xff\xfea", "row 1, is not text in UTF-8"),
    (b"conversation,utterance,speaker,emotion,path,split\n", "has no row below its header"),
    (b"conversation,utterance,speaker,emotion,path,split\n\n,,,,\n", "has no row below its header"),
    (b"conversation,utterance,emotion,emotion\nc,1,neu,neu\n",
     r"has no column speaker, emotion, path, split, or several; its columns are conversation, utterance, emotion"),
    (b"c,1,s,neu,a.wav\n", "has no column conversation, .*; its columns are c, 1, s, neu, a.wav"),
    (b"\nconversation,utterance,sp\x00eaker,emotion,path\n", "row 2, is not text"),
    (b"conversation,utterance,sp\xe9aker,emotion,path\n", "row 1, is not text in UTF-8"),
    (b'"conversation,utterance,speaker,emotion,path\nc,1,s,neu,a.wav\n', "row 1, is no row of a table .unexpected"),
    (b"x" * 1_000_000, "row 1, is no row of a table .field larger"),
    (b"PK\x03\x04\x14\x00\x08\x00", "row 1, is not text"),
    (b"conversation,utterance,speaker,emotion,path,split\n" + b"x" * 1_000_000, "row 2, is no row of a table"),
])
def test_a_table_that_is_none_is_refused(tmp_path, data, words):
    (tmp_path / "manifest.csv").write_bytes(data)
    assert len(refused(tmp_path, words)) < 3000


def test_a_root_without_a_table_is_refused(tmp_path):
    refused(tmp_path, r"cannot read .*manifest\.csv: No such file.*put it there")
    (tmp_path / "manifest.csv").mkdir()
    refused(tmp_path, r"cannot read .*manifest\.csv: Is a directory")
    refused(tmp_path / "manifest.csv" / "x", "is not a folder")


def form(kind):
    return lambda text: unicodedata.normalize(kind, text)


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_one_word_is_one_word_however_it_is_encoded(tree, disk, written):
    """macOS names files decomposed (NFD); Linux, Windows and spreadsheets write precomposed letters (NFC)."""
    root, rows = tree
    plain = load(root)
    folder = root / form(disk)("Größe")
    folder.mkdir()
    (root / "s0c0.wav").rename(folder / form(disk)("über.wav"))
    for number, row in enumerate(rows):
        own = form(written) if number % 2 else form("NFC")
        row["path"] = row["path"].replace("s0c0.wav", form(written)("Größe/über.wav"))
        row["speaker"] = own(row["speaker"].replace("speaker", "André "))
        row["emotion"] = own(row["emotion"].replace("neu", "ärger"))
        row["conversation"] = own(row["conversation"].replace("s0c0", "é"))
    tree_manifest.write(root, rows)
    corpus = load(root)
    assert not corpus.skipped and corpus.emotions == ("ang", "hap", "sad", "ärger")
    assert len(corpus.conversations) == len(plain.conversations)
    assert {u.speaker for u in turns(corpus)} == {u.speaker.replace("speaker", "André ") for u in turns(plain)}
    for u in turns(corpus):
        assert u.audio.path.is_file()  # by the bytes that are there


def test_blanks_that_nobody_sees_are_one(tree):
    root, rows = tree
    speakers = len({r["speaker"] for r in rows})
    for number, row in enumerate(rows):
        row["speaker"] = row["speaker"].replace("speaker", "speaker" + ("\xa0", " ", "  ")[number % 3])
    tree_manifest.write(root, rows)
    assert len({u.speaker for u in turns(load(root))}) == speakers


def test_an_inverted_channel_is_said(tree):
    root, _ = tree
    waveform = audio.read(root / "s0c0.wav")
    soundfile.write(root / "s0c0.wav", np.stack([waveform, -waveform], axis=1), audio.RATE)
    soundfile.write(root / "s1c0.wav", np.stack([audio.read(root / "s1c0.wav")] * 2, axis=1), audio.RATE)
    with pytest.warns(UserWarning, match=r"s0c0\.wav: its channels cancel each other, as one is inverted") as told:
        load(root)
    assert len(told) == 1


@pytest.mark.parametrize(("same", "noted"), [(72, True), (36, True), (35, False)])
def test_clips_of_one_length_are_noted(tree, same, noted):
    root, rows = tree
    for number, row in enumerate(rows[same:], 1):
        if row["end"]:
            row["end"] = f"{float(row['end']) - 0.002 * number:.3f}"
        else:
            audio.write(root / row["path"], audio.read(root / row["path"])[:-32 * number])
    tree_manifest.write(root, rows)
    notes = load(root).notes
    assert [n[:30] for n in notes] == [f"{same} of 72 clips last 0.500 s, n"] * noted


def test_splits_are_the_one_fold_and_say_who_stands_on_two_sides(tree):
    root, rows = tree
    names = {"0": "train", "1": "TRAIN", "2": "dev", "3": "dev", "4": "Validation", "5": "test"}
    rows = [r | {"split": names[r["conversation"][1]]} for r in rows]
    tree_manifest.write(root, rows)
    corpus = load(root)
    assert corpus.folds == (Fold(("s0c0", "s0c1", "s1c0", "s1c1"), tuple(
        f"s{i}c{j}" for i in (2, 3, 4) for j in (0, 1)), ("s5c0", "s5c1")),)
    assert corpus.speaker_independent and len(corpus.notes) == 1
    for row in rows:  # a speaker of the training speaks in the test
        row["speaker"] = row["speaker"].replace("speaker11", "speaker0")
    tree_manifest.write(root, rows)
    corpus = load(root)
    assert not corpus.speaker_independent and "1 speaker(s) of the test (speaker0)" in corpus.notes[0]
    tree_manifest.write(root, [r | {"split": r["split"].replace("test", "train")} for r in rows])
    refused(root, r"the test conversations of fold 1 .* have 0 emotion\(s\) \(no label\)")


def test_unknown_speakers_are_new_ones_in_each_conversation_and_noted(tree):
    root, rows = tree
    for row in rows:
        row["speaker"] = "" if row["speaker"] in ("speaker0", "speaker10") else row["speaker"]
    tree_manifest.write(root, rows)
    corpus = load(root)
    said = {u.id: u.speaker for u in turns(corpus)}
    assert said["s0c0u0"] == said["s0c0u2"] == "unknown (s0c0)" and said["s0c1u0"] == "unknown (s0c1)"
    assert not corpus.speaker_independent
    assert "2 speaker(s) of the test (unknown (s5c0), unknown (s5c1)) stand in" in corpus.notes[0]


def test_emotions_are_those_that_occur(sounds):
    def emotions(*labels):
        tree_manifest.write(sounds, [dict(r, emotion=e) for r, e in zip(REST, labels, strict=True)])
        return load(sounds).emotions

    assert emotions("ang", " SAD", "Neu", "hap ") == ("neu", "hap", "sad", "ang")
    assert emotions("very  Glad", "calm", "Very glad", "calm") == ("calm", "very glad")
    with pytest.raises(UserError, match=r"the train conversations .* have 1 emotion\(s\) \(calm\); 2 or more"):
        emotions(*["calm"] * 4)


def test_audio_that_cannot_be_heard_is_listed_unless_it_is_most(tree, sounds):
    root, rows = tree
    (root / "clips" / "s0c1" / "0.wav").unlink()
    (root / "clips" / "s0c1" / "1.wav").write_bytes(b"")
    (root / "folder.wav").mkdir()
    os.symlink("loop.wav", root / "loop.wav")
    for utterance, path in (("s1c1u0", "folder.wav"), ("s1c1u1", "x" * 300), ("s1c1u2", "loop.wav"),
                            ("s1c1u3", "y" * 999), ("s1c1u4", "/dev/null"), ("s1c1u5", str(sounds / "d.wav"))):
        next(r for r in rows if r["utterance"] == utterance)["path"] = path
    tree_manifest.write(root, rows)
    corpus = load(root)
    assert len(turns(corpus)) + len(corpus.skipped) == len(rows) and len(corpus.skipped) == 7
    assert Skipped("s0c1u0: 0.wav", "does not exist") in corpus.skipped
    reasons = {s.item.split(":")[0]: s.reason for s in corpus.skipped}
    assert reasons["s0c1u1"] == "is empty (0 bytes)" and reasons["s1c1u0"] == "is a folder"
    assert "cannot be read (File name too long)" == reasons["s1c1u1"]
    assert Skipped("s1c1u4: null", "is no file") in corpus.skipped  # no path of a machine in a record
    assert next(u for u in turns(corpus) if u.id == "s1c1u5").audio.path == sounds / "d.wav"
    shutil.rmtree(root / "clips")
    for name in ("s0c0.wav", "s1c0.wav"):
        (root / name).unlink()
    refused(root, r"audio of 47 of 72 rows cannot be heard.*; 47 item.*does not exist")


def test_the_key_follows_what_was_read(tree):
    root, rows = tree
    first = load(root)
    os.utime(root / "s0c0.wav", (0, 0))
    moved = shutil.copytree(root, root.parent / "elsewhere")
    assert load(root).key == load(moved).key == first.key
    keys = {first.key}
    for name, value in (("emotion", "hap"), ("speaker", "speaker1"), ("start", "0.1"), ("conversation", "s0c00"),
                        ("split", "dev")):
        own = "s0c0" if name == "split" else rows[0]["utterance"]
        tree_manifest.write(root, [{**r, name: value} if r["utterance"].startswith(own) else r for r in rows])
        keys.add(load(root).key)
    tree_manifest.write(root, rows)
    audio.write(root / "s0c0.wav", audio.read(root / "s0c0.wav") / 2)
    keys.add(load(root).key)
    assert len(keys) == 7


@budget(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_neither_the_order_of_rows_nor_of_columns_matters(pristine, data):
    root, rows = pristine
    expected = load(root)
    kinds = [r for r in rows if r["start"]], [r for r in rows if not r["start"]]  # whose rows' order is their own
    drawn = data.draw(st.permutations(kinds[0])) + kinds[1]
    tree_manifest.write(root, drawn[36:] + drawn[:36], data.draw(st.permutations(COLUMNS)))
    try:
        assert load(root) == expected
    finally:
        tree_manifest.write(root, rows)


NAMES = st.sampled_from(["a", "b", "c", "d", "e", "a_b", "ü", "x,y", 'say "so"', " ", "nan"]) | st.text(max_size=3)
TIMES = st.sampled_from(["", "0", "0.5", "1", "1.5", "2", "7", "9", "-1", "x", "1e9", "0,5"]) | st.floats().map(str)
PATHS = st.sampled_from(["a.wav", "b.wav", "c.wav", "d.wav", "a.wav", "b.wav", "broken.wav", "absent.wav"])
CELLS = {"conversation": NAMES, "utterance": st.integers(0, 30).map(str) | NAMES, "speaker": NAMES,
         "emotion": st.sampled_from(["neu", "sad", "", "hap", "ang"]) | NAMES,
         "path": PATHS | st.sampled_from(["../x", "/", "."]) | NAMES, "start": TIMES, "end": TIMES,
         "session": NAMES, "split": st.sampled_from(["train", "dev", "test"] * 3 + ["", "x"])}
GOOD = st.fixed_dictionaries({
    "conversation": st.sampled_from("abcdef"), "speaker": st.sampled_from(["s", "t", "", "u"]), "path": PATHS,
    "emotion": st.sampled_from(["neu", "sad", ""]),
    "span": st.sampled_from([("0", "0.5"), ("0.1", "0.3"), ("0.2", "0.5"), ("7", "7.5")])})


def accounted(root, rows):
    """Whether it loaded; then every row must be a turn or be listed."""
    try:
        corpus = manifest.load(Settings.of("smoke", corpus="manifest", root=str(root), home=HOME.name))
    except UserError as error:
        assert len(str(error)) < 8000
        return False
    assert len(turns(corpus)) + len(corpus.skipped) == rows
    assert len({u.id for u in turns(corpus)}) == len(turns(corpus))
    for c in corpus.conversations:
        assert [u.start for u in c.utterances] == sorted(u.start for u in c.utterances)
    for u in turns(corpus):
        assert len(audio.read(u.audio.path, u.audio.start, u.audio.end)) == pytest.approx(
            u.seconds * audio.RATE, abs=1)
    for fold in corpus.folds:
        assert sorted(fold.train + fold.validation + fold.test) == sorted(c.id for c in corpus.conversations)
    return True


@budget(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(GOOD, min_size=8, max_size=20), timed=st.booleans(), delimiter=st.sampled_from(",;\t"))
def test_likely_manifests_load_with_every_row_accounted_for(sounds, rows, timed, delimiter):
    for number, row in enumerate(rows):
        row["utterance"], row["split"] = f"u{number}", ("train", "dev", "test")[ord(row["conversation"]) % 3]
        row["start"], row["end"] = row.pop("span")
        if not timed:
            row["conversation"] += str(number // 2)
        elif row["start"] == "7":
            row["start"] = row["end"] = ""
    tree_manifest.write(sounds, rows, COLUMNS if timed else tuple(c for c in COLUMNS if c not in ("start", "end")),
                        delimiter=delimiter)
    accounted(sounds, len(rows))


@budget(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(st.sampled_from([*CELLS, "text", ""]) | st.text(max_size=5), max_size=10),
       rows=st.lists(st.fixed_dictionaries(CELLS), max_size=8), spoil=st.none() | st.binary(max_size=4),
       data=st.data())
def test_any_manifest_loads_or_is_refused(sounds, columns, rows, spoil, data):
    text = io.StringIO(newline="")
    out = csv.writer(text)
    columns = [*CELLS] if data.draw(st.booleans()) else columns
    out.writerow(columns)
    out.writerows([[r.get(c, "x") for c in columns] for r in rows])
    written = text.getvalue().encode()
    if spoil is not None:
        at = data.draw(st.integers(0, len(written)))
        written = written[:at] + spoil + written[at:]
    (sounds / "manifest.csv").write_bytes(written)
    if spoil is None:
        accounted(sounds, sum(any(r.get(c, "x").strip() for c in columns) for r in rows))
    else:
        with suppress(UserError):
            load(sounds)


@budget(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(sounds, data):
    (sounds / "manifest.csv").write_bytes(data)
    refused(sounds, "manifest.csv")
