"""Speech tokenizers: a mono waveform to discrete codes, `frame_rate` of them per second. See `Tokenizer`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..settings import CodesSettings, Settings, UserError

# By the names of module and class: so codes are not made anew for a change of another tokenizer (see `runs`).
TOKENIZERS = {"kmeans": "kmeans.KMeansTokenizer", "s3-v2-25hz": "neural.S3Tokenizer",
              "mimi": "neural.MimiTokenizer", "hubert-kmeans": "neural.HubertKMeans",
              "wavlm-kmeans": "neural.WavLMKMeans", "moonshine-kmeans": "neural.MoonshineKMeans"}
LEARNED = tuple(name for name in TOKENIZERS if name.endswith("kmeans"))
HONOURED = {"layer": ("hubert-kmeans", "wavlm-kmeans"), "prosody_weight": ("kmeans",), "supervised": LEARNED,
            "source": tuple(name for name in TOKENIZERS if name != "kmeans")}  # setting -> who knows it


class Tokenizer(Protocol):
    """Made of `Settings`. Those that learn a codebook also have `frames`, `fit` and `save`, as KMeansTokenizer."""

    name: str
    codebook_size: int
    frame_rate: float  # codes per second
    learns: float  # seconds of training audio that its codebook is fitted on at most; 0: its codebook is published
    files: dict[str, str]  # name -> sha256 of what it reads beside its settings
    facts: dict[str, Any]  # for records: source and weights_sha256

    def load(self, folder: Path) -> None:
        """The codebook that `save` wrote into `folder`."""

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None, speaker: str = "") -> np.ndarray:
        """Codes, int64 in [0, codebook_size), (codes,): round(seconds * frame_rate), at least 1; of a waveform,
        float32 in [-1, 1] at audio.RATE, (samples,), its `acoustics.frames` where they are known, and of whom."""


def create(settings: Settings) -> Tokenizer:
    """The tokenizer that `codes.tokenizer` names, its weights found but not loaded; UserError for an unknown name,
    a setting that it cannot do, and weights that are not there."""
    if settings.codes.tokenizer not in TOKENIZERS:
        raise UserError(f"setting codes.tokenizer is {settings.codes.tokenizer!r}; known tokenizers: "
                        f"{', '.join(TOKENIZERS)}")
    for name, by in HONOURED.items():
        value, default = getattr(settings.codes, name), CodesSettings.model_fields[name].default
        if value != default and settings.codes.tokenizer not in by:
            raise UserError(f"setting codes.{name} is {value!r}, but tokenizer {settings.codes.tokenizer} knows no "
                            f"such thing: leave it at {default!r}, or choose one of {', '.join(by)}")
    module, _, name = TOKENIZERS[settings.codes.tokenizer].partition(".")
    return getattr(import_module(f".{module}", __name__), name)(settings)
