"""A posterior has two sides, sampled by isounc and by NumPyro's NUTS as a model of its own.

The network is written here again as a NumPyro model, from its definition: priors by
`numpyro.sample`, a forward pass of its own, NumPyro's likelihoods and the link. It uses neither
`isounc.densities` nor the forward pass of `isounc.models`, so that an error in isounc's density or
predictions shows as disagreement, as one in its sampler does.

Axes: K chains, S draws per chain, N locations of a region, M columns of the predictive quantity.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, Shaped
from numpyro import handlers, infer

from isounc.checks import check_count, check_real
from isounc.fields import (
    Field,
    Unreadable,
    declared,
    entries,
    integer,
    items,
    section,
    text,
    truth,
)
from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.folder import Record
from isounc.sampling.convergence import diagnose
from isounc.sampling.gate import Gate, gate
from isounc.sampling.moments import Moments
from isounc.sampling.posterior import sample_posteriors
from isounc.sampling.run import Progress
from isounc.sampling.settings import GateSettings, SamplerSettings

FAULTS: dict[str, Callable[[float], float]] = {
    "none": lambda prior_sd: prior_sd,
    "prior": lambda prior_sd: 1.1 * prior_sd,
}
"""Faults that can be planted in isounc's input, as controls: prior sd -> prior sd. `prior` makes it
a tenth too large."""

_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


@dataclass(frozen=True)
class NutsSettings:
    """Settings of NumPyro's NUTS.

    Others are at their defaults (target acceptance 0.8, diagonal metric, tree depth 10).
    """

    num_chains: int = 4
    """Number of chains K, vectorised; each starts from its own draw of the prior."""
    num_warmup: int = 500
    """Warm-up transitions of a chain."""
    num_draws: int = 500
    """Transitions of a chain after warm-up before the gate is first checked, and between checks."""
    max_draws: int = 1500
    """Draws per chain after which sampling ends even if the gate or the precision fails, rounded up
    to a multiple of num_draws."""
    target_var_se: float = 0.04
    """Precision at which sampling may end: median standard error of the predictive variance over
    the variance."""

    def __post_init__(self):
        for name, least, most in (
            ("num_chains", 2, 10**5),
            ("num_warmup", 20, 10**7),
            ("num_draws", 4, 10**8),
            ("max_draws", self.num_draws, 10**8),
        ):
            check_count(name, getattr(self, name), least, most)
        check_real("target_var_se", self.target_var_se, positive=True)


class Totals(NamedTuple):
    """Two numbers of a region with their Monte Carlo errors; each is a mean over draws."""

    level: float
    """Mean over the locations of the predictive mean of the first column."""
    level_se: float
    """Its standard error."""
    var_sum: float
    """Sum of the predictive variances over locations and columns."""
    var_sum_se: float
    """Its standard error."""


_REAL = Field(
    "a number",
    lambda v, _: v if isinstance(v, int | float) and not isinstance(v, bool) else NotImplemented,
)
_META = {
    "totals": entries(section(dict.fromkeys(Totals._fields, _REAL)), 100),
    "gate": section(
        {"passed": truth(), "reasons": items(text(), 10_000)}
        | dict.fromkeys(
            ("rhat_max", "ess_bulk_min", "ess_var_min", "var_mcse_median"),
            _REAL._replace(default=None),
        )
    ),
    "num_draws": integer(0),
    "num_gradients": integer(0),
    "seconds": _REAL,
}
"""What the meta of a record must hold."""


class Side(NamedTuple):
    """A posterior as one of the two programs samples it."""

    regions: dict[str, Moments]
    """Predictive moments by region; those of NumPyro are NaN but for mean and variance."""
    totals: dict[str, Totals]
    """Totals by region."""
    gate: Gate
    """Convergence checks at all locations."""
    num_draws: int
    """Draws per chain S."""
    num_gradients: int
    """Integration steps after warm-up, over all chains."""
    seconds: float
    """Wall time of everything, compilation included."""

    def to_record(self, name: str) -> Record:
        """Make a record of a run folder."""
        arrays = {
            f"{region}/{field}": array
            for region, moments in self.regions.items()
            for field, array in moments._asdict().items()
        }
        meta = {
            "totals": {region: totals._asdict() for region, totals in self.totals.items()},
            "gate": self.gate._asdict() | {"reasons": list(self.gate.reasons)},
            **{key: getattr(self, key) for key in ("num_draws", "num_gradients", "seconds")},
        }
        return Record(name, meta, arrays)

    @classmethod
    def from_record(cls, record: Record) -> Side:
        """Read what `to_record` wrote; an `Unreadable` says what else a record holds."""
        where = f"record {record.name!r}"
        meta = declared(record.meta, _META, where)
        names = [f"{region}/{field}" for region in meta["totals"] for field in Moments._fields]
        if missing := [name for name in names if name not in record.arrays]:
            raise Unreadable(f"{where} must have the array {missing[0]!r:.80}, got none")
        totals = {region: Totals(**numbers) for region, numbers in meta.pop("totals").items()}
        meta["gate"] = Gate.of(record.meta["gate"])
        regions = {
            region: Moments(*(record.arrays[f"{region}/{field}"] for field in Moments._fields))
            for region in totals
        }
        return cls(regions, totals, **meta)


def network(X: Float[Array, "N D"], prior_sd: Any, *, model: Model) -> Any:
    """Compute the outputs of an MLP whose parameters are NumPyro sites `kernel0`, `bias0`, ...

    Layer l computes h W_l / c + b_l with W_l ~ N(0, s^2), b_l ~ N(0, prior_sd^2), and (s, c) =
    (prior_sd, sqrt(fan_in)) under `ntk`, (prior_sd / sqrt(fan_in), 1) under `fan_in`, (prior_sd, 1)
    under `standard`.
    """
    sizes = [model.in_features, *[model.width] * model.depth, model.out_features]
    hidden = X
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        root = math.sqrt(fan_in)
        kernel_sd = prior_sd / root if model.parameterisation == "fan_in" else prior_sd
        kernel: Any = numpyro.sample(
            f"kernel{i}", dist.Normal(0.0, kernel_sd).expand([fan_in, fan_out]).to_event(2)
        )
        bias: Any = numpyro.sample(
            f"bias{i}", dist.Normal(0.0, prior_sd).expand([fan_out]).to_event(1)
        )
        # Full precision, or the two programs differ in TF32 on a GPU.
        hidden = jnp.matmul(hidden, kernel, precision=jax.lax.Precision.HIGHEST)
        hidden = hidden / (root if model.parameterisation == "ntk" else 1.0) + bias[None, :]
        hidden = _ACTIVATIONS[model.activation](hidden) if i < model.depth else hidden
    return hidden


def posterior_model(
    X: Float[Array, "n D"], y: Shaped[Array, " n"], noise_sd: Any, prior_sd: Any, *, model: Model
) -> None:
    """Define the NumPyro model: `network`, with Bernoulli, Categorical or Normal labels."""
    outputs = network(X, prior_sd, model=model)
    if model.likelihood == "bernoulli":
        numpyro.sample("y", dist.BernoulliLogits(outputs[:, 0]), obs=y)
    elif model.likelihood == "categorical":
        numpyro.sample("y", dist.CategoricalLogits(outputs), obs=y)
    else:
        numpyro.sample("y", dist.Normal(outputs[:, 0], noise_sd), obs=y)


def training_data(
    problem: Problem,
) -> tuple[Float[Array, "n D"], Shaped[Array, " n"], Float[Array, ""]]:
    """Return X, y and the noise sd (1 if there is none) for `posterior_model`."""
    real = problem.likelihood == "gaussian"
    y = jnp.asarray(problem.y, jnp.result_type(float) if real else jnp.int32)
    return jnp.asarray(problem.X, jnp.result_type(float)), y, jnp.asarray(problem.noise_sd or 1.0)


@functools.partial(jax.jit, static_argnames="model")
def predict(
    samples: Mapping[str, Float[Array, "K S ..."]], X: Float[Array, "N D"], *, model: Model
) -> Float[Array, "K S N M"]:
    """Predict p(y=1|x), the class probabilities or f(x), for every draw of the sites."""

    def predict_draw(theta):
        f: Any = handlers.substitute(functools.partial(network, model=model), data=theta)(X, 1.0)
        if model.likelihood == "bernoulli":
            return 1 / (1 + jnp.exp(-f))
        if model.likelihood == "categorical":
            odds = jnp.exp(f - f.max(axis=1, keepdims=True))
            return odds / odds.sum(axis=1, keepdims=True)
        return f

    # Under vmap all draws' hidden layers would lie in memory at once.
    flat = {name: draws.reshape(-1, *draws.shape[2:]) for name, draws in samples.items()}
    values = jax.lax.map(predict_draw, flat, batch_size=64)
    return values.reshape(*next(iter(samples.values())).shape[:2], *values.shape[1:])


@functools.lru_cache(maxsize=4)
def _mcmc(model: Model, num_warmup: int, num_draws: int, num_chains: int) -> infer.MCMC:
    """Make one program for all problems of a shape; the data are its arguments."""
    kernel = infer.NUTS(
        functools.partial(posterior_model, model=model), init_strategy=infer.init_to_sample
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There are not enough devices")
        return infer.MCMC(
            kernel, num_warmup=num_warmup, num_samples=num_draws, num_chains=num_chains,
            chain_method="vectorized", progress_bar=False, jit_model_args=True,
        )  # fmt: skip


def numpyro_side(
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    key: PRNGKeyArray,
    settings: NutsSettings,
    bounds: GateSettings,
    progress: Progress = lambda *_: None,
) -> Side:
    """Sample with NumPyro's NUTS until gate and precision are met or the draws run out.

    Trajectories that end at NUTS's step limit are counted in the gate but do not fail it. A NUTS
    trajectory that is cut short leaves the posterior invariant and only mixes more slowly, which
    shows in R-hat and ESS.
    """
    started = time.perf_counter()
    data = *training_data(problem), jnp.asarray(prior_sd)
    X = jnp.asarray(np.concatenate(list(problem.regions.values())), data[0].dtype)
    mcmc = _mcmc(model, settings.num_warmup, settings.num_draws, settings.num_chains)
    mcmc.post_warmup_state = None
    # At every start NumPyro maps the kernel's transition over the chains, on top of the map of the
    # start before: a program that is traced again (other shapes, cleared caches) would have both.
    mcmc.sampler._init_fn = mcmc.sampler._sample_fn = None  # pyright: ignore
    bounds = replace(bounds, saturated_max=settings.num_chains * 2 * settings.max_draws)
    fields = ("num_steps", "diverging", "energy")
    values, extra = [], {name: [] for name in fields}
    while True:
        progress("numpyro", len(values) * settings.num_draws, settings.max_draws)
        mcmc.run(key, *data, extra_fields=fields)
        values.append(np.asarray(predict(mcmc.get_samples(group_by_chain=True), X, model=model)))
        new = mcmc.get_extra_fields(group_by_chain=True)
        for name in fields:
            extra[name].append(np.asarray(new[name]))
        # The next run continues from this state, with the step size and metric of the warm-up.
        mcmc.post_warmup_state = mcmc.last_state
        key = jax.random.fold_in(key, 1)
        p = np.concatenate(values, axis=1)
        steps, diverging, energy = (np.concatenate(extra[name], axis=1) for name in fields)
        checks = gate(
            p, energy=energy, num_divergent=int(diverging.sum()),
            num_saturated=int((steps >= 2**10 - 1).sum()), num_transitions=steps.size,
            regions={name: x[0, 0].size for name, x in split(p, problem).items()},
            settings=bounds,
        )  # fmt: skip
        error = checks.var_mcse_median
        precise = error is not None and error <= settings.target_var_se
        if (checks.passed and precise) or len(values) * settings.num_draws >= settings.max_draws:
            break
    by_region = split(p, problem)
    return Side(
        {region: _moments(draws) for region, draws in by_region.items()},
        {region: totals(draws) for region, draws in by_region.items()},
        checks,
        num_draws=p.shape[1],
        num_gradients=int(steps.sum()),
        seconds=time.perf_counter() - started,
    )


def isounc_side(
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    key: PRNGKeyArray,
    settings: SamplerSettings,
    fault: str = "none",
    progress: Progress = lambda *_: None,
) -> Side:
    """Sample with `sample_posteriors`, which also gives moments and their errors (batch means)."""
    started = time.perf_counter()
    (posterior,) = sample_posteriors(
        [problem], model, prior_sd=FAULTS[fault](prior_sd), keys=[key], settings=settings,
        keep_values=True, progress=progress,
    )  # fmt: skip
    assert posterior.values is not None
    return Side(
        dict(posterior.regions),
        {region: totals(draws) for region, draws in posterior.values.items()},
        posterior.gate,
        num_draws=posterior.num_draws,
        num_gradients=posterior.num_gradients,
        seconds=time.perf_counter() - started,
    )


def split(
    values: Float[np.ndarray, "K S locations M"], problem: Problem
) -> dict[str, Float[np.ndarray, "K S _ M"]]:
    """Split draws at the locations of all regions, one region after the other, by region."""
    ends = np.cumsum([len(X) for X in problem.regions.values()])
    return dict(zip(problem.regions, np.split(values, ends[:-1], axis=2), strict=True))


def totals(values: Float[np.ndarray, "K S N M"]) -> Totals:
    """Compute the level and the summed variance of a region.

    They are the means over draws t of a_t = mean_n p_tn0 and b_t = sum_nm (p_tnm - mean p_nm)^2,
    with the standard errors of means of correlated draws. The error of mean p changes that of the
    summed variance in second order only.
    """
    p = np.asarray(values, float)
    squares = ((p - p.mean(axis=(0, 1))) ** 2).sum(axis=(2, 3))
    means = diagnose(np.stack([p[..., 0].mean(axis=2), squares], axis=2))
    (level, var_sum), (level_se, var_sum_se) = means.mean.tolist(), means.mean_se.tolist()
    return Totals(level, level_se, var_sum, var_sum_se)


def _moments(values: Float[np.ndarray, "K S N M"]) -> Moments:
    summary = diagnose(values)
    known = {name: getattr(summary, name) for name in ("mean", "mean_se", "var", "var_se")}
    columns = {name: np.full(summary.mean.shape, np.nan) for name in ("aleatoric", "aleatoric_se")}
    rows = {
        name: np.full(len(summary.mean), np.nan)
        for name in ("expected_entropy", "expected_entropy_se", "entropy")
    }
    return Moments(**known, **columns, **rows)
