"""`bench memory` on a GPU, of three rungs at the shapes of random weights: python results/bench/memory-paper.py HOME writes
HOME/results/bench/memory-paper.json. The record was cut off by its limit before a third shape (four streams)."""
import sys
import time

import torch

from dpmkit import bench, estimate, machine, records
from dpmkit.settings import Settings

settings = Settings.of("paper", home=sys.argv[1])
device, started = machine.device(settings), time.perf_counter()
bench.RUNGS = {name: bench.RUNGS[name] for name in ("exact", "reuse", "top-2")}
peak = {str(p): estimate.matmul_rate(device, p, 8192) for p in (torch.float32, torch.bfloat16)}
results = {"rates": [], "changes": [], "peak": peak}
for name, shape in bench.GPU_SHAPES.items():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    done = results["rates"]
    for rates in bench._rates(name, *bench._random(settings.memory, device, *shape), 3):
        held = torch.cuda.max_memory_allocated()
        results["rates"] = [*done, *({**row, "peak_bytes": held} for row in rates)]
        records.save_bench(settings, "memory", results, time.perf_counter() - started)
