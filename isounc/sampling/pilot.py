"""Short pilots of chains, which choose coordinates, and the sampler if asked, where that matters.

Which coordinates are best depends on the data, the prior and the width together, and no rule that
was tried holds everywhere. So chains of each candidate make a few transitions. With p_t the
predictions of a chain at the fixed locations and Var p their variance over all pilots,

    1 - rho = E[(p_{t+1} - p_t)^2] / (2 Var p)

is one minus their autocorrelation from draw to draw, averaged over the locations, and a transition
is worth (1 - rho) / (1 + rho) independent draws. The candidate with the most of them per second
wins. Seconds come from counts of gradients and from what a gradient costs by the shapes of the
problem, not from a clock: the choice is determined by the key.

Candidates come in a fixed order: the kinds of coordinates, prior ones first, by the sampler of the
run (hmc if that is to be found); then, if it is, the other samplers in the best coordinates so far.
One is left out if with it all pilots are forecast to take more than `SHARE` of the run. Where
seconds limit the run, they limit the pilots too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
from isounc.sampling.drivers import driver_of
from isounc.sampling.kernels import SAMPLERS
from isounc.sampling.moments import Trial
from isounc.sampling.parts import Parts
from isounc.sampling.readout import NarrowReadout, Readout
from isounc.sampling.run import Run, fetch, randomness
from isounc.sampling.settings import AUTO

PILOT = 20261128
"""Folded into a key for the pilots."""
NUM_WARMUP, NUM_DRAWS = (24, 48), (8, 12)
"""Least and most transitions of a pilot: short ones while its step size adapts, and those that are
judged. Those of a run of hundreds of transitions are a fortieth of it.

Trajectory lengths are not tried: so few draws do not show how slow the slowest direction is, and
say that short ones are better than they are.
"""
OWN_LENGTHS = ("nuts", "chees")
"""Samplers that are not tried, since they choose lengths themselves."""
SHORT = 0.125
"""Trajectory length of the former over that of the run."""
SHARE = 0.1
"""Most that all pilots may take of the run, by forecast."""
LEAST_SECONDS = 20.0
"""Seconds by the clock that all pilots may take at least, with their compilation, where `max_seconds`
limit the run; else it is `SHARE` of these. What has not ended by then decides nothing."""
COMPILATION = 2.0
"""Forecast, in seconds, for the programs of a pilot; those of the first are the run's if it wins."""


class _Pilot(NamedTuple):
    """A pilot that was made."""

    run: Run
    """The run with its coordinates and sampler."""
    trial: Trial
    """Its result; `draws_per_transition` is NaN until all pilots are judged together."""
    values: Float[np.ndarray, "B K S Q"]
    """Its draws of the predictions at the fixed locations."""


def choose(run: Run, candidates: Sequence[Coordinates]) -> tuple[Run, tuple[Trial, ...]]:
    """The run in the best coordinates, by the best sampler if that is to be found, and all trials.

    There are none if there is one candidate, or no time for a second: then it is the first. Of
    pilots that seconds cut short those that ended decide.
    Particles take the last coordinates: they make no more than a few steps, which have to be long.
    """
    if not isinstance(driver_of(run.settings), ChainDriver):
        return run._replace(coordinates=candidates[-1]), ()
    samplers = [run.settings.sampler]
    if run.settings.sampler == AUTO:
        samplers = [name for name in SAMPLERS if name not in OWN_LENGTHS]
    first = _by(run, samplers[0], candidates[0])
    if len(candidates) == len(samplers) == 1:
        return first, ()
    pilots, best, spent = list[_Pilot](), 0, 0.0

    def order() -> Iterator[Run]:
        yield from (_by(run, samplers[0], coordinates) for coordinates in candidates)
        yield from (_by(run, name, pilots[best].run.coordinates) for name in samplers[1:])

    whole = run.settings.num_warmup + run.settings.num_draws
    allowed = max(SHARE * run.clock.max_seconds, LEAST_SECONDS)
    until = min(run.clock.seconds() + allowed, run.clock.max_seconds)
    try:
        for way in order():
            if pilots:
                # About as long as the first.
                expected = spent + COMPILATION + _pilot_seconds(run, pilots[0].trial)
                if expected > SHARE * _seconds(way, pilots[best].trial, whole):
                    continue
                spent += COMPILATION
            pilots.append(_pilot(way, until))
            spent += _pilot_seconds(way, pilots[-1].trial)
            worths = draws_per_transition([pilot.values for pilot in pilots])
            pilots = [
                pilot._replace(trial=pilot.trial._replace(draws_per_transition=worth))
                for pilot, worth in zip(pilots, worths, strict=True)
            ]
            best = max(range(len(pilots)), key=lambda i: pilots[i].trial.draws_per_second)
    except TimeIsUp:
        pass
    if len(pilots) <= 1:
        return first, ()
    return pilots[best].run, tuple(pilot.trial for pilot in pilots)


def _by(run: Run, sampler: str, coordinates: Coordinates) -> Run:
    """The run by this sampler in these coordinates."""
    settings = dataclasses.replace(run.settings, sampler=sampler)
    return run._replace(coordinates=coordinates, settings=settings)


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


def _seconds(run: Run, trial: Trial, num_transitions: float) -> float:
    """Seconds of so many transitions of all chains on one core, by the gradients of a trial."""
    gradients = num_transitions * run.settings.chains * len(run.run_keys) * trial.num_gradients
    return gradients * trial.gradient_seconds


def _lengths(run: Run) -> tuple[int, int, int]:
    """Transitions of a pilot: those of its warm-up and its draws; and of a window of the run."""
    settings = run.settings
    whole = settings.num_warmup + settings.num_draws
    # Arrays have the lengths of the run's, which spares a compilation.
    window = math.ceil(settings.num_warmup / WARM_WINDOWS)
    num_warmup = min(window, int(np.clip(whole // 25, *NUM_WARMUP)))
    return num_warmup, min(settings.block, int(np.clip(whole // 100, *NUM_DRAWS))), window


def _pilot_seconds(run: Run, trial: Trial) -> float:
    """Forecast of the seconds that a pilot takes on one core, without compilation."""
    num_warmup, num_draws, _ = _lengths(run)
    return _seconds(run, trial, num_warmup * SHORT + num_draws)


def _pilot(run: Run, until: float) -> _Pilot:
    """The pilot of a run, not judged yet; `TimeIsUp` if it takes longer."""
    settings, data, X, model = run.settings, run.data, run.X, run.model
    sampler, coordinates = SAMPLERS[settings.sampler], run.coordinates
    compiled = settings.of_programs
    static: dict[str, Any] = {"model": model, "settings": compiled, "sampler": sampler}
    keys = jax.vmap(lambda key: jax.random.fold_in(key, PILOT))(run.run_keys)
    state = chains.start(coordinates, data, X, run.start_keys, **static)
    static["serial"] = chains.is_serial(model, data)
    parts = Parts(run._replace(checkpoint=None))
    num_warmup, num_draws, length = _lengths(run)

    def work(make: Any, begun: Any, step: int, count: int, length: int) -> Any:
        step_keys, u = randomness(keys, step, length, X.dtype)
        parts.begin(step, begun)
        return parts.work(
            lambda begun, first, count: make(begun, first, count, step_keys, u), count,
            tell=lambda _: run.report(
                f"pilot of {settings.sampler} in {coordinates.name} coordinates", 0,
                settings.max_draws,
            ),
            until=until,
        )  # fmt: skip

    def warm_up(begun: Any, first: int, count: int, keys: Any, u: Any) -> chains.Window:
        return chains.warm_up(begun, first, count, data, X, keys, u, **static)

    def draw(begun: Any, first: int, count: int, keys: Any, u: Any) -> Any:
        return program.draw(begun, first, count, state, keys, u)

    def of_length(state: chains.RunState, share: float) -> chains.RunState:
        lengths = jnp.full_like(state.tuning.trajectory_length, share * settings.trajectory_length)
        return state._replace(tuning=state.tuning._replace(trajectory_length=lengths))

    state = of_length(state, SHORT)
    window = chains.begin_window(state, settings, length, anneal=True)
    if np.asarray(fetch(window.log_first)).any():
        window = work(warm_up, window, 2, length, length)
        state = chains.tune(window, settings=compiled, adapt_metric=False, retries=False)
    window = work(warm_up, chains.begin_window(state, settings, length), 0, num_warmup, length)
    state = chains.tune(window, settings=compiled, adapt_metric=False, retries=False)
    state = of_length(state, 1.0)
    program = BlockProgram(run, sampler)
    begun = program.begin(state, chains.begin_block(state, X, run.fixed, settings))
    state, block = program.end(work(draw, begun, 1, num_draws, settings.block), state)
    block = chains.end_block(state, block, num_draws, settings)
    trial = Trial(
        coordinates=coordinates.name,
        sampler=settings.sampler,
        metric=settings.metric,
        step_size=float(np.mean(state.tuning.step_size)),
        num_gradients=float(np.mean(block.num_gradients)) / num_draws,
        gradient_seconds=gradient_seconds(coordinates, model, data.X.shape[1]),
        draws_per_transition=math.nan,
    )
    return _Pilot(run, trial, np.asarray(block.values))
