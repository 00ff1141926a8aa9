"""One JSON record a run: what came out, and all that it came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from . import runs
from .settings import Settings, UserError

KINDS = ("data", "backbone", "methods", "ablations", "context")  # notebooks 01 to 05
PACKAGES = ("dpmkit", "torch", "transformers", "peft", "accelerate", "torchaudio", "numpy", "pandas",
            "scikit-learn", "papermill", "espeakng-loader", "soundfile", "av", "silero-vad", "s3tokenizer")
# What may differ between two equal runs: when, how fast, from which commit.
TIMED = frozenset({"made", "seconds", "commit", "cost", "real_time_factor", "machine", "bench", "peak_bytes",
                   "origins", "seconds_a_sentence", "seconds_an_hour", "protocol_seconds", "crossings"})


# The committed results, absent where the package alone is installed; a user's own stand in `Settings.own_path`.
REFERENCE = Path(__file__).resolve().parent.parent / "results"


def path(settings: Settings, kind: str) -> Path:
    """Where a record is written: <profile>-<corpus>/records/<kind>-<run name>.json of a user's own results."""
    return settings.results_path / "records" / f"{kind}-{settings.run_name}.json"


def save(settings: Settings, kind: str, results: dict[str, Any], inputs: dict[str, str], seconds: float) -> Path:
    """Write a record; `inputs` are the keys of the artefacts that it was made from, `seconds` the wall time of the
    notebook (short where artefacts were reused); `origins` says which packages, machine and commit made each of
    them, where these were not the record's own. Returns its path."""
    if kind not in KINDS:
        raise ValueError(f"record kind {kind!r} is not known; choose one of {', '.join(KINDS)}")
    record = _record(settings, kind, results, seconds)
    origins = {name: {k: v for k, v in runs.made(settings, key).items() if v != record[k]}
               for name, key in inputs.items()}
    runs.write_json(path(settings, kind), record | {"inputs": inputs, "origins": origins})
    return path(settings, kind)


def save_bench(settings: Settings, name: str, results: dict[str, Any], seconds: float) -> Path:
    """Write bench/<name>-<profile>.json (with changed settings their digits) of a user's results; its path."""
    target = settings.own_path / _bench_name(settings, name)
    runs.write_json(target, _record(settings, f"bench {name}", results, seconds))
    return target


def _bench_name(settings: Settings, name: str) -> str:
    return f"bench/{name}-{settings.profile}{settings.variant}.json"


def _record(settings: Settings, kind: str, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    flat = {name: settings.shown(name, value) for name, value in settings.flat().items() if name != "home"}
    return {"kind": kind, "profile": settings.profile, "corpus": settings.corpus, "fold": settings.fold,
            "seed": settings.seed, "run": settings.run_name,
            "changed": _plain({name: flat[name] for name in settings.changed}),
            "results": _plain(results), "settings": _plain(flat), "packages": packages(),
            "machine": machine(), "commit": commit(), "seconds": round(seconds, 1),
            "made": datetime.now(UTC).isoformat(timespec="seconds")}


def run_of(record: dict[str, Any]) -> str:
    """The run name of a record; those made before settings had a part in it are of a profile's own values."""
    return record.get("run", f"fold{record['fold']}-seed{record['seed']}")


def load(settings: Settings, kind: str) -> dict[str, Any]:
    """The record that `save` wrote; UserError names the notebook that makes it."""
    if not (target := path(settings, kind)).is_file():
        raise UserError(f"record {target.name} is absent: run notebook {KINDS.index(kind) + 1:02d} with the same "
                        "profile, corpus, fold, seed and settings first")
    return read(target)


def load_bench(settings: Settings, name: str) -> dict[str, Any] | None:
    """The bench of these settings, the user's own before the reference's; None where neither is there."""
    for root in (settings.own_path, REFERENCE):
        if (target := root / _bench_name(settings, name)).is_file():
            return read(target)
    return None


def benches(root: Path) -> dict[str, dict[str, Any]]:
    """File name -> bench record, below a folder of results."""
    return {p.name: read(p) for p in sorted((root / "bench").glob("*.json"))}


def load_all(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every record below a folder of results in order of its path, each run once; and the files that do not count,
    as their names are not those of their runs: copies."""
    made, copies = [], []
    for file in sorted(root.glob("*/records/*.json")):
        record = read(file)
        name = f"{record['profile']}-{record['corpus']}/records/{record['kind']}-{run_of(record)}.json"
        if file == root / name:
            made.append(record)
        else:
            copies.append(file.relative_to(root).as_posix())
    return made, copies


def processors(root: Path) -> list[dict[str, Any]]:
    """What other processors made of runs: <profile>-<corpus>/processors/<machine>/methods-<run name>.json."""
    return [read(p) for p in sorted(root.glob("*/processors/*/methods-*.json"))]


def read(file: Path) -> dict[str, Any]:
    """A record; UserError names a file that is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if {"kind", "profile", "corpus", "fold", "seed", "results"} <= record.keys():
            return record
        reason = "it lacks kind, profile, corpus, fold, seed or results"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"{file} is no record ({reason}): move it away, or run its notebook again")


def without_times(record: Any) -> Any:
    """A record less what two equal runs may differ in."""
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if k not in TIMED}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def machine() -> dict[str, Any]:
    """What the run ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": gpu, "python": platform.python_version()}


def commit() -> str:
    """The checkout's commit, with `+changes` where the code differs from it; `unknown` outside a checkout."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "dpmkit", "notebooks", "requirements.lock")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def packages() -> dict[str, str]:
    """The versions of PACKAGES, less extras that are not installed."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _plain(value: Any) -> Any:
    """`value` as JSON knows it; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict("records"))
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
