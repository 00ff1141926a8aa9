"""The forward filter over emotions: by hand, causal, without true labels, at its best temperature."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from conftest import make_toy
from test_baselines import P, guesses, rows_of

from dpmkit import baselines, metrics
from dpmkit.baselines import fit_temperature, inertia
from dpmkit.corpora.dynamics import EMOTIONS, emotion_prior, forward_filter, transition_matrix

TRANSITION = np.array([[0.9, 0.1], [0.2, 0.8]])
PRIOR = np.array([0.6, 0.4])


@pytest.fixture
def toy():
    return make_toy(turns=(1, 5, 6, 12), seed=4)


def test_the_forward_filter_by_hand():
    posteriors = np.array([[0.6, 0.4], [0.3, 0.7]])
    # Turn 1: prior * posterior / prior = posterior. Turn 2: propagated (.6*.9+.4*.2, .6*.1+.4*.8) = (.62, .38);
    # times (.3/.6, .7/.4) = (.31, .665), over their sum .975.
    expected = [[0.6, 0.4], [0.31 / 0.975, 0.665 / 0.975]]
    np.testing.assert_allclose(forward_filter(posteriors, ["a", "a"], TRANSITION, PRIOR), expected)


def test_certain_and_contradictory_posteriors_stay_finite():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    out = forward_filter(certain, ["a", "a"], np.eye(2), PRIOR)  # the chain forbids what was heard
    assert np.isfinite(out).all() and np.allclose(out.sum(axis=1), 1)


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
    temperature = fit_temperature(guesses(rows_of(corpus, "validation"), 1), EMOTIONS, (transition, prior))
    out = run(table)
    beliefs = {}
    for (_, row), (_, got) in zip(table.iterrows(), out.iterrows(), strict=True):
        who = row["conversation"], row["speaker"]  # a chain a speaker in each conversation
        belief = transition.T @ beliefs[who] if who in beliefs else prior
        p = row[P].to_numpy(dtype=float) ** (1 / temperature)
        belief = belief * (p / p.sum()) / prior  # outside the label set, too: it does not know which turns are
        beliefs[who] = belief / belief.sum()
        np.testing.assert_allclose(got[P].to_numpy(dtype=float), beliefs[who], atol=1e-8)


def test_the_filter_is_causal_and_knows_who_speaks(filtered):
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
    before = fit_temperature(validation, EMOTIONS, still)  # of the answers as they are, without the filter
    fitted = {name: metrics.nll(inertia(table, validation, settings, corpus), EMOTIONS)
              for name, table in (("validation", validation), ("test", test))}

    def at(temperature, table):
        monkeypatch.setattr(baselines, "fit_temperature", lambda *_: temperature)
        return metrics.nll(inertia(table, validation, settings, corpus), EMOTIONS)

    assert fitted["validation"] <= min(at(2.0 ** t, validation) for t in np.linspace(-3, 5, 33)) + 1e-4
    assert fitted["validation"] < at(before, validation) - 0.05
    assert fitted["test"] < at(before, test) - 0.05
