"""Costs are measured, not made up."""

import numpy as np
import pytest
import torch

from dpmkit import cost
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
