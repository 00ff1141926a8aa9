"""The recurrent baseline: causal or not as it says, heard without labels, the same after a kill."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy
from transformers import Trainer

from dpmkit import baselines, finetune, metrics
from dpmkit.baselines import RECURRENT_HEARS, UNSCORED, Recurrent, recurrent
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.settings import RecurrentSettings

P = [f"p_{e}" for e in EMOTIONS]


def changed(corpus, ids, what):
    """The corpus with `what(turn, utterance)` in place of the utterances of these conversations."""
    return dataclasses.replace(corpus, conversations=tuple(
        c if c.id not in ids else dataclasses.replace(c, utterances=tuple(
            what(turn, u) for turn, u in enumerate(c.utterances))) for c in corpus.conversations))


@pytest.fixture
def toy():
    """(corpus, codes) whose features show one of four kinds an utterance; its label is the kind of the utterance
    before (of itself at the start), so that an utterance alone says nothing of its label."""
    corpus, codes = make_toy(turns=(1, *[10] * 7), seed=4)
    rng = np.random.default_rng(0)
    features, label = {}, {}
    for c in corpus.conversations:
        kinds = rng.integers(4, size=len(c.utterances))
        for turn, u in enumerate(c.utterances):
            features[u.id] = 100 + 7 * (0.3 * rng.normal(size=76) + np.repeat(np.eye(4)[kinds[turn]], 19))
            label[u.id] = EMOTIONS[kinds[max(0, turn - 1)]]
    corpus = changed(corpus, {c.id for c in corpus.conversations},
                     lambda _, u: dataclasses.replace(u, emotion=u.emotion and label[u.id]))
    return corpus, dataclasses.replace(codes, features=features)


@pytest.fixture
def learning(settings):
    for name, value in (("hidden", 32), ("lr", 1e-2), ("epochs", 30), ("batch", 4), ("dropout", 0.2)):
        settings = settings.replace(f"recurrent.{name}", value)
    return settings.replace("finetune.patience", 30)


def said(corpus, split="test"):
    return [u for c in corpus.select(getattr(corpus.folds[0], split)) for u in c.utterances]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_it_learns_what_only_history_tells(learning, toy, bidirectional, monkeypatch):
    corpus, codes = toy
    table = recurrent(learning, corpus, codes, bidirectional=bidirectional)
    assert table["utterance"].tolist() == [u.id for u in said(corpus)]
    assert table["emotion"].fillna("").tolist() == [u.emotion or "" for u in said(corpus)]
    np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-5)
    assert metrics.wa(table, EMOTIONS) > 75  # chance is 25
    monkeypatch.setattr(finetune, "fit", None)  # trained once
    pd.testing.assert_frame_equal(recurrent(learning, corpus, codes, bidirectional=bidirectional), table,
                                  check_exact=True)
    validation = recurrent(learning, corpus, codes, "validation", bidirectional)
    assert validation["utterance"].tolist() == [u.id for u in said(corpus, "validation")]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_only_the_bidirectional_one_hears_the_future(learning, toy, bidirectional):
    corpus, codes = toy
    learning = learning.replace("recurrent.epochs", 3)
    table = recurrent(learning, corpus, codes, bidirectional=bidirectional)
    now = 5
    later = {u.id: -codes.features[u.id] for c in corpus.select(corpus.folds[0].test) for u in c.utterances[now:]}
    other = recurrent(learning, corpus, dataclasses.replace(codes, features={**codes.features, **later}),
                    bidirectional=bidirectional)
    early = table["turn"] < now
    long = early & table["conversation"].isin(table.loc[~early, "conversation"])
    assert long.any()
    assert (other.loc[~early, P].to_numpy() != table.loc[~early, P].to_numpy()).any(axis=1).all()
    assert (other.loc[long, P].to_numpy() != table.loc[long, P].to_numpy()).any(axis=1).all() == bidirectional
    if not bidirectional:  # bit for bit
        np.testing.assert_array_equal(other.loc[early, P], table.loc[early, P])
    assert ("FUTURE" in RECURRENT_HEARS["blstm"]) and ("FUTURE" not in RECURRENT_HEARS["lstm"])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_true_label_is_heard(learning, toy, bidirectional):
    corpus, codes = toy
    learning = learning.replace("recurrent.epochs", 1)
    table = recurrent(learning, corpus, codes, bidirectional=bidirectional)
    turned = changed(corpus, corpus.folds[0].test, lambda turn, u: dataclasses.replace(
        u, emotion=u.emotion and EMOTIONS[EMOTIONS.index(u.emotion) - 1]))
    other = recurrent(learning, turned, codes, bidirectional=bidirectional)
    assert (other["emotion"] != table["emotion"])[table["emotion"].notna()].all()
    np.testing.assert_array_equal(other[P], table[P])


def test_unlabelled_utterances_are_heard_but_not_scored(learning, toy):
    corpus, codes = toy
    learning = learning.replace("recurrent.epochs", 2)
    table = recurrent(learning, corpus, codes)
    test = corpus.folds[0].test
    some = changed(corpus, test, lambda turn, u: dataclasses.replace(u, emotion=None if turn == 4 else u.emotion))
    fewer = recurrent(learning, some, codes)  # which of them have a label changes no answer
    np.testing.assert_array_equal(fewer[P], table[P])
    assert fewer["emotion"].isna().sum() > table["emotion"].isna().sum() > 0
    silent = {u.id for c in corpus.select(test) for u in c.utterances if u.emotion is None}
    louder = {name: x + 30.0 * (name in silent) for name, x in codes.features.items()}
    other = recurrent(learning, corpus, dataclasses.replace(codes, features=louder))
    heard = table["turn"] >= 4  # every conversation of more than a turn has one outside the set among turns 0 to 3
    assert (other.loc[heard, P].to_numpy() != table.loc[heard, P].to_numpy()).any(axis=1).all()


def test_conversations_without_a_label_do_not_stop_it(learning, toy):
    corpus, codes = toy
    fold = corpus.folds[0]
    silent = {fold.train[1], fold.validation[1], fold.test[1]}
    corpus = changed(corpus, silent, lambda turn, u: dataclasses.replace(u, emotion=None))
    # In batches of one it would be a batch of nothing.
    table = recurrent(learning.replace("recurrent.epochs", 2).replace("recurrent.batch", 1), corpus, codes)
    assert set(table["conversation"]) == set(fold.test)
    assert np.isfinite(table[P].to_numpy()).all()


def test_features_are_standardised_on_the_training_conversations_alone(toy):
    corpus, codes = toy
    fold = corpus.folds[0]
    train = [u.id for c in corpus.select(fold.train) for u in c.utterances]
    features = {name: np.append(x, 5.0) for name, x in codes.features.items()}  # the last one never moves
    made = baselines._standardised(features, corpus.select(fold.train))
    x = np.stack([made[name] for name in train])
    np.testing.assert_allclose(x[:, :76].mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(x[:, :76].std(axis=0), 1, atol=1e-9)
    assert (x[:, 76] == 0).all()
    moved = {name: f if name in set(train) else f + 50 for name, f in features.items()}
    again = baselines._standardised(moved, corpus.select(fold.train))
    assert all(np.array_equal(made[name], again[name]) for name in train)


def test_of_the_speaker_it_hears_only_whether_it_is_the_last_one_s(toy):
    corpus, codes = toy
    c = corpus.conversations[1]
    who = ["x", "x", "y", "x", "y", "y", "y", "x", "z", "x"]

    def flags(names):
        said = dataclasses.replace(c, utterances=tuple(
            dataclasses.replace(u, speaker=s) for u, s in zip(c.utterances, names, strict=True)))
        return baselines._Heard([said], codes.features, EMOTIONS)[0][0]

    assert flags(who)[:, -1].tolist() == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    torch.testing.assert_close(flags([{"x": "a", "y": "x", "z": "b"}[s] for s in who]), flags(who))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_conversation_s_logits_do_not_depend_on_its_batch(bidirectional):
    torch.manual_seed(0)
    model = Recurrent(5, 4, RecurrentSettings(hidden=8, layers=2), bidirectional).eval()
    short, long = torch.randn(3, 5), torch.randn(9, 5)
    batch = baselines._collate([(short, torch.tensor([0, UNSCORED, 1])), (long, torch.arange(9) % 4)])
    batch["heard"][0, 3:] = 50.0  # padding is not heard, whatever stands there
    with torch.no_grad():
        alone = model.logits(short.unsqueeze(0), torch.tensor([3]))
        torch.testing.assert_close(model.logits(batch["heard"], batch["turns"])[:1, :3], alone)
        out = model(**batch)
    assert out["truth"].tolist() == [0, 1, *(torch.arange(9) % 4).tolist()]  # not the padding, not the unlabelled
    torch.testing.assert_close(out["logits"][:2], alone[0, [0, 2]])
    torch.testing.assert_close(out["loss"], torch.nn.functional.cross_entropy(out["logits"], out["truth"]))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_killed_and_started_again_it_ends_the_same(learning, toy, tmp_path, bidirectional):
    corpus, codes = toy
    learning = learning.replace("recurrent.epochs", 4)
    whole = recurrent(learning.replace("home", str(tmp_path / "whole")), corpus, codes, bidirectional=bidirectional)
    plain, steps = Trainer.training_step, []

    def step(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == 15:  # of 6 an epoch
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "training_step", step)
        recurrent(learning, corpus, codes, bidirectional=bidirectional)
    torch.manual_seed(99)
    steps.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", lambda *a, **k: steps.append(None) or plain(*a, **k))
        again = recurrent(learning, corpus, codes, bidirectional=bidirectional)
    assert len(steps) == 12  # the two epochs that were not whole
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
