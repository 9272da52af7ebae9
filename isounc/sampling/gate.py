"""The gate: whether draws can be trusted, by R-hat, effective sample sizes and energies.

Everything is judged in function space: a draw is a value of the predictive quantity at a location,
never a weight, for weight space has symmetries that make a sound sampler look bad. R-hat and
effective sample sizes are computed in `isounc.sampling.convergence`.

Axes: K chains, S draws per chain, Q locations (of any shape), B batches per chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from isounc.checks import check_count, check_kind, real_array
from isounc.sampling.convergence import Diagnostics, diagnose
from isounc.sampling.settings import GateSettings
from isounc.sampling.tails import khat_bound

TOO_COARSE = "single precision is not enough here: standardise the inputs or use float64"
"""What to do where the sampler's numbers differ from those in float64."""
RARE_DRAWS = "rare draws decide about the variance"
"""How a gate says that the tail of (p - mean)^2 is heavy."""


class BatchMoments(NamedTuple):
    """Moments per location from streamed batch means."""

    mean: Float[np.ndarray, "*N"]
    """Mean over all draws."""
    mean_se: Float[np.ndarray, "*N"]
    """Monte Carlo standard error of `mean`."""
    var: Float[np.ndarray, "*N"]
    """Variance over all draws, divisor K S."""
    var_se: Float[np.ndarray, "*N"]
    """Monte Carlo standard error of `var`."""


class Gate(NamedTuple):
    """The verdict on a sampled posterior; `_asdict()` is strict JSON, with None for undefined."""

    passed: bool
    """Whether every bound is kept."""
    reasons: tuple[str, ...]
    """A sentence for each bound that is not, with the number and the bound."""
    rhat_max: float | None
    """Largest finite R-hat."""
    ess_bulk_min: float | None
    """Smallest bulk ESS of p."""
    ess_var_min: float | None
    """Smallest bulk ESS of (p - mean)^2."""
    ess_tail_min: float | None
    """Smallest tail ESS (for information: it has no bound)."""
    ebfmi_min: float | None
    """Smallest E-BFMI of a chain."""
    divergences: int
    """Number of divergent transitions."""
    divergence_rate: float
    """`divergences` as a share of all transitions, in [0, 1]."""
    num_saturated: int
    """Number of trajectories that ended at the step limit."""
    num_zero_variance: int
    """Locations where all draws of all chains are equal, so that there is no R-hat."""
    num_frozen: int
    """Other locations where all draws of one chain, or more, are equal."""
    num_nonfinite: int
    """Locations with a draw that is NaN or infinite."""
    var_mcse_median: float | None
    """Median over locations of the variance's Monte Carlo standard error over the variance."""
    num_locations: int
    """Number of locations Q."""
    where_worst: int | None
    """Flat index of the location with the largest R-hat."""
    log_density_error: float | None = None
    """Largest error of a difference of the sampler's log posterior, nats, found in float64
    (`isounc.sampling.precision`); None if it was not checked, or is not finite."""
    prediction_error: float | None = None
    """Largest error of a prediction over its posterior standard deviation, likewise."""
    khat_max: float | None = None
    """Largest finite Pareto k of (p - mean)^2."""
    num_heavy_tails: int | None = None
    """Locations where k is too large for the variance and its standard error to be trusted."""
    num_equal_chains: int | None = None
    """Chains that have their draws in common with another."""
    modes_p_value: float | None = None
    """p-value of the agreement with a tempered run (`isounc.sampling.modes`); None if there was
    none."""


def ebfmi(energy: Float[ArrayLike, "K S"]) -> Float[np.ndarray, " K"]:
    """Energy Bayesian fraction of missing information of each chain (Betancourt 2016).

    E-BFMI = sum_t (E_t - E_{t-1})^2 / sum_t (E_t - mean E)^2, of the Hamiltonian's values E; NaN
    where they are all equal or one is not finite.

    Raises
    ------
    ValueError
        For anything but (chains, draws) with 2 draws or more.
    """
    energies = real_array("energy", energy).astype(np.float64)
    if energies.ndim != 2 or energies.shape[0] < 1 or energies.shape[1] < 2:
        raise ValueError(
            f"energy must be (chains, draws) with 2 draws or more, got shape {energies.shape}"
        )
    usable = np.isfinite(energies).all(axis=1) & (energies != energies[:, :1]).any(axis=1)
    result = np.full(len(energies), np.nan)
    moving = energies[usable]
    steps = np.sum(np.diff(moving, axis=1) ** 2, axis=1)
    result[usable] = steps / (moving.shape[1] * moving.var(axis=1))
    return result


def batch_means_se(
    batch_means: Float[ArrayLike, "K B *N"],
    batch_square_means: Float[ArrayLike, "K B *N"],
    *,
    shift: Float[ArrayLike, "*N"] | float = 0.0,
    lengths: Int[ArrayLike, " B"] | None = None,
) -> BatchMoments:
    """Moments and their Monte Carlo errors where only batch means were kept.

    With a and b the batch means of p - c and (p - c)^2, m = mean a and n = K B batches:
    mean = c + m, var = mean b - m^2, se(mean) = sd(a) / sqrt(n) and, by the delta method,
    se(var) = sd(b - 2 m a) / sqrt(n). sd runs over the batches of all chains, so that chains that
    disagree widen both. Batches count by their lengths L, in sd^2(a) = sum w (a - m)^2 / (n - 1),
    w = L / mean L, too: the variance of a batch mean goes with 1 / L.

    Parameters
    ----------
    batch_means, batch_square_means
        From consecutive batches. Batches that are not much longer than the autocorrelation time
        give errors that are too small.
    shift
        c, the same for both. In float32 a c near the mean saves the variance from cancellation;
        with 0 the two are batch means of p and of p^2.
    lengths
        Draws of a chain in each batch, which may differ; None means equally many.

    Raises
    ------
    ValueError
        For arrays of different shapes, or fewer than 2 batches.
    """
    a = real_array("batch_means", batch_means).astype(np.float64)
    b = real_array("batch_square_means", batch_square_means).astype(np.float64)
    if a.shape != b.shape or a.ndim < 2 or a.shape[0] * a.shape[1] < 2:
        raise ValueError(
            "batch_means and batch_square_means must both be (chains, batches, locations...) with "
            f"2 batches or more, got shapes {a.shape} and {b.shape}"
        )
    if lengths is not None and np.shape(lengths) != a.shape[1:2]:
        raise ValueError(
            f"lengths must be one for each of the {a.shape[1]} batches, got shape "
            f"{np.shape(lengths)}"
        )
    m, mean_se = weighted_mean_and_se(a, lengths)
    var, var_se = weighted_mean_and_se(b - 2 * m * a + m**2, lengths)
    mean = real_array("shift", shift).astype(np.float64) + m
    return BatchMoments(mean, mean_se, np.maximum(var, 0.0), var_se)


def weighted_mean_and_se(
    batches: Float[np.ndarray, "K B *N"], lengths: Int[ArrayLike, " B"] | None = None
) -> tuple[Float[np.ndarray, "*N"], Float[np.ndarray, "*N"]]:
    """Mean over the draws of all batches, and its standard error from the spread of these."""
    count = batches.shape[0] * batches.shape[1]
    weight = np.ones(batches.shape[1]) if lengths is None else np.asarray(lengths, float)
    weight = (weight / weight.mean()).reshape(1, -1, *[1] * (batches.ndim - 2))
    mean = (weight * batches).mean((0, 1))
    var = (weight * (batches - mean) ** 2).sum((0, 1)) / (count - 1)
    return np.asarray(mean), np.asarray(np.sqrt(var / count))


def gate(
    values: Float[ArrayLike, "K S *Q"] | Diagnostics,
    *,
    energy: Float[ArrayLike, "K T"] | None,
    num_divergent: int,
    num_saturated: int,
    num_transitions: int,
    precision: tuple[float, float] | None = None,
    settings: GateSettings | None = None,
) -> Gate:
    """Hold a sampled posterior against every bound, and say in words which it breaks.

    Draws that are not finite, constant locations and stuck chains fail the gate; they do not raise.

    Parameters
    ----------
    values
        Draws at the locations, or what `diagnose` returned for them.
    energy
        Hamiltonian of each transition; None for a sampler that has none, and then there is no bound
        on E-BFMI.
    num_divergent, num_saturated, num_transitions
        Counts over all chains, after warm-up.
    precision
        `log_density_error` and `prediction_error`, infinite where they are undefined; None if they
        were not checked, and then neither has a bound.
    settings
        The bounds; None is the defaults of `GateSettings`.

    Raises
    ------
    ValueError
        For counts that cannot be, energies of other chains, or arrays that `diagnose` or `ebfmi`
        refuses.
    """
    bounds = GateSettings() if settings is None else settings
    check_kind("settings", bounds, GateSettings)
    check_count("num_transitions", num_transitions, 1)
    for name, count in (("num_divergent", num_divergent), ("num_saturated", num_saturated)):
        check_count(name, count, 0, num_transitions)
    diagnostics = values if isinstance(values, Diagnostics) else diagnose(values)
    bfmi = np.empty(0) if energy is None else ebfmi(energy)
    if energy is not None and len(bfmi) != len(diagnostics.frozen):
        raise ValueError(
            f"energy must have a row for each of the {len(diagnostics.frozen)} chains, got "
            f"{len(bfmi)}"
        )
    rate = num_divergent / num_transitions
    size = diagnostics.rhat.size
    zero_variance = diagnostics.var == 0
    frozen = (diagnostics.frozen & diagnostics.finite & ~zero_variance).reshape(-1, size)
    num_nonfinite, num_zero_variance = int((~diagnostics.finite).sum()), int(zero_variance.sum())
    num_frozen, no_bfmi = int(frozen.any(axis=0).sum()), int(np.isnan(bfmi).sum())
    undefined = (
        np.isnan(diagnostics.rhat) | np.isnan(diagnostics.ess_bulk) | np.isnan(diagnostics.ess_var)
    )
    num_undefined = int((undefined & diagnostics.finite & ~zero_variance).sum())
    stuck = ", ".join(map(str, np.flatnonzero(frozen.any(axis=1))))
    rhat, rhat_at = _extreme(np.argmax, diagnostics.rhat)
    bulk, bulk_at = _extreme(np.argmin, diagnostics.ess_bulk)
    square, square_at = _extreme(np.argmin, diagnostics.ess_var)
    fraction, chain = _extreme(np.argmin, bfmi)
    of_all = f"of {size} locations"
    ess_bound = f"it must be {bounds.ess_min:g} or more"
    bfmi_bound = f"it must be above {bounds.ebfmi_min:g}"
    density_error, prediction_error = (np.nan, np.nan) if precision is None else precision
    equal = ", ".join(f"{i} and {j}" for i, j in np.argwhere(np.triu(diagnostics.equal)))
    khat, khat_at = _extreme(np.argmax, diagnostics.khat)
    khat_most = khat_bound(num_transitions, bounds.khat_max)
    heavy = int((diagnostics.khat > khat_most).sum())
    # A comparison with NaN, for a number that no location has, is false: what left it undefined has
    # a line of its own.
    checks = (
        (num_nonfinite > 0, f"{num_nonfinite} {of_all} have a draw that is not finite; none may"),
        (
            num_zero_variance > 0,
            f"{num_zero_variance} {of_all} have zero variance and so no R-hat; none may",
        ),
        (
            num_frozen > 0,
            f"{num_frozen} {of_all} have a chain that stands still (chain index {stuck}); none may",
        ),
        (
            num_undefined > 0,
            f"{num_undefined} {of_all} have too few different values for an R-hat or ESS; none may",
        ),
        (
            bool(equal),
            f"chains have the same draws (chain indices {equal}); they must be independent, each "
            "with a random key of its own",
        ),
        (
            rhat >= bounds.rhat_max,
            f"R-hat is {rhat:.5g} at location {rhat_at}; it must be below {bounds.rhat_max:g}",
        ),
        (
            bulk < bounds.ess_min,
            f"the bulk ESS of p is {bulk:.5g} at location {bulk_at}; {ess_bound}",
        ),
        (
            square < bounds.ess_min,
            f"the bulk ESS of (p - mean)^2 is {square:.5g} at location {square_at}; {ess_bound}",
        ),
        (
            heavy > bounds.heavy_tails_max * size,
            f"{RARE_DRAWS} at {heavy} {of_all}, where neither it nor its "
            f"standard error can be trusted (Pareto k of (p - mean)^2 up to {khat:.3g}, at location "
            f"{khat_at}; at most {bounds.heavy_tails_max:.0%} may be above {khat_most:.3g}): draw "
            "more",
        ),
        (
            no_bfmi > 0,
            f"E-BFMI is undefined in {no_bfmi} of {len(bfmi)} chains, whose energies are "
            f"constant or not finite; {bfmi_bound}",
        ),
        (
            fraction <= bounds.ebfmi_min,
            f"E-BFMI is {fraction:.3g} in the chain with index {chain}; {bfmi_bound}",
        ),
        (
            num_divergent > 0 and rate >= bounds.divergence_rate_max,
            f"{num_divergent} of {num_transitions} transitions diverged ({rate:.3%}); the share "
            f"must be below {bounds.divergence_rate_max:.3%}",
        ),
        (
            num_saturated > bounds.saturated_max,
            f"{num_saturated} of {num_transitions} trajectories ended at the step limit; "
            f"{bounds.saturated_max} may",
        ),
        (
            density_error > bounds.log_density_error_max,
            "differences of the sampler's log posterior are wrong by up to "
            f"{density_error:.3g} nats; {bounds.log_density_error_max:g} may be: {TOO_COARSE}",
        ),
        (
            prediction_error > bounds.prediction_error_max,
            f"predictions are wrong by up to {prediction_error:.3g} posterior standard deviations; "
            f"{bounds.prediction_error_max:g} may be: {TOO_COARSE}",
        ),
    )
    reasons = tuple(sentence for broken, sentence in checks if broken)
    varying = diagnostics.var > 0
    return Gate(
        passed=not reasons,
        reasons=reasons,
        rhat_max=_finite(np.max, diagnostics.rhat),
        ess_bulk_min=_finite(np.min, diagnostics.ess_bulk),
        ess_var_min=_finite(np.min, diagnostics.ess_var),
        ess_tail_min=_finite(np.min, diagnostics.ess_tail),
        ebfmi_min=_finite(np.min, bfmi),
        divergences=int(num_divergent),
        divergence_rate=float(rate),
        num_saturated=int(num_saturated),
        num_zero_variance=num_zero_variance,
        num_frozen=num_frozen,
        num_nonfinite=num_nonfinite,
        var_mcse_median=_finite(np.median, diagnostics.var_se[varying] / diagnostics.var[varying]),
        num_locations=size,
        where_worst=rhat_at,
        log_density_error=_finite(np.max, np.array([density_error])),
        prediction_error=_finite(np.max, np.array([prediction_error])),
        khat_max=_finite(np.max, diagnostics.khat),
        num_heavy_tails=heavy,
        num_equal_chains=int(diagnostics.equal.any(axis=1).sum()),
    )


def add_modes(verdict: Gate, p_value: float, settings: GateSettings) -> Gate:
    """The verdict with the agreement with a tempered run, as `isounc.sampling.modes` has it."""
    verdict = verdict._replace(modes_p_value=p_value)
    if p_value >= settings.modes_p_min:
        return verdict
    reason = (
        f"the chains disagree with a tempered SMC run about the predictions (p = {p_value:.2g}; it "
        f"must be at least {settings.modes_p_min:g}): they may have missed a mode; use "
        "sampler='tempered_smc' or more chains"
    )
    return fail(verdict, reason)


def fail(verdict: Gate, reason: str) -> Gate:
    """The verdict with a reason to fail that no number of it shows."""
    return verdict._replace(passed=False, reasons=(*verdict.reasons, reason))


def _finite(reduce: Callable[..., Any], numbers: np.ndarray) -> float | None:
    """Reduce the finite numbers to a plain float; None if there are none."""
    kept = numbers[np.isfinite(numbers)]
    return float(reduce(kept)) if kept.size else None


def _extreme(arg: Callable[..., Any], numbers: np.ndarray) -> tuple[float, int | None]:
    """The extreme number that is not NaN and its flat index; (NaN, None) if there is none."""
    defined = np.flatnonzero(~np.isnan(numbers))
    if not defined.size:
        return np.nan, None
    index = int(defined[arg(numbers.flat[defined])])
    return float(numbers.flat[index]), index
