"""The temporary LoRA: low-rank factors of many conversations side by side, added to a frozen backbone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from .settings import MemorySettings

# Layers of a block that are given one and the same input: x A' of all of them is one product.
SHARED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate and up", "up_proj": "gate and up"}


class _Linear(torch.autograd.Function):
    """W x + (alpha / rank) B A x of layers that share x, with the gradients of x, A and B; W is frozen.

    Written out, as autograd would keep a copy for every sum, and as the products of a layer's LoRA can be added in
    place: a third of the operations, which on a GPU is what a short sentence costs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, scaling: float, layers: Sequence[nn.Linear],
                *b: Tensor) -> tuple[Tensor, ...]:
        """x: (rows, tokens, inputs); a: (rows, layers * rank, inputs); b: (rows, outputs, rank) of each layer."""
        low = x @ a.transpose(1, 2)  # (rows, tokens, layers * rank)
        outputs = []
        for layer, own, part in zip(layers, b, low.chunk(len(b), 2), strict=True):
            output = F.linear(x, layer.weight, layer.bias)  # (rows, tokens, outputs)
            outputs.append(output.baddbmm_(part, own.transpose(1, 2), alpha=scaling))
        ctx.save_for_backward(x, a, low, *b)
        ctx.scaling, ctx.layers = scaling, layers
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what `forward` was given, None for what is frozen."""
        x, a, low, *b = ctx.saved_tensors
        of_low, of_b, of_x = torch.empty_like(low), [], None
        lows, into_lows = low.chunk(len(b), 2), of_low.chunk(len(b), 2)
        for layer, own, part, into, g in zip(ctx.layers, b, lows, into_lows, gradients, strict=True):
            into.baddbmm_(g, own, beta=0, alpha=ctx.scaling)
            of_b.append(torch.empty_like(own).baddbmm_(g.transpose(1, 2), part, beta=0, alpha=ctx.scaling))
            if ctx.needs_input_grad[0]:
                flat = g.reshape(-1, g.shape[-1])
                of_x = flat @ layer.weight if of_x is None else of_x.addmm_(flat, layer.weight)
        if of_x is not None:
            of_x = of_x.view_as(x).baddbmm_(of_low, a)
        return of_x, of_low.transpose(1, 2) @ x, None, None, *of_b


class _Group:
    """Layers that share their input; what all of them give is computed when the first of them is asked."""

    def __init__(self, names: Sequence[str], layers: Sequence[nn.Linear]):
        self.names, self.layers = names, layers
        self.input: Tensor | None = None
        self.outputs: list[Tensor] = []

    def forward(self, number: int, a: Tensor, b: Sequence[Tensor], scaling: float, x: Tensor) -> Tensor:
        """What layer `number` gives for x."""
        if self.input is not x:
            self.input, self.outputs = x, list(_Linear.apply(x, a, scaling, self.layers, *b))
        output = self.outputs[number]
        if number == len(self.layers) - 1:  # nothing is held longer than it is used
            self.input, self.outputs = None, []
        return output


class TemporaryLoRA:
    """Low-rank factors of B conversations for some linear layers of a frozen SLLM, and their optimiser.

    `flat`: (streams, parameters), float32; of each group of layers that share their input A, (layers * rank,
    inputs), then each one's B, (outputs, rank). `memories`: its rows, a parameter per stream. `fresh`: where all
    start, as PEFT does (A Kaiming uniform, B zero).
    """

    def __init__(self, modules: Mapping[str, nn.Linear], streams: int, settings: MemorySettings, seed: int):
        rank = settings.rank
        self.modules, self.rank, self.scaling, self.decay = modules, rank, settings.alpha / rank, settings.decay
        generator = torch.Generator().manual_seed(seed)
        start = {name: (torch.rand(rank, m.in_features, generator=generator) * 2 - 1) / math.sqrt(m.in_features)
                 for name, m in modules.items()}  # kaiming_uniform_(a=sqrt(5))
        names: dict[tuple, list[str]] = {}
        for name in modules:
            block, _, kind = name.rpartition(".")
            names.setdefault((block, SHARED.get(kind, kind)), []).append(name)
        self.groups = [_Group(of, [modules[name] for name in of]) for of in names.values()]
        parts = []
        for group in self.groups:
            parts += [torch.cat([start[name] for name in group.names]),
                      *(torch.zeros(layer.out_features, rank) for layer in group.layers)]
        self.shapes = [part.shape for part in parts]
        self.fresh = torch.cat([part.flatten() for part in parts]).to(self.groups[0].layers[0].weight.device)
        self.flat = nn.Parameter(self.fresh.repeat(streams, 1))
        self.memories = [nn.Parameter(row) for row in self.flat.data]
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.optimizer]
        self.optimizer = kind(self.memories, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)

    def reset(self, stream: int) -> None:
        """A fresh memory and optimiser's state, in place."""
        self.memories[stream].data.copy_(self.fresh)
        self.optimizer.state.pop(self.memories[stream], None)

    def step(self, gradients: Mapping[int, Tensor]) -> None:
        """One step of each of these streams by its gradient, (parameters,)."""
        for stream, gradient in gradients.items():
            self.memories[stream].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()  # a memory without a gradient takes no step
        for stream in gradients if self.decay else ():
            self.memories[stream].data.lerp_(self.fresh, self.decay)

    def _parts(self, flat: Tensor) -> Iterator[tuple[_Group, Tensor, list[Tensor]]]:
        """Each group with its A and B's, with their rows first."""
        sizes = [shape.numel() for shape in self.shapes]
        parts = map(Tensor.unflatten, flat.split(sizes, dim=1), repeat(1), self.shapes)
        for group in self.groups:
            yield group, next(parts), [next(parts) for _ in group.layers]

    def factors(self, streams: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """(A, B) of each layer: shapes (streams, rank, inputs) and (streams, outputs, rank)."""
        found = {}
        for group, a, b in self._parts(self.flat.data[list(streams)]):
            found |= dict(zip(group.names, zip(a.split(self.rank, 1), b, strict=True), strict=True))
        return [found[name] for name in self.modules]

    @torch.no_grad()
    def norm(self, streams: Sequence[int]) -> Tensor:
        """Frobenius norm of the change to the weights, (alpha / rank) B A over all layers; shape (streams,)."""
        alike: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
        for a, b in self.factors(streams):
            alike.setdefault((a.shape, b.shape), []).append((a, b))
        total = torch.zeros(len(streams), device=self.flat.device)
        for pairs in alike.values():
            a, b = (torch.stack(some, 1) for some in zip(*pairs, strict=True))  # (streams, layers, …)
            inner = (b.transpose(2, 3) @ b) * (a @ a.transpose(2, 3))  # trace of (BA)'(BA)
            total += inner.sum((1, 2, 3))
        return self.scaling * total.clamp_min(0).sqrt()

    @contextmanager
    def active(self, streams: Sequence[int]) -> Iterator[Tensor]:
        """While the block lasts row i of a batch goes through the memory of streams[i]: W x + (alpha / rank) B A x.
        Gives what a gradient is taken of, (streams, parameters). The layers' weights stay as they are."""
        every = list(streams) == list(range(len(self.memories)))
        leaf = self.flat if every else self.flat.data[list(streams)].requires_grad_()
        try:
            for group, a, b in self._parts(leaf.to(self.groups[0].layers[0].weight.dtype)):
                for number, layer in enumerate(group.layers):
                    layer.__dict__["forward"] = partial(group.forward, number, a, b, self.scaling)
            yield leaf
        finally:
            for layer in self.modules.values():
                layer.__dict__.pop("forward", None)
            for group in self.groups:  # an error may have left them full
                group.input, group.outputs = None, []


def _causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float | None = None,
            **_: Any) -> tuple[Tensor, None]:
    """Attention to all earlier tokens, without a mask, as transformers asks for it: (rows, heads, tokens, size)."""
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling,
                                           enable_gqa=query.shape[1] != key.shape[1])
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register("dpmkit", _causal)


def replaceable(decoder: nn.Module, tokens: int) -> bool:
    """Whether `fused` gives what the decoder gives for rows of so many tokens: causal attention to all of them."""
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    seen = getattr(config, "sliding_window", None) or tokens
    return kinds <= {"full_attention", "sliding_attention"} and seen >= tokens


@contextmanager
def fused(decoder: nn.Module) -> Iterator[None]:
    """While the block lasts: norms by torch's own kernel (on a GPU one operation, not seven), and attention that
    makes no mask, for which transformers would read from the device whether rows are packed."""
    norms = [m for m in decoder.modules() if hasattr(m, "variance_epsilon")]
    before = decoder.config._attn_implementation
    try:
        decoder.config._attn_implementation = "dpmkit"
        for norm in norms:
            norm.__dict__["forward"] = partial(F.rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight,
                                               eps=norm.variance_epsilon)
        yield
    finally:
        decoder.config._attn_implementation = before
        for norm in norms:
            norm.__dict__.pop("forward", None)


class Graphs:
    """The work of a function on a GPU, recorded for inputs of the same shapes, and then replayed whole (CUDA
    graphs): a short sentence's thousands of operations take less time than a processor needs to launch them. What
    it returns is overwritten by the next call. Elsewhere than on a GPU it is the function."""

    AFTER = 2  # calls of a shape that are not recorded: many come no third time

    def __init__(self):
        self.calls, self.made, self.pool = Counter(), {}, None

    def __call__(self, work: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """`work(*inputs)`."""
        shapes = tuple(x.shape for x in inputs)
        self.calls[shapes] += 1
        if inputs[0].device.type != "cuda" or self.calls[shapes] <= self.AFTER:
            return work(*inputs)
        if shapes not in self.made:
            graph, own = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self.pool):
                outputs = work(*own)
            self.made[shapes] = graph, own, outputs
        graph, own, outputs = self.made[shapes]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return outputs


def bucket(tokens: int) -> int:
    """The next of a few lengths, an eighth apart or 32 tokens."""
    step = max(32, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step
