"""A recording through a trained SLLM: the memory's own answers, in files that say where they belong."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import import_silero
from test_codes import small_corpus
from test_kmeans import voice
from test_recording import say, silence
from tree_meld import write_clip

from dpmkit import audio, cheaper, codes, finetune, listen, tokenizers
from dpmkit.__main__ import main
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.memory import DynamicParameterMemory
from dpmkit.settings import Settings, UserError
from dpmkit.sllm import EmotionSLLM
from dpmkit.tokenizers.kmeans import FITTED

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:silero_vad", "ignore:.*torch.jit")
import_silero()
TURNS = "end,start,speaker\n0.9,0,Ann\n1.5,0.9,<Bob>\n5,1.6,Ann\n"


def asked(home, **overrides):
    return Settings.of("smoke", {"device": "cpu", **overrides}, home=str(home))


@pytest.fixture(scope="module")
def sllm(tmp_path_factory):
    """The folder of an SLLM, not trained, with the codebook that it reads."""
    home = tmp_path_factory.mktemp("sllm")
    settings = asked(home)
    tokenizer = tokenizers.create(settings)
    tokenizer.fit([tokenizer.frames(voice(2, hertz)) for hertz in (90, 150, 220)], [None] * 3, [""] * 3)
    tokenizer.save(home)
    model = EmotionSLLM.create(settings.backbone, settings.finetune, tokenizer.codebook_size, EMOTIONS)
    of = settings.codes.but(frame_rate=25.0)
    facts = {"settings": dict(of), "profile": "smoke", "corpus": "demo"}
    model.save(home / "runs" / "sllm" / "a1" / "sllm", facts, home / FITTED)
    return home / "runs" / "sllm" / "a1" / "sllm"


@pytest.fixture
def talk(tmp_path):
    (tmp_path / "audio").mkdir()
    audio.write(tmp_path / "audio" / "a talk.wav", np.concatenate([voice(1, 100), voice(1, 200)]))
    (tmp_path / "turns.csv").write_text(TURNS)
    return tmp_path / "audio" / "a talk.wav"


def test_turns_of_a_table_are_heard_as_the_memory_hears_them(sllm, talk, tmp_path, capsys):
    settings, out = asked(tmp_path), tmp_path / "out"
    said, written = listen.listen(settings, talk, sllm, out, tmp_path / "turns.csv")
    model, tokenizer = listen.opened(settings, sllm)
    whole = audio.read(talk)
    pieces = [tokenizer.encode(whole[round(a * audio.RATE):round(b * audio.RATE)])
              for a, b in ((0, 0.9), (0.9, 1.5), (1.6, 2.0))]  # the last one's end lies beyond the recording's
    alone = list(cheaper.memory(model, settings.memory).listen(pieces))
    np.testing.assert_allclose(said[[f"p_{e}" for e in EMOTIONS]], [t.probabilities for t in alone], atol=5.1e-5)
    assert said["emotion"].tolist() == [EMOTIONS[t.probabilities.argmax()] for t in alone]
    assert said["speaker"].tolist() == ["Ann", "<Bob>", "Ann"] and said["loss"].iloc[1] == alone[1].loss
    assert [p.name for p in written] == [f"a talk{suffix}" for suffix in (".csv", ".vtt", ".txt", ".html")]
    cues, labels, page = (p.read_text(encoding="utf-8") for p in written[1:])
    pd.testing.assert_frame_equal(pd.read_csv(written[0]), said, check_dtype=False)
    first, second = said["emotion"][:2]
    assert cues.startswith(f"WEBVTT\n\n00:00:00.000 --> 00:00:00.900\nAnn: {first}\n\n00:00:00.900 --> 00:00:01.5")
    assert labels.splitlines()[1] == f"0.900\t1.500\t<Bob>: {second}"
    assert '<audio id="player"' in page and 'src="../audio/a%20talk.wav"' in page and "<Bob>" not in page
    assert "decide nothing about people" in page and "http" not in page and "<table>" in page
    assert "3 turns, 00:00:01.900 of speech in 00:00:02.000; SLLM of profile smoke, trained on demo" in page
    drawn = json.loads(re.search(r"const turns = (.*), emotions = \[", page)[1])
    assert drawn == [[*row[:3], EMOTIONS.index(row[3]), *row[4:8]] for row in said.itertuples(index=False)]
    assert said["end"].tolist() == [0.9, 1.5, 2.0] and "1 turn(s)" in capsys.readouterr().out


def test_a_recording_without_a_table_is_cut_by_voice_activity(sllm, tmp_path, capsys):
    path = say(tmp_path / "talk.wav")
    assert main(["listen", str(path), "--sllm", str(sllm), "--out", str(tmp_path), "--home", str(tmp_path),
                 "--set", "memory.prefix=16", "--set", "memory.lr=1e-3"]) == 0
    said, found = pd.read_csv(tmp_path / "talk.csv"), audio.find_speech(path, asked(tmp_path).segments)
    pd.testing.assert_frame_equal(said[["start", "end"]], found)
    assert said["speaker"].isna().all() and (said["loss"].iloc[1:] > 0).all()
    told = capsys.readouterr()
    assert f"{len(found)} turn(s), 00:00:0" in told.out and f"of profile smoke, trained on demo: {sllm}" in told.err


def test_hours_are_heard_in_blocks_as_in_one_piece(sllm, tmp_path, monkeypatch):
    """A video at another rate and a wav, in some hundred blocks: the same rows, and no whole waveform."""
    settings, path = asked(tmp_path), say(tmp_path / "talk.wav", 12)
    write_clip(tmp_path / "film.mkv", np.repeat(audio.read(path), 3), 48_000, video=True)
    for recording in (path, tmp_path / "film.mkv"):
        whole, _ = listen.listen(settings, recording, sllm, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(audio, "BLOCK", 4_000)
            patch.setattr(audio, "load", lambda path: pytest.fail("it is never held"))
            said, written = listen.listen(settings, recording, sllm, tmp_path)
        assert len(said) >= 10
        pd.testing.assert_frame_equal(said, whole)
    page = written[-1].read_text(encoding="utf-8")
    assert '<video id="player"' in page and '<table class="alone">' in page  # no column of nobody


def test_a_run_that_is_stopped_leaves_what_it_heard(sllm, talk, tmp_path, monkeypatch):
    settings, out = asked(tmp_path), tmp_path / "out"
    said, _ = listen.listen(settings, talk, sllm, out, tmp_path / "turns.csv")
    assert sorted(p.suffix for p in out.iterdir()) == [".csv", ".html", ".txt", ".vtt"]

    def stopped(self, codes, **kwargs):
        heard = listened(self, codes, **kwargs)
        yield next(heard)
        yield next(heard)
        raise KeyboardInterrupt

    listened = DynamicParameterMemory.listen
    monkeypatch.setattr(DynamicParameterMemory, "listen", stopped)
    with pytest.raises(KeyboardInterrupt):
        listen.listen(settings, talk, sllm, out, tmp_path / "turns.csv")
    kept = pd.read_csv(out / "a talk.partial.csv")
    pd.testing.assert_frame_equal(kept, said.iloc[:2], check_dtype=False)


def test_without_a_folder_the_sllm_trained_last_is_taken(sllm, talk, tmp_path, capsys):
    home = tmp_path / "home"
    options = {"--home": home, "--out": tmp_path, "--turns": tmp_path / "turns.csv"}
    line = ["listen", str(talk), *(str(part) for pair in options.items() for part in pair)]
    assert main(line) == 2
    assert "`make quick` trains one in five minutes" in capsys.readouterr().err
    for name, corpus, made in (("late", "meld", 2_000), ("early", "demo", 1_000)):
        folder = shutil.copytree(sllm, home / "runs" / "sllm" / name / "sllm")
        card = json.loads((folder / "dpmkit.json").read_text())
        (folder / "dpmkit.json").write_text(json.dumps(card | {"codes": card["codes"] | {"corpus": corpus}}))
        os.utime(folder / "dpmkit.json", (made, made))
    assert main(line) == 0
    late, early = (home / "runs" / "sllm" / name for name in ("late", "early"))
    assert f"of profile smoke, trained on meld: {late / 'sllm'}" in capsys.readouterr().err
    assert main([*line, "--sllm", str(early)]) == 0  # the folder above it does, too
    assert "early/sllm" in capsys.readouterr().err
    card["codes"] = {"settings": card["codes"]["settings"]}  # as an older version wrote it
    (early / "sllm" / "dpmkit.json").write_text(json.dumps(card))
    assert main([*line, "--sllm", str(early), "--set", "memory.prefix=16"]) == 0
    assert "of profile ?, trained on ?" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "words"), [
    ("start,end\n1,0.5\n", r"turns\.csv has 1 fault.*\n  row 2, its end, 0\.5, is not after its start, 1,"),
    ("start,end\n0,0.05\n", r"row 2, its end, 0\.05, is not after its start, 0, by 0\.1 s"),
    ("start,end\n1,2\n3,4\n", r"turns\.csv has 1 turn\(s\) from 3 s on, but .*talk\.wav ends after 2\.0 s"),
    ("start,stop\n1,2\n", r"turns\.csv has no column end"), ("start,end\n", "no row below its header"),
    ("start,end\n-1,2\n", "row 2, start: '-1'")])
def test_a_table_of_turns_that_is_off_is_named(sllm, talk, tmp_path, text, words):
    (tmp_path / "turns.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        listen.listen(asked(tmp_path), talk, sllm, tmp_path / "out", tmp_path / "turns.csv")
    assert not (tmp_path / "out").exists()


def test_overlaps_are_heard_and_said(sllm, talk, tmp_path, capsys):
    (tmp_path / "turns.csv").write_text("start,end\n0,1.5\n1,1.8\n1.6,2\n")
    said, _ = listen.listen(asked(tmp_path), talk, sllm, tmp_path, tmp_path / "turns.csv")
    assert len(said) == 3 and "2 turn(s)" in capsys.readouterr().out


def music(path):
    """Six seconds of chords, as an organ plays them."""
    at = np.arange(6 * audio.RATE) / audio.RATE
    roots = np.repeat([220, 262, 196], 2 * audio.RATE)
    audio.write(path, sum(np.sin(2 * np.pi * roots * ratio * at) / 8 for ratio in (1, 1.25, 1.5, 2)))
    return path


def test_bad_recordings_and_folders_are_one_clear_line(sllm, talk, tmp_path):
    settings = asked(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no sound")
    foreign, old, bare = (shutil.copytree(sllm, tmp_path / name) for name in ("foreign", "old", "bare"))
    (foreign / "dpmkit.json").unlink()
    card = json.loads((old / "dpmkit.json").read_text())
    (old / "dpmkit.json").write_text(json.dumps(card | {"codes": {}}))
    (bare / FITTED).unlink()
    (empty := shutil.copytree(sllm, tmp_path / "empty") / "model.safetensors").write_bytes(b"")
    (cut := tmp_path / "cut.wav").write_bytes(talk.read_bytes()[:40_000])
    for recording, folder, words in (
            (silence(tmp_path / "quiet.wav"), sllm, r"no speech was found in .*quiet\.wav"),
            (tmp_path / "nowhere.wav", sllm, r"cannot read .*nowhere\.wav"),
            (tmp_path / "broken.mp4", sllm, r"cannot read .*broken\.mp4"),
            (cut, sllm, r"cannot read .*cut\.wav: it is cut off"),
            (music(tmp_path / "music.wav"), sllm, r"no speech was found in .*music\.wav \(00:00:06\.000 of"),
            (tmp_path, sllm, "it is a folder"), (talk, empty.parent, "empty"),
            (talk, tmp_path / "nowhere", "nowhere holds no trained SLLM"), (talk, foreign, "holds no trained SLLM"),
            (talk, old, r"old does not say which codes its SLLM reads"), (talk, bare, rf"bare/{FITTED} is not")):
        with pytest.raises(UserError, match=words) as error:
            listen.listen(settings, recording, folder, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_training_leaves_a_folder_that_can_listen(talk, tmp_path):
    settings = asked(tmp_path, **{"codes.codebook_size": 8, "finetune.epochs": 1})
    corpus = small_corpus(tmp_path)
    spoken = codes.make(settings, corpus)
    tuned = finetune.train(settings, corpus, spoken)
    model, tokenizer = listen.opened(asked(tmp_path), tuned.folder)
    assert model.fingerprint() == tuned.sllm.fingerprint()
    u = corpus.conversations[0].utterances[1]
    np.testing.assert_array_equal(tokenizer.encode(audio.read(u.audio.path, u.audio.start, u.audio.end)),
                                  spoken.codes[u.id])
