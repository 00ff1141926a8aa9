"""Codes: frame counts, hard waveforms, company, what fitting may hear, what the cache may keep."""

import json

import numpy as np
import pytest

from dpmkit import acoustics, codes, speech
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance
from dpmkit.settings import CodesSettings, Settings, UserError

SMALL = CodesSettings(codebook_size=8)


def voice(seconds, hertz=150.0, seed=0, level=0.3):
    """A buzz with harmonics and a little noise, float32, (samples,)."""
    t = np.arange(round(seconds * speech.RATE)) / speech.RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 8)) / 3
    return (level * (wave + 0.01 * np.random.default_rng(seed).normal(size=len(t)))).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer():
    fitted = codes.KMeansTokenizer(SMALL)
    fitted.fit([voice(1, hertz, seed) for seed, hertz in enumerate((90, 120, 180, 260, 350))])
    return fitted


def small_corpus(folder, spoil=False):
    """Five conversations of two utterances; `spoil` makes the test one's audio another sound."""
    conversations = []
    for number in range(5):
        path = folder / f"c{number}.wav"
        speech.write(path, voice(2, 90 + 40 * number + 200 * (spoil and number == 4), number))
        utterances = tuple(Utterance(f"c{number}u{i}", f"p{number}", i, i + 1, "neu", Clip(path, i, i + 1))
                           for i in range(2))
        conversations.append(Conversation(f"c{number}", f"s{number}", utterances))
    fold = Fold(("c0", "c1", "c2"), ("c3",), ("c4",))
    return Corpus("small", tuple(conversations), ("neu",), (fold,), (), f"small-{spoil}")


def settings_at(folder, **overrides):
    return Settings.of("demo", {"codes.codebook_size": 8, **overrides}, home=str(folder))


@pytest.mark.parametrize("seconds", [0.01, 0.02, 0.061, 0.5, 1.0, 1.23, 7.777])
def test_frame_counts(tokenizer, seconds):
    got = tokenizer.encode([voice(seconds)])[0]
    assert got.dtype == np.int64 and got.shape == (max(1, round(seconds * 25)),)
    assert got.min() >= 0 and got.max() < 8


@pytest.mark.parametrize("waveform", [np.full(n, level, np.float32) for n, level in
                                      ((160, 0.0), (16_000, 0.0), (1, 1.0), (16_000, 1.0), (16_000, 1e-7))])
def test_silence_and_clicks_are_encoded(tokenizer, waveform):
    assert np.isfinite(acoustics.frames(waveform)).all() and np.isfinite(acoustics.pooled(waveform)).all()
    assert len(tokenizer.encode([waveform])[0]) == max(1, round(len(waveform) / 640))


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.zeros((2, 16), np.float32),
                                      np.array([0.0, np.nan], np.float32)])
def test_what_is_no_waveform_is_refused(waveform):
    with pytest.raises(ValueError, match="waveform"):
        acoustics.frames(waveform)


def test_batch_is_alone(tokenizer):
    batch = [voice(s, h, int(h)) for s, h in ((0.01, 100), (1.3, 130), (0.4, 220), (3.0, 90))]
    for together, waveform in zip(tokenizer.encode(batch), batch, strict=True):
        np.testing.assert_array_equal(together, tokenizer.encode([waveform])[0])


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
    again = codes.KMeansTokenizer(SMALL)
    again.fit([voice(1, hertz, seed) for seed, hertz in enumerate((90, 120, 180, 260, 350))])
    tokenizer.save(tmp_path)
    loaded = codes.KMeansTokenizer.load(tmp_path)
    for other in (again, loaded):
        np.testing.assert_array_equal(other.centroids, tokenizer.centroids)
        np.testing.assert_array_equal(other.encode([voice(1, 200)])[0], tokenizer.encode([voice(1, 200)])[0])
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.safetensors"]
    assert (loaded.codebook_size, loaded.frame_rate) == (8, 25.0)


def test_prosody_weight_weighs(tokenizer):
    x = np.concatenate([acoustics.frames(voice(1, hertz)) for hertz in (90, 200, 300)])
    heavy, light = (codes.KMeansTokenizer(CodesSettings(codebook_size=4, prosody_weight=w)) for w in (4.0, 1.0))
    heavy.fit_frames(x)
    light.fit_frames(x)
    np.testing.assert_allclose(heavy.scale[acoustics.PROSODY], 4 * light.scale[acoustics.PROSODY], rtol=1e-6)
    np.testing.assert_array_equal(heavy.scale[:acoustics.CEPSTRA], light.scale[:acoustics.CEPSTRA])


def test_fit_of_silence_and_of_too_little():
    silent = codes.KMeansTokenizer(CodesSettings(codebook_size=1))
    silent.fit([np.zeros(16_000, np.float32)])
    assert (silent.encode([voice(1)])[0] == 0).all()
    with pytest.raises(UserError, match=r"codes\.codebook_size"):
        codes.KMeansTokenizer(SMALL).fit([voice(0.1)])


def test_damaged_and_missing_tokenizers_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        codes.KMeansTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        codes.KMeansTokenizer.load(tmp_path)


def test_make_encodes_every_utterance_and_keeps_it(tmp_path, monkeypatch):
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path)
    made = codes.make(settings, corpus)
    assert set(made.codes) == set(made.features) == {u.id for c in corpus.conversations for u in c.utterances}
    assert all(c.shape == (25,) and c.dtype == np.int64 for c in made.codes.values())
    assert made.facts["tokenizer"] == "kmeans" and made.facts["utterances"] == 10
    assert made.facts["hours"] == pytest.approx(10 / 3600) and len(made.facts["weights_sha256"]) == 64
    json.dumps(made.facts)
    waveform = speech.read(tmp_path / "c3.wav", 1, 2)
    np.testing.assert_array_equal(made.features["c3u1"], acoustics.pooled(waveform))
    monkeypatch.setattr(codes, "_encoded", lambda *_: pytest.fail("encoded again"))
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


def test_killed_encoding_goes_on_with_its_tokenizer(tmp_path, monkeypatch):
    corpus, settings = small_corpus(tmp_path), settings_at(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(codes, "pooled", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            codes.make(settings, corpus)
    monkeypatch.setattr(codes.KMeansTokenizer, "fit", lambda *_: pytest.fail("fitted again"))
    assert len(codes.make(settings, corpus).codes) == 10


def test_unknown_tokenizer_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="kmeans"):
        codes.make(settings_at(tmp_path, **{"codes.tokenizer": "hubert"}), small_corpus(tmp_path))


def test_unheard_audio_is_named(tmp_path):
    corpus = small_corpus(tmp_path)
    (tmp_path / "c3.wav").unlink()
    with pytest.raises(UserError, match=r"c3\.wav"):
        codes.make(settings_at(tmp_path), corpus)
