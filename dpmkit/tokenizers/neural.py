"""Tokenizers of published weights: Mimi, CosyVoice 2's S3, and k-means over HuBERT's or WavLM's hidden states.

Weights are safetensors where there are any. `pytorch_model.bin`, all that some authors publish (WavLM's), is read
as plain tensors: torch's `weights_only` unpickler runs no code, and a pickle of anything else is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub import snapshot_download

from .. import audio, machine
from ..settings import Settings, UserError
from .kmeans import KMeansTokenizer, versions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LONGEST = 30  # seconds that are encoded at once: attention costs the square of it
FRAMES = 100_000  # that a codebook is fitted on at most: 200 per centroid, 0.3 GB, 33 minutes at 50 Hz
S3_SHA256 = "d43342aa12163a80bf07bffb94c9de2e120a8df2f9917cd2f642e7f4219c6f71"  # of the published onnx file
S3_SHAPE = {"n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 6}  # v3, of the same names, has 12 layers


class Neural:
    """What these tokenizers share: the files of a model, found and hashed, and the model."""

    name = default = ""  # `default`: the hub id that the weights are published under
    kind = ""  # its model_type in transformers
    asked = (("config.json",), WEIGHTS)  # of each the first file that is there, the weights last
    packages = ("transformers",)
    learns = 0.0

    def __init__(self, settings: Settings):
        self.device = machine.device(settings)
        self.source, paths = _found(settings, self.default, self.asked)
        self.weights = paths[-1]
        self.damaged = (f"codes.source: {self.source} is damaged or no {self.name}: fetch it again, or name "
                        "another as codes.source")
        self.files = {path.name: sha256(path) for path in paths}
        self.facts = {"source": self.source, "version": versions(*self.packages),
                      "weights_sha256": self.files[self.weights.name]}

    def own(self, setting: str, given: float, *possible: float) -> float:
        """`given`, or for 0 the first of `possible`; UserError for another value."""
        if given and given not in possible:
            raise UserError(f"setting codes.{setting} is {given:g}, but tokenizer {self.name} can do "
                            f"{' or '.join(f'{p:g}' for p in possible)} alone")
        return given or possible[0]

    def load(self, folder: Path) -> None:
        """Nothing: the codebook is published, and `model` is loaded once asked for."""

    @cached_property
    def config(self) -> PretrainedConfig:
        """Of the model; UserError for a file that is damaged or of another model."""
        from transformers import AutoConfig

        with refused(self.damaged):
            config = AutoConfig.from_pretrained(self.weights.parent, local_files_only=True)
            if config.model_type != self.kind:
                raise ValueError(f"its model_type is {config.model_type}")
            return config

    @cached_property
    def model(self) -> torch.nn.Module:
        """In eval mode, frozen; UserError where its files do not make one."""
        with refused(self.damaged):
            return self.loaded().to(self.device).eval().requires_grad_(False)

    def loaded(self) -> torch.nn.Module:
        """The model of transformers with the published weights."""
        from transformers import AutoModel

        model, found = AutoModel.from_pretrained(
            self.weights.parent, local_files_only=True, output_loading_info=True, weights_only=True,
            use_safetensors=self.weights.name == WEIGHTS[0], dtype=torch.float32)
        # The embedding of masked frames is trained with, never encoded with, and some checkpoints lack it.
        if missing := sorted(set(found["missing_keys"]) - {"masked_spec_embed"}):
            raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
        return model


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Whatever goes wrong in the block as one UserError: what libraries make of a wrong or damaged file is any
    exception at all."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, UnpicklingError):  # whose own words say how to run it all the same
            why = "a pickle of more than tensors, which is not run"
        raise UserError(f"{message} ({why})") from error


def _found(settings: Settings, default: str, asked: tuple[tuple[str, ...], ...]) -> tuple[str, list[Path]]:
    """`codes.source` (empty: `default`) as its hub id or its folder's name, never a path of this machine; and of
    each of `asked` the first file that is there. UserError for files that are missing."""
    source, why = settings.codes.source or default, ""
    folder = settings.home_path / Path(source).expanduser()
    local, names = folder.is_dir(), [name for names in asked for name in names]
    for cached in (True, False):  # the hub's cache before the network: offline, a question costs half a minute
        try:
            if not local:
                folder = Path(snapshot_download(source, allow_patterns=names, local_files_only=cached))
        except (OSError, ValueError) as error:
            why = f" and cannot be had from a hub ({' '.join(str(error).split())[:120]}…)"
        paths = [next((folder / name for name in names if (folder / name).is_file()), None) for names in asked]
        if None not in paths:
            return folder.resolve().name if local else source, paths
    raise UserError(f"codes.source: {source!r} has no {' or '.join(asked[paths.index(None)])}{why}; put "
                    f"{', '.join(names[0] for names in asked)} of {default} into a folder and give that as "
                    "codes.source")


def sha256(path: Path) -> str:
    """Of a file's bytes, once a process as long as size and time of change stay."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, *_stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count(samples: int, frame_rate: float) -> int:
    """Codes of so many samples at audio.RATE."""
    return max(1, round(samples * frame_rate / audio.RATE))


def pieces(waveform: np.ndarray, frames: int, hop: int, beyond: int = 0,
           rate: int = audio.RATE) -> Iterator[tuple[np.ndarray, int]]:
    """A waveform in equal pieces of at most LONGEST seconds, each with its number of frames; `frames` in all.

    Frame i begins at sample i * hop. A piece goes `beyond` samples into the next one, as far as its last frame
    reaches; zeros lie beyond the end of the waveform, and what is too short for its frames is filled up with them.
    """
    number = -(-len(waveform) // (LONGEST * rate))
    edges = [-(-frames * i // number) for i in range(number + 1)]
    for first, last in pairwise(edges):
        piece = waveform[first * hop:None if last == frames else last * hop + beyond]
        yield np.pad(piece, (0, max(0, (last - first) * hop + beyond - len(piece)))), last - first


class MimiTokenizer(Neural):
    """Mimi (Défossez et al. 2024, arXiv 2410.00037), Moshi's codec: the first `codes.codebooks` of its codebooks of
    2,048 at 12.5 Hz, frame by frame; code c of codebook q is q * 2048 + c. The first is distilled from WavLM and
    carries what is said; the others add how it sounds.

    Of the last frame as many codebooks are kept as its part of the utterance is worth, the first ones first, so
    that codes are seconds times `frame_rate` whatever the number of codebooks.
    """

    name = kind = "mimi"
    default = "kyutai/mimi"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        codes, config = settings.codes, self.config
        self.rate, self.each = config.sampling_rate, config.codebook_size
        self.hop = round(self.rate / config.frame_rate)
        n = self.codebooks = self.own("codebooks", codes.codebooks, *range(1, config.num_quantizers + 1))
        self.codebook_size = self.own("codebook_size", codes.codebook_size, self.each * n)
        self.frame_rate = self.own("frame_rate", codes.frame_rate, self.rate / self.hop * n)
        self.facts["codebooks"] = n

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


class S3Tokenizer(Neural):
    """S3 v2 (Du et al. 2024, arXiv 2412.10117), CosyVoice 2's: 6,561 codes at 25 Hz, those of the paper's Emotion
    SLLM. The model is that of the package s3tokenizer, which converts the published onnx file."""

    name, default, asked = "s3-v2-25hz", "FunAudioLLM/CosyVoice2-0.5B", (("speech_tokenizer_v2.onnx",),)
    packages = ("s3tokenizer",)
    hop, mels = 640, 128  # samples per code; of a spectrum

    def __init__(self, settings: Settings):
        if machine.version("s3tokenizer") == "?":
            raise UserError(f"tokenizer {self.name} needs the package s3tokenizer: pip install 'dpmkit[s3]'")
        self.codebook_size = self.own("codebook_size", settings.codes.codebook_size, 6561)
        self.frame_rate = self.own("frame_rate", settings.codes.frame_rate, 25.0)
        super().__init__(settings)
        if self.source == self.default and self.facts["weights_sha256"] != S3_SHA256:
            raise UserError(f"codes.source: {self.weights} is not the file that {self.default} published: delete "
                            "it, so that it is fetched again, or name a folder as codes.source")

    def loaded(self) -> torch.nn.Module:
        """The model of package s3tokenizer with the weights of the onnx file."""
        from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2
        from s3tokenizer.utils import onnx2torch

        model = S3TokenizerV2("speech_tokenizer_v2_25hz", ModelConfig(**S3_SHAPE))
        model.load_state_dict(onnx2torch(str(self.weights)), strict=True)
        return model

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Codes, (codes,)."""
        from s3tokenizer import log_mel_spectrogram

        codes = []
        # s3tokenizer's own windows for more than 30 s lose codes where the last window lies in the overlap of the
        # one before it: 53 s become 1,275 codes, not 1,325.
        for piece, frames in pieces(waveform, count(len(waveform), self.frame_rate), self.hop):
            mel = log_mel_spectrogram(torch.from_numpy(piece).to(self.device), self.mels)  # (mels, 4 * frames)
            out, _ = self.model.quantize(mel[None], torch.tensor([mel.shape[1]], device=self.device))
            codes.append(out[0, :frames].cpu().numpy())
        return np.concatenate(codes).astype(np.int64)


class HubertKMeans(KMeansTokenizer, Neural):
    """Nearest of K centroids (500 by default) of the hidden states of HuBERT (arXiv 2106.07447) after layer
    `codes.layer`, as speech language models take them (Lakhotia et al. 2021, arXiv 2102.01192); at the model's
    50 Hz or, averaged over pairs of frames, at 25."""

    name, kind, default = "hubert-kmeans", "hubert", "facebook/hubert-base-ls960"
    asked = (("config.json",), ("preprocessor_config.json",), WEIGHTS)
    packages = ("transformers", "scikit-learn")
    prosody_weight = 1.0  # states are clustered as they are

    def __init__(self, settings: Settings):
        Neural.__init__(self, settings)
        codes, config = settings.codes, self.config
        self.stride = prod(config.conv_stride)
        self.field = 1 + sum((k - 1) * prod(config.conv_stride[:i]) for i, k in enumerate(config.conv_kernel))
        self.layer = self.own("layer", codes.layer, *range(1, config.num_hidden_layers + 1))
        rate = audio.RATE / self.stride
        self.codebook_size = codes.codebook_size or 500
        self.frame_rate = self.own("frame_rate", codes.frame_rate, rate, rate / 2)
        self.pooled = round(rate / self.frame_rate)  # frames of the model per code
        self.learns = FRAMES / self.frame_rate
        self.facts["layer"] = self.layer

    def loaded(self) -> torch.nn.Module:
        """The model, and how its input is normalised."""
        from transformers import Wav2Vec2FeatureExtractor

        self.extractor = Wav2Vec2FeatureExtractor.from_pretrained(self.weights.parent, local_files_only=True)
        return super().loaded()

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Hidden states, averaged over `pooled` frames; shape (codes, hidden size).

        The waveform is normalised as a whole where the checkpoint says so, then encoded in pieces, one at a time:
        padding in a batch would move HuBERT's group norm.
        """
        model = self.model
        values = self.extractor(waveform, sampling_rate=audio.RATE).input_values[0]
        hop, states = self.stride * self.pooled, []
        with torch.inference_mode():
            for piece, codes in pieces(values, count(len(values), self.frame_rate), hop, self.field - self.stride):
                out = model(torch.from_numpy(piece).to(self.device)[None], output_hidden_states=True)
                hidden = out.hidden_states[self.layer][0, :codes * self.pooled]  # (frames, hidden size)
                states.append(hidden.unflatten(0, (codes, self.pooled)).mean(dim=1).float().cpu().numpy())
        return np.concatenate(states)

    def standard(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean 0 and scale 1, (features,)."""
        return np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)


class WavLMKMeans(HubertKMeans):
    """The same of WavLM (arXiv 2110.13900)."""

    name, kind, default = "wavlm-kmeans", "wavlm", "microsoft/wavlm-base-plus"
