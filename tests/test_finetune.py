"""Training learns, repeats itself, goes on after a kill, and sees no test conversation."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_settings, make_toy
from processes import ended, started
from test_backbones import made
from transformers import Trainer, TrainingArguments

from dpmkit import finetune, metrics, protocols, runs
from dpmkit.finetune import Dialogues, forwards, padded, train
from dpmkit.settings import Settings, UserError
from dpmkit.sllm import EmotionSLLM, even

LEARNS = {"finetune.epochs": 12, "finetune.lr": 1e-2, "finetune.patience": 2}


class Killed(BaseException):
    """Stops a run where it stands, as a signal would."""


@pytest.fixture
def learning(settings):
    return changed(settings, LEARNS)


def changed(settings, values):
    for name, value in values.items():
        settings = settings.replace(name, value)
    return settings


def weights(tuned):
    return {p.relative_to(tuned.folder): p.read_bytes() for p in sorted(tuned.folder.rglob("*.safetensors"))}


def same(one, two):
    """Bit for bit: the history (an epoch's losses and scores) and every file of weights."""
    return one.history == two.history and weights(one) == weights(two)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run that every interrupted one must equal."""
    return train(changed(make_settings(tmp_path_factory.mktemp("whole")), LEARNS), *make_toy())


def elsewhere(settings, tmp_path, name="elsewhere"):
    return settings.replace("home", str(tmp_path / name))


def test_it_learns_what_can_be_learnt(learning, toy, whole):
    (corpus, codes), tuned = toy, whole
    losses = [row["train_loss"] for row in tuned.history]
    assert losses[-1] < 0.8 * losses[0]
    assert [row["epoch"] for row in tuned.history] == list(range(1, len(losses) + 1))
    assert set(tuned.history[0]) == {"epoch", "train_loss", "eval_loss", "eval_l_a", "eval_l_e", "eval_wa",
                                     "eval_ua"}
    # The corpus' emotions are uniform: 18 held-out answers are right by chance 4 or 5 times, 10 times at p < 0.01.
    table = protocols.predict(learning, corpus, codes, tuned, "window")
    assert metrics.wa(table, corpus.emotions) > 55
    assert tuned.trained_parameters == sum(p.numel() for p in tuned.sllm.parameters())
    assert not any(p.requires_grad for p in tuned.sllm.parameters()) and not tuned.sllm.training


def test_the_best_epoch_is_kept(learning, toy, whole):
    (corpus, codes), tuned = toy, whole
    best = min(tuned.history, key=lambda row: row["eval_l_e"])
    assert best["epoch"] < len(tuned.history) < 12  # stopped early, some epochs after the best one
    data = Dialogues(tuned.sllm, corpus, codes, learning, "validation")
    with torch.no_grad():
        out = tuned.sllm(**padded([row for dialogue in data for row in dialogue]))
    assert float(out["l_e"]) == pytest.approx(best["eval_l_e"], abs=1e-5)


def test_the_same_seed_twice_and_another_once(learning, toy, whole, tmp_path):
    (corpus, codes), one, two = toy, whole, train(learning, *toy)
    assert one.folder != two.folder and same(one, two)
    tables = [protocols.predict(s, corpus, codes, t, "dpm")
              for s, t in ((elsewhere(learning, tmp_path), one), (learning, two))]
    assert tables[0].equals(tables[1])
    assert not same(one, train(learning.replace("seed", 1), corpus, codes))


def test_trained_once_then_loaded(learning, toy, whole, monkeypatch):
    monkeypatch.setattr(finetune, "fit", None)
    again = train(learning.replace("home", str(whole.folder.parents[3])), *toy)
    assert same(whole, again) and again.sllm.fingerprint() == whole.sllm.fingerprint()
    kept = sorted(p.name for p in whole.folder.parent.iterdir())
    assert kept == [".lock", "history.json", "made.json", "sllm"]  # no checkpoints


# -- kills -------------------------------------------------------------------------------------------------


def in_a_step(number):
    """Killed in the `number`-th training step."""
    def arm(patch):
        plain, steps = finetune._Trainer.training_step, []

        def step(self, *args, **kwargs):
            steps.append(None)
            if len(steps) == number:
                raise Killed
            return plain(self, *args, **kwargs)
        patch.setattr(finetune._Trainer, "training_step", step)
    return arm


def in_a_checkpoint(number):
    """Killed with the `number`-th checkpoint half-written."""
    def arm(patch):
        plain, saved = Trainer._save_rng_state, []

        def save(self, folder):
            saved.append(None)
            if len(saved) == number:
                (Path(folder) / "trainer_state.json").write_text('{"epoch": ')
                raise Killed
            return plain(self, folder)
        patch.setattr(Trainer, "_save_rng_state", save)
    return arm


def at(place, name):
    """Killed where this function is called."""
    def arm(patch):
        def stop(*args):
            raise Killed
        patch.setattr(place, name, stop)
    return arm


# 12 training conversations in batches of 4: three steps an epoch.
KILLS = {"before any checkpoint": [in_a_step(2)], "in the first checkpoint": [in_a_checkpoint(1)],
         "after its patience": [at(Trainer, "_load_best_model")], "before it is saved": [at(EmotionSLLM, "save")],
         "again and again": [in_a_step(4), in_a_checkpoint(2), in_a_step(7), in_a_step(2), at(runs, "write_json")]}


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS.keys())
def test_killed_and_started_again_it_ends_the_same(kills, learning, toy, whole):
    corpus, codes = toy
    for arm in kills:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            arm(patch)
            train(learning, corpus, codes)
    assert same(train(learning, corpus, codes), whole)


def test_the_patience_that_was_spent_stays_spent(learning, toy, whole):
    # Killed in the epoch after the best one's next: patience 2 has one epoch left, not two anew.
    corpus, codes = toy
    best = int(np.argmin([row["eval_l_e"] for row in whole.history]))
    assert best + 3 == len(whole.history)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        in_a_step(3 * (best + 2) + 2)(patch)
        train(learning, corpus, codes)
    assert same(train(learning, corpus, codes), whole)


def test_training_shows_a_bar_and_prints_no_losses(learning, toy, capfd):
    train(learning.replace("finetune.epochs", 1), *toy)
    printed = capfd.readouterr()
    assert "100%" in printed.err and not any("loss" in part for part in printed)


def test_finished_epochs_are_not_trained_again(learning, toy, monkeypatch):
    corpus, codes = toy
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        in_a_step(8)(patch)
        train(learning, corpus, codes)
    plain, steps = finetune._Trainer.training_step, []
    monkeypatch.setattr(finetune._Trainer, "training_step", lambda *a, **k: (steps.append(None), plain(*a, **k))[1])
    tuned = train(learning, corpus, codes)
    assert len(steps) == 3 * (len(tuned.history) - 2)  # killed in epoch 3


def killed_in_the_third_epoch(settings):
    begin = finetune._Epochs.on_epoch_begin

    def kill(self, args, state, control, **kwargs):
        if state.epoch and state.epoch >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, args, state, control, **kwargs)

    finetune._Epochs.on_epoch_begin = kill
    train(settings, *make_toy())


def test_kill_9(learning, toy, whole, tmp_path):
    corpus, codes = toy
    killed = started(tmp_path / "log", killed_in_the_third_epoch, learning)
    assert ended(killed) == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
    assert list((Path(learning.home) / "runs" / "sllm").glob("*/checkpoints/checkpoint-6/trainer_state.json"))
    assert same(train(learning, corpus, codes), whole)


@pytest.mark.parametrize("size", [2_000, 120_000], ids=["weights", "optimizer"])
def test_a_disk_that_fills_while_training(size, learning, toy, whole, small_disk):
    corpus, codes = toy
    with small_disk(size), pytest.raises(UserError, match=r"cannot write .*checkpoints.*free some disk"):
        train(learning, corpus, codes)
    assert same(train(learning, corpus, codes), whole)


# -- what is trained on ------------------------------------------------------------------------------------


def test_test_conversations_never_reach_training(learning, toy):
    corpus, codes = toy
    fold = corpus.folds[0]
    names = {split: [u.id for c in corpus.select(getattr(fold, split)) for u in c.utterances]
             for split in ("train", "validation", "test")}
    first = train(learning, corpus, codes)

    def altered(split, key):
        relabelled = tuple(
            c if c.id not in getattr(fold, split) else dataclasses.replace(c, utterances=tuple(
                dataclasses.replace(u, emotion=None if u.emotion == "neu" else "neu") for u in c.utterances))
            for c in corpus.conversations)
        others = {i: 15 - codes.codes[i] for i in names[split]}
        return (dataclasses.replace(corpus, conversations=relabelled),
                dataclasses.replace(codes, codes={**codes.codes, **others}, key=key))

    other = train(learning, *altered("test", "another test fold"))
    assert other.folder != first.folder and same(first, other)
    # ... which would show: the same change to the training and to the validation fold does
    assert weights(train(learning, *altered("train", "another training fold"))) != weights(first)
    assert train(learning, *altered("validation", "another validation fold")).history != first.history


class Spy:
    """An SLLM that keeps the pieces it is asked to make sequences of."""

    window = 64

    def sequences(self, _sllm, codes, emotions, n_o, n_p, n_q, history):
        self.pieces.append([(c.tolist(), e) for c, e in zip(codes, emotions, strict=True)])
        return []

    def of(self, data, index):
        self.pieces = []
        assert data[index] == []
        return self.pieces


@pytest.mark.parametrize("history", ["none", "predicted"])
def test_long_dialogues_are_cut_into_pieces_that_fit(settings, history, monkeypatch):
    corpus, codes = make_toy(turns=(40, 3))
    settings = settings.replace("memory.history_emotions", history)
    fold = corpus.folds[0]
    same = dataclasses.replace(fold, validation=fold.train)  # of another split: its cuts stay where they are
    corpus = dataclasses.replace(corpus, folds=(same,))
    conversation = corpus.select(fold.train)[0]
    endless = conversation.utterances[5].id
    said = {**codes.codes, endless: np.arange(200) % 16}  # longer than the window: its tail is trained
    codes = dataclasses.replace(codes, codes=said)
    spy = Spy()
    monkeypatch.setattr(finetune, "sequences", spy.sequences)
    moving, still = (Dialogues(spy, corpus, codes, settings, split) for split in ("train", "validation"))
    marks = 1 + (history == "predicted")
    cuts = {}
    for data in (moving, still):
        cuts[data] = []
        for data.epoch in range(12):
            pieces = spy.of(data, 0)
            for piece in pieces:
                assert sum(len(c) + (marks if e is not None else 1) for c, e in piece) <= 64
            # nothing is lost, doubled or moved
            heard = [s for piece in pieces for s in piece]
            for (got, emotion), u in zip(heard, conversation.utterances, strict=True):
                whole = said[u.id].tolist()
                assert got == (whole if u.id != endless else whole[-(64 - marks):])
                assert emotion == (None if u.emotion is None else corpus.emotions.index(u.emotion))
            cuts[data].append([len(p) for p in pieces])
    assert len({tuple(c) for c in cuts[moving]}) > 3 and len({tuple(c) for c in cuts[still]}) == 1
    moving.epoch = 3
    assert spy.of(moving, 0) == spy.of(moving, 0)  # an epoch's cuts are its own


@pytest.mark.parametrize("history", ["none", "predicted"])
def test_utterances_are_redrawn_among_those_of_their_speaker_and_emotion(settings, history, monkeypatch):
    corpus, codes = make_toy(turns=(40, 40))
    fold = corpus.folds[0]
    corpus = dataclasses.replace(corpus, folds=(dataclasses.replace(fold, validation=fold.train),))
    settings = changed(settings, {"finetune.redrawn": 0.5, "memory.history_emotions": history})
    alike, index = {}, corpus.emotions.index
    for c in corpus.select(fold.train):
        for u in c.utterances:
            alike.setdefault((u.speaker, u.emotion), []).append(codes.codes[u.id].tolist())
    spy = Spy()
    monkeypatch.setattr(finetune, "sequences", spy.sequences)
    moving, still = (Dialogues(spy, corpus, codes, settings, split) for split in ("train", "validation"))
    for number, c in enumerate(corpus.select(fold.train)):
        own = [(codes.codes[u.id].tolist(), None if u.emotion is None else index(u.emotion)) for u in c.utterances]
        assert [s for piece in spy.of(still, number) for s in piece] == own
        drawn = []
        for moving.epoch in range(40):
            found = [s for piece in spy.of(moving, number) for s in piece]
            assert [e for _, e in found] == [e for _, e in own]  # the conversation's emotions stay
            drawn.append([said for said, _ in found])
            assert drawn[-1] == [said for piece in spy.of(moving, number) for said, _ in piece]  # an epoch's own
        for turn, u in enumerate(c.utterances):
            said = [tuple(epoch[turn]) for epoch in drawn]
            others = {tuple(s) for s in alike[u.speaker, u.emotion]}
            assert set(said) <= others and (len(set(said)) > 1 or len(others) == 1)
        kept = np.mean([epoch[t] == own[t][0] for epoch in drawn for t in range(len(own))])
        chance = np.mean([1 / len(alike[u.speaker, u.emotion]) for u in c.utterances])
        assert abs(kept - (0.5 + 0.5 * chance)) < 0.06  # the share: 4.8 standard deviations


def test_a_step_in_forwards_of_about_one_length_has_the_same_gradient_and_less_padding(settings, toy, tmp_path):
    settings = settings.replace("backbone.dropout", 0.0)
    model = EmotionSLLM.create(settings.backbone, settings.finetune, 16, toy[0].emotions)
    items = list(Dialogues(model, *toy, settings, "train"))
    rows = [row for item in items for row in item]
    whole, step = padded(rows), forwards(items)
    assert len(step) > 2 and sum(len(forward["input_ids"]) for forward in step) == len(rows)
    tokens, real = sum(forward["input_ids"].numel() for forward in step), sum(len(row["input_ids"]) for row in rows)
    assert tokens - real < (whole["input_ids"].numel() - real) / 3
    found, arguments = [], TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    for taken in (step, [whole]):
        model.zero_grad()
        loss = finetune._Trainer(model=model, args=arguments).training_step(model, taken)
        found.append([loss, *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_rows_of_about_one_length_share_a_forward():
    rows = [torch.zeros(n) for n in (3, 9, 10, 2, 30, 9, 4)]
    assert list(even(rows, 20)) == [[4], [2, 1], [5], [6, 0], [3]]
    assert list(even(rows)) == [[4], [2, 1, 5], [6, 0], [3]] and list(even([])) == []


# -- on a pretrained backbone ------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_lora_on_a_pretrained_backbone_killed_and_resumed(tied, learning, toy, tmp_path):
    corpus, codes = toy
    lora = changed(learning, {"backbone.source": made(tmp_path / "text", tied=tied), "finetune.lora_rank": 4,
                              "finetune.epochs": 3})
    whole = train(elsewhere(lora, tmp_path), corpus, codes)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]
    # 3 blocks of 7 linear layers of rank 4, and 21 new rows of the embedding and of the head each
    shapes = 3 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert whole.trained_parameters == shapes + 21 * 32 * 2
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        in_a_step(5)(patch)
        train(lora, corpus, codes)
    assert same(train(lora, corpus, codes), whole)


def test_another_setting_another_artefact(learning, toy):
    corpus, codes = toy
    short = learning.replace("finetune.epochs", 1)
    first = train(short, corpus, codes)
    for name, value in (("finetune.lr", 1e-4), ("seed", 3), ("fold", 2), ("memory.history_emotions", "predicted")):
        assert train(short.replace(name, value), corpus, codes).key != first.key
    # what fine-tuning does not read leaves it where it is
    assert train(short.replace("memory.lr", 0.5), corpus, codes).key == first.key


def test_a_device_that_is_not_known(settings):
    with pytest.raises(UserError, match="device"):
        finetune.device(settings.replace("device", "abacus"))
    assert finetune.device(settings) == torch.device("cpu")
    assert finetune.device(Settings.of("smoke")).type in ("cpu", "cuda")


def test_a_checkpoint_of_another_model_is_refused():
    trainer = object.__new__(finetune._Trainer)
    trainer._issue_warnings_after_load(SimpleNamespace(unexpected_keys=[], missing_keys=["model.frozen"]))
    with pytest.raises(RuntimeError, match=r"of another model.*model\.other"):
        trainer._issue_warnings_after_load(SimpleNamespace(unexpected_keys=["model.other"], missing_keys=[]))


def test_a_half_written_checkpoint_is_skipped(tmp_path):
    folder = tmp_path / "checkpoints"
    for step, text in ((3, '{"epoch": 1.0}'), (6, '{"epoch": 2.0, "st'), (12, None)):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if text:
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    path, state = finetune._last_whole_checkpoint(folder)
    assert path == str(folder / "checkpoint-3") and state.epoch == 1.0
    assert [p.name for p in folder.iterdir()] == ["checkpoint-3"]
    shutil.rmtree(folder)
    assert finetune._last_whole_checkpoint(folder) == (None, None)


@pytest.mark.parametrize("pretrained", [False, True], ids=["scratch", "pretrained"])
def test_the_folder_of_a_trained_sllm_works_elsewhere(pretrained, settings, toy, tmp_path):
    settings = changed(settings, {
        "backbone.source": made(tmp_path / "text"), "backbone.keep_layers": 2, "backbone.window": 64,
        "finetune.lora_rank": 4, "finetune.n_o": 16, "finetune.n_p": 48, "finetune.n_q": 64} if pretrained else {})
    tuned = train(settings.replace("finetune.epochs", 1), *toy)
    away = tmp_path / "away" / "sllm"
    shutil.copytree(tuned.folder, away)
    shutil.rmtree(tmp_path / "text", ignore_errors=True)
    shutil.rmtree(settings.home_path / "runs")
    named = {p.name for p in away.rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()}
    assert named == ({"README.md", "adapter_config.json", "dpmkit.json"} if pretrained else set())  # where it was
    elsewhere = str(made(tmp_path / "elsewhere")) if pretrained else ""  # the same files
    loaded = EmotionSLLM.load(away, backbone=elsewhere)
    sentence = [loaded.sentence(np.array([1, 5, 3]))]
    torch.testing.assert_close(loaded.emotion_logits(sentence), tuned.sllm.emotion_logits(sentence))


def test_training_that_the_gpu_cannot_hold_names_the_cure(settings, toy, monkeypatch):
    def step(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finetune._Trainer, "training_step", step)
    with pytest.raises(UserError, match=r"finetune.forward_tokens"):
        train(settings, *toy)
