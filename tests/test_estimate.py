"""Estimates against what is counted: parameters, FLOPs, and the bytes that autograd keeps."""

import dataclasses

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from dpmkit import estimate, finetune
from dpmkit.dialogues import Dialogues, collate_sequences
from dpmkit.settings import UserError
from dpmkit.sllm import EmotionSLLM


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def asked(request, settings, toy, tmp_path):
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=160, max_position_embeddings=128, tie_word_embeddings=request.param)
    ).save_pretrained(tmp_path / "text")
    for name, value in (("backbone.source", str(tmp_path / "text")),
                        ("backbone.keep_layers", 2), ("finetune.lora_rank", 4), ("finetune.lora_dropout", 0.0),
                        ("finetune.epochs", 1), ("finetune.batch", 12)):
        settings = settings.replace(name, value)
    return settings, *toy


def real(settings, corpus, codes):
    """The model itself, and one epoch's only batch."""
    model = EmotionSLLM.create(settings.backbone, settings.finetune, 16, corpus.emotions).train()
    data = Dialogues(model, corpus.select(corpus.folds[0].train), codes.codes, corpus.emotions, settings, True)
    return model, collate_sequences(model.vocabulary.end)(list(data))


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "whole"])
def test_parameters_and_flops_are_those_that_are_counted(asked, rank):
    settings, corpus, codes = asked
    settings = settings.replace("finetune.lora_rank", rank)
    got, (model, batch) = estimate.training(settings, corpus, codes), real(settings, corpus, codes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert got.trained == trained
    whole = {id(p): p.numel() for n, p in model.named_parameters() if "lora_" not in n and "trainable" not in n}
    assert got.parameters == sum(whole.values())
    assert got.tokens == got.largest == batch["input_ids"].numel()
    with FlopCounterMode(display=False) as counter:
        model(**batch)["loss"].backward()
    assert got.flops == pytest.approx(counter.get_total_flops(), rel=0.25)


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.0), ("float32", 0.05), ("bfloat16", 0.05)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_autograd_keeps(asked, checkpointing, dtype, dropout):
    settings, corpus, codes = asked
    for name, value in (("finetune.checkpointing", checkpointing), ("backbone.dtype", dtype),
                        ("finetune.lora_dropout", dropout)):
        settings = settings.replace(name, value)
    got, (model, batch) = estimate.training(settings, corpus, codes), real(settings, corpus, codes)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(**batch)
    size = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    told = got.memory["activations"] + got.memory["logits"]
    if checkpointing:  # hooks inside a checkpointed block are its own: its inputs alone are seen here
        assert size < told
    else:
        assert size / 1.5 < told < size * 1.5
    assert out["loss"].requires_grad


def test_less_at_once_and_less_kept_is_less(asked):
    settings, corpus, codes = asked
    whole = estimate.training(settings, corpus, codes)
    small = estimate.training(settings.replace("finetune.forward_tokens", 64), corpus, codes)
    again = estimate.training(settings.replace("finetune.checkpointing", True), corpus, codes)
    assert small.largest <= 64 < whole.largest and small.tokens == whole.tokens
    assert small.memory["activations"] < whole.memory["activations"] / 2
    assert again.memory["activations"] < whole.memory["activations"] and again.flops > whole.flops


def test_what_cannot_fit_is_refused_before_it_starts(asked, monkeypatch, capsys):
    settings, corpus, codes = asked
    finetune.train(settings, corpus, codes)
    assert "M trained) on" in capsys.readouterr().out
    monkeypatch.setattr(psutil, "virtual_memory", lambda: dataclasses.make_dataclass("M", ["available"])(10_000))
    monkeypatch.setattr(EmotionSLLM, "create", None)
    with pytest.raises(UserError, match=r"does not fit: .* GB .*finetune\.forward_tokens"):
        finetune.train(settings.replace("seed", 5), corpus, codes)


@pytest.mark.parametrize(("files", "own", "free"), [
    ({"memory/job/memory.limit_in_bytes": "5000", "memory/job/memory.usage_in_bytes": "3000",
      "memory/job/memory.stat": "cache 700\ninactive_file 600\n"}, "5:cpu:/x\n4:memory:/job\n0::/\n", 2600),
    ({"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "1000"}, "4:memory:/of the host\n",
     4000),  # a container sees its group as the root
    ({"a/b/memory.max": "max", "a/b/memory.current": "10", "a/memory.max": "900", "a/memory.current": "100"},
     "0::/a/b\n", 800),  # the group above is what limits
    ({"memory.max": "50", "memory.current": "90"}, "0::/\n", 0),
])
def test_a_containers_limit_counts(files, own, free, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert estimate._free_memory(tmp_path, tmp_path / "own") == free
    assert estimate._free_memory(tmp_path, tmp_path / "absent") > 10**6  # no groups: the machine's
