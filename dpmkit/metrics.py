"""WA, UA, WF1, per emotion, calibration, and paired-bootstrap intervals over conversations.

A table of predictions has one row an utterance: `conversation`, `emotion` (the true one, or None for a turn
outside the label set, which is never scored) and `p_<emotion>` for each emotion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

MEASURES = ("WA", "UA", "WF1")


def said(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    """Index of the most probable emotion a row, shape (rows,); ValueError where an answer is NaN."""
    return _answers(table, emotions).argmax(1)


def _answers(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    answers = table[[f"p_{e}" for e in emotions]].to_numpy()
    if np.isnan(answers).any():
        raise ValueError(f"{int(np.isnan(answers).any(1).sum())} answers are NaN: they cannot be scored")
    return answers


def _truth(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    """Index of the true emotion a row, shape (rows,); ValueError where it is outside the label set."""
    return table["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(dtype=int)


def targets(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows that a protocol scores: `all-lengths`, every labelled utterance with its own history; `complete`,
    the last labelled utterance of each conversation (paper, Table 1)."""
    labelled = table[table["emotion"].notna()]
    if protocol == "all-lengths":
        return labelled
    if protocol == "complete":
        return labelled.groupby("conversation", sort=False).tail(1)
    raise ValueError(f"protocol {protocol!r} is not known; choose all-lengths or complete")


def confusions(table: pd.DataFrame, emotions: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Sorted conversation ids, and a confusion matrix each: (conversations, emotions, emotions), rows true."""
    names, row = np.unique(table["conversation"].to_numpy(dtype=str), return_inverse=True)
    counts = np.zeros((len(names), len(emotions), len(emotions)))
    np.add.at(counts, (row, _truth(table, emotions), said(table, emotions)), 1)
    return list(names), counts


def measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """WA (accuracy), UA (mean recall of the emotions present) and WF1 (F1 weighted by support), each of shape
    (…,), from confusion matrices of shape (…, emotions, emotions), rows true."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, claimed, total = confusion.sum(-1), confusion.sum(-2), confusion.sum((-2, -1))
    recall = hit / np.maximum(support, 1)
    f1 = 2 * hit / np.maximum(support + claimed, 1)
    return {"WA": hit.sum(-1) / np.maximum(total, 1),
            "UA": recall.sum(-1) / np.maximum((support > 0).sum(-1), 1),
            "WF1": (f1 * support).sum(-1) / np.maximum(total, 1)}


def wa(table: pd.DataFrame, emotions: tuple[str, ...]) -> float:
    """WA in % over every labelled row."""
    return 100 * float(measures(confusions(targets(table, "all-lengths"), emotions)[1].sum(0))["WA"])


def per_emotion(table: pd.DataFrame, emotions: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Recall, precision, F1 and support of each emotion."""
    confusion = confusions(table, emotions)[1].sum(0)
    hit, support, claimed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return {e: {"recall": hit[i] / max(1, support[i]), "precision": hit[i] / max(1, claimed[i]),
                "f1": 2 * hit[i] / max(1, support[i] + claimed[i]), "n": int(support[i])}
            for i, e in enumerate(emotions)}


def nll(table: pd.DataFrame, emotions: tuple[str, ...]) -> float:
    """Mean negative log-likelihood of the true emotion over every labelled row, in nats. A probability of 0 counts
    as 1e-12, which costs 27.6 nats. ValueError where an answer is NaN."""
    labelled = targets(table, "all-lengths")
    p = _answers(labelled, emotions)[np.arange(len(labelled)), _truth(labelled, emotions)]
    return float(-np.log(np.clip(p, 1e-12, 1.0)).mean())


def reliability(table: pd.DataFrame, emotions: tuple[str, ...], bins: int = 10) -> list[dict[str, float]]:
    """How often answers of a confidence are right: one row a bin of the top probability, ascending, with the mean
    `confidence`, the `accuracy` (both in [0, 1]) and `n`, the labelled rows in it.

    `bins` of equal width over [0, 1], each with its upper edge (Guo et al. 2017); empty ones are left out.
    ValueError where an answer is NaN.
    """
    labelled = targets(table, "all-lengths")
    confidence = _answers(labelled, emotions).max(1)
    right = said(labelled, emotions) == _truth(labelled, emotions)
    # Inner edges only: a float32 softmax may sum to a little more than 1.
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return [{"confidence": float(confidence[bin_of == b].mean()), "accuracy": float(right[bin_of == b].mean()),
             "n": int((bin_of == b).sum())} for b in np.unique(bin_of)]


def ece(table: pd.DataFrame, emotions: tuple[str, ...], bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: the mean distance of confidence and accuracy in the bins of
    `reliability`, weighted by their rows (Naeini et al. 2015; Guo et al. 2017)."""
    rows = reliability(table, emotions, bins)
    return float(np.average([abs(r["accuracy"] - r["confidence"]) for r in rows], weights=[r["n"] for r in rows]))


def compare(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], baseline: str, resamples: int,
            confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """One row a method: WA, UA, WF1 in %, their percentile intervals, and the difference from `baseline` in
    points with its interval, all from the same resamples of whole conversations (paired bootstrap).

    `WA_gain_se` is the standard deviation of the resampled differences in WA, in points; `WA_gain_p` is two-sided,
    twice the smaller share of them on either side of 0 (the level at which the percentile interval ends at 0; Efron
    and Tibshirani 1993, chapter 15), between 1 / resamples and 1.

    Raises ValueError where the methods did not answer the same targets.
    """
    names, counts = zip(*(confusions(t, emotions) for t in tables.values()), strict=True)
    truths = [c.sum(2).tolist() for c in counts]  # how often each emotion was asked for, a conversation
    if any(n != names[0] or t != truths[0] for n, t in zip(names, truths, strict=True)):
        raise ValueError("the methods answered different targets: a paired comparison needs the same ones")
    draws = np.random.default_rng(seed).multinomial(len(names[0]), np.full(len(names[0]), 1 / len(names[0])),
                                                    size=resamples)
    tail = 100 * (1 - confidence) / 2
    point, spread = {}, {}
    for method, count in zip(tables, counts, strict=True):
        point[method] = {m: 100 * float(v) for m, v in measures(count.sum(0)).items()}
        drawn = np.tensordot(draws, count, axes=1)
        spread[method] = {m: 100 * v for m, v in measures(drawn).items()}
    rows = []
    for method in tables:
        row: dict = {"method": method}
        for m in MEASURES:
            difference = spread[method][m] - spread[baseline][m]
            row[m] = point[method][m]
            row[f"{m}_interval"] = np.percentile(spread[method][m], [tail, 100 - tail]).tolist()
            row[f"{m}_gain"] = point[method][m] - point[baseline][m]
            row[f"{m}_gain_interval"] = np.percentile(difference, [tail, 100 - tail]).tolist()
            if m == "WA":
                row["WA_gain_se"] = float(difference.std())
                # A difference of exactly 0 is on both sides: equal answers give 2, and so 1.
                sides = min((difference <= 0).mean(), (difference >= 0).mean())
                row["WA_gain_p"] = float(np.clip(2 * sides, 1 / resamples, 1.0))
        rows.append(row)
    return rows


def by_position(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], edges: tuple[int, ...],
                resamples: int, confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """WA in % a method and position in the conversation, with its bootstrap interval over conversations.

    `edges`: first turn of each bin, ascending from 0; the last bin is open.
    """
    return _by_bin(tables, lambda t: t["turn"], ("first_turn", "turns"), emotions, edges, resamples, confidence,
                   seed)


def by_length(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], edges: tuple[int, ...],
              resamples: int, confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """WA in % a method and number of utterances of the conversation, with its bootstrap interval over
    conversations: rows as `by_position`, with `first_length` and `utterances` for `first_turn` and `turns`.

    A conversation is as long as its last turn in any of the tables says: some hold labelled utterances alone.
    `edges`: smallest number of utterances of each bin, ascending; the last bin is open. ValueError where a
    conversation is shorter than the first.
    """
    lengths = pd.concat(list(tables.values())).groupby("conversation")["turn"].max() + 1
    if lengths.min() < edges[0]:
        raise ValueError(f"a conversation of {lengths.min()} utterances is shorter than the first edge, {edges[0]}")
    return _by_bin(tables, lambda t: t["conversation"].map(lengths), ("first_length", "utterances"), emotions,
                   edges, resamples, confidence, seed)


def _by_bin(tables: dict[str, pd.DataFrame], value: Callable[[pd.DataFrame], pd.Series], names: tuple[str, str],
            emotions: tuple[str, ...], edges: tuple[int, ...], resamples: int, confidence: float,
            seed: int) -> list[dict]:
    """WA a method and bin of the rows' `value`; `names`: what a bin's first value and its label are called."""
    rows = []
    for method, table in tables.items():
        labelled = targets(table, "all-lengths")
        bins = np.digitize(value(labelled), edges) - 1
        for i, first in enumerate(edges):
            part = labelled[bins == i]
            if part.empty:
                continue
            counts = confusions(part, emotions)[1]
            draws = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)),
                                                            size=resamples)
            tail = 100 * (1 - confidence) / 2
            drawn = 100 * measures(np.tensordot(draws, counts, axes=1))["WA"]
            label = f"{first}–{edges[i + 1] - 1}" if i + 1 < len(edges) else f"{first} and on"
            rows.append({"method": method, names[0]: first, names[1]: label,
                         "WA": 100 * float(measures(counts.sum(0))["WA"]), "n": len(part),
                         "WA_interval": np.percentile(drawn, [tail, 100 - tail]).tolist()})
    return rows
