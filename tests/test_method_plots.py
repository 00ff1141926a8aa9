"""Figures say what their rows say, and no word covers another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from test_metrics import EMOTIONS, random_table

from dpmkit import metrics, plots
from dpmkit.metrics import smallest_effect
from dpmkit.plots import confusions, pareto, power, recalls, reliability
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


def words(figure):
    figure.canvas.draw()
    return {t.get_text(): t.get_window_extent() for t in figure.axes[0].texts if t.get_text()}


def test_the_front_is_of_the_methods_that_none_beats_in_both():
    figure = pareto(rows([(50, 4), (40, 3), (60, 2), (55, 1), (70, 0)]))
    front = next(line for line in figure.axes[0].lines if line.get_linestyle() == "-")
    corners = {tuple(np.round(c, 6)) for c in front.get_xydata()}
    assert {(0.1, 50), (10, 60), (1000, 70)} <= corners
    assert not {(1, 40), (100, 55)} & corners
    heights = front.get_ydata()
    assert (np.diff(heights) >= 0).all() and sorted(set(heights)) == [50, 60, 70]


@settings(max_examples=15, deadline=None, derandomize=True)  # a crowd may not fit
@given(st.lists(st.tuples(st.floats(50, 70), st.floats(0, 4)), min_size=1, max_size=8))
def test_labels_of_methods_stand_inside_and_apart(points):
    figure = pareto(rows(points))
    boxes = words(figure)
    assert set(boxes) == {f"method {i}" for i in range(len(points))}
    for name, box in boxes.items():
        assert figure.axes[0].bbox.padded(1).contains(*box.min) and figure.axes[0].bbox.padded(1).contains(*box.max)
        assert not any(box.overlaps(other) for n, other in boxes.items() if n != name)
    plt.close(figure)


def test_thirteen_methods_of_near_costs_have_labels_apart():
    boxes = list(words(pareto(rows([(60 + i % 5, 2 * (i % 3) + i / 100) for i in range(13)]))).values())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_power_draws_the_papers_claim_and_what_no_gain_can_show():
    figure = power([{"n": n, "discordant": d, "points": smallest_effect(n, d)}
                    for d in (0.1, 0.3) for n in (20, 100, 400)])
    first, _, claim, *marks = figure.axes[0].lines
    assert claim.get_ydata()[0] == pytest.approx(6.56)
    assert [m.get_xdata()[0] for m in marks] == [151, 280]
    assert first.get_ydata().tolist() == [np.inf, smallest_effect(100, 0.1), smallest_effect(400, 0.1)]


def test_recalls_and_confusions_are_the_metrics(tables):
    figure = recalls({m: metrics.per_emotion(t, EMOTIONS) for m, t in tables.items()})
    counts = {m: metrics.confusion(t, EMOTIONS) for m, t in tables.items()}
    heat = confusions(counts, EMOTIONS)
    for axes, line, matrix in zip(heat.axes, figure.axes[0].lines[:3], counts.values(), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shown, matrix / matrix.sum(1, keepdims=True))
        np.testing.assert_allclose(line.get_ydata(), 100 * np.diag(shown))
    absent = confusions({"m": np.diag([3.0, 0.0])}, ("a", "b"))
    assert np.asarray(absent.axes[0].images[0].get_array()).tolist() == [[1, 0], [0, 0]]


def test_reliability_and_lengths_draw_a_line_a_method(tables, tmp_path):
    drawn = {m: metrics.reliability(t, EMOTIONS) for m, t in tables.items()}
    diagonal, *lines = reliability(drawn).axes[0].lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    for line, bins in zip(lines, drawn.values(), strict=True):
        assert line.get_xydata().tolist() == [[b["confidence"], b["accuracy"]] for b in bins]
    by_length = metrics.by_bin(tables, EMOTIONS, "length", (1, 4, 7), EvaluationSettings(bootstrap=50))
    figure = plots.lengths(by_length)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1–3", "4–6", "7 and on"]
    assert [y for line in figure.axes[0].lines for y in line.get_ydata()] == [r["WA"] for r in by_length]
    figure.savefig(tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").stat().st_size < 300_000
