"""Squared gradient norms of answers' log-odds, layer by layer.

The programs of a decoder's ends and of its blocks are compiled by themselves, so that there is one
for all blocks' forward pass and one for their backward pass (`isounc.gradnorm.stages`). Python goes
from one to the next.

Axes: B sequences, T tokens, W width, V tokens of the vocabulary, A tokens of the answers in a packed
sequence, C answers, E probabilities, L blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from isounc.gradnorm import Pullback, linearise_stage, value_and_sq_grad_norm
from isounc.llm.answers.packing import PackedAnswers
from isounc.llm.answers.token_scores import TokenScores, scores_of_logits
from isounc.llm.model import transformer
from isounc.llm.model.attention import Rotation, at_least_float32
from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.transformer import BlockWeights, Weights

Columns = Callable[[TokenScores, PackedAnswers, Int[Array, ""]], tuple[Float[Array, " E"], Any]]
"""Function from the scores of a sequence's tokens, the sequence and the chosen answer to the log-odds
of E probabilities, and whatever else is wanted."""


class LayerNorms(NamedTuple):
    """Squared gradient norms of B sequences by parameter: those of each layer in one place."""

    ends: dict[str, Float[Array, "B E"]]
    """embed, norm, and head unless it is the embedding."""
    layers: tuple[dict[str, Float[Array, "B E"]], ...]
    """By layer, from the first on, and by the names of `DecoderConfig.shapes` without the layer."""


def values_and_norms(
    config: DecoderConfig,
    weights: Weights,
    packed: PackedAnswers,
    chosen: Int[np.ndarray, " B"],
    *,
    columns: Columns,
    token: Int[np.ndarray, " B"] | None = None,
) -> tuple[Float[Array, "B E"], Any, LayerNorms, tuple[Float[Array, "E B"], ...]]:
    """Values of E probabilities' log-odds for B sequences, and their squared gradient norms.

    `columns` also gives aux, a pytree. It must be the same function wherever the program is the
    same. The last result is the mean absolute derivative in the residual stream before each of the
    L blocks at one token of each sequence: `token`, or the first. The same backward pass gives it.
    """
    arrays = packed.tokens, packed.positions, packed.branches
    given = transformer.inputs(config, weights.embed, *arrays)
    x, pullbacks = given.x, []
    for i, layer in enumerate(weights.layers):
        x, pullback = _forward(config, layer, x, *given.of_layer(config, i))
        pullbacks.append(pullback)
    matrix = weights.embed if weights.head is None else weights.head
    out, aux, ends, cotangents, tied = _top(
        config, weights.norm, matrix, x, packed, chosen, columns=columns
    )
    layers, mean_abs = [], []
    at = np.zeros(len(packed.tokens), np.int32) if token is None else token
    for layer in reversed(weights.layers):
        cotangents, norms, of_token = _backward(pullbacks.pop(), layer, cotangents, at)
        layers.append(norms)
        mean_abs.append(of_token)
    ends["embed"] = _embedding(config, weights.embed, packed.tokens, cotangents, tied)
    return out, aux, LayerNorms(ends, tuple(layers[::-1])), tuple(mean_abs[::-1])


def values(
    config: DecoderConfig,
    weights: Weights,
    packed: PackedAnswers,
    chosen: Int[np.ndarray, " B"],
    *,
    columns: Columns,
) -> tuple[Float[Array, "B E"], Any]:
    """The same without norms, from a forward pass alone."""
    arrays = packed.tokens, packed.positions, packed.branches
    states = transformer.hidden(config, weights, *arrays)
    return _values(states, weights.embed, weights.head, packed, chosen, columns=columns)


@functools.partial(jax.jit, static_argnames="columns")
def _values(
    states: Float[Array, "B T W"],
    embed: Float[Array, "V W"],
    head: Float[Array, "W V"] | None,
    packed: PackedAnswers,
    chosen: Int[Array, " B"],
    *,
    columns: Columns,
) -> tuple[Float[Array, "B E"], Any]:
    def one(states, packed, chosen):
        logits = transformer.logits_of(states[packed.at], embed, head)
        tokens = scores_of_logits(logits, states[packed.at], packed.targets)
        return columns(tokens, packed, chosen)

    matrix = embed if head is None else head
    return jax.vmap(one)(states.astype(matrix.dtype), packed, chosen)


@functools.partial(jax.jit, static_argnames="config")
def _forward(
    config: DecoderConfig,
    weights: BlockWeights,
    x: Float[Array, "B T W"],
    rotation: Rotation,
    mask: Bool[Array, "B T T"],
) -> tuple[Float[Array, "B T W"], Pullback]:
    """The residual stream after a block, and the block's pullback."""

    def one(weights, x, rotation, mask):
        x, rotation, mask = jax.tree.map(lambda a: a[None], (x, rotation, mask))
        return transformer.block(config, weights, x, rotation, mask)[0][0], ()

    x, _, pullback = linearise_stage(
        one, weights, x, rotation, mask, policy=jax.checkpoint_policies.dots_saveable
    )
    return x, pullback


@jax.jit
def _backward(
    pullback: Pullback,
    weights: BlockWeights,
    cotangents: Float[Array, "E B T W"],
    token: Int[Array, " B"],
) -> tuple[Float[Array, "E B T W"], dict[str, Float[Array, "B E"]], Float[Array, "E B"]]:
    """Cotangents of the residual stream before a block, and norms of its parameters.

    The last result is the mean absolute cotangent at one token of each sequence.
    """
    cotangents, norms = pullback(weights, cotangents)
    of_token = cotangents[:, jnp.arange(len(token)), token]
    mean_abs = jnp.abs(of_token.astype(at_least_float32(of_token.dtype))).mean(-1)
    return cotangents, _named(norms), mean_abs


@functools.partial(jax.jit, static_argnames=("config", "columns"))
def _top(
    config: DecoderConfig,
    norm: Float[Array, " W"],
    matrix: Float[Array, "*axes"],
    x: Float[Array, "B T W"],
    packed: PackedAnswers,
    chosen: Int[Array, " B"],
    *,
    columns: Columns,
) -> tuple[
    Float[Array, "B E"], Any, dict[str, Float[Array, "B E"]], Float[Array, "E B T W"],
    tuple[Float[Array, "B A W"], Float[Array, "E B A V"]] | None,
]:  # fmt: skip
    """All from the last norm on, forwards and backwards.

    Returns values and aux, norms of the last norm and of a head of its own, the cotangents of the
    residual stream, and for a tied head its inputs and the cotangents of its outputs.
    """
    tied = config.tied

    def one(params, given, packed, chosen):
        x, added = given
        states = transformer.final_norm(config, params["norm"], x)[packed.at]
        matrix = params["head"]
        logits = transformer.logits_of(states, matrix, None if tied else matrix)
        logits = logits if added is None else logits + added
        tokens = scores_of_logits(logits, states.astype(matrix.dtype), packed.targets)
        out, aux = columns(tokens, packed, chosen)
        return out, (aux, states if tied else None)

    # Zeros that are added to the logits have the logits' cotangents.
    size = (*packed.at.shape, config.vocab_size)
    added = jnp.zeros(size, at_least_float32(matrix.dtype)) if tied else None
    out, (aux, states), pullback = linearise_stage(
        one, {"norm": norm, "head": matrix}, (x, added), packed, chosen,
        wrt="norm" if tied else None,
    )  # fmt: skip
    units = jnp.eye(out.shape[1], dtype=out.dtype)[:, None]
    units = jnp.broadcast_to(units, (out.shape[1], *out.shape))
    (of_x, of_logits), norms = pullback({"norm": norm, "head": matrix}, units)
    return out, aux, _named(norms), of_x, (states, of_logits) if tied else None


@functools.partial(jax.jit, static_argnames="config")
def _embedding(
    config: DecoderConfig,
    embed: Float[Array, "V W"],
    tokens: Int[Array, "B T"],
    cotangents: Float[Array, "E B T W"],
    tied: tuple[Float[Array, "B A W"], Float[Array, "E B A V"]] | None,
) -> Float[Array, "B E"]:
    """Squared norms of the embedding's gradient, from what meets it and its cotangents.

    The gradient is that of a sum of products of the embedding's outputs with fixed cotangents; the
    outputs themselves are not computed, as nothing asks for the sum.
    """

    def products(embed, tokens, of_x, tied):
        x = transformer.embedded(config, embed, tokens)
        total = jnp.vdot(x.astype(jnp.float32), of_x.astype(jnp.float32))
        if tied is not None:
            states, of_logits = tied
            total += jnp.vdot(transformer.logits_of(states, embed, None), of_logits)
        return total

    sq_norm = value_and_sq_grad_norm(products, in_axes=0)

    def of_output(of_x, of_logits):
        pair = None if tied is None else (tied[0], of_logits)
        return sq_norm(embed, tokens, of_x, pair)[1]

    return jax.vmap(of_output)(cotangents, None if tied is None else tied[1]).T


def _named(norms: dict[str, Float[Array, "B E"]]) -> dict[str, Float[Array, "B E"]]:
    """Norms by the names of parameters, of which `isounc.gradnorm` makes paths."""
    return {path.removeprefix("['").removesuffix("']"): norm for path, norm in norms.items()}
