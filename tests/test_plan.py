"""The plan of a whole grid: its FLOPs are those of the real model, its hours those of the cells."""

import json

import pytest
import torch
from conftest import make_toy
from test_backbones import made
from torch.utils.flop_counter import FlopCounterMode

from dpmkit import estimate, plan, report, tables
from dpmkit.settings import UserError
from dpmkit.sllm import EmotionSLLM


@pytest.fixture
def asked(settings, tmp_path):
    corpus, _ = make_toy(turns=(4, 5, 6), seed=3)
    for name, value in {"backbone.source": made(tmp_path / "text"), "finetune.lora_rank": 4,
                        "memory.prefix": 40, "ablation.lr": (0.0, 1e-3), "ablation.conversations": 1}.items():
        settings = settings.replace(name, value)
    return settings, corpus


def counted(model, prefix, conversations):
    """FLOPs of the decoder, a forward for every sentence behind its prefix."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for sentences in conversations:
            for i, now in enumerate(sentences):
                before = torch.cat(sentences[:i])[-prefix:] if i and prefix else now[:0]
                model._hidden([torch.cat([before, now])[-model.window:]])
    return counter.get_total_flops()


def test_reading_is_what_the_forwards_take(asked):
    settings, corpus = asked
    got, codes = plan.cell(settings, corpus), plan.silent(settings, corpus)
    model = EmotionSLLM.create(settings.backbone, settings.finetune.__class__(), 16, corpus.emotions).eval()
    model.causal_lm.set_attn_implementation("eager")  # the counter does not see into the fused one
    fold = corpus.folds[0]
    said = {split: [[model.sentence(codes.codes[u.id]) for u in c.utterances]
                    for c in corpus.select(getattr(fold, split))] for split in ("train", "validation", "test")}
    n_r = settings.memory.prefix
    expected = (sum(counted(model, n_r, said[s]) for s in said) + counted(model, n_r, said["validation"])
                + 2 * counted(model, n_r, said["test"]) + counted(model, 0, said["test"])
                + counted(model, model.window, said["test"]))
    assert got.reading == pytest.approx(expected, rel=0.03)
    assert got.sentences == sum(map(len, said["test"]))
    assert got.training == estimate.training(settings, corpus, codes).flops


def test_writing_grows_with_the_steps_and_the_rates(asked):
    settings, corpus = asked
    one = plan.cell(settings, corpus)
    two = plan.cell(settings.replace("memory.steps", 2), corpus)
    assert two.reading == one.reading
    # 8 methods, the bound and twice a rate on validation: each step as much again, and one that is the bound's own
    three = plan.cell(settings.replace("memory.steps", 3), corpus)
    assert three.writing - two.writing == pytest.approx(two.writing - one.writing)
    steps = (two.writing - one.writing) / plan.PASSES
    assert 0 < one.writing - (plan.PASSES + 1) * steps < plan.PASSES * steps / 4
    assert plan.cell(settings.replace("ablation.lr", (1e-4, 1e-3)), corpus).writing > one.writing


def test_hours_are_shared_out_over_gpus():
    assert plan.makespan([3.0, 1.0, 2.0], 1) == 6.0
    assert plan.makespan([3.0, 1.0, 2.0], 2) == 3.0
    assert plan.makespan([3.0, 1.0], 15) == 3.0
    cell = plan.Cell(1, 3e15, 1e15, 0.0, 10, 1.0)
    assert cell.hours(1e13) == pytest.approx(4e15 / (estimate.UTILISATION * 1e13) / 3600)


def test_the_record_keeps_other_corpora_and_no_path(asked, tmp_path):
    settings, corpus = asked
    plan.write(settings, corpus, (1, 2), 3, teraflops=2.0, price=1.5)
    path = plan.write(settings.replace("corpus", "meld"), corpus, (1,), 3)
    path = plan.write(settings, corpus, (1, 2), 3, teraflops=4.0, price=1.5)
    assert str(tmp_path) not in path.read_text()
    rows = {r["corpus"]: r for r in json.loads(path.read_text())["results"]["rows"]}
    assert rows["meld"]["measured_here"] and rows["demo"]["teraflops"] == 4.0
    hours = [c for c in rows["demo"]["cells"] for _ in range(3)]
    assert rows["demo"]["gpu_hours"] == pytest.approx(sum(
        (c["training"] + c["writing"] + c["reading"]) / (estimate.UTILISATION * 4e12) / 3600 for c in hours))
    table = tables.plan(json.loads(path.read_text())["results"])
    assert table["folds x seeds"].tolist() == ["2 x 3", "1 x 3"]  # demo, meld
    readme = settings.home_path / "README.md"
    readme.write_text("\n".join(("a", report.BEGIN, report.END, report.PLAN, "stale", report.END_PLAN, "z")))
    report.publish(settings.own_path, readme)
    text = readme.read_text()
    assert f"| {rows['demo']['gpu_hours']:.1f} |" in text and "stale" not in text and text.endswith("\nz")
    with pytest.raises(UserError, match="pretrained backbone"):
        plan.write(settings.replace("backbone.source", ""), corpus, (1,), 1)
