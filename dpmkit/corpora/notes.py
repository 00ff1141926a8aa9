"""What a reader of results must know of any corpus: signs of a damaged copy, and of one speaker under two names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from . import files
from .conversation import Conversation

ALIKE = 10  # clips of one length, to the millisecond, that are no chance; and half of all


def common(conversations: Sequence[Conversation]) -> Iterator[str]:
    """Whole sentences on speakers whose names are nearly one, clips of one length, and inverted channels."""
    utterances = [u for c in conversations for u in c.utterances]
    near = defaultdict(set)
    for speaker in {u.speaker for u in utterances}:
        near[_near(speaker)].add(speaker)
    if pairs := sorted(" and ".join(map(repr, sorted(names))) for names in near.values() if len(names) > 1):
        shown = "; ".join(pairs[:5]) + ("; …" if pairs[5:] else "")
        yield (f"Speakers with nearly one name count as several: {shown}. Write them alike if they are one, who "
               "may else stand on two sides of a fold.")
    lengths = Counter({u.audio: round(u.seconds, 3) for u in utterances}.values())
    length, alike = next(iter(lengths.most_common(1)), (0.0, 0))
    if alike >= ALIKE and 2 * alike >= lengths.total():
        yield (f"{alike} of {lengths.total()} clips last {length:.3f} s, no more and no less, as natural "
               "speech does not: they may have been cut or padded; compare them with the corpus' source.")
    if inverted := sorted({u.audio.path.name for u in utterances if u.audio.path in files.INVERTED}):
        shown = ", ".join(inverted[:3]) + (", …" if inverted[3:] else "")
        yield (f"{len(inverted)} recording(s) have channels that cancel each other, as one is inverted ({shown}): "
               "the loudest alone is heard, not their mean.")


def _near(speaker: str) -> str:
    """A speaker's name without case, accents, blanks, invisible characters and zeros before a number."""
    text = unicodedata.normalize("NFKD", speaker).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf") and not c.isspace())
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)
