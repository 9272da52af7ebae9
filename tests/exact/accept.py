"""Score of posterior draws against an exact reference, in NumPy alone.

The draws pass if the predictive mean and variance agree with the reference within Monte Carlo error
(root mean square z below 2, every |z| below 4.5) and R-hat is below 1.02. The Monte Carlo error of
the variance uses the exact fourth central moment, so that it does not shrink when the draws are
wrong. Relative tolerances would not do: in far corners the kurtosis of p is above 20.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NUM_BATCHES = 10


def score(reference: Mapping[str, np.ndarray], p: np.ndarray) -> dict[str, float | bool]:
    """Compare p (chains, draws, points[, classes]), drawn at `reference["Xq"]`, with the moments."""
    p = np.asarray(p, float)
    num_chains, num_draws = p.shape[0], p.shape[1] // NUM_BATCHES * NUM_BATCHES
    p = p[:, :num_draws].reshape(num_chains, num_draws, -1)
    total, batch_length = num_chains * num_draws, num_draws // NUM_BATCHES
    mean_ref, var_ref, m4_ref = (np.ravel(reference[k]) for k in ("p_mean", "p_var", "p_m4"))
    # Published references are sampled, and have errors of their own.
    mean_se, var_se = (np.ravel(reference.get(k, 0.0)) for k in ("p_mean_se", "p_var_se"))

    def autocorrelation_time(values):
        batches = values.reshape(num_chains * NUM_BATCHES, batch_length, -1).mean(1)
        pooled = values.reshape(total, -1).var(0)
        return max(1.0, float(np.median(batches.var(0, ddof=1) * batch_length / pooled)))

    mean = p.mean((0, 1))
    sq_deviation = (p - mean) ** 2
    var = sq_deviation.mean((0, 1))
    tau_mean, tau_var = autocorrelation_time(p), autocorrelation_time(sq_deviation)
    z_mean = (mean - mean_ref) / np.sqrt(tau_mean * var_ref / total + mean_se**2)
    var_mcse = np.sqrt(tau_var * np.maximum(m4_ref - var_ref**2, 0) / total + var_se**2)
    z_var = (var - var_ref) / var_mcse
    within = p.var(1, ddof=1).mean(0)
    between = p.mean(1).var(0, ddof=1)
    result = {
        "z_mean_rms": float(np.sqrt((z_mean**2).mean())),
        "z_mean_max": float(np.abs(z_mean).max()),
        "z_var_rms": float(np.sqrt((z_var**2).mean())),
        "z_var_max": float(np.abs(z_var).max()),
        "rhat": float(np.sqrt((num_draws - 1) / num_draws + between / within).max()),
    }
    limits = {
        "z_mean_rms": 2.0,
        "z_mean_max": 4.5,
        "z_var_rms": 2.0,
        "z_var_max": 4.5,
        "rhat": 1.02,
    }
    return result | {"passed": all(result[name] < limit for name, limit in limits.items())}
