"""Dynamic Parameter Memory (arXiv 2507.09076), reproduced."""

from . import machine

machine.choose()  # before anything imports torch
