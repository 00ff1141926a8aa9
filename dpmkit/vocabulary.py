"""The tokens of an Emotion SLLM: which ids they have, and the rows of the head that answer with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Vocabulary:
    """Token ids: `base` of the backbone's own, then K codes, `<audio_end>`, the emotions."""

    codebook_size: int
    emotions: tuple[str, ...]
    base: int = 0

    @property
    def end(self) -> int:
        """Id of `<audio_end>`."""
        return self.base + self.codebook_size

    @property
    def emotion(self) -> slice:
        """Ids of the emotion tokens, in the order of `emotions`."""
        return slice(self.end + 1, self.size)

    @property
    def size(self) -> int:
        return self.base + self.codebook_size + 1 + len(self.emotions)

    def tokenizer(self, texts: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase | None:
        """A text tokenizer that gives `<audio_0>`, `<audio_end>`, `<neu>` … their ids: the backbone's own `texts`
        with them added, or one of these tokens alone; None where the backbone has none that fits."""
        new = [*(f"<audio_{i}>" for i in range(self.codebook_size)), "<audio_end>",
               *(f"<{e}>" for e in self.emotions)]
        if not self.base:
            texts = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(
                {token: i for i, token in enumerate(new)}, unk_token=new[0])))
        elif texts is None or len(texts) > self.base:
            return None
        else:  # a backbone may have more rows than its tokenizer has tokens
            texts.add_tokens([f"<unused_{i}>" for i in range(self.base - len(texts))])
        texts.add_tokens(new, special_tokens=True)
        return texts


@dataclass(frozen=True)
class NewRows:
    """The head's rows of the tokens that the backbone did not know: codes, `<audio_end>`, emotions."""

    weight: Tensor  # (codes + 1 + emotions, hidden)
    bias: Tensor | None

    @classmethod
    def of(cls, head: nn.Module, base: int, hidden: int) -> NewRows:
        """The rows of a head of `hidden` inputs from `base` on, as they stand now; gradients reach them where they
        are the head's own or PEFT's trained token rows."""
        if type(head) is nn.Linear:
            return cls(head.weight[base:], None if head.bias is None else head.bias[base:])
        rows = getattr(head, "token_adapter", None)
        if rows is not None and rows.base_layer.bias is None:
            return cls(rows.trainable_tokens_delta["default"], None)
        with torch.no_grad():  # a PEFT wrapper: what it does to each unit vector is its weight
            like = next(head.parameters())
            bias = head(like.new_zeros(1, hidden))[0, base:]
            units = torch.eye(hidden, dtype=like.dtype, device=like.device)
            return cls((head(units)[:, base:] - bias).T.contiguous(), bias)

    def __call__(self, hidden: Tensor, part: slice) -> Tensor:
        """Logits of some of the rows; hidden: (…, hidden)."""
        weight = self.weight[part].to(hidden.dtype)  # PEFT keeps trained rows in float32
        return F.linear(hidden, weight, None if self.bias is None else self.bias[part])
