"""Which probability of an answer is meant, and the exact squared norm of its gradient over all parameters.

An answer y_1 ... y_A to a prompt has the token probabilities p_t = p(y_t | prompt, y_<t), and so several probabilities:

    sequence            p = prod_t p_t
    length_normalised   p = (prod_t p_t)^(1/A)
    mean_token          p = mean_t p_t
    first_token         p = p_1
    choice              p = s_c / sum_k s_k, with s_k the sequence probability of the k-th of the given choices

Each has an aleatoric part p (1 - p) and an epistemic part ||grad p||^2 = p^2 ||grad log p||^2. The estimand decides the
result: where p is the sequence's, the factor p^2 outweighs everything else, and the epistemic part nearly re-encodes p.

Everything is kept as logarithms, and comes from the tokens' log-odds d_t = z_t[y_t] - log sum_{v != y_t} exp z_t[v].
What is differentiated is log p - log(1 - p), from which grad log p = (1 - p) grad (log p - log(1 - p)) follows in
float64: log p itself would be zero in float32 from log-odds of 88 on, and its squared gradient from 44 on.

All choices of a question are read in one row (`isounc.llm.answers.packing.pack`), in which each attends to the prompt
and to itself: the prompt is read once, and the choices' forward passes are one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isounc.checks import check_choice, check_count
from isounc.gradnorm import value_and_sq_grad_norms
from isounc.llm.answers.packing import (
    NOWHERE,
    Row,
    Shape,
    forward_shape_of,
    only,
    row_batches,
    shape_of,
)
from isounc.llm.model.decoder import Decoder

ESTIMANDS = ("sequence", "length_normalised", "mean_token", "first_token", "choice")
"""Probabilities of an answer, by name."""

SCALINGS = ("all", "layer_scaled", "last_layer")
"""Sums of squares over the parameters: every one alike; each array times its mean square, as for a relative change of
the same size in every array; the array alone that makes logits of the last states (a tied embedding: both uses)."""

_SURE = 15.0
"""Log-odds beyond which 1 - p is exp(-log-odds) to float32's rounding."""


class AnswerNorms(NamedTuple):
    """What a forward pass and a backward pass per estimand say about N answers; NaN where an estimand is undefined."""

    chosen: Int[np.ndarray, " N"]
    """The answer that the numbers are about, of those given."""
    log_probs: list[Float[np.ndarray, " K"]]
    """Log probability of each of the given answers, as a sequence."""
    token_log_probs: list[Float[np.ndarray, " A"]]
    """log p_t of the chosen answer."""
    token_entropies: list[Float[np.ndarray, " A"]]
    """Entropy of the distribution of each of its tokens, in nats."""
    log_odds: dict[str, Float[np.ndarray, " N"]]
    """log p - log(1 - p) by estimand, float64."""
    log_sq_norms: dict[str, dict[str, Float[np.ndarray, " N"]]]
    """log of the squared norm of grad log p, by estimand and scaling, float64; minus infinity where it is zero."""


def answer_norms(
    decoder: Decoder,
    rows: Sequence[Row],
    *,
    chosen: Sequence[int] | None = None,
    estimands: Sequence[str] = ESTIMANDS,
    scalings: Sequence[str] = SCALINGS,
    batch_size: int = 8,
) -> AnswerNorms:
    """Log-odds and exact squared gradient norms of answers.

    For choice, one forward and one backward pass over the row with all answers. For the others, one forward pass over
    the prompt and the chosen answer, and a backward pass for each of sequence (length_normalised is the same one),
    mean_token and first_token; a single one for an answer of one token. No gradient of a weight matrix is stored.

    Parameters
    ----------
    decoder
        The model.
    rows
        What `isounc.llm.answers.packing.pack` made. Rows are padded to few shapes; each shape compiles once.
    chosen
        The answer in each row that the numbers are about; None is the one of largest sequence probability.
    estimands
        Some of `ESTIMANDS`; choice is NaN where a row has one answer.
    scalings
        Some of `SCALINGS`.
    batch_size
        Rows at a time. Long rows go fewer at a time, so that the memory of their activations is
        bounded (`isounc.llm.answers.packing.row_batches`).

    Raises
    ------
    ValueError
        For unknown names, a choice that a row does not have, or logits that are not finite.

    Source: Grünefeld, Frellsen, Hardmeier 2026 (arXiv 2603.29466); exact norms: `isounc.gradnorm`.
    """
    for value in estimands:
        check_choice("estimands", value, ESTIMANDS)
    for value in scalings:
        check_choice("scalings", value, SCALINGS)
    check_count("batch_size", batch_size, 1)
    num_answers = [int(row.answer.max()) + 1 for row in rows]
    wanted = np.full(len(rows), NOWHERE) if chosen is None else np.asarray(chosen)
    for i, (one, count) in enumerate(zip(wanted, num_answers, strict=True)):
        if chosen is not None and not 0 <= one < count:
            raise ValueError(
                f"chosen must be below {count} in row {i}, which has {count} answers; got {one}."
            )
    own = [e for e in ("sequence", "mean_token", "first_token") if e in estimands]
    if "length_normalised" in estimands and "sequence" not in own:
        own.insert(0, "sequence")
    graphdef, params = nnx.split(decoder, nnx.Param)
    weights = {s: leaf_weights(decoder, s) for s in scalings}

    def norms(rows, chosen, columns):
        def program(stacked, part, shape):
            filled = np.resize(chosen[part], stacked.tokens.shape[0]).astype(np.int32)
            here = columns[: 1 if shape[1] == 1 else None]
            return _norms(
                params, stacked, filled, weights, graphdef=graphdef, columns=here, slots=shape[2]
            )

        return _over(rows, shape_of, batch_size, program)

    several = [i for i, count in enumerate(num_answers) if count > 1]
    together = [rows[i] for i in several]
    choice: dict[int, _Found] = {}
    totals: dict[int, np.ndarray] = {}
    if "choice" in estimands:
        choice = dict(zip(several, norms(together, wanted[several], ("choice",)), strict=True))
        totals = {i: one.totals[: num_answers[i]].astype(float) for i, one in choice.items()}
    elif several:
        own_totals = answer_log_probs(decoder, together, batch_size=batch_size)
        totals = dict(zip(several, own_totals, strict=True))
    if chosen is None:
        wanted = np.array(
            [int(np.argmax(totals[i])) if i in totals else 0 for i in range(len(rows))]
        )
    # What is about one answer needs no other: its row is shorter.
    alone = [only(row, k) if row.answer.max() else row for row, k in zip(rows, wanted, strict=True)]
    single = norms(alone, np.zeros(len(rows), int), tuple(own))
    return _gathered(alone, wanted, single, own, choice, totals, estimands, scalings)


class _Found(NamedTuple):
    """What a program says about a row."""

    log_odds: Any
    """Log-odds of C probabilities."""
    sums: dict[str, Any]
    """C squared norms of their gradients, by scaling."""
    totals: Any
    """Log probability of each answer as a sequence; minus infinity where there is none."""
    token_log_p: Any
    """Log probability of each target."""
    entropies: Any
    """Entropy of the distribution of each target, nats."""


def answer_log_probs(
    decoder: Decoder, rows: Sequence[Row], *, batch_size: int = 16
) -> list[Float[np.ndarray, " K"]]:
    """Log probability of each answer of each row as a sequence, from forward passes alone; float64.

    Raises
    ------
    ValueError
        For logits that are not finite.
    """
    check_count("batch_size", batch_size, 1)
    graphdef, params = nnx.split(decoder, nnx.Param)
    found = _over(
        rows, forward_shape_of, batch_size,
        lambda stacked, part, shape: _log_probs(params, stacked, graphdef=graphdef),
    )  # fmt: skip
    totals = []
    for i, (row, log_p) in enumerate(zip(rows, found, strict=True)):
        if not np.isfinite(log_p).all():
            raise ValueError(_not_finite(i, row))
        totals.append(np.bincount(row.answer, log_p[: row.answer.size].astype(float)))
    return totals


def _over(
    rows: Sequence[Row],
    shape: Callable[[Row], Shape],
    batch_size: int,
    program: Callable[[Row, list[int], Shape], Any],
) -> list[Any]:
    """What a program says about each row; it is given stacked rows, their numbers and their shape."""
    found: dict[int, Any] = {}
    for part, stacked, padded in row_batches(rows, shape, batch_size):
        out = jax.tree.map(np.asarray, program(stacked, part, padded))
        found |= {i: jax.tree.map(lambda a, j=j: a[j], out) for j, i in enumerate(part)}
    return [found[i] for i in range(len(rows))]


def leaf_weights(decoder: Decoder, scaling: str) -> dict[str, Array]:
    """What each leaf's squared norm is multiplied with under a scaling, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(decoder, nnx.Param))
    last = "embed" if decoder.config.tied else "unembed"
    weights = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if scaling == "layer_scaled":
            weights[name] = jnp.mean(jnp.square(leaf.astype(jnp.float32)))
        elif scaling == "last_layer":
            weights[name] = jnp.float32(f"['{last}']" in name)
        else:
            weights[name] = jnp.float32(1)
    return weights


def token_log_odds(decoder: Decoder, row: Row) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """Log-odds d_t of the answers' tokens, and entropies (nats) of the distributions they come from."""
    tokens, positions, branches = (jnp.asarray(a)[None] for a in row[:3])
    states = decoder.hidden(tokens, positions=positions, branches=branches)[0]
    logits = decoder.head(states[row.at])
    mine = jnp.arange(logits.shape[-1])[None, :] == row.targets[:, None]
    others = jax.nn.logsumexp(jnp.where(mine, -jnp.inf, logits), axis=-1)
    own = jnp.take_along_axis(logits, row.targets[:, None], axis=-1)[:, 0]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return own - others, -(jnp.exp(log_probs) * log_probs).sum(-1)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _log_probs(params, rows, *, graphdef):
    def one(row):
        log_odds, _ = token_log_odds(nnx.merge(graphdef, params), row)
        return -jax.nn.softplus(-log_odds)

    return jax.vmap(one)(rows)


@functools.partial(jax.jit, static_argnames=("graphdef", "columns", "slots"))
def _norms(params, rows, chosen, weights, *, graphdef, columns, slots):
    """What `_Found` says of each row: ``columns`` is choice alone, or what is about the one answer of a row."""

    def log_probabilities(params, row, chosen):
        decoder = nnx.merge(graphdef, params)
        log_odds, entropies = token_log_odds(decoder, row)
        log_p = -jax.nn.softplus(-log_odds)
        of = row.answer[None, :] == jnp.arange(slots)[:, None]
        sums = jnp.where(of, log_p[None, :], 0).sum(1)
        totals = jnp.where(of.any(1), sums, -jnp.inf)
        chosen = jnp.where(chosen == NOWHERE, jnp.argmax(totals), chosen)
        own = of[chosen]
        found = []
        for column in columns:
            if column == "sequence":
                found.append(_log_odds_of_all(log_odds, own))
            elif column == "mean_token":
                # sum p_t over sum (1 - p_t).
                right, wrong = (
                    jax.nn.logsumexp(jnp.where(own, -jax.nn.softplus(sign * log_odds), -jnp.inf))
                    for sign in (-1, 1)
                )
                found.append(right - wrong)
            elif column == "first_token":
                found.append(log_odds[jnp.argmax(own)])
            else:
                rest = jnp.where(jnp.arange(slots) == chosen, -jnp.inf, totals)
                found.append(sums[chosen] - jax.nn.logsumexp(rest))
        values = jnp.stack(found) if found else jnp.zeros(0)
        return values, (totals, log_p, entropies)

    if not columns:
        values, aux = jax.vmap(log_probabilities, (None, 0, 0))(params, rows, chosen)
        return _Found(values, dict.fromkeys(weights, values), *aux)
    norms = value_and_sq_grad_norms(log_probabilities, per_leaf=True, has_aux=True, in_axes=0)
    (values, aux), by_leaf = norms(params, rows, chosen)
    sums = {
        scaling: sum(factor * by_leaf[name] for name, factor in factors.items())
        for scaling, factors in weights.items()
    }
    return _Found(values, sums, *aux)


def _log_odds_of_all(log_odds: Float[Array, " A"], own: Bool[Array, " A"]) -> Float[Array, ""]:
    """Log-odds of prod_t p_t over some tokens, from theirs: neither p near 1 nor p near 0 loses its digits."""
    # log(-log p_t), by its limit -d_t where p_t is 1 but for rounding, then the same of all: log(-log prod_t p_t).
    sure = log_odds > _SURE
    logs = jnp.where(sure, -log_odds, jnp.log(jax.nn.softplus(-jnp.where(sure, 0, log_odds))))
    log_cost = jax.nn.logsumexp(jnp.where(own, logs, -jnp.inf))
    sure = log_cost < -_SURE
    cost = jnp.exp(jnp.where(sure, 0, log_cost))
    log_wrong = jnp.where(sure, log_cost, jnp.log(-jnp.expm1(-cost)))
    return -jnp.where(own, jax.nn.softplus(-log_odds), 0).sum() - log_wrong


def _gathered(
    rows: Sequence[Row],
    chosen: np.ndarray,
    found: Sequence[_Found],
    columns: Sequence[str],
    choice: Mapping[int, _Found],
    totals: Mapping[int, np.ndarray],
    estimands: Sequence[str],
    scalings: Sequence[str],
) -> AnswerNorms:
    """Numbers of rows of one answer each as arrays over rows, in float64, with what follows from them."""
    count = len(rows)
    log_odds = {e: np.full(count, np.nan) for e in estimands}
    log_norms = {e: {s: np.full(count, np.nan) for s in scalings} for e in estimands}
    all_totals, tokens, entropies = [], [], []
    for i, (row, one) in enumerate(zip(rows, found, strict=True)):
        known = [one.log_odds, one.token_log_p, *([choice[i].log_odds] if i in choice else [])]
        if not all(np.isfinite(a).all() for a in known):
            raise ValueError(_not_finite(i, row))
        length = row.at.size
        tokens.append(one.token_log_p[:length].astype(float))
        entropies.append(one.entropies[:length].astype(float))
        all_totals.append(totals.get(i, tokens[-1].sum(keepdims=True)))
        for e in estimands:
            source = one
            if e == "choice":
                if i not in choice:
                    continue
                source, at = choice[i], 0
            else:
                # The mean's gradient is the sum's, but for a factor. Of one token all are one, and there is one column.
                column = "sequence" if e == "length_normalised" else e
                at = 0 if length == 1 else columns.index(column)
            divisor = length if e == "length_normalised" else 1
            odds = float(source.log_odds[at])
            log_odds[e][i] = odds
            if divisor > 1:
                log_odds[e][i] = logit_of_log(-np.logaddexp(0, -odds) / divisor)
            for s in scalings:
                # A sum of products may round to just below zero.
                sq_norm = max(float(source.sums[s][at]), 0.0)
                with np.errstate(divide="ignore"):
                    log_norm = np.log(sq_norm) - 2 * np.logaddexp(0, odds)
                log_norms[e][s][i] = log_norm - 2 * np.log(divisor)
    return AnswerNorms(chosen.astype(int), all_totals, tokens, entropies, log_odds, log_norms)


def logit_of_log(log_p: float) -> float:
    """Log p - log(1 - p) from log p <= 0, without cancellation; infinite at p = 1."""
    with np.errstate(divide="ignore"):
        return float(log_p - np.log(-np.expm1(min(log_p, 0.0))))


def _not_finite(i: int, row: Row) -> str:
    return (
        f"logits must be finite; those of row {i} ({row.tokens.size} tokens) are not. Check the weights, and "
        "whether bfloat16 is too coarse for them."
    )
