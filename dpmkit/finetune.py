"""Fine-tuning of an SLLM (paper, 'Emotion SLLM'): a dialogue becomes training sequences, and those of a few
dialogues a step of transformers' Trainer. `fit` trains other modules in the same steps.

`train` gives the fine-tuned SLLM of a corpus and fold: trained if it has to be, resumed where a killed run stopped,
loaded where it is done. Validation conversations choose the epoch; test conversations are never seen.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from sklearn.metrics import recall_score
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from . import backbones, estimate, machine, runs
from .codes import CorpusCodes
from .corpora import Corpus
from .machine import device
from .settings import FinetuneSettings, Settings, UserError
from .sllm import CARD, EmotionSLLM, even
from .tokenizers.kmeans import FITTED

UNLABELLED = -100  # in place of a label
PADDING = {"input_ids": 0, "code_weight": 0.0, "emotion": UNLABELLED}


@dataclass(frozen=True)
class Finetuned:
    """A frozen SLLM, the key of its artefact, and its history: one row per epoch."""

    sllm: EmotionSLLM
    key: str
    folder: Path
    history: list[dict]
    trained_parameters: int


def train(settings: Settings, corpus: Corpus, codes: CorpusCodes) -> Finetuned:
    """The SLLM fine-tuned on the training conversations of `settings.fold` (paper, 'Emotion SLLM')."""
    if runs.world() > 1:
        PartialState(cpu=device(settings).type == "cpu")
    origin = backbones.origin(settings.backbone.source)
    made = runs.Artefact(
        settings, "sllm", _trained, codes=codes.key, fold=settings.fold, seed=settings.seed,
        backbone=settings.backbone.but(source=origin["sha256"] or origin["source"]),
        finetune=keyed(settings.finetune), history_emotions=settings.memory.history_emotions)
    done, log = made.folder / "sllm", made.folder / "history.json"
    with made.making(done / CARD, log, together=True) as absent:
        if absent:
            if settings.backbone.source:
                PartialState().print(estimated(settings, corpus, codes).checked(), flush=True)
            _trained(settings, corpus, codes, done, log)
    facts = json.loads(log.read_text(encoding="utf-8"))
    loaded = EmotionSLLM.load(done, settings.home_path, origin["source"]).to(device(settings))
    return Finetuned(loaded, made.key, done, facts["history"], facts["trained_parameters"])


def keyed(tune: FinetuneSettings) -> FinetuneSettings:
    """As it enters a key: several processes' step is that of one with a larger batch."""
    return tune.but(batch=tune.batch * runs.world())


def estimated(settings: Settings, corpus: Corpus, codes: CorpusCodes) -> estimate.Estimate:
    """Memory and hours that `train` would take with a pretrained backbone; no weights are loaded."""
    shell = estimate.shell(settings, codes.facts["codebook_size"], corpus.emotions)
    return estimate.training(settings, shell, sizes(settings, corpus, codes, shell))


def sizes(settings: Settings, corpus: Corpus, codes: CorpusCodes, sllm: EmotionSLLM) -> list[tuple[int, int, int]]:
    """Rows, tokens per row and predicted tokens of every forward of an epoch."""
    tune = settings.finetune
    data = list(Dialogues(sllm, corpus, codes, settings, "train"))
    steps = (data[i:i + tune.batch] for i in range(0, len(data), tune.batch))
    return [(*part["input_ids"].shape, int((part["code_weight"] > 0).sum()))
            for step in steps for part in forwards(step, tune.forward_tokens)]


def _trained(settings: Settings, corpus: Corpus, codes: CorpusCodes, done: Path, log: Path) -> None:
    model = EmotionSLLM.create(settings.backbone, settings.finetune, codes.facts["codebook_size"], corpus.emotions,
                               settings.seed, settings.home_path)
    data = [Dialogues(model, corpus, codes, settings, split) for split in ("train", "validation")]
    collate = partial(forwards, most=settings.finetune.forward_tokens)
    history = fit(model, *data, collate, settings.finetune, done.parent, settings)
    if PartialState().is_main_process:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        runs.write_json(log, {"history": history, "trained_parameters": trained})
        codebook = runs.folder(settings, "codes", codes.key) / FITTED
        facts = codes.facts | {"profile": settings.profile, "corpus": corpus.name}
        model.save(done, facts, codebook if codebook.is_file() else None)
        shutil.rmtree(done.parent / "checkpoints", ignore_errors=True)
    PartialState().wait_for_everyone()


# -- what a step is made of --------------------------------------------------------------------------------

class Dialogues(Dataset):
    """The training sequences of each dialogue of a split, a list of them per item (see `sequences`). A dialogue
    longer than the window is cut between sentences into pieces that fit it, a longer sentence to its end. Each
    `epoch` of training has its own first cut, so that histories of every length are trained, and another utterance
    of that speaker and emotion for the share `finetune.redrawn`: no composed dialogue is learnt by heart."""

    def __init__(self, model: EmotionSLLM, corpus: Corpus, codes: CorpusCodes, settings: Settings, split: str):
        self.model, self.settings, self.moving, self.epoch = model, settings, split == "train", 0
        self.history = settings.memory.history_emotions == "predicted"  # emotion tokens in it
        longest = model.window - 1 - self.history
        number = {emotion: i for i, emotion in enumerate(corpus.emotions)}
        self.dialogues = [[(codes.codes[u.id][-longest:], u.speaker, number.get(u.emotion)) for u in c.utterances]
                          for c in corpus.select(getattr(corpus.folds[settings.fold - 1], split))]
        self.alike = defaultdict(list)  # speaker, emotion -> the codes of each such utterance of the split
        for said, *who in chain(*self.dialogues):
            self.alike[*who].append(said)

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        tune, window = self.settings.finetune, self.model.window
        rng = np.random.default_rng([self.settings.seed, self.epoch if self.moving else 0, index])
        room = int(rng.integers(1, window + 1))  # of the first piece
        pieces, used = [[]], 0
        for codes, speaker, emotion in self.dialogues[index]:
            if self.moving and rng.random() < tune.redrawn:
                codes = (alike := self.alike[speaker, emotion])[rng.integers(len(alike))]
            tokens = len(codes) + 1 + (self.history and emotion is not None)
            if used + tokens > room and pieces[-1]:
                pieces.append([])
                used, room = 0, window
            room = max(room, tokens)
            pieces[-1].append((codes, emotion))
            used += tokens
        return [sequence for piece in pieces for sequence in
                sequences(self.model, *zip(*piece, strict=True), tune.n_o, tune.n_p, tune.n_q, self.history)]


def sequences(sllm: EmotionSLLM, codes: Sequence[np.ndarray], emotions: Sequence[int | None], n_o: int, n_p: int,
              n_q: int, emotions_in_history: bool = False) -> list[dict[str, Tensor]]:
    """Training sequences of one dialogue for L_a and L_e (paper, equations 3 to 6).

    For the sentence whose `<audio_end>` is the dialogue's n-th token: L_a is the mean over the last n_o tokens up
    to it, given the n_p before those; L_e is read at it, given the last n_q tokens; of as many as there are. The
    first token of a context follows nothing: among the n_o, it is not predicted and the mean is over the others.

    Terms whose context starts at the same token share one sequence. Each holds `input_ids`, `code_weight` and
    `emotion`, shape (tokens,), as `EmotionSLLM.forward` takes them.
    """
    in_history = emotions if emotions_in_history else [None] * len(codes)
    sentences = [sllm.sentence(c, e) for c, e in zip(codes, in_history, strict=True)]
    tokens = torch.cat(sentences)  # (dialogue,), as weights and labels
    weights = defaultdict(lambda: torch.zeros(len(tokens)))  # where a context starts -> its sequence's
    labels = defaultdict(lambda: torch.full((len(tokens),), UNLABELLED))
    stops, before = {}, 0
    for sentence, emotion, spoken in zip(sentences, emotions, codes, strict=True):
        n = before + len(spoken) + 1  # <audio_end> is token n - 1
        before += len(sentence)
        start = max(0, n - n_o - n_p)
        predicted = slice(max(n - n_o, start + 1), n)
        sound = sllm.is_sound(tokens[predicted])  # no emotion tokens of earlier sentences
        weights[start][predicted] += sound / sound.sum().clamp_min(1)  # eqs 3 and 4: a mean per sentence
        stops[start] = n
        if emotion is not None:
            start = max(0, n - n_q)
            labels[start][n - 1] = emotion  # eqs 5 and 6
            stops[start] = n
    return [{"input_ids": tokens[start:stop], "code_weight": weights[start][start:stop],
             "emotion": labels[start][start:stop]} for start, stop in sorted(stops.items())]


def forwards(items: Sequence[list[dict[str, Tensor]]], most: int = 0) -> list[dict[str, Tensor]]:
    """The sequences of a step's dialogues, those of about one length in one forward, of `most` tokens at most, or
    one sequence (0: any number)."""
    rows = [sequence for item in items for sequence in item]
    return [padded([rows[i] for i in group]) for group in even([row["input_ids"] for row in rows], most)]


def padded(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sequences side by side, (rows, longest) each, padded on the right, where no token sees it."""
    return {name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=padding)
            for name, padding in PADDING.items()}


# -- the Trainer -------------------------------------------------------------------------------------------

def fit(model: nn.Module, train_data: Dataset, validation_data: Dataset, collate: Callable,
        tune: FinetuneSettings, folder: Path, settings: Settings) -> list[dict]:
    """Train `model` in place and return its history, one row per epoch; the best epoch's weights are kept. Goes on
    from the newest whole checkpoint in `folder`.

    `collate` makes a step's items into forwards, dicts of tensors; `emotion` holds labels, below 0 where there is
    none. `model.forward` takes one and returns the losses of `_counts`, `logits` (labelled, classes) and `truth`
    (labelled,). The best epoch has the lowest emotion loss on the validation data.
    """
    checkpoint, reached = _last_whole_checkpoint(folder / "checkpoints")
    where = device(settings)
    steps = math.ceil(len(train_data) / (tune.batch * runs.world())) * tune.epochs
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"), per_device_train_batch_size=tune.batch,
        per_device_eval_batch_size=tune.batch, learning_rate=tune.lr, lr_scheduler_type="cosine",
        # Killed just as its patience was spent, a run has nothing left to train.
        num_train_epochs=round(reached.epoch) if reached and _stalled(reached) >= tune.patience else tune.epochs,
        warmup_steps=round(tune.warmup * steps), weight_decay=tune.weight_decay, max_grad_norm=1.0,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="eval_l_e", greater_is_better=False,
        seed=settings.seed, data_seed=settings.seed, remove_unused_columns=False, report_to="none",
        use_cpu=where.type == "cpu", dataloader_pin_memory=False,
        # PEFT keeps adapters in float32: without autocast all of their products would be in it, too.
        bf16=where.type == "cuda" and next(model.parameters()).dtype == torch.bfloat16)
    _one_gpu(arguments, where)
    trainer = _Trainer(model=model, args=arguments, train_dataset=train_data, eval_dataset=validation_data,
                       data_collator=collate, callbacks=[_Epochs(train_data, tune.patience)])
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_Bar)
    try:
        with machine.tf32(model):
            trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(f"training does not fit the GPU: lower finetune.forward_tokens (now {tune.forward_tokens}; "
                        "0: a step is one forward), or set finetune.checkpointing=true") from error
    rows: dict[int, dict] = defaultdict(dict)
    for entry in trainer.state.log_history:
        rows[round(entry["epoch"])] |= {name: value for name, value in entry.items()
                                        if name == "loss" or name.startswith("eval_")}
    return [{"epoch": epoch, "train_loss": row.pop("loss"), **row} for epoch, row in rows.items()]


def _one_gpu(arguments: TrainingArguments, where: torch.device) -> None:
    """Each process trains on the one GPU that is asked for, where the Trainer would take all (nn.DataParallel)."""
    if where.type == "cuda" and arguments.world_size == 1:
        where = torch.device("cuda", where.index or 0)
        torch.cuda.set_device(where)
        arguments._n_gpu, arguments._setup_devices, arguments.distributed_state.device = 1, where, where
    elif where.type == "cuda" and where.index is not None:
        raise UserError(f"setting device is {where}, one GPU for all processes of torchrun: set device=cuda")


def _last_whole_checkpoint(folder: Path) -> tuple[str | None, TrainerState | None]:
    """The newest checkpoint whose last file was written, and its state; a half-written one (a kill, a full disk) is
    removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            return str(path), TrainerState.load_from_json(path / "trainer_state.json")
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None, None


class _Epochs(TrainerCallback):
    """The training data's epoch, which moves its cuts, and the last one; the same after a resume."""

    def __init__(self, data: Dataset, patience: int):
        self.data, self.patience = data, patience

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.epoch = round(state.epoch or 0)

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop |= _stalled(state) >= self.patience


class _Bar(ProgressCallback):
    """The Trainer's progress bar, without a line per epoch: those are in the history."""

    def on_log(self, args, state, control, **kwargs):
        """Says nothing."""


def _stalled(state: TrainerState) -> int:
    """Epochs since the best one."""
    return round(state.epoch * (1 - (state.best_global_step or 0) / state.global_step))


class _Trainer(Trainer):
    """The Trainer, with steps of several forwards and an evaluation that knows the losses and the emotions."""

    def training_step(self, model: nn.Module, inputs: list[dict[str, Tensor]], num_items_in_batch=None) -> Tensor:
        """Loss and gradient of one step. Each loss is a mean over all of its sentences, whatever share of them a
        forward or a process holds."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        counts = [_counts(forward) for forward in inputs]
        means = {name: self.accelerator.reduce(sum(c[name] for c in counts), "mean").clamp_min(1e-9)
                 for name in counts[0]}  # as DDP averages gradients
        total = 0.0
        for forward, count in zip(inputs, counts, strict=True):
            alone = self.accelerator.no_sync(model) if forward is not inputs[-1] else nullcontext()
            with alone, self.compute_loss_context_manager():
                out = model(**forward)
                loss = sum(out[name] * (n / means[name]) for name, n in count.items()) / len(count)
                self.accelerator.backward(loss)
            total = total + loss.detach()
        return total

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Losses, WA and UA on the validation data; all of it in every process, as a sharded loader repeats
        dialogues to fill its last batch."""
        self.model.eval()
        sums, counts, answered = defaultdict(float), defaultdict(float), []
        loader = DataLoader(self.eval_dataset, self.args.per_device_eval_batch_size, collate_fn=self.data_collator)
        for forward in (f for step in loader for f in self._prepare_inputs(step)):
            out = self.model(**forward)
            for name, n in _counts(forward).items():
                sums[name], counts[name] = sums[name] + n * out[name].float(), counts[name] + n
            answered.append(torch.stack([out["logits"].argmax(-1), out["truth"]]).cpu())
        answers, truth = torch.cat(answered, dim=1).numpy()
        losses = {name: (sums[name] / counts[name].clamp_min(1e-9)).item() for name in sums}
        metrics = {"eval_loss": sum(losses.values()) / len(losses),
                   **{f"eval_{name}": loss for name, loss in losses.items()},
                   "eval_wa": float((answers == truth).mean()),
                   "eval_ua": float(recall_score(truth, answers, labels=np.unique(truth), average="macro"))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # What is trained, once: a frozen backbone is where it came from, and tied weights have two names.
        super()._save(output_dir, {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad})

    def _issue_warnings_after_load(self, load_result) -> None:
        if load_result.unexpected_keys:  # the keys that a checkpoint lacks are the frozen ones
            raise RuntimeError(f"the checkpoint is of another model: {load_result.unexpected_keys}")

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # the last: torch.save of a full disk
            raise UserError(f"cannot write {self.args.output_dir}: {' '.join(str(error).split())[:120]}; free some "
                            "disk, then run again: training goes on from its last checkpoint") from error


def _counts(forward: dict[str, Tensor]) -> dict[str, Tensor]:
    """How many sentences each loss of a forward is a mean over: L_e, and L_a where the module has one."""
    counts = {"l_e": (forward["emotion"] >= 0).sum().float()}
    return {"l_a": forward["code_weight"][:, 1:].sum(), **counts} if "code_weight" in forward else counts
