"""Every entry point on a GPU that is not there (`fakecuda`): no operation on two devices, and the CPU's numbers."""

import contextlib
import copy
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_settings, make_toy
from fakecuda import gpus
from test_backbones import made
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpmkit import baselines, bench, codes, corpora, finetune, protocols, speakers
from dpmkit.corpora.dynamics import EMOTIONS, emotion_prior, transition_matrix
from dpmkit.memory import DynamicParameterMemory
from dpmkit.settings import BackboneSettings, FinetuneSettings, MemorySettings, Settings, UserError
from dpmkit.sllm import EmotionSLLM

BASE = MemorySettings(rank=4, alpha=4.0, lr=3e-3, prefix=8)
OPTIONS = {
    **bench.RUNGS, "stride-256": {"stepping": "stride-8"}, "every-2": {"stepping": "every-2"},
    "kept sinks": {"prefix_states": "reuse", "sinks": 2}, "reset": {"reset_every": 2}, "decay": {"decay": 0.1},
    "emotion": {"rule": "emotion", "target": "sharpened"}, "both, filtered": {"rule": "both", "target": "filtered"},
    "two steps of sgd": {"steps": 2, "optimizer": "sgd"},
    "own answers": {"history_emotions": "predicted"}, "all tokens": {"loss_vocabulary": "all"}}


@pytest.fixture(scope="module")
def corpus():
    return make_toy(turns=(2, 3), seed=3)


def on_gpu(sllm):
    return copy.deepcopy(sllm).to("cuda")


def heard(sllm, corpus, settings, method):
    """All answers, losses and norms of a method on two of the toy's conversations."""
    toy, codes = corpus
    some = toy.select(toy.folds[0].test)
    chain = transition_matrix(toy.conversations, EMOTIONS), emotion_prior(toy.conversations, EMOTIONS)
    donors = {"stranger": some[1:] + some[:1], "speaker": some[1:] + some[:1]}
    how = protocols.METHODS[method].donor
    donors = {c.id: d for c, d in zip(some, donors.get(how, some), strict=True)}
    with sdpa_kernel(SDPBackend.MATH):  # as a GPU that is not there has no fused attention
        listener = protocols.Listener(Settings.of("smoke").but(memory=settings), sllm, codes.codes, EMOTIONS, chain)
        tables = list(protocols.listen(listener, some, method, donors))
    return pd.concat(tables).select_dtypes("number").to_numpy()


@pytest.mark.parametrize("rung", OPTIONS)
def test_the_memory_with_every_option(sharp, corpus, rung):
    settings = BASE.but(**OPTIONS[rung])
    expected = heard(copy.deepcopy(sharp), corpus, settings, "dpm")
    with gpus() as gpu:
        got = heard(on_gpu(sharp), corpus, settings, "dpm")
    assert gpu.products
    if "precision" in OPTIONS[rung]:  # the CPU's attention is another one, see DynamicParameterMemory
        np.testing.assert_allclose(got, expected, atol=0.1)
    else:
        np.testing.assert_allclose(got, expected, atol=1e-5)  # rows are padded to lengths that come again


@pytest.mark.parametrize("method", protocols.METHODS)
def test_every_method(sharp, corpus, method):
    expected = heard(copy.deepcopy(sharp), corpus, BASE, method)
    with gpus():
        np.testing.assert_allclose(heard(on_gpu(sharp), corpus, BASE, method), expected, atol=1e-5)


@pytest.fixture
def asked(tmp_path):
    """Settings of one short epoch on the GPU, without dropout, whose masks are another device's."""
    return Settings.of("smoke", {**make_settings(tmp_path).flat(), "device": "cuda", "finetune.epochs": 1,
                                 "classifier.epochs": 1, "recurrent.epochs": 1,
                                 "backbone.dropout": 0.0, "recurrent.dropout": 0.0})


@pytest.mark.parametrize("way", ["classifier", "lstm", "blstm"])
def test_networks_beside_the_sllm_are_trained_evaluated_and_answer(asked, corpus, way):
    toy, codes = corpus
    answers = {}
    for device in ("cpu", "cuda"):
        with sdpa_kernel(SDPBackend.MATH), gpus() if device == "cuda" else contextlib.nullcontext() as gpu:
            settings = asked.replace("device", device).replace("home", f"{asked.home}/{device}")
            answers[device] = baselines.network(settings, toy, codes, way)
    assert gpu.products
    pd.testing.assert_frame_equal(answers["cuda"], answers["cpu"], check_exact=True)


LORA = {"finetune.lora_rank": 4, "finetune.lora_dropout": 0.0, "finetune.forward_tokens": 64,
        "finetune.checkpointing": True}


def pretrained(settings, folder, changes):
    """Settings with a tiny pretrained backbone of grouped queries, and these changes."""
    for name, new in {"backbone.source": made(folder), **LORA, **changes}.items():
        settings = settings.replace(name, new)
    return settings


@pytest.mark.parametrize("changes", [None, {}, {"backbone.dtype": "bfloat16"}], ids=["scratch", "lora", "bf16"])
def test_an_sllm_is_trained_evaluated_saved_and_loaded(asked, corpus, changes, tmp_path, monkeypatch):
    toy, codes = corpus
    asked = asked if changes is None else pretrained(asked, tmp_path / "text", changes)
    save = EmotionSLLM.save
    monkeypatch.setattr(EmotionSLLM, "save", lambda self, *rest: save(self.cpu(), *rest))  # fake weights have none
    done = {}
    for device in ("cpu", "cuda"):
        with sdpa_kernel(SDPBackend.MATH), gpus() if device == "cuda" else contextlib.nullcontext() as gpu:
            settings = asked.replace("device", device).replace("home", str(tmp_path / device))
            done[device] = finetune.train(settings, toy, codes)
            assert done[device].sllm.device.type == device
    assert gpu.calls["set_device"] and torch.get_float32_matmul_precision() == "highest"
    assert {p for _, p in gpu.products} >= {"high" if changes and "backbone.dtype" in changes else "highest"}
    if "bfloat16" not in (changes or {}).values():
        assert done["cuda"].history == done["cpu"].history


def test_speakers_states_and_costs(sharp, asked, corpus, tmp_path):
    toy, codes = make_toy(turns=(3, 4), seed=5)
    settings, some = asked.replace("speaker.dimensions", 3), toy.select(toy.folds[0].test)
    with gpus() as gpu:
        tuned = finetune.Finetuned(on_gpu(sharp), "sharp", tmp_path, [], 0)
        model, _ = speakers.fitted(settings, toy, codes, tuned)
        spent = bench.of_method(settings, tuned, codes, some, toy.emotions, "speaker-memory", model)
        for method in ("window", "dpm"):
            priced = bench.of_method(settings, tuned, codes, some, toy.emotions, method)
            assert priced["flops_per_sentence"] > spent["flops_per_sentence"] > 0 and priced["peak_bytes"] == 1
    assert min(gpu.calls[name] for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated")) > 0


@pytest.mark.parametrize("path", bench.PATHS)
def test_cost_of_a_label(sharp, path):
    with gpus():
        codes = np.random.default_rng(0).integers(0, 16, 4 * sharp.window)
        assert bench.label_after(on_gpu(sharp), codes, 40, BASE, path)["peak_bytes"] == 1


def test_bench_memory(sharp, asked, corpus, tmp_path, monkeypatch):
    toy, spoken = corpus
    monkeypatch.setattr(corpora, "load", lambda _: toy)
    monkeypatch.setattr(codes, "make", lambda *_: spoken)
    monkeypatch.setattr(bench, "GPU_SHAPES", {"tiny": (32, 2, 4, 2, 64, torch.bfloat16, 16, 1)})
    monkeypatch.setattr(bench, "SENTENCES", 2)
    monkeypatch.setattr(bench, "RUNGS", {n: bench.RUNGS[n] for n in ("exact", "bf16 + top-2 + reuse")})
    with gpus():
        tuned = finetune.Finetuned(on_gpu(sharp), "toy", tmp_path, [], 0)
        monkeypatch.setattr(finetune, "train", lambda *_: tuned)
        short = asked.replace("memory.prefix", 8).replace("ablation.conversations", 1)
        record = json.loads(bench.memory(short, repeats=1).read_text(encoding="utf-8"))
    assert all(row["rate"] > 0 and row["flops_per_sentence"] > 0 for row in record["results"]["rates"])


def test_the_gpu_that_is_asked_for_and_no_other(asked, corpus, monkeypatch):
    seen, step = [], finetune._Trainer.training_step

    def looked_at(self, model, *rest):
        seen.append((type(model), self.args.device, self.args.n_gpu, next(model.parameters()).device))
        return step(self, model, *rest)

    monkeypatch.setattr(finetune._Trainer, "training_step", looked_at)
    with gpus(3) as gpu:
        baselines.network(asked.replace("device", "cuda:1"), *corpus, "classifier")
        assert gpu.current == 1
    where = torch.device("cuda:1")
    assert set(seen) == {(baselines.Classifier, where, 1, where)}
    with gpus(2), pytest.raises(UserError, match=r"device is cuda:1.*torchrun"):
        finetune._one_gpu(SimpleNamespace(world_size=2), where)
    finetune._one_gpu(SimpleNamespace(world_size=2), torch.device("cpu:0"))  # shared, as it is one for all


class Enough(Exception):
    """The first forward has been seen."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_a_step_are_in_the_backbones_precision(asked, corpus, dtype, tmp_path, monkeypatch):
    def forward(self, model, inputs, *_):
        gpu.products.clear()  # the estimate's
        with self.compute_loss_context_manager():
            model(**self._prepare_inputs(inputs)[0])
        raise Enough

    monkeypatch.setattr(finetune._Trainer, "training_step", forward)
    changes = {"backbone.dtype": dtype, "finetune.checkpointing": False}
    with gpus(backward=False) as gpu, pytest.raises(Enough):
        finetune.train(pretrained(asked, tmp_path / "text", changes), *corpus)
    half = dtype == "bfloat16"
    if half:
        gpu.products.pop((torch.float32, "high"))  # rotary frequencies
    assert set(gpu.products) == {(getattr(torch, dtype), "high" if half else "highest")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memorys_products_are_in_the_backbones_precision(corpus, dtype, tmp_path):
    sllm = EmotionSLLM.create(BackboneSettings(source=made(tmp_path / "text"), window=64, dtype=dtype),
                              FinetuneSettings(lora_rank=4), 16, EMOTIONS).merged()
    with gpus() as gpu:
        memory = DynamicParameterMemory(on_gpu(sllm), BASE)
        memory.lora.norm = lambda streams: torch.zeros(1)
        list(memory.listen([np.arange(5), np.arange(7)]))
    number = {kind: sum(n for (k, _), n in gpu.products.items() if k == kind) for kind, _ in gpu.products}
    assert number[getattr(torch, dtype)] > 100
    if dtype == "bfloat16":  # rotary frequencies, and attention as a CPU computes it
        assert number[torch.float32] <= 30
