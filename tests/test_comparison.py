"""A run beside the committed reference: where it lies, how it is named, compared and published."""

import json
import os
import subprocess
from pathlib import Path

import nbformat
import numpy as np
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
             "WA_gain_interval": [v - wa["window"] - 1, v - wa["window"] + 1],
             **{k: [v - 1, v + 1] if "interval" in k else v for k in ("UA", "UA_interval", "WF1", "WF1_interval")}}
            for m, v in wa.items()]
    part = {"targets": 9, "conversations": 3, "methods": rows}
    listed = [{"method": m, "group": "method", "hears": "x"} for m in wa]
    records.save(settings, "methods", {
        "protocols": {"all-lengths": part, "complete": part}, "listed": listed, "notes": [],
        "tuned": {"lr": 1e-3, "tried": 2, "conversations": 4}}, {}, 1.0)
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
    assert "## `demo` profile on `demo`" in (tmp_path / "results" / "own" / "README.md").read_text()
    assert tracked == {p: p.read_bytes() for p in tracked}
    assert len(records.load_all(tmp_path / "results")[0]) == 1, "own results are no part of the reference"


def test_runs_are_named_by_what_was_changed_and_keep_a_record_each(tmp_path):
    swept = [save(tmp_path, WA[0], {"memory.lr": lr}) for lr in (1e-3, 1e-2)]
    plain = save(tmp_path, WA[0], {"device": "cpu", "grid.cpus": 1, "memory.lr": 5e-5}, root="elsewhere")
    assert plain.run_name == "fold1-seed0" and len({s.run_name for s in (*swept, plain)}) == 3
    made, copies = records.load_all(tmp_path / "results")
    assert not copies and sorted(r["changed"].get("memory.lr", 0) for r in made) == [0, 1e-3, 1e-2]
    assert records.load(swept[0], "methods")["changed"] == {"memory.lr": 1e-3}
    page = report.page(made, tmp_path / "results")
    for lr in ("0.001", "0.01"):
        assert f"## `demo` profile on `demo`, fold 1, seed 0, `memory.lr` = {lr}\n" in page
        assert f"**`demo` profile on `demo`, fold 1, seed 0, `memory.lr` = {lr}**" in report.summary(made)
    assert "seeds:" not in report.summary(made) and swept[0].run_name in page


def test_a_copied_record_counts_once_and_is_named(root):
    copied = root / "demo-demo (copy)" / "records" / "methods-fold1-seed1.json"
    copied.parent.mkdir(parents=True)
    (root / "demo-demo" / "records" / "methods-fold1-seed2.json").rename(
        root / "demo-demo" / "records" / "methods-fold1-seed2 (1).json")
    copied.write_bytes((root / "demo-demo" / "records" / "methods-fold1-seed1.json").read_bytes())
    made, copies = records.load_all(root)
    assert [r["seed"] for r in made] == [0, 1]
    assert sorted(copies) == ["demo-demo (copy)/records/methods-fold1-seed1.json",
                              "demo-demo/records/methods-fold1-seed2 (1).json"]
    assert ", ".join(copies) in report.write(root).read_text()
    copied.write_text('{"kind": "methods"')
    with pytest.raises(UserError, match=r"copy.*methods-fold1-seed1.json is no record"):
        records.load_all(root)


def test_benches_are_of_their_profile_and_own_ones_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "REFERENCE", tmp_path / "reference")
    demo, smoke = (Settings.of(p, home=str(tmp_path / "home")) for p in ("demo", "smoke"))
    for which, home in ((1, "reference home"), (2, "home")):
        at = demo.replace("home", str(tmp_path / home))
        records.save_bench(at, "context", {"rows": [], "which": which}, 1.0)
        if which == 1:
            at.own_path.rename(records.REFERENCE)
            assert records.load_bench(demo, "context")["results"]["which"] == 1
    before = (demo.own_path / "bench" / "context-demo.json").read_bytes()
    assert records.load_bench(smoke, "context") is None
    records.save_bench(smoke, "context", {"which": 3}, 1.0)
    records.save_bench(demo.replace("memory.rank", 2), "context", {"which": 4}, 1.0)
    assert (demo.own_path / "bench" / "context-demo.json").read_bytes() == before
    assert [records.load_bench(s, "context")["results"]["which"]
            for s in (demo, smoke, demo.replace("memory.rank", 2))] == [2, 3, 4]


def test_the_tolerance_is_of_the_spread_over_seeds_and_processors(root, tmp_path):
    save(tmp_path, {"window": 0.0, "dpm": 90.0}, {"memory.lr": 1e-3})  # other settings are no spread of this run
    figures = {"window": 63.9, "dpm": 60.0, "majority": 30.2, "new": 1.0}
    own = records.load(save(tmp_path / "own", figures), "methods")
    table = records.compared(own, records.spread(own, root)).set_index(["method", "measure"])
    assert table.loc[("window", "WA"), "tolerance"] == pytest.approx(2 * np.std([60, 62, 64], ddof=1)) == 4.0
    assert table.loc[("dpm", "gain"), "tolerance"] == pytest.approx(2.0)  # of gains of 1, 0 and 2
    assert table.loc[("majority", "WA"), "tolerance"] == records.ROUNDING  # alike in every run
    assert table.loc[("dpm", "gain"), "difference"] == pytest.approx(-4.9)
    assert table["within"].to_dict() == {
        ("window", "WA"): True, ("dpm", "WA"): True, ("dpm", "gain"): False, ("majority", "WA"): False,
        ("majority", "gain"): True, ("new", "WA"): None, ("new", "gain"): None}
    said = records.compared_lines(own, root)
    assert said[-2] == "reproduced: 3 of 5 within tolerance (WA 2 of 3, gains 1 of 2)"
    assert "two sample standard deviations over the reference's 3 runs" in said[2] and "seeds 0, 1, 2" in said[2]
    assert "| dpm | 61.0 | 60.0 | -1.0 | 5.3 | yes | +1.0 | -3.9 | -4.9 | 2.0 | NO |" in said[4]
    elsewhere = root / "demo-demo" / "processors" / "epyc" / "methods-fold1-seed0.json"
    elsewhere.parent.mkdir(parents=True)
    records.path(save(tmp_path / "epyc", {"window": 70.0, "dpm": 70.0}), "methods").rename(elsewhere)
    again = records.compared(own, records.spread(own, root)).set_index(["method", "measure"])
    assert again.loc[("window", "WA"), "tolerance"] == pytest.approx(2 * np.std([60, 62, 64, 70], ddof=1))
    assert again.loc[("window", "WA"), "reference"] == 60.0 and len(records.load_all(root)[0]) == 4
    page = report.page(records.load_all(root)[0], root)  # beside the run of that seed, and no other
    assert page.count("The same run on other processors") == 1 and "| 70.0 | 70.0 | +0.0 |" in page
    assert page.index("The same run on other") < page.index("seed 1", page.index("## "))


def test_a_row_of_a_single_run_borrows_its_groups_largest_tolerance(tmp_path):
    save(tmp_path, {**WA[0], "dpm-tuned": 61.5})
    save(tmp_path, WA[1], seed=1)
    own = records.load(save(tmp_path / "own", {**WA[0], "dpm-tuned": 64.2}), "methods")
    table = records.compared(own, records.spread(own, tmp_path / "results")).set_index(["method", "measure"])
    assert table.loc[("dpm-tuned", "WA"), "tolerance"] == pytest.approx(2 * np.std([60, 62], ddof=1))
    assert table["borrowed"].to_dict() == {k: k[0] == "dpm-tuned" for k in table.index}
    assert "| 2.8* | yes |" in "\n".join(records.compared_lines(own, tmp_path / "results"))


def test_without_a_reference_or_a_spread_it_says_so(root, tmp_path):
    for other in ({"profile": "smoke"}, {"corpus": "emodb"}, {"fold": 2}, {"seed": 7},
                  {"overrides": {"memory.lr": 1e-3}}):
        own = records.load(save(tmp_path / "own", WA[0], **other), "methods")
        name = f"`{own['profile']}` on `{own['corpus']}`, {records.run_of(own)}"
        assert records.compared_lines(own, root) == [f"No reference for {name}: nothing to compare it with.", ""]
    for seed in (1, 2):
        (root / "demo-demo" / "records" / f"methods-fold1-seed{seed}.json").unlink()
    own = records.load(save(tmp_path / "own", WA[0]), "methods")
    said = records.compared_lines(own, root)
    assert "one run of this fold" in said[2] and said[-2].startswith("reproduced: not judged")
    moved = own | {"settings": own["settings"] | {"memory.lr": 0.1, "device": "cuda"}}
    assert "made with other settings: memory.lr 5e-05 (here 0.1)." in records.compared_lines(moved, root)[2]


def test_a_run_ends_with_the_reference_row_by_row_and_leaves_it_as_it_is(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "REFERENCE", root)
    monkeypatch.setattr(corpora, "load", lambda _: make_toy()[0])
    monkeypatch.setattr(reproduce, "run", lambda cell, *_: save(cell.home, WA[0], seed=cell.seed))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    own = tmp_path / "own"
    save(own, WA[1], {"memory.lr": 1e-3})
    assert main(["reproduce", "--home", str(own), "--seeds", "0,7"]) == 0
    said = capsys.readouterr().out
    assert "reproduced: 5 of 5 within tolerance (WA 3 of 3, gains 2 of 2)" in said
    assert "No reference for `demo` on `demo`, fold1-seed7: " in said.splitlines()[-2]
    assert "memory.lr" not in said, "a run of other settings is none of this one"
    assert "\nreproduced: 5 of 5" in (own / "results" / "README.md").read_text()
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_publish_makes_own_results_the_reference(root, tmp_path, monkeypatch):
    readme, own = tmp_path / "README.md", tmp_path / "own"
    readme.write_text("\n".join(("x", report.BEGIN, report.END, report.PLAN, report.END_PLAN, "y")))
    monkeypatch.setattr(records, "REFERENCE", root)
    assert main(["publish", "--home", str(own)]) == 2, "nothing to publish"
    settings = save(own, {"window": 71.0, "dpm": 72.0})
    save(own, WA[0], profile="smoke")
    records.save_bench(Settings.of("smoke", home=str(own)), "context", {"rows": []}, 1.0)
    row = dict.fromkeys(("hours", "codes", "seconds_per_sentence", "processor_seconds_per_sentence",
                         "resident_bytes", "norm", "L_t", "WA"), 1)
    records.save_bench(settings, "stream-1h", {"rows": [row], "lr": 1.0}, 1.0)
    for at, names in ((settings.results_path, ("new", "kept")), (root / "demo-demo", ("old", "kept"))):
        for name in names:
            (at / "figures").mkdir(exist_ok=True)
            (at / "figures" / f"{name}-fold1-seed0.png").write_text(at.as_posix())
    (root / "demo-demo" / "figures" / "old-fold1-seed1.png").touch()
    page = settings.results_path / settings.run_name / "03_dpm_inference.html"
    page.parent.mkdir()
    page.touch()
    assert main(["publish", "--home", str(own)]) == 0
    assert {r["seed"]: r["results"]["protocols"]["complete"]["methods"][0]["WA"]
            for r in records.load_all(root)[0]} == {0: 71.0, 1: 62.0, 2: 64.0}
    assert sorted(p.name for p in (root / "demo-demo" / "figures").iterdir()) == [
        "kept-fold1-seed0.png", "new-fold1-seed0.png", "old-fold1-seed1.png"]
    assert [p.name for p in (root / "bench").iterdir()] == ["stream-1h-demo.json"]
    assert not (root / "smoke-demo").exists()
    assert "72.0 [71.0, 73.0]" in readme.read_text() and "stream-1h-demo.json" in (root / "README.md").read_text()
    assert "(demo-demo/fold1-seed0/03_dpm_inference.html)" in (root / "README.md").read_text()


def test_what_is_not_run_is_said_until_it_is(root, tmp_path):
    made, first = report.published(root)
    assert "`demo` profile on `emodb`**: not run" in first[0] and "not run" in report.block(made)
    assert "`smollm2` profile on `demo`**: not run" in first[2]
    save(tmp_path, WA[0], corpus="emodb")
    made, first = report.published(root)
    assert len(first) == 2 and "emodb" not in first[0]
    save(tmp_path, WA[0], profile="smollm2")
    made, first = report.published(root)
    assert not first and "not run" not in report.block(made).replace("run notebook", "")


def test_after_notebooks_01_and_02_the_summary_says_what_they_found(tmp_path):
    settings = Settings.of("smoke", home=str(tmp_path))
    rows = [{"method": "single utterance", "WA": 0.681, "UA": 0.689}]
    records.save(settings, "data", {"conversations": 20, "utterances": 123, "hours": 0.5, "speakers": 4,
                                    "skipped_count": 0, "reference": {"validation": rows, "test": rows}}, {}, 1.0)
    made = records.load_all(tmp_path / "results")[0]
    said = report.summary(made)
    assert "123 utterances" in said and "test fold, WA / UA in %: single utterance 68.1 / 68.9." in said
    records.save(settings, "backbone", {
        "parameters": 870784, "trained_parameters": 870784, "best_epoch": 2, "history": [
            {"epoch": e, "eval_l_a": 4.0 + e, "eval_l_e": 0.8, "eval_wa": 0.65 + e / 100, "eval_ua": 0.66}
            for e in (1, 2, 3)]}, {}, 1.0)
    said = report.summary(records.load_all(tmp_path / "results")[0])
    assert "best epoch 2 of 3; validation there: L_a 6.000, L_e 0.800, WA 67.0, UA 66.0." in said
    assert said.count("**`smoke` profile on `demo`, fold 1, seed 0**") == 1 and "No record yet" not in said
    assert "No record yet" in report.summary([])


def test_pages_and_records_hold_no_path_of_this_machine(tmp_path, monkeypatch):
    home = tmp_path / "Zoë's \"home\" back\\slash"
    source, root = home / "secret" / "llama", home / "secret" / "recordings"
    for folder in (source, root):
        folder.mkdir(parents=True)
    monkeypatch.setattr(reproduce, "SOURCE", tmp_path / "notebooks")
    reproduce.SOURCE.mkdir()
    cells = [nbformat.v4.new_code_cell("home = ''", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("from pathlib import Path\nPath(home, 'given').write_text(\n"
                                       "    f\"{root} {overrides['backbone.source']}\")")]
    nbformat.write(nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}}, cells=cells),
                   reproduce.SOURCE / "01_data_prep.ipynb")
    changes = {"backbone.source": str(source), "memory.lr": 1e-3}
    settings = Settings.of("smoke", changes, home=str(home), root=str(root), corpus="manifest")
    reproduce.run(settings, ["01_data_prep"], changes)
    assert (home / "given").read_text() == f"{root} {source}", "the kernel has the real ones"
    records.save(settings, "data", {}, {}, 1.0)
    published = [p for p in settings.results_path.rglob("*") if p.is_file()]
    assert len(published) == 3
    for path in published:
        text = path.read_text(encoding="utf-8")
        assert not [w for w in ("Zoë", "Zo\\u00eb", "Zo\\xeb", "slash", "secret", tmp_path.name) if w in text], path
        assert "llama" in text and "recordings" in text
    hub = Settings.of("smoke", {"backbone.source": "org/name"}, home=str(home))
    assert hub.shown("backbone.source", "org/name") == "org/name"


@pytest.mark.parametrize(("was", "interpreter", "wanted"), [
    ("here", True, ""), ("moved", True, "--clear"), ("here", False, "--clear")])
def test_a_copied_or_moved_checkout_is_set_up_again(was, interpreter, wanted, tmp_path):
    home = tmp_path / "a cop'y"
    environment = home / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("/bin/sh" if interpreter else tmp_path / "gone")
    made_at = environment if was == "here" else tmp_path / "first" / ".venv"
    (environment / "pyvenv.cfg").write_text(f"version = 3.11\ncommand = /usr/bin/python3 -m venv {made_at}\n")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (home / name).write_bytes((CHECKOUT / name).read_bytes())
    (environment / ".complete").touch()
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(["make", "-n", "report"], cwd=home, env=plain, capture_output=True, text=True,
                           check=True).stdout  # `make test` runs this test: its own words are not wanted here
    assert ("-m venv --clear .venv" in shown) == bool(wanted) == ("pip install" in shown)
    assert shown.splitlines()[-1] == ".venv/bin/python -m dpmkit report"
