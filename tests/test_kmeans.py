"""The k-means tokenizer of acoustic frames: what a frame holds, plain and supervised codebooks, fitted and kept."""

import numpy as np
import pytest

from dpmkit import audio
from dpmkit.settings import Settings, UserError
from dpmkit.tokenizers import acoustics
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
