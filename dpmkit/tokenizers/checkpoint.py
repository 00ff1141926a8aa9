"""Checkpoints of transformers models: found in a local folder or on the hub, hashed, loaded or refused in one line.

Weights are safetensors where there are any. `pytorch_model.bin`, all that some authors publish (WavLM's), is read
as plain tensors: torch's `weights_only` unpickler runs no code, and a pickle of anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..settings import Settings, UserError, on_disk

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Checkpoint:
    """`source` is a hub id or a folder's name, never a path of this machine; `files`: name -> sha256."""

    source: str
    folder: Path
    kind: type  # transformers' class of the model
    config: Any
    weights: str  # name of the file
    files: dict[str, str]

    def model(self, device: torch.device) -> torch.nn.Module:
        """The model with these weights, in eval mode; UserError where they do not fit it."""
        with _quiet(), refused(f"{self.source}/{self.weights} holds no {self.kind.__name__} that can be loaded"):
            model, found = self.kind.from_pretrained(
                self.folder, local_files_only=True, output_loading_info=True, weights_only=True,
                use_safetensors=self.weights == WEIGHTS[0], dtype=torch.float32)
            # The embedding of masked frames is trained with, never encoded with, and some checkpoints lack it.
            missing = sorted(set(found["missing_keys"]) - {"masked_spec_embed"})
            if missing:
                raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
        return model.to(device).eval().requires_grad_(False)


def find(settings: Settings, name: str, default: str, *others: str) -> Checkpoint:
    """The checkpoint of transformers' class `name` that `codes.source` gives (empty: `default`), with the files
    `others` beside config and weights.

    A source is a local folder, relative ones from the project folder, or a hub id, whose cached copy goes before
    the network. Raises UserError for files that are missing and for a model of another type.
    """
    import transformers

    kind = getattr(transformers, name)
    source = settings.codes.source or default
    folder = on_disk(settings.home_path / Path(source).expanduser())
    needed = f"config.json, {''.join(f'{name}, ' for name in others)}model.safetensors"
    cure = f"put {needed} of {default} into a folder and give it as codes.source"
    if not folder.is_dir() and not HUB_ID.fullmatch(source):
        raise UserError(f"setting codes.source is {source!r}, which is neither a folder nor a hub id; {cure}")
    asked = [("config.json",), *((other,) for other in others), WEIGHTS]
    paths = [fetch(folder if folder.is_dir() else source, names, cure) for names in asked]
    called = folder.resolve().name if folder.is_dir() else source
    with _quiet(), refused(f"{called}/config.json is not that of a {name}"):
        written = json.loads(paths[0].read_text(encoding="utf-8"))
        if written.get("model_type") != kind.config_class.model_type:
            raise ValueError(f"its model_type is {written.get('model_type')}")
        config = kind.config_class.from_dict(written)
    return Checkpoint(called, paths[0].parent, kind, config, paths[-1].name, {p.name: sha256(p) for p in paths})


def sha256(path: Path) -> str:
    """Of a file's bytes, once a process as long as size and time of change stay."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, *_stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever goes wrong in the block as one UserError: what libraries make of a wrong or damaged file is any
    exception at all."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        said = ("no " if isinstance(error, KeyError) else "") + " ".join(str(error).split())
        if isinstance(error, UnpicklingError):  # whose own words say how to run it all the same
            said = "it is damaged, or a pickle of more than tensors, which is not run"
        raise UserError(f"codes.source: {what} ({said[:200] or type(error).__name__}); fetch it again from its "
                        "source, or name another codes.source") from error


def fetch(source: Path | str, names: tuple[str, ...], cure: str) -> Path:
    """The first of the files `names` that a folder or a hub id has; UserError, which ends with `cure`, for none.

    A hub's cache goes before the network: offline, every question costs half a minute.
    """
    if isinstance(source, Path):
        found = next((source / name for name in names if (source / name).is_file()), None)
        if found is None:
            raise UserError(f"codes.source: {source.resolve().name} has no {' or '.join(names)}; {cure}")
        return found
    from transformers.utils import cached_file

    for cached in (True, False):
        for name in names:
            try:
                return Path(cached_file(source, name, local_files_only=cached))
            except (OSError, ValueError) as error:
                said = " ".join(str(error).split())
    raise UserError(f"codes.source: {source} cannot be had from the hub ({said[:120]}…); {cure}")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and its reports of weights that are not used."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
