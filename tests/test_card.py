"""What lies in the folder of a trained SLLM: all that it needs elsewhere, and words that say what was measured."""

import os
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from test_backbones import made
from transformers import AutoTokenizer

from dpmkit import backbones, finetune, metrics, protocols, records, report
from dpmkit.settings import UserError
from dpmkit.sllm import EmotionSLLM

PRETRAINED = {"backbone.keep_layers": 2, "backbone.window": 64, "finetune.lora_rank": 4, "finetune.epochs": 1,
              "finetune.n_o": 16, "finetune.n_p": 48, "finetune.n_q": 64}


def trained(settings, toy, source=""):
    for name, value in ({**PRETRAINED, "backbone.source": source} if source else {"finetune.epochs": 1}).items():
        settings = settings.replace(name, value)
    return settings, finetune.train(settings, *toy)


@pytest.mark.parametrize("pretrained", [False, True], ids=["scratch", "pretrained"])
def test_the_folder_says_what_was_measured_and_works_elsewhere(pretrained, settings, toy, tmp_path):
    settings, tuned = trained(settings, toy, made(tmp_path / "text") if pretrained else "")
    answers = {"test": protocols.predict(settings, *toy, tuned, "window")}
    record = records.save(settings, "backbone", {"history": tuned.history}, {}, 1.0)
    text = report.write_card(settings, tuned, *toy, answers, record).read_text()
    assert (tuned.folder / "record.json").read_bytes() == record.read_bytes()
    wa = metrics.wa(answers["test"], toy[0].emotions)
    row, = metrics.compare({"w": answers["test"]}, toy[0].emotions, "w", settings.evaluation)
    low, high = row["WA_interval"]
    assert f"| {wa:.1f} [{low:.1f}, {high:.1f}] |" in text and "Not measured" not in text
    for heading in ("## Data", "## Metrics", "## Intended use", "## Limits"):
        assert heading in text
    assert f"{tuned.trained_parameters:,} parameters" in text and str(tmp_path) not in text
    away = tmp_path / "away" / "sllm"
    shutil.copytree(tuned.folder, away)
    shutil.rmtree(tmp_path / "text", ignore_errors=True)
    shutil.rmtree(settings.home_path / "runs")
    named = {p.name for p in away.rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()}
    assert named == ({"adapter_config.json", "dpmkit.json"} if pretrained else set())  # where the backbone was
    elsewhere = str(made(tmp_path / "elsewhere")) if pretrained else ""  # the same files
    loaded = EmotionSLLM.load(away, backbone=elsewhere)
    said = [loaded.sentence(np.array([1, 5, 3]))]
    torch.testing.assert_close(loaded.emotion_logits(said), tuned.sllm.emotion_logits(said))
    ids = AutoTokenizer.from_pretrained(away)("<audio_1><audio_5><audio_3><audio_end>", add_special_tokens=False)
    assert ids["input_ids"] == said[0].tolist()
    assert AutoTokenizer.from_pretrained(away).convert_tokens_to_ids("<ang>") == loaded.answer(3).item()
    if pretrained:
        assert loaded.texts("happy", add_special_tokens=False)["input_ids"][0] < loaded.vocabulary.base


def test_without_answers_the_card_says_that_nothing_was_measured(settings, toy):
    settings, tuned = trained(settings, toy)
    assert "Not measured: run notebook 02" in report.write_card(settings, tuned, *toy).read_text()


def test_a_tokenizer_with_more_tokens_than_the_backbone_has_rows_is_left_out(settings, toy, tmp_path):
    source = made(tmp_path / "text")
    text = AutoTokenizer.from_pretrained(source)
    text.add_tokens([f"word{i}" for i in range(60)])
    text.save_pretrained(source)
    settings, tuned = trained(settings, toy, source)
    assert tuned.sllm.texts is None and not (tuned.folder / "tokenizer.json").exists()


def test_a_hub_id_is_loaded_where_a_hub_answers_and_refused_where_none_does(settings, toy, monkeypatch):
    _, tuned = trained(settings, toy)
    asked = []

    def snapshot(repository, allow_patterns):
        asked.append(repository)
        assert not any("bin" in p or "pt" in p for p in allow_patterns)  # pickles stay there
        if repository != "someone/emotion-sllm":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")
        return str(tuned.folder)

    monkeypatch.setattr(backbones, "snapshot_download", snapshot)
    assert EmotionSLLM.load("someone/emotion-sllm").fingerprint() == tuned.sllm.fingerprint()
    with pytest.raises(UserError, match=r"someone/else.*no hub gives.*no network"):
        EmotionSLLM.load("someone/else")
    EmotionSLLM.load(str(tuned.folder))
    assert asked == ["someone/emotion-sllm", "someone/else"]


def test_a_port_in_use_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(held.getsockname()[1])}
        line = [sys.executable, "-m", "dpmkit", "train", "--profile", "smoke", "--home", str(tmp_path)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the processes cannot meet at 127.0.0.1" in done.stderr and "--master-port" in done.stderr


def test_training_that_the_gpu_cannot_hold_names_the_cure(settings, toy, monkeypatch):
    def step(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finetune._Trainer, "training_step", step)
    with pytest.raises(UserError, match=r"finetune.forward_tokens"):
        finetune.train(settings, *toy)
