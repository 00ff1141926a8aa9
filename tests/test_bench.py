"""The bench measures what it says, and its tables come from its records."""

import json

import pytest
import torch
from conftest import make_settings, make_toy

from dpmkit import bench, codes, corpora, cost, estimate, finetune, report, tables


@pytest.fixture
def prepared(tmp_path, monkeypatch, sllm):
    """Settings whose corpus, codes and SLLM are toys."""
    corpus, spoken = make_toy()
    settings = make_settings(tmp_path)
    tuned = finetune.Finetuned(sllm, "toy", tmp_path, [], 0)
    monkeypatch.setattr(corpora, "load", lambda _: corpus)
    monkeypatch.setattr(codes, "make", lambda *_: spoken)
    monkeypatch.setattr(finetune, "train", lambda *_: tuned)
    monkeypatch.setattr(bench, "SHAPES", {"a tiny Llama": (32, 2, 2, 1, 64, torch.float32, 64, 2)})
    monkeypatch.setattr(bench, "SENTENCES", 6)
    monkeypatch.setattr(bench, "LARGE", 64)
    monkeypatch.setitem(bench.RUNGS, "stride-256", {"stepping": "stride-16"})  # the toy's window is 64
    return settings


def test_every_rung_is_timed_beside_the_loop_and_compared_with_exact(prepared, sllm):
    before = sllm.fingerprint()
    path = bench.memory(prepared.replace("memory.prefix", 8), repeats=2)
    record = json.loads(path.read_text(encoding="utf-8"))
    rates, changes = record["results"]["rates"], {c["rung"]: c for c in record["results"]["changes"]}
    assert len(rates) == 2 * (1 + len(bench.RUNGS)) and all(r["rate"] > 0 and r["n"] == 2 for r in rates)
    assert all(r["flops_per_sentence"] > 0 and record["results"]["peak"][r["precision"]] > 0 for r in rates)
    loops = [r for r in rates if r["rung"] == bench.LOOP]
    assert all(r["ratio"] == 1 for r in loops) and len(loops) == 2
    assert changes["exact"]["changed"] == changes["exact"]["WA_gain"] == 0
    assert set(changes) == set(bench.RUNGS) and changes["top-2"]["largest_change"] < 1e-4  # it has no more layers
    assert changes["exact, read before the write"]["largest_change"] > 0
    assert sllm.fingerprint() == before
    table = tables.bench(record["results"])
    assert len(table) == len(rates) and (table[["sentences", "codes"]].astype(int) > 0).all(axis=None)
    reached = {r["shape"]: r["sentences"] * (r["codes"] + 1) for r in rates}
    assert min(r["sentences"] for r in rates) == 6 and reached["a tiny Llama"] >= 2 * 64 and len(reached) == 2
    assert all(r["threads"] == torch.get_num_threads() and r["streams"] == 1 for r in loops)
    page = report.page([], prepared.own_path)
    assert "Each rung of the memory" in page and page.count("| PEFT loop |") == 2


def test_a_killed_bench_keeps_the_rounds_before(prepared, monkeypatch):
    seconds, rounds = cost.seconds, []
    monkeypatch.setattr(bench, "RUNGS", {"exact": {}, "reuse": {"prefix_states": "reuse"}})

    def killed(work, device):
        rounds.append(work)
        if len(rounds) > 3 + 1:  # in the second round of three arms
            raise KeyboardInterrupt
        return seconds(work, device)

    monkeypatch.setattr(cost, "seconds", killed)
    monkeypatch.setattr(estimate, "matmul_rate", lambda *_: 1.0)
    with pytest.raises(KeyboardInterrupt):
        bench.memory(prepared.replace("memory.prefix", 8).replace("ablation.conversations", 1))
    record, = (prepared.own_path / "bench").glob("memory*.json")
    kept = json.loads(record.read_text(encoding="utf-8"))
    assert len(kept["results"]["rates"]) == 3
    assert all(r["n"] == 1 and r["rate"] == r["rate_range"][0] > 0 for r in kept["results"]["rates"])


def test_a_stream_of_minutes_is_heard_in_ten_parts(prepared):
    path = bench.stream(prepared.replace("memory.prefix", 8), hours=0.02)
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = record["results"]["rows"]
    assert len(rows) == bench.STREAM_ROWS and rows[-1]["hours"] == pytest.approx(0.02, rel=0.05)
    assert all(0 <= row["WA"] <= 100 and row["norm"] > 0 for row in rows)
    assert "stream-0.02h" in report.page([], prepared.own_path)


def test_cost_against_history_has_every_path_at_every_length(prepared):
    path = bench.context(prepared.replace("memory.prefix", 8))
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]["rows"]
    assert {(r["codes"], r["path"]) for r in rows} == {(n, p) for n in (100, 200) for p in cost.PATHS}
    assert all(r["seconds"] > 0 for r in rows) and "Cost against history" in report.page([], prepared.own_path)
