"""A small tree of MELD's layout: clips of a second and less whose pitch tells the emotion, and CSVs to match."""

import csv
from pathlib import Path

import av
import numpy as np

from dpmkit.corpora import meld

FOLDERS = {"train": "train/train_splits", "dev": "dev/dev_splits_complete",
           "test": "test/output_repeated_splits_test"}
TABLES = {"train": "train", "dev": ".", "test": "."}  # where MELD.Raw.tar.gz has the CSVs
HEADER = ("Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season",
          "Episode", "StartTime", "EndTime")
SPEAKERS = ("Chandler", "Monica", "Ross", "Rachel")
RATE = 16_000


def write_clip(path, waveform, rate=RATE, layout="mono", codec="aac", kind="fltp", video=False,
               bit_rate=None):
    """A container by PyAV, shape (samples,) or (channels, samples); `kind` is the sample format that is encoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.atleast_2d(waveform).astype(np.float32)
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".m4a", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        sound = container.add_stream(codec, rate=rate, layout=layout, format=kind)
        if bit_rate:
            sound.bit_rate = bit_rate
        if video:
            picture = container.add_stream("mpeg4", rate=25)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            for _ in range(round(25 * samples.shape[1] / rate)):
                black.pts = None
                container.mux(picture.encode(black))
            container.mux(picture.encode(None))
        channels = np.broadcast_to(samples, (av.AudioLayout(layout).nb_channels, samples.shape[1]))
        convert = av.AudioResampler(kind, layout, rate)
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(channels[:, start:start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate = rate
            for part in convert.resample(frame):
                container.mux(sound.encode(part))
        container.mux(sound.encode(None))


def voice(emotion, speaker, seconds, rate=RATE):
    """Three harmonics, higher by the emotion's place in the label set and a little by the speaker; (samples,)."""
    time = np.arange(round(seconds * rate)) / rate
    hertz = 110 * 1.3 ** meld.EMOTIONS.index(emotion) * (1 + 0.02 * (sum(map(ord, speaker)) % 5))
    return sum(0.2 / k * np.sin(2 * np.pi * k * hertz * time) for k in (1, 2, 3)) * (1 - 0.3 * np.sin(9 * time))


def synthetic(split, dialogues, seed=0):
    """Rows of so many dialogues of 4 to 7 turns: a speaker keeps an emotion for some turns; all seven occur."""
    rng = np.random.default_rng([seed, len(split)])
    rows, state, clock = [], {}, 60_000
    for dialogue in range(dialogues):
        for number in range(int(rng.integers(4, 8))):
            speaker = SPEAKERS[int(rng.integers(2)) + 2 * (dialogue % 2)]
            if speaker not in state or rng.random() < 0.4:
                state[speaker] = meld.EMOTIONS[int(rng.integers(7 if dialogue else 3))]
            start = clock
            clock += int(rng.integers(300, 900))
            rows.append((len(rows) + 1, 'What’s that, "now"?', speaker, state[speaker], "neutral", dialogue, number,
                         1, 2, _time(start), _time(clock)))
            clock += int(rng.integers(0, 1500))
    return [dict(zip(HEADER, map(str, row), strict=True)) for row in rows]


def _time(milliseconds):
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{rest:03}"


def real(folder, split, dialogues):
    """Rows of the first dialogues of a real CSV that have 3 to 9 turns, two emotions and all their numbers."""
    with open(folder / f"{split}_sent_emo.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_dialogue = {}
    for row in rows:
        by_dialogue.setdefault(row["Dialogue_ID"], []).append(row)
    chosen = [d for d in by_dialogue.values() if 3 <= len(d) <= 9 and len({r["Emotion"] for r in d}) > 1
              and len(d) == int(d[-1]["Utterance_ID"]) + 1]
    return [row for d in chosen[:dialogues] for row in d]


def write_table(path, rows):
    """Rows (dictionaries by column) as MELD writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def make(root, dialogues=(6, 3, 3), source=None, spoiled=True, suffix=".mp4", seed=0):
    """A tree of MELD's layout below `root`, of so many dialogues of train, dev and test; returns `root`.

    `source`: a folder of the real CSVs, of which the rows are taken; else they are made up. `spoiled`: with what
    the real tree has, too: a clip of train that is cut off (its second), one of dev that is missing (its second),
    in test a second cut, a clip without a row and a resource fork.
    """
    root = Path(root)
    rng = np.random.default_rng(seed)
    for split, wanted in zip(meld.SPLITS, dialogues, strict=True):
        rows = real(Path(source), split, wanted) if source else synthetic(split, wanted, seed)
        write_table(root / TABLES[split] / f"{split}_sent_emo.csv", rows)
        for row in rows:
            path = root / FOLDERS[split] / f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}{suffix}"
            encoding = {"codec": "pcm_s16le", "kind": "s16"} if suffix == ".wav" else {}
            write_clip(path, voice(row["Emotion"], row["Speaker"], rng.uniform(0.3, 1.0)), **encoding)
        if not spoiled:
            continue
        first, second = (root / FOLDERS[split] / f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}{suffix}"
                         for row in rows[:2])
        if split == "train":
            second.write_bytes(second.read_bytes()[:second.stat().st_size // 2])
        elif split == "dev":
            second.unlink()
        else:
            for name in (f"{'final_videos_test'}{first.name}", f"dia999_utt0{suffix}"):
                (first.parent / name).write_bytes(first.read_bytes())
            (first.parent / f"._{first.name}").write_bytes(b"\0\5\26\7")
    return root
