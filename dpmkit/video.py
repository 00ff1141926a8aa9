"""The sound of a video (mp4, mkv, webm, …) and of all else that libsndfile does not know, by PyAV, in the shape of
the `soundfile.SoundFile` that `speech` reads.

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
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from soundfile import SoundFileError

from .settings import UserError

SUFFIXES = (".mp4", ".m4a", ".m4b", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".3gp", ".flv", ".wmv",
            ".wma", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".amr", ".ac3", ".wv", ".tta", ".g722", ".ape")
SHORT = 0.1  # seconds that decoding may give less than the header says: a codec's delay and its last block
COUNTED = ("mov,", "flac", "wv", "tta", "ape", "caf", "aiff")  # containers that say how long they are
CANCELS = 0.1  # of the energy that a sum of unlike channels has: below it they are each other's opposite
MIX = {"FL": 0.5, "FR": 0.5, "FC": 0.5**0.5, "LFE": 0.0,
       "BL": 0.5**1.5, "BR": 0.5**1.5, "SL": 0.5**1.5, "SR": 0.5**1.5}  # the mean of BS.775's left and right


class Undecodable(SoundFileError):
    """Why the sound cannot be decoded, in words; a kind of what soundfile raises, so that one `except` has both."""


class AudioTrack:
    """The first audio stream of a file as one channel: as much of soundfile.SoundFile as `speech` uses.

    `frames` is what decoding gives, at `samplerate` Hz; `louder` the channel that is heard alone as the others
    cancel it (`louder`), else None. Raises Undecodable for a file without sound, and for one
    that is damaged or cut off anywhere (an .aac, .ts, .mpg, .amr, .ac3, or mp3 without a head does not say how
    long it should be: one that ends between two blocks is heard as far as it goes); UserError where PyAV is not
    installed.
    """

    format, extra_info, channels = "PyAV", "", 1

    def __init__(self, path: Path | str):
        self._path = os.path.abspath(path)  # else ffmpeg takes what stands before a colon for a protocol
        stat = os.stat(self._path)
        self.frames, self.samplerate, self.louder = _measured(self._path, stat.st_size, stat.st_mtime_ns)
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
                block, _ = next(self._blocks, (None, 0))
                if block is None:
                    return
                self._rest = mixed(block, self.louder)
            piece, self._rest = self._rest[:count], self._rest[count:]
            self._at, count = self._at + len(piece), count - len(piece)
            yield piece


def mixed(block: np.ndarray, channel: int | None) -> np.ndarray:
    """Channels, (frames, channels), as one, (frames,): their mean, or the one of that number (`louder`)."""
    return block.mean(axis=1, dtype=np.float32) if channel is None or block.shape[1] == 1 else block[:, channel]


def louder(blocks: Iterable[np.ndarray]) -> int | None:
    """The channel of most energy where the mean of all would be next to silence, as one of two is inverted (a cable
    wired the wrong way round); else None. `blocks` of a file: (frames, channels)."""
    moments: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(1))
    for block in blocks:
        block = np.column_stack([block, np.ones(len(block), np.float32)])
        with np.errstate(invalid="ignore", over="ignore"):  # samples that are none are another's to tell
            moments[block.shape[1]] = moments[block.shape[1]] + (block.T @ block).astype(float)
    if len(moments) != 1:  # none, or their number changes on the way
        return None
    (both,) = moments.values()
    if not np.isfinite(both).all():
        return None
    sums = both[:-1, -1:]  # of a channel's samples: a constant is no sound
    products = both[:-1, :-1] - sums @ sums.T / max(both[-1, -1], 1)
    energies = products.diagonal()
    return int((energies > 0.99 * energies.max()).argmax()) if products.sum() < CANCELS * energies.sum() else None


@lru_cache(maxsize=1 << 16)
def _measured(path: str, size: int, changed: int) -> tuple[int, int, int | None]:
    """Frames that decoding gives, how many a second, and `louder`; `size` and `changed` are those of the file."""
    counted = [0, 0]

    def blocks() -> Iterator[np.ndarray]:
        for block, hertz in _decoded(path):
            counted[:] = counted[0] + len(block), hertz
            yield block

    channel = louder(blocks())
    return *counted, channel


def _decoded(path: str) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks, float32, (frames, channels), and their rate, from the start to the end; Undecodable where bad."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"cannot hear {path}: libsndfile does not know it, and PyAV, which may, is not there "
                        f"({error}); install it with "
                        'pip install -e ".[meld]" (make setup has it), or give wav files') from None
    heard = rate = 0
    try:
        with av.open(path, metadata_errors="replace") as container:
            if container.format.long_name.startswith("PCM "):  # by the suffix, and the rate would be a guess
                raise Undecodable("it has no header that tells its rate")
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise Undecodable("it has no sound" if stream is None else "its sound is of an unknown kind")
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if rate not in (0, frame.sample_rate):
                        raise Undecodable(f"its rate changes from {rate} to {frame.sample_rate} Hz")
                    heard, rate = heard + frame.samples, frame.sample_rate
                    yield _samples(frame), rate
                if packet.is_corrupt:
                    raise Undecodable(f"it is cut off after {heard / max(rate, 1):.3f} s")
            if not heard:
                raise Undecodable("it has no sound")
            promised = _promised(container.format.name, stream)
            if heard < (promised - SHORT) * rate:
                raise Undecodable(f"it is cut off: {heard / rate:.3f} of {promised:.3f} s are there")
    except (av.FFmpegError, ValueError, IndexError) as error:
        # PyAV's own: ValueError for samples of a kind that numpy has not, IndexError for a stream that begins late.
        raise Undecodable(getattr(error, "strerror", None) or str(error)) from None


def _promised(container: str, stream: Any) -> float:
    """Seconds of sound that the file's header promises; 0 where it does not, or only by an estimate."""
    if container.startswith(COUNTED):
        return float((stream.duration or 0) * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))  # Matroska: where it ends
    ends = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else 0.0
    return ends - float((stream.start_time or 0) * stream.time_base)


def _samples(frame: Any) -> np.ndarray:
    """An av.AudioFrame's samples, full scale 1, float32, (samples, channels); surround as one channel."""
    samples = frame.to_ndarray()
    names = [channel.name for channel in frame.layout.channels]
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, len(names))
    if samples.dtype.kind == "u":
        samples = samples.astype(np.float32) - 128
        samples /= 128
    elif samples.dtype.kind == "i":
        samples = samples / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    samples = samples.astype(np.float32, copy=False)
    if len(names) <= 2 or not set(names) <= set(MIX):
        return samples
    return samples @ np.array([[MIX[name]] for name in names], np.float32)
