"""What is tested, declared here and nowhere else, whether it is more than luck (bootstrap, McNemar, Holm), and how
large a gain has to be to show (power)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from . import metrics
from .metrics import MEASURES, said, targets
from .settings import EvaluationSettings, Settings

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
    rows, speakers = metrics.compare(*asked), first["speaker"].nunique()
    for row, other in zip(rows, metrics.compare(*asked, by="speaker"), strict=True):
        row["WA_gain_speakers"] = other["WA_gain_interval"] if speakers >= ENOUGH else None
        if row["method"].startswith(shared):
            row |= {key: other[key] if speakers >= ENOUGH else [math.nan] * 2 for key in row
                    if key.endswith("_interval")}
    return {"targets": len(first), "conversations": first["conversation"].nunique(), "speakers": speakers,
            "methods": rows, "contrasts": contrasts(chosen, emotions, how.bootstrap, how.confidence),
            "per_emotion": {name: metrics.per_emotion(t, emotions) for name, t in chosen.items()},
            "confusion": {name: metrics.confusions(t, emotions)[1].sum(0) for name, t in chosen.items()},
            "nll": {name: metrics.nll(t, emotions) for name, t in chosen.items()},
            "ece": {name: metrics.ece(t, emotions) for name, t in chosen.items()}}


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
    values = {kind: metrics.resampled(needed, emotions, resamples, seed, by) for kind, by in clusters.items()}
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        row = {"contrast": f"{a} - {b}", "asks": (DECLARED | UNTESTED)[a, b]}
        for m in MEASURES:
            gains = {kind: v[a][m] - v[b][m] for kind, v in values.items()}
            row |= {m: float(gains["interval"][0]), f"{m}_speakers": None,
                    **{f"{m}_{kind}": metrics.interval(gain, confidence) for kind, gain in gains.items()}}
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
        out[name] = metrics.mean_differences(values, (("own", "none"), ("swapped", "none"), ("own", "swapped")),
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
