"""One JSON record per notebook and run: what came out and all that it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic_core import to_jsonable_python

from . import machine, runs
from .settings import Settings, UserError

NEEDED = {"kind", "profile", "corpus", "fold", "seed", "run", "changed", "results"}
KINDS = ("data", "backbone", "methods", "ablations", "context")  # notebooks 01 to 05
# The committed results, absent where the package alone is installed; a user's own stand in `Settings.own_path`.
REFERENCE = Path(__file__).resolve().parent.parent / "results"


def path(settings: Settings, kind: str) -> Path:
    """Where a record is written: <profile>-<corpus>/records/<kind>-<run name>.json of a user's own results."""
    return settings.results_path / "records" / f"{kind}-{settings.run_name}.json"


def save(settings: Settings, kind: str, results: dict[str, Any], inputs: dict[str, str], seconds: float) -> Path:
    """Write a record; its path. `inputs`: the keys of the artefacts that it was made from; its `origins` says which
    packages, machine and commit made each of them, where these were not the record's own."""
    record = _record(settings, kind, results, seconds)
    origins = {name: {k: v for k, v in runs.made(settings, key).items() if v != record[k]}
               for name, key in inputs.items()}
    runs.write_json(path(settings, kind), record | {"inputs": inputs, "origins": origins})
    return path(settings, kind)


def save_answers(record: Path, answers: Mapping[str, pd.DataFrame]) -> Path:
    """Write the predictions that a record was made from beside it, as .parquet; its path. A row for each method (or
    what else `answers` names) and utterance: method, conversation, utterance, speaker, turn, emotion (the true
    one), and p_<emotion> of each emotion, float32."""
    target, table = record.with_suffix(".parquet"), pd.concat(answers, names=["method"])
    p = table.filter(like="p_").astype("float32")
    table = table[["conversation", "utterance", "speaker", "turn", "emotion"]].join(p).reset_index("method")
    with runs.atomic(target) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")
    return target


def load_answers(root: Path, record: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Method -> the predictions beside a record below a folder of results; empty where there are none."""
    file = root / _name(record).with_suffix(".parquet")
    return dict(iter(pd.read_parquet(file).groupby("method", sort=False))) if file.is_file() else {}


def save_bench(settings: Settings, name: str, results: dict[str, Any], seconds: float) -> Path:
    """Write bench/<name>-<profile>.json (with changed settings their digits) of a user's results; its path."""
    target = _bench_path(settings.own_path, settings, name)
    runs.write_json(target, _record(settings, f"bench {name}", results, seconds))
    return target


def _bench_path(root: Path, settings: Settings, name: str) -> Path:
    return root / "bench" / f"{name}-{settings.profile}{settings.variant}.json"


def shown(settings: Settings, name: str, value: Any) -> Any:
    """The value of a setting as records and pages show it: of a path of this machine its name alone."""
    path = Path(str(value)).expanduser()
    local = path.is_absolute() or (settings.home_path / path).exists()
    named = name in ("root", "conversation.sequences") or (name.endswith(".source") and local)
    return "" if name == "home" else path.name if named else value


def _record(settings: Settings, kind: str, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    flat = {name: shown(settings, name, value) for name, value in settings.flat().items() if name != "home"}
    return {"kind": kind, "profile": settings.profile, "corpus": settings.corpus, "fold": settings.fold,
            "seed": settings.seed, "run": settings.run_name,
            "changed": _plain({name: flat[name] for name in settings.changed}),
            "results": _plain(results), "settings": _plain(flat), **machine.origin(),
            "seconds": round(seconds, 1), "made": datetime.now(UTC).isoformat(timespec="seconds")}


def _plain(value: Any) -> Any:
    """`value` as JSON knows it; NaN becomes null."""
    def listed(other: pd.DataFrame | np.ndarray | np.generic) -> Any:
        return other.to_dict("records") if isinstance(other, pd.DataFrame) else other.tolist()

    return to_jsonable_python(value, inf_nan_mode="null", fallback=listed)


def load(settings: Settings, kind: str) -> dict[str, Any]:
    """The record that `save` wrote; UserError names the notebook that makes it."""
    if not (target := path(settings, kind)).is_file():
        raise UserError(f"record {target.name} is absent: run notebook {KINDS.index(kind) + 1:02d} with the same "
                        "profile, corpus, fold, seed and settings first")
    return read(target)


def load_bench(settings: Settings, name: str) -> dict[str, Any] | None:
    """The bench of these settings, the user's own before the reference's; None where neither is there, or the
    profile's backbone or memory was another when it was measured."""
    asked = _plain({name: of for name, of in settings.flat().items() if name.startswith(("backbone.", "memory."))})
    return next((record for record in of_bench(settings, name)
                 if all(record["settings"].get(name, of) == of for name, of in asked.items())), None)


def of_bench(settings: Settings, name: str) -> Iterator[dict[str, Any]]:
    """What was measured in a profile, the user's own before the reference's."""
    files = (_bench_path(root, settings, name) for root in (settings.own_path, REFERENCE))
    return (read(file) for file in files if file.is_file())


def benches(root: Path) -> dict[str, dict[str, Any]]:
    """File name -> bench record, below a folder of results."""
    return {p.name: read(p) for p in sorted((root / "bench").glob("*.json"))}


def load_all(root: Path) -> list[dict[str, Any]]:
    """Every record below a folder of results; UserError names a copy, which would count twice."""
    made = []
    for file in sorted(root.glob("*/records/*.json")):
        record = read(file)
        name = _name(record)
        if file != root / name:
            raise UserError(f"{file} is a copy of {name} by what it holds: move it away, or back to its name")
        made.append(record)
    return made


def _name(record: Mapping[str, Any]) -> Path:
    """A record's place below a folder of results."""
    return Path(f"{record['profile']}-{record['corpus']}/records/{record['kind']}-{record['run']}.json")


def read(file: Path) -> dict[str, Any]:
    """A record; UserError names a file that is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not (isinstance(record, dict) and NEEDED <= record.keys()):
        raise UserError(f"{file} is no record: move it away, or run its notebook again")
    return record


def publish(own: Path, root: Path) -> list[str]:
    """Copy own results, but those of `smoke`, over the reference at `root`; their names, UserError for none."""
    def copy(source: str, target: str) -> None:
        with runs.atomic(Path(target)) as temporary:
            shutil.copyfile(source, temporary)

    names = [f"{r['profile']}-{r['corpus']} {r['kind']} {r['run']}"
             for r in (*load_all(own), *benches(own).values()) if r["profile"] != "smoke"]
    if not names:
        raise UserError(f"{own} holds nothing to publish: run `make reproduce` first (smoke is not published)")
    left_out = shutil.ignore_patterns("README.md", "smoke-*", "*-smoke*", ".*")
    shutil.copytree(own, root, ignore=left_out, copy_function=copy, dirs_exist_ok=True)
    return names
