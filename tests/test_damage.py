"""A damaged file is named with what is wrong; none is read in part."""

import re
import sys

import av
import numpy as np
import pytest
import soundfile
from test_audio import PCM, clip, fault, noise, replaced
from tree_meld import write_clip

from dpmkit import audio
from dpmkit.settings import UserError


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
    "tail lost.mp4": (_head(0.98), "is not audio"), "index lost.mp4": (replaced(b"moov", b"xxxx"), "is not audio"),
    "damaged.mp4": (_noise_inside, "is not audio"), "half.aac": (_head(0.5), "is not audio"),
    "unknown codec.mkv": (replaced(b"A_AAC", b"A_XYZ"), "no sound of a known kind"),
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


