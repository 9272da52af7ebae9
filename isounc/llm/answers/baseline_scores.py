"""The scores that the isotropic ones are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from isounc.llm.answers.answer import MeasuredAnswer, OptionLogProbs, Sample
from isounc.llm.answers.entailment import SameMeaning
from isounc.llm.answers.scores import Score, Sign, score_of_each
from isounc.llm.answers.text import normalise, token_f1


def baseline_scores(same: SameMeaning | None = None) -> tuple[Score, ...]:
    """The baselines.

    Parameters
    ----------
    same
        Whether two answers mean the same, for `semantic_entropy_entailment`: from
        `isounc.llm.answers.entailment.load_entailment`, or a function of your own. None leaves
        that score out; `semantic_entropy` compares normal forms.

    `semgrad` is log S as defined in equation 4 of its source, `semgrad_mean` log S/A as in the
    authors' code (`isounc.llm.answers.semgrad`); A is the number of the answer's tokens.

    Source: P(True) Kadavath et al. 2022; verbalised confidence Lin et al. 2022; semantic entropy
    Farquhar et al. 2024; naive entropy (Monte Carlo, of whole sequences) Malinin and Gales 2021;
    SemGrad Li et al. 2026 (arXiv 2605.04638).
    """
    samples, no_semgrad = "no samples", "not measured (measure.semgrad_token), or zero"
    scores = [
        _baseline("p_true", _p_true, higher_is_certain=True, why_undefined="not asked"),
        _baseline("p_true_ideas", _p_true_ideas, higher_is_certain=True,
                  why_undefined="no samples to show"),
        _baseline("verbalised", _stated_confidence, higher_is_certain=True,
                  why_undefined="no percentage in the text"),
        _baseline("log_prob", lambda answer: sum(answer.token_log_probs), higher_is_certain=True,
                  sign="falls"),
        _baseline("mean_log_prob", lambda answer: float(np.mean(answer.token_log_probs)),
                  higher_is_certain=True, sign="falls"),
        _baseline("mean_token_entropy", lambda answer: float(np.mean(answer.token_entropies))),
        _baseline("max_token_entropy", lambda answer: float(np.max(answer.token_entropies))),
        _baseline("naive_entropy", _naive_entropy, why_undefined=samples),
        _baseline("semantic_entropy", lambda answer: _semantic_entropy(answer, same_words),
                  why_undefined=samples),
        _baseline("lexical_similarity", _lexical_similarity, higher_is_certain=True,
                  why_undefined=samples),
        _baseline("choice_entropy", _choice_entropy, why_undefined="no choices"),
        _baseline("semgrad", lambda answer: answer.log_semgrad, sign="entropy",
                  why_undefined=no_semgrad),
        _baseline("semgrad_mean", _mean_semgrad, sign="entropy", why_undefined=no_semgrad),
        _baseline("answer_length", lambda answer: answer.num_tokens),
    ]  # fmt: skip
    if same is not None:
        compare = functools.lru_cache(maxsize=None)(same)
        scores.append(
            _baseline("semantic_entropy_entailment",
                      lambda answer: _semantic_entropy(answer, compare), why_undefined=samples)
        )  # fmt: skip
    return tuple(scores)


def clusters(texts: Sequence[str], same: SameMeaning, question: str = "") -> list[int]:
    """Number of the cluster of each answer.

    An answer joins the first cluster whose first answer means the same, or begins a new one.
    """
    firsts: list[str] = []
    numbers = []
    for text in texts:
        number = next(
            (k for k, first in enumerate(firsts) if same(question, first, text)), len(firsts)
        )
        if number == len(firsts):
            firsts.append(text)
        numbers.append(number)
    return numbers


def same_words(question: str, answer: str, other: str) -> bool:
    """Whether two answers have the same normal form, whatever the question."""
    return normalise(answer) == normalise(other)


def _baseline(
    family: str,
    value: Callable[[MeasuredAnswer], float | None],
    *,
    higher_is_certain: bool = False,
    why_undefined: str = "the answer is empty",
    sign: Sign = "none",
) -> Score:
    return Score(
        family=family,
        higher_is_certain=higher_is_certain,
        is_baseline=True,
        why_undefined=why_undefined,
        sign=sign,
        values=score_of_each(value),
    )


def _p_true(answer: MeasuredAnswer) -> float | None:
    return _share_true(answer.self_assessment and answer.self_assessment.p_true)


def _p_true_ideas(answer: MeasuredAnswer) -> float | None:
    return _share_true(answer.self_assessment and answer.self_assessment.p_true_ideas)


def _share_true(options: OptionLogProbs | None) -> float | None:
    """Share of the option "true" in the probability of both."""
    return None if options is None else float(1 / (1 + np.exp(options.false - options.true)))


def _stated_confidence(answer: MeasuredAnswer) -> float | None:
    return answer.self_assessment and answer.self_assessment.confidence


def _naive_entropy(answer: MeasuredAnswer) -> float | None:
    """Mean of -log p over the samples, in nats."""
    if not answer.samples:
        return None
    return -float(np.mean([sample.log_prob for sample in answer.samples]))


def _semantic_entropy(answer: MeasuredAnswer, same: SameMeaning) -> float | None:
    """Entropy of the clusters' shares of the samples, in nats.

    Source: Farquhar et al. 2024, discrete form.
    """
    if not answer.samples:
        return None
    texts = [sample.text for sample in answer.samples]
    counts = np.bincount(clusters(texts, same, answer.question))
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _lexical_similarity(answer: MeasuredAnswer) -> float | None:
    """Mean F1 of the words that two samples share. After Fomicheva et al. 2020."""
    if not answer.samples:
        return None
    overlaps = [
        _overlap(sample, other)
        for i, sample in enumerate(answer.samples)
        for other in answer.samples[:i]
    ]
    return float(np.mean(overlaps)) if overlaps else 1.0


def _overlap(sample: Sample, other: Sample) -> float:
    if not normalise(sample.text) and not normalise(other.text):
        return 1.0
    return token_f1(sample.text, other.text)


def _mean_semgrad(answer: MeasuredAnswer) -> float | None:
    """SemGrad of the mean over the tokens, on the log scale."""
    return None if answer.log_semgrad is None else answer.log_semgrad - np.log(answer.num_tokens)


def _choice_entropy(answer: MeasuredAnswer) -> float | None:
    """Entropy of the softmax of the choices' log probabilities, over its largest value, log K."""
    log_probs = answer.choice_log_probs
    if log_probs is None or len(log_probs) < 2:
        return None
    log_p = np.array(log_probs) - np.logaddexp.reduce(log_probs)
    return float(-(np.exp(log_p) * log_p).sum() / np.log(len(log_p)))
