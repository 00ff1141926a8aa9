"""Codes of a corpus, most by acoustic k-means: counts, hard waveforms, what fitting hears, what is kept."""

import json
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tiny_models

from dpmkit import audio, codes, runs, tokenizers
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance, files
from dpmkit.settings import Settings, UserError
from dpmkit.tokenizers import acoustics, neural
from dpmkit.tokenizers.kmeans import KMeansTokenizer, directions, held_out


def kmeans(size=8, **overrides):
    return KMeansTokenizer(Settings.of("demo", {"codes.codebook_size": size, **overrides}))


def fitted(waveforms, *given, **overrides):
    """The tokenizer of these settings, fitted on these waveforms."""
    made = kmeans(*given, **overrides)
    made.fit([made.frames(w) for w in waveforms], [None] * len(waveforms), [""] * len(waveforms))
    return made


def voice(seconds, hertz=150.0, seed=0, level=0.3):
    """A buzz with harmonics and a little noise, float32, (samples,)."""
    t = np.arange(round(seconds * audio.RATE)) / audio.RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 8)) / 3
    return (level * (wave + 0.01 * np.random.default_rng(seed).normal(size=len(t)))).astype(np.float32)


VOICES = [(1, hertz, seed) for seed, hertz in enumerate((90, 120, 180, 260, 350))]


@pytest.fixture(scope="module")
def tokenizer():
    return fitted([voice(*how) for how in VOICES])


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


@pytest.mark.parametrize("seconds", [0.01, 0.02, 0.061, 0.5, 1.0, 1.23, 7.777])
def test_frame_counts(tokenizer, seconds):
    got = tokenizer.encode(voice(seconds))
    assert got.dtype == np.int64 and got.shape == (max(1, round(seconds * 25)),)
    assert got.min() >= 0 and got.max() < 8


@pytest.mark.parametrize("waveform", [np.full(n, level, np.float32) for n, level in
                                      ((160, 0.0), (16_000, 0.0), (1, 1.0), (16_000, 1.0), (16_000, 1e-7))])
def test_silence_and_clicks_are_encoded(tokenizer, waveform):
    assert np.isfinite(acoustics.pooled(acoustics.frames(waveform))).all()
    assert len(tokenizer.encode(waveform)) == max(1, round(len(waveform) / 640))


@pytest.mark.parametrize("hertz", [75, 110, 160, 240, 330, 480])
def test_f0_is_found(hertz):
    x = acoustics.frames(voice(1, hertz))[2:-2]
    assert np.abs(2 ** x[:, 13] / hertz - 1).max() < 0.02 and x[:, 14].min() > acoustics.VOICED
    noise = acoustics.frames(np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1)
    assert np.median(noise[:, 14]) < acoustics.VOICED


def test_louder_is_more_energy():
    loud, soft = (acoustics.frames(voice(1, level=level))[3:-3, 12] for level in (0.4, 0.04))
    np.testing.assert_allclose(loud - soft, 1, atol=1e-3)


def test_same_fit_twice_and_from_disk(tokenizer, tmp_path):
    again = fitted([voice(*how) for how in VOICES])
    tokenizer.save(tmp_path)
    loaded = kmeans()
    loaded.load(tmp_path)
    for other in (again, loaded):
        np.testing.assert_array_equal(other.centroids, tokenizer.centroids)
        np.testing.assert_array_equal(other.encode(voice(1, 200)), tokenizer.encode(voice(1, 200)))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.safetensors"]
    with pytest.raises(UserError, match="not the tokenizer of these settings"):
        kmeans(9).load(tmp_path)


def test_prosody_weight_weighs(tokenizer):
    heavy, light = (fitted([voice(1, hertz) for hertz in (90, 200, 300)], 4, **{"codes.prosody_weight": w})
                    for w in (4.0, 1.0))
    heavy, light = heavy.projections[0].diagonal(), light.projections[0].diagonal()
    np.testing.assert_allclose(heavy[acoustics.PROSODY], 4 * light[acoustics.PROSODY], rtol=1e-6)
    np.testing.assert_array_equal(heavy[:acoustics.CEPSTRA], light[:acoustics.CEPSTRA])


def test_fit_of_silence_and_of_too_little():
    silent = fitted([np.zeros(16_000, np.float32)], 1)
    assert (silent.encode(voice(1)) == 0).all()
    with pytest.raises(UserError, match=r"codes\.codebook_size"):
        fitted([voice(0.1)])


def test_damaged_and_missing_tokenizers_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        kmeans().load(tmp_path)
    (tmp_path / "tokenizer.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        kmeans().load(tmp_path)


def test_its_own_size_and_rate_and_what_it_cannot_do():
    plain = KMeansTokenizer(Settings.of("demo"))
    assert (plain.codebook_size, plain.frame_rate) == (256, 25.0)
    assert kmeans(32, **{"codes.frame_rate": 12.5}).frame_rate == 12.5
    with pytest.raises(UserError, match=r"codes\.frame_rate must be less than or equal to 100, not 500"):
        kmeans(**{"codes.frame_rate": 500.0})


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


def test_directions_of_emotion_are_found_below_louder_ones():
    """Three emotions a tenth apart in a feature of deviation 0.02, beside others of deviation 5."""
    rng = np.random.default_rng(0)
    emotions = np.array([["a", "b", "c", None][i % 4] for i in range(8000)], object)
    x = rng.normal(size=(8000, 40)) * 5
    x[:, 27] = 0.02 * rng.normal(size=8000) + 0.1 * (np.arange(8000) % 4)
    x[:, 3] = x[:, 23] = 0.0  # says nothing
    all_one = np.zeros(8000, int)
    found = x @ directions(x.astype(np.float32), emotions, all_one)[0][0]
    assert found.shape == (8000, 2 + 16)
    along = [found[emotions == e, 0] for e in "abc"]
    np.testing.assert_allclose(np.abs(np.diff([a.mean() for a in along])), 5, rtol=0.05)
    np.testing.assert_allclose([a.std() for a in along], 1, rtol=0.05)
    np.testing.assert_allclose(found[:, 2:].std(0), 0.5, rtol=0.01)
    other = np.where(np.arange(40) < 20, x, 0)  # the components are of the frames, not of their means
    again = other @ directions(x.astype(np.float32), emotions, all_one)[0][0]
    np.testing.assert_allclose(again[:, 2:], found[:, 2:], atol=1e-5)


def test_a_training_speaker_is_encoded_by_the_labels_of_others():
    """Whatever its own labels are, its directions span the same; and they lie as those of all do."""
    rng = np.random.default_rng(0)
    emotions, group = np.array(["a", "b", "c"], object)[rng.integers(0, 3, 900)], np.repeat([1, 2, 3], 300)
    x = 50 + rng.normal(size=(900, 40)) + 2 * rng.normal(size=(3, 40))[np.searchsorted(["a", "b", "c"], emotions)]
    other = np.where(group == 2, rng.permutation(emotions), emotions)
    one, two = (directions(x.astype(np.float32), labels, group)[0][:, :, :2] for labels in (emotions, other))
    spans = [[np.linalg.qr(along)[0] @ np.linalg.qr(along)[0].T for along in found] for found in (one, two)]
    np.testing.assert_allclose(spans[0][2], spans[1][2], atol=1e-5)
    assert all(np.abs(spans[0][i] - spans[1][i]).max() > 0.01 for i in (0, 1, 3))
    found, centres = directions(x.astype(np.float32), emotions, group)
    middles = [[(x @ along - centre)[emotions == e].mean(0) for e in "abc"]
               for along, centre in zip(found, centres, strict=True)]
    np.testing.assert_allclose(np.array(middles)[1:, :, :2], [middles[0]] * 3 @ np.eye(18, 2), rtol=0.2, atol=0.5)
    np.testing.assert_allclose(np.mean(middles, axis=1), 0, atol=0.5)
    alone = np.where(group == 3, "c", np.where(emotions == "c", "a", emotions))  # without group 3 no c is left
    found, _ = directions(x.astype(np.float32), alone.astype(object), group)
    np.testing.assert_array_equal(found[3], found[0])


def test_speakers_are_left_out_in_groups():
    names = [f"s{i:02d}" for i in range(23)]
    group, numbers = held_out([*names, "s00"])
    assert sorted({*group.values()}) == list(range(1, 11)) and numbers[0] == numbers[-1] == group["s00"]
    assert max(np.bincount(numbers)) <= 4
    group, numbers = held_out(["one", "one"])
    assert group == {} and list(numbers) == [0, 0]


def test_a_training_speaker_is_known_again_after_loading(tmp_path):
    rng = np.random.default_rng(0)
    clips, who = [voice(1, 150 + 20 * i) for i in range(12)], [f"s{i % 3}" for i in range(12)]
    tokenizer, again = kmeans(**{"codes.supervised": True}), kmeans(**{"codes.supervised": True})
    tokenizer.fit([*map(tokenizer.frames, clips)], list(rng.permutation(["a", "b"] * 6)), who)
    tokenizer.save(tmp_path)
    again.load(tmp_path)
    strange = tokenizer.encode(clips[0])
    assert (tokenizer.encode(clips[0], speaker="s0") != strange).any()
    np.testing.assert_array_equal(tokenizer.encode(clips[0], speaker="nobody"), strange)
    for speaker in ("s0", "s1", ""):
        np.testing.assert_array_equal(again.encode(clips[0], speaker=speaker),
                                      tokenizer.encode(clips[0], speaker=speaker))


def test_codes_of_training_speakers_mean_what_those_of_strangers_mean(monkeypatch):
    """Frames far from 0, as hidden states are; each speaker left out moves the directions, and hardly a code."""
    rng = np.random.default_rng(0)
    as_it_is = np.zeros(40, np.float32), np.ones(40, np.float32)
    monkeypatch.setattr(KMeansTokenizer, "standard", lambda self, x: as_it_is)
    monkeypatch.setattr(KMeansTokenizer, "frames", lambda self, frames, acoustic=None: frames)
    tokenizer, where = kmeans(**{"codes.supervised": True, "codes.codebook_size": 8}), 2 * rng.normal(size=(3, 20))
    emotions, who = [*"abc"] * 200, [f"s{i % 20}" for i in range(600)]
    clips = [(30 + where["abc".index(e)] + rng.normal(size=(10, 20))).astype(np.float32) for e in emotions]
    tokenizer.fit(clips, emotions, who)
    same = [tokenizer.encode(clip, speaker=speaker) == tokenizer.encode(clip)
            for clip, speaker in zip(clips, who, strict=True)]
    assert 0.9 < np.mean(same) < 1


def test_a_supervised_frame_goes_with_the_mean_around_it(tokenizer):
    plain, supervised = tokenizer.frames(voice(3)), kmeans(**{"codes.supervised": True})
    features = supervised.features(plain)
    assert features.shape == (75, 30) and tokenizer.features(plain) is plain
    np.testing.assert_array_equal(features[:, :15], plain)
    np.testing.assert_allclose(features[40, 15:], plain[21:60].mean(0), rtol=1e-4)  # 0.75 s are 19 frames
    np.testing.assert_allclose(features[0, 15:], np.vstack([plain[[0] * 19], plain[:20]]).mean(0), rtol=1e-4)


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
