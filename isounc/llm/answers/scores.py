r"""Scores of a language model's answers: what says, without knowing the answer, that it is wrong.

Every score is a `Score`: a function of what `isounc.llm.answers.measure` keeps, with a name, and whether higher means
more certain. Those of the isotropic approach come in one form an estimand (`isounc.llm.answers.estimands`); with p the
estimand's probability and g = grad p over all parameters

    epistemic                log ||g||^2                      (also layer_scaled, last_layer)
    aleatoric                p (1 - p)
    total_sum                sigma^2 ||g||^2 + p (1 - p)      the paper's total; sigma is given
    total_rank, _z           see `isounc.llm.answers.totals.combine`; these depend on the other questions
    total_logistic           the same, fitted to whether other answers were right, out of fold
    link_aware               Var[sigmoid(f)],    f ~ N(logit p, sigma^2 ||grad logit p||^2)
    link_aware_total         m (1 - m), m = E[sigmoid(f)]

A pretrained model has no prior: sigma is a choice, the same for every parameter (`ScoreSettings.sigma`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_choice, check_real
from isounc.estimates.links import sigmoid_normal_moments
from isounc.llm.answers.entailment import Same
from isounc.llm.answers.estimands import ESTIMANDS, SCALINGS
from isounc.llm.answers.measure import Measured
from isounc.llm.answers.score_table import ScoreTable, make_score_table
from isounc.llm.answers.text import normalise, token_f1
from isounc.llm.answers.totals import RULES, combine


@dataclass(frozen=True)
class ScoreSettings:
    """Which scores are made, and their constants."""

    estimands: tuple[str, ...] = ESTIMANDS
    """Probabilities of an answer that the isotropic scores are about."""
    sigma: float = 0.01
    """Standard deviation of every parameter in total_sum and link_aware: a hundredth."""
    rules: tuple[str, ...] = RULES
    """Totals: sum, rank, z, logistic."""

    def __post_init__(self):
        for value in self.estimands:
            check_choice("estimands", value, ESTIMANDS)
        for value in self.rules:
            check_choice("rules", value, RULES)
        check_real("sigma", self.sigma, positive=True)


@runtime_checkable
class Score(Protocol):
    """A score of answers."""

    @property
    def name(self) -> str:
        """As it stands in tables; ``epistemic/choice`` for one that is about an estimand."""
        ...

    @property
    def higher_is_certain(self) -> bool:
        """True where a high value says that the answer is right."""
        ...

    def __call__(
        self, measured: Sequence[Measured], wrong: Bool[np.ndarray, " Q"]
    ) -> Float[np.ndarray, " Q"]:
        """One value a question, NaN where undefined; ``wrong`` is for what is fitted, out of fold."""
        ...


@dataclass(frozen=True)
class OfOne:
    """A score of each answer by itself."""

    name: str
    """Its name."""
    value: Callable[[Measured], float | None]
    """From one question's measurement; None where undefined."""
    higher_is_certain: bool = False
    """Whether a high value says that the answer is right."""
    why_undefined: str = "the answer is empty"
    """Said where it is."""

    def __call__(self, measured, wrong):
        values = [self.value(one) if one["answer"] else None for one in measured]
        return np.array([np.nan if v is None else v for v in values], float)


@dataclass(frozen=True)
class OfProbability:
    """An isotropic score of one estimand."""

    kind: str
    """epistemic, epistemic_<scaling>, aleatoric, link_aware, link_aware_total, or total_<rule>."""
    estimand: str
    """The probability that it is about."""
    sigma: float
    """Standard deviation of the parameters."""
    higher_is_certain: bool = False
    """False: all of them are uncertainties."""
    why_undefined: str = "no choices, an empty answer, or a number that is not finite"
    """Said where it is."""

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.estimand}"

    def __call__(self, measured, wrong):
        scaling = self.kind.removeprefix("epistemic_") if "epistemic_" in self.kind else "all"
        log_odds, log_norm = _columns(measured, self.estimand, scaling)
        with np.errstate(invalid="ignore"):  # of what is undefined
            log_p, log_1mp = -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)
        if self.kind.startswith("epistemic"):
            return 2 * log_p + log_norm
        aleatoric = np.exp(log_p + log_1mp)
        if self.kind == "aleatoric":
            return aleatoric
        if self.kind.startswith("link_aware"):
            # grad logit p = grad log p / (1 - p).
            log_var = 2 * np.log(self.sigma) + log_norm - 2 * log_1mp
            return _link_aware(log_odds, log_var, total=self.kind.endswith("total"))
        epistemic = np.exp(2 * log_p + log_norm)
        rule = self.kind.removeprefix("total_")
        return combine(epistemic, aleatoric, rule, sigma2=self.sigma**2, wrong=wrong)


def _columns(measured, estimand, scaling) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds, and log ||grad log p||^2."""

    def of(one: Measured) -> tuple[float, float]:
        odds = one.get("log_odds", {}).get(estimand)
        norm = one.get("log_sq_norms", {}).get(estimand, {}).get(scaling)
        return (np.nan, np.nan) if odds is None or norm is None else (odds, norm)

    columns = np.array([of(one) for one in measured], float).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _link_aware(log_odds, log_var, *, total: bool) -> np.ndarray:
    defined = np.isfinite(log_odds) & np.isfinite(log_var)
    found = np.full(len(log_odds), np.nan)
    with jax.enable_x64(True):
        # Beyond e^60 the sigmoid is a coin with two sides.
        moments = sigmoid_normal_moments(
            log_odds[defined], np.exp(np.minimum(log_var[defined], 60))
        )
    mean, var = np.asarray(moments.mean), np.asarray(moments.var)
    found[defined] = mean * (1 - mean) if total else var
    return found


def clusters(texts: Sequence[str], same: Same, question: str = "") -> list[int]:
    """Number of the cluster of each answer: that of the first before it that means the same, or a new one."""
    firsts: list[str] = []
    found = []
    for text in texts:
        where = next(
            (k for k, first in enumerate(firsts) if same(question, first, text)), len(firsts)
        )
        if where == len(firsts):
            firsts.append(text)
        found.append(where)
    return found


def same_words(question: str, one: str, other: str) -> bool:
    """Whether two answers have one normal form, whatever the question."""
    return normalise(one) == normalise(other)


def _semantic_entropy(one: Measured, same: Same) -> float | None:
    """Entropy of the clusters' shares of the samples, nats. Source: Farquhar et al. 2024, discrete form."""
    samples = one.get("samples")
    if not samples:
        return None
    counts = np.bincount(clusters([s["text"] for s in samples], same, one["question"]))
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _sampled(one: Measured, value: Callable[[list[dict[str, Any]]], float]) -> float | None:
    return value(one["samples"]) if one.get("samples") else None


def _lexical(samples: list[dict[str, Any]]) -> float:
    """Mean F1 of the words that two samples share. After Fomicheva et al. 2020."""
    pairs = [
        token_f1(a["text"], b["text"]) if normalise(a["text"]) or normalise(b["text"]) else 1.0
        for i, a in enumerate(samples)
        for b in samples[:i]
    ]
    return float(np.mean(pairs)) if pairs else 1.0


def _p_true(one: Measured, key: str) -> float | None:
    """Share of "true" in the probability of both options."""
    both = one.get(key)
    return None if both is None else float(1 / (1 + np.exp(both["false"] - both["true"])))


def _choice_entropy(one: Measured) -> float | None:
    """Entropy of the softmax of the choices' log probabilities, over its largest value, log K."""
    log_probs = one.get("choice_log_probs")
    if not log_probs or len(log_probs) < 2:
        return None
    log_p = np.array(log_probs) - np.logaddexp.reduce(log_probs)
    return float(-(np.exp(log_p) * log_p).sum() / np.log(len(log_p)))


def baselines(same: Same | None = None) -> tuple[Score, ...]:
    """What the isotropic scores are compared with.

    Parameters
    ----------
    same
        Whether two answers mean the same, for ``semantic_entropy_entailment``:
        `isounc.llm.answers.entailment.load_entailment`, or a function of your own. None leaves that score out;
        ``semantic_entropy`` compares normal forms.

    Source: P(True) Kadavath et al. 2022; verbalised confidence Lin et al. 2022; semantic entropy Farquhar et al. 2024;
    naive entropy (Monte Carlo, of whole sequences) Malinin and Gales 2021.
    """
    samples = "no samples"
    found: list[Score] = [
        OfOne("p_true", lambda m: _p_true(m, "p_true"), True, "not asked"),
        OfOne("p_true_ideas", lambda m: _p_true(m, "p_true_ideas"), True, "no samples to show"),
        OfOne("verbalised", lambda m: m.get("confidence"), True, "no percentage in the text"),
        OfOne("log_prob", lambda m: sum(m["token_log_probs"]), True),
        OfOne("mean_log_prob", lambda m: float(np.mean(m["token_log_probs"])), True),
        OfOne("mean_token_entropy", lambda m: float(np.mean(m["token_entropies"]))),
        OfOne("max_token_entropy", lambda m: float(np.max(m["token_entropies"]))),
        OfOne("naive_entropy",
              lambda m: _sampled(m, lambda s: -float(np.mean([x["log_prob"] for x in s]))),
              why_undefined=samples),
        OfOne("semantic_entropy", lambda m: _semantic_entropy(m, same_words), why_undefined=samples),
        OfOne("lexical_similarity", lambda m: _sampled(m, _lexical), True, samples),
        OfOne("choice_entropy", _choice_entropy, why_undefined="no choices"),
        OfOne("answer_length", lambda m: m["num_tokens"]),
    ]  # fmt: skip
    if same is not None:
        compare = functools.lru_cache(maxsize=None)(same)
        found.append(
            OfOne("semantic_entropy_entailment", lambda m: _semantic_entropy(m, compare),
                  why_undefined=samples)
        )  # fmt: skip
    return tuple(found)


def isotropic_scores(settings: ScoreSettings) -> tuple[Score, ...]:
    """The isotropic scores of every estimand."""
    kinds = ["epistemic" if s == "all" else f"epistemic_{s}" for s in SCALINGS]
    kinds += ["aleatoric", *(f"total_{rule}" for rule in settings.rules)]
    kinds += ["link_aware", "link_aware_total"]
    return tuple(
        OfProbability(kind, estimand, settings.sigma)
        for estimand in settings.estimands
        for kind in kinds
    )


def score_table(
    measured: Sequence[Measured],
    settings: ScoreSettings = ScoreSettings(),
    *,
    more: Iterable[Score] = (),
    same: Same | None = None,
) -> ScoreTable:
    """All scores of measured answers, turned so that higher is more uncertain.

    A score that is undefined at every question is left out. ``more`` are scores of your own.

    Raises
    ------
    ValueError
        No questions, or two scores of one name.
    """
    if not measured:
        raise ValueError("measured must hold a question; got none")
    wrong = np.array([not one["correct"] for one in measured])
    all_scores = [*isotropic_scores(settings), *baselines(same), *more]
    values, certain, reasons = {}, [], {}
    for score in all_scores:
        if score.name in values:
            raise ValueError(f"more must have names of their own; {score.name!r} is there twice")
        found = _try(score, measured, wrong)
        if np.isnan(found).all():
            continue
        values[score.name] = found
        reasons[score.name] = getattr(score, "why_undefined", "undefined")
        if score.higher_is_certain:
            certain.append(score.name)
    return make_score_table(values, ~wrong, higher_is_certain=certain, reasons=reasons)


def _try(score: Score, measured: Sequence[Measured], wrong: np.ndarray) -> np.ndarray:
    """A score's values; none where a combination has too little to be fitted or ranked."""
    log_odds = None
    if isinstance(score, OfProbability):
        log_odds, _ = _columns(measured, score.estimand, "all")
        if np.isnan(log_odds).all():
            return np.full(len(measured), np.nan)
        if score.kind == "total_logistic":
            there = ~np.isnan(log_odds)
            if min(wrong[there].sum(), (~wrong[there]).sum()) < 5:
                return np.full(len(measured), np.nan)
    return np.asarray(score(measured, wrong), float)
