"""A recording of one's own through a trained SLLM: who sounds like what, turn by turn, as a table, as labels for a
player (WebVTT) and for Audacity, and as a page that plays it. No network, no labels; nothing is trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, NonNegativeFloat, PositiveFloat
from tqdm.auto import tqdm

from . import audio, cheaper, runs, tokenizers
from .corpora import files, table
from .machine import device
from .settings import Settings, UserError
from .sllm import CARD, EmotionSLLM

COLOURS = ("#8da0cb", "#e5c494", "#66c2a5", "#fc8d62", "#e78ac3", "#a6d854", "#ffd92f", "#b3b3b3")
CAVEAT = ("What a small model that was trained on acted or synthetic speech says of how a turn sounds. It does not "
          "know what anyone feels; decide nothing about people by it.")


class Turn(BaseModel):
    """A row of a table of turns, in seconds."""

    start: NonNegativeFloat
    end: PositiveFloat
    speaker: table.Words = ""


def listen(settings: Settings, recording: Path, sllm: Path, out: Path, turns: Path | None = None,
           ) -> tuple[pd.DataFrame, list[Path]]:
    """What every turn of a recording sounds like to a trained SLLM with the memory of `settings`, as they come.

    Columns: start and end (seconds), speaker (empty where no table of `turns` says), emotion, p_<emotion> each, and
    loss (L_t). Turns are those of the table (CSV: start, end, speaker), or found by voice activity. Also the files
    that were written into `out`: CSV, WebVTT, Audacity's labels, and a page. UserError for a recording that cannot
    be read or has no speech, a folder without an SLLM and its tokenizer, and a table of turns that is off.
    """
    model, tokenizer = opened(settings, sllm)
    spans = _given(turns) if turns else audio.find_speech(recording, settings.segments).assign(speaker="")
    length = audio.load(recording).seconds
    if late := [row.start for row in spans.itertuples() if row.start >= length]:
        raise UserError(f"{turns} has a turn at {late[0]:g} s, but {recording} ends after {length:.1f} s")
    if spans.empty:
        raise UserError(f"no speech was found in {recording}: lower the setting segments.threshold (now "
                        f"{settings.segments.threshold:g}) or segments.min_speech, or give a table of turns")
    spoken = (tokenizer.encode(audio.read(recording, row.start, min(row.end, length)))
              for row in spans.itertuples())
    heard = cheaper.memory(model, settings.memory).listen(spoken, speakers=spans["speaker"])
    answers = list(tqdm(heard, desc=f"listen: {recording.name}", total=len(spans), unit="turn"))
    emotions, p = model.vocabulary.emotions, np.stack([turn.probabilities for turn in answers])  # (turns, emotions)
    said = spans.assign(emotion=[emotions[i] for i in p.argmax(1)],
                        **{f"p_{e}": p[:, i].round(4) for i, e in enumerate(emotions)},
                        loss=[turn.loss for turn in answers])
    return said, _written(said, emotions, recording, out)


def opened(settings: Settings, folder: Path) -> tuple[EmotionSLLM, Any]:
    """The SLLM of a folder that training has written, and its tokenizer, by what stands beside it."""
    model = EmotionSLLM.load(folder, settings.home_path).to(device(settings))
    facts = json.loads((folder / CARD).read_text(encoding="utf-8"))["codes"]
    if "settings" not in facts:
        raise UserError(f"{folder} does not say which codes its SLLM reads: train it again with this version")
    codes = {f"codes.{name}": value for name, value in facts["settings"].items()}
    tokenizer = tokenizers.create(settings.override(codes | {"codes.source": settings.codes.source}))
    tokenizer.load(folder)
    return model, tokenizer


def _given(path: Path) -> pd.DataFrame:
    """The turns of a table, by their start."""
    rows, faults = table.read(path, Turn)
    faults += [(number, f"its end, {row.end:g}, is not after its start, {row.start:g}")
               for number, row in rows.items() if row.end <= row.start]
    table.refuse(path, faults, "mend them: start and end in seconds, speaker")
    found = pd.DataFrame(map(dict, rows.values())).sort_values("start", ignore_index=True)
    overlaps = int((found["start"].iloc[1:].to_numpy() < found["end"].cummax().iloc[:-1].to_numpy()).sum())
    if overlaps:
        print(f"{overlaps} turn(s) of {path} begin before another ends: each is heard with the other's voice in it")
    return found


def _written(said: pd.DataFrame, emotions: Sequence[str], recording: Path, out: Path) -> list[Path]:
    """The table, the labels and the page, in `out`."""
    turns = [(row, f"{row.speaker}: {row.emotion}" if row.speaker else row.emotion) for row in said.itertuples()]
    cues = [f"{_clock(row.start)} --> {_clock(row.end)}\n{text.replace('-->', '→')}\n" for row, text in turns]
    labels = [f"{row.start:.3f}\t{row.end:.3f}\t{text}\n" for row, text in turns]
    source = Path(os.path.relpath(os.path.realpath(recording), os.path.realpath(out))).as_posix()
    template = Environment(loader=PackageLoader("dpmkit", "."), autoescape=True).get_template("listen.html.j2")
    page = template.render(
        name=recording.name, source=source, caveat=CAVEAT, rows=said.to_dict("records"), clock=_clock,
        length=float(said["end"].max()), colours=dict(zip(emotions, COLOURS * len(emotions), strict=False)))
    written = {".csv": said.to_csv(index=False), ".vtt": "\n".join(["WEBVTT\n", *cues]), ".txt": "".join(labels),
               ".html": page}
    paths = [out / f"{files.plain(recording.stem)}{suffix}" for suffix in written]
    for path, text in zip(paths, written.values(), strict=True):
        with runs.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _clock(seconds: float) -> str:
    """As WebVTT writes it: hours, minutes, seconds and their thousandths."""
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}.{whole % 1000:03d}"
