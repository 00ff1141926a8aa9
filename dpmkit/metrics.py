"""WA, UA, WF1, per emotion, calibration, and paired-bootstrap intervals over conversations or speakers.

A table of predictions has one row per utterance: `conversation`, `speaker`, `turn`, `emotion` (the true one, or
None for a turn outside the label set, which is never scored) and `p_<emotion>` for each emotion.

significance: What is tested, declared here and nowhere else, whether it is more than luck (bootstrap, McNemar,
Holm), and how
large a gain has to be to show (power).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from .settings import EvaluationSettings, Settings

# -- metrics -------------------------------------------------------------------

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


# -- significance --------------------------------------------------------------

# The contrasts that are tested, (a, b): a less b, with what each asks. All else has intervals and no p.
DECLARED = {
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


def mcnemar(a: pd.DataFrame, b: pd.DataFrame, emotions: tuple[str, ...]) -> dict[str, float]:
    """McNemar's exact test of two methods' answers to the same single targets (protocol `complete`).

    `n` targets, of which `a_only` and `b_only` count those that one method alone got right, and the two-sided
    binomial `p` of that split (McNemar 1947; 1 where no target is split). It takes pairs to be independent, so
    ValueError where a conversation has two targets, and where the two tables' targets differ.
    """
    first, second = (_single(table, emotions) for table in (a, b))
    if first.index.tolist() != second.index.tolist():
        raise ValueError("the methods answered different targets: McNemar's test needs the same ones")
    a_only, b_only = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(b_only, a_only + b_only).pvalue) if a_only + b_only else 1.0
    return {"n": len(first), "a_only": a_only, "b_only": b_only, "p": p}


def _single(table: pd.DataFrame, emotions: tuple[str, ...]) -> pd.Series:
    """Whether each target was answered right, under (conversation, turn, emotion), sorted."""
    scored = targets(table, "all-lengths")
    if scored["conversation"].duplicated().any():
        raise ValueError("a conversation has two targets or more, which are not independent: McNemar's test needs "
                         "the protocol `complete`")
    right = [emotions[i] for i in said(scored, emotions)] == scored["emotion"]
    return right.set_axis(pd.MultiIndex.from_frame(scored[["conversation", "turn", "emotion"]])).sort_index()


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjusted p-values, in the order given: each below alpha is significant, with a chance of alpha at most that
    any of them is so by luck (Holm 1979, step-down). ValueError where one is NaN or outside [0, 1]."""
    for name, p in p_values.items():
        if not 0 <= p <= 1:  # NaN, too
            raise ValueError(f"p of {name!r} is {p}: a p-value is between 0 and 1")
    adjusted, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        # No smaller than the one before it: who fails a step fails all later ones.
        adjusted[name] = largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
    return {name: adjusted[name] for name in p_values}


def scored(tables: dict[str, pd.DataFrame], protocol: str, emotions: tuple[str, ...],
           settings: Settings) -> dict[str, Any]:
    """All that a record holds of one protocol (`metrics.targets`): a row per method (`metrics.compare` with
    `window`, and `WA_gain_speakers`, the interval over speakers), the declared contrasts, each method's details.

    Conversations that share a memory are not independent: all intervals of such a row are over speakers (NaN with
    fewer than ENOUGH of them).
    """
    chosen, how = {name: targets(t, protocol) for name, t in tables.items()}, settings.evaluation
    shared = ("speaker-memory-kept", *(["dpm"] if settings.memory.scope == "speaker" else []))
    asked, first = (chosen, emotions, "window", how.bootstrap, how.confidence), next(iter(chosen.values()))
    rows, speakers = compare(*asked), first["speaker"].nunique()
    for row, other in zip(rows, compare(*asked, by="speaker"), strict=True):
        row["WA_gain_speakers"] = other["WA_gain_interval"] if speakers >= ENOUGH else None
        if row["method"].startswith(shared):
            row |= {key: other[key] if speakers >= ENOUGH else [math.nan] * 2 for key in row
                    if key.endswith("_interval")}
    return {"targets": len(first), "conversations": first["conversation"].nunique(), "speakers": speakers,
            "methods": rows, "contrasts": contrasts(chosen, emotions, how.bootstrap, how.confidence),
            "per_emotion": {name: per_emotion(t, emotions) for name, t in chosen.items()},
            "confusion": {name: confusions(t, emotions)[1].sum(0) for name, t in chosen.items()},
            "nll": {name: nll(t, emotions) for name, t in chosen.items()},
            "ece": {name: ece(t, emotions) for name, t in chosen.items()}}


def contrasts(tables: dict[str, pd.DataFrame], emotions: tuple[str, ...], resamples: int,
              confidence: float = 0.95, seed: int = 0) -> list[dict[str, Any]]:
    """A row per contrast, declared or UNTESTED, whose methods were run.

    `WA`, `UA`, `WF1`: a less b in points, each with `…_interval` over conversations and `…_speakers` over
    speakers (None with fewer than ENOUGH of them), both paired. `p`, two-sided, is of WA, `p_holm` the same
    adjusted over the declared contrasts of this table. With one target per conversation (protocol `complete`) it is
    McNemar's exact p, beside `a_only` and `b_only`; else twice the smaller share of resamples on either side of 0
    (Efron and Tibshirani 1993, chapter 15), over conversations or over speakers, whichever is larger. That cannot
    be known below 2 / resamples: `floor` says that it is there.
    """
    single = all(not t["conversation"].duplicated().any() for t in tables.values())
    clusters = {"interval": "conversation", "speakers": "speaker"}
    if next(iter(tables.values()))["speaker"].nunique() < ENOUGH:
        del clusters["speakers"]
    pairs = [pair for pair in (*DECLARED, *UNTESTED) if {*pair} <= {*tables}]
    needed = {name: tables[name] for pair in pairs for name in pair}
    values = {kind: resampled(needed, emotions, resamples, seed, by) for kind, by in clusters.items()}
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        row = {"contrast": f"{a} - {b}", "asks": (DECLARED | UNTESTED)[a, b]}
        for m in MEASURES:
            gains = {kind: v[a][m] - v[b][m] for kind, v in values.items()}
            row |= {m: float(gains["interval"][0]), f"{m}_speakers": None,
                    **{f"{m}_{kind}": interval(gain, confidence) for kind, gain in gains.items()}}
            if m == "WA" and (a, b) in DECLARED:
                p = max(_two_sided(gain[1:]) for gain in gains.values())
                row |= mcnemar(tables[a], tables[b], emotions) if single else {"p": p, "floor": p <= 2 / resamples}
        rows.append(row)
    adjusted = holm({r["contrast"]: r["p"] for r in rows if "p" in r})
    return [r | ({"p_holm": adjusted[r["contrast"]]} if "p" in r else {}) for r in rows]


def _two_sided(gains: np.ndarray) -> float:
    # A difference of exactly 0 is on both sides: equal answers give 2, and so 1.
    return float(np.clip(2 * min((gains <= 0).mean(), (gains >= 0).mean()), 2 / len(gains), 1.0))


def losses(tables: dict[str, pd.DataFrame], how: EvaluationSettings) -> dict[str, list[dict[str, Any]]]:
    """What the memory stores, apart from any answer: mean L_t of a conversation's later sentences, nats per token,
    under its own memory, another conversation's (swapped) and none, for `dpm` and `dpm-tuned`: a row per difference
    (`metrics.mean_differences`) with its interval over conversations."""
    out = {}
    for name in ("dpm", "dpm-tuned"):
        values = tables[name][["conversation"]].assign(
            own=tables[name]["own_loss"], swapped=tables[f"{name}-swapped"]["own_loss"],
            none=tables["dpm-tuned-still"]["own_loss"])
        out[name] = mean_differences(values, (("own", "none"), ("swapped", "none"), ("own", "swapped")),
                                             how.bootstrap, how.confidence)
    return out


def smallest_effect(n: int, discordant: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest gain in accuracy, in points, that `n` paired single targets show with probability `power`, where the
    methods differ on a share `discordant` of them (one right, one wrong); infinite where no gain is enough.

    McNemar's test, two-sided at `alpha`, in the normal approximation of Connor (1987, Biometrics 43, 207–211): a
    gain d (a share) needs n = (z_alpha/2 sqrt(psi) + z_power sqrt(psi - d²))² / d² pairs, psi being `discordant`.
    The exact test asks for somewhat more. ValueError where n < 1 or a share is outside (0, 1].
    """
    if n < 1 or not 0 < discordant <= 1:
        raise ValueError(f"n must be 1 or more and discordant in (0, 1]; got {n} and {discordant}")
    critical, wanted = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def excess(gain: float) -> float:
        return gain * math.sqrt(n) - critical * math.sqrt(discordant) - wanted * math.sqrt(discordant - gain**2)

    if excess(discordant) < 0:  # a gain cannot be larger: all that the methods differ on would go to one of them
        return math.inf
    return 100 * brentq(excess, 0.0, discordant)
