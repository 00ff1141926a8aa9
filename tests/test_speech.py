"""Speech is found where it was said: on synthetic and real voices, and by the rules of its settings."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import import_silero
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dpmkit import audio
from dpmkit.corpora import demo, espeak
from dpmkit.settings import SegmentsSettings, UserError

silero = import_silero()
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "emodb" / "wav"
VOICES = ("f1", "m1", "m3", "f4", "Annie", "Lee", "m7", "f2", "john", "steph")
PLAIN = SegmentsSettings(pad=0.0)
warned = pytest.mark.filterwarnings("ignore::DeprecationWarning:silero_vad", "ignore:.*torch.jit")


def spoken(waveforms, pauses=(0.7, 2.0)):
    """The waveforms one after the other with known pauses between, and the (start, end) of each in seconds."""
    rng, pieces, spans, at = np.random.default_rng(0), [], [], 0
    for waveform in waveforms:
        pause = round(rng.uniform(*pauses) * audio.RATE)
        pieces += [np.zeros(pause, np.float32), waveform]
        spans.append(((at + pause) / audio.RATE, (at + pause + len(waveform)) / audio.RATE))
        at += pause + len(waveform)
    return np.concatenate([*pieces, np.zeros(audio.RATE, np.float32)]), np.array(spans)


def trimmed(waveform, decibels):
    """Without the ends that stay so far below the loudest 10 ms."""
    power = np.convolve(waveform.astype(float) ** 2, np.ones(160) / 160, "same")
    loud = np.flatnonzero(power > power.max() * 10 ** (decibels / 10))
    return waveform[loud[0]:loud[-1] + 1]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """12 utterances of ten voices: (path, waveform, spans)."""
    said = []
    for i in range(12):
        text = f"{demo.TEXTS[i]}, {demo.TEXTS[i + 30]}"
        waveform, rate = espeak.speak(text, f"en-us+{VOICES[i % 10]}", pitch=50, pitch_range=50, rate=170)
        said.append(trimmed(audio.resample(waveform, rate), -35))
    waveform, spans = spoken(said)
    path = tmp_path_factory.mktemp("synthetic") / "said.wav"
    audio.write(path, waveform)
    return path, waveform, spans


def errors(found, spans):
    """How far start and end of what was found are off, (utterances, 2); every utterance is found as one."""
    assert len(found) == len(spans)
    return found[["start", "end"]].to_numpy() - spans


@warned
@pytest.mark.parametrize(("level", "most"), [(0.0, 0.125), (0.001, 0.25), (0.01, 0.25)])
def test_synthetic_speech_is_found_whatever_the_noise(tmp_path, synthetic, level, most):
    _, waveform, spans = synthetic
    path = tmp_path / "noisy.wav"
    audio.write(path, waveform + level * np.random.default_rng(1).normal(size=len(waveform)))
    found = audio.find_speech(path, PLAIN)
    assert list(found) == ["start", "end"] and set(map(str, found.dtypes)) == {"float64"}
    assert np.abs(errors(found, spans)).max() < most


@warned
@pytest.mark.skipif(not REAL.is_dir(), reason=f"REAL DATA ABSENT: EmoDB is not at {REAL}")
def test_emodb_speech_between_known_silences_is_found(tmp_path):
    waveform, spans = spoken([trimmed(audio.read(p), -30) for p in sorted(REAL.glob("*.wav"))[::11]])
    path = tmp_path / "emodb.wav"
    audio.write(path, waveform)
    found = audio.find_speech(path, PLAIN)
    parts = [found[(found["end"] > start) & (found["start"] < end)] for start, end in spans]
    off = np.array([[p["start"].min(), p["end"].max()] for p in parts]) - spans
    assert len(found) == sum(len(p) for p in parts) <= 1.05 * len(spans)  # none where nothing is said
    assert ((np.abs(off) < 0.15).mean(axis=0) > 0.95).all()


@warned
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_without_speech_the_table_is_empty_but_for_its_columns(tmp_path, level):
    path = tmp_path / "nothing.wav"
    audio.write(path, level * np.random.default_rng(0).normal(size=10 * audio.RATE))
    found = audio.find_speech(path, SegmentsSettings())
    assert found.empty and list(found) == ["start", "end"] and set(map(str, found.dtypes)) == {"float64"}


# From here on the network is one that takes loudness for the probability of speech: what it says is known.


class Loudness:
    def reset_states(self):
        pass

    def __call__(self, chunk, rate):
        assert not torch.is_grad_enabled()  # else the state of the real one keeps a graph of all it heard
        return chunk.max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loudness")


def found(folder, probabilities, settings, tail=0):
    """What is found where chunks of 32 ms, and `tail` samples after them, are of these probabilities."""
    path = folder / "loudness.wav"
    waveform = np.repeat(np.asarray(probabilities, np.float32), 512)
    audio.write(path, np.concatenate([waveform, np.full(tail, 0.9, np.float32)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silero, "load_silero_vad", Loudness)
        return audio.find_speech(path, settings).round(9).to_numpy().tolist()


def test_padding_is_kept_and_a_short_pause_is_shared(folder):
    p = np.zeros(80)
    p[10:20] = p[25:35] = p[60:70] = 0.8
    assert found(folder, p, SegmentsSettings(min_silence=0.1, pad=0.1)) == \
        [[0.22, 0.72], [0.72, 1.22], [1.82, 2.34]]
    assert found(folder, p, SegmentsSettings(min_silence=0.1, pad=0.0)) == \
        [[0.32, 0.64], [0.8, 1.12], [1.92, 2.24]]


def test_hysteresis_bridges_a_dip_and_short_speech_is_none(folder):
    p = np.zeros(80)
    p[5:15], p[15:35], p[35:40] = 0.6, 0.4, 0.6  # 0.4 lies between 0.35 and 0.5
    p[60:65] = 0.9  # 160 ms
    assert found(folder, p, PLAIN) == [[0.16, 1.28]]
    assert found(folder, np.where(p == 0.4, 0.3, p), SegmentsSettings(pad=0.0, min_speech=0.15)) == \
        [[0.16, 0.48], [1.12, 1.28], [1.92, 2.08]]


def test_a_long_utterance_is_cut_at_its_longest_pause(folder):
    p = np.full(100, 0.9)  # 3.2 s
    p[10:14], p[40:45], p[70] = 0.1, 0.1, 0.1
    assert found(folder, p, SegmentsSettings(pad=0.0, max_speech=2.0)) == [[0.0, 1.28], [1.44, 3.2]]


def test_the_end_of_the_file_ends_an_utterance(folder):
    # 40 chunks and 7 samples; the table counts whole milliseconds, and none beyond the end.
    assert found(folder, np.full(40, 0.9), SegmentsSettings(), tail=7) == [[0.0, 1.28]]
    assert found(folder, np.full(40, 0.9), SegmentsSettings(), tail=24) == [[0.0, 1.281]]


likelihoods = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.4, 0.6, 0.8, 1.0]), st.integers(1, 40)),
                       min_size=1, max_size=25).map(lambda runs: [p for p, n in runs for _ in range(n)])


@examples(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=likelihoods, tail=st.integers(0, 511), threshold=st.sampled_from([0.2, 0.5, 0.7]),
       least=st.integers(1, 500), silence=st.integers(0, 600), pad=st.integers(0, 400), more=st.integers(101, 5000))
def test_rows_keep_what_they_promise(folder, p, tail, threshold, least, silence, pad, more):
    most = max(2 * least, 2 * pad + more) / 1000
    settings = SegmentsSettings(threshold=threshold, min_speech=least / 1000, min_silence=silence / 1000,
                                max_speech=most, pad=pad / 1000)
    start, end = np.array(found(folder, p, settings, tail)).reshape(-1, 2).T
    assert (start >= 0).all() and (end <= (len(p) * 512 + tail) / audio.RATE).all() and (start < end).all()
    assert (start[1:] >= end[:-1]).all() and (end - start).max(initial=0) <= most + 1e-9


@warned
def test_threads_are_as_before_also_where_the_recording_cannot_be_read(tmp_path, synthetic, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("silero_vad")]:
        monkeypatch.delitem(sys.modules, name)  # the library sets one thread as it is imported
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        audio.find_speech(synthetic[0], PLAIN)
        assert torch.get_num_threads() == 2
        with pytest.raises(UserError, match="absent"):
            audio.find_speech(tmp_path / "absent.wav", PLAIN)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_the_library_the_cure_is_named(synthetic, monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UserError, match=r'silero-vad.*pip install -e "\.\[vad\]"'):
        audio.find_speech(synthetic[0], PLAIN)


@warned
def test_speech_of_many_blocks_is_that_of_one(folder, synthetic, monkeypatch):
    whole, p = audio.find_speech(synthetic[0], PLAIN), np.random.default_rng(0).random(400)
    known = found(folder, p, SegmentsSettings(), tail=7)
    audio._KEPT.clear()
    monkeypatch.setattr(audio, "BLOCK", 999)  # no multiple of what the network hears at a time
    pd.testing.assert_frame_equal(audio.find_speech(synthetic[0], PLAIN), whole)
    assert found(folder, p, SegmentsSettings(), tail=7) == known != []


@pytest.mark.parametrize("given", [{"max_speech": 0.4}, {"max_speech": 2.0, "pad": 1.0}])
def test_settings_that_leave_no_place_to_cut_are_refused(given):
    with pytest.raises(UserError, match=r"max_speech must be .* segments\.min_speech .*segments\.pad"):
        SegmentsSettings(**given)
