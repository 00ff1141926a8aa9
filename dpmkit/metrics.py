"""WA, UA, WF1, per emotion, calibration, and paired-bootstrap intervals over conversations or speakers.

A table of predictions has one row per utterance: `conversation`, `speaker`, `turn`, `emotion` (the true one, or
None for a turn outside the label set, which is never scored) and `p_<emotion>` for each emotion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

MEASURES = ("WA", "UA", "WF1")


def said(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    """Index of the most probable emotion per row, shape (rows,); ValueError where an answer is NaN."""
    return _answers(table, emotions).argmax(1)


def _answers(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    answers = table[[f"p_{e}" for e in emotions]].to_numpy()
    if np.isnan(answers).any():
        raise ValueError(f"{int(np.isnan(answers).any(1).sum())} answers are NaN: they cannot be scored")
    return answers


def _truth(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    """Index of the true emotion per row, shape (rows,); ValueError where it is outside the label set."""
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


def confusions(table: pd.DataFrame, emotions: tuple[str, ...],
               by: str = "conversation") -> tuple[list[str], np.ndarray]:
    """Sorted ids of the clusters (`by`: conversation or speaker), and the confusion matrix of the utterances of
    each: (clusters, emotions, emotions), rows true."""
    names, row = np.unique(table[by].to_numpy(dtype=str), return_inverse=True)
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
    """How often answers of a confidence are right: one row per bin of the top probability, ascending, with the mean
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


def resampled(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], resamples: int, seed: int = 0,
              by: str = "conversation") -> dict[str, dict[str, np.ndarray]]:
    """WA, UA, WF1 in % per method: as they are, and in each resample, shape (1 + resamples,).

    A resample draws as many whole clusters as there are, with replacement, the same ones for every method (paired
    cluster bootstrap; Davison and Hinkley 1997, section 3.8). `by` = speaker: an utterance counts as often as its
    speaker was drawn, whatever its conversation.

    Raises ValueError where the methods did not answer the same targets.
    """
    names, counts = zip(*(confusions(t, emotions, by) for t in tables.values()), strict=True)
    truths = [c.sum(2).tolist() for c in counts]  # how often each emotion was asked for, per cluster
    if any(n != names[0] or t != truths[0] for n, t in zip(names, truths, strict=True)):
        raise ValueError("the methods answered different targets: a paired comparison needs the same ones")
    weights = _weights(len(names[0]), resamples, seed)
    return {method: {m: 100 * v for m, v in measures(np.tensordot(weights, count, axes=1)).items()}
            for method, count in zip(tables, counts, strict=True)}


def _weights(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster counts, (1 + resamples, clusters): once each, then as often as it was drawn."""
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return np.concatenate([np.ones((1, clusters), dtype=int), drawn])


def interval(values: np.ndarray, confidence: float) -> list[float]:
    """Percentile interval [low, high] of `resampled`'s values, the first of which is no resample."""
    tail = 100 * (1 - confidence) / 2
    return np.percentile(values[1:], [tail, 100 - tail]).tolist()


def compare(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], baseline: str, resamples: int,
            confidence: float = 0.95, seed: int = 0, by: str = "conversation") -> list[dict]:
    """One row per method: WA, UA, WF1 in %, their percentile intervals, and the difference from `baseline` in
    points with its interval, all from the same resamples (`resampled`, which also says what is refused)."""
    values, rows = resampled(tables, emotions, resamples, seed, by), []
    for method in tables:
        row: dict = {"method": method}
        for m in MEASURES:
            gain = values[method][m] - values[baseline][m]
            row |= {m: float(values[method][m][0]), f"{m}_interval": interval(values[method][m], confidence),
                    f"{m}_gain": float(gain[0]), f"{m}_gain_interval": interval(gain, confidence)}
        rows.append(row)
    return rows


def mean_differences(values: pd.DataFrame, pairs: Sequence[tuple[str, str]], resamples: int,
                     confidence: float = 0.95, seed: int = 0, by: str = "conversation") -> list[dict]:
    """Mean of column a less mean of column b for each pair, over the rows in which no column of any pair is NaN:
    rows `difference`, `mean`, `interval` (paired cluster bootstrap) and `n`, the rows that were averaged."""
    columns = list(dict.fromkeys(name for pair in pairs for name in pair))
    known = values[[by, *columns]].dropna()
    sums, counts = known.groupby(by)[columns].sum(), known[by].value_counts(sort=False)
    weights = _weights(len(sums), resamples, seed)
    totals = weights @ counts[sums.index].to_numpy()
    means = {c: weights @ sums[c].to_numpy() / totals for c in columns}
    return [{"difference": f"{a} - {b}", "mean": float((means[a] - means[b])[0]),
             "interval": interval(means[a] - means[b], confidence), "n": len(known)} for a, b in pairs]


def by_position(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], edges: tuple[int, ...],
                resamples: int, confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """WA in % per method and position in the conversation, with its bootstrap interval over conversations.

    `edges`: first turn of each bin, ascending from 0; the last bin is open.
    """
    return _by_bin(tables, lambda t: t["turn"], ("first_turn", "turns"), emotions, edges, resamples, confidence,
                   seed)


def by_length(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], edges: tuple[int, ...],
              resamples: int, confidence: float = 0.95, seed: int = 0) -> list[dict]:
    """WA in % per method and number of utterances of the conversation, with its bootstrap interval over
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
    """WA per method and bin of the rows' `value`; `names`: what a bin's first value and its label are called."""
    rows = []
    for method, table in tables.items():
        labelled = targets(table, "all-lengths")
        bins = np.digitize(value(labelled), edges) - 1
        for i, first in enumerate(edges):
            part = labelled[bins == i]
            if part.empty:
                continue
            values = resampled({method: part}, emotions, resamples, seed)[method]["WA"]
            label = f"{first}–{edges[i + 1] - 1}" if i + 1 < len(edges) else f"{first} and on"
            rows.append({"method": method, names[0]: first, names[1]: label,
                         "WA": float(values[0]), "n": len(part), "WA_interval": interval(values, confidence)})
    return rows
