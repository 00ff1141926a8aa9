"""Utterances are found where they were said, whatever the length of the recording and the blocks it comes in."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from conftest import import_silero
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dpmkit import audio
from dpmkit.corpora import espeak, texts
from dpmkit.settings import SegmentsSettings, UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:silero_vad", "ignore:.*torch.jit")
silero = import_silero()
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "emodb" / "wav"
VOICES = ("f1", "m1", "m3", "f4", "Annie", "Lee", "m7", "f2", "john", "steph")
PLAIN = SegmentsSettings(pad=0.0)


def spoken(waveforms, seed=0, pauses=(0.7, 2.0)):
    """The waveforms one after the other with known pauses between, and the (start, end) of each in seconds."""
    rng, pieces, spans, at = np.random.default_rng(seed), [], [], 0
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
        text = f"{texts.TEXTS[i]}, {texts.TEXTS[i + 30]}"
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


def test_synthetic_speech_is_found_within_an_eighth_of_a_second(synthetic):
    path, _, spans = synthetic
    found = audio.find_speech(path, PLAIN)
    assert list(found) == ["start", "end", "speech"] and set(map(str, found.dtypes)) == {"float64"}
    assert np.abs(errors(found, spans)).max() < 0.125
    assert found["speech"].between(0.5, 1).all()


@pytest.mark.parametrize("noise", [0.001, 0.01])  # 30 and 10 dB or so below the speech
def test_noise_neither_hides_speech_nor_adds_any(tmp_path, synthetic, noise):
    _, waveform, spans = synthetic
    path = tmp_path / "noisy.wav"
    audio.write(path, waveform + noise * np.random.default_rng(1).normal(size=len(waveform)))
    found = audio.find_speech(path, PLAIN)
    assert np.abs(errors(found, spans)).max() < 0.25
    assert found.eval("end - start").sum() == pytest.approx(np.diff(spans).sum(), rel=0.08)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"REAL DATA ABSENT: EmoDB is not at {REAL}")
def test_emodb_speech_between_known_silences_is_found(tmp_path):
    waveform, spans = spoken([trimmed(audio.read(p), -30) for p in sorted(REAL.glob("*.wav"))[::11]])
    path = tmp_path / "emodb.wav"
    audio.write(path, waveform)
    found = audio.find_speech(path, PLAIN)
    heard = [found[(found["end"] > start) & (found["start"] < end)] for start, end in spans]
    off = np.array([[h["start"].min(), h["end"].max()] for h in heard]) - spans
    assert len(found) == sum(len(h) for h in heard) <= 1.05 * len(spans)  # none where nothing is said
    assert ((np.abs(off) < 0.15).mean(axis=0) > 0.95).all()


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_without_speech_the_table_is_empty_but_for_its_columns(tmp_path, noise):
    path = tmp_path / "nothing.wav"
    audio.write(path, noise * np.random.default_rng(0).normal(size=10 * audio.RATE))
    found = audio.find_speech(path, SegmentsSettings())
    assert found.empty and list(found) == ["start", "end", "speech"] and set(map(str, found.dtypes)) == {"float64"}


def test_the_result_does_not_depend_on_the_block(tmp_path, synthetic):
    path = tmp_path / "begin.wav"
    audio.write(path, synthetic[1][:15 * audio.RATE])
    found = audio.find_speech(path, SegmentsSettings())
    assert len(found) > 2
    for chunks in (1, 13, 100_000):
        assert audio.find_speech(path, SegmentsSettings(), chunks).equals(found)


def test_a_rate_and_a_format_of_its_own_change_little(tmp_path, synthetic):
    path = tmp_path / "said.mp3"
    soundfile.write(path, np.stack([audio.resample(synthetic[1], audio.RATE, 44_100)] * 2, axis=1), 44_100)
    assert np.abs(errors(audio.find_speech(path, PLAIN), synthetic[2])).max() < 0.25


def test_long_utterances_are_cut_into_pieces_that_join(synthetic):
    whole, pieces = (audio.find_speech(synthetic[0], SegmentsSettings(max_speech=m)) for m in (20.0, 1.0))
    lengths = pieces.eval("end - start")
    assert lengths.max() <= 1 + 1e-9 and len(pieces) > 2 * len(whole)
    joins = pieces["start"].to_numpy()[1:] == pieces["end"].to_numpy()[:-1]
    starts = np.flatnonzero(np.r_[True, ~joins])
    assert pieces["start"].to_numpy()[starts].tolist() == whole["start"].tolist()
    assert pieces["end"].to_numpy()[np.r_[starts[1:] - 1, -1]].tolist() == whole["end"].tolist()


# From here on the network is one that takes loudness for the probability of speech: what it says is known.


class Loudness:
    def reset_states(self):
        self.heard = 0

    def __call__(self, chunk, rate):
        assert len(chunk) == audio.CHUNK and rate == audio.RATE
        assert torch.is_inference_mode_enabled()  # else the state of the real one keeps a graph of all it heard
        self.heard += 1
        return chunk.max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loudness")


def found(folder, probabilities, settings, tail=0, chunks=512):
    """What is found where the chunks, and `tail` samples after them, are of these probabilities."""
    path = folder / "loudness.wav"
    waveform = np.repeat(np.asarray(probabilities, np.float32), audio.CHUNK)
    audio.write(path, np.concatenate([waveform, np.full(tail, 0.9, np.float32)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "_silero", lambda: (Loudness(), silero.get_speech_timestamps_from_probs))
        return audio.find_speech(path, settings, chunks)


def rows(table):
    return table[["start", "end"]].round(9).to_numpy().tolist()


def test_padding_is_kept_and_a_short_pause_is_shared(folder):
    # Chunks of 32 ms: speech in 10 to 19, 25 to 34 and 60 to 69 of 80.
    p = np.zeros(80)
    p[10:20] = p[25:35] = p[60:70] = 0.8
    wanted = SegmentsSettings(min_silence=0.1, pad=0.1)
    assert rows(found(folder, p, wanted)) == [[0.22, 0.72], [0.72, 1.22], [1.82, 2.34]]
    assert rows(found(folder, p, SegmentsSettings(min_silence=0.1, pad=0.0))) == \
        [[0.32, 0.64], [0.8, 1.12], [1.92, 2.24]]
    assert found(folder, p, wanted)["speech"][0] == pytest.approx(10 * 0.8 / 17, abs=1e-3)  # chunks 6 to 22


def test_hysteresis_bridges_a_dip_and_short_speech_is_none(folder):
    p = np.zeros(80)
    p[5:15], p[15:35], p[35:40] = 0.6, 0.4, 0.6  # 0.4 lies between 0.35 and 0.5
    p[60:65] = 0.9  # 160 ms
    assert rows(found(folder, p, PLAIN)) == [[0.16, 1.28]]
    assert rows(found(folder, np.where(p == 0.4, 0.3, p), SegmentsSettings(pad=0.0, min_speech=0.15))) == \
        [[0.16, 0.48], [1.12, 1.28], [1.92, 2.08]]


def test_a_long_utterance_is_cut_at_its_most_silent_place(folder):
    p = np.full(100, 0.9)  # 3.2 s
    p[10], p[40], p[55] = 0.5, 0.6, 0.7  # 10 lies in the first half of the first piece: no cut there
    assert rows(found(folder, p, SegmentsSettings(pad=0.0, max_speech=2.0))) == [[0.0, 1.296], [1.296, 3.2]]


def test_the_end_of_the_file_ends_an_utterance(folder):
    # 40 chunks and 7 samples; the table counts whole milliseconds, and none beyond the end.
    assert rows(found(folder, np.full(40, 0.9), SegmentsSettings(), tail=7)) == [[0.0, 1.28]]
    assert rows(found(folder, np.full(40, 0.9), SegmentsSettings(), tail=24)) == [[0.0, 1.281]]


likelihoods = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.4, 0.6, 0.8, 1.0]), st.integers(1, 40)),
                       min_size=1, max_size=25).map(lambda runs: [p for p, n in runs for _ in range(n)])


@examples(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=likelihoods, tail=st.integers(0, 511), chunks=st.integers(1, 300),
       threshold=st.sampled_from([0.2, 0.5, 0.7]), least=st.integers(1, 500), silence=st.integers(0, 600),
       pad=st.integers(0, 400), most=st.integers(100, 5000))
@example(p=[1.0] * 200, tail=0, chunks=3, threshold=0.5, least=50, silence=0, pad=0, most=100)
def test_rows_keep_what_they_promise(folder, p, tail, chunks, threshold, least, silence, pad, most):
    least = min(least, most // 2)
    settings = SegmentsSettings(threshold, least / 1000, silence / 1000, most / 1000, pad / 1000)
    table = found(folder, p, settings, tail, chunks)
    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    seconds = (len(p) * audio.CHUNK + tail) / audio.RATE
    assert (start >= 0).all() and (end <= seconds).all() and (start < end).all()
    assert (start[1:] >= end[:-1]).all()
    assert (end - start).max(initial=0) <= most / 1000 + 1e-9
    assert (end - start).min(initial=9.0) > (least - audio.STEP - 1) / 1000  # nor is a short rest cut off
    assert table["speech"].between(0, 1).all()
    whole = found(folder, p, SegmentsSettings(threshold, least / 1000, silence / 1000, 1e4, pad / 1000), tail)
    assert (end - start).sum() == pytest.approx((whole["end"] - whole["start"]).sum())  # a cut takes nothing away
    theirs = silero.get_speech_timestamps_from_probs(
        [*p, *[0.9] * (tail > 0)], threshold=threshold, min_speech_duration_ms=least, speech_pad_ms=pad,
        min_silence_duration_ms=silence, audio_length_samples=round(seconds * audio.RATE))
    theirs = np.array([[t["start"], t["end"]] for t in theirs]).reshape(-1, 2) / audio.RATE
    assert np.abs(whole[["start", "end"]].to_numpy() - theirs).max(initial=0) < 1e-3


def test_memory_does_not_grow_with_the_recording(folder, monkeypatch):
    blocks, process, peaks = audio.blocks, psutil.Process(), []

    def watched(*arguments):
        for block in blocks(*arguments):
            peaks[-1] = max(peaks[-1], process.memory_info().rss / 2**20)
            yield block

    monkeypatch.setattr(audio, "blocks", watched)
    monkeypatch.setattr(audio, "_silero", lambda: (Loudness(), silero.get_speech_timestamps_from_probs))
    for minutes in (1, 1, 20):  # the first one warms up
        path = folder / f"{minutes}.wav"
        soundfile.write(path, np.tile(np.repeat(np.float32([0.0, 0.9]), 16_000), 30 * minutes), audio.RATE)
        peaks.append(0.0)
        assert len(audio.find_speech(path, PLAIN)) == 30 * minutes
    assert peaks[2] - peaks[1] < 10  # MiB; held whole, the 19 minutes that it is longer are 70


def test_threads_are_as_before_also_where_the_recording_cannot_be_heard(tmp_path, synthetic, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("silero_vad")]:
        monkeypatch.delitem(sys.modules, name)  # the library sets one thread as it is imported
    audio._silero.cache_clear()
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
    audio._silero.cache_clear()
    with pytest.raises(UserError, match=r'silero-vad.*pip install -e "\.\[vad\]"'):
        audio.find_speech(synthetic[0], PLAIN)


def test_settings_that_leave_no_place_to_cut_are_refused(synthetic):
    with pytest.raises(UserError, match=r"segments\.max_speech is 0\.4 s.*twice segments\.min_speech \(0\.25 s\)"):
        audio.find_speech(synthetic[0], SegmentsSettings(max_speech=0.4))
