"""Tests and contrasts: McNemar's, Holm's, the paired bootstrap's p, over conversations and over speakers."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import EMOTIONS, SETTINGS, TWO, draws, random_table, shares

from dpmkit.metrics import (
    DECLARED,
    compare,
    contrasts,
    holm,
    joined,
    losses,
    mcnemar,
    resampled,
    scored,
    targets,
)


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
