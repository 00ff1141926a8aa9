"""Mimi (Défossez et al. 2024, arXiv 2410.00037): Moshi's neural codec, 24 kHz, codebooks of 2,048 at 12.5 Hz.

The first codebook is distilled from WavLM and carries what is said; the others add how it sounds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .. import audio, machine
from ..settings import Settings, UserError
from . import checkpoint
from .protocol import count, own, pieces, versions


class MimiTokenizer:
    """The first `codes.codebooks` codebooks, frame by frame; code c of codebook q is q * 2048 + c.

    Of the last frame as many codebooks are kept as its part of the utterance is worth, the first ones first, so
    that codes are seconds times `frame_rate` whatever the number of codebooks.
    """

    name = "mimi"
    learns = 0.0

    def __init__(self, settings: Settings):
        codes = settings.codes
        found = checkpoint.transformer(settings, "MimiModel", "kyutai/mimi")
        self.checkpoint, self.files, self.device = found, found.files, machine.device(settings)
        self.rate, self.each, most = (getattr(found.config, name) for name in
                                      ("sampling_rate", "codebook_size", "num_quantizers"))
        self.hop = round(self.rate / found.config.frame_rate)
        if codes.codebooks > most:
            raise UserError(f"setting codes.codebooks is {codes.codebooks}, but {found.source} has {most} "
                            f"codebooks; give 1 to {most}")
        n = self.codebooks = codes.codebooks
        self.codebook_size = own(self.name, "codebook_size", codes.codebook_size, (self.each * n,))
        self.frame_rate = own(self.name, "frame_rate", codes.frame_rate, (self.rate / self.hop * n,))
        self.facts = {"source": found.source, "version": versions("transformers"),
                      "weights_sha256": found.files[found.weights.name], "codebooks": self.codebooks}

    def load(self, folder: Path) -> None:
        """The published model; nothing of it is kept in `folder`."""
        self.model = self.checkpoint.model(self.device)

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Codes, (codes,)."""
        total, offsets = count(len(waveform), self.frame_rate), np.arange(self.codebooks) * self.each
        waveform, codes = audio.resample(waveform, audio.RATE, self.rate), []
        with torch.inference_mode():
            for piece, frames in pieces(waveform, -(-total // self.codebooks), self.hop, rate=self.rate):
                out = self.model.encode(torch.from_numpy(piece).to(self.device)[None, None],
                                        num_quantizers=self.codebooks)
                codes.append(out.audio_codes[0, :, :frames].cpu().numpy().T + offsets)  # (frames, codebooks)
        return np.concatenate(codes).reshape(-1)[:total].astype(np.int64)
