"""Corpora: `load(settings)` gives Conversations of Utterances, their folds, and what was skipped."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..settings import Settings, UserError
from . import demo, files, iemocap, labelled, manifest, meld
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, some

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
    corpus = READERS[settings.corpus].load(settings)
    corpus = replace(corpus, notes=(*corpus.notes, *_damage(corpus.conversations)))
    if not 1 <= settings.fold <= len(corpus.folds):
        raise UserError(f"fold {settings.fold} does not exist: corpus {corpus.name!r} has folds 1 to "
                        f"{len(corpus.folds)}")
    if limit := settings.evaluation.limit:
        corpus = replace(corpus, folds=tuple(replace(fold, test=fold.test[:limit]) for fold in corpus.folds))
    for split, least in (("train", 2), ("validation", 1), ("test", 1)):
        chosen = corpus.select(getattr(corpus.folds[settings.fold - 1], split))
        known = {u.emotion for c in chosen for u in c.utterances} - {None}
        if len(known) < least:
            why = f"; skipped, e.g.: {corpus.skipped[0].item}: {corpus.skipped[0].reason}" if corpus.skipped else ""
            raise UserError(f"the {split} conversations of fold {settings.fold} of corpus {corpus.name!r} have "
                            f"{len(known)} emotion(s) ({', '.join(sorted(known)) or 'no label'}); {least} or more "
                            f"are needed: label more of them, or choose another fold{why}")
    return corpus


def _damage(conversations: Sequence[Conversation]) -> Iterator[str]:
    """Notes on signs of a damaged copy: clips of one length, inverted channels."""
    utterances = [u for c in conversations for u in c.utterances]
    lengths = Counter({u.audio: round(u.seconds, 3) for u in utterances}.values())
    length, alike = next(iter(lengths.most_common(1)), (0.0, 0))
    if alike >= ALIKE and 2 * alike >= lengths.total():
        yield (f"{alike} of {lengths.total()} clips last {length:.3f} s, no more and no less, as natural "
               "speech does not: they may have been cut or padded; compare them with the corpus' source.")
    if inverted := sorted({u.audio.path.name for u in utterances if u.audio.path in files.INVERTED}):
        yield (f"{len(inverted)} recording(s) have channels that cancel each other, as one is inverted "
               f"({some(inverted)}): the loudest alone is heard, not their mean.")
