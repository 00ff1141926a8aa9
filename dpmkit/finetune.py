"""Fine-tuning of an SLLM (paper, 'Emotion SLLM'), or of any module of the same forward, with transformers' Trainer.

One call, `train`, gives the fine-tuned SLLM of a corpus and fold: trained if it has to be, resumed where a killed
run stopped, loaded where it is done. Validation conversations choose the epoch; test conversations are never seen.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from sklearn.metrics import recall_score
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from . import backbones, estimate, machine, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .machine import device
from .settings import FinetuneSettings, Settings, UserError
from .sllm import CARD, EmotionSLLM

UNLABELLED = -100  # as torch's cross-entropy has it


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
    made = runs.artefact(
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
    return estimate.training(settings, shell, forwards(settings, corpus, codes, shell))


def forwards(settings: Settings, corpus: Corpus, codes: CorpusCodes,
             sllm: EmotionSLLM) -> list[tuple[int, int, int]]:
    """Rows, tokens per row and predicted tokens of every forward of an epoch."""
    tune, fold = settings.finetune, corpus.folds[settings.fold - 1]
    data = list(Dialogues(sllm, corpus.select(fold.train), codes.codes, corpus.emotions, settings, True))
    collate = collate_sequences(sllm.vocabulary.end)
    batches = [collate(data[i:i + tune.batch]) for i in range(0, len(data), tune.batch)]
    return [(*piece["input_ids"].shape, int((piece["code_weight"] > 0).sum()))
            for batch in batches for piece in _pieces(batch, tune.forward_tokens)]


def _trained(settings: Settings, corpus: Corpus, codes: CorpusCodes, done: Path, log: Path) -> None:
    fold = corpus.folds[settings.fold - 1]
    model = EmotionSLLM.create(settings.backbone, settings.finetune, codes.facts["codebook_size"], corpus.emotions,
                               settings.seed, settings.home_path)
    data = [Dialogues(model, corpus.select(ids), codes.codes, corpus.emotions, settings, moving)
            for ids, moving in ((fold.train, True), (fold.validation, False))]
    history = fit(model, *data, collate_sequences(model.vocabulary.end), settings.finetune, done.parent, settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if PartialState().is_main_process:
        runs.write_json(log, {"history": history, "trained_parameters": trained})
        model.save(done, codes.facts)
        shutil.rmtree(done.parent / "checkpoints", ignore_errors=True)
    PartialState().wait_for_everyone()


# -- training dialogues ------------------------------------------------------------------------------------

class Dialogues(Dataset):
    """The training sequences of each dialogue, a list of them per item (see `sequences`). One longer than the
    window is cut between sentences into pieces that fit it. `moving` draws the first cut anew each epoch, so that
    histories of every length are trained; validation cuts stay where they are."""

    def __init__(self, model: EmotionSLLM, conversations: Sequence[Conversation], codes: dict[str, np.ndarray],
                 emotions: tuple[str, ...], settings: Settings, moving: bool):
        self.model, self.settings, self.moving, self.epoch = model, settings, moving, 0
        self.history = settings.memory.history_emotions == "predicted"  # emotion tokens in it
        longest = model.window - 1 - self.history
        self.dialogues = [
            [(codes[u.id][-longest:], None if u.emotion is None else emotions.index(u.emotion))
             for u in c.utterances] for c in conversations]

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        tune, window = self.settings.finetune, self.model.window
        rng = np.random.default_rng([self.settings.seed, self.epoch if self.moving else 0, index])
        room = int(rng.integers(1, window + 1))  # of the first piece
        pieces, used = [[]], 0
        for codes, emotion in self.dialogues[index]:
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

    For the sentence whose `<audio_end>` is the dialogue's n-th token: L_a is the mean over the last n_o
    tokens up to it, given the n_p before those; L_e is read at it, given the last n_q tokens. n < n_o: n_p =
    0 and n_o = n; n_o <= n < n_o + n_p: n_p = n - n_o; n < n_q: n_q = n. The first token of a context
    follows nothing: where it stands among the n_o, it is not predicted and the mean is over the others.

    Terms whose context starts at the same token share one sequence (and so one forward). Each holds `input_ids`,
    `code_weight` and `emotion`, shape (tokens,), as `EmotionSLLM.forward` takes them.
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


def collate_sequences(padding: int) -> Callable:
    """Lists of sequences to one padded batch, on the right: `input_ids`, `code_weight`, `emotion`."""
    fill = {"input_ids": padding, "code_weight": 0.0, "emotion": UNLABELLED}

    def collate(items: Sequence[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        rows = [sequence for item in items for sequence in item]
        return {name: pad_sequence([r[name] for r in rows], batch_first=True, padding_value=value)
                for name, value in fill.items()}

    return collate


def _pieces(batch: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The sequences of a batch in forwards of `most` tokens at most, or one sequence each; 0: all at once."""
    if not most or "code_weight" not in batch:
        return [batch]
    rows, longest = batch["code_weight"].shape
    at_once = max(1, most // longest)
    return [{name: value[i:i + at_once] for name, value in batch.items()} for i in range(0, rows, at_once)]


# -- the Trainer -------------------------------------------------------------------------------------------

def fit(model: nn.Module, train_data: Dataset, validation_data: Dataset, collate: Callable,
        tune: FinetuneSettings, folder: Path, settings: Settings) -> list[dict]:
    """Train `model` in place and return its history, one row per epoch; the best epoch's weights are kept.

    `model.forward` returns `loss`, `logits` (rows, classes) and `truth` (rows,). The best epoch has the lowest
    emotion loss on the validation data. Goes on from the newest whole checkpoint in `folder`.
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
    trainer.forward_tokens = tune.forward_tokens
    try:
        with machine.tf32(model):
            trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError("training does not fit the GPU: set finetune.forward_tokens, of one forward (now "
                        f"{tune.forward_tokens}; 0: a step is one), or finetune.checkpointing=true") from error
    kept = {"loss": "train_loss"} | {f"eval_{name}": f"eval_{name}" for name in ("loss", "l_a", "l_e", "wa", "ua")}
    rows: dict[int, dict] = defaultdict(dict)
    for entry in trainer.state.log_history:
        rows[round(entry["epoch"])] |= {kept[name]: entry[name] for name in entry if name in kept}
    return [{"epoch": epoch, **row} for epoch, row in rows.items()]


def _one_gpu(arguments: TrainingArguments, where: torch.device) -> None:
    """Each process trains on one GPU, the one asked for. Transformers would take cuda:0, and give each of all GPUs
    of the machine `finetune.batch` dialogues per step (nn.DataParallel)."""
    if where.type == "cuda" and arguments.world_size == 1:
        where = torch.device("cuda", where.index or 0)
        torch.cuda.set_device(where)
        arguments._n_gpu, arguments._setup_devices, arguments.distributed_state.device = 1, where, where
    elif where.type == "cuda" and where.index is not None:
        raise UserError(f"setting device is {where}, one GPU, but torchrun has started {arguments.world_size} "
                        "processes, each for its own: set device=cuda, or run without torchrun")


class _Epochs(TrainerCallback):
    """The training data's epoch, which moves its cuts, and the last one; the same after a resume."""

    def __init__(self, data: Dataset, patience: int):
        self.data, self.patience = data, patience

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.epoch = round(state.epoch or 0)

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop |= _stalled(state) >= self.patience


def _stalled(state: TrainerState) -> int:
    """Epochs since the best one."""
    return round(state.epoch * (1 - (state.best_global_step or 0) / state.global_step))


class _Trainer(Trainer):
    """The Trainer, with steps of several forwards and an evaluation that knows the two losses and the emotions."""

    forward_tokens = 0

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch=None):
        """Loss and gradient of one step. L_a and L_e are means over all of its sequences, whatever share of them a
        forward or a process holds."""
        inputs = self._prepare_inputs(inputs)
        pieces = _pieces(inputs, self.forward_tokens)
        if len(pieces) == 1 and self.accelerator.num_processes == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        counts = torch.stack([_counts(piece) for piece in pieces])
        means = self.accelerator.reduce(counts.sum(0), "mean").clamp_min(1e-9)  # as DDP averages gradients
        total = 0.0
        for piece, count in zip(pieces, counts, strict=True):
            alone = self.accelerator.no_sync(model) if piece is not pieces[-1] else contextlib.nullcontext()
            with alone, self.compute_loss_context_manager():
                out = model(**piece)
                loss = ((torch.stack([out["l_a"], out["l_e"]]) * count / means).sum()) / 2
                self.accelerator.backward(loss)
            total = total + loss.detach()
        return total

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        self.model.eval()
        sums, counts, answered = torch.zeros(2), torch.zeros(2), []
        # All of it in every process: a sharded loader repeats dialogues to fill its last batch.
        loader = DataLoader(self.eval_dataset, self.args.per_device_eval_batch_size, collate_fn=self.data_collator)
        for piece in (p for b in loader for p in _pieces(self._prepare_inputs(b), self.forward_tokens)):
            out = self.model(**piece)
            here = _counts(piece) if "l_a" in out else out["loss"].new_full((2,), len(out["truth"]))
            losses = torch.stack([out.get(name, out["loss"]).float() for name in ("l_a", "l_e")])
            sums, counts = sums + (here * losses).cpu(), counts + here.cpu()
            answered.append(torch.stack([out["logits"].argmax(-1), out["truth"]]).cpu())
        answers, truth = torch.cat(answered, dim=1).numpy()
        l_a, l_e = (sums / counts.clamp_min(1e-9)).tolist()
        ua = recall_score(truth, answers, labels=np.unique(truth), average="macro")
        metrics = {"eval_loss": (l_a + l_e) / 2, "eval_l_a": l_a, "eval_l_e": l_e,
                   "eval_wa": float((answers == truth).mean()), "eval_ua": float(ua)}
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


def _counts(piece: dict[str, Tensor]) -> Tensor:
    """Sentences with an L_a and with an L_e, (2,)."""
    return torch.stack([piece["code_weight"][:, 1:].sum(), (piece["emotion"] >= 0).sum().float()])


def _last_whole_checkpoint(folder: Path) -> tuple[str | None, TrainerState | None]:
    """The newest checkpoint whose last file was written, and its state; a half-written one (a kill, a full disk) is
    removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            return str(path), TrainerState.load_from_json(path / "trainer_state.json")
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None, None
