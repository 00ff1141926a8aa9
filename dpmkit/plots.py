"""Figures of tables and records, and the players of notebook 01. Lines and markers differ, for grey paper."""

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

from . import audio, runs
from .corpora import Corpus, Utterance
from .settings import Settings

COLOURS = ("#1b4f72", "#c0562f", "#3f8f5f", "#8e5ea2", "#6b6b6b", "#b8860b", "#2a9d9d", "#b03060")
CONVERSATIONS = {"IEMOCAP": 151, "MELD test": 280}  # targets of the protocol `complete`
Rows = Sequence[dict[str, Any]]  # of a record

matplotlib.rcdefaults()  # a user's own matplotlibrc (usetex, dark colours) is for other figures
plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False,
                     "font.size": 9, "figure.dpi": 110, "savefig.dpi": 140, "axes.titlesize": 10,
                     "legend.frameon": False, "legend.fontsize": 8, "lines.markersize": 4})


def save(figure: Figure, settings: Settings, name: str) -> Path:
    """Write a figure to figures/<name>-<run name>.png of a user's results (atomically); its path."""
    path = settings.results_path / "figures" / f"{name}-{settings.run_name}.png"
    with runs.atomic(path) as temporary:
        figure.savefig(temporary)
    return path


def _look(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th of several."""
    return {"color": COLOURS[i % 8], "marker": "osD^vPX*"[i % 8], "linestyle": ("-", "--", ":", "-.")[i % 4]}


def _legend(axes: plt.Axes, place: str = "outside upper left", columns: int = 5, **more: Any) -> None:
    """One for all of the figure, of what these axes hold."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc=place, ncols=columns, **more)


def _ends(table: pd.DataFrame, key: str) -> np.ndarray:
    """Low and high ends of a column's intervals, (2, rows); NaN where there are none."""
    return np.array(table[f"{key}_interval"].tolist(), dtype=float).T


def _points(axes: plt.Axes, x: Sequence[float], table: pd.DataFrame, i: int = 0, key: str = "WA",
            **look: Any) -> None:
    """A value of each row with its interval, in the look of the i-th method."""
    axes.vlines(x, *_ends(table, key), color=COLOURS[i % 8], lw=1, alpha=0.6)
    axes.plot(x, table[key], **_look(i) | look)


def _wall(axes: plt.Axes, x: float, text: str) -> None:
    axes.axvline(x, color="0.5", lw=0.8, ls=(0, (4, 3)))
    axes.annotate(text, (x, 0.98), xycoords=("data", "axes fraction"), rotation=90, ha="center", va="top",
                  fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})


def heatmap(matrix: np.ndarray, emotions: Sequence[str], title: str, xlabel: str, ylabel: str,
            axes: plt.Axes) -> None:
    """A square matrix in [0, 1] over the emotions, with its numbers."""
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.55 else "black")
    axes.set(xticks=range(len(emotions)), yticks=range(len(emotions)), xticklabels=emotions, yticklabels=emotions,
             title=title, xlabel=xlabel, ylabel=ylabel)


def confusions(matrices: Mapping[str, np.ndarray], emotions: Sequence[str]) -> Figure:
    """A heatmap per name: the share of each true label (row) that was given each answer. `matrices`: counts."""
    size = 1.0 + 0.5 * len(emotions)
    figure, panels = plt.subplots(1, len(matrices), figsize=(size * len(matrices), size), squeeze=False)
    for axes, (name, matrix) in zip(panels[0], matrices.items(), strict=True):
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        heatmap(shares, emotions, name, "answer", "true label" if axes is panels[0][0] else "", axes)
    return figure


def durations(table: pd.DataFrame) -> Figure:
    """Histograms: seconds per utterance, turns and minutes per conversation; `table`: `Corpus.table`."""
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


def utterance(waveform: np.ndarray, codes: np.ndarray, frame_rate: float) -> Figure:
    """One utterance: its waveform and, below on the same seconds, its codes."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 3.2), sharex=True)
    top.plot(np.arange(len(waveform)) / audio.RATE, waveform, lw=0.4, color=COLOURS[0])
    top.set(ylabel="amplitude", title="one utterance, as samples and as codes")
    bottom.plot((np.arange(len(codes)) + 0.5) / frame_rate, codes, ".-", drawstyle="steps-mid", color=COLOURS[1])
    bottom.set(xlabel="seconds", ylabel="code")
    return figure


def players(corpus: Corpus, utterances: Sequence[Utterance]) -> None:
    """A player per utterance. Audio is embedded for the demo corpus alone: the others are not ours to pass on."""
    for one in utterances:
        text = f"<b>{one.emotion}</b>, speaker {one.speaker}, {one.seconds:.1f} s ({one.id})"
        if corpus.name != "demo":
            display(HTML(f"{text}: not embedded, as this corpus' licence does not let us pass audio on."))
            continue
        waveform = audio.read(one.audio.path, one.audio.start, one.audio.end)
        display(HTML(text), Audio(waveform, rate=audio.RATE, normalize=False))


def losses(history: pd.DataFrame) -> Figure:
    """Losses of training and validation per epoch, and validation WA and UA; `history`: `Finetuned.history`."""
    loss = "(L_a + L_e) / 2"
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8))
    for axes, scale, names in ((left, 1, {"train_loss": f"training, {loss}", "eval_l_a": "validation L_a",
                                          "eval_loss": f"validation, {loss}", "eval_l_e": "validation L_e"}),
                               (right, 100, {"eval_wa": "WA", "eval_ua": "UA"})):
        for i, (column, label) in enumerate(names.items()):
            axes.plot(history["epoch"], scale * history[column], label=label, **_look(i))
        axes.legend(fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    left.set(xlabel="epoch", ylabel="nats per token")
    right.axvline(history.loc[history["eval_l_e"].idxmin(), "epoch"], color="0.6", lw=0.8)
    right.set(xlabel="epoch (line: the one kept)", ylabel="validation, %")
    return figure


def trace(table: pd.DataFrame, emotions: Sequence[str]) -> Figure:
    """One conversation turn by turn: probabilities (stacked), true labels (dots), L_t and the memory's norm."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True, height_ratios=(2, 1))
    turns = table["turn"]
    top.stackplot(turns, *(table[f"p_{e}"] for e in emotions), labels=emotions, step="mid", alpha=0.85,
                  colors=COLOURS)
    for who, (_, part) in enumerate(table[table["emotion"].notna()].groupby("speaker")):
        colours = [COLOURS[list(emotions).index(e) % 8] for e in part["emotion"]]
        top.scatter(part["turn"], np.full(len(part), 1.05 + 0.08 * who), s=16, clip_on=False, c=colours)
    top.set(ylabel="probability", ylim=(0, 1), xlim=(turns.min() - 0.5, turns.max() + 0.5))
    top.legend(ncols=len(emotions), loc="lower center", bbox_to_anchor=(0.5, 1.18), title_fontsize=8,
               title="filled: answer; dots above: true label, one row per speaker")
    bottom.plot(turns, table["norm"], "-o", ms=3, color=COLOURS[0])
    bottom.set(xlabel="turn", ylabel="norm of the\nmemory's change")
    right = bottom.twinx()
    right.plot(turns, table["loss"], ":s", ms=3, color=COLOURS[1])
    right.set_ylabel("L_t, nats per token (dotted)", color=COLOURS[1])
    right.spines["right"].set_visible(True)
    return figure


def methods(rows: Rows, title: str) -> Figure:
    """WA of each method with its interval, and its gain over the window baseline, the first on top."""
    table = pd.DataFrame(rows)[::-1]
    table = table[table["method"] != "majority"]  # would squeeze the others
    figure, panels = plt.subplots(1, 2, figsize=(9, 0.45 + 0.32 * len(table)), sharey=True)
    for axes, key in zip(panels, ("WA", "WA_gain"), strict=True):
        axes.hlines(table["method"], *_ends(table, key), color=COLOURS[0], lw=1.6)
        axes.plot(table[key], table["method"], "o", ms=5, color=COLOURS[0])
    panels[0].set(xlabel="WA, %", title=title)
    panels[1].axvline(0, color="0.5", lw=0.8)
    panels[1].set(xlabel="WA against the window baseline, points")
    return figure


def ablations(rows: Rows) -> Figure:
    """Gain in WA over the frozen SLLM with the same prefix, a panel per setting."""
    parts = dict(list(pd.DataFrame(rows).groupby("setting", sort=False)))
    widths = [max(3, len(part)) for part in parts.values()]  # room for each tick's label
    figure, panels = plt.subplots(1, len(parts), figsize=(0.62 * sum(widths) + 1, 2.7), sharey=True, squeeze=False,
                                  width_ratios=widths)
    for axes, (name, part) in zip(panels[0], parts.items(), strict=True):
        _points(axes, range(len(part)), part, key="WA_gain", linestyle="")
        axes.axhline(0, color="0.5", lw=0.8)
        axes.set(xticks=range(len(part)), xticklabels=map(_short, part["value"]), xlabel=name,
                 xlim=(-0.5, len(part) - 0.5))
    panels[0][0].set_ylabel("WA of DPM minus\nno memory, points")
    return figure


def _short(value: float | str) -> str:
    """3e-4, 64, 0: a value as short as a tick label must be; words stand one below the other."""
    if isinstance(value, str):
        return value.replace("-", "\n")
    return f"{value:g}" if value == 0 or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def by_bin(rows: Rows) -> Figure:
    """WA against the position in the conversation or its length, with intervals: rows of `metrics.by_bin`."""
    table, bins = pd.DataFrame(rows), "turns" if "turns" in rows[0] else "utterances"
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        _points(axes, np.arange(len(part)) + 0.06 * i, part, i, label=method)
    labels = table[bins].unique()
    axes.set(xticks=range(len(labels)), xticklabels=labels, xlabel=f"{bins} of the conversation", ylabel="WA, %")
    _legend(axes)
    return figure


def reliability(rows_by_method: Mapping[str, Rows]) -> Figure:
    """Accuracy against confidence, a line per method of `metrics.reliability`'s rows, on the diagonal where answers
    are as sure as right; a marker's area grows with its bin's share of utterances."""
    figure, axes = plt.subplots(figsize=(4.8, 3.3))
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    for i, (method, rows) in enumerate(rows_by_method.items()):
        table, look = pd.DataFrame(rows), _look(i)
        axes.plot(table["confidence"], table["accuracy"], lw=1.2, label=method, **look)
        axes.scatter(table["confidence"], table["accuracy"], s=12 + 200 * table["n"] / table["n"].sum(),
                     color=look["color"], marker=look["marker"], alpha=0.6, lw=0)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence: probability of the answer",
             ylabel="accuracy: share that is right")
    _legend(axes, "outside right center", columns=1)
    return figure


def recalls(by_method: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Recall and F1 of each emotion, a bar per method: `metrics.per_emotion` of each."""
    support = next(iter(by_method.values()))
    figure, panels = plt.subplots(1, 2, figsize=(max(6.4, 1.9 + 1.4 * len(support)), 2.9), sharey=True)
    for axes, key, name in zip(panels, ("recall", "f1"), ("recall, %", "F1, %"), strict=True):
        table = pd.DataFrame({method: {f"{e}\n{row['n']:.0f}": 100 * row[key] for e, row in of.items()}
                              for method, of in by_method.items()})
        table.plot.bar(ax=axes, rot=0, width=0.8, color=COLOURS, legend=False, title=name,
                       xlabel="emotion and its number of utterances")
    _legend(panels[0], "outside upper center", columns=6)
    return figure


def _log_x(axes: plt.Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2, 5, 10, …: its range may be less than a decade."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def pareto(rows: Rows) -> Figure:
    """WA with its interval against milliseconds per sentence; the step line joins the methods that no other one
    beats in both. `rows`: `method`, `WA` (%), `WA_interval`, `seconds_per_sentence`."""
    table = pd.DataFrame(rows).sort_values(["seconds_per_sentence", "WA"], ascending=[True, False])
    table["ms"] = 1000 * table["seconds_per_sentence"]
    figure, axes = plt.subplots(figsize=(6.8, 3.6))
    axes.step(table["ms"], table["WA"].cummax(), where="post", color="0.6", lw=1, zorder=1)
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        _points(axes, part["ms"], part, i, label=method, linestyle="", markersize=6)
    _log_x(axes)
    axes.margins(x=0.12)
    axes.set(xlabel="milliseconds per sentence", ylabel="WA, %")
    _legend(axes, "outside right center", columns=1)
    return figure


def cost(rows: Rows, window: int, rates: Sequence[float]) -> Figure:
    """Seconds and peak memory to label the last utterance against seconds of audio, and where a context of `window`
    tokens ends at each frame rate (codes per second)."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.3))
    for axes, column, label, scale in ((panels[0], "seconds", "seconds to the label", 1.0),
                                       (panels[1], "peak_bytes", "peak memory beyond the model, MB", 1e-6)):
        for i, (path, part) in enumerate(pd.DataFrame(rows).groupby("path", sort=False)):
            axes.plot(part["audio_seconds"], np.maximum(part[column] * scale, 1e-3), label=path, **_look(i))
        axes.set(xscale="log", yscale="log", xlabel="seconds of audio", ylabel=label)
        for rate in rates:
            _wall(axes, window / rate, f"{window} tokens at {rate:g} Hz: {window / rate:.0f} s")
    _legend(panels[0])
    return figure


FAMILIES = {"boundaries moved by up to ± s": ("jitter", "silero", "chunks"), "babble: SNR, dB": ("babble",),
            "white noise: SNR, dB": ("white",), "overlap, %": ("overlap",)}
TICKS = {"none": "none", "silero": "silero\nVAD", "chunks": "{:g} s\nchunk", "overlap": "{:.0%}"}


def robustness(rows: Rows) -> Figure:
    """WA under disturbances, a panel per family that was run and a line per method: rows of `robustness.measured`.
    Boundaries that a machine has set are on no line, as they are on no scale with the others."""
    table = pd.DataFrame(rows)
    parts = {label: table[table["kind"].isin(("none", *kinds))] for label, kinds in FAMILIES.items()
             if table["kind"].isin(kinds).any()}
    widths = [part.groupby(["kind", "level"]).ngroups for part in parts.values()]
    figure, panels = plt.subplots(1, len(widths), figsize=(1 + 0.42 * sum(widths), 3), sharey=True, squeeze=False,
                                  width_ratios=widths)
    for axes, (label, family) in zip(panels[0], parts.items(), strict=True):
        methods = family.groupby("method", sort=False)
        for i, (method, part) in enumerate(methods):
            # Beside each other: intervals in one place would hide each other.
            x = np.arange(len(part)) + 0.6 * ((i + 0.5) / len(methods) - 0.5)
            found = part["kind"].isin(["silero", "chunks"]).to_numpy()
            _points(axes, x[~found], part[~found], i, label=method, lw=1)
            if found.any():
                _points(axes, x[found], part[found], i, linestyle="")
        names = [TICKS.get(kind, "{:g}").format(level)
                 for kind, level in zip(part["kind"], part["level"], strict=True)]
        axes.set(xlabel=label, xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5), xticklabels=names)
        axes.tick_params(axis="x", labelsize=7)
    panels[0][0].set_ylabel("WA, %")
    _legend(panels[0][0], columns=6)
    return figure
