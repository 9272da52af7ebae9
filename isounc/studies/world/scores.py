"""Answers of a decoder to the questions of a world, and scores of how likely they are wrong.

Every score is to be higher where the answer is wrong. With p the probability of the answer, f its
log-odds and theta all parameters,

    ||grad p||^2 = (p (1 - p))^2 ||grad f||^2,     ||grad log p||^2 = (1 - p)^2 ||grad f||^2.

Axes: Q questions, C answers of a pool, M members.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree
from scipy.special import expit

from isounc.estimates.moderated import sigmoid_mean_and_var
from isounc.estimates.scale_rules import LOGISTIC_VAR
from isounc.gradnorm import value_and_sq_grad_norm
from isounc.llm.answers.estimands import log_odds_of_logits, log_odds_of_product
from isounc.llm.answers.semgrad import first_block, weighted_log_odds
from isounc.llm.model import transformer
from isounc.studies.world.corpus import (
    HOW_OFTEN,
    IS_TRUE,
    NO,
    NUM_PAIRS,
    NUM_PARTS,
    NUM_SINGLE,
    YES,
    World,
    words_of_frequency,
)

AT_A_TIME = 100
"""Questions at a time, which bounds memory."""


class Score(NamedTuple):
    """A score of wrongness."""

    label: str
    """Name in tables and figures."""
    equation: str
    """Its definition."""
    sign: str
    """What theory says of its sign."""


_FALLS = "falls as p rises"
SCORES = {
    "log_p": Score("−log p", "−log p", _FALLS),
    "entropy": Score("entropy", "−Σ_c p_c log p_c over the pool, and the rest as one class", "any"),
    "null": Score("p(1−p)", "p (1 − p), the paper's aleatoric part", "rises with p below p = ½"),
    "logit_norm": Score(
        "‖∂p/∂z‖²", "p² Σ_t (1 − 2 p_t + Σ_k p_tk²), z the logits of the answer's tokens",
        "rises with p below p = ½",
    ),
    "regression": Score(
        "(log p, entropy)", "log odds of a logistic regression, out of fold; it sees labels", "fitted"
    ),
    "sq_norm": Score("‖∇p‖²", "(p (1 − p))² ‖∇f‖²", "rises with p below p = ½"),
    "log_sq_norm": Score("‖∇ log p‖²", "(1 − p)² ‖∇f‖²", _FALLS),
    "odds_sq_norm": Score("‖∇f‖²", "of the log-odds f", "none"),
    "total": Score("σ²‖∇p‖² + p(1−p)", "the paper's combined estimate", "rises with p below p = ½"),
    "logit_scaled": Score("logit_scaled", "Var sigmoid(N(f, σ²‖∇f‖²))", "rises with p below p = ½"),
    "moderated": Score("moderated", "1 − E sigmoid(N(f, σ²‖∇f‖²))", _FALLS),
    "semgrad": Score(
        "SemGrad", "mean |∂ Σ_t H_t log p_t / ∂h| in the upper half of the blocks at the prompt's last "
        "token (isounc.llm.answers.semgrad)", "falls as p rises at the same entropy H",
    ),
    "p_true": Score("1 − P(True)", "the model's own reply about its answer", "taught"),
    "frequency": Score("said frequency", "minus the mean word of frequency it replies", "taught"),
    "ensemble_trace": Score("Σ_c Var p_c", "over the other members", "reference"),
    "ensemble_mi": Score("mutual information", "of answer and member, others", "reference"),
    "oracle": Score("oracle", "1 − true share of the answer", "cannot be exceeded"),
}  # fmt: skip
"""Scores by name; sigma^2 = (pi^2/3) / median ||grad f||^2 over the questions taught, which are never
judged (the rule of `logit_scaled`), in every score that has one."""


class Said(NamedTuple):
    """What a decoder says at a temperature; NumPy arrays."""

    answer: Int[np.ndarray, " Q"]
    """The answer with the largest probability at temperature one."""
    log_odds: Float[np.ndarray, " Q"]
    """f of that answer."""
    odds_sq_norm: Float[np.ndarray, " Q"]
    """||grad f||^2."""
    logit_sq_norm: Float[np.ndarray, " Q"]
    """||dp/dz||^2 in the logits."""
    log_probs: Float[np.ndarray, "Q C"]
    """Log probabilities of all answers of the pool."""
    p_true: Float[np.ndarray, " Q"]
    """Probability of `YES` beside `NO` when asked whether the answer is true."""
    frequency: Float[np.ndarray, " Q"]
    """Mean place of the word of frequency, 0 for never."""
    log_semgrad: Float[np.ndarray, " Q"] | None = None
    """Log of SemGrad; None for a decoder of one layer, which has none."""


class Reference(NamedTuple):
    """Spread over the members of an ensemble."""

    trace: Float[np.ndarray, " Q"]
    """Sum over the answers of Var p_c."""
    mi: Float[np.ndarray, " Q"]
    """Mutual information of answer and member, the rest of the vocabulary as one answer; nats."""
    var_p: Float[np.ndarray, " Q"]
    """Var p of the answer that is judged."""


def say(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    world: World,
    *,
    temperature: float = 1.0,
    answer: Int[np.ndarray, " Q"] | None = None,
) -> Said:
    """What one decoder says of every question.

    Parameters
    ----------
    temperature
        Divides the logits of the answer's tokens, in value and gradient.
    answer
        The answers that the numbers are about; None is those of largest probability.
    """
    log_probs = answer_log_probs(graphdef, params, world, temperature=temperature)
    chosen = log_probs.argmax(1) if answer is None else answer
    tokens = world.answers[world.relation, chosen]
    inputs = np.concatenate([world.prompts, tokens], axis=1).astype(np.int32)
    is_pair = chosen >= NUM_SINGLE
    log_odds, sq_norm, logit_sq_norm = jax.device_get(
        _norms(params, inputs, is_pair, jnp.float32(temperature), graphdef=graphdef)
    )
    log_semgrad = None
    if nnx.merge(graphdef, params).config.num_layers > 1:
        log_semgrad = np.asarray(
            _log_semgrads(params, inputs, is_pair, jnp.float32(temperature), graphdef=graphdef),
            float,
        )
    words = _replies(graphdef, params, inputs, HOW_OFTEN)[:, words_of_frequency()]
    weights = np.exp(words - words.max(1, keepdims=True))
    frequency = weights @ np.arange(weights.shape[1]) / weights.sum(1)
    return Said(
        chosen, log_odds.astype(float), np.maximum(sq_norm, 0).astype(float),
        logit_sq_norm.astype(float), log_probs,
        p_true_of(graphdef, params, inputs), frequency, log_semgrad,
    )  # fmt: skip


def p_true_of(
    graphdef: nnx.GraphDef, params: PyTree[Array], sentences: Int[np.ndarray, "N 5"]
) -> Float[np.ndarray, " N"]:
    """P(True) of questions with answers: the probability of `YES` beside `NO` when asked."""
    replies = _replies(graphdef, params, sentences, IS_TRUE)
    return expit(replies[:, YES] - replies[:, NO])


def _replies(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    sentences: Int[np.ndarray, "N 5"],
    question: int,
) -> Float[np.ndarray, "N V"]:
    """Logits of the reply to a question of self-assessment."""
    asked = np.concatenate([sentences, np.full((len(sentences), 1), question)], axis=1)
    return np.asarray(_last_logits(params, asked.astype(np.int32), graphdef=graphdef), float)


def answer_log_probs(
    graphdef: nnx.GraphDef, params: PyTree[Array], world: World, *, temperature: float = 1.0
) -> Float[np.ndarray, "Q C"]:
    """Log probability of every answer of a question's pool as a sequence of tokens, float64."""
    pools = world.answers.astype(np.int32)
    found = _pool_log_probs(
        params, world.prompts.astype(np.int32), pools[world.relation], jnp.float32(temperature),
        graphdef=graphdef,
    )  # fmt: skip
    return np.asarray(found, float)


@functools.partial(jax.jit, static_argnames="graphdef")
def _pool_log_probs(
    params: PyTree[Array],
    prompts: Int[np.ndarray | Array, "Q 3"],
    pools: Int[np.ndarray | Array, "Q C 2"],
    temperature: Float[Array, ""],
    *,
    graphdef: nnx.GraphDef,
) -> Float[Array, "Q C"]:
    decoder = nnx.merge(graphdef, params)

    def of_question(prompt, pool):
        # The first pairs of a pool hold each first token of two once.
        begins = pool[NUM_SINGLE : NUM_SINGLE + NUM_PARTS, 0]
        rows = jnp.concatenate([jnp.tile(prompt, (NUM_PARTS, 1)), begins[:, None]], axis=1)
        states = decoder.hidden(rows)[:, 2:]
        first = jax.nn.log_softmax(decoder.head(states[0, 0]) / temperature)[pool[:, 0]]
        second = jax.nn.log_softmax(decoder.head(states[:, 1]) / temperature, axis=-1)
        place = jnp.arange(NUM_PAIRS) % NUM_PARTS
        rest = second[place, pool[NUM_SINGLE:, 1]]
        return first.at[NUM_SINGLE:].add(rest)

    return jax.lax.map(lambda row: of_question(*row), (prompts, pools), batch_size=AT_A_TIME)


@functools.partial(jax.jit, static_argnames="graphdef")
def _last_logits(
    params: PyTree[Array], tokens: Int[np.ndarray | Array, "Q T"], *, graphdef: nnx.GraphDef
) -> Float[Array, "Q V"]:
    decoder = nnx.merge(graphdef, params)
    return decoder.head(decoder.hidden(tokens)[:, -1])


def log_odds_of_answer(
    params: PyTree[Array],
    tokens: Int[Array, " 5"],
    is_pair: Bool[Array, ""],
    temperature: Float[Array, ""],
    *,
    graphdef: nnx.GraphDef,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The log-odds f of an answer of one or two tokens after a prompt of three, and ||dp/dz||^2."""
    decoder = nnx.merge(graphdef, params)
    states = decoder.hidden(tokens[None, :4])[0, 2:]
    logits = decoder.head(states) / temperature
    return log_odds_and_logit_norm(logits, tokens[3:], jnp.stack([jnp.array(True), is_pair]))


def log_odds_and_logit_norm(
    logits: Float[Array, "A V"], targets: Int[Array, " A"], included: Bool[Array, " A"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The log-odds f of the product of some tokens' probabilities, and ||dp/dz||^2 in the logits."""
    is_target = jnp.arange(logits.shape[1])[None, :] == targets[:, None]
    others = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, logits), axis=1)
    of_target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    f = log_odds_of_product(of_target - others, included)
    p = jax.nn.softmax(logits, axis=1)
    # (1 - p_t)^2 + sum over the others of p_tk^2; the difference has no digits where p_t is near 1.
    parts = jax.nn.sigmoid(others - of_target) ** 2 + jnp.where(is_target, 0, p**2).sum(1)
    return f, jax.nn.sigmoid(f) ** 2 * jnp.where(included, parts, 0).sum()


@functools.partial(jax.jit, static_argnames="graphdef")
def _norms(
    params: PyTree[Array],
    tokens: Int[np.ndarray | Array, "Q 5"],
    is_pair: Bool[np.ndarray | Array, " Q"],
    temperature: Float[Array, ""],
    *,
    graphdef: nnx.GraphDef,
) -> tuple[Float[Array, " Q"], Float[Array, " Q"], Float[Array, " Q"]]:
    function = value_and_sq_grad_norm(
        functools.partial(log_odds_of_answer, graphdef=graphdef),
        in_axes=(0, 0, None), batch_size=AT_A_TIME, has_aux=True,
    )  # fmt: skip
    (f, logit_norm), sq_norm = function(params, tokens, is_pair, temperature)
    return f, sq_norm, logit_norm


@functools.partial(jax.jit, static_argnames="graphdef")
def _log_semgrads(
    params: PyTree[Array],
    tokens: Int[np.ndarray | Array, "Q 5"],
    is_pair: Bool[np.ndarray | Array, " Q"],
    temperature: Float[Array, ""],
    *,
    graphdef: nnx.GraphDef,
) -> Float[Array, " Q"]:
    """Log of SemGrad at the last token of each prompt."""
    decoder = nnx.merge(graphdef, params)
    config, weights = decoder.config, decoder.weights()
    first = first_block(config.num_layers)

    def of_question(tokens, is_pair):
        given = transformer.inputs(config, weights.embed, tokens[None, :4], jnp.arange(4)[None])

        def number(shifts):
            x = given.x
            for i, layer in enumerate(weights.layers):
                if i >= first:
                    x = x.at[0, 2].add(shifts[i - first])
                x, _ = transformer.block(config, layer, x, *given.of_layer(config, i))
            states = transformer.final_norm(config, weights.norm, x)[0, 2:]
            odds, entropies = log_odds_of_logits(decoder.head(states) / temperature, tokens[3:])
            return weighted_log_odds(odds, entropies, jnp.stack([jnp.array(True), is_pair]))

        nothing = jnp.zeros((config.num_layers - first, config.width), given.x.dtype)
        gradient, log_factor = jax.grad(number, has_aux=True)(nothing)
        return log_factor + jnp.log(jnp.abs(gradient).mean())

    return jax.lax.map(lambda row: of_question(*row), (tokens, is_pair), batch_size=AT_A_TIME)


def reference(log_probs: Float[np.ndarray, "M Q C"], answer: Int[np.ndarray, " Q"]) -> Reference:
    """The spread of members' predictions: variances with divisor M, and mutual information.

    Raises
    ------
    ValueError
        For fewer than two members.
    """
    if len(log_probs) < 2:
        raise ValueError(f"log_probs must be of two members or more, got {len(log_probs)}")
    p = np.exp(log_probs)
    var = p.var(axis=0)
    whole = np.concatenate([p, np.maximum(1 - p.sum(2, keepdims=True), 0)], axis=2)
    mi = entropy(whole.mean(0)) - entropy(whole).mean(0)
    return Reference(
        var.sum(1), np.maximum(mi, 0), np.take_along_axis(var, answer[:, None], 1)[:, 0]
    )


def entropy(p: Float[np.ndarray, "*B C"]) -> Float[np.ndarray, "*B"]:
    """Entropy in nats along the last axis; 0 log 0 = 0."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def sigma_sq(said: Said, taught: Bool[np.ndarray, " Q"]) -> float:
    """The scale by the rule of `logit_scaled`: (pi^2/3) / median ||grad f||^2 over questions taught.

    Raises
    ------
    ValueError
        Where that median is not positive and finite.
    """
    median = float(np.median(said.odds_sq_norm[taught])) if taught.any() else 0.0
    if not 0 < median < np.inf:
        raise ValueError(f"the median of ‖∇f‖² must be positive and finite, got {median:g}")
    return LOGISTIC_VAR / median


def make_scores(
    said: Said, others: Reference, shares: Float[np.ndarray, "Q C"], taught: Bool[np.ndarray, " Q"]
) -> Mapping[str, Float[np.ndarray, " Q"]]:
    """All scores but `regression`, which is fitted where it is judged; higher is to mean wrong.

    A decoder of one layer has no `semgrad`.
    """
    f, g = said.log_odds, said.odds_sq_norm
    p, q = expit(f), expit(-f)
    scale = sigma_sq(said, taught)
    # E[1 - sigmoid(f)] = E[sigmoid(-f)] keeps its digits where p is near 1; the variance is the same.
    with np.errstate(divide="ignore"):
        mean_error, var = sigmoid_mean_and_var(-f, np.log(scale * g))
    probs = np.exp(said.log_probs)
    whole = np.concatenate([probs, np.maximum(1 - probs.sum(1, keepdims=True), 0)], axis=1)
    sq_norm = (p * q) ** 2 * g
    scores = {
        "log_p": np.logaddexp(0, -f),
        "entropy": entropy(whole),
        "null": p * q,
        "logit_norm": said.logit_sq_norm,
        "sq_norm": sq_norm,
        "log_sq_norm": q**2 * g,
        "odds_sq_norm": g,
        "total": scale * sq_norm + p * q,
        "logit_scaled": var,
        "moderated": mean_error,
        "p_true": 1 - said.p_true,
        "frequency": -said.frequency,
        "ensemble_trace": others.trace,
        "ensemble_mi": others.mi,
        "oracle": 1 - np.take_along_axis(shares, said.answer[:, None], 1)[:, 0],
    }
    if said.log_semgrad is not None:
        scores["semgrad"] = np.exp(said.log_semgrad)
    return scores
