"""Waveforms come out as they were recorded, whole or in parts, of every kind of file; what is written is read."""

import re
import struct
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import soundfile
from tree_meld import write_clip

from dpmkit import audio
from dpmkit.settings import UserError

VOICE, OTHER = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 8_000))


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


def replaced(old, new):
    """Makes a clip in which these bytes stand in the place of those."""
    def spoil(path):
        write_clip(path, noise(1.0))
        data = path.read_bytes()
        assert old in data and len(old) == len(new)
        path.write_bytes(data.replace(old, new))
    return spoil


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
    replaced(b"SoundHandler", b"\xe9oundHandler")(tmp_path / "tone.mp4")
    assert fault(tmp_path / "tone.mp4") is None


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
