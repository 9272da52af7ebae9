"""Uncertainties that are known to be higher for wrong answers."""

import numpy as np


def sample(n=200, seed=0, rate=0.4):
    """Uncertainties with ties and without, and which answers are wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < rate
    fine = rng.normal(size=n) + wrong
    return rng, wrong, fine, np.round(fine)
