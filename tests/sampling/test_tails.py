"""Pareto k of a tail is ArviZ's number."""

from __future__ import annotations

import importlib

import arviz
import numpy as np
import pytest

from isounc.sampling.tails import khat_bound, pareto_khat


def arviz_khat(x):
    if arviz.__version__.startswith("0."):
        return arviz.psislw(np.log(x))[1]
    # ArviZ 1 takes the negative of what ArviZ 0 takes.
    return importlib.import_module("arviz_stats.base").array_stats.psislw(-np.log(x))[1]


@pytest.mark.parametrize("n", [100, 1000, 4000, 20_000])
def test_k_is_that_of_arviz(n):
    rng = np.random.default_rng(n)
    normal = rng.standard_normal((3, n))
    x = np.stack(
        [
            normal[0] ** 2,
            1e-30 * normal[1] ** 2,
            np.exp(3 * normal[2]),
            rng.random(n),
            *(rng.pareto(alpha, n) for alpha in (0.5, 1.0, 2.0)),
        ]
    )
    # From ArviZ 1 on the tail has a draw less.
    atol = 1e-10 if arviz.__version__.startswith("0.") else 0.03
    np.testing.assert_allclose(pareto_khat(x), arviz_khat(x), atol=atol)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_k_is_the_index_of_the_tail(alpha):
    x = np.random.default_rng(0).pareto(alpha, (20, 50_000))
    assert np.median(pareto_khat(x)) == pytest.approx(1 / alpha, abs=0.1)


def test_ties_at_the_cutoff_are_not_in_the_tail():
    x = np.round(np.random.default_rng(1).exponential(size=(1, 2000)) * 3) + 0.1
    if arviz.__version__.startswith("0."):
        np.testing.assert_allclose(pareto_khat(x), arviz_khat(x), atol=1e-10)
    two = np.zeros((1, 1000))
    two[0, :3] = 1.0
    assert pareto_khat(two) == np.inf


def test_the_bound_is_that_of_the_source():
    assert [khat_bound(n, 0.7) for n in (100, 1000, 10_000)] == pytest.approx([0.5, 2 / 3, 0.7])
    assert khat_bound(10**6, 0.5) == 0.5
