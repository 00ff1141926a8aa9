"""Codes of a corpus: what fitting hears, what is encoded again, what is kept, and the faults on the way."""

import json
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tiny_models
from test_kmeans import voice

from dpmkit import audio, codes, runs, tokenizers
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance, files
from dpmkit.settings import Settings, UserError
from dpmkit.tokenizers import acoustics, neural
from dpmkit.tokenizers.kmeans import KMeansTokenizer


def small_corpus(folder, spoil=False):
    """Five conversations of two utterances; `spoil` makes the test one's audio another sound."""
    conversations = []
    for number in range(5):
        path = folder / f"c{number}.wav"
        audio.write(path, voice(2, 90 + 40 * number + 200 * (spoil and number == 4), number))
        utterances = tuple(Utterance(f"c{number}u{i}", f"p{number}", i, i + 1, "neu", Clip(path, i, i + 1))
                           for i in range(2))
        conversations.append(Conversation(f"c{number}", f"s{number}", utterances))
    fold = Fold(("c0", "c1", "c2"), ("c3",), ("c4",))
    return Corpus("small", tuple(conversations), ("neu",), (fold,), (), f"small-{spoil}")


def settings_at(folder, **overrides):
    return Settings.of("demo", {"codes.codebook_size": 8, **overrides}, home=str(folder))


def test_make_encodes_every_utterance_and_keeps_it(tmp_path, monkeypatch):
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path)
    made = codes.make(settings, corpus)
    assert set(made.codes) == set(made.features) == {u.id for c in corpus.conversations for u in c.utterances}
    assert all(c.shape == (25,) and c.dtype == np.int64 for c in made.codes.values())
    assert made.facts["tokenizer"] == "kmeans" and made.facts["utterances"] == 10
    assert made.facts["hours"] == pytest.approx(10 / 3600) and len(made.facts["weights_sha256"]) == 64
    json.dumps(made.facts)
    waveform = audio.read(tmp_path / "c3.wav", 1, 2)
    np.testing.assert_array_equal(made.features["c3u1"], acoustics.pooled(acoustics.frames(waveform)))
    monkeypatch.setattr(KMeansTokenizer, "encode", lambda *_: pytest.fail("encoded again"))
    kept = codes.make(settings, corpus)
    assert kept.key == made.key and kept.facts == made.facts
    for i in made.codes:
        np.testing.assert_array_equal(kept.codes[i], made.codes[i])
        np.testing.assert_array_equal(kept.features[i], made.features[i])


def test_fit_hears_only_the_training_fold(tmp_path):
    """Another sound in the test conversation: the same weights, the same codes of all others."""
    made = []
    for spoil in (False, True):
        folder = tmp_path / str(spoil)
        folder.mkdir()
        made.append(codes.make(settings_at(folder), small_corpus(folder, spoil)))
    assert made[0].facts["weights_sha256"] == made[1].facts["weights_sha256"]
    for i in made[0].codes:
        same = np.array_equal(made[0].features[i], made[1].features[i])
        assert same == (not i.startswith("c4"))
        assert not same or np.array_equal(made[0].codes[i], made[1].codes[i])


class Killed(BaseException):
    """As a kill is, nothing that a handler takes."""


def test_killed_encoding_goes_on_with_what_is_there(tmp_path, monkeypatch):
    """Killed in the third part of five: two are kept, the tokenizer is not fitted again, the rest is encoded."""
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path)
    (tmp_path / "whole").mkdir()
    whole = codes.make(settings_at(tmp_path / "whole"), corpus)
    monkeypatch.setattr(codes, "CHUNK", 2)
    heard, pooled = [], acoustics.pooled

    def counted(frames):
        heard.append(frames)
        if len(heard) == 6:
            raise Killed
        return pooled(frames)

    monkeypatch.setattr(acoustics, "pooled", counted)
    with pytest.raises(Killed):
        codes.make(settings, corpus)
    assert len(list((tmp_path / "runs").rglob("part-*.parquet"))) == 2
    monkeypatch.setattr(KMeansTokenizer, "fit", lambda *_: pytest.fail("fitted again"))
    made = codes.make(settings, corpus)
    assert len(heard) == 6 + 6
    for i in whole.codes:
        np.testing.assert_array_equal(made.codes[i], whole.codes[i])
        np.testing.assert_array_equal(made.features[i], whole.features[i])
    assert made.facts == whole.facts


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:-20]), lambda path: path.unlink()])
def test_a_damaged_part_is_made_again(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(codes, "CHUNK", 2)
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path)
    made = codes.make(settings, corpus)
    spoil(next((tmp_path / "runs").rglob("part-00003.parquet")))
    encoded, encode = [], KMeansTokenizer.encode
    monkeypatch.setattr(KMeansTokenizer, "encode", lambda self, *w: encoded.append(w) or encode(self, *w))
    again = codes.make(settings, corpus)
    assert len(encoded) == 2
    for i in made.codes:
        np.testing.assert_array_equal(again.codes[i], made.codes[i])


def test_a_clip_is_heard_once_and_a_recording_in_one_pass(tmp_path, monkeypatch):
    """Three conversations of the same five files, two clips each."""
    corpus = small_corpus(tmp_path)
    copies = tuple(Conversation(f"{k}{c.id}", c.session, tuple(replace(u, id=f"{k}{u.id}") for u in c.utterances))
                   for k in range(2) for c in corpus.conversations)
    corpus = replace(corpus, conversations=(*corpus.conversations, *copies))
    settings = settings_at(tmp_path)
    encoded, passes, encode, decoded = [], [], KMeansTokenizer.encode, audio._known
    monkeypatch.setattr(KMeansTokenizer, "encode", lambda self, *w: encoded.append(w) or encode(self, *w))
    monkeypatch.setattr(audio, "_known", lambda path: passes.append(path.name) or decoded(path))
    monkeypatch.setattr(audio, "HELD", 0)  # one file is kept, as of a corpus of hours
    made = codes.make(settings, corpus)
    assert len(encoded) == 10 and len(made.codes) == 30
    assert passes == ["c0.wav", "c1.wav", "c2.wav", *(f"c{i}.wav" for i in range(5))]  # fit, then encode
    assert (made.facts["clips"], made.facts["utterances"]) == (10, 30)
    np.testing.assert_array_equal(made.codes["1c2u1"], made.codes["c2u1"])


@pytest.mark.parametrize(("rate", "times"), [(25.0, 10), (20.0, 10 + 6 + 10)])
def test_frames_are_computed_once_for_fit_codes_and_features(tmp_path, monkeypatch, rate, times):
    """Six of ten clips are fitted on; a codebook of another rate has frames of its own."""
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path, **{"codes.frame_rate": rate})
    computed, frames = [], acoustics.frames
    monkeypatch.setattr(acoustics, "frames", lambda *given: computed.append(given) or frames(*given))
    made = codes.make(settings, corpus)
    assert len(computed) == times
    alone = tokenizers.create(settings)
    alone.load(tmp_path / "runs" / "codes" / made.key)
    for u in (u for c in corpus.conversations for u in c.utterances):
        waveform = audio.read(u.audio.path, u.audio.start, u.audio.end)
        np.testing.assert_array_equal(made.codes[u.id], alone.encode(waveform))
        np.testing.assert_array_equal(made.features[u.id], acoustics.pooled(frames(waveform)))


def test_clips_out_of_order_are_heard_as_they_are(tmp_path):
    """A manifest may give a recording's parts in any order."""
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path)
    swapped = tuple(replace(c, utterances=c.utterances[::-1]) for c in corpus.conversations)
    first = codes.make(settings, corpus)
    second = codes.make(settings, replace(corpus, conversations=swapped, key="swapped"))
    for i in first.features:
        np.testing.assert_array_equal(first.features[i], second.features[i])


def test_only_as_much_as_it_learns_from_is_heard_to_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(KMeansTokenizer, "learns", 2.5)  # seconds: three of the six clips of the training fold
    fitted, fit = [], KMeansTokenizer.fit

    def counted(self, frames, emotions, speakers):
        fitted.extend(frames)
        fit(self, frames, emotions, speakers)

    monkeypatch.setattr(KMeansTokenizer, "fit", counted)
    codes.make(settings_at(tmp_path), small_corpus(tmp_path))
    assert len(fitted) == 3


def labelled(corpus, emotions):
    """The corpus with these labels, one after the other, of its utterances in order."""
    given = iter(emotions)
    return replace(corpus, key=f"labelled-{''.join(map(str, emotions))}", conversations=tuple(
        replace(c, utterances=tuple(replace(u, emotion=next(given)) for u in c.utterances))
        for c in corpus.conversations))


def test_supervised_codes_are_of_the_training_labels_alone(tmp_path):
    """Other labels of validation and test change no code; other ones of training do."""
    settings, corpus = settings_at(tmp_path, **{"codes.supervised": True}), small_corpus(tmp_path)
    one, same, other = (codes.make(settings, labelled(corpus, labels)).codes for labels in (
        ["a", "b", "a", None, "b", "a", "a", "b", "a", "b"], ["a", "b", "a", None, "b", "a", "b", "a", "c", None],
        ["b", "b", "a", None, "a", "a", "a", "b", "a", "b"]))
    for i in one:
        np.testing.assert_array_equal(one[i], same[i])
    assert any((one[i] != other[i]).any() for i in one)
    with pytest.raises(UserError, match=r"codes\.supervised needs two emotions or more .*, not a: set it false"):
        codes.make(settings, labelled(corpus, ["a", "a", "a", None, "a", "a", "b", "b", "b", "b"]))


def test_unknown_tokenizer_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="kmeans, s3-v2-25hz, mimi, hubert-kmeans, wavlm-kmeans"):
        codes.make(settings_at(tmp_path, **{"codes.tokenizer": "hubert"}), small_corpus(tmp_path))


def test_a_file_that_vanished_is_named_and_the_rest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "CHUNK", 2)
    corpus = small_corpus(tmp_path)
    gone = (tmp_path / "c3.wav").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"c3\.wav"):
        codes.make(settings_at(tmp_path), corpus)
    gone.rename(tmp_path / "c3.wav")
    encoded, encode = [], KMeansTokenizer.encode
    monkeypatch.setattr(KMeansTokenizer, "encode", lambda self, *w: encoded.append(w) or encode(self, *w))
    assert len(codes.make(settings_at(tmp_path), corpus).codes) == 10 and len(encoded) == 4


@pytest.mark.parametrize("change", [
    lambda path: audio.write(path, voice(2, 500)), lambda path: path.unlink(), lambda path: os.utime(path, (1, 1))])
def test_a_file_that_changes_while_others_are_heard_is_named(tmp_path, monkeypatch, change):
    monkeypatch.setattr(codes, "CHUNK", 2)
    corpus, save = small_corpus(tmp_path), KMeansTokenizer.save
    monkeypatch.setitem(files.SEEN, tmp_path / "c4.wav", files.stamp(tmp_path / "c4.wav"))
    monkeypatch.setattr(KMeansTokenizer, "save", lambda *a: (save(*a), change(tmp_path / "c4.wav")))
    with pytest.raises(UserError, match=r"c4\.wav"):
        codes.make(settings_at(tmp_path), corpus)
    assert len(list((tmp_path / "runs").rglob("part-*.parquet"))) == 4


def test_the_key_is_of_what_makes_the_codes(tmp_path, monkeypatch):
    """Where weights lie is nothing, what they are is all; folds tell only codebooks that are learned apart."""
    corpus = small_corpus(tmp_path)
    corpus = replace(corpus, folds=(*corpus.folds, Fold(("c1", "c2", "c3"), ("c4",), ("c0",))))
    monkeypatch.setattr(neural, "S3_SHAPE", tiny_models.S3)
    for name in ("one", "two"):
        tiny_models.s3(tmp_path / name)

    def s3(source="one", **overrides):
        given = {"codes.tokenizer": "s3-v2-25hz", "codes.source": source, "codes.codebook_size": 0, "device": "cpu"}
        return codes.make(settings_at(tmp_path, **given, **overrides), corpus)

    first = s3()
    assert first.facts["source"] == "one" and first.facts["codebook_size"] == 6561
    assert "codebook_sha256" not in first.facts
    assert all(c.shape == (25,) for c in first.codes.values())
    assert s3("two").key == s3(fold=2).key == s3(**{"codes.frame_rate": 25.0}).key == first.key
    model = onnx.load(path := tmp_path / "two" / "speech_tokenizer_v2.onnx")
    model.doc_string = "other"
    onnx.save(model, path)
    assert s3("two").key != first.key
    plain = codes.make(settings_at(tmp_path), corpus)
    assert codes.make(settings_at(tmp_path, fold=2), corpus).key != plain.key
    assert codes.make(settings_at(tmp_path, **{"codes.frame_rate": 25.0}), corpus).key == plain.key
    assert codes.make(settings_at(tmp_path, **{"codes.frame_rate": 20.0}), corpus).key != plain.key


def test_a_neural_codebook_is_fitted_kept_and_described(tmp_path):
    corpus = small_corpus(tmp_path)
    tiny_models.hubert(tmp_path / "hubert")
    given = {"codes.tokenizer": "hubert-kmeans", "codes.source": "hubert", "codes.layer": 1, "device": "cpu"}
    made = codes.make(settings_at(tmp_path, **given), corpus)
    assert all(c.shape == (50,) and c.max() < 8 for c in made.codes.values())
    assert made.facts["weights_sha256"] == runs.sha256(tmp_path / "hubert" / "model.safetensors")
    assert len(made.facts["codebook_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(made.facts)


def test_the_smoke_profiles_codebook_is_refused_where_it_is_published(tmp_path):
    settings = Settings.of("smoke", {"codes.tokenizer": "s3-v2-25hz"}, home=str(tmp_path))
    with pytest.raises(UserError, match=r"codes\.codebook_size is 32.*6561 alone"):
        codes.make(settings, small_corpus(tmp_path))
