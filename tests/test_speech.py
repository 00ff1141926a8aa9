"""Waveforms come out as they were recorded, or the file is named with what is wrong with it."""

import errno
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpmkit import audio
from dpmkit.settings import UserError


def tone(rate, seconds=1.0, hertz=440.0, peak=0.4):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def loudest_hertz(waveform, rate=audio.RATE):
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))).argmax() * rate / len(waveform)


@pytest.fixture
def wav(tmp_path):
    """One second of a tone, 16-bit, at the kit's rate."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(audio.RATE), audio.RATE)
    return path


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_and_width_keeps_the_tone(tmp_path, rate, subtype, channels):
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone(rate)] * channels, axis=1), rate, subtype=subtype)
    heard = audio.read(path)
    assert heard.dtype == np.float32 and heard.shape == (audio.RATE,)
    assert loudest_hertz(heard) == pytest.approx(440)
    middle = heard[2000:-2000]
    assert np.abs(middle - tone(audio.RATE)[2000:-2000]).max() < (0.02 if subtype == "PCM_U8" else 0.002)
    assert audio.seconds(path) == 1.0 and audio.fault(path) is None


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_formats_keep_the_tone(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(44_100, 2.0), 44_100)
    heard = audio.read(path)
    assert len(heard) == 2 * audio.RATE and loudest_hertz(heard) == pytest.approx(440)
    assert audio.fault(path) is None


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(16_000), 0.5 * tone(16_000)], axis=1), 16_000)
    np.testing.assert_allclose(audio.read(path), 0.75 * tone(16_000), atol=1e-4)


VOICE, OTHER = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 8_000))
CHANNELS = {  # the channels of a file, and the one that is heard (None: their mean)
    "inverted": ((VOICE, -VOICE), 0), "inverted and softer": ((-0.8 * VOICE, VOICE), 1),
    "inverted beside a constant": ((VOICE + 0.2, 0.2 - VOICE), 0),
    "inverted, and noise of its own": ((VOICE, 0.1 * OTHER - VOICE), 1),
    "one empty": ((0 * VOICE, VOICE), None), "silence": ((0 * VOICE, 0 * VOICE), None),
    "a microphone each": ((VOICE, OTHER), None), "alike": ((VOICE, VOICE), None),
    "one of four": ((VOICE, 0 * VOICE, 0 * VOICE, 0 * VOICE), None),
    "inverted and half as loud": ((VOICE, -0.5 * VOICE), None)}  # a voice is left


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("name", CHANNELS)
def test_an_inverted_channel_is_not_mixed_to_silence(tmp_path, name, suffix, monkeypatch):
    channels, chosen = CHANNELS[name]
    path = tmp_path / f"stereo.{suffix}"
    soundfile.write(path, np.stack(channels, axis=1), 16_000)
    monkeypatch.setattr(audio, "BLOCK", 3_000)  # it is the file's, not a block's
    expected = np.mean(channels, axis=0) if chosen is None else channels[chosen]
    np.testing.assert_allclose(audio.read(path), expected, atol=1e-4)
    np.testing.assert_allclose(audio.read(path, 0.4), expected[6_400:], atol=1e-4)
    assert audio.inverted(path) == (chosen is not None)


def test_what_the_new_rate_cannot_hold_is_removed():
    assert np.abs(audio.resample(tone(48_000, hertz=10_000), 48_000)[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_101])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_part_is_the_slice_of_the_whole(tmp_path, suffix, rate):
    if suffix in ("ogg", "mp3") and rate == 44_101:
        rate = 44_100  # mp3 knows no other rates
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, rate * 3), rate)
    whole = audio.read(path)
    for start, end in [(0.0, 0.5), (0.31, 0.9), (1.0, None), (1.2345, 1.2347), (2.5, 3.0), (0.00001, 2.9)]:
        part = audio.read(path, start, end)
        stop = None if end is None else round(end * audio.RATE)
        np.testing.assert_array_equal(part, whole[round(start * audio.RATE):stop])


def test_only_the_part_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "minute.wav"
    soundfile.write(path, tone(22_050, 60.0), 22_050)
    decoded = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read",
                        lambda file, frames=-1, **kw: decoded.append(frames) or read(file, frames, **kw))
    audio.read(path, 30.0, 31.0)
    assert sum(decoded) < 1.2 * 22_050
    decoded.clear()
    assert len(list(audio.cuts(path, [(58.0, 59.0), (58.5, None)]))) == 2
    assert sum(decoded) < 2.2 * 22_050


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_what_comes_before_a_part_is_skipped_a_block_at_a_time(tmp_path, suffix, monkeypatch):
    path = noise(tmp_path, suffix, 22_050)
    whole = audio.read(path)
    monkeypatch.setattr(audio, "BLOCK", 1000)
    np.testing.assert_array_equal(audio.read(path, 1.5, 1.6), whole[24_000:25_600])


RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # those of mp3


def noise(folder, suffix, rate, seconds=2.37):
    """Stereo noise, as loud as can be: a frame that slips anywhere changes every sample after it."""
    path = folder / f"noise-{rate}-{seconds}.{suffix}"
    if path.exists():
        return path
    waveforms = np.random.default_rng(rate).uniform(-1, 1, (round(seconds * rate), 2))
    if suffix != "m4a":
        soundfile.write(path, waveforms, rate)
        return path
    av = pytest.importorskip("av", reason="PYAV ABSENT: pip install -e '.[meld]'")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(waveforms.T.astype(np.float32, order="C"), "fltp", "stereo")
        frame.sample_rate = rate
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("noise")


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(suffix=st.sampled_from(["wav", "flac", "ogg", "mp3", "m4a"]), rate=st.sampled_from(RATES),
       samples=st.integers(50, 50_000), begin=st.sampled_from([0, 1, 777, 16_000, 37_900]))
def test_blocks_joined_are_the_whole(folder, suffix, rate, samples, begin):
    path = noise(folder, suffix, rate)
    blocks = list(audio.blocks(path, samples, begin))
    np.testing.assert_array_equal(np.concatenate(blocks), audio.read(path)[begin:])
    assert {len(b) for b in blocks[:-1]} <= {samples} and 0 < len(blocks[-1]) <= samples


moment = st.integers(0, 2369).map(lambda milliseconds: milliseconds / 1000)
parts = st.lists(st.tuples(moment, st.one_of(st.none(), moment)).filter(lambda p: p[1] is None or p[0] < p[1]),
                 max_size=6).map(lambda found: sorted(found, key=lambda p: p[0]))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(suffix=st.sampled_from(["wav", "flac", "ogg", "mp3", "m4a"]), rate=st.sampled_from(RATES), times=parts,
       samples=st.integers(1000, 50_000))
def test_cuts_are_parts_that_are_read(folder, suffix, rate, times, samples):
    path, blocks = noise(folder, suffix, rate), audio.blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "blocks", lambda path, begin: blocks(path, samples, begin))
        heard = list(audio.cuts(path, times))
    assert len(heard) == len(times)
    for waveform, (start, end) in zip(heard, times, strict=True):
        np.testing.assert_array_equal(waveform, audio.read(path, start, end))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_recording_is_decoded_once(tmp_path, suffix, monkeypatch):
    path, decoded, read = noise(tmp_path, suffix, 22_050, 60.0), [], soundfile.SoundFile.read
    assert not audio.inverted(path)  # once more for that, and once for all
    monkeypatch.setattr(soundfile.SoundFile, "read",
                        lambda file, frames=-1, **kw: decoded.append(frames) or read(file, frames, **kw))
    seek = soundfile.SoundFile.seek
    monkeypatch.setattr(soundfile.SoundFile, "seek", lambda file, frames, whence=soundfile.SEEK_SET: seek(
        file, frames, whence) if (frames, whence) == (0, soundfile.SEEK_CUR) else pytest.fail("it seeks"))
    assert len(list(audio.blocks(path))) > 3 and sum(decoded) == 60 * 22_050
    decoded.clear()
    assert len(list(audio.cuts(path, [(second / 2, second / 2 + 3) for second in range(110)]))) == 110
    assert sum(decoded) <= 60 * 22_050


@pytest.mark.parametrize("hear", [
    lambda path, seconds: sum(len(b) for b in audio.blocks(path)),
    lambda path, seconds: sum(len(w) for w in audio.cuts(path, [(s, s + 3.5) for s in range(0, seconds - 3, 3)])),
    lambda path, seconds: sum(len(w) for w in audio.cuts(path, [(0, 3), (seconds - 3, None)])),
], ids=["blocks", "cuts", "cuts far apart"])
def test_memory_does_not_grow_with_the_recording(tmp_path, hear):
    peaks = {}
    for seconds in (60, 1200):
        path = tmp_path / f"{seconds}.flac"
        soundfile.write(path, np.tile(tone(8_000), seconds), 8_000)
        hear(path, seconds)  # the filter is made once
        tracemalloc.start()
        assert hear(path, seconds) >= 6 * audio.RATE
        peaks[seconds] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[1200] < 1.02 * peaks[60] < 20e6  # held whole, 20 minutes are 77 MB


def test_parts_out_of_order_or_outside_are_refused_before_anything_is_heard(wav):
    with pytest.raises(ValueError, match="ordered"):
        next(audio.cuts(wav, [(0.5, 0.6), (0.1, 0.2)]))
    with pytest.raises(UserError, match=r"tone\.wav.*mend the times"):
        next(audio.cuts(wav, [(0.1, 0.2), (0.5, 1.5)]))
    assert list(audio.cuts(wav, [])) == []


def test_a_recording_that_is_cut_off_is_heard_up_to_there(tmp_path):
    path = noise(tmp_path, "flac", 16_000, 20.0)
    whole = audio.read(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    heard = []
    with pytest.raises(UserError, match="fetch the file again"):
        heard.extend(audio.blocks(path, 1000))
    heard = np.concatenate(heard)
    assert 5 < len(heard) / audio.RATE < 10.5
    np.testing.assert_array_equal(heard, whole[:len(heard)])


@pytest.mark.parametrize("samples", [1, 160])
def test_very_short_and_silent_files_are_heard(tmp_path, samples):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(samples), audio.RATE)
    assert audio.fault(path) is None
    assert audio.read(path).shape == (samples,) and not audio.read(path).any()


def test_half_an_hour_is_heard(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(tone(8_000), 1800), 8_000)
    assert audio.seconds(path) == 1800.0 and audio.fault(path) is None
    assert len(audio.read(path, rate=8_000)) == 1800 * 8_000
    assert loudest_hertz(audio.read(path, 1700, 1701)) == pytest.approx(440)


def test_loud_float_files_are_clipped(tmp_path):
    path = tmp_path / "loud.wav"
    soundfile.write(path, tone(16_000, peak=1.5), 16_000, subtype="FLOAT")
    assert np.abs(audio.read(path)).max() == 1.0


def _non_finite(value):
    def spoil(path):
        waveform = tone(16_000)
        waveform[5000] = value
        soundfile.write(path, waveform, 16_000, subtype="FLOAT")
    return spoil


def _head(count):
    def spoil(path):
        soundfile.write(path, tone(16_000), 16_000)
        path.write_bytes(path.read_bytes()[:count])
    return spoil


FAULTS = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "zero bytes": (lambda path: path.touch(), "is empty (0 bytes)"),
    "text": (lambda path: path.write_text("no audio here\n" * 9), "is not audio"),
    "truncated header": (_head(20), "is not audio"),
    "header alone": (_head(44), "holds no samples"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), 16_000), "holds no samples"),
    "truncated data": (_head(5_000), "is cut off (4956 of 32000 bytes of sound)"),
    "nan": (_non_finite(np.nan), "not finite"),
    "infinity": (_non_finite(-np.inf), "not finite"),
    "integers in a float file": (lambda path: soundfile.write(path, tone(16_000, peak=9e3), 16_000, "FLOAT"),
                                 "where full scale is 1"),
    "impossible rate": (lambda path: soundfile.write(path, np.zeros(9), 3), "claims 3 samples a second"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_heard_is_named_with_why(tmp_path, name):
    path = tmp_path / "bad.wav"
    spoil, reason = FAULTS[name]
    spoil(path)
    assert reason in audio.fault(path)
    with pytest.raises(UserError) as error:
        audio.read(path)
    message = str(error.value)
    assert str(path) in message and reason in message and "fetch the file again" in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_half_of_a_compressed_file_is_a_fault(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 44_100 * 4), 44_100)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    assert audio.fault(path)
    with pytest.raises(UserError, match=r"half\."):
        audio.read(path)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.5, 12.3])
def test_an_mp3_without_a_head_is_heard_whole(tmp_path, mode, rate, seconds):
    """As dictaphones and recorders of streams leave them: libsndfile only estimates how long they are."""
    path, loud = tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))
    loud[:len(loud) // 2] = 0  # a frame of silence is short, which spoils an estimate from the first ones
    soundfile.write(path, loud, rate, format="MP3", bitrate_mode=mode)
    whole, data = audio.read(path, rate=rate), path.read_bytes()
    for cover in (b"", b"ID3\3\0\0" + bytes([0, 0, 78, 16]) + bytes(10_000)):
        path.write_bytes(cover + re.sub(b"Xing|Info", bytes(4), data, count=1))
        assert audio.fault(path) is None
        # The head also says what padding to leave out: about two blocks of 1,152 samples.
        heard = audio.read(path, rate=rate)
        late = len(heard) - len(whole)
        assert 0 <= late < 4 * 1152
        spectrum = np.fft.rfft(heard, 2 * len(heard)) * np.fft.rfft(whole, 2 * len(heard)).conj()
        shift = int(np.fft.irfft(spectrum).argmax())  # where it fits best
        part = heard[shift:shift + len(whole)]
        assert 0 <= shift <= late and np.corrcoef(part, whole[:len(part)])[0, 1] > 0.98


def test_a_wav_from_a_pipe_is_whole(wav):
    data = wav.read_bytes()
    at = data.index(b"data") + 4
    wav.write_bytes(data[:at] + struct.pack("<I", 0xFFFFFFFF) + data[at + 4:])  # as ffmpeg to a pipe
    assert audio.fault(wav) is None and len(audio.read(wav)) == audio.RATE


@pytest.mark.parametrize(("start", "end"), [(-0.1, None), (1.0, None), (0.5, 0.5), (0.6, 0.5), (0.0, 1.1),
                                            (float("nan"), None), (0.5, 0.50001)])
def test_a_part_outside_the_file_is_refused(wav, start, end):
    with pytest.raises(UserError, match=r"tone\.wav.*mend the times"):
        audio.read(wav, start, end)


def test_an_end_rounded_up_by_the_annotation_is_forgiven(wav):
    assert len(audio.read(wav, 0.5, 1.0005)) == audio.RATE // 2


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_what_is_written_is_read(tmp_path, suffix):
    path = tmp_path / "deep" / f"out.{suffix}"
    waveform = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    audio.write(path, waveform)
    assert soundfile.info(path).subtype == "PCM_16" and soundfile.info(path).samplerate == audio.RATE
    assert np.abs(audio.read(path) - waveform).max() <= 1 / 32768
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    audio.write(path, 3 * waveform)
    assert np.abs(audio.read(path) - np.clip(3 * waveform, -1, 1)).max() <= 1 / 32768


def test_a_full_disk_leaves_the_old_file_and_nothing_else(wav, monkeypatch):
    before = wav.read_bytes()

    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for path in (wav, wav.with_name("new.wav")):
        with pytest.raises(UserError, match=rf"{path.name}: No space left"):
            audio.write(path, tone(16_000))
    assert [p.name for p in wav.parent.iterdir()] == [wav.name] and wav.read_bytes() == before


@pytest.mark.parametrize("waveform", [np.zeros((2, 5)), np.zeros(0), np.array([0.0, np.nan])])
def test_no_waveform_is_not_written(tmp_path, waveform):
    with pytest.raises(ValueError, match="waveform"):
        audio.write(tmp_path / "out.wav", waveform)
    assert not list(tmp_path.iterdir())


def test_what_the_file_system_refuses_is_a_reason(tmp_path):
    ring = tmp_path / "ring.wav"
    ring.symlink_to(ring)
    for path in (ring, tmp_path / ("x" * 300 + ".wav")):
        assert re.search("cannot be read|does not exist", audio.fault(path))
        with pytest.raises(UserError, match="cannot hear"):
            audio.read(path)
