"""The groups that settings come in, with their defaults: those of the profile `demo`."""

from __future__ import annotations

from dataclasses import dataclass


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
