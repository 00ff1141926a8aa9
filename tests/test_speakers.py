"""The memory of speakers: its mathematics against brute force, and that nothing leaks into it."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import changed, make_toy
from scipy.stats import multivariate_normal

from dpmkit import protocols, speakers
from dpmkit.corpora.dynamics import forward_filter
from dpmkit.finetune import Finetuned
from dpmkit.speakers import NotFitted, OffsetModel, SpeakerMemory

EMOTIONS = ("neu", "hap", "sad", "ang")
P = [f"p_{e}" for e in EMOTIONS]
CHAIN = np.full((2, 2), 0.2) + 0.6 * np.eye(2)


def model(d=2, emotions=2, seed=0):
    rng = np.random.default_rng(seed)
    def covariance():
        a = rng.normal(size=(d, d))
        return a @ a.T + np.eye(d)
    return OffsetModel(np.zeros(d), np.ones(d), np.eye(d), rng.normal(size=(emotions, d)), covariance(),
                       covariance(), CHAIN, np.array([0.6, 0.4]))


def test_with_every_path_kept_it_is_the_exact_posterior():
    m, heard = model(), np.random.default_rng(1).normal(size=(5, 2))
    memory = SpeakerMemory(m, paths=10_000)
    got = np.array([memory.hear("a", h) for h in heard])
    for turn in range(1, 6):  # by brute force: every path of emotions, all utterances in one Gaussian
        covariance = np.kron(np.eye(turn), m.within) + np.kron(np.ones((turn, turn)), m.between)
        share = np.zeros(2)
        for path in itertools.product(range(2), repeat=turn):
            chain = m.prior[path[0]] * np.prod([CHAIN[a, b] for a, b in itertools.pairwise(path)])
            mean = np.concatenate([m.means[e] for e in path])
            share[path[-1]] += chain * multivariate_normal(mean, covariance).pdf(heard[:turn].ravel())
        np.testing.assert_allclose(got[turn - 1], share / share.sum(), atol=1e-9)


def test_of_known_earlier_emotions_it_is_the_exact_posterior_along_their_path():
    m, heard, truth = model(), np.random.default_rng(1).normal(size=(5, 2)), [1, 0, 0, 1, 1]
    memory = SpeakerMemory(m, paths=8)
    got = np.array([memory.hear("a", h, label) for h, label in zip(heard, truth, strict=True)])
    for turn in range(1, 6):
        covariance = np.kron(np.eye(turn), m.within) + np.kron(np.ones((turn, turn)), m.between)
        share = np.zeros(2)
        for last in range(2):
            mean = np.concatenate([m.means[e] for e in (*truth[:turn - 1], last)])
            chain = m.prior[last] if turn == 1 else CHAIN[truth[turn - 2], last]
            share[last] = chain * multivariate_normal(mean, covariance).pdf(heard[:turn].ravel())
        np.testing.assert_allclose(got[turn - 1], share / share.sum(), atol=1e-9)


def test_a_new_conversation_keeps_offsets_and_forgets_emotions():
    m = dataclasses.replace(model(), means=np.array([[-4.0, 0], [4.0, 0]]), within=0.1 * np.eye(2))
    memory = SpeakerMemory(m, 64)
    for _ in range(20):
        memory.hear("a", np.array([4.5, 2.0]))
    memory.begin()
    np.testing.assert_allclose(memory.offset("a")[0], [0.5, 2.0], atol=0.1)
    unsure = memory.offset("a")[0]  # between both emotions: only the chain could tell
    np.testing.assert_allclose(memory.hear("a", unsure), m.prior, atol=0.05)


def test_few_paths_come_close_and_bound_what_is_kept():
    m, heard = model(), np.random.default_rng(2).normal(size=(30, 2))
    kept = {paths: SpeakerMemory(m, paths) for paths in (1, 64, 4096)}
    one, few, many = (np.array([memory.hear("a", h) for h in heard]) for memory in kept.values())
    assert np.abs(few - many).mean() < 0.03 < 0.06 < np.abs(one - many).mean()
    assert [len(memory.speakers["a"].offsets) for memory in kept.values()] == [1, 64, 4096]


def test_the_offset_is_learned_and_each_speaker_has_an_own_one():
    m = dataclasses.replace(model(), means=np.array([[-4.0, 0], [4.0, 0]]), within=0.1 * np.eye(2))
    memory, rng = SpeakerMemory(m, 64), np.random.default_rng(3)
    for _ in range(40):
        memory.hear("a", m.means[rng.integers(2)] + [0.5, 2.0] + 0.3 * rng.normal(size=2))
    mean, covariance = memory.offset("a")
    np.testing.assert_allclose(mean, [0.5, 2.0], atol=0.15)
    assert np.trace(covariance) < 0.05 * np.trace(m.between)
    np.testing.assert_allclose(memory.offset("b")[0], 0)
    np.testing.assert_allclose(memory.offset("b")[1], m.between)


def test_the_fit_finds_what_the_data_was_made_of():
    rng = np.random.default_rng(4)
    means, between, within = np.array([[0, 0], [3, 1.0]]), np.diag([4.0, 0.5]), np.diag([0.5, 1.5])
    who = np.repeat(np.arange(300), 20)
    emotion = rng.integers(0, 2, len(who))
    offset = rng.multivariate_normal([0, 0], between, 300)
    states = means[emotion] + offset[who] + rng.multivariate_normal([0, 0], within, len(who))
    m = OffsetModel.fit(states, emotion, who.astype(str), 2, CHAIN, np.array([0.5, 0.5]))
    turn = m.basis / m.scale[:, None]
    for got, true in ((m.between, between), (m.within, within)):
        np.testing.assert_allclose(got, turn.T @ true @ turn, atol=0.12)
    np.testing.assert_allclose(m.means[1] - m.means[0], (means[1] - means[0]) @ turn, atol=0.1)


@pytest.fixture
def prepared(sharp, settings, tmp_path):
    settings = settings.replace("speaker.dimensions", 3)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    return settings, corpus, codes, Finetuned(sharp, "sharp", tmp_path, [], 0)


def heard(prepared, corpus=None, codes=None, key="sharp"):
    settings, own, said, tuned = prepared
    tuned = dataclasses.replace(tuned, key=key)
    m, tried = speakers.fitted(settings, own, said, dataclasses.replace(tuned, key="sharp"))
    assert set(tried["power"]) == set(settings.speaker.powers)
    assert m.power == min(zip(tried["nll"], tried["power"], strict=True))[1]
    return speakers.predict(settings, corpus or own, codes or said, tuned, m)


def test_every_method_answers_every_utterance_with_a_distribution(prepared):
    tables = heard(prepared)
    assert set(tables) == set(speakers.HEARS)
    for table in tables.values():
        np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-9)
    assert np.abs(tables["speaker-memory"][P] - tables["speaker-memory-swapped"][P]).to_numpy().max() > 1e-3


def test_later_utterances_and_true_labels_change_no_answer(prepared):
    _, corpus, codes, _ = prepared
    before, now = heard(prepared), 3
    rng = np.random.default_rng(0)
    test = corpus.select(corpus.folds[0].test)
    later = {u.id for c in test for u in c.utterances[now:]}
    said = {i: rng.integers(0, 16, 7) if i in later else c for i, c in codes.codes.items()}
    after = heard(prepared, codes=dataclasses.replace(codes, codes=said), key="other words")
    relabelled = changed(corpus, lambda turn, u: {"emotion": "neu"}, {c.id for c in test})
    other = heard(prepared, corpus=relabelled, key="other labels")
    kept = {"speaker-memory-kept", "speaker-memory-kept-swapped"}  # hear earlier conversations: the test below
    for name in set(before) - {"speaker-oracle"}:  # this bound is made of labels
        early = before[name]["turn"] < now
        if name not in kept:
            np.testing.assert_allclose(before[name].loc[early, P], after[name].loc[early, P], atol=1e-9)
        if name != "speaker-told":
            np.testing.assert_allclose(before[name][P], other[name][P], atol=1e-9)
    first = before["speaker-told"].groupby(["conversation", "speaker"]).cumcount() == 0
    moved = np.abs(before["speaker-told"][P] - other["speaker-told"][P]).to_numpy().max(axis=1) > 1e-9
    assert not moved[first].any() and moved[~first].any()  # knows what was said before, not what is asked
    assert np.abs(before["speaker-memory"][P] - after["speaker-memory"][P]).to_numpy().max() > 1e-3


def test_what_is_kept_hears_earlier_conversations_and_no_later_one(prepared):
    _, corpus, codes, _ = prepared
    before, rng = heard(prepared)["speaker-memory-kept"], np.random.default_rng(0)
    test = corpus.select(corpus.folds[0].test)
    order = list(dict.fromkeys(before["conversation"]))
    assert len(order) > 1
    for other in (order[0], order[-1]):
        ids = {u.id for c in test if c.id == other for u in c.utterances}
        said = {i: rng.integers(0, 16, 7) if i in ids else c for i, c in codes.codes.items()}
        after = heard(prepared, codes=dataclasses.replace(codes, codes=said), key=other)["speaker-memory-kept"]
        moved = np.abs(before[P] - after[P]).to_numpy().max(axis=1) > 1e-9
        later = (before["conversation"] != other).to_numpy()
        assert moved[~later].any() and moved[later].any() == (other == order[0])


def test_a_stranger_is_another_speaker_whom_one_never_talks_with_where_there_is_one():
    rows = [("c1", "a"), ("c1", "b"), ("c2", "b"), ("c2", "c"), ("c2", "c"), ("c3", "a"), ("c3", "d")]
    got = protocols.donors(pd.DataFrame(rows, columns=["conversation", "speaker"]), "speaker")
    assert got == {"a": "c", "b": "d", "c": "a", "d": "b"}
    two = protocols.donors(pd.DataFrame([("c1", "a"), ("c1", "b")], columns=["conversation", "speaker"]), "speaker")
    assert two == {"a": "b", "b": "a"}


def test_a_conversation_alone_gives_the_same_answers(prepared):
    settings, corpus, codes, tuned = prepared
    m, _ = speakers.fitted(settings, corpus, codes, tuned)
    test = corpus.select(corpus.folds[0].test)
    alone = speakers.remembered(settings, test[:1], codes.codes, EMOTIONS, tuned, m)
    together = heard(prepared)["speaker-memory"]
    pd.testing.assert_frame_equal(alone[P], together[together["conversation"] == test[0].id][P], atol=1e-9)


def test_one_training_speaker_and_an_emotion_that_nobody_has_are_no_end(prepared):
    settings, corpus, codes, tuned = prepared
    few = changed(corpus, lambda turn, u: {
        "speaker": "one", "emotion": None if u.emotion == "ang" else u.emotion})
    m, _ = speakers.fitted(settings, few, codes, tuned)
    for table in speakers.predict(settings, few, codes, tuned, m).values():
        assert np.isfinite(table[P].to_numpy()).all()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_label_per_speaker_allows_no_fit_and_says_so(prepared, split):
    settings, corpus, codes, tuned = prepared
    once, ids = set(), getattr(corpus.folds[0], split)
    few = changed(corpus, lambda turn, u: {
        "emotion": None if u.speaker in once or once.add(u.speaker) else u.emotion}, ids)
    with pytest.raises(NotFitted, match="too few speakers of the training or validation"):
        speakers.fitted(settings, few, codes, tuned)


def test_swapped_controls_hang_on_their_donor_s_history_and_not_on_their_own(prepared):
    settings, corpus, codes, tuned = prepared
    m, _ = speakers.fitted(settings, corpus, codes, tuned)
    m = dataclasses.replace(m, transition=np.tile(m.prior, (4, 1)))  # the filter passes nothing on: offsets do
    test, rng = corpus.select(corpus.folds[0].test), np.random.default_rng(0)
    donors = protocols.donors(protocols.rows(test), "conversation")

    def run(key, ids=()):
        said = {i: rng.integers(0, 16, 7) if i in ids else c for i, c in codes.codes.items()}
        return speakers.predict(settings, corpus, dataclasses.replace(codes, codes=said),
                                dataclasses.replace(tuned, key=key), m)

    before = run("as it is")
    table = before["speaker-memory"]
    for c in test:
        after = run(c.id, {u.id for u in c.utterances[:3]})
        moved = {name: np.abs(t[P] - after[name][P]).to_numpy().max(axis=1) > 1e-9 for name, t in before.items()}
        own, late = (table["conversation"] == c.id).to_numpy(), (table["turn"] >= 3).to_numpy()
        given = table["conversation"].map(lambda name, c=c: donors[name] == c.id).to_numpy()
        assert moved["speaker-memory"][own & late].any() and not moved["speaker-memory"][~own].any()
        swapped = moved["speaker-memory-swapped"]
        assert not swapped[(own & late) | ~(own | given)].any() and swapped[given].any() == given.any()
        after = run(f"{c.id}, late", {u.id for u in c.utterances[3:]})["speaker-memory-swapped"]
        swapped = np.abs(before["speaker-memory-swapped"][P] - after[P]).to_numpy().max(axis=1) > 1e-9
        assert not swapped[given & ~late].any() and swapped[given & late].any() == given.any()  # as many utterances
    one = test[0].utterances[0].speaker  # whose stranger is the other speaker of the session
    after = run("one speaker", {u.id for u in test[0].utterances if u.speaker == one})
    name = "speaker-memory-kept-swapped"
    moved = np.abs(before[name][P] - after[name][P]).to_numpy().max(axis=1) > 1e-9
    later, own = (table["conversation"] != test[0].id).to_numpy(), (table["speaker"] == one).to_numpy()
    assert not moved[later & own].any() and moved[later & ~own].any()


def test_a_power_is_tried_once_and_with_the_noise_of_the_other_speakers(prepared, monkeypatch):
    settings, corpus, codes, tuned = prepared
    m, tried = speakers.fitted(settings, corpus, codes, tuned)
    monkeypatch.setattr(speakers, "remember", None)
    again, kept = speakers.fitted(settings, corpus, codes, tuned)
    assert again.power == m.power and np.array_equal(again.within, m.within) and kept.equals(tried)
    table, states, truth = speakers.states(settings, corpus, codes, tuned, "validation")
    who, said = table["speaker"].to_numpy(), table["emotion"].notna().to_numpy()
    assert truth.tolist() == [EMOTIONS.index(e) if e in EMOTIONS else -1 for e in table["emotion"]]
    for row in tried.to_dict("records"):
        losses = []
        for speaker in np.unique(who):
            others = said & (who != speaker)
            noisy = m.with_noise_of(states[others], truth[others], who[others])
            noisy = dataclasses.replace(noisy, power=row["power"])
            for conversation in table["conversation"].unique():
                memory = SpeakerMemory(noisy, settings.speaker.paths)
                for i in np.flatnonzero((who == speaker) & (table["conversation"] == conversation)):
                    answer = memory.hear(speaker, noisy.project(states[i:i + 1])[0])
                    losses += [-np.log(answer[truth[i]] + 1e-12)] if said[i] else []
        assert row["nll"] == pytest.approx(np.mean(losses), abs=1e-9)


def test_the_kept_memory_and_the_oracle_by_hand(prepared):
    settings, corpus, codes, tuned = prepared
    m, _ = speakers.fitted(settings, corpus, codes, tuned)
    got = speakers.predict(settings, corpus, codes, tuned, m)
    table, states, _ = speakers.states(settings, corpus, codes, tuned, "test")
    z, who, said = m.project(states), table["speaker"].to_numpy(), table["emotion"].notna().to_numpy()
    beyond = {i: z[i] - m.means[EMOTIONS.index(table["emotion"][i])] for i in np.flatnonzero(said)}
    offset = {s: np.mean([b for i, b in beyond.items() if who[i] == s], axis=0) for s in who}
    memory = SpeakerMemory(m, settings.speaker.paths)
    for rows in table.groupby("conversation", sort=False).indices.values():
        memory.begin()  # offsets stay, emotions begin anew
        kept = [memory.hear(who[i], z[i]) for i in rows]
        np.testing.assert_allclose(got["speaker-memory-kept"].loc[rows, P], kept, atol=1e-9)
        near = np.array([[multivariate_normal(mean, m.within).logpdf(z[i] - offset[who[i]]) for mean in m.means]
                         for i in rows])
        alone = m.prior * np.exp(m.power * (near - near.max(axis=1, keepdims=True)))
        alone = forward_filter(alone / alone.sum(1, keepdims=True), list(who[rows]), m.transition, m.prior)
        np.testing.assert_allclose(got["speaker-oracle"].loc[rows, P], alone, atol=1e-9)


def test_beliefs_and_offsets_alone_and_their_controls_by_hand(prepared):
    settings, corpus, codes, tuned = prepared
    m, _ = speakers.fitted(settings, corpus, codes, tuned)
    got = speakers.predict(settings, corpus, codes, tuned, m)
    table, states, _ = speakers.states(settings, corpus, codes, tuned, "test")
    z, alone = m.project(states), got["speaker-head"][P].to_numpy()
    any_order = dataclasses.replace(m, transition=np.tile(m.prior, (4, 1)))
    known, beliefs, donors = {}, {}, protocols.donors(table, "conversation")
    for (c, who), rows in table.groupby(["conversation", "speaker"], sort=False).indices.items():
        memory = SpeakerMemory(any_order, settings.speaker.paths)
        trail = known.setdefault(c, {}).setdefault(who, [memory.offset(who)])
        beliefs.setdefault(c, {})[who] = [None, *got["speaker-head + filter"][P].to_numpy()[rows]]
        for i in rows:
            np.testing.assert_allclose(got["speaker-offset"][P].loc[i], memory.hear(who, z[i]), atol=1e-9)
            trail.append(memory.offset(who))
    before = table.groupby(["conversation", "speaker"]).cumcount()
    for i, (c, who) in enumerate(zip(table["conversation"], table["speaker"], strict=True)):
        place = list(known[c]).index(who)
        trail, belief = (list(of[donors[c]].values()) for of in (known, beliefs))
        trail, belief = trail[place % len(trail)], belief[place % len(belief)]
        mean, covariance = trail[min(before[i], len(trail) - 1)]
        expected = m.posterior((z[i] - mean)[None], m.within + covariance)[0]
        np.testing.assert_allclose(got["speaker-offset-swapped"][P].loc[i], expected, atol=1e-9)
        last = belief[min(before[i], len(belief) - 1)]
        expected = (m.prior if last is None else last @ m.transition) * alone[i] / m.prior
        swapped = got["speaker-head-swapped + filter"][P].loc[i]
        np.testing.assert_allclose(swapped, expected / expected.sum(), atol=1e-9)
