"""Figures show what their rows hold."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from test_metrics import EMOTIONS, random_table

from dpmkit import metrics, plots
from dpmkit.settings import EvaluationSettings

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


def test_recalls_and_confusions_are_the_metrics(tables):
    figure = plots.recalls({m: metrics.per_emotion(t, EMOTIONS) for m, t in tables.items()})
    counts = {m: metrics.confusion(t, EMOTIONS) for m, t in tables.items()}
    heat = plots.confusions(counts, EMOTIONS)
    for axes, bars, matrix in zip(heat.axes, figure.axes[0].containers, counts.values(), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shown, matrix / matrix.sum(1, keepdims=True))
        np.testing.assert_allclose([bar.get_height() for bar in bars], 100 * np.diag(shown))
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


def test_the_headline_has_few_methods_by_group_and_names_its_run():
    made = {"window": 60.0, "dpm": 61.0, "dpm-swapped": 59.0, "lstm": 70.0, "dpm-told": 65.0}
    groups = dict(zip(made, ("method", "method", "control", "method", "bound"), strict=True))
    part = {"methods": [{"method": m, "WA": wa, "WA_interval": [wa - 2, wa + 3]} for m, wa in made.items()]}
    axes, = plots.headline({
        "profile": "demo", "corpus": "emodb", "fold": 2, "seed": 7, "commit": "0123456789abcdef",
        "results": {"protocols": {"all-lengths": part},
                    "listed": [{"method": m, "group": g} for m, g in groups.items()]}}).axes
    assert axes.get_title() == "demo on emodb, fold 2, seed 7, commit 0123456789ab"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["window", "dpm", "dpm-swapped", "dpm-told"]
    drawn = {bar.get_label(): (bar[0].get_xdata().tolist(), list(bar[0].get_ydata())) for bar in axes.containers}
    assert drawn == {"method": ([60, 61], [0, 1]), "control": ([59], [2]), "bound": ([65], [3])}
    assert [60.0, 60.0] in [list(line.get_xdata()) for line in axes.lines], "where the window stands"
    (low, high), = (segment[:, 0] for segment in axes.containers[1][2][0].get_segments())
    assert (low, high) == (57, 62)
