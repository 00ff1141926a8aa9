"""WA, UA, WF1, calibration, and what is tested: declared contrasts, by bootstrap, McNemar and Holm.

A table of predictions has a row per utterance: `conversation`, `speaker`, `turn`, `emotion` (the true label, or
None: not scored), `p_<emotion>`. Intervals are percentile intervals of a paired cluster bootstrap: a resample draws
as many conversations (or speakers) as there are, the same for every method (Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from .settings import EvaluationSettings, Settings

MEASURES = ("WA", "UA", "WF1")
DECLARED = {  # the contrasts that are tested, a less b, with what each asks; all else has intervals and no p
    ("dpm", "at-once"): "the paper's contrast: DPM against the SLLM that is given all at once",
    ("dpm", "window"): "the same SLLM with the same n_r tokens: the memory alone",
    ("dpm", "dpm-swapped"): "is it a memory of this conversation?",
    ("dpm-tuned", "window"): "the memory alone, at the rate that validation chose",
    ("dpm-tuned", "dpm-tuned-swapped"): "is that one a memory of this conversation?",
    ("speaker-memory", "speaker-head + filter"): "the extension: its head and filter without a memory",
    ("speaker-memory", "speaker-memory-swapped"): "is it a memory of these speakers?",
}
UNTESTED = {  # intervals, no p
    ("window", "at-once"): "with dpm - window this makes dpm - at-once",
    ("at-once", "classifier"): "the paper's other contrast",
}
ENOUGH = 5  # speakers: a 95 % interval over fewer would hold far less than that


def targets(table: pd.DataFrame, protocol: str = "all-lengths") -> pd.DataFrame:
    """The rows that a protocol scores: every labelled utterance, or (`complete`) each conversation's last one."""
    given = table["emotion"].notna()
    labelled = table if given.all() else table[given]  # a copy takes longer than what is made of it
    return {"all-lengths": lambda: labelled,
            "complete": lambda: labelled.groupby("conversation", sort=False).tail(1)}[protocol]()


def _labelled(table: pd.DataFrame, emotions: tuple[str, ...]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The labelled rows, their probabilities, (rows, emotions), and true labels' indices; ValueError for NaN."""
    rows = targets(table)
    p = rows[[f"p_{e}" for e in emotions]].to_numpy()
    if lost := int(np.isnan(p).any(1).sum()):
        raise ValueError(f"{lost} answers are NaN: they cannot be scored")
    return rows, p, pd.Categorical(rows["emotion"], emotions).codes


def confusions(table: pd.DataFrame, emotions: tuple[str, ...],
               by: str = "conversation") -> tuple[list[str], np.ndarray]:
    """Sorted ids of the conversations (or speakers) and their confusion matrices, (ids, emotions, emotions)."""
    rows, p, truth = _labelled(table, emotions)
    cluster, names = pd.factorize(rows[by].astype(str), sort=True)
    counts = np.zeros((len(names), len(emotions), len(emotions)))
    np.add.at(counts, (cluster, truth, p.argmax(1)), 1)
    return list(names), counts


def confusion(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    """The confusion matrix of the labelled rows, (emotions, emotions), a true label's answers in a row."""
    return confusions(table, emotions)[1].sum(0)


def measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """WA (accuracy), UA (mean recall of the emotions present) and WF1 (F1 weighted by support), each (…,), of
    confusion matrices, (…, emotions, emotions)."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, claimed, total = confusion.sum(-1), confusion.sum(-2), confusion.sum((-2, -1))
    recall = hit / np.maximum(support, 1)
    f1 = 2 * hit / np.maximum(support + claimed, 1)
    return {"WA": hit.sum(-1) / np.maximum(total, 1),
            "UA": recall.sum(-1) / np.maximum((support > 0).sum(-1), 1),
            "WF1": (f1 * support).sum(-1) / np.maximum(total, 1)}


def wa(table: pd.DataFrame, emotions: tuple[str, ...]) -> float:
    """WA in %."""
    return 100 * float(measures(confusion(table, emotions))["WA"])


def per_emotion(table: pd.DataFrame, emotions: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Recall, precision, F1 and support of each emotion; 0 where there is none."""
    _, p, truth = _labelled(table, emotions)
    columns = precision_recall_fscore_support(truth, p.argmax(1), labels=range(len(emotions)), zero_division=0)
    return {e: {"recall": recall, "precision": precision, "f1": f1, "n": n}
            for e, precision, recall, f1, n in zip(emotions, *columns, strict=True)}


def nll(table: pd.DataFrame, emotions: tuple[str, ...]) -> float:
    """Mean negative log-likelihood of the true label in nats; a probability of 0 counts as 1e-12 (27.6 nats)."""
    _, p, truth = _labelled(table, emotions)
    return float(-np.log(p[np.arange(len(p)), truth].clip(1e-12, 1.0)).mean())


def reliability(table: pd.DataFrame, emotions: tuple[str, ...], bins: int = 10) -> list[dict[str, float]]:
    """How often answers of a confidence are right: mean `confidence`, `accuracy` (in [0, 1]) and `n` of each bin
    of the top probability; bins are equally wide, each with its upper edge (Guo et al. 2017), no empty ones."""
    _, p, truth = _labelled(table, emotions)
    confidence = p.max(1)
    # Inner edges only: a float32 softmax may sum to a little more than 1.
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    sums = [np.bincount(bin_of, of, bins) for of in (confidence, p.argmax(1) == truth)]
    return [{"confidence": sure / n, "accuracy": right / n, "n": n}
            for sure, right, n in zip(*sums, np.bincount(bin_of, minlength=bins), strict=True) if n]


def ece(table: pd.DataFrame, emotions: tuple[str, ...]) -> float:
    """Expected calibration error in [0, 1]: mean distance of confidence and accuracy (Naeini et al. 2015)."""
    rows = pd.DataFrame(reliability(table, emotions))
    return float(np.average((rows["accuracy"] - rows["confidence"]).abs(), weights=rows["n"]))


@lru_cache(4)
def _weights(clusters: int, resamples: int) -> np.ndarray:
    """How often each cluster counts, (1 + resamples, clusters): once each, then as often as it was drawn."""
    drawn = np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return np.concatenate([np.ones((1, clusters)), drawn])  # float, as what they weigh is: no product casts them


def _paired(tables: Iterable[pd.DataFrame], emotions: tuple[str, ...], by: str = "conversation") -> np.ndarray:
    """Confusion matrices of each table's clusters, (tables, clusters, emotions, emotions); ValueError where the
    tables do not answer the same targets."""
    names, counts = zip(*(confusions(table, emotions, by) for table in tables), strict=True)
    if any(n != names[0] or (c.sum(2) != counts[0].sum(2)).any() for n, c in zip(names, counts, strict=True)):
        raise ValueError("the methods answered different targets: a paired comparison needs the same ones")
    return np.stack(counts)


def resampled(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], resamples: int,
              by: str = "conversation") -> dict[str, dict[str, np.ndarray]]:
    """WA, UA, WF1 in % per method: as they are, and in each resample of clusters (`by`), (1 + resamples,)."""
    counts = _paired(tables.values(), emotions, by)
    weights = _weights(counts.shape[1], resamples)
    return {method: {m: 100 * v for m, v in measures(np.tensordot(weights, of, axes=1)).items()}
            for method, of in zip(tables, counts, strict=True)}


def interval(values: np.ndarray, confidence: float) -> list[float]:
    """Percentile interval [low, high] of `resampled`'s values, the first of which is no resample."""
    tail = 100 * (1 - confidence) / 2
    return np.percentile(values[1:], [tail, 100 - tail]).tolist()


def _estimate(name: str, values: np.ndarray, how: EvaluationSettings) -> dict[str, Any]:
    return {name: float(values[0]), f"{name}_interval": interval(values, how.confidence)}


def compare(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], baseline: str, how: EvaluationSettings,
            by: str = "conversation") -> list[dict[str, Any]]:
    """A row per method: WA, UA, WF1 in %, and each one's gain over `baseline` in points, with their intervals."""
    values, rows = resampled(tables, emotions, how.bootstrap, by), []
    for method, of in values.items():
        rows.append({"method": method})
        for m in MEASURES:
            rows[-1] |= _estimate(m, of[m], how) | _estimate(f"{m}_gain", of[m] - values[baseline][m], how)
    return rows


def by_bin(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], what: str, edges: tuple[int, ...],
           how: EvaluationSettings) -> list[dict[str, Any]]:
    """WA in % with its interval per method and bin of `what`, `turn` (the position in the conversation) or `length`
    (its utterances). `edges`: first value of each bin, ascending; the last is open."""
    first_of, label_of = {"turn": ("first_turn", "turns"), "length": ("first_length", "utterances")}[what]
    labels = [*(f"{a}–{b - 1}" for a, b in pairwise(edges)), f"{edges[-1]} and on"]
    rows = []
    for method, table in tables.items():
        length = table.groupby("conversation")["turn"].transform("max") + 1
        chosen = targets(table.assign(bin=np.digitize(table["turn"] if what == "turn" else length, edges) - 1))
        for i, part in chosen.groupby("bin"):
            values = resampled({method: part}, emotions, how.bootstrap)[method]["WA"]
            rows.append({"method": method, first_of: edges[i], label_of: labels[i], "n": len(part),
                         **_estimate("WA", values, how)})
    return rows


def losses(tables: dict[str, pd.DataFrame], how: EvaluationSettings) -> dict[str, list[dict[str, Any]]]:
    """What the memory of `dpm` and `dpm-tuned` stores: differences of the mean L_t of later sentences, nats per
    token, under their own memory, another conversation's (swapped) and none, with `interval` and `n` sentences."""
    out = {}
    for name in ("dpm", "dpm-tuned"):
        known = tables[name][["conversation"]].assign(
            own=tables[name]["own_loss"], swapped=tables[f"{name}-swapped"]["own_loss"],
            none=tables["dpm-tuned-still"]["own_loss"]).dropna()
        groups = known.groupby("conversation")
        weights, sums = _weights(groups.ngroups, how.bootstrap), groups.sum()
        totals = weights @ groups.size().to_numpy()
        means = {c: weights @ sums[c].to_numpy() / totals for c in sums}
        out[name] = [{"difference": f"{a} - {b}", "mean": float((means[a] - means[b])[0]),
                      "interval": interval(means[a] - means[b], how.confidence), "n": len(known)}
                     for a, b in (("own", "none"), ("swapped", "none"), ("own", "swapped"))]
    return out


def joined(runs: Sequence[dict[str, pd.DataFrame]],
           protocol: str) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """The targets of several runs on different conversations (folds) as one table per method that all of them have,
    and the emotions."""
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    tables = {name: pd.concat([targets(run[name], protocol) for run in runs]) for name in shared}
    return tables, tuple(c.removeprefix("p_") for c in runs[0][shared[0]] if c.startswith("p_"))


def mcnemar(a: pd.DataFrame, b: pd.DataFrame, emotions: tuple[str, ...]) -> dict[str, float]:
    """McNemar's exact test (1947) on `n` single targets (protocol `complete`): those that `a_only` and `b_only` got
    right, and the two-sided binomial `p` of that split. ValueError where a conversation has two targets."""
    one, other = _paired((a, b), emotions)
    if (one.sum((1, 2)) > 1).any():
        raise ValueError("two targets of a conversation are not independent: McNemar's test takes `complete`")
    ahead = np.trace(one - other, axis1=1, axis2=2)  # 1 where a alone is right, -1 where b alone is
    a_only, b_only = int((ahead > 0).sum()), int((ahead < 0).sum())
    p = float(binomtest(b_only, a_only + b_only).pvalue) if a_only + b_only else 1.0
    return {"n": len(ahead), "a_only": a_only, "b_only": b_only, "p": p}


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjusted p-values in the order given (Holm 1979, step-down); ValueError for what is no p-value, NaN too."""
    if not all(0 <= p <= 1 for p in p_values.values()):
        raise ValueError(f"a p-value is between 0 and 1: {p_values}")
    adjusted, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        # No smaller than the one before it: who fails a step fails all later ones.
        adjusted[name] = largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
    return {name: adjusted[name] for name in p_values}


def contrasts(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...],
              how: EvaluationSettings) -> list[dict[str, Any]]:
    """A row per contrast, declared or UNTESTED, whose methods were run: `WA`, `UA`, `WF1`, a less b in points, with
    intervals over conversations, and `WA_speakers`, over speakers (None with fewer than ENOUGH of them).

    `p`, two-sided, is of WA; `p_holm` is adjusted over the declared contrasts of this table. With one target per
    conversation (protocol `complete`) it is McNemar's, beside `a_only` and `b_only`; else twice the smaller share
    of resamples on either side of 0 (Efron and Tibshirani 1993, chapter 15), over conversations or over speakers,
    whichever is larger. That cannot be known below 2 / resamples: `floor` says that it is there.
    """
    first, rows = next(iter(tables.values())), []
    clusters = ("conversation", "speaker")[:2 if first["speaker"].nunique() >= ENOUGH else 1]
    tables = {name: of for name, of in tables.items() if any(name in pair for pair in DECLARED | UNTESTED)}
    values = [resampled(tables, emotions, how.bootstrap, by) for by in clusters]
    for (a, b), asks in (DECLARED | UNTESTED).items():
        if not {a, b} <= {*tables}:
            continue
        row, gains = {"contrast": f"{a} - {b}", "asks": asks}, [of[a]["WA"] - of[b]["WA"] for of in values]
        for m in MEASURES:
            row |= _estimate(m, values[0][a][m] - values[0][b][m], how)
        row["WA_speakers"] = interval(gains[1], how.confidence) if len(gains) == 2 else None
        if (a, b) in DECLARED and not first["conversation"].duplicated().any():
            row |= mcnemar(tables[a], tables[b], emotions)
        elif (a, b) in DECLARED:
            # A difference of exactly 0 is on both sides: equal answers give 2, and so 1.
            p = max(2 * min((gain[1:] <= 0).mean(), (gain[1:] >= 0).mean()) for gain in gains)
            row |= {"p": float(np.clip(p, 2 / how.bootstrap, 1.0)), "floor": bool(p <= 2 / how.bootstrap)}
        rows.append(row)
    adjusted = holm({row["contrast"]: row["p"] for row in rows if "p" in row})
    return [row | ({"p_holm": adjusted[row["contrast"]]} if "p" in row else {}) for row in rows]


def scored(tables: dict[str, pd.DataFrame], protocol: str, emotions: tuple[str, ...],
           settings: Settings) -> dict[str, Any]:
    """All that a record holds of one protocol: a row per method (`compare` with `window`, and `WA_gain_speakers`,
    the interval over speakers), the contrasts, each method's details. Conversations that share a memory are not
    independent: all intervals of such a row are over speakers (NaN with fewer than ENOUGH of them)."""
    chosen, how = {name: targets(t, protocol) for name, t in tables.items()}, settings.evaluation
    first, rows = next(iter(chosen.values())), compare(chosen, emotions, "window", how)
    speakers, over = first["speaker"].nunique(), compare(chosen, emotions, "window", how, by="speaker")
    for row, other in zip(rows, over, strict=True):
        enough = speakers >= ENOUGH
        row["WA_gain_speakers"] = other["WA_gain_interval"] if enough else None
        if row["method"].startswith("speaker-memory-kept"):
            row |= {key: other[key] if enough else [np.nan] * 2 for key in row if key.endswith("_interval")}
    details = {"per_emotion": per_emotion, "confusion": confusion, "nll": nll, "ece": ece}
    return {"targets": len(first), "conversations": first["conversation"].nunique(), "speakers": speakers,
            "methods": rows, "contrasts": contrasts(chosen, emotions, how),
            **{what: {name: of(t, emotions) for name, t in chosen.items()} for what, of in details.items()}}
