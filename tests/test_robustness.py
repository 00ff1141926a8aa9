"""Disturbances are what they say, know no label, are made once; answers come back to the true utterances."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import changed, import_silero

from dpmkit import audio, codes, corpora, robustness, runs, tokenizers
from dpmkit.corpora import Clip, Conversation, Corpus, Fold, Utterance
from dpmkit.robustness import disturbed, heard, render, returned
from dpmkit.settings import Settings, UserError

EMOTIONS = ("neu", "ang")
PRIOR = np.array([0.7, 0.3])
SPEAKERS = {"c0": "ab", "c1": "cd", "c2": "ef", "c3": "gh", "c4": "ij", "c5": "gk"}  # g talks in two conversations
HERTZ = {name: 400.0 + 250.0 * i for i, name in enumerate("abcdefghijk")}  # no one is a harmonic's neighbour


def tone(speaker, seconds, seed, rate=audio.RATE):
    """A pure tone of the speaker's own frequency and a little noise, float32, (samples,)."""
    t = np.arange(round(seconds * rate)) / rate
    noise = 0.003 * np.random.default_rng(seed).normal(size=len(t))
    return (0.2 * np.sin(2 * np.pi * HERTZ[speaker] * t) + noise).astype(np.float32)


def make_corpus(folder):
    """Six conversations of five utterances by two speakers: c4 in one recording, the others a file an utterance,
    c5's at 22,050 Hz; the fold's test split is c3 to c5."""
    conversations = []
    for c, (name, speakers) in enumerate(SPEAKERS.items()):
        said, at, pieces = [], 0.5, [np.zeros(8000, np.float32)]
        for turn in range(5):
            speaker, seconds = speakers[turn % 2], 0.4 + 0.25 * ((turn + c) % 3)
            path, rate = folder / f"{name}u{turn}.wav", 22_050 if name == "c5" else audio.RATE
            wave = tone(speaker, seconds, 10 * c + turn, rate)
            pieces += [wave, np.zeros(3200, np.float32)]
            clip = Clip(folder / f"{name}.wav", at, at + seconds) if name == "c4" else Clip(path)
            if name != "c4":
                audio.write(path, wave, rate)
            said.append(Utterance(f"{name}u{turn}", speaker, at, at + seconds, EMOTIONS[turn % 2], clip))
            at = round(at + seconds + 0.2, 3)
        if name == "c4":
            audio.write(folder / "c4.wav", np.concatenate(pieces))
        conversations.append(Conversation(name, f"s{c}", tuple(said)))
    fold = Fold(("c0", "c1"), ("c2",), ("c3", "c4", "c5"))
    return Corpus("tones", tuple(conversations), EMOTIONS, (fold,), (), "tones")


def loaded(settings, spoken):
    """The tokenizer that made these codes."""
    tokenizer = tokenizers.create(settings)
    tokenizer.load(runs.folder(settings, "codes", spoken.key))
    return tokenizer


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """(settings, corpus, codes)"""
    home = tmp_path_factory.mktemp("tones")
    settings, corpus = Settings.of("smoke", {"codes.codebook_size": 8}, home=str(home)), make_corpus(home)
    return settings, corpus, codes.make(settings, corpus)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(settings, corpus, codes) of the embedded corpus, tiny."""
    asked = {"conversation.conversations": 1, "conversation.min_turns": 4, "conversation.max_turns": 5}
    settings = Settings.of("smoke", asked, home=str(tmp_path_factory.mktemp("demo")))
    corpus = corpora.load(settings)
    return settings, corpus, codes.make(settings, corpus)


def of(prepared, conversations, disturbance):
    """`disturbed` of a prepared corpus."""
    settings, corpus, spoken = prepared
    return disturbed(settings, corpus, loaded(settings, spoken), conversations, disturbance)


def answers(segments, seed=0):
    """Answers to the segments, drawn at random."""
    p = np.random.default_rng(seed).dirichlet([1, 1], len(segments))
    return dict(zip(segments, p, strict=True))


@pytest.mark.parametrize("name", ["tones", "demo"])
def test_undisturbed_are_the_corpus_own_codes(request, name):
    _, corpus, spoken = prepared = request.getfixturevalue(name)
    made, found, weights = of(prepared, corpus.conversations, "none")
    assert [c.id for c in made] == [c.id for c in corpus.conversations]
    for c, new in zip(corpus.conversations, made, strict=True):
        for u, v in zip(c.utterances, new.utterances, strict=True):
            assert (v.speaker, v.emotion) == (u.speaker, None) and v.id not in spoken.codes
            assert abs(v.start - u.start) < 1e-4 and abs(v.end - u.end) < 1e-4  # of whole samples
            assert weights[u.id] == {v.id: 1.0}
            np.testing.assert_array_equal(found[v.id], spoken.codes[u.id])


def test_cuts_of_one_recording_that_overlap_are_not_heard_twice(tmp_path):
    wave = tone("a", 3, 0)
    audio.write(tmp_path / "talk.wav", wave)
    said = tuple(Utterance(f"u{i}", "a", start, end, None, Clip(tmp_path / "talk.wav", start, end))
                 for i, (start, end) in enumerate([(0.0, 1.5), (1.2, 2.0), (1.3, 1.6), (2.5, 3.0)]))
    got, spans = render(Conversation("c", "s", said))
    for u, (first, last) in zip(said, spans, strict=True):
        np.testing.assert_array_equal(got[first:last], audio.read(u.audio.path, u.start, u.end))
    assert not got[spans[1, 1]:spans[3, 0]].any()  # silence between


@pytest.mark.parametrize("kind", ["white", "babble"])
@pytest.mark.parametrize("level", [20.0, 5.0, 0.0])
def test_noise_is_as_loud_as_asked(tones, kind, level):
    settings, corpus, _ = tones
    for c in corpus.select(("c3", "c4")):
        clean, spans = render(c)
        noisy, true, found = heard(settings, corpus, c, f"{kind} {level}")
        np.testing.assert_array_equal(true, spans)
        np.testing.assert_array_equal(found, spans)
        assert np.abs(noisy).max() < 1  # nothing was clipped, which would change the ratio
        noise, active = noisy.astype(float) - clean, np.concatenate([np.arange(*s) for s in spans])
        power = np.mean(clean[active].astype(float) ** 2) / np.mean(noise[active] ** 2)
        assert 10 * np.log10(power) == pytest.approx(level, abs=0.01)
        gaps = np.setdiff1d(np.arange(len(noise)), active)  # the pauses are no quieter place
        assert np.mean(noise[gaps] ** 2) == pytest.approx(np.mean(noise[active] ** 2), rel=0.5)


def test_noise_beyond_full_scale_is_clipped(tones):
    settings, corpus, _ = tones
    assert np.abs(heard(settings, corpus, corpus.conversations[3], "white -20")[0]).max() == 1


def spectrum(wave, speaker):
    """The share of the power within 20 Hz of the speaker's tone."""
    power, hertz = np.abs(np.fft.rfft(wave)) ** 2, np.fft.rfftfreq(len(wave), 1 / audio.RATE)
    return power[np.abs(hertz - HERTZ[speaker]) < 20].sum() / power.sum()


def test_babble_is_of_strangers_of_the_split(tones):
    settings, corpus, _ = tones
    conversation = corpus.select(("c3",))[0]
    wave = heard(settings, corpus, conversation, "babble 0")[0] - render(conversation)[0]
    noise = {speaker: spectrum(wave, speaker) for speaker in HERTZ}
    assert min(noise[s] for s in "ijk") > 0.05  # several voices, of the other test conversations
    assert max(noise[s] for s in "gh") < 0.01  # none of its own, g's part in c5 included
    assert max(noise[s] for s in "abcdef") < 0.01  # none of another split


def test_babble_of_acquaintances_where_there_are_no_strangers(tones):
    settings, corpus, _ = tones
    first, second = changed(corpus, lambda turn, u: {"speaker": "x"}).conversations[:2]
    shared = dataclasses.replace(second, utterances=(*second.utterances, first.utterances[0]))
    small = dataclasses.replace(corpus, conversations=(first, shared), folds=(Fold((), (), ("c0", "c1")),))
    wave = heard(settings, small, first, "babble 0")[0] - render(first)[0]
    assert spectrum(wave, "c") > 0.2 and spectrum(wave, "a") < 0.01  # a's clip stands in both: not used
    alone = dataclasses.replace(small, folds=(Fold(("c1",), (), ("c0",)),))
    with pytest.raises(UserError, match="babble for conversation c0 needs another one in the test"):
        heard(settings, alone, first, "babble 0")


def test_voices_of_the_babble_are_equally_loud(tmp_path):
    for speaker, level in (("a", 1.0), ("b", 0.05)):
        audio.write(tmp_path / f"{speaker}.wav", level * tone(speaker, 1, 0))
    said = [Conversation(s, "s", (Utterance(s, s, 0.0, 1.0, None, Clip(tmp_path / f"{s}.wav")),)) for s in "abc"]
    corpus = Corpus("loud", tuple(said), EMOTIONS, (Fold((), (), tuple("abc")),), (), "loud")
    noise = robustness._babble(Settings(), corpus, said[2], 8000, np.random.default_rng(0))
    assert min(spectrum(noise, s) for s in "ab") > 0.02  # as loud as they are, b would have a 400th


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_overlap_is_of_the_share_asked(tones, share):
    settings, corpus, _ = tones
    for c in corpus.conversations:
        wave, true, found = heard(settings, corpus, c, f"overlap {share}")
        np.testing.assert_array_equal(true, found)
        length = np.diff(true)[:, 0]
        np.testing.assert_allclose((true[:-1, 1] - true[1:, 0]) / length[:-1], share, atol=1 / length.min())
        added = np.zeros(len(wave))
        for u, (first, last) in zip(c.utterances, true, strict=True):
            added[first:last] += audio.read(u.audio.path, u.audio.start, u.audio.end)
        np.testing.assert_allclose(wave, added, atol=1e-6)


@pytest.mark.parametrize("level", [0.2, 0.7, 2.0, 60.0])
def test_chunks_are_of_one_length_and_cover_everything(tones, level):
    settings, corpus, _ = tones
    for c in corpus.conversations:
        wave, _, found = heard(settings, corpus, c, f"chunks {level}")
        length = np.diff(found)[:, 0]
        assert (length[:-1] == round(level * audio.RATE)).all()
        assert min(0.2, level) * audio.RATE <= length[-1] <= (level + 0.2) * audio.RATE
        assert (found[0, 0], found[-1, 1]) == (0, len(wave)) and (found[1:, 0] == found[:-1, 1]).all()


def test_a_segment_has_the_speaker_of_most_of_it_or_the_nearest(tones):
    c = tones[1].conversations[3]
    (made,), _, _ = of(tones, [c], "chunks 0.2")
    for v in made.utterances:
        shares = [min(u.end, v.end) - max(u.start, v.start) for u in c.utterances]
        assert v.speaker in {u.speaker for u, s in zip(c.utterances, shares, strict=True) if s > max(shares) - 1e-3}
    assert {v.speaker for v in made.utterances} == {"g", "h"}


@pytest.mark.parametrize("disturbance", ["none", "chunks 1.5", "white 5", "babble 5", "overlap 0.2"])
def test_same_seed_same_codes_whatever_else_is_asked_and_labelled(tones, disturbance):
    settings, corpus, spoken = tones
    both, found, weights = of(tones, corpus.select(("c3", "c4")), disturbance)
    # Other labels, another order, another company.
    other = changed(corpus, lambda turn, u: {"emotion": None if u.emotion == "neu" else "neu"})
    again, same, shares = of((settings, other, spoken), other.select(("c5", "c4", "c3")), disturbance)
    assert set(weights) < set(shares) and set(found) < set(same)
    assert all(shares[u] == weight for u, weight in weights.items())
    assert all(np.array_equal(same[i], row) for i, row in found.items())
    assert both == again[:0:-1]
    if disturbance.startswith(("white", "babble")):
        drawn = of((settings.replace("seed", 1), corpus, spoken), corpus.select(("c3", "c4")), disturbance)[1]
        assert not all(np.array_equal(drawn[i], row) for i, row in found.items())


@pytest.mark.parametrize("disturbance", ["none", "chunks 2", "white 0", "babble 0", "overlap 0.3"])
def test_weights_sum_to_one(tones, disturbance):
    chosen = tones[1].conversations[3:5]
    _, found, weights = of(tones, chosen, disturbance)
    assert list(weights) == [u.id for c in chosen for u in c.utterances]
    assert all(not w or sum(w.values()) == pytest.approx(1, abs=1e-12) for w in weights.values())
    assert {i for w in weights.values() for i in w} <= set(found)
    if not disturbance.startswith("chunks"):  # the identity, bit by bit
        drawn = answers(found)
        np.testing.assert_array_equal(returned(drawn, weights, PRIOR), list(drawn.values()))


def test_answers_are_weighted_by_seconds_and_come_back_to_the_true_utterances(tones):
    chosen = tones[1].select(("c4", "c3"))
    made, found, weights = of(tones, chosen, "chunks 0.5")
    drawn = answers(found)
    back = iter(returned(drawn, weights, PRIOR))
    for c, new in zip(chosen, made, strict=True):
        for u in c.utterances:
            shares = {v.id: min(u.end, v.end) - max(u.start, v.start) for v in new.utterances}
            shares = {i: s for i, s in shares.items() if s > 1e-3}
            mean = sum(s * drawn[i] for i, s in shares.items()) / sum(shares.values())
            assert next(back) == pytest.approx(mean, abs=1e-3)
    assert not list(back)
    with pytest.raises(KeyError):
        returned(dict(list(drawn.items())[3:]), weights, PRIOR)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:silero_vad", "ignore:.*torch.jit")
def test_silero_finds_the_demo_utterances(demo):
    import_silero()
    corpus = demo[1]
    made, found, weights = of(demo, corpus.conversations, "silero")
    assert np.mean([bool(w) for w in weights.values()]) > 0.9
    for c, new in zip(corpus.conversations, made, strict=True):
        times = [t for v in new.utterances for t in (v.start, v.end)]
        assert times == sorted(times) and times[-1] <= c.utterances[-1].end + 1e-4
        for v in new.utterances:
            assert len(found[v.id]) == round((round(v.end * 16_000) - round(v.start * 16_000)) / 640)


def silent(settings, conversation):
    """The conversation, with silence for every utterance."""
    audio.write(settings.home_path / "silence.wav", np.zeros(32_000))
    return dataclasses.replace(conversation, id="quiet", utterances=tuple(
        dataclasses.replace(u, id=f"quiet {u.id}", audio=Clip(settings.home_path / "silence.wav"))
        for u in conversation.utterances))


def test_where_nothing_is_found_the_prior_answers(tones, monkeypatch):
    settings, corpus, _ = tones
    found = [pd.DataFrame({"start": [], "end": []}), pd.DataFrame({"start": [0.1], "end": [9.0]})]
    monkeypatch.setattr(audio, "find_speech", lambda path, asked: found.pop(0))
    quiet, loud = silent(settings, corpus.conversations[3]), corpus.conversations[4]
    made, segments, weights = of(tones, [quiet, loud], "silero")
    assert [c.id for c in made] == ["c4"] and len(segments) == 1
    back = returned(answers(segments), weights, PRIOR)
    assert len(back) == 10 and (back[:5] == PRIOR).all() and not (back[5:] == PRIOR).any()


def test_without_silero_the_cure_is_named(tones, monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UserError, match=r'silero-vad.*pip install -e "\.\[vad\]"'):
        of(tones, tones[1].select(("c4",)), "silero")


@pytest.mark.parametrize("wrong", ["chunks 0", "chunks 1.5", "white 90", "babble -21", "overlap 1",
                                   "overlap 0.91", "chunks 1000", "overlap nan", "none 1",
                                   "hum 1", "white loud", ""])
def test_other_kinds_and_levels_are_refused(wrong):
    with pytest.raises(UserError, match=r"ablation\.disturbances must match pattern .*silero.*overlap"):
        Settings.of("smoke", {"ablation.disturbances": ("none", wrong)})
