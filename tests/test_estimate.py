"""Estimates against what is counted: parameters, FLOPs, and the bytes that autograd keeps; the plan of a grid,
whose FLOPs are those of the real model and whose hours those of its cells."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import make_toy
from test_backbones import made
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from dpmkit import estimate, finetune, methods, report, tables
from dpmkit.codes import CorpusCodes
from dpmkit.finetune import Dialogues, forwards
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
    """The model itself, and the forwards of one epoch's only step."""
    model = EmotionSLLM.create(settings.backbone, settings.finetune, 16, corpus.emotions).train()
    data = Dialogues(model, corpus, codes, settings, "train")
    return model, forwards(list(data))


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "whole"])
def test_parameters_and_flops_are_those_that_are_counted(asked, rank):
    settings, corpus, codes = asked
    settings = settings.replace("finetune.lora_rank", rank)
    got, (model, step) = finetune.estimated(settings, corpus, codes), real(settings, corpus, codes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert got.trained == trained
    whole = {id(p): p.numel() for n, p in model.named_parameters() if "lora_" not in n and "trainable" not in n}
    assert got.parameters == sum(whole.values())
    tokens = [forward["input_ids"].numel() for forward in step]
    assert (got.tokens, got.largest) == (sum(tokens), max(tokens)) and len(tokens) > 1
    with FlopCounterMode(display=False) as counter:
        for forward in step:
            model(**forward)["loss"].backward()
    assert got.flops == pytest.approx(counter.get_total_flops(), rel=0.25)


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.0), ("float32", 0.05), ("bfloat16", 0.05)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_autograd_keeps(asked, checkpointing, dtype, dropout):
    settings, corpus, codes = asked
    for name, value in (("finetune.checkpointing", checkpointing), ("backbone.dtype", dtype),
                        ("finetune.lora_dropout", dropout)):
        settings = settings.replace(name, value)
    got, (model, step) = finetune.estimated(settings, corpus, codes), real(settings, corpus, codes)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(**max(step, key=lambda forward: forward["input_ids"].numel()))
    size = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    told = got.memory["activations"] + got.memory["logits"]
    if checkpointing:  # hooks inside a checkpointed block are its own: its inputs alone are seen here
        assert size < told
    else:
        assert size / 1.5 < told < size * 1.5
    assert out["loss"].requires_grad


def test_less_at_once_and_less_kept_is_less(asked):
    settings, corpus, codes = asked
    whole = finetune.estimated(settings, corpus, codes)
    small = finetune.estimated(settings.replace("finetune.forward_tokens", 64), corpus, codes)
    again = finetune.estimated(settings.replace("finetune.checkpointing", True), corpus, codes)
    assert small.largest <= 64 < whole.largest and small.tokens <= whole.tokens
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


@pytest.mark.parametrize(("device", "rows"), [("cpu", 1024), ("meta", 4096)])
def test_the_rate_is_of_a_product_that_the_device_has_time_for(device, rows, monkeypatch):
    class Timed:
        def __init__(self, _, globals, num_threads):
            assert globals["a"].shape == (rows, rows) and globals["a"].dtype == torch.bfloat16
            self.median = 2.0

        def blocked_autorange(self, min_run_time):
            return self

    monkeypatch.setattr(estimate, "Timer", Timed)
    assert estimate.matmul_rate(torch.device(device), torch.bfloat16) == rows ** 3


@pytest.mark.parametrize(("files", "own", "free"), [
    ({"job/memory.max": "5000", "job/memory.current": "3000", "job/memory.stat": "file 700\ninactive_file 600\n"},
     "4:cpu:/x\n0::/job\n", 2600),
    ({"memory.max": "5000", "memory.current": "1000"}, "0::/of/the host\n", 4000),  # a container's own is the root
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
    assert estimate._free_memory(Path("/nowhere"), tmp_path / "own") > 10**6  # no groups: the machine's


# -- the plan of a grid -------------------------------------------------------------------------------------

@pytest.fixture
def planned(settings, tmp_path):
    corpus, _ = make_toy(turns=(4, 5, 6), seed=3)
    for name, value in {"backbone.source": made(tmp_path / "text"), "finetune.lora_rank": 4,
                        "memory.prefix": 40, "ablation.lr": (0.0, 1e-3), "ablation.conversations": 1}.items():
        settings = settings.replace(name, value)
    return settings, corpus


GIVEN = finetune.sizes, 8  # as `python -m dpmkit plan` gives them


def cell(settings, corpus):
    return estimate.cell(settings, corpus, *GIVEN)


def plan(settings, corpus, *more, **given):
    return estimate.plan(settings, corpus, *more, *GIVEN, **given)


def silent(corpus):
    """Codes that are all 0, 25 a second: the right number is all that counts."""
    codes = {u.id: np.zeros(round(25 * u.seconds), int) for c in corpus.conversations for u in c.utterances}
    return CorpusCodes("silent", codes, {}, {"codebook_size": 16, "frame_rate": 25.0})


def counted(model, prefix, conversations):
    """FLOPs of the decoder, a forward for every sentence behind its prefix."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for sentences in conversations:
            for i, now in enumerate(sentences):
                before = torch.cat(sentences[:i])[-prefix:] if i and prefix else now[:0]
                model.emotion_logits([torch.cat([before, now])[-model.window:]])
    return counter.get_total_flops()


def test_reading_is_what_the_forwards_take(planned):
    settings, corpus = planned
    got, codes = cell(settings, corpus), silent(corpus)
    model = EmotionSLLM.create(settings.backbone, settings.finetune.__class__(), 16, corpus.emotions).eval()
    model.causal_lm.set_attn_implementation("eager")  # the counter does not see into the fused one
    fold = corpus.folds[0]
    said = {split: [[model.sentence(codes.codes[u.id]) for u in c.utterances]
                    for c in corpus.select(getattr(fold, split))] for split in ("train", "validation", "test")}
    n_r = settings.memory.prefix
    expected = counted(model, n_r, said["train"]) + sum(
        3 * counted(model, n_r, said[s]) + counted(model, 0, said[s]) + counted(model, model.window, said[s])
        for s in ("validation", "test"))
    assert got["reading"] == pytest.approx(expected, rel=0.03)
    assert got["training"] == finetune.estimated(settings, corpus, codes).flops


def test_writing_grows_with_the_steps_and_the_rates(planned):
    settings, corpus = planned
    one = cell(settings, corpus)
    two = cell(settings.replace("memory.steps", 2), corpus)
    assert two["reading"] == one["reading"]
    assert len(methods.TUNED) + 2 == GIVEN[1]
    # 8 methods, the bound and twice a rate on validation: each step as much again, and one that is the bound's own
    three = cell(settings.replace("memory.steps", 3), corpus)
    assert three["writing"] - two["writing"] == pytest.approx(two["writing"] - one["writing"])
    steps = (two["writing"] - one["writing"]) / estimate.PASSES
    assert 0 < one["writing"] - (estimate.PASSES + 1) * steps < estimate.PASSES * steps / 4
    assert cell(settings.replace("ablation.lr", (1e-4, 1e-3)), corpus)["writing"] > one["writing"]


def test_the_record_keeps_other_corpora_and_no_path(planned, tmp_path):
    settings, corpus = planned
    plan(settings, corpus, (1, 2), 3, teraflops=2.0)
    path = plan(settings.replace("corpus", "meld"), corpus, (1,), 3)
    path = plan(settings, corpus, (1, 2), 3, teraflops=4.0)
    assert str(tmp_path) not in path.read_text()
    rows = {r["corpus"]: r for r in json.loads(path.read_text())["results"]["rows"]}
    assert rows["demo"]["teraflops"] == 4.0 != rows["meld"]["teraflops"] > 0

    def hours_of(cell):
        return (cell["training"] + cell["writing"] + cell["reading"]) / (estimate.UTILISATION * 4e12) / 3600

    assert rows["demo"]["gpu_hours"] == pytest.approx(3 * sum(map(hours_of, rows["demo"]["cells"])))
    assert rows["demo"]["longest_hours"] == pytest.approx(max(map(hours_of, rows["demo"]["cells"])))
    table = tables.bench(json.loads(path.read_text())["results"])
    assert table[["corpus", "folds", "seeds"]].to_numpy().tolist() == [["meld", "1", "3"], ["demo", "2", "3"]]
    assert f"| {rows['demo']['gpu_hours']:.4g} |" in report.bench_page(settings.own_path)
    with pytest.raises(UserError, match="pretrained backbone"):
        plan(settings.replace("backbone.source", ""), corpus, (1,), 1)
