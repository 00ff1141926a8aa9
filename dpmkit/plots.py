"""Figures of tables and records, and how they are shown. Lines and markers differ, for grey paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullLocator
from scipy import signal
from sklearn.metrics import ConfusionMatrixDisplay

from . import audio, machine, runs
from .settings import Settings

COLOURS = ("#1b4f72", "#c0562f", "#3f8f5f", "#8e5ea2", "#6b6b6b", "#b8860b", "#2a9d9d", "#b03060")
Rows = Sequence[dict[str, Any]]  # of a record
HEADLINE = ("at-once", "window", "dpm", "dpm-swapped", "window + filter", "speaker-head + filter", "speaker-memory",
            "dpm-told")
GROUPS = {"method": {"color": COLOURS[0], "marker": "o"}, "control": {"color": COLOURS[4], "marker": "s"},
          "filter": {"color": COLOURS[1], "marker": "D"}, "extension": {"color": COLOURS[2], "marker": "^"},
          "bound": {"color": COLOURS[3], "marker": "o", "mfc": "white"}}

matplotlib.rcdefaults()  # a user's own matplotlibrc (usetex, dark colours) is for other figures
plt.rcParams.update({
    "figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
    "figure.dpi": 110, "savefig.dpi": 140, "axes.titlesize": 10, "legend.frameon": False, "legend.fontsize": 8,
    "lines.markersize": 4, "axes.prop_cycle": plt.cycler(color=COLOURS) + plt.cycler(marker="osD^vPX*")
    + plt.cycler(linestyle=["-", "--", ":", "-."] * 2)})


CAPTIONS = {  # of a figure by its name, which is its alternative text, too; with what it is of (see `saved`)
    "durations": "How long utterances and conversations are",
    "transitions": "How often an emotion (row) is followed by another (column) of the same speaker",
    "codes": "One utterance: its spectrogram, and below on the same seconds its codes",
    "losses": "Losses, and WA and UA on validation conversations, by epoch",
    "sequence": "A training sequence: which tokens each loss predicts, and what its last sentence is given",
    "confusion": "What the SLLM answers (columns) to utterances of each true label (rows), shares of a row",
    "headline": "WA of the window, DPM, its control, filters, memories and a bound",
    "confusions": "Answers (columns) by true label (rows), shares of a row; the diagonal is recall",
    "reliability": "How often answers are right, by how sure they are",
    "lengths": "WA by the length of the conversation",
    "trace": "One conversation, turn by turn: probabilities, true labels, L_t and the size of the memory",
    "ablations": "What a setting of the memory gains over none, in points of WA, one at a time",
    "engine": "What layers, decay and stepping gain over no memory, in points of WA",
    "rules": "What other write rules gain over no memory, in points of WA, by learning rate",
    "robustness": "WA under noise, overlap and other boundaries",
    "positions": "WA by the turn of the conversation",
    "pareto": "WA against milliseconds per sentence; none beats the methods on the line in both",
    "cost": "Seconds and peak memory to a label, by the length of the recording"}


def saved(figure: Figure, settings: Settings, name: str, of: str) -> tuple[Path, str]:
    """Write a figure to figures/<name>-<run name>.png of a user's results (atomically); its path and its caption.

    The run stands in the image, and the caption in the file (its PNG text `Description`). `of`: what is drawn, and
    how many, in words."""
    run = (f"{settings.profile} on {settings.corpus}, fold {settings.fold}, seed {settings.seed}, "
           f"commit {machine.origin()['commit']}")
    caption = f"{CAPTIONS[name]} ({of}; {run})"
    path = settings.results_path / "figures" / f"{name}-{settings.run_name}.png"
    written(figure, path, run, caption)
    return path, caption


def written(figure: Figure, path: Path, run: str, caption: str) -> None:
    """Write a figure with the run in the image and the caption in the file."""
    figure.supxlabel(run, x=0.995, ha="right", fontsize=6.5, color="#666666")
    with runs.atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Description": caption})
    plt.close(figure)  # else a notebook draws it once more


def shown(figure: Figure, settings: Settings, name: str, of: str) -> None:
    """Show a figure with alternative text and a caption, as `saved` writes it."""
    path, caption = saved(figure, settings, name, of)
    display(*captioned(path.read_bytes(), caption))


def captioned(png: bytes, caption: str) -> list[Any]:
    """An image with its alternative text, and the same as a caption below it."""
    return [Image(png, alt=caption), HTML(f"<p><em>{escape(caption)}</em></p>")]


def _legend(figure: Figure) -> Figure:
    """The figure with one legend for all of it, of what its first axes hold."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return figure


def _ends(table: pd.DataFrame, key: str) -> np.ndarray:
    """Low and high ends of a column's intervals, (2, rows); NaN where there are none."""
    return np.array(table[f"{key}_interval"].tolist(), dtype=float).T


def _points(axes: plt.Axes, x: Sequence[float], table: pd.DataFrame, key: str = "WA", **look: Any) -> plt.Line2D:
    """A value of each row with its interval, in the next look."""
    line, = axes.plot(x, table[key], **look)
    axes.vlines(x, *_ends(table, key), color=line.get_color(), lw=1, alpha=0.6)
    return line


def _by_category(parts: Mapping[str, pd.DataFrame], ylabel: str, key: str = "WA", **look: Any) -> Figure:
    """Values with intervals over the categories of `label`, a panel per part, methods side by side, not to hide."""
    widths = [max(3, part["label"].nunique()) for part in parts.values()]
    figure, panels = plt.subplots(1, len(parts), figsize=(max(7, 1 + 0.5 * sum(widths)), 3), sharey=True,
                                  squeeze=False, width_ratios=widths)
    for axes, (name, part) in zip(panels[0], parts.items(), strict=True):
        labels, methods = part["label"].unique(), part.groupby("method", sort=False)
        for i, (method, rows) in enumerate(methods):
            x = np.arange(len(rows)) + 0.6 * ((i + 0.5) / len(methods) - 0.5)
            _points(axes, x, rows, key, label=method, **look)
        axes.set(xlabel=name, xticks=range(len(labels)), xticklabels=labels, xlim=(-0.5, len(labels) - 0.5))
    panels[0][0].set_ylabel(ylabel)
    return figure


def confusions(matrices: Mapping[str, np.ndarray], emotions: Sequence[str], rows: str = "true label",
               columns: str = "answer") -> Figure:
    """A heatmap per name: the share of each column in each row. `matrices`: counts, (emotions, emotions)."""
    size = 1.0 + 0.5 * len(emotions)
    figure, panels = plt.subplots(1, len(matrices), figsize=(size * len(matrices), size), squeeze=False)
    for axes, (name, matrix) in zip(panels[0], matrices.items(), strict=True):
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        ConfusionMatrixDisplay(shares, display_labels=emotions).plot(
            ax=axes, cmap="Blues", values_format=".2f", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
        axes.set(title=name, xlabel=columns, ylabel=rows if axes is panels[0][0] else "")
    return figure


def durations(table: pd.DataFrame) -> Figure:
    """Histograms: seconds per utterance, turns and minutes per conversation; `table`: `Corpus.table`."""
    grouped = table.groupby("conversation")
    panels = {"seconds of an utterance": table["seconds"], "turns of a conversation": grouped.size(),
              "minutes of a conversation": grouped["end"].max() / 60}
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4))
    for a, (label, values) in zip(axes, panels.items(), strict=True):
        a.hist(values.round(3), bins=24)  # equal lengths differ in their last bits
        a.set(xlabel=label, ylabel="count")
    return figure


def utterance(waveform: np.ndarray, codes: np.ndarray, frame_rate: float, codebook_size: int) -> Figure:
    """One utterance: its spectrogram and, below on the same seconds, its codes, a colour and a number each."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 3.4), sharex=True, height_ratios=(4, 1))
    loud = 10 * np.log10(signal.ShortTimeFFT(np.hanning(400), 160, audio.RATE, mfft=512).spectrogram(
        np.pad(waveform, (0, max(0, 400 - len(waveform))))) + 1e-10)  # (257, frames), dB
    seconds = len(waveform) / audio.RATE
    top.imshow(loud, origin="lower", aspect="auto", cmap=plt.get_cmap("magma", 14), interpolation="nearest",
               vmin=loud.max() - 70, extent=(0, seconds, 0, audio.RATE / 2000))  # 5 dB a colour: a small file
    top.set(ylabel="kHz")
    edges = np.arange(len(codes) + 1) / frame_rate
    bottom.pcolormesh(edges, [0, 1], codes[None], cmap="turbo", vmin=0, vmax=codebook_size - 1)
    for edge, code in zip(edges, codes if len(codes) <= 60 else (), strict=False):
        bottom.text(edge + 0.5 / frame_rate, 0.5, code, rotation=90, ha="center", va="center", fontsize=6,
                    bbox={"fc": "white", "ec": "none", "pad": 0.6})
    bottom.set(xlabel="seconds", ylabel="codes", yticks=[], xlim=(0, max(seconds, edges[-1])))
    return figure


def sequence(one: Mapping[str, Any], emotions: Sequence[str], n_o: int, n_p: int, n_q: int) -> Figure:
    """A training sequence of `finetune.sequences`, arrays or tensors of (tokens,): above, the weight that each
    token has in L_a, and below the labels of L_e; and, of the last sentence that has each, how many tokens its
    n_o, n_p and n_q are here."""
    weight, label = (np.asarray(one[name]) for name in ("code_weight", "emotion"))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True, height_ratios=(3, 2))
    top.fill_between(np.arange(len(weight) + 1), np.append(weight, 0), step="post", color=COLOURS[0], alpha=0.5)
    room = max(weight.max(), 1e-9)
    top.set(ylabel="weight of a token\nin $L_a$", ylim=(0, 2.1 * room))
    ends = np.flatnonzero(label >= 0)
    bottom.vlines(ends + 0.5, 0, 0.35, color=[COLOURS[i % 8] for i in label[ends]])
    bottom.set(xlabel=f"token of the sequence ({len(weight)} in all)", ylabel="labels of $L_e$", ylim=(0, 1),
               yticks=[], xlim=(0, len(weight)))
    bottom.legend([plt.Line2D([], [], color=COLOURS[i % 8], marker="") for i in range(len(emotions))], emotions,
                  ncols=len(emotions), loc="upper left")
    spans = []
    if weight.any():
        n = np.flatnonzero(weight)[-1] + 1
        own = min(n_o, n)
        spans += [(top, n - own, n, "n_o", 1.25 * room), (top, max(0, n - own - n_p), n - own, "n_p", 1.25 * room)]
    if len(ends):
        spans.append((bottom, max(0, ends[-1] + 1 - n_q), ends[-1] + 1, "n_q", 0.48))
    for axes, start, stop, name, height in spans:
        axes.annotate("", (start, height), (stop, height), arrowprops={"arrowstyle": "|-|,widthA=.3,widthB=.3"})
        axes.annotate(f"${name}$: {stop - start}", ((start + stop) / 2, height), (0, 5), ha="center",
                      textcoords="offset points")
    return figure


def losses(history: pd.DataFrame) -> Figure:
    """Losses of training and validation per epoch, and validation WA and UA; `history`: `Finetuned.history`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8))
    table = history.set_index("epoch")
    names = {"train_loss": "L, training", "eval_loss": "L, validation", "eval_l_a": "$L_a$, validation",
             "eval_l_e": "$L_e$, validation"}
    table[list(names)].rename(columns=names).plot(ax=left, ylabel="nats per token")
    (100 * table[["eval_wa", "eval_ua"]]).set_axis(["WA", "UA"], axis=1).plot(ax=right, ylabel="validation, %")
    right.axvline(table["eval_l_e"].idxmin(), color="0.6", lw=0.8)
    right.set(xlabel="epoch (line: the one kept)")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def trace(table: pd.DataFrame, emotions: Sequence[str]) -> Figure:
    """One conversation turn by turn: probabilities (stacked), true labels (dots), L_t and the memory's norm."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True, height_ratios=(2, 1))
    turns = table["turn"]
    top.stackplot(turns, *(table[f"p_{e}"] for e in emotions), labels=emotions, step="mid", alpha=0.85)
    for who, (_, part) in enumerate(table.dropna(subset="emotion").groupby("speaker")):
        colours = [COLOURS[list(emotions).index(e) % 8] for e in part["emotion"]]
        top.scatter(part["turn"], np.full(len(part), 1.05 + 0.08 * who), s=16, clip_on=False, c=colours, marker="o")
    top.set(ylabel="probability", ylim=(0, 1), xlim=(turns.min() - 0.5, turns.max() + 0.5))
    top.legend(ncols=len(emotions), loc="lower center", bbox_to_anchor=(0.5, 1.18), title_fontsize=8,
               title="filled: answer; dots above: true label, one row per speaker")
    bottom.plot(turns, table["norm"])
    bottom.set(xlabel="turn", ylabel="norm of the\nmemory's change")
    right = bottom.twinx()
    right.plot(turns, table["loss"], ":s", color=COLOURS[1])
    right.set_ylabel("L_t, nats per token (dotted)", color=COLOURS[1])
    right.spines["right"].set_visible(True)
    return figure


def headline(record: Mapping[str, Any]) -> Figure:
    """Of a `methods` record, WA with its interval of the few methods that answer the paper's question, a look for
    each group."""
    made = pd.DataFrame(record["results"]["protocols"]["all-lengths"]["methods"]).set_index("method").rename(
        columns={"WA_range": "WA_interval"})  # of means over runs
    group = {row["method"]: row["group"] for row in record["results"]["listed"]}
    shown = [name for name in HEADLINE if name in made.index]
    figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.32 * len(shown)))
    for name, look in GROUPS.items():
        at = [i for i, method in enumerate(shown) if group[method] == name]
        if at:
            rows = made.loc[[shown[i] for i in at]]
            axes.errorbar(rows["WA"], at, xerr=np.abs(_ends(rows, "WA") - rows["WA"].to_numpy()), ls="", ms=6,
                          label=name, **look)
    axes.axvline(made.loc["window", "WA"], color="#999999", lw=0.8, zorder=0, marker="", ls="-")
    axes.set(yticks=range(len(shown)), yticklabels=shown, ylim=(len(shown) - 0.5, -0.5),
             xlabel="WA of every utterance, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def ablations(rows: Rows) -> Figure:
    """Gain in WA over the frozen SLLM with the same prefix, a panel per setting."""
    table = pd.DataFrame(rows)
    table["label"] = [v.replace("-", "\n") if isinstance(v, str) else f"{v:g}" for v in table["value"]]
    figure = _by_category(dict(list(table.groupby("setting", sort=False))), "WA of DPM minus\nno memory, points",
                          "WA_gain", linestyle="")
    for axes in figure.axes:
        axes.axhline(0, color="0.5", lw=0.8)
    lowest, highest = axes.get_ylim()
    axes.set_ylim(min(lowest, -1), max(highest, 1))  # shared; no magnified nothing, where no answer changes
    return figure


def by_bin(rows: Rows) -> Figure:
    """WA against the position in the conversation or its length, with intervals: rows of `metrics.by_bin`."""
    bins = "turns" if "turns" in rows[0] else "utterances"
    table = pd.DataFrame(rows).rename(columns={bins: "label"})
    return _legend(_by_category({f"{bins} of the conversation": table}, "WA, %"))


def reliability(rows_by_method: Mapping[str, Rows]) -> Figure:
    """Accuracy against confidence, a line per method: rows of `metrics.reliability`."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    axes.axline((0, 0), slope=1, color="0.6", lw=0.8)
    for method, rows in rows_by_method.items():
        axes.plot("confidence", "accuracy", data=pd.DataFrame(rows), label=method)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence: probability of the answer",
             ylabel="accuracy: share that is right")
    return _legend(figure)


def pareto(rows: Rows) -> Figure:
    """WA with its interval against milliseconds per sentence; the step joins methods that none beats in both."""
    table = pd.DataFrame(rows).sort_values(["seconds_per_sentence", "WA"], ascending=[True, False])
    table["ms"] = 1000 * table["seconds_per_sentence"]
    figure, axes = plt.subplots(figsize=(6.8, 3.6))
    axes.step(table["ms"], table["WA"].cummax(), where="post", color="0.6", marker="", linestyle="-", zorder=1)
    for method, part in table.groupby("method", sort=False):
        _points(axes, part["ms"], part, label=method, linestyle="", markersize=6)
    axes.set(xscale="log", xlabel="milliseconds per sentence", ylabel="WA, %")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter())  # plain numbers, where the range is less than a decade or two
    return _legend(figure)


def cost(rows: Rows, window: int, rates: Sequence[float]) -> Figure:
    """Seconds and memory to a label against seconds of audio; where `window` tokens end at each rate (codes/s)."""
    table = pd.DataFrame(rows).pivot(index="audio_seconds", columns="path", values=["seconds", "peak_bytes"])
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.3))
    xlabel = f"seconds of audio (dashed: {window:,} tokens)"
    for axes, part, label in ((panels[0], table["seconds"], "seconds to the label"),
                              (panels[1], table["peak_bytes"] / 1e6, "peak memory beyond the model, MB")):
        part.clip(lower=1e-3).plot(ax=axes, loglog=True, legend=False, xlabel=xlabel, ylabel=label)
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}",
                       minor_locator=NullLocator())
        for rate in rates:
            axes.axvline(window / rate, color="0.5", lw=0.8, ls="--")
            axes.annotate(f"{rate:g} Hz", (window / rate, 1), xycoords=("data", "axes fraction"), ha="center",
                          va="bottom", fontsize=7)
    return _legend(figure)


MACHINE = "boundaries set by a machine"
FAMILIES = {MACHINE: ("silero", "chunks"), "babble: SNR, dB": ("babble",), "white noise: SNR, dB": ("white",),
            "overlap": ("overlap",)}
TICKS = {"none": "none", "silero": "silero\nVAD", "chunks": "{:g} s\nchunk", "overlap": "{:.0%}"}


def robustness(rows: Rows) -> Figure:
    """WA under disturbances, a panel per family, a line per method (none where there is no scale)."""
    table = pd.DataFrame(rows)
    table["label"] = [TICKS.get(kind, "{:g}").format(level) for kind, level in table[["kind", "level"]].to_numpy()]
    parts = {name: table[table["kind"].isin(("none", *kinds))] for name, kinds in FAMILIES.items()
             if table["kind"].isin(kinds).any()}
    figure = _by_category(parts, "WA, %")
    plt.setp([line for axes in figure.axes if axes.get_xlabel() == MACHINE for line in axes.lines], linestyle="")
    return _legend(figure)
