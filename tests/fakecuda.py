"""A GPU without a GPU: torch's FakeTensorMode refuses what CUDA would; values are computed on the CPU beside."""

from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import safetensors.torch
import torch
import torch._dynamo  # FakeTensorMode imports it, which must be before `make` below stands in
from accelerate.state import AcceleratorState
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode, fake_tensor
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

from dpmkit import estimate, lora

CPU, ATEN = torch.device("cpu"), torch.ops.aten
UNKNOWN = (fake_tensor.DynamicOutputShapeException, fake_tensor.DataDependentOutputException,
           fake_tensor.UnsupportedOperatorException)  # what comes out is known from the values alone
PRODUCTS = (ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm)


class FakeCuda(FakeTensorMode):
    """Tensors on `cuda` are FakeTensors, so that an operation on two devices is an error, as on a GPU. Each has its
    values, too (`real_tensor`, on the CPU): `.tolist()`, masks and branches are those of a real run. Tensors on the
    CPU are real ones. `products` counts matrix products on the GPU by dtype and torch's precision of float32
    products at that moment; `calls` those of `torch.cuda`'s functions."""

    avoid_device_init = True

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self.inside, self.products, self.calls, self.current, self.drawn = False, Counter(), Counter(), 0, None

    def dispatch(self, func, types, args=(), kwargs=None):
        if kwargs and kwargs.get("device") in (torch.device("cuda"), torch.device("meta")):  # see `gpus`: make
            kwargs = {**kwargs, "device": torch.device("cuda", self.current)}
        if self.inside or func in fake_tensor._DISPATCH_META_HANDLERS:  # a part of one that has its values
            return super().dispatch(func, types, args, kwargs)
        flat, spec = pytree.tree_flatten((args, kwargs or {}))
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        places = {t.device for t in tensors}
        if len(places) > 1 and not _allowed(func, tensors):
            raise RuntimeError(f"{func}: tensors on two different devices, {places}")
        plain = [CPU if isinstance(x, torch.device) else value(x) for x in flat]
        here = any(x.type == "cuda" for x in [*places, *(x for x in flat if isinstance(x, torch.device))])
        with no_dispatch(), self._own_draws(here and torch.Tag.nondeterministic_seeded in func.tags):
            real_args, real_kwargs = pytree.tree_unflatten(plain, spec)
            real = func(*real_args, **real_kwargs)
        if not here:
            return real
        if getattr(func, "overloadpacket", None) in PRODUCTS:
            self.products[real.dtype, torch.get_float32_matmul_precision()] += 1
        self.inside = True
        try:
            out = super().dispatch(func, types, args, kwargs)
        except UNKNOWN:
            out = pytree.tree_map_only(torch.Tensor, lambda t: self._fake(t, tensors[0].device), real)
            if func.overloadpacket is ATEN._pack_padded_sequence:
                out = out[0], real[1]  # batch sizes are on the CPU, always
        finally:
            self.inside = False
        made, spec = pytree.tree_flatten(out)
        return pytree.tree_unflatten(map(_with, made, pytree.tree_leaves(real)), spec)

    @contextmanager
    def _own_draws(self, random):
        """What is drawn on a GPU leaves the CPU's generator alone."""
        if random:
            before = torch.default_generator.get_state()
            torch.default_generator.set_state(before if self.drawn is None else self.drawn)
        yield
        if random:
            self.drawn = torch.default_generator.get_state()
            torch.default_generator.set_state(before)

    def _fake(self, tensor, place):
        return FakeTensor(self, torch.empty_like(tensor, device="meta"), place)


def _allowed(func, tensors):
    """What CUDA takes of two devices (torch's FakeTensors take more): copies, numbers in pointwise operations, and
    indices from the CPU."""
    kind, first, *others = func.overloadpacket, *tensors
    if kind is ATEN._pack_padded_sequence:
        return others[0].device == CPU  # the lengths
    if kind in (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_):
        return first.device.type == "cuda" and all(t.device in (CPU, first.device) for t in others)
    numbers = {t.device for t in tensors if t.dim()} | {torch.device("cuda:0")}
    return kind in (ATEN.copy_, ATEN._to_copy) or (torch.Tag.pointwise in func.tags and CPU not in numbers
                                                   and len(numbers) == 1)


def _indexed(method):
    """C++ would put a list of indices on the device that it knows, `meta`, where there are no values."""
    def call(self, index, *value):
        parts = index if isinstance(index, tuple) else (index,)
        return method(self, tuple(torch.tensor(i) if isinstance(i, list) else i for i in parts), *value)
    return call


def _moved(seen):
    """`Module._apply` would swap a FakeTensor in place, which torch refuses where anything refers to it. Tied
    weights stay tied: `seen` knows what each became."""
    def apply(module, function, recurse=True):
        for child in module.children():
            child._apply(function)
        with torch.no_grad():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                made = function(tensor)
                if (made.device, made.dtype) == (tensor.device, tensor.dtype):
                    continue
                if name in module._buffers:
                    module._buffers[name] = made
                else:
                    new = nn.Parameter(made, tensor.requires_grad)
                    key = id(tensor), made.device, made.dtype
                    module._parameters[name], _ = seen.setdefault(key, (new, tensor))
        return module
    return apply


def _set_data(tensor, new):
    torch.Tensor.data.__set__(tensor, new)
    tensor.real_tensor = new.real_tensor


def _of_values(save):
    def call(tensors, *args, **kwargs):
        return save(pytree.tree_map_only(torch.Tensor, value, tensors), *args, **kwargs)
    return call


def _with(made, real):
    if not isinstance(made, FakeTensor) or made.device.type == "cpu":
        return real
    made.real_tensor = real
    return made


def _norm(x, normalized_shape, weight, eps):
    """torch.nn.functional.rms_norm, of operations that a CPU has."""
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def value(tensor):
    """A tensor's values, on the CPU."""
    return tensor.real_tensor if isinstance(tensor, FakeTensor) else tensor


@contextmanager
def gpus(count=1, backward=True):
    """This machine has so many GPUs, as far as torch's Python knows; yields the FakeCuda mode, which is on. Where
    there is no `backward`, autocast works."""
    mode, made = FakeCuda(), torch.Tensor._make_subclass

    def make(cls, elem, requires_grad=False, dispatch_device=False, device_for_backend_keys=None):
        # The way back, in C++, would ask the driver about a tensor of `cuda`: there it is one of `meta`.
        return made(cls, elem, requires_grad, device_for_backend_keys=device_for_backend_keys)

    answers = {"is_available": True, "is_initialized": True, "device_count": count, "is_bf16_supported": True,
               "get_device_name": "a fake GPU", "get_device_capability": (9, 0), "mem_get_info": (8 << 30, 9 << 30),
               "memory_allocated": 0, "max_memory_allocated": 1, "reset_peak_memory_stats": None,
               "synchronize": None, "is_current_stream_capturing": False, "empty_cache": None,
               "manual_seed_all": None, "get_rng_state_all": [], "get_rng_state": torch.zeros(8, dtype=torch.uint8),
               "set_rng_state_all": None, "set_rng_state": None,
               "current_device": lambda: mode.current,
               "set_device": lambda d: setattr(mode, "current", torch.device(d).index or 0)}

    def stand_in(module, name, answer):
        def call(*args, **kwargs):
            mode.calls[name] += 1
            return answer(*args) if callable(answer) else answer
        return mock.patch.object(module, name, call)

    with ExitStack() as stack:
        for name, answer in answers.items():
            for module in (torch.cuda, torch.cuda.random):
                if hasattr(module, name):
                    stack.enter_context(stand_in(module, name, answer))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        if backward:
            stack.enter_context(mock.patch.object(torch.Tensor, "_make_subclass", make))
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        for module, name in ((torch, "save"), (safetensors.torch, "save_file")):  # what is on disk has its values
            stack.enter_context(mock.patch.object(module, name, _of_values(getattr(module, name))))
        stack.enter_context(mock.patch.object(torch, "load", partial(torch.load, map_location="cpu")))
        stack.enter_context(mock.patch.object(FakeTensor, "data", property(torch.Tensor.data.__get__, _set_data)))
        for name in ("__getitem__", "__setitem__"):
            stack.enter_context(mock.patch.object(FakeTensor, name, _indexed(getattr(torch.Tensor, name))))
        stack.enter_context(mock.patch.object(FakeTensor, "is_meta", False))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _moved({})))
        # A fused norm has a kernel for CUDA alone, and there is nothing here that records a graph.
        stack.enter_context(mock.patch.object(nn.functional, "rms_norm", _norm))
        stack.enter_context(mock.patch.object(lora.Graphs, "AFTER", 10**9))
        # A GPU's large product takes a processor without bfloat16 twenty minutes.
        stack.enter_context(mock.patch.dict(estimate.LARGE, cpu=64, gpu=64))
        stack.enter_context(mode)
        yield mode
