"""Milliseconds of a sentence on a GPU: python results/bench/turn-paper.py HOME writes HOME/results/bench/turn-paper.json."""
import gc
import sys
import time

import numpy as np
import torch

from dpmkit import bench, cheaper, records
from dpmkit.settings import Settings
from dpmkit.memory import Sentence

settings, rows, start = Settings.of("paper", home=sys.argv[1]), [], time.perf_counter()
for name, streams, shapes in (("7 B Llama", 1, "auto"), ("7 B Llama", 1, "free"), ("7 B Llama", 4, "auto")):
    shape = (*bench.GPU_SHAPES[name][:-1], streams)
    sllm, asked, talks = bench._random(settings.memory, torch.device("cuda"), *shape)
    memory, spent = cheaper.memory(sllm, asked.but(shapes=shapes), streams), []
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for turn in range(len(talks[0])):
        torch.cuda.synchronize()
        began = time.perf_counter()
        memory.turn({i: Sentence(sllm.sentence(talk[turn])) for i, talk in enumerate(talks)})
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    full = spent[12:]  # the prefix is full, and its shape recorded
    rows.append({"shape": name, "n_r": 1024, "codes": 127, "streams": streams, "shapes": shapes,
                 "sentences": len(full), "milliseconds": 1e3 * float(np.median(full)),
                 "milliseconds_range": [1e3 * min(full), 1e3 * max(full)],
                 "sentences_per_second": streams / float(np.median(full)),
                 "peak_bytes": torch.cuda.max_memory_allocated()})
    del memory, sllm
    gc.collect()
    print(rows[-1])
records.save_bench(settings, "turn", {"rows": rows}, time.perf_counter() - start)
