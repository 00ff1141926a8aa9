"""Measures against scikit-learn, a paired bootstrap against a plain one, McNemar and Holm against examples by hand
and brute force."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from dpmkit.metrics import (
    DECLARED,
    MEASURES,
    by_bin,
    compare,
    confusion,
    confusions,
    contrasts,
    ece,
    holm,
    interval,
    joined,
    losses,
    mcnemar,
    measures,
    nll,
    per_emotion,
    reliability,
    resampled,
    scored,
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


def single(right):
    """One target a conversation, answered right or not."""
    right = np.asarray(right, dtype=bool)
    truth = np.arange(len(right)) % 2
    p = np.where(right, truth, 1 - truth)
    return pd.DataFrame({"conversation": [f"c{i:03d}" for i in range(len(right))], "turn": 3,
                         "emotion": np.array(TWO)[truth], "p_neu": 1.0 - p, "p_hap": 1.0 * p})


def test_mcnemar_by_hand():
    # 10 targets are split 1 to 9; as far from even or farther are 0, 1, 9 and 10 heads of 10: 22 of 1024 ways.
    a = single([1] * 1 + [0] * 9 + [1] * 6 + [0] * 4)
    b = single([0] * 1 + [1] * 9 + [1] * 6 + [0] * 4)
    assert mcnemar(a, b, TWO) == {"n": 20, "a_only": 1, "b_only": 9, "p": pytest.approx(22 / 1024)}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_mcnemar_is_a_fair_coin_on_the_split_targets(pairs, random):
    a, b = (single(right) for right in zip(*pairs, strict=True))
    got = mcnemar(a, b, TWO)
    heads, tails = sum(y > x for x, y in pairs), sum(x > y for x, y in pairs)
    ways = [math.comb(heads + tails, k) for k in range(heads + tails + 1)]
    assert got == {"n": len(pairs), "a_only": tails, "b_only": heads,
                   "p": pytest.approx(sum(w for w in ways if w <= ways[heads]) / sum(ways))}
    assert mcnemar(b, a, TWO) == got | {"a_only": heads, "b_only": tails}
    assert mcnemar(a, b.sample(frac=1, random_state=random.randrange(99)), TWO) == got


def test_mcnemar_does_not_score_what_is_outside_the_label_set():
    a, b = single([1, 1, 1, 0]), single([0, 1, 1, 0])
    for table in (a, b):
        table.loc[0, "emotion"] = None
    assert mcnemar(a, b, TWO) == {"n": 3, "a_only": 0, "b_only": 0, "p": 1.0}


def test_mcnemar_refuses_other_targets_and_dependent_ones():
    a = single([1, 0, 1])
    for b in (a[1:], a.assign(emotion="neu"), a.assign(conversation=list("xyz"))):
        with pytest.raises(ValueError, match="different targets"):
            mcnemar(a, b, TWO)
    two = pd.concat([a, a.assign(turn=4)])
    with pytest.raises(ValueError, match="not independent"):
        mcnemar(two, two, TWO)


def test_holm_by_hand():
    # 0.005 x 4, 0.01 x 3, 0.03 x 2; 0.04 x 1 would be below the step before it, and takes that one's.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm({"b": 0.2, "a": 0.1})) == ["b", "a"]
    assert holm({}) == {} and holm({"a": 0.02}) == {"a": 0.02} and holm({"a": 0.7, "b": 0.6}) == {"a": 1, "b": 1}


@settings(deadline=None)
@given(st.lists(shares | st.sampled_from([0.01, 0.02]), min_size=1, max_size=6))
def test_holm_is_bonferroni_on_every_subset(p):
    # Closed testing: a hypothesis falls where Bonferroni fells every subset that holds it (Marcus et al. 1976).
    got = holm({str(i): v for i, v in enumerate(p)})
    for i in range(len(p)):
        sets = [s for size in range(1, len(p) + 1) for s in combinations(range(len(p)), size) if i in s]
        assert got[str(i)] == pytest.approx(min(1.0, max(len(s) * min(p[j] for j in s) for s in sets)))


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="'b'"):
        holm({"a": 0.1, "b": p})


def many(rights, turns=4, speakers=10):
    """Method -> its table: `rights`, method -> whether each utterance is answered rightly; `turns` a conversation,
    by two of the speakers in turn."""
    tables = {}
    for method, right in rights.items():
        n = np.arange(len(right))
        tables[method] = single(right).assign(
            conversation=[f"c{i // turns:03d}" for i in n], turn=n % turns,
            speaker=[f"s{(i // turns + i % 2) % speakers:02d}" for i in n])
    return tables


def answered(seed=0, n=400):
    """Every method of a declared contrast, with answers that differ little, and a bound that is always right."""
    rng = np.random.default_rng(seed)
    base, rights = rng.random(n) < 0.6, {}
    for i, method in enumerate(dict.fromkeys(name for pair in DECLARED for name in pair)):
        flipped = rng.random(n) < 0.02 + 0.03 * i
        rights[method] = np.where(flipped, rng.random(n) < 0.5 + 0.05 * i, base)
    return many(rights | {"speaker-oracle": np.ones(n, bool), "majority": np.zeros(n, bool)})


def test_only_the_declared_contrasts_are_tested_and_holm_is_over_them_alone():
    tables = answered()
    rows = {r["contrast"]: r for r in contrasts(tables, TWO, draws(500))}
    tested = {name for name, r in rows.items() if "p" in r}
    assert tested == {f"{a} - {b}" for a, b in DECLARED} and {*rows} - tested == {"window - at-once"}
    wanted = holm({name: r["p"] for name, r in rows.items() if "p" in r})
    assert {name: rows[name]["p_holm"] for name in tested} == wanted
    assert len({r["p"] for r in rows.values() if "p" in r}) > 3  # else Holm could not be seen here
    # neither a bound nor a control that stands in no declared contrast changes any p
    fewer = {k: v for k, v in tables.items() if k not in ("speaker-oracle", "majority")}
    assert contrasts(fewer, TWO, draws(500)) == list(rows.values())
    # a contrast that was not run is not in the family
    part = contrasts({m: tables[m] for m in ("dpm", "window", "at-once")}, TWO, draws(500))
    assert [r["contrast"] for r in part] == ["dpm - at-once", "dpm - window", "window - at-once"]
    assert [r["p_holm"] for r in part[:2]] == [*holm({r["contrast"]: r["p"] for r in part[:2]}).values()]


def test_a_contrast_is_the_paired_difference_with_both_intervals():
    tables = answered()
    rows = {r["contrast"]: r for r in contrasts(tables, TWO, draws(500, 0.9))}
    for a, b in (*DECLARED, ("window", "at-once")):
        row = rows[f"{a} - {b}"]
        for by, key in (("conversation", "interval"), ("speaker", "speakers")):
            of = {r["method"]: r for r in compare({m: tables[m] for m in (b, a)}, TWO, b, draws(500, 0.9),
                                                   by)}[a]
            for m in ("WA", "UA", "WF1") if by == "conversation" else ("WA",):
                assert row[m] == pytest.approx(of[f"{m}_gain"]) and row[f"{m}_{key}"] == of[f"{m}_gain_interval"]
    made_of = rows["window - at-once"]["WA"] + rows["dpm - window"]["WA"]
    assert rows["dpm - at-once"]["WA"] == pytest.approx(made_of)


@pytest.mark.parametrize("seed", range(3))
def test_p_is_that_of_the_less_sure_of_conversations_and_speakers(seed):
    tables = answered(seed)
    rows = {r["contrast"]: r for r in contrasts(tables, TWO, draws(400))}
    for a, b in DECLARED:
        p = []
        for by in ("conversation", "speaker"):
            values = resampled({m: tables[m] for m in (a, b)}, TWO, 400, by)
            gains = values[a]["WA"][1:] - values[b]["WA"][1:]
            p.append(2 * min(np.mean(gains <= 0), np.mean(gains >= 0)))
        row = rows[f"{a} - {b}"]
        assert row["p"] == pytest.approx(min(1, max(*p, 2 / 400)))
        assert row["floor"] == (max(p) <= 2 / 400)


def test_p_and_the_interval_of_one_contrast_agree():
    seen = set()
    for seed in range(40):
        tables = answered(seed, 120)
        row, = contrasts({m: tables[m] for m in ("dpm", "at-once")}, TWO, draws(1000))
        ends = [*row["WA_interval"], *row["WA_speakers"]]
        if min(ends) > 0 or max(ends) < 0:
            assert row["p"] <= 0.05 + 2 / 1000
        elif row["WA_interval"][0] < 0 < row["WA_interval"][1] or row["WA_speakers"][0] < 0 < row["WA_speakers"][1]:
            assert row["p"] >= 0.05 - 2 / 1000
        seen.add(min(ends) > 0 or max(ends) < 0)
    assert seen == {True, False}


def test_p_has_a_floor_that_is_marked_and_equal_answers_have_1():
    n = 200
    tables = many({"dpm": np.ones(n, bool), "at-once": np.zeros(n, bool), "window": np.ones(n, bool)})
    best, same, _ = contrasts(tables, TWO, draws(500))
    assert (best["p"], best["floor"], best["p_holm"]) == (2 / 500, True, 4 / 500)
    assert (same["p"], same["floor"], same["p_holm"], same["WA_interval"]) == (1, False, 1, [0, 0])


def test_folds_are_pooled_as_one_table_of_all_their_targets():
    folds = []
    for fold in range(3):
        truth = random_table(fold)
        truth["conversation"] += f"f{fold}"
        who = (truth["conversation"] + "ab"[fold % 2]).tolist()
        who[::3] = [f"s{fold}"] * len(who[::3])
        folds.append({"a": random_table(10 + fold, truth=truth, skill=2.0).assign(speaker=who),
                      "b": truth.assign(speaker=who)})
    whole, emotions = joined([fold | {"c": fold["a"]} if i else fold for i, fold in enumerate(folds)], "complete")
    assert {*whole} == {"a", "b"} and emotions == EMOTIONS and len(whole["a"]) == len(targets(whole["a"]))
    for name in "ab":
        pd.testing.assert_frame_equal(whole[name], pd.concat([targets(fold[name], "complete") for fold in folds]))


def test_too_few_speakers_have_no_interval_and_single_targets_mcnemar_s_p():
    few = {m: t.assign(speaker=t["speaker"].map(lambda s: "ab"[int(s[1:]) % 2])) for m, t in answered().items()}
    rows = contrasts(few, TWO, draws(300))
    assert all(r["WA_speakers"] is None and r["WA_interval"] for r in rows)
    part = scored(few, "all-lengths", TWO, SETTINGS)
    assert part["speakers"] == 2 and all(r["WA_gain_speakers"] is None for r in part["methods"])
    ends = {m: targets(t, "complete") for m, t in answered().items()}
    for row, (a, b) in zip(contrasts(ends, TWO, draws(300)), DECLARED, strict=False):
        exact = mcnemar(ends[a], ends[b], TWO)
        assert {k: row[k] for k in exact} == exact and isinstance(row["a_only"], int) and "floor" not in row


def test_a_protocol_s_part_of_a_record_has_both_intervals_of_every_method():
    tables = answered()
    part = scored(tables, "all-lengths", TWO, SETTINGS)
    assert (part["targets"], part["conversations"], part["speakers"]) == (400, 100, 10)
    assert part["contrasts"] == contrasts(tables, TWO, draws(300))
    over = compare(tables, TWO, "window", draws(300), by="speaker")
    for row, plain, speakers in zip(part["methods"], compare(tables, TWO, "window", draws(300)), over,
                                    strict=True):
        assert row == plain | {"WA_gain_speakers": speakers["WA_gain_interval"]}
    assert {*part["nll"]} == {*part["ece"]} == {*part["confusion"]} == {*tables}
    assert scored(tables, "complete", TWO, SETTINGS)["targets"] == 100


def test_what_a_memory_stores_is_its_own_loss_against_anothers_and_none():
    rng = np.random.default_rng(0)
    turns = rng.integers(2, 12, 30)  # every sentence weighs the same, however long its conversation
    at = pd.DataFrame({"conversation": np.repeat([f"c{i:02d}" for i in range(30)], turns),
                       "turn": np.concatenate([np.arange(n) for n in turns])})
    first = np.where(at["turn"] == 0, np.nan, 1.0)  # nothing is known of a first sentence: it goes
    none = first * rng.normal(4, 1, len(at))
    learned, noise = first * rng.uniform(0.05, 0.15, len(at)), first * rng.normal(0, 0.01, len(at))
    # `loss` is what was written: the donor's, for a swapped memory. It says nothing of these sentences.
    tables = {name: at.assign(own_loss=values, loss=0.0) for name, values in {
        "dpm-tuned-still": none, "dpm": none - learned, "dpm-swapped": none - learned + noise,
        "dpm-tuned": none - 2 * learned, "dpm-tuned-swapped": none + learned}.items()}
    got = {name: {r["difference"]: r for r in rows} for name, rows in losses(tables, draws(2000)).items()}
    own = got["dpm"]["own - none"]
    assert own["mean"] == pytest.approx(-np.nanmean(learned)) and own["n"] == len(at) - 30
    # Paired: the bootstrap of the differences themselves, conversation by conversation.
    sums = pd.Series(-learned).groupby(at["conversation"]).agg(["sum", "count"]).to_numpy()
    ratios = [total / n for total, n in (sums[rng.integers(0, 30, 30)].sum(0) for _ in range(2000))]
    np.testing.assert_allclose(own["interval"], np.percentile(ratios, [2.5, 97.5]), atol=np.std(ratios) / 3)
    low, high = got["dpm"]["own - swapped"]["interval"]  # the same but for noise: of no conversation in particular
    assert low < 0 < high
    tuned = [got["dpm-tuned"][d]["mean"] for d in ("own - none", "swapped - none", "own - swapped")]
    assert tuned == pytest.approx(np.nanmean(learned) * np.array([-2, 1, -3]))


def test_rows_whose_memory_conversations_share_have_intervals_over_speakers_alone():
    kept, tables = "speaker-memory-kept", answered()
    tables |= {kept: tables["speaker-memory"], f"{kept}-swapped": tables["speaker-memory-swapped"]}
    plain, over = (compare(tables, TWO, "window", draws(300), by) for by in ("conversation", "speaker"))
    rows = scored(tables, "all-lengths", TWO, SETTINGS)["methods"]
    for row, one, other in zip(rows, plain, over, strict=True):
        wanted = other if row["method"].startswith(kept) else one
        assert {k: v for k, v in row.items() if k != "WA_gain_speakers"} == wanted, row["method"]
    few = {m: t.assign(speaker=t["speaker"].map(lambda s: "ab"[int(s[1:]) % 2])) for m, t in tables.items()}
    rows = {r["method"]: r for r in scored(few, "all-lengths", TWO, SETTINGS)["methods"]}
    assert np.isnan(rows[kept]["WA_interval"]).all()
    assert not np.isnan(rows["speaker-memory"]["WA_interval"]).any()
