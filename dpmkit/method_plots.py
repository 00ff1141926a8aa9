"""Figures that compare methods: calibration, emotions, power, cost. The house's look is `plots`'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from .plots import COLOURS, LINES, MARKERS, heatmap
from .summaries import PAPER_TABLE_1

CONVERSATIONS = {"IEMOCAP": 151, "MELD test": 280}  # targets of the protocol `complete`
# Where a point's label may stand, in points from it, and its alignment: beside it, then farther off.
PLACES = sorted(((x, y, "left" if x > 0 else "right") for x in (7, -7, 50, -50) for y in range(-96, 97, 12)),
                key=lambda place: abs(place[0]) + abs(place[1]))


def reliability(rows_by_method: Mapping[str, Sequence[dict[str, float]]]) -> Figure:
    """Accuracy against confidence, a line a method (six at most, to be read) of `metrics.reliability`'s rows; on
    the diagonal an answer is as sure as it is right. A marker's area grows with its bin's share of utterances."""
    figure, axes = plt.subplots(figsize=(4.8, 3.3))
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    for i, (method, rows) in enumerate(rows_by_method.items()):
        table = pd.DataFrame(rows)
        look = {"color": COLOURS[i % 8], "label": method, "marker": MARKERS[i % 8]}
        axes.plot(table["confidence"], table["accuracy"], LINES[i % 4], lw=1.2, ms=4, **look)
        axes.scatter(table["confidence"], table["accuracy"], s=12 + 200 * table["n"] / table["n"].sum(),
                     color=COLOURS[i % 8], marker=MARKERS[i % 8], alpha=0.6, lw=0)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence: probability of the answer",
             ylabel="accuracy: share that is right")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center")
    return figure


def recalls(by_method: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Recall and F1 of each emotion, a marker a method. `by_method`: `metrics.per_emotion` of each."""
    support = {e: int(row["n"]) for e, row in next(iter(by_method.values())).items()}
    figure, panels = plt.subplots(1, 2, figsize=(max(6.4, 1.9 + 1.4 * len(support)), 2.9), sharey=True)
    for axes, key, name in ((panels[0], "recall", "recall"), (panels[1], "f1", "F1")):
        for i, (method, of) in enumerate(by_method.items()):
            x = np.arange(len(support)) + 0.7 * ((i + 0.5) / len(by_method) - 0.5)
            axes.plot(x, [100 * of[e][key] for e in support], MARKERS[i % 8], ms=5, color=COLOURS[i % 8],
                      label=method)
        for edge in range(1, len(support)):
            axes.axvline(edge - 0.5, color="0.9", lw=0.8, zorder=0)
        axes.set(xticks=range(len(support)), xticklabels=[f"{e}\n{n}" for e, n in support.items()],
                 xlim=(-0.5, len(support) - 0.5), ylim=(-3, 103), ylabel=f"{name}, %",
                 xlabel="emotion and its number of utterances")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=min(6, len(by_method)),
                  loc="outside upper center")
    return figure


def confusions(matrices: Mapping[str, np.ndarray], emotions: Sequence[str]) -> Figure:
    """A heatmap a method: the share of each true emotion (row) that was given each answer. `matrices`: counts or
    shares, (emotions, emotions), rows true; an emotion that never occurs has a row of zeros."""
    size = 1.0 + 0.5 * len(emotions)
    figure, panels = plt.subplots(1, len(matrices), figsize=(size * len(matrices), size), squeeze=False)
    for axes, (method, matrix) in zip(panels[0], matrices.items(), strict=True):
        total = matrix.sum(1, keepdims=True)
        heatmap(matrix / np.where(total > 0, total, 1), emotions, method, "answer",
                "truth" if axes is panels[0][0] else "", axes)
    return figure


def power(rows: Sequence[dict[str, Any]]) -> Figure:
    """Smallest gain in accuracy that shows in four of five repetitions, against the number of conversations with
    one target each. `rows`: `n`, `discordant` and `points`, of `significance.smallest_effect(n, discordant)`."""
    dpm, other = (PAPER_TABLE_1["iemocap"][m]["complete"][0] for m in ("dpm", "at-once"))
    figure, axes = plt.subplots(figsize=(6.4, 3.3))
    for i, (share, part) in enumerate(pd.DataFrame(rows).groupby("discordant")):
        axes.plot(part["n"], part["points"], LINES[i % 4], color=COLOURS[i % 8], label=f"{100 * share:g} %")
    axes.axhline(dpm - other, color="0.35", lw=0.8)
    axes.annotate(f"paper claims {dpm - other:.2f}", (0, dpm - other), (3, -2), fontsize=8, va="top",
                  xycoords=("axes fraction", "data"), textcoords="offset points")  # left: all curves are above
    for name, n in CONVERSATIONS.items():
        axes.axvline(n, color="0.5", lw=0.8, ls=(0, (4, 3)))
        axes.annotate(f"{name}\n{n}", (n, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                      fontsize=8)
    axes.set(xlabel="conversations, one target each", ylabel="smallest gain in WA, points")
    _log_x(axes)
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper", title="targets that the\nmethods differ on",
                  title_fontsize=8)
    return figure


def pareto(rows: Sequence[dict[str, Any]]) -> Figure:
    """WA with its interval against the milliseconds that a sentence takes; the step line joins the methods that no
    other one beats in both. `rows`: `method`, `WA` (%), `WA_interval`, `seconds_a_sentence` (above 0)."""
    rows = sorted(rows, key=lambda r: (r["seconds_a_sentence"], -r["WA"]))
    x, y = np.array([[1000 * r["seconds_a_sentence"], r["WA"]] for r in rows]).T
    low, high = np.array([r["WA_interval"] for r in rows]).T
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    axes.vlines(x, low, high, color=COLOURS[0], lw=1.2, alpha=0.6)
    axes.plot(x, y, "o", ms=5, color=COLOURS[0])
    axes.set(xlabel="milliseconds per sentence", ylabel="WA, %")
    _log_x(axes)
    axes.margins(x=0.12)
    axes.set_xlim(axes.get_xlim())
    # The front's corners: a step right to the next method, then up where it is better than all before it.
    front = np.c_[np.repeat([*x, axes.get_xlim()[1]], 2)[1:-1], np.repeat(np.maximum.accumulate(y), 2)]
    axes.plot(*front.T, color="0.6", lw=1, zorder=1)
    figure.draw_without_rendering()  # lays the axes out: the labels are fitted into them
    ends = np.c_[np.r_[np.c_[x, low], front[:-1]], np.r_[np.c_[x, high], front[1:]]].reshape(-1, 2)
    taken = [Bbox(line).padded(3) for line in axes.transData.transform(ends).reshape(-1, 2, 2)]
    for r, ms, wa in zip(rows, x, y, strict=True):
        taken.append(_label(axes, r["method"], (ms, wa), taken))
    return figure


def _log_x(axes: plt.Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2, 5, 10, …: its range may be less than a decade."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(axes: plt.Axes, text: str, at: tuple[float, float], taken: Sequence[Bbox]) -> Bbox:
    """Write `text` at the first of the places near `at` that is inside the axes and clear of all that is `taken`
    (at the last one where none is), with a line to it from farther off; where it stands, in pixels."""
    label = axes.annotate(text, at, (0, 0), textcoords="offset points", va="center", fontsize=8)
    for place in PLACES:
        label.set(position=place[:2], ha=place[2])
        box = label.get_window_extent()
        inside = (box.min > axes.bbox.min).all() and (box.max < axes.bbox.max).all()
        if inside and not box.count_overlaps(taken):
            break
    if np.hypot(*place[:2]) > 12:
        axes.annotate("", at, place[:2], textcoords="offset points",
                      arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.5, "shrinkA": 0, "shrinkB": 3})
    return box
