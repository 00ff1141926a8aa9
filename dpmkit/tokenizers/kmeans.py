"""K-means over frames: HuBERT's way to discrete units (Hsu et al. 2021, arXiv 2106.07447).

Frames are acoustic, as in HuBERT's first iteration, here with log energy and voiced log F0 beside the MFCCs, as
emotion needs prosody; `neural` has hidden states instead. What tells emotions apart is less than a step of such a
quantiser; `codes.supervised` puts it first, by the labels of the training fold. Directions that were fitted on a
clip tell its emotion better than they will tell a stranger's, and an SLLM that is trained on such codes believes
them too much. So each training speaker's clips are encoded along directions that were fitted without that speaker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.cluster.vq import vq
from scipy.linalg import eigh, orthogonal_procrustes
from scipy.ndimage import uniform_filter1d
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from .. import runs
from ..settings import Settings, UserError
from . import acoustics

FITTED, PARTS = "tokenizer.safetensors", ("mean", "projections", "offsets", "centroids")
CONTEXT = 0.75  # seconds on either side, whose mean a supervised frame goes with: emotion is slower than sound
HELD_OUT = 10  # groups of training speakers, each encoded along directions of the others
COMPONENTS, WEIGHT = 16, 0.5  # principal components beside the directions of emotion, and theirs in the distance


# CONTEXT was chosen as prosody_weight was, on CREMA-D's validation speakers by Moonshine's states: 0 s: 74.6, 0.2:
# 76.6, 0.4: 77.1, 0.5: 76.9, 0.6: 77.3, 1.0: 77.9, 1.9: 75.5; pooled over an utterance, without codes: 78.0.
# prosody_weight was chosen by what a logistic regression on an utterance's histogram of codes reaches on the demo
# corpus' validation speakers (WA, fold 1): 2: 66.1, 3: 66.1, 4: 66.3, 5: 65.5, 6: 65.5, a plateau.
class KMeansTokenizer:
    """Nearest of K centroids of standardised frames, fitted on the training fold: 256 at 25 Hz by default, prosody
    weighted by `prosody_weight`."""

    name, learns = "kmeans", inf
    mean = centroids = None  # (features,), (codebook_size, dims) once fitted
    # (1 + groups, features, dims), (1 + groups, dims), of strangers and then of each `group`: a frame lies at its
    # features less `mean`, @ projection, less offset.
    projections = offsets = None

    def __init__(self, settings: Settings):
        codes = settings.codes
        self.codebook_size, self.frame_rate = codes.codebook_size or 256, codes.frame_rate or acoustics.RATE
        self.prosody_weight, self.files, self.facts = codes.prosody_weight, {}, {"source": "the training fold"}
        self.supervised, self.group = codes.supervised, {}

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

    def fit(self, frames: Sequence[np.ndarray], emotions: Sequence[str | None], speakers: Sequence[str]) -> None:
        """Mean, projections and centroids from the `frames` of utterances, which must be the training fold's alone,
        and, if supervised, their `emotions` and `speakers`; UserError where they are too few."""
        x = np.concatenate([*map(self.features, frames)])
        if len(x) < self.codebook_size:
            raise UserError(f"setting codes.codebook_size is {self.codebook_size}, but the training fold has "
                            f"only {len(x)} frames; lower it or give more audio")
        self.mean, scale = self.standard(x)
        x, self.projections, self.group = (x - self.mean) * scale, np.diag(scale)[None], {}
        self.offsets = np.zeros((1, x.shape[1]), np.float32)
        kmeans = MiniBatchKMeans(self.codebook_size, batch_size=4096, n_init=3, max_no_improvement=20,
                                 random_state=0)
        with threadpool_limits(1):  # sums in one order, whatever the machine has
            if self.supervised:
                self.group, group = held_out(speakers)
                lengths = [*map(len, frames)]
                group, labels = np.repeat(group, lengths), np.repeat(np.array(emotions, object), lengths)
                found, self.offsets = directions(x, labels, group)
                placed = np.empty((len(x), found.shape[2]), np.float32)
                for number in np.unique(group):
                    its = group == number
                    placed[its] = x[its] @ found[number] - self.offsets[number]
                x, self.projections = placed, scale[:, None] * found
            kmeans.fit(x)
        self.centroids = kmeans.cluster_centers_.astype(np.float32)

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None, speaker: str = "") -> np.ndarray:
        """The nearest centroid of every frame, (frames,). `speaker`: who it is, where that may be one of those that
        it was fitted on."""
        group = self.group.get(speaker, 0)
        x = self.features(self.frames(waveform, acoustic)) - self.mean
        x = x @ self.projections[group] - self.offsets[group]
        codes, _ = vq(x.astype(float), self.centroids.astype(float))  # in float32 its distances have 5 digits
        return codes.astype(np.int64)

    def save(self, folder: Path) -> None:
        """`tokenizer.safetensors`, atomically."""
        kept = {name: getattr(self, name) for name in PARTS}
        kept = {name: np.ascontiguousarray(part) for name, part in kept.items()}  # safetensors writes raw memory
        with runs.atomic(folder / FITTED) as temporary:
            save_file(kept, temporary, {"group": json.dumps(self.group)})

    def load(self, folder: Path) -> None:
        """What `save` wrote; UserError for a file that is missing, damaged, or of another size."""
        path = folder / FITTED
        with (runs.refused(f"{path} is not the tokenizer of these settings: delete its folder and run again"),
              safe_open(path, "np") as kept):
            for name in PARTS:
                setattr(self, name, kept.get_tensor(name))
            self.group = json.loads(kept.metadata()["group"])
            if len(self.centroids) != self.codebook_size:
                raise ValueError(f"it has {len(self.centroids)} centroids")


def held_out(speakers: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
    """Speaker -> group, 1 to HELD_OUT, or to as many as there are speakers; and that of each utterance,
    (utterances,). With a single speaker there is nobody to leave out: group 0."""
    names = sorted(set(speakers))
    group = {name: 1 + i % HELD_OUT for i, name in enumerate(names)} if len(names) > 1 else {}
    return group, np.array([group.get(speaker, 0) for speaker in speakers])


def directions(x: np.ndarray, emotions: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to look for emotion in frames beside their means, (frames, 2 * features), by the `emotions` of their
    utterances (None: no label): first by all of them, then for each `group`, (frames,), from 1 on, by those of the
    others; (1 + groups, 2 * features, dims). Along linear discriminant analysis, one direction less than emotions,
    of unit deviation within them, and beside them at WEIGHT along the frames' own first principal components,
    whitened. And where the middle of the emotions lies along them, (1 + groups, dims), for a group as for all.
    UserError for one emotion."""
    known = np.array([emotion is not None for emotion in emotions])
    classes = sorted(set(emotions[known]))
    if len(classes) < 2:
        raise UserError(f"setting codes.supervised needs two emotions or more in the training fold, not "
                        f"{', '.join(classes) or 'none'}: set it false")
    own = x[:, :x.shape[1] // 2].astype(float)
    pca = PCA(min(COMPONENTS, own.shape[1]), svd_solver="covariance_eigh").fit(own)
    moving = pca.explained_variance_ > 1e-9 * pca.explained_variance_[0]
    components = pca.components_[moving].T / np.sqrt(pca.explained_variance_[moving])
    components = WEIGHT * np.vstack([components, np.zeros_like(components)])
    # Sums and squares of each group and emotion: what is left without a group costs no pass over the frames.
    labels, groups = np.searchsorted(classes, emotions[known].astype(str)), group.max(initial=0) + 1
    counts, sums = np.zeros((groups, len(classes))), np.zeros((groups, len(classes), x.shape[1]))
    squares = np.zeros((groups, x.shape[1], x.shape[1]))
    for number in range(groups):
        chosen = known & (group == number)
        its, of = x[chosen].astype(float), np.eye(len(classes))[labels[chosen[known]]]  # of: (frames, emotions)
        counts[number], sums[number], squares[number] = of.sum(0), of.T @ its, its.T @ its
    totals = [part.sum(0) for part in (counts, sums, squares)]
    every, means, centre = _discriminants(*totals)
    found, centres = [every], [centre @ every]
    for number in range(1, groups):
        others = [total - part[number] for total, part in zip(totals, (counts, sums, squares), strict=True)]
        if others[0].min() < 1:  # an emotion of the group alone: its own must do
            found.append(every)
            centres.append(centres[0])
            continue
        along, theirs, centre = _discriminants(*others)
        turned, _ = orthogonal_procrustes(theirs @ along, means @ every)  # in the same order, with the same signs
        found.append(along @ turned)
        centres.append(centre @ found[-1])
    middle = np.tile(x.mean(axis=0, dtype=float) @ components, (groups, 1))
    return (np.stack([np.hstack([along, components]) for along in found]).astype(np.float32),
            np.hstack([np.stack(centres), middle]).astype(np.float32))


def _discriminants(counts: np.ndarray, sums: np.ndarray,
                   squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear discriminants, (features, emotions - 1), where the emotions lie about their middle, (emotions,
    features), and that, (features,), by how many frames each has, (emotions,), their sums, (emotions, features),
    and all squares, (features, features)."""
    means, total = sums / counts[:, None], counts.sum()
    within = (squares - sums.T @ means) / total
    within += 1e-6 * np.trace(within) / len(within) * np.eye(len(within))  # a feature that never moves: no 1 / 0
    apart = means - sums.sum(0) / total
    _, vectors = eigh(apart.T @ (counts[:, None] * apart) / total, within,
                      subset_by_index=[len(within) - len(counts) + 1, len(within) - 1])
    return vectors[:, ::-1], means - means.mean(0), means.mean(0)
