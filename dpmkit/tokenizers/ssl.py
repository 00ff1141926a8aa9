"""K-means over the hidden states of a self-supervised model: HuBERT (arXiv 2106.07447), WavLM (arXiv 2110.13900).

Units of a transformer layer, as speech language models take them (Lakhotia et al. 2021, arXiv 2102.01192), at the
model's 50 Hz or, averaged over pairs of frames, at 25.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import audio, machine
from ..settings import Settings, UserError
from . import checkpoint
from .kmeans import KMeansTokenizer
from .protocol import count, own, pieces, versions

FRAMES = 100_000  # that the codebook is fitted on at most: 200 per centroid, 0.3 GB, 33 minutes at 50 Hz


class HubertKMeans(KMeansTokenizer):
    """Nearest of K centroids (500 by default) of the hidden states after layer `codes.layer`."""

    name, model_class, default = "hubert-kmeans", "HubertModel", "facebook/hubert-base-ls960"

    def __init__(self, settings: Settings):
        codes = settings.codes
        found = checkpoint.transformer(settings, self.model_class, self.default, "preprocessor_config.json")
        self.checkpoint, self.files, self.device = found, found.files, machine.device(settings)
        strides, layers = found.config.conv_stride, found.config.num_hidden_layers
        self.stride = prod(strides)
        self.field = 1 + sum((k - 1) * prod(strides[:i]) for i, k in enumerate(found.config.conv_kernel))
        if codes.layer > layers:
            raise UserError(f"setting codes.layer is {codes.layer}, but {found.source} has {layers} transformer "
                            f"layers; give 1 to {layers}")
        self.layer = codes.layer
        rate = audio.RATE / self.stride
        self.codebook_size = codes.codebook_size or 500
        self.frame_rate = own(self.name, "frame_rate", codes.frame_rate, (rate, rate / 2))
        self.pooled = round(rate / self.frame_rate)  # frames of the model per code
        self.learns = FRAMES / self.frame_rate
        self.facts = {"source": found.source, "version": versions("transformers", "scikit-learn"),
                      "weights_sha256": found.files[found.weights.name], "layer": self.layer}
        self.model = None

    def described(self) -> dict[str, Any]:
        """What a saved codebook must agree on."""
        return {"name": self.name, "codebook_size": self.codebook_size, "frame_rate": self.frame_rate}

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Hidden states, averaged over `pooled` frames; shape (codes, hidden size).

        The waveform is normalised as a whole where the checkpoint says so, then encoded in pieces, one at a time:
        padding in a batch would move HuBERT's group norm.
        """
        if self.model is None:
            self._load_model()
        values = self.extractor(waveform, sampling_rate=audio.RATE).input_values[0]
        hop, states = self.stride * self.pooled, []
        with torch.inference_mode():
            for piece, codes in pieces(values, count(len(values), self.frame_rate), hop, self.field - self.stride):
                out = self.model(torch.from_numpy(piece).to(self.device)[None], output_hidden_states=True)
                hidden = out.hidden_states[self.layer][0, :codes * self.pooled]  # (frames, hidden size)
                states.append(hidden.unflatten(0, (codes, self.pooled)).mean(dim=1).float().cpu().numpy())
        return np.concatenate(states)

    def standard(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states are clustered as they are."""
        return np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)

    def load(self, folder: Path) -> None:
        """The codebook of `folder` and the model."""
        super().load(folder)
        self._load_model()

    def _load_model(self) -> None:
        from transformers import Wav2Vec2FeatureExtractor

        with checkpoint.refused(f"{self.checkpoint.source}/preprocessor_config.json cannot be used"):
            self.extractor = Wav2Vec2FeatureExtractor.from_pretrained(self.checkpoint.weights.parent,
                                                                      local_files_only=True)
            if self.extractor.sampling_rate != audio.RATE:
                raise ValueError(f"it takes {self.extractor.sampling_rate} Hz, not {audio.RATE}")
        self.model = self.checkpoint.model(self.device)


class WavLMKMeans(HubertKMeans):
    """The same of WavLM."""

    name, model_class, default = "wavlm-kmeans", "WavLMModel", "microsoft/wavlm-base-plus"
