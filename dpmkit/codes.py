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
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from . import acoustics, runs, speech
from .acoustics import PROSODY, frames, pooled
from .corpora import Corpus, Utterance
from .settings import CodesSettings, Settings, UserError


class Tokenizer(Protocol):
    """What every tokenizer does. Waveforms are float32 in [-1, 1] at speech.RATE, shape (samples,); codes are
    int64, shape (frames,), frames = round(seconds * frame_rate), at least 1."""

    name: str
    codebook_size: int
    frame_rate: float

    def fit(self, waveforms: Iterable[np.ndarray]) -> None: ...
    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]: ...
    def save(self, folder: Path) -> None: ...


# prosody_weight was chosen by what a logistic regression on an utterance's histogram of codes reaches on the demo
# corpus' validation speakers (WA, fold 1): 2: 66.1, 3: 66.1, 4: 66.3, 5: 65.5, 6: 65.5, a plateau; with the
# corpus' first, harder knobs 1: 55.1, 2: 58.5, 4: 60.0.
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
    code = runs.code_version(sys.modules[__name__], acoustics, speech)
    key = runs.key(settings.codes, corpus.key, fold.train, code)
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
