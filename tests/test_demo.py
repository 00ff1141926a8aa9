"""The embedded corpus: same seed, same bytes; speakers on one side of a fold; emotions follow the stated chain."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from dpmkit import audio, corpora
from dpmkit.corpora import demo, dynamics, espeak
from dpmkit.settings import ConversationSettings, Settings, UserError

TINY = {"conversation.conversations": 2, "conversation.min_turns": 3, "conversation.max_turns": 4}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return Settings.of("smoke", TINY, home=str(tmp_path_factory.mktemp("demo-home")))


@pytest.fixture(scope="session")
def corpus(tiny):
    return corpora.load(tiny)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()
            if p.name not in ("made.json", ".lock")}


def folder_of(corpus):
    return corpus.conversations[0].utterances[0].audio.path.parent


def test_espeak_keeps_nothing_between_utterances():
    # whisperf, f3: noise of espeak's own generator; caleb: of the C library's; m1: flutter, which is state too.
    asked = [("the bus leaves at six", f"en-us+{v}", 50, 50, 190) for v in ("whisperf", "f3", "caleb", "m1")]
    first = [espeak.speak(*a)[0] for a in asked]
    espeak.speak("something else was said in the meantime", "en-us+f5", 70, 80, 150)
    for a, before in reversed(list(zip(asked, first, strict=True))):
        np.testing.assert_array_equal(espeak.speak(*a)[0], before)


def test_a_limit_takes_the_first_test_conversations_for_whoever_asks(tiny, corpus):
    few = corpora.load(tiny.replace("evaluation.limit", 1))
    assert [f.test for f in few.folds] == [f.test[:1] for f in corpus.folds] and len(corpus.folds[0].test) > 1
    assert [(f.train, f.validation) for f in few.folds] == [(f.train, f.validation) for f in corpus.folds]
    assert few.key == corpus.key
    asked = few.table(2)  # what notebook 01 shows: the conversations of the fold, no others
    assert set(asked["conversation"]) == {i for split in ("train", "validation", "test")
                                          for i in getattr(few.folds[1], split)} < {c.id for c in few.conversations}


def test_every_voice_exists_and_sounds():
    for voice in demo.VOICES:
        samples, hertz = espeak.speak("it is down the hall", f"en-us+{voice}", 50, 50, 190)
        assert hertz == 22050 and 0.5 < len(samples) / hertz < 3 and np.abs(samples).max() > 0.01, voice


def test_unknown_voice_is_named():
    with pytest.raises(UserError, match="nobody"):
        espeak.speak("hello", "nobody", 50, 50, 190)


def test_same_bytes_whatever_the_workers(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "WORKERS", 1)
    plans = demo.plan(tiny.conversation)
    demo.synthesise(tmp_path, plans[::-1])
    assert digests(tmp_path) == digests(folder_of(corpus))


def test_a_script_that_guards_nothing_has_the_corpus(tmp_path):
    # Not one of a pool that is made anew in each of its own workers, without end.
    script = tmp_path / "script.py"
    script.write_text("from dpmkit import Settings\nfrom dpmkit.corpora import demo\n"
                      f"settings = Settings.of('smoke', {TINY}, home='.')\nprint(len(demo.load(settings).folds))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_killed_synthesis_goes_on(tiny, corpus):
    folder = folder_of(corpus)
    before, kept = digests(folder), folder / "s1c01.wav"
    stamp = kept.stat().st_mtime_ns
    # As a kill leaves it: one conversation without its times, one without anything.
    for name in ("s2c01.json", "s3c02.json", "s3c02.wav"):
        (folder / name).unlink()
    assert corpora.load(tiny) == corpus
    assert digests(folder) == before and kept.stat().st_mtime_ns == stamp


def test_complete_corpus_is_only_read(tiny, corpus, monkeypatch):
    monkeypatch.setattr(demo, "synthesise", lambda *_: pytest.fail("synthesised again"))
    assert corpora.load(tiny) == corpus


def test_another_seed_is_another_corpus(tiny):
    other = tiny.conversation.but(seed=1)
    assert demo.plan(tiny.conversation) == demo.plan(tiny.conversation) != demo.plan(other)


def test_clips_lie_where_the_corpus_says(corpus):
    for conversation in corpus.conversations:
        info = soundfile.info(conversation.utterances[0].audio.path)
        assert (info.samplerate, info.subtype, info.channels) == (16_000, "PCM_16", 1)
        ends = [0.0]
        for u in conversation.utterances:
            assert ends[-1] <= u.start < u.end <= info.duration and (u.start, u.end) == (u.audio.start, u.audio.end)
            waveform = audio.read(u.audio.path, u.audio.start, u.audio.end)
            assert len(waveform) == round(u.seconds * 16_000)
            # Cut at its sound: something is heard in the first and in the last 50 ms, and it never clips.
            assert min(np.abs(waveform[:800]).max(), np.abs(waveform[-800:]).max()) > 0
            assert np.abs(waveform).max() < 1
            ends.append(u.end)


def test_anger_is_louder_higher_and_brighter_than_sadness():
    def turn(emotion):
        return demo.Turn("p", "m3", emotion, "the list is on the desk", tuple(demo.EFFECT[emotion]), 0.1)

    def brightness(x):
        power = np.abs(np.fft.rfft(x)) ** 2
        return power[np.fft.rfftfreq(len(x), 1 / 16_000) > 2000].sum() / power.sum()

    anger, sadness = demo.utter(turn("ang")), demo.utter(turn("sad"))
    assert 20 * np.log10(anger.std() / sadness.std()) > 6
    assert brightness(anger) > 2 * brightness(sadness) and len(anger) < 0.85 * len(sadness)


def test_folds_are_speaker_disjoint(corpus):
    assert len(corpus.folds) == 5 and corpus.skipped == ()
    speakers = {c.id: {u.speaker for u in c.utterances} for c in corpus.conversations}
    assert all(len(s) == 2 for s in speakers.values())
    for fold in corpus.folds:
        train, validation, test = (set().union(*(speakers[i] for i in ids))
                                   for ids in (fold.train, fold.validation, fold.test))
        assert not (train & validation or train & test or validation & test)
        assert len(fold.train) + len(fold.validation) + len(fold.test) == len(corpus.conversations)
    assert sorted(i for f in corpus.folds for i in f.test) == sorted(c.id for c in corpus.conversations)


def test_demo_size():
    plans = demo.plan(ConversationSettings())
    turns = [len(p.turns) for p in plans]
    assert len(plans) == 300 and min(turns) >= 20 and max(turns) <= 60 and 11_000 < sum(turns) < 13_000
    assert len({t.speaker for p in plans for t in p.turns}) == 200
    assert len({p.id for p in plans}) == 300 and {len({t.speaker for t in p.turns}) for p in plans} == {2}


def test_emotions_follow_the_stated_chain():
    """Counted given the partner's last emotion, the chain is known exactly; 12,000 turns, no sound needed."""
    own, partner = np.zeros((4, 4)), np.zeros((4, 4))
    for p in demo.plan(ConversationSettings()):
        last = {}
        for t in p.turns:
            now = dynamics.EMOTIONS.index(t.emotion)
            other = next((e for s, e in last.items() if s != t.speaker), None)
            if t.speaker in last and other is not None:
                own[last[t.speaker], now] += 1
                partner[last[t.speaker]] += dynamics.next_distribution(last[t.speaker], other, dynamics.CONTAGION)
            last[t.speaker] = now
    totals = own.sum(axis=1, keepdims=True)
    assert np.abs(own / totals - partner / totals).max() < 0.02  # 3 standard errors at some 2,500 a row
    assert np.abs(own / totals - dynamics.IEMOCAP_INERTIA).max() < 2 * dynamics.CONTAGION  # and contagion is small


def test_texts_are_independent_of_emotion():
    assert len(set(demo.TEXTS)) == len(demo.TEXTS) == 80
    used = {e: set() for e in dynamics.EMOTIONS}
    for p in demo.plan(ConversationSettings()):
        for t in p.turns:
            used[t.emotion].add(t.text)
    assert all(u == set(demo.TEXTS) for u in used.values())
