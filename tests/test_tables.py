"""Tables and words say what their records say, and nothing that these do not show."""

import re

import pytest

from dpmkit import tables
from dpmkit.metrics import DECLARED


def method(name, wa, gain, low, high, speakers=(-9.0, 9.0)):
    row = {"method": name, "WA_gain_speakers": speakers and [*speakers]}
    for m in ("WA", "UA", "WF1"):
        row |= {m: wa, f"{m}_interval": [wa - 2, wa + 2], f"{m}_gain": gain, f"{m}_gain_interval": [low, high]}
    return row


def contrast(name, gain, p_holm=None, **more):
    row = {"contrast": name, "asks": "…"}
    for m in ("WA", "UA", "WF1"):
        row |= {m: gain, f"{m}_interval": [gain - 1, gain + 1], f"{m}_speakers": [gain - 3, gain + 3]}
    return row | ({} if p_holm is None else {"p": p_holm / 7, "p_holm": p_holm, "floor": False}) | more


def loss(own_none, own_swapped, width=0.001):
    return [{"difference": f"own - {other}", "mean": mean, "interval": [mean - width, mean + width], "n": 9}
            for other, mean in (("none", own_none), ("swapped", own_swapped))]


def a_record(contrasts=(), losses=None, methods=(), corpus="demo", **settings):
    rows = [method("window", 60, 0, 0, 0), *methods]
    groups = {"window": "method", "lstm": "method", "dpm-swapped": "control", "last-true": "bound"}
    part = {"methods": rows, "contrasts": [*contrasts]}
    return {"corpus": corpus, "settings": {"evaluation.confidence": 0.95, **settings}, "results": {
        "protocols": {"all-lengths": part, "complete": part}, "losses": losses or {},
        "listed": [{"method": r["method"], "group": groups.get(r["method"], "extension"), "hears": "x"}
                   for r in rows]}}


@pytest.mark.parametrize(("gain", "p_holm", "words"), [
    (1.2, 0.049, "`dpm` is above `window`"), (-1.2, 0.049, "`dpm` is below `window`"),
    (1.2, 0.05, "No measurable difference between `dpm` and `window`")])
def test_the_verdict_follows_the_adjusted_p(gain, p_holm, words):
    said, = tables.verdict(a_record([contrast("dpm - window", gain, p_holm)]))
    assert said == f"{words} ({gain:+.1f} [{gain - 1:+.1f}, {gain + 1:+.1f}] points WA, p {p_holm:.2g})."


def test_every_declared_contrast_is_in_the_verdict_and_what_was_not_tested_is_not():
    made = [contrast(f"{a} - {b}", i + 0.1, 0.2) for i, (a, b) in enumerate(DECLARED)]
    said = " ".join(tables.verdict(a_record([*made, contrast("window - at-once", 99)])))
    assert all(f"(+{i}.1 [" in said for i in range(len(DECLARED))) and said.count("No measurable") == len(DECLARED)


@pytest.mark.parametrize(("own_none", "own_swapped", "words"), [
    (-0.01, -0.01, "something of this conversation"),
    (-0.01, 0.0005, "something of how such conversations sound, and nothing measurable of this one"),
    (-0.01, 0.01, "something of how such conversations sound, and nothing measurable of this one"),
    (-0.0005, -0.01, "nothing measurable"), (0.01, -0.01, "nothing measurable")])
def test_what_the_memory_stores_is_what_the_losses_show(own_none, own_swapped, words):
    tested = [contrast("dpm - window", 0.0, 1.0)]
    said = tables.verdict(a_record(tested, {"dpm": loss(own_none, own_swapped)}))[-1]
    assert f"`dpm` stores {words}: {own_none:+.4f} [" in said and f"{own_swapped:+.4f} [" in said


def test_a_table_of_contrasts_has_p_only_where_it_was_tested_and_marks_the_floor():
    record = a_record([contrast("dpm - window", 1.0, 0.0014, floor=True),
                       contrast("dpm - at-once", 2.0, 0.3), contrast("window - at-once", 1.0, WA_speakers=None)])
    table = tables.contrasts(record, "all-lengths").set_index("contrast")
    assert table["p (Holm)"].tolist() == ["< 0.0014", "0.3", "no test"] and "only the second" not in table
    assert table.loc["dpm - window"].tolist()[1:3] == ["+1.0 [+0.0, +2.0]", "[-2.0, +4.0]"]
    assert table.loc["window - at-once", "over speakers"] == "–"
    counts = tables.contrasts(a_record([contrast("dpm - window", 1.0, a_only=12, b_only=4)]), "complete")
    assert counts.loc[0, ["only the first is right", "only the second"]].tolist() == ["12", "4"]


@pytest.mark.parametrize(("corpus", "every", "complete", "other"), [
    ("demo", "+2.23", "+6.56", "+6.96"), ("meld", "+0.29", "+3.32", "+5.69")])
def test_the_papers_differences_stand_beside_the_contrasts(corpus, every, complete, other):
    record = a_record([contrast(name, 2.7) for name in ("dpm - at-once", "dpm - window", "at-once - classifier")],
                      corpus=corpus)
    paper = "paper, MELD: WF1" if corpus == "meld" else "paper, IEMOCAP: WA"
    assert tables.contrasts(record, "all-lengths")[paper].tolist() == [every, "not reported", other]
    assert tables.contrasts(record, "complete")[paper].iloc[0] == complete


def test_the_method_table_has_no_p_no_figure_of_the_paper_and_says_where_there_is_no_interval():
    kept = method("speaker-memory-kept", 66, 6, None, None, None)
    kept |= {f"{m}_interval": [None, None] for m in ("WA", "UA", "WF1")}  # too few speakers, as JSON has it
    table = tables.methods(a_record(methods=[method("dpm", 62, 2, 1, 3, (-1, 5)), kept]), "complete")
    assert not [c for c in table.columns if re.search(r"p \(|paper", c)]
    table = table.set_index("method")[["WA", "WA against window", "over speakers"]]
    assert table.loc["window"].tolist() == ["60.0 [58.0, 62.0]", "", ""]
    assert table.loc["dpm"].tolist() == ["62.0 [60.0, 64.0]", "+2.0 [+1.0, +3.0]", "[-1.0, +5.0]"]
    assert table.loc["speaker-memory-kept"].tolist() == ["66.0 –", "+6.0 –", "–"]


def a_run(seed, *, fold=1, changed=(), **wa):
    """A `methods` record whose rows have these WA, the first being `window`."""
    rows = [method(m.replace("_", "-"), v, v - wa["window"], 0, 0) for m, v in wa.items()]
    return {"kind": "methods", "profile": "demo", "corpus": "demo", "fold": fold, "seed": seed, "changed": changed,
            "run": f"fold{fold}-seed{seed}", "results": {"protocols": {"all-lengths": {"methods": rows}}}}


SEEDS = [a_run(0, window=60, dpm=61, majority=30), a_run(1, window=62, dpm=62, majority=30),
         a_run(2, window=64, dpm=66, majority=30)]


def test_a_difference_is_within_twice_the_sample_deviation_over_the_seeds():
    own = a_run(0, window=63.9, dpm=60, majority=30.2, new=1)
    elsewhere = [a_run(3, window=0, dpm=90, fold=2), a_run(4, window=0, dpm=90, changed={"memory.lr": 1})]
    text = tables.beside(own, [*SEEDS, *elsewhere])
    assert [line for line in text.splitlines() if line.startswith("| ") and "reference" not in line] == [
        "| window | WA | 60.0 | 63.9 | 3.9 | 2.0 | yes |", "| dpm | WA | 61.0 | 60.0 | -1.0 | 2.6 | yes |",
        "| dpm | WA_gain | 1.0 | -3.9 | -4.9 | 1.0 | NO |", "| majority | WA | 30.0 | 30.2 | 0.2 | 0.0 | NO |",
        "| majority | WA_gain | -30.0 | -33.7 | -3.7 | 2.0 | yes |", "| new | WA | – | 1.0 | – | – | – |",
        "| new | WA_gain | – | -62.9 | – | – | – |"]
    assert "reference's 3 seed(s)" in text and text.endswith("reproduced: 3 of 5 within")
    at_the_edge = tables.beside(a_run(0, window=64, dpm=61, majority=30), SEEDS)
    assert "| window | WA | 60.0 | 64.0 | 4.0 | 2.0 | yes |" in at_the_edge


def test_without_a_reference_or_with_one_seed_it_says_so():
    for other in ({"profile": "smoke"}, {"corpus": "emodb"}, {"fold": 2}, {"seed": 7}, {"changed": {"a": 1}}):
        own = a_run(0, window=60) | other
        name = f"`{own['profile']}` on `{own['corpus']}`, {own['run']}"
        assert tables.beside(own, SEEDS) == f"No reference for {name}: nothing to compare it with."
    alone = tables.beside(a_run(0, window=61), SEEDS[:1])
    assert "| window | WA | 60.0 | 61.0 | 1.0 | – | – |" in alone and alone.endswith("reproduced: 0 of 0 within")


def run(fold=1, corpus="demo", profile="demo", changed=(), window=60.0, at_once=58.0, dpm=60.5):
    """A `methods` record of these WA, whose contrast dpm - at-once has an interval."""
    rows = [method("window", window, 0, 0, 0), method("at-once", at_once, at_once - window, -9, 9),
            method("dpm", dpm, dpm - window, dpm - window - 0.5, dpm - window + 0.5)]
    part = {"methods": rows, "contrasts": [contrast("dpm - at-once", dpm - at_once, 0.3)]}
    return {"corpus": corpus, "profile": profile, "changed": dict(changed), "fold": fold, "seed": 0,
            "results": {"protocols": {"all-lengths": part, "complete": part}}}


def test_attribution_splits_the_papers_contrast_real_voices_first():
    """One run has its intervals, several their mean and range."""
    table = tables.attribution([run(), run(2, window=61.0, dpm=61.0), run(corpus="emodb"),
                                run(changed={"memory.lr": 0.1})])
    assert table["corpus"].tolist() == ["emodb, `demo`", "demo, `demo`", "demo, `demo`, memory.lr = 0.1",
                                        "the paper, IEMOCAP (WA) / MELD (WF1)"] * 2
    assert table["runs"].tolist()[:4] == ["fold 1, seed 0", "folds 1, 2, seed 0", "fold 1, seed 0", ""]
    papers, short, memory = table.columns[3:]
    assert table[papers].tolist()[1:4] == ["+2.8 [+2.5, +3.0]", "+2.5 [+1.5, +3.5]", "+2.2 / +0.3"]
    assert table[papers].iloc[-1] == "+6.6 / +3.3" and table[short].tolist()[:2] == ["+2.0", "+2.5 [+2.0, +3.0]"]
    assert table[memory].tolist()[:2] == ["+0.5 [+0.0, +1.0]", "+0.2 [+0.0, +0.5]"]
    assert (short, memory) == ("= window - at-once, a short window", "+ dpm - window, the memory")


def test_attribution_pools_the_folds_of_a_seed_and_sets_seeds_apart():
    made, asked = [run(), run(2), run() | {"seed": 1}], []

    def pooled(some, protocol, a, b):
        asked.append(([(r["fold"], r["seed"]) for r in some], protocol, a, b))
        return (1.25, [0.5, 2.0]) if len({r["fold"] for r in some}) == len(some) else None

    table = tables.attribution(made, pooled)
    assert table["runs"].tolist()[:2] == ["folds 1, 2, seed 0", "fold 1, seeds 0, 1"]
    assert table[table.columns[3]].tolist()[:2] == ["+1.2 [+0.5, +2.0]", "+2.5 [+2.5, +2.5]"]
    assert ([(1, 0), (2, 0)], "all-lengths", "dpm", "at-once") in asked


def test_gains_have_their_intervals_and_leave_out_what_was_not_measured():
    same = {"WA_frozen": 60.0, "WA": 60.0, "WA_interval": [58.0, 62.0], "norm": 0.25}
    rows = [{"setting": "lr", "value": 0.001, "WA_gain": 1.0, "WA_gain_interval": [0.5, 1.5], "L_t": 3.0},
            {"setting": "prefix", "value": 0, "WA_gain": 0.0, "WA_gain_interval": [0.0, 0.0], "L_t": None}]
    assert tables.gains([same | row for row in rows]).to_numpy().tolist() == [
        ["lr", "0.001", "60.0", "60.0 [58.0, 62.0]", "+1.00 [+0.50, +1.50]", "3.0000", "0.25"],
        ["prefix", "0", "60.0", "60.0 [58.0, 62.0]", "+0.00 [+0.00, +0.00]", "", "0.25"]]


def test_claims_are_judged_by_their_intervals():
    def cost(codes, peak, path="dpm"):
        return {"path": path, "codes": codes, "peak_bytes": peak}

    def judged(contrast_low, stride, window_high, peak):
        method = {"targets": 9, "contrasts": [
            contrast("window - at-once", 9), contrast("dpm - at-once", 1, WA_interval=[contrast_low, 3])]}
        long = {"tokens": 512, "WA_gain": -1.0, "WA_gain_interval": [-3, window_high]}
        rows = [{"setting": "stepping", "value": v, "WA": wa} for v, wa in
                (("sentence", 60.0), ("stride-64", stride), ("every-2", 50.0))]
        kinds = {"methods": {"protocols": {"all-lengths": method}}, "ablations": {"rows": rows},
                 "context": {"windows": [{"tokens": 64}, long],
                             "cost": [cost(900, peak), cost(100, 5e6), cost(999, 9e9, "window")]}}
        return tables.claims({kind: {"results": of} for kind, of in kinds.items()})

    table = judged(0.5, 59.0, 0.1, 6e6)
    assert table["here"].tolist() == ["yes", "yes", "no measurable difference", "yes"]
    assert table["evidence"].tolist() == [
        "dpm - at-once +1.0 [+0.5, +3.0] points of WA, 9 utterances",
        "WA 60.0; 59.0 at stride-64, the best of 2; validation", "512 tokens - 64 -1.0 [-3.0, +0.1] points of WA",
        "5 MB after 100 codes and 6 MB after 900 codes"]
    assert judged(-0.5, 60.0, -0.1, 11e6)["here"].tolist() == ["no measurable difference", "no", "no, below", "no"]
    assert tables.claims({}).empty
