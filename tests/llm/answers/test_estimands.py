"""Log-odds of an answer from those of its tokens, against arithmetic with 400 digits."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.llm.answers.estimands import (
    log_odds_of_logits,
    log_odds_of_mean,
    log_odds_of_product,
    logit_of_log,
)

LOG_ODDS = [
    [0.3],
    [-2.0, 1.5, 0.0],
    [14.9, 15.1],
    [16.0, 17.0, 3.0],
    [20.0, 21.0, 30.0],
    [100.0, 90.0],
    [-100.0, 90.0],
    [-90.0, -100.0, -120.0],
    [-0.1, 200.0, -15.0],
]


def probability(d):
    """Sigmoid, and its complement, exactly."""
    e = Decimal(float(np.float32(d))).exp()
    return e / (1 + e), 1 / (1 + e)


def logit(p, q):
    return float(p.ln() - q.ln())


def parts(d, masked=(7.0, -7.0)):
    """The tokens of an answer, among others that do not belong to it."""
    array = jnp.array([masked[0], *d, masked[1]], jnp.float32)
    return array, jnp.array([False] + [True] * len(d) + [False])


@pytest.mark.parametrize("d", LOG_ODDS, ids=str)
def test_product_and_mean(d):
    with decimal.localcontext(prec=400):
        each = [probability(x) for x in d]
        p = math.prod((right for right, _ in each), start=Decimal(1))
        product = logit(p, 1 - p)
        mean = logit(sum(right for right, _ in each), sum(wrong for _, wrong in each))
    assert float(log_odds_of_product(*parts(d))) == pytest.approx(product, rel=2e-6, abs=2e-6)
    assert float(log_odds_of_mean(*parts(d))) == pytest.approx(mean, rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("d", LOG_ODDS, ids=str)
def test_gradients_of_product_and_mean(d):
    with decimal.localcontext(prec=400):
        each = [probability(x) for x in d]
        p = math.prod((right for right, _ in each), start=Decimal(1))
        # d log p / d d_t = 1 - p_t, and grad logit p = grad log p / (1 - p).
        product = [float(wrong / (1 - p)) for _, wrong in each]
        slopes = [right * wrong for right, wrong in each]
        right, wrong = (sum(side) for side in zip(*each, strict=True))
        mean = [float(slope * (1 / right + 1 / wrong)) for slope in slopes]
    for function, expected in ((log_odds_of_product, product), (log_odds_of_mean, mean)):
        array, included = parts(d)
        found = jax.grad(function)(array, included)
        np.testing.assert_allclose(found, [0, *expected, 0], rtol=1e-4, atol=1e-30)


def test_logit_of_a_log_probability():
    for log_p in (-1e-300, -1e-17, -1e-3, -0.5, -30.0, -800.0):
        with decimal.localcontext(prec=400):
            p = Decimal(log_p).exp()
            expected = logit(p, 1 - p)
        assert logit_of_log(log_p) == pytest.approx(expected, rel=1e-14)
    # Certain, but for rounding.
    assert logit_of_log(0.0) == logit_of_log(1e-9) == math.inf


def test_entropies_of_nearly_certain_tokens_keep_their_digits():
    """Between two tokens, H = (1 - p) (1 + d) for log-odds d far above 0; (1 - p) is exp(-d)."""
    logits = jnp.array([[40.0, 0.0], [0.0, 20.0]])
    _, entropies = log_odds_of_logits(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(entropies, [41 * np.exp(-40), 21 * np.exp(-20)], rtol=1e-5)
