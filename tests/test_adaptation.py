"""What others remember of a speaker: each rule by hand, its control, and that nothing leaks into it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from conftest import changed, make_toy
from test_speakers import EMOTIONS, P, model

from dpmkit import adaptation, protocols, speakers
from dpmkit.corpora.dynamics import forward_filter
from dpmkit.finetune import Finetuned


def test_only_what_was_taken_for_neutral_moves_the_offset():
    m = dataclasses.replace(model(), means=np.array([[0.0, 0], [6, 0]]), within=np.eye(2), between=np.eye(2))
    answer, state = adaptation.normalised(m, 4.0, None, np.array([1.0, 2.0]))
    assert answer.argmax() == 0 and state[1] == 1
    np.testing.assert_allclose(state[0], [1, 2])
    _, same = adaptation.normalised(m, 4.0, state, np.array([6.0, 0.0]))
    np.testing.assert_allclose(same[0], state[0])
    assert same[1] == 1
    got, _ = adaptation.normalised(m, 4.0, state, np.array([3.0, 1.0]))  # less 1 / (1 + 4) of (1, 2)
    np.testing.assert_allclose(got, m.posterior(np.array([[2.8, 0.6]]), 2 * np.eye(2))[0])
    _, other = adaptation.normalised(m, 4.0, None, np.array([6.5, 0.0]), neutral=1)
    np.testing.assert_allclose(other[0], [0.5, 0])


def test_a_step_of_em_moves_each_mean_by_how_sure_the_answer_is():
    m = model()
    z = np.array([0.5, -1.0])
    p, (means, weights) = adaptation.emo_tta(m, 4.0, None, z)
    np.testing.assert_allclose(p, m.posterior(z[None], m.within + m.between)[0])
    np.testing.assert_allclose(weights, 4 + p)
    for e in range(2):  # the weighted mean of the start, which weighs 4, and of the utterance
        np.testing.assert_allclose(means[e], (4 * m.means[e] + p[e] * z) / (4 + p[e]))
    moved = dataclasses.replace(m, means=means)
    again, _ = adaptation.emo_tta(m, 4.0, (means, weights), z)
    np.testing.assert_allclose(again, moved.posterior(z[None], m.within + m.between)[0])


def test_a_rule_starts_anew_in_each_conversation_and_its_control_takes_a_strangers_state():
    m, rng = model(), np.random.default_rng(0)
    table = pd.DataFrame([(c, s) for c in ("c1", "c2") for s in (f"{c}a", f"{c}b") * 3],
                         columns=["conversation", "speaker"]).assign(emotion="x")
    z = rng.normal(size=(12, 2))
    own, other = (adaptation.remembered(adaptation.emo_tta, m, 2.0, table, z, swapped) for swapped in (False, True))
    trails = {}
    for who in table["speaker"].unique():
        trails[who] = [None]
        for i in np.flatnonzero(table["speaker"] == who):
            answer, state = adaptation.emo_tta(m, 2.0, trails[who][-1], z[i])
            np.testing.assert_allclose(own[i], answer)
            trails[who].append(state)
    stranger = {"c1a": "c2a", "c1b": "c2b", "c2a": "c1a", "c2b": "c1b"}
    for i, who in enumerate(table["speaker"]):
        count = int((table["speaker"][:i] == who).sum())
        expected, _ = adaptation.emo_tta(m, 2.0, trails[stranger[who]][count], z[i])
        np.testing.assert_allclose(other[i], expected)


@pytest.fixture
def prepared(sharp, settings, tmp_path):
    settings = settings.replace("speaker.dimensions", 3)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned = Finetuned(sharp, "sharp", tmp_path, [], 0)
    m, _ = speakers.fitted(settings, corpus, codes, tuned)

    def answers(corpus=corpus, codes=codes.codes, key="sharp"):
        spoken = dataclasses.replace(run[2], codes=codes)
        return adaptation.predict(settings, corpus, spoken, dataclasses.replace(tuned, key=key), m)

    run = settings, corpus, codes, tuned, m
    return run, answers


def test_every_rule_answers_with_a_distribution_and_what_was_tried_is_told(prepared):
    (_, corpus, *_), answers = prepared
    tables, tried = answers()
    assert set(tables) == set(adaptation.HEARS)
    for table in tables.values():
        assert list(table["utterance"]) == [u.id for c in corpus.select(corpus.folds[0].test) for u in c.utterances]
        np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-6)
    assert [row["strength"] for row in tried] == 2 * list(adaptation.STRENGTHS)
    for name in ("normalised + filter", "emo-tta + filter", "speaker-lstm"):
        assert np.abs(tables[name][P] - tables[f"{name}-swapped"][P]).to_numpy().max() > 1e-4


def test_the_strength_is_that_of_the_lowest_loss_on_validation(prepared):
    (settings, corpus, codes, tuned, m), answers = prepared
    tables, tried = answers()
    table, states, _ = speakers.states(settings, corpus, codes, tuned, "test")
    for name, rule in (("normalised + filter", adaptation.normalised), ("emo-tta + filter", adaptation.emo_tta)):
        _, best = min((row["nll"], row["strength"]) for row in tried if row["method"] == name)
        alone = adaptation.remembered(rule, m, best, table, m.project(states))
        expected = forward_filter(alone, list(zip(table["conversation"], table["speaker"], strict=True)),
                                  m.transition, m.prior)
        np.testing.assert_allclose(tables[name][P], expected, atol=1e-9)


def test_before_a_speaker_is_known_the_control_answers_as_the_method(prepared):
    tables, _ = prepared[1]()
    first = tables["speaker-lstm"].groupby(["conversation", "speaker"]).cumcount() == 0
    for name in ("normalised + filter", "emo-tta + filter", "speaker-lstm"):
        one, other = tables[name].loc[:, P], tables[f"{name}-swapped"].loc[:, P]
        np.testing.assert_allclose(one[first], other[first], atol=1e-6)
        assert np.abs(one - other)[~first].to_numpy().max() > 1e-4


def test_later_utterances_and_true_labels_of_the_test_change_no_answer(prepared):
    (_, corpus, codes, *_), answers = prepared
    before, now, rng = answers()[0], 3, np.random.default_rng(0)
    test = corpus.select(corpus.folds[0].test)
    later = {u.id for c in test for u in c.utterances[now:]}
    after, _ = answers(codes={i: rng.integers(0, 16, 7) if i in later else c for i, c in codes.codes.items()},
                       key="other words")
    relabelled = changed(corpus, lambda turn, u: {"emotion": "neu"}, {c.id for c in test})
    other, _ = answers(relabelled, key="other labels")
    for name, table in before.items():
        early = table["turn"] < now
        np.testing.assert_allclose(table.loc[early, P], after[name].loc[early, P], atol=1e-6)
        assert np.abs(table[P] - after[name][P]).to_numpy().max() > 1e-4
        np.testing.assert_allclose(table[P], other[name][P], atol=1e-6)


def test_the_lstm_s_control_hears_a_stranger_and_then_the_target(prepared):
    """Other early utterances of a conversation move what it is given to, and of its own answers theirs alone."""
    (_, corpus, codes, *_), answers = prepared
    before, rng = answers()[0]["speaker-lstm-swapped"], np.random.default_rng(0)
    test = corpus.select(corpus.folds[0].test)
    donors = protocols.donors(protocols.rows(test), "conversation")
    c = test[0]
    ids = {u.id for u in c.utterances[:3]}
    said = {i: rng.integers(0, 16, 7) if i in ids else c for i, c in codes.codes.items()}
    after = answers(codes=said, key="other words")[0]
    moved = np.abs(before[P] - after["speaker-lstm-swapped"][P]).to_numpy().max(axis=1) > 1e-6
    own, given = before["conversation"] == c.id, before["conversation"].map(donors) == c.id
    assert not moved[(own & (before["turn"] >= 3)) | ~(own | given)].any() and moved[own].any()
    assert moved[given].any() == given.any()


def test_emotions_without_neutral_take_the_most_frequent_one(prepared):
    (settings, corpus, codes, tuned, m), _ = prepared
    renamed = changed(corpus, lambda turn, u: {"emotion": u.emotion and u.emotion.upper()})
    renamed = dataclasses.replace(renamed, emotions=tuple(e.upper() for e in EMOTIONS))
    tables, _ = adaptation.predict(settings, renamed, codes, tuned, m)
    assert np.isfinite(tables["normalised + filter"][[p.upper().replace("P_", "p_") for p in P]].to_numpy()).all()
