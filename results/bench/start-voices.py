"""A temporary LoRA whose start and step sizes are meta-learned on training speakers (MAML; PERK, TTT-E2E): does
a memory that was made to be written into tell emotions? `python results/bench/start-voices.py HOME CREMA-D [STEPS]`
writes HOME/results/bench/start-voices-ca5e9f.json (the digits of its settings); five minutes on an H100.

Inner: a step of plain gradient descent on L_t of each sentence, as DPM takes it, its size learned per factor.
Outer: L_e of every sentence once it is written, through CHUNK sentences (second order), on conversations composed
anew of the training speakers' clips. The backbone is frozen; the state of lowest validation L_e is tested, once.
"""
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpmkit import codes, corpora, finetune, machine, metrics, protocols, records
from dpmkit.corpora import composed, dynamics
from dpmkit.lora import TemporaryLoRA
from dpmkit.memory import EMPTY, tail
from dpmkit.settings import Settings

TIMES, BATCH = 8, 96  # new conversations per old one; of them per step
CHUNK, TURNS, EVERY = 5, 20, 7  # sentences per update and of a conversation learned from; steps per validation
START, RATES, SIZE = 1e-3, 1e-2, 5e-4  # learning rates of start and log step sizes; size of a first step (rms)
as_it_was = {"finetune.epochs": 8, "finetune.redrawn": 0.0}  # what profile voices had when this was measured
settings = Settings.of("voices", as_it_was, home=sys.argv[1], root=sys.argv[2])
steps, began = int(sys.argv[3]) if len(sys.argv) > 3 else 70, time.perf_counter()
torch.manual_seed(0)
data = corpora.load(settings)
spoken = codes.make(settings, data)
tuned = finetune.train(settings, data, spoken)
sllm, fold = tuned.sllm.to(machine.device(settings)).eval().requires_grad_(False), data.folds[0]
n_r = settings.memory.prefix
lora = TemporaryLoRA(sllm.linear_layers(), 1, settings.memory, 0)
sizes = [shape.numel() for shape in lora.shapes]
start = torch.nn.Parameter(lora.fresh.clone())
log_rates = torch.nn.Parameter(torch.zeros(len(sizes), device=sllm.device))
segment = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(sllm.device)


def new():
    """Conversations of the training speakers' clips in other orders, with their codes."""
    clips, session, made = {}, {}, []
    for c in data.select(fold.train):
        clips |= {u.audio: u for u in c.utterances}
        session |= {u.speaker: c.session for u in c.utterances}
    asked = settings.conversation.but(conversations=settings.conversation.conversations * TIMES, seed=9000)
    chain = dynamics.chain(data.emotions)
    for c in composed.compose(list(clips.values()), session, asked, data.emotions, chain, []):
        own = [clips[u.audio].id for u in c.utterances]
        made.append(replace(c, utterances=tuple(map(lambda u, i: replace(u, id=i), c.utterances, own))))
    return made


def passed(flat, prefixes, pieces):
    """L_t of each piece and the emotion logits at its end through factors (rows, parameters), or none; products
    that can be differentiated twice."""
    for group, a, bs in lora._parts(flat) if flat is not None else ():
        for layer, own, b in zip(group.layers, a.split(lora.rank, 1), bs, strict=True):
            layer.__dict__["forward"] = partial(
                lambda x, layer, own, b: F.linear(x, layer.weight, layer.bias)
                + lora.scaling * (x @ own.transpose(1, 2)) @ b.transpose(1, 2), layer=layer, own=own, b=b)
    try:
        texts = [torch.cat(pair) for pair in zip(prefixes, pieces, strict=True)]
        batch = sllm.batch(texts, [max(1, len(prefix)) for prefix in prefixes])
        hidden = sllm.hidden(batch.ids)
        return sllm.losses(hidden, batch, "codes"), sllm.emotions(hidden, batch)
    finally:
        for layer in lora.modules.values():
            layer.__dict__.pop("forward", None)


def play(conversations, memory="own", donors=None, optimizer=None):
    """Answers to every utterance, (turn, rows, logits, labels) each; with an optimizer it learns of them."""
    turns = TURNS if optimizer else None
    rows = [[sllm.sentence(spoken.codes[u.id]) for u in c.utterances[:turns]] for c in conversations]
    written = rows
    if donors:
        written = [[sllm.sentence(spoken.codes[u.id]) for u in c.utterances] for c in donors]
    own, past = [EMPTY] * len(rows), [EMPTY] * len(rows)
    delta, found, loss, n = torch.zeros(len(rows), len(segment), device=sllm.device), [], 0, 0
    for turn in range(max(map(len, rows))):
        active = [i for i in range(len(rows)) if turn < len(rows[i])]
        if optimizer and len(active) < len(rows) / 2:
            break
        writes = [i for i in active if turn and memory == "own" and turn < len(written[i])]
        if writes:
            with torch.enable_grad():
                leaf = start + delta[writes] if optimizer else (start + delta[writes]).detach().requires_grad_()
                losses, _ = passed(leaf, [past[i] for i in writes], [written[i][turn] for i in writes])
                gradient, = torch.autograd.grad(losses.sum(), leaf, create_graph=optimizer is not None)
            index = torch.tensor(writes, device=sllm.device)
            delta = delta.index_copy(0, index, delta[writes] - log_rates.exp()[segment] * gradient)
        labels = [data.emotions.index(conversations[i].utterances[turn].emotion) for i in active]
        _, logits = passed(None if memory == "none" else start + delta[active], [EMPTY] * len(active),
                           [torch.cat([own[i], rows[i][turn]]) for i in active])
        found.append((turn, active, logits.detach(), labels))
        if optimizer and turn:
            loss, n = loss + F.cross_entropy(logits, torch.tensor(labels, device=sllm.device)), n + 1
        if n == CHUNK:
            optimizer.zero_grad()
            (loss / n).backward()
            torch.nn.utils.clip_grad_norm_([start], 1.0)
            optimizer.step()
            loss, n, delta = 0, 0, delta.detach()
        for i in active:
            own[i] = tail(torch.cat([own[i], rows[i][turn]]), n_r)
            past[i] = tail(torch.cat([past[i], written[i][turn]]), n_r) if turn < len(written[i]) else past[i]
    return found


@torch.no_grad()
def answers(split):
    """A table of answers, as `protocols.predict` gives it, of each of: no LoRA, the start alone, its own memory,
    another conversation's."""
    conversations, made = data.select(getattr(fold, split)), {}
    names = protocols.donors(protocols.rows(conversations), "conversation")
    others = data.select(tuple(names[c.id] for c in conversations))
    hears = {"window": ("none",), "start": ("still",), "own": ("own",), "swapped": ("own", others)}
    for name, how in hears.items():
        p = {}
        for turn, active, logits, _ in play(conversations, *how):
            p |= zip([(conversations[i].id, turn) for i in active], logits.softmax(-1).cpu().numpy(), strict=True)
        table = protocols.rows(conversations)
        at = list(zip(table["conversation"], table["turn"], strict=True))
        made[name] = protocols.answered(table, data.emotions, np.stack([p[of] for of in at]))
    return made


with sdpa_kernel(SDPBackend.MATH):
    fresh, random = new(), np.random.default_rng(0)
    some = [sllm.sentence(spoken.codes[c.utterances[0].id]) for c in fresh[:8]]
    leaf = start.detach().repeat(8, 1).requires_grad_()
    gradient, = torch.autograd.grad(passed(leaf, [EMPTY] * 8, some)[0].sum(), leaf)
    root = torch.stack([g.square().mean().sqrt() for g in gradient.split(sizes, 1)])
    log_rates.data = torch.log(SIZE / torch.where(root > 0, root, root[root > 0].median()))  # B's 0 makes A's 0
    optimizer = torch.optim.AdamW([{"params": [start], "lr": START}, {"params": [log_rates], "lr": RATES}],
                                  weight_decay=0.0)
    history, best = [], None
    for step in count():
        if step % EVERY == 0 or step == steps:
            tables = answers("validation")
            history.append({"steps": step} | {
                f"{name}: {title}": of(table, data.emotions) for name, table in tables.items()
                for title, of in (("WA", metrics.wa), ("L_e", metrics.nll))})
            print(history[-1], flush=True)
            if best is None or history[-1]["own: L_e"] < best[0]:
                best = history[-1]["own: L_e"], step, start.detach().clone(), log_rates.detach().clone()
        if step == steps:
            break
        chosen = random.choice(len(fresh), BATCH, replace=False)
        play([fresh[i] for i in chosen], optimizer=optimizer)
    _, kept, start.data, log_rates.data = best
    tables = answers("test")
scored = metrics.scored(tables, "all-lengths", data.emotions, settings)
rows = [{"method": row["method"], "steps": kept, "L_e, nats": metrics.nll(tables[row["method"]], data.emotions)} | {
    key.replace("WA_gain", "gain"): row[key] for key in ("WA", "WA_interval", "WA_gain", "WA_gain_interval")}
    for row in scored["methods"]]
for a, b in (("own", "start"), ("own", "swapped")):
    pair = metrics.resampled({a: tables[a], b: tables[b]}, data.emotions, settings.evaluation.bootstrap)
    gain = pair[a]["WA"] - pair[b]["WA"]
    rows.append({"method": f"{a} - {b}", "steps": kept, "gain": float(gain[0]),
                 "gain_interval": metrics.interval(gain, settings.evaluation.confidence)})
print(*rows, sep="\n")
written = records.save_bench(settings, "start", {"rows": rows, "history": history}, time.perf_counter() - began)
pd.concat([t.assign(method=m) for m, t in tables.items()]).to_parquet(written.with_suffix(".parquet"), index=False)
