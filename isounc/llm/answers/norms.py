"""Exact squared gradient norms of the probabilities of answers, over all parameters of a model.

All choices of a question are packed into one sequence (`isounc.llm.answers.packing.pack`), in which
each attends to the prompt and to itself: the prompt is read once, in one forward pass.

Axes: N questions in all, B in a batch, A tokens of the answers in a packed sequence, C answers,
E probabilities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isounc.checks import check_choice, check_count
from isounc.llm.answers.estimands import (
    ESTIMANDS,
    SCALINGS,
    log_odds_of_mean,
    log_odds_of_product,
    logit_of_log,
)
from isounc.llm.answers.layerwise import Columns, LayerNorms, values, values_and_norms
from isounc.llm.answers.packing import (
    NO_ANSWER,
    PackedAnswers,
    PackedShape,
    check_finite,
    check_vocabulary,
    forward_shape_of,
    in_batches,
    only,
    shape_of,
)
from isounc.llm.answers.semgrad import log_semgrad, places, weighted_log_odds
from isounc.llm.answers.token_scores import TokenScores
from isounc.llm.model.transformer import Network, Weights


class AnswerNorms(NamedTuple):
    """Probabilities of N answers and norms of their gradients; NaN where undefined."""

    chosen: Int[np.ndarray, " N"]
    """The answer that the numbers are about, of those given."""
    log_probs: list[Float[np.ndarray, " C"]]
    """Log probability of each of the given answers, as a sequence."""
    tokens: list[TokenScores]
    """Scores of each of the chosen answer's A tokens, as `isounc.llm.token_scores` gives them."""
    log_odds: dict[str, Float[np.ndarray, " N"]]
    """log p - log(1 - p) by estimand, float64."""
    log_sq_norms: dict[str, dict[str, Float[np.ndarray, " N"]]]
    """log ||grad log p||^2 by estimand and scaling, float64; minus infinity for a zero norm."""
    log_semgrad: Float[np.ndarray, " N"] | None
    """Log of SemGrad (`isounc.llm.answers.semgrad`), minus infinity for zero; None if not asked for."""


def answer_norms(
    network: Network,
    packed: Sequence[PackedAnswers],
    *,
    chosen: Sequence[int] | None = None,
    estimands: Sequence[str] = ESTIMANDS,
    scalings: Sequence[str] = SCALINGS,
    batch_size: int = 8,
    shape: Callable[[PackedAnswers], PackedShape] = shape_of,
    semgrad_token: int = 0,
) -> AnswerNorms:
    """Log-odds and exact squared gradient norms of answers.

    `choice` costs one forward and one backward pass over the sequence with all answers. The other
    estimands cost one forward pass over the prompt and the chosen answer, and a backward pass for
    each of `sequence` (`length_normalised` shares it), `mean_token`, `first_token` and SemGrad; a
    single one for an answer of one token. No gradient of a weight matrix is stored.

    Parameters
    ----------
    network
        A `LanguageModel` or `Decoder`.
    packed
        From `isounc.llm.answers.packing.pack`. Sequences are padded to few shapes, each of which
        compiles once.
    chosen
        The answer of each question that the numbers are about; None is the one of largest sequence
        probability.
    estimands
        Some of `ESTIMANDS`; `choice` is NaN for a question with one answer.
    scalings
        Some of `SCALINGS`.
    batch_size
        Sequences at a time. Long ones go fewer at a time, so that the memory of their activations
        is bounded (`isounc.llm.answers.packing.packed_batches`).
    shape
        What a sequence is padded to.
    semgrad_token
        Token of the prompt, counted from its end, in whose states SemGrad takes derivatives; 0
        leaves it out.

    Raises
    ------
    ValueError
        A name is unknown, a chosen answer does not exist, a token is beyond the vocabulary, logits
        are not finite, a prompt has no such token, or a decoder of one block no SemGrad.

    Source: Grünefeld, Frellsen, Hardmeier 2026 (arXiv 2603.29466); exact norms: `isounc.gradnorm`.
    """
    for value in estimands:
        check_choice("estimands", value, ESTIMANDS)
    for value in scalings:
        check_choice("scalings", value, SCALINGS)
    check_count("batch_size", batch_size, 1)
    check_count("semgrad_token", semgrad_token, 0)
    check_vocabulary(packed, network.config.vocab_size)
    num_answers = [sequence.num_answers for sequence in packed]
    answer = np.full(len(packed), NO_ANSWER) if chosen is None else np.asarray(chosen)
    for i, (k, count) in enumerate(zip(answer, num_answers, strict=True)):
        if chosen is not None and not 0 <= k < count:
            raise ValueError(
                f"chosen must be below {count}, the number of answers, for question {i}, got {k}"
            )
    columns = [e for e in ("sequence", "mean_token", "first_token") if e in estimands]
    if "length_normalised" in estimands and "sequence" not in columns:
        columns.insert(0, "sequence")
    config, weights = network.config, network.weights()
    at = np.zeros(len(packed), np.int32)
    if semgrad_token:
        columns.append("semgrad")
        at = places(packed, semgrad_token, config.num_layers).astype(np.int32)
    factors = {scaling: factors_of(weights, scaling) for scaling in scalings}

    def norms(
        sequences: Sequence[PackedAnswers],
        chosen: Int[np.ndarray, " N"],
        at: Int[np.ndarray, " N"],
        columns: Sequence[str],
    ) -> list[_Norms]:
        def program(stacked: PackedAnswers, numbers: list[int], shape: PackedShape) -> Any:
            # All probabilities of a single token are the same one.
            computed = tuple(columns[: 1 if shape.num_targets == 1 else None])
            repeated = np.resize(chosen[numbers], len(stacked.tokens)).astype(np.int32)
            function = _columns(computed, shape.num_answers)
            if not computed:
                out, aux = values(config, weights, stacked, repeated, columns=function)
                return out, dict.fromkeys(factors, out), out, *aux
            token = np.resize(at[numbers], len(repeated))
            out, aux, by_leaf, mean_abs = values_and_norms(
                config, weights, stacked, repeated, columns=function, token=token
            )
            by_leaf, mean_abs = jax.device_get((by_leaf, mean_abs))
            sums = {s: _scaled_sum(by_leaf, f) for s, f in factors.items()}
            return out, sums, np.stack(mean_abs).transpose(2, 1, 0), *aux

        return [_Norms(*arrays) for arrays in in_batches(sequences, shape, batch_size, program)]

    several = [i for i, count in enumerate(num_answers) if count > 1]
    together = [packed[i] for i in several]
    choice: dict[int, _Norms] = {}
    log_probs: dict[int, Float[np.ndarray, " C"]] = {}
    if "choice" in estimands:
        found = norms(together, answer[several], at[several], ("choice",))
        choice = dict(zip(several, found, strict=True))
        for i, norm in choice.items():
            log_probs[i] = norm.log_probs[: num_answers[i]].astype(float)
    elif several:
        totals = answer_log_probs(network, together, batch_size=batch_size)
        log_probs = dict(zip(several, totals, strict=True))
    if chosen is None:
        most_probable = {i: int(np.argmax(totals)) for i, totals in log_probs.items()}
        answer = np.array([most_probable.get(i, 0) for i in range(len(packed))], int)
    # The other estimands are about one answer and need no other: its sequence is shorter.
    alone = [
        only(sequence, k) if sequence.num_answers > 1 else sequence
        for sequence, k in zip(packed, answer.tolist(), strict=True)
    ]
    single = norms(alone, np.zeros(len(packed), int), at, columns)
    lengths = [sequence.at.size for sequence in alone]
    for i, sequence in enumerate(alone):
        check_finite(i, sequence, single[i].log_odds, np.asarray(single[i].tokens.log_odds))
        if i in choice:
            check_finite(i, sequence, choice[i].log_odds)
    tokens = [
        TokenScores(*(column[:length].astype(float) for column in norm.tokens))
        for norm, length in zip(single, lengths, strict=True)
    ]
    log_odds, log_sq_norms = _by_estimand(single, choice, columns, lengths, estimands, scalings)
    # All numbers of a single token have one gradient, but for a factor.
    semgrads = [
        log_semgrad(norm.mean_abs[0 if length == 1 else -1], float(norm.log_factor))
        for norm, length in zip(single, lengths, strict=True)
        if semgrad_token
    ]
    return AnswerNorms(
        chosen=answer.astype(int),
        log_probs=[
            log_probs[i] if i in log_probs else of_tokens.log_probs.sum(keepdims=True)
            for i, of_tokens in enumerate(tokens)
        ],
        tokens=tokens,
        log_odds=log_odds,
        log_sq_norms=log_sq_norms,
        log_semgrad=np.array(semgrads) if semgrad_token else None,
    )


class _Norms(NamedTuple):
    """Results for one sequence."""

    log_odds: Float[np.ndarray, " E"]
    """Log-odds of E probabilities."""
    sq_norms: dict[str, Float[np.ndarray, " E"]]
    """Squared norms of the gradients of the log-odds, by scaling."""
    mean_abs: Float[np.ndarray, "E L"]
    """Mean absolute derivatives of the log-odds in the states of a token before each block."""
    log_probs: Float[np.ndarray, " C"]
    """Log probability of each answer as a sequence; minus infinity if there is none."""
    tokens: TokenScores
    """Scores of each target."""
    log_factor: Float[np.ndarray, ""]
    """Of SemGrad, see `isounc.llm.answers.semgrad.weighted_log_odds`."""


def answer_log_probs(
    network: Network, packed: Sequence[PackedAnswers], *, batch_size: int = 16
) -> list[Float[np.ndarray, " C"]]:
    """Log probability of each answer as a sequence, from forward passes alone; float64.

    Raises
    ------
    ValueError
        A token is beyond the vocabulary, or logits are not finite.
    """
    check_count("batch_size", batch_size, 1)
    check_vocabulary(packed, network.config.vocab_size)
    weights = network.weights()

    def program(stacked: PackedAnswers, numbers: list[int], shape: PackedShape) -> Any:
        nothing = np.zeros(len(stacked.tokens), np.int32)
        return values(network.config, weights, stacked, nothing, columns=_token_log_probs)[1]

    by_token = in_batches(packed, forward_shape_of, batch_size, program)
    log_probs = []
    for i, (sequence, log_p) in enumerate(zip(packed, by_token, strict=True)):
        check_finite(i, sequence, log_p)
        log_p = log_p[: sequence.answer.size].astype(float)
        log_probs.append(np.bincount(sequence.answer, log_p))
    return log_probs


def factors_of(weights: Weights, scaling: str) -> LayerNorms:
    """Factor of each parameter's squared norm under a scaling."""
    tops = {"embed": weights.embed, "norm": weights.norm}
    tops |= {} if weights.head is None else {"head": weights.head}
    if scaling == "layer_scaled":
        means = jax.device_get([_mean_squares(part) for part in (tops, *weights.layers)])
        return LayerNorms(means[0], tuple(means[1:]))
    if scaling == "last_layer":
        last = "embed" if weights.head is None else "head"
        ends: dict[str, Any] = {name: np.float32(name == last) for name in tops}
        layers: list[dict[str, Any]] = [dict.fromkeys(w, np.float32(0)) for w in weights.layers]
        return LayerNorms(ends, tuple(layers))
    return jax.tree.map(lambda _: np.float32(1), LayerNorms(tops, weights.layers))


@jax.jit
def _mean_squares(part: dict[str, Array]) -> dict[str, Float[Array, ""]]:
    return {name: jnp.mean(jnp.square(a.astype(jnp.float32))) for name, a in part.items()}


def _scaled_sum(norms: LayerNorms, factors: LayerNorms) -> Float[np.ndarray, "B E"]:
    """Sum of squared norms, each times its factor."""
    parts = jax.tree.map(lambda norm, factor: norm.astype(float) * factor, norms, factors)
    return np.sum(jax.tree.leaves(parts), axis=0)


def _token_log_probs(
    tokens: TokenScores, packed: PackedAnswers, chosen: Int[Array, ""]
) -> tuple[Float[Array, " 0"], Float[Array, " A"]]:
    """No probabilities of their own, and log p of the answers' tokens."""
    return jnp.zeros(0), -jax.nn.softplus(-jnp.asarray(tokens.log_odds))


@functools.cache
def _columns(columns: tuple[str, ...], num_answers: int) -> Columns:
    """A function to the fields of `_Norms` for one sequence, but for the norms and derivatives.

    `columns` is `choice` alone, or estimands about the one answer of a sequence, and `semgrad`.
    """

    def log_odds_of_columns(
        tokens: TokenScores, sequence: PackedAnswers, chosen: Int[Array, ""]
    ) -> tuple[Float[Array, " E"], tuple[Array, TokenScores, Array]]:
        log_odds = jnp.asarray(tokens.log_odds)
        log_p = -jax.nn.softplus(-log_odds)
        belongs = sequence.answer[None, :] == jnp.arange(num_answers)[:, None]
        sums = jnp.where(belongs, log_p[None, :], 0).sum(1)
        totals = jnp.where(belongs.any(1), sums, -jnp.inf)
        chosen = jnp.where(chosen == NO_ANSWER, jnp.argmax(totals), chosen)
        of_chosen = belongs[chosen]
        weighted, log_factor = weighted_log_odds(log_odds, jnp.asarray(tokens.entropies), of_chosen)
        values = []
        for column in columns:
            if column == "sequence":
                values.append(log_odds_of_product(log_odds, of_chosen))
            elif column == "mean_token":
                values.append(log_odds_of_mean(log_odds, of_chosen))
            elif column == "first_token":
                values.append(log_odds[jnp.argmax(of_chosen)])
            elif column == "semgrad":
                values.append(weighted)
            else:
                rest = jnp.where(jnp.arange(num_answers) == chosen, -jnp.inf, totals)
                values.append(sums[chosen] - jax.nn.logsumexp(rest))
        return jnp.stack(values) if values else jnp.zeros(0), (totals, tokens, log_factor)

    return log_odds_of_columns


def _by_estimand(
    single: Sequence[_Norms],
    choice: Mapping[int, _Norms],
    columns: Sequence[str],
    lengths: Sequence[int],
    estimands: Sequence[str],
    scalings: Sequence[str],
) -> tuple[dict[str, Float[np.ndarray, " N"]], dict[str, dict[str, Float[np.ndarray, " N"]]]]:
    """Log-odds and log squared norms of grad log p as arrays over questions, in float64."""
    count = len(single)
    log_odds = {e: np.full(count, np.nan) for e in estimands}
    log_sq_norms = {e: {s: np.full(count, np.nan) for s in scalings} for e in estimands}
    for i, length in enumerate(lengths):
        for e in estimands:
            if e == "choice":
                if i not in choice:
                    continue
                norms, at = choice[i], 0
            else:
                # The mean's gradient is the sum's, but for a factor. All probabilities of a single
                # token are the same, and there is one column.
                column = "sequence" if e == "length_normalised" else e
                norms, at = single[i], 0 if length == 1 else columns.index(column)
            divisor = length if e == "length_normalised" else 1
            odds = float(norms.log_odds[at])
            log_odds[e][i] = odds
            if divisor > 1:
                log_odds[e][i] = logit_of_log(-np.logaddexp(0, -odds) / divisor)
            for s in scalings:
                # A sum of products may round to just below zero.
                sq_norm = max(float(norms.sq_norms[s][at]), 0.0)
                with np.errstate(divide="ignore"):
                    log_norm = np.log(sq_norm) - 2 * np.logaddexp(0, odds)
                log_sq_norms[e][s][i] = log_norm - 2 * np.log(divisor)
    return log_odds, log_sq_norms
