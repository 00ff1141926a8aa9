"""Measures against scikit-learn, and a bootstrap that is paired."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_recall_fscore_support

from dpmkit.metrics import MEASURES, compare, confusions, measures, per_emotion, said, targets, wa

EMOTIONS = ("neu", "hap", "sad", "ang")


def random_table(seed, conversations=12, skill=1.0, truth=None, emotions=EMOTIONS, share=None):
    """Conversations of 1 to 9 utterances, a tenth outside the label set; `truth` fixes the targets."""
    rng = np.random.default_rng(seed)
    if truth is None:
        rows = [(f"c{c}", t) for c in range(conversations) for t in range(rng.integers(1, 10))]
        truth = pd.DataFrame(rows, columns=["conversation", "turn"])
        truth["emotion"] = rng.choice(emotions, len(truth), p=share)
        truth.loc[rng.random(len(truth)) < 0.1, "emotion"] = None
    table = truth[["conversation", "turn", "emotion"]].copy()
    p = rng.dirichlet(np.ones(len(emotions)), len(table))
    for i, e in enumerate(emotions):
        p[:, i] += skill * 0.3 * (table["emotion"] == e)
    table[[f"p_{e}" for e in emotions]] = p / p.sum(1, keepdims=True)
    return table


def labelled(table):
    scored = targets(table, "all-lengths")
    return scored, scored["emotion"].to_numpy(), np.array(EMOTIONS)[said(scored, EMOTIONS)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_measures_are_scikit_learn_s(seed):
    share = [[0.25] * 4, [0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0], [0.97, 0.01, 0.01, 0.01]][seed % 4]  # absent ones, too
    scored, truth, answer = labelled(random_table(seed, share=share))
    got = measures(confusions(scored, EMOTIONS)[1].sum(0))
    assert got["WA"] == pytest.approx(accuracy_score(truth, answer))
    assert got["UA"] == pytest.approx(balanced_accuracy_score(truth, answer))
    assert got["WF1"] == pytest.approx(f1_score(truth, answer, average="weighted", zero_division=0))
    assert wa(random_table(seed, share=share), EMOTIONS) == pytest.approx(100 * got["WA"])
    expected = precision_recall_fscore_support(truth, answer, labels=EMOTIONS, zero_division=0)
    for e, precision, recall, f1, n in zip(EMOTIONS, *expected, strict=True):
        assert per_emotion(scored, EMOTIONS)[e] == pytest.approx(
            {"precision": precision, "recall": recall, "f1": f1, "n": n})


def test_a_confusion_matrix_a_conversation():
    table = pd.DataFrame({"conversation": ["b", "a", "b"], "emotion": ["hap", "neu", "sad"],
                          "p_neu": [.1, .7, .6], "p_hap": [.7, .1, .1], "p_sad": [.1, .1, .2], "p_ang": .1})
    names, counts = confusions(table, EMOTIONS)
    assert names == ["a", "b"]
    assert counts[0].tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert counts[1].tolist() == [[0] * 4, [0, 1, 0, 0], [1, 0, 0, 0], [0] * 4]  # sad heard as neutral: row sad


def test_targets_of_the_two_protocols():
    table = pd.DataFrame({"conversation": ["b", "b", "b", "a", "a", "c"], "turn": [0, 1, 2, 0, 1, 0],
                          "emotion": ["neu", "hap", None, "sad", "ang", None]})
    assert targets(table, "all-lengths").index.tolist() == [0, 1, 3, 4]
    # the last one that has a label, not the last one; a conversation without any has none
    assert targets(table, "complete").index.tolist() == [1, 4]
    with pytest.raises(ValueError, match="all-lengths or complete"):
        targets(table, "streaming")


def test_the_gain_over_oneself_is_nothing():
    base = targets(random_table(0), "all-lengths")
    rows = compare({"base": base, "same": base.copy(), "worse": targets(random_table(1, truth=random_table(0)),
                                                                         "all-lengths")}, EMOTIONS, "base", 500)
    assert [r["method"] for r in rows] == ["base", "same", "worse"]
    for row in rows[:2]:  # the same resamples: a method with the same answers gains exactly 0 in each of them
        for m in MEASURES:
            assert row[f"{m}_gain"] == 0 and row[f"{m}_gain_interval"] == [0, 0]
            assert row[m] == rows[0][m] and row[f"{m}_interval"] == rows[0][f"{m}_interval"]
    assert any(rows[2][f"{m}_gain_interval"] != [0, 0] for m in MEASURES)


def test_points_and_intervals_by_a_plain_bootstrap():
    truth = random_table(3, conversations=20)
    base = targets(random_table(4, truth=truth), "all-lengths")
    better = targets(random_table(5, truth=truth, skill=4.0), "all-lengths")
    row = compare({"base": base, "better": better}, EMOTIONS, "base", 4000)[1]
    rng = np.random.default_rng(9)
    parts = [[t[t["conversation"] == c] for c in t["conversation"].unique()] for t in (base, better)]
    gains, values = [], []
    for _ in range(400):
        drawn = rng.integers(0, len(parts[0]), len(parts[0]))
        scores = []
        for tables in parts:
            scored = pd.concat([tables[i] for i in drawn])
            scores.append(100 * np.mean(np.array(EMOTIONS)[said(scored, EMOTIONS)] == scored["emotion"]))
        values.append(scores[1])
        gains.append(scores[1] - scores[0])
    assert row["WA"] == pytest.approx(100 * np.mean(labelled(better)[1] == labelled(better)[2]))
    # 400 plain resamples know their 2.5 % quantile to about a quarter of a standard deviation
    np.testing.assert_allclose(row["WA_interval"], np.percentile(values, [2.5, 97.5]), atol=np.std(values) / 2)
    np.testing.assert_allclose(row["WA_gain_interval"], np.percentile(gains, [2.5, 97.5]), atol=np.std(gains) / 2)
    assert np.std(gains) > 1 and row["WA_gain_interval"][0] < row["WA_gain"] < row["WA_gain_interval"][1]


def test_intervals_cover_and_widen_with_confidence():
    # 150 corpora of 40 conversations from one world, in which the method is right with probability 0.7: a 90 %
    # interval holds 70 in 135 of them, give or take 4 (a percentile interval of 40 clusters a little less).
    rng, held = np.random.default_rng(0), 0
    for _ in range(150):
        truth = rng.integers(0, 2, 200)
        right = rng.random(200) < 0.7
        p = np.where(right, truth, 1 - truth)
        table = pd.DataFrame({"conversation": np.repeat([f"c{i:02d}" for i in range(40)], 5),
                              "emotion": np.array(["neu", "hap"])[truth], "p_neu": 1 - p, "p_hap": p})
        low, high = compare({"m": table}, ("neu", "hap"), "m", 300, confidence=0.9)[0]["WA_interval"]
        held += low <= 70 <= high
    assert 120 <= held <= 146
    narrow, wide = (compare({"m": table}, ("neu", "hap"), "m", 300, confidence=c)[0]["WA_interval"]
                    for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_pairing_narrows_the_interval_of_a_gain():
    # Two methods that differ in one answer a conversation: unpaired, their gain would be as unsure as a score.
    base = targets(random_table(6, conversations=40), "all-lengths")
    other = base.copy()
    first = other.groupby("conversation").head(1).index
    other.loc[first, [f"p_{e}" for e in EMOTIONS]] = [0.7, 0.1, 0.1, 0.1]
    row = compare({"base": base, "other": other}, EMOTIONS, "base", 1000)[1]
    assert np.ptp(row["WA_gain_interval"]) < np.ptp(row["WA_interval"])


def test_the_order_of_rows_and_methods_changes_nothing_and_the_seed_does():
    truth = random_table(3)
    a, b = (targets(random_table(s, truth=truth), "all-lengths") for s in (1, 2))
    one = compare({"a": a, "b": b}, EMOTIONS, "a", 200)
    other = compare({"b": b.sample(frac=1, random_state=0), "a": a}, EMOTIONS, "a", 200)
    assert one == other[::-1]
    assert compare({"a": a, "b": b}, EMOTIONS, "a", 200, seed=1) != one


def test_different_targets_are_refused():
    a = targets(random_table(1), "all-lengths")
    longer = pd.concat([a, a.tail(1)])
    other = a.assign(conversation=a["conversation"].replace("c0", "z"))
    turned = a.assign(emotion=a["emotion"].map(dict(zip(EMOTIONS, EMOTIONS[1:] + EMOTIONS[:1], strict=True))))
    for b in (longer, other, turned, targets(random_table(1), "complete")):
        with pytest.raises(ValueError, match="different targets"):
            compare({"a": a, "b": b}, EMOTIONS, "a", 10)


def test_one_conversation_has_an_interval_without_width():
    table = targets(random_table(1, conversations=1), "all-lengths")
    row, = compare({"m": table}, EMOTIONS, "m", 50)
    assert row["WA_interval"] == pytest.approx([row["WA"]] * 2)
