"""Trees in IEMOCAP's official layout: the release's real turns with short made-up sound, and small invented ones.

The sound of an emotion has its own pitch and loudness, so that a small model can learn something from it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

RATE = 16_000
CSV = Path(__file__).resolve().parents[2] / "shared" / "data" / "iemocap" / "utterances.csv"
ABSENT = "" if CSV.is_file() else "REAL DATA ABSENT: ../shared/data/iemocap/utterances.csv"  # a reason to skip
TURNS = {"Ses01": 1819, "Ses02": 1811, "Ses03": 2136, "Ses04": 2103, "Ses05": 2170}  # as published, all labels
FRUSTRATED = {"Ses01": 280, "Ses02": 325, "Ses03": 382, "Ses04": 481, "Ses05": 381}
RARE = ("sur",) * 20 + ("fea",) * 8 + ("dis", "oth")  # a session; the other turns outside the six are xxx
PITCH = {"ang": 280, "hap": 340, "exc": 380, "neu": 190, "sad": 130, "fru": 235}  # Hz of a woman
LEVEL = {"ang": 0.5, "hap": 0.35, "exc": 0.4, "neu": 0.2, "sad": 0.1, "fru": 0.3}  # of full scale


def make(folder: Path, scale: float = 0.05, shortest: float = 0.1, dialogue_wavs: bool = False) -> Path:
    """The whole release, 10,039 turns, below `folder`; returns IEMOCAP_full_release.

    The 5,531 turns of `CSV` have their own ids, labels and lengths (times `scale`, at least `shortest`, in
    seconds). The numbers that are missing in a dialogue, and some after its last, become fru, as many as
    published, and labels outside the six. `dialogue_wavs` adds SessionN/dialog/wav, which no parser here reads.
    """
    table = pd.read_csv(CSV)
    table[["dialogue", "number"]] = table.utterance.str.rsplit("_", n=1, expand=True)
    for session, rows in table.groupby(table.utterance.str[:5]):
        rng = np.random.default_rng(int(session[3:]))
        known = {row.utterance: (row.emotion, row.seconds) for row in rows.itertuples()}
        last = {(d, g): -1 for d in sorted(rows.dialogue.unique()) for g in "FM"}
        last |= rows.groupby(["dialogue", rows.number.str[0]]).number.max().str[1:].astype(int).to_dict()
        added = [f"{d}_{g}{n:03d}" for (d, g), top in last.items() for n in range(top)
                 if f"{d}_{g}{n:03d}" not in known]
        beyond = (f"{d}_{g}{top + more:03d}" for more in range(1, 99) for (d, g), top in last.items())
        added += [next(beyond) for _ in range(TURNS[session] - len(known) - len(added))]
        labels = ["fru"] * FRUSTRATED[session] + list(RARE)
        labels += ["xxx"] * (len(added) - len(labels))
        known |= zip(added, zip(rng.permutation(labels), rng.uniform(0.6, 8.0, len(added)), strict=True),
                     strict=True)
        for dialogue in dict.fromkeys(d for d, _ in last):
            mine = [(i, *known[i]) for i in known if i.startswith(f"{dialogue}_")]
            mine.sort(key=lambda turn: (int(turn[0][-3:]), turn[0]))
            write(folder, dialogue, [(i, label, max(shortest, seconds * scale)) for i, label, seconds in mine],
                  dialogue_wavs)
    return folder / "IEMOCAP_full_release"


def small(folder: Path, sessions: Iterable[int] = (1, 2, 3), turns: int = 8, seconds: float = 0.1,
          dialogue_wavs: bool = False) -> Path:
    """Four dialogues a session, two of them scripted, of invented turns; returns IEMOCAP_full_release. Its counts
    are far from the published ones: `source.allow_partial` is needed."""
    labels = ("neu", "hap", "sad", "xxx", "ang", "exc", "fru", "neu")
    for session in sessions:
        for first, name in enumerate(("F_impro01", "F_script01_1", "M_impro02", "M_script02_1b")):
            dialogue = f"Ses{session:02d}{name}"
            write(folder, dialogue, [(f"{dialogue}_{'FM'[n % 2]}{n // 2:03d}", labels[(first + n) % len(labels)],
                                      seconds) for n in range(turns)], dialogue_wavs)
    return folder / "IEMOCAP_full_release"


def write(folder: Path, dialogue: str, turns: Sequence[tuple[str, str, float]], dialogue_wavs: bool) -> None:
    """A dialogue of (id, label, seconds): EmoEvaluation, transcription, sentence wavs, the annotators' folders.

    Turns begin in this order, most of them after a pause, every seventh before the last one has ended.
    """
    session = folder / "IEMOCAP_full_release" / f"Session{int(dialogue[3:5])}"
    evaluation, sentences = session / "dialog" / "EmoEvaluation", session / "sentences" / "wav" / dialogue
    for path in (sentences, session / "dialog" / "transcriptions", session / "dialog" / "wav",
                 *(evaluation / name for name in ("Attribute", "Categorical", "Self-evaluation"))):
        path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(dialogue.encode()))
    lines, said, mixed, start, end = [], [], [], 0.0, 0.0
    for number, (name, label, seconds) in enumerate(turns):
        samples = round(seconds * RATE)
        start = end + (0.05 if number % 7 else -0.3 * (end - start))
        end = start + samples / RATE
        waveform = sound(rng, label, name.rpartition("_")[2][0], samples)
        (sentences / f"{name}.wav").write_bytes(wav(waveform[:, None]))
        mixed.append((round(start * RATE), "FM".find(name.rpartition("_")[2][0]), waveform))
        lines += [f"[{start:.4f} - {end:.4f}]\t{name}\t{label}\t[2.5000, 3.0000, 2.5000]", "C-E2:\tNeutral;\t()",
                  "C-F1:\tOther;\t(curious)", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
        said.append(f"{name} [{start:08.4f}-{end:08.4f}]: Something is said.")
    head = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    (evaluation / f"{dialogue}.txt").write_text("\n".join(head + lines) + "\n")
    (evaluation / "Categorical" / f"{dialogue}_e2_cat.txt").write_text(f"{turns[0][0]} :Neutral state; ()\n")
    (session / "dialog" / "transcriptions" / f"{dialogue}.txt").write_text("\n".join(said) + "\n")
    if dialogue_wavs:
        both = np.zeros((max(at + len(w) for at, _, w in mixed), 2), np.int16)  # a microphone each
        for at, channel, waveform in mixed:
            both[at:at + len(waveform), channel] += waveform
        (session / "dialog" / "wav" / f"{dialogue}.wav").write_bytes(wav(both))


def sound(rng: np.random.Generator, label: str, gender: str, samples: int) -> np.ndarray:
    """A buzz with noise, int16, (samples,); pitch and level by emotion and gender, with some spread."""
    pitch = PITCH.get(label, 160) * (1.0 if gender == "F" else 0.6) * rng.normal(1.0, 0.05)
    phase = np.arange(samples, dtype=np.float32) * np.float32(pitch / RATE)
    buzz = 2 * (phase - np.floor(phase)) - 1 + 0.2 * rng.standard_normal(samples, dtype=np.float32)
    return (LEVEL.get(label, 0.2) * 0.5 * 32767 * buzz).astype(np.int16)


def wav(frames: np.ndarray) -> bytes:
    """int16, (samples, channels), as the bytes of a wav file; ten times faster than a library for short ones."""
    channels, data = frames.shape[1], frames.astype("<i2").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, channels, RATE,
                       2 * channels * RATE, 2 * channels, 16, b"data", len(data))
    return head + data
