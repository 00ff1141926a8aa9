"""Waveforms: any file with sound as float32 in [-1, 1], mono, shape (samples,), at `RATE`; speech found in one.

libsndfile decodes what it knows (wav, flac, ogg, mp3; any rate, width and number of channels), PyAV all else
(videos, m4a, amr, wma, …), by the content of a file, whatever its name; damage makes it unreadable.
"""

from __future__ import annotations

import os
import re
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import soundfile
from scipy import signal
from scipy.io import wavfile
from tqdm.auto import tqdm

from . import machine, runs
from .settings import SegmentsSettings, UserError

RATE = 16_000  # samples per second of every waveform in this kit
# Lower case; for those who look for sound in a folder. What is opened is known by its content.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".mp4",
            ".m4a", ".m4b", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".3gp", ".flv", ".wmv", ".wma", ".ts",
            ".mts", ".mpg", ".mpeg", ".vob", ".amr", ".ac3", ".wv")
BLOCK = 1 << 18  # frames decoded at a time
RATES = (1_000, 768_000)  # frames per second; a header outside is damaged
LOUDEST = 16.0  # full scale is 1; a float file beyond this holds integers' values and would only be clipped
CANCELS = 0.05  # of the energy that a channel has: below it the channels' mean is no more what was said
ZEROS = 16  # zero crossings of the resampling filter on either side
ROUNDING = 1e-3  # seconds that `end` may pass the end of the file: annotations are printed in milliseconds
DAMAGED = (61, 71, 161)  # libsndfile's codes for a damaged wav or flac, of which PyAV would make the best
SHORT = 0.1  # seconds that decoding may give less than the header says: a codec's delay and its last block
CHUNK = 512  # samples at `RATE` that silero-vad hears at a time
HELD = 1 << 28  # bytes of waveforms that are kept, an hour's; one file in any case
T = TypeVar("T")


class Unreadable(UserError):
    """A file that is missing, empty, no audio, damaged or cut off; `why` in words that follow 'it'."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"cannot read {path}: it {why}; fetch the file again from its source, or leave it out")
        self.why = why


class Sound(NamedTuple):
    """A whole file, its channels averaged; where they cancel each other, as one is inverted, the loudest alone."""

    waveform: np.ndarray  # (samples,)
    seconds: float  # by the file's own rate


_KEPT: dict[tuple, Sound] = {}  # by path, size and time of change; the one that was asked for last stands last
_LOCK = Lock()  # a corpus is surveyed in threads


def load(path: Path | str) -> Sound:
    """The whole file; Unreadable where it is none, UserError where it takes PyAV, which is not installed. What is
    cut off is refused where a wav, flac, mp3 or mp4 says how long it was; others are read as far as they go."""
    path = _there(Path(path))
    stat = path.stat()
    file = path, stat.st_size, stat.st_mtime_ns
    with _LOCK:
        sound = _KEPT.pop(file, None)
    sound = sound or _whole(path)
    with _LOCK:
        _KEPT[file] = sound
        while len(_KEPT) > 1 and sum(kept.waveform.nbytes for kept in _KEPT.values()) > HELD:
            del _KEPT[next(iter(_KEPT))]
    return sound


def _there(path: Path) -> Path:
    """The path of a file that is not empty."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise Unreadable(path, "does not exist") from None
    except (OSError, ValueError) as error:  # a folder that may not be entered, a ring of links, a null in the name
        raise Unreadable(path, f"cannot be read ({getattr(error, 'strerror', error)})") from None
    if not path.is_file():
        raise Unreadable(path, "is a folder" if path.is_dir() else "is no file")
    if not stat.st_size:
        raise Unreadable(path, "is empty (0 bytes)")
    return path


def read(path: Path | str, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """The part from `start` to `end` seconds (None: to its end), (samples,): `load(path)`'s waveform from
    round(start * RATE) to round(end * RATE). UserError also for a part that is not inside the file."""
    sound = load(path)
    inside = 0 <= start < (sound.seconds if end is None else end) <= sound.seconds + ROUNDING
    span = slice(round(start * RATE), None if end is None else round(end * RATE)) if inside else slice(0)
    part = sound.waveform[span].copy()
    if not len(part):
        raise UserError(f"cannot read a sample of {path} from {start} to {end} s: it lasts {sound.seconds:.3f} s; "
                        "mend the times, or the file is not the one they were made for")
    return part


def write(path: Path | str, waveform: np.ndarray, rate: int = RATE) -> None:
    """A waveform, finite, shape (samples,), as a wav of 16-bit PCM, atomically; beyond [-1, 1] it is clipped.
    UserError where it cannot be written."""
    pcm = np.clip(np.round(np.asarray(waveform, np.float64) * 32768), -32768, 32767).astype(np.int16)
    with runs.atomic(Path(path)) as temporary:
        wavfile.write(temporary, rate, pcm)


def _whole(path: Path) -> Sound:
    recording = Recording(path)
    return Sound(recording.through(lambda blocks: np.concatenate(list(blocks))), recording.seconds)


class Recording:
    """A file of any length, hours too, in blocks: the waveform that `load` has, which is never held. Raises what
    `load` does, once it comes to the damage."""

    def __init__(self, path: Path | str):
        self.path = _there(Path(path))
        self.seconds, self.samples = 0.0, 0  # by the file's own rate, and by `RATE`: known at its end
        self._channel = -1  # the mean of all

    def through(self, take: Callable[[Iterator[np.ndarray]], T]) -> T:
        """What `take` makes of all blocks, (samples,) each; anew where at the end its channels, of which the mean
        was taken, cancel each other."""
        channel, taken = self._channel, take(self._blocks())
        if channel != self._channel:
            warnings.warn(f"{self.path}: its channels cancel each other, as one is inverted: the loudest is heard "
                          "alone", stacklevel=2)
            taken = take(self._blocks())
        return taken

    def survey(self) -> float:
        """Its seconds, by decoding it to its end, which finds all damage."""
        self.through(deque(maxlen=0).extend)
        return self.seconds

    def parts(self, spans: Iterable[tuple[float, float]]) -> Iterator[np.ndarray]:
        """The waveform of each (start, end) in seconds, in order of their starts, as far as the file goes; held is
        what lies between the start of one and its end."""
        if not self.seconds:
            self.survey()
        blocks, held, at = self._blocks(), np.zeros(0, np.float32), 0
        for first, last in ((round(start * RATE), round(end * RATE)) for start, end in spans):
            block = held[:0]
            while block is not None:
                held = np.concatenate([held, block])
                passed = min(max(first - at, 0), len(held))
                held, at = held[passed:], at + passed
                block = next(blocks, None) if at + len(held) < last else None
            yield held[first - at:last - at].copy()

    def _blocks(self) -> Iterator[np.ndarray]:
        samples = 0
        for block in resampled(self._mono()):
            samples += len(block)
            yield block.clip(-1.0, 1.0)  # mp3, resampling and float files overshoot
        self.samples = samples

    def _mono(self) -> Iterator[tuple[np.ndarray, int]]:
        """The channels averaged, or the loudest where it is known that they cancel, (frames,), and the rate."""
        path, frames, rate = self.path, 0, 0
        sums = squares = np.zeros(1)  # of each channel and, behind them, of their mean
        for block, rate in _by_libsndfile(path) if _known(path) else _by_pyav(path):
            if not RATES[0] <= rate <= RATES[1]:
                raise Unreadable(path, f"claims {rate} samples per second")
            peak = np.abs(block).max()
            if not peak <= LOUDEST:
                raise Unreadable(path, f"holds samples up to {peak:.0f} where full scale is 1")
            channels = np.column_stack([block, block.mean(axis=1, dtype=np.float32)])
            sums = sums + channels.sum(axis=0, dtype=float)
            squares = squares + np.square(channels, dtype=float).sum(axis=0)
            frames += len(block)
            yield channels[:, self._channel], rate
        if not frames:
            raise Unreadable(path, "holds no samples")
        self.seconds = frames / rate
        *each, mean = squares / frames - (sums / frames) ** 2  # a constant is no sound
        if len(each) ** 2 * mean < CANCELS * sum(each) - 1e-12:  # -120 dB, where nothing is left but rounding
            self._channel = next(i for i, energy in enumerate(each) if energy > 0.99 * max(each))


def _known(path: Path) -> bool:
    """Whether libsndfile knows what the file holds, and how much: of an mp3 it only estimates that, unless a head
    counts the frames (recorders of streams and dictaphones write none)."""
    try:
        with soundfile.SoundFile(path) as file:
            mp3 = "MPEG" in file.subtype
    except (soundfile.SoundFileError, TypeError, UnicodeError) as error:  # a headerless .raw; a name not in UTF-8
        if getattr(error, "code", 1) in DAMAGED:
            raise _undecodable(path, error.error_string) from None
        return False
    with open(path, "rb") as data:  # the head stands behind a tag, which may hold a picture
        return not mp3 or bool(re.search(rb"(Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f]", data.read(1 << 22)))


def _by_libsndfile(path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks, float32, (frames, channels), and their rate, from the start to the end."""
    frames = 0
    with soundfile.SoundFile(path) as file:
        file.seekable = lambda: False  # else it seeks after every block, and in ogg and mp3 misses by some frames
        # That a wav was cut off stands in libsndfile's log alone. A size from 2**31 - 64 KiB up is no claim:
        # programs that write to a pipe put the largest number there.
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        if file.frames and cut and int(cut[2]) < int(cut[1]) < 2**31 - 2**16:
            raise Unreadable(path, f"is cut off ({cut[2]} of {cut[1]} bytes of sound)")
        try:
            while frames < file.frames:
                block = file.read(min(BLOCK, file.frames - frames), dtype="float32", always_2d=True)
                if not len(block):
                    raise Unreadable(path, f"is cut off ({frames} of {file.frames} samples are there)")
                frames += len(block)
                yield block, file.samplerate
        except (soundfile.SoundFileError, MemoryError) as error:
            raise Unreadable(path, f"cannot be decoded to its end ({str(error).strip().rstrip('.')})") from None


def _by_pyav(path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """The same of the first audio stream, surround mixed to stereo as ITU-R BS.775 has it: speech stands in the
    centre, and MELD, for one, has clips of two and of six channels, whose plain means would differ in level."""
    with runs.refused(f"cannot read {path}: libsndfile does not know it, and PyAV is not there; install it with "
                      'pip install -e ".[meld]" (make setup has it), or give wav files'):
        import av
    seconds = 0.0
    try:
        # An absolute path: ffmpeg takes what stands before a colon for a protocol.
        with av.open(os.path.abspath(path), metadata_errors="replace") as container:
            stream = next(iter(container.streams.audio), None)
            # The rate of "PCM" without a header would be a guess.
            if stream is None or stream.codec_context is None or container.format.long_name.startswith("PCM "):
                raise _undecodable(path, "it has no sound of a known kind and rate")
            surround = stream.layout.nb_channels > 2 and "channels" not in stream.layout.name
            floats = av.AudioResampler("fltp", "stereo" if surround else None, frame_size=BLOCK)
            for packet in container.demux(stream):
                frames = packet.decode()
                seconds += sum(frame.samples / frame.sample_rate for frame in frames)
                if packet.is_corrupt:
                    raise Unreadable(path, f"is cut off after {seconds:.3f} s")
                for frame in [*frames, *[None] * (not packet.size)]:  # the last packet is empty
                    for block in floats.resample(frame):
                        yield block.to_ndarray().T, block.sample_rate
            promised = float((stream.duration or 0) * stream.time_base)
            if container.format.name.startswith("mov,") and seconds < promised - SHORT:  # others may only estimate
                raise Unreadable(path, f"is cut off ({seconds:.3f} of {promised:.3f} s are there)")
    except UserError:
        raise
    # IndexError is PyAV's own, for a stream that begins late; ValueError its resampler's, for rates that change.
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise _undecodable(path, getattr(error, "strerror", None) or error) from None


def _undecodable(path: Path, why: object) -> Unreadable:
    return Unreadable(path, f"is not audio that can be decoded ({str(why).strip().rstrip('.')})")


def resample(waveform: np.ndarray, source: int, target: int = RATE) -> np.ndarray:
    """A waveform, (samples,), from `source` to `target` Hz; float32, (ceil(samples * target / source),). By scipy:
    no odd rate (44,101 Hz) takes gigabytes, as the filter costs up + down in memory, not up * down."""
    waveform = np.asarray(waveform, dtype=np.float32)
    if source == target:
        return waveform
    up, down = Fraction(target, source).as_integer_ratio()
    return signal.resample_poly(waveform, up, down, window=_lowpass(up, down)).astype(np.float32, copy=False)


def resampled(blocks: Iterable[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    """What `resample` gives of blocks of one waveform, (samples,) each, and their rate: the same bits, as every
    block is resampled with as much before and behind it as the filter reaches."""
    held, known, up, down = np.zeros(0, np.float32), 0, 1, 1  # `known` of the samples held are resampled
    for block, rate in blocks:
        up, down = Fraction(RATE, rate).as_integer_ratio()
        reach = down * -(-ZEROS * max(up, down) // (up * down))  # whole periods, as all that is cut off
        held = np.concatenate([held, block])
        more = (len(held) - known - reach) // down * down
        if more > 0:
            yield resample(held[:known + more + reach], rate)[known * up // down:(known + more) * up // down]
            passed = max(known + more - reach, 0)
            held, known = held[passed:], known + more - passed
    if len(held) > known:
        yield resample(held, rate)[known * up // down:]


@lru_cache(maxsize=16)
def _lowpass(up: int, down: int) -> np.ndarray:
    """Windowed sinc below the lower of both Nyquist frequencies, at the rate that both divide; (taps,)."""
    widest = max(up, down)
    return signal.firwin(2 * ZEROS * widest + 1, 1 / widest, window=("kaiser", 7.0)).astype(np.float32)


def find_speech(file: Path | str | Recording, settings: SegmentsSettings) -> pd.DataFrame:
    """A row per utterance of a recording without boundaries, found by silero-vad with these settings: start and end
    in seconds, whole milliseconds, in order, never overlapping; none for silence.

    What is longer than `max_speech` is cut at its longest pause, or where it is too long if it has none. A file is
    heard in blocks, whatever its length. UserError for an unreadable file, and without silero-vad.
    """
    import torch  # takes seconds, which a reader of a file need not wait

    recording = file if isinstance(file, Recording) else Recording(file)
    with machine.one_thread():  # 32 ms of audio keep no second thread busy
        with runs.refused('speech is found by silero-vad, which cannot be loaded: pip install -e ".[vad]"'):
            from silero_vad import get_speech_timestamps_from_probs, load_silero_vad
        model = load_silero_vad()

        @torch.no_grad()
        def likely(blocks: Iterator[np.ndarray]) -> array:
            model.reset_states()
            return array("d", (model(chunk, RATE).item() for chunks in _chunks(blocks, recording.path.name)
                               for chunk in torch.from_numpy(chunks)))

        spans = get_speech_timestamps_from_probs(
            recording.through(likely), RATE, settings.threshold, 1000 * settings.min_speech, settings.max_speech,
            1000 * settings.min_silence, 1000 * settings.pad, audio_length_samples=recording.samples)
    rows = [(span["start"] * 1000 // RATE / 1000, span["end"] * 1000 // RATE / 1000) for span in spans]
    return pd.DataFrame(rows, columns=["start", "end"], dtype=float)


def _chunks(blocks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Blocks of any length as silero-vad hears them, (chunks, CHUNK); the last one is filled up with silence."""
    rest, samples = np.zeros(0, np.float32), 0
    with tqdm(desc=f"speech: {name}", unit="s", delay=5, leave=False) as bar:  # silent for short files
        for block in blocks:
            rest, samples = np.concatenate([rest, block]), samples + len(block)
            whole = len(rest) // CHUNK * CHUNK
            yield rest[:whole].reshape(-1, CHUNK)
            rest = rest[whole:]
            bar.update(samples // RATE - bar.n)
    yield np.pad(rest, (0, -len(rest) % CHUNK)).reshape(-1, CHUNK)
