"""Channels are mixed so that speech is left, rates so that nothing is heard that was not there."""

import warnings

import numpy as np
import pytest
import soundfile
from scipy import signal
from test_audio import OTHER, PCM, VOICE, noise, tone
from tree_meld import write_clip

from dpmkit import audio

CHANNELS = {  # the channels of a file, and the one that is read (None: their mean)
    "inverted": ((VOICE, -VOICE), 0), "inverted and softer": ((-0.8 * VOICE, VOICE), 1),
    "inverted beside a constant": ((VOICE + 0.2, 0.2 - VOICE), 0),
    "inverted, and noise of its own": ((VOICE, 0.1 * OTHER - VOICE), 1),
    "one empty": ((0 * VOICE, VOICE), None), "a constant": ((0 * VOICE + 0.3, 0 * VOICE - 0.3), None),
    "a microphone each": ((VOICE, OTHER), None), "alike": ((VOICE, VOICE), None),
    "one of four": ((VOICE, 0 * VOICE, 0 * VOICE, 0 * VOICE), None), "mono": ((VOICE,), None),
    "inverted and half as loud": ((VOICE, -0.5 * VOICE), None)}  # a voice is left


@pytest.mark.parametrize(("name", "suffix"), [
    (name, suffix) for name in CHANNELS for suffix in (".wav", ".flac", ".avi")
    if (name, suffix) != ("one of four", ".avi")])  # which is mixed to stereo
def test_an_inverted_channel_is_not_mixed_to_silence(tmp_path, name, suffix, monkeypatch):
    channels, chosen = CHANNELS[name]
    path = tmp_path / f"sound{suffix}"
    if suffix == ".avi":
        write_clip(path, np.stack(channels), layout="mono" if len(channels) == 1 else "stereo", **PCM)
    else:
        soundfile.write(path, np.stack(channels, axis=1), audio.RATE)
    monkeypatch.setattr(audio, "BLOCK", 3_000)  # it is the file's, not a block's
    expected = np.mean(channels, axis=0) if chosen is None else channels[chosen]
    with warnings.catch_warnings(record=True) as told:
        np.testing.assert_allclose(audio.read(path), expected, atol=1e-4)
    assert [str(w.message).partition(": ")[2] for w in told] == [
        "its channels cancel each other, as one is inverted: the loudest is heard alone"] * (chosen is not None)


def test_surround_is_mixed_so_that_speech_is_as_loud_as_in_stereo(tmp_path):
    parts = {"FL": 0.1, "FR": -0.2, "FC": 0.4, "LFE": 0.9, "BL": 0.3, "BR": 0.05}
    write_clip(tmp_path / "six.avi", np.array([[v] * 4096 for v in parts.values()]), layout="5.1", **PCM)
    expected = 0.5 * (0.1 - 0.2) + 0.5**0.5 * 0.4 + 0.5**1.5 * (0.3 + 0.05)  # the mean of BS.775's left and right
    assert audio.read(tmp_path / "six.avi") == pytest.approx(expected, abs=1e-4)


def test_channels_without_a_place_are_averaged(tmp_path):
    path = tmp_path / "six.mkv"  # which keeps no layout of PCM
    write_clip(path, np.arange(6)[:, None] * np.full((6, 4096), 0.1), layout="5.1", **PCM)
    assert audio.read(path) == pytest.approx(0.25, abs=1e-4)


def test_what_the_new_rate_cannot_hold_is_removed():
    assert np.abs(audio.resample(tone(48_000, hertz=10_000), 48_000)[1000:-1000]).max() < 1e-3


def test_the_filter_is_the_one_that_made_the_demo_corpus():
    whole, window = noise(2.0, 22_050), signal.firwin(2 * 16 * 441 + 1, 1 / 441, window=("kaiser", 7.0))
    np.testing.assert_array_equal(audio.resample(whole, 22_050), signal.resample_poly(
        whole.astype(np.float32), 320, 441, window=window.astype(np.float32)))


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
def test_blocks_of_a_file_are_what_one_long_read_gives(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, noise(2.37, 22_050), 22_050)
    with soundfile.SoundFile(path) as file:
        frames = file.read(file.frames, dtype="float32", always_2d=True)[:, 0]
    expected = np.clip(audio.resample(frames, 22_050), -1, 1)
    monkeypatch.setattr(audio, "BLOCK", 1000)
    np.testing.assert_array_equal(audio.read(path), expected)


