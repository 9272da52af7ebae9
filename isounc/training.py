"""Networks trained as practitioners train them: AdamW without a prior, maybe stopped early."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from isounc import densities
from isounc.checks import check_count, check_real, settings_from
from isounc.densities import Data, stack_data
from isounc.fit import PointEstimate, generator
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model, check_inputs
from isounc.problems import Problem


@dataclass(frozen=True)
class TrainSettings:
    """A practitioner's training: minibatch AdamW on the mean loss.

    It goes on for a fixed number of epochs, or with `patience` until a validation loss does not fall
    any more.
    """

    epochs: int = 200
    """Passes over the data; with patience the most of them."""
    minibatch: int = 32
    """Examples per step; the remainder of a pass is left out, differently each time."""
    learning_rate: float = 1e-2
    """AdamW's learning rate."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    patience: int = 0
    """Early stopping: epochs without a new least validation loss after which training ends, with
    the parameters of the least; 0 trains all epochs on all data."""
    validation_share: float = 0.2
    """Early stopping: share of the examples, rounded and at least one, that is held out for it."""

    def __post_init__(self):
        for name in ("epochs", "minibatch"):
            check_count(name, getattr(self, name), 1)
        check_count("patience", self.patience, 0)
        if not 0 < check_real("validation_share", self.validation_share) < 1:
            raise ValueError(
                f"validation_share must be between 0 and 1, got {self.validation_share!r}"
            )
        check_real("learning_rate", self.learning_rate, positive=True)
        check_real("weight_decay", self.weight_decay)


def fit_trained(
    problem: Problem,
    model: Model,
    *,
    key: PRNGKeyArray,
    prior_sd: float = 1.0,
    settings: TrainSettings | None = None,
    **fields: Any,
) -> PointEstimate:
    """Train as a practitioner does: AdamW on the mean negative log likelihood.

    No prior takes part; `prior_sd` only enters the log posterior that is reported. The check asks
    for finite parameters and a likelihood of all data above that of the best constant prediction.
    With `patience=20`, say, training stops early, and the result's kind is `stopped`.

    Parameters
    ----------
    problem, model
        Training data, and a model from `make_model`.
    key
        JAX random key; decides the initialisation, the order of the examples and which are held
        out.
    prior_sd
        Prior standard deviation of the log posterior that is reported.
    settings
        All settings of training; or give some of them by keyword, e.g. `epochs=50`.

    Raises
    ------
    ValueError
        If settings are out of range, or given as a whole and by keyword, or if there is a single
        example, of which none can be held out.
    """
    settings = settings_from(TrainSettings, settings, fields)
    return fit_trained_many([problem], model, keys=[key], prior_sd=prior_sd, settings=settings)[0]


def fit_trained_many(
    problems: Sequence[Problem],
    model: Model,
    *,
    keys: Sequence[PRNGKeyArray],
    prior_sd: float = 1.0,
    settings: TrainSettings = TrainSettings(),
) -> list[PointEstimate]:
    """Call `fit_trained` on several problems of one shape, in one compiled program."""
    check_inputs(problems, model, keys)
    data = stack_data(problems, model, prior_sd)
    if settings.patience:
        held_out, orders = zip(
            *(_split(key, data.X.shape[1], settings) for key in keys), strict=True
        )
        fitted = _train_until(
            data, jnp.stack(keys), np.stack(orders), np.stack(held_out), model=model,
            settings=settings,
        )  # fmt: skip
    else:
        orders = np.stack([_orders(key, data.X.shape[1], settings) for key in keys])
        fitted = _train(data, jnp.stack(keys), orders, model=model, settings=settings)
    thetas, log_liks, log_dens = jax.device_get(fitted)
    results = []
    for problem, theta, log_lik, log_dens_i in zip(
        problems, thetas, log_liks, log_dens, strict=True
    ):
        constant = constant_log_likelihood(problem)
        reasons = []
        if not np.isfinite(theta).all():
            reasons.append("Training diverged: parameters are not finite.")
        elif not log_lik > constant:
            reasons.append(
                f"Training is no better than a constant prediction: log likelihood {log_lik:.2f}, "
                f"constant {constant:.2f}."
            )
        results.append(
            PointEstimate(
                kind="stopped" if settings.patience else "trained",
                theta=theta,
                log_density=float(log_dens_i),
                log_likelihood=float(log_lik),
                rel_grad_norm=None,
                hessian_min_eigenvalue=None,
                hessian_method=None,
                hessian=None,
                restart_log_densities=(),
                passed=not reasons,
                reasons=tuple(reasons),
            )
        )
    return results


def fit_ensemble(
    problem: Problem,
    model: Model,
    num: int,
    *,
    key: PRNGKeyArray,
    prior_sd: float = 1.0,
    settings: TrainSettings = TrainSettings(),
) -> list[PointEstimate]:
    """Train `num` networks on the same data from different starting points, in one program.

    Each is what `fit_trained` returns for one of the keys that `key` is split into.
    """
    keys = list(jax.random.split(key, num))
    return fit_trained_many([problem] * num, model, keys=keys, prior_sd=prior_sd, settings=settings)


def disjoint_groups(count: int, total: int, most: int) -> list[slice]:
    """At most `most` disjoint groups of `count` of `total` networks."""
    return [slice(i * count, (i + 1) * count) for i in range(min(most, total // count))]


def _orders(
    key: PRNGKeyArray, num_examples: int, settings: TrainSettings
) -> Int[np.ndarray, "steps minibatch"]:
    """The rows of every step: a new order of the examples each epoch."""
    minibatch = min(settings.minibatch, num_examples)
    steps = num_examples // minibatch
    check_count("epochs", settings.epochs, 1, max(1, 2**28 // num_examples))  # 1 GiB of rows
    rows = np.tile(np.arange(num_examples, dtype=np.int32), (settings.epochs, 1))
    rows = generator(key).permuted(rows, axis=1)[:, : steps * minibatch]
    return rows.reshape(settings.epochs * steps, minibatch)


def _split(
    key: PRNGKeyArray, num_examples: int, settings: TrainSettings
) -> tuple[Int[np.ndarray, " held"], Int[np.ndarray, "epochs steps minibatch"]]:
    """The rows that are held out, and those of every step of every epoch."""
    if num_examples < 2:
        raise ValueError(
            f"problem must have two examples or more to hold one out (patience), got {num_examples}"
        )
    rows = generator(jax.random.fold_in(key, 1)).permutation(num_examples).astype(np.int32)
    num_held = min(num_examples - 1, max(1, round(settings.validation_share * num_examples)))
    order = _orders(key, num_examples - num_held, settings)
    return rows[:num_held], rows[num_held:][order.reshape(settings.epochs, -1, order.shape[-1])]


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _train_until(
    data: Data,
    keys: Shaped[Array, "B *key"],
    orders: Int[np.ndarray | Array, "B epochs steps minibatch"],
    held_out: Int[np.ndarray | Array, "B held"],
    *,
    model: Model,
    settings: TrainSettings,
) -> tuple[Float[Array, "B P"], Float[Array, " B"], Float[Array, " B"]]:
    """As `_train`, with the parameters of the epoch of least loss on the rows held out.

    The first of equals counts, and the initial parameters are epoch 0.
    """
    adamw = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)

    def train_on(data, key, order, held):
        def loss(theta, rows):
            part = data._replace(X=data.X[rows], y=data.y[rows])
            return -densities.log_likelihood(model, theta, part) / len(rows)

        def step(carry, rows):
            theta, state = carry
            updates, state = adamw.update(jax.grad(loss)(theta, rows), state, theta)
            return (jnp.asarray(optax.apply_updates(theta, updates)), state), None

        def goes_on(carry):
            _, epoch, (_, _, best_epoch) = carry
            return (epoch < settings.epochs) & (epoch - best_epoch < settings.patience)

        def one_epoch(carry):
            fit, epoch, best = carry
            fit, _ = jax.lax.scan(step, fit, order[epoch])
            new = (fit[0], loss(fit[0], held), epoch + 1)
            is_better = new[1] < best[1]
            best = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, best)
            return fit, epoch + 1, best

        theta = model.init(key)
        start = jnp.int32(0)
        best = (theta, loss(theta, held), start)
        _, _, (theta, _, _) = jax.lax.while_loop(
            goes_on, one_epoch, ((theta, adamw.init(theta)), start, best)
        )
        log_lik = densities.log_likelihood(model, theta, data)
        return theta, log_lik, log_lik + densities.log_prior(theta, data)

    return jax.vmap(train_on)(data, keys, orders, held_out)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _train(
    data: Data,
    keys: Shaped[Array, "B *key"],
    orders: Int[np.ndarray | Array, "B steps minibatch"],
    *,
    model: Model,
    settings: TrainSettings,
) -> tuple[Float[Array, "B P"], Float[Array, " B"], Float[Array, " B"]]:
    """Parameters, log likelihood and log posterior of each of B problems."""
    minibatch = orders.shape[-1]
    adamw = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)

    def train_on(data, key, order):
        def loss(theta, rows):
            part = data._replace(X=data.X[rows], y=data.y[rows])
            return -densities.log_likelihood(model, theta, part) / minibatch

        def step(carry, rows):
            theta, state = carry
            updates, state = adamw.update(jax.grad(loss)(theta, rows), state, theta)
            return (optax.apply_updates(theta, updates), state), None

        theta = model.init(key)
        (theta, _), _ = jax.lax.scan(step, (theta, adamw.init(theta)), order)
        theta = jnp.asarray(theta)
        log_lik = densities.log_likelihood(model, theta, data)
        return theta, log_lik, log_lik + densities.log_prior(theta, data)

    return jax.vmap(train_on)(data, keys, orders)


def constant_log_likelihood(problem: Problem) -> float:
    """Log likelihood of the best prediction that ignores x: class frequencies or the mean of y."""
    y = np.asarray(problem.y)
    likelihood = LIKELIHOODS[problem.likelihood]
    constant = likelihood.constant_prediction(y, problem.num_columns)
    p = np.broadcast_to(constant, (len(y), len(constant)))
    return float(likelihood.predictive_log_prob(p, y, noise_sd=problem.noise_sd).sum())
