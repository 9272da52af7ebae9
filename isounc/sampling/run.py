"""A run of sampling, the blocks that are drawn, and the `Driver` that draws them.

There are two drivers, of chains (`isounc.sampling.chain_driver`) and of tempered particles
(`isounc.sampling.smc_driver`). They share the functions of this module: contributions to the
moments, random numbers by step, and the use of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from isounc.densities import Data
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.clock import Clock
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.moments import Block
from isounc.sampling.settings import SamplerSettings

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it may go."""

MomentSums = tuple[
    Float[Array, "*K N M"], Float[Array, "*K N M"], Float[Array, "*K N M"], Float[Array, "*K N"]
]
"""Contributions of draws to `shifted_mean`, `shifted_square`, `aleatoric`, `entropy` of `Block`."""


SECONDS_PER_GRADIENT = 6e-5
"""Seconds of a gradient of all chains, whatever its size, in a forecast."""
SECONDS_PER_TERM = 1.5e-9
"""Further seconds per parameter, example and chain."""
LEAST_DRAWS = 4
"""Fewest draws of a chain that the gate can judge."""


class Run(NamedTuple):
    """Everything that a driver needs to sample the problems."""

    coordinates: Coordinates
    """Coordinates of each problem."""
    data: Data
    """Data of each problem, stacked."""
    X: Float[Array, "B N D"]
    """Locations of each problem, all regions one after the other."""
    fixed: Int[Array, " Q"]
    """Rows of X where every value is kept."""
    start_keys: Key[Array, " B"]
    """A key of each problem for where chains begin."""
    run_keys: Key[Array, " B"]
    """Another for all that follows."""
    model: Model
    """The model of all problems."""
    settings: SamplerSettings
    """How they are sampled."""
    checkpoint: Checkpoint | None
    """Storage of the run, if it is to be stored."""
    report: Progress
    """Called with the progress."""
    clock: Clock
    """Seconds since the run began, and how many it may take."""


class DrawnBlocks(NamedTuple):
    """Blocks of draws, and what else the result needs."""

    blocks: list[Block]
    """One or more, on the host."""
    shift: Float[Array, "B N M"]
    """Their moments are about this; the same for all blocks of a run."""
    step_size: Float[Array, "B K"]
    """Step size of each chain."""
    fault: str = ""
    """Why they are no draws of the posterior, so that the gate fails; empty if they are."""


class Forecast(NamedTuple):
    """Rough cost of a problem; only schedules depend on it."""

    num_transitions: int
    """Transitions one after the other, warm-up included; each moves a state of all K chains."""
    num_floats: int
    """Numbers in memory at once, besides the draws, which every driver keeps."""

    def seconds(self, work: float, *, steps: float = 20.0) -> float:
        """Seconds on one core of a small server (measured; nothing but an ETA depends on them).

        Parameters
        ----------
        work
            Parameters times examples times chains, of all problems together.
        steps
            Gradients of a transition.
        """
        return self.num_transitions * steps * (SECONDS_PER_GRADIENT + SECONDS_PER_TERM * work)


@runtime_checkable
class Driver(Protocol):
    """A way of drawing blocks until the gate is content or the budget spent."""

    @property
    def has_energy(self) -> bool:
        """Whether E-BFMI applies."""
        ...

    def blocks_per_round(self, settings: SamplerSettings) -> int:
        """Blocks that come together: budgets and checkpoints consist of whole rounds."""
        ...

    def draw(self, run: Run) -> Iterator[DrawnBlocks]:
        """Yield round after round without end; those of the checkpoint come first.

        Progress is reported as "sampling", with the draws of a chain so far. A driver that looks at
        `run.clock`, or is interrupted, may yield what it has of a round, and raise `TimeIsUp` or
        the `KeyboardInterrupt` when it is asked for more.
        """
        ...

    def forecast(self, settings: SamplerSettings, *, num_params: int) -> Forecast:
        """Cost of `num_draws` draws of one problem with P parameters."""
        ...


def observe(
    theta: Float[Array, " P"],
    shift: Float[Array, "N M"] | Float[Array, ""],
    X: Float[Array, "N D"],
    model: Model,
    data: Data,
) -> tuple[MomentSums, Float[Array, "N M"]]:
    """Contribution of a draw to the moments about `shift` at X, and its predictions there."""
    outputs, likelihood = model.apply(theta, X), LIKELIHOODS[model.likelihood]
    p = likelihood.predict(outputs)
    sums = (
        p - shift,
        (p - shift) ** 2,
        likelihood.label_variance(outputs, data.noise_sd),
        likelihood.label_entropy(outputs, data.noise_sd),
    )
    return sums, p


def thinning(settings: SamplerSettings) -> int:
    """Every how many draws theta is kept; it divides the length of a block."""
    keep_every = max(1, settings.num_draws * settings.chains // settings.num_kept)
    return next(k for k in range(keep_every, 0, -1) if settings.block % k == 0)


def typed_key(key: PRNGKeyArray) -> Key[jax.Array, ""]:
    """The key, wrapped if it is one of the old kind, an array of integers."""
    array = jnp.asarray(key)
    is_typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return array if is_typed else jax.random.wrap_key_data(array)


def randomness(
    keys: Key[Array, " B"], step: int, length: int, dtype: DTypeLike
) -> tuple[Key[Array, "B S"], Float[Array, " S"]]:
    """Keys of a step's transitions, and the uniform numbers that all chains share in each.

    The numbers jitter trajectory lengths. They are the same for all chains, since a vmapped loop
    waits for the longest, and depend on no state, so that each chain is a valid Markov chain.
    """
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step), length))(keys)
    # NumPy's generator: a JAX key for the jitter could be a user's key or one derived from it.
    u = np.random.default_rng((_JITTER_SEED, step)).random(length)
    return keys, jnp.asarray(u, dtype)


_JITTER_SEED = 20260329


def on_one_cpu() -> bool:
    """Whether nothing is gained by doing things at the same time."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap` over the first axis, one after the other."""
    return lambda *args: jax.lax.map(lambda xs: function(*xs), args)


def together(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap` over the first axis, which is taken off instead if its length is one.

    XLA computes products of matrices with a batch dimension in another way, which on CPUs is two to
    four times as slow for a single network.
    """

    def mapped(*args: Any) -> Any:
        if any(leaf.shape[0] != 1 for leaf in jax.tree.leaves(args)):
            return jax.vmap(function)(*args)
        alone = jax.tree.map(lambda a: a[0], args)
        return jax.tree.map(lambda a: jnp.asarray(a)[None], function(*alone))

    return mapped


def spread(tree: Any) -> Any:
    """Arrays (B, K, ...) over the devices of all hosts, if their number divides that of chains."""
    devices = jax.devices()
    if len(devices) == 1 or jax.tree.leaves(tree)[0].shape[1] % len(devices):
        return tree
    mesh = jax.sharding.Mesh(np.array(devices), ("chains",))
    return jax.device_put(
        tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "chains"))
    )


def fetch(tree: Any) -> Any:
    """Arrays of all hosts on this one."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def gather(leaf):
        # An array that every host has whole must not be joined: it would come back once a host.
        if getattr(leaf, "is_fully_addressable", True):
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gather, tree)
