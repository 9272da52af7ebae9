"""Ask a language model a question: its answer, coloured by how sure it was of every token, and how uncertain it is.

    uv run --extra llm --group smollm2 examples/ask.py "What is the capital of France?"
    uv run --extra llm examples/ask.py "Who wrote Hamlet?" --model PATH/TO/MODEL --colour entropy
    uv run --extra llm --group smollm2 examples/ask.py "Which planet is the largest?" --choices Jupiter Saturn Venus

Green tokens were certain, red ones were not (--colour none for plain text). The table has one line for each meaning of
"the probability p of the answer": log p, aleatoric p (1 - p), epistemic sigma^2 ||grad p||^2 over all parameters
(isounc.llm.answers.estimands), their sum, and Var[p] of the link-aware estimate.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro

from isounc.llm import load_model
from isounc.llm.answers import prompts
from isounc.llm.answers.measure import Asked, Measured, MeasureSettings, measure
from isounc.llm.answers.question import Question
from isounc.llm.answers.scores import OfProbability
from isounc.runs.process import use_compilation_cache

COLOURS = (196, 202, 208, 214, 220, 190, 154, 118, 82, 46)
"""From red to green, of a terminal with 256 colours."""


@dataclass(frozen=True)
class Ask:
    """What is asked."""

    question: tyro.conf.Positional[str]
    """The question."""
    model: str = "smollm2"
    """smollm2, a GGUF file, or a folder with a checkpoint."""
    choices: tuple[str, ...] = ()
    """Take the most probable of these instead of writing an answer."""
    colour: Literal["probability", "entropy", "none"] = "probability"
    """What tokens are coloured by."""
    sigma: float = 0.01
    """Standard deviation of every parameter."""
    max_new_tokens: int = 32
    """Most tokens of a written answer."""
    cache: Annotated[str, tyro.conf.arg(help="Folder of compiled programs; empty for none.")] = (
        "~/.cache/isounc/jax"
    )


def coloured(pieces: list[str], measured: Measured, by: str) -> str:
    """Tokens in the colour of their probability or entropy."""
    probabilities = np.exp(measured["token_log_probs"])
    # An entropy of 5 nats, as of 150 tokens alike, is as red as it gets.
    sureness = {
        "probability": probabilities,
        "entropy": 1 - np.array(measured["token_entropies"]) / 5,
    }
    if by == "none":
        return "".join(pieces)
    shades = (np.clip(sureness[by], 0, 0.999) * len(COLOURS)).astype(int)
    return "".join(
        f"\x1b[38;5;{COLOURS[shade]}m{piece}\x1b[0m"
        for piece, shade in zip(pieces, shades, strict=True)
    )


def table(measured: Measured, sigma: float) -> str:
    """One line for each meaning of the answer's probability."""
    lines = [
        f"{'p of the answer':<20}{'log p':>9}{'aleatoric':>12}{'epistemic':>12}{'sum':>12}{'link-aware':>12}"
    ]
    nothing = np.zeros(1, bool)
    for estimand, odds in measured["log_odds"].items():
        if odds is None:
            continue
        kinds = ("aleatoric", "total_sum", "link_aware")
        aleatoric, total, link = (
            float(OfProbability(kind, estimand, sigma)([measured], nothing)[0]) for kind in kinds
        )
        log_p = -np.logaddexp(0, -odds)
        log_norm = 2 * log_p + measured["log_sq_norms"][estimand]["all"]
        epistemic = float(np.exp(2 * np.log(sigma) + log_norm))
        numbers = "".join(f"{x:>12.3g}" for x in (aleatoric, epistemic, total, link))
        lines.append(f"{estimand:<20}{log_p:>9.2f}{numbers}")
    return "\n".join(lines)


def main(ask: Ask) -> None:
    """Ask, and print."""
    use_compilation_cache(ask.cache)
    model = load_model(ask.model)
    question = Question("asked", "asked", ask.question, choices=ask.choices)
    form = "mc1" if ask.choices else "generated"
    asked = Asked(question, prompts.truthful(ask.question), form, judged=False)
    settings = MeasureSettings(num_samples=0, max_new_tokens=ask.max_new_tokens, batch_size=1)
    print(f"{model.name} ...", file=sys.stderr)
    (measured,) = measure(model, [asked], settings)
    print(f"\nQ: {ask.question}")
    if not measured["answer"]:
        print("A: (nothing)")
        return
    ids = model.tokenizer.continuation(asked.prompt.text, f" {measured['answer']}")
    pieces = [model.tokenizer.decode([i]) for i in ids]
    if len(pieces) != len(measured["token_log_probs"]):  # it was written in other tokens
        pieces = [measured["answer"], *[""] * (len(measured["token_log_probs"]) - 1)]
    print(f"A:{coloured(pieces, measured, ask.colour)}\n\n{table(measured, ask.sigma)}")
    if measured["p_true"]:
        true, false = (np.exp(measured["p_true"][side]) for side in ("true", "false"))
        print(
            f"\nAsked whether that is true: {true / (true + false):.0%} (mass on both options {true + false:.2g})"
        )
    if measured["confidence_text"]:
        print(f"Asked for a percentage: {measured['confidence_text']}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Ask, description=__doc__))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
