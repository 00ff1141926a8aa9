"""One JSON record a run: what came out, and all that it came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
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
                   "seconds_a_sentence", "seconds_an_hour", "protocol_seconds", "crossings"})


def path(settings: Settings, kind: str) -> Path:
    """Where the record of a kind stands: results/<profile>-<corpus>/records/<kind>-fold1-seed0.json."""
    return settings.results_path / "records" / f"{kind}-{settings.run_name}.json"


def save(settings: Settings, kind: str, results: dict[str, Any], inputs: dict[str, str], seconds: float) -> Path:
    """Write a record; `inputs` are the keys of the artefacts that it was made from, `seconds` the wall time of the
    notebook (short where artefacts were reused). Returns its path."""
    if kind not in KINDS:
        raise ValueError(f"record kind {kind!r} is not known; choose one of {', '.join(KINDS)}")
    runs.write_json(path(settings, kind), _record(settings, kind, results, seconds) | {"inputs": inputs})
    return path(settings, kind)


def save_bench(settings: Settings, name: str, results: dict[str, Any], seconds: float) -> Path:
    """Write results/bench/<name>.json, a bench's record; returns its path."""
    target = settings.home_path / "results" / "bench" / f"{name}.json"
    runs.write_json(target, _record(settings, f"bench {name}", results, seconds))
    return target


def _record(settings: Settings, kind: str, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    flat = settings.flat()
    flat.pop("home")  # machine paths do not belong in a record: the root keeps its folder's name
    flat["root"] = Path(flat["root"]).name
    for name in ("backbone.source", "codes.source"):
        if Path(flat[name]).is_absolute():
            flat[name] = Path(flat[name]).name
    return {"kind": kind, "profile": settings.profile, "corpus": settings.corpus, "fold": settings.fold,
            "seed": settings.seed, "results": _plain(results), "settings": _plain(flat),
            "packages": dict(_versions()),
            "machine": machine(), "commit": commit(), "seconds": round(seconds, 1),
            "made": datetime.now(UTC).isoformat(timespec="seconds")}


def load(settings: Settings, kind: str) -> dict[str, Any]:
    """The record that `save` wrote; UserError names the notebook that makes it."""
    target = path(settings, kind)
    try:
        return json.loads(target.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        number = KINDS.index(kind) + 1
        raise UserError(f"record {target.name} is absent or unreadable: run notebook {number:02d} with the same "
                        "profile, corpus, fold and seed first") from error


def load_bench(home: Path, name: str, profile: str = "") -> dict[str, Any] | None:
    """The record that `save_bench` wrote below `home`, of this profile or (empty) any; or None."""
    with suppress(OSError, ValueError):
        made = json.loads((home / "results" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
        return made if profile in ("", made["profile"]) else None
    return None


def load_all(home: Path) -> list[dict[str, Any]]:
    """Every record below `home`/results, in order of its path."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(home.glob("results/*/records/*.json"))]


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


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra that is not installed
            yield name, importlib.metadata.version(name)


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
