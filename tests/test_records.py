"""A run beside the committed reference: where it lies, how it is named, compared and published."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_toy

from dpmkit import corpora, records, report, reproduce, runs
from dpmkit.__main__ import main
from dpmkit.settings import Settings, UserError

CHECKOUT = Path(__file__).resolve().parent.parent
WA = {0: {"window": 60.0, "dpm": 61.0, "majority": 30.0}, 1: {"window": 62.0, "dpm": 62.0, "majority": 30.0},
      2: {"window": 64.0, "dpm": 66.0, "majority": 30.0}}


def save(home, wa, overrides=None, profile="demo", **named):
    """A `methods` record whose rows have these WA; its settings."""
    settings = Settings.of(profile, overrides, home=str(home), **named)
    rows = [{"method": m, "WA": v, "WA_gain": v - wa["window"], "WA_interval": [v - 1, v + 1],
             "WA_gain_interval": [v - wa["window"] - 1, v - wa["window"] + 1], "WA_gain_speakers": None,
             **{k: [v - 1, v + 1] if "interval" in k else v for k in ("UA", "UA_interval", "WF1", "WF1_interval")}}
            for m, v in wa.items()]
    part = {"targets": 9, "conversations": 3, "methods": rows, "contrasts": []}
    listed = [{"method": m, "group": "method", "hears": "x"} for m in wa]
    records.save(settings, "methods", {
        "protocols": {"all-lengths": part, "complete": part}, "listed": listed, "notes": [], "losses": {},
        "nothing": float("nan"), "tuned": {"lr": 1e-3, "tried": 2, "conversations": 4}}, {"sllm": "k"}, 1.0)
    return settings


@pytest.fixture
def root(tmp_path):
    """A reference of three seeds."""
    for seed, wa in WA.items():
        save(tmp_path, wa, seed=seed)
    return tmp_path / "results"


def checkout(home):
    """A home that is a checkout: with a reference and pages that git tracks."""
    (home / "results").mkdir()
    for name in ("pyproject.toml", "README.md", "results/README.md"):
        (home / name).write_text(name)
    return {home / name: name.encode() for name in ("pyproject.toml", "README.md", "results/README.md")}


def test_own_results_lie_beside_the_reference_where_git_does_not_look(tmp_path):
    assert Settings().results_path == CHECKOUT / "results" / "own" / "demo-demo"
    assert "/results/own/" in (CHECKOUT / ".gitignore").read_text().splitlines()
    tracked = checkout(tmp_path)
    settings = save(tmp_path, WA[0])
    runs.write_json(tmp_path / "results" / "demo-demo" / "records" / "methods-fold1-seed0.json",
                    records.load(settings, "methods"))
    tracked[tmp_path / "results/demo-demo/records/methods-fold1-seed0.json"] = json.dumps(
        records.load(settings, "methods"), indent=1, ensure_ascii=False).encode() + b"\n"
    records.save_bench(settings, "context", {"rows": [], "x": 1}, 1.0)
    (tmp_path / "results" / "own" / "bench" / "context-demo.json").unlink()
    assert main(["report", "--home", str(tmp_path)]) == 0
    assert "[demo, `demo`](demo-demo/README.md)" in (tmp_path / "results" / "own" / "README.md").read_text()
    assert tracked == {p: p.read_bytes() for p in tracked}
    assert len(records.load_all(tmp_path / "results")) == 1, "own results are no part of the reference"


def test_runs_are_named_by_what_was_changed_and_keep_a_record_each(tmp_path):
    swept = [save(tmp_path, WA[0], {"memory.lr": lr}) for lr in (1e-3, 1e-2)]
    plain = save(tmp_path, WA[0], {"device": "cpu", "grid.cpus": 1, "memory.lr": 5e-5}, root="elsewhere")
    assert plain.run_name == "fold1-seed0" and len({s.run_name for s in (*swept, plain)}) == 3
    made = records.load_all(tmp_path / "results")
    assert sorted(r["changed"].get("memory.lr", 0) for r in made) == [0, 1e-3, 1e-2]
    assert records.load(swept[0], "methods")["changed"] == {"memory.lr": 1e-3}


def test_the_reference_is_of_the_profiles_as_they_are():
    """A profile that changed leaves records that are not its own: they are run anew, or say what they differ in."""
    for r in records.load_all(records.REFERENCE):
        now = Settings.of(r["profile"], r["changed"], corpus=r["corpus"], fold=r["fold"], seed=r["seed"])
        known = json.loads(json.dumps(now.flat()))  # a setting that came later is as it was before
        theirs = known | r["settings"] | {"home": now.home, "root": now.root}
        assert theirs == known and r["run"] == now.run_name, r["run"]


def test_a_copy_and_a_file_that_is_no_record_are_refused_by_name(root):
    first = root / "demo-demo" / "records" / "methods-fold1-seed1.json"
    for copied in (root / "demo-demo (copy)" / "records" / first.name, first.with_stem(f"{first.stem} (1)")):
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(first.read_bytes())
        with pytest.raises(UserError, match=re.escape(f"{copied} is a copy of demo-demo/records/{first.name}")):
            records.load_all(root)
        for text in ('{"kind": "methods"', '{"kind": "methods"}', "[{}]"):
            copied.write_text(text)
            with pytest.raises(UserError, match=re.escape(f"{copied} is no record: move it away")):
                records.load_all(root)
        copied.unlink()
    assert [r["seed"] for r in records.load_all(root)] == [0, 1, 2]


def test_benches_are_of_their_profile_and_own_ones_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "REFERENCE", tmp_path / "reference")
    demo, smoke = (Settings.of(p, home=str(tmp_path / "home")) for p in ("demo", "smoke"))
    for which, home in ((1, "reference home"), (2, "home")):
        at = demo.replace("home", str(tmp_path / home))
        records.save_bench(at, "context", {"rows": [], "which": which}, 1.0)
        if which == 1:
            at.own_path.rename(records.REFERENCE)
            assert records.load_bench(demo, "context")["results"]["which"] == 1
    file = demo.own_path / "bench" / "context-demo.json"
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"memory.prefix": 64', b'"memory.prefix": 32'))  # of another profile
    assert records.load_bench(demo, "context")["results"]["which"] == 1
    file.write_bytes(before)
    assert records.load_bench(smoke, "context") is None
    records.save_bench(smoke, "context", {"which": 3}, 1.0)
    records.save_bench(demo.replace("memory.rank", 2), "context", {"which": 4}, 1.0)
    assert file.read_bytes() == before
    assert [records.load_bench(s, "context")["results"]["which"]
            for s in (demo, smoke, demo.replace("memory.rank", 2))] == [2, 3, 4]


def test_a_run_ends_with_the_reference_row_by_row_and_leaves_it_as_it_is(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "REFERENCE", root)
    monkeypatch.setattr(corpora, "load", lambda _: make_toy()[0])
    monkeypatch.setattr(reproduce, "run", lambda cell, *_: save(cell.home, WA[0], seed=cell.seed))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    own = tmp_path / "own"
    save(own, WA[1], {"memory.lr": 1e-3})
    assert main(["reproduce", "--home", str(own), "--seeds", "0,7"]) == 0
    said = capsys.readouterr().out
    assert "| dpm | WA_gain | 1.0 | 1.0 | 0.0 | 1.0 | yes |" in said and "reproduced: 5 of 5 within" in said
    assert "No reference for `demo` on `demo`, fold1-seed7: " in said.splitlines()[-1]
    assert "memory.lr" not in said, "a run of other settings is none of this one"
    assert "\nreproduced: 5 of 5" in (own / "results" / "README.md").read_text()
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_publish_makes_own_results_the_reference(root, tmp_path, monkeypatch):
    readme, own = tmp_path / "README.md", tmp_path / "own"
    readme.write_text("\n".join(("x", report.BEGIN, report.END, "y")))
    monkeypatch.setattr(records, "REFERENCE", root)
    assert main(["publish", "--home", str(own)]) == 2, "nothing to publish"
    settings = save(own, {"window": 71.0, "dpm": 72.0})
    save(own, WA[0], profile="smoke")
    for at, rows in ((Settings.of("smoke", home=str(own)), []), (settings, [{"codes": 3}])):
        records.save_bench(at, "context", {"rows": rows}, 1.0).with_suffix(".parquet").touch()
    for at, names in ((settings.results_path, ("new", "both", ".new")), (root / "demo-demo", ("old", "both"))):
        for name in names:
            (at / "figures").mkdir(exist_ok=True)
            (at / "figures" / f"{name}-fold1-seed0.png").write_text(at.as_posix())
    page = settings.results_path / settings.run_name / "03_dpm_inference.html"
    page.parent.mkdir()
    page.touch()
    page.with_suffix(".ipynb").touch()
    assert main(["publish", "--home", str(own)]) == 0
    assert {r["seed"]: r["results"]["protocols"]["complete"]["methods"][0]["WA"]
            for r in records.load_all(root)} == {0: 71.0, 1: 62.0, 2: 64.0}
    assert {p.name: p.read_text() == settings.results_path.as_posix()
            for p in (root / "demo-demo" / "figures").glob("*-seed0.png")} == {
        "both-fold1-seed0.png": True, "new-fold1-seed0.png": True, "old-fold1-seed0.png": False}
    assert {p.name for p in (root / "bench").iterdir()} == {"context-demo.json", "context-demo.parquet",
                                                              "README.md"}
    assert not (root / "smoke-demo").exists()
    assert "+1.0 [+0.0, +2.0]" in readme.read_text() and "(context-demo.json)" in (
        root / "bench" / "README.md").read_text()
    assert "(demo-demo/fold1-seed0/03_dpm_inference.ipynb) | [03](demo-demo/fold1-seed0/03_dpm_inference.html)" in (
        root / "README.md").read_text()
    assert "72.0 [71.0, 73.0]" in (root / "demo-demo" / "fold1-seed0.md").read_text()


def test_every_prediction_is_kept_beside_its_record(tmp_path):
    settings = Settings.of("demo", home=str(tmp_path))
    rows = pd.DataFrame({"conversation": ["c", "c"], "session": "s", "utterance": ["u", "v"], "speaker": "p",
                         "turn": [0, 1], "start": 0.0, "end": 1.0, "emotion": ["neu", None]})
    answers = {name: rows.assign(p_neu=[0.123456, p], p_sad=[0.876544, 1 - p], loss=[np.nan, 3.0])
               for name, p in (("window", 0.25), ("dpm", 0.75))}
    path = records.save_answers(records.path(settings, "methods"), answers)
    assert path == records.path(settings, "methods").parent / "methods-fold1-seed0.parquet"
    kept = pd.read_parquet(path)
    assert list(kept) == ["method", "conversation", "utterance", "speaker", "turn", "emotion", "p_neu", "p_sad"]
    assert kept["method"].tolist() == ["window"] * 2 + ["dpm"] * 2 and kept["turn"].tolist() == [0, 1] * 2
    assert kept["emotion"].fillna("none").tolist() == ["neu", "none"] * 2
    for name, table in answers.items():
        own = kept[kept["method"] == name][["p_neu", "p_sad"]]
        np.testing.assert_array_equal(own, table[["p_neu", "p_sad"]].astype("float32"))
    record = {"kind": "methods", "profile": "demo", "corpus": "demo", "run": "fold1-seed0"}
    root = tmp_path / "results"
    assert records.load_answers(root, record)["dpm"]["p_neu"].tolist() == pytest.approx([0.123456, 0.75])
    os.utime(records.save_answers(path, {"dpm": answers["window"]}), (1, 1))  # predicted anew
    assert list(records.load_answers(root, record)) == ["dpm"]
