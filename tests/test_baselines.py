"""The classifier learns and forgets nothing; the filter is causal, knows speakers, and never sees a true label."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy
from transformers import Trainer

from dpmkit import baselines, finetune, metrics
from dpmkit.baselines import UNSCORED, classify, emotion_prior, fit_temperature, inertia, last_true, majority
from dpmkit.corpora.dynamics import transition_matrix
from dpmkit.settings import UserError

EMOTIONS = ("neu", "hap", "sad", "ang")
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


# -- classifier --------------------------------------------------------------------------------------------


@pytest.fixture
def learning(settings):
    for name, value in (("classifier.epochs", 8), ("classifier.lr", 1e-2), ("memory.prefix", 4)):
        settings = settings.replace(name, value)
    return settings


def test_the_classifier_learns_and_answers_every_utterance(learning, toy, tmp_path, monkeypatch):
    corpus, codes = toy
    table = classify(learning, corpus, codes)
    pd.testing.assert_frame_equal(table[list(rows_of(corpus))], rows_of(corpus))
    np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-5)
    assert metrics.wa(table, EMOTIONS) > 55  # chance is 25; 19 answers of uniform emotions
    again = classify(learning.replace("home", str(tmp_path / "again")), corpus, codes)
    pd.testing.assert_frame_equal(table, again, check_exact=True)  # one seed, one classifier
    monkeypatch.setattr(finetune, "fit", None)  # trained once
    pd.testing.assert_frame_equal(table, classify(learning, corpus, codes), check_exact=True)
    assert set(classify(learning, corpus, codes, "validation")["conversation"]) <= set(corpus.folds[0].validation)


def test_the_classifier_hears_no_label_and_nothing_later(learning, toy):
    corpus, codes = toy
    table = classify(learning, corpus, codes)
    test = corpus.folds[0].test
    turned = dataclasses.replace(corpus, conversations=tuple(
        c if c.id not in test else dataclasses.replace(c, utterances=tuple(
            dataclasses.replace(u, emotion=u.emotion and "neu") for u in c.utterances))
        for c in corpus.conversations))
    np.testing.assert_array_equal(classify(learning, turned, codes)[P], table[P])
    later = {u.id: 15 - codes.codes[u.id] for c in corpus.select(test) for u in c.utterances[3:]}
    other = classify(learning, corpus, dataclasses.replace(codes, codes={**codes.codes, **later}))
    early = table["turn"] < 3
    np.testing.assert_allclose(other[early][P], table[early][P], atol=1e-5)
    assert np.abs(other[~early][P].to_numpy() - table[~early][P].to_numpy()).max() > 1e-2


def test_a_classifier_s_row_does_not_depend_on_its_neighbours(learning):
    torch.manual_seed(0)
    model = baselines.Classifier(16, 4, learning.backbone).eval()
    row, longer = torch.randint(0, 16, (1, 5)), torch.randint(0, 16, (1, 40))
    padded = torch.cat([torch.cat([row, torch.full((1, 35), model.padding)], 1), longer])
    with torch.no_grad():
        alone = model(row, torch.tensor([0]))["logits"]
        torch.testing.assert_close(model(padded, torch.tensor([0, 1]))["logits"][:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", [0, 4, 200])
def test_what_the_classifier_hears(prefix):
    # n_r codes before the utterance, the separator (16), the utterance; cut from the front where it is too long
    corpus, codes = make_toy(turns=(12,), seed=4)
    conversation = corpus.conversations[0]
    rows, = baselines._Windows([conversation], codes.codes, EMOTIONS, prefix, 16, 64).items
    past, expected = [], []
    for u in conversation.utterances:
        said = codes.codes[u.id].tolist()
        label = UNSCORED if u.emotion is None else EMOTIONS.index(u.emotion)
        expected.append(([*past[max(0, len(past) - prefix):], 16, *said][-64:], label))
        past += said  # turns outside the label set are heard, too
    assert [(row.tolist(), label) for row, label in rows] == expected


def test_a_conversation_without_a_label_is_left_out_of_training(learning, toy):
    # in batches of one it would be a batch of nothing
    corpus, codes = toy
    fold = corpus.folds[0]
    silent = {fold.train[1], fold.validation[1], fold.test[1]}
    corpus = dataclasses.replace(corpus, conversations=tuple(
        c if c.id not in silent else dataclasses.replace(c, utterances=tuple(
            dataclasses.replace(u, emotion=None) for u in c.utterances)) for c in corpus.conversations))
    table = classify(learning.replace("finetune.batch", 1), corpus, codes)
    assert set(table["conversation"]) == set(fold.test)


def test_a_classifier_killed_and_started_again_ends_the_same(learning, toy, tmp_path):
    corpus, codes = toy
    whole = classify(learning.replace("home", str(tmp_path / "whole")), corpus, codes)
    plain, steps = Trainer.training_step, []

    def step(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "training_step", step)
        classify(learning, corpus, codes)
    torch.manual_seed(99)
    pd.testing.assert_frame_equal(classify(learning, corpus, codes), whole, check_exact=True)


def test_a_full_disk_while_the_classifier_is_kept(learning, toy, small_disk):
    with small_disk(), pytest.raises(UserError, match=r"cannot write .*free some disk"):
        classify(learning, *toy)
    assert metrics.wa(classify(learning, *toy), EMOTIONS) > 55


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
    turned = dataclasses.replace(corpus, conversations=tuple(
        c if c.id not in test else dataclasses.replace(c, utterances=tuple(
            dataclasses.replace(u, emotion="neu" if turn >= 3 else u.emotion)
            for turn, u in enumerate(c.utterances))) for c in corpus.conversations))
    other = last_true(settings, turned)
    np.testing.assert_array_equal(other.loc[other["turn"] <= 3, P], table.loc[table["turn"] <= 3, P])
    assert (other[P] != table[P]).to_numpy().any()


def test_last_true_is_as_sure_as_training_speakers_stay_and_more_than_chance(settings):
    corpus, _ = make_toy(turns=(20, 20))
    for change, least in ((lambda turn: EMOTIONS[turn // 2 % 4], 0.25), (lambda turn: "neu", 0.9)):
        made = dataclasses.replace(corpus, conversations=tuple(dataclasses.replace(c, utterances=tuple(
            dataclasses.replace(u, emotion=change(turn)) for turn, u in enumerate(c.utterances)))
            for c in corpus.conversations))
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
    assert fit_temperature(table, EMOTIONS, *still) == pytest.approx(known, rel=0.05)
    outside = pd.concat([table, table.assign(emotion=None, p_neu=1.0, p_hap=0.0, p_sad=0.0, p_ang=0.0)])
    assert fit_temperature(outside, EMOTIONS, *still) == pytest.approx(fit_temperature(table, EMOTIONS, *still))


# -- inertia -----------------------------------------------------------------------------------------------


@pytest.fixture
def filtered(settings, toy):
    """(filter, table): a function of a table of answers on the test split, and such a table."""
    corpus, _ = toy
    validation = guesses(rows_of(corpus, "validation"), 1)
    return lambda table: inertia(table, validation, settings, corpus), guesses(rows_of(corpus), 2)


def test_the_filter_by_hand(filtered, settings, toy):
    (corpus, _), (run, table) = toy, filtered
    train = corpus.select(corpus.folds[0].train)
    transition, prior = transition_matrix(train, EMOTIONS), emotion_prior(train, EMOTIONS)
    temperature = fit_temperature(guesses(rows_of(corpus, "validation"), 1), EMOTIONS, transition, prior)
    out = run(table)
    beliefs = {}
    for (_, row), (_, got) in zip(table.iterrows(), out.iterrows(), strict=True):
        who = row["conversation"], row["speaker"]  # a chain a speaker in each conversation
        belief = transition.T @ beliefs[who] if who in beliefs else prior
        p = row[P].to_numpy(dtype=float) ** (1 / temperature)
        belief = belief * (p / p.sum()) / prior  # outside the label set, too: it is not told which turns are
        beliefs[who] = belief / belief.sum()
        np.testing.assert_allclose(got[P].to_numpy(dtype=float), beliefs[who], atol=1e-8)


def test_the_filter_is_causal_and_told_who_speaks(filtered):
    run, table = filtered
    out = run(table)
    now = 4
    other = table.copy()
    later = other["turn"] >= now
    other.loc[later, P] = other.loc[later, P].to_numpy()[:, ::-1]
    got = run(other)
    pd.testing.assert_frame_equal(got[~later], out[~later])
    assert not np.allclose(got.loc[later, P], out.loc[later, P], atol=1e-2)
    alone = run(table.assign(speaker="one"))  # one speaker for all: other beliefs
    assert not np.allclose(alone[P], out[P], atol=1e-2)
    pd.testing.assert_frame_equal(run(table.assign(speaker=table["speaker"].map("{}!".format)))[P], out[P])


def test_the_filter_sees_no_true_label(filtered):
    run, table = filtered
    labels = table["emotion"].map(dict(zip(EMOTIONS, EMOTIONS[1:] + EMOTIONS[:1], strict=True)))
    labels = labels.where(table["emotion"].notna(), None)  # those outside the label set stay outside
    assert (labels.dropna() != table["emotion"].dropna()).all() and labels.isna().any()
    pd.testing.assert_frame_equal(run(table.assign(emotion=labels))[P], run(table)[P])
    pd.testing.assert_frame_equal(run(table.assign(emotion=None))[P], run(table)[P])  # nor whether there is one
    pd.testing.assert_frame_equal(run(table)["emotion"].to_frame(), table["emotion"].to_frame())


def test_the_filter_does_not_depend_on_the_other_conversations_of_its_table(filtered):
    run, table = filtered
    out = run(table)
    for name, rows in table.groupby("conversation"):
        pd.testing.assert_frame_equal(run(rows)[P], out.loc[out["conversation"] == name, P])
    assert run(table.iloc[0:0]).empty


@pytest.fixture
def alike(settings):
    """(corpus, validation, test): emotions persist, and a speaker's answers all lean the same way, so that what is
    honest of one utterance adds up to answers that are too sure."""
    corpus, _ = make_toy(turns=(20,) * 12)
    rng = np.random.default_rng(0)

    def persisting(conversation):
        last = {}
        for u in conversation.utterances:
            if u.speaker not in last or rng.random() < 0.15:
                last[u.speaker] = EMOTIONS[rng.integers(4)]
            yield dataclasses.replace(u, emotion=u.emotion and last[u.speaker])

    corpus = dataclasses.replace(corpus, conversations=tuple(
        dataclasses.replace(c, utterances=tuple(persisting(c))) for c in corpus.conversations))
    tables = []
    for split in ("validation", "test"):
        table = guesses(rows_of(corpus, split), 1, skill=1.5)
        who = table.groupby(["conversation", "speaker"]).ngroup()
        leaning = table[P].to_numpy() * np.exp(1.5 * rng.normal(size=(who.max() + 1, 4)))[who]
        table[P] = leaning / leaning.sum(1, keepdims=True)
        tables.append(table)
    return corpus, *tables


def test_the_temperature_is_the_best_of_the_filtered_answers(settings, alike, monkeypatch):
    corpus, validation, test = alike
    still = np.full((4, 4), 0.25), np.full(4, 0.25)
    before = fit_temperature(validation, EMOTIONS, *still)  # of the answers as they are, without the filter
    fitted = {name: metrics.nll(inertia(table, validation, settings, corpus), EMOTIONS)
              for name, table in (("validation", validation), ("test", test))}

    def at(temperature, table):
        monkeypatch.setattr(baselines, "fit_temperature", lambda *_: temperature)
        return metrics.nll(inertia(table, validation, settings, corpus), EMOTIONS)

    assert fitted["validation"] <= min(at(2.0 ** t, validation) for t in np.linspace(-3, 5, 33)) + 1e-4
    assert fitted["validation"] < at(before, validation) - 0.05
    assert fitted["test"] < at(before, test) - 0.05


def test_the_filter_helps_where_emotions_last(settings):
    # Chains of one emotion a speaker: every speaker says ten things in one emotion, answers are weak.
    corpus, _ = make_toy(turns=(20,) * 12)
    kept = {}
    rng = np.random.default_rng(0)
    corpus = dataclasses.replace(corpus, conversations=tuple(
        dataclasses.replace(c, utterances=tuple(
            dataclasses.replace(u, emotion=kept.setdefault((c.id, u.speaker), EMOTIONS[rng.integers(4)]))
            for u in c.utterances)) for c in corpus.conversations))
    validation, table = (guesses(rows_of(corpus, split), 5, skill=0.8) for split in ("validation", "test"))
    assert metrics.wa(inertia(table, validation, settings, corpus), EMOTIONS) > metrics.wa(table, EMOTIONS) + 10
