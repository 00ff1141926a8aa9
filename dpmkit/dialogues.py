"""Training dialogues: an utterance corpus' conversations as the sequences that L_a and L_e are taken over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from .corpora import Conversation
from .settings import Settings
from .sllm import EmotionSLLM


class Dialogues(Dataset):
    """Training sequences a dialogue. Item i is a list of them (see `sequences`).

    A dialogue longer than the window is cut between sentences into pieces that fit it. `moving` draws the first
    cut anew each epoch, so that histories of every length are trained; validation cuts stay where they are.
    """

    def __init__(self, model: EmotionSLLM, conversations: Sequence[Conversation], codes: dict[str, np.ndarray],
                 emotions: tuple[str, ...], settings: Settings, moving: bool):
        self.model, self.settings, self.moving, self.epoch = model, settings, moving, 0
        longest = model.window - 1 - (settings.memory.history_emotions == "predicted")
        self.dialogues = [
            [(codes[u.id][-longest:], None if u.emotion is None else emotions.index(u.emotion))
             for u in c.utterances] for c in conversations]

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        tune, history = self.settings.finetune, self.settings.memory.history_emotions == "predicted"
        rng = np.random.default_rng([self.settings.seed, self.epoch if self.moving else 0, index])
        room = int(rng.integers(1, self.model.window + 1))  # of the first piece
        pieces, used = [[]], 0
        for said, emotion in self.dialogues[index]:
            tokens = len(said) + 1 + (history and emotion is not None)
            if used + tokens > room and pieces[-1]:
                pieces.append([])
                used, room = 0, self.model.window
            room = max(room, tokens)
            pieces[-1].append((said, emotion))
            used += tokens
        return [sequence for piece in pieces for sequence in
                sequences(self.model, *zip(*piece, strict=True), tune.n_o, tune.n_p, tune.n_q, history)]


def collate_sequences(padding: int) -> Callable:
    """Lists of sequences to one padded batch, on the right: `input_ids`, `code_weight`, `emotion`."""
    fill = {"input_ids": padding, "code_weight": 0.0, "emotion": -100}

    def collate(items: Sequence[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        rows = [sequence for item in items for sequence in item]
        return {name: pad_sequence([r[name] for r in rows], batch_first=True, padding_value=value)
                for name, value in fill.items()}

    return collate


def sequences(sllm: EmotionSLLM, codes: Sequence[np.ndarray], emotions: Sequence[int | None], n_o: int, n_p: int,
              n_q: int, emotions_in_history: bool = False) -> list[dict[str, Tensor]]:
    """Training sequences of one dialogue for L_a and L_e (paper, equations 3 to 6).

    For the sentence whose `<audio_end>` is the dialogue's n-th token: L_a is the mean over the last n_o
    tokens up to it, given the n_p before those; L_e is read at it, given the last n_q tokens. n < n_o: n_p =
    0 and n_o = n; n_o <= n < n_o + n_p: n_p = n - n_o; n < n_q: n_q = n. The first token of a context
    follows nothing: where it stands among the n_o, it is not predicted and the mean is over the others.

    Terms whose context starts at the same token share one sequence (and so one forward). Each sequence
    holds `input_ids`, `code_weight` and `emotion`, shape (tokens,), as `EmotionSLLM.forward` takes them.
    """
    sentences = [sllm.sentence(c, e if emotions_in_history else None)
                 for c, e in zip(codes, emotions, strict=True)]
    tokens = torch.cat(sentences)
    reads: dict[int, list[tuple[int, int]]] = defaultdict(list)  # context start -> (T, label)
    writes: dict[int, list[tuple[int, int]]] = defaultdict(list)  # context start -> (first of n_o, T)
    before = 0
    for sentence, said, emotion in zip(sentences, codes, emotions, strict=True):
        end = before + len(said)  # T, the position of <audio_end>
        before += len(sentence)
        n = end + 1
        start = max(0, n - n_o - n_p)
        writes[start].append((max(n - n_o, start + 1), end))
        if emotion is not None:
            reads[max(0, n - n_q)].append((end, emotion))
    out = []
    for start in sorted({*reads, *writes}):
        stop = 1 + max(end for end in [e for _, e in writes[start]] + [e for e, _ in reads[start]])
        weight = torch.zeros(stop - start)
        label = torch.full((stop - start,), -100)
        for first, end in writes[start]:
            sound = sllm.is_sound(tokens[first:end + 1])  # no emotion tokens of earlier sentences
            weight[first - start:end + 1 - start] += sound / sound.sum().clamp_min(1)
        for end, emotion in reads[start]:
            label[end - start] = emotion
        out.append({"input_ids": tokens[start:stop], "code_weight": weight, "emotion": label})
    return out
