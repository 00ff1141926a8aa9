"""Reference classifiers: what pooled features alone tell of an emotion, and how the four of them rank."""

import numpy as np
from conftest import changed

from dpmkit.baselines import classifiers
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance
from dpmkit.corpora.dynamics import EMOTIONS, IEMOCAP_INERTIA, next_distribution


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
    assert set(table["utterances"]) == {15 * 27}
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
    silent = changed(corpus, lambda turn, u: {"emotion": None}, ids)
    assert set(classifiers(silent, fold, features)["utterances"]) == {27}


def test_iemocap_chain_is_a_chain():
    np.testing.assert_allclose(IEMOCAP_INERTIA.sum(axis=1), 1)
