"""Faulty, odd and healthy audio as bytes by name, each with what must become of it: heard, or a fault in words.

`AUDIO`: name -> (bytes, words): the words are part of the fault that is told; None: it is heard. `PLACED`: things
of the file system that stand where a wav should. All are made for a file called .wav unless the name ends in
another suffix. The sound is an eighth of a second of noise, so that nothing compresses to less than a header.
"""

from __future__ import annotations

import base64
import gzip
import io
import os
import socket
import struct
import tempfile
import zipfile
from contextlib import chdir
from pathlib import Path

import av
import numpy as np
import soundfile
from tree_meld import write_clip

RATE = 16_000
NOISE = np.random.default_rng(7).uniform(-0.4, 0.4, RATE // 8)


def wav(samples=NOISE, tag=1, channels=1, rate=RATE, bits=16, claimed=None, align=None, extra=b"", before=b""):
    """A wav by hand, so that its header can say anything; `samples`: bytes, or floats that become 16-bit PCM."""
    data = samples if isinstance(samples, bytes) else (np.asarray(samples) * 32767).astype("<i2").tobytes()
    align = channels * bits // 8 % 65536 if align is None else align
    head = struct.pack("<HHIIHH", tag, channels, rate % 2**32, rate * align % 2**32, align, bits) + extra
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(head)) + head
    return riff(body + b"data" + struct.pack("<I", len(data) if claimed is None else claimed) + data)


def riff(body, kind=b"RIFF"):
    return kind + struct.pack("<I", len(body)) + body


def by(kind, subtype=None, samples=NOISE, rate=RATE, endian=None):
    """A file by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype, endian=endian)
    return file.getvalue()


def many(channels):
    return np.repeat(NOISE[:, None], channels, axis=1)


def spoilt(value, at=slice(900, 901), subtype="FLOAT", samples=NOISE):
    samples = np.array(samples)
    samples[at] = value
    return by("WAV", subtype, samples)


def video(suffix=".mp4", **kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip{suffix}")
        if kind.pop("silent", False):
            with av.open(str(path), "w") as container:
                picture = container.add_stream("mpeg4", rate=25)
                picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
                black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(black))
                container.mux(picture.encode(None))
        else:
            write_clip(path, np.tile(NOISE, 8), **kind)
        return path.read_bytes()


def archive(name, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr(name, data)
    return file.getvalue()


def middle(data, noise=200, at=0.5):
    place = int(at * len(data))
    return data[:place] + np.random.default_rng(1).bytes(noise) + data[place + noise:]


PCM, FLAC, OGG, MP3 = wav(), by("FLAC"), by("OGG"), by("MP3", samples=np.tile(NOISE, 8))
OPUS, MP4, MKV = by("OGG", "OPUS"), video(), video(".mkv")
AT = {k: PCM.index(k) for k in (b"fmt ", b"data")}
PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + bytes(90)
NONE, CUT, EMPTY, LOST = "is not audio that can be decoded", "is cut off", "holds no samples", "claims"
FINITE, LOUD, END = "holds samples up to ", "where full scale is 1", "cannot be decoded to its end"

UNSEEKABLE = ("GSM610", "G721_32")  # libsndfile reads them from the start alone

AUDIO: dict[str, tuple[bytes, str | None]] = {
    # the header of a wav, cut
    "zero bytes": (b"", "is empty (0 bytes)"),
    **{f"header cut at {n}": (PCM[:n], NONE) for n in (1, 4, 8, 12, 16, 20, 24, 30, 35)},
    "header cut at 36": (PCM[:36], NONE), "header cut at 40": (PCM[:40], NONE),
    "header alone": (PCM[:44], EMPTY), "header and a byte": (PCM[:45], EMPTY),
    **{f"data cut at {p} %": (PCM[:44 + len(PCM) * p // 100], CUT) for p in (1, 25, 50, 75)},
    "last byte lost": (PCM[:-1], CUT), "last sample lost": (PCM[:-2], CUT),
    "header claims ten times the data": (wav(claimed=len(PCM) * 10), CUT),
    "header claims one byte more": (wav(claimed=len(PCM) - 43), CUT),
    "header claims 2 GB": (wav(claimed=2**31 - 1), None), "header claims 4 GB, as from a pipe": (
        wav(claimed=2**32 - 1), None),
    "header claims no data": (wav(claimed=0), EMPTY), "header claims half the data": (wav(claimed=2000), None),
    # other things under its name
    "text": (b"no sound here\n" * 99, NONE), "one newline": (b"\n", NONE),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 9, NONE),
    "json": (b'{"error": "quota exceeded"}', NONE), "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>",
        NONE),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", NONE),
    "playlist": (b"#EXTM3U\n#EXTINF:3,\nhttp://localhost/a.aac\n", NONE),
    "png": (PNG, NONE), "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(400), NONE), "pdf": (
        b"%PDF-1.7\n" * 40, NONE), "zip of a wav": (archive("a.wav", PCM), NONE), "gzip of a wav": (
        gzip.compress(PCM, mtime=0), NONE), "base64 of a wav": (base64.b64encode(PCM), NONE),
    "executable": (b"\x7fELF\x02\x01\x01" + bytes(300), NONE), "numpy": (
        b"\x93NUMPY\x01\x00v\0{'descr': '<f4'}" + bytes(300), NONE),
    "resource fork": (b"\0\5\26\7\0\2\0\0Mac OS X" + bytes(400), NONE), "zeros": (bytes(4000), NONE),
    "ones": (b"\xff" * 4000, NONE), "random bytes": (np.random.default_rng(3).bytes(4000), NONE),
    "samples without a header": (PCM[44:], NONE), "wav without its first byte": (PCM[1:], NONE),
    "wav after a newline": (b"\n" + PCM, NONE), "wav after a byte order mark": (b"\xef\xbb\xbf" + PCM, NONE),
    "wav as utf-16": (PCM.decode("latin-1").encode("utf-16"), NONE), "wav as utf-8": (
        PCM.decode("latin-1").encode("utf-8"), NONE),
    "wav backwards": (PCM[::-1], NONE), "wav with \\n as \\r\\n": (PCM.replace(b"\n", b"\r\n"), None),
    "avi's riff": (PCM.replace(b"WAVE", b"AVI "), NONE), "two wavs in one": (PCM + PCM, NONE),
    # headers that lie
    **{f"rate {r}": (wav(rate=r), LOST) for r in (1, 2, 999, 768_001, 2**30)},
    "rate 0": (wav(rate=0), NONE), "rate 2**31": (wav(rate=2**31), NONE), "rate 2**32 - 1": (
        wav(rate=2**32 - 1), NONE),
    "no channels": (wav(channels=0, align=2), NONE), "65535 channels": (wav(channels=65535), NONE),
    "2000 channels": (wav(channels=2000), NONE), "0 bits": (wav(bits=0), NONE), "7 bits": (wav(bits=7), None),
    "64 bits of integers": (wav(bits=64), None), "format 0": (wav(tag=0), NONE), "format 0x9999": (
        wav(tag=0x9999), NONE),
    "block of 0 bytes": (wav(align=0), None), "block of 77 bytes": (wav(align=77), None), "no fmt chunk": (
        riff(b"WAVE" + PCM[AT[b"data"]:]), NONE), "no data chunk": (riff(PCM[8:AT[b"data"]]), NONE),
    "data before fmt": (riff(b"WAVE" + PCM[AT[b"data"]:] + PCM[AT[b"fmt "]:AT[b"data"]]), NONE),
    "mp3's tag on pcm": (wav(tag=0x55), NONE), "gsm's tag on pcm": (wav(tag=0x31), NONE),
    # odd and fine
    **{f"{r} Hz": (wav(rate=r), None) for r in (1000, 8000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000,
                                                 88_200, 96_000, 192_000, 768_000)},
    **{t: (by("WAV", t), None) for t in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW",
        "IMA_ADPCM",
                                         "MS_ADPCM")},
    **{t: (by("WAV", t), None) for t in UNSEEKABLE},
    **{f"{n} channels": (by("WAV", samples=many(n)), None) for n in (2, 3, 4, 6, 8, 16)},
    **{f"{n} named wav": (d, None) for n, d in {
        "flac": FLAC, "ogg": OGG, "opus": OPUS, "aiff": by("AIFF"), "au": by("AU"), "caf": by("CAF"),
        "w64": by("W64"), "rf64": by("RF64"), "wavex": by("WAVEX"), "mp3": MP3,
        "big-endian": by("WAV", "PCM_16", endian="BIG")}.items()},
    "mp4 named wav": (MP4, None), "mkv named wav": (MKV, None),
    "a list of comments first": (wav(before=b"LIST" + struct.pack("<I", 4) + b"INFO"), None),
    "a chunk of odd length": (wav(before=b"junk" + struct.pack("<I", 3) + b"abc\0"), None),
    "a tail of junk": (PCM + b"junk" * 99, None), "a tail of an ID3 tag": (PCM + b"id3 \x08\0\0\0ID3\x04\0\0\0\0",
        None),
    "one sample": (wav(NOISE[:1]), None), "two samples": (wav(NOISE[:2]), None), "silence": (
        wav(np.zeros(2000)), None), "direct current": (wav(np.full(2000, 0.9)), None),
    "offset": (wav(NOISE + 0.5), None), "clipped": (wav(np.sign(NOISE)), None), "lowest value throughout": (
        wav(b"\0\x80" * 2000), None),
    "float beyond full scale": (by("WAV", "FLOAT", NOISE * 20), None), "denormal": (
        by("WAV", "FLOAT", NOISE * 1e-40), None),
    # samples that are none
    "one NaN": (spoilt(np.nan), FINITE), "NaN throughout": (spoilt(np.nan, slice(None)), FINITE), "infinity": (
        spoilt(np.inf), FINITE), "minus infinity": (spoilt(-np.inf), FINITE), "NaN in doubles": (
        spoilt(np.nan, subtype="DOUBLE"), FINITE), "NaN in the last sample": (spoilt(np.nan, slice(-1, None)),
            FINITE),
    "NaN in one of six channels": (spoilt(np.nan, (900, 4), samples=many(6)), FINITE),
    "1e300 in doubles": (spoilt(1e300, subtype="DOUBLE"), FINITE),
    "1e30": (spoilt(1e30), LOUD), "integers as floats": (by("WAV", "FLOAT", NOISE * 32768), LOUD),
    # flac, ogg, mp3
    "flac's magic alone.flac": (FLAC[:4], NONE), "flac's header alone.flac": (FLAC[:60], NONE),
    "half.flac": (FLAC[:len(FLAC) // 2], END), "flac, last byte lost.flac": (FLAC[:-1], END),
    "damaged.flac": (middle(FLAC), END), "ogg's header alone.ogg": (OGG[:58], NONE), "half.ogg": (
        OGG[:len(OGG) // 2], NONE), "damaged.ogg": (middle(OGG), NONE), "half opus.ogg": (
        OPUS[:len(OPUS) // 2], NONE), "mp3's first bytes.mp3": (MP3[:20], NONE),
    "half.mp3": (MP3[:len(MP3) // 2], CUT), "damaged.mp3": (middle(MP3), CUT),
    "mp3's tag alone.mp3": (b"ID3\x04\0\0\0\0\x0f\x76" + bytes(2038), NONE),
    **{f"wav named.{s}": (PCM, None) for s in ("flac", "ogg", "mp3")},
    **{f"{n} named.{s}": (d, EMPTY if s == "flac" and n != "png" else NONE) for s in ("flac", "ogg", "mp3")
       for n, d in {"text": b"no sound\n" * 50, "png": PNG, "zip": archive("a", b"b")}.items()},
    **{f"zero bytes.{s}": (b"", "is empty (0 bytes)") for s in ("flac", "ogg", "mp3", "mp4")},
    # video
    "video.mp4": (MP4, None), "video.mkv": (MKV, None), "wav named.mp4": (PCM, None), "flac named.mp4": (FLAC,
        None),
    "mp3 named.mp4": (MP3, None), "mkv named.mp4": (MKV, None), "mp4 named.mkv": (MP4, None),
    "index lost.mp4": (MP4.replace(b"moov", b"xxxx"), NONE),
    "index called free.mp4": (MP4.replace(b"moov", b"free"), None),
    "sound called free.mp4": (MP4.replace(b"mdat", b"free"), None),
    "pictures alone.mp4": (video(silent=True), "it has no sound"), "half.mp4": (MP4[:len(MP4) // 2], NONE),
    "tail lost.mp4": (MP4[:-50], NONE), "head alone.mp4": (MP4[:32], NONE), "damaged.mp4": (
        middle(MP4, 500, 0.8), NONE), "text named.mp4": (b"<html>quota</html>" * 9, NONE), "png named.mp4": (PNG,
            NONE),
    "zip named.mp4": (archive("dia0_utt1.mp4", MP4), NONE),
    "surround.mp4": (video(layout="5.1", rate=48_000), None), "truncated wav named.mp4": (PCM[:2000], CUT),
}


def fifo(path):
    os.mkfifo(path)


def bound(path):
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # its path has 107 bytes
        made.bind(path.name)


def loop(path):
    other = path.with_name(".other link")
    path.symlink_to(other)
    other.symlink_to(path)


PLACED = {
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "full folder": (lambda path: (path.mkdir(), (path / "a.wav").write_bytes(PCM)), "is a folder"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "links in a ring": (loop, "cannot be read"),
    "link to a folder": (lambda path: path.symlink_to("."), "is a folder"),
    "link to a text": (lambda path: path.symlink_to(__file__), NONE),
    "link to nothing, /dev/null": (lambda path: path.symlink_to("/dev/null"), ""),
    "link to no end, /dev/zero": (lambda path: path.symlink_to("/dev/zero"), ""),
    "pipe": (fifo, ""),
    "socket": (bound, ""),
}
