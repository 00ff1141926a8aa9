"""The five notebooks as a user runs them: headlessly, from another folder, twice."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tree_iemocap
import tree_manifest
import tree_meld
from conftest import without_times

from dpmkit import records, report
from dpmkit.metrics import DECLARED
from dpmkit.reproduce import NOTEBOOKS
from dpmkit.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
EMODB = CHECKOUT.parent / "shared" / "data" / "emodb"


def reproduce(home: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """`python -m dpmkit reproduce` on the smoke profile, as a process of its own."""
    return subprocess.run([sys.executable, "-m", "dpmkit", "reproduce", "--profile", "smoke", "--home", str(home),
                           *arguments], cwd=cwd, capture_output=True, text=True, timeout=900)


def digests() -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in SOURCES}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A whole smoke run, started from a folder that is neither the checkout nor the home."""
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("else where")
    before = digests()
    done = reproduce(home, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    return home, before, done


def test_sources_are_thin_and_bare():
    assert [p.stem for p in SOURCES] == list(NOTEBOOKS)
    for path in SOURCES:
        notebook = nbformat.read(path, as_version=4)
        code = [c for c in notebook.cells if c.cell_type == "code"]
        assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1, path.name
        for cell in code:
            assert not cell.outputs and cell.execution_count is None, f"{path.name} was committed with outputs"
            assert not re.search(r"^\s*(def|class) ", cell.source, re.M), f"{path.name}: code belongs in dpmkit/"
            lines = cell.source.splitlines()
            assert len(lines) <= 20, f"{path.name}: a long cell\n{cell.source}"
            assert not [line for line in lines if len(line) > 110], f"{path.name}: a long line\n{cell.source}"
        headings = [c.source.splitlines()[0] for c in notebook.cells if c.cell_type == "markdown"]
        wanted = ["## Parameters", "## Setup", "## Load", "## Record", "## Checks"]
        assert [h for h in headings if h in wanted] == wanted, path.name


def test_a_run_from_elsewhere_leaves_records_figures_and_pages(smoke):
    home, before, done = smoke
    folder = home / "results" / "smoke-demo"
    for name in NOTEBOOKS:
        page = (folder / "fold1-seed0" / f"{name}.html").read_text(encoding="utf-8")
        assert not any(w in page for w in ("Traceback (most recent", "<progress", str(home)))
        assert (folder / "fold1-seed0" / f"{name}.ipynb").is_file()
    assert 'audio/wav;base64' in (folder / "fold1-seed0" / "01_data_prep.html").read_text(encoding="utf-8")
    settings = Settings.of("smoke", home=str(home))
    for kind in records.KINDS:
        assert str(home) not in json.dumps(records.load(settings, kind))
    for figure in ("durations", "transitions", "codes", "losses", "confusion", "trace", "methods", "recalls",
                   "confusions", "reliability", "lengths", "ablations", "engine", "rules", "robustness",
                   "positions", "pareto", "cost"):
        path = folder / "figures" / f"{figure}-fold1-seed0.png"
        assert 2_000 < path.stat().st_size < 300_000, figure
    assert digests() == before, "papermill must not write its input"
    assert "| dpm |" in done.stdout and "[1/5] 01_data_prep" in done.stderr
    page = report.page(records.load_all(home / "results"), home / "results")
    links = re.findall(r'(?:\]\(|src="|href=")([^)"#]+)', page)
    assert len(links) > 20 and all((home / "results" / link).is_file() for link in links)


def test_the_methods_record_is_complete(smoke):
    record = records.load(Settings.of("smoke", home=str(smoke[0])), "methods")
    listed = {row["method"]: row for row in record["results"]["listed"]}
    wanted = set(listed)
    for protocol in ("all-lengths", "complete"):
        rows = record["results"]["protocols"][protocol]["methods"]
        assert {r["method"] for r in rows} == wanted
        # four speakers are too few for an interval over them, and kept memories have no other
        assert {r["method"] for r in rows if None in r["WA_interval"]} == {m for m in wanted if "-kept" in m}
        assert all(r["WA_interval"][0] <= r["WA"] <= r["WA_interval"][1] for r in rows
                   if "-kept" not in r["method"])
        tested = record["results"]["protocols"][protocol]["contrasts"]
        assert {r["contrast"] for r in tested if 0 < r.get("p_holm", 0) <= 1} == {f"{a} - {b}" for a, b in DECLARED}
    assert all(listed[m]["hears"] for m in wanted)
    assert record["commit"] and record["packages"]["torch"] and record["settings"]["memory.rank"] == 4


def test_what_is_ablated_is_chosen_by_absolute_wa_and_compares_l_t_of_the_same_tokens(smoke):
    settings = Settings.of("smoke", home=str(smoke[0]))
    results, tuned = (records.load(settings, kind)["results"] for kind in ("ablations", "methods"))
    rows, rated = results["rows"], tuned["tuned"]["validation_WA"]["dpm"]
    assert results["lr"] == tuned["tuned"]["lr"] > 0
    assert rated[str(results["lr"])] == max(wa for lr, wa in rated.items() if float(lr) > 0)
    assert {r["memory"]["lr"] for r in rows if not r["setting"].startswith("lr")} == {results["lr"]}
    assert results["best"]["memory"] == max(rows, key=lambda r: r["WA"])["memory"]
    for row in rows:
        other = row["memory"].get("prefix") == 0 or row["memory"].get("scope") == "speaker"
        assert (row["L_t"] is None) == other, row


def test_the_whole_run_twice_gives_the_same_records_but_for_times(smoke, tmp_path):
    again = reproduce(tmp_path, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    for kind in records.KINDS:
        first, second = (without_times(records.load(Settings.of("smoke", home=str(h)), kind))
                         for h in (smoke[0], tmp_path))
        assert first == second, kind


def test_a_second_run_uses_what_is_there(smoke):
    home = smoke[0]
    kept = {p: p.stat().st_mtime_ns for stage in ("codes", "sllm", "predictions", "classifier", "corpus")
            for p in (home / "runs" / stage).rglob("*") if p.is_file()}
    done = reproduce(home, "--notebooks", "03", cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    assert {p for p in (home / "runs" / "predictions").rglob("*.parquet")} <= set(kept)


@pytest.mark.skipif(not EMODB.is_dir(), reason="REAL DATA ABSENT: ../shared/data/emodb; EmoDB not run")
def test_real_speech_runs_through_all_five_and_embeds_no_audio(tmp_path):
    root = os.path.relpath(EMODB, tmp_path)
    done = reproduce(tmp_path, "--corpus", "emodb", "--root", root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "results" / "smoke-emodb" / "fold1-seed0"
    assert sorted(p.stem for p in folder.glob("*.html")) == list(NOTEBOOKS)
    assert not any("audio/" in p.read_text(encoding="utf-8") for p in folder.iterdir())
    record = records.load(Settings.of("smoke", corpus="emodb", home=str(tmp_path)), "data")
    assert record["results"]["skipped_count"] == 3 and record["settings"]["root"] == "emodb"


@pytest.mark.parametrize("corpus", ["iemocap", "meld", "manifest"])
def test_every_layout_runs_through_all_five(corpus, tmp_path):
    """`make notebooks PROFILE=smoke CORPUS=… ROOT=…` on a generated tree of the official layout."""
    if corpus == "iemocap" and not tree_iemocap.CSV.is_file():
        pytest.skip(f"REAL DATA ABSENT: {tree_iemocap.CSV}; the IEMOCAP tree cannot be generated")
    root = tmp_path / "a tree"
    {"iemocap": tree_iemocap, "meld": tree_meld, "manifest": tree_manifest}[corpus].make(root)
    done = reproduce(tmp_path, "--corpus", corpus, "--root", str(root), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "results" / f"smoke-{corpus}" / "fold1-seed0"
    assert sorted(p.stem for p in folder.glob("*.html")) == list(NOTEBOOKS)
    page = (folder / "01_data_prep.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in page and "audio/" not in page and "Traceback (most recent" not in page
    record = records.load(Settings.of("smoke", corpus=corpus, home=str(tmp_path)), "data")["results"]
    published = [row for row in record["published"] if row["published"] is not None]
    assert bool(published) == (corpus != "manifest")
    if corpus == "iemocap":
        assert sum(row["found"] for row in published) == sum(row["published"] for row in published) == 5531
    if corpus == "meld":
        absent = sum(row["published"] - row["found"] for row in published)
        assert absent > 13_000 and any(f"{absent} of the 13708" in note for note in record["notes"])
        assert len(record["skipped"]) == record["skipped_count"] > 2


def test_make_passes_what_it_is_told():
    shown = subprocess.run(
        ["make", "-n", "-o", ".venv/.complete", "notebooks", "PROFILE=smoke", "CORPUS=manifest", "ROOT=my own",
         "FOLDS=all", "SEEDS=0,1", "SET=memory.lr=1e-3 codes.tokenizer=mimi"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for part in ("--profile smoke", "--corpus manifest", '--root "my own"', "--folds all", "--seeds 0,1",
                 "--set 'memory.lr=1e-3'", "--set 'codes.tokenizer=mimi'"):
        assert part in shown


@pytest.mark.parametrize(("target", "profile"), [("quick", "quick"), ("table1", "demo")])
def test_make_has_shorter_paths_to_table_1(target, profile):
    shown = subprocess.run(["make", "-n", "-o", ".venv/.complete", target], cwd=CHECKOUT, capture_output=True,
                           text=True, check=True).stdout
    assert f"--profile {profile} " in shown and "--notebooks 01,02,03" in shown
