"""z-scores between two posteriors: a reference made again, or the draws of any sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_choice, check_count, real_array
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.sampling.convergence import Diagnostics, diagnose
from isounc.sampling.moments import Moments
from isounc.sampling.settings import GateSettings
from isounc.sampling.tails import khat_bound

RMS_MAX = 3.0
"""Root mean square z of a region that still agrees."""
Z_MAX = 6.0
"""Largest |z| of a region that still agrees."""
SINGLE = 2.0**-23
"""Relative spacing of float32, in which predictions are worked out."""


class RegionAgreement(NamedTuple):
    """z-scores of one region, other minus reference; NaN where neither side has an error."""

    mean_z: Float[np.ndarray, "N M"]
    """z-scores of the predictive means."""
    var_z: Float[np.ndarray, "N M"]
    """z-scores of the predictive variances."""
    var_ratio: float
    """Sum of the other's variances over the sum of the reference's."""
    rare: Bool[np.ndarray, "N M"]
    """Where rare draws decide about the variance of draws that were given, so that neither it nor
    its error can be trusted (Pareto k of (p - mean)^2 above 0.7, or less with few draws; or draws
    that are all equal). Its z-score there says nothing and is not judged. False for moments."""

    def summary(self) -> dict[str, float]:
        """Root mean square and largest absolute value of both, over the z-scores that are judged."""
        numbers: dict[str, float] = {}
        for name, z in (("mean", self.mean_z), ("var", self.var_z[~self.rare])):
            z = np.abs(z[np.isfinite(z)])
            numbers[f"{name}_z_rms"] = math.sqrt((z**2).mean()) if z.size else math.nan
            numbers[f"{name}_z_max"] = float(z.max()) if z.size else math.nan
        return numbers | {"var_ratio": self.var_ratio}


class Agreement(NamedTuple):
    """Whether a posterior agrees with a reference; prints as a table."""

    regions: dict[str, RegionAgreement]
    """By region."""
    reasons: tuple[str, ...]
    """A sentence for each bound that is not kept."""

    @property
    def agrees(self) -> bool:
        """Whether every region keeps every bound."""
        return not self.reasons

    def __str__(self) -> str:
        lines = [
            f"{'region':<12}{'rms z mean':>11}{'max':>7}{'rms z var':>11}{'max':>7}"
            f"{'sum var ratio':>15}"
        ]
        for name, region in self.regions.items():
            s = region.summary()
            lines.append(
                f"{name:<12}{s['mean_z_rms']:>11.2f}{s['mean_z_max']:>7.2f}"
                f"{s['var_z_rms']:>11.2f}{s['var_z_max']:>7.2f}{s['var_ratio']:>15.4f}"
            )
        lines += [
            f"{name}: rare draws decide about the variance at {region.rare.sum()} of "
            f"{region.rare.size} locations, which are left out"
            for name, region in self.regions.items()
            if region.rare.any()
        ]
        return "\n".join([*lines, *(self.reasons or ("agrees",))])


@runtime_checkable
class HasRegions(Protocol):
    """Anything with predictive moments, such as a `Reference` or a `Posterior`."""

    @property
    def regions(self) -> Mapping[str, Moments]:
        """Predictive moments by region."""
        ...


def compare(reference: HasRegions, other: HasRegions | Mapping[str, Any]) -> Agreement:
    """Compare a posterior with a reference, by z-scores of predictive means and variances.

        z = (other - reference) / sqrt(se_other^2 + se_reference^2 + rounding^2)

    at every location, with rounding = 2^-23 |mean| for a mean and 2^-23 (var + 2^-23) for a
    variance, because predictions are worked out in float32. Locations share their draws, so that
    their z-scores are all but equal: a root mean square above 2 comes by chance in up to one region
    of twenty. A region agrees if it is at most 3 and no |z| is above 6. Where rare draws decide about
    the variance of given draws (`RegionAgreement.rare`), as far from the data, where p is all but
    certain, their variance is not judged.

    Parameters
    ----------
    reference
        A `Reference`, or anything with `regions`.
    other
        The same; or a mapping from region to `Moments`; or a mapping from region to draws of the
        predictive quantity at all of the region's locations, (K chains, S draws, N, M), whose
        errors come from their effective sample sizes. Regions that it does not have are not
        compared.

    Raises
    ------
    ValueError
        For a region that the reference does not have, none at all, arrays of other shapes, fewer
        than two chains or four draws, or draws of a `Reference` that are no probabilities where p
        is predicted (logits, most often).
    """
    if not isinstance(getattr(reference, "regions", None), Mapping):
        raise TypeError(f"reference must have regions, got {type(reference).__name__}")
    given = getattr(other, "regions", other)
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            "other must have regions, or map at least one to Moments or draws, got "
            f"{type(other).__name__}"
        )
    regions: dict[str, RegionAgreement] = {}
    reasons: list[str] = []
    for name, theirs in given.items():
        check_choice("a region of other", name, reference.regions)
        ours = reference.regions[name]
        theirs, rare = _moments(name, theirs, ours.mean.shape, getattr(reference, "model", None))
        regions[name] = region = RegionAgreement(
            _z(ours.mean, ours.mean_se, theirs.mean, theirs.mean_se, square=False),
            _z(ours.var, ours.var_se, theirs.var, theirs.var_se, square=True),
            float(np.sum(theirs.var, dtype=float) / np.sum(ours.var, dtype=float)),
            rare,
        )
        if rare.all():
            reasons.append(f"{name}: rare draws decide about the variance at every location")
        for what, z in (("mean", region.mean_z), ("variance", region.var_z[~rare])):
            undefined = int((~np.isfinite(z)).sum())
            if undefined:
                reasons.append(
                    f"{name}: {undefined} of {z.size} z-scores of the {what} are undefined"
                )
        for key, number in region.summary().items():
            bound = {"rms": RMS_MAX, "max": Z_MAX}.get(key.rpartition("_")[2])
            if bound is not None and number > bound:
                reasons.append(f"{name}: {key} is {number:.3g}; it must be at most {bound:g}")
    return Agreement(regions, tuple(reasons))


def _moments(
    name: str, given: Any, shape: tuple[int, ...], model: Model | None
) -> tuple[Moments | Diagnostics, Bool[np.ndarray, "N M"]]:
    """Moments of what was given for a region, and `RegionAgreement.rare`; `diagnose` sums up draws."""
    rare = np.zeros(shape, bool)
    if not isinstance(given, Moments):
        draws = real_array(f"other[{name!r}]", given)
        if draws.ndim != 4:
            raise ValueError(
                f"other[{name!r}] must be Moments or draws (chains, draws, {shape[0]}, "
                f"{shape[1]}), got shape {draws.shape}"
            )
        check_count(f"the number of chains of other[{name!r}]", draws.shape[0], 2)
        check_count(f"the number of draws of other[{name!r}]", draws.shape[1], 4)
        if model is not None and draws.shape[2:] == shape:
            likelihood = LIKELIHOODS[model.likelihood]
            for chain in draws:
                likelihood.check_prediction(f"other[{name!r}]", chain.reshape(-1, shape[1]))
        given = diagnose(draws)
        num_draws = draws.shape[0] * draws.shape[1]
        # A probability that float32 rounds to 1 in every draw has no spread and no error.
        still = given.finite & (given.var == 0)
        rare = still | (given.khat > khat_bound(num_draws, GateSettings().khat_max))
        given = given._replace(mean_se=np.where(still, 0, given.mean_se))
        if given.equal.any():
            pairs = ", ".join(f"{i} and {j}" for i, j in np.argwhere(np.triu(given.equal)))
            raise ValueError(
                f"other[{name!r}] must hold independent chains, got chains with the same draws "
                f"(indices {pairs})"
            )
    if given.mean.shape != shape:
        raise ValueError(
            f"other[{name!r}] must hold {shape[0]} locations and {shape[1]} columns, as the "
            f"reference does, got {given.mean.shape}"
        )
    return given, rare


def _z(
    a: Float[np.ndarray, "N M"],
    a_se: Float[np.ndarray, "N M"],
    b: Float[np.ndarray, "N M"],
    b_se: Float[np.ndarray, "N M"],
    *,
    square: bool,
) -> Float[np.ndarray, "N M"]:
    a, a_se, b, b_se = (np.asarray(v, float) for v in (a, a_se, b, b_se))
    rounding = SINGLE * (np.abs(a) + SINGLE if square else np.abs(a))
    with np.errstate(divide="ignore", invalid="ignore"):  # neither side has an error: undefined
        return (b - a) / np.sqrt(a_se**2 + b_se**2 + rounding**2)
