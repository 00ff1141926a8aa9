"""Speech tokenizers: a mono waveform to discrete codes, `frame_rate` of them a second. See `Tokenizer`."""

from ..settings import Settings, UserError
from .hubert import HubertKMeans, WavLMKMeans
from .kmeans import FITTED, KMeansTokenizer
from .mimi import MimiTokenizer
from .protocol import Learner, Tokenizer
from .s3 import S3Tokenizer

__all__ = ["FITTED", "TOKENIZERS", "KMeansTokenizer", "Learner", "Tokenizer", "create"]

TOKENIZERS = {t.name: t for t in (KMeansTokenizer, S3Tokenizer, MimiTokenizer, HubertKMeans, WavLMKMeans)}


def create(settings: Settings) -> Tokenizer:
    """The tokenizer that `codes.tokenizer` names, its weights found but not loaded.

    Raises UserError for an unknown name, a setting that it cannot do, and weights that are not there.
    """
    if settings.codes.tokenizer not in TOKENIZERS:
        raise UserError(f"setting codes.tokenizer is {settings.codes.tokenizer!r}; known tokenizers: "
                        f"{', '.join(TOKENIZERS)}")
    return TOKENIZERS[settings.codes.tokenizer](settings)
