"""Every entry point on a GPU that is not there (`fakecuda`): no operation on two devices, and the CPU's numbers."""

import contextlib
import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, make_settings, make_toy
from fakecuda import gpus, value
from torch.nn.attention import SDPBackend, sdpa_kernel
from safetensors.torch import save_file

from dpmkit import baselines, bench, cost, finetune, protocols, recurrent, speakers
from dpmkit.corpora.dynamics import EMOTIONS, emotion_prior, transition_matrix
from dpmkit.settings import MemorySettings, Settings

BASE = MemorySettings(rank=4, alpha=4.0, lr=3e-3, prefix=8)
OPTIONS = {
    **bench.RUNGS, "stride-256": {"stepping": "stride-16"}, "every-2": {"stepping": "every-2"},
    "kept sinks": {"prefix_states": "reuse", "sinks": 2}, "reset": {"reset_every": 2}, "decay": {"decay": 0.1},
    "emotion": {"rule": "emotion", "target": "sharpened"}, "both, filtered": {"rule": "both", "target": "filtered"},
    "two clipped steps of sgd": {"steps": 2, "optimizer": "sgd", "clip": 0.5},
    "own answers": {"history_emotions": "predicted"}, "all tokens": {"loss_vocabulary": "all"}}


@pytest.fixture(scope="module")
def corpus():
    return make_toy(turns=(3, 4), seed=3)


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
        tables = list(protocols.listen(sllm, some, codes.codes, EMOTIONS, settings, method, donors, 0, 2, chain))
    return pd.concat(tables).select_dtypes("number").to_numpy()


@pytest.mark.parametrize("rung", OPTIONS)
def test_the_memory_with_every_option(sharp, corpus, rung):
    settings = dataclasses.replace(BASE, **OPTIONS[rung])
    expected = heard(copy.deepcopy(sharp), corpus, settings, "dpm")
    with gpus() as gpu:
        got = heard(on_gpu(sharp), corpus, settings, "dpm")
    assert gpu.products
    if "precision" in OPTIONS[rung]:  # the CPU's attention is another one, see DynamicParameterMemory
        np.testing.assert_allclose(got, expected, atol=0.1)
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("method", protocols.METHODS)
def test_every_method(sharp, corpus, method):
    expected = heard(copy.deepcopy(sharp), corpus, BASE, method)
    with gpus():
        np.testing.assert_array_equal(heard(on_gpu(sharp), corpus, BASE, method), expected)


@pytest.fixture
def asked(tmp_path):
    """Settings of two short epochs on the GPU."""
    return Settings.of("smoke", {**make_settings(tmp_path).flat(), "device": "cuda", "finetune.epochs": 2,
                                 "classifier.epochs": 2, "recurrent.epochs": 2,
                                 "backbone.dropout": 0.0, "recurrent.dropout": 0.0})


@pytest.mark.parametrize("way", ["classifier", "lstm", "blstm"])
def test_networks_beside_the_sllm_are_trained_evaluated_and_answer(asked, corpus, way):
    toy, codes = corpus
    answers = {}
    for device in ("cpu", "cuda"):
        with sdpa_kernel(SDPBackend.MATH), gpus() if device == "cuda" else contextlib.nullcontext() as gpu:
            settings = asked.replace("device", device).replace("home", f"{asked.home}/{device}")
            answers[device] = (baselines.classify(settings, toy, codes) if way == "classifier" else
                               recurrent.predict(settings, toy, codes, bidirectional=way == "blstm"))
    assert gpu.products
    pd.testing.assert_frame_equal(answers["cuda"], answers["cpu"], rtol=1e-4, atol=1e-4)
