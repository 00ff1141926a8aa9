"""Pages and tables say what their records say."""

import json
import re
import shlex
import tomllib
from itertools import pairwise

import pandas as pd
import pytest
import recomputed
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_records import CHECKOUT, save

from dpmkit import plots, pooled, records, report, tables
from dpmkit.__main__ import main
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


def pages(root):
    """Every page of a folder of results, by its path below it."""
    found = pooled.groups(records.load_all(root), root)
    return {path.relative_to(root).as_posix(): text for path, text in report.pages(found, root).items()}


def test_the_reports_are_made_of_records_alone(tmp_path):
    saved(tmp_path, 62.0)
    root, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(MARKED)
    corpus, page = root / "demo-demo" / "README.md", root / "demo-demo" / "fold1-seed0.md"
    report.write(root)
    assert "62.0 [61.0, 63.0]" in page.read_text() and readme.read_text() == MARKED
    made = page.read_text().partition("Made ")[2][:10]
    assert f"Records of {made}.\n" in (root / "README.md").read_text()
    saved(tmp_path, 62.0, seed=1)
    file = root / "demo-demo" / "records" / "methods-fold1-seed1.json"
    file.write_text(file.read_text().replace(f'"made": "{made}', '"made": "2026-01-02'))
    assert f"Records of 2026-01-02 to {made}.\n" in pages(root)["README.md"]
    file.unlink()
    page.unlink()
    assert report.write(root, readme) == [readme, root / "README.md", corpus, page]
    first = (root / "README.md").read_text(), readme.read_text()
    assert all("+2.0 [+1.0, +3.0]" in text for text in first) and "62.0 [61.0, 63.0]" in page.read_text()
    assert "[demo, `demo`](demo-demo/README.md)" in first[0] and "(fold1-seed0.md)" in corpus.read_text()
    assert "stale" not in first[1] and first[1].endswith("\nrest\n")
    report.write(root, readme)
    assert first == ((root / "README.md").read_text(), readme.read_text())
    assert not (root / "demo-demo" / "figures").exists(), "a run alone is drawn by its notebook"
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
    assert drawn[1].startswith("![ablations-fold1-seed0](figures/ablations-")


def test_a_runs_page_says_when_and_by_what_line_it_was_made(tmp_path, capsys):
    changed = {"codes.supervised": True, "ablation.lr": [0.0, 0.001], "codes.tokenizer": "kmeans"}
    record = saved(tmp_path, 62.0) | {"changed": changed, "made": "2026-01-02T03:04:05+00:00"}
    record["settings"] |= {"root": "cremad"}
    later = record | {"made": "2026-01-03T03:04:05+00:00"}
    page = report._command({"data": record, "methods": later})
    assert page.startswith("Made 2026-01-02 to 2026-01-03 by `python -m dpmkit reproduce --profile demo ")
    assert "--corpus demo --root path/to/demo --folds 1 --seeds 0 --set" in page
    line = shlex.split(page.split("`")[1])[3:]
    asked = [pair for option, pair in pairwise(line) if option == "--set"]
    assert main(["settings", *(word for pair in asked for word in ("--set", pair))]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in changed} == changed


def test_seeds_are_means_with_ranges(tmp_path):
    for seed, wa in ((0, 62.0), (1, 64.0)):
        saved(tmp_path, wa, seed=seed)
    group, = pooled.groups(records.load_all(tmp_path / "results"), tmp_path / "results")
    record, = group.over
    assert record["runs"] == "mean of seeds 0, 1 of fold 1" and [r["seed"] for r in record["of"]] == [0, 1]
    table = tables.methods(record, "all-lengths").set_index("method")
    assert table.loc["dpm", "WA"] == "63.0 [62.0, 64.0]" and "over speakers" not in table
    assert table.loc["dpm", "WA against window"] == "+3.0 [+2.0, +4.0]"
    contrast = tables.contrasts(record, "all-lengths").set_index("contrast").loc["dpm - window"]
    assert contrast["WA, points"] == "+3.0 [+2.0, +4.0]" and not {"p (Holm)", "over speakers"} & {*contrast.index}
    made = pages(tmp_path / "results")
    page = made["demo-demo/README.md"]
    assert "## Mean of seeds 0, 1 of fold 1\n" in page and "Holm" not in page
    assert "| demo, `demo`, mean of seeds 0, 1 of fold 1 |" in made["README.md"]
    assert "| [demo, `demo`](demo-demo/README.md) | 2 |" in made["README.md"]
    assert [name for name in made if name.endswith("-seed1.md")] == ["demo-demo/fold1-seed1.md"]


def folds(home, given=((1, [1, 1, 0]), (2, [1, 0, 0])), window=(0, 0, 0), changed=None):
    """Runs of a fold each, with predictions; `given`: fold, and which targets dpm has right; `window`: which the
    window has."""
    for fold, hits in given:
        asked = {"evaluation.bootstrap": 50} | (changed or {})
        settings = save(home, {"window": 60.0, "dpm": 61.0}, asked, fold=fold)
        rows = pd.DataFrame({"conversation": [f"f{fold}c{i}" for i in range(3)], "speaker": f"s{fold}", "turn": 0,
                             "utterance": [f"f{fold}u{i}" for i in range(3)], "emotion": "neu"})
        answers = {"window": window, "dpm": hits, "majority": window}
        records.save_answers(records.path(settings, "methods"), {
            name: rows.assign(p_neu=[0.4 + 0.2 * hit for hit in of], p_sad=0.5) for name, of in answers.items()})
        yield settings


@pytest.fixture
def plain(monkeypatch):
    """Runs of another bootstrap are none of other settings."""
    monkeypatch.setattr(Settings, "changed", property(lambda _: {}))


def test_folds_with_predictions_are_pooled_over_all_of_their_targets(tmp_path, plain):
    *_, last = folds(tmp_path)
    root = tmp_path / "results"
    for seed in (1, 2):
        save(tmp_path, {"window": 50.0, "dpm": 70.0}, seed=seed)
    group, = pooled.groups(records.load_all(root), root)
    over, seeds = group.over
    assert (over["runs"], seeds["runs"]) == ("folds 1, 2 of seed 0", "mean of seeds 0 to 2 of fold 1")
    part = over["results"]["protocols"]["all-lengths"]
    assert (part["targets"], part["conversations"], part["speakers"]) == (6, 6, 2)
    assert {r["method"]: r["WA"] for r in part["methods"]} == {"window": 0, "dpm": 50, "majority": 0}
    contrast, = part["contrasts"]  # what was declared is tested anew, over the targets of all folds
    assert contrast["contrast"] == "dpm - window" and contrast["p_holm"] == contrast["p"] == pytest.approx(0.25)
    made = pages(root)
    first = made["README.md"]
    assert "demo, `demo`, folds 1, 2 of seed 0 |" in first and "+50.0 [+16.7, +83.3]" in first
    page = made["demo-demo/README.md"]
    assert "| dpm | method | 50.0 [16.7, 83.3] |" in page and "| dpm | method | 67.0 [61.0, 70.0] |" in page
    assert "| dpm - window | +50.0 [+16.7, +83.3] |" in page and "0.25 |" in page
    records.path(last, "methods").with_suffix(".parquet").unlink()
    record = pooled.groups(records.load_all(root), root)[0].over[0]
    assert record["runs"] == "mean of folds 1, 2 of seed 0", "where the predictions of one are absent"
    assert tables.methods(record, "all-lengths")["WA"].tolist() == ["60.0 [60.0, 60.0]", "61.0 [61.0, 61.0]"]


def test_the_first_figure_of_several_folds_is_drawn_of_all_of_them_and_says_so(tmp_path, plain, monkeypatch):
    list(folds(tmp_path))
    root, drawn = tmp_path / "results", []
    written = plots.written
    monkeypatch.setattr(plots, "written", lambda *given: (drawn.append(given), written(*given)))
    report.write(root)
    (figure, path, run, caption), = drawn
    assert path == root / "demo-demo" / "figures" / "headline-folds-seed0.png"
    assert run == "demo on demo, folds 1, 2 of seed 0" == figure.get_supxlabel()
    assert f"6 utterances, 6 conversations, bars: 95 % over conversations; {run}, commit " in caption
    assert Image.open(path).info["Description"] == caption
    point = figure.axes[0].containers[0].lines[0]
    assert point.get_xdata().tolist() == [0, 50], "WA over all folds"
    assert f"![{caption}](demo-demo/figures/headline-folds-seed0.png)<br>*{caption}*" in (
        root / "README.md").read_text()


def test_a_change_of_settings_stands_in_a_table_of_its_own_and_in_the_index(tmp_path):
    for changed, wa in (({}, 62.0), ({"memory.lr": 0.1}, 90.0)):
        save(tmp_path, {"window": 60.0, "dpm": wa}, changed)
    save(tmp_path, {"window": 50.0, "dpm": 52.0}, fold=2)
    rendered = tmp_path / "results" / "demo-demo" / "fold1-seed0" / "01_data_prep.ipynb"
    rendered.parent.mkdir()
    rendered.touch()
    made = pages(tmp_path / "results")
    assert "[01](demo-demo/fold1-seed0/01_data_prep.ipynb)" in made["README.md"]  # not those of the changed run
    page = made["demo-demo/README.md"].partition("## Other settings")
    assert "90.0" not in page[0] and "| dpm | method | 57.0 [52.0, 62.0] |" in page[0]
    table, index = page[2].split("## Runs")
    assert "| nothing | mean of folds 1, 2 of seed 0 | 55.0 [50.0, 60.0] | 57.0 [52.0, 62.0] |" in table
    assert "| `memory.lr` = 0.1 | fold 1, seed 0 | 60.0 [59.0, 61.0] | 90.0 [89.0, 91.0] |" in table
    name, = (name for name in made if "fold1-seed0-" in name)
    assert f"`memory.lr` = 0.1, fold 1, seed 0]({name.rpartition('/')[2]})" in index and "90.0" in made[name]
    assert "90.0" not in made["README.md"] and (
        "| [demo, `demo`](demo-demo/README.md) | 2 and 1 of other settings |") in made["README.md"]
    for most, other in ((0.2, 0.1), (0.1, 0.2)):
        root = tmp_path / str(most) / "results"
        for fold, lr in ((1, other), (1, most), (2, most)):
            save(root.parent, {"window": 60.0, "dpm": 61.0 + fold}, {"memory.lr": lr}, fold=fold)
        made = pages(root)  # none is as the profile has it: what most runs have
        assert f"demo, `demo`, `memory.lr` = {most}, mean of folds 1, 2 of seed 0 |" in made["README.md"]
        page = made["demo-demo/README.md"].partition("## Other settings")
        assert page[0].startswith(f"# demo, `demo`, `memory.lr` = {most}\n")
        assert "| dpm | method | 62.5 [62.0, 63.0] |" in page[0]
        found = [line.split(" | ")[:2] for line in page[2].split("## Runs")[0].splitlines() if "fold" in line]
        assert found == [[f"| `memory.lr` = {most}", "mean of folds 1, 2 of seed 0"],
                         [f"| `memory.lr` = {other}", "fold 1, seed 0"]]
    save(root.parent, {"window": 60.0, "dpm": 61.0})
    page = pages(root)["demo-demo/README.md"]
    assert page.startswith("# demo, `demo`\n\n")  # one run as the profile has it
    found = [line.split(" | ")[:2] for line in page.split("## ")[-2].splitlines() if "fold" in line]
    assert found == [["| nothing", "fold 1, seed 0"], ["| `memory.lr` = 0.1", "fold 1, seed 0"],
                     ["| `memory.lr` = 0.1", "fold 2, seed 0"], ["| `memory.lr` = 0.2", "fold 1, seed 0"]]


def test_other_settings_stand_against_the_runs_above_on_the_same_targets(tmp_path, monkeypatch):
    more = {"memory.lr": 0.1}
    monkeypatch.setattr(Settings, "changed", property(lambda of: more if of.memory.lr == 0.1 else {}))
    list(folds(tmp_path))
    list(folds(tmp_path, ((1, [1, 1, 1]), (2, [1, 1, 0])), (1, 0, 1), more))
    root = tmp_path / "results"

    def rows():
        table = pages(root)["demo-demo/README.md"].partition("## Other settings")[2].split("## Runs")[0]
        return [line.split(" | ")[1:] for line in table.splitlines() if "fold" in line]

    above = ["folds 1, 2 of seed 0", "0.0 [0.0, 0.0]", "", "50.0 [16.7, 83.3] |"]
    assert rows() == [above, ["folds 1, 2 of seed 0", "66.7 [33.3, 96.2]", "+66.7 [+33.3, +96.2]",
                              "83.3 [53.8, 100.0] |"]]
    list(folds(tmp_path, ((3, [1, 1, 1]),), changed=more))  # a fold that is not above
    assert [len(row) for row in rows()] == [3, 3] and rows()[1][1].startswith("44.4 [")
    settings, = folds(tmp_path, ((3, [0, 0, 0]),))
    assert rows()[1][2].startswith("+44.4 [")
    file = records.path(settings, "methods").with_suffix(".parquet")
    table = pd.read_parquet(file)
    table.assign(emotion=table["emotion"].mask(table["utterance"] == "f3u0")).to_parquet(file)  # other targets
    assert [len(row) for row in rows()] == [3, 3]
    file.unlink()
    assert [row[0] for row in rows()] == ["mean of folds 1 to 3 of seed 0", "folds 1 to 3 of seed 0"]


def test_real_voices_come_first_then_the_most_speakers_and_targets(tmp_path):
    for corpus, profile, more in (("demo", "demo", "99, \"speakers\": 99"), ("cremad", "smollm2", "5"),
                                  ("cremad", "voices", "50"), ("emodb", "demo", "2, \"speakers\": 3")):
        settings = save(tmp_path, {"window": 60.0, "dpm": 61.0}, profile=profile, corpus=corpus, root="x")
        file = records.path(settings, "methods")
        file.write_text(file.read_text().replace('"targets": 9', f'"targets": {more}'))
    root = tmp_path / "results"
    assert [group.title for group in pooled.groups(records.load_all(root), root)] == [
        "emodb, `demo`", "cremad, `voices`", "cremad, `smollm2`", "demo, `demo`"]


def test_the_committed_pages_are_those_of_the_committed_records():
    root = records.REFERENCE
    found = pooled.groups(records.load_all(root), root)
    made = report.pages(found, root)
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text and len(text.splitlines()) <= 200, path
    assert {*root.rglob("*.md")} - {*(root / "own").rglob("*")} == {*made}, "a page that no record makes"
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert readme.partition(report.BEGIN)[2].partition(report.END)[0].strip() == report.summary(found)
    assert len(readme.splitlines()) <= 130
    for row in records.benches(root)["reproduce-demo.json"]["results"]["rows"]:
        line = next(line for line in readme.splitlines() if line.startswith(f"| [{row['notebook']}]"))
        assert row["machine"] != "quiet" or f" | {row['seconds'] / 60:.0f} | [CREMA-D]" in line
    for path, text in (made | {CHECKOUT / "README.md": readme}).items():
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "//" not in link]
        assert links and not [link for link in links if not (path.parent / link).is_file()], path
    for group in found:  # what is drawn of several runs is of these, by its caption
        for record in (r for r in group.over if len(r["of"]) > 1):
            figure = root / group.folder / "figures" / f"headline-{record['run']}.png"
            assert Image.open(figure).info["Description"] == report._headline(record)


def test_every_wa_of_every_table_comes_out_of_the_published_predictions():
    """Of every committed record that has its predictions beside it: all of the runs as their profiles have them."""
    asked = {f for f in records.REFERENCE.glob("*/records/*.json")
             if not (r := records.read(f))["changed"] and r["kind"] in recomputed.STATED}
    assert asked and asked <= recomputed.checked(records.REFERENCE)


def test_one_version_stands_everywhere():
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (CHECKOUT / "CITATION.cff").read_text()
    newest = (CHECKOUT / "CHANGELOG.md").read_text().partition("\n## ")[2]
    assert newest.startswith(f"{version} (20")
    assert f"date-released: {newest[len(version) + 2:][:10]}\n" in (CHECKOUT / "CITATION.cff").read_text()


def test_the_kit_is_what_is_cited_and_the_paper_its_reference():
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert citation["type"] == "software" and "preferred-citation" not in citation  # that hides it
    assert [r["url"] for r in citation["references"]] == ["https://arxiv.org/abs/2507.09076"]
