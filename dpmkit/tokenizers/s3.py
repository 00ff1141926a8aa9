"""CosyVoice 2's speech tokenizer, S3 v2 (Du et al. 2024, arXiv 2412.10117): 6,561 codes at 25 Hz.

The codes of the paper's Emotion SLLM. The model is that of the package s3tokenizer, which holds no weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .. import machine
from ..settings import Settings, UserError, on_disk
from .checkpoint import HUB_ID, fetch, refused, sha256
from .protocol import count, own, pieces, versions

PUBLISHED = "speech_tokenizer_v2_25hz"  # what s3tokenizer calls it
SHA256 = "d43342aa12163a80bf07bffb94c9de2e120a8df2f9917cd2f642e7f4219c6f71"  # of the published onnx file
NAMES = ("speech_tokenizer_v2.onnx", "speech_tokenizer_v2.safetensors")
HOP = 640  # samples of one code
HEAD = 64  # size of an attention head: s3tokenizer's rotary embedding has no other
LAYERS, MELS = 6, 128  # of v2; v3, of the same weights' names, has 12 layers


class S3Tokenizer:
    """Weights: `codes.source`, the folder CosyVoice2-0.5B or a file of it, its onnx file converted by s3tokenizer,
    or a state dict of s3tokenizer's model as safetensors; empty: the package's own download."""

    name = "s3-v2-25hz"
    learns = 0.0

    def __init__(self, settings: Settings):
        codes = settings.codes
        self.codebook_size = own(self.name, "codebook_size", codes.codebook_size, (6561,))
        self.frame_rate = own(self.name, "frame_rate", codes.frame_rate, (25.0,))
        try:
            import s3tokenizer  # noqa: F401
        except ImportError as error:
            raise UserError(f"tokenizer {self.name} needs the package s3tokenizer: pip install 'dpmkit[s3]'"
                            ) from error
        self.path, source = _weights(settings)
        self.device = machine.device(settings)
        self.files = {self.path.name: sha256(self.path)}
        self.facts = {"source": source, "version": versions("s3tokenizer"),
                      "weights_sha256": self.files[self.path.name]}

    def load(self, folder: Path | None = None) -> None:
        """The published model; nothing of it is kept in `folder`."""
        from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2
        from s3tokenizer.utils import onnx2torch

        with refused(f"{self.path.name} is not CosyVoice 2's speech tokenizer"):
            weights = onnx2torch(str(self.path)) if self.path.suffix == ".onnx" else load_file(self.path)
            state, mels = weights["encoder.conv1.weight"].shape[:2]
            layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.blocks.")})
            if layers > LAYERS or mels != MELS or state % HEAD:
                raise ValueError(f"it has {layers} layers of {state} and {mels} mels, v2 has 6 of 1280 and 128")
            self.model = S3TokenizerV2(PUBLISHED, ModelConfig(
                n_audio_state=state, n_audio_head=state // HEAD, n_audio_layer=layers))
            self.model.load_state_dict(weights, strict=True)
        self.model.to(self.device).eval().requires_grad_(False)

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each waveform, heard one at a time."""
        return [self._encoded(w) for w in waveforms]

    def _encoded(self, waveform: np.ndarray) -> np.ndarray:
        from s3tokenizer import log_mel_spectrogram

        codes = []
        # s3tokenizer's own windows for more than 30 s lose codes where the last window lies in the overlap of the
        # one before it: 53 s become 1,275 codes, not 1,325.
        for piece, frames in pieces(waveform, count(len(waveform), self.frame_rate), HOP):
            mel = log_mel_spectrogram(torch.from_numpy(piece).to(self.device), MELS)
            heard, _ = self.model.quantize(mel[None], torch.tensor([mel.shape[1]], device=self.device))
            codes.append(heard[0, :frames].cpu().numpy())
        return np.concatenate(codes).astype(np.int64)


def _weights(settings: Settings) -> tuple[Path, str]:
    """The file, and what records call it; UserError where there is none."""
    cure = f"put {NAMES[0]} of FunAudioLLM/CosyVoice2-0.5B into a folder and give it as codes.source"
    given = settings.codes.source
    if not given:
        return _published(cure), PUBLISHED
    path = on_disk(settings.home_path / Path(given).expanduser())
    if path.is_dir():
        return fetch(path, NAMES, cure), path.resolve().name
    if not path.is_file() and HUB_ID.fullmatch(given):
        return fetch(given, NAMES, cure), given
    if not path.is_file():
        raise UserError(f"setting codes.source is {given!r}, which is no folder, file or hub id; {cure}")
    if path.suffix not in (".onnx", ".safetensors"):
        raise UserError(f"codes.source: {path.name} is not .onnx or .safetensors (no pickle is loaded); {cure}")
    return path, path.name


def _published(cure: str) -> Path:
    """s3tokenizer's download, in its cache; made if it is not there whole."""
    import s3tokenizer

    cache = Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3tokenizer"
    path = cache / f"{PUBLISHED}.onnx"
    if not path.is_file() or sha256(path) != SHA256:
        try:
            s3tokenizer.load_model(PUBLISHED, str(cache))
        except (OSError, RuntimeError) as error:  # no network, no room, another file than the published one
            said = " ".join(str(error).split())[:120]
            raise UserError(f"tokenizer {S3Tokenizer.name}: s3tokenizer cannot fetch its weights ({said}); {cure}"
                            ) from error
    return path
