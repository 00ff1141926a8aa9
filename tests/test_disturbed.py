"""Every method's WA under every disturbance: kept one after the other, of these settings and this split."""

import dataclasses
import itertools
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_toy

from dpmkit import metrics, plots, robustness
from dpmkit.finetune import Finetuned
from dpmkit.robustness import parsed
from dpmkit.settings import Settings


@pytest.fixture
def prepared(sharp, settings, tmp_path, monkeypatch):
    """(what measures the toy corpus, what was disturbed)"""
    settings = settings.override({"speaker.dimensions": 3, "ablation.disturbed": 2,
                                  "ablation.disturbances": ("none", "white 10", "silero")})
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned, asked = Finetuned(sharp, "sharp", tmp_path, [], 0), []

    def heard(_settings, _corpus, _tokenizer, conversations, disturbance):
        """`none`: as it is; `white`: other codes; `silero`: one segment alone."""
        asked.append(disturbance)
        said, rng = [u for c in conversations for u in c.utterances], np.random.default_rng(0)
        if disturbance == "silero":
            only = dataclasses.replace(conversations[0], utterances=said[:1])
            return [only], {said[0].id: rng.integers(0, 16, 6)}, {u.id: {} for u in said}
        other = {u.id: codes.codes[u.id] if disturbance == "none" else rng.integers(0, 16, 6) for u in said}
        return list(conversations), other, {u.id: {u.id: 1.0} for u in said}

    monkeypatch.setattr(robustness, "disturbed", heard)
    monkeypatch.setattr(robustness.tokenizers, "create", lambda _: SimpleNamespace(load=lambda _: None))

    def measure(of=corpus, **more):
        """Its rows, which come from the predictions that are kept."""
        rows, kept = robustness.measured(settings.override(more), of, codes, tuned)
        assert [(r["kind"], r["method"], r["WA"]) for r in rows] == [
            (*re.match(r"(\w+).*: (.*)", name).groups(), metrics.wa(t, of.emotions)) for name, t in kept.items()]
        return rows

    return measure, asked


def test_every_condition_and_method_has_a_row_and_silence_is_the_prior(prepared):
    rows = {(r["kind"], r["method"]): r for r in prepared[0]()}
    methods = (*robustness.METHODS, "speaker-memory")
    assert set(rows) == set(itertools.product(("none", "white", "silero"), methods))
    assert rows["white", "dpm"]["level"] == 10
    assert len({rows["silero", m]["WA"] for m in methods}) == 1  # nobody heard anything
    assert any(rows["none", m]["WA"] != rows["white", m]["WA"] for m in methods)


def test_answers_are_kept_one_disturbance_after_the_other(prepared, monkeypatch):
    measure, asked = prepared
    real, kill = robustness.protocols.listen, 6

    def killed(*given, **more):
        nonlocal kill
        kill -= 1
        if not kill:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(robustness.protocols, "listen", killed)
    with pytest.raises(KeyboardInterrupt):
        measure()
    first = measure()
    assert asked == ["none", "white 10", "white 10", "silero"]
    assert measure() == first and len(asked) == 4


@pytest.mark.parametrize("name", ["seed", "segments.pad", "memory.lr", "speaker.paths", "ablation.disturbed"])
def test_answers_are_of_these_settings(prepared, name):
    measure, asked = prepared
    measure(**{"ablation.disturbances": ("none",)})
    measure(**{"ablation.disturbances": ("none",), name: 1})
    assert asked == ["none"] * 2


def test_answers_are_of_this_split_whose_other_conversations_babble(prepared):
    measure, asked = prepared
    corpus = make_toy(turns=(6, 7, 9), seed=5)[0]
    fewer = dataclasses.replace(corpus, folds=tuple(dataclasses.replace(f, test=f.test[:2]) for f in corpus.folds))
    measure(corpus)
    measure(fewer)  # the conversations that are disturbed are the same
    assert len(asked) == 6


def test_where_no_segment_is_found_the_prior_answers(prepared, monkeypatch):
    def silence(settings, corpus, tokenizer, conversations, disturbance):
        return [], {}, {u.id: {} for c in conversations for u in c.utterances}

    monkeypatch.setattr(robustness, "disturbed", silence)
    assert len({row["WA"] for row in prepared[0]()}) == 1


def test_figure_has_a_panel_a_family_and_a_line_a_method():
    rows = [{"kind": kind, "level": level, "method": m, "WA": 60.0 + i, "WA_interval": [55.0, 66.0]}
            for kind, level in map(parsed, Settings.of("full").ablation.disturbances)
            for i, m in enumerate(("window", "dpm"))]
    figure = plots.robustness(rows)
    by_machine, *_, overlap = figure.axes
    for axes, words in zip(figure.axes, ("boundaries set", "babble", "white", "overlap"),
                           strict=True):
        assert axes.get_xlabel().startswith(words)
    assert [t.get_text() for t in overlap.get_xticklabels()] == ["none", "10%", "20%", "30%"]
    assert {(len(line.get_xdata()), line.get_linestyle()) for line in overlap.lines} == {(4, "-"), (4, "--")}
    assert {line.get_linestyle() for line in by_machine.lines} == {"None"}  # they are on no scale
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"window", "dpm"}
    few = plots.robustness([r for r in rows if r["kind"] in ("none", "white")])  # what was not run has no panel
    assert len(few.axes) == 1
    plt.close("all")
