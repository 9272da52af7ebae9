"""Text of an answer: the first line of a generation, normal forms, and words that answers share."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

STOPS = ("\n", "Q:", "Question:")
"""A generated answer ends before the first of these: a new line, or the next question."""

_LABEL = re.compile(r"^(?:the answer is|answer|a)\s*:\s*", re.IGNORECASE)
_ARTICLES = frozenset({"a", "an", "the"})


def first_answer(generated: str, *, stops: Iterable[str] = STOPS) -> str:
    """The answer at the head of a generation: its first line, up to a stop, without an "A:".

    Blank lines before the answer are skipped. The result may be empty.

    Raises
    ------
    ValueError
        The generation is not text, or a stop is empty.
    """
    _check_text("generated", generated)
    text = _LABEL.sub("", generated.lstrip())
    for stop in stops:
        if not stop:
            raise ValueError("stops must be texts of at least one character, got an empty one")
        text = text.split(stop, 1)[0]
    return text.strip()


def normalise(text: str) -> str:
    """Normal form in which answers are compared; empty if nothing of the text is left.

    In this order: accents and compatibility forms are folded (Unicode NFKD, marks dropped), case is
    folded, underscores become spaces, punctuation is deleted (Unicode classes P and Sk), the words
    a, an, the are deleted, and white space becomes single spaces. As in SQuAD's script, punctuation
    leaves no space ("F.L.A." is "fla"), and numbers in words stay words. There are two departures.
    The punctuation of other scripts counts, and signs with a meaning (+, $, °) stay, or blood type
    "A+" would equal "A". A text of nothing but articles keeps them, or the note "A" would be empty.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250) and Joshi et al. 2017 (arXiv 1705.03551),
    evaluation scripts.
    """
    _check_text("text", text)
    if text.isascii():
        # The rule below gives the same, but there are some fifty thousand aliases.
        words = text.lower().translate(_ASCII).split()
        return " ".join([word for word in words if word not in _ARTICLES] or words)
    folded = unicodedata.normalize("NFKD", text)
    # Folded once more: lower-casing İ leaves a mark behind.
    folded = unicodedata.normalize("NFKD", folded.casefold().replace("_", " "))
    kept = "".join(c for c in folded if not _is_deleted(c))
    words = kept.split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def token_f1(answer: str, reference: str) -> float:
    r"""Overlap of two texts in words of their normal form; in [0, 1], 0 if either has no word.

        F1 = 2 m / (n_answer + n_reference),   m = number of words in common, with repetition

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250).
    """
    ours, theirs = Counter(normalise(answer).split()), Counter(normalise(reference).split())
    return 2 * (ours & theirs).total() / max(ours.total() + theirs.total(), 1)


def contains_words(longer: str, shorter: str) -> bool:
    """Whether the words of one normal form follow each other in another; False if it has none."""
    return bool(shorter) and f" {shorter} " in f" {longer} "


def _is_deleted(c: str) -> bool:
    category = unicodedata.category(c)
    # White space is of class Cc in part (tabs), and must go on separating words.
    return (category[0] == "P" or category in ("Mn", "Sk", "Cc", "Cf")) and not c.isspace()


_ASCII = {i: None for i in range(128) if _is_deleted(chr(i))} | {ord("_"): " "}


def _check_text(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{argument} must be text (str), got {value!r}")
