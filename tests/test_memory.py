"""The memory against a plain PEFT loop, and what must hold whatever the settings."""

import numpy as np
import pytest
import torch
from conftest import answered, written

from dpmkit import cheaper
from dpmkit.algorithm1 import algorithm1
from dpmkit.memory import DynamicParameterMemory
from dpmkit.settings import MemorySettings, UserError


def spoken(turns, seed):
    """A conversation's sentences as codes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 16, rng.integers(2, 9)) for _ in range(turns)]


def talk(sllm, turns, seed):
    """The same as tokens."""
    return [sllm.sentence(codes) for codes in spoken(turns, seed)]


def loop(sllm, conversation, settings):
    """Algorithm 1 in plain PEFT, from the memory's own start."""
    fresh = DynamicParameterMemory(sllm, settings).lora
    return algorithm1(sllm, conversation, settings, [a[0] for a, _ in fresh.factors([0])])


def hear(memory, conversations, prefix=8):
    """Losses and probabilities a conversation, all streams in lockstep, each ending when it ends."""
    out = [([], []) for _ in conversations]
    for turn in range(max(map(len, conversations))):
        live = [s for s, c in enumerate(conversations) if turn < len(c)]
        before = [torch.cat([torch.empty(0, dtype=torch.long), *conversations[s][:turn]])[-prefix:] for s in live]
        now = [conversations[s][turn] for s in live]
        if turn:
            for s, loss in zip(live, written(memory, before, now, live), strict=True):
                out[s][0].append(float(loss))
        for s, p in zip(live, answered(memory, [torch.cat(pair) for pair in zip(before, now, strict=True)], live),
                        strict=True):
            out[s][1].append(p.numpy())
    return out


def test_backbone_is_bit_identical_after_a_conversation(sllm):
    before = sllm.fingerprint()
    memory = DynamicParameterMemory(sllm, MemorySettings(rank=4, lr=1e-2, prefix=8), streams=1)
    hear(memory, [talk(sllm, 6, 0)])
    assert memory.lora.norm([0]) > 0
    assert sllm.fingerprint() == before
    assert not any(m._forward_hooks for m in sllm.modules())


def test_a_fresh_memory_answers_as_the_backbone_and_a_reset_one_is_fresh(sllm):
    conversation = talk(sllm, 5, 0)
    memory = DynamicParameterMemory(sllm, MemorySettings(rank=4, lr=1e-2, prefix=8), streams=2)
    prefix = [torch.cat(conversation[:3]), conversation[0]]
    with torch.no_grad():
        bare = sllm.emotion_logits(prefix).softmax(-1)
    assert torch.equal(answered(memory, prefix), bare)
    first = hear(memory, [conversation, conversation[:2]])
    assert not torch.equal(answered(memory, prefix), bare)
    memory.reset()
    assert torch.equal(answered(memory, prefix), bare)
    assert hear(memory, [conversation, conversation[:2]])[0][0] == first[0][0]


def test_a_non_finite_stream_keeps_its_memory_and_harms_no_other(sllm):
    settings = MemorySettings(rank=4, lr=1e-2, prefix=8)
    one, two = talk(sllm, 4, 0), talk(sllm, 4, 1)
    healthy, = hear(DynamicParameterMemory(sllm, settings, streams=1), [two])
    memory = DynamicParameterMemory(sllm, settings, streams=2)
    memory.lora.memories[0].data.fill_(float("inf"))
    broken = memory.lora.memories[0].clone()
    got = hear(memory, [one, two])
    np.testing.assert_allclose(got[1][0], healthy[0], atol=1e-5)
    assert torch.equal(memory.lora.memories[0], broken) and [h.skipped for h in memory.histories] == [3, 0]


def test_top_layers_only(sllm):
    settings = MemorySettings(rank=4, lr=1e-2, prefix=8, layers="top-1")
    memory = cheaper.memory(sllm, settings)
    assert all(name.startswith("1.") for name in memory.lora.modules) and len(memory.lora.modules) == 7
    with pytest.raises(UserError, match="top-k"):
        cheaper.memory(sllm, MemorySettings(layers="top-9", prefix=8))


def test_the_window_must_hold_sentence_and_prefix(sllm):
    with pytest.raises(UserError, match=r"n_limit = 64.*n_max.*n_r = 64"):
        DynamicParameterMemory(sllm, MemorySettings(prefix=64))
    memory = DynamicParameterMemory(sllm, MemorySettings(prefix=32))
    sentence = sllm.sentence(np.zeros(40, dtype=int))
    with pytest.raises(UserError, match=r"n_limit = 64.*n_max = *41.*n_r = 32"):
        written(memory, [torch.zeros(32, dtype=torch.long)], [sentence])
