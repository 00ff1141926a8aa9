"""Dynamic Parameter Memory (arXiv 2507.09076), reproduced."""

from importlib import import_module
from typing import Any

from . import machine
from .settings import Settings, UserError

__all__ = ["DynamicParameterMemory", "EmotionSLLM", "Settings", "UserError", "load_corpus"]
# What needs torch is imported when it is asked for: `machine.choose` comes before, and printing settings is quick.
LATER = {"load_corpus": ("corpora", "load"), "EmotionSLLM": ("sllm", "EmotionSLLM"),
         "DynamicParameterMemory": ("memory", "DynamicParameterMemory")}

machine.choose()


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = LATER[name]
    return getattr(import_module(f".{module}", __name__), attribute)
