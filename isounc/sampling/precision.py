"""Whether the sampler's numbers have digits enough: they are worked out again in float64.

A sampler that moves in float32 may converge, and agree between chains, to the wrong posterior: all
that is needed is a rounding error of the log density that is large beside 1 and depends on where
the chain is. No diagnostic of draws can see that. So at some positions x of the chains

    log p(theta(x) | data) + log |det dtheta/dx|

is computed in float64, from the problem as it was given, through the likelihood, the prior and the
map theta alone, and compared with what the sampler took for it, log N(x; 0, I) + r(x). A constant
between the two means nothing, so differences between positions are compared. The predictions there
are computed again, too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from isounc import densities
from isounc.centring import Frame
from isounc.densities import Data, host_data
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.moments import Block
from isounc.sampling.run import Run, fetch

MOST = 64
"""Most positions of a problem that are checked."""
SINGLE, TINY = 2.0**-23, 2.0**-126
"""Relative spacing and smallest number of float32, in which predictions are stored."""


class Precision(NamedTuple):
    """By how much the sampler's numbers differ from those in float64, at the worst position."""

    log_density_error: float
    """Of the log posterior, up to a constant, nats."""
    prediction_error: float
    """Of the prediction, over its posterior standard deviation, beyond the spacing of float32."""


def check_precision(
    run: Run, problems: Sequence[Problem], frame: Frame, prior_sd: float, blocks: Sequence[Block]
) -> list[Precision | None]:
    """Work out the log posterior and the predictions of each problem again, in float64.

    Parameters
    ----------
    run, problems, frame, prior_sd
        What is sampled, and in which coordinates.
    blocks
        Blocks of all problems, each of which may have the position that it ended at.

    Returns
    -------
    An entry for each problem; None without positions (of a driver that tells none), or where there
    is no float64.
    """
    if blocks[0].position is None or not _has_float64():
        return [None] * len(problems)
    # (B, blocks, K, ...) to (B, T, ...)
    ends = [(b.position, b.log_density, b.values[:, :, -1]) for b in blocks]
    x, found, predicted = (
        np.stack(parts, axis=1).reshape(len(problems), -1, *np.shape(parts[0])[2:])
        for parts in zip(*ends, strict=True)
    )
    rows = np.unique(np.linspace(0, x.shape[1] - 1, MOST).round().astype(int))
    x, found, predicted = (np.asarray(a[:, rows], float) for a in (x, found, predicted))
    points = [np.concatenate(list(p.regions.values()))[fetch(run.fixed)] for p in problems]
    changed = [c.to_theta for c in frame.centred]
    with _float64():
        coordinates = jax.tree.map(_widen, fetch(run.coordinates))
        original = host_data(problems, frame.original, prior_sd, np.float64)
        exact, p = jax.device_get(
            _recompute(
                coordinates,
                frame.data,
                original,
                np.stack(changed) if changed else None,
                np.stack(points),
                x,
                model=frame.model,
                original_model=frame.original,
            )
        )
    found = found - 0.5 * (x**2).sum(-1)
    results = []
    for i in range(len(problems)):
        values = np.concatenate([b.values[i] for b in blocks], axis=1).astype(float)
        sd = values.std(axis=(0, 1))
        # Where nothing varies, or a draw is not finite, other checks speak.
        usable = np.isfinite(sd) & (sd > 0)
        with np.errstate(invalid="ignore"):
            apart = found[i] - exact[i]
            wrong = np.abs(predicted[i] - p[i]) - 4 * (SINGLE * np.abs(p[i]) + TINY)
        results.append(
            Precision(_worst(apart - np.median(apart)), _worst(wrong[:, usable] / sd[usable][None]))
        )
    return results


def _worst(errors: Float[np.ndarray, "..."]) -> float:
    """The largest |error|; infinite if one is not finite, 0 if there is none."""
    if not errors.size:
        return 0.0
    return float(np.abs(errors).max()) if np.isfinite(errors).all() else np.inf


def _widen(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


@functools.partial(jax.jit, static_argnames=("model", "original_model"))
def _recompute(
    coordinates: Coordinates, data: Data, original: Data, changed: Float[Array, "B E E"] | None,
    points: Float[Array, "B Q D"], x: Float[Array, "B T P"],
    *, model: Model, original_model: Model,
) -> tuple[Float[Array, "B T"], Float[Array, "B T R"]]:  # fmt: skip
    """Log density of x up to a constant, and the predictions at the points."""

    def of_problem(
        parts: tuple[Coordinates, Data, Data, Array | None, Array, Array],
    ) -> tuple[Float[Array, " T"], Float[Array, "T R"]]:
        coordinates, data, original, changed, points, x = parts

        def at(x: Float[Array, " P"]) -> tuple[Float[Array, ""], Float[Array, " R"]]:
            theta = coordinates.theta(x, model, data)
            if changed is not None:
                size = len(changed) * original_model.layer_sizes[0][1]
                first = changed @ theta[:size].reshape(len(changed), -1)
                theta = theta.at[:size].set(first.ravel())
            volume = coordinates.log_volume(x, model, data)
            log_density = densities.log_density(original_model, theta, original)
            return log_density + volume, original_model.predict(theta, points).ravel()

        return jax.lax.map(at, x)

    return jax.lax.map(of_problem, (coordinates, data, original, changed, points, x))


def _has_float64() -> bool:
    """Whether this process can compute in float64: everywhere but on a TPU alone."""
    return jax.default_backend() != "tpu" or _host() is not None


def _host() -> Any:
    """The host's processor as a JAX device; None if JAX may not use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """JAX in float64, on the processor of the host if it may be used."""
    with jax.enable_x64(True), jax.default_device(_host()):
        yield
