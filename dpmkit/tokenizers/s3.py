"""CosyVoice 2's speech tokenizer, S3 v2 (Du et al. 2024, arXiv 2412.10117): 6,561 codes at 25 Hz.

The codes of the paper's Emotion SLLM. The model is that of the package s3tokenizer, which holds no weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .. import machine
from ..settings import Settings, UserError
from .checkpoint import find, refused, sha256
from .protocol import count, own, pieces, versions

PUBLISHED = "FunAudioLLM/CosyVoice2-0.5B"
SHA256 = "d43342aa12163a80bf07bffb94c9de2e120a8df2f9917cd2f642e7f4219c6f71"  # of its onnx file
NAMES = ("speech_tokenizer_v2.onnx", "speech_tokenizer_v2.safetensors")
HOP = 640  # samples per code
HEAD = 64  # size of an attention head: s3tokenizer's rotary embedding has no other
LAYERS, MELS = 6, 128  # of v2; v3, of the same weights' names, has 12 layers


class S3Tokenizer:
    """Weights: the published onnx file, converted by s3tokenizer, or a state dict of its model as safetensors."""

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
        source, (self.path,) = find(settings, PUBLISHED, NAMES)
        self.device = machine.device(settings)
        self.files = {self.path.name: sha256(self.path)}
        if source == PUBLISHED and self.path.suffix == ".onnx" and self.files[self.path.name] != SHA256:
            raise UserError(f"codes.source: {self.path} is not the file that {PUBLISHED} published: delete it, so "
                            "that it is fetched again, or name a folder as codes.source")
        self.facts = {"source": source, "version": versions("s3tokenizer"),
                      "weights_sha256": self.files[self.path.name]}

    def load(self, folder: Path) -> None:
        """The published model; nothing of it is kept in `folder`."""
        from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2
        from s3tokenizer.utils import onnx2torch

        with refused(f"{self.path.name} is not CosyVoice 2's speech tokenizer"):
            weights = onnx2torch(str(self.path)) if self.path.suffix == ".onnx" else load_file(self.path)
            state, mels = weights["encoder.conv1.weight"].shape[:2]
            layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.blocks.")})
            if layers > LAYERS or mels != MELS or state % HEAD:
                raise ValueError(f"it has {layers} layers of {state} and {mels} mels, v2 has 6 of 1280 and 128")
            self.model = S3TokenizerV2("speech_tokenizer_v2_25hz", ModelConfig(
                n_audio_state=state, n_audio_head=state // HEAD, n_audio_layer=layers))
            self.model.load_state_dict(weights, strict=True)
        self.model.to(self.device).eval().requires_grad_(False)

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Codes, (codes,)."""
        from s3tokenizer import log_mel_spectrogram

        codes = []
        # s3tokenizer's own windows for more than 30 s lose codes where the last window lies in the overlap of the
        # one before it: 53 s become 1,275 codes, not 1,325.
        for piece, frames in pieces(waveform, count(len(waveform), self.frame_rate), HOP):
            mel = log_mel_spectrogram(torch.from_numpy(piece).to(self.device), MELS)  # (mels, 4 * frames)
            out, _ = self.model.quantize(mel[None], torch.tensor([mel.shape[1]], device=self.device))
            codes.append(out[0, :frames].cpu().numpy())
        return np.concatenate(codes).astype(np.int64)
