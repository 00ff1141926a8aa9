"""Write rules beyond the paper's: what a step lowers, how often, for whom; and the carried cache with its sinks."""


import numpy as np
import pytest
import torch
from conftest import make_toy

from dpmkit import cheaper
from dpmkit.cheaper import CheaperMemory
from dpmkit.corpora.dynamics import forward_filter
from dpmkit.finetune import Finetuned
from dpmkit.memory import DynamicParameterMemory
from dpmkit.protocols import METHODS, one_by_one, predict
from dpmkit.settings import MemorySettings, Settings, UserError

BASE = MemorySettings(rank=4, alpha=4.0, lr=2e-2, prefix=8)
CHAIN = np.full((4, 4), 0.05) + 0.8 * np.eye(4), np.full(4, 0.25)
P = ["p_neu", "p_hap", "p_sad", "p_ang"]


def codes(turns, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 16, rng.integers(2, 9)) for _ in range(turns)]


def probabilities(sllm, conversation, inertia=None, speakers=(), **change):
    memory = cheaper.memory(sllm, BASE.but(**change), inertia=inertia)
    return np.array([t.probabilities for t in memory.listen(conversation, speakers=speakers)])


def test_a_sharpened_own_answer_makes_the_next_one_surer(sharp):
    said = codes(1, 0)[0]
    before = probabilities(sharp, [said] * 2, lr=0.0)[-1]
    after = probabilities(sharp, [said] * 2, rule="emotion", target="sharpened", steps=3)[-1]
    assert after.max() > before.max() + 0.01 and after.argmax() == before.argmax()


def test_the_filtered_target_is_the_inertia_filters_belief(sharp, monkeypatch):
    conversation, speakers = codes(5, 2), ["a", "b", "a", "a", "b"]
    answered, taught, original = [], [], CheaperMemory._target

    def watched(self, parts, streams, p):
        answered.append(p[0].numpy().astype(float))
        taught.append(original(self, parts, streams, p)[0].numpy())
        return torch.from_numpy(taught[-1])[None]

    monkeypatch.setattr(CheaperMemory, "_target", watched)
    probabilities(sharp, conversation, CHAIN, speakers, rule="emotion", target="filtered")
    expected = forward_filter(np.array(answered), speakers[1:], *CHAIN)  # the first sentence is not written
    np.testing.assert_allclose(taught, expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["emotion", "both"])
def test_a_stream_is_the_same_alone_and_in_company_and_on_disk(rule, sharp, tmp_path):
    settings = BASE.but(rule=rule, target="filtered")
    conversations, speakers = [codes(n, n) for n in (5, 3, 6)], [list("ababab")] * 3
    together = {0: [], 1: [], 2: []}
    memory = cheaper.memory(sharp, settings, 2, inertia=CHAIN)
    for number, turn in memory.batch(conversations, None, speakers):
        together[number].append(turn.probabilities)
    for number, conversation in enumerate(conversations):
        memory = cheaper.memory(sharp, settings, inertia=CHAIN)
        first = [t.probabilities for t in memory.listen(conversation[:2], speakers=list("ab"))]
        torch.save(memory.state_dict(), tmp_path / "m.pt")
        memory = cheaper.memory(sharp, settings, inertia=CHAIN)
        memory.load_state_dict(torch.load(tmp_path / "m.pt"))
        rest = [t.probabilities for t in memory.listen(conversation[2:], fresh=False, speakers=list("abab"))]
        np.testing.assert_allclose(together[number], first + rest, atol=1e-4)


def test_every_so_many_sentences_writes_each_token_once(sllm, monkeypatch):
    steps = []
    original = CheaperMemory.write
    monkeypatch.setattr(CheaperMemory, "write", lambda self, parts, streams: steps.append(
        parts[0]) or original(self, parts, streams))
    conversation = codes(8, 4)
    turns = list(cheaper.memory(sllm, BASE.but(stepping="every-3")).listen(conversation))
    assert [t.pieces for t in turns] == [0, 0, 0, 1, 0, 0, 1, 0]
    told = [sllm.sentence(c) for c in conversation]
    for part, sentences in zip(steps, (told[1:4], told[4:7]), strict=True):
        assert len(part.prefix) == 8 and torch.equal(part.piece, torch.cat(sentences))


def test_the_carried_cache_is_the_backbone_itself_while_nothing_falls_out(sharp):
    conversation = codes(4, 6)
    cached = probabilities(sharp, conversation, steps=0, prefix_states="reuse", read="before", prefix=40, sinks=4)
    told = torch.empty(0, dtype=torch.long)
    for p, said in zip(cached, conversation, strict=True):
        told = torch.cat([told, sharp.sentence(said)])
        with torch.no_grad():
            np.testing.assert_allclose(p, sharp.emotion_logits([told]).softmax(-1)[0], atol=1e-5)


def test_sinks_are_the_first_tokens_and_bear_on_the_answer(sharp):
    # Twelve kept tokens: with sinks the first four stay, so that another first sentence changes a late answer.
    conversation = codes(9, 7)
    other = [15 - conversation[0], *conversation[1:]]
    setting = {"steps": 0, "prefix_states": "reuse", "read": "before", "prefix": 8}
    one_block = Settings.of("smoke", {"backbone.layers": 1})  # one block: what fell out of the cache is gone
    from dpmkit.sllm import EmotionSLLM
    sllm = EmotionSLLM.create(one_block.backbone.but(window=64), one_block.finetune, 16,
                              ("neu", "hap", "sad", "ang"), 0).eval()
    kept, fell = (np.abs(probabilities(sllm, conversation, sinks=n, **setting)[-1]
                         - probabilities(sllm, other, sinks=n, **setting)[-1]).max() for n in (4, 0))
    assert kept > 1e-6 and fell < 1e-7


def test_steps_of_zero_leave_the_memory_alone_and_still_say_l_t(sllm):
    turns = list(cheaper.memory(sllm, BASE.but(steps=0)).listen(codes(3, 8)))
    assert turns[-1].norm == 0 and np.isfinite(turns[-1].loss)


@pytest.mark.parametrize(("change", "message"), [
    ({"memory.sinks": 4}, "memory.prefix_states = reuse"),
    ({"memory.prefix_states": "reuse", "memory.stepping": "stride-8"}, "reuse goes with"),
    ({"memory.rule": "emotion", "memory.stepping": "every-2"}, "memory.stepping = sentence"),
    ({"memory.rule": "kindness"}, "memory.rule must be 'semantic', 'emotion' or 'both'"),
    ({"memory.stepping": "every-0"}, "memory.stepping must match pattern")])
def test_rules_that_cannot_go_together_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Settings.of("smoke", change)


def test_a_filtered_target_without_transitions_is_refused(sllm):
    with pytest.raises(UserError, match="inertia"):
        cheaper.memory(sllm, BASE.but(rule="emotion", target="filtered"))


# -- through the protocols ---------------------------------------------------------------------------------


@pytest.fixture
def tuned(sharp, tmp_path):
    return Finetuned(sharp, "sharp", tmp_path, [], 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("protocol", ["all-lengths", "complete"])
def test_heard_one_by_one_the_numbers_are_those_of_streaming(method, protocol, settings, tuned):
    settings = settings.replace("memory.lr", 2e-2)
    corpus, spoken = make_toy(turns=(1, 4, 9))
    table = predict(settings, corpus, spoken, tuned, method)
    labelled = table[table["emotion"].notna()]
    expected = labelled if protocol == "all-lengths" else labelled.groupby("conversation", sort=False).tail(1)
    got = one_by_one(settings, corpus, spoken, tuned, method, protocol)
    assert got["utterance"].tolist() == expected["utterance"].tolist()
    assert got["conversation"].tolist() == expected["conversation"].tolist()
    np.testing.assert_allclose(got[P], expected[P], atol=1e-4)


def test_the_shuffled_control_writes_the_same_codes_in_another_order(settings, tuned, monkeypatch):
    told = []
    plain = DynamicParameterMemory.batch

    def watched(self, conversations, donors=None, *rest):
        told.append((conversations, donors))
        return plain(self, conversations, donors, *rest)

    monkeypatch.setattr(DynamicParameterMemory, "batch", watched)
    predict(settings, *make_toy(turns=(5, 6)), tuned, "dpm-shuffled")
    for conversations, donors in told:
        for own, other in zip(conversations, donors, strict=True):
            assert [sorted(a) for a in own] == [sorted(b) for b in other]
            assert any((a != b).any() for a, b in zip(own, other, strict=True))
