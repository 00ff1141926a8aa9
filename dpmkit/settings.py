"""What a run is made of: frozen settings, four profiles, and one kind of error for the user's mistakes.

A profile (`smoke`, `demo`, `smollm2`, `paper`) is a set of values, never another path through the code. Any
value can be overridden by its dotted name, e.g. ``Settings.of("demo", {"memory.lr": 1e-3})``; a name that does
not exist is refused, with the known ones listed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .profiles import CHOICES, PROFILES, RANGES
from .sections import (
    AblationSettings,
    BackboneSettings,
    ClassifierSettings,
    CodesSettings,
    ContextSettings,
    ConversationSettings,
    EvaluationSettings,
    FinetuneSettings,
    GridSettings,
    MemorySettings,
    RecurrentSettings,
    SegmentsSettings,
    SourceSettings,
    SpeakerSettings,
)


class UserError(ValueError):
    """A mistake that the user can mend: one line that names the file or setting and the cure.

    The command line prints it and exits with code 2; nothing has been half-written.
    """


PATHS = ("home", "root", "codes.source", "backbone.source")  # are opened by their bytes: see `on_disk`


def plain(text: str) -> str:
    """One word, one string: precomposed (NFC), as most type it; macOS names files decomposed."""
    return unicodedata.normalize("NFC", text)


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


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Build it with `Settings.of`; relative roots start at `home`."""

    profile: str = "demo"
    corpus: str = "demo"
    root: str = ""
    fold: int = 1
    seed: int = 0
    home: str = ""  # where runs/ and results/ live; empty: this checkout, or the working directory
    device: str = "auto"
    conversation: ConversationSettings = field(default_factory=ConversationSettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    segments: SegmentsSettings = field(default_factory=SegmentsSettings)
    codes: CodesSettings = field(default_factory=CodesSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    recurrent: RecurrentSettings = field(default_factory=RecurrentSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    speaker: SpeakerSettings = field(default_factory=SpeakerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    ablation: AblationSettings = field(default_factory=AblationSettings)
    context: ContextSettings = field(default_factory=ContextSettings)
    grid: GridSettings = field(default_factory=GridSettings)

    @classmethod
    def of(cls, profile: str = "demo", overrides: dict[str, Any] | None = None, **named: Any) -> Settings:
        """The settings of a profile, with overrides by dotted name (`{"memory.lr": 1e-3}`).

        Raises UserError for an unknown profile, an unknown name, or a value of the wrong type or range.
        """
        if profile not in PROFILES:
            raise UserError(f"profile {profile!r} is not known; choose one of {', '.join(PROFILES)}")
        values = {**PROFILES[profile], **named, **(overrides or {})}
        if values.get("profile", profile) != profile:
            raise UserError(f"setting profile is {values['profile']!r}, but the values are those of {profile!r}: "
                            "name one profile, before the overrides")
        settings = cls(profile=profile)
        for name, value in values.items():
            settings = settings.replace(name, value)
        return settings.checked()

    def replace(self, name: str, value: Any) -> Settings:
        """A copy with one value changed, by dotted name; UserError names the known ones."""
        if name not in self.flat():
            raise UserError(f"setting {name!r} is not known; known settings: {', '.join(sorted(self.flat()))}")
        section, _, leaf = name.rpartition(".")
        owner = getattr(self, section) if section else self
        value = _typed(name, getattr(owner, leaf or name), value)
        if name == "home" and value:
            # Once, here: a kernel works in another folder.
            value = os.fspath(on_disk(Path(os.path.abspath(os.path.expanduser(value)))))
        elif isinstance(value, str) and name not in PATHS:
            value = plain(value)
        changed = dataclasses.replace(owner, **{leaf or name: value})
        return dataclasses.replace(self, **{section: changed}) if section else changed

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value, for records and messages."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if dataclasses.is_dataclass(value):
                out.update({f"{f.name}.{g.name}": getattr(value, g.name) for g in dataclasses.fields(value)})
            else:
                out[f.name] = value
        return out

    def checked(self) -> Settings:
        """Itself, or a UserError for values that cannot work together."""
        for name, value in self.flat().items():
            if name not in RANGES:
                continue
            words, fits = RANGES[name]
            if not all(fits(v) for v in (value if isinstance(value, tuple) else (value,))):
                raise UserError(f"setting {name} must be {words}, not {value}")
        if self.conversation.min_turns > self.conversation.max_turns:
            raise UserError("setting conversation.min_turns must not exceed conversation.max_turns")
        for name, choices in CHOICES.items():
            if self.flat()[name] not in choices.split():
                raise UserError(f"setting {name} must be one of {', '.join(choices.split())}, "
                                f"not {self.flat()[name]!r}")
        if self.memory.precision not in ("", "float32", "bfloat16"):
            raise UserError("setting memory.precision must be empty, float32 or bfloat16, "
                            f"not {self.memory.precision!r}")
        check(self.memory)
        if self.backbone.hidden % self.backbone.heads:
            raise UserError("setting backbone.hidden must be a multiple of backbone.heads")
        return self

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


def check(memory: MemorySettings) -> None:
    """UserError, with both names, where two settings of the memory contradict each other, or one does nothing."""
    kind, _, count = memory.stepping.partition("-")
    longer, reuse = memory.stepping != "sentence", memory.prefix_states == "reuse"
    if longer and not (kind in ("stride", "every") and count.isdigit() and int(count)):
        raise UserError("setting memory.stepping must be sentence, stride-N with N tokens (stride-256) or every-N "
                        f"with N sentences (every-4), not {memory.stepping!r}")
    contradictions = {
        "memory.prefix_states = reuse goes with memory.stepping = sentence: the states of what a longer step "
        "writes are not at hand": longer and reuse,
        "memory.prefix_states = reuse goes with memory.history_emotions = none: the states of an emotion token are "
        "not at hand": memory.history_emotions == "predicted" and reuse,
        "memory.rule = emotion or both goes with memory.stepping = sentence: a longer step does not end at a "
        "sentence's <audio_end>": longer and memory.rule != "semantic",
        "memory.sinks needs memory.prefix_states = reuse: there is no cache to keep in": memory.sinks and not reuse,
        f"memory.target = {memory.target} needs memory.rule = emotion or both: rule semantic has no target":
            memory.target != "sharpened" and memory.rule == "semantic",
        "memory.target = soft needs memory.rule = both and memory.steps of 2 or more: an own answer as it is "
        "teaches nothing until the codes have moved it":
            memory.target == "soft" and (memory.rule != "both" or memory.steps < 2),
    }
    for words in (words for words, found in contradictions.items() if found):
        raise UserError(f"setting {words}")


def _typed(name: str, old: Any, new: Any) -> Any:
    """`new` as the type of `old`; UserError where it does not fit."""
    if dataclasses.is_dataclass(old):
        raise UserError(f"setting {name!r} is a group; set one of its members, e.g. "
                        f"{name}.{dataclasses.fields(old)[0].name}")
    try:
        if isinstance(old, tuple):
            if not isinstance(new, (list, tuple)) or not new:
                raise TypeError
            return tuple(_typed(name, old[0], v) for v in new)
        if isinstance(old, str):
            if not isinstance(new, str):
                raise TypeError
            return new
        if isinstance(old, bool):
            if not isinstance(new, bool):
                raise TypeError
            return new
        if isinstance(new, bool) or (isinstance(old, int) and float(new) != int(float(new))):
            raise TypeError
        if not math.isfinite(float(new)):
            raise ValueError
        return type(old)(new)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"setting {name!r} takes {type(old).__name__}, e.g. {old!r}, not {new!r}") from None
