"""MELD's layout is read as it is: every clip and row is used or listed, and a fault is named with its line."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from tree_meld import FOLDERS, HEADER, make, write_clip, write_table

from dpmkit import audio, corpora
from dpmkit.corpora import files, meld
from dpmkit.settings import Settings, UserError
from dpmkit.tokenizers import acoustics

REAL = (Path(__file__).resolve().parents[2] / "shared" / "data" / "meld").resolve()
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"REAL DATA ABSENT: MELD's CSVs are not at {REAL}")
TRAIN, DEV, TEST = (FOLDERS[split] for split in meld.SPLITS)


@pytest.fixture
def load(tmp_path):
    """`load(root)`: the corpus, with its runs in a folder of this test."""
    return lambda root, **overrides: corpora.load(
        Settings.of("smoke", overrides, corpus="meld", root=str(root), home=str(tmp_path / "home")))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """As it comes: mp4, with what is wrong with the real one."""
    return make(tmp_path_factory.mktemp("meld") / "root", (3, 2, 2))


@pytest.fixture
def copy(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "root"))


@pytest.fixture
def wavs(tmp_path):
    """A whole tree of wavs, for tests of what is not the sound."""
    return make(tmp_path / "root", (2, 1, 1), spoiled=False, suffix=".wav")


def rows_of(path):
    return pd.read_csv(path, dtype=str).to_dict("records")


def row(dialogue=0, number=0, speaker="Ross", emotion="joy"):
    values = ("1", "Hi", speaker, emotion, "neutral", str(dialogue), str(number), "1", "1", "00:00:01,000",
              "00:00:02,000")
    return dict(zip(HEADER, values, strict=True))


def test_rows_become_the_utterances_of_their_clips(pristine, load):
    corpus = load(pristine)
    assert corpus.emotions == meld.EMOTIONS and not corpus.speaker_independent
    heard = {u.id: u for c in corpus.conversations for u in c.utterances}
    for split, table in zip(meld.SPLITS, ("train/train_sent_emo.csv", "dev_sent_emo.csv", "test_sent_emo.csv"),
                            strict=True):
        rows = rows_of(pristine / table)
        assert [c.id for c in corpus.conversations if c.session == split] == \
            list(dict.fromkeys(f"{split}_dia{r['Dialogue_ID']}" for r in rows))
        for r in rows:
            utterance = heard.pop(f"{split}_dia{r['Dialogue_ID']}_utt{r['Utterance_ID']}", None)
            if utterance is None:
                assert (split, r["Dialogue_ID"], r["Utterance_ID"]) in (("train", "0", "1"), ("dev", "0", "1"))
                continue
            assert (utterance.speaker, utterance.emotion) == (r["Speaker"], r["Emotion"])
            assert utterance.audio.path == pristine / FOLDERS[split] / (utterance.id[len(split) + 1:] + ".mp4")
            samples = len(audio.read(utterance.audio.path))
            assert utterance.seconds == pytest.approx(samples / audio.RATE, abs=1e-9)
    assert not heard
    (fold,) = corpus.folds
    assert [len(ids) for ids in (fold.train, fold.validation, fold.test)] == [3, 2, 2]
    assert {c.session for c in corpus.select(fold.validation)} == {"dev"}


def test_what_is_left_out_is_listed_and_counted(pristine, load):
    corpus = load(pristine)
    assert [(s.item, " ".join(s.reason.split()[:4])) for s in corpus.skipped] == [
        (f"{TEST}/final_videos_testdia0_utt0.mp4", "is not named like"),
        (f"{TRAIN}/dia0_utt1.mp4", "is not audio that"),
        ("dev_dia0_utt1", "has a row in"),
        (f"{TEST}/dia999_utt0.mp4", "has no row in")]
    found = Counter((c.session, u.emotion) for c in corpus.conversations for u in c.utterances)
    assert {(c.group, c.emotion): c.found for c in corpus.counts if c.found} == found
    assert corpus.counts_table().groupby("group", sort=False)["published"].sum().tolist() == [9989, 1109, 2610]
    absent = 13708 - found.total()
    assert corpus.notes[1].startswith(f"{absent} of the 13708 published utterances are absent")


def test_the_order_of_the_directory_changes_nothing(wavs, load, monkeypatch):
    shutil.copytree(wavs / TRAIN, wavs / "train" / "again")
    first = load(wavs)
    assert first.conversations[0].utterances[0].audio.path.parent.name == "again"  # the first path
    walk = os.walk

    def reversed_walk(root, **options):
        for folder, folders, names in walk(root, **options):
            folders.reverse()
            yield folder, folders, names[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert load(wavs) == first


def test_the_key_follows_what_is_heard_and_nothing_else(copy, load):
    keys = [load(copy).key]
    assert load(copy, **{"memory.lr": 0.1, "conversation.seed": 1}).key == keys[0]
    os.utime(copy / TRAIN / "dia0_utt0.mp4", (0, 0))
    assert load(copy).key == keys[0]
    write_clip(copy / TRAIN / "dia0_utt0.mp4", np.zeros(8000))
    keys.append(load(copy).key)
    rows = rows_of(copy / "test_sent_emo.csv")
    for column, value in (("Emotion", "joy"), ("Speaker", "Gunther")):
        rows[-1][column] = value
        write_table(copy / "test_sent_emo.csv", rows)
        keys.append(load(copy).key)
    (copy / TEST / "dia998_utt0.mp4").touch()
    keys.append(load(copy).key)
    assert len(set(keys)) == 5


@pytest.mark.parametrize("place", ["{0}_sent_emo.csv", "{0}/{0}_sent_emo.csv", "data/MELD/{0}_sent_emo.csv"])
def test_csvs_may_stand_anywhere_below_the_root(wavs, load, place):
    first = load(wavs)
    for split in meld.SPLITS:
        (table,) = wavs.rglob(f"{split}_sent_emo.csv")
        (wavs / place.format(split)).parent.mkdir(parents=True, exist_ok=True)
        table.rename(wavs / place.format(split))
    assert load(wavs) == first


@pytest.mark.parametrize("layout", ["{}", "wav/{}", "{}_wav", "audio/16k-{}/clips", "MELD.Raw/{}_splits/a/b"])
def test_clips_are_of_the_split_that_their_folders_name(wavs, load, layout):
    first = load(wavs)
    for split in meld.SPLITS:
        (wavs / layout.format(split)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(wavs / FOLDERS[split], wavs / layout.format(split), dirs_exist_ok=True)
        shutil.rmtree(wavs / FOLDERS[split])
    moved = load(wavs)
    assert moved.key == first.key and not moved.skipped


def test_a_folder_that_names_no_split_or_two_is_listed(wavs, load):
    for folder in ("contest", "train/for_test", "."):
        (wavs / folder).mkdir(exist_ok=True)
        shutil.copy(wavs / TRAIN / "dia0_utt0.wav", wavs / folder / "dia900_utt0.wav")
    shutil.copy(wavs / TRAIN / "dia0_utt0.wav", wavs / TRAIN / "dia0_utt0 (1).wav")
    assert all("is not named like dia0_utt0 in a folder of" in s.reason for s in load(wavs).skipped)
    assert sorted(s.item for s in load(wavs).skipped) == [
        "contest/dia900_utt0.wav", "dia900_utt0.wav", "train/for_test/dia900_utt0.wav",
        f"{TRAIN}/dia0_utt0 (1).wav"]


def test_a_wav_is_heard_rather_than_its_video(copy, load):
    for split in ("train", "dev"):
        for clip in sorted((copy / FOLDERS[split]).glob("dia[12]_*.mp4")):
            wav = copy / f"{split}_wav" / f"{clip.stem}.wav"
            wav.parent.mkdir(exist_ok=True)
            audio.write(wav, audio.read(clip))
    made = len(list(copy.glob("*_wav/*")))
    corpus = load(copy)
    assert {(c.id, u.audio.path.suffix) for c in corpus.conversations for u in c.utterances} == {
        ("train_dia0", ".mp4"), ("train_dia1", ".wav"), ("train_dia2", ".wav"), ("dev_dia0", ".mp4"),
        ("dev_dia1", ".wav"), ("test_dia0", ".mp4"), ("test_dia1", ".mp4")}
    listed = {s.item: s.reason for s in corpus.skipped}
    assert listed[f"{made} file(s)"].startswith("another of the same clip is heard: dev_wav/dia1_utt0.wav rather")


def test_turns_follow_one_another_and_last_as_long_as_they_sound(wavs, load):
    write_table(wavs / "dev_sent_emo.csv", [row(number=2 * i) for i in range(6)])
    for i in range(6):
        soundfile.write(wavs / DEV / f"dia0_utt{2 * i}.wav", np.zeros(1600 * (i + 1)), 16_000)
    (conversation,) = load(wavs).select(("dev_dia0",))
    assert [u.id for u in conversation.utterances] == [f"dev_dia0_utt{2 * i}" for i in range(6)]
    assert [u.seconds for u in conversation.utterances] == pytest.approx([0.1 * (i + 1) for i in range(6)])
    assert [u.start for u in conversation.utterances] == pytest.approx([0, 0.1, 0.3, 0.6, 1.0, 1.5])


def test_turns_are_ordered_by_utterance_id_whatever_the_rows_are(wavs, load):
    first = load(wavs)
    for table in wavs.rglob("*_sent_emo.csv"):
        write_table(table, rows_of(table)[::-1])
    assert load(wavs) == first
    rows = [row(number=n) for n in (10, 9, 2)] + [row(dialogue=d) for d in (10, 9)]
    write_table(wavs / "dev_sent_emo.csv", rows)
    for r in rows:
        soundfile.write(wavs / DEV / f"dia{r['Dialogue_ID']}_utt{r['Utterance_ID']}.wav", np.zeros(1600), 16_000)
    dev = load(wavs).select(load(wavs).folds[0].validation)
    assert [c.id for c in dev] == ["dev_dia0", "dev_dia9", "dev_dia10"]
    assert [u.id[-2:] for u in dev[0].utterances] == ["t2", "t9", "10"] and len(dev[1].utterances) == 1


def test_a_dialogue_of_which_nothing_is_heard_is_none(wavs, load):
    gone = sorted((wavs / TRAIN).glob("dia1_*"))
    for clip in gone:
        clip.unlink()
    corpus = load(wavs)
    assert [c.id for c in corpus.conversations] == ["train_dia0", "dev_dia0", "test_dia0"]
    assert sorted(s.item for s in corpus.skipped) == [f"train_{clip.stem}" for clip in gone]


@pytest.mark.parametrize("seconds", [0.001, 0.06, 305.0])
def test_no_clip_is_too_short_or_too_long(wavs, load, seconds):
    path = wavs / TEST / "dia0_utt0.wav"
    soundfile.write(path, np.zeros(round(1000 * seconds)), 1000)
    (conversation,) = load(wavs).select(("test_dia0",))
    first = conversation.utterances[0]
    assert first.id == "test_dia0_utt0" and first.seconds == pytest.approx(seconds)
    if seconds < 1:  # the tokenizers' frames: one at least
        assert len(acoustics.frames(audio.read(path), 25.0)) == max(1, round(25 * seconds))


def test_windows_ways_of_writing_change_nothing(wavs, load):
    rows = rows_of(wavs / "dev_sent_emo.csv")
    rows[0]["Speaker"], rows[0]["Utterance"] = "Mona's Date", "several\nlines, \"quoted\""
    write_table(wavs / "dev_sent_emo.csv", rows)
    first = load(wavs)
    assert first.conversations[2].utterances[0].speaker == "Mona's Date"
    plain = (wavs / "dev_sent_emo.csv").read_text(encoding="utf-8")
    for text in ("\ufeff" + plain, plain.replace("\r\n", "\n"),
                 plain.replace("Mona's Date", "  Mona's \t Date "),
                 plain.replace("neutral,neutral", "Neutral , neutral"), plain + "\r\n\r\n"):
        (wavs / "dev_sent_emo.csv").write_bytes(text.encode("utf-8"))
        assert load(wavs) == first


def test_only_the_columns_that_are_read_are_needed(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffSpeaker,Emotion,Dialogue_ID,Utterance_ID,Mood\nRoss,joy,3,7,\n",
                                    encoding="utf-8")
    row = meld.Row(Speaker="Ross", Emotion="joy", Dialogue_ID=3, Utterance_ID=7)
    assert meld.read_rows(tmp_path / "a.csv", "dev") == {("dev", 3, 7): row}


def _raw(old, new):
    return lambda data: data.replace(old, new)


CSV_FAULTS = {
    "nothing": (lambda data: b"", "has no column Speaker, Emotion, Dialogue_ID, Utterance_ID, or several"),
    "no rows": (lambda data: data.splitlines(True)[0], "has no row below its header"),
    "a column is missing": (_raw(b"Emotion", b"Feeling"), "has no column Emotion, or several; its columns are Sr"),
    "another encoding": (_raw(b"Gunther", "Günther".encode("cp1252")), "row 3, is not text in UTF-8"),
    "unknown emotion": (_raw(b"joy", b"happy"), "has 1 fault(s); mend them, or fetch it again from github"),
    "no emotion": (_raw(b"joy", b" "), "row 2, Emotion: '': input should be 'neutral', 'joy'"),
    "no speaker": (_raw(b"Gunther", b""), "row 3, Speaker: '': string should have at least 1 character"),
    "a letter for a number": (_raw(b"neutral,0,1", b"neutral,0,l"), "row 3, Utterance_ID: 'l': input should be a"),
    "a number below 0": (_raw(b"neutral,0,1", b"neutral,-1,1"), "row 3, Dialogue_ID: '-1': input should be"),
    "an endless number": (_raw(b"neutral,0,1", b"neutral,0," + b"9" * 9000), "row 3, Utterance_ID: '99999999"),
    "twice the same": (_raw(b"neutral,0,1", b"neutral,0,0"), "row 3, utterance 0 of dialogue 0 stands there twice"),
    "a field too many": (_raw(b"neutral,0,1", b"neutral,0,1,7,7"), "row 3, 13 cells, where the header has 11"),
    "fields too few": (lambda data: data + b"9,Hi,Ross\r\n", "row 4, 3 cells, where the header has 11"),
    "a quotation without end": (lambda data: data + b'9,"Hi,Ross\r\n', "row 4, is no row of a table (unexpected"),
    "a quotation in the middle": (lambda data: data + b'9,"Hi"x,Ross\r\n', "row 4, is no row of a table"),
    "a huge line": (_raw(b"Gunther", b"G" * 200_000), "row 3, is no row of a table (field larger than field limit"),
}


@pytest.mark.parametrize("name", CSV_FAULTS)
def test_a_csv_that_is_not_meant_is_refused_with_its_line(tmp_path, name):
    spoil, words = CSV_FAULTS[name]
    path = tmp_path / "dev_sent_emo.csv"
    write_table(path, [row(), row(number=1, speaker="Gunther", emotion="fear")])
    assert len(meld.read_rows(path, "dev")) == 2
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError) as error:
        meld.read_rows(path, "dev")
    message = str(error.value)
    assert str(path) in message and words in message and len(message.splitlines()) <= 6 and len(message) < 1000


def test_all_faults_of_a_csv_are_counted_and_the_first_are_named(tmp_path):
    path = tmp_path / "dev_sent_emo.csv"
    write_table(path, [row(number="soon", emotion="happy") for i in range(19)])
    with pytest.raises(UserError, match=r"has 38 fault\(s\); mend them.*\n  row 2, Emotion: .*\n  row 2, Utterance_"
                                        r"ID: 'soon': .*\n  row 3, Emotion: [\s\S]*and 18 more"):
        meld.read_rows(path, "dev")


@pytest.mark.parametrize(("gone", "lacks"), [
    ((), "and train, dev, test has not"), ((DEV,), "and dev has not"),
    (("dev_sent_emo.csv", "test_sent_emo.csv"), "and dev, test has not"), (None, "and dev has not, or has several"),
])
def test_a_root_that_lacks_a_split_or_has_a_table_twice_is_refused(wavs, load, gone, lacks):
    if gone is None:
        shutil.copy(wavs / "dev_sent_emo.csv", wavs / "dev")
    for name in [p.name for p in wavs.iterdir()] if gone == () else gone or ():
        path = wavs / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (wavs / "test.tar.gz").touch()
    with pytest.raises(UserError) as error:
        load(wavs)
    message = str(error.value)
    assert f"root {wavs} is not MELD" in message and lacks in message and "test.tar.gz" in message
    assert "unpack MELD.Raw.tar.gz and the archives in it" in message


def test_a_split_of_which_nothing_is_heard_is_refused(wavs, load):
    for clip in (wavs / DEV).iterdir():
        clip.write_bytes(b"")
    with pytest.raises(UserError, match=r"the validation conv.* 0 emotion.*utt0\.wav: is empty \(0 bytes\)"):
        load(wavs)
    for clip in (wavs / DEV).iterdir():
        clip.rename(clip.with_name(f"dia7{clip.name[4:]}"))
    with pytest.raises(UserError, match=r"the validation conv.* 0 emotion.*has a row in the CSV, but no clip"):
        load(wavs)


def test_odd_things_in_the_tree_are_no_traceback(wavs, load):
    first = load(wavs)
    clip = wavs / TRAIN / "dia0_utt0.wav"
    (wavs / TRAIN / "dia0_utt1.wav").unlink()
    (wavs / TRAIN / "dia0_utt1.wav").symlink_to("nowhere.wav")
    (wavs / TRAIN / "dia900_utt0.mp4").mkdir()
    shutil.copy(clip, os.fsencode(wavs / TRAIN) + b"/dia\xff_utt0.wav")
    (wavs / "__MACOSX" / "train").mkdir(parents=True)
    shutil.copy(clip, wavs / "__MACOSX" / "train" / "dia901_utt0.wav")
    corpus = load(wavs)
    assert {s.item: s.reason for s in corpus.skipped} == {
        f"{TRAIN}/dia0_utt1.wav": "does not exist",
        f"{TRAIN}/dia\ufffd_utt0.wav": "is not named like dia0_utt0 in a folder of train, dev or test",
        f"{TRAIN}/dia900_utt0.mp4": "has no row in train_sent_emo.csv"}
    assert sum(len(c.utterances) for c in corpus.conversations) == \
        sum(len(c.utterances) for c in first.conversations) - 1
    (wavs / "test_sent_emo.csv").unlink()
    (wavs / "test_sent_emo.csv").symlink_to("nowhere.csv")
    with pytest.raises(UserError, match=r"cannot read .*test_sent_emo\.csv: No such file"):
        load(wavs)


def test_linked_folders_are_followed(wavs, load, tmp_path):
    first = load(wavs)
    shutil.move(wavs / "test", tmp_path / "elsewhere")
    (wavs / "test").symlink_to(tmp_path / "elsewhere")
    assert load(wavs).key == first.key


@real
def test_the_real_csvs_have_the_published_counts():
    rows = {split: meld.read_rows(REAL / f"{split}_sent_emo.csv", split) for split in meld.SPLITS}
    for i, split in enumerate(meld.SPLITS):
        assert Counter(r.Emotion for r in rows[split].values()) == {e: meld.PUBLISHED[e][i] for e in meld.EMOTIONS}
    numbers = {split: {} for split in meld.SPLITS}
    for split, listed in rows.items():
        for _, dialogue, number in listed:
            numbers[split].setdefault(dialogue, []).append(number)
    assert [len(n) for n in numbers.values()] == [1038, 114, 280]
    assert set(range(1039)) - set(numbers["train"]) == {60}
    assert [sum(len(n) <= n[-1] for n in by.values()) for by in numbers.values()] == [72, 2, 2]  # gaps
    assert [sum(len(n) == 1 for n in by.values()) for by in numbers.values()] == [70, 6, 12]
    assert [len({r.Speaker for r in listed.values()}) for listed in rows.values()] == [260, 47, 100]


@real
def test_the_real_csvs_with_all_clips_make_the_whole_corpus(load, monkeypatch):
    clips = [REAL / FOLDERS[split] / f"dia{dialogue}_utt{number}.mp4" for split in meld.SPLITS
             for _, dialogue, number in meld.read_rows(REAL / f"{split}_sent_emo.csv", split)]
    clips.remove(REAL / DEV / "dia110_utt7.mp4")
    corrupt = REAL / TRAIN / "dia125_utt3.mp4"
    monkeypatch.setattr(files, "walk", lambda root: [(p, files.name(root, p)) for p in (*REAL.iterdir(), *clips)])
    monkeypatch.setattr(files, "survey", lambda settings, root, paths: {
        p: files.File(0.0, p.name, "is bad") if p == corrupt else files.File(0.5, p.name, None) for p in paths})
    corpus = load(REAL)
    assert [len(ids) for ids in (corpus.folds[0].train, corpus.folds[0].validation, corpus.folds[0].test)] == \
        [1038, 114, 280]
    assert [s.item for s in corpus.skipped] == [f"{TRAIN}/dia125_utt3.mp4", "dev_dia110_utt7"]
    assert {(c.group, c.emotion): c.published - c.found for c in corpus.counts if c.published != c.found} == \
        {("train", "neutral"): 1, ("dev", "neutral"): 1}
    assert "2 of the 13708 published utterances are absent" in corpus.notes[1]
    for conversation in corpus.conversations:
        starts = [u.start for u in conversation.utterances]
        assert starts == sorted(starts) and starts[0] == 0
        assert [int(u.id.rpartition("utt")[2]) for u in conversation.utterances] == \
            sorted(int(u.id.rpartition("utt")[2]) for u in conversation.utterances)


@real
def test_a_tree_of_real_rows_is_loaded(tmp_path, load):
    corpus = load(make(tmp_path / "root", (2, 1, 1), source=REAL))
    assert "dev_dia2_utt1" in [s.item for s in corpus.skipped]
    speakers = {u.speaker for c in corpus.conversations for u in c.utterances}
    assert len(corpus.conversations) == 4 and len(speakers) > 4
