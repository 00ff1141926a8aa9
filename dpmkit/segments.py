"""Utterances of a recording that has no boundaries, found by voice activity: silero-vad, streamed.

The network hears 32 ms at a time and remembers what came before. Its probabilities are all that is kept of the
audio, 4 bytes a chunk, half a megabyte an hour; the boundaries are drawn from them by the library's own rule.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import runs, speech
from .settings import SegmentsSettings, UserError

CHUNK = 512  # samples at speech.RATE that the network hears at once
STEP = 1000 * CHUNK // speech.RATE  # the same in milliseconds, in which all that follows counts
SHORTEST = 0.1  # seconds: a max_speech below it leaves no place to cut
BAR = 600.0  # seconds of recording from which on a progress bar is shown


def find(path: Path | str, settings: SegmentsSettings, chunks: int = 512) -> pd.DataFrame:
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
    with runs.one_thread():  # 32 ms of audio keep no second one busy
        network, timestamps = _silero()
        probabilities, samples = _heard(path, network, chunks)
    spans = timestamps(
        probabilities, speech.RATE, settings.threshold, audio_length_samples=samples,
        min_speech_duration_ms=1000 * settings.min_speech, min_silence_duration_ms=1000 * settings.min_silence,
        speech_pad_ms=1000 * settings.pad)  # max_speech_duration_s stays infinite: its rule is another
    likely, most, least = np.asarray(probabilities), round(1000 * settings.max_speech), 1000 * settings.min_speech
    rows = [(start / 1000, end / 1000, float(likely[start // STEP:-(-end // STEP)].mean()))
            for span in spans for start, end in _pieces(*(round(1000 * span[at] / speech.RATE)
                                                          for at in ("start", "end")), likely, least, most)]
    table = pd.DataFrame(rows, columns=["start", "end", "speech"], dtype=float)
    return table.assign(end=table["end"].clip(upper=samples * 1000 // speech.RATE / 1000))


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


def _heard(path: Path | str, network: Any, chunks: int) -> tuple[array, int]:
    """The probability of speech in every chunk, the last one filled up with zeros; and the samples in all."""
    import torch  # takes seconds, which a reader of this module's tables alone need not wait

    found, samples, lasts = array("f"), 0, speech.seconds(path)
    network.reset_states()
    with torch.inference_mode(), tqdm(total=round(lasts), desc=f"{Path(path).name}: find speech", unit="s",
                                      disable=lasts < BAR) as bar:
        for block in speech.blocks(path, chunks * CHUNK):
            samples += len(block)
            whole = torch.from_numpy(np.pad(block, (0, -len(block) % CHUNK)))
            found.extend(network(chunk, speech.RATE).item() for chunk in whole.split(CHUNK))
            bar.update(samples // speech.RATE - bar.n)
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
