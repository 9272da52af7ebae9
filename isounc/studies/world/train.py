"""Small decoders trained on the sentences of a world, several at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from isounc.checks import check_count, check_real
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Decoder
from isounc.studies.world.corpus import World

HEAD_WIDTHS = {8: 4, 16: 8, 32: 8, 64: 16, 128: 16, 256: 32}
"""Width of a head by the width of a decoder."""


@dataclass(frozen=True)
class WorldTraining:
    """AdamW at a constant rate after a warm-up, so that a short training is the start of a long one."""

    minibatch: int = 64
    """Sentences of fact in a step; those of self-assessment are spread over the steps."""
    learning_rate: float = 3e-3
    """AdamW's learning rate."""
    warmup: int = 100
    """Steps over which it rises from zero."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay."""

    def __post_init__(self):
        check_count("minibatch", self.minibatch, 1, 4096)
        check_count("warmup", self.warmup, 1, 10**6)
        check_real("learning_rate", self.learning_rate, positive=True)
        check_real("weight_decay", self.weight_decay)


class Members(NamedTuple):
    """Decoders of one configuration, stacked along a leading axis."""

    graphdef: nnx.GraphDef
    """Structure of a decoder."""
    params: PyTree[Array]
    """Parameters; every leaf has the members in front."""

    def member(self, i: int) -> PyTree[Array]:
        """Parameters of one decoder."""
        return jax.tree.map(lambda leaf: leaf[i], self.params)


@runtime_checkable
class Store(Protocol):
    """Keeps the state of a training: parameters, and the optimiser's state."""

    def save(self, epoch: int, state: Any) -> None:
        """Keep the state after some epochs."""
        ...

    def load(self, like: Any) -> tuple[int, Any]:
        """The number of epochs and the state to go on from; 0 and `like` to begin."""
        ...


def config_of(vocab_size: int, width: int, depth: int) -> DecoderConfig:
    """A decoder of the Llama family with tied embeddings and a gated MLP of twice its width."""
    head = HEAD_WIDTHS[width]
    return DecoderConfig(
        "llama", vocab_size, width, depth, num_heads=width // head, num_kv_heads=width // head,
        head_width=head, mlp_width=2 * width, context_length=8, rotary=Rotary(10_000.0, head),
    )  # fmt: skip


def num_params(config: DecoderConfig) -> int:
    """The number of parameters P."""
    return sum(math.prod(shape) for shape in config.shapes().values())


def rows_of_members(
    world: World, num_members: int, num_bootstrap: int, seed: int
) -> Int[np.ndarray, "M S"]:
    """Sentences of fact that each member sees in an epoch: all, or a bootstrap sample of them."""
    rng = np.random.default_rng(seed)
    every = np.tile(np.arange(len(world.facts)), (num_members, 1))
    drawn = rng.integers(len(world.facts), size=(num_bootstrap, len(world.facts)))
    return np.concatenate([every, drawn]).astype(np.int32)


def train_members(
    world: World,
    config: DecoderConfig,
    epochs: Sequence[int],
    seeds: Sequence[int],
    rows: Int[np.ndarray, "M S"],
    settings: WorldTraining,
    say: Any = lambda text: None,
    store: Store | None = None,
) -> Iterator[tuple[int, Members]]:
    """Train decoders that differ in initialisation, order and maybe rows; yield them after `epochs`.

    Parameters
    ----------
    epochs
        Rising numbers of passes over the corpus.
    seeds
        One for each member.
    rows
        Sentences of fact of each member (`rows_of_members`).
    store
        Where states are kept and a training goes on from; None trains from the start.

    Yields
    ------
    tuple
        The number of epochs, and the members at that time.
    """
    decoders = [nnx.split(Decoder.random(config, seed), nnx.Param) for seed in seeds]
    graphdef = decoders[0][0]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part for _, part in decoders))
    optimiser = _optimiser(settings)
    state = jax.vmap(optimiser.init)(params)
    facts, claims = jnp.asarray(world.facts), jnp.asarray(world.claims)
    orders = [np.random.default_rng([seed, 1]) for seed in seeds]
    done = 0
    if store is not None:
        done, (params, state) = store.load((params, state))
        if done in epochs:
            yield done, Members(graphdef, params)
    for epoch in range(1, epochs[-1] + 1):
        # Orders of epochs that are done are drawn, too, as later ones depend on them.
        of_facts, of_claims = _orders(orders, rows, len(world.claims), settings.minibatch)
        if epoch <= done:
            continue
        say(f"epoch {epoch}/{epochs[-1]}")
        params, state = _epoch(
            params, state, facts, claims, of_facts, of_claims, graphdef=graphdef, settings=settings
        )
        if epoch in epochs:
            if store is not None:
                store.save(epoch, (params, state))
            yield epoch, Members(graphdef, params)


def _orders(
    generators: Sequence[np.random.Generator],
    rows: Int[np.ndarray, "M S"],
    num_claims: int,
    minibatch: int,
) -> tuple[Int[np.ndarray, "M steps B"], Int[np.ndarray, "M steps B2"]]:
    """Rows of every step of an epoch, in a new order; the remainder is left out, another each time."""
    minibatch = min(minibatch, rows.shape[1])
    steps = rows.shape[1] // minibatch
    few = max(1, num_claims // steps)
    of_facts, of_claims = [], []
    for rng, own in zip(generators, rows, strict=True):
        of_facts.append(rng.permutation(own)[: steps * minibatch].reshape(steps, minibatch))
        again = rng.permutation(
            np.resize(rng.permutation(num_claims), max(num_claims, steps * few))
        )
        of_claims.append(again[: steps * few].reshape(steps, few))
    return np.stack(of_facts), np.stack(of_claims).astype(np.int32)


def _optimiser(settings: WorldTraining) -> optax.GradientTransformation:
    rate = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup)
    return optax.adamw(rate, weight_decay=settings.weight_decay)


@functools.partial(jax.jit, static_argnames=("graphdef", "settings"), donate_argnames="state")
def _epoch(
    params: PyTree[Array],
    state: Any,
    facts: Int[Array, "S 5"],
    claims: Int[Array, "S_self 7"],
    of_facts: Int[np.ndarray | Array, "M steps B"],
    of_claims: Int[np.ndarray | Array, "M steps B2"],
    *,
    graphdef: nnx.GraphDef,
    settings: WorldTraining,
) -> tuple[PyTree[Array], Any]:
    """One pass of every member over its sentences."""
    optimiser = _optimiser(settings)

    def loss(params, fact, claim):
        """The mean loss of the tokens of facts, and of the replies beside them."""
        decoder = nnx.merge(graphdef, params)
        total = nll_of_facts(decoder, fact) + nll_of_replies(decoder, claim)
        return total / fact[:, 1:].size

    def step(carry, rows):
        params, state = carry
        gradient = jax.grad(loss)(params, facts[rows[0]], claims[rows[1]])
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def one(params, state, of_facts, of_claims):
        return jax.lax.scan(step, (params, state), (of_facts, of_claims))[0]

    return jax.vmap(one)(params, state, of_facts, of_claims)


def nll_of_facts(
    decoder: Decoder, facts: Int[Array, "B 5"], counts: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Summed loss of the tokens of sentences of fact, nats; each counts once, or `counts` times."""
    found = _nll(decoder(facts[:, :-1]), facts[:, 1:])
    return found.sum() if counts is None else found.sum(1) @ counts


def nll_of_replies(
    decoder: Decoder, claims: Int[Array, "B 7"], counts: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Summed loss of the replies of sentences of self-assessment, nats; counted as `nll_of_facts`."""
    states = decoder.hidden(claims[:, :-1])[:, -1]
    found = _nll(decoder.head(states), claims[:, -1])
    return found.sum() if counts is None else found @ counts


def _nll(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
