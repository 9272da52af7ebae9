"""The samplers that `benchmarks/samplers.py` measures isounc's against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float, Key, PRNGKeyArray
from numpyro import distributions, infer

from isounc import densities
from isounc.models import Model
from isounc.problems import Problem


class Job(NamedTuple):
    """One posterior; its fields are columns of the table."""

    problem: str
    """Name of the problem."""
    width: int
    """Hidden units."""
    n: int
    """Training examples."""
    chains: int
    """K."""
    prior_sd: float = 2.0
    """Prior standard deviation (`isounc.models.Model.group_prior_sd`)."""
    parameterisation: str = "ntk"
    """Where 1/sqrt(fan-in) sits."""


class Budget(NamedTuple):
    """How long each chain is."""

    num_warmup: int
    """Transitions of warm-up."""
    num_draws: int
    """Transitions after warm-up, all kept as draws."""


class Sampled(NamedTuple):
    """Draws of one way, and their cost."""

    values: Float[np.ndarray, "K S Q"]
    """Predictions at the locations."""
    seconds: float
    """Time of warm-up and sampling."""
    num_gradients: int | None
    """Gradients, warm-up of the other samplers included; None if they are not counted."""
    num_divergent: int
    """Divergent transitions."""
    coordinates: str = ""
    """Coordinates that isounc sampled in."""


Way = Callable[[PRNGKeyArray], Sampled]
"""Samples the posterior once."""


def target(
    problem: Problem, model: Model, job: Job
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The log posterior of theta (P,), and predictions (K, S, Q) from draws (K, S, P)."""
    data = densities.make_data(problem, model, job.prior_sd)
    X = jnp.asarray(np.concatenate(list(problem.regions.values())), data.X.dtype)

    def log_density(theta: Float[Array, " P"]) -> Float[Array, ""]:
        return densities.log_density(model, theta, data)

    @jax.jit
    def predicted(draws: Float[Array, "K S P"]) -> Float[Array, "K S Q"]:
        return jax.lax.map(
            lambda theta: model.predict(theta, X).ravel(),
            draws.reshape(-1, draws.shape[-1]),
            batch_size=64,
        ).reshape(*draws.shape[:2], -1)

    return log_density, predicted


def numpyro_model(problem: Problem, model: Model, job: Job) -> Callable[[], None]:
    """The posterior as a user of NumPyro writes it."""
    data = densities.make_data(problem, model, job.prior_sd)

    def posterior() -> None:
        theta: Any = numpyro.sample("theta", distributions.Normal(0, data.prior_sd).to_event(1))
        outputs = model.apply(theta, data.X)
        if problem.likelihood == "bernoulli":
            label: Any = distributions.Bernoulli(logits=outputs[:, 0])
        elif problem.likelihood == "categorical":
            label = distributions.Categorical(logits=outputs)
        else:
            label = distributions.Normal(outputs[:, 0], data.noise_sd)
        with numpyro.plate("examples", len(data.X)):
            numpyro.sample("y", label, obs=data.y)

    return posterior


def numpyro_way(
    problem: Problem, model: Model, job: Job, budget: Budget, *, in_its_words: bool = False
) -> Way:
    """NumPyro's NUTS, its defaults, vectorised chains."""
    log_density, predicted = target(problem, model, job)

    def kernel() -> infer.NUTS:
        if in_its_words:
            return infer.NUTS(numpyro_model(problem, model, job))
        return infer.NUTS(potential_fn=lambda theta: -log_density(theta))

    def make(num_draws: int) -> infer.MCMC:
        return infer.MCMC(
            kernel(),
            num_warmup=budget.num_warmup, num_samples=num_draws, num_chains=job.chains,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip

    mcmc, counted = make(budget.num_draws), make(4)

    def run(key: PRNGKeyArray) -> Sampled:
        key_start, key_run = jax.random.split(key)
        starts = jax.vmap(lambda k: model.sample_prior(k, job.prior_sd))(
            jax.random.split(key_start, job.chains)
        )
        jax.block_until_ready(starts)
        starts = {"theta": starts} if in_its_words else starts
        start = time.perf_counter()
        mcmc.run(key_run, init_params=starts, extra_fields=("num_steps", "diverging"))
        draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        draws = draws["theta"] if in_its_words else draws
        seconds = time.perf_counter() - start
        extra = mcmc.get_extra_fields()
        # The same warm-up again, not timed, for the number of its gradients.
        counted.warmup(
            key_run, init_params=starts, collect_warmup=True, extra_fields=("num_steps",)
        )
        steps = np.sum(extra["num_steps"]) + np.sum(counted.get_extra_fields()["num_steps"])
        counted.post_warmup_state = None
        return Sampled(
            np.asarray(predicted(draws)), seconds, int(steps), int(extra["diverging"].sum())
        )

    return run


def blackjax_way(problem: Problem, model: Model, job: Job, budget: Budget) -> Way:
    """BlackJAX's NUTS with window adaptation, each chain its own, under vmap."""
    log_density, predicted = target(problem, model, job)

    @jax.jit
    def sample(keys: Key[Array, " K"]):
        def chain(key: PRNGKeyArray):
            key_start, key_warm, key_run = jax.random.split(key, 3)
            theta = model.sample_prior(key_start, job.prior_sd)
            warm_up: Any = blackjax.window_adaptation(blackjax.nuts, log_density)
            (state, parameters), warm_info = warm_up.run(key_warm, theta, budget.num_warmup)
            kernel: Any = blackjax.nuts(log_density, **parameters).step

            def step(state: Any, key: PRNGKeyArray):
                state, info = kernel(key, state)
                return state, (state.position, info.num_integration_steps, info.is_divergent)

            keys = jax.random.split(key_run, budget.num_draws)
            _, (draws, steps, divergent) = jax.lax.scan(step, state, keys)
            warm_steps = warm_info.info.num_integration_steps.sum()
            return draws, steps.sum() + warm_steps, divergent.sum()

        return jax.vmap(chain)(keys)

    def run(key: PRNGKeyArray) -> Sampled:
        keys = jax.random.split(key, job.chains)
        start = time.perf_counter()
        draws, steps, divergent = jax.block_until_ready(sample(keys))
        seconds = time.perf_counter() - start
        return Sampled(
            np.asarray(predicted(draws)), seconds, int(steps.sum()), int(divergent.sum())
        )

    return run


def pyro_way(problem: Problem, model: Model, job: Job, budget: Budget) -> Way:
    """Pyro's NUTS on the same density written in PyTorch; gradients are not counted."""
    import pyro
    import torch
    from pyro.infer import MCMC, NUTS

    torch.set_num_threads(2)
    X, y = torch.tensor(problem.X, dtype=torch.float32), torch.tensor(problem.y)
    width, inputs = model.width, model.in_features
    _, predicted = target(problem, model, job)

    def potential(params: dict[str, Any]) -> Any:
        theta = params["theta"]
        kernel, rest = theta[: inputs * width].reshape(inputs, width), theta[inputs * width :]
        hidden = torch.tanh(X @ kernel / inputs**0.5 + rest[:width])
        f = hidden @ rest[width : 2 * width] / width**0.5 + rest[-1]
        if problem.likelihood == "gaussian":
            fit = 0.5 * (((y - f) / problem.noise_sd) ** 2).sum()
        else:
            fit = torch.nn.functional.softplus((1 - 2 * y) * f).sum()
        return fit + 0.5 * (theta**2).sum() / job.prior_sd**2

    def run(key: PRNGKeyArray) -> Sampled:
        pyro.set_rng_seed(int(jax.random.randint(key, (), 0, 2**30)))
        start = time.perf_counter()
        chains = []
        for k in jax.random.split(key, job.chains):
            theta = torch.tensor(np.asarray(model.sample_prior(k, job.prior_sd)))
            mcmc = MCMC(
                NUTS(potential_fn=potential), num_samples=budget.num_draws,
                warmup_steps=budget.num_warmup, initial_params={"theta": theta},
                disable_progbar=True,
            )  # fmt: skip
            mcmc.run()
            chains.append(mcmc.get_samples()["theta"].numpy())
        seconds = time.perf_counter() - start
        return Sampled(np.asarray(predicted(jnp.asarray(np.stack(chains)))), seconds, None, 0)

    return run
