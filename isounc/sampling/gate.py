"""The gate: whether draws can be trusted, by R-hat, effective sample sizes and energies.

Everything is judged in function space: a draw is a value of the predictive quantity at a location,
never a weight, for weight space has symmetries that make a sound sampler look bad. R-hat and
effective sample sizes are computed in `isounc.sampling.convergence`.

Axes: K chains, S draws per chain, Q locations (of any shape).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from isounc.checks import check_count, check_kind, real_array
from isounc.sampling.convergence import Diagnostics, diagnose
from isounc.sampling.settings import GateSettings
from isounc.sampling.tails import khat_bound

TOO_COARSE = "single precision is not enough here: standardise the inputs or use float64"
"""What to do where the sampler's numbers differ from those in float64."""
RARE_DRAWS = "rare draws decide about the variance"
"""How a gate says that the tail of (p - mean)^2 is heavy."""


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
    of_regions: Mapping[str, str] | None = None
    """By region, the one of `reasons` that holds in this region alone, where there is one; None if
    the gate was not told of regions."""
    num_equal_chains: int | None = None
    """Chains that have their draws in common with another."""
    modes_p_value: float | None = None
    """p-value of the agreement with a tempered run (`isounc.sampling.modes`); None if there was
    none."""

    def reasons_in(self, region: str) -> tuple[str, ...]:
        """The reasons to distrust the moments in a region: all but those of other regions alone."""
        elsewhere = {why for name, why in (self.of_regions or {}).items() if name != region}
        return tuple(reason for reason in self.reasons if reason not in elsewhere)

    @property
    def converged(self) -> bool:
        """Whether every bound is kept that is not that of a region alone."""
        of_regions = set((self.of_regions or {}).values())
        return self.passed or (bool(self.reasons) and of_regions.issuperset(self.reasons))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Gate:
        """The gate whose `_asdict()` was stored, maybe by a version with other checks."""
        known: dict[str, Any] = {name: stored.get(name) for name in cls._fields}
        regions = known["of_regions"]
        return cls(**known)._replace(
            passed=known["passed"] is True,
            reasons=tuple(known["reasons"] or ()),
            of_regions=None if regions is None else dict(regions),
        )


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


def gate(
    values: Float[ArrayLike, "K S *Q"] | Diagnostics,
    *,
    energy: Float[ArrayLike, "K T"] | None,
    num_divergent: int,
    num_saturated: int,
    num_transitions: int,
    precision: tuple[float, float] | None = None,
    regions: Mapping[str, int] | None = None,
    settings: GateSettings | None = None,
) -> Gate:
    """Hold a sampled posterior against every bound, and say in words which it breaks.

    Draws that are not finite, constant locations and stuck chains fail the gate; they do not raise.
    Chains that have not converged at one location are trusted at none. That rare draws decide about
    variances is a matter of the place: it is judged region by region (`Gate.reasons_in`).

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
    regions
        How many of the locations, in their flat order, belong to each region; None: they are one.
    settings
        The bounds; None is the defaults of `GateSettings`.

    Raises
    ------
    ValueError
        For counts that cannot be, regions of another number of locations, energies of other chains,
        or arrays that `diagnose` or `ebfmi` refuses.
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
    khat_most = khat_bound(num_transitions, bounds.khat_max)
    heavy = _heavy_tails(diagnostics.khat, regions, khat_most, bounds.heavy_tails_max)
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
        *((True, reason) for reason in heavy.values()),
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
        num_heavy_tails=int((diagnostics.khat > khat_most).sum()),
        of_regions=None if regions is None else heavy,
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


def _heavy_tails(
    khat: Float[np.ndarray, "*Q"], regions: Mapping[str, int] | None, most: float, share: float
) -> dict[str, str]:
    """Why a region's variances are not to be trusted, for each where rare draws decide too often.

    Without regions all locations are one, whose name is empty.
    """
    sizes = {"": khat.size} if regions is None else regions
    if sum(sizes.values()) != khat.size:
        raise ValueError(
            f"regions must have {khat.size} locations in all, as values has, got {dict(sizes)}"
        )
    found: dict[str, str] = {}
    start = 0
    for name, size in sizes.items():
        k = khat.reshape(-1)[start : start + size]
        heavy = int((k > most).sum())
        if heavy > share * size:
            worst, at = _extreme(np.argmax, k)
            where = f" of region {name}" if name else ""
            found[name] = (
                f"{RARE_DRAWS} at {heavy} of {size} locations{where}, where neither it nor its "
                f"standard error can be trusted (Pareto k of (p - mean)^2 up to {worst:.3g}, at "
                f"location {start + (at or 0)}; at most {share:.0%} may be above {most:.3g}): draw more"
            )
        start += size
    return found


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
