"""The groups of settings: each value with its default (profile `demo`) and its limits, checked by pydantic."""

from __future__ import annotations

import re
import unicodedata
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError


class UserError(ValueError):
    """A mistake that the user can mend: one line that names the file or setting and the cure.

    The command line prints it and exits with code 2; nothing has been half-written.
    """


def plain(text: str) -> str:
    """One word, one string: precomposed (NFC), as most type it; macOS names files decomposed."""
    return unicodedata.normalize("NFC", text)


def _number(value: Any) -> Any:
    """Pydantic reads True as 1, which nobody means by it."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


T = TypeVar("T")
Text = Annotated[str, AfterValidator(plain)]  # a path stays a `str`: it is opened by its bytes
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Count = Annotated[Whole, Field(gt=0)]
Size = Annotated[Whole, Field(ge=0)]
Weight = Annotated[Real, Field(ge=0)]
Positive = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(ge=0, le=1)]
Dropout = Annotated[Real, Field(ge=0, lt=1)]
Fraction = Annotated[Real, Field(gt=0, lt=1)]
Several = Annotated[tuple[T, ...], Field(min_length=1)]
LossVocabulary = Literal["codes", "all"]
Rule = Literal["semantic", "emotion", "both"]
Target = Literal["soft", "sharpened", "filtered"]
Scope = Literal["conversation", "speaker"]


@dataclass_transform(frozen_default=True)
class Group:
    """A subclass is a frozen dataclass whose values are checked as it is made, by `dataclasses.replace`, too:
    UserError with the setting, what it must be, what it is and its default."""

    def __init_subclass__(cls) -> None:
        dataclass(cls, frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
        checked = cls.__init__

        @wraps(checked)
        def init(self: Group, *values: Any, **named: Any) -> None:
            try:
                checked(self, *values, **named)
            except ValidationError as error:
                raise UserError(_refusal(cls, error)) from None

        cls.__init__ = init


def _refusal(group: type[Group], error: ValidationError) -> str:
    """Pydantic's first finding in one line."""
    found = error.errors()[0]
    if found["type"] == "value_error":  # a contradiction, in the words of the group's __post_init__
        return str(found["ctx"]["error"])
    leaf = str(found["loc"][0])
    name = ".".join(filter(None, (group.__name__.lower().removesuffix("settings"), leaf)))
    if not hasattr(group, leaf):
        return f"setting {name} is not known"
    must = re.sub(r"^\w+ should", "must", found["msg"])
    return f"setting {name} {must}, not {found['input']!r} (default: {getattr(group, leaf)!r})"


class ConversationSettings(Group):
    """Size of a corpus whose conversations this kit makes itself (`demo`, and `composed` ones)."""
    speakers: Annotated[Whole, Field(ge=2)] = 40  # per session, `demo` only
    conversations: Count = 60  # per session
    min_turns: Count = 20
    max_turns: Count = 60
    seed: Size = 2507  # of the corpus; independent of the training seed

    def __post_init__(self) -> None:
        if self.min_turns > self.max_turns:
            raise UserError("setting conversation.min_turns must not exceed conversation.max_turns")


class SourceSettings(Group):
    """How a corpus on disk is read; a parser takes what concerns it."""
    classes: Literal[4, 6] = 4  # iemocap: 4 (exc merged into hap: the paper's) or 6; emodb, cremad, ravdess, nemo
    allow_partial: StrictBool = False  # the same corpora: read a tree whose counts are not the published ones
    validation: Fraction = 0.1  # share of the training dialogues that is held out, where no split is given
    pattern: Text = ""  # folders: a regular expression; its groups speaker, emotion are found in a file's name


class SegmentsSettings(Group):
    """Utterances found in a recording by voice activity (silero-vad); all but the threshold in seconds."""
    threshold: Fraction = 0.5  # speech probability above which speech begins
    min_speech: Positive = 0.25
    min_silence: Weight = 0.3  # a shorter pause does not end an utterance
    max_speech: Positive = 20.0  # a longer utterance is cut at its most silent place
    pad: Weight = 0.1  # kept on either side


class CodesSettings(Group):
    """The speech tokenizer. 0 for a size or a rate is the tokenizer's own (kmeans: 256 codes at 25 Hz)."""
    tokenizer: Text = "kmeans"  # one of tokenizers.TOKENIZERS
    source: str = ""  # neural tokenizers: a local folder or a hub id; empty: the published weights
    codebook_size: Size = 0  # K of the k-means tokenizers
    frame_rate: Weight = 0.0  # frames per second
    prosody_weight: Weight = 4.0  # kmeans: weight of energy and log F0 against the MFCCs in the distance
    layer: Count = 9  # hubert-kmeans, wavlm-kmeans: hidden states after this transformer layer
    codebooks: Count = 1  # mimi: this many codebooks, interleaved


class BackboneSettings(Group):
    """`source` empty: a Llama of this shape, trained from scratch; else a hub id, a local folder, or the GGUF file
    in a wheel of the package registry (`pypi:name==version`)."""
    source: str = ""
    keep_layers: Size = 0  # pretrained: the first so many of its layers; 0: all
    layers: Count = 4  # from scratch; so are the next three
    hidden: Count = 128
    heads: Count = 4
    intermediate: Count = 352
    window: Count = 512  # n_limit, tokens
    dropout: Dropout = 0.2  # of the embeddings and the head's input; from-scratch backbones only
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise UserError("setting backbone.hidden must be a multiple of backbone.heads")


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
    lora_rank: Size = 0  # 0: every weight is trained (from-scratch backbones)
    lora_alpha: Whole = 64
    lora_dropout: Dropout = 0.05
    loss_vocabulary: LossVocabulary = "all"  # what the softmax of L_a is over (codes: cheaper where it is large)
    checkpointing: StrictBool = False  # activations are computed again on the way back: less memory, 1.3 x the time
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
    alpha: Real = 16.0
    layers: Text = "all"  # "all" linear layers of the backbone, or "top-k"
    prefix: Size = 64  # n_r, tokens
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Weight = 5e-5
    steps: Size = 1  # per sentence
    clip: Weight = 0.0  # gradient norm per stream; 0: no clipping
    weight_decay: Weight = 0.0
    history_emotions: Literal["none", "predicted"] = "none"  # predicted: emotion tokens inside the history
    stepping: Text = "sentence"  # a step per sentence, per so many of them (every-4) or of tokens (stride-256)
    decay: Share = 0.0  # share of the memory that each step forgets
    # Write rules: what a step lowers, and for whom. The defaults are the paper's.
    rule: Rule = "semantic"  # L_t of the codes | emotion: of the own answer at <audio_end> | both
    target: Target = "sharpened"  # of rule emotion: the own answer as it is (soft), squared, or filtered by inertia
    scope: Scope = "conversation"  # speaker: one memory per speaker, through all of the conversations
    reset_every: Size = 0  # sentences; 0: never (a control)
    sinks: Size = 0  # reuse: the first tokens' keys and values, kept beside the last ones' (StreamingLLM)
    # Rungs below the exact method: cheaper, with other answers (`dpmkit bench memory` says by how much).
    read: Literal["after", "before"] = "after"  # the sentence's own write: before shares one forward with it
    loss_vocabulary: LossVocabulary = "codes"  # what the softmax of L_t is over
    prefix_states: Literal["recompute", "detach", "reuse"] = "recompute"  # no gradient | those of earlier steps
    precision: Literal["", "float32", "bfloat16"] = ""  # of the frozen weights alone; empty: the backbone's

    def __post_init__(self) -> None:
        """UserError, with both names, where two settings contradict each other, or one does nothing."""
        if not re.fullmatch(r"sentence|(stride|every)-0*[1-9]\d*", self.stepping):
            raise UserError("setting memory.stepping must be sentence, stride-N with N tokens (stride-256) or "
                            f"every-N with N sentences (every-4), not {self.stepping!r}")
        longer, reuse = self.stepping != "sentence", self.prefix_states == "reuse"
        contradictions = {
            "prefix_states = reuse goes with memory.stepping = sentence: the states of what a longer step writes "
            "are not at hand": longer and reuse,
            "prefix_states = reuse goes with memory.history_emotions = none: the states of an emotion token are "
            "not at hand": self.history_emotions == "predicted" and reuse,
            "rule = emotion or both goes with memory.stepping = sentence: a longer step does not end at a "
            "sentence's <audio_end>": longer and self.rule != "semantic",
            "sinks needs memory.prefix_states = reuse: there is no cache to keep in": self.sinks and not reuse,
            f"target = {self.target} needs memory.rule = emotion or both: rule semantic has no target":
                self.target != "sharpened" and self.rule == "semantic",
            "target = soft needs memory.rule = both and memory.steps of 2 or more: an own answer as it is teaches "
            "nothing until the codes have moved it":
                self.target == "soft" and (self.rule != "both" or self.steps < 2),
        }
        for words, found in contradictions.items():
            if found:
                raise UserError(f"setting memory.{words}")


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
    own_answers: StrictBool = False  # train a second SLLM, on emotion tokens in its history: method `own-answers`


class AblationSettings(Group):
    """Notebook 04: one setting of the memory moves at a time, on validation conversations."""
    conversations: Count = 24
    lr: Several[Weight] = (0.0, 5e-5, 3e-4, 1e-3, 3e-3)
    steps: Several[Size] = (1, 2, 4)
    rank: Several[Count] = (1, 4, 16, 64)
    prefix: Several[Size] = (0, 32, 64, 128, 256)
    layers: Several[Text] = ("all", "top-2")
    decay: Several[Share] = (0.0, 0.01, 0.1)
    rule: Several[Rule] = ("semantic", "emotion", "both")  # each at every rate
    target: Several[Target] = ("sharpened", "filtered")  # of rule emotion
    scope: Several[Scope] = ("conversation", "speaker")
    stepping: Several[Text] = ("sentence", "stride-64", "stride-128", "stride-256", "every-2", "every-4")
    disturbed: Count = 12  # test conversations under noise, overlap and other boundaries


class ContextSettings(Group):
    """Notebook 05."""
    codes: Several[Count] = (1_000, 4_000, 16_000, 64_000, 128_000)  # histories, of `bench context`
    tokens: Several[Count] = (64, 128, 256, 512)  # contexts of the SLLM at once; none above its window
    conversations: Count = 8  # of the test fold, whose methods' cost is measured


class GridSettings(Group):
    """What one task on Ray takes: a run of `--ray`."""
    cpus: Count = 2
    gpus: Weight = 0.0
    retries: Size = 2  # of a task whose worker died
