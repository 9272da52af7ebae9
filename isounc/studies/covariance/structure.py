"""Where the error of an estimate lies: regression on distances, subspaces, and agreement of seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.linalg import subspace_angles
from scipy.spatial.distance import cdist

from isounc.statistics import compare

LEAST_LOCATIONS = 10
"""Fewest locations of a regression."""
DRAWS_PER_PARAM = 5
"""Draws for each parameter below which an eigenspace of their covariance is that of the noise."""
GAP = 1e-6
"""Relative gap between eigenvalues below which a space of eigenvectors is not determined."""


class Regression(NamedTuple):
    """Least squares of log2(estimate / reference) on two distances."""

    slope_proxy: float | None
    """Change for a unit of distance to the nearest proxy input, the other distance held."""
    slope_train: float | None
    """The same of the nearest training input."""
    r2: float | None
    """Share of the variance that both explain."""
    reason: str
    """Why a number is None; empty if none is."""


def distance(X: Float[np.ndarray, "N D"], to: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " N"]:
    """Distance of each location to the nearest of some inputs."""
    return cdist(X, to).min(axis=1)


def log_ratio(
    estimate: Float[np.ndarray, " N"], reference: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """log2(estimate / reference); NaN where either is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log2(estimate) - np.log2(reference)
    return np.where(np.isfinite(found), found, np.nan)


def regress(
    ratio: Float[np.ndarray, " N"],
    to_proxy: Float[np.ndarray, " N"],
    to_train: Float[np.ndarray, " N"],
) -> Regression:
    """Regress log2(estimate / reference) on the distances to the proxy and to the training inputs.

        ratio = a + slope_proxy d_proxy + slope_train d_train + error

    Where both are the same distance, there is one slope, `slope_train`. Locations with a ratio that
    is not finite are left out.
    """
    known = np.isfinite(ratio)
    if known.sum() < LEAST_LOCATIONS:
        return Regression(None, None, None, f"fewer than {LEAST_LOCATIONS} locations")
    y, proxy, train = ratio[known], to_proxy[known], to_train[known]
    same = np.array_equal(to_proxy, to_train)
    columns = [np.ones_like(y), train, *([] if same else [proxy])]
    solution, _, rank, _ = np.linalg.lstsq(np.stack(columns, axis=1), y, rcond=1e-10)
    if rank < len(columns):
        return Regression(None, None, None, "distances are constant or determine each other")
    total = ((y - y.mean()) ** 2).sum()
    left = ((y - np.stack(columns, axis=1) @ solution) ** 2).sum()
    r2 = float(1 - left / total) if total > 0 else None
    slope = None if same else float(solution[2])
    reason = "the proxy inputs are the training inputs" if same else ""
    return Regression(slope, float(solution[1]), r2, reason)


class Subspaces(NamedTuple):
    """Eigenspaces of Sigma beside those of the posterior's covariance, in prior coordinates."""

    overlap_top: float | None
    """Mean squared cosine of the angles between the k directions of largest variance; k / P by
    chance."""
    angle_top: float | None
    """Largest of these angles, in degrees."""
    overlap_stiff: float | None
    """Mean squared cosine between the k directions of smallest variance."""
    angle_stiff: float | None
    """Largest of these angles, in degrees."""
    log2_stiff: float | None
    """Mean over the k directions of smallest variance of Sigma of log2 of the posterior's variance
    over that of Sigma."""
    reason: str
    """Why a number is None; empty if none is."""


def subspaces(
    basis: Float[np.ndarray, "P R"],
    strengths: Float[np.ndarray, " R"],
    draws: Float[np.ndarray, "S P"],
    num_chains: int,
    k: int,
) -> Subspaces:
    """Compare the eigenspaces of Sigma with those of the covariance of draws within their chains.

    Parameters
    ----------
    basis, strengths
        Eigenvectors of the GGN in prior coordinates and its eigenvalues, descending. Along them
        Sigma has the variance 1 / (1 + strength), elsewhere 1.
    draws
        Draws in prior coordinates, chain-major.
    num_chains
        Number of chains, equally long.
    k
        Dimension of the subspaces.
    """
    num_params, reasons = len(basis), []
    chains = draws.reshape(num_chains, -1, num_params)
    centred = (chains - chains.mean(axis=1, keepdims=True)).reshape(-1, num_params)
    centred = centred / np.sqrt(len(centred) - num_chains)
    variances = 1 / (1 + strengths)
    variances = np.append(variances, np.ones(num_params - basis.shape[1]))  # the prior's
    ratio = None
    stiff_is_known = len(variances) > k and variances[k] - variances[k - 1] > GAP * variances[k]
    if stiff_is_known:
        along = ((centred @ basis[:, :k]) ** 2).sum(axis=0)
        if (along > 0).all():  # not of chains that stand still
            ratio = float(np.mean(np.log2(along / variances[:k])))
    else:
        reasons.append(f"Sigma has no {k} directions of smallest variance")
    top = stiff = (None, None)
    if len(centred) < DRAWS_PER_PARAM * num_params:
        reasons.append(f"fewer than {DRAWS_PER_PARAM} draws for each parameter")
        return Subspaces(*top, *stiff, ratio, "; ".join(reasons))
    directions = np.linalg.svd(centred, full_matrices=False)[2].T
    if stiff_is_known:
        stiff = _overlap(basis[:, :k], directions[:, -k:])
    # What the GGN leaves has one variance, so that no k of its directions are the largest.
    whole = basis.shape[1] == num_params > k
    if whole and variances[-k] - variances[-k - 1] > GAP * variances[-k]:
        top = _overlap(basis[:, -k:], directions[:, :k])
    else:
        reasons.append(f"Sigma has no {k} directions of largest variance")
    return Subspaces(*top, *stiff, ratio, "; ".join(reasons))


def _overlap(
    a: Float[np.ndarray, "P k"], b: Float[np.ndarray, "P k"]
) -> tuple[float | None, float | None]:
    angles = subspace_angles(a, b)
    return float(np.mean(np.cos(angles) ** 2)), float(np.degrees(angles.max()))


def alignments(
    fields: Sequence[Shaped[np.ndarray, " N"] | None],
) -> list[float | None]:
    r"""Mean correlation between the fields of two seeds, as a pseudo-value of each seed.

        T = mean over pairs of r_ij,   T_i = T + 2 (S - 1) / (S - 2) (mean over j of r_ij - T)

    The r_ij of S seeds are not independent. The mean of their jackknife pseudo-values T_i is T, and
    the interval over the seeds of T_i is that of T. A single T_i may lie outside [-1, 1].

    Locations at which any field is not finite are left out. A seed without a field (None) is in no
    pair. With fewer than three seeds there is no pseudo-value.

    Source: Efron, Stein 1981, The jackknife estimate of variance.
    """
    known = {i: field for i, field in enumerate(fields) if field is not None}
    found: list[float | None] = [None] * len(fields)
    if (num := len(known)) < 3:
        return found
    finite = np.isfinite(np.stack([*known.values()])).all(axis=0)
    cut = [field[finite] for field in known.values()]
    pairs = np.full((num, num), np.nan)
    for i, j in itertools.combinations(range(num), 2):
        r = compare(cut[i], cut[j]).pearson
        if r is None:
            return found
        pairs[i, j] = pairs[j, i] = r
    of_seed = np.nanmean(pairs, axis=1)
    pseudo = of_seed.mean() + 2 * (num - 1) / (num - 2) * (of_seed - of_seed.mean())
    for i, value in zip(known, pseudo.tolist(), strict=True):
        found[i] = value
    return found
