"""The sound of videos is heard as that of a wav is, or the file is named with what is wrong with it."""

import re
import sys
import tracemalloc

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tree_meld import write_clip

from dpmkit import audio
from dpmkit.settings import UserError

KINDS = {  # suffix -> how its sound is encoded
    ".mp4": {}, ".m4a": {}, ".mkv": {}, ".aac": {}, ".mov": {"codec": "pcm_f32le", "kind": "flt"},
    ".webm": {"codec": "libopus", "kind": "flt"}, ".avi": {"codec": "pcm_s16le", "kind": "s16"}}


def tone(seconds=1.0, rate=48_000, hertz=440.0):
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def noise(seconds, rate):
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * rate))


def decoded(path):
    """All samples of a file by PyAV's plainest loop, float, (channels, samples)."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


@pytest.fixture
def opened(monkeypatch):
    """How often a file was decoded from its start."""
    calls, decode = [], audio._decoded_track

    def counted(path):
        calls.append(path)
        yield from decode(path)

    monkeypatch.setattr(audio, "_decoded", counted)
    return calls


@pytest.mark.parametrize("suffix", KINDS)
def test_every_container_keeps_the_tone(tmp_path, suffix):
    path = tmp_path / f"tone{suffix.upper()}"
    write_clip(path, tone(), 48_000, "stereo", **KINDS[suffix])
    heard = audio.read(path)
    assert heard.dtype == np.float32 and audio.fault(path) is None
    assert len(heard) == pytest.approx(audio.RATE, abs=0.05 * audio.RATE)  # codecs pad
    middle = heard[2000:14_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * audio.RATE / len(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.4, abs=0.02)


# What recorders, cameras and archives leave, which libsndfile does not know (as it does not ALAC in a .caf).
ODD = {".amr": ("libopencore_amrnb", "s16", 8_000), ".m4b": ("aac", "fltp", 44_100),
       **dict.fromkeys((".mts", ".m2ts", ".vob", ".ac3", ".wav"), ("ac3", "fltp", 48_000)),
       ".wv": ("wavpack", "s16p", 44_100), ".tta": ("tta", "s16", 44_100), ".g722": ("g722", "s16", 16_000),
       ".wma": ("wmav2", "fltp", 44_100), ".caf": ("alac", "s16p", 44_100), ".opus": ("libopus", "flt", 48_000),
       ".aac": ("aac", "fltp", 44_100)}


def odd(folder, suffix, seconds=1.0):
    codec, kind, rate = ODD[suffix]
    made = folder / f"tone{suffix}"
    write_clip(made, tone(seconds, rate), rate, "mono", codec, kind,
               bit_rate={".amr": 12_200, ".wma": 64_000}.get(suffix))
    return made


@pytest.mark.parametrize("suffix", ODD)
def test_what_is_opened_is_told_by_its_content(tmp_path, suffix):
    made = odd(tmp_path, suffix)
    # G.722 has no mark of its own: it is known by its name alone.
    for name in [made.name] if suffix == ".g722" else [made.name, "named.WAV", "named.mp3", "named"]:
        path = made.with_name(name)
        path.write_bytes(made.read_bytes())
        assert audio.fault(path) is None
        heard = audio.read(path)
        assert len(heard) == pytest.approx(audio.RATE, abs=0.06 * audio.RATE)
        spectrum = np.abs(np.fft.rfft(heard[2000:14_000] * np.hanning(12_000)))
        assert spectrum.argmax() * audio.RATE / 12_000 == pytest.approx(440, abs=2)


@pytest.mark.parametrize("suffix", [".m4b", ".wv", ".tta", ".caf"])
def test_half_of_what_says_how_long_it_is_is_a_fault(tmp_path, suffix):
    path = odd(tmp_path, suffix, 4.0)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    assert re.search("is not audio that can be decoded|is cut off", audio.fault(path))


def test_a_file_that_ends_between_two_blocks_is_a_fault(tmp_path):
    path = odd(tmp_path, ".wv", 4.0)
    path.write_bytes(path.read_bytes()[:path.read_bytes().rindex(b"wvpk")])
    assert "is cut off" in audio.fault(path)


@pytest.mark.parametrize("suffix", [".al", ".ul", ".sw", ".raw", ".pcm", ""])
def test_samples_without_a_header_are_no_sound(tmp_path, suffix):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(9000))
    assert "is not audio" in audio.fault(path)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_the_samples_are_those_that_decoding_gives(tmp_path, rate):
    path = tmp_path / "noise.mp4"
    write_clip(path, noise(1.3, rate), rate)
    samples = decoded(path)[0]
    with audio.AudioTrack(path) as track:
        assert (track.frames, track.samplerate) == (len(samples), rate)
        np.testing.assert_array_equal(track.read(track.frames + 99)[:, 0], samples)
        assert track.read(5).shape == (0, 1)
    assert audio.seconds(path) == len(samples) / rate
    np.testing.assert_array_equal(audio.read(path, rate=rate), np.clip(samples, -1, 1))


@pytest.mark.parametrize(("suffix", "rate"), [(".mp4", 16_000), (".mp4", 44_100), (".mkv", 48_000),
                                               (".webm", 48_000)])
def test_a_part_is_the_slice_of_the_whole(tmp_path, suffix, rate):
    path = tmp_path / f"noise{suffix}"
    write_clip(path, noise(3.0, rate), rate, **KINDS[suffix])
    whole = audio.read(path)
    for start, end in [(0.0, 0.5), (0.31, 0.9), (1.0, None), (1.2345, 1.2347), (0.00001, 2.9)]:
        stop = None if end is None else round(end * audio.RATE)
        np.testing.assert_array_equal(audio.read(path, start, end), whole[round(start * audio.RATE):stop])


def test_reads_in_a_row_decode_once_and_a_step_back_starts_anew(tmp_path, opened):
    path = tmp_path / "noise.mp4"
    write_clip(path, noise(2.0, 16_000))
    with audio.AudioTrack(path) as track:
        assert len(opened) == 1  # to count
        whole = np.concatenate([track.read(n) for n in (1, 700, 0, 5000, 1024, 30_000)])
        track.seek(track.frames)
        assert len(opened) == 2 and track.tell() == track.frames == len(whole)
        track.seek(1234)
        np.testing.assert_array_equal(track.read(3000), whole[1234:4234])
        track.seek(9999)
        np.testing.assert_array_equal(track.read(10), whole[9999:10_009])
        assert len(opened) == 3


def test_a_file_is_counted_once_as_long_as_it_stays_the_same(tmp_path, opened):
    path = tmp_path / "tone.mp4"
    write_clip(path, tone(0.5, 16_000))
    lengths = {len(audio.read(path)) for _ in range(3)}
    assert len(opened) == 4 and len(lengths) == 1  # once to count, three times to hear
    write_clip(path, tone(1.0, 16_000))
    assert len(audio.read(path)) == decoded(path).shape[1] not in lengths


def test_a_long_file_is_never_held_whole(tmp_path, monkeypatch):
    path = tmp_path / "long.mp4"
    write_clip(path, tone(100, 8000), 8000)
    monkeypatch.setattr(audio, "BLOCK", 1 << 13)
    tracemalloc.start()
    try:
        assert audio.fault(path) is None
        part = audio.read(path, 95, 96)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(part) == audio.RATE
    assert peak < 0.6e6  # the samples are 3.2 MB; a block, its copies and a resampled part 0.2 MB


def test_pictures_beside_the_sound_change_nothing(tmp_path):
    for name, pictures in (("sound.mp4", False), ("film.mp4", True)):
        write_clip(tmp_path / name, noise(1.0, 16_000), video=pictures)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert len(container.streams.video) == 1
    np.testing.assert_array_equal(audio.read(tmp_path / "film.mp4"), audio.read(tmp_path / "sound.mp4"))


def test_surround_is_mixed_so_that_speech_is_as_loud_as_in_stereo(tmp_path):
    parts = {"FL": 0.1, "FR": -0.2, "FC": 0.4, "LFE": 0.9, "BL": 0.3, "BR": 0.05}
    pcm = {"codec": "pcm_s16le", "kind": "s16"}
    write_clip(tmp_path / "six.avi", np.array([[v] * 4096 for v in parts.values()]), layout="5.1", **pcm)
    expected = 0.5 * (0.1 - 0.2) + 0.5**0.5 * 0.4 + 0.5**1.5 * (0.3 + 0.05)
    assert audio.read(tmp_path / "six.avi") == pytest.approx(expected, abs=1e-4)
    # The same voice, in the centre of six channels and of two, as a mixing engineer puts it there.
    voice = tone(0.5, 16_000)
    centre = np.stack([0 * voice, 0 * voice, voice, 0 * voice, 0 * voice, 0 * voice])
    write_clip(tmp_path / "six.avi", centre, layout="5.1", **pcm)
    write_clip(tmp_path / "two.avi", 0.5**0.5 * np.stack([voice, voice]), layout="stereo", **pcm)
    assert np.abs(audio.read(tmp_path / "six.avi") - audio.read(tmp_path / "two.avi")).max() < 1e-4


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_an_inverted_channel_is_not_mixed_to_silence(tmp_path, suffix):
    path, voice = tmp_path / f"two{suffix}", tone(0.5, 16_000)
    write_clip(path, np.stack([-0.9 * voice, voice]), 16_000, "stereo", **KINDS[suffix])
    assert audio.inverted(path) and np.abs(audio.read(path)[2000:6000]).max() == pytest.approx(0.4, abs=0.03)
    write_clip(path, np.stack([voice, voice]), 16_000, "stereo", **KINDS[suffix])
    assert not audio.inverted(path)


def test_channels_without_a_place_are_averaged(tmp_path):
    path = tmp_path / "six.mkv"  # which keeps no layout of PCM
    write_clip(path, np.arange(6)[:, None] * np.full((6, 4096), 0.1), layout="5.1", codec="pcm_s16le", kind="s16")
    assert audio.read(path) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(("codec", "kind"), [("pcm_u8", "u8"), ("pcm_s16le", "s16"), ("pcm_s32le", "s32"),
                                             ("pcm_f32le", "flt"), ("pcm_f64le", "dbl")])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_every_width_has_the_same_full_scale(tmp_path, codec, kind, layout):
    path = tmp_path / "tone.mkv"
    sign = np.array([[1], [0.5]])[:1 if layout == "mono" else 2]
    write_clip(path, sign * tone(0.2, 16_000), 16_000, layout, codec, kind)
    expected = tone(0.2, 16_000) * sign.mean()
    assert np.abs(audio.read(path) - expected).max() < (0.01 if kind == "u8" else 1e-4)


def _head(share, **kind):
    def spoil(path):
        write_clip(path, noise(1.0, 16_000), **kind)
        path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    return spoil


def _floats(value):
    def spoil(path):
        write_clip(path, np.where(np.arange(9000) == 5000, value, 0.1), codec="pcm_f32le", kind="flt")
    return spoil


def _noise_inside(path):
    write_clip(path, noise(1.0, 16_000))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + len(data) // 3
    data[at:at + 500] = np.random.default_rng(1).bytes(500)
    path.write_bytes(data)


def _replaced(old, new):
    def spoil(path):
        write_clip(path, noise(1.0, 16_000))
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


FAULTS = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "folder.mp4": (lambda path: path.mkdir(), "is a folder"),
    "zero bytes.mp4": (lambda path: path.touch(), "is empty (0 bytes)"),
    "text.mp4": (lambda path: path.write_text("no sound here\n" * 9), "is not audio"),
    "playlist.mp4": (lambda path: path.write_text("#EXTM3U\n#EXTINF:3,\nhttp://localhost/a.aac\n#EXT-X-ENDLIST\n"),
                     "is not audio"),
    "header alone.mp4": (_head(0.02), "is not audio"),
    "half.mp4": (_head(0.5), "is not audio"),
    "tail lost.mp4": (_head(0.98), "is not audio"),
    "index lost.mp4": (_replaced(b"moov", b"xxxx"), "is not audio"),
    "unknown codec.mkv": (_replaced(b"A_AAC", b"A_XYZ"), "(its sound is of an unknown kind)"),
    "damaged.mp4": (_noise_inside, "is not audio"),
    "half.mov": (_head(0.5, codec="pcm_s16le", kind="s16"), "cut off"),
    "half.mkv": (_head(0.5), "cut off: 0."),
    "half.webm": (_head(0.5, rate=48_000, codec="libopus", kind="flt"), "cut off: "),
    "half.avi": (_head(0.5, codec="pcm_s16le", kind="s16"), "cut off after 0."),
    "half.aac": (_head(0.5), "is not audio"),
    "pictures alone.mp4": (_pictures_alone, "(it has no sound)"),
    "no samples.mov": (_no_samples, "(it has no sound)"),
    "nan.mov": (_floats(np.nan), "not finite"),
    "infinity.mov": (_floats(-np.inf), "not finite"),
    "integers in a float file.mov": (_floats(9000.0), "where full scale is 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_heard_is_named_with_why(tmp_path, name, capfd):
    path = tmp_path / name
    spoil, reason = FAULTS[name]
    spoil(path)
    assert reason in audio.fault(path)
    with pytest.raises(UserError) as error:
        audio.read(path)
    message = str(error.value)
    assert str(path) in message and reason in message and "fetch the file again" in message
    assert "\n" not in message and capfd.readouterr() == ("", "")  # ffmpeg keeps its log to itself


def test_a_rate_that_changes_on_the_way_is_a_fault(tmp_path):
    for rate in (16_000, 24_000):
        write_clip(tmp_path / f"{rate}.aac", noise(0.5, rate), rate)
    path = tmp_path / "both.aac"
    path.write_bytes((tmp_path / "16000.aac").read_bytes() + (tmp_path / "24000.aac").read_bytes())
    assert "its rate changes from 16000 to 24000 Hz" in audio.fault(path)


@pytest.mark.parametrize("error", [ValueError("Conversion from s64"), IndexError("list index out of range")])
def test_what_pyav_cannot_do_is_told_in_words(tmp_path, monkeypatch, error):
    path = tmp_path / "tone.mp4"
    write_clip(path, tone(0.2))

    def broken(frame):
        raise error

    monkeypatch.setattr(audio, "_samples", broken)
    assert audio.fault(path) == f"is not audio that can be decoded ({error})"


def test_a_title_in_another_alphabet_is_no_fault(tmp_path):
    path = tmp_path / "tone.mp4"
    _replaced(b"SoundHandler", b"\xe9oundHandler")(path)
    assert audio.fault(path) is None


@pytest.mark.parametrize("name", ["http:tone.mp4", "concat:a|b.mp4", "%03d.mp4", "Zoë 'x'.mp4", b"\xff\xfe.mp4"])
def test_a_name_is_nothing_but_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "tone.mp4", tone(0.2, 16_000))
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    (tmp_path / "tone.mp4").rename(name)
    assert audio.fault(name) is None and len(audio.read(name)) > 3200


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.sampled_from([".mp4", ".mkv", ".avi"]),
       st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=9), st.floats(0, 1))
def test_no_damage_gives_anything_but_words(tmp_path_factory, suffix, bytes_at, share):
    folder = tmp_path_factory.getbasetemp()
    whole = folder / f"whole{suffix}"
    if not whole.exists():
        write_clip(whole, noise(0.3, 16_000), **KINDS[suffix])
    data = bytearray(whole.read_bytes())
    for place, value in bytes_at:
        data[int(place * (len(data) - 1))] = value
    path = folder / f"damaged{suffix}"
    path.write_bytes(data[:int(share * len(data)) + 1] if share < 0.5 else data)
    fault = audio.fault(path)
    if fault is None:
        assert np.isfinite(audio.read(path)).all()
    else:
        assert fault.splitlines() == [fault]


def test_without_pyav_the_cure_is_named(tmp_path, monkeypatch):
    path = tmp_path / "tone.mp4"
    write_clip(path, tone(0.2))
    monkeypatch.setitem(sys.modules, "av", None)
    for ask in (audio.fault, audio.read, audio.seconds):
        with pytest.raises(UserError, match=r'tone\.mp4.*PyAV.*pip install -e "\.\[meld\]"'):
            ask(path)
