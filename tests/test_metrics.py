"""Measures, protocols and intervals against scikit-learn, plain bootstraps and examples by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from dpmkit.metrics import (
    MEASURES,
    by_bin,
    compare,
    confusion,
    confusions,
    ece,
    interval,
    measures,
    nll,
    per_emotion,
    reliability,
    resampled,
    targets,
    wa,
)
from dpmkit.settings import EvaluationSettings, Settings

EMOTIONS = ("neu", "hap", "sad", "ang")
TWO = ("neu", "hap")
SETTINGS = Settings.of("smoke", {"evaluation.bootstrap": 300})
shares = st.floats(0, 1)


def draws(bootstrap, confidence=0.95):
    return EvaluationSettings(bootstrap=bootstrap, confidence=confidence)


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
    rows = targets(table)
    p = rows[[f"p_{e}" for e in EMOTIONS]].to_numpy()
    return rows, rows["emotion"].to_numpy(), np.array(EMOTIONS)[p.argmax(1)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_measures_are_scikit_learn_s(seed):
    share = [[0.25] * 4, [0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0], [0.97, 0.01, 0.01, 0.01]][seed % 4]  # absent ones, too
    table = random_table(seed, share=share)
    _, true, answer = labelled(table)
    counts = confusion(table, EMOTIONS)
    got = measures(counts)
    assert got["WA"] == pytest.approx(accuracy_score(true, answer))
    assert got["UA"] == pytest.approx(balanced_accuracy_score(true, answer))
    assert got["WF1"] == pytest.approx(f1_score(true, answer, average="weighted", zero_division=0))
    assert wa(table, EMOTIONS) == pytest.approx(100 * got["WA"])
    for i, row in enumerate(per_emotion(table, EMOTIONS).values()):
        hit, support, claimed = counts[i, i], counts[i].sum(), counts[:, i].sum()
        assert row == pytest.approx({"recall": hit / max(support, 1), "precision": hit / max(claimed, 1),
                                     "f1": 2 * hit / max(support + claimed, 1), "n": support})


def test_a_confusion_matrix_a_conversation():
    table = pd.DataFrame({"conversation": ["b", "a", "b"], "emotion": ["hap", "neu", "sad"],
                          "p_neu": [.1, .7, .6], "p_hap": [.7, .1, .1], "p_sad": [.1, .1, .2], "p_ang": .1})
    names, counts = confusions(table, EMOTIONS)
    assert names == ["a", "b"]
    assert counts[0].tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert counts[1].tolist() == [[0] * 4, [0, 1, 0, 0], [1, 0, 0, 0], [0] * 4]  # sad answered as neutral: row sad


def test_targets_of_the_two_protocols():
    table = pd.DataFrame({"conversation": ["b", "b", "b", "a", "a", "c"], "turn": [0, 1, 2, 0, 1, 0],
                          "emotion": ["neu", "hap", None, "sad", "ang", None]})
    assert targets(table).index.tolist() == [0, 1, 3, 4]
    # the last one that has a label, not the last one; a conversation without any has none
    assert targets(table, "complete").index.tolist() == [1, 4]


def test_the_gain_over_oneself_is_nothing():
    base = random_table(0)
    worse = random_table(1, truth=base)
    rows = compare({"base": base, "same": base.copy(), "worse": worse}, EMOTIONS, "base", draws(500))
    assert [r["method"] for r in rows] == ["base", "same", "worse"]
    for row in rows[:2]:  # the same resamples: a method with the same answers gains exactly 0 in each of them
        for m in MEASURES:
            assert row[f"{m}_gain"] == 0 and row[f"{m}_gain_interval"] == [0, 0]
            assert row[m] == rows[0][m] and row[f"{m}_interval"] == rows[0][f"{m}_interval"]
    assert any(rows[2][f"{m}_gain_interval"] != [0, 0] for m in MEASURES)


def test_points_and_intervals_by_a_plain_bootstrap():
    truth = random_table(3, conversations=20)
    base = random_table(4, truth=truth)
    better = random_table(5, truth=truth, skill=4.0)
    row = compare({"base": base, "better": better}, EMOTIONS, "base", draws(4000))[1]
    rng = np.random.default_rng(9)
    parts = [[t[t["conversation"] == c] for c in t["conversation"].unique()] for t in (base, better)]
    gains, values = [], []
    for _ in range(400):
        drawn = rng.integers(0, len(parts[0]), len(parts[0]))
        scores = []
        for tables in parts:
            scores.append(wa(pd.concat([tables[i] for i in drawn]), EMOTIONS))
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
        low, high = compare({"m": table}, TWO, "m", draws(300, 0.9))[0]["WA_interval"]
        held += low <= 70 <= high
    assert 120 <= held <= 146
    narrow, wide = (compare({"m": table}, TWO, "m", draws(300, c))[0]["WA_interval"]
                    for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_pairing_narrows_the_interval_of_a_gain():
    # Two methods that differ in one answer a conversation: unpaired, their gain would be as unsure as a score.
    base = random_table(6, conversations=40)
    other = base.copy()
    first = other.groupby("conversation").head(1).index
    other.loc[first, [f"p_{e}" for e in EMOTIONS]] = [0.7, 0.1, 0.1, 0.1]
    row = compare({"base": base, "other": other}, EMOTIONS, "base", draws(1000))[1]
    assert np.ptp(row["WA_gain_interval"]) < np.ptp(row["WA_interval"])


def test_the_order_of_rows_and_methods_changes_nothing():
    truth = random_table(3)
    a, b = (random_table(s, truth=truth) for s in (1, 2))
    one = compare({"a": a, "b": b}, EMOTIONS, "a", draws(200))
    other = compare({"b": b.sample(frac=1, random_state=0), "a": a}, EMOTIONS, "a", draws(200))
    assert one == other[::-1]


def test_different_targets_are_refused():
    a = random_table(1)
    longer = pd.concat([a, a.tail(1)])
    other = a.assign(conversation=a["conversation"].replace("c0", "z"))
    turned = a.assign(emotion=a["emotion"].map(dict(zip(EMOTIONS, EMOTIONS[1:] + EMOTIONS[:1], strict=True))))
    for b in (longer, other, turned, targets(random_table(1), "complete")):
        with pytest.raises(ValueError, match="different targets"):
            compare({"a": a, "b": b}, EMOTIONS, "a", draws(10))


def test_one_conversation_has_an_interval_without_width():
    table = random_table(1, conversations=1)
    row, = compare({"m": table}, EMOTIONS, "m", draws(50))
    assert row["WA_interval"] == pytest.approx([row["WA"]] * 2)


def one_right_speaker(conversations=30, others=9):
    """Each conversation: two utterances of `a`, all right, and two of one of the others, all wrong."""
    return pd.DataFrame([{"conversation": f"c{c:02d}", "turn": turn, "emotion": "neu",
                          "speaker": "a" if turn % 2 == 0 else f"b{c % others}",
                          "p_neu": 1.0 * (turn % 2 == 0), "p_hap": 1.0 * (turn % 2)}
                         for c in range(conversations) for turn in range(4)])


def test_an_utterance_counts_as_often_as_its_speaker_was_drawn():
    """One speaker holds all that is right: over conversations, each with as much of it, that is no spread at all;
    over speakers it hangs on how often that one of ten is drawn."""
    table = one_right_speaker()
    alike, = compare({"m": table}, TWO, "m", draws(4000))
    assert alike["WA_interval"] == [50, 50]
    wide, = compare({"m": table}, TWO, "m", draws(4000), by="speaker")
    assert wide["WA"] == 50 and wide["WA_interval"][0] == 0 and wide["WA_interval"][1] > 75
    # by hand: weights of the speakers, drawn with the same seed, on each of the utterances
    names = sorted(table["speaker"].unique())
    drawn = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), size=50)
    expected = [100 * np.average(table["p_neu"], weights=table["speaker"].map(dict(zip(names, d, strict=True))))
                for d in drawn]
    got = resampled({"m": table}, TWO, 50, by="speaker")["m"]["WA"]
    np.testing.assert_allclose(got, [50, *expected])
    assert interval(np.array([99.0, 1, 2, 3]), 0.5) == [1.5, 2.5]  # the first value is no resample


def test_speakers_of_one_conversation_each_make_the_bootstrap_over_conversations():
    table = random_table(3, conversations=25)
    table["speaker"] = "s" + table["conversation"]  # the same order of ids, and so the same draws
    other = table.assign(**{f"p_{e}": np.roll(table[f"p_{e}"], 1) for e in EMOTIONS})
    tables = {"base": table, "other": other}
    rows = compare(tables, EMOTIONS, "base", draws(300))
    assert rows == compare(tables, EMOTIONS, "base", draws(300), by="speaker")
    assert rows[1]["WA_gain_interval"] != [0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_nll_is_scikit_learn_s(seed):
    table = random_table(seed, conversations=30)
    scored, truth, _ = labelled(table)
    order = sorted(EMOTIONS)  # log_loss takes its columns in the order of the sorted labels
    assert nll(table, EMOTIONS) == pytest.approx(log_loss(truth, scored[[f"p_{e}" for e in order]], labels=order))


def test_nll_by_hand():
    table = pd.DataFrame({"conversation": "a", "turn": [0, 1, 2], "emotion": ["neu", None, "hap"],
                          "p_neu": [0.5, 0.1, 1.0], "p_hap": [0.5, 0.9, 0.0]})
    assert nll(table[:2], TWO) == pytest.approx(np.log(2))
    assert nll(table[2:], TWO) == pytest.approx(12 * np.log(10))  # a probability of 0 is not infinite
    with pytest.raises(ValueError, match="1 answers are NaN"):
        nll(table.assign(p_neu=np.nan, p_hap=[0.5, 0.9, 0.0])[:1], TWO)


@pytest.mark.parametrize("bins", [3, 10, 15])
def test_reliability_is_scikit_learn_s_calibration_curve(bins):
    table = random_table(bins, conversations=60)
    scored, truth, answer = labelled(table)
    confidence = scored[[f"p_{e}" for e in EMOTIONS]].max(axis=1)
    accuracy, mean = calibration_curve(truth == answer, confidence, n_bins=bins)
    rows = reliability(table, EMOTIONS, bins)
    assert [r["accuracy"] for r in rows] == pytest.approx(accuracy)
    assert [r["confidence"] for r in rows] == pytest.approx(mean)
    counts = np.histogram(confidence, np.linspace(0, 1, bins + 1))[0]
    assert [r["n"] for r in rows] == [n for n in counts if n] and sum(counts) == len(scored)


def test_reliability_and_its_error_by_hand():
    table = pd.DataFrame({"conversation": "a", "turn": range(6), "p_neu": [0.6, 0.7, 0.95, 1.0, 0.3, 0.2],
                          "emotion": ["neu", "hap", "neu", "neu", "hap", None]})
    table["p_hap"] = 1 - table["p_neu"]
    table.loc[3, "p_neu"] += 1e-6  # a softmax in float32
    low, middle, high = reliability(table, TWO, bins=10)  # 0.6 belongs to the bin that ends there
    assert low == pytest.approx({"confidence": 0.6, "accuracy": 1, "n": 1})
    assert middle == pytest.approx({"confidence": 0.7, "accuracy": 0.5, "n": 2})
    assert high == pytest.approx({"confidence": 0.975, "accuracy": 1, "n": 2}, abs=1e-5)
    even = pd.DataFrame({"conversation": "a", "emotion": "hap", "p_neu": [0.5, 0.4], "p_hap": [0.5, 0.6]})
    assert [r["confidence"] for r in reliability(even, TWO, bins=2)] == [0.5, 0.6]  # so does 0.5
    assert ece(table, TWO) == pytest.approx((1 * 0.4 + 2 * 0.2 + 2 * 0.025) / 5, abs=1e-5)


def test_answers_that_are_as_sure_as_they_are_right_have_no_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 20_000)
    truth = (rng.random((len(p), 1)) > p.cumsum(1)).sum(1)
    table = pd.DataFrame({"conversation": "a", "emotion": np.array(EMOTIONS)[truth.clip(max=3)],
                          **{f"p_{e}": p[:, i] for i, e in enumerate(EMOTIONS)}})
    assert ece(table, EMOTIONS) < 0.015
    surer = p**3 / (p**3).sum(1, keepdims=True)  # the same answers, too sure of themselves
    assert ece(table.assign(**{f"p_{e}": surer[:, i] for i, e in enumerate(EMOTIONS)}), EMOTIONS) > 0.15


def naive(tables, group, edges, labels):
    """WA and number of the labelled rows a method and bin; `group`: the number that each row is binned by."""
    rows = []
    for method, table in tables.items():
        scored, truth, answer = labelled(table)
        for label, low, high in zip(labels, edges, [*edges[1:], np.inf], strict=True):
            inside = [low <= group(c, t) < high for c, t in scored[["conversation", "turn"]].to_numpy()]
            if any(inside):
                rows.append((method, low, label, pytest.approx(100 * np.mean(truth[inside] == answer[inside])),
                             sum(inside)))
    return rows


def test_wa_by_position_and_by_length():
    truth = random_table(2, conversations=30)
    tables = {"a": random_table(7, truth=truth), "b": random_table(8, truth=truth)}
    long = truth["conversation"].value_counts()
    rows = by_bin(tables, EMOTIONS, "turn", (0, 2, 6), draws(200))
    assert [(r["method"], r["first_turn"], r["turns"], r["WA"], r["n"]) for r in rows] == naive(
        tables, lambda c, t: t, (0, 2, 6), ("0–1", "2–5", "6 and on"))
    rows = by_bin(tables, EMOTIONS, "length", (1, 4, 8), draws(200))
    assert [(r["method"], r["first_length"], r["utterances"], r["WA"], r["n"]) for r in rows] == naive(
        tables, lambda c, t: long[c], (1, 4, 8), ("1–3", "4–7", "8 and on"))
    for row in rows:  # the interval is compare's, of the conversations of that length
        part = tables[row["method"]]
        last = {1: 3, 4: 7, 8: 99}[row["first_length"]]
        part = targets(part[part["conversation"].map(long).between(row["first_length"], last)])
        assert row["WA_interval"] == compare({"m": part}, EMOTIONS, "m", draws(200))[0]["WA_interval"]
