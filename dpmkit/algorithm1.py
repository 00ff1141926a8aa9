"""Algorithm 1 of the paper in plain PEFT: one conversation, one temporary LoRA, one step of AdamW per sentence.

The reference: `memory` computes the same of many conversations side by side; `tests/` and `bench` hold it to this.
L_t is L_a (equations 3 and 4) over the m tokens of a new sentence; an emotion is read as L_e reads it (5 and 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from .settings import MemorySettings
from .sllm import EmotionSLLM


def algorithm1(sllm: EmotionSLLM, sentences: Sequence[np.ndarray], settings: MemorySettings,
               start: Sequence[Tensor] = ()) -> tuple[list[float], list[np.ndarray]]:
    """L_t of each update, and the emotions' probabilities, shape (emotions,), after each sentence.

    sentences: codes, shape (frames,) each. start: A of every layer, lowest first, where it is not to be random.
    The paper reads the last sentence alone; the answers before it are those of shorter conversations.
    """
    words, n_r = sllm.vocabulary, settings.prefix
    # The SLLM is frozen; a new temporary LoRA stands on all of its linear layers: W + (alpha / r) B A.
    layers = sorted({name.rpartition(".")[2] for name in sllm.linear_layers()})
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=layers)
    model = get_peft_model(sllm.model, config)
    temporary = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for a, given in zip((p for name, p in temporary.items() if "lora_A" in name), start, strict=False):
        a.data.copy_(given)
    optimizer = torch.optim.AdamW(temporary.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    history, losses, probabilities = torch.empty(0, dtype=torch.long), [], []
    for turn, codes in enumerate(sentences):
        sentence = sllm.sentence(codes)  # (m,): codes and <audio_end>
        prefix = history[max(0, len(history) - n_r):]  # (n_r,): the tail of what came before, or all of it
        sllm.fits([prefix], [sentence])  # n_limit >= n_max + n_r
        ids = torch.cat([prefix, sentence]).to(sllm.device)  # (n_r + m,)
        if turn:  # the first sentence gives no update
            m = len(ids) - max(1, len(prefix))
            # Equation 3, teacher forced: what each token says of the next, among codes and <audio_end>.
            logits = model(input_ids=ids[None]).logits[0, -m - 1:-1, words.base:words.end + 1]  # (m, codes + 1)
            # Equation 4: L_t, the mean cross-entropy of the m tokens.
            loss = F.cross_entropy(logits.float(), ids[-m:] - words.base)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # one step, of the temporary LoRA alone
            losses.append(loss.item())
        with torch.no_grad():
            # Equations 5 and 6: at <audio_end>, over the emotions' logits alone, with the temporary LoRA active.
            logits = model(input_ids=ids[None]).logits[0, -1, words.emotion]  # (emotions,)
        probabilities.append(logits.float().softmax(-1).cpu().numpy())
        history = torch.cat([history, sentence])
    sllm.model = model.unload()  # the temporary LoRA is discarded
    return losses, probabilities
