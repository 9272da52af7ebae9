"""Proxies by their definition; distances, regressions, subspaces and alignments on planted data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from isounc.problems import make_problem
from isounc.studies.covariance.proxies import PROXIES, is_made_for, proxy_inputs
from isounc.studies.covariance.settings import Cell, Settings, cell_data
from isounc.studies.covariance.structure import (
    alignments,
    distance,
    log_ratio,
    regress,
    subspaces,
)


def inputs_of(name, problem="moons", n=80):
    data = cell_data(Cell(problem, 4, 3), Settings(n=n))
    return proxy_inputs(name, data.problem, data.fresh, np.random.default_rng(0)), data


def test_proxies_are_what_the_protocol_says():
    X = inputs_of("train")[1].problem.X
    mean, sd = X.mean(axis=0), X.std(axis=0)
    for name, proxy in PROXIES.items():
        for problem in ("moons", "nonlinear_regression", "wine"):
            found, data = inputs_of(name, problem)
            assert found.shape == data.problem.X.shape, name
            assert is_made_for(name, problem) == (not proxy.real_alone or problem == "wine")
    for by in (1, 2, 4):
        move = inputs_of(f"shifted_{by}")[0] - X
        np.testing.assert_allclose(move, np.tile([by * sd[0], 0.0], (80, 1)), atol=1e-12)
    np.testing.assert_allclose(inputs_of("scaled")[0] - mean, 2 * (X - mean), atol=1e-12)
    turned = inputs_of("rotated")[0] - mean
    complex_x, complex_turned = ((a[:, 0] + 1j * a[:, 1]) for a in (X - mean, turned))
    np.testing.assert_allclose(complex_turned, complex_x * np.exp(1j * np.pi / 4), atol=1e-12)
    line, of_line = inputs_of("rotated", "nonlinear_regression")
    centre = of_line.problem.X.mean(axis=0)
    np.testing.assert_allclose(line - centre, centre - of_line.problem.X, atol=1e-12)
    tight = inputs_of("tight")[0]
    assert (np.abs(tight - mean) < 0.5 * sd).all() and (tight.std(axis=0) > 0.05 * sd).all()
    box = inputs_of("box")[0]
    reach = 0.75 * np.ptp(X, axis=0)
    middle = (X.max(axis=0) + X.min(axis=0)) / 2
    assert (np.abs(box - middle) <= reach).all() and (
        np.abs(box - middle).max(0) > 0.9 * reach
    ).all()
    permuted, wine = inputs_of("permuted", "wine")
    np.testing.assert_array_equal(np.sort(permuted, 0), np.sort(wine.problem.X, 0))
    assert not np.allclose(np.corrcoef(permuted.T), np.corrcoef(wine.problem.X.T), atol=0.01)


def test_fresh_inputs_are_in_no_region_and_not_in_training():
    fresh, data = inputs_of("fresh")
    whole = make_problem("moons", n=80, seed=3, num_test=200)
    np.testing.assert_array_equal(data.problem.regions["test"], whole.regions["test"][:100])
    assert len(data.problem.targets["test"]) == len(data.problem.p_true["test"]) == 100
    for places in (*data.problem.regions.values(), data.problem.X):
        assert distance(fresh, places).min() > 0
    many, large = inputs_of("fresh", n=250)
    assert len(np.unique(many, axis=0)) == 250 and len(large.problem.regions["test"]) == 100
    few, wine = inputs_of("fresh", "wine", n=100)  # 78 rows are left, of which 39 are fresh
    assert len(wine.fresh) == 39 and len(np.unique(few, axis=0)) == 39


def test_unknown_proxies_and_too_many_inputs_are_refused():
    with pytest.raises(ValueError, match=r"proxy must be one of .*did you mean 'fresh'"):
        inputs_of("frseh")
    problem = make_problem("breast_cancer", n=20)
    X = np.random.default_rng(0).standard_normal((20, 11))
    wide = type(problem).from_arrays(X, problem.y, regions={"test": X}, name="wide")
    with pytest.raises(ValueError, match="proxies must leave out other for 'wide', whose 11"):
        proxy_inputs("other", wide, X, np.random.default_rng(0))


def test_distances_are_to_the_nearest():
    X, to = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [0.0, -5.0]])
    np.testing.assert_allclose(distance(X, to), [1.0, np.sqrt(18)])
    assert distance(X, X).tolist() == [0, 0]


def test_regressions_find_planted_slopes_and_agree_with_lstsq():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 5, (2, 60))
    noise = rng.standard_normal(60)
    reference = rng.uniform(1e-300, 1e300, 60)
    for scale in (0.0, 1.0):
        y = 2 + 0.7 * a - 1.3 * b + scale * noise
        found = regress(y, a, b)
        design = np.stack([np.ones(60), a, b], axis=1)
        direct, left, *_ = np.linalg.lstsq(design, y)
        assert (found.slope_proxy, found.slope_train) == pytest.approx(tuple(direct[1:]), rel=1e-9)
        r2 = 1 - (left[0] / ((y - y.mean()) ** 2).sum() if scale else 0)
        assert found.r2 == pytest.approx(r2, rel=1e-9)
    assert found.slope_proxy == pytest.approx(0.7, abs=0.3)
    ratio = log_ratio(reference * 4, reference)
    np.testing.assert_allclose(ratio[np.isfinite(ratio)], 2, rtol=1e-12)
    y[::7] = np.nan
    some = np.isfinite(y)
    found = regress(y, a, b)
    direct = np.linalg.lstsq(design[some], y[some])[0]
    assert found.slope_proxy == pytest.approx(direct[1], rel=1e-9)
    same = regress(y, a, a)
    assert same.slope_proxy is None and same.slope_train is not None and "training" in same.reason
    assert regress(y, a, np.ones(60)).reason.startswith("distances are constant")
    assert regress(y, a, 2 * a + 1).r2 is None
    assert regress(np.full(60, np.nan), a, b).reason.startswith("fewer than 10")
    assert regress(np.ones(60), a, b).r2 is None
    assert np.isnan(log_ratio(np.array([0.0, -1, 1, np.inf]), np.array([1.0, 1, 0, 1]))).all()


def test_subspaces_of_planted_covariances():
    rng = np.random.default_rng(1)
    P, k, chains, per_chain = 6, 2, 3, 400
    basis = np.linalg.qr(rng.standard_normal((P, P)))[0]
    strengths = np.array([1e4, 1e3, 30.0, 10.0, 1.0, 0.5])
    half = basis / np.sqrt(1 + strengths)
    draws = rng.standard_normal((chains, per_chain, P)) @ half.T
    draws += 50 * rng.standard_normal((chains, 1, P))  # chains in different places
    draws = draws.reshape(-1, P)
    right = subspaces(basis, strengths, draws, chains, k)
    assert right.reason == "" and None not in right[:5]
    top, _, stiff, angle, ratio = (value or 0.0 for value in right[:5])
    assert stiff > 0.99 and top > 0.9 and abs(ratio) < 0.2 and angle < 6
    # The other way round: the stiffest directions of Sigma are the widest of the posterior.
    turned = subspaces(basis[:, ::-1], strengths, draws, chains, k)
    _, _, stiff, angle, ratio = (np.nan if value is None else value for value in turned[:5])
    assert stiff < 0.05 and ratio > 8 and angle > 80
    # Angles are those of scipy between spaces that are known otherwise.
    centred = draws.reshape(chains, -1, P)
    centred = (centred - centred.mean(1, keepdims=True)).reshape(-1, P)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    assert (np.diff(values) > 0).all()
    mixed = np.linalg.qr(rng.standard_normal((P, P)))[0]
    found = subspaces(mixed, strengths, draws, chains, k)
    for overlap, angle, a, b in (
        (found.overlap_stiff, found.angle_stiff, mixed[:, :k], vectors[:, :k]),
        (found.overlap_top, found.angle_top, mixed[:, -k:], vectors[:, -k:]),
    ):
        angles = subspace_angles(a, b)
        assert angle == pytest.approx(np.degrees(angles.max()), rel=1e-6)
        assert overlap == pytest.approx((np.cos(angles) ** 2).mean(), rel=1e-9)
        assert overlap == pytest.approx(((a.T @ b) ** 2).sum() / k, rel=1e-9)


def test_subspaces_that_are_not_determined_are_said_to_be():
    rng = np.random.default_rng(2)
    draws = rng.standard_normal((100, 8))
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    few = subspaces(basis[:, :3], np.array([9.0, 4.0, 1.0]), draws, 2, 2)
    assert few.overlap_stiff is not None and few.overlap_top is None
    assert few.reason == "Sigma has no 2 directions of largest variance"
    equal = subspaces(basis, np.full(8, 3.0), draws, 2, 2)
    assert equal[:5] == (None,) * 5 and "smallest variance" in equal.reason
    none = subspaces(basis[:, :1], np.array([9.0]), draws, 2, 2)  # one proxy input
    assert none.overlap_stiff is None and none.log2_stiff is None
    short = subspaces(basis, np.arange(8.0, 0, -1), draws[:20], 2, 2)
    assert short.overlap_stiff is None and short.log2_stiff is not None
    assert "fewer than 5 draws" in short.reason
    still = subspaces(basis, np.arange(8.0, 0, -1), np.ones((20, 8)), 2, 2)
    assert still.log2_stiff is None


def test_alignments_are_a_jackknife_over_seeds():
    rng = np.random.default_rng(3)
    common = rng.standard_normal(200)
    fields = [common + 0.5 * rng.standard_normal(200) for _ in range(5)]
    fields[1][:3] = np.nan
    found = alignments(fields)
    cut = [field[3:] for field in fields]

    def mean_pair(among):
        pairs = itertools.combinations(among, 2)
        return np.mean([np.corrcoef(cut[i], cut[j])[0, 1] for i, j in pairs])

    whole = mean_pair(range(5))
    for i, value in enumerate(found):
        without = mean_pair([j for j in range(5) if j != i])
        assert value == pytest.approx(5 * whole - 4 * without, rel=1e-9)
    assert np.mean(found) == pytest.approx(whole, rel=1e-12) and 0.7 < whole < 0.9
    failed = alignments([fields[0], None, *fields[2:]])
    assert failed[1] is None and None not in failed[2:]
    assert alignments(fields[:2]) == [None, None]
    assert alignments([*fields, np.ones(200)]) == [None] * 6
