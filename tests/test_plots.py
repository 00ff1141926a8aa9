"""Figures show what their rows hold."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image
from test_metrics import EMOTIONS, random_table

from dpmkit import machine, metrics, plots
from dpmkit.finetune import sequences
from dpmkit.settings import EvaluationSettings, Settings

plt.switch_backend("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tables():
    truth = random_table(0, conversations=40)
    return {m: random_table(i, truth=truth, skill=i) for i, m in enumerate(("window", "at-once", "dpm"), 1)}


def rows(points):
    return [{"method": f"method {i}", "WA": wa, "WA_interval": [wa - 2, wa + 2], "seconds_per_sentence": 10.0 ** -s}
            for i, (wa, s) in enumerate(points)]


def test_the_front_is_of_the_methods_that_none_beats_in_both():
    figure = plots.pareto(rows([(50, 4), (40, 3), (60, 2), (55, 1), (70, 0)]))
    front, *points = figure.axes[0].lines
    assert front.get_drawstyle() == "steps-post" and front.get_xdata() == pytest.approx([0.1, 1, 10, 100, 1000])
    assert front.get_ydata().tolist() == [50, 50, 60, 60, 70]
    assert [p.get_ydata()[0] for p in points] == [50, 40, 60, 55, 70]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [f"method {i}" for i in range(5)]


def test_confusions_are_the_metrics_and_their_diagonal_is_recall(tables):
    counts = {m: metrics.confusion(t, EMOTIONS) for m, t in tables.items()}
    for axes, (m, matrix) in zip(plots.confusions(counts, EMOTIONS).axes, counts.items(), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shown, matrix / matrix.sum(1, keepdims=True))
        recalls = [row["recall"] for row in metrics.per_emotion(tables[m], EMOTIONS).values()]
        np.testing.assert_allclose(np.diag(shown), recalls)
    absent = plots.confusions({"m": np.diag([3.0, 0.0])}, ("a", "b"))
    assert np.asarray(absent.axes[0].images[0].get_array()).tolist() == [[1, 0], [0, 0]]


def test_reliability_and_lengths_draw_a_line_a_method(tables, tmp_path):
    drawn = {m: metrics.reliability(t, EMOTIONS) for m, t in tables.items()}
    diagonal, *lines = plots.reliability(drawn).axes[0].lines
    assert diagonal.get_slope() == 1
    for line, bins in zip(lines, drawn.values(), strict=True):
        assert line.get_xydata().tolist() == [[b["confidence"], b["accuracy"]] for b in bins]
    by_length = metrics.by_bin(tables, EMOTIONS, "length", (1, 4, 7), EvaluationSettings(bootstrap=50))
    figure = plots.by_bin(by_length)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1–3", "4–6", "7 and on"]
    assert [y for line in figure.axes[0].lines for y in line.get_ydata()] == [r["WA"] for r in by_length]
    figure.savefig(tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").stat().st_size < 300_000


def test_the_headline_has_few_methods_by_group():
    made = {"window": 60.0, "dpm": 61.0, "dpm-swapped": 59.0, "lstm": 70.0, "dpm-told": 65.0}
    groups = dict(zip(made, ("method", "method", "control", "method", "bound"), strict=True))
    part = {"methods": [{"method": m, "WA": wa, "WA_interval": [wa - 2, wa + 3]} for m, wa in made.items()]}
    axes, = plots.headline({
        "results": {"protocols": {"all-lengths": part},
                    "listed": [{"method": m, "group": g} for m, g in groups.items()]}}).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["window", "dpm", "dpm-swapped", "dpm-told"]
    drawn = {bar.get_label(): (bar[0].get_xdata().tolist(), list(bar[0].get_ydata())) for bar in axes.containers}
    assert drawn == {"method": ([60, 61], [0, 1]), "control": ([59], [2]), "bound": ([65], [3])}
    assert [60.0, 60.0] in [list(line.get_xdata()) for line in axes.lines], "where the window stands"
    (low, high), = (segment[:, 0] for segment in axes.containers[1][2][0].get_segments())
    assert (low, high) == (57, 62)


@pytest.mark.parametrize(("gains", "limits"), [((0.0, 0.0), (-1, 1)), ((0.0, -3.0), (-3.3, 1))])
def test_an_axis_of_gains_does_not_magnify_what_is_nothing(gains, limits):
    rows = [{"setting": name, "value": 1.0, "method": "dpm", "WA_gain": gain, "WA_gain_interval": [gain, gain]}
            for name, gain in zip(("lr", "rank"), gains, strict=True)]
    for axes in plots.ablations(rows).axes:
        assert axes.get_ylim() == pytest.approx(limits, abs=0.2)
    plt.close("all")


def test_a_saved_figure_tells_its_run_in_the_image_and_in_the_file(tmp_path):
    settings = Settings.of("smoke", home=str(tmp_path), corpus="emodb", fold=2, seed=7)
    names = ["train_loss", "eval_loss", "eval_l_a", "eval_l_e", "eval_wa", "eval_ua"]
    figure = plots.losses(pd.DataFrame([[1, *[0.5] * 6], [2, *[0.25] * 6]], columns=["epoch", *names]))
    path, caption = plots.saved(figure, settings, "losses", "9 conversations")
    run = f"smoke on emodb, fold 2, seed 7, commit {machine.origin()['commit']}"
    assert figure.get_supxlabel() == run and caption == f"{plots.CAPTIONS['losses']} (9 conversations; {run})"
    assert path == settings.results_path / "figures" / "losses-fold2-seed7.png"
    assert Image.open(path).info["Description"] == caption
    assert not plt.get_fignums(), "a notebook would draw it once more"
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()][2:] == [
        "$L_a$, validation", "$L_e$, validation"]
    assert all(x == int(x) for x in figure.axes[0].get_xticks())


def test_a_spectrogram_stands_above_the_codes_of_the_same_seconds():
    tone = np.sin(2 * np.pi * 2000 * np.arange(16_000) / 16_000)
    codes = np.arange(25) % 4
    top, bottom = plots.utterance(tone, codes, 25.0, 4).axes
    loud = np.asarray(top.images[0].get_array())
    low, high = top.images[0].get_extent()[2:]
    assert low + (high - low) * loud.mean(axis=1).argmax() / (len(loud) - 1) == pytest.approx(2.0, abs=0.05), "kHz"
    strip, = bottom.collections
    assert strip.get_array().ravel().tolist() == codes.tolist() and top.get_xlim() == bottom.get_xlim() == (0, 1)
    assert [t.get_text() for t in bottom.texts] == [str(c) for c in codes]
    assert not plots.utterance(tone[:100], np.arange(61), 25.0, 64).axes[1].texts, "too many to read"


def test_a_training_sequence_is_drawn_with_its_own_numbers(sllm):
    codes = [np.arange(5), np.arange(7), np.arange(3)]  # 6, 8 and 4 tokens with <audio_end>
    whole, = sequences(sllm, codes, [1, None, 2], 4, 20, 24)
    top, bottom = plots.sequence(whole, sllm.vocabulary.emotions, 4, 20, 24).axes
    assert [t.get_text() for t in top.texts if t.get_text()] == ["$n_o$: 4", "$n_p$: 14"]
    assert [t.get_text() for t in bottom.texts if t.get_text()] == ["$n_q$: 18"]
    ends = [segment[0, 0] for segment in bottom.collections[0].get_segments()]
    assert ends == [5.5, 17.5], "where <audio_end> of a labelled sentence stands"
    area = top.collections[0].get_paths()[0]
    assert area.vertices[:, 1].max() == pytest.approx(whole["code_weight"].max().item()) == 0.25
    *_, last = sequences(sllm, codes, [1, None, 2], 4, 2, 6)  # contexts that do not begin together
    top, bottom = plots.sequence(last, sllm.vocabulary.emotions, 4, 2, 6).axes
    assert [t.get_text() for t in (*top.texts, *bottom.texts) if t.get_text()] == [
        "$n_o$: 4", "$n_p$: 2", "$n_q$: 6"]
