"""What a reader picks and moves, without a browser: the widgets' observers are called (test_notebooks has one)."""

import base64
import re
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import changed
from matplotlib import pyplot as plt
from traitlets import TraitError

from dpmkit import audio, explore, protocols
from dpmkit.finetune import Finetuned
from dpmkit.settings import UserError

plt.switch_backend("Agg")


class Shown(list):
    """An output in its states, the last one at the end."""

    update = list.append


@pytest.fixture
def shown(monkeypatch):
    """The outputs that a cell showed, widgets left out; sounds are a tone."""
    outputs = []

    def display(one, display_id=False):
        if display_id:
            outputs.append(Shown([one]))
            return outputs[-1]

    for name, value in (("figure.constrained_layout.use", False), ("figure.dpi", 30), ("savefig.dpi", 30)):
        monkeypatch.setitem(plt.rcParams, name, value)  # quick to draw
    monkeypatch.setattr(explore, "display", display)
    monkeypatch.setattr(audio, "read", lambda *_: np.sin(np.arange(16_000) / 20))
    return outputs


@pytest.fixture
def run(toy, sharp, settings, tmp_path):
    """(settings, corpus, codes, SLLM): as the notebook hands them on; conversations of 1, 5, 6 and 7 turns."""
    return settings.replace("memory.lr", 3e-3), *toy, Finetuned(sharp, "key", tmp_path, [], 0)


@pytest.fixture
def answers(run):
    return {name: protocols.predict(*run, method) for name, method in (("window", "window"), ("dpm-tuned", "dpm"))}


def rows_of(html):
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html.data, re.S)]


def test_the_first_state_is_the_tables_and_no_sound_is_passed_on(run, answers, shown):
    settings, corpus, *_ = run
    widgets = explore.conversations(*run, answers)
    picture, caption, table = (output[0] for output in shown)
    one = answers["dpm-tuned"][answers["dpm-tuned"]["conversation"] == widgets["conversation"].value]
    assert len(one) == 7 == len(rows_of(table)), "the longest"
    assert [row[0] for row in rows_of(table)] == [str(n) for n in range(7)]
    p = one[[f"p_{e}" for e in corpus.emotions]]
    assert [row[3] for row in rows_of(table)] == p.idxmax(axis=1).str.removeprefix("p_").tolist()
    assert [float(row[4]) for row in rows_of(table)] == p.max(axis=1).round(2).tolist()
    right = (p.idxmax(axis=1).str.removeprefix("p_") == one["emotion"]).sum()
    assert f"answers {right} of {one['emotion'].notna().sum()} rightly" in caption.data
    assert "<audio" not in table.data and "No sound is embedded" in table.data
    kept = settings.results_path / "figures" / f"trace-{settings.run_name}.png"
    assert kept.read_bytes() == picture.data and picture.alt in caption.data


def test_another_conversation_is_drawn_in_the_same_place_and_played(run, answers, shown):
    widgets = explore.conversations(*run, answers)
    kept = run[0].results_path / "figures" / f"trace-{run[0].run_name}.png"
    before = kept.read_bytes()
    widgets["conversation"].value = widgets["conversation"].options[-1]  # of one turn
    assert len(shown) == 3 and all(len(output) == 2 for output in shown)
    first, second = shown[0]
    assert first.data != second.data and len(rows_of(shown[2][1])) == 1
    assert shown[2][1].data.count('<audio controls src="data:audio/mpeg;base64,') == 1
    assert kept.read_bytes() == before, "the record's figure is the first state"
    assert not plt.get_fignums()


def test_a_slider_hears_that_one_conversation_again(run, answers, shown, monkeypatch):
    settings, corpus, codes, tuned = run
    heard, original = [], explore.heard
    monkeypatch.setattr(explore, "heard", lambda *a: heard.append(original(*a)) or heard[-1])
    widgets = explore.conversations(*run, answers)
    assert not heard, "the answers of the table are there"
    widgets["lr"].value = 1e-2
    widgets["steps"].value = 2
    one, = corpus.select((widgets["conversation"].value,))
    asked = settings.override({"memory.lr": 1e-2, "memory.steps": 2})
    expected = protocols.predict(asked, corpus, codes, tuned, "dpm")
    expected = expected[expected["conversation"] == one.id].reset_index(drop=True)
    pd.testing.assert_frame_equal(heard[-1], expected, atol=1e-5, check_dtype=False)
    assert len(heard) == 2 and widgets["progress"].value == widgets["progress"].max == len(one.utterances)
    assert "lr 0.01, steps 2, n_r 16" in shown[1][-1].data and shown[0][-1].data != shown[0][0].data
    widgets["lr"].value, widgets["steps"].value = settings.memory.lr, 1
    assert len(heard) == 3
    assert [row[:7] for row in rows_of(shown[2][-1])] == rows_of(shown[2][0]), "as it was"


def test_a_rule_with_a_target_of_its_own_is_heard_by_it(run):
    settings, corpus, codes, tuned = run
    asked = settings.override({"memory.rule": "emotion", "memory.target": "filtered"})
    one = corpus.select(corpus.folds[0].test)[1]
    table = explore.heard(asked, corpus, codes, tuned, one, explore.widgets.IntProgress())
    expected = protocols.predict(asked, corpus, codes, tuned, "dpm")
    expected = expected[expected["conversation"] == one.id].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected, atol=1e-5, check_dtype=False)


def test_what_is_impossible_cannot_be_chosen(run, answers, shown):
    settings, corpus, codes, tuned = run
    widgets = explore.conversations(*run, answers)
    longest = max(len(codes.codes[u.id]) + 1 for c in corpus.select(corpus.folds[0].test) for u in c.utterances)
    assert widgets["prefix"].options == (0, 16, 32) and longest + 32 <= tuned.sllm.window < longest + 64
    assert settings.memory.lr in dict(widgets["lr"].options).values() and widgets["steps"].min == 1
    for name, value in (("prefix", 64), ("lr", 1.0), ("conversation", "s9c9")):
        with pytest.raises(TraitError):
            widgets[name].value = value
    widgets["steps"].value = 99
    assert widgets["steps"].value == 4
    for n_r in widgets["prefix"].options:
        widgets["prefix"].value = n_r
        assert f"n_r {n_r} answers" in shown[1][-1].data


def test_what_goes_wrong_is_told_and_the_last_state_stays(run, answers, shown, monkeypatch):
    widgets = explore.conversations(*run, answers)

    def gone(*_):
        raise UserError("cannot read <x.wav>")

    with monkeypatch.context() as patch:
        patch.setattr(audio, "read", gone)
        widgets["conversation"].value = widgets["conversation"].options[1]
        assert widgets["words"].value == "cannot read &lt;x.wav&gt;" and all(len(output) == 1 for output in shown)
    widgets["conversation"].value = widgets["conversation"].options[2]
    assert widgets["words"].value == "" and all(len(output) == 2 for output in shown)
    monkeypatch.setattr(audio, "read", gone)
    with pytest.raises(UserError):  # not a page without its figure
        explore.utterances(*run[:3])


def test_the_surest_errors_come_first(run, answers, shown):
    _, corpus, *_ = run
    which = explore.errors(corpus, answers)
    for method in ("dpm-tuned", "window"):
        which.value = method
        table = answers[method].dropna(subset="emotion")
        p = table[[f"p_{e}" for e in corpus.emotions]]
        wrong = p.max(axis=1)[p.idxmax(axis=1).str.removeprefix("p_") != table["emotion"]].nlargest(8)
        told = rows_of(shown[0][-1])
        assert [float(row[5]) for row in told] == wrong.round(2).tolist() and len(told) <= 8
        assert [row[:3] for row in told] == table.loc[wrong.index, ["conversation", "turn", "speaker"]].astype(
            str).to_numpy().tolist()
        assert all(row[3] != row[4] for row in told)
    assert "<audio" not in shown[0][0].data and "<audio" in shown[0][1].data


def test_an_utterance_is_picked_by_conversation_and_turn(run, shown):
    settings, corpus, codes, _ = run
    widgets = explore.utterances(settings, corpus, codes)
    assert widgets["turn"].max == 0 and len(shown) == 3
    widgets["conversation"].value = longest = max(corpus.conversations, key=lambda c: len(c.utterances)).id
    assert widgets["turn"].max == 6
    widgets["turn"].value = 5
    one = corpus.select((longest,))[0].utterances[5]
    assert rows_of(shown[2][-1])[0][:4] == [one.emotion or "–", one.speaker, "0.9", one.id]
    assert shown[0][-1].data != shown[0][0].data and shown[1][-1].data.startswith(f"<p><em>{one.id}, speaker")
    widgets["conversation"].value = corpus.conversations[0].id
    assert widgets["turn"].max == widgets["turn"].value == 0


def test_players_hold_the_sound_of_the_demo_alone_and_nobodys_markup(run, shown):
    _, corpus, *_ = run
    corpus = changed(corpus, lambda *_: {"speaker": "<b>&"})
    some = corpus.conversations[1].utterances[:2]
    silent = explore.players(corpus, some).data
    assert "<audio" not in silent and silent.count("&lt;b&gt;&amp;") == 2 and "<b>" not in silent
    sound, = re.findall(r"base64,([^\"]+)", explore.player(some[0]))
    waveform, rate = soundfile.read(BytesIO(base64.b64decode(sound)))
    assert rate == audio.RATE and len(waveform) == pytest.approx(16_000, rel=0.1) and len(sound) < 10_000
    assert np.abs(waveform).max() == pytest.approx(1, abs=0.1)
