"""Scores of a text part by part: its tokens, words, sentences or lines, each given all before it.

A part is an answer to the prompt with the parts before it, so that every score of answers is one of
parts (`isounc.llm.answers.isotropic_scores`; those that flip at p = 1/2 do so here, and the p of a
token is below 1/2 often). Text that somebody else wrote is measured as the model's own is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from isounc.checks import check_choice
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.estimands import SCALINGS
from isounc.llm.answers.measure import AskedQuestion, unmeasured, with_norms
from isounc.llm.answers.norms import answer_norms
from isounc.llm.answers.packing import pack
from isounc.llm.answers.prompts import Prompt
from isounc.llm.answers.question import Question
from isounc.llm.answers.rendering import rendered
from isounc.llm.answers.self_assessment import check_fits_context
from isounc.llm.model.load import LanguageModel

PARTS = {
    "token": None,
    "word": re.compile(r"\S+"),
    "sentence": re.compile(r"\S(?:.*?[.!?]+(?=\s|$)|[^\n]*)"),
    "line": re.compile(r"\S[^\n]*"),
}
"""Kinds of parts, and what they look like. A sentence ends with a mark before white space, or with its
line; "Dr. Who" is two."""


def measure_segments(
    model: LanguageModel,
    prompt: Prompt | str,
    text: str,
    *,
    by: str = "sentence",
    estimands: Sequence[str] = ("sequence", "length_normalised"),
    scalings: Sequence[str] = SCALINGS,
    batch_size: int = 8,
) -> list[MeasuredAnswer]:
    """Probabilities and exact gradient norms of the parts of a text.

    A part costs what an answer costs: a forward and a backward pass over the prompt and the text up
    to its end. A token has one probability and one norm, p_t and ||grad log p_t||^2, whatever the
    estimands: as many passes as there are tokens.

    Parameters
    ----------
    model
        From `load_model`.
    prompt
        The text or conversation before.
    text
        The text to measure, by whomever it was written; unless a conversation is before it, it begins
        with a space.
    by
        Key of `PARTS`. Tokens that lie in two parts belong to the one in which they begin.
    estimands
        Some of `isounc.llm.answers.estimands.ESTIMANDS`, of each part; choice is undefined.
    scalings
        Some of `isounc.llm.answers.estimands.SCALINGS`.
    batch_size
        Parts at a time.

    Returns
    -------
    list of MeasuredAnswer
        One a part, in order, named segment-0, segment-1, ...; not judged.

    Raises
    ------
    ValueError
        For another kind of part, a prompt or text that is empty, both together beyond the model's
        context, or logits that are not finite.
    """
    check_choice("by", by, PARTS)
    asked = prompt if isinstance(prompt, Prompt) else Prompt(prompt, "given", ())
    for name, words in (("prompt", asked.text), ("text", text)):
        if not isinstance(words, str) or not words.strip():
            raise ValueError(f"{name} must hold text, got {words!r:.60}")
    (given,) = rendered(model, [asked])
    prompt_ids, ids = given.ids, given.option_ids(model, text)
    check_fits_context(
        model, "prompt and text", "segment-0", len(prompt_ids) + len(ids), "give a shorter text"
    )
    if not model.tokenizer.decode(ids).strip():
        raise ValueError(f"text must hold text, got special tokens alone ({text!r:.60})")
    texts, starts = _parts(model, ids, by)
    ends = [*starts[1:], len(ids)]
    before = [[*prompt_ids, *ids[:start]] for start in starts]
    tokens = [ids[start:end] for start, end in zip(starts, ends, strict=True)]
    norms = answer_norms(
        model, [pack(*pair) for pair in zip(before, ([t] for t in tokens), strict=True)],
        estimands=estimands, scalings=scalings, batch_size=batch_size,
    )  # fmt: skip
    measured = []
    for k, part in enumerate(texts):
        question = Question(f"segment-{k}", "segments", text)
        part_of = AskedQuestion(question, asked, "generated", judged=False)
        answer = unmeasured(part_of, before[k])
        measured.append(with_norms(answer, norms, k, [part], are_choices=False))
    return measured


def _parts(model: LanguageModel, ids: Sequence[int], by: str) -> tuple[list[str], list[int]]:
    """Text and first token of each part that has a token of its own."""
    lengths = model.tokenizer.text_ends(ids)
    whole = model.tokenizer.decode(ids)
    pattern = PARTS[by]
    if pattern is None:
        # Bytes of one character have a text together alone.
        pieces = [whole[a:b] or "\ufffd" for a, b in pairwise(lengths)]
        return pieces, list(range(len(ids)))
    found = list(pattern.finditer(whole))
    begins = np.array([match.start() for match in found], int)
    # A token is where its first character is that is not white space.
    at = [a + len(whole[a:b]) - len(whole[a:b].lstrip()) for a, b in pairwise(lengths)]
    owner = np.maximum(np.searchsorted(begins, at, side="right") - 1, 0)
    owner = np.maximum.accumulate(owner)
    kept, starts = np.unique(owner, return_index=True)
    return [found[k].group().strip() for k in kept], starts.tolist()
