"""Waveforms: float32 in [-1, 1], mono, shape (samples,), at `RATE` unless told otherwise.

Whatever libsndfile decodes is heard (wav, flac, ogg, mp3; any rate, width and number of channels), and what else
PyAV decodes (videos, m4a, amr, wma, …): by its content, whatever its name. A file that cannot be heard is named,
with why: `fault` returns the reason, `read` raises it as a UserError. A recording of hours need not be held:
`blocks` and `cuts` hear it in one pass, bit by bit as `read` does (one more before, for several channels:
`inverted`).
"""

from __future__ import annotations

import io
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

from . import runs, video
from .settings import UserError

# Lower case; for those who look for sound in a folder. What is opened is told by its content.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".caf",
            ".w64", *video.SUFFIXES)
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
        file = _known(path) or video.AudioTrack(path)
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


def _louder(file: soundfile.SoundFile | video.AudioTrack) -> int | None:
    """`video.louder` of the whole file."""
    if isinstance(file, video.AudioTrack):
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
        return video.louder(blocks(file))


def _decoded(file: soundfile.SoundFile | video.AudioTrack, start: int, stop: int) -> np.ndarray:
    """Frames start to stop, channels averaged, float32, (stop - start,); _Unheard where they are bad."""
    return video.mixed(_frames(file, start, stop), _louder(file) if file.channels > 1 else None)


def _frames(file: soundfile.SoundFile | video.AudioTrack, start: int, stop: int) -> np.ndarray:
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
