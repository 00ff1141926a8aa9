"""Algorithm 1 and every option of the memory by its definition: one conversation, one row at a time, autograd,
torch's own optimisers, transformers' own cache where an option is one. The reference of `test_options`."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dpmkit import cheaper
from dpmkit.corpora.dynamics import forward_step

NONE = torch.empty(0, dtype=torch.long)


class Kept:
    """`reuse`: keys and values of the last tokens (and the first, `sinks`), as they were when they were heard. The
    last token of all is heard anew, with what follows."""

    def __init__(self, size, sinks):
        self.size, self.sinks, self.heard, self.tokens, self.last = size, sinks, 0, [], NONE

    def past(self, model):
        """A cache of transformers, and the position of the token after it. Sinks stand right before the others."""
        cache, start = DynamicCache(config=model.config), self.heard - len(self.tokens)
        for block in range(model.config.num_hidden_layers if self.tokens else 0):
            keys = []
            for slot, (position, states) in enumerate(self.tokens):
                turned = model.model.rotary_emb(states[block][0], torch.tensor([[start + slot - position]]))
                keys.append(apply_rotary_pos_emb(states[block][0], states[block][0], *turned)[0])
            cache.update(torch.cat(keys, 2), torch.cat([states[block][1] for _, states in self.tokens], 2), block)
        return cache, self.heard

    def keep(self, row, cache):
        before = len(self.tokens)
        self.tokens += [(self.heard + n, [(part.keys[:, :, before + n:before + n + 1].detach(),
                                           part.values[:, :, before + n:before + n + 1].detach())
                                          for part in cache.layers]) for n in range(len(row) - 1)]
        self.heard, self.last = self.heard + len(row) - 1, row[-1:]
        if (over := len(self.tokens) - self.size) > 0:
            self.tokens = (self.tokens[:self.sinks] + self.tokens[self.sinks + over:])[:self.size]


class SlowMemory:
    """`turns` gives (probabilities, L_t of what was written, L_t of the sentence itself) a sentence, NaN where
    there is none. `written`: sentences of another conversation, written instead; `speakers`: of what is written."""

    def __init__(self, sllm, settings, inertia=None, seed=0):
        self.settings, self.vocabulary, self.window, self.inertia = settings, sllm.vocabulary, sllm.window, inertia
        self.sllm, self.n_r = sllm, settings.prefix + settings.sinks
        self.model = copy.deepcopy(sllm.causal_lm).requires_grad_(False)
        if settings.precision == "bfloat16":
            for weight in self.model.parameters():
                weight.data = weight.data.bfloat16()
            self.model.set_attn_implementation("eager")
        start = cheaper.memory(sllm, settings, 1, seed, inertia).lora
        self.start = [part[0].detach().clone() for pair in start.factors([0]) for part in pair]
        layers = dict(self.model.model.layers.named_modules())
        for n, name in enumerate(start.modules):
            layers[name].register_forward_hook(
                lambda _, x, y, n=n: torch.baddbmm(  # one rounding, which bfloat16 would show
                    y, x[0] @ self.factors[2 * n].to(y.dtype).T, self.factors[2 * n + 1].to(y.dtype).T[None],
                    alpha=settings.alpha / settings.rank))
        self.beliefs, self.own, self.told = {}, NONE, NONE
        self.fresh()
        if settings.prefix_states == "reuse":
            self.own_kept, self.told_kept = Kept(self.n_r - 1, settings.sinks), None

    def fresh(self):
        self.factors = [part.clone().requires_grad_() for part in self.start]
        maker = torch.optim.AdamW if self.settings.optimizer == "adamw" else torch.optim.SGD
        self.optimizer = maker(self.factors, lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        for part in self.factors:
            part.grad = torch.zeros_like(part) if part.grad is None else part.grad
        self.optimizer.step()
        with torch.no_grad():
            for part, start in zip(self.factors, self.start, strict=True):
                part.lerp_(start, self.settings.decay)

    def tail(self, tokens):
        return tokens[max(0, len(tokens) - self.n_r):]

    def pieces(self, before, tokens):
        """(prefix, piece): a sentence longer than the window less n_r in pieces, each after the n_r before it."""
        stream, room = torch.cat([before, tokens]), self.window - self.n_r
        return [(self.tail(stream[:at]), stream[at:at + room]) for at in range(len(before), len(stream), room)]

    def look(self, prefix, piece, kept=None):
        """A function that hears a piece after its prefix under the memory as it then is: (row, logits, the first
        token to be predicted, cache)."""
        if kept is not None:
            states, position, row = *kept.past(self.model), torch.cat([kept.last if self.n_r else NONE, piece])
        else:
            states, position, row = DynamicCache(config=self.model.config), 0, torch.cat([prefix, piece])

        return self.after(states, position, row, len(row) - len(piece) or 1)

    def exactly(self, prefix, piece):
        """The same, in one row and without a cache."""
        return self.after(DynamicCache(config=self.model.config), 0, torch.cat([prefix, piece]), len(prefix) or 1)

    def after(self, states, position, row, first):
        def hear():
            cache = copy.deepcopy(states)
            logits = self.model(row[None], past_key_values=cache,
                                position_ids=position + torch.arange(len(row))[None]).logits[0].float()
            return row, logits, first, cache
        return hear

    def l_t(self, row, logits, first):
        words = self.vocabulary
        losses = [F.cross_entropy(logits[t - 1] if self.settings.loss_vocabulary == "all"
                                  else logits[t - 1, words.base:words.end + 1],
                                  row[t] - (0 if self.settings.loss_vocabulary == "all" else words.base))
                  for t in range(first, len(row)) if row[t] <= words.end]
        return torch.stack(losses).mean() if losses else logits.sum() * 0

    def emotions(self, logits):
        return logits[-1, self.vocabulary.emotion]

    def write(self, hear, speaker):
        """The steps on one piece; of the first forward L_t and logits, of the last one the cache."""
        target = before = None
        for _ in range(max(1, self.settings.steps)):
            row, logits, first, cache = hear()
            lowered = l_t = self.l_t(row, logits, first)
            before = before or (l_t.item(), logits.detach())
            if self.settings.rule != "semantic":
                answer, surprise = self.emotions(logits).softmax(-1), logits.sum() * 0
                if row[-1] == self.vocabulary.end:
                    target = self.target(answer.detach(), speaker) if target is None else target
                    if (target - answer.detach()).abs().max() > 1e-6:
                        surprise = -(target * answer.log()).sum()
                lowered = surprise if self.settings.rule == "emotion" else l_t + surprise
            if self.settings.steps:
                self.step(lowered)
        return *before, row, cache

    def target(self, answer, speaker):
        if self.settings.target == "filtered":
            self.beliefs[speaker] = forward_step(self.beliefs.get(speaker), answer.double().numpy(), *self.inertia)
            return torch.tensor(self.beliefs[speaker]).float()
        return answer.square() / answer.square().sum()

    def turns(self, sentences, written=None, speakers=(), labels=()):
        s, waiting = self.settings, NONE
        for turn, codes in enumerate(sentences):
            sentence, label = self.sllm.sentence(codes), labels[turn] if turn < len(labels) else None
            swapped, speaker = written is not None, speakers[turn] if turn < len(speakers) else ""
            other = sentence if not swapped else self.sllm.sentence(
                written[turn]) if turn < len(written) else NONE
            if turn and s.reset_every and turn % s.reset_every == 0:
                self.fresh()
            own_loss = np.nan
            if turn:
                with torch.no_grad():
                    own_loss = np.mean([self.l_t(*self.exactly(*part)()[:3])
                                        for part in self.pieces(self.own, sentence)])
            due = []
            kind, _, size = s.stepping.partition("-")
            if kind == "sentence" and turn:
                due = self.pieces(self.told, other)
            elif turn:
                waiting, stream, room = torch.cat([waiting, other]), torch.cat([self.told, other]), int(size)
                if kind == "every":
                    room = self.window - self.n_r if turn % int(size) == 0 else len(waiting) + 1
                while len(waiting) >= (room if kind == "stride" or turn % int(size) else 1):
                    at = len(stream) - len(waiting)
                    due.append((self.tail(stream[:at]), waiting[:room]))
                    waiting = waiting[room:]
            read = self.exactly(NONE, torch.cat([self.tail(self.own), sentence])[-self.window:])
            if s.prefix_states == "reuse":
                losses, logits = self.reused(sentence, due, swapped, speaker, bool(turn))
            else:
                losses = []
                if s.read == "after":
                    losses = [self.write(self.look(*part), speaker)[0] for part in due]
                logits = self.emotions(read()[1]).detach()
                if s.read == "before":
                    losses = [self.write(self.look(*part), speaker)[0] for part in due]
            if label is not None:
                self.step(F.cross_entropy(self.emotions(read()[1]), torch.tensor(label)))
            p = logits.softmax(-1)
            loss = np.mean(losses) if losses else np.nan
            yield p.numpy(), loss, own_loss if swapped or kind != "sentence" else loss
            answer = self.sllm.answer(int(p.argmax())) if s.history_emotions == "predicted" else NONE
            self.own = torch.cat([self.own, sentence, answer])
            self.told = torch.cat([self.told, other, NONE if swapped else answer])
            if len(waiting) and not swapped:
                waiting = torch.cat([waiting, answer])

    def reused(self, sentence, due, swapped, speaker, later):
        """One turn of `reuse`: every own piece is heard once after what was kept, and once written from there."""
        losses, before = [], self.settings.read == "before"

        def hear(kept, part):
            with torch.no_grad():
                row, got, _, cache = self.look(*part, kept)()
            kept.keep(row, cache)
            return self.emotions(got)

        def apart():
            return [hear(self.own_kept, part) for part in self.pieces(self.own, sentence)][-1]

        if swapped and due and self.told_kept is None:  # the prefix of the first write is heard then
            self.told_kept = Kept(self.n_r - 1, self.settings.sinks)
            if len(due[0][0]):
                hear(self.told_kept, (NONE, due[0][0]))
        logits = apart() if before and (swapped or not later) else None
        for part in due:
            kept = self.told_kept if swapped else self.own_kept
            loss, first, row, cache = self.write(self.look(*part, kept), speaker)
            losses.append(loss)
            if before:
                kept.keep(row, cache)
                answer = self.emotions(first)
            else:
                answer = hear(kept, part)
            logits = logits if swapped else answer
        return losses, logits if before or (later and not swapped) else apart()
