"""The bench measures what it says, and its tables come from its records; costs are measured, not made up."""

import functools
import json
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import recomputed
import torch
from conftest import make_settings, make_toy
from torch._subclasses import FakeTensorMode

from dpmkit import bench, codes, corpora, estimate, finetune, report, reproduce, speakers, tables
from dpmkit.__main__ import main
from dpmkit.finetune import Finetuned
from dpmkit.settings import MemorySettings, Settings


@pytest.fixture
def prepared(tmp_path, monkeypatch, sllm):
    """Settings whose corpus, codes and SLLM are toys."""
    corpus, spoken = make_toy()
    settings = make_settings(tmp_path)
    tuned = Finetuned(sllm, "toy", tmp_path, [], 0)
    monkeypatch.setattr(corpora, "load", lambda _: corpus)
    monkeypatch.setattr(codes, "make", lambda *_: spoken)
    monkeypatch.setattr(finetune, "train", lambda *_: tuned)
    monkeypatch.setattr(bench, "SHAPES", {"a tiny Llama": (32, 2, 2, 1, 64, torch.float32, 64, 2)})
    monkeypatch.setattr(bench, "SENTENCES", 6)
    monkeypatch.setattr(estimate, "LARGE", {"cpu": 64, "gpu": 64})
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
    assert sllm.fingerprint() == before and recomputed.checked(prepared.own_path) == {path}
    table = tables.bench(record["results"])
    assert len(table) == len(rates) and (table[["sentences", "codes"]].astype(int) > 0).all(axis=None)
    reached = {r["shape"]: r["sentences"] * (r["codes"] + 1) for r in rates}
    assert min(r["sentences"] for r in rates) == 6 and reached["a tiny Llama"] >= 2 * 64 and len(reached) == 2
    assert all(r["threads"] == torch.get_num_threads() and r["streams"] == 1 for r in loops)
    page = report.bench_page(prepared.own_path)
    assert "Each rung of the memory" in page and page.count("| PEFT loop |") == 2


def test_a_killed_bench_keeps_the_rounds_before(prepared, monkeypatch):
    seconds, rounds = bench.seconds, []
    monkeypatch.setattr(bench, "RUNGS", {"exact": {}, "reuse": {"prefix_states": "reuse"}})

    def killed(work, device):
        rounds.append(work)
        if len(rounds) > 3 + 1:  # in the second round of three arms
            raise KeyboardInterrupt
        return seconds(work, device)

    monkeypatch.setattr(bench, "seconds", killed)
    monkeypatch.setattr(estimate, "matmul_rate", lambda *_: 1.0)
    with pytest.raises(KeyboardInterrupt):
        bench.memory(prepared.replace("memory.prefix", 8).replace("ablation.conversations", 1))
    record, = (prepared.own_path / "bench").glob("memory*.json")
    kept = json.loads(record.read_text(encoding="utf-8"))
    assert len(kept["results"]["rates"]) == 3
    assert all(r["n"] == 1 and r["rate"] == r["rate_range"][0] > 0 for r in kept["results"]["rates"])


def test_cost_against_history_has_every_path_at_every_length(prepared):
    path = bench.context(prepared.replace("memory.prefix", 8))
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]["rows"]
    assert {(r["codes"], r["path"]) for r in rows} == {(n, p) for n in (100, 200) for p in bench.PATHS}
    assert all(r["seconds"] > 0 for r in rows) and "Cost against history" in report.bench_page(prepared.own_path)


def test_a_crossing_is_where_a_memory_stays_cheaper():
    seconds = {"dpm": (1, 3, 1, 1), "dpm, reuse": [3] * 4, "full context": [2] * 4, "window": [0] * 4}
    rows = [{"codes": 10 * n, "path": path, "seconds": spent[n - 1], "peak_bytes": 7 - n if path == "dpm" else 4}
            for path, spent in seconds.items() for n in (1, 2, 3, 4)]
    dpm, reuse = bench.crossings(rows).to_dict("records")
    assert (dpm["memory"], dpm["seconds"], dpm["peak_bytes"]) == ("dpm", 30, 40)
    assert reuse["cheaper than"] == "full context" and reuse["seconds"] != reuse["seconds"]  # nowhere: NaN


def test_the_notebooks_are_timed_from_empty_homes_beside_a_loop_and_without(monkeypatch, tmp_path, capsys):
    ran, loops = [], []

    def started(*given):
        loops.append(subprocess.Popen(*given))
        return loops[-1]

    monkeypatch.setattr(reproduce, "run", lambda settings, names, overrides: ran.append(
        (names, os.listdir(settings.home), overrides, [loop.poll() for loop in loops])))
    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(Popen=started))
    asked = ["--profile", "smoke", "--home", str(tmp_path), "--set", "memory.lr=0.5"]
    assert main(["bench", "reproduce", *asked]) == 0
    assert [names for names, *_ in ran] == [[name] for name in reproduce.NOTEBOOKS] * 2
    assert all((there, overrides) == ([], {"memory.lr": 0.5}) for _, there, overrides, _ in ran)
    assert [alive[1] for *_, alive in ran[5:]] == [None] * 5  # the loop runs
    assert [loop.wait(10) for loop in loops][1] == -9
    shown = capsys.readouterr().out
    assert shown.count("beside a busy process") == 6 and shown.count("04_ablations") == 2  # five, and all
    page = report.bench_page(Settings.of("smoke", home=str(tmp_path)).own_path)
    assert "beside a busy loop" in page


# -- costs ---------------------------------------------------------------------------------------------------

def test_peak_memory_sees_what_was_held_for_a_moment():
    def work():
        for _ in range(20):  # long enough for the watcher
            held = np.ones(8_000_000)  # 64 MB
            held += 1

    got = bench.measured(work, torch.device("cpu"))
    assert 50e6 < got["peak_bytes"] < 200e6 and got["seconds"] > 0


@pytest.mark.parametrize("path", bench.PATHS)
def test_every_path_is_measured_beyond_the_window(sllm, path):
    codes = np.random.default_rng(0).integers(0, sllm.vocabulary.codebook_size, 4 * sllm.window)
    got = bench.label_after(sllm, codes, 8, MemorySettings(rank=2, alpha=2.0, prefix=8, lr=1e-3), path)
    assert got["seconds"] > 0 and got["peak_bytes"] >= 0


def test_a_method_costs_what_it_does(sharp, settings, tmp_path):
    settings = settings.replace("speaker.dimensions", 3)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned, test = Finetuned(sharp, "sharp", tmp_path, [], 0), corpus.select(corpus.folds[0].test)
    known = {"speaker-memory": speakers.fitted(settings, corpus, codes, tuned)[0]}
    spent = {m: bench.of_method(settings, tuned, codes, test, corpus.emotions, m, known.get(m), rounds=2)
             for m in ("current", "window", "dpm", "speaker-memory")}
    flops = {m: row["flops_per_sentence"] for m, row in spent.items()}
    assert flops["current"] < flops["window"] < flops["dpm"] / 3  # a write: a forward, and a backward of two
    assert flops["speaker-memory"] == pytest.approx(flops["current"], rel=0.2)  # the same forward, padded otherwise
    for row in spent.values():
        lowest, highest = row["seconds_per_sentence_range"]
        assert 0 < lowest <= row["seconds_per_sentence"] <= highest and row["peak_bytes"] >= 0


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_fused_attention_is_counted_with_grouped_queries_on_a_gpu_and_on_a_cpu(kv_heads):
    once = 2 * 3 * 8 * 5 * 7 * 16  # one of its products: 3 rows, 8 heads, 5 queries, 7 keys of 16 dimensions

    def work(device, way):
        q, k, v = (torch.zeros(3, heads, tokens, 16, device=device) for heads, tokens in
                   ((8, 5), (kv_heads, 7), (kv_heads, 7)))
        fused = getattr(torch.ops.aten, f"_scaled_dot_product_{way}attention")
        return lambda: fused(q, k, v, *([None, False] if "efficient" in way else []))

    with FakeTensorMode():
        assert bench.flops(work("cuda", "flash_")) == bench.flops(work("cuda", "efficient_")) == 2 * once
    q, k = (torch.zeros(3, heads, n, 16, requires_grad=True) for heads, n in ((8, 5), (kv_heads, 7)))
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, q, k, k, enable_gqa=True)
    assert bench.flops(attend) == 2 * once
    assert bench.flops(attend().sum().backward) == 5 * once  # the scores once more, and four of the way back
