"""Every option of the memory, alone and in pairs: it equals the slow reference, or is refused with both names."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CODEBOOK, TINY
from slow_memory import SlowMemory

from dpmkit import cheaper
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.settings import FinetuneSettings, MemorySettings, UserError
from dpmkit.sllm import EmotionSLLM

TOLERANCE, EFFECT = 5e-5, 2e-4  # of probabilities and losses; what an option must change at least
BASE = MemorySettings(rank=2, alpha=2.0, prefix=12, optimizer="sgd", lr=0.1)
CHAIN = np.full((4, 4), 0.05) + 0.8 * np.eye(4), np.full(4, 0.25)
OTHER = [("rank", 4), ("alpha", 8.0), ("layers", "top-1"), ("prefix", 20), ("optimizer", "adamw"), ("lr", 0.3),
         ("steps", 2), ("weight_decay", 3.0), ("history_emotions", "predicted"),
         ("stepping", "stride-5"), ("stepping", "every-2"), ("decay", 0.3), ("rule", "emotion"), ("rule", "both"),
         ("target", "filtered"), ("reset_every", 2), ("sinks", 2),
         ("read", "before"), ("loss_vocabulary", "all"), ("prefix_states", "reuse"),
         ("precision", "bfloat16")]
EDGES = [{"prefix": 0}, {"prefix": 1}, {"steps": 0}, {"lr": 0.0}, {"decay": 1.0}, {"reset_every": 1},
         {"stepping": "stride-1", "history_emotions": "predicted"}, {"prefix": 0, "prefix_states": "reuse"},
         {"prefix": 0, "prefix_states": "reuse", "sinks": 2},
         {"precision": "float32"}]
DEEPER = [{"rule": "both", "steps": 2, "target": "filtered"},
          {"prefix_states": "reuse", "sinks": 2, "read": "before"}]


def spoken(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CODEBOOK, n) for n in lengths]


# A sentence without a code, one longer than the window less n_r; conversations end before their donors, or after.
OWN, DONOR, MATE = spoken(0, (9, 4, 0, 60, 6, 5)), spoken(1, (4, 8, 3, 56, 5)), spoken(2, (3, 5, 4))
VOICES, LABELS = {"own": list("ababba"), "donor": list("cdccd"), "mate": list("xyx")}, [0, None, 2, 1, 3, 0]


@pytest.fixture(scope="module")
def sharp():
    sllm = EmotionSLLM.create(TINY, FinetuneSettings(), CODEBOOK, EMOTIONS, seed=1).eval()
    with torch.no_grad():
        for weight in sllm.parameters():
            if weight.dim() > 1:
                weight *= 8
    return sllm


def flat(turns):
    """Probabilities, L_t of what was written and of the sentence itself, NaN where there is none."""
    turns = [dataclasses.astuple(t)[:3] if dataclasses.is_dataclass(t) else t for t in turns]
    return np.concatenate([np.ravel([p for p, _, _ in turns]), np.ravel([pair for _, *pair in turns])])


def engine(sllm, settings, kind):
    """The turns of OWN, heard beside MATE."""
    memory, voices = cheaper.memory(sllm, settings, 2, inertia=CHAIN), [VOICES["mate"], VOICES["own"]]
    donors = [MATE, DONOR] if kind == "swapped" else None
    if donors:
        voices[1] = VOICES["donor"]
    labels = [[], LABELS] if kind == "labels" else None
    return flat([turn for number, turn in memory.batch([MATE, OWN], donors, voices, labels) if number])


def reference(sllm, settings, kind):
    slow, swapped = SlowMemory(sllm, settings, CHAIN), kind == "swapped"
    return flat(slow.turns(OWN, DONOR if swapped else None, VOICES["donor" if swapped else "own"],
                           LABELS if kind == "labels" else ()))


def refused(settings):
    """What must not be: settings that contradict each other, or one that would do nothing."""
    s, longer, reuse = settings, settings.stepping != "sentence", settings.prefix_states == "reuse"
    return any((longer and (reuse or s.rule != "semantic"), reuse and s.history_emotions == "predicted",
                s.sinks and not reuse, s.target != "sharpened" and s.rule == "semantic"))


def examined(sllm, change, kind):
    """The engine's numbers, equal to the reference's; None where the settings are refused, which names two."""
    if refused(SimpleNamespace(**dict(BASE) | change)):
        with pytest.raises(UserError) as raised:
            BASE.but(**change)
        names = set(re.findall(r"memory\.(\w+)", str(raised.value)))
        assert len(names) > 1 and names & set(change), (change, str(raised.value))
        return None
    settings = BASE.but(**change)
    if settings.optimizer == "adamw":  # a step is of the rate's size, and rounding of a tiny gradient, too
        settings = settings.but(lr=settings.lr / 20)
    got, expected = engine(sllm, settings, kind), reference(sllm, settings, kind)
    # In bfloat16 it shows in which order sums are rounded, and AdamW makes whole steps of rounding noise.
    exact = settings.precision != "bfloat16"
    atol = TOLERANCE if exact else 0.02
    np.testing.assert_allclose(got, expected, atol=atol, rtol=0, err_msg=f"{kind} {change}")
    return got


def apart(one, other):
    return np.nanmax(np.abs(one - other)) > EFFECT or not np.array_equal(np.isnan(one), np.isnan(other))


KINDS = ("own", "swapped", "labels")


@pytest.fixture(scope="module")
def alone(sharp):
    """(option, value), or (), and kind -> the numbers; None where it is refused."""
    return {(option, kind): examined(sharp, dict([option] if option else []), kind)
            for option in [(), *OTHER] for kind in KINDS}


def test_every_option_alone_equals_the_reference_and_changes_something(alone):
    for (option, kind), got in alone.items():
        assert got is None or option == () or apart(got, alone[(), kind]), option
    assert {option[0] for (option, _), got in alone.items() if got is None} == {"target", "sinks"}


@pytest.mark.parametrize("first", range(len(OTHER)), ids=[f"{name}-{value}" for name, value in OTHER])
def test_every_pair_of_options_equals_the_reference_or_is_refused(first, sharp, alone):
    """... and each of the two changes something beside the other."""
    for second in range(first + 1, len(OTHER)):
        pair, kind = (OTHER[first], OTHER[second]), KINDS[(first + second) % 3]
        if pair[0][0] == pair[1][0]:
            continue
        got = examined(sharp, dict(pair), kind)
        for option in pair if got is not None else ():
            assert alone[option, kind] is None or apart(got, alone[option, kind]), (pair, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", EDGES, ids=str)
def test_what_an_option_may_be_at_most(change, kind, sharp):
    examined(sharp, change, kind)


@pytest.mark.parametrize("base", DEEPER, ids=str)
def test_options_that_need_others_beside_every_other(base, sharp):
    for n, (name, value) in enumerate(OTHER):
        if name not in base:
            examined(sharp, {**base, name: value}, KINDS[n % 3])
