"""Tables and words say what their records say, and nothing that these do not show."""

import re

import pytest

from dpmkit import tables


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


@pytest.mark.parametrize(("row", "words"), [
    (contrast("x", 1.2, 0.049), "yes"), (contrast("x", -1.2, 0.049), "no, below"),
    (contrast("x", 1.2, 0.05), "no measurable difference"), (contrast("x", 1.2), "yes"),
    (contrast("x", 0.8), "no measurable difference"), (contrast("x", -1.2), "no, below"),
    ({"WA": 1, "WA_range": (0.1, 2)}, "yes"), ({"WA": 1, "WA_range": (-0.1, 2)}, "differs by run"),
    ({"WA": -1, "WA_range": (-2, -0.1)}, "no, below"), ({"WA": 1}, "no measurable difference")])
def test_a_difference_is_judged_by_the_adjusted_p_else_by_its_interval_else_by_all_runs(row, words):
    assert tables.sign(row, a_record()) == words


@pytest.mark.parametrize(("own_none", "own_swapped", "words"), [
    (-0.01, -0.01, "something of this conversation"),
    (-0.01, 0.0005, "something of how such conversations sound, and nothing measurable of this one"),
    (-0.01, 0.01, "something of how such conversations sound, and nothing measurable of this one"),
    (-0.0005, -0.01, "nothing measurable"), (0.01, -0.01, "nothing measurable")])
def test_what_the_memory_stores_is_what_the_losses_show(own_none, own_swapped, words):
    record = a_record(losses={"dpm": loss(own_none, own_swapped)})
    said = tables.stored([record], "dpm")
    assert f"`dpm` stores {words}: {own_none:+.4f} [" in said and f"{own_swapped:+.4f} [" in said
    other = a_record(losses={"dpm": loss(own_none + 0.002, 0.01)})
    said = tables.stored([record, record, other], "dpm")
    low, mean, high = own_none, own_none + 0.002 / 3, own_none + 0.002
    assert f"on average [lowest, highest] {mean:+.4f} [{low:+.4f}, {high:+.4f}]" in said
    assert f"{words} (" in said and " of 3 runs)" in said


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


def run(corpus="demo", **named):
    """A `methods` record as `pooled` has it, with a contrast, a gain over window and a plain difference."""
    rows = [method("window", 60.0, 0, 0, 0), method("at-once", 58.0, -2.0, -9, 9),
            method("dpm", 60.5, 0.5, 0.0, 1.0)]
    part = {"methods": rows, "contrasts": [contrast("dpm - at-once", 2.5, 0.3)]}
    return {"corpus": corpus, "profile": "demo", "changed": {}, "fold": 1, "seed": 0,
            "results": {"protocols": {"all-lengths": part, "complete": part}}, **named}


def test_attribution_splits_the_papers_contrast_a_column_for_each_corpus():
    assert tables._ends([-0.04, 0.04]) == "[+0.0, +0.0]", "no sign where nothing is left"
    table = tables.attribution([run("emodb"), run(runs="folds 1, 2 of seed 0")], "all-lengths", speakers=True)
    assert list(table) == ["points of WA", "emodb, `demo`, fold 1, seed 0", "demo, `demo`, folds 1, 2 of seed 0"]
    assert table.iloc[:, 1].tolist() == ["+2.5 [+1.5, +3.5]<br>speakers: [-0.5, +5.5]", "+2.0",
                                         "+0.5 [+0.0, +1.0]<br>speakers: [-9.0, +9.0]", "", ""]
    assert tables.attribution([run()], "complete").iloc[0, 1] == "+2.5 [+1.5, +3.5]"
    assert "every utterance: +2.2 on IEMOCAP (WA), +0.3 on MELD (WF1)" in tables.papers("all-lengths")
    assert "complete dialogues: +6.6 on IEMOCAP (WA), +3.3 on MELD (WF1)" in tables.papers("complete")


def test_other_settings_say_what_was_changed():
    against = {"WA_gain": -1.0, "WA_gain_interval": [-2.0, 0.0]}
    other = run(changed={"codes.tokenizer": "mimi", "memory.lr": 0.1}, fold=2, against=against)
    table = tables.settings([run(), other])
    assert table.to_numpy().tolist() == [
        ["nothing", "fold 1, seed 0", "60.0 [58.0, 62.0]", "", "58.0 [56.0, 60.0]", "60.5 [58.5, 62.5]"],
        ["`codes.tokenizer` = mimi, `memory.lr` = 0.1", "fold 2, seed 0", "60.0 [58.0, 62.0]", "-1.0 [-2.0, +0.0]",
         "58.0 [56.0, 60.0]", "60.5 [58.5, 62.5]"]]


def test_gains_have_their_intervals_and_leave_out_what_was_not_measured():
    same = {"WA_frozen": 60.0, "WA": 60.0, "WA_interval": [58.0, 62.0], "norm": 0.25}
    rows = [{"setting": "lr", "value": 0.001, "WA_gain": 1.0, "WA_gain_interval": [0.5, 1.5], "L_t": 3.0},
            {"setting": "prefix", "value": 0, "WA_gain": 0.0, "WA_gain_interval": [0.0, 0.0], "L_t": None}]
    assert tables.gains([same | row for row in rows]).to_numpy().tolist() == [
        ["lr", "0.001", "60.0", "60.0 [58.0, 62.0]", "+1.00 [+0.50, +1.50]", "3.0000", "0.25"],
        ["prefix", "0", "60.0", "60.0 [58.0, 62.0]", "+0.00 [+0.00, +0.00]", "", "0.25"]]


def test_a_sentences_cost_stands_beside_wa_and_what_is_kept():
    row = {"method": "dpm-tuned", "WA": 67.0, "WA_interval": [62.6, 71.2], "seconds_per_sentence": 0.0844,
           "seconds_per_sentence_range": [0.08, 0.09], "flops_per_sentence": 1.09e9, "peak_bytes": 14_000_000,
           "keeps": "473,152"}
    assert tables.costs({"results": {"methods": [row]}}).to_dict("records") == [{
        "method": "dpm-tuned", "WA, %": "67.0 [62.6, 71.2]", "ms per sentence [lowest, highest]":
        "84.40 [80.00, 90.00]", "MFLOP per sentence": "1090", "peak memory, MB": "14.0", "numbers kept": "473,152"}]


def test_a_benchs_numbers_are_written_to_be_read_and_its_notebooks_summed():
    rows = [{"shape": "7 B", "n_r": 1024, "peak_bytes": 22_373_458_432, "flops_per_sentence": 5.942e8,
             "L_e, nats": 0.51234, "milliseconds": 114.63, "milliseconds_range": [99.95, 1000.4],
             "measured_here": True}]
    assert tables.bench({"rows": rows}).to_dict("records") == [{
        "shape": "7 B", "n_r, tokens": "1,024", "peak memory, MB": "22,373", "GFLOP per sentence": "0.5942",
        "L_e, nats": "0.5123", "milliseconds": "114.6 [99.95, 1000]", "measured here": "True"}]
    rows = [{"machine": m, "notebook": n, "seconds": s} for m, n, s in (
        ("quiet", "01", 200.5), ("quiet", "02", 900.5), ("busy", "01", 3.25))]
    assert tables.bench({"rows": rows}).to_numpy().tolist() == [
        ["quiet", "01", "200.5"], ["quiet", "02", "900.5"], ["busy", "01", "3.25"], ["quiet", "all", "1,101"],
        ["busy", "all", "3.25"]]
