"""A recording of one's own through a trained SLLM: who sounds like what, turn by turn, as a table, as labels for a
player (WebVTT) and for Audacity, and as a page that plays it. No network, no labels; nothing is trained.
"""

from __future__ import annotations

import csv
import json
import mimetypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
SHORTEST = 0.1  # seconds of a turn: two or three codes
CAVEAT = ("What a small model that was trained on acted or synthetic speech says of how a turn sounds. It does not "
          "know what anyone feels; decide nothing about people by it.")


class Turn(BaseModel):
    """A row of a table of turns, in seconds."""

    start: NonNegativeFloat
    end: PositiveFloat
    speaker: table.Words = ""


def listen(settings: Settings, recording: Path, sllm: Path, out: Path, turns: Path | None = None,
           ) -> tuple[pd.DataFrame, list[Path]]:
    """What every turn of a recording sounds like to a trained SLLM with the memory of `settings`, as they come; of
    hours, in blocks that are not kept.

    Columns: start and end (seconds), speaker (empty where no table of `turns` says), emotion, p_<emotion> each, and
    loss (L_t). Turns are those of the table (CSV: start, end, speaker), or found by voice activity. Also the files
    that were written into `out`: CSV, WebVTT, Audacity's labels, and a page; while it runs, `….partial.csv` holds
    the turns so far. UserError for a recording that cannot be read or has no speech, a folder without an SLLM and
    its tokenizer, and a table of turns that is off.
    """
    sound, given = audio.Recording(recording), _given(turns) if turns else None
    model, tokenizer = opened(settings, sllm)
    memory = cheaper.memory(model, settings.memory)
    if given is None:
        spans = audio.find_speech(sound, settings.segments).assign(speaker="")
    else:
        spans = _within(given, sound.survey(), turns, recording)
    if spans.empty:
        raise UserError(f"no speech was found in {recording} ({_clock(sound.seconds)} of sound): lower the setting "
                        f"segments.threshold (now {settings.segments.threshold:g}) or segments.min_speech, or give "
                        "a table of turns")
    spoken = _clock((spans["end"] - spans["start"]).sum())
    print(f"{len(spans)} turn(s), {spoken} of speech in {_clock(sound.seconds)}", flush=True)
    codes = map(tokenizer.encode, sound.parts(zip(spans["start"], spans["end"], strict=True)))
    heard = memory.listen(codes, speakers=spans["speaker"])
    emotions, rows = model.vocabulary.emotions, []
    columns = [*spans, "emotion", *(f"p_{e}" for e in emotions), "loss"]
    with _kept(out / f"{files.plain(recording.stem)}.partial.csv", columns) as keep:
        told = tqdm(heard, desc=f"listen: {recording.name}", total=len(spans), unit="turn")
        for span, turn in zip(spans.itertuples(index=False), told, strict=True):
            p = turn.probabilities  # (emotions,)
            rows.append((*span, emotions[p.argmax()], *p.astype(float).round(4), turn.loss))
            keep(rows[-1])
        said = pd.DataFrame(rows, columns=columns)
        made = "SLLM of profile {profile}, trained on {corpus}".format_map(trained(sllm, settings.home_path)[1])
        return said, _written(said, emotions, recording, sound.seconds, made, out)


def trained(folder: Path | None, home: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of an SLLM (None: of the one below `home` that was trained last) and what it knows of its codes,
    with the profile and the corpus it was trained with. UserError, which says how to make one, where there is none.
    """
    cards = [*(home / "runs" / "sllm").glob(f"*/sllm/{CARD}")]
    if folder is None and not cards:
        raise UserError(f"no SLLM is trained below {home / 'runs'}: `make quick` trains one in five minutes; or "
                        "give a folder as --sllm")
    card = max(cards, key=lambda path: path.stat().st_mtime) if folder is None else folder / CARD
    if not card.is_file() and (folder / "sllm" / CARD).is_file():  # as it stands below runs/sllm
        card = folder / "sllm" / CARD
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))["codes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no trained SLLM (a readable {CARD} is missing): give the folder that "
                        "`python -m dpmkit train` prints, or none for the one trained last") from None
    if "settings" not in facts:
        raise UserError(f"{card.parent} does not say which codes its SLLM reads: train it again with this version")
    return card.parent, {"profile": "?", "corpus": "?"} | facts


def opened(settings: Settings, folder: Path) -> tuple[EmotionSLLM, Any]:
    """The SLLM of a folder that training has written, and its tokenizer, by what stands beside it."""
    folder, facts = trained(folder, settings.home_path)
    model = EmotionSLLM.load(folder, settings.home_path).to(device(settings))
    codes = {f"codes.{name}": value for name, value in facts["settings"].items()}
    tokenizer = tokenizers.create(settings.override(codes | {"codes.source": settings.codes.source}))
    tokenizer.load(folder)
    return model, tokenizer


def _given(path: Path) -> pd.DataFrame:
    """The turns of a table, by their start."""
    rows, faults = table.read(path, Turn)
    faults += [(number, f"its end, {row.end:g}, is not after its start, {row.start:g}, by {SHORTEST:g} s or more")
               for number, row in rows.items() if not row.end - row.start >= SHORTEST - 1e-9]
    table.refuse(path, faults, "mend them: start and end in seconds, speaker")
    found = pd.DataFrame(map(dict, rows.values())).sort_values("start", ignore_index=True)
    overlaps = int((found["start"].iloc[1:].to_numpy() < found["end"].cummax().iloc[:-1].to_numpy()).sum())
    if overlaps:
        print(f"{overlaps} turn(s) of {path} begin before another ends: each is heard with the other's voice in it")
    return found


def _within(spans: pd.DataFrame, length: float, path: Path, recording: Path) -> pd.DataFrame:
    """The turns of a table, which must begin within the recording; one that ends after it is cut there."""
    late = spans[spans["start"] > length - SHORTEST]
    if len(late):
        raise UserError(f"{path} has {len(late)} turn(s) from {late['start'].iloc[0]:g} s on, but {recording} ends "
                        f"after {length:.1f} s: it is another recording's, or not in seconds")
    if cut := int((spans["end"] > length + audio.ROUNDING).sum()):
        print(f"{cut} turn(s) of {path} end after the recording: cut at {length:.3f} s")
    return spans.assign(end=spans["end"].clip(upper=length))


@contextmanager
def _kept(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """A function that adds a row to a table on disk at once: a run that is killed leaves what it heard. Removed at
    the end of one that is not."""
    with runs.refused(f"cannot write {path}: name another folder, or free some disk"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115
    with file:
        def keep(row: Sequence[Any]) -> None:
            csv.writer(file).writerow(row)
            file.flush()

        keep(columns)
        yield keep
    path.unlink()


def _written(said: pd.DataFrame, emotions: Sequence[str], recording: Path, length: float, made: str,
             out: Path) -> list[Path]:
    """The table, the labels and the page, in `out`. `made`: what the page says of the SLLM."""
    turns = [(row, f"{row.speaker}: {row.emotion}" if row.speaker else row.emotion) for row in said.itertuples()]
    cues = [f"{_clock(row.start)} --> {_clock(row.end)}\n{text.replace('-->', '→')}\n" for row, text in turns]
    labels = [f"{row.start:.3f}\t{row.end:.3f}\t{text}\n" for row, text in turns]
    rows = [[*row[:3], emotions.index(row[3]), *row[4:4 + len(emotions)]] for row in said.itertuples(index=False)]
    page = Environment(loader=PackageLoader("dpmkit", "."), autoescape=True).get_template("listen.html.j2").render(
        name=recording.name, caveat=CAVEAT, rows=rows, length=length, emotions=emotions,
        source=Path(os.path.relpath(os.path.realpath(recording), os.path.realpath(out))).as_posix(),
        player="video" if (mimetypes.guess_type(recording.name)[0] or "").startswith("video") else "audio",
        summary=f"{len(said)} turns, {_clock((said['end'] - said['start']).sum())} of speech in {_clock(length)}; "
                f"{made}",
        spoken=any(said["speaker"]), colours=[COLOURS[i % len(COLOURS)] for i in range(len(emotions))])
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
