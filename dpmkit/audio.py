"""The sound of a video (mp4, mkv, webm, …) and of all else that libsndfile does not know, by PyAV, in the shape of
the `soundfile.SoundFile` that `speech` reads.

A container's header only estimates how many samples decoding gives, and a decoder that starts in the middle gives
others than one that comes from the start. So a file is decoded once to be counted (the count is kept while the
process lives and the file stays as it is), and a read decodes from the start, or goes on where the last one ended.
Neither keeps more than it was asked for. Where hours are to be heard in pieces, `speech.cuts` does so in one pass.

Surround sound is mixed to stereo as ITU-R BS.775 has it, then averaged: speech stands in the centre channel, and
MELD, for one, has clips of two and of six channels, which a plain mean would tell apart by their level.

speech: Waveforms: float32 in [-1, 1], mono, shape (samples,), at `RATE` unless told otherwise.

Whatever libsndfile decodes is heard (wav, flac, ogg, mp3; any rate, width and number of channels), and what else
PyAV decodes (videos, m4a, amr, wma, …): by its content, whatever its name. A file that cannot be heard is named,
with why: `fault` returns the reason, `read` raises it as a UserError. A recording of hours need not be held:
`blocks` and `cuts` hear it in one pass, bit by bit as `read` does (one more before, for several channels:
`inverted`).
segments: Utterances of a recording that has no boundaries, found by voice activity: silero-vad, streamed.

The network hears 32 ms at a time and remembers what came before. Its probabilities are all that is kept of the
audio, 4 bytes a chunk, half a megabyte an hour; the boundaries are drawn from them by the library's own rule.
"""

from __future__ import annotations

import io
import math
import os
import re
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from scipy import signal
from soundfile import SoundFileError
from tqdm.auto import tqdm

from . import machine, runs
from .settings import SegmentsSettings, UserError

# -- video ---------------------------------------------------------------------

VIDEO_SUFFIXES = (".mp4", ".m4a", ".m4b", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".3gp", ".flv",
            ".wmv",
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
        self.frames, self.samplerate, self.louder = _measured_track(self._path, stat.st_size, stat.st_mtime_ns)
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
        self._blocks, self._rest, self._at = _decoded_track(self._path), np.zeros(0, np.float32), 0

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
def _measured_track(path: str, size: int, changed: int) -> tuple[int, int, int | None]:
    """Frames that decoding gives, how many a second, and `louder`; `size` and `changed` are those of the file."""
    counted = [0, 0]

    def blocks() -> Iterator[np.ndarray]:
        for block, hertz in _decoded_track(path):
            counted[:] = counted[0] + len(block), hertz
            yield block

    channel = louder(blocks())
    return *counted, channel


def _decoded_track(path: str) -> Iterator[tuple[np.ndarray, int]]:
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


# -- speech --------------------------------------------------------------------

# Lower case; for those who look for sound in a folder. What is opened is told by its content.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".caf",
            ".w64", *VIDEO_SUFFIXES)
RATE = 16_000  # samples a second of every waveform in this kit
RATES = (1_000, 768_000)  # samples a second; a header outside is damaged
ROUNDING = 1e-3  # seconds that `end` may pass the end of the file: annotations are printed in milliseconds
LOUDEST = 16.0  # full scale is 1; a float file beyond this holds integers' values and would only be clipped
ZEROS = 16  # zero crossings of the resampling filter on either side
# libsndfile's codes for damaged wav and flac, which PyAV must not make the best of; others may be its mistakes.
DAMAGED = (61, 71, 161)
BLOCK = 1 << 20  # frames decoded at a time where no sample is kept


class _Unheard(Exception):
    """Why a file cannot be heard, in words that follow 'it'."""


def read(path: Path | str, start: float = 0.0, end: float | None = None, rate: int = RATE) -> np.ndarray:
    """The part from `start` to `end` seconds (None: to its end), channels averaged (but see `inverted`), at `rate`;
    (samples,).

    It equals `read(path)[round(start * rate):round(end * rate)]`, but only that part is decoded. Raises
    UserError for a file that cannot be heard and for a part that is not inside it.
    """
    with _heard(path) as file:
        first, last = _span(path, file, start, end, rate)
        begin, stop = _needed(file, first, last, rate)
        return _sampled(_decoded(file, begin, stop), begin, file.samplerate, first, last, rate)


def blocks(path: Path | str, samples: int = 1 << 18, begin: int = 0) -> Iterator[np.ndarray]:
    """The recording from sample `begin` on as successive waveforms of `samples` at `RATE` (the last one shorter).

    Joined they equal `read(path)[begin:]`; it is decoded once, and no more than a block is held. Raises UserError
    for a file that cannot be heard; for one that is cut off, after the blocks before that place.
    """
    with _heard(path) as file:
        total = _total(file, RATE)
        frames, at = np.zeros(0, np.float32), _needed(file, begin, begin, RATE)[0]
        for first in range(begin, total, samples):
            last = min(first + samples, total)
            needed, stop = _needed(file, first, last, RATE)
            frames = np.concatenate([frames[needed - at:], _decoded(file, at + len(frames), stop)])
            at = needed
            yield _sampled(frames, at, file.samplerate, first, last, RATE)


def cuts(path: Path | str, times: Iterable[tuple[float, float | None]]) -> Iterator[np.ndarray]:
    """The waveforms of parts (start, end), ordered by start, each as `read(path, start, end)`; in one pass.

    Parts may overlap; what is held are the blocks of the part at hand and of longer ones before it. Raises
    UserError as `read` does, for the times before anything is decoded; ValueError for parts out of order.
    """
    with _heard(path) as file:
        spans = [_span(path, file, start, end, RATE) for start, end in times]
    if any(a[0] > b[0] for a, b in pairwise(spans)):
        raise ValueError("parts must be ordered by their start")
    position = spans[0][0] if spans else 0
    held, coming = deque(), blocks(path, begin=position)
    for first, last in spans:
        while held and held[0][0] + len(held[0][1]) <= first:
            held.popleft()
        while position < last:
            block = next(coming)
            if position + len(block) > first:
                held.append((position, block))
            position += len(block)
        yield np.concatenate([block[max(0, first - at):max(0, last - at)] for at, block in held])


def write(path: Path | str, waveform: np.ndarray, rate: int = RATE) -> None:
    """A waveform, shape (samples,), as 16-bit PCM (.wav or .flac), atomically; beyond [-1, 1] it is clipped.

    Raises ValueError for another shape or non-finite samples, UserError where it cannot be written.
    """
    path, waveform = Path(path), np.asarray(waveform)
    if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
        raise ValueError(f"a waveform is finite, of shape (samples,), not empty; got shape {waveform.shape}")
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"cannot write {path}: name it .wav or .flac")
    pcm = np.clip(np.round(waveform.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    encoded = io.BytesIO()  # encoded in memory, as libsndfile hides why a write failed
    soundfile.write(encoded, pcm, rate, format=path.suffix[1:].upper(), subtype="PCM_16")
    with runs.atomic(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def seconds(path: Path | str) -> float:
    """Duration by the header; UserError where the file cannot be opened as audio."""
    with _heard(path) as file:
        return file.frames / file.samplerate


def fault(path: Path | str) -> str | None:
    """Why the file cannot be heard (missing, empty, not audio, cut off, no or non-finite samples), else None.

    The whole file is decoded, a block at a time. Silence is heard. An ogg does not say how long it should be:
    one that is cut off is heard as far as it goes.
    """
    try:
        with _opened(path) as file:
            for start in range(0, file.frames, BLOCK):
                _frames(file, start, min(start + BLOCK, file.frames))
    except _Unheard as why:
        return str(why)
    return None


def inverted(path: Path | str) -> bool:
    """Whether its channels cancel each other, so that the loudest alone is heard; UserError as `read`."""
    with _heard(path) as file:
        return _louder(file) is not None


def resample(waveform: np.ndarray, source: int, target: int = RATE) -> np.ndarray:
    """A waveform, shape (samples,), from `source` to `target` Hz; float32, ceil(samples * target / source).

    scipy rather than torchaudio: its filter costs up + down in memory, not up * down, so that no odd rate in
    a header (44,101 Hz) takes gigabytes, and a part comes out as it does in the whole, bit by bit.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if source == target:
        return waveform
    up, down = _ratio(source, target)
    return signal.resample_poly(waveform, up, down, window=_lowpass(up, down)).astype(np.float32, copy=False)


@lru_cache(maxsize=16)
def _lowpass(up: int, down: int) -> np.ndarray:
    """Windowed sinc below the lower of both Nyquist frequencies, at the rate that both divide; (taps,)."""
    widest = max(up, down)
    return signal.firwin(2 * ZEROS * widest + 1, 1 / widest, window=("kaiser", 7.0)).astype(np.float32)


def _ratio(source: int, target: int) -> tuple[int, int]:
    """target / source as the smallest (up, down)."""
    common = math.gcd(source, target)
    return target // common, source // common


def _total(file: soundfile.SoundFile, rate: int) -> int:
    """Samples of the whole file at `rate`."""
    up, down = _ratio(file.samplerate, rate)
    return -(-file.frames * up // down)


def _span(path: Path | str, file: soundfile.SoundFile, start: float, end: float | None, rate: int
          ) -> tuple[int, int]:
    """The part's first sample and the one after its last, at `rate`; UserError where it is not in the file."""
    lasts, total = file.frames / file.samplerate, _total(file, rate)
    stop = lasts if end is None else end
    if not (0 <= start < stop <= lasts + ROUNDING):
        raise UserError(f"cannot hear {path} from {start} to {stop} s: it lasts {lasts:.3f} s; "
                        "mend the times, or the file is not the one they were made for")
    first, last = round(start * rate), total if end is None else min(round(end * rate), total)
    if first >= last:
        raise UserError(f"cannot hear {path} from {start} to {stop} s: that is less than one sample at "
                        f"{rate} Hz; mend the times")
    return first, last


def _needed(file: soundfile.SoundFile, first: int, last: int, rate: int) -> tuple[int, int]:
    """The frames, begin to stop, that samples `first` to `last` at `rate` are made of: cut at whole periods of
    the ratio and wide enough for the filter, so that the sums are those of the whole."""
    up, down = _ratio(file.samplerate, rate)
    margin = ZEROS // min(up, down) + 1
    return max(0, first // up - margin) * down, min(file.frames, (-(-last // up) + margin) * down)


def _sampled(frames: np.ndarray, begin: int, source: int, first: int, last: int, rate: int) -> np.ndarray:
    """Samples `first` to `last` at `rate` from the frames that they need, which start at frame `begin`."""
    up, down = _ratio(source, rate)
    shift = begin // down * up
    out = resample(frames, source, rate)[first - shift:last - shift]
    return np.clip(out, -1.0, 1.0)  # mp3, resampling and float files overshoot


@contextmanager
def _heard(path: Path | str) -> Iterator[soundfile.SoundFile]:
    """`_opened`, its faults as UserError."""
    try:
        with _opened(path) as file:
            yield file
    except _Unheard as why:
        raise UserError(f"cannot hear {path}: it {why}; fetch the file again from its source, or take it out "
                        "of the corpus") from None


@contextmanager
def _opened(path: Path | str) -> Iterator[soundfile.SoundFile]:
    """The open file; _Unheard where its header already tells that it cannot be heard."""
    path = Path(path)
    try:
        if not path.is_file():
            raise _Unheard("is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist")
        if not path.stat().st_size:
            raise _Unheard("is empty (0 bytes)")
    except OSError as error:  # a folder that may not be entered, a name too long, a ring of links
        raise _Unheard(f"cannot be read ({error.strerror})") from None
    try:
        file = _known(path) or AudioTrack(path)
    except (soundfile.SoundFileError, OSError) as error:
        said = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise _Unheard(f"is not audio that can be decoded ({said})") from None
    with file:
        # soundfile seeks after every read of a file that it calls seekable, and seeks in ogg and mp3 miss by some
        # frames: without them, one read after the other gives what one long read gives.
        file.through = file.format in ("OGG", "MP3") or not getattr(file, "seekable", lambda: True)()  # GSM 6.10
        file.at = 0
        file.seekable = lambda: False
        if file.frames <= 0:
            raise _Unheard("holds no samples")
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise _Unheard(f"claims {file.samplerate} samples a second")
        # libsndfile hears what is left of a wav whose data were cut off, and tells only its log. A size from
        # 2**31 - 64 KiB up is no claim: programs that write to a pipe put the largest number there.
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        if cut and int(cut[2]) < int(cut[1]) < 2**31 - 2**16:
            raise _Unheard(f"is cut off ({cut[2]} of {cut[1]} bytes of sound)")
        yield file


def _known(path: Path) -> soundfile.SoundFile | None:
    """The file where libsndfile knows what it holds, and how much: of an mp3 it only estimates that, unless the
    first frame is a head that counts the others (recorders of streams and dictaphones write none). SoundFileError
    for one that is damaged."""
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError, UnicodeError) as error:  # a headerless .raw; a name not in UTF-8
        if getattr(error, "code", 1) in DAMAGED:
            raise
        return None
    if "MPEG" in file.subtype:
        with open(path, "rb") as data:
            at, head = 0, data.read(10)
            while head[:3] == b"ID3":
                at += 10 + sum(byte << 7 * place for place, byte in zip((3, 2, 1, 0), head[6:], strict=False))
                data.seek(at)
                head = data.read(10)
            if not re.search(rb"(Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f]", head + data.read(1 << 12)):
                file.close()
                return None
    return file


def _louder(file: soundfile.SoundFile | AudioTrack) -> int | None:
    """`video.louder` of the whole file."""
    if isinstance(file, AudioTrack):
        return file.louder
    if file.channels == 1:
        return None
    stat = os.stat(file.name)
    return _measured(os.path.abspath(file.name), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _measured(path: str, size: int, changed: int) -> int | None:
    """`video.louder` of a file that libsndfile decodes, as far as it can be; of the file's size and time."""
    def blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
        with suppress(_Unheard):
            for at in range(0, file.frames, BLOCK):
                yield _frames(file, at, min(at + BLOCK, file.frames))

    with _opened(path) as file:
        return louder(blocks(file))


def _decoded(file: soundfile.SoundFile | AudioTrack, start: int, stop: int) -> np.ndarray:
    """Frames start to stop, channels averaged, float32, (stop - start,); _Unheard where they are bad."""
    return mixed(_frames(file, start, stop), _louder(file) if file.channels > 1 else None)


def _frames(file: soundfile.SoundFile | AudioTrack, start: int, stop: int) -> np.ndarray:
    """Frames start to stop, float32, (stop - start, channels); _Unheard where they are bad."""
    try:
        if file.through:
            for at in range(file.at, start, BLOCK):
                file.read(min(BLOCK, start - at), dtype="float32")
        elif start != file.at:
            file.seek(start)
        frames = file.read(stop - start, dtype="float32", always_2d=True)
        file.at = start + len(frames)
    except (soundfile.SoundFileError, MemoryError) as error:
        raise _Unheard(f"cannot be decoded to its end ({str(error).strip().rstrip('.')})") from None
    if len(frames) < stop - start:
        raise _Unheard(f"is cut off ({(start + len(frames)) / file.samplerate:.3f} of "
                       f"{file.frames / file.samplerate:.3f} s are there)")
    peak = np.abs(frames).max(initial=0.0)  # no frames are left for a block that the filter's margin covered
    if not np.isfinite(peak):
        raise _Unheard("holds samples that are not finite numbers")
    if peak > LOUDEST:
        raise _Unheard(f"holds samples up to {peak:.0f} where full scale is 1")
    return frames


# -- segments ------------------------------------------------------------------

CHUNK = 512  # samples at speech.RATE that the network hears at once
STEP = 1000 * CHUNK // RATE  # the same in milliseconds, in which all that follows counts
SHORTEST = 0.1  # seconds: a max_speech below it leaves no place to cut
BAR = 600.0  # seconds of recording from which on a progress bar is shown


def find_speech(path: Path | str, settings: SegmentsSettings, chunks: int = 512) -> pd.DataFrame:
    """A row an utterance: start and end (seconds, whole milliseconds) and speech (its mean probability).

    An utterance begins where the probability reaches `threshold` and ends where it falls below threshold - 0.15
    for `min_silence`, or with the recording (silero's hysteresis); one of `min_speech` or less is none. Either side
    keeps `pad`, where a pause is too short for two of them half of it. What then is longer than `max_speech` is cut
    at its most silent place (`_pieces`). Rows are in order and never overlap. Silence gives no rows. `chunks` are
    decoded at a time; the result does not depend on it.

    Raises UserError for a file that cannot be heard, for settings that leave no place to cut, and where
    silero-vad is not installed.
    """
    if settings.max_speech < max(2 * settings.min_speech, SHORTEST):
        raise UserError(f"setting segments.max_speech is {settings.max_speech:g} s; it must be {SHORTEST} s or "
                        f"more, and at least twice segments.min_speech ({settings.min_speech:g} s)")
    with machine.one_thread():  # 32 ms of audio keep no second one busy
        network, timestamps = _silero()
        probabilities, samples = _spoken(path, network, chunks)
    spans = timestamps(
        probabilities, RATE, settings.threshold, audio_length_samples=samples,
        min_speech_duration_ms=1000 * settings.min_speech, min_silence_duration_ms=1000 * settings.min_silence,
        speech_pad_ms=1000 * settings.pad)  # max_speech_duration_s stays infinite: its rule is another
    likely, most, least = np.asarray(probabilities), round(1000 * settings.max_speech), 1000 * settings.min_speech
    rows = [(start / 1000, end / 1000, float(likely[start // STEP:-(-end // STEP)].mean()))
            for span in spans for start, end in _pieces(*(round(1000 * span[at] / RATE)
                                                          for at in ("start", "end")), likely, least, most)]
    table = pd.DataFrame(rows, columns=["start", "end", "speech"], dtype=float)
    return table.assign(end=table["end"].clip(upper=samples * 1000 // RATE / 1000))


def _pieces(start: int, end: int, likely: np.ndarray, least: float, most: int) -> Iterator[tuple[int, int]]:
    """The utterance in pieces of at most `most` milliseconds, each cut in the middle of the chunk of the lowest
    probability in the second half of what the piece may be (as WhisperX does, Bain et al. 2023, arXiv
    2303.00747), so that no piece is a splinter; `least` is left after the last cut."""
    while end - start > most:
        first = -(-(start + most // 2 - STEP // 2) // STEP)  # chunks whose middle lies in that half
        last = max(first, int(min(start + most, end - least) - STEP // 2) // STEP)
        cut = (first + int(likely[first:last + 1].argmin())) * STEP + STEP // 2
        yield start, cut
        start = cut
    yield start, end


def _spoken(path: Path | str, network: Any, chunks: int) -> tuple[array, int]:
    """The probability of speech in every chunk, the last one filled up with zeros; and the samples in all."""
    import torch  # takes seconds, which a reader of this module's tables alone need not wait

    found, samples, lasts = array("f"), 0, seconds(path)
    network.reset_states()
    with torch.inference_mode(), tqdm(total=round(lasts), desc=f"{Path(path).name}: find speech", unit="s",
                                      disable=lasts < BAR) as bar:
        for block in blocks(path, chunks * CHUNK):
            samples += len(block)
            whole = torch.from_numpy(np.pad(block, (0, -len(block) % CHUNK)))
            found.extend(network(chunk, RATE).item() for chunk in whole.split(CHUNK))
            bar.update(samples // RATE - bar.n)
    return found, samples


@lru_cache(maxsize=1)
def _silero() -> tuple[Any, Callable[..., list[dict[str, int]]]]:
    """The library's network, its weights from the wheel, and its rule that makes time stamps of probabilities."""
    try:
        from silero_vad import get_speech_timestamps_from_probs, load_silero_vad  # the former since 6.2.2
    except (ImportError, OSError) as error:
        raise UserError(f"speech is found by silero-vad 6.2.2 or newer, which cannot be loaded ({error}): "
                        'pip install -e ".[vad]"') from None
    return load_silero_vad(), get_speech_timestamps_from_probs
