"""Corpora: `load(settings)` gives Conversations of Utterances, their folds, and what was skipped."""

from importlib import import_module

from ..settings import Settings, UserError
from .conversation import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance

CORPORA = ("demo", "emodb", "iemocap", "meld", "manifest", "folders")

__all__ = ["CORPORA", "Clip", "Conversation", "Corpus", "Count", "Fold", "Skipped", "Utterance", "load"]


def load(settings: Settings) -> Corpus:
    """The corpus that `settings.corpus` names, read from `settings.root` (the demo corpus makes itself).

    Raises UserError for an unknown corpus, a missing root, a root of another shape, or a fold it lacks.
    """
    if settings.corpus not in CORPORA:
        raise UserError(f"corpus {settings.corpus!r} is not known; choose one of {', '.join(CORPORA)}")
    corpus = import_module(f".{settings.corpus}", __name__).load(settings)
    if not 1 <= settings.fold <= len(corpus.folds):
        raise UserError(f"fold {settings.fold} does not exist: corpus {corpus.name!r} has folds 1 to "
                        f"{len(corpus.folds)}")
    return corpus
