"""The memory as an engine: queues of conversations, cheaper rungs, one forward a step, saving in the middle."""

import copy
import gc
import tracemalloc
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakecuda import gpus
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_memory import loop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from dpmkit import cheaper, lora
from dpmkit.cheaper import CheaperMemory
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.lora import bucket
from dpmkit.memory import DynamicParameterMemory, Sentence
from dpmkit.settings import BackboneSettings, FinetuneSettings, MemorySettings, UserError
from dpmkit.sllm import EmotionSLLM, Vocabulary

BASE = MemorySettings(rank=4, alpha=4.0, lr=3e-3, prefix=8)


def codes(turns, seed, longest=9):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 16, rng.integers(1, longest)) for _ in range(turns)]


def heard(sllm, settings, conversations, streams, donors=None):
    """{conversation: ([L_t a write], [probabilities a turn])}, by `batch`."""
    out = {}
    for number, turn in cheaper.memory(sllm, settings, streams).batch(conversations, donors):
        losses, probabilities = out.setdefault(number, ([], []))
        probabilities.append(turn.probabilities)
        if turn.pieces:
            losses.append(turn.loss)
    return out


def listened(sllm, settings, conversation):
    """[turns] of one conversation alone."""
    return list(cheaper.memory(sllm, settings).listen(conversation))


def close(one, other, atol):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol, rtol=0)


@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.integers(1, 7), min_size=1, max_size=6), streams=st.integers(1, 4),
       rank=st.sampled_from([1, 4, 64]), prefix=st.sampled_from([1, 8, 30]),
       weight_decay=st.sampled_from([0.0, 0.1]))
def test_a_queue_equals_algorithm_1_in_plain_peft(sllm, turns, streams, rank, prefix, weight_decay):
    settings = BASE.but(rank=rank, prefix=prefix, weight_decay=weight_decay)
    conversations = [codes(n, seed) for seed, n in enumerate(turns)]
    got = heard(sllm, settings, conversations, streams)
    for number, conversation in enumerate(conversations):
        expected = loop(sllm, conversation, settings)
        close(got[number], expected, 1e-4)


@pytest.mark.parametrize("change", [{}, {"prefix_states": "reuse"}, {"read": "before"},
                                    {"stepping": "stride-5"}, {"layers": "top-1", "prefix_states": "reuse"},
                                    {"layers": "top-1", "read": "before", "prefix_states": "reuse"}])
def test_a_conversation_is_the_same_alone_in_two_and_in_sixteen(sllm, change):
    settings = BASE.but(lr=1e-2, **change)
    conversations = [codes(n, seed, 80 if seed == 3 else 9) for seed, n in enumerate((3, 7, 1, 6, 9, 2, 4))]
    alone = {i: ([t.loss for t in turns if t.pieces], [t.probabilities for t in turns])
             for i, c in enumerate(conversations)
             for turns in [listened(sllm, settings, c)]}
    for streams in (2, 16):
        got = heard(sllm, settings, conversations, streams)
        assert set(got) == set(alone)
        for i in alone:
            close(got[i], alone[i], 2e-5)


def test_a_memory_on_a_persistent_adapter_equals_the_loop_there(sllm):
    """The backbone's own LoRA; merged for the loop, where PEFT has room for one adapter a layer."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(sllm.model, LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    bare, sllm.model = sllm.model, model
    conversations = [codes(n, seed) for seed, n in enumerate((4, 6))]
    got = heard(sllm, BASE, conversations, 2)
    sllm.model = model.merge_and_unload()
    assert bare is sllm.model
    for number, conversation in enumerate(conversations):
        close(got[number], loop(sllm, conversation, BASE), 1e-4)


def test_without_a_step_every_rung_hears_the_same(sharp):
    """Keys and values kept from earlier are those that the window would compute anew, as long as nothing moves."""
    conversation = codes(9, 0)
    still = BASE.but(lr=0.0)
    exact = [t.probabilities for t in cheaper.memory(sharp, still).listen(conversation)]
    losses = [t.loss for t in cheaper.memory(sharp, still).listen(conversation)]
    for change in ({"read": "before"}, {"layers": "top-1"}):
        turns = listened(sharp, still.but(**change), conversation)
        close(([t.probabilities for t in turns], [t.loss for t in turns]), (exact, losses), 1e-5)
    # A token that `reuse` kept had heard the n_r before it at its time, not only what the window holds now: equal
    # with one block, and as long as the window holds everything.
    wide = still.but(prefix=50)
    for change in ({"prefix_states": "reuse"}, {"prefix_states": "reuse", "layers": "top-1"}):
        one, other = (listened(sharp, s, conversation[:6])
                      for s in (wide, wide.but(**change)))
        assert sum(len(c) + 1 for c in conversation[:6]) <= 50
        close(([t.probabilities for t in one], [t.loss for t in one]),
              ([t.probabilities for t in other], [t.loss for t in other]), 1e-5)
    sharp.model.model.layers = sharp.model.model.layers[:1]
    sharp.model.config.num_hidden_layers = 1
    one, other = (listened(sharp, still.but(prefix_states=s), conversation)
                  for s in ("recompute", "reuse"))
    close(([t.probabilities for t in one], [t.loss for t in one]),
          ([t.probabilities for t in other], [t.loss for t in other]), 1e-5)


def test_one_forward_a_step_and_lower_blocks_once(sllm, monkeypatch):
    calls = []
    block = type(sllm.model.model.layers[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *a, **k: calls.append(self) or forward(self, *a, **k))
    low, top = sllm.model.model.layers

    def count(**change):
        memory = cheaper.memory(sllm, BASE.but(**change))
        turns = memory.listen(codes(4, 0))
        next(turns)
        calls.clear()
        next(turns)
        return calls.count(low), calls.count(top)

    assert count() == (2, 2) and count(read="before") == (1, 1)
    assert count(layers="top-1") == (1, 2) and count(layers="top-1", read="before") == (1, 1)
    assert count(layers="top-1", steps=3) == (1, 4) and count(steps=3) == (4, 4)


def test_reuse_costs_its_own_tokens_alone(sllm, monkeypatch):
    lengths = []
    block = type(sllm.model.model.layers[0])
    forward = block.forward

    def watched(self, hidden, *rest, **more):
        lengths.append(hidden.shape[1])
        return forward(self, hidden, *rest, **more)

    monkeypatch.setattr(block, "forward", watched)
    conversation = [np.zeros(4, dtype=int)] * 5
    for mode, longest in (("recompute", 20 + 5), ("reuse", 1 + 5)):
        lengths.clear()
        listened(sllm, BASE.but(prefix=20, prefix_states=mode), conversation)
        assert max(lengths) == longest


def test_strides_write_every_token_once_after_the_first_sentence(sllm, monkeypatch):
    steps = []
    original = CheaperMemory.write
    monkeypatch.setattr(CheaperMemory, "write", lambda self, parts, streams: steps.append(
        parts[0]) or original(self, parts, streams))
    conversation = codes(8, 4)
    settings = BASE.but(stepping="stride-6")
    turns = listened(sllm, settings, conversation)
    told = torch.cat([sllm.sentence(c) for c in conversation])
    start = len(conversation[0]) + 1
    for part in steps:
        assert torch.equal(part.prefix, told[max(0, start - 8):start])
        assert torch.equal(part.piece, told[start:start + 6])
        start += 6
    assert len(told) - 6 < start <= len(told) and sum(t.pieces for t in turns) == len(steps)
    with pytest.raises(UserError, match="stride-60"):
        cheaper.memory(sllm, BASE.but(stepping="stride-60"))


@pytest.mark.parametrize("change", [{}, {"prefix_states": "reuse"}, {"optimizer": "sgd", "lr": 0.2},
                                    {"stepping": "stride-5"}])
def test_saved_in_the_middle_it_goes_on_with_the_same_numbers(sllm, change, tmp_path):
    settings = BASE.but(lr=1e-2) if not change else BASE.but(**change)
    conversation = codes(8, 5)
    whole = list(cheaper.memory(sllm, settings, seed=3).listen(conversation))
    memory = cheaper.memory(sllm, settings, seed=3)
    first = list(memory.listen(conversation[:4]))
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    loaded = cheaper.memory(sllm, settings, seed=4)
    loaded.load_state_dict(torch.load(tmp_path / "memory.pt"))
    rest = list(loaded.listen(conversation[4:], fresh=False))
    for got, expected in zip(first + rest, whole, strict=True):
        assert np.array_equal(got.probabilities, expected.probabilities)
        assert got.loss == expected.loss or (np.isnan(got.loss) and np.isnan(expected.loss))


def test_the_state_of_a_memory_over_another_backbone_is_refused(sllm):
    state = cheaper.memory(sllm, BASE).state_dict()
    with torch.no_grad():
        sllm.model.lm_head.weight += 1
    with pytest.raises(UserError, match="written over the backbone"):
        cheaper.memory(sllm, BASE).load_state_dict(state)


def test_bfloat16_backbone_float32_memory(sllm):
    before = sllm.fingerprint()
    memory = cheaper.memory(sllm, BASE.but(precision="bfloat16", lr=1e-2))
    exact, rounded = (list(m.listen(codes(6, 0))) for m in (
        cheaper.memory(sllm, BASE.but(lr=1e-2)), memory))
    held = memory.lora.memories[0]
    assert held.dtype == memory.lora.optimizer.state[held]["exp_avg"].dtype == torch.float32
    assert next(memory.sllm.parameters()).dtype == torch.bfloat16 and next(sllm.parameters()).dtype == torch.float32
    close([t.probabilities for t in rounded], [t.probabilities for t in exact], 0.02)
    assert sllm.fingerprint() == before


def test_reuse_needs_rotary_positions(sllm):
    sllm.model.model.rotary_emb = torch.nn.Identity()
    with pytest.raises(UserError, match="heads turn whole"):
        cheaper.memory(sllm, BASE.but(prefix_states="reuse"))


def test_a_reused_prefix_costs_three_forwards_of_the_sentence_whatever_its_length(sllm):
    def flops(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def a_sentence(prefix):
        memory = cheaper.memory(sllm, BASE.but(rank=1, prefix=prefix,
                                                                  prefix_states="reuse"))
        turns = memory.listen([np.zeros(9, dtype=int)] * 6)
        for _ in range(5):
            next(turns)
        return flops(lambda: next(turns))

    with torch.no_grad():
        forward = flops(lambda: sllm.emotion_logits([sllm.sentence(np.zeros(10, dtype=int))]))
    # Forward, activation gradients, read-out; beside them the rank-1 factors, the code rows and the prefix's keys.
    assert 2.5 * forward < a_sentence(2) < 4.2 * forward
    exact = cheaper.memory(sllm, BASE.but(rank=1, prefix=40)).listen(
        [np.zeros(9, dtype=int)] * 6)
    for _ in range(5):
        next(exact)
    assert a_sentence(40) < 1.25 * a_sentence(2) < 0.5 * flops(lambda: next(exact))


def test_a_thousand_conversations_leave_nothing_behind(sllm):
    memory = cheaper.memory(sllm, BASE, streams=4)
    conversations = [codes(2, seed) for seed in range(100)]
    for _ in memory.batch(conversations):
        pass
    gc.collect()
    tracemalloc.start()
    try:
        held = []
        for _ in range(3):
            for _ in memory.batch(conversations * 3):
                pass
            gc.collect()
            held.append((tracemalloc.get_traced_memory()[0], len(gc.get_objects())))
    finally:
        tracemalloc.stop()
    assert held[2][0] - held[0][0] < 30_000 and held[2][1] - held[0][1] < 100


@pytest.mark.parametrize("lengths", [(9, 9), (3, 70)])
def test_bucketed_rows_give_the_same_numbers(sllm, lengths):
    """The path that a GPU replays: rows for all streams, padded to lengths that come again."""
    conversations = [codes(n, seed, lengths[seed % 2] if n > 2 else 9)
                     for seed, n in enumerate((3, 7, 1, 6, 9, 2, 4))]
    free, bucketed = (heard(sllm, BASE.but(lr=1e-2, shapes=shapes), conversations, 3)
                      for shapes in ("free", "bucketed"))
    for number in free:
        close(bucketed[number], free[number], 1e-5)
    with pytest.raises(UserError, match=r"memory.shapes = bucketed.*memory.layers"):
        cheaper.memory(sllm, BASE.but(shapes="bucketed", layers="top-1"))


@pytest.mark.parametrize(("kind", "config", "more"), [
    (MistralForCausalLM, MistralConfig, {}), (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16})])
@pytest.mark.parametrize("sliding", [16, 96])
def test_a_window_that_slides_has_rows_as_they_are(kind, config, more, sliding):
    """What is recorded attends to all earlier tokens."""
    torch.manual_seed(0)
    model = kind(config(vocab_size=21, hidden_size=32, intermediate_size=48, num_hidden_layers=2, pad_token_id=0,
                        num_attention_heads=2, num_key_value_heads=1, sliding_window=sliding, **more)).eval()
    sllm, conversations = EmotionSLLM(model, Vocabulary(16, EMOTIONS), 96), [codes(4, seed, 20) for seed in (1, 2)]
    free = heard(sllm, BASE.but(lr=1e-2, shapes="free", prefix=30), conversations, 2)
    if sliding == 96:
        bucketed = heard(sllm, BASE.but(lr=1e-2, shapes="bucketed", prefix=30), conversations, 2)
        for number in free:
            close(bucketed[number], free[number], 1e-5)
    else:
        with pytest.raises(UserError, match=r"memory\.shapes = bucketed.*backbone\.window"):
            DynamicParameterMemory(sllm, BASE.but(shapes="bucketed"))
        with gpus():
            on_gpu = copy.deepcopy(sllm).to("cuda")
            assert not DynamicParameterMemory(on_gpu, BASE).bucketed
            got = heard(on_gpu, BASE.but(lr=1e-2, prefix=30), conversations, 2)
        for number in free:
            close(got[number], free[number], 1e-5)


def test_rows_for_all_streams_are_one_forward(sllm):
    memory = DynamicParameterMemory(sllm, BASE.but(shapes="bucketed"), streams=20)
    assert len(list(memory.batch([codes(1, seed) for seed in range(20)]))) == 20
    assert memory.graphs[False].calls.total() == 1 and not memory.graphs[True].calls


def test_an_error_in_a_forward_leaves_no_tensor_behind(sllm):
    lora = DynamicParameterMemory(sllm, BASE).lora
    query, *_ = lora.groups[0].layers
    with pytest.raises(MemoryError), lora.active([0]):
        query(torch.zeros(1, 3, query.in_features))
        assert len(lora.groups[0].outputs) == 3
        raise MemoryError
    assert lora.groups[0].input is None and not lora.groups[0].outputs


def test_lengths_come_again():
    widths = [bucket(n) for n in range(1, 2000)]
    assert all(n <= w <= max(32, 1.125 * n + 31) for n, w in enumerate(widths, 1)) and len(set(widths)) < 40


def test_a_function_is_recorded_the_third_time_and_replayed(monkeypatch):
    """`Graphs` with a stand-in for CUDA's: replaying runs the work on the recorded inputs."""
    graphs, made = lora.Graphs(), []

    def work(x):
        return graphs(lambda x: (2 * x,), x)

    class Graph:
        def __init__(self):
            made.append(self)

        def replay(self):
            _, (own,), (out,) = next(recorded for recorded in graphs.made.values() if recorded[0] is self)
            out.copy_(2 * own)

    class OnGpu(torch.Tensor):
        device = SimpleNamespace(type="cuda")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: nullcontext())
    for call in range(5):
        x = torch.full((2,), float(call)).as_subclass(OnGpu)
        assert work(x)[0].tolist() == [2 * call] * 2 and len(made) == (call >= 2)
    work(torch.ones(3).as_subclass(OnGpu))
    assert len(made) == 1  # another shape, once


def test_operations_of_a_sentence(monkeypatch):
    """What one write and one read launch at 30 layers, views apart, with a norm as one operation, as on a GPU; and
    no number is read from the device on the way."""
    views = ("view", "transpose", "expand", "_unsafe_view", "t.", "slice", "detach", "unsqueeze", "split", "select",
             "unbind", "as_strided", "lift_fresh", "empty_like", "chunk", "permute")
    counted = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counted[str(function).removeprefix("aten.")] += 1
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.nn.functional, "rms_norm", lambda x, normalized_shape, weight, eps: x * weight)
    shape = BackboneSettings(layers=30, hidden=16, intermediate=16, heads=2, window=64)
    memory = DynamicParameterMemory(EmotionSLLM.create(shape, FinetuneSettings(), 16, ("a", "b")),
                                    BASE.but(shapes="bucketed"), streams=4)
    sentence = Sentence(memory.sllm.sentence(np.arange(9)))
    for _ in range(2):
        memory.turn(dict.fromkeys(range(4), sentence))
    with Counting():
        memory.turn(dict.fromkeys(range(4), sentence))
    launched = sum(n for name, n in counted.items() if not name.startswith(views))
    assert launched <= 4000 and counted["_local_scalar_dense.default"] == 0
