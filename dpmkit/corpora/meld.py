"""MELD (Poria et al. 2019): dialogues of the series Friends, one video an utterance, seven emotions.

Layout, as MELD.Raw.tar.gz and the archives in it unpack: `train/train_splits/dia0_utt0.mp4`,
`dev/dev_splits_complete/…`, `test/output_repeated_splits_test/…`, and `train_sent_emo.csv`, `dev_…`, `test_…`.

- A CSV stands anywhere below the root (twice only where both are equal). Its rows are the utterances, in the order
  of Utterance_ID; numbers that it leaves out are MELD's own gaps. Speakers are as it has them, but for blanks and
  the kind of apostrophe.
- A clip is of the split that its folders name (`train`, `dev` or `test` as a word, so `train_wav` too), at any
  depth. Of several files of one clip the wav is heard, else the flac, else the video; then the first path.
- A clip is heard whole, be it 0.06 s or five minutes long, and its utterance lasts as long as it sounds: the CSV's
  times contradict many clips. They give no more than the pauses between turns, none where they run back.
- A clip that cannot be heard, a clip without a row and a row without a clip are listed as skipped; so are
  `final_videos_test…`, second cuts of test clips that MELD's authors say to ignore (declare-lab/MELD, issue 22).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path

from .. import audio, runs
from ..settings import Settings, UserError
from . import files, table
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance

SPLITS = ("train", "dev", "test")
PUBLISHED = {  # the README of declare-lab/MELD; train, dev, test
    "neutral": (4710, 470, 1256), "joy": (1743, 163, 402), "sadness": (683, 111, 208), "anger": (1109, 153, 345),
    "surprise": (1205, 150, 281), "fear": (268, 40, 50), "disgust": (271, 22, 68)}
EMOTIONS = tuple(PUBLISHED)
NAME = re.compile(r"dia([0-9]{1,6})_utt([0-9]{1,6})")
SECOND_CUT = "final_videos_test"
SOURCE = "fetch it again from github.com/declare-lab/MELD"
TIME = re.compile(r"([0-9]{1,2}):([0-9]{2}):([0-9]{2})[,.]([0-9]{1,3})")  # the last group counts milliseconds
COLUMNS = {  # what a row must hold, and in words what is wrong with another value
    "Speaker": (re.compile(r".+"), "no name"),
    "Emotion": (re.compile("|".join(EMOTIONS), re.IGNORECASE), f"none of {', '.join(EMOTIONS)}"),
    "Dialogue_ID": (re.compile(r"[0-9]{1,6}"), "no number"),
    "Utterance_ID": (re.compile(r"[0-9]{1,6}"), "no number"),
    "StartTime": (TIME, "no time like 00:16:16,059"),
    "EndTime": (TIME, "no time like 00:16:16,059")}


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

    Raises UserError for a root that lacks a split's clips or CSV, a CSV that cannot be read, and a split of which
    no clip can be heard. Single clips that are missing are skipped: `counts` and a note say how many.
    """
    root = settings.root_path
    names = dict(files.walk(root))
    clips, skipped = _clips(names)
    tables = _tables(root, names, {split for split, _, _ in clips})
    rows = [row for split in SPLITS for row in read_rows(tables[split], split)]
    paths = {row: clips.pop((row.split, row.dialogue, row.number), None) for row in rows}
    skipped += [Skipped(names[path], f"has no row in {tables[split].name}")
                for (split, _, _), path in clips.items()]
    surveyed = files.survey(settings, root, [path for path in paths.values() if path])
    heard = {}
    for row, path in paths.items():
        if path is None:
            skipped.append(Skipped(row.id, f"has a row in {row.split}_sent_emo.csv, but no clip"))
        elif surveyed[path].fault:
            skipped.append(Skipped(names[path], surveyed[path].fault))
        else:
            heard[row] = surveyed[path]
    for split in SPLITS:
        if split not in {row.split for row in heard}:
            faults = [f"{names[path]} {surveyed[path].fault}" for row, path in paths.items()
                      if path and row.split == split]
            raise UserError(f"no {split} clip below {root} has a row and can be heard "
                            f"({faults[0] if faults else 'none has a row'}); unpack MELD.Raw.tar.gz there again")
    dialogues = [_conversation(list(turns), paths, heard)
                 for _, turns in groupby(heard, lambda row: (row.split, row.dialogue))]
    fold = Fold(*(tuple(d.id for d in dialogues if d.session == split) for split in SPLITS))
    number = Counter((row.split, row.emotion) for row in heard)
    counts = tuple(Count(split, emotion, PUBLISHED[emotion][i], number[split, emotion])
                   for i, split in enumerate(SPLITS) for emotion in EMOTIONS)
    key = runs.key("meld", [[*astuple(row), file.sha256] for row, file in heard.items()],
                   [astuple(s) for s in skipped], runs.code_version(load))
    return Corpus("meld", tuple(dialogues), EMOTIONS, (fold,), tuple(skipped), key, _notes(heard, counts, skipped),
                  counts, speaker_independent=False)


def read_rows(path: Path, split: str) -> list[Row]:
    """The rows of a CSV, ordered by dialogue and utterance.

    Raises UserError for a table that cannot be read or lacks a column, and one that names every value that is none
    and every utterance that stands twice by its row.
    """
    read = table.read(path)
    if lacking := [column for column in COLUMNS if column not in read.header]:
        raise UserError(f"{path} has no column {', '.join(lacking)}, only {', '.join(read.header)[:200]}; {SOURCE}")
    rows, faults = {}, list(read.faults)
    for number, values in read.rows.items():
        wrong = [f"{column} {values[column][:40]!r} is {words}" for column, (pattern, words) in COLUMNS.items()
                 if not pattern.fullmatch(values[column])]
        if not wrong:
            row = _row(split, values)
            if (row.dialogue, row.number) in rows:
                wrong.append(f"dialogue {row.dialogue}, utterance {row.number} stands there a second time")
            rows[row.dialogue, row.number] = row
        faults += [(number, words) for words in wrong]
    if not read.rows and not faults:
        faults.append((read.top, "the header: no row stands below it"))
    if faults:
        raise table.refusal(path, faults, f"mend them, or {SOURCE}")
    return [rows[place] for place in sorted(rows)]


def _row(split: str, values: Mapping[str, str]) -> Row:
    """Values of the right form as a Row."""
    start, end = (3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000
                  for h, m, s, ms in (TIME.fullmatch(values[c]).groups() for c in ("StartTime", "EndTime")))
    # U+0092 is what Windows' apostrophe becomes in copies that were read as Latin-1.
    speaker = " ".join(values["Speaker"].split()).translate({0x2019: "'", 0x92: "'"})
    return Row(split, int(values["Dialogue_ID"]), int(values["Utterance_ID"]), speaker, values["Emotion"].lower(),
               start, end)


def _clips(names: Mapping[Path, str]) -> tuple[dict[tuple[str, int, int], Path], list[Skipped]]:
    """(split, dialogue, utterance) -> the file to hear, and the files that are none."""
    clips, skipped, others = {}, [], {}
    order = {suffix: i for i, suffix in enumerate(audio.SUFFIXES)}  # wav first, then flac
    sounds = [path for path in names if path.suffix.lower() in order]
    for path in sorted(sounds, key=lambda p: order[p.suffix.lower()]):  # stable: then by path
        item, numbers = names[path], NAME.fullmatch(path.stem)
        splits = set(re.findall("[a-z]+", item.rpartition("/")[0].lower())) & set(SPLITS)
        if path.stem.startswith(SECOND_CUT):
            skipped.append(Skipped(item, "is a second cut, which MELD's authors say to ignore"))
        elif numbers is None:
            skipped.append(Skipped(item, "is not named like dia0_utt0"))
        elif len(splits) != 1:
            skipped.append(Skipped(item, "is in no folder named train, dev or test, or in several"))
        else:
            place = (*splits, int(numbers[1]), int(numbers[2]))
            if clips.setdefault(place, path) != path:
                others.setdefault(place[0], []).append(f"{names[clips[place]]} rather than {item}")
    skipped += [Skipped(f"{len(pairs)} file(s) of {split}", "another file of the same clip is heard, a wav first: "
                        + pairs[0]) for split, pairs in others.items()]
    return clips, skipped


def _tables(root: Path, paths: Mapping[Path, str], splits: set[str]) -> dict[str, Path]:
    """split -> its CSV; UserError where one is missing, or the clips of a split are."""
    tables, lacking = {}, [f"clips of {split}" for split in SPLITS if split not in splits]
    for split in SPLITS:
        found = sorted((path for path in paths if path.name == f"{split}_sent_emo.csv"), key=lambda p: len(p.parts))
        if not found:
            lacking.append(f"{split}_sent_emo.csv")
            continue
        tables[split] = found[0]
        for other in found[1:]:
            if table.data(other) != table.data(found[0]):
                raise UserError(f"{found[0]} and {other} differ: leave one of them below the root")
    if lacking:
        raise UserError(f"root {root} is not MELD: it has no {', no '.join(lacking)}; expected train/train_splits/"
                        "dia0_utt0.mp4, train_sent_emo.csv and their like of dev and test, found "
                        f"{files.listing(root)}; unpack MELD.Raw.tar.gz and the archives in it there")
    return tables


def _conversation(rows: Sequence[Row], paths: Mapping[Row, Path | None],
                  heard: Mapping[Row, files.File]) -> Conversation:
    """One dialogue's turns after each other, each as long as its clip, with the pauses that the CSV has."""
    utterances, clock, ended = [], 0.0, rows[0].start
    for row in rows:
        start = clock + max(0.0, row.start - ended)
        clock, ended = start + heard[row].seconds, row.end
        utterances.append(Utterance(row.id, row.speaker, start, clock, row.emotion, Clip(paths[row])))
    return Conversation(f"{rows[0].split}_dia{rows[0].dialogue}", rows[0].split, tuple(utterances))


def _notes(heard: Mapping[Row, files.File], counts: Sequence[Count], skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """What a reader of results must know."""
    trained = {row.speaker for row in heard if row.split == "train"}
    known = [row.speaker in trained for row in heard if row.split == "test"]
    notes = ["The cast of Friends speaks in all three splits: "
             f"{100 * sum(known) / len(known):.0f} % of the test utterances are by speakers of the training."]
    if absent := sum(max(0, c.published - c.found) for c in counts):
        by_split = ", ".join(f"{split} {sum(max(0, c.published - c.found) for c in counts if c.group == split)}"
                             for split in SPLITS)
        notes.append(f"{absent} of the {sum(c.published for c in counts)} published utterances are absent "
                     f"({by_split}); those with a row are listed among what was left out.")
    if cuts := sum(Path(s.item).name.startswith(SECOND_CUT) for s in skipped):
        notes.append(f"The second cuts of {cuts} clip(s) ({SECOND_CUT}…) are not heard, as MELD's authors advise; "
                     "others report that they fit the labels better.")
    return tuple(notes)
