"""MELD (Poria et al. 2019): dialogues of the series Friends, one video an utterance, seven emotions.

Layout, as MELD.Raw.tar.gz and the archives in it unpack: `train/train_splits/dia0_utt0.mp4`,
`dev/dev_splits_complete/…`, `test/output_repeated_splits_test/…`, and `train_sent_emo.csv`, `dev_…`, `test_…`.

- A CSV stands anywhere below the root. Its rows are the utterances, in the order of Utterance_ID; numbers that it
  leaves out are MELD's own gaps. Speakers are as it has them, but for blanks and the kind of apostrophe.
- A clip is of the split that its folders name (`train`, `dev` or `test` as a word, so `train_wav` too), at any
  depth. Of several files of one clip a wav is heard before a flac, before a video; then the first path.
- A clip is heard whole and its utterance lasts as long as it sounds: the CSV's times contradict many clips. They
  give no more than the pauses between turns, none where they run back.
- Files of other names, among them `final_videos_test…`, second cuts that MELD's authors say to ignore
  (declare-lab/MELD, issue 22), clips that cannot be heard or have no row, and rows without a clip are skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path

from .. import runs
from ..settings import Settings, UserError
from . import files, table
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance

SPLITS = ("train", "dev", "test")
PUBLISHED = {  # the README of declare-lab/MELD; train, dev, test
    "neutral": (4710, 470, 1256), "joy": (1743, 163, 402), "sadness": (683, 111, 208), "anger": (1109, 153, 345),
    "surprise": (1205, 150, 281), "fear": (268, 40, 50), "disgust": (271, 22, 68)}
EMOTIONS = tuple(PUBLISHED)
NAME = re.compile(r"dia([0-9]{1,6})_utt([0-9]{1,6})")
TIME = re.compile(r"([0-9]{1,2}):([0-9]{2}):([0-9]{2})[,.]([0-9]{1,3})")  # the last group counts milliseconds
COLUMNS = {  # what a row must hold, and a value that it may
    "Speaker": (re.compile(r".+"), "Ross"), "Emotion": (re.compile("|".join(EMOTIONS), re.IGNORECASE), "joy"),
    "Dialogue_ID": (re.compile(r"[0-9]{1,6}"), "0"), "Utterance_ID": (re.compile(r"[0-9]{1,6}"), "0"),
    "StartTime": (TIME, "00:16:16,059"), "EndTime": (TIME, "00:16:16,059")}


@dataclass(frozen=True)
class Row:
    """One row of a CSV; `start` and `end` are its seconds within the episode."""

    split: str
    dialogue: int
    number: int
    speaker: str
    emotion: str
    start: float
    end: float

    @property
    def id(self) -> str:
        """As its clip is called."""
        return f"{self.split}_dia{self.dialogue}_utt{self.number}"


def load(settings: Settings) -> Corpus:
    """The dialogues below `settings.root`; the official split is the one fold, its dev the validation.

    Raises UserError for a root that lacks a split's clips or CSV, and for a CSV that cannot be read. Single clips
    that are missing are skipped: `counts` and a note say how many.
    """
    root = settings.root_path
    names = dict(files.walk(root))
    clips, skipped = _clips(names)
    tables = {split: [path for path in names if path.name == f"{split}_sent_emo.csv"] for split in SPLITS}
    found = {split: (len(tables[split]), sum(place[0] == split for place in clips)) for split in SPLITS}
    if any(csvs != 1 or not number for csvs, number in found.values()):
        words = ", ".join(f"{csvs} {split}_sent_emo.csv, {n} clips of {split}"
                          for split, (csvs, n) in found.items())
        raise UserError(f"root {root} is not MELD: it needs one CSV and clips of each split (train_sent_emo.csv, "
                        f"train/train_splits/dia0_utt0.mp4 and their like) and has {words}; it holds "
                        f"{files.listing(root)}; unpack MELD.Raw.tar.gz and the archives in it there")
    rows = [row for split in SPLITS for row in read_rows(tables[split][0], split)]
    paths = {row: clips.pop((row.split, row.dialogue, row.number), None) for row in rows}
    skipped += [Skipped(names[path], f"has no row in {split}_sent_emo.csv") for (split, *_), path in clips.items()]
    skipped += [Skipped(row.id, "has a row in the CSV, but no clip") for row, path in paths.items() if not path]
    surveyed = files.survey(settings, root, [path for path in paths.values() if path])
    skipped += [Skipped(names[path], file.fault) for path, file in surveyed.items() if file.fault]
    heard = {row: surveyed[path] for row, path in paths.items() if path and not surveyed[path].fault}
    dialogues = [_conversation(list(turns), paths, heard)
                 for _, turns in groupby(heard, lambda row: (row.split, row.dialogue))]
    fold = Fold(*(tuple(d.id for d in dialogues if d.session == split) for split in SPLITS))
    number = Counter((row.split, row.emotion) for row in heard)
    counts = tuple(Count(split, emotion, PUBLISHED[emotion][i], number[split, emotion])
                   for i, split in enumerate(SPLITS) for emotion in EMOTIONS)
    trained = {row.speaker for row in heard if row.split == "train"}
    known = [row.speaker in trained for row in heard if row.split == "test"] or [False]
    notes = ["The cast of Friends speaks in all three splits: "
             f"{100 * sum(known) / len(known):.0f} % of the test utterances are by speakers of the training."]
    if absent := sum(max(0, c.published - c.found) for c in counts):
        notes.append(f"{absent} of the {sum(c.published for c in counts)} published utterances are absent; those "
                     "with a row are listed among what was left out.")
    key = runs.key("meld", [[*astuple(row), file.sha256] for row, file in heard.items()],
                   [astuple(s) for s in skipped], runs.code_version(load))
    return Corpus("meld", tuple(dialogues), EMOTIONS, (fold,), tuple(skipped), key, tuple(notes), counts,
                  speaker_independent=False)


def read_rows(path: Path, split: str) -> list[Row]:
    """The rows of a CSV, ordered by dialogue and utterance.

    Raises UserError as `table.read`, and one that names every value that is none and every utterance that stands
    twice by its row.
    """
    cells, faults = table.read(path, COLUMNS)
    rows: dict[tuple[int, int], Row] = {}
    for line, values in cells.items():
        wrong = [f"{column} {values[column][:40]!r} is no value like {example!r}"
                 for column, (pattern, example) in COLUMNS.items() if not pattern.fullmatch(values[column])]
        if not wrong:
            start, end = (3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000 for h, m, s, ms in (
                TIME.fullmatch(values[column]).groups() for column in ("StartTime", "EndTime")))
            # U+0092 is what Windows' apostrophe becomes in copies that were read as Latin-1.
            speaker = " ".join(values["Speaker"].split()).translate({0x2019: "'", 0x92: "'"})
            row = Row(split, int(values["Dialogue_ID"]), int(values["Utterance_ID"]), speaker,
                      values["Emotion"].lower(), start, end)
            if rows.setdefault((row.dialogue, row.number), row) is not row:
                wrong = [f"dialogue {row.dialogue}, utterance {row.number} stands there a second time"]
        faults += [(line, words) for words in wrong]
    if faults:
        raise table.refusal(f"{path} has {len(faults)} fault(s); mend them, or fetch it again from "
                            "github.com/declare-lab/MELD:", faults)
    return [rows[place] for place in sorted(rows)]


def _clips(names: Mapping[Path, str]) -> tuple[dict[tuple[str, int, int], Path], list[Skipped]]:
    """(split, dialogue, utterance) -> the file to hear, and the files that are none."""
    clips, skipped, copies = {}, [], []
    for path in files.sounds(names):
        numbers = NAME.fullmatch(path.stem)
        splits = set(re.findall("[a-z]+", names[path].rpartition("/")[0].lower())) & set(SPLITS)
        if not numbers or len(splits) != 1:
            skipped.append(Skipped(names[path], "is not named like dia0_utt0 in a folder of train, dev or test"))
            continue
        place = (*splits, int(numbers[1]), int(numbers[2]))
        if clips.setdefault(place, path) is not path:
            copies.append(f"{names[clips[place]]} rather than {names[path]}")
    return clips, skipped + files.copies(copies)


def _conversation(rows: Sequence[Row], paths: Mapping[Row, Path | None],
                  heard: Mapping[Row, files.File]) -> Conversation:
    """One dialogue's turns after each other, each as long as its clip, with the pauses that the CSV has."""
    utterances, clock, ended = [], 0.0, rows[0].start
    for row in rows:
        start = clock + max(0.0, row.start - ended)
        clock, ended = start + heard[row].seconds, row.end
        utterances.append(Utterance(row.id, row.speaker, start, clock, row.emotion, Clip(paths[row])))
    return Conversation(f"{rows[0].split}_dia{rows[0].dialogue}", rows[0].split, tuple(utterances))
