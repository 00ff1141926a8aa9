"""What a notebook says at its end is what its record holds, and changes with it."""

import copy

import pytest

from dpmkit import findings, pooled, records
from dpmkit.findings import learnt

RUNS = records.load_all(records.REFERENCE)


@pytest.fixture
def kinds():
    """The committed records of one run, by kind; to change."""
    return copy.deepcopy({r["kind"]: r for r in RUNS if r["profile"] == "voices" and r["fold"] == 1})


def test_every_committed_record_has_something_to_tell_and_names_its_run():
    assert {r["kind"] for r in RUNS} == set(findings.KINDS) == set(records.KINDS)
    for record in RUNS:
        head, *said = learnt(record).splitlines()
        assert f"({record['profile']} on {record['corpus']}, fold {record['fold']}, seed {record['seed']})" in head
        assert len(said) >= 3 and all(line.startswith("- ") and line.endswith(".") for line in said[1:])
        assert not any(word in learnt(record) for word in ("nan", "None", "inf "))


def test_a_difference_is_one_where_its_interval_leaves_0_out(kinds):
    last = kinds["context"]["results"]["windows"][-1]
    for interval, words in (([0.5, 3.0], "the longer is above the shorter"), ([-3.0, -0.5], "the longer is below"),
                            ([-0.5, 3.0], "no measurable difference between the longer and the shorter")):
        last |= {"WA_gain": sum(interval) / 2, "WA_gain_interval": interval}
        assert words in learnt(kinds["context"]) and f"[{interval[0]:+.1f}, {interval[1]:+.1f}]" in learnt(
            kinds["context"])


def test_the_corpus_tells_what_stays_and_what_was_published(kinds):
    record = kinds["data"]
    of = record["results"]
    of["transitions"] = [[0.5 if i == j else 0.1 for j in range(len(of["emotions"]))]
                         for i in range(len(of["emotions"]))]
    of["transitions"][2][2] = 0.91
    assert f"0.50 ({of['emotions'][0]}) to 0.91 ({of['emotions'][2]})" in learnt(record)
    of["published"] = [{"published": 5, "found": 4}, {"published": None, "found": 9}]
    assert "4 of 5 published labels" in learnt(record)
    of["published"] = []
    assert "nothing is published" in learnt(record)
    for row in of["reference"]["test"]:
        row["WA"] = {"single utterance": 0.4, "single utterance + filter": 0.5}.get(row["method"], 0.75)
    assert "40.0 % WA" in learnt(record) and "50.0 % with" in learnt(record) and "+25.0 points" in learnt(record)


def test_the_backbone_tells_its_epoch_and_its_commonest_confusion(kinds):
    record = kinds["backbone"]
    of = record["results"]
    of["emotions"], of["confusion"]["validation"] = ["a", "b", "c"], [[9, 1, 0], [0, 8, 2], [6, 0, 4]]
    of["per_emotion"]["validation"] = {e: {"recall": r} for e, r in zip("abc", (0.9, 0.8, 0.4), strict=True)}
    assert "takes c for a (60 % of them)" in learnt(record)
    assert "recalls a best (90 %) and c worst (40 %)" in learnt(record)
    of["best_epoch"] = len(of["history"])
    assert "more epochs may help" in learnt(record)
    of["best_epoch"] = 1
    assert "in epoch 1 of" in learnt(record) and "more epochs" not in learnt(record)
    assert f"{100 * of['history'][0]['eval_wa']:.1f} % of the validation" in learnt(record)


def test_the_methods_tell_what_the_papers_contrast_is_made_of_and_no_bound_is_best(kinds):
    record = kinds["methods"]
    part = record["results"]["protocols"]["all-lengths"]
    rows = {row["method"]: row for row in part["methods"]}
    rows["at-once"]["WA"] = rows["window"]["WA"] - 2.5
    next(row for row in part["contrasts"] if row["contrast"] == "window - at-once").update(
        WA=2.5, WA_interval=[1.0, 4.0])
    assert "a short window, +2.5 [+1.0, +4.0]" in learnt(record)
    for row in part["methods"]:
        row["WA"] = {"lstm": 88.0, "speaker-told": 99.0, "dpm-swapped": 98.0}.get(row["method"], 50.0)
    assert "is that of `lstm`, 88.0" in learnt(record) and "`speaker-told` 99.0 %" in learnt(record)


def test_the_ablations_count_intervals_and_name_the_worst_disturbance(kinds):
    record = kinds["ablations"]
    of = record["results"]
    for i, row in enumerate(of["rows"]):
        row["WA_gain_interval"] = [1, 2] if i < 3 else [-2, -1] if i < 5 else [-1, 1]
    assert "lies above 0 for 3 and below 0 for 2" in learnt(record)
    of["disturbed"] = [{"method": "dpm", "kind": k, "level": v, "WA": wa}
                       for k, v, wa in (("none", 0, 70.0), ("white", 5, 31.0), ("babble", 10, 40.0))]
    assert "`dpm` 31.0 % (white 5)" in learnt(record)


def test_the_cost_is_the_records(kinds):
    record = kinds["context"]
    for row in record["results"]["methods"]:
        row["seconds_per_sentence"] = {"window": 0.002, "dpm-tuned": 0.03}.get(row["method"], 1.0)
    assert "30.0 ms with the memory, 15.0 times" in learnt(record)
    first, last = ({"path": "dpm", "codes": n, "peak_bytes": n * 100} for n in (50_000, 70_000))
    record["results"]["cost"] = [last, first, {"path": "window", "codes": 1, "peak_bytes": 1}]
    assert "5.0 MB after 50,000 codes, 7.0 MB after 70,000 codes" in learnt(record)


def test_claims_are_judged_by_their_intervals_in_a_column_for_each_corpus():
    def cost(codes, peak, path="dpm"):
        return {"path": path, "codes": codes, "peak_bytes": peak}

    def judged(gain, stride, window_high, peak):
        part = {"targets": 1234, "conversations": 5, "methods": [], "contrasts": [
            {"contrast": "dpm - at-once", "WA": gain, "WA_interval": [gain - 1, gain + 1]}]}
        long = {"tokens": 512, "WA_gain": -1.0, "WA_gain_interval": [-3, window_high]}
        rows = [{"setting": "stepping", "value": v, "WA": wa, "WA_gain_interval": [wa - 50.4, wa - 49.6]}
                for v, wa in (("sentence", 60.0), ("stride-64", stride), ("every-2", 50.0))]
        of = {"methods": {"protocols": {"all-lengths": part}}, "ablations": {"rows": rows},
              "context": {"windows": [{"tokens": 64}, long],
                          "cost": [cost(900, peak), cost(100, 5e6), cost(999, 9e9, "window")]},
              "backbone": {"parameters": 1.26e6},
              "data": {"hours": 2.04, "speakers": 7, "codes": {"frame_rate": 20}}}
        settings = {"evaluation.confidence": 0.95, "memory.prefix": 128, "backbone.window": 512}
        return {kind: {"results": results, "settings": settings} for kind, results in of.items()}

    kinds, few = judged(1.5, 59.0, 0.1, 6e6), judged(-0.5, 59.3, -0.1, 11e6)
    del few["context"], few["data"], few["backbone"]
    groups = [pooled.Group(title, "x", {}, [], [], of) for title, of in (("a", kinds), ("b", few))]
    table = findings.claims(groups)
    assert list(table) == ["the paper's claim", "a", "b", "the paper's scale"]
    assert table["a"].tolist() == [
        "yes: +1.5 [+0.5, +2.5]", "yes: WA 60.0, 59.0 at stride-64",
        "no measurable difference: -1.0 [-3.0, +0.1], 512 tokens against 64",
        "yes: 5 MB after 100 codes, 6 MB after 900",
        "1.3 M parameters; n_r 128 of 512 tokens (6.4 s); 2.0 h of 7 speakers; 1,234 targets in 5 conversations"]
    same = "no measurable difference"
    assert table["b"].tolist() == [f"{same}: -0.5 [-1.5, +0.5]", f"{same}: WA 60.0, 59.3 at stride-64",
                                   "not run", "not run", "n_r 128 of 512 tokens; 1,234 targets in 5 conversations"]
    worse = findings.claims([pooled.Group("a", "x", {}, [], [], judged(-2.0, 61.0, -0.1, 11e6))])["a"].tolist()
    assert worse[0].startswith("no, below: -2.0") and worse[2].startswith("no, below")
    assert worse[1] == "no, below: WA 60.0, 61.0 at stride-64"
    assert worse[3].startswith("no: 5 MB")


@pytest.mark.parametrize(("low", "said"), [(0.5, "yes in every run: +1.0 [+0.5, +1.5]"),
                                           (-0.5, "differs by run: +1.0 [-0.5, +1.5]")])
def test_the_verdict_of_a_mean_is_of_all_runs(kinds, low, said):
    part = kinds["methods"]["results"]["protocols"]["all-lengths"]
    part["contrasts"] = [{"contrast": "dpm - at-once", "WA": 1.0, "WA_range": [low, 1.5]}]
    assert findings.claims([pooled.Group("a", "x", {}, [], [], kinds)])["a"][0] == said


@pytest.mark.parametrize(("low", "high", "p", "beats", "adds"), [
    (0.5, 2.5, 0.01, "DPM beats the SLLM at once", "adds to the same window"),
    (0.5, 2.5, 0.07, "No measurable difference between DPM and the SLLM at once", "adds nothing measurable"),
    (-2.5, -0.5, 0.01, "DPM is below the SLLM at once", "takes from the same window")])
def test_the_short_answer_follows_the_adjusted_p(kinds, low, high, p, beats, adds):
    record = kinds["methods"]
    for row in record["results"]["protocols"]["all-lengths"]["contrasts"]:
        if row["contrast"] in ("dpm - at-once", "dpm - window", "speaker-memory - speaker-head + filter"):
            row |= {"WA": (low + high) / 2, "WA_interval": [low, high], "p_holm": p}
    does, memory, helps = findings.answer(record)
    gain = f"{(low + high) / 2:+.1f} [{low:+.1f}, {high:+.1f}] (p {p:.2g} by Holm)"
    part = record["results"]["protocols"]["all-lengths"]
    assert does.startswith(f"**{beats}**: `dpm - at-once` is {gain}, points of WA of {part['targets']:,} "
                           f"utterances in {part['conversations']} ")
    assert f"the memory, {gain}" in does and memory.startswith(f"**The memory {adds}")
    of = {row["method"]: (row["WA_gain"], *row["WA_gain_interval"]) for row in part["methods"]}
    gains = ", ".join("`{}` {:+.1f} [{:+.1f}, {:+.1f}]".format(m, *of[m])
                      for m in ("window + filter", "speaker-memory") if of[m][1] > 0)
    assert "`speaker-memory`" in gains and helps.startswith(f"**What helps** against `window`: {gains}; ")
    assert f"adds to its own head and filter {gain}" in helps
    for row in record["results"]["protocols"]["all-lengths"]["methods"]:
        row["WA_gain_interval"] = [-1.0, 1.0]
    assert "against `window`: nothing of the filter and memories" in findings.answer(record)[2]


def test_what_else_is_shown_follows_the_record(kinds):
    record = kinds["methods"]
    rows = {row["method"]: row for row in record["results"]["protocols"]["all-lengths"]["methods"]}
    window = rows["window"]["WA"]
    for name, gain, low, high in (("dpm-told", 3.0, 1.0, 5.0), ("lstm", -9.0, -9.5, -8.5)):
        rows[name] |= {"WA": window + gain, "WA_gain": gain, "WA_gain_interval": [low, high]}
    stored, told, simpler = findings.further(record)
    assert stored == "**What it holds.** " + findings.tables.stored([record], "dpm")
    assert told == ("**Told true emotions** (`dpm-told`, a bound), the same memory adds to the same window, "
                    "+3.0 [+1.0, +5.0]: it can hold what helps, and lacks labels.")
    assert "`lstm` -9.0 [-9.5, -8.5], `current + filter` " in simpler and "dpm-told" not in simpler
    rows["dpm-told"]["WA_gain_interval"] = [-1.0, 5.0]
    assert findings.further(record)[1].endswith("adds nothing measurable to the same window, +3.0 [-1.0, +5.0].")
    part = record["results"]["protocols"]["all-lengths"]
    part["methods"] = [rows[name] for name in ("window", "dpm")]
    assert findings.further(record) == [stored]
    record["results"]["losses"] = {}
    assert findings.further(record) == []
