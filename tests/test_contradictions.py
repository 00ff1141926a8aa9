"""Options and what stands beside them: baselines in the memory's precision, notebook 03's own checks,
emotion tokens that are no sound, donors' speakers, backbones that cannot be heard in parts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_toy
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from dpmkit import backbones, bench, cheaper, protocols, speakers
from dpmkit.finetune import Finetuned, sequences
from dpmkit.memory import EMPTY, Part
from dpmkit.protocols import predict
from dpmkit.settings import MemorySettings
from dpmkit.sllm import EmotionSLLM, Vocabulary

P = [f"p_{e}" for e in ("neu", "hap", "sad", "ang")]
CHAIN = np.full((4, 4), 0.05) + 0.8 * np.eye(4), np.full(4, 0.25)
CHECKS, = (c for c in json.loads((Path(__file__).parent.parent / "notebooks" / "03_dpm_inference.ipynb").read_text(
    encoding="utf-8"))["cells"] if "backbone bit-identical" in "".join(c["source"]) and c["cell_type"] == "code")


@pytest.fixture
def toy():
    return make_toy(turns=(1, 5, 7, 9), seed=2)


@pytest.fixture
def tuned(sharp, tmp_path):
    return Finetuned(sharp, "sharp", tmp_path, [], 0)


@pytest.mark.parametrize("change", [
    {}, {"prefix_states": "reuse"}, {"precision": "bfloat16"}, {"read": "before"},
    {"stepping": "every-2"}, {"history_emotions": "predicted"},
    {"prefix_states": "reuse", "precision": "bfloat16"}], ids=str)
def test_notebook_03_checks_hold(change, settings, toy, tuned):
    (corpus, codes), settings = toy, settings.replace("memory.lr", 2e-2)
    codes = dataclasses.replace(codes, codes={**codes.codes, "s1c0u0": np.arange(60) % 16})  # a first one in pieces
    for name, value in change.items():
        settings = settings.replace(f"memory.{name}", value)
    tables = {m: predict(settings, corpus, codes, tuned, m) for m in ("dpm", "current", "window")}
    tables["dpm-tuned-still"] = predict(settings, corpus, codes, tuned, "dpm-still")
    given = {"tuned": tuned, "before": tuned.sllm.fingerprint(), "settings": settings, "data": corpus, "np": np,
             "spoken": codes, "answers": tables}
    exec("".join(CHECKS["source"]), given)
    # ... and are no empty ones
    assert given["short"].sum() == 3
    for name, column in (("dpm", "loss"), ("current", P[0]), ("dpm-tuned-still", "norm")):
        wrong = tables[name].assign(**{column: 0.5})
        with pytest.raises(AssertionError):
            exec("".join(CHECKS["source"]), {**given, "answers": {**tables, name: wrong}})


@pytest.mark.parametrize("method", ["window", "current", "at-once", "kv-window"])
def test_baselines_hear_in_the_precision_of_the_memory(method, settings, toy, tuned):
    corpus, codes = toy
    rounded = settings.replace("memory.precision", "bfloat16")
    one, two = (predict(s, corpus, codes, tuned, method) for s in (settings, rounded))
    assert 1e-4 < np.abs(one[P] - two[P]).to_numpy().max() < 0.05
    if method == "window":  # bit for bit what the memory reads at a rate of 0, but for what shares its batch
        still = predict(rounded, corpus, codes, tuned, "dpm-still")
        assert np.abs(still[P] - two[P]).to_numpy().max() < np.abs(one[P] - two[P]).to_numpy().max() / 10


def test_states_and_costs_are_those_of_the_precision(settings, toy, tuned, monkeypatch):
    corpus, codes = toy
    rounded = settings.replace("memory.precision", "bfloat16")
    exact, states = (speakers.states(s, corpus, codes, tuned, "test")[1] for s in (settings, rounded))
    assert 1e-5 < np.abs(exact - states).max() < 0.1 * np.abs(exact).max()
    dtypes, plain = [], EmotionSLLM.embedded
    monkeypatch.setattr(EmotionSLLM, "embedded", lambda self, ids: dtypes.append(plain(self, ids).dtype) or plain(
        self, ids))
    bench.label_after(tuned.sllm, np.arange(30) % 16, 10, rounded.memory, "window")
    bench.of_method(rounded, tuned, codes, corpus.select(corpus.folds[0].test), corpus.emotions, "window")
    assert set(dtypes) == {torch.bfloat16}


def test_rotary_frequencies_stay_float32(sllm, tmp_path):
    """In a copy in bfloat16 and in a backbone that is loaded so: the phase at token 2,048."""
    exact = sllm.causal_lm.model.rotary_emb.inv_freq
    copied = sllm.in_precision("bfloat16")
    sllm.model.save_pretrained(tmp_path)
    loaded = backbones.load(str(tmp_path), "bfloat16")
    for model in (copied.causal_lm, loaded):
        assert {w.dtype for w in model.parameters()} == {torch.bfloat16}
        kept = model.model.rotary_emb.inv_freq
        assert kept.dtype == torch.float32 and (2048 * (kept - exact)).abs().max() < 1e-6
    assert (2048 * (exact.bfloat16().float() - exact)).abs().max() > 0.3
    assert sllm.in_precision("") is sllm and sllm.in_precision("float32") is sllm
    assert next(sllm.parameters()).dtype == torch.float32


@pytest.mark.parametrize("vocabulary", ["codes", "all"])
def test_emotion_tokens_are_no_sound_in_l_t(vocabulary, sharp):
    row = torch.cat([sharp.sentence(np.array([1, 2, 3]), 2), sharp.sentence(np.array([4, 5]), 1)])
    with torch.no_grad():
        batch = sharp.batch([row, row[:2]], [1, 1])
        hidden = sharp.hidden(batch.ids)
        got = sharp.losses(hidden, batch, vocabulary)
        logits = sharp._logits(hidden[0])[:, :17 if vocabulary == "codes" else None]
    predicted = [1, 2, 3, 5, 6, 7]  # tokens 4 and 8 are emotions
    expected = -logits.log_softmax(-1)[[t - 1 for t in predicted], row[predicted]]
    assert got[0] == pytest.approx(float(expected.mean()), abs=1e-5)
    alone = sharp.losses(hidden[:1, 2:], sharp.batch([row[3:5]], [1]), vocabulary)
    assert alone == 0  # an emotion token by itself


def test_emotion_tokens_are_no_sound_in_l_a(sllm):
    made, = sequences(sllm, [np.array([1, 2, 3]), np.array([4, 5])], [2, 1], 16, 48, 64, emotions_in_history=True)
    words, weight = sllm.vocabulary, made["code_weight"]
    assert (weight[made["input_ids"] > words.end] == 0).all() and (made["input_ids"] > words.end).any()
    # three of four in the first sentence (the first token follows nothing), six of the two
    np.testing.assert_allclose(weight[1:4], 1 / 3 + 1 / 6, atol=1e-6)
    assert float(weight.sum()) == pytest.approx(2)


def test_a_swapped_memory_is_told_the_donors_speakers(settings, toy, sharp):
    corpus, codes = toy
    asked = settings.memory.but(lr=2e-2, rule="emotion", target="filtered")
    conversation, donor = corpus.select(("s1c3", "s2c3"))
    donor = dataclasses.replace(donor, utterances=tuple(
        dataclasses.replace(u, speaker="abc"[n % 3]) for n, u in enumerate(donor.utterances)))

    def heard(talker):
        memory = cheaper.memory(sharp, asked, inertia=CHAIN)
        own, other = ([codes.codes[u.id] for u in c.utterances] for c in (conversation, donor))
        return np.stack([t.probabilities for _, t in memory.batch([own], [other], [[u.speaker for u in
                                                                                   talker.utterances]])])
    listener = protocols.Listener(settings.but(memory=asked), sharp, codes.codes, corpus.emotions, CHAIN)
    table, = protocols.listen(listener, [conversation], "dpm-swapped", {conversation.id: donor})
    np.testing.assert_allclose(table[P].to_numpy(), heard(donor), atol=1e-5)
    assert np.abs(heard(donor) - heard(conversation)).max() > 1e-3


@pytest.mark.parametrize(("config", "kind", "more"), [
    (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 8}),
    (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 64, "layer_types": ["sliding_attention",
                                                                                 "full_attention"] * 2}),
    (LlamaConfig, LlamaForCausalLM, {})])
def test_the_lower_blocks_of_any_decoder_run_once(config, kind, more):
    """Gemma's differ by their number, and it scales what it is given."""
    torch.manual_seed(0)
    model = kind(config(vocab_size=21, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=16,
                        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, **more)).eval()
    sllm = EmotionSLLM(model, Vocabulary(16, ("neu", "hap", "sad", "ang")), 64)
    conversation = [np.arange(9) % 16] * 4
    for layers in ("top-1", "top-3"):
        memory = cheaper.memory(sllm, MemorySettings(rank=2, prefix=8, lr=1e-2, layers=layers))
        *_, turn = memory.listen(conversation)
        context = [Part(EMPTY, torch.cat([sllm.sentence(conversation[0])] * 2)[-18:])]  # in one pass of its own
        np.testing.assert_allclose(turn.probabilities, memory.read(context, [0]).softmax(-1)[0], atol=1e-6)
