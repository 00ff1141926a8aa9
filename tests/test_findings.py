"""What a notebook says at its end is what its record holds, and changes with it."""

import copy

import pytest

from dpmkit import findings, records
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
    next(row for row in part["contrasts"] if row["contrast"] == "window - at-once")["WA_interval"] = [1.0, 4.0]
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
