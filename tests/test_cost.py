"""Costs are measured, not made up."""

import numpy as np
import pytest
import torch
from conftest import make_toy

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
    flops = {m: row["flops_a_sentence"] for m, row in spent.items()}
    assert flops["current"] < flops["window"] < flops["dpm"] / 3  # a write: a forward, and a backward of two
    assert flops["speaker-memory"] == pytest.approx(flops["current"], rel=0.2)  # the same forward, padded otherwise
    kept = {m: row["parameters"] for m, row in spent.items()}
    layers = sharp.linear_layers().values()
    lora = sum(settings.memory.rank * (layer.in_features + layer.out_features) for layer in layers)
    paths = settings.speaker.paths
    assert kept == {"current": 0, "window": 0, "dpm": lora, "speaker-memory": paths * (3 + 1 + 4) + 9}
    for row in spent.values():
        assert row["seconds_an_hour"] > row["seconds_a_sentence"] > 0 and row["peak_bytes"] >= 0
