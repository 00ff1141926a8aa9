"""The sound of a video (mp4, mkv, webm, …) by PyAV, in the shape of the `soundfile.SoundFile` that `speech` reads.

A container's header only estimates how many samples decoding gives, and a decoder that starts in the middle gives
others than one that comes from the start. So a file is decoded once to be counted (the count is kept while the
process lives and the file stays as it is), and a read decodes from the start, or goes on where the last one ended.
Neither keeps more than it was asked for. Where hours are to be heard in pieces, `speech.cuts` does so in one pass.

Surround sound is mixed to stereo as ITU-R BS.775 has it, then averaged: speech stands in the centre channel, and
MELD, for one, has clips of two and of six channels, which a plain mean would tell apart by their level.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from soundfile import SoundFileError

from .settings import UserError

SUFFIXES = (".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".3gp", ".flv", ".wmv", ".wma",
            ".ts", ".mpg", ".mpeg")  # lower case
SHORT = 0.1  # seconds that decoding may give less than the header says: a codec's delay and its last block
MIX = {"FL": 0.5, "FR": 0.5, "FC": 0.5**0.5, "LFE": 0.0,
       "BL": 0.5**1.5, "BR": 0.5**1.5, "SL": 0.5**1.5, "SR": 0.5**1.5}  # the mean of BS.775's left and right


class Undecodable(SoundFileError):
    """Why the sound cannot be decoded, in words; a kind of what soundfile raises, so that one `except` has both."""


class AudioTrack:
    """The first audio stream of a file as one channel: as much of soundfile.SoundFile as `speech` uses.

    `frames` is what decoding gives, at `samplerate` Hz. Raises Undecodable for a file without sound, and for one
    that is damaged or cut off anywhere (an .aac, .ts or .mpg does not say how long it should be: one that ends
    between two blocks is heard as far as it goes); UserError where PyAV is not installed.
    """

    format, extra_info = "PyAV", ""

    def __init__(self, path: Path | str):
        self._path = os.path.abspath(path)  # else ffmpeg takes what stands before a colon for a protocol
        stat = os.stat(self._path)
        self.frames, self.samplerate = _measured(self._path, stat.st_size, stat.st_mtime_ns)
        self._rewind()

    def __enter__(self) -> AudioTrack:
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.close()

    def tell(self) -> int:
        """The frame that the next read starts with."""
        return self._at

    def seek(self, frame: int) -> None:
        """Decode up to `frame`, from the start where that lies behind."""
        if frame < self._at:
            self._blocks.close()
            self._rewind()
        for _ in self._next(frame - self._at):
            pass

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """The next `frames` frames, fewer at the end; always float32, shape (frames, 1)."""
        return np.concatenate([self._rest[:0], *self._next(frames)])[:, None]

    def _rewind(self) -> None:
        self._blocks, self._rest, self._at = _decoded(self._path), np.zeros(0, np.float32), 0

    def _next(self, count: int) -> Iterator[np.ndarray]:
        """The next `count` frames in blocks as they are decoded, fewer at the end."""
        while count > 0:
            if not len(self._rest):
                self._rest, _ = next(self._blocks, (None, 0))
                if self._rest is None:
                    self._rest = np.zeros(0, np.float32)
                    return
            piece, self._rest = self._rest[:count], self._rest[count:]
            self._at, count = self._at + len(piece), count - len(piece)
            yield piece


@lru_cache(maxsize=1 << 16)
def _measured(path: str, size: int, changed: int) -> tuple[int, int]:
    """Frames that decoding gives, and how many a second; `size` and `changed` are those of the file."""
    frames = rate = 0
    for block, hertz in _decoded(path):
        frames, rate = frames + len(block), hertz
    return frames, rate


def _decoded(path: str) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of frames, float32, (frames,), and their rate, from the start to the end; Undecodable where bad."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"cannot hear {path}: PyAV, which decodes it, is not there ({error}); install it with "
                        'pip install -e ".[meld]" (make setup has it), or extract wav files') from None
    heard = rate = 0
    try:
        with av.open(path, metadata_errors="replace") as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise Undecodable("it has no sound" if stream is None else "its sound is of an unknown kind")
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if rate not in (0, frame.sample_rate):
                        raise Undecodable(f"its rate changes from {rate} to {frame.sample_rate} Hz")
                    heard, rate = heard + frame.samples, frame.sample_rate
                    yield _mono(frame), rate
                if packet.is_corrupt:
                    raise Undecodable(f"it is cut off after {heard / max(rate, 1):.3f} s")
            promised = _promised(container.format.name, stream)
            if heard < (promised - SHORT) * rate:
                raise Undecodable(f"it is cut off: {heard / rate:.3f} of {promised:.3f} s are there")
    except (av.FFmpegError, ValueError, IndexError) as error:
        # PyAV's own: ValueError for samples of a kind that numpy has not, IndexError for a stream that begins late.
        raise Undecodable(getattr(error, "strerror", None) or str(error)) from None


def _promised(container: str, stream: Any) -> float:
    """Seconds of sound that the file's header promises; 0 where it does not, or only by an estimate."""
    if container.startswith("mov,"):
        return float((stream.duration or 0) * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))  # Matroska: where it ends
    ends = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else 0.0
    return ends - float((stream.start_time or 0) * stream.time_base)


def _mono(frame: Any) -> np.ndarray:
    """An av.AudioFrame's samples as one channel, full scale 1, float32, (samples,)."""
    samples = frame.to_ndarray()
    names = [channel.name for channel in frame.layout.channels]
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(names)).T
    if samples.dtype.kind == "u":
        samples = samples.astype(np.float32) - 128
        samples /= 128
    elif samples.dtype.kind == "i":
        samples = samples / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    if len(names) <= 2 or not set(names) <= set(MIX):
        return samples.mean(axis=0, dtype=np.float32)
    return np.array([MIX[name] for name in names], np.float32) @ samples.astype(np.float32, copy=False)
