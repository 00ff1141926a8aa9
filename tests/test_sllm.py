"""Equations 3 to 6 by hand, L_t, and what is on disk: an SLLM from scratch and one on a pretrained backbone."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import next_code_loss
from test_backbones import made
from transformers import AutoModelForCausalLM

from dpmkit.finetune import padded, sequences
from dpmkit.settings import BackboneSettings, FinetuneSettings, UserError
from dpmkit.sllm import CARD, EmotionSLLM

EMOTIONS = ("neu", "hap", "sad", "ang")
FACTS = {"tokenizer": "toy", "codebook_size": 16}
TEXT = 50  # tokens of the pretrained backbone

# A dialogue of four sentences, of 3, 2, 4 and 1 codes; the second stands outside the label set.
DIALOGUE = [np.array(c) for c in ([0, 5, 9], [15, 2], [7, 7, 1, 12], [3])]
LABELS = (2, None, 0, 3)
# The same as token ids (16 is <audio_end>, 17 to 20 the emotions), and n at each sentence's <audio_end>.
PLAIN = [0, 5, 9, 16, 15, 2, 16, 7, 7, 1, 12, 16, 3, 16]  # n = 4, 7, 12, 14
TOLD = [0, 5, 9, 16, 19, 15, 2, 16, 7, 7, 1, 12, 16, 17, 3, 16]  # emotion tokens in the history: n = 4, 8, 13, 16

# (n_o, n_p, n_q), then by hand, a sentence: L_a's (first token of its context, first of its n_o tokens), and the
# first token of L_e's context; None where the sentence has no label. Last, how many contexts differ.
PLAIN_CASES = {
    # 4 < n_o: p = 0, o = 4. 5 <= 7 < 9: p = 2. 12 and 14 >= 9: p = 4. n_q: 4 < 6, then the last 6.
    (5, 4, 6): ([(0, 0), (0, 2), (3, 7), (5, 9)], [0, None, 6, 8], 5),
    # 4 = n_o: p = 0, o = 4. 7 = n_o + n_p: p = 3. n_o + n_p = n_q: every L_e shares its L_a's sequence.
    (4, 3, 7): ([(0, 0), (0, 3), (5, 8), (7, 10)], [0, None, 5, 7], 3),
    # 12 = n_o + n_p - 1: p = 9; 14: p = 10. 12 = n_q: from the first token on.
    (3, 10, 12): ([(0, 1), (0, 4), (0, 9), (1, 11)], [0, None, 0, 2], 3),
    # everything fits: one sequence
    (20, 5, 30): ([(0, 0), (0, 0), (0, 0), (0, 0)], [0, None, 0, 0], 1),
    (1, 100, 14): ([(0, 3), (0, 6), (0, 11), (0, 13)], [0, None, 0, 0], 1),
    # no prefix at all; L_e from <audio_end> alone
    (3, 0, 1): ([(1, 1), (4, 4), (9, 9), (11, 11)], [3, None, 11, 13], 6),
}
TOLD_CASES = {
    # 5 <= 8 < 9: p = 3
    (5, 4, 6): ([(0, 0), (0, 3), (4, 8), (7, 11)], [0, None, 7, 10], 4),
    (4, 4, 8): ([(0, 0), (0, 4), (5, 9), (8, 12)], [0, None, 5, 8], 3),
    (20, 5, 30): ([(0, 0), (0, 0), (0, 0), (0, 0)], [0, None, 0, 0], 1),
    (3, 0, 1): ([(1, 1), (5, 5), (10, 10), (13, 13)], [3, None, 12, 15], 7),
}
CASES = [(PLAIN, (4, 7, 12, 14), False, k, *v) for k, v in PLAIN_CASES.items()] + [
    (TOLD, (4, 8, 13, 16), True, k, *v) for k, v in TOLD_CASES.items()]


def bare_logits(sllm, ids):
    """Logits of the transformers model alone, shape (tokens, vocabulary)."""
    with torch.no_grad():
        return sllm.model(input_ids=torch.as_tensor(ids)[None]).logits[0].double()


def by_hand(sllm, ids, ends, spans, starts):
    """L_a of each sentence and L_e of each labelled one, each from a forward of its own."""
    l_a, l_e = [], []
    for n, (start, first), read, label in zip(ends, spans, starts, LABELS, strict=True):
        log_p = bare_logits(sllm, ids[start:n]).log_softmax(-1)
        # Token t is predicted at t - 1; the context's first token follows nothing; emotions (17 on) are no sound.
        l_a.append(np.mean([-float(log_p[t - 1 - start, ids[t]]) for t in range(max(first, start + 1), n)
                            if ids[t] < 17]))
        if label is not None:
            emotions = bare_logits(sllm, ids[read:n])[-1, 17:21]
            l_e.append(-float(emotions.log_softmax(-1)[label]))
    return l_a, l_e


@pytest.mark.parametrize(("ids", "ends", "told", "sizes", "spans", "starts", "contexts"), CASES)
def test_equations_3_to_6(sharp, ids, ends, told, sizes, spans, starts, contexts):
    l_a, l_e = by_hand(sharp, ids, ends, spans, starts)
    rows = sequences(sharp, DIALOGUE, LABELS, *sizes, emotions_in_history=told)
    with torch.no_grad():
        out = sharp(**padded(rows))
        assert float(out["l_a"]) == pytest.approx(np.mean(l_a), abs=1e-5)
        assert float(out["l_e"]) == pytest.approx(np.mean(l_e), abs=1e-5)
        assert float(out["loss"]) == pytest.approx((np.mean(l_a) + np.mean(l_e)) / 2, abs=1e-5)
        # a sequence at a time: the terms whose context starts where it starts, and no others
        begins = sorted({s for s, _ in spans} | {s for s in starts if s is not None})
        assert len(rows) == len(begins) == contexts
        labelled = [s for s in starts if s is not None]
        for begin, sequence in zip(begins, rows, strict=True):
            out = sharp(**{name: value[None] for name, value in sequence.items()})
            for name, terms in (("l_a", [v for v, (s, _) in zip(l_a, spans, strict=True) if s == begin]),
                                ("l_e", [v for v, s in zip(l_e, labelled, strict=True) if s == begin])):
                assert float(out[name]) == pytest.approx(np.mean(terms) if terms else 0.0, abs=1e-5)


def test_emotion_loss_hears_emotion_logits_alone(sharp):
    batch = padded(sequences(sharp, DIALOGUE, LABELS, 5, 4, 6))
    head = sharp.model.lm_head.weight

    def losses():
        with torch.no_grad():
            out = sharp(**batch)
        return float(out["l_a"]), float(out["l_e"])

    before = losses()
    with torch.no_grad():
        head[:17] += 1.0 + torch.arange(17.0)[:, None]  # codes and <audio_end>
    code_rows = losses()
    assert code_rows[1] == before[1] and abs(code_rows[0] - before[0]) > 1e-3
    with torch.no_grad():
        head[18] += 1.0
    assert abs(losses()[1] - before[1]) > 1e-3


def test_sentences_without_a_label_or_without_codes(sharp):
    rows = sequences(sharp, [np.array([], dtype=int), np.array([4, 4])], [None, None], 4, 4, 8)
    with torch.no_grad():
        out = sharp(**padded(rows))
    # the empty sentence's one token follows nothing; the other's three follow the first <audio_end>
    log_p = bare_logits(sharp, [16, 4, 4, 16]).log_softmax(-1)
    expected = -float(log_p[0, 4] + log_p[1, 4] + log_p[2, 16]) / 3
    assert float(out["l_a"]) == pytest.approx(expected, abs=1e-5)
    assert float(out["l_e"]) == 0.0 and len(out["truth"]) == 0


@pytest.mark.parametrize("vocabulary", ["codes", "all"])
def test_next_code_loss_directly_whoever_shares_the_batch(vocabulary, sharp):
    rng = np.random.default_rng(0)
    sentences = [sharp.sentence(rng.integers(0, 16, n)) for n in (6, 1, 11, 3)]
    prefixes = [torch.from_numpy(rng.integers(0, 17, n)) for n in (9, 0, 2, 0)]
    with torch.no_grad():
        together = next_code_loss(sharp, prefixes, sentences, vocabulary)
        for prefix, sentence, loss in zip(prefixes, sentences, together, strict=True):
            ids = torch.cat([prefix, sentence])
            log_p = bare_logits(sharp, ids)[:, :17 if vocabulary == "codes" else None].log_softmax(-1)
            # without a prefix the first token follows nothing and is left out of the mean
            asked = range(max(1, len(prefix)), len(ids))
            expected = -np.mean([float(log_p[t - 1, ids[t]]) for t in asked])
            assert float(loss) == pytest.approx(expected, abs=1e-5)
            alone = float(next_code_loss(sharp, [prefix], [sentence], vocabulary))
            assert alone == pytest.approx(expected, abs=1e-5)


def test_a_lone_token_after_nothing_has_no_loss_and_harms_no_other(sharp):
    empty, end = torch.empty(0, dtype=torch.long), torch.tensor([16])
    sentence = sharp.sentence(np.array([3, 8]))
    with torch.no_grad():
        assert float(next_code_loss(sharp, [empty], [end])) == 0.0
        alone = float(next_code_loss(sharp, [empty], [sentence]))
        both = next_code_loss(sharp, [empty, empty], [end, sentence])
    assert float(both[0]) == 0.0 and float(both[1]) == pytest.approx(alone, abs=1e-6)


def test_emotion_logits_are_the_bare_model_s_whoever_shares_the_batch(sharp):
    prefixes = [torch.tensor(PLAIN[:n]) for n in (4, 14, 7)]
    with torch.no_grad():
        got = sharp.emotion_logits(prefixes)
    for prefix, logits in zip(prefixes, got, strict=True):
        torch.testing.assert_close(logits, bare_logits(sharp, prefix)[-1, 17:].float(), atol=1e-5, rtol=0)


def test_too_many_tokens_for_the_window(sllm):
    whole = torch.zeros(50, dtype=torch.long)
    assert next_code_loss(sllm, [whole[:14]], [whole]).shape == (1,)  # 64 fit
    with pytest.raises(UserError, match=r"n_limit = 64.*n_max =\s*50.*n_r = 15"):
        next_code_loss(sllm, [whole[:15]], [whole])
    with pytest.raises(UserError, match="n_limit = 64"):
        sllm.emotion_logits([torch.zeros(65, dtype=torch.long)])


@pytest.mark.parametrize("codes", [[0, 16], [-1, 3], [99]])
def test_codes_of_another_codebook(sllm, codes):
    with pytest.raises(UserError, match=r"0 … 15.*another codebook"):
        sllm.sentence(np.array(codes))


# -- on disk -----------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(sharp, tmp_path):
    folder = tmp_path / "runs" / "sllm"
    sharp.save(folder, FACTS)
    expected = bare_logits(sharp, PLAIN)
    loaded = EmotionSLLM.load(folder)
    assert torch.equal(bare_logits(loaded, PLAIN), expected)
    assert (loaded.window, loaded.fingerprint()) == (sharp.window, sharp.fingerprint())
    assert loaded.vocabulary == dataclasses.replace(sharp.vocabulary, emotions=list(EMOTIONS))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(plain(torch.tensor([PLAIN])).logits[0].double(), expected)
    # nothing that unpickles, nothing left over
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {".json", ".safetensors"}
    assert [p.name for p in folder.parent.iterdir()] == ["sllm"]
    assert json.loads((folder / CARD).read_text())["codes"] == FACTS


def test_a_missing_or_half_written_folder(sllm, tmp_path):
    folder = tmp_path / "sllm"
    with pytest.raises(UserError, match="notebook 02"):
        EmotionSLLM.load(folder)
    for name, content in ((CARD, b'{"vocabulary": {"codeb'), (CARD, b"[]"), (CARD, None),
                          ("model.safetensors", None), ("model.safetensors", "half"), ("config.json", None)):
        sllm.save(folder, FACTS)
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        if content:
            (folder / name).write_bytes(whole[:len(whole) // 2] if content == "half" else content)
        with pytest.raises(UserError, match=str(folder)):
            EmotionSLLM.load(folder)


def test_a_disk_that_fills_while_saving(sllm, tmp_path, small_disk):
    sllm.save(tmp_path / "sllm", FACTS)
    before = sllm.fingerprint()
    with torch.no_grad():
        sllm.model.lm_head.weight += 1
    with small_disk(), pytest.raises(UserError, match=r"cannot write .*sllm.*free some disk"):
        sllm.save(tmp_path / "sllm", FACTS)
    assert EmotionSLLM.load(tmp_path / "sllm").fingerprint() == before  # the old one, whole
    assert [p.name for p in tmp_path.iterdir()] == ["sllm"]


# -- on a pretrained backbone ------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def pretrained(request, tmp_path):
    """(folder, state) of a text model of 50 tokens, its head tied to its embedding or not."""
    model = AutoModelForCausalLM.from_pretrained(made(tmp_path / "text", tied=request.param))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 8
    model.save_pretrained(tmp_path / "text")
    return tmp_path / "text", {k: v.clone() for k, v in model.state_dict().items()}


def adapted(folder, **change):
    backbone = BackboneSettings(source=str(folder), window=64)
    return EmotionSLLM.create(backbone, FinetuneSettings(**{"lora_rank": 4, "lora_dropout": 0.0, **change}), 16,
                              EMOTIONS, seed=1)


def train_steps(sllm, steps=3):
    batch = padded(sequences(sllm, DIALOGUE, LABELS, 5, 4, 6))
    optimizer = torch.optim.AdamW([p for p in sllm.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = sllm.train()(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sllm.eval()
    return losses


def test_a_pretrained_backbone_is_extended_trained_saved_and_loaded(pretrained, tmp_path):
    folder, text = pretrained
    sllm = adapted(folder)
    ids = torch.cat([sllm.sentence(c, e) for c, e in zip(DIALOGUE, LABELS, strict=True)])
    assert int(ids.min()) >= TEXT and sllm.vocabulary.size == TEXT + 16 + 1 + 4
    assert len(sllm.linear_layers()) == 3 * 7  # a LoRA layer counts as the one linear layer that it wraps
    untouched = {k: v.clone() for k, v in sllm.model.get_base_model().state_dict().items()}
    before = bare_logits(sllm, ids)
    losses = train_steps(sllm)
    assert losses[-1] < losses[0] and not torch.allclose(bare_logits(sllm, ids), before, atol=1e-2)
    with torch.no_grad():
        ours = sllm.emotion_logits([ids[:4]])[0]  # our own path through embedding and head is the model's
    torch.testing.assert_close(ours, bare_logits(sllm, ids[:4])[-1, -4:].float(), atol=1e-5, rtol=0)
    # Only LoRA and the new rows were trained: the backbone's own weights, its text rows among them, are the file's.
    state = sllm.causal_lm.state_dict()
    for name, value in state.items():
        if "lora_" not in name and "trainable_tokens" not in name:
            assert torch.equal(value, untouched[name]), name
    rows = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}
    for part, name in rows.items():
        held = [v for k, v in state.items() if part in k and k.endswith("weight")]
        assert held and all(torch.equal(v[:TEXT], text[name]) for v in held)
    with torch.no_grad():
        heard = sllm.causal_lm.get_input_embeddings()(torch.arange(TEXT))
    assert torch.equal(heard, text["model.embed_tokens.weight"])

    expected = bare_logits(sllm, ids)
    sllm.save(tmp_path / "out" / "sllm", FACTS)
    loaded = EmotionSLLM.load(tmp_path / "out" / "sllm")
    torch.testing.assert_close(bare_logits(loaded, ids), expected, atol=1e-5, rtol=0)  # the adapter is merged
    assert not any(p.requires_grad for p in loaded.parameters())
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md"}
    assert [p.name for p in files if p.suffix == ".safetensors"] == ["adapter_model.safetensors"]  # no backbone


def test_a_saved_adapter_can_be_saved_again_and_moved(pretrained, tmp_path):
    sllm = adapted(pretrained[0])
    train_steps(sllm)
    expected = bare_logits(sllm, np.array(PLAIN) + TEXT)
    sllm.save(tmp_path / "first", FACTS)
    EmotionSLLM.load(tmp_path / "first").save(tmp_path / "second", FACTS)
    (tmp_path / "first").rename(tmp_path / "moved")
    for name in ("moved", "second"):
        again = bare_logits(EmotionSLLM.load(tmp_path / name), np.array(PLAIN) + TEXT)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_a_pretrained_backbone_trained_whole(pretrained, tmp_path):
    sllm = adapted(pretrained[0], lora_rank=0)
    losses = train_steps(sllm)
    assert losses[-1] < losses[0]
    sllm.save(tmp_path / "sllm", FACTS)
    ids = np.array(PLAIN) + TEXT
    loaded = EmotionSLLM.load(tmp_path / "sllm")
    assert torch.equal(bare_logits(loaded, ids), bare_logits(sllm, ids))
    assert not torch.equal(loaded.causal_lm.lm_head.weight, loaded.causal_lm.get_input_embeddings().weight)


def test_a_backbone_that_is_not_there(tmp_path):
    for source in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match=r"backbone\.source.*cannot be loaded"):
            adapted(source)
