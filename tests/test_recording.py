"""A recording becomes a conversation that can be heard, and a table that a person labels and never loses."""

import os
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import import_silero

from dpmkit import audio, corpora
from dpmkit.__main__ import main
from dpmkit.corpora import demo, espeak, files, manifest
from dpmkit.settings import Settings, UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:silero_vad", "ignore:.*torch.jit")
import_silero()


def say(path, count=3, voice="m1"):
    """A recording of `count` utterances, a second of silence around each; its path."""
    pieces = [np.zeros(audio.RATE, np.float32)]
    for text in demo.TEXTS[:count]:
        waveform, rate = espeak.speak(text, f"en-us+{voice}", pitch=50, pitch_range=50, rate=170)
        pieces += [audio.resample(waveform, rate), pieces[0]]
    audio.write(path, np.concatenate(pieces))
    return path


def silence(path):
    audio.write(path, np.zeros(2 * audio.RATE))
    return path


@pytest.fixture
def settings(tmp_path):
    return Settings.of("smoke", home=str(tmp_path / "home"))


@pytest.fixture
def command(tmp_path):
    """`dpmkit segment` with these arguments: the exit code."""
    return lambda *arguments: main(["segment", *map(str, arguments), "--home", str(tmp_path / "home")])


def test_the_table_is_labelled_and_loaded_as_a_corpus(tmp_path, settings, command):
    paths = [say(tmp_path / "audio" / f"talk{i}.wav", voice=v) for i, v in enumerate(("m1", "f1", "m3"))]
    out = tmp_path / "project"
    assert command(*paths, "--out", out) == 0
    table = pd.read_csv(out / "manifest.csv")
    assert list(table) == ["conversation", "utterance", "speaker", "start", "end", "emotion", "path", "split"]
    assert table["emotion"].isna().all() and table["speaker"].isna().all() and len(table) == 9
    assert table["path"].unique().tolist() == [f"../audio/talk{i}.wav" for i in range(3)]
    split = np.repeat(["train", "dev", "test"], 3)
    table.assign(emotion=["hap", "sad", "neu"] * 3, split=split).to_csv(out / "manifest.csv", index=False)
    corpus = corpora.load(Settings.of("smoke", corpus="manifest", root=str(out), home=settings.home))
    assert not corpus.skipped
    for own, path in zip(corpus.conversations, paths, strict=True):
        found = audio.find_speech(path, settings.segments)
        assert own.id == path.stem and {u.speaker for u in own.utterances} == {f"unknown ({own.id})"}
        for number, (u, start, end) in enumerate(zip(own.utterances, found["start"], found["end"], strict=True)):
            assert (u.id, u.start, u.end) == (f"{own.id}_{number:05d}", start, end)
            np.testing.assert_array_equal(audio.read(u.audio.path, u.audio.start, u.audio.end),
                                          audio.read(path, start, end))


def test_settings_reach_the_search(tmp_path, command):
    path = say(tmp_path / "talk.wav")
    assert command(path, "--out", tmp_path / "a", "--set", "segments.max_speech=0.6") == 0
    table = pd.read_csv(tmp_path / "a" / "manifest.csv")
    assert (table["end"] - table["start"]).max() <= 0.6 + 1e-9 and len(table) > 6


def test_a_table_that_is_there_is_never_touched(tmp_path, command, capsys, monkeypatch):
    path, out = say(tmp_path / "talk.wav"), tmp_path / "out"
    assert command(path, "--out", out) == 0
    (out / "manifest.csv").write_text("my labels")
    monkeypatch.setattr(audio, "find_speech", lambda *_: pytest.fail("it asks before it works for hours"))
    assert command(path, "--out", out, "--set", "segments.pad=0.2") == 2
    assert "manifest.csv is there already and may hold your labels" in capsys.readouterr().err
    assert (out / "manifest.csv").read_text() == "my labels" and os.listdir(out) == ["manifest.csv"]


def test_what_cannot_be_heard_is_listed_and_the_rest_kept(tmp_path, command, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(say(tmp_path / "talk.wav").read_bytes()[:9000])
    assert command(bad, tmp_path / "talk.wav", tmp_path / "gone.wav", silence(tmp_path / "still.wav"), tmp_path,
                   "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert pd.read_csv(tmp_path / "out" / "manifest.csv")["conversation"].unique().tolist() == ["talk"]
    for name, reason in (("bad.wav", "is cut off"), ("gone.wav", "does not exist"), (tmp_path.name, "is a folder"),
                         ("still.wav", "no speech was found; lower the setting segments.threshold")):
        assert sum(name in line and reason in line for line in said) == 1


def test_where_nothing_is_found_no_table_is_written(tmp_path, command, capsys):
    assert command(silence(tmp_path / "still.wav"), "--out", tmp_path / "out") == 2
    assert "still.wav: no speech was found" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_the_users_mistakes_stop_the_work_and_are_no_fault_of_a_recording(tmp_path, command, capsys, monkeypatch):
    path = say(tmp_path / "talk.wav")
    assert command(path, "--out", tmp_path / "out", "--set", "segments.max_speech=0.3") == 2
    assert "setting segments.max_speech" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command(path, "--out", tmp_path / "file") == 2
    assert "cannot write" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    assert command(path, "--out", tmp_path / "out") == 2
    assert 'pip install -e ".[vad]"' in capsys.readouterr().err


def test_recordings_of_one_name_are_refused_before_work(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(audio, "find_speech", lambda *_: pytest.fail("it asks before it works for hours"))
    with pytest.raises(UserError, match=r"several recordings are called mic, .*rename them"):
        manifest.prepare(settings, [say(tmp_path / p, 1) for p in ("a/mic.wav", "b/mic.wav")], tmp_path / "out")


def test_a_folder_behind_a_link_has_paths_that_lead_back(tmp_path, settings):
    path = say(tmp_path / "talk.wav", 1)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    manifest.prepare(settings, [path], tmp_path / "link")
    named = pd.read_csv(tmp_path / "link" / "manifest.csv")["path"][0]
    assert named == "../../talk.wav" and os.path.samefile(tmp_path / "link" / named, path)


@pytest.mark.parametrize("name", ["nan.wav", "None.wav", "nan", "two  blanks.wav", "u\u0308ber.wav",
                                  "a,b;c 'd' \"e\".wav", "#1.wav", "-1.wav"])
def test_a_table_that_is_written_is_read(tmp_path, settings, name):
    path, out = say(tmp_path / "first.wav", 2).rename(tmp_path / name), tmp_path
    made, skipped = manifest.prepare(settings, [path], out)
    assert not skipped
    table = pd.read_csv(out / "manifest.csv", keep_default_na=False)
    table.assign(split="train").to_csv(out / "manifest.csv", index=False)
    rows, faults = manifest.read_rows(out / "manifest.csv")
    assert not faults and len(rows) == len(made) == 2
    assert [(r.conversation, r.utterance) for r in rows.values()] == list(
        made[["conversation", "utterance"]].itertuples(index=False, name=None))
    assert {r.path for r in rows.values()} == {files.plain(path.name)}


def test_a_table_that_comes_meanwhile_is_not_touched_either(tmp_path, command, monkeypatch):
    path, table, find = say(tmp_path / "talk.wav"), tmp_path / "out" / "manifest.csv", audio.find_speech
    table.parent.mkdir()
    monkeypatch.setattr(audio, "find_speech", lambda *a: table.write_text("theirs") and find(*a))
    assert command(path, "--out", table.parent) == 2
    assert table.read_text() == "theirs" and os.listdir(table.parent) == ["manifest.csv"]


@pytest.mark.parametrize("name", [b"\xff.wav", b"two\nlines.wav", b"a.wav ", b" a.wav"])
def test_a_name_that_a_table_cannot_hold_is_listed(tmp_path, settings, name):
    try:
        path = say(tmp_path / "a", 1).rename(tmp_path / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system refuses the name")
    made, skipped = manifest.prepare(settings, [path, say(tmp_path / "grüße 🙂.wav", 1)], tmp_path / "out")
    assert set(made["conversation"]) == {"grüße 🙂"} and "rename it" in skipped[0].reason
