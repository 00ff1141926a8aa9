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
    (1.2, 0.049, "DPM is above the same SLLM and window without a memory"),
    (-1.2, 0.049, "DPM is below the same SLLM and window without a memory"),
    (1.2, 0.05, "No measurable difference between DPM and the same SLLM and window without a memory")])
def test_the_verdict_follows_the_adjusted_p(gain, p_holm, words):
    said = tables.verdict(a_record([contrast("dpm - window", gain, p_holm)]))
    assert f"{words} ({gain:+.1f} [{gain - 1:+.1f}, {gain + 1:+.1f}] points WA, p {p_holm:.2g})" in said


def test_every_declared_contrast_is_in_the_verdict_and_without_them_it_claims_nothing():
    made = [contrast(f"{a} - {b}", i + 0.1, 0.2) for i, (a, b) in enumerate(DECLARED)]
    said = tables.verdict(a_record(made))
    assert all(f"(+{i}.1 [" in said for i in range(len(DECLARED))) and said.count("o measurable") == len(DECLARED)
    assert tables.verdict(a_record()) == "This record has no declared contrasts: run notebook 03 again."


@pytest.mark.parametrize(("own_none", "own_swapped", "words"), [
    (-0.01, -0.01, "something of this conversation"),
    (-0.01, 0.0005, "something of how such conversations sound, and nothing measurable of this one"),
    (-0.01, 0.01, "something of how such conversations sound, and nothing measurable of this one"),
    (-0.0005, -0.01, "nothing measurable"), (0.01, -0.01, "nothing measurable")])
def test_what_the_memory_stores_is_what_the_losses_show(own_none, own_swapped, words):
    tested = [contrast("dpm - window", 0.0, 1.0)]
    said = tables.verdict(a_record(tested, {"dpm": loss(own_none, own_swapped)}))
    assert f"`dpm` stores {words}: {own_none:+.4f} [" in said and f"{own_swapped:+.4f} [" in said
    assert "stores" not in tables.verdict(a_record(tested, {"dpm": loss(-1, -1)}), "complete")


def test_rows_above_the_window_are_those_whose_intervals_both_say_so():
    rows = [method("lstm", 64, 4, 1, 7, (0.5, 8)), method("a", 64, 4, 1, 7, (-1, 9)), method("b", 61, 1, -1, 3),
            method("c", 63, 3, 1, 5, None), method("dpm-swapped", 64, 4, 1, 7, (1, 7)),
            method("speaker-memory-kept", 66, 6, None, None, None), method("last-true", 83, 23, 20, 26, (20, 26))]
    said = tables.verdict(a_record([contrast("dpm - window", 0.0, 1.0)], methods=rows))
    assert "Above the window by their intervals, untested: lstm +4.0, c +3.0." in said
    assert "WA of the bounds, given true labels: last-true 83.0; of the window 60.0." in said


def test_a_table_of_contrasts_has_p_only_where_it_was_tested_and_marks_the_floor():
    record = a_record([contrast("dpm - window", 1.0, 0.0014, floor=True, a_only=12, b_only=4),
                       contrast("dpm - at-once", 2.0, 0.3), contrast("window - at-once", 1.0, WA_speakers=None)])
    table = tables.contrasts(record, "all-lengths").set_index("contrast")
    assert table["p (Holm)"].tolist() == ["< 0.0014", "0.3", "no test"]
    assert table.loc["dpm - window"].tolist()[1:4] == ["+1.0", "[+0.0, +2.0]", "[-2.0, +4.0]"]
    assert table.loc["window - at-once", "over speakers"] == "–"
    counts = tables.contrasts(record, "complete").set_index("contrast")
    assert counts.loc["dpm - window", ["only the first is right", "only the second"]].tolist() == ["12", "4"]


@pytest.mark.parametrize(("corpus", "every", "complete", "other"), [
    ("demo", "+2.23", "+6.56", "+6.96"), ("meld", "+0.29", "+3.32", "+5.69")])
def test_the_papers_contrast_stands_beside_its_parts_as_differences(corpus, every, complete, other):
    record = a_record([contrast("dpm - at-once", 2.7), contrast("dpm - window", -0.1)], corpus=corpus)
    table = tables.attribution(record)
    m, of = ("WF1", "MELD") if corpus == "meld" else ("WA", "IEMOCAP")
    assert table["contrast"].tolist() == ["dpm - at-once", "window - at-once", "dpm - window",
                                          "at-once - classifier"]
    assert table[f"every utterance: {m}, points"].tolist() == ["+2.7 [+1.7, +3.7]", "not run", "-0.1 [-1.1, +0.9]",
                                                               "not run"]
    assert table[f"paper, {of}, every utterance"].tolist() == [every, "not reported", "not reported", other]
    assert table[f"paper, {of}, complete dialogues"].iloc[0] == complete


def test_the_method_table_has_no_p_no_figure_of_the_paper_and_says_where_there_is_no_interval():
    kept = method("speaker-memory-kept", 66, 6, None, None, None)
    kept |= {f"{m}_interval": [None, None] for m in ("WA", "UA", "WF1")}  # too few speakers, as JSON has it
    table = tables.methods(a_record(methods=[method("dpm", 62, 2, 1, 3, (-1, 5)), kept]), "complete")
    assert not [c for c in table.columns if re.search(r"p \(|paper", c)]
    table = table.set_index("method")[["WA", "WA against window", "over speakers"]]
    assert table.loc["window"].tolist() == ["60.0 [58.0, 62.0]", "", ""]
    assert table.loc["dpm"].tolist() == ["62.0 [60.0, 64.0]", "+2.0 [+1.0, +3.0]", "[-1.0, +5.0]"]
    assert table.loc["speaker-memory-kept"].tolist() == ["66.0 –", "+6.0 –", "–"]


def test_processors_stand_side_by_side():
    records = []
    for name, wa in (("AMD", 67.4), ("Intel", 66.3)):
        made = a_record(methods=[method("at-once", 64, -2, -3, -1), method("dpm", wa - 0.1, -0.1, -1, 1)])
        made["results"]["protocols"]["all-lengths"]["methods"][0]["WA"] = wa
        records.append(made | {"machine": {"processor": name}})
    table = tables.processors(records).set_index("processor")
    assert table["window: WA"].to_dict() == {"AMD": "67.4", "Intel": "66.3"}
    assert table["dpm - window"].tolist() == ["-0.1", "-0.1"]
