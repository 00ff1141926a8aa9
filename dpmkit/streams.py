"""What a stream of the memory is given, what it has behind it, and what comes of a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EMPTY = torch.empty(0, dtype=torch.long)


class Sentence(NamedTuple):
    """A stream's next sentence, in tokens of `EmotionSLLM.sentence`."""

    tokens: Tensor
    donor: Tensor | None = None  # what is written in its place, in a control; EMPTY once the donor has ended
    speaker: str = ""  # of what is written
    label: int | None = None  # index of the true emotion, of a bound


class Part(NamedTuple):
    """A row of tokens: what is written, or read, after the n_r tokens before it. Both fit the window."""

    prefix: Tensor  # (n,), n <= n_r
    piece: Tensor  # (m,)
    sentence: Sentence = Sentence(EMPTY)  # that it is a piece of


@dataclass(frozen=True)
class Turn:
    """What came of one sentence."""

    probabilities: np.ndarray  # of the emotions, (emotions,)
    loss: float  # L_t of what was written, mean of its pieces; NaN where nothing was
    own_loss: float  # L_t of the sentence itself under the memory before that; NaN for a conversation's first
    norm: float  # of the memory's change
    pieces: int
    skipped: int  # updates left out so far, as loss or gradient was not finite


@dataclass
class History:
    """What a stream has behind it."""

    own: Tensor = EMPTY  # its last n_r tokens
    written: Tensor = EMPTY  # the last ones that its memory was written from: the same, but in a control
    turns: int = 0


def rows(parts: Iterable[Part]) -> list[Tensor]:
    """Each prefix and piece as one row, (n + m,)."""
    return [torch.cat([part.prefix, part.piece]) for part in parts]


def side_by_side(parts: Mapping[int, Sequence[Part]]) -> Iterator[tuple[list[int], list[Part]]]:
    """(streams, a part of each): the first parts of all streams, then the second ones of those that have two, …"""
    for number in range(max(map(len, parts.values()), default=0)):
        streams = [i for i, some in parts.items() if number < len(some)]
        yield streams, [parts[i][number] for i in streams]


def tail(tokens: Tensor, count: int) -> Tensor:
    """The last `count` tokens."""
    return tokens[max(0, len(tokens) - count):]
