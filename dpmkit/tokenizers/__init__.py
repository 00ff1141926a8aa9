"""Speech tokenizers: a mono waveform to discrete codes, `frame_rate` of them per second. See `Tokenizer`."""

from importlib import import_module

from ..settings import Settings, UserError
from .kmeans import FITTED, KMeansTokenizer
from .protocol import Tokenizer

__all__ = ["FITTED", "TOKENIZERS", "KMeansTokenizer", "Tokenizer", "create"]

# By the names of module and class: so codes are not made anew for a change of another tokenizer (see `runs`).
TOKENIZERS = {"kmeans": "kmeans.KMeansTokenizer", "s3-v2-25hz": "s3.S3Tokenizer", "mimi": "mimi.MimiTokenizer",
              "hubert-kmeans": "ssl.HubertKMeans", "wavlm-kmeans": "ssl.WavLMKMeans"}


def create(settings: Settings) -> Tokenizer:
    """The tokenizer that `codes.tokenizer` names, its weights found but not loaded.

    Raises UserError for an unknown name, a setting that it cannot do, and weights that are not there.
    """
    if settings.codes.tokenizer not in TOKENIZERS:
        raise UserError(f"setting codes.tokenizer is {settings.codes.tokenizer!r}; known tokenizers: "
                        f"{', '.join(TOKENIZERS)}")
    module, _, name = TOKENIZERS[settings.codes.tokenizer].partition(".")
    return getattr(import_module(f".{module}", __name__), name)(settings)
