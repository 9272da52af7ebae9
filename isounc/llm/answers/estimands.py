"""The probabilities of an answer whose gradients are measured: estimands.

An answer y_1 ... y_A to a prompt has the token probabilities p_t = p(y_t | prompt, y_<t), and so
several probabilities of its own. The one that is meant is the *estimand*:

    sequence            p = prod_t p_t
    length_normalised   p = (prod_t p_t)^(1/A)
    mean_token          p = mean_t p_t
    first_token         p = p_1
    choice              p = s_c / sum_k s_k, s_k the sequence probability of the k-th given choice

Each has an aleatoric part p (1 - p) and an epistemic part ||grad p||^2 = p^2 ||grad log p||^2. The
estimand decides the result: for `sequence` the factor p^2 outweighs everything else, and the
epistemic part nearly re-encodes p.

Everything is kept as logarithms, and comes from the tokens' log-odds
d_t = z_t[y_t] - log sum_{v != y_t} exp z_t[v]. The function that is differentiated is
log p - log(1 - p), from which grad log p = (1 - p) grad (log p - log(1 - p)) follows in float64:
log p itself would be zero in float32 from log-odds of 88 on, and its squared gradient from 44 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from isounc.llm.answers.packing import PackedAnswers

if TYPE_CHECKING:
    from isounc.llm.model.decoder import Decoder

ESTIMANDS = ("sequence", "length_normalised", "mean_token", "first_token", "choice")
"""Probabilities of an answer, by name."""

SCALINGS = ("all", "layer_scaled", "last_layer")
"""Sums of squares over the parameters: every one alike; each array times its mean square, as for a
relative change of the same size in every array; the one array that makes logits of the last states
(a tied embedding: both its uses)."""

_SURE = 15.0
"""Log-odds beyond which 1 - p is exp(-log-odds) to float32's rounding."""


def token_log_odds(
    decoder: Decoder, packed: PackedAnswers
) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """Log-odds d_t of the answers' tokens, and entropies (nats) of their distributions."""
    sequence = (packed.tokens, packed.positions, packed.branches)
    tokens, positions, branches = (jnp.asarray(array)[None] for array in sequence)
    states = decoder.hidden(tokens, positions=positions, branches=branches)[0]
    return log_odds_of_logits(decoder.head(states[packed.at]), packed.targets)


def log_odds_of_logits(
    logits: Float[Array, "A V"], targets: Int[Array | np.ndarray, " A"]
) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """Log-odds of tokens, and entropies (nats) of the distributions, from logits."""
    is_target = jnp.arange(logits.shape[-1])[None, :] == targets[:, None]
    others = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, logits), axis=-1)
    target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    # log p of the most probable token is log1p of the rest: a sum with its 1 would round to 1, and the
    # entropy lose the share of that token.
    shifted = logits - logits.max(-1, keepdims=True)
    is_top = jnp.arange(logits.shape[-1])[None, :] == logits.argmax(-1)[:, None]
    rest = jnp.where(is_top, 0, jnp.exp(shifted)).sum(-1, keepdims=True)
    log_probs = shifted - jnp.log1p(rest)
    return target - others, -(jnp.exp(log_probs) * log_probs).sum(-1)


def log_odds_of_product(
    log_odds: Float[Array, " A"], included: Bool[Array, " A"]
) -> Float[Array, ""]:
    """Log-odds of prod_t p_t over some tokens, from theirs.

    Neither p near 1 nor p near 0 loses its digits.
    """
    # log(-log p_t), by its limit -d_t where p_t is 1 but for rounding; then log(-log prod_t p_t).
    sure = log_odds > _SURE
    logs = jnp.where(sure, -log_odds, jnp.log(jax.nn.softplus(-jnp.where(sure, 0, log_odds))))
    log_cost = jax.nn.logsumexp(jnp.where(included, logs, -jnp.inf))
    sure = log_cost < -_SURE
    cost = jnp.exp(jnp.where(sure, 0, log_cost))
    log_wrong = jnp.where(sure, log_cost, jnp.log(-jnp.expm1(-cost)))
    return -jnp.where(included, jax.nn.softplus(-log_odds), 0).sum() - log_wrong


def log_odds_of_mean(log_odds: Float[Array, " A"], included: Bool[Array, " A"]) -> Float[Array, ""]:
    """Log-odds of the mean of p_t over some tokens: log sum p_t - log sum (1 - p_t)."""
    right, wrong = (
        jax.nn.logsumexp(jnp.where(included, -jax.nn.softplus(sign * log_odds), -jnp.inf))
        for sign in (-1, 1)
    )
    return right - wrong


def logit_of_log(log_p: float) -> float:
    """Log p - log(1 - p) from log p <= 0, without cancellation; infinite at p = 1."""
    with np.errstate(divide="ignore"):
        return float(log_p - np.log(-np.expm1(min(log_p, 0.0))))
