"""Dynamic Parameter Memory (arXiv 2507.09076), reproduced."""

from . import threads

threads.choose()  # before anything imports torch
