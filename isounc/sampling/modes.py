"""Whether the chains have seen every mode: they are compared with a short tempered SMC run.

R-hat compares chains with each other. Where all of them have missed the same mode, or hold the
wrong share of the draws in one by luck, they agree. Particles that come from the prior along the
tempered posteriors (`isounc.sampling.smc`) find their way differently: by resampling. So what both
say of the predictions is compared, along the directions in which these vary most over the draws,

    t_i = (mean of chains - mean of particles) / sqrt(se_chains^2 + se_particles^2),

for the scores along the first principal components of the predictions at the fixed locations, and
for their squares. The error of the chains comes from their effective sample size, that of the
particles from the means of independent runs, whose number gives the degrees of freedom (Welch). The
smallest p-value, times the number of comparisons (Bonferroni), is what the gate looks at: its bound
is the share of sound posteriors that fail.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from isounc.sampling.convergence import diagnose
from isounc.sampling.settings import SamplerSettings

NUM_RUNS = 8
"""Independent runs of particles, whose means give the error."""
NUM_PARTICLES = 250
"""Particles of each."""
SHARE, MOST = 0.95, 6
"""Principal components that are compared: so many that they have this share of the variance, and at
most this number."""


def smc_settings(settings: SamplerSettings, *, max_seconds: float) -> SamplerSettings:
    """The settings of the short run that chains are compared with."""
    coordinates = "prior" if settings.coordinates == "curvature" else settings.coordinates
    metric = "diagonal" if settings.metric == "low_rank" else settings.metric
    return dataclasses.replace(
        settings, sampler="tempered_smc", coordinates=coordinates, metric=metric,
        num_chains=NUM_RUNS, chains_per_device=0, num_draws=NUM_PARTICLES,
        max_draws=NUM_PARTICLES, block=NUM_PARTICLES, check_modes=False,
        max_seconds=max_seconds,
    )  # fmt: skip


def modes_p_value(
    chains: Float[np.ndarray, "K S Q"], particles: Float[np.ndarray, "R T Q"]
) -> float:
    """p-value of the agreement of both, corrected for the number of comparisons.

    1 where nothing varies; 0 where a draw is not finite.
    """
    both = [np.asarray(a, float).reshape(-1, a.shape[-1]) for a in (chains, particles)]
    if not all(np.isfinite(a).all() for a in both):
        return 0.0
    centre = sum(a.mean(0) for a in both) / 2
    sd = np.sqrt(sum(((a - centre) ** 2).mean(0) for a in both) / 2)
    varies = sd > 0
    if not varies.any():
        return 1.0
    both = [(a - centre)[:, varies] / sd[varies] for a in both]
    # Either counts half, whatever its number of draws.
    variances, directions = np.linalg.eigh(sum(a.T @ a / len(a) for a in both) / 2)
    shares = (variances[::-1] / variances.sum()).cumsum()
    count = min(MOST, int(np.searchsorted(shares, SHARE)) + 1)
    scores = [a @ directions[:, ::-1][:, :count] for a in both]
    scores = [np.concatenate([a, a**2], axis=1) for a in scores]
    drawn = scores[0].reshape(*chains.shape[:2], -1)
    means = scores[1].reshape(*particles.shape[:2], -1).mean(1)
    chains_var = diagnose(drawn).mean_se ** 2
    runs_var = means.var(0, ddof=1) / len(means)
    total = chains_var + runs_var
    t = np.abs(drawn.mean((0, 1)) - means.mean(0)) / np.sqrt(total)
    freedom = (len(means) - 1) * (total / runs_var) ** 2
    from scipy import stats  # half a second to import, which most runs do without

    p = float(np.nanmin(2 * stats.t.sf(t, freedom)))
    return min(1.0, p * t.size) if math.isfinite(p) else 1.0
