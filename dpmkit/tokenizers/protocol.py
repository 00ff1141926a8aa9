"""What every speech tokenizer does, and what all of them share: how many codes, which pieces, which settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import machine
from ..audio import RATE
from ..settings import UserError

LONGEST = 30  # seconds that a neural tokenizer encodes at once: attention costs the square of it


class Tokenizer(Protocol):
    """Made of `Settings`: UserError for what it cannot do and for weights that are missing; none are loaded before
    `load`. Waveforms are float32 in [-1, 1] at audio.RATE, shape (samples,)."""

    name: str
    codebook_size: int
    frame_rate: float  # codes per second
    learns: float  # seconds of training audio that its codebook is fitted on at most; 0: its codebook is published
    files: dict[str, str]  # name -> sha256 of what it reads beside its settings
    facts: dict[str, Any]  # for records: source, version, weights_sha256 and its own settings

    def load(self, folder: Path) -> None:
        """All that `encode` needs; of one that learns the codebook that `save` wrote into `folder`."""

    def encode(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Codes, int64 in [0, codebook_size), shape (codes,): round(seconds * frame_rate), at least 1. `acoustic`:
        its `acoustics.frames`, where they are known, which one that encodes them then does not compute again."""

    def frames(self, waveform: np.ndarray, acoustic: np.ndarray | None = None) -> np.ndarray:
        """Where it learns: what is clustered, (codes, features)."""

    def fit(self, frames: Iterable[np.ndarray]) -> None:
        """Where it learns: the codebook from `frames` of utterances, which must be the training fold's alone."""

    def save(self, folder: Path) -> None:
        """Where it learns: the codebook into `folder`."""


def count(samples: int, frame_rate: float, rate: int = RATE) -> int:
    """Codes of so many samples."""
    return max(1, round(samples * frame_rate / rate))


def pieces(waveform: np.ndarray, frames: int, hop: int, beyond: int = 0,
           rate: int = RATE) -> Iterator[tuple[np.ndarray, int]]:
    """A waveform in equal pieces of at most LONGEST seconds, each with its number of frames; `frames` in all.

    Frame i begins at sample i * hop. A piece goes `beyond` samples into the next one, as far as its last frame
    reaches; zeros lie beyond the end of the waveform, and what is too short for its frames is filled up with them.
    """
    number = -(-len(waveform) // (LONGEST * rate))
    edges = [-(-frames * i // number) for i in range(number + 1)]
    for first, last in pairwise(edges):
        piece = waveform[first * hop:None if last == frames else last * hop + beyond]
        yield np.pad(piece, (0, max(0, (last - first) * hop + beyond - len(piece)))), last - first


def own(tokenizer: str, setting: str, given: float, possible: Sequence[float]) -> float:
    """`given`, or for 0 the first of `possible`; UserError for another value."""
    if given and given not in possible:
        raise UserError(f"setting codes.{setting} is {given:g}, but tokenizer {tokenizer} can do "
                        f"{' or '.join(f'{p:g}' for p in possible)} alone; codes.{setting}=0 takes its own")
    return given or possible[0]


def versions(*packages: str) -> str:
    """`transformers 5.1.0, …`: what made the codes."""
    return ", ".join(f"{package} {machine.version(package)}" for package in packages)
