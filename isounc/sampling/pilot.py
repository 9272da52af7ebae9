"""Short pilots of chains, which choose coordinates where that matters.

Which coordinates are best depends on the data, the prior and the width together, and no rule that
was tried holds everywhere. So chains of each candidate make a few transitions. With p_t the
predictions of a chain at the fixed locations and Var p their variance over all pilots,

    1 - rho = E[(p_{t+1} - p_t)^2] / (2 Var p)

is one minus their autocorrelation from draw to draw, averaged over the locations, and a transition
is worth (1 - rho) / (1 + rho) independent draws. The candidate with the most of them per second
wins. Seconds come from counts of gradients and from what a gradient costs by the shapes of the
problem, not from a clock: the choice is determined by the key.

A pilot makes as many gradients as 18 transitions of the run. If those of prior coordinates forecast
no more than `TRIAL_PAYS` seconds for the whole run, nothing else is tried, since its programs would
have to be compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from isounc.models import Model
from isounc.sampling import chains
from isounc.sampling.chain_driver import WARM_WINDOWS, ChainDriver
from isounc.sampling.clock import TimeIsUp
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.cores import BlockProgram
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.moments import Trial
from isounc.sampling.parts import Parts
from isounc.sampling.readout import NarrowReadout, Readout
from isounc.sampling.run import Run, randomness

PILOT = 20261128
"""Folded into a key for the pilots."""
NUM_WARMUP, NUM_DRAWS = 48, 12
"""Transitions of a pilot: short ones while its step size adapts, and those that are judged.

Trajectory lengths are not tried: so few draws do not show how slow the slowest direction is, and
say that short ones are better than they are.
"""
SHORT = 0.125
"""Trajectory length of the former over that of the run."""
TRIAL_PAYS = 20.0
"""Forecast of the whole run, in seconds of one core, from which on candidates are tried."""


def choose(run: Run, candidates: Sequence[Coordinates]) -> tuple[Run, tuple[Trial, ...]]:
    """The run in the best coordinates, and all trials.

    There are none if there is one candidate, or nothing much to save: then it is the first.
    Particles take the last: they make no more than a few steps, which have to be long.
    """
    driver = DRIVERS[run.settings.sampler]
    if not isinstance(driver, ChainDriver):
        return run._replace(coordinates=candidates[-1]), ()
    run = run._replace(coordinates=candidates[0])
    if len(candidates) == 1:
        return run, ()
    trials, values = list[Trial](), list[np.ndarray]()
    try:
        for coordinates in candidates:
            trial, drawn = _pilot(run, coordinates, driver)
            trials.append(trial)
            values.append(drawn)
            if len(trials) == 1 and _forecast(run, trial) <= TRIAL_PAYS:
                return run, ()
    except TimeIsUp:
        return run, ()
    worths = draws_per_transition(values)
    trials = [
        trial._replace(draws_per_transition=worth)
        for trial, worth in zip(trials, worths, strict=True)
    ]
    best = max(range(len(trials)), key=lambda i: trials[i].draws_per_second)
    return run._replace(coordinates=candidates[best]), tuple(trials)


def draws_per_transition(values: Sequence[Float[np.ndarray, "B K _ Q"]]) -> list[float]:
    """(1 - rho) / (1 + rho) of each pilot, for the mean of 1 - rho over locations and problems.

    The variance of each location is that over all pilots together. Where nothing varies a
    transition counts as one draw.
    """
    pooled = np.concatenate([v.reshape(len(v), -1, v.shape[-1]) for v in values], axis=1)
    var = pooled.astype(float).var(1)
    varies = np.ptp(pooled, axis=1) > 0  # the variance of equal numbers may be rounding
    if not varies.any():
        return [1.0] * len(values)
    worths = []
    for drawn in values:
        squares = (np.diff(drawn.astype(float), axis=2) ** 2).mean((1, 2))
        moved = float(np.clip(squares[varies] / (2 * var[varies]), 0, 1).mean())
        worths.append(moved / (2 - moved))
    return worths


def gradient_seconds(coordinates: Coordinates, model: Model, num_examples: int) -> float:
    """Forecast for a gradient of r on one core of a CPU, from the shapes alone.

    Fitted to a server of 2026, for the ratios that matter here: 2 us and 0.26 ns a parameter and
    example, and for a factorisation 15 us and 0.1 ns a multiplication.
    """
    seconds = 2e-6 + 2.6e-10 * num_examples * model.num_params
    features, outputs = model.layer_sizes[-1][0] + 1, model.out_features
    if isinstance(coordinates, NarrowReadout):
        rows = coordinates.precision.shape[-1]
        products = 6 * rows * features**2 + 10 * features**3
    elif isinstance(coordinates, Readout):
        rank = coordinates.directions.shape[-2]
        products = 6 * rank * features * (num_examples + rank) + 10 * rank**3
    else:
        return seconds
    return seconds + outputs * (15e-6 + 1e-10 * products)


def _forecast(run: Run, trial: Trial) -> float:
    """Seconds of the whole run on one core."""
    settings = run.settings
    transitions = (settings.num_warmup + settings.num_draws) * settings.chains * len(run.run_keys)
    return transitions * trial.num_gradients * trial.gradient_seconds


def _pilot(
    run: Run, coordinates: Coordinates, driver: ChainDriver
) -> tuple[Trial, Float[np.ndarray, "B K S Q"]]:
    """The trial of coordinates, not judged yet, and its draws."""
    settings, data, X, model = run.settings, run.data, run.X, run.model
    static: dict[str, Any] = {"model": model, "settings": settings, "sampler": driver.sampler}
    keys = jax.vmap(lambda key: jax.random.fold_in(key, PILOT))(run.run_keys)
    state = chains.start(coordinates, data, X, run.start_keys, **static)
    static["serial"] = chains.is_serial(model, data)
    parts = Parts(run._replace(checkpoint=None))
    # Arrays have the lengths of the run's, which spares a compilation.
    length = math.ceil(settings.num_warmup / WARM_WINDOWS)

    def work(make: Any, begun: Any, step: int, count: int, length: int) -> Any:
        step_keys, u = randomness(keys, step, length, X.dtype)
        parts.begin(step, begun)
        return parts.work(
            lambda begun, first, count: make(begun, first, count, step_keys, u), count,
            tell=lambda _: run.report(
                f"pilot in {coordinates.name} coordinates", 0, settings.max_draws
            ),
            until=run.clock.max_seconds,
        )  # fmt: skip

    def warm_up(begun: Any, first: int, count: int, keys: Any, u: Any) -> chains.Window:
        return chains.warm_up(begun, first, count, data, X, keys, u, **static)

    def draw(begun: Any, first: int, count: int, keys: Any, u: Any) -> Any:
        return program.draw(begun, first, count, state, keys, u)

    def of_length(state: chains.RunState, share: float) -> chains.RunState:
        lengths = jnp.full_like(state.tuning.trajectory_length, share * settings.trajectory_length)
        return state._replace(tuning=state.tuning._replace(trajectory_length=lengths))

    window = chains.begin_window(of_length(state, SHORT), settings, length)
    window = work(warm_up, window, 0, min(length, NUM_WARMUP), length)
    state = chains.tune(window, settings=settings, adapt_metric=False, retries=False)
    state = of_length(state, 1.0)
    program = BlockProgram(run, driver.sampler)
    begun = program.begin(state, chains.begin_block(state, X, run.fixed, settings))
    count = min(NUM_DRAWS, settings.block)
    state, block = program.end(work(draw, begun, 1, count, settings.block), state)
    block = chains.end_block(state, block, count, settings)
    trial = Trial(
        coordinates=coordinates.name,
        step_size=float(np.mean(state.tuning.step_size)),
        num_gradients=float(np.mean(block.num_gradients)) / count,
        gradient_seconds=gradient_seconds(coordinates, model, data.X.shape[1]),
        draws_per_transition=math.nan,
    )
    return trial, np.asarray(block.values)
