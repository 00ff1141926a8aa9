"""The memory against a plain PEFT loop, and what must hold whatever the settings."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from dpmkit.memory import DynamicParameterMemory
from dpmkit.settings import MemorySettings, UserError

EMOTIONS = ("neu", "hap", "sad", "ang")


def talk(sllm, turns, seed):
    """A conversation's sentences as tokens."""
    rng = np.random.default_rng(seed)
    return [sllm.sentence(rng.integers(0, 16, rng.integers(2, 9))) for _ in range(turns)]


def hear(memory, conversations, prefix=8):
    """Losses and probabilities a conversation, all streams in lockstep, each ending when it ends."""
    out = [([], []) for _ in conversations]
    for turn in range(max(map(len, conversations))):
        live = [s for s, c in enumerate(conversations) if turn < len(c)]
        before = [torch.cat([torch.empty(0, dtype=torch.long), *conversations[s][:turn]])[-prefix:] for s in live]
        now = [conversations[s][turn] for s in live]
        if turn:
            for s, loss in zip(live, memory.write(before, now, live), strict=True):
                out[s][0].append(float(loss))
        for s, p in zip(live, memory.read([torch.cat(pair) for pair in zip(before, now, strict=True)], live),
                        strict=True):
            out[s][1].append(p.numpy())
    return out


def peft_loop(sllm, conversation, settings, prefix=8):
    """Algorithm 1 as a user of PEFT writes it: fresh adapter, AdamW, a step a sentence, read."""
    fresh = DynamicParameterMemory(sllm, settings).lora
    names = [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")]
    blocks = None if settings.layers == "all" else [int(next(iter(fresh.modules)).split(".")[0])]
    model = get_peft_model(sllm.model, LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names,
                                                  layers_to_transform=blocks))
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    with torch.no_grad():  # the same start
        for layer, (a, _) in zip(layers, fresh.factors(fresh.flat), strict=True):
            layer.lora_A["default"].weight.copy_(a[0])
    trained = [p for n, p in model.named_parameters() if "lora_" in n]
    maker = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.SGD
    optimizer = maker(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    losses, probabilities = [], []
    for turn, sentence in enumerate(conversation):
        before = torch.cat([torch.empty(0, dtype=torch.long), *conversation[:turn]])[-prefix:]
        for step in range(settings.steps if turn else 0):
            ids = torch.cat([before, sentence])[None]
            logits = model(input_ids=ids).logits[0, len(before) - 1:-1]
            if settings.loss_vocabulary == "codes":  # all but the emotions
                logits = logits[:, :-len(EMOTIONS)]
            loss = torch.nn.functional.cross_entropy(logits, sentence)
            optimizer.zero_grad()
            loss.backward()
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            if not step:
                losses.append(loss.item())
        with torch.no_grad():
            logits = model(input_ids=torch.cat([before, sentence])[None]).logits[0, -1]
        probabilities.append(logits[-len(EMOTIONS):].softmax(-1).numpy())
    sllm.model = model.unload()
    return losses, probabilities


@pytest.mark.parametrize("change", [
    {}, {"rank": 1}, {"rank": 16, "alpha": 4.0}, {"steps": 3}, {"clip": 0.1}, {"optimizer": "sgd", "lr": 0.5},
    {"weight_decay": 0.1, "lr": 1e-2},
])
def test_batched_streams_equal_a_plain_peft_loop(sllm, change):
    settings = MemorySettings(**{"rank": 4, "alpha": 4.0, "lr": 3e-3, "prefix": 8, **change})
    conversations = [talk(sllm, turns, seed) for seed, turns in enumerate((5, 1, 8))]
    got = hear(DynamicParameterMemory(sllm, settings, streams=3), conversations)
    for (losses, probabilities), conversation in zip(got, conversations, strict=True):
        expected = peft_loop(sllm, conversation, settings)
        np.testing.assert_allclose(losses, expected[0], atol=1e-4)
        np.testing.assert_allclose(probabilities, expected[1], atol=1e-4)
    # the memory did something, or the equality above would be empty
    frozen = hear(DynamicParameterMemory(sllm, MemorySettings(rank=4, lr=0.0, prefix=8), streams=3), conversations)
    assert np.abs(np.array(got[2][1]) - np.array(frozen[2][1])).max() > 1e-3


def test_a_stream_is_the_same_alone_and_in_company(sllm):
    settings = MemorySettings(rank=4, lr=1e-2, prefix=8)
    conversations = [talk(sllm, 6, seed) for seed in range(5)]
    together = hear(DynamicParameterMemory(sllm, settings, streams=5), conversations)
    for conversation, (losses, probabilities) in zip(conversations, together, strict=True):
        (alone, read), = hear(DynamicParameterMemory(sllm, settings, streams=1), [conversation])
        np.testing.assert_allclose(losses, alone, atol=1e-5)
        np.testing.assert_allclose(probabilities, read, atol=1e-5)


def test_backbone_is_bit_identical_after_a_conversation(sllm):
    before = sllm.fingerprint()
    memory = DynamicParameterMemory(sllm, MemorySettings(rank=4, lr=1e-2, prefix=8), streams=1)
    hear(memory, [talk(sllm, 6, 0)])
    assert memory.lora.norm() > 0
    assert sllm.fingerprint() == before
    assert not any(m._forward_hooks for m in sllm.modules())


def test_a_fresh_memory_answers_as_the_backbone_and_a_reset_one_is_fresh(sllm):
    conversation = talk(sllm, 5, 0)
    memory = DynamicParameterMemory(sllm, MemorySettings(rank=4, lr=1e-2, prefix=8), streams=2)
    prefix = [torch.cat(conversation[:3]), conversation[0]]
    with torch.no_grad():
        bare = sllm.emotion_logits(prefix).softmax(-1)
    assert torch.equal(memory.read(prefix), bare)
    first = hear(memory, [conversation, conversation[:2]])
    assert not torch.equal(memory.read(prefix), bare)
    memory.reset()
    assert torch.equal(memory.read(prefix), bare)
    assert hear(memory, [conversation, conversation[:2]])[0][0] == first[0][0]


def test_a_non_finite_stream_keeps_its_memory_and_harms_no_other(sllm):
    settings = MemorySettings(rank=4, lr=1e-2, prefix=8)
    one, two = talk(sllm, 4, 0), talk(sllm, 4, 1)
    healthy, = hear(DynamicParameterMemory(sllm, settings, streams=1), [two])
    memory = DynamicParameterMemory(sllm, settings, streams=2)
    memory.lora.flat[0] = float("inf")
    broken = memory.lora.flat[0].clone()
    got = hear(memory, [one, two])
    np.testing.assert_allclose(got[1][0], healthy[0], atol=1e-5)
    assert torch.equal(memory.lora.flat[0], broken) and memory.optimizer.skipped.tolist() == [3, 0]


def test_top_layers_only(sllm):
    settings = MemorySettings(rank=4, lr=1e-2, prefix=8, layers="top-1")
    memory = DynamicParameterMemory(sllm, settings)
    assert all(name.startswith("1.") for name in memory.lora.modules) and len(memory.lora.modules) == 7
    with pytest.raises(UserError, match="top-k"):
        DynamicParameterMemory(sllm, MemorySettings(layers="top-9", prefix=8))


def test_the_window_must_hold_sentence_and_prefix(sllm):
    with pytest.raises(UserError, match=r"n_limit = 64.*n_max.*n_r = 64"):
        DynamicParameterMemory(sllm, MemorySettings(prefix=64))
    memory = DynamicParameterMemory(sllm, MemorySettings(prefix=32))
    sentence = sllm.sentence(np.zeros(40, dtype=int))
    with pytest.raises(UserError, match=r"n_limit = 64.*n_max = *41.*n_r = 32"):
        memory.write([torch.zeros(32, dtype=torch.long)], [sentence])
