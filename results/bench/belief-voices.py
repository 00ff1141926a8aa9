"""An SLLM that holds its belief: after each utterance its own soft answer stands in its history, the mean of the
emotion tokens' embeddings under it, and it was trained with answers such as it will see. Does it gain more than
four numbers under a filter? `python results/bench/belief-voices.py HOME CREMA-D [ROUNDS [EPOCHS]]` writes
HOME/results/bench/belief-voices.json; an hour on one core.

In training, the answer after an utterance is one that an SLLM gave to an unseen speaker's utterance of that
emotion: of one validation speaker in a whole dialogue, as errors are a speaker's. In the first round these are
answers of the plain SLLM, in the next one of the last round's. The round of lowest validation L_e is tested, once:
of an SLLM that hears no more than the sound, and of one that is shown who speaks, as a filter is: `<audio_end>` and
the answer after it carry a mark, one of two, of the first speaker or the second of a dialogue.
"""
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from dpmkit import baselines, codes, corpora, finetune, machine, metrics, protocols, records
from dpmkit.memory import EMPTY, tail
from dpmkit.settings import Settings
from dpmkit.sllm import EmotionSLLM, even

TOKENS = 4096  # of a forward that answers
NAMES = "belief", "belief, shown who speaks"
settings = Settings.of("voices", home=sys.argv[1], root=sys.argv[2])
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 2
tune = settings.finetune.but(epochs=int(sys.argv[4])) if len(sys.argv) > 4 else settings.finetune
began = time.perf_counter()
data = corpora.load(settings)
spoken = codes.make(settings, data)
tuned = finetune.train(settings, data, spoken)
with_answers = settings.replace("memory.history_emotions", "predicted")
fold, emotions, n_r = data.folds[0], len(data.emotions), settings.memory.prefix
chance = np.full(emotions, 1 / emotions)


class Believer(EmotionSLLM):
    """An SLLM whose emotion tokens are soft: `belief`, (rows, tokens, emotions), at their places; and which, where
    it has `marks`, is shown who speaks: `who`, (rows, tokens), 1 or 2 where a mark stands, else 0."""

    def __init__(self, *given):
        super().__init__(*given)
        self.belief = self.who = self.marks = None

    def forward(self, belief, who, **batch):
        self.belief, self.who = belief, who
        return super().forward(**batch)

    def embedded(self, ids):
        table = self.causal_lm.get_input_embeddings()
        soft = self.belief @ table.weight[self.vocabulary.emotion]
        plain = torch.where(self.is_sound(ids)[..., None], table(ids), soft)
        return self.dropout(plain if self.marks is None else plain + self.marks(self.who))


class Beliefs(finetune.Dialogues):
    """Training sequences whose emotion tokens are answers to unseen speakers. `voices`: of each such speaker,
    emotion -> answers, (n, emotions)."""

    def __init__(self, model, voices, split):
        super().__init__(model, data, spoken, with_answers, split)
        self.voices = voices  # the second speaker's emotions are numbered on from the first's, until `believed`
        self.dialogues = [[(said, who, emotion + emotions * (who != dialogue[0][1]))
                           for said, who, emotion in dialogue] for dialogue in self.dialogues]
        self.alike |= {(who, emotion + emotions): some for (who, emotion), some in self.alike.items()}

    def __getitem__(self, index):
        random = np.random.default_rng([settings.seed, self.epoch if self.moving else 0, index, 1])
        voice = self.voices[random.integers(len(self.voices))]
        return [self.believed(voice, random, **row) for row in super().__getitem__(index)]

    def believed(self, voice, random, input_ids, code_weight, emotion):
        ids, belief = input_ids.clone(), torch.zeros(len(input_ids), emotions)
        who = torch.zeros(len(ids), dtype=torch.long)
        for at in (~self.model.is_sound(ids)).nonzero()[:, 0]:
            second, known = divmod(int(ids[at]) - self.model.vocabulary.emotion.start, emotions)
            ids[at] = self.model.answer(known)
            belief[at] = torch.as_tensor(voice[known][random.integers(len(voice[known]))])
            who[max(0, at - 1):at + 1] = 1 + second
        labelled = emotion >= 0
        who[labelled] = 1 + emotion[labelled] // emotions
        return {"input_ids": ids, "code_weight": code_weight, "belief": belief, "who": who,
                "emotion": torch.where(labelled, emotion % emotions, emotion)}


def collate(items):
    """As `finetune.forwards`, with beliefs and marks."""
    rows = [row for item in items for row in item]
    return [finetune.padded(some) | {
        name: pad_sequence([row[name] for row in some], batch_first=True) for name in ("belief", "who")}
        for some in ([rows[i] for i in group] for group in even([row["input_ids"] for row in rows]))]


def voices(table):
    """Of each speaker of a table of answers that has all emotions: emotion -> answers, (n, emotions)."""
    found, p = defaultdict(dict), table[[f"p_{e}" for e in data.emotions]].to_numpy(np.float32)
    truth = pd.Categorical(table["emotion"], data.emotions).codes
    for at, rows in table.reset_index(drop=True).groupby(["speaker", "emotion"]).groups.items():
        found[at[0]][truth[rows[0]]] = p[rows]
    return [voice for _, voice in sorted(found.items()) if len(voice) == emotions]


@torch.no_grad()
def answers(model, split, given=None):
    """Answers to every utterance of a split, as `protocols.predict` gives them. `given`: (conversation, turn) ->
    the answer that stands in its history, instead of the model's own; chance where there is none."""
    conversations = data.select(getattr(fold, split))
    past, marks, p = [EMPTY] * len(conversations), [EMPTY] * len(conversations), {}
    held = [torch.zeros(0, emotions)] * len(conversations)
    for turn in range(max(len(c.utterances) for c in conversations)):
        active = [i for i, c in enumerate(conversations) if turn < len(c.utterances)]
        now = {i: conversations[i].utterances[turn] for i in active}
        said = {i: model.sentence(spoken.codes[u.id]) for i, u in now.items()}
        mark = {i: 1 + (u.speaker != conversations[i].utterances[0].speaker) for i, u in now.items()}
        texts = [torch.cat([past[i], said[i]]) for i in active]
        beliefs = [torch.cat([held[i], torch.zeros(len(said[i]), emotions)]) for i in active]
        shown = [torch.cat([marks[i], F.one_hot(torch.tensor(len(said[i]) - 1)) * mark[i]]) for i in active]
        for some in even(texts, TOKENS):
            batch = model.batch([texts[k][-model.window:] for k in some])
            model.belief, model.who = (
                pad_sequence([of[k][-model.window:] for k in some], batch_first=True).to(model.device)
                for of in (beliefs, shown))
            found = model.emotions(model.hidden(batch.ids), batch).softmax(-1).cpu().numpy()
            p |= zip([(conversations[active[k]].id, turn) for k in some], found, strict=True)
        for text, belief, who, i in zip(texts, beliefs, shown, active, strict=True):
            own = p[conversations[i].id, turn]
            answer = own if given is None else given.get((conversations[i].id, turn), chance)
            past[i] = tail(torch.cat([text, model.answer(int(own.argmax()))]), n_r)
            held[i] = tail(torch.cat([belief, torch.as_tensor(answer, dtype=torch.float)[None]]), n_r)
            marks[i] = tail(torch.cat([who, torch.tensor([mark[i]])]), n_r)
    table = protocols.rows(conversations)
    at = zip(table["conversation"], table["turn"], strict=True)
    return protocols.answered(table, data.emotions, np.stack([p[of] for of in at]))


def by_turn(table):
    """(conversation, turn) -> answer."""
    at = zip(table["conversation"], table["turn"], strict=True)
    return dict(zip(at, table[[f"p_{e}" for e in data.emotions]].to_numpy(), strict=True))


plain = {split: protocols.predict(settings, data, spoken, tuned, "window", split)
         for split in ("validation", "test")}
donors = protocols.donors(protocols.rows(data.select(fold.test)), "conversation")
truth = {(c.id, turn): np.eye(emotions)[data.emotions.index(u.emotion)]
         for c in data.select(fold.test) for turn, u in enumerate(c.utterances)}
filtered = baselines.inertia(plain["test"], plain["validation"], settings, data)
tables, history, kept = {"window": plain["test"], "window + filter": filtered}, [], {}
for name in NAMES:
    seen, best = plain["validation"], None
    for number in range(1, rounds + 1):
        size = spoken.facts["codebook_size"]
        model = Believer.create(settings.backbone, tune, size, data.emotions, settings.seed)
        if name != NAMES[0]:
            model.marks = torch.nn.Embedding(3, settings.backbone.hidden, padding_idx=0)
            torch.nn.init.normal_(model.marks.weight[1:], std=model.causal_lm.config.initializer_range)
        parts = [Beliefs(model, voices(seen), split) for split in ("train", "validation")]
        folder = f"{tuned.key}-{number}-{rounds}-{tune.epochs}" + "-marked" * (name != NAMES[0])
        folder = Path(sys.argv[1]) / "runs" / "belief" / folder
        epochs = finetune.fit(model, *parts, collate, tune, folder, settings)
        model = model.to(machine.device(settings)).eval().requires_grad_(False)
        seen = answers(model, "validation")
        history.append({"method": name, "round": number, "epochs": [row["eval_l_e"] for row in epochs],
                        "WA": metrics.wa(seen, data.emotions), "L_e": metrics.nll(seen, data.emotions)})
        print(history[-1], flush=True)
        if best is None or history[-1]["L_e"] < best[0]:
            best = history[-1]["L_e"], number, model, seen
    _, number, model, seen = best
    own = answers(model, "test")
    held = by_turn(own)
    given = {"another conversation's": {(c, turn): held[d, turn] for c, d in donors.items() for _, turn in held
                                        if (d, turn) in held}, "chance": {}, "the truth, a bound": truth}
    made = {name: own, f"{name} + filter": baselines.inertia(own, seen, settings, data)} | {
        f"{name}: {title}": answers(model, "test", answer) for title, answer in given.items()}
    tables, kept = tables | made, kept | dict.fromkeys(made, number)
scored = metrics.scored(tables, "all-lengths", data.emotions, settings)
rows = [{"method": row["method"], "round": kept.get(row["method"], ""),
         "L_e, nats": metrics.nll(tables[row["method"]], data.emotions)} | {
    key.replace("WA_gain", "gain"): row[key] for key in ("WA", "WA_interval", "WA_gain", "WA_gain_interval")}
    for row in scored["methods"]]
for a, b in [(name, b) for name in NAMES for b in ("window + filter", f"{name}: another conversation's")]:
    pair = metrics.resampled({a: tables[a], b: tables[b]}, data.emotions, settings.evaluation.bootstrap)
    gain = pair[a]["WA"] - pair[b]["WA"]
    rows.append({"method": f"{a} - {b}", "round": kept[a], "gain": float(gain[0]),
                 "gain_interval": metrics.interval(gain, settings.evaluation.confidence)})
print(*rows, sep="\n")
written = records.save_bench(settings, "belief", {"rows": rows, "history": history}, time.perf_counter() - began)
pd.concat([t.assign(method=m) for m, t in tables.items()]).to_parquet(written.with_suffix(".parquet"), index=False)
