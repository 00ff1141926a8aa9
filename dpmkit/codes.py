"""Speech tokenizers: a mono waveform to discrete codes, `frame_rate` of them a second.

One protocol: `fit` on waveforms of the training fold, `encode` waveforms to codes, `frame_rate`,
`codebook_size`, `save`. `KMeansTokenizer` is HuBERT's first iteration (Hsu et al. 2021, arXiv 2106.07447):
k-means over acoustic frames, here with log energy and voiced log F0 beside the MFCCs, as emotion needs prosody.
`make` encodes a corpus once and caches it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torchaudio.transforms import MFCC
from tqdm.auto import tqdm

from . import runs, speech
from .corpora import Corpus, Utterance
from .settings import CodesSettings, Settings, UserError

WINDOW = 1024  # samples (64 ms) of one frame: two periods of 60 Hz and more
CEPSTRA = 12  # MFCCs 1 to 12; the zeroth is energy again
PROSODY = slice(CEPSTRA, CEPSTRA + 3)  # log energy, log2 F0, voicing
PITCH = (60.0, 600.0)  # Hz, searched for F0
VOICED = 0.5  # of 1, normalised autocorrelation from which a frame counts as voiced
FLOOR = 1e-5  # root mean square below which nothing is heard: -100 dB of full scale
CENTRE = 160.0  # Hz, F0 of an utterance without a voiced frame


class Tokenizer(Protocol):
    """What every tokenizer does. Waveforms are float32 in [-1, 1] at speech.RATE, shape (samples,); codes are
    int64, shape (frames,), frames = round(seconds * frame_rate), at least 1."""

    name: str
    codebook_size: int
    frame_rate: float

    def fit(self, waveforms: Iterable[np.ndarray]) -> None: ...
    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]: ...
    def save(self, folder: Path) -> None: ...


def frames(waveform: np.ndarray, frame_rate: float = 25.0) -> np.ndarray:
    """Acoustic frames, float32, shape (frames, 15): MFCC 1 to 12, log10 energy, log2 F0, voicing in [0, 1].

    Unvoiced frames take F0 from the voiced ones around them, linearly; an utterance without any takes CENTRE.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
        raise ValueError(f"a waveform is finite, of shape (samples,), not empty; got shape {waveform.shape}")
    hop = speech.RATE / frame_rate
    count = max(1, round(len(waveform) / hop))
    # Frame i looks at WINDOW samples around its middle, (i + 1/2) hop; zeros lie beyond both ends.
    starts = np.round((np.arange(count) + 0.5) * hop).astype(int)
    padded = np.pad(waveform, (WINDOW // 2, WINDOW + int(hop)))
    windows = torch.from_numpy(padded[starts[:, None] + np.arange(WINDOW)])
    with torch.inference_mode():
        cepstra = _mfcc()(windows)[:, 1:, 0]
        rms = windows.square().mean(dim=1).sqrt()
        f0, strength = _pitch(windows)
    energy = torch.log10(rms.clamp_min(FLOOR)).numpy()
    heard = (strength.numpy() > VOICED) & (rms.numpy() > FLOOR)
    log_f0 = np.full(count, np.log2(CENTRE))
    if heard.any():
        log_f0 = np.interp(np.arange(count), np.flatnonzero(heard), np.log2(f0.numpy()[heard]))
    return np.column_stack([cepstra.numpy(), energy, log_f0, strength.numpy()]).astype(np.float32)


@cache
def _mfcc() -> MFCC:
    """One spectrum a window: the caller cuts the windows, so that every one is computed on its own."""
    return MFCC(speech.RATE, CEPSTRA + 1, melkwargs={"n_fft": WINDOW, "hop_length": WINDOW, "n_mels": 40,
                                                     "center": False})


def _pitch(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """F0 in Hz and voicing strength in [0, 1], each (frames,), by the autocorrelation of the windowed signal
    over that of the window (Boersma 1993), with his preference for the higher of two octaves."""
    low, high = int(speech.RATE / PITCH[1]), int(speech.RATE / PITCH[0])
    hann, divisor, cost = _lags(low, high)
    r = _autocorrelation((windows - windows.mean(dim=1, keepdim=True)) * hann, high) / divisor
    best = (r[:, low:high + 1] - cost).argmax(dim=1, keepdim=True) + low
    before, peak, after = r.gather(1, best + torch.tensor([-1, 0, 1])).unbind(dim=1)
    curve = before - 2 * peak + after
    shift = torch.where(curve < -1e-6, (before - after) / (2 * curve.clamp_max(-1e-6)), 0.0)
    return speech.RATE / (best[:, 0] + shift.clamp(-0.5, 0.5)), peak.clamp(0.0, 1.0)


@cache
def _lags(low: int, high: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The window (WINDOW,), its autocorrelation (high + 2,), and what lags low to high cost: 0.02 an octave."""
    hann = torch.hann_window(WINDOW)
    return hann, _autocorrelation(hann, high), 0.02 * torch.log2(torch.arange(low, high + 1) / low)


def _autocorrelation(x: torch.Tensor, high: int) -> torch.Tensor:
    """Autocorrelation at lags 0 to high + 1 over that at 0, shape (..., high + 2)."""
    spectrum = torch.view_as_real(torch.fft.rfft(x, 2 * WINDOW)).square().sum(dim=-1)
    c = torch.fft.irfft(spectrum)[..., :high + 2]
    return c / c[..., :1].clamp_min(1e-10)


def pooled(waveform: np.ndarray) -> np.ndarray:
    """One utterance in 76 numbers: mean, standard deviation, 10th, 50th and 90th percentile of its frames'
    features, and its log duration."""
    x = frames(waveform)
    return np.concatenate([x.mean(axis=0), x.std(axis=0), *np.percentile(x, [10, 50, 90], axis=0),
                           [np.log2(len(x))]])


class KMeansTokenizer:
    """Nearest of `codebook_size` centroids of standardised frames, prosody weighted by `prosody_weight`."""

    name = "kmeans"

    def __init__(self, settings: CodesSettings):
        self.codebook_size, self.frame_rate = settings.codebook_size, settings.frame_rate
        self.prosody_weight = settings.prosody_weight
        self.mean = self.scale = self.centroids = None  # (15,), (15,), (codebook_size, 15) once fitted

    def fit(self, waveforms: Iterable[np.ndarray]) -> None:
        """Mean, scale and centroids from these waveforms, which must be the training fold's alone."""
        self.fit_frames(np.concatenate([frames(w, self.frame_rate) for w in waveforms]))

    def fit_frames(self, x: np.ndarray) -> None:
        """`fit` where the frames, shape (frames, 15), are known; UserError where they are too few."""
        if len(x) < self.codebook_size:
            raise UserError(f"setting codes.codebook_size is {self.codebook_size}, but the training fold has "
                            f"only {len(x)} frames; lower it or give more audio")
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        weights = np.ones(x.shape[1])
        weights[PROSODY] = self.prosody_weight
        deviation = x.std(axis=0, dtype=np.float64)
        # A feature that never moves (all silent) says nothing: weight 0 rather than a division by nothing.
        self.scale = np.where(deviation > 1e-6, weights / np.maximum(deviation, 1e-6), 0).astype(np.float32)
        kmeans = MiniBatchKMeans(self.codebook_size, batch_size=4096, n_init=3, max_no_improvement=20,
                                 random_state=0)
        with threadpool_limits(1):  # sums in one order, whatever the machine has
            kmeans.fit((x - self.mean) * self.scale)
        self.centroids = kmeans.cluster_centers_.astype(np.float32)

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each waveform; a waveform's codes do not depend on its company."""
        return [self.encode_frames(frames(w, self.frame_rate)) for w in waveforms]

    def encode_frames(self, x: np.ndarray) -> np.ndarray:
        """`encode` where the frames, shape (frames, 15), are known."""
        if self.centroids is None:
            raise RuntimeError("the tokenizer is not fitted: call fit or load")
        x = (x - self.mean) * self.scale
        nearest = [np.square(self.centroids - row).sum(axis=1).argmin() for row in x]
        return np.array(nearest, dtype=np.int64)

    def save(self, folder: Path) -> None:
        """`tokenizer.safetensors`, atomically: weights, and what they are in its metadata."""
        facts = {"name": self.name, "codebook_size": self.codebook_size, "frame_rate": self.frame_rate,
                 "prosody_weight": self.prosody_weight}
        with runs.atomic(Path(folder) / "tokenizer.safetensors") as temporary:
            save_file({"mean": self.mean, "scale": self.scale, "centroids": self.centroids}, temporary,
                      metadata={"dpmkit": json.dumps(facts)})

    @classmethod
    def load(cls, folder: Path) -> KMeansTokenizer:
        """What `save` wrote; UserError for a file that is missing or not one of these."""
        path = Path(folder) / "tokenizer.safetensors"
        try:
            with safe_open(path, "np") as file:
                facts = json.loads(file.metadata()["dpmkit"])
                weights = {name: file.get_tensor(name) for name in ("mean", "scale", "centroids")}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a tokenizer of this kit ({error}); delete its folder and run "
                            "again") from error
        tokenizer = cls(CodesSettings(facts["name"], facts["codebook_size"], facts["frame_rate"],
                                      facts["prosody_weight"]))
        tokenizer.mean, tokenizer.scale, tokenizer.centroids = weights.values()
        return tokenizer


TOKENIZERS = {"kmeans": KMeansTokenizer}


@dataclass(frozen=True)
class CorpusCodes:
    """A corpus in codes: utterance id -> codes (frames,), and -> `pooled` features (76,); `facts` for records."""

    key: str
    codes: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    facts: dict[str, Any]


def make(settings: Settings, corpus: Corpus) -> CorpusCodes:
    """Codes and pooled features of every utterance, from `runs/codes/<key>/` or made and kept there.

    The tokenizer is fitted on the training conversations of `settings.fold` alone. Raises UserError for an
    unknown tokenizer and for audio that cannot be heard.
    """
    if settings.codes.tokenizer not in TOKENIZERS:
        raise UserError(f"setting codes.tokenizer is {settings.codes.tokenizer!r}; known tokenizers: "
                        f"{', '.join(TOKENIZERS)}")
    fold = corpus.folds[settings.fold - 1]
    key = runs.key(settings.codes, corpus.key, fold.train, runs.code_version(sys.modules[__name__], speech))
    folder = runs.folder(settings, "codes", key)
    table, facts = folder / "codes.parquet", folder / "facts.json"
    if not (table.is_file() and facts.is_file()):
        tokenizer = _fitted(settings, corpus, fold.train, folder)
        frame, measured = _encoded(tokenizer, [u for c in corpus.conversations for u in c.utterances])
        weights = hashlib.sha256((folder / "tokenizer.safetensors").read_bytes()).hexdigest()
        runs.write_json(facts, {"tokenizer": tokenizer.name, "codebook_size": tokenizer.codebook_size,
                                "frame_rate": tokenizer.frame_rate, "weights_sha256": weights, **measured})
        with runs.atomic(table) as temporary:
            frame.to_parquet(temporary, index=False)
    frame = pd.read_parquet(table)
    return CorpusCodes(key, {i: c.astype(np.int64) for i, c in zip(frame["id"], frame["codes"], strict=True)},
                       dict(zip(frame["id"], frame["features"], strict=True)),
                       json.loads(facts.read_text(encoding="utf-8")))


def _fitted(settings: Settings, corpus: Corpus, train: Sequence[str], folder: Path) -> Tokenizer:
    """The tokenizer of `folder`, fitted first where there is none."""
    kind = TOKENIZERS[settings.codes.tokenizer]
    if not (folder / "tokenizer.safetensors").is_file():
        clips = list(dict.fromkeys(u.audio for c in corpus.select(train) for u in c.utterances))
        tokenizer = kind(settings.codes)
        tokenizer.fit(speech.read(clip.path, clip.start, clip.end)
                      for clip in tqdm(clips, desc="tokenizer: fit", unit="utterance"))
        tokenizer.save(folder)
    return kind.load(folder)


def _encoded(tokenizer: Tokenizer, utterances: Sequence[Utterance]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of id, codes, features; and what encoding took. A clip that stands in several conversations, as in
    composed corpora, is heard once."""
    heard: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
    seconds = spent = 0.0
    for clip in tqdm(dict.fromkeys(u.audio for u in utterances), desc="tokenizer: encode", unit="utterance"):
        waveform = speech.read(clip.path, clip.start, clip.end)
        began = time.perf_counter()
        codes = tokenizer.encode([waveform])[0]
        spent += time.perf_counter() - began
        seconds += len(waveform) / speech.RATE
        heard[clip] = codes, pooled(waveform)
    frame = pd.DataFrame({"id": [u.id for u in utterances],
                          "codes": [heard[u.audio][0].astype(np.int32) for u in utterances],
                          "features": [heard[u.audio][1] for u in utterances]})
    return frame, {"utterances": len(utterances), "clips": len(heard), "hours": seconds / 3600,
                   "codes": sum(len(c) for c in frame["codes"]), "real_time_factor": spent / seconds}
