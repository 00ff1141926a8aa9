"""Waveforms come out as they were recorded, speech where it was said, or the file is named with what is wrong."""

import re
import struct
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import import_silero
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import signal
from tree_meld import write_clip

from dpmkit import audio
from dpmkit.corpora import demo, espeak
from dpmkit.settings import SegmentsSettings, UserError

silero = import_silero()
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "emodb" / "wav"


def tone(rate=audio.RATE, seconds=1.0, hertz=440.0, peak=0.4):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def noise(seconds, rate=audio.RATE, peak=0.3):
    return np.random.default_rng(rate).uniform(-peak, peak, round(seconds * rate))


def loudest_hertz(waveform):
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))).argmax() * audio.RATE / len(waveform)


def fault(path):
    """Why the file cannot be read, else None."""
    try:
        audio.load(path)
    except audio.Unreadable as error:
        return error.why


@pytest.fixture
def wav(tmp_path):
    """One second of a tone, 16-bit, at the kit's rate."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(), audio.RATE)
    return path


# -- every kind of file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 96_000])
def test_every_rate_and_width_keeps_the_tone(tmp_path, rate, subtype, channels):
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone(rate)] * channels, axis=1), rate, subtype=subtype)
    read = audio.read(path)
    assert read.dtype == np.float32 and read.shape == (audio.RATE,)
    assert np.abs(read - tone())[2000:-2000].max() < (0.02 if subtype == "PCM_U8" else 0.002)
    assert audio.load(path).seconds == 1.0 and fault(path) is None


PCM = {"codec": "pcm_s16le", "kind": "s16"}
# suffix -> codec, format and rate of what libsndfile does not know: of videos, recorders, cameras and archives
KINDS = {**dict.fromkeys((".mp4", ".m4a", ".m4b", ".mkv", ".aac"), ("aac", "fltp", 44_100)),
         **dict.fromkeys((".mts", ".vob", ".ac3", ".wav"), ("ac3", "fltp", 48_000)),
         ".mov": ("pcm_f32le", "flt", 48_000), ".avi": ("pcm_s16le", "s16", 48_000),
         ".webm": ("libopus", "flt", 48_000), ".amr": ("libopencore_amrnb", "s16", 8_000),
         ".wv": ("wavpack", "s16p", 44_100), ".tta": ("tta", "s16", 44_100), ".g722": ("g722", "s16", 16_000),
         ".wma": ("wmav2", "fltp", 44_100), ".caf": ("alac", "s16p", 44_100)}


def clip(folder, suffix, seconds=1.0):
    codec, kind, rate = KINDS[suffix]
    write_clip(folder / f"tone{suffix}", tone(rate, seconds), rate, "mono", codec, kind,
               bit_rate={".amr": 12_200, ".wma": 64_000}.get(suffix))
    return folder / f"tone{suffix}"


@pytest.mark.parametrize("suffix", [*KINDS, ".flac", ".ogg", ".mp3"])
def test_what_is_opened_is_known_by_its_content(tmp_path, suffix):
    if suffix in KINDS:
        made = clip(tmp_path, suffix)
    else:
        made = tmp_path / f"tone{suffix}"
        soundfile.write(made, tone(44_100), 44_100)
    # G.722 has no mark of its own: it is known by its name alone.
    for name in [made.name] if suffix == ".g722" else [made.name, "named.WAV", "named.mp3", "named"]:
        path = made.with_name(name)
        path.write_bytes(made.read_bytes())
        assert fault(path) is None
        read = audio.read(path)
        assert len(read) == pytest.approx(audio.RATE, abs=0.06 * audio.RATE)  # codecs pad
        assert loudest_hertz(read[2000:14_000]) == pytest.approx(440, abs=2)
        assert np.abs(read[2000:14_000]).max() == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_videos_samples_are_those_that_decoding_gives(tmp_path, rate):
    path = tmp_path / "film.mp4"
    write_clip(path, noise(1.3, rate), rate, video=True)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert audio.load(path).seconds == len(samples) / rate
    np.testing.assert_array_equal(audio.read(path), np.clip(audio.resample(samples, rate), -1, 1))


@pytest.mark.parametrize(("codec", "kind"), [("pcm_u8", "u8"), ("pcm_s32le", "s32"), ("pcm_f64le", "dbl")])
def test_every_width_of_a_video_has_the_same_full_scale(tmp_path, codec, kind):
    path = tmp_path / "tone.mkv"
    write_clip(path, np.array([[1], [0.5]]) * tone(), audio.RATE, "stereo", codec, kind)
    assert np.abs(audio.read(path) - 0.75 * tone()).max() < (0.01 if kind == "u8" else 1e-4)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("seconds", [0.5, 12.3])
def test_an_mp3_without_a_head_is_read_whole(tmp_path, mode, seconds):
    """As dictaphones and recorders of streams leave them: libsndfile only estimates how long they are."""
    path, loud = tmp_path / "a.mp3", noise(seconds)
    loud[:len(loud) // 2] = 0  # a frame of silence is short, which spoils an estimate from the first ones
    soundfile.write(path, loud, audio.RATE, format="MP3", bitrate_mode=mode)
    whole, data = audio.read(path), path.read_bytes()
    for cover in (b"", b"ID3\3\0\0" + bytes([0, 0, 78, 16]) + bytes(10_000)):
        path.write_bytes(cover + data)
        np.testing.assert_array_equal(audio.read(path), whole)
        path.write_bytes(cover + re.sub(b"Xing|Info", bytes(4), data, count=1))
        read = audio.read(path)
        late = len(read) - len(whole)  # the head also says what padding to leave out: two blocks of 1,152 samples
        assert 0 <= late < 4 * 1152
        spectrum = np.fft.rfft(read, 2 * len(read)) * np.fft.rfft(whole, 2 * len(read)).conj()
        shift = int(np.fft.irfft(spectrum).argmax())  # where it fits best
        part = read[shift:shift + len(whole)]
        assert 0 <= shift <= late and np.corrcoef(part, whole[:len(part)])[0, 1] > 0.98


def test_a_wav_from_a_pipe_is_whole(wav):
    data = wav.read_bytes()
    at = data.index(b"data") + 4
    wav.write_bytes(data[:at] + struct.pack("<I", 0xFFFFFFFF) + data[at + 4:])  # as ffmpeg to a pipe
    assert fault(wav) is None and len(audio.read(wav)) == audio.RATE


@pytest.mark.parametrize("samples", [1, 160])
def test_very_short_and_silent_files_are_read(tmp_path, samples):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(samples), audio.RATE)
    assert fault(path) is None
    assert audio.read(path).shape == (samples,) and not audio.read(path).any()


def test_loud_float_files_are_clipped(tmp_path):
    path = tmp_path / "loud.wav"
    soundfile.write(path, tone(peak=1.5), audio.RATE, subtype="FLOAT")
    assert np.abs(audio.read(path)).max() == 1.0


@pytest.mark.parametrize("name", ["http:tone.mp4", "concat:a|b.mp4", "%03d.mp4", "Zoë 'x'.mp4", b"\xff\xfe.mp4"])
def test_a_name_is_nothing_but_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    clip(tmp_path, ".mp4").rename(name)
    assert fault(name) is None and len(audio.read(name)) > 3200


def test_a_title_in_another_alphabet_is_no_fault(tmp_path):
    _replaced(b"SoundHandler", b"\xe9oundHandler")(tmp_path / "tone.mp4")
    assert fault(tmp_path / "tone.mp4") is None


# -- channels and rates ------------------------------------------------------------------------------------------


VOICE, OTHER = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 8_000))
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


# -- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "mp3", "mp4"])
def test_parts_are_slices_of_the_whole_which_is_decoded_once(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"noise.{suffix}"
    times = [(0.31, 0.9), (0.0, 0.5), (1.0, None), (1.2345, 1.2347), (0.00001, 2.9)]
    if suffix == "mp4":
        write_clip(path, noise(3.0, 44_100), 44_100)
    else:
        soundfile.write(path, noise(3.0, 44_100), 44_100)
    whole, decoded, decode = audio.read(path), [], audio._known
    audio._KEPT.clear()
    monkeypatch.setattr(audio, "_known", lambda path: decoded.append(path) or decode(path))
    for start, end in times:
        expected = whole[round(start * audio.RATE):None if end is None else round(end * audio.RATE)]
        part = audio.read(path, start, end)
        np.testing.assert_array_equal(part, expected)
        part[:] = 0  # is the caller's own
    np.testing.assert_array_equal(audio.read(path), whole)
    assert len(decoded) == 1
    audio.write(tmp_path / "other.wav", tone())
    (tmp_path / "other.wav").rename(path)
    assert len(audio.read(path)) == audio.RATE  # another file by the same name


@pytest.mark.parametrize(("suffix", "rate"), [("flac", 8_000), ("flac", 16_000), ("flac", 44_101), ("mp4", 22_050),
                                              ("mp4", 48_000)])
def test_a_recording_in_blocks_has_the_samples_of_the_whole(tmp_path, suffix, rate, monkeypatch):
    path = tmp_path / f"noise.{suffix}"
    write = soundfile.write if suffix == "flac" else write_clip
    write(path, noise(4.0, rate), rate)
    whole, spans = audio.read(path), [(0.0, 0.31), (0.2, 3.1), (0.2, 0.3), (1.2345, 1.2347), (3.5, 4.0)]
    monkeypatch.setattr(audio, "BLOCK", 1000)
    for known in (False, True):
        recording = audio.Recording(path)
        if known:
            assert recording.survey() == audio.load(path).seconds and recording.samples == len(whole)
        for (start, end), part in zip(spans, recording.parts(spans), strict=True):
            np.testing.assert_array_equal(part, whole[round(start * audio.RATE):round(end * audio.RATE)])
        assert not len(next(recording.parts([(9.0, 9.5)])))


def test_a_recording_whose_channels_cancel_is_heard_by_its_loudest(tmp_path):
    soundfile.write(tmp_path / "inverted.wav", np.stack([0.8 * VOICE, -VOICE], axis=1), audio.RATE)
    recording = audio.Recording(tmp_path / "inverted.wav")
    with pytest.warns(UserWarning, match="the loudest is heard alone") as told:
        part, = recording.parts([(0.1, 0.3)])
    np.testing.assert_allclose(part, -VOICE[1600:4800], atol=1e-4)
    assert len(told) == 1


def test_as_many_files_are_kept_decoded_as_their_bytes_allow(tmp_path, monkeypatch):
    paths, decoded, decode = [tmp_path / f"{i}.wav" for i in range(4)], [], audio._whole
    for path, seconds in zip(paths, (1.0, 1.0, 1.0, 9.0), strict=True):
        audio.write(path, tone(seconds=seconds))
    monkeypatch.setattr(audio, "_KEPT", {})
    monkeypatch.setattr(audio, "HELD", 2 * 4 * audio.RATE)  # two of the short ones
    monkeypatch.setattr(audio, "_whole", lambda path: decoded.append(path.stem) or decode(path))
    for asked, read in (("0101", "01"), ("2", "2"), ("12", ""), ("0", "0"), ("20", ""), ("33", "3"), ("0", "0")):
        decoded.clear()
        for i in asked:
            audio.read(paths[int(i)])
        assert "".join(decoded) == read, asked


def test_files_are_kept_for_many_threads(tmp_path, monkeypatch):
    """`files.survey` reads in threads."""
    stems = [f"{i}" for i in range(40)]
    for stem in stems:
        audio.write(tmp_path / stem, np.full(10 + int(stem), 0.25, np.float32))
    monkeypatch.setattr(audio, "_KEPT", {})
    monkeypatch.setattr(audio, "HELD", 4 * 300)  # some ten of them
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            lengths = list(pool.map(lambda stem: len(audio.read(tmp_path / stem)), stems * 25))
    finally:
        sys.setswitchinterval(interval)
    assert lengths == [10 + int(stem) for stem in stems] * 25
    assert sum(sound.waveform.nbytes for sound in audio._KEPT.values()) <= audio.HELD


@pytest.mark.parametrize(("start", "end"), [(-0.1, None), (1.0, None), (0.5, 0.5), (0.6, 0.5), (0.0, 1.1),
                                            (float("nan"), None), (0.5, 0.50001)])
def test_a_part_outside_the_file_is_refused(wav, start, end):
    with pytest.raises(UserError, match=r"tone\.wav.*mend the times"):
        audio.read(wav, start, end)


def test_an_end_rounded_up_by_the_annotation_is_forgiven(wav):
    assert len(audio.read(wav, 0.5, 1.0005)) == audio.RATE // 2


@pytest.mark.parametrize("suffix", [".flac", ".mp4"])
def test_an_hour_takes_less_than_a_gigabyte(tmp_path, suffix):
    """A twelfth of one, at 48 kHz in stereo, whose frames would take 115 MB."""
    path, stereo = tmp_path / f"long{suffix}", np.stack([np.tile(tone(48_000), 300)] * 2)
    if suffix == ".flac":
        soundfile.write(path, stereo.T, 48_000)
    else:
        write_clip(path, stereo, 48_000, "stereo")
    del stereo
    tracemalloc.start()
    waveform = audio.load(path).waveform
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(waveform) == pytest.approx(300 * audio.RATE, rel=0.001)
    assert peak < 1e9 / 12 + 20e6


def test_of_a_recording_in_blocks_little_is_held(tmp_path):
    path, spans = tmp_path / "long.flac", [(t, t + 2.0) for t in range(0, 595, 3)]
    soundfile.write(path, np.tile(tone(48_000, peak=0.2), 600), 48_000)  # ten minutes; 38 MB at 16 kHz
    tracemalloc.start()
    seconds = sum(len(part) for part in audio.Recording(path).parts(spans)) / audio.RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == 2.0 * len(spans) and peak < 12e6


# -- damage ------------------------------------------------------------------------------------------------------


def _head(share, seconds=1.0, rate=audio.RATE, **kind):
    """The first bytes of a file (below 1: a share of it): a wav, or of any `kind`."""
    def spoil(path):
        if path.suffix in (".wav", ".flac", ".mp3"):
            soundfile.write(path, noise(seconds, rate), rate)
        else:
            write_clip(path, noise(seconds, rate), rate, **kind)
        path.write_bytes(path.read_bytes()[:share if share > 1 else int(share * path.stat().st_size)])
    return spoil


def _floats(value):
    def spoil(path):
        samples = np.where(np.arange(9000) == 5000, value, 0.1)
        if path.suffix == ".wav":
            soundfile.write(path, samples, audio.RATE, subtype="FLOAT")
        else:
            write_clip(path, samples, codec="pcm_f32le", kind="flt")
    return spoil


def _noise_inside(path):
    write_clip(path, noise(1.0))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + len(data) // 3
    data[at:at + 500] = np.random.default_rng(1).bytes(500)
    path.write_bytes(data)


def _replaced(old, new):
    def spoil(path):
        write_clip(path, noise(1.0))
        data = path.read_bytes()
        assert old in data and len(old) == len(new)
        path.write_bytes(data.replace(old, new))
    return spoil


def _pictures_alone(path):
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))


def _no_samples(path):
    with av.open(str(path), "w") as container:
        container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        container.start_encoding()


def _two_rates(path):
    parts = []
    for rate in (16_000, 24_000):
        write_clip(path, noise(0.5, rate), rate)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))


TEXT, PLAYLIST = "no sound here\n" * 9, "#EXTM3U\n#EXTINF:3,\nhttp://localhost/a.aac\n#EXT-X-ENDLIST\n"
FAULTS = {
    "missing.wav": (lambda path: None, "does not exist"),
    "folder.mp4": (lambda path: path.mkdir(), "is a folder"),
    "ring.wav": (lambda path: path.symlink_to(path), "cannot be read (Too many"),
    f"{'x' * 300}.wav": (lambda path: None, "cannot be read (File name too long)"),
    "zero bytes.mp4": (lambda path: path.touch(), "is empty (0 bytes)"),
    "text.wav": (lambda path: path.write_text(TEXT), "is not audio"),
    "playlist.mp4": (lambda path: path.write_text(PLAYLIST), "is not audio"),
    **{f"noise{suffix}": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9000)), "is not audio")
       for suffix in (".al", ".ul", ".sw", ".raw", ".pcm", "")},
    "truncated header.wav": (_head(20), "is not audio"),
    "header alone.wav": (_head(44), "holds no samples"),
    "no samples.wav": (lambda path: soundfile.write(path, np.zeros(0), 16_000), "holds no samples"),
    "no samples.mov": (_no_samples, "no sound of a known kind"),
    "truncated.wav": (_head(5_000), "is cut off (4956 of 32000 bytes of sound)"),
    "half.flac": (_head(0.5, 4.0), "cannot be decoded to its end"),
    "header alone.mp4": (_head(0.02), "is not audio"), "half.mp4": (_head(0.5), "is not audio"),
    "tail lost.mp4": (_head(0.98), "is not audio"), "index lost.mp4": (_replaced(b"moov", b"xxxx"), "is not audio"),
    "damaged.mp4": (_noise_inside, "is not audio"), "half.aac": (_head(0.5), "is not audio"),
    "unknown codec.mkv": (_replaced(b"A_AAC", b"A_XYZ"), "no sound of a known kind"),
    "half.mov": (_head(0.5, **PCM), "is cut off after 0."), "half.avi": (_head(0.5, **PCM), "is cut off after 0."),
    "two rates.aac": (_two_rates, "is not audio"), "pictures alone.mp4": (_pictures_alone, "it has no sound of a"),
    "nan.wav": (_floats(np.nan), "samples up to nan"), "nan.mov": (_floats(np.nan), "samples up to nan"),
    "infinity.wav": (_floats(-np.inf), "samples up to inf"), "infinity.mov": (_floats(-np.inf), "up to inf"),
    "integers as floats.wav": (_floats(9000.0), "where full scale is 1"),
    "integers as floats.mov": (_floats(9000.0), "where full scale is 1"),
    "impossible rate.wav": (lambda path: soundfile.write(path, np.zeros(9), 3), "claims 3 samples per second")}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_read_is_named_with_why(tmp_path, name, capfd):
    path = tmp_path / name
    spoil, reason = FAULTS[name]
    spoil(path)
    assert reason in fault(path)
    with pytest.raises(UserError) as error:
        audio.read(path)
    message = str(error.value)
    assert str(path) in message and reason in message and "fetch the file again" in message
    assert "\n" not in message and capfd.readouterr() == ("", "")  # ffmpeg keeps its log to itself


@pytest.mark.parametrize("suffix", [".m4b", ".mp3"])
def test_half_of_what_says_how_long_it_is_is_a_fault(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    if suffix == ".mp3":
        soundfile.write(path, noise(4.0), audio.RATE)
    else:
        clip(tmp_path, suffix, 4.0).rename(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    assert re.search("is not audio that can be decoded|is cut off", fault(path))


def test_without_pyav_the_cure_is_named(tmp_path, monkeypatch):
    path = clip(tmp_path, ".mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    for ask in (audio.load, audio.read):
        with pytest.raises(UserError, match=r'tone\.mp4.*PyAV.*pip install -e "\.\[meld\]"'):
            ask(path)


# -- writing -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "deep" / "out.wav"
    waveform = noise(0.3, peak=1.0).astype(np.float32)
    for loud in (1, 3):
        audio.write(path, loud * waveform)
        assert soundfile.info(path).subtype == "PCM_16" and soundfile.info(path).samplerate == audio.RATE
        assert np.abs(audio.read(path) - np.clip(loud * waveform, -1, 1)).max() <= 1 / 32768
        assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(wav, small_disk):
    before = wav.read_bytes()
    for path in (wav, wav.with_name("new.wav")):
        with small_disk(), pytest.raises(UserError, match=rf"{path.name}: File too large"):
            audio.write(path, tone())
    assert [p.name for p in wav.parent.iterdir()] == [wav.name] and wav.read_bytes() == before


# -- speech ------------------------------------------------------------------------------------------------------


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
