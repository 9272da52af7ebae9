"""A local reference: stochastic gradient Langevin dynamics around a trained decoder.

The log density is that of all sentences under the loss of the training, with a Gaussian prior and a
tether to the parameters theta* of the decoder,

    log pi(theta) = - sum_i loss of fact i - sum_j loss of reply j
                    - ||theta||^2 / (2 s^2) - ||theta - theta*||^2 / (2 m epsilon)  + const,

and a step of BlackJAX's kernel (Welling and Teh 2011), with a minibatch for the two sums, is

    theta <- theta + epsilon * gradient + sqrt(2 epsilon) * N(0, I).

Without the tether (m infinite) this is the posterior. Chains of thousands of steps do not converge to
it: in directions of curvature far below 1 / (2 epsilon t) their covariance after t steps is 2 epsilon t
I, whatever the decoder. The tether (as in Lau et al. 2023, arXiv 2308.12108) makes them forget within m
steps, and asks for the spread near theta* alone: with H the curvature of the losses their covariance is
about (H + I / (m epsilon))^-1. It is isotropic, and Var p is ||grad p||^2 to first order, where H is
small beside the tether: so far isotropy is put in, and what a correlation with ||grad p||^2 shows is how
little curvature and nonlinearity take away from it at this distance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from isounc.checks import check_count, check_real
from isounc.sampling.convergence import diagnose
from isounc.studies.world.corpus import World
from isounc.studies.world.scores import answer_log_probs
from isounc.studies.world.train import nll_of_facts, nll_of_replies

RHAT_MAX = 1.1
"""R-hat is below this at `SHARE` of the judged questions: the bound of Gelman and Rubin, as chains of
thousands of minibatches cannot keep that of the gate of HMC."""
ESS_MIN = 50.0
"""Effective draws of p and of (p - mean)^2 are at least so many there: a variance then errs by about a
fifth, which leaves the order of questions whose variances differ by factors."""
COUNTS = ("num_warmup", "num_draws", "thin", "minibatch")
"""Settings that shape the program of a chain."""
SHARE = 0.95
"""Share of the judged questions at which both hold."""


@dataclass(frozen=True)
class LocalChains:
    """Chains of stochastic gradient Langevin dynamics around a judged decoder."""

    num_chains: int = 0
    """Chains, which all start at theta*; at least 2, or 0 for none."""
    num_members: int = 1
    """Judged decoders that have chains of their own, the first ones; the others have none."""
    num_warmup: int = 500
    """Steps that are left out."""
    num_draws: int = 50
    """Draws that are kept of a chain."""
    thin: int = 40
    """Steps from one draw to the next."""
    minibatch: int = 64
    """Sentences of fact in a step, as in the training; those of self-assessment in proportion."""
    step: float = 5e-3
    """Step size epsilon times the number of sentences of fact."""
    memory: int = 50
    """Steps m in which chains forget, by the tether to theta*; 0 is no tether."""
    prior_sd: float = 1.0
    """Standard deviation s of the prior of every parameter."""

    def __post_init__(self):
        if self.num_chains != 0:
            check_count("num_chains", self.num_chains, 2, 1000)
        for name, least in (
            ("num_members", 1), ("num_warmup", 0), ("num_draws", 8), ("thin", 1), ("minibatch", 1),
            ("memory", 0),
        ):  # fmt: skip
            check_count(name, getattr(self, name), least, 10**7)
        check_real("step", self.step, positive=True)
        check_real("prior_sd", self.prior_sd, positive=True)

    def tether(self, num_facts: int) -> float:
        """Precision 1 / (m epsilon) of the tether; 0 without one."""
        return num_facts / (self.memory * self.step) if self.memory else 0.0


class Convergence(NamedTuple):
    """Convergence of the probabilities of the judged answers."""

    rhat: float
    """R-hat that `SHARE` of the judged questions do not exceed."""
    ess: float
    """Effective draws, of p or (p - mean)^2, that `SHARE` of them reach."""
    is_sound: bool = True
    """Whether nothing else speaks against the chains, such as divergent transitions."""

    @property
    def passed(self) -> bool:
        """Whether both bounds are kept, by sound chains; an undefined number keeps none."""
        return self.is_sound and self.rhat < RHAT_MAX and self.ess >= ESS_MIN


def log_density(
    params: PyTree[Array],
    facts: Int[Array, "B 5"],
    claims: Int[Array, "B2 7"],
    *,
    graphdef: nnx.GraphDef,
    num_facts: int,
    num_claims: int,
    prior_sd: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Log pi without the tether, up to a constant, estimated from some of the sentences.

    From all of them it is exact.
    """
    decoder = nnx.merge(graphdef, params)
    told = nll_of_facts(decoder, facts) * (num_facts / len(facts))
    replied = nll_of_replies(decoder, claims) * (num_claims / len(claims))
    square = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
    return -told - replied - square / (2 * prior_sd**2)


def sample_locally(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    world: World,
    settings: LocalChains,
    seed: int,
) -> Float[np.ndarray, "K S Q C"]:
    """Log probabilities of all answers at the draws of chains that start at `params`.

    Raises
    ------
    ValueError
        If a chain has left for infinity: the step is too long for this decoder.
    """
    keys = jax.random.split(jax.random.key(seed), settings.num_chains)
    draws = [
        jax.device_get(
            _chain(
                params, jnp.asarray(world.facts), jnp.asarray(world.claims), key,
                jnp.float32(settings.step / len(world.facts)), jnp.float32(settings.prior_sd),
                jnp.float32(settings.tether(len(world.facts))), graphdef=graphdef,
                **{name: getattr(settings, name) for name in COUNTS},
            )
        )
        for key in keys
    ]  # fmt: skip
    found = []
    for chain in draws:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(chain)):
            raise ValueError(
                f"step must be short enough for chains that stay finite, got {settings.step:g}"
            )
        found.append(
            [
                answer_log_probs(
                    graphdef, jax.tree.map(lambda a, s=s: jnp.asarray(a[s]), chain), world
                )
                for s in range(settings.num_draws)
            ]
        )
    return np.asarray(found)


@functools.partial(jax.jit, static_argnames=("graphdef", *COUNTS))
def _chain(
    params: PyTree[Array],
    facts: Int[Array, "S 5"],
    claims: Int[Array, "S_self 7"],
    key: PRNGKeyArray,
    size: Float[Array, ""],
    prior_sd: Float[Array, ""],
    tether: Float[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    num_warmup: int,
    num_draws: int,
    thin: int,
    minibatch: int,
) -> PyTree[Array]:
    """The draws of one chain, in front of every leaf."""
    from blackjax.sgmcmc import sgld  # takes a second to import

    count = min(minibatch, len(facts))
    few = max(1, round(count * len(claims) / len(facts)))
    gradient = jax.grad(
        functools.partial(
            log_density, graphdef=graphdef, num_facts=len(facts), num_claims=len(claims),
            prior_sd=prior_sd,
        )
    )  # fmt: skip
    kernel = sgld.build_kernel()

    def batch(key):
        of_facts, of_claims = jax.random.split(key)
        rows = jax.random.randint(of_facts, (count,), 0, len(facts))
        return facts[rows], claims[jax.random.randint(of_claims, (few,), 0, len(claims))]

    def pulled(position, minibatch):
        found = gradient(position, *minibatch)
        return jax.tree.map(lambda g, a, b: g - tether * (a - b), found, position, params)

    def step(position, key):
        of_batch, of_noise = jax.random.split(key)
        return kernel(of_noise, position, pulled, batch(of_batch), size), None

    def draw(position, key):
        position, _ = jax.lax.scan(step, position, jax.random.split(key, thin))
        return position, position

    of_warmup, of_draws = jax.random.split(key)
    start, _ = jax.lax.scan(step, params, jax.random.split(of_warmup, num_warmup))
    return jax.lax.scan(draw, start, jax.random.split(of_draws, num_draws))[1]


def convergence(
    log_probs: Float[np.ndarray, "K S Q C"],
    answer: Int[np.ndarray, " Q"],
    judged: Bool[np.ndarray, " Q"],
) -> Convergence:
    """Convergence of the chains' probabilities of the answers to the judged questions."""
    p = np.exp(np.take_along_axis(log_probs, answer[None, None, :, None], 3)[..., 0])
    found = diagnose(p[:, :, judged])
    ess = np.minimum(found.ess_bulk, found.ess_var)
    # Where it is undefined nothing moved, or not all is finite: as bad as can be. Infinity is to stay.
    rhat = np.where(np.isnan(found.rhat), np.inf, found.rhat)
    return Convergence(
        float(np.quantile(rhat, SHARE, method="higher")),
        float(np.quantile(np.nan_to_num(ess, nan=0.0), 1 - SHARE, method="lower")),
    )
