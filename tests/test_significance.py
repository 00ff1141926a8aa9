"""McNemar and Holm against examples by hand and brute force; power against simulation."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from dpmkit.metrics import compare
from dpmkit.significance import adjusted, holm, mcnemar, smallest_effect, smallest_effect_measured

EMOTIONS = ("neu", "hap")
shares = st.floats(0, 1)


def single(right):
    """One target a conversation, answered right or not."""
    right = np.asarray(right, dtype=bool)
    truth = np.arange(len(right)) % 2
    p = np.where(right, truth, 1 - truth)
    return pd.DataFrame({"conversation": [f"c{i:03d}" for i in range(len(right))], "turn": 3,
                         "emotion": np.array(EMOTIONS)[truth], "p_neu": 1.0 - p, "p_hap": 1.0 * p})


def test_mcnemar_by_hand():
    # 10 targets are split 1 to 9; as far from even or farther are 0, 1, 9 and 10 heads of 10: 22 of 1024 ways.
    a = single([1] * 1 + [0] * 9 + [1] * 6 + [0] * 4)
    b = single([0] * 1 + [1] * 9 + [1] * 6 + [0] * 4)
    assert mcnemar(a, b, EMOTIONS) == {"n": 20, "a_only": 1, "b_only": 9, "p": pytest.approx(22 / 1024)}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_mcnemar_is_a_fair_coin_on_the_split_targets(pairs, random):
    a, b = (single(right) for right in zip(*pairs, strict=True))
    got = mcnemar(a, b, EMOTIONS)
    heads, tails = sum(y > x for x, y in pairs), sum(x > y for x, y in pairs)
    ways = [math.comb(heads + tails, k) for k in range(heads + tails + 1)]
    assert got == {"n": len(pairs), "a_only": tails, "b_only": heads,
                   "p": pytest.approx(sum(w for w in ways if w <= ways[heads]) / sum(ways))}
    assert mcnemar(b, a, EMOTIONS) == got | {"a_only": heads, "b_only": tails}
    assert mcnemar(a, b.sample(frac=1, random_state=random.randrange(99)), EMOTIONS) == got


def test_mcnemar_does_not_score_what_is_outside_the_label_set():
    a, b = single([1, 1, 1, 0]), single([0, 1, 1, 0])
    for table in (a, b):
        table.loc[0, "emotion"] = None
    assert mcnemar(a, b, EMOTIONS) == {"n": 3, "a_only": 0, "b_only": 0, "p": 1.0}


def test_mcnemar_refuses_other_targets_and_dependent_ones():
    a = single([1, 0, 1])
    for b in (a[1:], a.assign(turn=[3, 3, 4]), a.assign(emotion="neu"), a.assign(conversation=list("xyz"))):
        with pytest.raises(ValueError, match="different targets"):
            mcnemar(a, b, EMOTIONS)
    two = pd.concat([a, a.assign(turn=4)])
    with pytest.raises(ValueError, match="not independent"):
        mcnemar(two, two, EMOTIONS)


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


def test_a_table_is_adjusted_over_all_methods_but_the_baseline():
    base = single([1] * 60 + [0] * 60)
    tables = {"same": base.copy(), "base": base, "worse": single([0] * 7 + [1] * 55 + [0] * 58),
              "better": single([1] * 90 + [0] * 30)}
    rows = compare(tables, EMOTIONS, "base", 500)
    p = {r["method"]: r["WA_gain_p"] for r in rows}
    assert p["better"] == 1 / 500 and 1 / 500 < p["worse"] < 0.2  # else nothing here could be told apart
    got = adjusted(rows, "base")
    assert [{k: v for k, v in r.items() if k != "WA_gain_p_holm"} for r in got] == rows
    assert {r["method"]: r["WA_gain_p_holm"] for r in got} == pytest.approx(
        {"same": 1, "base": 1, "worse": 2 * p["worse"], "better": 3 / 500})
    for bad, baseline in ((rows, "window"), ([*rows, rows[0]], "base")):
        with pytest.raises(ValueError, match="one row a method"):
            adjusted(bad, baseline)


def simulated(n, discordant, points, repeats=20_000):
    """(asymptotic, exact) McNemar's power at 5 %, two-sided, where a method gains so many points."""
    gain = points / 100
    split = [(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant]
    won, lost, _ = np.random.default_rng(0).multinomial(n, split, size=repeats).T
    exact = 2 * binom.cdf(np.minimum(won, lost), won + lost, 0.5)
    return (abs(won - lost) > 1.959964 * np.sqrt(won + lost)).mean(), (exact <= 0.05).mean()


@pytest.mark.parametrize("n", [151, 280, 1000])
@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.3])
def test_the_smallest_effect_has_its_power_in_simulation(n, discordant):
    points = smallest_effect(n, discordant)
    asymptotic, exact = simulated(n, discordant, points)
    assert 0.78 < asymptotic < 0.85  # 20,000 repeats know it to 0.003; with few split targets counts are coarse
    assert 0.70 < exact < asymptotic  # the exact test keeps below its 5 %, and pays in power
    assert simulated(n, discordant, 0.7 * points)[0] < 0.56


@settings(deadline=None)
@given(st.integers(1, 5000), shares.filter(lambda v: v > 1e-3), st.sampled_from([0.5, 0.8, 0.9]))
def test_the_smallest_effect_solves_connor_s_sample_size(n, discordant, power):
    critical, wanted = 1.959963985, {0.5: 0.0, 0.8: 0.841621234, 0.9: 1.281551566}[power]

    def pairs(gain):
        return (critical * math.sqrt(discordant) + wanted * math.sqrt(discordant - gain**2)) ** 2 / gain**2

    points = smallest_effect(n, discordant, power)
    if math.isinf(points):  # not even where every split target goes to one method
        assert pairs(discordant) > n * (1 - 1e-6)
    else:
        assert points / 100 <= discordant and pairs(points / 100) == pytest.approx(n, rel=1e-5)
        assert smallest_effect(n + 100, discordant, power) < points


def test_the_smallest_effect_of_nothing_is_refused():
    for n, discordant in ((0, 0.1), (10, 0.0), (10, 1.1), (10, math.nan)):
        with pytest.raises(ValueError, match="discordant"):
            smallest_effect(n, discordant)
    assert smallest_effect(20, 0.1) == math.inf


def test_the_measured_smallest_effect_is_the_paired_one_where_targets_are_independent():
    # 1000 conversations, 200 of them split 115 to 85: the bootstrap's standard error is that of 1000 differences.
    a, b = single([1] * 85 + [0] * 115 + [1] * 800), single([0] * 85 + [1] * 115 + [1] * 800)
    row = compare({"a": a, "b": b}, EMOTIONS, "a", 4000)[1]
    assert row["WA_gain_se"] == pytest.approx(100 * math.sqrt((0.2 - 0.03**2) / 1000), rel=0.04)
    assert smallest_effect_measured(row["WA_gain_se"]) == pytest.approx(smallest_effect(1000, 0.2), rel=0.05)
    assert smallest_effect_measured(1.0) == pytest.approx(1.959964 + 0.841621)
    assert smallest_effect_measured(2.0, power=0.5, alpha=0.01) == pytest.approx(2 * 2.575829)
