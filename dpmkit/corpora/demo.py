"""The embedded corpus: conversations synthesised by espeak-ng, whose emotion dynamics are known.

Two speakers of one session talk; a speaker is a voice with baselines of pitch, range, rate, loudness and
vocal effort of their own. Emotions follow IEMOCAP's measured chain with a small contagion from the partner; they
move the same five dimensions, and every utterance adds noise to them. Texts say nothing of the emotion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.signal import lfilter
from tqdm.auto import tqdm

from .. import audio, machine, runs
from ..settings import ConversationSettings, Settings
from . import dynamics, espeak
from .base import Clip, Conversation, Corpus, Utterance, leave_one_out

SESSIONS = 5
WORKERS = 2  # processes; the corpus does not depend on it
SWITCH = 0.8  # probability that the partner speaks next
PAUSE = (0.1, 0.3)  # seconds between turns
WORDS_PER_MINUTE, LOUDNESS = 190, -31.0  # of a neutral utterance of the mean speaker; dB of full scale, RMS

VOICES = ("f1", "f2", "f3", "f4", "f5", "Andrea", "Annie", "linda", "steph", "belinda", "aunty", "anika",
          "m1", "m2", "m3", "m4", "m5", "m7", "m8", "Lee", "Michael", "Gene", "Denis", "john")

# Columns: pitch in semitones, range and rate in octaves (log2), loudness in dB, vocal effort (`utter`). Set once
# on sessions 2 to 5: WA on validation 64.6 by single utterances, 69.6 with the inertia filter, 84.6 with an oracle
# of speakers, 91.3 by both.
EFFECT = {
    "neu": np.array([0.0, 0.0, 0.0, 0.0, 0.0]),
    "hap": np.array([3.3, 0.66, 0.09, 1.7, 0.06]),
    "sad": np.array([-2.2, -0.66, -0.22, -4.4, -0.33]),
    "ang": np.array([2.2, 0.33, 0.13, 5.5, 0.38]),
}
SPEAKER_SPREAD = np.array([1.3, 0.28, 0.08, 2.0, 0.16])  # standard deviations of speakers
UTTERANCE_NOISE = np.array([1.5, 0.33, 0.09, 2.3, 0.18])  # and of utterances around theirs

# Plain sentences written for this project, neutral in their wording.
TEXTS = tuple("""
the bus leaves at six; it is on the table; we have two of them; the door is open; he works on the third
floor; she lives near the station; put it in the box; I will call at noon; there are seven chairs; the list
is on the desk; we meet on Tuesday; the shop is next door; it takes ten minutes; that is the second one; the
keys are in the bag; I read it this morning; they moved in May; the paper is in the tray; you can take the
stairs; it is made of wood; the lamp is by the window; we need more paper; the train stops here; I wrote it
down; the road goes to the river; that was last week; the cup is on the shelf; he has a blue coat; it opens
at eight; the meeting is upstairs; I heard it on the radio; take the other one; she sent me the address;
there is a map inside; we go on Thursday; the box is half full; the number is on the card; he is in the
garden; I left it in the car; the water is in the jug; it starts in an hour; you asked about it; they came
by train; the book has two parts; the plates are in the kitchen; I saw it on the way; we talked on Monday;
the bill is in the mail; the clock is in the hall; she has the other half; it is the same colour; the letter
came today; look at the next page; the boat is at the pier; I know the street; he parked by the wall; the
class is at four; we ordered the soup; it rained in the night; the form has three pages; the office is
across the road; I will bring the folder; the cat is on the roof; you said it before; that is my seat; the
screen is on the left; we took the early bus; there is one in each room; she will be here at five; it fits
in there; the bread is in the oven; I spoke to the driver; the gate is around the corner; he told me on
Friday; turn it the other way; the phone is in my pocket; they are on the second page; we came in through
the back; it is down the hall; I have the ticket
""".replace("\n", " ").strip().split("; "))


@dataclass(frozen=True)
class Turn:
    """A text and how it is spoken, before it is audible; `manner` has the five dimensions of the knobs."""

    speaker: str
    voice: str
    emotion: str
    text: str
    manner: tuple[float, ...]
    pause: float  # seconds after it


@dataclass(frozen=True)
class Plan:
    """One conversation to be synthesised."""

    id: str
    session: str
    turns: tuple[Turn, ...]


def plan(settings: ConversationSettings) -> list[Plan]:
    """Every conversation of every session, drawn from `settings.seed`; speakers in shuffled pairs, so that all of
    them speak in about as many conversations."""
    plans = []
    for session in range(SESSIONS):
        rng = np.random.default_rng([settings.seed, session])
        voices = [VOICES[i % len(VOICES)] for i in rng.permutation(settings.speakers)]
        baselines = rng.normal(size=(settings.speakers, len(SPEAKER_SPREAD))) * SPEAKER_SPREAD
        order: list[int] = []
        for number in range(settings.conversations):
            if len(order) < 2:
                order = list(rng.permutation(settings.speakers))
            pair = [int(order.pop()), int(order.pop())]
            own = np.random.default_rng([settings.seed, session, number])
            turns = _plan_turns(own, [f"s{session + 1}p{p + 1:02d}" for p in pair], [voices[p] for p in pair],
                                baselines[pair], int(own.integers(settings.min_turns, settings.max_turns + 1)))
            plans.append(Plan(f"s{session + 1}c{number + 1:02d}", f"s{session + 1}", turns))
    return plans


def _plan_turns(rng: np.random.Generator, speakers: list[str], voices: list[str], baselines: np.ndarray,
                count: int) -> tuple[Turn, ...]:
    """`count` turns of two speakers; `baselines` has shape (2, 5)."""
    last: list[int | None] = [None, None]
    who = int(rng.integers(2))
    turns = []
    for _ in range(count):
        chances = dynamics.next_distribution(last[who], last[1 - who], dynamics.CONTAGION)
        last[who] = int(rng.choice(len(chances), p=chances))
        emotion = dynamics.EMOTIONS[last[who]]
        manner = baselines[who] + EFFECT[emotion] + rng.normal(size=len(UTTERANCE_NOISE)) * UTTERANCE_NOISE
        text = TEXTS[rng.integers(len(TEXTS))]
        turns.append(Turn(speakers[who], voices[who], emotion, text, tuple(float(m) for m in manner),
                          float(rng.uniform(*PAUSE))))
        who = 1 - who if rng.random() < SWITCH else who
    return tuple(turns)


def utter(turn: Turn) -> np.ndarray:
    """The turn's waveform at `audio.RATE`, shape (samples,), silences at its ends cut off."""
    pitch, pitch_range, rate, loudness, effort = turn.manner
    samples, hertz = espeak.speak(turn.text, f"en-us+{turn.voice}",
                                  pitch=round(np.clip(50 + 50 * pitch / 12, 0, 99)),
                                  pitch_range=round(np.clip(50 * 2 ** pitch_range, 0, 99)),
                                  rate=round(np.clip(WORDS_PER_MINUTE * 2 ** rate, 80, 450)))
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    waveform = audio.resample(samples[loud[0]:loud[-1] + 1], hertz).astype(np.float64)
    # Vocal effort as spectral tilt: one zero (pressed, brighter) above 0, one pole (lax, duller) below it.
    tilt = float(np.clip(effort, -0.9, 0.9))
    waveform = lfilter([1.0, -max(tilt, 0.0)], [1.0, min(tilt, 0.0)], waveform)
    level = 10 ** ((LOUDNESS + loudness) / 20) / np.sqrt(np.mean(waveform ** 2))
    return (waveform * min(level, 0.99 / np.abs(waveform).max())).astype(np.float32)


def render(folder: Path, conversation: Plan) -> None:
    """Write `<id>.wav`, then `<id>.json` with each turn's start and end in seconds."""
    pieces, spans, position = [], [], 0
    for turn in conversation.turns:
        waveform = utter(turn)
        spans.append((position / audio.RATE, (position + len(waveform)) / audio.RATE))
        pieces += [waveform, np.zeros(round(turn.pause * audio.RATE), np.float32)]
        position += len(waveform) + len(pieces[-1])
    audio.write(folder / f"{conversation.id}.wav", np.concatenate(pieces))
    runs.write_json(folder / f"{conversation.id}.json", spans)


def synthesise(folder: Path, plans: Sequence[Plan]) -> None:
    """Render what is not there, in fresh processes, as espeak-ng is a C global and a kernel has threads; joblib's
    (loky) do not run a script's own lines again, so that a script needs no `if __name__ == "__main__"`."""
    todo = [p for p in plans if not all((folder / f"{p.id}{suffix}").is_file() for suffix in (".wav", ".json"))]
    made = Parallel(WORKERS, return_as="generator_unordered")(delayed(render)(folder, p) for p in todo)
    list(tqdm(made, total=len(todo), desc="synthesis", unit="conversation"))


def load(settings: Settings) -> Corpus:
    """The corpus, synthesised first where `runs/corpus/<key>/` lacks it; folds leave one session out."""
    plans, made = plan(settings.conversation), runs.Artefact(
        settings, "corpus", load, conversation=settings.conversation, espeak=machine.version("espeakng-loader"))
    with made.making(*(made.folder / f"{p.id}{suffix}" for p in plans for suffix in (".wav", ".json"))) as absent:
        if absent:
            synthesise(made.folder, plans)
    conversations = []
    for p in plans:
        spans = json.loads((made.folder / f"{p.id}.json").read_text(encoding="utf-8"))
        conversations.append(Conversation(p.id, p.session, tuple(
            Utterance(f"{p.id}u{number:02d}", turn.speaker, start, end, turn.emotion,
                      Clip(made.folder / f"{p.id}.wav", start, end))
            for number, (turn, (start, end)) in enumerate(zip(p.turns, spans, strict=True)))))
    folds = leave_one_out({p.id: p.session for p in plans})
    return Corpus("demo", tuple(conversations), dynamics.EMOTIONS, folds, (), made.key)
