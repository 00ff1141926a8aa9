"""Pages and tables say what their records say."""

import tomllib

import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_records import CHECKOUT, save

from dpmkit import metrics, records, report, tables
from dpmkit.settings import Settings, UserError

MARKED = f"# x\n\n{report.BEGIN}\nstale\n{report.END}\nrest\n"


def saved(home, wa, **named):
    return records.load(save(home, {"window": 60.0, "dpm": wa, "majority": 30.0}, **named), "methods")


def test_records_hold_no_path_and_tables_hold_the_records_numbers(tmp_path):
    record = saved(tmp_path, 62.0, root=str(tmp_path / "secret" / "emodb"))
    assert str(tmp_path) not in str(record) and record["settings"]["root"] == "emodb"
    assert record["results"]["nothing"] is None
    table = tables.methods(record, "complete").set_index("method")
    assert table.loc["dpm", "WA"] == "62.0 [61.0, 63.0]"
    assert table.loc["dpm", "WA against window"] == "+2.0 [+1.0, +3.0]"
    with pytest.raises(UserError, match="run notebook 04"):
        records.load(Settings.of("demo", home=str(tmp_path)), "ablations")


def test_the_reports_are_made_of_records_alone(tmp_path):
    saved(tmp_path, 62.0)
    root, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(MARKED)
    page = root / "demo-demo" / "fold1-seed0.md"
    report.write(root)
    assert "62.0 [61.0, 63.0]" in page.read_text() and readme.read_text() == MARKED
    page.unlink()
    assert report.write(root, readme) == [readme, root / "README.md", page]
    first = (root / "README.md").read_text(), readme.read_text()
    assert all("+2.0 [+1.0, +3.0]" in text for text in first) and "62.0 [61.0, 63.0]" in page.read_text()
    assert "(demo-demo/fold1-seed0.md)" in first[0] and "stale" not in first[1] and first[1].endswith("\nrest\n")
    report.write(root, readme)
    assert first == ((root / "README.md").read_text(), readme.read_text())
    readme.write_text("no markers")
    with pytest.raises(UserError, match="lacks the marker"):
        report.write(root, readme)


def test_a_runs_page_draws_a_few_figures_with_what_their_files_tell(tmp_path):
    record = saved(tmp_path, 62.0)
    folder = tmp_path / "results" / "demo-demo" / "figures"
    folder.mkdir()
    for name in ("cost", "headline", "losses"):
        told = PngInfo()
        told.add_text("Description", f"Told of {name}")
        Image.new("L", (1, 1)).save(folder / f"{name}-fold1-seed0.png", pnginfo=told)
    Image.new("L", (1, 1)).save(folder / "ablations-fold1-seed0.png")
    page = report.run_page({"methods": record}, tmp_path / "results")
    drawn = [line for line in page.splitlines() if "![" in line]
    assert drawn[::2] == ["![Told of headline](figures/headline-fold1-seed0.png)<br>*Told of headline*",
                          "![Told of cost](figures/cost-fold1-seed0.png)<br>*Told of cost*"]
    assert drawn[1].startswith("![ablations, `demo` profile on `demo`, fold 1, seed 0](figures/ablations-")


def test_seeds_share_one_table_of_means(tmp_path):
    made = [saved(tmp_path, 62.0), saved(tmp_path, 64.0, seed=1)]
    table = tables.spread(made).set_index("method")
    assert table.loc["dpm"].tolist() == ["63.0 [62.0, 64.0]", "+3.0 [+2.0, +4.0]"]
    page = report.page(made, tmp_path)
    assert "## Fold 1, seeds 0, 1: `demo` profile on `demo`\n" in page and "| dpm | 63.0 [62.0, 64.0] |" in page
    assert "mean of" not in report.page(made[:1], tmp_path)


def test_runs_share_a_row_of_means_and_have_a_page_each(tmp_path):
    made = [saved(tmp_path, wa, fold=fold) for wa, fold in ((62.0, 1), (64.0, 2), (66.0, 4))]
    summary, page = report.summary(made[::-1], tmp_path), report.page(made[::-1], tmp_path)
    assert "| folds 1, 2, 4, seed 0 |  | +4.0 [+2.0, +6.0] |" in summary and "headline-fold1-seed0.png" in summary
    places = [page.index(f"(demo-demo/fold{fold}-seed0.md) |") for fold in (1, 2, 4)]
    assert places == sorted(places) and page.count(".md) |") == 3


def test_folds_with_predictions_are_pooled_and_each_method_stands_over_all_of_them(tmp_path):
    for fold, hits in ((1, [1, 1, 0]), (2, [1, 0, 0])):
        settings = save(tmp_path, {"window": 60.0, "dpm": 61.0}, {"evaluation.bootstrap": 50}, fold=fold)
        rows = pd.DataFrame({"conversation": [f"f{fold}c{i}" for i in range(3)], "speaker": f"s{fold}", "turn": 0,
                             "utterance": [f"f{fold}u{i}" for i in range(3)], "emotion": "neu"})
        given = {"window": [0, 0, 0], "dpm": hits}
        records.save_answers(settings, {name: rows.assign(p_neu=[0.4 + 0.2 * hit for hit in of], p_sad=0.5)
                                        for name, of in given.items()})
    root = tmp_path / "results"
    made = records.load_all(root)
    page = report.page(made, root)
    assert "## Folds 1, 2, seed 0: `demo` profile on `demo`, `evaluation.bootstrap` = 50" in page
    assert "6 utterances, 6 conversations, 2 speakers." in page
    assert "| dpm | 50.0 [16.7, 83.3] | 50.0" in page and "| window | 0.0 [0.0, 0.0] |" in page
    assert "folds 1, 2, seed 0 |  | +50.0 [+16.7, +83.3]" in report.summary(made, root)
    assert records.load_answers(root, made[0]).keys() == {"window", "dpm"}
    next(root.rglob("answers-fold2*")).unlink()
    page = report.page(made, root)  # means where the predictions of one are absent
    assert "| dpm | 61.0 [61.0, 61.0] | +1.0" in page and not records.load_answers(root, made[1])


def test_seeds_answer_the_same_conversations_and_are_never_pooled(tmp_path):
    rows = pd.DataFrame({"conversation": ["c", "d"], "speaker": "s", "turn": 0, "utterance": ["u", "v"],
                         "emotion": "neu", "p_neu": 0.6, "p_sad": 0.4})
    for seed in (0, 1):
        settings = save(tmp_path, {"window": 60.0, "dpm": 61.0 + seed}, seed=seed)
        records.save_answers(settings, {"window": rows, "dpm": rows})
    root = tmp_path / "results"
    page = report.page(records.load_all(root), root)
    assert "| dpm | 61.5 [61.0, 62.0] | +1.5 [+1.0, +2.0] |" in page and "2 utterances" not in page
    assert "fold 1, seeds 0, 1 |  | +1.5 [+1.0, +2.0]" in page


def test_the_committed_pages_are_those_of_the_committed_records():
    root = records.REFERENCE
    made = records.load_all(root)
    assert (root / "README.md").read_text(encoding="utf-8") == report.page(made, root)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert readme.partition(report.BEGIN)[2].partition(report.END)[0].strip() == report.summary(made, root)
    assert len(readme.splitlines()) <= 130
    for kinds in report._runs(made):
        page = (root / report._place(kinds)).read_text(encoding="utf-8")
        assert page == report.run_page(kinds, root) and len(page.splitlines()) <= 200


def test_every_wa_of_every_table_comes_out_of_the_published_predictions():
    """Of every committed run that has its predictions beside it, both protocols."""
    checked = 0
    for record in (r for r in records.load_all(records.REFERENCE) if r["kind"] == "methods"):
        file = records.REFERENCE / f"{record['profile']}-{record['corpus']}/records/answers-{record['run']}.parquet"
        answers = pd.read_parquet(file).groupby("method") if file.is_file() else ()
        for protocol, part in record["results"]["protocols"].items():
            found = {}
            for method, table in answers:
                rows = metrics.targets(table, protocol)
                p = rows.filter(like="p_")
                said = p.columns.str.removeprefix("p_")[p.to_numpy().argmax(1)]
                found[method] = 100 * (said == rows["emotion"]).mean()
            assert not found or found == pytest.approx({r["method"]: r["WA"] for r in part["methods"]}, abs=1e-9)
            checked += len(found)
    assert checked


def run_page(root):
    kinds, = report._runs(records.load_all(root))
    return report.run_page(kinds, root)


def test_after_notebooks_01_and_02_a_runs_page_says_what_they_found(tmp_path):
    settings = Settings.of("smoke", home=str(tmp_path))
    rows = [{"method": "single utterance", "WA": 0.681, "UA": 0.689}]
    records.save(settings, "data", {"conversations": 20, "utterances": 123, "hours": 0.5, "speakers": 4,
                                    "skipped_count": 0, "reference": {"validation": rows, "test": rows}}, {}, 1.0)
    said = run_page(tmp_path / "results")
    assert "123 utterances" in said and "test fold, WA / UA in %: single utterance 68.1 / 68.9." in said
    records.save(settings, "backbone", {
        "parameters": 870784, "trained_parameters": 870784, "best_epoch": 2, "history": [
            {"epoch": e, "eval_l_a": 4.0 + e, "eval_l_e": 0.8, "eval_wa": 0.65 + e / 100, "eval_ua": 0.66}
            for e in (1, 2, 3)]}, {}, 1.0)
    said = run_page(tmp_path / "results")
    assert "best epoch 2 of 3; validation there: L_a 6.000, L_e 0.800, WA 67.0, UA 66.0." in said
    assert said.startswith("# `smoke` profile on `demo`, fold 1, seed 0\n")
    assert "No record yet" in report.summary([], tmp_path)


def test_one_version_stands_everywhere():
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (CHECKOUT / "CITATION.cff").read_text()
    newest = (CHECKOUT / "CHANGELOG.md").read_text().partition("\n## ")[2]
    assert newest.startswith(f"{version} (20")
    assert f"date-released: {newest[len(version) + 2:][:10]}\n" in (CHECKOUT / "CITATION.cff").read_text()
