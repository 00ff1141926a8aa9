"""Figures of DataFrames and records, and the players of notebook 01. Colours differ in grey, too.

method_plots: Figures that compare methods: calibration, emotions, power, cost. The house's look is `plots`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Audio, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from . import audio, runs
from .corpora import Corpus, Utterance
from .settings import Settings
from .tables import PAPER_TABLE_1

# -- plots ---------------------------------------------------------------------

EMOTION_COLOURS = {"neu": "#9aa0a6", "hap": "#e8a33d", "sad": "#3b6fb6", "ang": "#a4262c", "exc": "#f2d16b",
                   "fru": "#d07a5e", "surprise": "#8e5ea2", "fear": "#2a9d9d", "disgust": "#6b7d2a"}
EMOTION_COLOURS |= {"neutral": "#9aa0a6", "joy": "#e8a33d", "sadness": "#3b6fb6", "anger": "#a4262c"}  # MELD
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
COLOURS = ("#1b4f72", "#c0562f", "#3f8f5f", "#8e5ea2", "#6b6b6b", "#b8860b", "#2a9d9d", "#b03060")

matplotlib.rcdefaults()  # a user's own matplotlibrc (usetex, dark colours) is for other figures
plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False,
                     "font.size": 9, "figure.dpi": 110, "savefig.dpi": 140, "axes.titlesize": 10})


def save(figure: Figure, settings: Settings, name: str) -> Path:
    """Write a figure to figures/<name>-<run name>.png of a user's results (atomically); its path."""
    path = settings.results_path / "figures" / f"{name}-{settings.run_name}.png"
    with runs.atomic(path) as temporary:
        figure.savefig(temporary)
    return path


def heatmap(matrix: np.ndarray, emotions: Sequence[str], title: str, xlabel: str, ylabel: str,
            axes: plt.Axes | None = None, number: str = "{:.2f}") -> Figure:
    """A square matrix in [0, 1] over the emotions, with its numbers."""
    axes = axes or plt.subplots(figsize=(3.4, 3.1))[1]
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, number.format(value), ha="center", va="center", color="white" if value > 0.55 else "black")
    axes.set(xticks=range(len(emotions)), yticks=range(len(emotions)), xticklabels=emotions, yticklabels=emotions,
             title=title, xlabel=xlabel, ylabel=ylabel)
    return axes.figure


def durations(table: pd.DataFrame) -> Figure:
    """Histograms: seconds an utterance and a conversation, turns a conversation. `table`: one row an utterance
    with `conversation`, `seconds` and `end`."""
    grouped = table.groupby("conversation")
    panels = ((table["seconds"], "seconds of an utterance"), (grouped.size(), "turns of a conversation"),
              (grouped["end"].max() / 60, "minutes of a conversation"))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4))
    for a, (values, label) in zip(axes, panels, strict=True):
        middle = values.mean()  # recordings of one length have no range to bin
        a.hist(values, bins=24, range=None if np.ptp(values) > 1e-6 else (middle - 0.5, middle + 0.5),
               color=COLOURS[0])
        a.set(xlabel=label, ylabel="count")
    return figure


def heard(waveform: np.ndarray, codes: np.ndarray, frame_rate: float) -> Figure:
    """One utterance: its waveform and, below on the same seconds, its codes."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 3.2), sharex=True)
    top.plot(np.arange(len(waveform)) / audio.RATE, waveform, lw=0.4, color=COLOURS[0])
    top.set(ylabel="amplitude", title="one utterance, as samples and as codes")
    bottom.plot((np.arange(len(codes)) + 0.5) / frame_rate, codes, drawstyle="steps-mid", marker=".", ms=4,
                color=COLOURS[1])
    bottom.set(xlabel="seconds", ylabel="code")
    return figure


def losses(history: pd.DataFrame) -> Figure:
    """Loss of training and validation an epoch, and validation WA; `history`: rows of `Finetuned.history`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8))
    for i, (column, label) in enumerate((("train_loss", "training, (L_a + L_e) / 2"),
                                         ("eval_loss", "validation, (L_a + L_e) / 2"),
                                         ("eval_l_a", "validation L_a"), ("eval_l_e", "validation L_e"))):
        left.plot(history["epoch"], history[column], LINES[i], marker=MARKERS[i], ms=4, color=COLOURS[i],
                  label=label)
    left.set(xlabel="epoch", ylabel="nats a token")
    left.legend(frameon=False, fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    right.plot(history["epoch"], 100 * history["eval_wa"], "-o", ms=4, color=COLOURS[0], label="WA")
    right.plot(history["epoch"], 100 * history["eval_ua"], "--s", ms=4, color=COLOURS[1], label="UA")
    best = history.loc[history["eval_l_e"].idxmin(), "epoch"]
    right.axvline(best, color="0.6", lw=0.8)
    right.set(xlabel="epoch (line: the one kept)", ylabel="validation, %")
    right.legend(frameon=False)
    return figure


def trace(table: pd.DataFrame, emotions: Sequence[str]) -> Figure:
    """One conversation turn by turn: probabilities (stacked), truth (dots), L_t and the memory's norm."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True, height_ratios=(2, 1))
    turns = table["turn"].to_numpy()
    top.stackplot(turns, *(table[f"p_{e}"] for e in emotions), labels=emotions, step="mid", alpha=0.85,
                  colors=[EMOTION_COLOURS.get(e, COLOURS[i % 8]) for i, e in enumerate(emotions)])
    for who, speaker in enumerate(sorted(table["speaker"].unique())):
        for i, e in enumerate(emotions):
            rows = table[(table["speaker"] == speaker) & (table["emotion"] == e)]
            top.scatter(rows["turn"], np.full(len(rows), 1.05 + 0.08 * who), s=16, clip_on=False,
                        color=EMOTION_COLOURS.get(e, COLOURS[i % 8]), marker="os"[who % 2])
    top.set(ylabel="probability", ylim=(0, 1), xlim=(turns.min() - 0.5, turns.max() + 0.5))
    top.legend(frameon=False, ncols=len(emotions), loc="lower center", bbox_to_anchor=(0.5, 1.18),
               title="filled: answer; dots above: truth, one row a speaker", fontsize=8, title_fontsize=8)
    bottom.plot(turns, table["norm"], "-o", ms=3, color=COLOURS[0])
    bottom.set(xlabel="turn", ylabel="norm of the\nmemory's change")
    right = bottom.twinx()
    right.plot(turns, table["loss"], ":s", ms=3, color=COLOURS[1])
    right.set_ylabel("L_t, nats a token (dotted)", color=COLOURS[1])
    right.spines["right"].set_visible(True)
    return figure


def methods(rows: Sequence[dict[str, Any]], title: str, measure: str = "WA") -> Figure:
    """Each method's measure with its interval, and its gain over the window baseline beside it. The majority class
    stays in the table: on the axis it would squeeze the others."""
    rows = [r for r in rows if r["method"] != "majority"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.45 + 0.32 * len(rows)), sharey=True)
    y = np.arange(len(rows))[::-1]
    for axes, key in ((left, measure), (right, f"{measure}_gain")):
        middle = np.array([r[key] for r in rows])
        low, high = np.array([r[f"{key}_interval"] for r in rows]).T
        axes.hlines(y, low, high, color=COLOURS[0], lw=1.6)
        axes.plot(middle, y, "o", ms=5, color=COLOURS[0])
    right.axvline(0, color="0.5", lw=0.8)
    left.set(yticks=y, yticklabels=[r["method"] for r in rows], xlabel=f"{measure}, %", title=title)
    right.set(xlabel=f"{measure} against the window baseline, points")
    return figure


def ablations(rows: Sequence[dict[str, Any]]) -> Figure:
    """Gain in WA over the frozen SLLM with the same prefix, one panel a setting."""
    table = pd.DataFrame(rows)
    names = list(dict.fromkeys(table["setting"]))
    counts = [max(3, (table["setting"] == name).sum()) for name in names]  # room for each tick's label
    figure, axes = plt.subplots(1, len(names), figsize=(0.62 * sum(counts) + 1, 2.7), sharey=True, squeeze=False,
                                width_ratios=counts)
    for panel, name in zip(axes[0], names, strict=True):
        part = table[table["setting"] == name]
        x = np.arange(len(part))
        low, high = np.array(part["WA_gain_interval"].tolist()).T
        panel.vlines(x, low, high, color=COLOURS[0], lw=1.6)
        panel.plot(x, part["WA_gain"], "o", color=COLOURS[0])
        panel.axhline(0, color="0.5", lw=0.8)
        panel.set(xticks=x, xticklabels=[_short(v) for v in part["value"]], xlabel=name)
        panel.set_xlim(-0.5, len(part) - 0.5)
    axes[0][0].set_ylabel("WA of DPM minus\nno memory, points")
    return figure


def _short(value: float | str) -> str:
    """3e-4, 64, 0: a value as short as a tick label must be; words stand one below the other."""
    if isinstance(value, str):
        return value.replace("-", "\n")
    return f"{value:g}" if value == 0 or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def positions(rows: Sequence[dict[str, Any]]) -> Figure:
    """WA against the position in the conversation, one line a method, with intervals."""
    return _binned(rows, "turns", "turn of the conversation")


def lengths(rows: Sequence[dict[str, Any]]) -> Figure:
    """WA against the length of the conversation, one line a method, with intervals (`metrics.by_length`)."""
    return _binned(rows, "utterances", "utterances of the conversation")


def _binned(rows: Sequence[dict[str, Any]], bins: str, xlabel: str) -> Figure:
    table = pd.DataFrame(rows)
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        low, high = np.array(part["WA_interval"].tolist()).T
        x = np.arange(len(part)) + 0.06 * i
        axes.vlines(x, low, high, color=COLOURS[i % 8], lw=1, alpha=0.6)
        axes.plot(x, part["WA"], LINES[i % 4], marker=MARKERS[i % 8], ms=5, color=COLOURS[i % 8], label=method)
    labels = table[table["method"] == table["method"].iloc[0]][bins]
    axes.set(xticks=range(len(labels)), xticklabels=labels, xlabel=xlabel, ylabel="WA, %")
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def cost(rows: Sequence[dict[str, Any]], window: int, rates: Sequence[float]) -> Figure:
    """Seconds and peak memory to label the last utterance against seconds of audio, with the walls of a context
    of `window` tokens at each frame rate (codes a second)."""
    table = pd.DataFrame(rows)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.3))
    for axes, column, label, scale in ((panels[0], "seconds", "seconds to the label", 1.0),
                                       (panels[1], "peak_bytes", "peak memory beyond the model, MB", 1e-6)):
        for i, (path, part) in enumerate(table.groupby("path", sort=False)):
            axes.plot(part["audio_seconds"], np.maximum(part[column] * scale, 1e-3), LINES[i % 4],
                      marker=MARKERS[i], ms=4, color=COLOURS[i], label=path)
        axes.set(xscale="log", yscale="log", xlabel="seconds of audio heard", ylabel=label)
        for rate in rates:
            axes.axvline(window / rate, color="0.5", lw=0.8, ls=(0, (4, 3)))
            axes.annotate(f"{window} tokens at {rate:g} Hz: {window / rate:.0f} s", (window / rate, 0.98),
                          xycoords=("data", "axes fraction"), rotation=90, ha="center", va="top", fontsize=7,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    panels[0].legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def players(corpus: Corpus, utterances: Sequence[Utterance]) -> None:
    """A player an utterance. Audio is embedded for the demo corpus alone: the others are not ours to pass on."""
    for utterance in utterances:
        text = (f"<b>{utterance.emotion}</b>, speaker {utterance.speaker}, {utterance.seconds:.1f} s "
                f"({utterance.id})")
        if corpus.name != "demo":
            display(HTML(f"{text}: not embedded, as this corpus' licence does not let us pass audio on."))
            continue
        clip = utterance.audio
        display(HTML(text), Audio(audio.read(clip.path, clip.start, clip.end), rate=audio.RATE, normalize=False))


def robustness(rows: Sequence[dict[str, Any]]) -> Figure:
    """WA under disturbances, a panel a family and a line a method: rows of kind and level (`disturbances.KINDS`),
    method, WA and WA_interval, in the order in which they shall stand. Boundaries that a machine has set are on no
    line, as they are on no scale with the others. What was not run has no panel."""
    families = (("boundaries moved by up to ± s", "0 (true)", ("jitter", "silero", "chunks")),
                ("babble: SNR, dB", "none", ("babble",)),
                ("white noise: SNR, dB", "none", ("white",)),
                ("overlap, %", "none", ("overlap",)))
    ticks = {"silero": "silero\nVAD", "chunks": "{:g} s\nchunk", "overlap": "{:.0%}"}
    table = pd.DataFrame(rows)
    conditions = list(dict.fromkeys(zip(table["kind"], table["level"], strict=True)))
    families = [(label, none, [c for c in conditions if c[0] in ("none", *kinds)])
                for label, none, kinds in families if table["kind"].isin(kinds).any()]
    widths = [len(here) for *_, here in families]
    figure, axes = plt.subplots(1, len(widths), figsize=(1 + 0.42 * sum(widths), 3), sharey=True, squeeze=False,
                                width_ratios=widths)
    methods = list(table.groupby("method", sort=False))
    for panel, (label, none, here) in zip(axes[0], families, strict=True):
        for i, (method, part) in enumerate(methods):
            part = part.set_index(["kind", "level"]).reindex(here)
            # Beside each other: intervals in one place would hide each other.
            x = np.arange(len(here)) + 0.6 * ((i + 0.5) / len(methods) - 0.5)
            for a, interval in zip(x, part["WA_interval"], strict=True):
                if isinstance(interval, list):  # else the method was not run so
                    panel.vlines(a, *interval, color=COLOURS[i % 8], lw=1, alpha=0.6)
            found = part.index.get_level_values("kind").isin(["silero", "chunks"])
            panel.plot(x[~found], part["WA"][~found], LINES[i % 4], marker=MARKERS[i % 8], ms=4, lw=1,
                       color=COLOURS[i % 8], label=method)
            panel.plot(x[found], part["WA"][found], MARKERS[i % 8], ms=4, color=COLOURS[i % 8])
        panel.set(xticks=range(len(here)), xlim=(-0.5, len(here) - 0.5), xlabel=label, xticklabels=[
            none if kind == "none" else ticks.get(kind, "{:g}").format(level) for kind, level in here])
        panel.tick_params(axis="x", labelsize=7)
    axes[0][0].set_ylabel("WA, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=6,
                  loc="outside upper left")
    return figure


# -- method_plots --------------------------------------------------------------

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
    other one beats in both. `rows`: `method`, `WA` (%), `WA_interval`, `seconds_per_sentence` (above 0)."""
    rows = sorted(rows, key=lambda r: (r["seconds_per_sentence"], -r["WA"]))
    x, y = np.array([[1000 * r["seconds_per_sentence"], r["WA"]] for r in rows]).T
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
