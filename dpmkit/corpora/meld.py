"""MELD (Poria et al. 2019): dialogues of the series Friends, one video an utterance, seven emotions.

Layout, as MELD.Raw.tar.gz and the archives in it unpack: `train/train_splits/dia0_utt0.mp4`,
`dev/dev_splits_complete/…`, `test/output_repeated_splits_test/…`, and `train_sent_emo.csv`, `dev_…`, `test_…`.

- A CSV stands anywhere below the root. Numbers that it leaves out are MELD's own gaps. Its times contradict many
  clips and are not read: a clip is heard whole, and turns follow one another.
- A clip is of the split that its folders name (`train`, `dev` or `test` as a word, so `train_wav` too), at any
  depth. Of several files of one clip a wav is heard before a flac, before a video; then the first path.
- Files of other names, among them `final_videos_test…`, second cuts that MELD's authors say to ignore
  (declare-lab/MELD, issue 22), clips that cannot be heard or have no row, and rows without a clip are skipped.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, NonNegativeInt

from .. import runs
from ..settings import Settings, UserError
from . import files, table
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, in_turn

SPLITS = ("train", "dev", "test")
PUBLISHED = {  # the README of declare-lab/MELD; train, dev, test
    "neutral": (4710, 470, 1256), "joy": (1743, 163, 402), "sadness": (683, 111, 208), "anger": (1109, 153, 345),
    "surprise": (1205, 150, 281), "fear": (268, 40, 50), "disgust": (271, 22, 68)}
EMOTIONS = tuple(PUBLISHED)
NAME = re.compile(r"dia([0-9]{1,6})_utt([0-9]{1,6})")
Place = tuple[str, int, int]  # split, dialogue, utterance


class Row(BaseModel):
    """What is read of a row of a CSV."""

    Speaker: table.Name
    Emotion: Annotated[Literal[EMOTIONS], BeforeValidator(str.lower)]
    Dialogue_ID: NonNegativeInt
    Utterance_ID: NonNegativeInt


def load(settings: Settings) -> Corpus:
    """The dialogues below `settings.root`; the official split is the one fold, its dev the validation.

    Raises UserError for a root that lacks a split's clips or CSV, and for a CSV that cannot be read. Single clips
    that are missing are skipped: `counts` and a note say how many.
    """
    root = settings.root_path
    names = dict(files.walk(root))
    clips, skipped = _clips(names)
    tables = {split: [path for path in names if path.name == f"{split}_sent_emo.csv"] for split in SPLITS}
    lacking = [split for split in SPLITS
               if len(tables[split]) != 1 or not any(place[0] == split for place in clips)]
    if lacking:
        raise UserError(f"root {root} is not MELD: it needs one CSV and clips of each split (train_sent_emo.csv, "
                        f"train/train_splits/dia0_utt0.mp4 and their like), and {', '.join(lacking)} has not, or "
                        f"has several; it holds {files.listing(root)}; unpack MELD.Raw.tar.gz and the archives in "
                        "it there")
    rows = {place: row for split in SPLITS for place, row in read_rows(tables[split][0], split).items()}
    surveyed = files.survey(settings, root, [clips[place] for place in rows if place in clips])
    turns, number = defaultdict(list), Counter()
    for (split, dialogue, utterance), row in rows.items():
        path, own = clips.pop((split, dialogue, utterance), None), f"{split}_dia{dialogue}_utt{utterance}"
        if not path:
            skipped.append(Skipped(own, "has a row in the CSV, but no clip"))
        elif surveyed[path].fault:
            skipped.append(Skipped(names[path], surveyed[path].fault))
        else:
            turns[split, f"{split}_dia{dialogue}"].append(
                Utterance(own, row.Speaker, 0.0, surveyed[path].seconds, row.Emotion, Clip(path)))
            number[split, row.Emotion] += 1
    skipped += [Skipped(names[path], f"has no row in {split}_sent_emo.csv") for (split, *_), path in clips.items()]
    dialogues = tuple(Conversation(name, split, in_turn(own)) for (split, name), own in turns.items())
    fold = Fold(*(tuple(d.id for d in dialogues if d.session == split) for split in SPLITS))
    counts = tuple(Count(split, emotion, PUBLISHED[emotion][i], number[split, emotion])
                   for i, split in enumerate(SPLITS) for emotion in EMOTIONS)
    notes = ["The cast of Friends speaks in all three splits: most voices of the test were trained on."]
    if absent := sum(max(0, c.published - c.found) for c in counts):
        notes.append(f"{absent} of the {sum(c.published for c in counts)} published utterances are absent; those "
                     "with a row are listed among what was left out.")
    content = [[u.id, u.speaker, u.emotion, surveyed[u.audio.path].sha256] for d in dialogues for u in d.utterances]
    key = runs.key("meld", content, skipped, runs.code_version(load))
    return Corpus("meld", dialogues, EMOTIONS, (fold,), tuple(skipped), key, tuple(notes), counts,
                  speaker_independent=False)


def read_rows(path: Path, split: str) -> dict[Place, Row]:
    """The rows of a CSV, ordered by dialogue and utterance.

    Raises UserError as `table.read`, and one that names every value that is none and every utterance that stands
    twice by its row.
    """
    cells, faults = table.read(path, Row)
    rows: dict[Place, Row] = {}
    for line, row in cells.items():
        if rows.setdefault((split, row.Dialogue_ID, row.Utterance_ID), row) is not row:
            faults.append((line, f"utterance {row.Utterance_ID} of dialogue {row.Dialogue_ID} stands there twice"))
    table.refuse(path, faults, "mend them, or fetch it again from github.com/declare-lab/MELD")
    return dict(sorted(rows.items(), key=lambda item: item[0]))


def _clips(names: Mapping[Path, str]) -> tuple[dict[Place, Path], list[Skipped]]:
    """The file to hear of each place, and the files that are none."""
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
