"""The emotion-inertia filter: by hand, causal, a chain a speaker; and reference classifiers with it."""

import dataclasses

import numpy as np
import pytest

from dpmkit.baselines import METHODS, classifiers
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance
from dpmkit.corpora.dynamics import EMOTIONS, IEMOCAP_INERTIA, forward_filter, next_distribution

TRANSITION = np.array([[0.9, 0.1], [0.2, 0.8]])
PRIOR = np.array([0.6, 0.4])


def random_turns(seed, turns=12):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(2), size=turns), [str(s) for s in rng.choice(["a", "b"], size=turns)]


def test_by_hand():
    posteriors = np.array([[0.6, 0.4], [0.3, 0.7]])
    # Turn 1: prior * posterior / prior = posterior. Turn 2: propagated (.6*.9+.4*.2, .6*.1+.4*.8) = (.62, .38);
    # times (.3/.6, .7/.4) = (.31, .665), over their sum .975.
    expected = [[0.6, 0.4], [0.31 / 0.975, 0.665 / 0.975]]
    np.testing.assert_allclose(forward_filter(posteriors, ["a", "a"], TRANSITION, PRIOR), expected)


def test_a_chain_a_speaker():
    posteriors, speakers = random_turns(0)
    both = forward_filter(posteriors, speakers, TRANSITION, PRIOR)
    for s in "ab":
        mine = [i for i, who in enumerate(speakers) if who == s]
        alone = forward_filter(posteriors[mine], [s] * len(mine), TRANSITION, PRIOR)
        np.testing.assert_array_equal(both[mine], alone)


def test_causal():
    posteriors, speakers = random_turns(1)
    whole = forward_filter(posteriors, speakers, TRANSITION, PRIOR)
    for turn in range(len(speakers)):
        changed = posteriors.copy()
        changed[turn + 1:] = changed[turn + 1:, ::-1]
        np.testing.assert_array_equal(forward_filter(changed, speakers, TRANSITION, PRIOR)[:turn + 1],
                                      whole[:turn + 1])


def test_certain_and_contradictory_posteriors_stay_finite():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    out = forward_filter(certain, ["a", "a"], np.eye(2), PRIOR)  # the chain forbids what was heard
    assert np.isfinite(out).all() and np.allclose(out.sum(axis=1), 1)


@pytest.mark.parametrize("posteriors, speakers", [
    ([[0.5, 0.5]], ["a", "b"]), ([[0.9, 0.5]], ["a"]), ([[np.nan, 1.0]], ["a"]), ([[np.nan, np.nan]], ["a"]),
    ([[1.5, -0.5]], ["a"])])
def test_what_is_no_distribution_is_refused(posteriors, speakers):
    with pytest.raises(ValueError):
        forward_filter(np.array(posteriors), speakers, TRANSITION, PRIOR)


def simulated(conversations=60, turns=30, speaker_spread=1.0):
    """A corpus without audio: emotion means in 4 dimensions, a speaker's offset, noise; features by utterance."""
    rng = np.random.default_rng(0)
    made, features = [], {}
    for number in range(conversations):
        offsets, last, utterances = rng.normal(size=(2, 4)) * speaker_spread, [None, None], []
        for turn in range(turns):
            who = turn % 2
            last[who] = int(rng.choice(4, p=next_distribution(last[who], last[1 - who], 0.05)))
            name = f"c{number}u{turn}"
            features[name] = 1.6 * np.eye(4)[last[who]] + offsets[who] + rng.normal(size=4)
            # Every tenth turn lies outside the label set: heard, never scored.
            utterances.append(Utterance(name, f"c{number}p{who}", turn, turn + 1,
                                        None if turn % 10 == 9 else EMOTIONS[last[who]], Clip("none")))
        made.append(Conversation(f"c{number}", "s", tuple(utterances)))
    ids = [c.id for c in made]
    fold = Fold(tuple(ids[:30]), tuple(ids[30:45]), tuple(ids[45:]))
    return Corpus("simulated", tuple(made), EMOTIONS, (fold,), (), "key"), fold, features


def test_reference_classifiers_rank_as_they_must():
    corpus, fold, features = simulated()
    table = classifiers(corpus, fold, features).set_index("method")
    assert tuple(table.index) == METHODS and set(table["utterances"]) == {15 * 27}
    wa = table["WA"]
    assert wa["single utterance"] < wa["ORACLE speaker offset"] < wa["ORACLE speaker offset + filter"]
    assert wa["single utterance"] < wa["single utterance + filter"] < wa["ORACLE speaker offset + filter"]


def test_reference_classifiers_read_only_the_split_asked_for():
    corpus, fold, features = simulated()
    spoilt = {**features, **{u.id: np.full(4, 1e6) for c in corpus.select(fold.test) for u in c.utterances}}
    assert classifiers(corpus, fold, features).equals(classifiers(corpus, fold, spoilt))
    assert not classifiers(corpus, fold, features, "test").equals(classifiers(corpus, fold, spoilt, "test"))


def spoilt(features, corpus, ids, turn):
    """Other features, far off, for the utterance at this turn of these conversations."""
    return {**features, **{c.utterances[turn].id: np.full(4, 1e6) for c in corpus.select(ids)}}


def test_unlabelled_utterances_are_evidence_and_are_not_scored():
    corpus, fold, features = simulated()
    table = classifiers(corpus, fold, features)
    last = classifiers(corpus, fold, spoilt(features, corpus, fold.validation, 29))
    assert table.equals(last)  # nothing follows them, and nothing is fitted on them: no scaler, no offset
    early = classifiers(corpus, fold, spoilt(features, corpus, fold.validation, 9))
    assert (table["WA"] != early["WA"]).tolist() == [False, True, False, True]  # under both filters


def test_nothing_but_an_oracle_s_offset_is_fitted_on_the_scored_split():
    corpus, fold, features = simulated()
    table = classifiers(corpus, fold, features)
    one = classifiers(corpus, fold, spoilt(features, corpus, fold.validation[:1], 28))  # the last labelled one
    assert (np.abs(table["WA"] - one["WA"]) * 15 * 27 <= 1 + 1e-9)[:2].all()


def test_an_oracle_does_without_a_label_of_a_speaker():
    corpus, fold, features = simulated()
    ids = set(fold.validation[1:])
    silent = dataclasses.replace(corpus, conversations=tuple(
        dataclasses.replace(c, utterances=tuple(dataclasses.replace(u, emotion=None) for u in c.utterances))
        if c.id in ids else c for c in corpus.conversations))
    assert set(classifiers(silent, fold, features)["utterances"]) == {27}


def test_iemocap_chain_is_a_chain():
    np.testing.assert_allclose(IEMOCAP_INERTIA.sum(axis=1), 1)
