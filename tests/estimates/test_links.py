"""Link moments against closed forms, adaptive and dense quadrature, and plain Monte Carlo."""

from __future__ import annotations

import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import integrate, special

from isounc.estimates import links
from isounc.estimates.links import sigmoid_normal_moments, softmax_normal_moments

sigmoid_moments = jax.jit(sigmoid_normal_moments)
softmax_moments = jax.jit(softmax_normal_moments, static_argnames="num_nodes")

MEANS = (0, 0.1, 1, 3, 8, 15, 20, 50, 80, 120, 300, 1000, 3000, 1e4)
SDS = (1e-6, 1e-3, 0.1, 0.5, 1, 2, 5, 8, 13, 20, 50, 300, 1e3, 1e4)


def adaptive_moments(mean: float, sd: float) -> tuple[float, float, float]:
    """E[p], Var[p], E[p (1 - p)] for mean <= 0 by adaptive quadrature between the right break points."""
    zero, peaks = -mean / sd, (0.0, min(sd, 60.0), min(2 * sd, 60.0))
    near = [zero + f / sd for f in (-40, -20, -10, -5, -2, 0, 2, 5, 10, 20, 40)]
    breaks = sorted(
        {-12.0, 66.0, *(min(max(z, -12.0), 66.0) for z in near)}
        | {
            min(max(peak + z, -12.0), 66.0)
            for peak in (*peaks, min(zero, 60.0))
            for z in (-5, 0, 5)
        }
    )
    p0, q0 = special.expit(mean), special.expit(-mean)

    def density(z):
        return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    def deviation(z):
        f = mean + sd * z
        return math.tanh(0.5 * sd * z) * (special.expit(f) * q0 + special.expit(-f) * p0)

    def integral(g):
        pieces = itertools.pairwise(breaks)
        return sum(integrate.quad(g, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in pieces)

    shift = integral(lambda z: density(z) * deviation(z))
    var = integral(lambda z: density(z) * (deviation(z) - shift) ** 2)
    label = integral(
        lambda z: density(z) * special.expit(mean + sd * z) * special.expit(-mean - sd * z)
    )
    return p0 + shift, var, label


def dense_moments(mean, cov, extent=16.0):
    """The three moments of each of three classes, by the trapezoidal rule in two dimensions.

    The error of the rule depends on the step times the largest standard deviation of a difference of
    logits, the distance of the softmax's poles: as for 0.025 at a standard deviation of 30, and at
    most 0.1, which is exact to rounding for the Gaussian alone.
    """
    d = np.diag(cov)
    largest_sd = np.sqrt((d[:, None] + d - 2 * cov).max())
    step = min(0.1, 0.75 / largest_sd)
    centre = np.eye(3) - 1 / 3
    values, vectors = np.linalg.eigh(centre @ cov @ centre)
    half = vectors[:, 1:] * np.sqrt(np.maximum(values[1:], 0))
    z = np.arange(-extent, extent + step, step)
    density = np.exp(-0.5 * z**2) * step / np.sqrt(2 * np.pi)
    weight = density[:, None] * density
    f = (mean[:, None] + half[:, :1] * z)[:, :, None] + half[:, 1][:, None, None] * z
    e = np.exp(f - f.max(0))
    p = e / e.sum(0)
    q = np.stack([p[1] + p[2], p[0] + p[2], p[0] + p[1]])
    first, first_q = (weight * p).sum((1, 2)), (weight * q).sum((1, 2))
    # The smaller of p and 1 - p has the digits.
    small = (first < 0.5)[:, None, None]
    error = np.where(small, p - first[:, None, None], q - first_q[:, None, None])
    return first, (weight * error**2).sum((1, 2)), (weight * p * q).sum((1, 2))


def random_logits(num_classes: int, count: int, seed: int, *, largest_sd: float = 30.0):
    """Means up to 15, covariances isotropic, full, of rank one and anisotropic, sd of differences from 0.01."""
    rng = np.random.default_rng(seed)
    means, covs = [], []
    for i in range(count):
        means.append(rng.uniform(-1, 1, num_classes) * 15 * rng.choice([0.1, 0.3, 1.0]))
        factor = rng.normal(size=(num_classes, num_classes))
        factor = {
            0: np.eye(num_classes),
            1: factor,
            2: factor[:, :1],
            3: factor * np.exp(1.5 * rng.normal(size=num_classes)),
        }[i % 4]
        cov = factor @ factor.T
        d = np.diag(cov)
        sd = math.exp(rng.uniform(math.log(0.01), math.log(largest_sd)))
        covs.append(cov * sd**2 / (d[:, None] + d - 2 * cov).max())
    return np.array(means), np.array(covs)


def stacked(moments) -> np.ndarray:
    return np.stack([np.asarray(x, np.float64) for x in moments])


@pytest.fixture(scope="module")
def sigmoid_table() -> tuple[np.ndarray, np.ndarray]:
    grid = np.array([(m, s) for m in MEANS for s in SDS], dtype=float)
    with pytest.warns(integrate.IntegrationWarning):  # where the integral underflows
        return grid, np.array([adaptive_moments(-m, s) for m, s in grid]).T


@pytest.fixture(scope="module")
def three_class_table():
    means, covs = random_logits(3, 24, seed=7)
    return means, covs, np.stack([dense_moments(m, c) for m, c in zip(means, covs, strict=True)], 1)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_moments_agree_with_adaptive_quadrature(sigmoid_table, dtype, sign):
    (mean, sd), truth = sigmoid_table[0].T, sigmoid_table[1].copy()
    if sign > 0:
        truth[0] = 1 - truth[0]
    with jax.enable_x64(dtype == "float64"):
        got = stacked(sigmoid_moments(sign * mean.astype(dtype), (sd**2).astype(dtype)))
    # Subnormal numbers have few digits, and XLA may flush them to 0.
    visible = truth > (1e-36 if dtype == "float32" else 1e-300)
    error = np.abs(got[visible] / truth[visible] - 1)
    assert error.max() < (2e-4 if dtype == "float32" else 1e-6)
    assert (got[~visible] < 1e-35).all() and (got >= 0).all()


@hypothesis.settings(max_examples=80)
@hypothesis.given(
    mean=st.floats(-40, 40),
    log_sd=st.floats(math.log(1e-6), math.log(1e4)),
)
def test_sigmoid_moments_at_any_mean_and_sd(mean, log_sd):
    sd = math.exp(log_sd)
    truth = adaptive_moments(-abs(mean), sd)
    with jax.enable_x64(True):
        p, var, label_var = sigmoid_moments(np.float64(mean), np.float64(sd**2))
    assert float(p) == pytest.approx(1 - truth[0] if mean > 0 else truth[0], rel=1e-6)
    assert float(var) == pytest.approx(truth[1], rel=1e-6)
    assert float(label_var) == pytest.approx(truth[2], rel=1e-6)
    assert float(var + label_var) == pytest.approx(float(p) * (1 - float(p)), abs=1e-7)


def test_where_gauss_hermite_errs_by_eight_percent_these_moments_do_not():
    node, weight = np.polynomial.hermite_e.hermegauss(32)
    weight = weight / weight.sum()
    worst = 0.0
    for mean in (0.0, 1.0, 2.0, 4.0, 8.0):
        _, truth, _ = adaptive_moments(-mean, 8.0)
        p = special.expit(-mean + 8 * node)
        worst = max(worst, abs((weight @ (p - weight @ p) ** 2) / truth - 1))
        got = sigmoid_moments(np.float32(-mean), np.float32(64)).var
        assert float(got) == pytest.approx(truth, rel=1e-5)
    assert worst > 0.05


def test_sigmoid_without_variance_has_none_and_a_finite_gradient():
    mean = jnp.array([0.0, -3.0, 30.0, -200.0])
    p, var, label_var = sigmoid_moments(mean, jnp.zeros(4))
    q = jax.nn.sigmoid(-mean)
    np.testing.assert_allclose(p, jax.nn.sigmoid(mean), rtol=1e-6)
    np.testing.assert_array_equal(var, 0)
    np.testing.assert_allclose(label_var, p * q, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda v: sigmoid_normal_moments(mean, v).var.sum()))(jnp.zeros(4))
    np.testing.assert_allclose(slope, (p * q) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(sigmoid_moments(mean, jnp.full(4, -1e-6)).var, 0)


def test_sigmoid_moments_have_no_step_where_the_delta_method_takes_over(x64):
    mean = np.array([-5.0, -1.0, 0.5, 20.0])
    below = stacked(sigmoid_moments(mean, np.full(4, 0.999e-12)))
    above = stacked(sigmoid_moments(mean, np.full(4, 1.001e-12)))
    np.testing.assert_allclose(below[1] / 0.999, above[1] / 1.001, rtol=1e-8)
    np.testing.assert_allclose(below[::2], above[::2], rtol=1e-10)


@pytest.mark.parametrize("sd", [1e5, 1e8, 1e15])
def test_sigmoid_of_a_very_wide_gaussian_is_a_coin(sd):
    p, var, label_var = sigmoid_moments(np.float32(sd), np.float32(sd) ** 2)
    heads = special.ndtr(1.0)
    assert float(p) == pytest.approx(heads, rel=1e-4)
    assert float(var) == pytest.approx(heads * (1 - heads), rel=1e-4)
    # The density of the logit at 0, times the integral of p (1 - p), which is 1.
    density = math.exp(-0.5) / math.sqrt(2 * math.pi) / sd
    assert float(label_var) == pytest.approx(density, rel=5e-4)
    # A mean that is small beside sd, but not beside the sigmoid.
    assert float(sigmoid_moments(np.float32(-2), np.float32(sd) ** 2).mean) == pytest.approx(
        0.5, rel=1e-4
    )


def test_three_classes_whose_variance_is_made_far_from_the_mean(x64):
    """Classes of probability 1e-8 and 1e-19, known by logits that move together."""
    mean = np.array([-24.4, 21.0, 2.7])
    half = np.array([-1.675, 1.064, -0.165])
    cov = np.outer(half, half) + 1e-3 * np.eye(3)
    found = stacked(softmax_moments(mean, cov))
    expected = np.stack(dense_moments(mean, cov))
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@pytest.mark.parametrize("sd", [2.9e4, 3.1e4, 1e5, 1e13])
def test_sigmoid_of_a_very_wide_gaussian_keeps_its_digits_in_float64(sd, x64):
    p, var, label_var = sigmoid_moments(np.float64(-sd / 2), np.float64(sd) ** 2)
    # The logit's density at 0 is flat on the scale of p (1 - p); p is a step to 1 / sd^2.
    tails = special.ndtr(-0.5)
    label = math.exp(-0.125) / math.sqrt(2 * math.pi) / sd
    assert float(p) == pytest.approx(tails, rel=1e-8)
    assert float(label_var) == pytest.approx(label, rel=1e-6)
    assert float(var) == pytest.approx(tails * (1 - tails) - label, rel=1e-8)


def test_sigmoid_gradient_is_that_of_the_integral(x64):
    mean, var = np.array([-6.0, 0.3, 2.0, -15.0]), np.array([0.04, 1.0, 90.0, 16.0])

    @jax.jit
    def pullback(cotangent):
        return jax.vjp(lambda m, v: jnp.stack(sigmoid_normal_moments(m, v)), mean, var)[1](
            cotangent
        )

    for field in range(3):
        by_mean, by_var = pullback(jnp.zeros((3, 4)).at[field].set(1.0))
        for got, at, d in ((by_mean, mean, (1, 0)), (by_var, var, (0, 1))):
            h = 1e-4 * at
            up, down = (sigmoid_moments(mean + k * d[0], var + k * d[1])[field] for k in (h, -h))
            np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=2e-5)


def test_sigmoid_shapes_and_types():
    moments = sigmoid_moments(jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1)))
    assert [x.shape for x in moments] == [(2, 3, 1)] * 3
    for number in (int, np.float16):
        assert sigmoid_moments(number(0), number(1)).var.dtype == jnp.float32
    assert np.isnan(sigmoid_moments(jnp.nan, 1.0).var)
    assert np.isnan(sigmoid_moments(1.0, jnp.nan).var)
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(3, 1\)"):
        sigmoid_normal_moments(jnp.zeros(3), jnp.zeros((3, 1)))


def test_chunks_do_not_change_the_moments():
    rng = np.random.default_rng(0)
    mean, var = rng.normal(size=1001).astype("f4") * 5, rng.uniform(size=1001).astype("f4") * 50
    whole = sigmoid_moments(mean, var)
    one_by_one = jax.jit(jax.vmap(sigmoid_normal_moments))(mean, var)
    np.testing.assert_allclose(stacked(whole), stacked(one_by_one), rtol=1e-5)


def test_two_classes_are_the_sigmoid_of_their_difference():
    means, covs = random_logits(2, 40, seed=3)
    means, covs = means.astype("f4"), covs.astype("f4")
    gap = means[:, 1] - means[:, 0]
    var = covs[:, 0, 0] + covs[:, 1, 1] - 2 * covs[:, 0, 1]
    p, wide, label_var = stacked(softmax_moments(means, covs))
    expected = stacked(sigmoid_moments(gap, var))
    np.testing.assert_allclose(p[:, 1], expected[0], rtol=2e-5)
    np.testing.assert_allclose(p[:, 0], stacked(sigmoid_moments(-gap, var))[0], rtol=2e-5)
    for c in range(2):
        np.testing.assert_allclose(wide[:, c], expected[1], rtol=1e-4)
        np.testing.assert_allclose(label_var[:, c], expected[2], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_three_classes_agree_with_dense_quadrature(three_class_table, dtype):
    means, covs, truth = three_class_table
    with jax.enable_x64(dtype == "float64"):
        got = stacked(softmax_moments(means.astype(dtype), covs.astype(dtype)))
    tolerance = 1e-3 if dtype == "float32" else 1e-5
    np.testing.assert_allclose(got, truth, rtol=tolerance, atol=1e-32)
    np.testing.assert_allclose(got.sum(-1), truth.sum(-1), rtol=tolerance / 10)


@pytest.mark.parametrize("k", range(3))
def test_three_classes_where_one_logit_alone_is_uncertain(k, x64):
    # b is then known from a, or a known and b uncertain, by which class it is.
    mean, sd = np.array([2.0, -1.0, 0.5]), 12.0
    cov = np.zeros((3, 3))
    cov[k, k] = sd**2
    rest = np.delete(mean, k)
    p, var, label_var = adaptive_moments(-abs(mean[k] - np.logaddexp(*rest)), sd)
    got = softmax_moments(mean, cov)
    assert float(got.var[k]) == pytest.approx(var, rel=1e-5)
    assert float(got.label_var[k]) == pytest.approx(label_var, rel=1e-5)
    # The others share what is left in fixed proportions.
    share = special.softmax(rest)
    np.testing.assert_allclose(np.delete(np.asarray(got.var), k), share**2 * var, rtol=1e-5)
    assert min(float(got.mean[k]), 1 - float(got.mean[k])) == pytest.approx(p, rel=1e-5)


def test_a_fourth_class_that_cannot_win_changes_nothing(three_class_table):
    means, covs, truth = three_class_table
    means = np.concatenate([means, np.full((len(means), 1), -300.0)], axis=1).astype("f4")
    covs = np.pad(covs, [(0, 0), (0, 1), (0, 1)]).astype("f4")
    p, var, label_var = stacked(softmax_moments(means, covs))
    np.testing.assert_allclose(p[:, :3], truth[0], rtol=0.05)
    np.testing.assert_allclose(var.sum(-1), truth[1].sum(-1), rtol=5e-3)
    np.testing.assert_allclose(label_var.sum(-1), truth[2].sum(-1), rtol=0.03)
    for moment in (p, var, label_var):
        assert (moment[:, 3] == 0).all()


@pytest.mark.parametrize("num_classes", [5, 10])
def test_many_classes_agree_with_plain_monte_carlo(num_classes):
    means, covs = random_logits(num_classes, 8, seed=num_classes)
    means = means / 5  # plain Monte Carlo cannot see far tails
    moments = stacked(softmax_moments(means.astype("f4"), covs.astype("f4")))
    rng = np.random.default_rng(1)
    batches = []
    for mean, cov in zip(means, covs, strict=True):
        values, vectors = np.linalg.eigh(cov)
        half = (vectors * np.sqrt(np.maximum(values, 0))).astype("f4")
        batch = []
        for _ in range(20):
            f = mean.astype("f4") + rng.standard_normal((10_000, num_classes), dtype="f4") @ half.T
            p = special.softmax(f, axis=1).astype("f8")
            batch.append((p.mean(0), p.var(0), (p * (1 - p)).mean(0)))
        batches.append(batch)
    batches = np.moveaxis(np.array(batches), 2, 0)  # moment, location, batch, class
    summed = batches.sum(-1)
    truth, se = summed.mean(-1), summed.std(-1, ddof=1) / math.sqrt(summed.shape[-1])
    error = np.abs(moments.sum(-1) - truth)
    assert (error[1] < 0.01 * truth[1] + 4 * se[1]).all()
    assert (error[2] < 0.04 * truth[2] + 4 * se[2]).all()
    np.testing.assert_allclose(moments[0].sum(-1), 1, rtol=1e-5)
    truth, se = batches.mean(2), batches.std(2, ddof=1) / math.sqrt(batches.shape[2])
    likely = truth[0] > 0.02
    assert (np.abs(moments - truth) < 0.05 * truth + 5 * se)[:, likely].all()


@pytest.mark.parametrize("num_classes", [3, 4, 5, 10])
@pytest.mark.parametrize("sd", [0.1, 1.0, 2.0])
def test_tails_are_lognormal_under_a_sure_winner(num_classes, sd):
    # p_c = exp(f_c - f_0) to 7 digits; at sd 2 nodes about the mean miss most of it. A batch with equal eigenvalues,
    # for each evaluation of which the eigenvectors may be others.
    gaps = -24.0 - 0.5 * np.arange(num_classes - 1)
    means = np.tile(np.concatenate([[0.0], gaps]), (40, 1)).astype("f4")
    covs = np.tile(0.5 * sd**2 * np.eye(num_classes), (40, 1, 1)).astype("f4")
    p, var, label_var = stacked(softmax_moments(means, covs))
    exact_p = np.exp(gaps + sd**2 / 2)
    exact_var = exact_p**2 * np.expm1(sd**2)
    tolerance = 1e-4 if num_classes == 3 else 0.03 * num_classes / 5
    np.testing.assert_allclose(p[:, 1:], np.tile(exact_p, (40, 1)), rtol=tolerance)
    np.testing.assert_allclose(var[:, 1:], np.tile(exact_var, (40, 1)), rtol=tolerance)
    np.testing.assert_allclose(label_var[:, 1:], p[:, 1:], rtol=1e-3)
    # Others are correlated through the winner: Cov = E E (exp(sd^2 / 2) - 1) off the diagonal.
    cov = np.outer(exact_p, exact_p) * np.expm1(0.5 * sd**2)
    total = cov.sum() - np.trace(cov) + exact_var.sum()
    np.testing.assert_allclose(var[:, 0], total, rtol=tolerance)
    np.testing.assert_allclose(label_var[:, 0], exact_p.sum(), rtol=tolerance)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_permuted_and_shifted_logits(num_classes):
    means, covs = random_logits(num_classes, 12, seed=11)
    order = np.random.default_rng(0).permutation(num_classes)
    moments = stacked(softmax_moments(means.astype("f4"), covs.astype("f4")))
    # What all logits have in common is invisible.
    common = covs.max((1, 2), keepdims=True)
    means, covs = means[:, order] + 3, covs[:, order][:, :, order] + common
    moved = stacked(softmax_moments(means.astype("f4"), covs.astype("f4")))
    tolerance = 2e-3 if num_classes < 4 else 0.01
    np.testing.assert_allclose(moved[1].sum(-1), moments[1].sum(-1), rtol=tolerance)
    big = moments[1] > 0.05 * moments[1].sum(-1, keepdims=True)
    np.testing.assert_allclose(
        moved[1][big[:, order]], moments[1][..., order][big[:, order]], rtol=0.05
    )


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_softmax_of_hardly_uncertain_logits_is_the_delta_method(num_classes, x64):
    means, covs = random_logits(num_classes, 12, seed=5)
    p = special.softmax(means, axis=1)
    jacobian = p[:, :, None] * (np.eye(num_classes) - p[:, None, :])
    contrast = np.array([(np.diag(c)[:, None] + np.diag(c) - 2 * c).max() for c in covs])
    for var, tolerance in ((0.99e-5, 1e-4), (1.01e-5, 2e-3)):  # either side of the switch
        scaled = covs * (var / contrast)[:, None, None]
        moments = softmax_moments(means, scaled)
        expected = np.einsum("nci,nij,ncj->nc", jacobian, scaled, jacobian)
        # Rank one may leave a class no variance of first order.
        visible = expected > 3e-3 * p**2 * var
        np.testing.assert_allclose(
            np.asarray(moments.var)[visible], expected[visible], rtol=tolerance
        )
        np.testing.assert_allclose(moments.mean, p, rtol=1e-4)
    nothing = softmax_moments(means, 0 * covs)
    np.testing.assert_allclose(nothing.mean, p, rtol=1e-12)
    np.testing.assert_array_equal(nothing.var, 0)
    np.testing.assert_allclose(nothing.label_var, p * (1 - p), rtol=1e-9)


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_softmax_gradient_is_that_of_the_moments(num_classes, x64):
    rng = np.random.default_rng(num_classes)
    mean = rng.normal(size=num_classes)
    factor = rng.normal(size=(num_classes, num_classes))
    cov, direction = factor @ factor.T + np.eye(num_classes), rng.normal(size=num_classes)

    @jax.jit
    def weighted(shift, scale):
        moments = softmax_normal_moments(mean + shift * direction, scale * cov)
        return jnp.stack(moments) @ jnp.arange(1.0, num_classes + 1)

    # Of an estimate, the derivative is one too: its nodes stay, those of finite differences move.
    h, tolerance = (1e-3, 1e-5) if num_classes < 4 else (0.1, 0.02)
    by_mean = (weighted(h, 1.0) - weighted(-h, 1.0)) / (2 * h)
    by_cov = (weighted(0.0, 1 + h) - weighted(0.0, 1 - h)) / (2 * h)
    got = jax.jit(jax.jacrev(weighted, argnums=(0, 1)))(0.0, 1.0)
    np.testing.assert_allclose(got[0], by_mean, rtol=tolerance, atol=tolerance / 10)
    np.testing.assert_allclose(got[1], by_cov, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_softmax_gradient_is_finite_for_equal_and_zero_eigenvalues(num_classes):
    mean = jnp.linspace(0.0, 2.0, num_classes)

    def total(cov):
        return sum(x.sum() for x in softmax_normal_moments(mean, cov))

    slope = jax.jit(jax.grad(total))
    for cov in (np.eye(num_classes), np.diag(np.eye(num_classes)[0]), np.zeros([num_classes] * 2)):
        assert np.isfinite(slope(cov.astype("f4"))).all()


def test_softmax_batches_and_types():
    means, covs = (x.astype("f4").reshape(3, 5, *x.shape[1:]) for x in random_logits(4, 15, seed=2))
    whole = softmax_moments(means, covs, num_nodes=1024)
    assert [x.shape for x in whole] == [(3, 5, 4)] * 3
    again = softmax_moments(means, covs, num_nodes=1024)
    np.testing.assert_array_equal(stacked(whole), stacked(again))
    mapped = jax.jit(jax.vmap(lambda m, c: softmax_normal_moments(m, c, num_nodes=1024)))
    np.testing.assert_allclose(
        stacked(mapped(means, covs))[1].sum(-1), stacked(whole)[1].sum(-1), rtol=0.05
    )
    assert softmax_moments(np.zeros(2, int), np.eye(2, dtype=int)).var.dtype == jnp.float32
    assert links.LinkMoments._fields == ("mean", "var", "label_var")


@pytest.mark.parametrize(
    ("mean", "cov", "settings", "message"),
    [
        (np.zeros(()), np.zeros(()), {}, "C >= 2"),
        (np.zeros((4, 1)), np.zeros((4, 1, 1)), {}, "C >= 2"),
        (np.zeros((4, 3)), np.zeros((3, 3)), {}, r"got \(4, 3\) and \(3, 3\)"),
        (np.zeros(4), np.eye(4), {"num_nodes": 1000}, "power of two, got 1000"),
        (np.zeros(4), np.eye(4), {"num_nodes": 4}, "at least 8"),
    ],
)
def test_softmax_says_what_is_wrong(mean, cov, settings, message):
    with pytest.raises(ValueError, match=message):
        softmax_normal_moments(mean, cov, **settings)
