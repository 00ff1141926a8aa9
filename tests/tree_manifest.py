"""A manifest corpus for tests: six sessions of two speakers, two conversations each, six turns of half a second.

A turn is a buzz whose pitch and loudness tell its emotion, on the pitch of its speaker. The first conversation of
a session is one recording that its rows cut; each turn of the second is a file of its own.
"""

import csv
from pathlib import Path

import numpy as np

from dpmkit import audio

EMOTIONS = ("neu", "hap", "sad", "ang")
PITCH, LEVEL = (1.0, 1.5, 0.75, 1.25), (0.2, 0.3, 0.1, 0.6)  # of the four: times the speaker's own; full scale is 1
COLUMNS = ("conversation", "utterance", "speaker", "start", "end", "emotion", "path", "split")
SECONDS, PAUSE = 0.5, 0.125
SPLITS = ("train", "train", "train", "train", "dev", "test")  # of the sessions


def make(folder: Path, sessions: int = 6, conversations: int = 2, turns: int = 6) -> list[dict[str, str]]:
    """Write `manifest.csv` and its audio into a folder; the rows. The third turn of each has no emotion."""
    rng, rows = np.random.default_rng(0), []
    for session in range(sessions):
        for number in range(conversations):
            name, track, clock = f"s{session}c{number}", [], 0.0
            for turn in range(turns):
                kind, voice = (session + number + turn // 2) % 4, 2 * session + turn % 2
                said = buzz(rng, (90 + 15 * voice) * PITCH[kind], LEVEL[kind])
                path = f"{name}.wav" if number == 0 else f"clips/{name}/{turn}.wav"
                rows.append({"conversation": name, "utterance": f"{name}u{turn}", "speaker": f"speaker{voice}",
                             "start": "" if number else f"{clock:.3f}",
                             "end": "" if number else f"{clock + SECONDS:.3f}",
                             "emotion": "" if turn == 2 else EMOTIONS[kind], "path": path,
                             "split": SPLITS[session]})
                if number:
                    audio.write(folder / path, said)
                track += [said, np.zeros(round(PAUSE * audio.RATE), np.float32)]
                clock += SECONDS + PAUSE
            if number == 0:
                audio.write(folder / f"{name}.wav", np.concatenate(track))
    write(folder, rows)
    return rows


def buzz(rng: np.random.Generator, pitch: float, level: float, seconds: float = SECONDS) -> np.ndarray:
    """Ten harmonics of a pitch in Hz that wavers, with some breath; shape (samples,)."""
    time = np.arange(round(seconds * audio.RATE)) / audio.RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.05 * np.sin(8 * time + 6 * rng.random()))) / audio.RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 11)) + 0.05 * rng.normal(size=len(time))
    return (level * sound / np.abs(sound).max()).astype(np.float32)


def write(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS, **dialect: str) -> Path:
    """`manifest.csv` of these rows and columns; its path."""
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", **dialect)
        table.writeheader()
        table.writerows(rows)
    return folder / "manifest.csv"
