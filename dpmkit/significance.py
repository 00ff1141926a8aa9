"""Whether a gain is more than luck, and how large a gain has to be to show: McNemar, Holm, power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from .metrics import said, targets


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


def adjusted(rows: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """`metrics.compare`'s rows with `WA_gain_p_holm`: `WA_gain_p` adjusted by Holm over every method but the
    baseline, whose own is 1. ValueError where a method stands twice or the baseline is none of them."""
    names = [r["method"] for r in rows]
    if len(set(names)) < len(names) or baseline not in names:
        raise ValueError(f"one row a method, and one for the baseline {baseline!r}, are needed; got {names}")
    p = holm({r["method"]: r["WA_gain_p"] for r in rows if r["method"] != baseline}) | {baseline: 1.0}
    return [r | {"WA_gain_p_holm": p[r["method"]]} for r in rows]


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


def smallest_effect_measured(standard_error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest gain, in the unit of `standard_error` (points), that shows with probability `power` at `alpha`,
    two-sided: 2.8 standard errors at the defaults, 1.96 + 0.84 (normal approximation).

    `standard_error`: `metrics.compare`'s `WA_gain_se`, so that utterances of a conversation need not be
    independent.
    """
    return (norm.ppf(1 - alpha / 2) + norm.ppf(power)) * standard_error
