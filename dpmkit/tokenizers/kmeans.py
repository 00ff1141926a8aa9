"""K-means over frames: HuBERT's way to discrete units (Hsu et al. 2021, arXiv 2106.07447).

Frames are acoustic, as in HuBERT's first iteration, here with log energy and voiced log F0 beside the MFCCs, as
emotion needs prosody; `neural` has hidden states instead. What tells emotions apart is less than a step of such a
quantiser; `codes.supervised` puts it first, by the labels of the training fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.cluster.vq import vq
from scipy.ndimage import uniform_filter1d
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from threadpoolctl import threadpool_limits

from .. import runs
from ..settings import Settings, UserError
from . import acoustics

FITTED = "tokenizer.safetensors"
CONTEXT = 0.75  # seconds on either side, whose mean a supervised frame goes with: emotion is slower than sound
COMPONENTS, WEIGHT = 16, 0.5  # principal components beside the directions of emotion, and theirs in the distance


# CONTEXT was chosen as prosody_weight was, on CREMA-D's validation speakers by Moonshine's states: 0 s: 74.6, 0.2:
# 76.6, 0.4: 77.1, 0.5: 76.9, 0.6: 77.3, 1.0: 77.9, 1.9: 75.5; pooled over an utterance, without codes: 78.0.
# prosody_weight was chosen by what a logistic regression on an utterance's histogram of codes reaches on the demo
# corpus' validation speakers (WA, fold 1): 2: 66.1, 3: 66.1, 4: 66.3, 5: 65.5, 6: 65.5, a plateau.
class KMeansTokenizer:
    """Nearest of K centroids of standardised frames, fitted on the training fold: 256 at 25 Hz by default, prosody
    weighted by `prosody_weight`."""

    name, learns = "kmeans", inf
    mean = projection = centroids = None  # (features,), (features, dims), (codebook_size, dims) once fitted

    def __init__(self, settings: Settings):
        codes = settings.codes
        self.codebook_size, self.frame_rate = codes.codebook_size or 256, codes.frame_rate or acoustics.RATE
        self.prosody_weight, self.files, self.facts = codes.prosody_weight, {}, {"source": "the training fold"}
        self.supervised = codes.supervised

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """MFCC 1 to 12, log energy, log F0, voicing; float32, shape (frames, 15)."""
        if acoustic is not None and self.frame_rate == acoustics.RATE:
            return acoustic
        return acoustics.frames(waveform, self.frame_rate)

    def features(self, frames: np.ndarray) -> np.ndarray:
        """What a code is chosen by, (frames, features): each frame, if supervised beside the mean around it."""
        if not self.supervised:
            return frames
        around = 2 * round(CONTEXT * self.frame_rate) + 1
        return np.hstack([frames, uniform_filter1d(frames, around, axis=0, mode="nearest")])

    def standard(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of frames, shape (frames, features), for unit deviation times the weight; (features,)."""
        weights = np.ones(acoustics.PROSODY.stop)
        weights[acoustics.PROSODY] = self.prosody_weight
        weights = np.resize(weights, x.shape[1])  # of means as of frames
        deviation = x.std(axis=0, dtype=np.float64)
        # A feature that never moves (all silent) says nothing: weight 0 rather than a division by nothing.
        scale = np.where(deviation > 1e-6, weights / np.maximum(deviation, 1e-6), 0)
        return x.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)

    def fit(self, frames: Sequence[np.ndarray], emotions: Sequence[str | None]) -> None:
        """Mean, projection and centroids from the `frames` of utterances, which must be the training fold's alone,
        and, if supervised, their `emotions`; UserError where they are too few."""
        x = np.concatenate([*map(self.features, frames)])
        if len(x) < self.codebook_size:
            raise UserError(f"setting codes.codebook_size is {self.codebook_size}, but the training fold has "
                            f"only {len(x)} frames; lower it or give more audio")
        self.mean, scale = self.standard(x)
        x, self.projection = (x - self.mean) * scale, np.diag(scale)
        kmeans = MiniBatchKMeans(self.codebook_size, batch_size=4096, n_init=3, max_no_improvement=20,
                                 random_state=0)
        with threadpool_limits(1):  # sums in one order, whatever the machine has
            if self.supervised:
                found = directions(x, np.repeat(np.array(emotions, object), [*map(len, frames)]))
                x, self.projection = x @ found, scale[:, None] * found
            kmeans.fit(x)
        self.centroids = kmeans.cluster_centers_.astype(np.float32)

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """The nearest centroid of every frame, (frames,)."""
        x = (self.features(self.frames(waveform, acoustic)) - self.mean) @ self.projection
        codes, _ = vq(x.astype(float), self.centroids.astype(float))  # in float32 its distances have 5 digits
        return codes.astype(np.int64)

    def save(self, folder: Path) -> None:
        """`tokenizer.safetensors`, atomically."""
        with runs.atomic(folder / FITTED) as temporary:
            save_file({"mean": self.mean, "projection": self.projection, "centroids": self.centroids}, temporary)

    def load(self, folder: Path) -> None:
        """What `save` wrote; UserError for a file that is missing, damaged, or of another size."""
        path = folder / FITTED
        with runs.refused(f"{path} is not the tokenizer of these settings: delete its folder and run again"):
            kept = load_file(path)
            self.mean, self.projection, self.centroids = kept["mean"], kept["projection"], kept["centroids"]
            if len(self.centroids) != self.codebook_size:
                raise ValueError(f"it has {len(self.centroids)} centroids")


def directions(x: np.ndarray, emotions: np.ndarray) -> np.ndarray:
    """Where to look for emotion in frames beside their means, (frames, 2 * features), by that of their utterances
    (None: no label): along linear discriminant analysis, one direction less than emotions, of unit deviation within
    them, and beside them at WEIGHT along the frames' own first principal components, whitened; (2 * features,
    dims). UserError for one emotion."""
    known = np.array([emotion is not None for emotion in emotions])
    classes = sorted(set(emotions[known]))
    if len(classes) < 2:
        raise UserError(f"setting codes.supervised needs two emotions or more in the training fold, not "
                        f"{', '.join(classes) or 'none'}: set it false")
    lda = LinearDiscriminantAnalysis().fit(x[known].astype(float), emotions[known].astype(str))
    own = x[:, :x.shape[1] // 2].astype(float)
    pca = PCA(min(COMPONENTS, own.shape[1]), svd_solver="covariance_eigh").fit(own)
    moving = pca.explained_variance_ > 1e-9 * pca.explained_variance_[0]
    components = pca.components_[moving].T / np.sqrt(pca.explained_variance_[moving])
    components = np.vstack([components, np.zeros_like(components)])
    return np.hstack([lda.scalings_[:, :len(classes) - 1], WEIGHT * components]).astype(np.float32)
