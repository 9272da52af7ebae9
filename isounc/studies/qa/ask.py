"""Ask a language model a question: its answer in colours of certainty, and its uncertainty.

    isounc ask "What is the capital of France?"
    isounc ask "Who wrote Hamlet?" --model PATH/TO/MODEL --colour entropy
    isounc ask "Which planet is the largest?" --choices Jupiter Saturn Venus

Green tokens were certain, red ones were not (--colour none for plain text). The table has one line
for each meaning of "the probability p of the answer" (isounc.llm.answers.estimands): log p, the
aleatoric part p (1 - p), the epistemic part sigma^2 ||grad p||^2 over all parameters, their sum,
and Var[p] of the link-aware estimate.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from isounc.llm import load_model
from isounc.llm.answers import isotropic_scores, prompts
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.measure import AskedQuestion, MeasureSettings, measure
from isounc.llm.answers.question import Question
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
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs; empty means none."""


def coloured(pieces: list[str], answer: MeasuredAnswer, by: str) -> str:
    """Tokens in the colour of their probability or entropy."""
    if by == "none":
        return "".join(pieces)
    # An entropy of 5 nats, as of 150 tokens alike, is as red as it gets.
    sureness = {
        "probability": np.exp(answer.token_log_probs),
        "entropy": 1 - np.array(answer.token_entropies) / 5,
    }
    shades = (np.clip(sureness[by], 0, 0.999) * len(COLOURS)).astype(int)
    return "".join(
        f"\x1b[38;5;{COLOURS[shade]}m{piece}\x1b[0m"
        for piece, shade in zip(pieces, shades, strict=True)
    )


def table(answer: MeasuredAnswer, sigma: float) -> str:
    """One line for each meaning of the answer's probability."""
    heads = ("log p", "aleatoric", "epistemic", "sum", "link-aware")
    lines = [f"{'p of the answer':<20}{heads[0]:>9}" + "".join(f"{h:>12}" for h in heads[1:])]
    for estimand, log_odds in answer.log_odds.items():
        if log_odds is None:
            continue
        aleatoric, log_sq_norm, total, link_aware = (
            float(score.values([answer], np.zeros(1, bool))[0])
            for score in (
                isotropic_scores.aleatoric(estimand),
                isotropic_scores.epistemic(estimand),
                isotropic_scores.total(estimand, "sum", sigma=sigma),
                isotropic_scores.link_aware(estimand, sigma=sigma),
            )
        )
        epistemic = float(np.exp(2 * np.log(sigma) + log_sq_norm))
        numbers = "".join(f"{x:>12.3g}" for x in (aleatoric, epistemic, total, link_aware))
        lines.append(f"{estimand:<20}{-np.logaddexp(0, -log_odds):>9.2f}{numbers}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Ask the question of a command line, and print the answer."""
    answer_question(tyro.cli(Ask, args=arguments, prog="isounc ask", description=__doc__))


def answer_question(ask: Ask) -> None:
    """Ask a model a question, and print its answer and its uncertainty."""
    use_compilation_cache(ask.cache)
    model = load_model(ask.model)
    question = Question("asked", "asked", ask.question, choices=ask.choices)
    form = "mc1" if ask.choices else "generated"
    asked = AskedQuestion(question, prompts.truthful(ask.question), form, judged=False)
    settings = MeasureSettings(num_samples=0, max_new_tokens=ask.max_new_tokens, batch_size=1)
    print(f"{model.name} ...", file=sys.stderr)
    (answer,) = measure(model, [asked], settings)
    print(f"\nQ: {ask.question}")
    if not answer.text:
        print("A: (nothing)")
        return
    ids = model.tokenizer.continuation(asked.prompt.text, f" {answer.text}")
    pieces = [model.tokenizer.decode([i]) for i in ids]
    if len(pieces) != answer.num_tokens:  # the model wrote it in other tokens
        pieces = [answer.text, *[""] * (answer.num_tokens - 1)]
    print(f"A:{coloured(pieces, answer, ask.colour)}\n\n{table(answer, ask.sigma)}")
    said = answer.self_assessment
    if said and said.p_true:
        true, false = np.exp(said.p_true)
        mass = true + false
        print(f"\nAsked whether that is true: {true / mass:.0%} (mass on both options {mass:.2g})")
    if said and said.confidence_text:
        print(f"Asked for a percentage: {said.confidence_text}")
