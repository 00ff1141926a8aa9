"""Networks that learn and forget nothing, priors, repeats and temperatures; no true label in any answer."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import changed, make_toy
from sklearn.preprocessing import StandardScaler

from dpmkit import baselines, finetune, metrics
from dpmkit.baselines import HEARS, UNSCORED, Recurrent, fit_temperature, last_true, majority
from dpmkit.corpora.dynamics import EMOTIONS, emotion_prior
from dpmkit.settings import RecurrentSettings, UserError

P = [f"p_{e}" for e in EMOTIONS]


@pytest.fixture
def toy():
    return make_toy(turns=(1, 5, 6, 12), seed=4)


def rows_of(corpus, split="test"):
    """A table of predictions' first columns for a split of fold 1."""
    return pd.DataFrame([{"conversation": c.id, "utterance": u.id, "speaker": u.speaker, "turn": turn,
                          "emotion": u.emotion}
                         for c in corpus.select(getattr(corpus.folds[0], split))
                         for turn, u in enumerate(c.utterances)])


def guesses(table, seed, skill=2.0):
    """The table with answers that lean to the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(table), 4))
    for i, e in enumerate(EMOTIONS):
        logits[:, i] += skill * (table["emotion"] == e)
    p = np.exp(logits)
    table[P] = p / p.sum(1, keepdims=True)
    return table


# -- networks ----------------------------------------------------------------------------------------------

@pytest.fixture(params=["classifier", "lstm", "blstm"])
def network(request, settings, toy):
    """One of them: `answer(settings, corpus, codes, split)`, and `settings` and a corpus that let it learn."""
    learning = {"classifier.lr": 1e-2, "classifier.epochs": 8, "memory.prefix": 4, "recurrent.hidden": 32,
                "recurrent.lr": 1e-2, "recurrent.epochs": 30, "recurrent.batch": 4, "recurrent.dropout": 0.2}
    if request.param != "classifier":
        learning["finetune.patience"] = 30
    for name, value in learning.items():
        settings = settings.replace(name, value)
    corpus, codes = toy if request.param == "classifier" else known_by_history()
    return SimpleNamespace(name=request.param, answer=partial(baselines.network, name=request.param),
                           settings=settings, corpus=corpus, codes=codes)


def short(network, epochs, **changes):
    """Its settings for fewer epochs, or for other batches."""
    settings = network.settings
    for group in ("classifier", "recurrent"):
        for name, value in ({"epochs": epochs} | changes).items():
            settings = settings.replace(f"{group}.{name}", value)
    return settings


def known_by_history():
    """(corpus, codes) whose features show one of four kinds per utterance; its label is the kind of the utterance
    before (of itself at the start), so that an utterance alone says nothing of its label."""
    corpus, codes = make_toy(turns=(1, *[10] * 7), seed=4)
    rng = np.random.default_rng(0)
    features, label = {}, {}
    for c in corpus.conversations:
        kinds = rng.integers(4, size=len(c.utterances))
        for turn, u in enumerate(c.utterances):
            features[u.id] = 100 + 7 * (0.3 * rng.normal(size=76) + np.repeat(np.eye(4)[kinds[turn]], 19))
            label[u.id] = EMOTIONS[kinds[max(0, turn - 1)]]
    corpus = changed(corpus, lambda turn, u: {"emotion": u.emotion and label[u.id]})
    return corpus, dataclasses.replace(codes, features=features)


def test_a_network_learns_and_answers_every_utterance(network, tmp_path, monkeypatch):
    corpus, codes, settings = network.corpus, network.codes, network.settings
    table = network.answer(settings, corpus, codes)
    pd.testing.assert_frame_equal(table[list(rows_of(corpus))], rows_of(corpus))
    np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-5)
    assert metrics.wa(table, EMOTIONS) > (55 if network.name == "classifier" else 75)  # chance is 25
    again = network.answer(settings.replace("home", str(tmp_path / "again")), corpus, codes)
    pd.testing.assert_frame_equal(table, again, check_exact=True)  # one seed, one network
    monkeypatch.setattr(finetune, "fit", None)  # trained once
    pd.testing.assert_frame_equal(table, network.answer(settings, corpus, codes), check_exact=True)
    validation = network.answer(settings, corpus, codes, split="validation")
    assert validation["utterance"].tolist() == rows_of(corpus, "validation")["utterance"].tolist()


def test_a_network_hears_no_true_label_and_only_the_blstm_the_future(network):
    corpus, codes, settings = network.corpus, network.codes, short(network, 3)
    table, test, now = network.answer(settings, corpus, codes), corpus.folds[0].test, 3
    turned = changed(corpus, lambda turn, u: {
        "emotion": u.emotion and EMOTIONS[EMOTIONS.index(u.emotion) - 1]}, test)
    other = network.answer(settings, turned, codes)
    assert (other["emotion"] != table["emotion"])[table["emotion"].notna()].all()
    np.testing.assert_array_equal(other[P], table[P])
    later = {u.id for c in corpus.select(test) for u in c.utterances[now:]}
    other = network.answer(settings, corpus, dataclasses.replace(
        codes, codes={i: 15 - x if i in later else x for i, x in codes.codes.items()},
        features={i: -x if i in later else x for i, x in codes.features.items()}))
    moved = np.abs(other[P].to_numpy() - table[P].to_numpy()).max(axis=1)
    early = (table["turn"] < now).to_numpy()
    long = early & table["conversation"].isin(table.loc[~early, "conversation"]).to_numpy()
    assert long.any() and (moved[~early] > 0).all()
    assert (moved[long] > 1e-5).all() if network.name == "blstm" else (moved[early] < 1e-5).all()
    assert ("FUTURE" in HEARS[network.name]) == (network.name == "blstm")


def test_a_conversation_without_a_label_is_left_out_of_training(network):
    corpus, fold = network.corpus, network.corpus.folds[0]
    silent = {fold.train[1], fold.validation[1], fold.test[1]}
    corpus = changed(corpus, lambda turn, u: {"emotion": None}, silent)
    table = network.answer(short(network, 2, batch=1), corpus, network.codes)  # else a batch of nothing
    assert set(table["conversation"]) == set(fold.test) and np.isfinite(table[P].to_numpy()).all()


def test_a_network_killed_and_started_again_ends_the_same(network, tmp_path):
    settings = short(network, 2 if network.name == "classifier" else 4)  # of 12 steps, or of 6
    whole = network.answer(settings.replace("home", str(tmp_path / "whole")), network.corpus, network.codes)
    plain, steps = finetune._Trainer.training_step, []

    def step(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == kill:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune._Trainer, "training_step", step)
        kill = 15
        with pytest.raises(KeyboardInterrupt):
            network.answer(settings, network.corpus, network.codes)
        kill, steps[:] = 0, []
        torch.manual_seed(99)
        again = network.answer(settings, network.corpus, network.codes)
    assert len(steps) == 12  # the epochs that were not whole
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


@pytest.mark.parametrize("network", ["classifier"], indirect=True)
def test_a_full_disk_while_a_network_is_kept(network, small_disk):
    with small_disk(), pytest.raises(UserError, match=r"cannot write .*free some disk"):
        network.answer(network.settings, network.corpus, network.codes)
    assert len(network.answer(short(network, 1), network.corpus, network.codes))


@pytest.mark.parametrize("network", ["lstm"], indirect=True)
def test_unlabelled_utterances_are_heard_but_not_scored(network):
    corpus, codes, learning = network.corpus, network.codes, short(network, 2)
    table = network.answer(learning, corpus, codes)
    test = corpus.folds[0].test
    some = changed(corpus, lambda turn, u: {"emotion": None if turn == 4 else u.emotion}, test)
    fewer = network.answer(learning, some, codes)  # which of them have a label changes no answer
    np.testing.assert_array_equal(fewer[P], table[P])
    assert fewer["emotion"].isna().sum() > table["emotion"].isna().sum() > 0
    silent = {u.id for c in corpus.select(test) for u in c.utterances if u.emotion is None}
    louder = {name: x + 30.0 * (name in silent) for name, x in codes.features.items()}
    other = network.answer(learning, corpus, dataclasses.replace(codes, features=louder))
    heard = table["turn"] >= 4  # every conversation of more than a turn has one outside the set among turns 0 to 3
    assert (other.loc[heard, P].to_numpy() != table.loc[heard, P].to_numpy()).any(axis=1).all()


def test_a_classifier_s_row_does_not_depend_on_its_neighbours(settings):
    torch.manual_seed(0)
    model = baselines.Classifier(16, 4, settings.backbone).eval()
    row, longer = torch.randint(0, 16, (1, 5)), torch.randint(0, 16, (1, 40))
    padded = torch.cat([torch.cat([row, torch.full((1, 35), model.padding)], 1), longer])
    with torch.no_grad():
        alone = model(heard=row, emotion=torch.tensor([0]))["logits"]
        beside = model(heard=padded, emotion=torch.tensor([0, 1]))["logits"][:1]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", [0, 4, 200])
def test_what_the_classifier_hears(prefix):
    # n_r codes before the utterance, the separator (16), the utterance; cut from the front where it is too long
    corpus, codes = make_toy(turns=(12,), seed=4)
    conversation = corpus.conversations[0]
    rows = baselines._windows(conversation, codes.codes, prefix, 16, 64)
    past, expected = [], []
    for u in conversation.utterances:
        said = codes.codes[u.id].tolist()
        expected.append([*past[max(0, len(past) - prefix):], 16, *said][-64:])
        past += said  # turns outside the label set are heard, too
    assert [row.tolist() for row in rows] == expected


def test_the_lstm_hears_standardised_features_and_of_the_speaker_whether_it_is_the_last_one_s():
    corpus, codes = make_toy(turns=(10, 10), seed=4)
    rng, train = np.random.default_rng(0), corpus.select(corpus.folds[0].train)
    features = {name: np.append(rng.normal(3, 2, 5), 5.0) for name in codes.codes}  # the last one never moves
    scaler = StandardScaler().fit([features[u.id] for c in train for u in c.utterances])

    def heard(conversation, names):
        utterances = zip(conversation.utterances, names, strict=True)
        return baselines._acoustics(dataclasses.replace(conversation, utterances=tuple(
            dataclasses.replace(u, speaker=s) for u, s in utterances)), features, scaler)

    who = ["x", "x", "y", "x", "y", "y", "y", "x", "z", "x"]
    whole = torch.cat([heard(c, who) for c in train])
    np.testing.assert_allclose(whole[:, :5].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(whole[:, :5].std(0, correction=0), 1, atol=1e-6)
    assert (whole[:, 5] == 0).all()
    assert heard(train[0], who)[:, -1].tolist() == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    torch.testing.assert_close(heard(train[0], [{"x": "a", "y": "x", "z": "b"}[s] for s in who]),
                               heard(train[0], who))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_conversation_s_logits_do_not_depend_on_its_batch(bidirectional):
    torch.manual_seed(0)
    model = Recurrent(5, 4, RecurrentSettings(hidden=8, layers=2), bidirectional).eval()
    short, long = torch.randn(3, 5), torch.randn(9, 5)
    batch = Recurrent.collate([(short, [0, UNSCORED, 1]), (long, (torch.arange(9) % 4).tolist())])
    batch["heard"][0, 3:] = 50.0  # padding is not heard, whatever stands there
    with torch.no_grad():
        alone = model.logits(short.unsqueeze(0), torch.tensor([3]))
        torch.testing.assert_close(model.logits(batch["heard"], batch["turns"])[:1, :3], alone)
        out = model(**batch)
    assert out["truth"].tolist() == [0, 1, *(torch.arange(9) % 4).tolist()]  # not the padding, not the unlabelled
    torch.testing.assert_close(out["logits"][:2], alone[0, [0, 2]])
    torch.testing.assert_close(out["l_e"], torch.nn.functional.cross_entropy(out["logits"], out["truth"]))


# -- majority ----------------------------------------------------------------------------------------------


def test_majority_is_the_training_fold_s_prior(settings, toy):
    corpus, _ = toy
    table = majority(settings, corpus)
    said = [u.emotion for c in corpus.select(corpus.folds[0].train) for u in c.utterances if u.emotion]
    expected = np.array([said.count(e) + 1 for e in EMOTIONS]) / (len(said) + 4)
    np.testing.assert_allclose(table[P], np.tile(expected, (len(table), 1)))
    pd.testing.assert_frame_equal(table[list(rows_of(corpus))], rows_of(corpus))
    np.testing.assert_allclose(emotion_prior(corpus.select(corpus.folds[0].train), EMOTIONS), expected)


def test_last_true_repeats_the_speaker_s_last_label_and_no_later_one(settings, toy):
    corpus, _ = toy
    table, prior = last_true(settings, corpus), majority(settings, corpus)
    pd.testing.assert_frame_equal(table[list(rows_of(corpus))], rows_of(corpus))
    np.testing.assert_allclose(table[P].sum(axis=1), 1)
    last = {}
    for i, row in table.iterrows():
        who = row["conversation"], row["speaker"]
        if who in last:
            assert EMOTIONS[row[P].to_numpy(dtype=float).argmax()] == last[who]
        else:
            assert (row[P] == prior.loc[i, P]).all()
        if isinstance(row["emotion"], str):  # an unlabelled one leaves it as it is
            last[who] = row["emotion"]
    test = corpus.folds[0].test
    turned = changed(corpus, lambda turn, u: {"emotion": "neu" if turn >= 3 else u.emotion}, test)
    other = last_true(settings, turned)
    np.testing.assert_array_equal(other.loc[other["turn"] <= 3, P], table.loc[table["turn"] <= 3, P])
    assert (other[P] != table[P]).to_numpy().any()


def test_last_true_is_as_sure_as_training_speakers_stay_and_more_than_chance(settings):
    corpus, _ = make_toy(turns=(20, 20))
    for change, least in ((lambda turn: EMOTIONS[turn // 2 % 4], 0.25), (lambda turn: "neu", 0.9)):
        made = changed(corpus, lambda turn, u, change=change: {"emotion": change(turn)})
        sure = last_true(settings, made)[P].max(axis=1).to_numpy()[2:20]
        assert (sure == sure[0]).all() and least < sure[0] < least + 0.1


# -- temperature -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [0.5, 1.0, 3.0])
def test_the_temperature_of_answers_that_are_too_sure_by_a_known_factor(known):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(8000, 4))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (true.cumsum(1) > rng.random((8000, 1))).argmax(1)  # drawn from `true`: these answers would be honest
    sure = np.exp(known * logits) / np.exp(known * logits).sum(1, keepdims=True)
    table = pd.DataFrame(sure, columns=P).assign(emotion=np.array(EMOTIONS)[truth], conversation="c", speaker="s")
    still = np.full((4, 4), 0.25), np.full(4, 0.25)  # emotions that do not persist: the filter changes nothing
    # Its standard error on 8000 answers is some 1.5 %.
    found = fit_temperature(table, EMOTIONS, still)
    assert found == pytest.approx(known, rel=0.05)
    outside = table[:800].assign(emotion=None, p_neu=1.0, p_hap=0.0, p_sad=0.0, p_ang=0.0)
    assert fit_temperature(pd.concat([table, outside]), EMOTIONS, still) == pytest.approx(found)
