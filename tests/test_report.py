"""Pages and tables say what their records say; the folder of a trained SLLM says what was measured."""

import shutil

import numpy as np
import pytest
import torch
from test_backbones import made as made_backbone
from test_records import CHECKOUT, save

from dpmkit import finetune, metrics, protocols, records, report, tables
from dpmkit.settings import Settings, UserError
from dpmkit.sllm import EmotionSLLM

MARKED = f"# x\n\n{report.BEGIN}\nstale\n{report.END}\n\n{report.PLAN}\n{report.END_PLAN}\nrest\n"


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
    report.write(root)
    assert "62.0 [61.0, 63.0]" in (root / "README.md").read_text() and readme.read_text() == MARKED
    report.publish(root, readme)
    first = (root / "README.md").read_text(), readme.read_text()
    assert all("62.0 [61.0, 63.0]" in text for text in first)
    assert "stale" not in first[1] and first[1].endswith("\nrest\n")
    report.publish(root, readme)
    assert first == ((root / "README.md").read_text(), readme.read_text())
    readme.write_text("no markers")
    with pytest.raises(UserError, match="lacks the marker"):
        report.publish(root, readme)


def test_seeds_share_one_table_of_means(tmp_path):
    made = [saved(tmp_path, 62.0), saved(tmp_path, 64.0, seed=1)]
    table = tables.spread(made, "seeds").set_index("method")
    assert table.loc["dpm"].tolist() == ["63.0 [62.0, 64.0]", "+3.0 [+2.0, +4.0]"]
    summary = report.summary(made[::-1])
    assert summary.count("**`demo` profile") == 1 and "seed 0**" in summary
    assert "Seeds 0, 1 of fold 1" in summary and "| dpm | 63.0 [62.0, 64.0] |" in report.page(made, tmp_path)


def test_folds_share_one_table_of_means_and_only_the_first_has_its_own(tmp_path):
    made = [saved(tmp_path, wa, fold=fold) for wa, fold in ((62.0, 1), (64.0, 2), (66.0, 4))]
    summary = report.summary(made[::-1])
    assert summary.count("**`demo` profile") == 1 and "fold 1, seed 0**" in summary
    assert "Folds 1, 2, 4 of seed 0" in summary and "Seeds" not in summary
    assert "| dpm | 64.0 [62.0, 66.0] | +4.0 [+2.0, +6.0] |" in summary
    assert report.page(made, tmp_path).count("## Over seeds and folds: `demo` profile on `demo`\n") == 1


def test_the_committed_pages_are_those_of_the_committed_records():
    root = records.REFERENCE
    made = records.load_all(root)
    assert (root / "README.md").read_text(encoding="utf-8") == report.page(made, root)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert readme.partition(report.BEGIN)[2].partition(report.END)[0].strip() == report.summary(made)


def test_after_notebooks_01_and_02_the_summary_says_what_they_found(tmp_path):
    settings = Settings.of("smoke", home=str(tmp_path))
    rows = [{"method": "single utterance", "WA": 0.681, "UA": 0.689}]
    records.save(settings, "data", {"conversations": 20, "utterances": 123, "hours": 0.5, "speakers": 4,
                                    "skipped_count": 0, "reference": {"validation": rows, "test": rows}}, {}, 1.0)
    said = report.summary(records.load_all(tmp_path / "results"))
    assert "123 utterances" in said and "test fold, WA / UA in %: single utterance 68.1 / 68.9." in said
    records.save(settings, "backbone", {
        "parameters": 870784, "trained_parameters": 870784, "best_epoch": 2, "history": [
            {"epoch": e, "eval_l_a": 4.0 + e, "eval_l_e": 0.8, "eval_wa": 0.65 + e / 100, "eval_ua": 0.66}
            for e in (1, 2, 3)]}, {}, 1.0)
    said = report.summary(records.load_all(tmp_path / "results"))
    assert "best epoch 2 of 3; validation there: L_a 6.000, L_e 0.800, WA 67.0, UA 66.0." in said
    assert said.count("**`smoke` profile on `demo`, fold 1, seed 0**") == 1 and "No record yet" not in said
    assert "No record yet" in report.summary([])


PRETRAINED = {"backbone.keep_layers": 2, "backbone.window": 64, "finetune.lora_rank": 4, "finetune.epochs": 1,
              "finetune.n_o": 16, "finetune.n_p": 48, "finetune.n_q": 64}


def trained(settings, toy, source=""):
    for name, value in ({**PRETRAINED, "backbone.source": source} if source else {"finetune.epochs": 1}).items():
        settings = settings.replace(name, value)
    return settings, finetune.train(settings, *toy)


@pytest.mark.parametrize("pretrained", [False, True], ids=["scratch", "pretrained"])
def test_the_folder_says_what_was_measured_and_works_elsewhere(pretrained, settings, toy, tmp_path):
    settings, tuned = trained(settings, toy, made_backbone(tmp_path / "text") if pretrained else "")
    answers = {"test": protocols.predict(settings, *toy, tuned, "window")}
    record = records.save(settings, "backbone", {"history": tuned.history}, {}, 1.0)
    text = report.write_card(settings, tuned, *toy, answers, record).read_text()
    assert (tuned.folder / "record.json").read_bytes() == record.read_bytes()
    wa = metrics.wa(answers["test"], toy[0].emotions)
    row, = metrics.compare({"w": answers["test"]}, toy[0].emotions, "w", settings.evaluation)
    low, high = row["WA_interval"]
    assert f"| {wa:.1f} [{low:.1f}, {high:.1f}] |" in text 
    for heading in ("## Data and metrics", "## Intended use and limits"):
        assert heading in text
    assert f"{tuned.trained_parameters:,} parameters" in text and str(tmp_path) not in text
    away = tmp_path / "away" / "sllm"
    shutil.copytree(tuned.folder, away)
    shutil.rmtree(tmp_path / "text", ignore_errors=True)
    shutil.rmtree(settings.home_path / "runs")
    named = {p.name for p in away.rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()}
    assert named == ({"adapter_config.json", "dpmkit.json"} if pretrained else set())  # where the backbone was
    elsewhere = str(made_backbone(tmp_path / "elsewhere")) if pretrained else ""  # the same files
    loaded = EmotionSLLM.load(away, backbone=elsewhere)
    sentence = [loaded.sentence(np.array([1, 5, 3]))]
    torch.testing.assert_close(loaded.emotion_logits(sentence), tuned.sllm.emotion_logits(sentence))


def test_without_answers_the_card_says_that_nothing_was_measured(settings, toy):
    settings, tuned = trained(settings, toy)
    assert "| not measured | not measured | not measured |" in report.write_card(settings, tuned, *toy).read_text()


def test_training_that_the_gpu_cannot_hold_names_the_cure(settings, toy, monkeypatch):
    def step(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finetune._Trainer, "training_step", step)
    with pytest.raises(UserError, match=r"finetune.forward_tokens"):
        finetune.train(settings, *toy)
