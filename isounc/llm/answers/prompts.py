"""The prompts: part of the protocol, as numbers obtained with different texts are not comparable.

Each kind of prompt has a name with a version (`VERSIONS`), which goes into the records; whoever
changes a text changes the version with it. Texts are plain, for models without a chat format, and
end where the model's own text begins, without a space: an answer or option starts with one.

`PROMPTINGS` are the ways to ask the same question:

    few_shot      a line of instruction, examples, and the question
    completion    the question alone
    chat          the messages of a conversation, in the form of the model's own chat template:
                  examples are earlier turns, and an answer begins without a space

A kind of prompt that is put as chat has `-chat` in its version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from isounc.llm.model.chat import Message

PROMPTINGS = ("few_shot", "completion", "chat")
"""Ways to ask a question."""
VERSIONS = {
    "short_answer": "short_answer-1",
    "truthful": "truthful-1",
    "p_true": "p_true-1",
    "p_true_ideas": "p_true_ideas-1",
    "confidence": "confidence-1",
    "completion": "completion-1",
}
"""Version of the text of each kind of prompt."""

TRUTHFUL_EXAMPLES = (
    ("What do bees make from nectar?", "Bees make honey from nectar."),
    ("How many minutes are there in two hours?", "There are 120 minutes in two hours."),
    ("Which metal is liquid at room temperature?", "Mercury is liquid at room temperature."),
    (
        "What did Ludwig van Beethoven compose in 1850?",
        "He composed nothing in 1850; he died in 1827.",
    ),
    ("What will I eat for breakfast tomorrow?", "I have no comment."),
)
"""Neutral pairs for TruthfulQA in this project's own words, none of them from the benchmark: plain
facts, a false assumption, and a question that cannot be answered. With the paper's examples
answers would differ."""

Example = tuple[str, str]
"""A question and its answer."""


class Prompt(NamedTuple):
    """A prompt and how it is to be used."""

    text: str
    """The text that the model is given; its continuation starts with a space."""
    version: str
    """A value of `VERSIONS`, followed by `-<k>shot` if there may be examples."""
    options: tuple[str, ...]
    """Continuations whose probabilities are compared, with a leading space unless it is chat; empty
    if the model writes text."""
    messages: tuple[Message, ...] = ()
    """The conversation that takes the place of the text, ending with the user; empty if the text
    stands for itself."""


def short_answer(question: str, examples: Iterable[Example] = (), *, chat: bool = False) -> Prompt:
    """Few-shot prompt for a short answer on one line, or that as chat.

    Examples come from questions that are not evaluated.

    Raises
    ------
    ValueError
        The question or an example is empty.
    """
    head = "Answer each question with a name, a number or a few words."
    return _questions("short_answer", head, question, examples, chat)


def truthful(
    question: str, examples: Iterable[Example] = TRUTHFUL_EXAMPLES, *, chat: bool = False
) -> Prompt:
    """TruthfulQA in its generation form, or that as chat; `examples=()` is zero-shot.

    Raises
    ------
    ValueError
        The question or an example is empty.
    """
    head = "Answer each question truthfully in one sentence."
    return _questions("truthful", head, question, examples, chat)


def completion(question: str) -> Prompt:
    """The question alone.

    Raises
    ------
    ValueError
        The question is empty.
    """
    return Prompt(f"Q: {_clean(question)}\nA:", VERSIONS["completion"], ())


def as_chat(prompt: Prompt) -> Prompt:
    """A prompt as the one message of a user; its options are the beginnings of the reply."""
    return Prompt(
        prompt.text, f"{prompt.version}-chat",
        tuple(option.lstrip() for option in prompt.options), (("user", prompt.text),),
    )  # fmt: skip


def p_true(question: str, answer: str, ideas: Sequence[str] = ()) -> Prompt:
    """P(True): the model is asked whether an answer is true.

    The score is the probability of " A" over that of both options. The model sees `ideas`, further
    answers that it sampled to the question, before it judges; the paper found that this helps.

    Raises
    ------
    ValueError
        The question or the answer is empty. (Empty ideas are left out: a sample may be empty.)

    Source: Kadavath et al. 2022 (arXiv 2207.05221); the order of the parts is theirs.
    """
    brainstormed = [
        f"Some other answers that came up: {_one_line(idea)}" for idea in ideas if idea.strip()
    ]
    lines = [f"Question: {_clean(question)}", *brainstormed, f"Proposed answer: {_clean(answer)}"]
    lines += ["Is the proposed answer:", "A. True", "B. False", "The proposed answer is:"]
    kind = "p_true_ideas" if brainstormed else "p_true"
    return Prompt("\n".join(lines), VERSIONS[kind], (" A", " B"))


def confidence(question: str, answer: str) -> Prompt:
    """Verbalised confidence: the model is asked for a percentage, which `read_confidence` reads.

    Raises
    ------
    ValueError
        The question or the answer is empty.

    Source: the idea is from Tian et al. 2023 (arXiv 2305.14975) and Lin et al. 2022
    (arXiv 2205.14334).
    """
    lines = [f"Question: {_clean(question)}", f"Answer: {_clean(answer)}"]
    lines += ["How likely is it that this answer is correct, from 0% to 100%?", "Likelihood:"]
    return Prompt("\n".join(lines), VERSIONS["confidence"], ())


def read_confidence(generated: str) -> float | None:
    """The stated confidence in [0, 1], from the first number of the first line, in percent.

    "90", "90%", "90 %" and "about 90 percent" are .9. A number from 0 to 1 without a percent sign
    that has a decimal point ("0.9") is a probability. None if there is no number in 0..100.
    """
    line = next((line for line in generated.splitlines() if line.strip()), "")
    match = re.search(r"(?<![\d.-])(\d+(?:\.\d+)?|\.\d+)\s*(%|percent)?", line)
    if match is None:
        return None
    number, is_percent = float(match[1]), match[2] is not None
    if not is_percent and "." in match[1] and number <= 1:
        return number
    return number / 100 if number <= 100 else None


def _questions(
    kind: str, head: str, question: str, examples: Iterable[Example], chat: bool
) -> Prompt:
    shown = list(examples)
    parts = [
        head,
        *(f"Q: {_clean(q)}\nA: {_clean(a)}" for q, a in shown),
        f"Q: {_clean(question)}\nA:",
    ]
    text, version = "\n\n".join(parts), _version(kind, len(shown))
    if not chat:
        return Prompt(text, version, ())
    turns = [turn for q, a in shown for turn in (("user", _clean(q)), ("assistant", _clean(a)))]
    (_, first), *others = [*turns, ("user", _clean(question))]
    # The first message has the instruction: not every template takes one of the system.
    messages = (("user", f"{head}\n\n{first}"), *others)
    return Prompt(text, f"{version}-chat", (), messages)


def _version(kind: str, num_examples: int) -> str:
    return f"{VERSIONS[kind]}-{num_examples}shot"


def _one_line(text: str) -> str:
    # A line end inside would look like the end of the question or answer.
    return " ".join(text.split())


def _clean(text: str) -> str:
    line = _one_line(text)
    if not line:
        raise ValueError(f"questions and answers must hold text, got {text!r}")
    return line
