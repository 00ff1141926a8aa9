"""K-means over frames: HuBERT's way to discrete units (Hsu et al. 2021, arXiv 2106.07447).

Frames are acoustic, as in HuBERT's first iteration, here with log energy and voiced log F0 beside the MFCCs, as
emotion needs prosody; `neural` has hidden states instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.cluster.vq import vq
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from .. import runs
from ..settings import Settings, UserError
from . import acoustics

FITTED = "tokenizer.safetensors"


# prosody_weight was chosen by what a logistic regression on an utterance's histogram of codes reaches on the demo
# corpus' validation speakers (WA, fold 1): 2: 66.1, 3: 66.1, 4: 66.3, 5: 65.5, 6: 65.5, a plateau.
class KMeansTokenizer:
    """Nearest of K centroids of standardised frames, fitted on the training fold: 256 at 25 Hz by default, prosody
    weighted by `prosody_weight`."""

    name, learns = "kmeans", inf
    mean = scale = centroids = None  # (features,), (features,), (codebook_size, features) once fitted

    def __init__(self, settings: Settings):
        codes = settings.codes
        self.codebook_size, self.frame_rate = codes.codebook_size or 256, codes.frame_rate or acoustics.RATE
        self.prosody_weight, self.files, self.facts = codes.prosody_weight, {}, {"source": "the training fold"}

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """MFCC 1 to 12, log energy, log F0, voicing; float32, shape (frames, 15)."""
        if acoustic is not None and self.frame_rate == acoustics.RATE:
            return acoustic
        return acoustics.frames(waveform, self.frame_rate)

    def standard(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of frames, shape (frames, features), for unit deviation times the weight; (features,)."""
        weights = np.ones(x.shape[1])
        weights[acoustics.PROSODY] = self.prosody_weight
        deviation = x.std(axis=0, dtype=np.float64)
        # A feature that never moves (all silent) says nothing: weight 0 rather than a division by nothing.
        scale = np.where(deviation > 1e-6, weights / np.maximum(deviation, 1e-6), 0)
        return x.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)

    def fit(self, frames: Iterable[np.ndarray]) -> None:
        """Mean, scale and centroids from the `frames` of utterances, which must be the training fold's alone;
        UserError where they are too few."""
        x = np.concatenate(list(frames))
        if len(x) < self.codebook_size:
            raise UserError(f"setting codes.codebook_size is {self.codebook_size}, but the training fold has "
                            f"only {len(x)} frames; lower it or give more audio")
        self.mean, self.scale = self.standard(x)
        kmeans = MiniBatchKMeans(self.codebook_size, batch_size=4096, n_init=3, max_no_improvement=20,
                                 random_state=0)
        with threadpool_limits(1):  # sums in one order, whatever the machine has
            kmeans.fit((x - self.mean) * self.scale)
        self.centroids = kmeans.cluster_centers_.astype(np.float32)

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """The nearest centroid of every frame, (frames,)."""
        x = (self.frames(waveform, acoustic) - self.mean) * self.scale
        codes, _ = vq(x.astype(float), self.centroids.astype(float))  # in float32 its distances have 5 digits
        return codes.astype(np.int64)

    def save(self, folder: Path) -> None:
        """`tokenizer.safetensors`, atomically."""
        with runs.atomic(folder / FITTED) as temporary:
            save_file({"mean": self.mean, "scale": self.scale, "centroids": self.centroids}, temporary)

    def load(self, folder: Path) -> None:
        """What `save` wrote; UserError for a file that is missing, damaged, or of another size."""
        path = folder / FITTED
        with runs.refused(f"{path} is not the tokenizer of these settings: delete its folder and run again"):
            kept = load_file(path)
            self.mean, self.scale, self.centroids = kept["mean"], kept["scale"], kept["centroids"]
            if len(self.centroids) != self.codebook_size:
                raise ValueError(f"it has {len(self.centroids)} centroids")
