r"""Scores of an answer's tokens that cost one forward pass: probabilities, and gradients of the end.

With z the logits of a token y and q = softmax(z), h the state of which they are made (after the last
norm, in the type of the matrix), and U the matrix that makes them, z = U^T h,

    grad_z log p = e_y - q         ||grad_z log p||^2 = sum_c q_c^2 - 2 p + 1
                                                      = (1 - p)^2 + sum_{c != y} q_c^2
    grad_U log p = h (e_y - q)^T   ||grad_U log p||^2 = ||grad_z log p||^2 ||h||^2

and grad p = p grad log p. The second line is exact for U as a layer of its own, whose input h is
fixed. It is not the norm over all parameters, and need not order tokens as that does;
`isounc.llm.answers.norms.answer_norms` measures that one, with a backward pass (and gives these
scores with it). Where the embedding
is tied, U is also the embedding of the tokens before: the gradient in the array has both parts, and
only the one through the logits is here. (`answer_norms` with the scaling `last_layer` has both.)

Signs in theory, while h and the shares r_c of the other tokens in 1 - p stay the same: the norms of
grad log p have the factor (1 - p)^2 (1 + sum_c r_c^2) and fall as p rises, at every p. Those of grad p
have p^2 besides, and like p (1 - p) they rise with p below p = 1/2.

Axes: A tokens of the answers in a packed sequence, W width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isounc.checks import check_count
from isounc.llm.answers.estimands import log_odds_of_logits
from isounc.llm.answers.packing import (
    PackedAnswers,
    PackedShape,
    check_finite,
    check_vocabulary,
    forward_shape_of,
    in_batches,
)
from isounc.llm.model import transformer
from isounc.llm.model.attention import at_least_float32
from isounc.llm.model.transformer import Network


class TokenScores(NamedTuple):
    """Scores of A tokens, in the order of `PackedAnswers.targets`."""

    log_odds: Float[np.ndarray | Array, " A"]
    """log p - log(1 - p), with 1 - p as the sum of the other tokens' probabilities."""
    entropies: Float[np.ndarray | Array, " A"]
    """Entropy of the distribution of the token, in nats."""
    log_sq_norms_logits: Float[np.ndarray | Array, " A"]
    """log ||grad log p||^2 in the logits."""
    log_sq_norms_head: Float[np.ndarray | Array, " A"]
    """log ||grad log p||^2 in the matrix that makes the logits, as a layer of its own."""

    @property
    def log_probs(self) -> Float[np.ndarray, " A"]:
        """Log p, in nats."""
        return -np.logaddexp(0, -np.asarray(self.log_odds, float))

    @property
    def aleatoric(self) -> Float[np.ndarray, " A"]:
        """P (1 - p)."""
        return np.exp(self.log_probs - np.logaddexp(0, np.asarray(self.log_odds, float)))

    @property
    def log_sq_norms_head_of_p(self) -> Float[np.ndarray, " A"]:
        """Log ||grad p||^2 in the matrix that makes the logits, as a layer of its own."""
        return 2 * self.log_probs + np.asarray(self.log_sq_norms_head, float)


def token_scores(
    network: Network, packed: Sequence[PackedAnswers], *, batch_size: int = 16
) -> list[TokenScores]:
    """Scores of the answers' tokens from one forward pass; float64, without padding.

    Parameters
    ----------
    network
        A `LanguageModel` or `Decoder`.
    packed
        From `isounc.llm.answers.packing.pack`. Sequences are padded to few shapes, each of which
        compiles once (`isounc.llm.answers.packing.forward_shape_of`).
    batch_size
        Sequences at a time; long ones go fewer at a time.

    Returns
    -------
    list of TokenScores
        One a sequence, with the tokens of all its answers.

    Raises
    ------
    ValueError
        A token is beyond the vocabulary, or logits are not finite.
    """
    check_count("batch_size", batch_size, 1)
    check_vocabulary(packed, network.config.vocab_size)
    config, weights = network.config, network.weights()

    def program(stacked: PackedAnswers, numbers: list[int], shape: PackedShape) -> TokenScores:
        arrays = stacked.tokens, stacked.positions, stacked.branches
        states = transformer.hidden(config, weights, *arrays)
        return _of_states(states, weights.embed, weights.head, stacked.at, stacked.targets)

    scores = []
    found = in_batches(packed, forward_shape_of, batch_size, program)
    for i, (sequence, padded) in enumerate(zip(packed, found, strict=True)):
        check_finite(i, sequence, padded.log_odds)
        size = sequence.targets.size
        scores.append(TokenScores(*(column[:size].astype(float) for column in padded)))
    return scores


@jax.jit
def _of_states(
    states: Float[Array, "B T W"],
    embed: Float[Array, "V W"],
    head: Float[Array, "W V"] | None,
    at: Int[Array, "B A"],
    targets: Int[Array, "B A"],
) -> TokenScores:
    def one(states, at, targets):
        return scores_of_logits(transformer.logits_of(states[at], embed, head), states[at], targets)

    # The type in which the states meet the matrix decides what the gradient is.
    matrix = embed if head is None else head
    return jax.vmap(one)(states.astype(matrix.dtype), at, targets)


def scores_of_logits(
    logits: Float[Array, "A V"], states: Float[Array, "A W"], targets: Int[Array, " A"]
) -> TokenScores:
    """The scores from the logits that somebody has, and the states of which they were made."""
    log_odds, entropies = log_odds_of_logits(logits, targets)
    is_target = jnp.arange(logits.shape[-1])[None, :] == targets[:, None]
    log_others = jnp.where(is_target, -jnp.inf, jax.nn.log_softmax(logits, axis=-1))
    # (1 - p)^2 without the difference, which has no digits where p is near 1.
    log_norm = jnp.logaddexp(
        -2 * jax.nn.softplus(log_odds), jax.nn.logsumexp(2 * log_others, axis=-1)
    )
    states = states.astype(at_least_float32(states.dtype))
    return TokenScores(
        log_odds, entropies, log_norm, log_norm + jnp.log(jnp.square(states).sum(-1))
    )
