"""Ask a language model a question: its answer in colours of certainty, and its uncertainty.

    isounc ask "What is the capital of France?"
    isounc ask "Who wrote Hamlet?" --model PATH/TO/MODEL --colour entropy
    isounc ask "Which planet is the largest?" --choices Jupiter Saturn Venus
    isounc ask "Who wrote Hamlet?" --answer "Marlowe wrote it. I was there." --by sentence

Green tokens were certain, red ones were not (--colour none for plain text). --answer scores an
answer of yours instead of the model's. The table has one line for each meaning of "the probability
p of the answer" (isounc.llm.answers.estimands): log p, the aleatoric part p (1 - p), the epistemic
part sigma^2 ||grad p||^2 over all parameters, their sum, Var[p] of the link-aware estimate,
sigma^2 ||grad log p||^2, and the moderated probability 1 - E[sigmoid(f)] that the answer is wrong.

Signs in theory, while the norm of the gradient of f = log p - log(1 - p) stays the same: the last
two columns fall as p rises, at every p. The four before them fall above p = 1/2 only, and rise with
p below: there they call the better answer the more uncertain one. A warning says so where most p
are below 1/2. --by gives the columns whose signs do not flip for each token, word, sentence or line
of the answer, given all before it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import tyro

from isounc.estimates.signs import warning_of
from isounc.llm.answers import isotropic_scores, prompts
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.measure import (
    AskedQuestion,
    MeasureSettings,
    WrittenAnswer,
    measure,
)
from isounc.llm.answers.question import Question
from isounc.llm.answers.rendering import rendered
from isounc.llm.answers.scores import Score
from isounc.llm.answers.segments import measure_segments
from isounc.llm.model.load import load_model
from isounc.runs.process import use_compilation_cache

COLOURS = (196, 202, 208, 214, 220, 190, 154, 118, 82, 46)
"""From red to green, of a terminal with 256 colours."""


@dataclass(frozen=True)
class Ask:
    """A question, and how its answer is shown."""

    question: tyro.conf.Positional[str]
    """The question."""
    model: str = "smollm2"
    """smollm2, a GGUF file, or a folder with a checkpoint."""
    choices: tuple[str, ...] = ()
    """Take the most probable of these instead of writing an answer."""
    colour: Literal["probability", "entropy", "none"] = "probability"
    """Which number colours the tokens."""
    sigma: float = 0.01
    """Standard deviation of every parameter."""
    max_new_tokens: int = 32
    """Largest number of tokens of a written answer."""
    prompting: Literal["few_shot", "completion", "chat"] = "few_shot"
    """The question after an instruction and examples, alone, or in the model's chat template."""
    answer: str = ""
    """Measure this answer instead of writing one."""
    by: Literal["none", "token", "word", "sentence", "line"] = "none"
    """Parts of the answer that get a line each; each costs what the answer costs."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs; empty means none."""


def coloured(
    pieces: Sequence[str], log_probs: Sequence[float], entropies: Sequence[float], by: str
) -> str:
    """Tokens in the colour of their probability or entropy."""
    if by == "none":
        return "".join(pieces)
    # An entropy of 5 nats, as of 150 tokens alike, is as red as it gets.
    sureness = {"probability": np.exp(log_probs), "entropy": 1 - np.array(entropies) / 5}
    shades = (np.clip(sureness[by], 0, 0.999) * len(COLOURS)).astype(int)
    return "".join(
        f"\x1b[38;5;{COLOURS[shade]}m{piece}\x1b[0m"
        for piece, shade in zip(pieces, shades, strict=True)
    )


def table(answer: MeasuredAnswer, sigma: float) -> str:
    """One line for each meaning of the answer's probability."""
    heads = ("log p", "aleatoric", "epistemic", "sum", "link-aware", "grad log p", "moderated")
    lines = [f"{'p of the answer':<20}{heads[0]:>9}" + "".join(f"{h:>12}" for h in heads[1:])]
    for estimand, log_odds in answer.log_odds.items():
        if log_odds is None:
            continue
        values = [
            _value(score, answer)
            for score in (
                isotropic_scores.aleatoric(estimand),
                isotropic_scores.epistemic(estimand),
                isotropic_scores.total(estimand, "sum", sigma=sigma),
                isotropic_scores.link_aware(estimand, sigma=sigma),
                isotropic_scores.epistemic_log(estimand),
                isotropic_scores.moderated(estimand, sigma=sigma),
            )
        ]
        for k in (1, 4):
            values[k] = float(np.exp(2 * np.log(sigma) + values[k]))
        numbers = "".join(f"{x:>12.3g}" for x in values)
        lines.append(f"{estimand:<20}{-np.logaddexp(0, -log_odds):>9.2f}{numbers}")
    return "\n".join(lines)


def segment_table(segments: Sequence[MeasuredAnswer], by: str, sigma: float) -> str:
    """One line for each part of an answer: log p per token and the scores that do not flip."""
    estimand = "length_normalised"
    lines = [f"{'log p':>9}{'grad log p':>12}{'moderated':>12}  {by}"]
    for part in segments:
        log_odds = part.log_odds[estimand]
        log_norm = _value(isotropic_scores.epistemic_log(estimand), part)
        error = _value(isotropic_scores.moderated(estimand, sigma=sigma), part)
        if log_odds is not None:
            log_p, norm = -np.logaddexp(0, -log_odds), np.exp(2 * np.log(sigma) + log_norm)
            lines.append(f"{log_p:>9.2f}{norm:>12.3g}{error:>12.3g}  {part.text!s:.60}")
    return "\n".join(lines)


def _value(score: Score, answer: MeasuredAnswer) -> float:
    return float(score.values([answer], np.zeros(1, bool))[0])


def warn_of_signs(answer: MeasuredAnswer) -> None:
    """Say where ||grad p||^2 points the wrong way, if that is at most meanings of p."""
    odds = [value for value in answer.log_odds.values() if value is not None]
    below = sum(value < 0 for value in odds)
    if 2 * below > len(odds):
        what = "p of the answer"
        warnings.warn(warning_of(below, f"{len(odds)} of its meanings", what), stacklevel=3)


def main(arguments: Sequence[str]) -> None:
    """Ask the question of a command line, and print the answer."""
    ask = tyro.cli(Ask, args=arguments, prog="isounc ask", description=__doc__)
    with warnings.catch_warnings():
        # Who asks at a terminal is not helped by the line of the source that warns.
        warnings.showwarning = lambda message, *_, **__: print(
            f"\nwarning: {message}", file=sys.stderr
        )
        answer_question(ask)


def answer_question(ask: Ask) -> None:
    """Ask a model a question, and print its answer and its uncertainty.

    Raises
    ------
    ValueError
        There are choices as well as an answer, or what `measure` refuses.

    Warns
    -----
    UserWarning
        Most meanings of p are below 1/2, where ||grad p||^2 rises with p.
    """
    if ask.choices and ask.answer:
        raise ValueError(f"answer must be left out where there are choices, got {ask.answer!r:.60}")
    use_compilation_cache(ask.cache)
    model = load_model(ask.model)
    choices = (ask.answer,) if ask.answer.strip() else ask.choices
    question = Question("asked", "asked", ask.question, choices=choices)
    form = "mc1" if choices else "generated"
    if ask.prompting == "completion":
        prompt = prompts.completion(ask.question)
    else:
        prompt = prompts.truthful(ask.question, chat=ask.prompting == "chat")
    asked = AskedQuestion(question, prompt, form, judged=False)
    settings = MeasureSettings(num_samples=0, max_new_tokens=ask.max_new_tokens, batch_size=1)
    print(f"{model.name} ...", file=sys.stderr)
    (given,) = rendered(model, [prompt])

    def show(
        text: str, ids: Sequence[int], log_probs: Sequence[float], entropies: Sequence[float]
    ) -> None:
        """Print question and answer; whoever reads them need not wait for the norms."""
        whole = model.tokenizer.decode(ids)
        # The last token may hold what ended the answer, such as the end of its line.
        whole = whole[: whole.find(text) + len(text)] if text in whole else whole
        pieces = [whole[a:b] for a, b in pairwise(model.tokenizer.text_ends(ids))]
        shown = coloured(pieces, log_probs, entropies, ask.colour) or "(nothing)"
        # The answer has a space of its own after plain text.
        space = "" if whole.startswith(" ") else " "
        print(f"\nQ: {ask.question}\nA:{space}{shown}\n", flush=True)

    def show_written(written: list[WrittenAnswer]) -> None:
        for answer in written:
            numbers = answer.log_probs.tolist(), answer.entropies.tolist()
            show(answer.text, answer.tokens, *numbers)

    (answer,) = measure(model, [asked], settings, on_written=show_written)
    if not answer.text:
        return
    if choices:
        ids = given.answer_ids(model, answer.text)
        show(answer.text, ids, answer.token_log_probs, answer.token_entropies)
    if ask.colour != "none":
        print(
            "Green tokens were certain, red ones were not. isounc ask --help explains the table.\n"
        )
    print(table(answer, ask.sigma))
    warn_of_signs(answer)
    said = answer.self_assessment
    if said and said.p_true:
        true, false = np.exp(said.p_true)
        mass = true + false
        print(
            f"\nAsked whether that is true: {true / mass:.0%} (of the {mass:.0%} that it gives to "
            "the two options together)"
        )
    if said and said.confidence_text:
        print(f"Asked for a percentage: {said.confidence_text}")
    if ask.by != "none":
        segments = measure_segments(
            model, prompt, answer.text if given.is_chat else f" {answer.text}", by=ask.by,
            estimands=("length_normalised",), scalings=("all",), batch_size=1,
        )  # fmt: skip
        print(f"\n{segment_table(segments, ask.by, ask.sigma)}")
