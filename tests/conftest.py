"""Tiny models, a corpus without audio, and settings that write into a temporary folder."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, which asks once: a processor has a worker of its own

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpmkit import corpora
from dpmkit.codes import CorpusCodes
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.memory import EMPTY, Part
from dpmkit.settings import BackboneSettings, FinetuneSettings, Settings
from dpmkit.sllm import EmotionSLLM

CODEBOOK = 16
SLOW = ("notebooks", "reproduce", "gpu", "distributed", "protocols", "options", "runs", "finetune", "audio",
        "methods", "baselines", "engine", "backbones", "bench", "main", "faults", "estimate", "robustness")
TINY = BackboneSettings(layers=2, hidden=32, heads=2, intermediate=48, window=64)


def pytest_collection_modifyitems(items):
    """Slow files come first: one that a worker took last would keep the other waiting."""
    order = [f"test_{name}" for name in SLOW]
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))


@pytest.fixture
def sllm():
    return EmotionSLLM.create(TINY, FinetuneSettings(), CODEBOOK, EMOTIONS, seed=1).eval()


@pytest.fixture
def sharp():
    return make_sharp()


def make_sharp():
    """An SLLM whose answers hang on every token that it hears: a fresh one's hardly do, and would hide a leak."""
    sllm = EmotionSLLM.create(TINY, FinetuneSettings(), CODEBOOK, EMOTIONS, seed=1).eval()
    with torch.no_grad():
        for weight in sllm.parameters():
            if weight.dim() > 1:
                weight *= 8
    return sllm


@pytest.fixture
def toy():
    """(corpus, codes): five sessions of four conversations, two speakers each, no audio; an emotion prefers four
    of the 16 codes. Some turns stand outside the label set; conversations are of 1, 5, 6 and 7 turns."""
    return make_toy()


def make_toy(sessions=5, turns=(1, 5, 6, 7), seed=0, preference=0.9):
    rng = np.random.default_rng(seed)
    conversations, codes = [], {}
    for s in range(1, sessions + 1):
        for c, length in enumerate(turns):
            said = []
            for turn in range(length):
                kind = int(rng.integers(len(EMOTIONS)))
                name = f"s{s}c{c}u{turn}"
                frames = int(rng.integers(3, 9))
                own = 4 * kind + rng.integers(0, 4, frames)
                codes[name] = np.where(rng.random(frames) < preference, own, rng.integers(0, CODEBOOK, frames))
                outside = length > 1 and (turn + c) % 4 == 3
                said.append(Utterance(name, f"s{s}{'ab'[turn % 2]}", float(turn), turn + 0.9,
                                      None if outside else EMOTIONS[kind], Clip(Path(f"/nowhere/{name}.wav"))))
            conversations.append(Conversation(f"s{s}c{c}", f"s{s}", tuple(said)))
    ids = {s: tuple(c.id for c in conversations if c.session == f"s{s}") for s in range(1, sessions + 1)}
    folds = []
    for test in ids:
        validation = test % sessions + 1
        train = tuple(i for s, members in ids.items() if s not in (test, validation) for i in members)
        folds.append(Fold(train, ids[validation], ids[test]))
    corpus = Corpus("toy", tuple(conversations), EMOTIONS, tuple(folds), (), f"toy{seed}")
    facts = {"tokenizer": "toy", "codebook_size": CODEBOOK, "frame_rate": 25.0}
    return corpus, CorpusCodes(f"toy{seed}", codes, {name: np.zeros(76) for name in codes}, facts)


def changed(corpus, what, ids=None):
    """The corpus with changes, `what(turn, utterance)`, of the utterances of these conversations (None: of all)."""
    return replace(corpus, conversations=tuple(
        replace(c, utterances=tuple(replace(u, **what(turn, u)) for turn, u in enumerate(c.utterances)))
        if ids is None or c.id in ids else c for c in corpus.conversations))


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """A function: this home, with the smoke corpus in it, which all workers share: it is spoken once."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "spoken"

    def into(home):
        corpora.load(Settings.of("smoke", home=str(shared)))  # a second worker waits
        shutil.copytree(shared / "runs", home / "runs", ignore=shutil.ignore_patterns(".lock"), dirs_exist_ok=True)
        return home

    return into


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


def make_settings(home):
    """Smoke settings of a window of 64 tokens, at home in this folder, on the CPU."""
    return Settings.of("smoke", {
        "home": str(home), "device": "cpu", "codes.codebook_size": CODEBOOK, "backbone.window": 64,
        "finetune.n_o": 16, "finetune.n_p": 48, "finetune.n_q": 64, "memory.prefix": 16, "evaluation.streams": 4})


def next_code_loss(sllm, prefixes, targets, vocabulary="codes"):
    """L_t of each target after its prefix, (rows,)."""
    sllm.fits(prefixes, targets)
    batch = sllm.batch([torch.cat(pair) for pair in zip(prefixes, targets, strict=True)],
                       [max(len(p), 1) for p in prefixes])
    return sllm.losses(sllm.hidden(batch.ids), batch, vocabulary)


def written(memory, prefixes, sentences, streams=None):
    """L_t of one sentence that each stream (default: all) writes after its prefix."""
    streams = range(memory.streams) if streams is None else streams
    return memory.write(list(map(Part, prefixes, sentences)), streams)[0]


def answered(memory, prefixes, streams=None):
    """The emotions' probabilities of each stream (default: all) after its prefix."""
    streams = range(memory.streams) if streams is None else streams
    return memory.read([Part(EMPTY, prefix) for prefix in prefixes], streams).softmax(-1)


@pytest.fixture
def small_disk():
    """`with small_disk(size):` no file of this process can grow beyond `size` bytes; a write fails as on a full
    disk, with an OSError in Python and whatever the Rust and C++ writers make of it."""
    import resource
    from contextlib import contextmanager

    @contextmanager
    def limited(size=2000):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ: write() gives EFBIG
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def import_silero():
    """silero_vad, or a loud skip of the module. Its import sets torch to one thread for good: put back, or every
    later test would run, and train to other bits, on one."""
    threads = torch.get_num_threads()
    try:
        return pytest.importorskip("silero_vad", reason="SILERO-VAD ABSENT: pip install -e '.[vad]'")
    finally:
        torch.set_num_threads(threads)


# What may differ between two equal runs: when, how fast, from which commit.
TIMED = frozenset({"made", "seconds", "commit", "cost", "real_time_factor", "machine", "bench", "peak_bytes",
                   "seconds_per_sentence", "seconds_per_sentence_range", "protocol_seconds",
                   "crossings"})


def without_times(record):
    """A record less what two equal runs may differ in."""
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if k not in TIMED}
    return [without_times(v) for v in record] if isinstance(record, list) else record
