"""An SLLM that holds its belief: after each utterance its own soft answer stands in its history, the mean of the
emotion tokens' embeddings under it, and it was trained with answers such as it will see. Does it gain more than
four numbers under a filter? `python results/bench/belief-voices.py HOME CREMA-D [ROUNDS [EPOCHS]]` writes
HOME/results/bench/belief-voices.json; twenty minutes on one core.

In training, the answer after an utterance is one that an SLLM gave to an unseen speaker's utterance of that
emotion: of one validation speaker in a whole dialogue, as errors are a speaker's. In the first round these are
answers of the plain SLLM, in the next one of the last round's. The round of lowest validation L_e is tested, once.
"""
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from dpmkit import baselines, codes, corpora, finetune, machine, metrics, protocols, records
from dpmkit.memory import EMPTY, tail
from dpmkit.settings import Settings
from dpmkit.sllm import EmotionSLLM, even

TOKENS = 4096  # of a forward that answers
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
    """An SLLM whose emotion tokens are soft: `belief`, (rows, tokens, emotions), at their places."""

    belief = None

    def forward(self, belief, **batch):
        self.belief = belief
        return super().forward(**batch)

    def embedded(self, ids):
        table = self.causal_lm.get_input_embeddings()
        soft = self.belief @ table.weight[self.vocabulary.emotion]
        return self.dropout(torch.where(self.is_sound(ids)[..., None], table(ids), soft))


class Beliefs(finetune.Dialogues):
    """Training sequences whose emotion tokens are answers to unseen speakers. `voices`: of each such speaker,
    emotion -> answers, (n, emotions)."""

    def __init__(self, model, voices, split):
        super().__init__(model, data, spoken, with_answers, split)
        self.voices = voices

    def __getitem__(self, index):
        random = np.random.default_rng([settings.seed, self.epoch if self.moving else 0, index, 1])
        voice = self.voices[random.integers(len(self.voices))]
        return [row | {"belief": self.believed(row["input_ids"], voice, random)}
                for row in super().__getitem__(index)]

    def believed(self, ids, voice, random):
        belief = torch.zeros(len(ids), emotions)
        for at in (~self.model.is_sound(ids)).nonzero()[:, 0]:
            known = voice[int(ids[at]) - self.model.vocabulary.emotion.start]
            belief[at] = torch.as_tensor(known[random.integers(len(known))])
        return belief


def collate(items):
    """As `finetune.forwards`, with beliefs."""
    rows = [row for item in items for row in item]
    return [finetune.padded([rows[i] for i in some]) | {
        "belief": pad_sequence([rows[i]["belief"] for i in some], batch_first=True)}
        for some in even([row["input_ids"] for row in rows])]


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
    past, held, p = [EMPTY] * len(conversations), [torch.zeros(0, emotions)] * len(conversations), {}
    for turn in range(max(len(c.utterances) for c in conversations)):
        active = [i for i, c in enumerate(conversations) if turn < len(c.utterances)]
        said = {i: model.sentence(spoken.codes[conversations[i].utterances[turn].id]) for i in active}
        texts = [torch.cat([past[i], said[i]]) for i in active]
        beliefs = [torch.cat([held[i], torch.zeros(len(said[i]), emotions)]) for i in active]
        for some in even(texts, TOKENS):
            batch = model.batch([texts[k][-model.window:] for k in some])
            held_now = [beliefs[k][-model.window:] for k in some]
            model.belief = pad_sequence(held_now, batch_first=True).to(model.device)
            found = model.emotions(model.hidden(batch.ids), batch).softmax(-1).cpu().numpy()
            p |= zip([(conversations[active[k]].id, turn) for k in some], found, strict=True)
        for text, belief, i in zip(texts, beliefs, active, strict=True):
            own = p[conversations[i].id, turn]
            answer = own if given is None else given.get((conversations[i].id, turn), chance)
            past[i] = tail(torch.cat([text, model.answer(int(own.argmax()))]), n_r)
            held[i] = tail(torch.cat([belief, torch.as_tensor(answer, dtype=torch.float)[None]]), n_r)
    table = protocols.rows(conversations)
    at = zip(table["conversation"], table["turn"], strict=True)
    return protocols.answered(table, data.emotions, np.stack([p[of] for of in at]))


def by_turn(table):
    """(conversation, turn) -> answer."""
    at = zip(table["conversation"], table["turn"], strict=True)
    return dict(zip(at, table[[f"p_{e}" for e in data.emotions]].to_numpy(), strict=True))


plain = {split: protocols.predict(settings, data, spoken, tuned, "window", split)
         for split in ("validation", "test")}
seen, history, best = plain["validation"], [], None
for number in range(1, rounds + 1):
    model = Believer.create(settings.backbone, tune, spoken.facts["codebook_size"], data.emotions, settings.seed)
    parts = [Beliefs(model, voices(seen), split) for split in ("train", "validation")]
    folder = Path(sys.argv[1]) / "runs" / "belief" / f"{tuned.key}-{number}-{rounds}-{tune.epochs}"
    epochs = finetune.fit(model, *parts, collate, tune, folder, settings)
    model = model.to(machine.device(settings)).eval().requires_grad_(False)
    seen = answers(model, "validation")
    history.append({"round": number, "epochs": [row["eval_l_e"] for row in epochs],
                    "WA": metrics.wa(seen, data.emotions), "L_e": metrics.nll(seen, data.emotions)})
    print(history[-1], flush=True)
    if best is None or history[-1]["L_e"] < best[0]:
        best = history[-1]["L_e"], number, model, seen
_, kept, model, validation = best
own = answers(model, "test")
donors, held = protocols.donors(protocols.rows(data.select(fold.test)), "conversation"), by_turn(own)
truth = {(c.id, turn): np.eye(emotions)[data.emotions.index(u.emotion)]
         for c in data.select(fold.test) for turn, u in enumerate(c.utterances)}
tables = {
    "window": plain["test"],
    "window + filter": baselines.inertia(plain["test"], plain["validation"], settings, data),
    "belief": own,
    "belief + filter": baselines.inertia(own, validation, settings, data),
    "belief, another conversation's": answers(model, "test", {
        (c, turn): held[d, turn] for c, d in donors.items() for _, turn in held if (d, turn) in held}),
    "belief, chance": answers(model, "test", {}),
    "belief, the truth: a bound": answers(model, "test", truth)}
scored = metrics.scored(tables, "all-lengths", data.emotions, settings)
rows = [{"method": row["method"], "round": kept, "L_e, nats": metrics.nll(tables[row["method"]], data.emotions)} | {
    key.replace("WA_gain", "gain"): row[key] for key in ("WA", "WA_interval", "WA_gain", "WA_gain_interval")}
    for row in scored["methods"]]
for a, b in (("belief", "window + filter"), ("belief", "belief, another conversation's")):
    pair = metrics.resampled({a: tables[a], b: tables[b]}, data.emotions, settings.evaluation.bootstrap)
    gain = pair[a]["WA"] - pair[b]["WA"]
    rows.append({"method": f"{a} - {b}", "round": kept, "gain": float(gain[0]),
                 "gain_interval": metrics.interval(gain, settings.evaluation.confidence)})
print(*rows, sep="\n")
written = records.save_bench(settings, "belief", {"rows": rows, "history": history}, time.perf_counter() - began)
pd.concat([t.assign(method=m) for m, t in tables.items()]).to_parquet(written.with_suffix(".parquet"), index=False)
