"""Weights of neural tokenizers: found in a local folder or on the hub, hashed, loaded or refused in one line.

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
from huggingface_hub import hf_hub_download

from ..settings import Settings, UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Checkpoint:
    """A transformers model: config and weights. `source` and `files` as of `find`."""

    source: str
    kind: type  # transformers' class of the model
    config: Any
    weights: Path
    files: dict[str, str]

    def model(self, device: torch.device) -> torch.nn.Module:
        """The model with these weights, in eval mode; UserError where they do not fit it."""
        with _quiet(), refused(f"{self.source}/{self.weights.name} holds no {self.kind.__name__} that loads"):
            model, found = self.kind.from_pretrained(
                self.weights.parent, local_files_only=True, output_loading_info=True, weights_only=True,
                use_safetensors=self.weights.name == WEIGHTS[0], dtype=torch.float32)
            # The embedding of masked frames is trained with, never encoded with, and some checkpoints lack it.
            missing = sorted(set(found["missing_keys"]) - {"masked_spec_embed"})
            if missing:
                raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
        return model.to(device).eval().requires_grad_(False)


def transformer(settings: Settings, name: str, default: str, *others: str) -> Checkpoint:
    """The checkpoint of transformers' class `name`, by default of the hub id `default`, with the files `others`
    beside config and weights; UserError for files that are missing and for a model of another type."""
    import transformers

    kind = getattr(transformers, name)
    source, paths = find(settings, default, ("config.json",), *((other,) for other in others), WEIGHTS)
    with _quiet(), refused(f"{source}/config.json is not that of a {name}"):
        written = json.loads(paths[0].read_text(encoding="utf-8"))
        if written.get("model_type") != kind.config_class.model_type:
            raise ValueError(f"its model_type is {written.get('model_type')}")
        config = kind.config_class.from_dict(written)
    return Checkpoint(source, kind, config, paths[-1], {path.name: sha256(path) for path in paths})


def find(settings: Settings, default: str, *asked: tuple[str, ...]) -> tuple[str, list[Path]]:
    """The hub id or the folder's name (never a path of this machine) of `codes.source`, empty: `default`; and of
    each of `asked` the first file that is there.

    A source is a local folder, relative ones from the project folder, or a hub id, whose cached copy goes before
    the network: offline, every question costs half a minute. Raises UserError for files that are missing.
    """
    source = settings.codes.source or default
    folder = settings.home_path / Path(source).expanduser()
    cure = f"put {', '.join(names[0] for names in asked)} of {default} into a folder and give it as codes.source"
    if folder.is_dir():
        called = folder.resolve().name
        paths = [next((folder / name for name in names if (folder / name).is_file()), None) for names in asked]
        if None in paths:
            raise UserError(f"codes.source: {called} has no {' or '.join(asked[paths.index(None)])}; {cure}")
        return called, paths
    if not HUB_ID.fullmatch(source):
        raise UserError(f"setting codes.source is {source!r}, which is neither a folder nor a hub id; {cure}")
    return source, [_from_hub(source, names, cure) for names in asked]


def _from_hub(source: str, names: tuple[str, ...], cure: str) -> Path:
    for cached in (True, False):
        for name in names:
            try:
                return Path(hf_hub_download(source, name, local_files_only=cached))
            except (OSError, ValueError) as error:
                why = " ".join(str(error).split())
    raise UserError(f"codes.source: {source} cannot be had from the hub ({why[:120]}…); {cure}")


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
        why = ("no " if isinstance(error, KeyError) else "") + " ".join(str(error).split())
        if isinstance(error, UnpicklingError):  # whose own words say how to run it all the same
            why = "it is damaged, or a pickle of more than tensors, which is not run"
        raise UserError(f"codes.source: {what} ({why[:200] or type(error).__name__}); fetch it again from its "
                        "source, or name another codes.source") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and its reports of weights that are not used."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
