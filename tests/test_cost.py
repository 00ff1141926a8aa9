"""Costs are measured, not made up."""

import functools

import numpy as np
import pytest
import torch
from conftest import make_toy
from torch._subclasses import FakeTensorMode

from dpmkit import cost, speakers
from dpmkit.finetune import Finetuned
from dpmkit.settings import MemorySettings


def test_peak_memory_sees_what_was_held_for_a_moment():
    def work():
        for _ in range(20):  # long enough for the watcher
            held = np.ones(8_000_000)  # 64 MB
            held += 1

    got = cost.measured(work, torch.device("cpu"))
    assert 50e6 < got["peak_bytes"] < 200e6 and got["seconds"] > 0


@pytest.mark.parametrize("path", cost.PATHS)
def test_every_path_is_measured_beyond_the_window(sllm, path):
    codes = np.random.default_rng(0).integers(0, sllm.vocabulary.codebook_size, 4 * sllm.window)
    got = cost.label_after(sllm, codes, 8, MemorySettings(rank=2, alpha=2.0, prefix=8, lr=1e-3), path)
    assert got["seconds"] > 0 and got["peak_bytes"] >= 0


def test_a_method_costs_what_it_does_and_keeps_what_it_keeps(sharp, settings, tmp_path):
    settings = settings.replace("speaker.dimensions", 3)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned, test = Finetuned(sharp, "sharp", tmp_path, [], 0), corpus.select(corpus.folds[0].test)
    spent = {m: cost.of_method(settings, tuned, codes, test, corpus.emotions, m)
             for m in ("current", "window", "dpm")}
    model, power, _ = speakers.fitted(settings, corpus, codes, tuned)
    spent["speaker-memory"] = cost.of_speakers(settings, tuned, codes, test, corpus.emotions, model, power)
    flops = {m: row["flops_per_sentence"] for m, row in spent.items()}
    assert flops["current"] < flops["window"] < flops["dpm"] / 3  # a write: a forward, and a backward of two
    assert flops["speaker-memory"] == pytest.approx(flops["current"], rel=0.2)  # the same forward, padded otherwise
    kept = {m: row["parameters"] for m, row in spent.items()}
    layers = sharp.linear_layers().values()
    lora = sum(settings.memory.rank * (layer.in_features + layer.out_features) for layer in layers)
    paths = settings.speaker.paths
    assert kept == {"current": 0, "window": 0, "dpm": lora, "speaker-memory": paths * (3 + 1 + 4) + 9}
    for row in spent.values():
        assert row["seconds_per_hour"] > row["seconds_per_sentence"] > 0 and row["peak_bytes"] >= 0


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_fused_attention_is_counted_with_grouped_queries_on_a_gpu_and_on_a_cpu(kv_heads):
    once = 2 * 3 * 8 * 5 * 7 * 16  # one of its products: 3 rows, 8 heads, 5 queries, 7 keys of 16 dimensions

    def work(device, way):
        q, k, v = (torch.zeros(3, heads, tokens, 16, device=device) for heads, tokens in
                   ((8, 5), (kv_heads, 7), (kv_heads, 7)))
        fused = getattr(torch.ops.aten, f"_scaled_dot_product_{way}attention")
        return lambda: fused(q, k, v, *([None, False] if "efficient" in way else []))

    with FakeTensorMode():
        assert cost.flops(work("cuda", "flash_")) == cost.flops(work("cuda", "efficient_")) == 2 * once
    q, k = (torch.zeros(3, heads, n, 16, requires_grad=True) for heads, n in ((8, 5), (kv_heads, 7)))
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, q, k, k, enable_gqa=True)
    assert cost.flops(attend) == 2 * once
    assert cost.flops(attend().sum().backward) == 5 * once  # the scores once more, and four of the way back
