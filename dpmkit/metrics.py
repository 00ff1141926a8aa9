"""WA, UA, WF1, per emotion, and their paired-bootstrap intervals over conversations.

A table of predictions has one row an utterance: `conversation`, `emotion` (the true one, or None for a turn
outside the label set, which is never scored) and `p_<emotion>` for each emotion.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

MEASURES = ("WA", "UA", "WF1")


def said(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    """Index of the most probable emotion a row, shape (rows,); ValueError where an answer is NaN."""
    answers = table[[f"p_{e}" for e in emotions]].to_numpy()
    if np.isnan(answers).any():
        raise ValueError(f"{int(np.isnan(answers).any(1).sum())} answers are NaN: they cannot be scored")
    return answers.argmax(1)


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
    truth = table["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(dtype=int)
    np.add.at(counts, (row, truth, said(table, emotions)), 1)
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


def compare(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], baseline: str, resamples: int,
            confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """One row a method: WA, UA, WF1 in %, their percentile intervals, and the difference from `baseline` in
    points with its interval, all from the same resamples of whole conversations (paired bootstrap).

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
        rows.append(row)
    return rows


def by_position(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], edges: tuple[int, ...],
                resamples: int, confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """WA in % a method and position in the conversation, with its bootstrap interval over conversations.

    `edges`: first turn of each bin, ascending from 0; the last bin is open.
    """
    rows = []
    for method, table in tables.items():
        labelled = targets(table, "all-lengths")
        bins = np.digitize(labelled["turn"], edges) - 1
        for i, first in enumerate(edges):
            part = labelled[bins == i]
            if part.empty:
                continue
            counts = confusions(part, emotions)[1]
            draws = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)),
                                                            size=resamples)
            tail = 100 * (1 - confidence) / 2
            drawn = 100 * measures(np.tensordot(draws, counts, axes=1))["WA"]
            rows.append({"method": method, "first_turn": first,
                         "turns": f"{first}–{edges[i + 1] - 1}" if i + 1 < len(edges) else f"{first} and on",
                         "WA": 100 * float(measures(counts.sum(0))["WA"]), "n": len(part),
                         "WA_interval": np.percentile(drawn, [tail, 100 - tail]).tolist()})
    return rows
