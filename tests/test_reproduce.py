"""The command line: the user's mistakes end in one line and exit code 2, and the report is made of records."""

import json
from pathlib import Path

import nbformat
import pytest

from dpmkit import records, report, reproduce, tables
from dpmkit.__main__ import main
from dpmkit.settings import Settings, UserError

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("arguments", "words"), [
    (["--profile", "huge"], "profile 'huge' is not known; choose one of smoke, demo, smollm2, paper"),
    (["--corpus", "ravdess"], "corpus 'ravdess' is not known; choose one of demo, emodb"),
    (["--corpus", "emodb"], "needs a root"),
    (["--corpus", "emodb", "--root", "nowhere"], "is not a folder"),
    (["--corpus", "emodb", "--root", "."], "wav/03a01Fa.wav"),
    (["--set", "memory.rnk=3"], "setting 'memory.rnk' is not known; known settings: "),
    (["--set", "memory.rank=three"], "memory.rank must be a valid integer"),
    (["--set", "memory.rank"], "NAME=VALUE"),
    (["--set", "codes.tokenizer=mp3"], "known tokenizers: kmeans"),
    (["--folds", "9"], "fold 9 does not exist"),
    (["--folds", "first"], "--folds takes numbers"),
    (["--notebooks", "07"], "names none of"),
])
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "tokenizer" in arguments[-1]:
        arguments = [*arguments, "--notebooks", "01"]
    code = main(["reproduce", "--profile", "smoke", "--home", str(tmp_path), *arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and said.startswith("dpmkit: ") and words in said
    assert not list((tmp_path / "results").rglob("*.html")), "nothing half-written"


def test_a_home_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "--profile", "smoke", "--home", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_failing_notebook_is_named_and_its_results_stay_absent(tmp_path, monkeypatch, capsys):
    broken = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}}, cells=[
        nbformat.v4.new_code_cell("profile = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("raise ZeroDivisionError('by design')")])
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(broken, folder / "01_data_prep.ipynb")
    monkeypatch.setattr(reproduce, "SOURCE", folder)
    assert main(["reproduce", "--profile", "smoke", "--home", str(tmp_path), "--notebooks", "01"]) == 1
    said = capsys.readouterr().err
    assert "notebook 01_data_prep failed" in said and "ZeroDivisionError: by design" in said
    assert not list((tmp_path / "results").rglob("*.html"))


def row(method: str, wa: float, gain: float, low: float, high: float) -> dict:
    out = {"method": method}
    for m in ("WA", "UA", "WF1"):
        out |= {m: wa, f"{m}_interval": [wa - 2, wa + 2], f"{m}_gain": gain, f"{m}_gain_interval": [low, high]}
    return out


def a_record(home: Path, low: float, high: float, seed: int = 0, fold: int = 1) -> dict:
    rows = [row("window", 60, 0, 0, 0), row("dpm", 60 + (low + high) / 2, (low + high) / 2, low, high),
            row("dpm-swapped", 60.5, 0.5, -1, 2)]
    part = {"targets": 9, "conversations": 3, "methods": rows}
    settings = Settings.of("demo", home=str(home), seed=seed, fold=fold, root=str(home / "secret" / "emodb"))
    records.save(settings, "methods", {
        "protocols": {"all-lengths": part, "complete": part}, "hears": {r["method"]: "x" for r in rows},
        "notes": [], "tuned": {"lr": 1e-3, "tried": 2, "conversations": 4}, "nothing": float("nan"),
    }, {"sllm": "k"}, 1.0)
    return records.load(settings, "methods")


def test_records_hold_no_path_and_tables_hold_the_records_numbers(tmp_path):
    record = a_record(tmp_path, 1.0, 3.0)
    assert str(tmp_path) not in json.dumps(record) and record["settings"]["root"] == "emodb"
    assert record["results"]["nothing"] is None
    table = tables.methods(record, "complete").set_index("method")
    assert table.loc["dpm", "WA"] == "62.0 [60.0, 64.0]"
    assert table.loc["dpm", "WA against window"] == "+2.0 [+1.0, +3.0]"
    with pytest.raises(UserError, match="run notebook 04"):
        records.load(Settings.of("demo", home=str(tmp_path)), "ablations")


def test_the_reports_are_made_of_records_alone(tmp_path):
    a_record(tmp_path, 1.0, 3.0)
    root, readme = tmp_path / "results", tmp_path / "README.md"
    marked = f"# x\n\n{report.BEGIN}\nstale\n{report.END}\n\n{report.PLAN}\n{report.END_PLAN}\nrest\n"
    readme.write_text(marked)
    report.write(root)
    assert "62.0 [60.0, 64.0]" in (root / "README.md").read_text() and readme.read_text() == marked
    report.publish(root, readme)
    first = (root / "README.md").read_text(), readme.read_text()
    assert all("62.0 [60.0, 64.0]" in text for text in first)
    assert "stale" not in first[1] and first[1].endswith("\nrest\n")
    report.publish(root, readme)
    assert first == ((root / "README.md").read_text(), readme.read_text())
    readme.write_text("no markers")
    with pytest.raises(UserError, match="lacks the marker"):
        report.publish(root, readme)


def test_seeds_share_one_table_of_means(tmp_path):
    made = [a_record(tmp_path, 1.0, 3.0), a_record(tmp_path, 3.0, 5.0, seed=1)]
    table = tables.spread(made, "seeds").set_index("method")
    assert table.loc["dpm"].tolist() == ["63.0", "62.0 to 64.0", "+3.0", "+2.0 to +4.0"]
    said = report.summary(made[::-1])
    assert said.count("**`demo` profile") == 1 and "seed 0**" in said and "Trained anew with 2 seeds" in said
    assert "| dpm | 63.0 |" in report.page(made, tmp_path)


def test_folds_share_one_table_of_means_and_only_the_first_has_its_own(tmp_path):
    made = [a_record(tmp_path, low, low + 2, fold=fold) for low, fold in ((1.0, 1), (3.0, 2), (5.0, 4))]
    said = report.summary(made[::-1])
    assert said.count("**`demo` profile") == 1 and "fold 1, seed 0**" in said and "Folds 1, 2, 4 (seed 0)" in said
    assert "| dpm | 64.0 | 62.0 to 66.0 | +4.0 | +2.0 to +6.0 |" in said and "seeds:" not in said
    assert report.page(made, tmp_path).count("## Folds: `demo` profile on `demo`\n") == 1


def test_the_committed_pages_are_those_of_the_committed_records():
    root = records.REFERENCE
    made, first = report.published(root)
    assert (root / "README.md").read_text(encoding="utf-8") == report.page(made, root, first)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    block = readme.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    assert block == report.block(made).strip()
