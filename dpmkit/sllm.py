"""EmotionSLLM: a causal language model over speech codes that answers with emotion tokens.

Paper, section 'Emotion SLLM'. The vocabulary is the backbone's own tokens (none for one trained from scratch),
then `<audio_0> … <audio_{K-1}>`, `<audio_end>`, and one token per emotion. A sentence is its codes followed by
`<audio_end>`; its emotion token may follow. No other module touches token ids: they ask `sentence()` for
tokens, then concatenate and cut those.

vocabulary: The tokens of an Emotion SLLM: which ids they have, and the rows of the head that answer with them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from . import backbones, machine
from .settings import BackboneSettings, FinetuneSettings, Settings, UserError

# -- vocabulary ----------------------------------------------------------------

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


# -- sllm ----------------------------------------------------------------------

CARD = "dpmkit.json"  # what a transformers folder does not say: vocabulary, window, codes


class EmotionSLLM(nn.Module):
    """Backbone plus extended vocabulary. `window` is n_limit, the most tokens of one forward."""

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, window: int, dropout: float = 0.0,
                 source: str = ""):
        super().__init__()
        self.model, self.vocabulary, self.window, self.source = model, vocabulary, window, source
        self.dropout = nn.Dropout(dropout)
        self.loss_vocabulary = "all"  # of L_a in training
        self.texts = None  # the text tokenizer with the new tokens, where there is one
        self.origin: dict[str, str] | None = None  # `backbones.origin` of an adapter's backbone; None: of `source`

    @classmethod
    def create(cls, backbone: BackboneSettings, finetune: FinetuneSettings, codebook_size: int,
               emotions: tuple[str, ...], seed: int = 0) -> EmotionSLLM:
        """A fresh SLLM: a random Llama of `backbone`'s shape, or a pretrained `backbone.source` whose new token
        rows and LoRA (rank `finetune.lora_rank`, all linear layers) are trained.

        Raises UserError where the source cannot be loaded.
        """
        torch.manual_seed(seed)
        if not backbone.source:
            vocabulary = Vocabulary(codebook_size, emotions)
            sllm = cls(backbones.scratch(backbone, vocabulary.size, vocabulary.end), vocabulary, backbone.window,
                       backbone.dropout)
            sllm.texts = vocabulary.tokenizer()
            return sllm
        model = backbones.load(backbone.source, backbone.dtype, backbone.keep_layers)
        vocabulary = Vocabulary(codebook_size, emotions, base=model.get_input_embeddings().num_embeddings)
        backbones.widen(model, vocabulary.size)
        if finetune.lora_rank:
            model = backbones.with_lora(model, finetune, range(vocabulary.base, vocabulary.size))
        if finetune.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sllm = cls(model, vocabulary, backbone.window, source=backbone.source)
        sllm.loss_vocabulary = finetune.loss_vocabulary
        sllm.texts = vocabulary.tokenizer(backbones.tokenizer(backbone.source))
        return sllm

    # -- the parts of the backbone -------------------------------------------------------------------------

    @property
    def causal_lm(self) -> nn.Module:
        """The transformers model itself, inside PEFT's wrapper or bare."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def linear_layers(self) -> dict[str, nn.Module]:
        """Name -> every linear layer of the decoder blocks, lowest block first; a PEFT layer counts as one."""
        found: dict[str, nn.Module] = {}
        for name, module in self.causal_lm.get_decoder().layers.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if not inside and isinstance(getattr(module, "base_layer", module), nn.Linear):
                found[name] = module
        return found

    def in_precision(self, precision: str) -> EmotionSLLM:
        """Itself, or a frozen copy with its weights in `precision` (float32 or bfloat16; empty: as they are).

        Buffers stay as they are, as from_pretrained leaves them: with rotary frequencies rounded to bfloat16 the
        phase would be off by 0.09 rad at token 511 and by 0.37 at 2,048.
        """
        dtype = getattr(torch, precision or "float32")
        if not precision or next(self.parameters()).dtype == dtype:
            return self
        sllm = copy.deepcopy(self).requires_grad_(False).eval()
        for weight in sllm.parameters():
            weight.data = weight.data.to(dtype)
        if sllm.device.type == "cpu" and dtype == torch.bfloat16:
            # torch's fused attention for CPUs is 2 to 5 times slower than its parts backwards in bfloat16.
            sllm.causal_lm.set_attn_implementation("eager")
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
        tokens = [torch.as_tensor(codes, dtype=torch.long) + self.vocabulary.base,
                  torch.tensor([self.vocabulary.end])]
        return torch.cat(tokens if emotion is None else [*tokens, self.answer(emotion)])

    def answer(self, emotion: int) -> Tensor:
        """The emotion token of an answer, shape (1,), as it may stand in a history."""
        return torch.tensor([self.vocabulary.emotion.start + emotion])

    def is_sound(self, tokens: Tensor) -> Tensor:
        """Which of these tokens are codes or `<audio_end>`, and no emotions; bool, the shape of `tokens`."""
        return tokens <= self.vocabulary.end

    # -- inference -----------------------------------------------------------------------------------------

    def emotion_logits(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Emotion logits, shape (batch, emotions), after each prefix: tokens that end in `<audio_end>`."""
        return self.emotions_after(self._hidden(prefixes), prefixes)

    @torch.no_grad()
    def answer_states(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Last hidden states, shape (batch, hidden), at the end of each prefix, where its emotion is read."""
        hidden = self._hidden(prefixes)
        return hidden[torch.arange(len(prefixes)), torch.tensor([len(p) - 1 for p in prefixes])].float()

    def emotion_logits_in_chunks(self, prefix: Tensor, chunk: int) -> Tensor:
        """Emotion logits, (emotions,), after a prefix heard `chunk` tokens at a time, keys and values kept."""
        decoder, past = self.causal_lm.get_decoder(), DynamicCache(config=self.causal_lm.config)
        for part in prefix.split(chunk):
            hidden = decoder(inputs_embeds=self.embedded([part]), past_key_values=past,
                             use_cache=True).last_hidden_state
        return self.emotions_after(hidden, [part])[0]

    def next_code_loss(self, prefixes: Sequence[Tensor], targets: Sequence[Tensor],
                       vocabulary: str = "codes") -> Tensor:
        """L_t of Algorithm 1, shape (batch,): mean next-token cross-entropy over each target's tokens given
        its prefix, teacher forced. With an empty prefix the first token has nothing to be predicted from and
        drops out of the mean. `vocabulary`: see `code_losses`.

        Raises UserError where prefix + target exceed the window.
        """
        rows = [torch.cat([p, t]) for p, t in zip(prefixes, targets, strict=True)]
        self.fits(prefixes, targets)
        return self.code_losses(self._hidden(rows), rows, [max(len(p), 1) for p in prefixes], vocabulary)

    def fits(self, prefixes: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """UserError where a prefix and its target exceed the window."""
        for prefix, target in zip(prefixes, targets, strict=True):
            if len(prefix) + len(target) > self.window:
                raise UserError(f"n_limit = {self.window} tokens cannot hold n_max + n_r: a sentence of n_max = "
                                f"{len(target)} after a prefix of n_r = {len(prefix)}; lower memory.prefix, "
                                "raise backbone.window, or write the sentence in pieces")

    def code_losses(self, hidden: Tensor, rows: Sequence[Tensor], first: Sequence[int], vocabulary: str = "codes",
                    head: NewRows | None = None) -> Tensor:
        """Mean cross-entropy of each row's tokens from `first[i]` (1 or more) on, shape (batch,), from the last
        hidden states, shape (batch, longest, hidden). `vocabulary`: the softmax is over `codes` (and
        `<audio_end>`, where it asks what sound comes next) or over `all` tokens. Emotion tokens (ablation
        `history_emotions`) are no sound: not predicted, not in the mean."""
        predicted = [f + self.is_sound(row[f:]).nonzero()[:, 0] for row, f in zip(rows, first, strict=True)]
        counts = torch.tensor([len(p) for p in predicted])
        if not counts.sum():
            return hidden.sum(dim=(1, 2)) * 0.0
        stream = torch.arange(len(rows)).repeat_interleave(counts)
        weight = (1.0 / counts)[stream].to(hidden.device)
        label = torch.cat([row[p] for row, p in zip(rows, predicted, strict=True)]).to(hidden.device)
        stream = stream.to(hidden.device)
        asked = hidden[stream, torch.cat(predicted).to(hidden.device) - 1]
        losses = self._next_losses(asked, label, vocabulary, head)
        return torch.zeros(len(rows), device=hidden.device).index_add(0, stream, losses * weight)

    def _next_losses(self, states: Tensor, label: Tensor, vocabulary: str, head: NewRows | None = None) -> Tensor:
        """Cross-entropy of the token after each state, shape (states,); `vocabulary`: see `code_losses`."""
        if vocabulary == "all":
            logits = self._head(states)
        else:
            logits = self._new_logits(states, slice(0, self.vocabulary.codebook_size + 1), head)
            label = label - self.vocabulary.base
        return F.cross_entropy(logits.float(), label, reduction="none")

    def emotions_after(self, hidden: Tensor, rows: Sequence[Tensor], head: NewRows | None = None) -> Tensor:
        """Emotion logits, shape (batch, emotions), at each row's last token."""
        last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        asked = hidden[torch.arange(len(rows), device=hidden.device), last]
        return self._new_logits(asked, slice(self.vocabulary.codebook_size + 1, None), head).float()

    def _new_logits(self, hidden: Tensor, part: slice, head: NewRows | None) -> Tensor:
        """Logits of some of the new rows alone, where they can be had without the others."""
        return (head or self.new_rows())(self.dropout(hidden), part)

    def new_rows(self) -> NewRows:
        """The head's rows of codes, `<audio_end>` and emotions, as they stand now; gradients reach them where they
        are the head's or PEFT's trained token rows."""
        lm = self.causal_lm
        return NewRows.of(lm.get_output_embeddings(), self.vocabulary.base, lm.config.hidden_size)

    def embedded(self, rows: Sequence[Tensor]) -> Tensor:
        """Embeddings, shape (batch, longest, hidden). Padding stands on the right, where a causal model cannot see
        it from any real position."""
        longest = max(len(r) for r in rows)
        if longest > self.window:
            raise UserError(f"{longest} tokens do not fit the window of n_limit = {self.window}; cut the history")
        ids = pad_sequence(list(rows), batch_first=True, padding_value=self.vocabulary.end).to(self.device)
        return self.dropout(self.causal_lm.get_input_embeddings()(ids))

    def _hidden(self, rows: Sequence[Tensor]) -> Tensor:
        """Last hidden states, shape (batch, longest, hidden)."""
        with machine.tf32(self):
            return self._decode(self.embedded(rows))

    def _decode(self, embedded: Tensor) -> Tensor:
        return self.causal_lm.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        return self.causal_lm.get_output_embeddings()(self.dropout(hidden))

    # -- training ------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, code_weight: Tensor, emotion: Tensor) -> dict[str, Tensor]:
        """L = (L_a + L_e) / 2 over the sentences of a batch of training sequences (see `finetune.sequences`).

        input_ids, code_weight, emotion: shape (batch, tokens). `code_weight[t]` weighs the prediction of token t,
        one in sum a sentence; `emotion[t]` is the label to be read at token t, or -100.
        """
        hidden = self._decode(self.dropout(self.causal_lm.get_input_embeddings()(input_ids)))
        asked = (code_weight[:, 1:] > 0).nonzero(as_tuple=True)
        states, label = hidden[asked[0], asked[1]], input_ids[asked[0], asked[1] + 1]
        read = (emotion >= 0).nonzero(as_tuple=True)
        losses = self._next_losses(states, label, self.loss_vocabulary)
        if self.loss_vocabulary == "all":
            logits = self._head(hidden[read])[:, self.vocabulary.emotion].float()
        else:
            logits = self._new_logits(hidden[read], slice(self.vocabulary.codebook_size + 1, None), None).float()
        weight = code_weight[asked[0], asked[1] + 1]
        l_a = (losses * weight).sum() / weight.sum().clamp_min(1e-9)
        truth = emotion[read]
        l_e = F.cross_entropy(logits, truth) if len(truth) else hidden.sum() * 0.0
        return {"loss": (l_a + l_e) / 2, "l_a": l_a, "l_e": l_e,
                "logits": logits.detach(), "truth": truth}

    # -- on disk -------------------------------------------------------------------------------------------

    def save(self, folder: Path, codes: dict) -> None:
        """A transformers folder (`AutoModelForCausalLM.from_pretrained(folder)`) plus `dpmkit.json`; for a PEFT
        model the adapter alone, and in `dpmkit.json` which backbone it is of. `codes` says which speech tokenizer
        it hears.

        Written into a temporary folder first, so that `folder` is whole or absent.
        """
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            temporary.mkdir(parents=True)
            card = {"vocabulary": asdict(self.vocabulary), "window": self.window, "codes": codes}
            if hasattr(self.model, "peft_config"):
                card["backbone"] = self._save_adapter(temporary)
            else:
                self.model.save_pretrained(temporary)
            if self.texts is not None:
                self.texts.save_pretrained(temporary)
            (temporary / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot write {folder}: {reason}; free some disk, then run again: training goes on "
                            "from its last checkpoint") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _save_adapter(self, folder: Path) -> dict:
        """PEFT's adapter with the new token rows, and which backbone `load` has to find again for it."""
        origin = self.origin or backbones.origin(self.source)
        self.model.peft_config["default"].base_model_name_or_path = origin["source"]
        self.model.save_pretrained(folder, save_embedding_layers=False)
        return {**origin, "layers": self.causal_lm.config.num_hidden_layers,
                "dtype": str(self.causal_lm.dtype).removeprefix("torch.")}

    @classmethod
    def load(cls, folder: Path | str, codebook_size: int | None = None,
             emotions: tuple[str, ...] | None = None, home: Path | None = None,
             backbone: str = "") -> EmotionSLLM:
        """The SLLM that `save` wrote, in a folder or a repository of a hub (`owner/name`); in eval mode, frozen.
        The backbone of an adapter is found again where it came from: a local folder (`backbone`, if it moved), a
        hub at the same commit, or a wheel, unpacked below `home` (None: as `Settings.home_path`).

        Raises UserError where there is no such SLLM, it was trained on another codebook or label set than the ones
        asked for, or its backbone is gone or another.
        """
        folder = backbones.downloaded(str(folder))
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            vocabulary = Vocabulary(**{**card["vocabulary"], "emotions": tuple(card["vocabulary"]["emotions"])})
            window = int(card["window"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no trained SLLM (a readable {CARD} is missing): run notebook 02 "
                            "with the same settings") from error
        if codebook_size is not None and codebook_size != vocabulary.codebook_size:
            raise UserError(f"the SLLM in {folder} hears a codebook of {vocabulary.codebook_size} codes, not "
                            f"{codebook_size}: set codes.codebook_size={vocabulary.codebook_size} or train anew")
        if emotions is not None and tuple(emotions) != vocabulary.emotions:
            raise UserError(f"the SLLM in {folder} answers with {', '.join(vocabulary.emotions)}, not with "
                            f"{', '.join(emotions)}: train anew for this label set")
        if (folder / "adapter_config.json").is_file():
            known = card["backbone"]
            origin = {name: known[name] for name in ("source", "sha256")}
            source = backbones.again(origin, home or Settings().home_path, backbone)
            model = backbones.load(source, known["dtype"], known["layers"])
            backbones.widen(model, vocabulary.size)
            sllm = cls(backbones.adapted(model, folder), vocabulary, window, source=source)
            sllm.origin = origin
        else:
            sllm = cls(backbones.load(str(folder), "auto"), vocabulary, window)
        if (folder / "tokenizer.json").is_file():
            sllm.texts = backbones.tokenizer(str(folder))
        return sllm.requires_grad_(False).eval()

    def fingerprint(self) -> str:
        """sha256 of every weight, 12 digits: bit-identical backbones have the same one."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]
