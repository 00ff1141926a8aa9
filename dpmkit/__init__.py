"""Dynamic Parameter Memory (arXiv 2507.09076), reproduced."""
