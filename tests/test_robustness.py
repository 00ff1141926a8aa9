"""Answers under a disturbance come from disturbed codes alone, on the same targets, and are kept."""

import numpy as np
import pytest
from conftest import make_toy

from dpmkit import robustness
from dpmkit.finetune import Finetuned
from dpmkit.robustness import Disturbance, Disturbed


@pytest.fixture
def prepared(sharp, settings, tmp_path, monkeypatch):
    settings = settings.replace("speaker.dimensions", 3).replace("ablation.disturbed", 2)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned = Finetuned(sharp, "sharp", tmp_path, [], 0)

    def heard(_settings, _corpus, spoken, conversations, disturbance):
        """`none`: as it is; `white`: other codes; `silero`: no segment at all."""
        said = [u for c in conversations for u in c.utterances]
        rng = np.random.default_rng(0)
        other = {u.id: spoken.codes[u.id] if disturbance.kind == "none" else rng.integers(0, 16, 6) for u in said}
        if disturbance.kind == "silero":
            return Disturbed("silence", (), {}, {}, {u.id: {} for u in said})
        return Disturbed(disturbance.kind, tuple(conversations), other, {}, {u.id: {u.id: 1.0} for u in said})

    monkeypatch.setattr(robustness, "disturbed", heard)
    asked = [Disturbance("none"), Disturbance("white", 10.0), Disturbance("silero")]
    return lambda: robustness.measured(settings, corpus, codes, tuned, asked)


def test_every_condition_and_method_has_a_row_and_silence_is_the_prior(prepared):
    rows = {(r["kind"], r["method"]): r for r in prepared()}
    assert len(rows) == 3 * (len(robustness.METHODS) + 1)
    assert rows["none", "window"]["unheard"] == 0
    corpus = make_toy(turns=(6, 7, 9), seed=5)[0]
    labelled = [u for c in corpus.select(corpus.folds[0].test[:2]) for u in c.utterances if u.emotion]
    assert rows["silero", "window"]["unheard"] == len(labelled)  # targets: not what lies outside the label set
    silent = {m: rows["silero", m]["WA"] for m in (*robustness.METHODS, "speaker-memory")}
    assert len(set(silent.values())) == 1  # nobody heard anything
    assert any(rows["none", m]["WA"] != rows["white", m]["WA"] for m in silent)


def test_answers_are_kept(prepared, monkeypatch):
    first = prepared()
    monkeypatch.setattr(robustness.protocols, "listen", None)
    monkeypatch.setattr(robustness.speakers, "remembered", None)
    assert prepared() == first
