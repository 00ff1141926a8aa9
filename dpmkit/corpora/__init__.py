"""Corpora: `load(settings)` gives Conversations of Utterances, their folds, and what was skipped."""

from collections import Counter
from dataclasses import replace

from ..settings import Settings, UserError
from . import demo, iemocap, labelled, manifest, meld
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, example

READERS = {"demo": demo, "iemocap": iemocap, "meld": meld, **dict.fromkeys(labelled.LAYOUTS, labelled),
           "folders": labelled, "manifest": manifest}
ALIKE = 10  # clips of one length, to the millisecond, that are no chance; and half of all

__all__ = ["READERS", "Clip", "Conversation", "Corpus", "Count", "Fold", "Skipped", "Utterance", "load"]


def load(settings: Settings) -> Corpus:
    """The corpus that `settings.corpus` names, read from `settings.root` (the demo corpus makes itself); of the
    test conversations the first `evaluation.limit`, so that every method answers for the same ones.

    Raises UserError for an unknown corpus, a missing root, a root of another shape, a fold it lacks, or a fold
    that nothing can be learned from or scored on.
    """
    if settings.corpus not in READERS:
        raise UserError(f"corpus {settings.corpus!r} is not known; choose one of {', '.join(READERS)}")
    if settings.conversation.sequences and READERS[settings.corpus] is not labelled:
        raise UserError(f"setting conversation.sequences is for corpora that are composed of recordings, "
                        f"not for {settings.corpus!r}: leave it empty")
    corpus = READERS[settings.corpus].load(settings)
    if not 1 <= settings.fold <= len(corpus.folds):
        raise UserError(f"fold {settings.fold} does not exist: corpus {corpus.name!r} has folds 1 to "
                        f"{len(corpus.folds)}")
    if limit := settings.evaluation.limit:
        corpus = replace(corpus, folds=tuple(replace(fold, test=fold.test[:limit]) for fold in corpus.folds))
    for split, least in (("train", 2), ("validation", 1), ("test", 1)):
        chosen = corpus.select(getattr(corpus.folds[settings.fold - 1], split))
        known = {u.emotion for c in chosen for u in c.utterances} - {None}
        if len(known) < least:
            raise UserError(f"the {split} conversations of fold {settings.fold} of corpus {corpus.name!r} have "
                            f"{len(known)} emotion(s) ({', '.join(sorted(known)) or 'no label'}); {least} or more "
                            f"are needed: label more of them, or choose another fold{example(corpus.skipped)}")
    lengths = Counter({u.audio: round(u.seconds, 3) for c in corpus.conversations for u in c.utterances}.values())
    (length, alike), = lengths.most_common(1)
    if alike >= ALIKE and 2 * alike >= lengths.total():
        note = (f"{alike} of {lengths.total()} clips last {length:.3f} s, no more and no less, as natural speech "
                "does not: they may have been cut or padded; compare them with the corpus' source.")
        corpus = replace(corpus, notes=(*corpus.notes, note))
    return corpus
