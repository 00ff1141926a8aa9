"""EmoDB's layout is read as it is, every file is used or listed, and folds never share a speaker."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dpmkit import audio, corpora
from dpmkit.corpora import Count, dynamics, emodb
from dpmkit.settings import Settings, UserError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "emodb"
real = pytest.mark.skipif(not (REAL / "wav").is_dir(), reason=f"REAL DATA ABSENT: EmoDB is not at {REAL}")
HOME = tempfile.TemporaryDirectory()
SMALL = {"conversation.conversations": 3, "conversation.min_turns": 4, "conversation.max_turns": 8}
SPEAKERS = (*emodb.MEN, *emodb.WOMEN)


def settings(root, **overrides):
    return Settings.of("demo", {**SMALL, **overrides}, corpus="emodb", root=str(root), home=HOME.name)


def tree(root, speakers=SPEAKERS, texts=("a01", "a02", "b01"), emotions="WLEAFTN"):
    """A tree of EmoDB's layout, 0.1 s of a tone of its own a file."""
    (root / "wav").mkdir(parents=True)
    for i, name in enumerate(f"{s}{t}{e}a" for s in speakers for t in texts for e in emotions):
        waveform = 0.3 * np.sin(2 * np.pi * (100 + i) * np.arange(800) / 8000)
        soundfile.write(root / "wav" / f"{name}.wav", waveform, 8000)
    return root


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("emodb") / "root")


@pytest.fixture
def copy(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "root")


def test_files_become_utterances_of_their_speaker_and_emotion(pristine):
    corpus = corpora.load(settings(pristine))
    assert corpus.emotions == dynamics.EMOTIONS and len(corpus.conversations) == 15
    for utterance in (u for c in corpus.conversations for u in c.utterances):
        name = utterance.audio.path.name
        assert utterance.speaker == name[:2] and utterance.emotion == emodb.LETTERS[name[5]]
        assert utterance.seconds == pytest.approx(0.1)
    assert corpus.counts == tuple(Count("all", e, emodb.PUBLISHED[e], 30) for e in dynamics.EMOTIONS)
    assert [(s.item, s.reason.split()[0]) for s in corpus.skipped] == \
        [("fear (A)", "30"), ("disgust (E)", "30"), ("boredom (L)", "30")]


def test_root_may_be_the_wav_folder_itself(pristine):
    assert corpora.load(settings(pristine / "wav")) == corpora.load(settings(pristine))


def test_sessions_pair_a_man_and_a_woman_and_no_fold_shares_a_speaker(pristine):
    corpus = corpora.load(settings(pristine))
    assert sorted({c.session for c in corpus.conversations}) == ["03-08", "10-09", "11-13", "12-14", "15-16"]
    assert len(corpus.folds) == 5
    for fold in corpus.folds:
        heard = [{u.speaker for c in corpus.select(ids) for u in c.utterances}
                 for ids in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, heard)) == len(set.union(*heard)) == 10


def test_the_order_of_the_directory_changes_nothing(pristine, monkeypatch):
    first = corpora.load(settings(pristine))
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))
    assert corpora.load(settings(pristine)) == first


def test_the_key_follows_content_names_and_settings(copy):
    keys = [corpora.load(settings(copy)).key]
    assert corpora.load(settings(copy, **{"memory.lr": 0.1, "seed": 9})).key == keys[0]
    os.utime(copy / "wav" / "03a01Fa.wav", (0, 0))
    assert corpora.load(settings(copy)).key == keys[0]
    keys.append(corpora.load(settings(copy, **{"conversation.seed": 1})).key)
    soundfile.write(copy / "wav" / "03a01Fa.wav", np.zeros(800), 8000)  # another content, the same size
    keys.append(corpora.load(settings(copy)).key)
    (copy / "wav" / "03a01Fa.wav").rename(copy / "wav" / "03a01Fb.wav")
    keys.append(corpora.load(settings(copy)).key)
    assert len(set(keys)) == 4


def test_files_that_cannot_be_used_are_listed_and_never_composed(copy):
    wav = copy / "wav"
    spoiled = {"03a01Fa.wav": b"", "03a01Na.wav": b"no audio",
               "03a01Ta.wav": (wav / "03a01Ta.wav").read_bytes()[:99],
               "notes.txt": b"x", "3a01Fa.wav": b"x", "03a01Xa.wav": b"x", "03a01Fa (1).wav": b"x"}
    for name, data in spoiled.items():
        (wav / name).write_bytes(data)
    soundfile.write(wav / "03a02Fa.wav", np.full(800, np.nan), 8000, subtype="FLOAT")
    (wav / "03b09Fa.wav").mkdir()
    for name in (".DS_Store", "._03a01Fa.wav"):  # the file system's own, not listed
        (wav / name).write_bytes(b"x")
    corpus = corpora.load(settings(copy))
    reasons = {s.item: s.reason for s in corpus.skipped[:-3]}
    assert set(reasons) == {*spoiled, "03a02Fa.wav", "03b09Fa.wav"}
    for name, reason in {"03a01Fa.wav": "empty (0 bytes)", "03a01Na.wav": "not audio",
                         "03a01Ta.wav": "cut off", "03a02Fa.wav": "not finite",
                         "03b09Fa.wav": "is a folder", "03a01Xa.wav": "not named"}.items():
        assert reason in reasons[name]
    composed = {u.audio.path.name for c in corpus.conversations for u in c.utterances}
    assert not composed & set(reasons)


def test_one_frame_and_silent_files_are_used(copy):
    for path in (copy / "wav").glob("03*.wav"):
        soundfile.write(path, np.zeros(1), 16_000)
    corpus = corpora.load(settings(copy))
    assert len(corpus.skipped) == 3
    assert "03" in {u.speaker for c in corpus.conversations for u in c.utterances}


@pytest.mark.parametrize(("names", "found"), [
    ((), "found nothing"), (("Session1/", "readme.txt"), "Session1"),
    (("wav/a.wav",), "wav/a.wav"), (("wav",), "wav"),
])
def test_a_root_of_another_shape_is_refused(tmp_path, names, found):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(UserError, match=rf"is not EmoDB: expected wav/03a01Fa\.wav.*{found}"):
        corpora.load(settings(tmp_path))


def test_a_missing_root_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        corpora.load(settings(tmp_path / "absent"))
    with pytest.raises(UserError, match="needs a root"):
        corpora.load(settings(""))


@pytest.mark.parametrize(("speakers", "sessions"), [
    (("03", "08", "10", "09", "11", "13"), ["03-08", "10-09", "11-13"]),
    (("03", "08", "10", "09", "11", "13", "16"), ["03-08", "10-09", "11-13-16"]),
    (("03", "10", "11", "12", "15", "08"), ["03-08", "10-11", "12-15"]),
    (("21", "22", "23", "24", "25", "08"), ["08-21", "22-23", "24-25"]),
])
def test_speakers_that_are_there_are_paired(tmp_path, speakers, sessions):
    corpus = corpora.load(settings(tree(tmp_path / "root", speakers, texts=("a01",))))
    assert sorted({c.session for c in corpus.conversations}) == sessions
    assert len(corpus.folds) == len(sessions)


def test_too_few_speakers_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"5 speaker\(s\).*six are needed"):
        corpora.load(settings(tree(tmp_path / "root", SPEAKERS[:5], texts=("a01",))))
    with pytest.raises(UserError, match=r"0 speaker\(s\)"):
        corpora.load(settings(tree(tmp_path / "others", texts=("a01",), emotions="LEA")))


@real
def test_the_real_corpus_counts_as_published():
    names = [emodb.NAME.fullmatch(p.name) for p in (REAL / "wav").iterdir()]
    assert len(names) == 535 and None not in names
    assert Counter(n["emotion"] for n in names) == dict(W=127, L=81, N=79, F=71, A=69, T=62, E=46)
    used, _, skipped = emodb._utterances(settings(REAL), REAL / "wav")
    assert len(used) == 339 and Counter(u.emotion for u in used) == dict(ang=127, neu=79, hap=71, sad=62)
    assert corpora.load(settings(REAL)).counts == (
        Count("all", "neu", 79, 79), Count("all", "hap", 71, 71), Count("all", "sad", 62, 62),
        Count("all", "ang", 127, 127))
    assert Counter(u.speaker for u in used) == {"03": 39, "08": 42, "09": 30, "10": 21, "11": 35,
                                                "12": 22, "13": 36, "14": 41, "15": 34, "16": 39}
    assert {s.item: s.reason.split()[0] for s in skipped} == \
        {"boredom (L)": "81", "fear (A)": "69", "disgust (E)": "46"}


@real
def test_real_conversations_keep_the_inertia():
    corpus = corpora.load(Settings.of("demo", corpus="emodb", root=str(REAL), home=HOME.name))
    said = [[c.id, [(u.speaker, u.emotion, u.audio.path.name) for u in c.utterances]]
            for c in corpus.conversations]
    assert hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16] == "eac379debcf08765"  # of b9e3411
    assert len(corpus.conversations) == 300 and {len(f.test) for f in corpus.folds} == {60}
    measured = dynamics.transition_matrix(corpus.conversations, corpus.emotions)
    # Contagion takes up to 0.05 off the diagonal; the rest is sampling error of rows of some 800 draws.
    assert np.abs(measured - dynamics.IEMOCAP_INERTIA).max() < 0.08
    for conversation in corpus.conversations:
        paths = [u.audio.path for u in conversation.utterances]
        assert len(paths) == len(set(paths))
    clip = corpus.conversations[0].utterances[0].audio
    seconds = corpus.conversations[0].utterances[0].seconds
    assert audio.read(clip.path, clip.start, clip.end).shape == (round(seconds * audio.RATE),)
    assert not any("no more and no less" in note for note in corpus.notes)
