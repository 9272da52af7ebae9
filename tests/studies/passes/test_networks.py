"""K networks and what they estimate, against direct loops, closed forms and dense algebra."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import densities
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.studies.passes import estimates
from isounc.studies.passes.estimates import estimates_of, quality
from isounc.studies.passes.networks import (
    PROGRAMS,
    Networks,
    Predictions,
    last_layer_samples,
    posterior_draws,
    predict,
    seconds_of_passes,
    trained_ensemble,
)
from isounc.training import TrainSettings, disjoint_groups, fit_trained

SMALL = {"n": 14, "num_test": 5, "num_far": 4, "grid_size": 2}
TRAIN = TrainSettings(epochs=20, minibatch=8)


def small(name, **changes):
    problem = make_problem(name, **SMALL)
    return problem, make_model(problem, **{"width": 3} | changes)


def some_thetas(model, num, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    return np.stack([model.sample_prior(key, 1.5) for key in keys])


def sigmoid_var(mean, var):
    """Var[sigmoid(f)], f ~ N(mean, var), by a fine trapezoidal rule."""
    z = np.linspace(-9, 9, 20_001)
    weight = np.exp(-0.5 * z**2)
    weight /= weight.sum()
    p = 1 / (1 + np.exp(-(mean + math.sqrt(var) * z)))
    return float(weight @ p**2 - (weight @ p) ** 2)


@pytest.mark.parametrize("name", ["xor", "clusters3", "nonlinear_regression"])
def test_predictions_and_estimates_are_those_of_direct_loops(name, x64):
    problem, model = small(name)
    thetas, X = some_thetas(model, 3), problem.regions["test"]
    data = densities.make_data(problem, model, 2.0)
    both = predict(model, thetas, np.concatenate([X, problem.X]), data)
    everyone = slice(None)
    at, reference = (both.at(everyone, s) for s in (slice(0, len(X)), slice(len(X), None)))
    columns = problem.num_columns
    for k, theta in enumerate(jnp.asarray(thetas)):
        jacobian = jax.jacobian(model.predict)(theta, jnp.asarray(X))
        np.testing.assert_allclose(at.p[k], model.predict(theta, jnp.asarray(X)), rtol=1e-12)
        np.testing.assert_allclose(at.norm[k], (jacobian**2).sum(-1), rtol=1e-9)
    if name == "xor":
        for k, theta in enumerate(jnp.asarray(thetas)):
            norms, ref_norms = (
                (jax.jacobian(model.apply)(theta, jnp.asarray(points))[:, 0] ** 2).sum(-1)
                for points in (X, problem.X)
            )
            f = np.asarray(model.apply(theta, jnp.asarray(X)))[:, 0]
            s2 = math.pi**2 / 3 * np.asarray(norms) / np.median(ref_norms)
            direct = [sigmoid_var(*pair) for pair in zip(f, s2, strict=True)]
            np.testing.assert_allclose(at.logit_scaled[k, :, 0], direct, rtol=1e-5)

    noise = problem.noise_sd
    found = estimates_of(at, reference, noise_sd=noise)
    assert list(found) == list(estimates.ESTIMATES)

    def variance(values):
        middle = sum(values) / len(values)
        return sum((v - middle) ** 2 for v in values) / (len(values) - 1)

    a_sum = sum(reference.logit_scaled[k].sum() for k in range(3)) / 3
    v_sum = sum(
        variance([reference.p[k, n, m] for k in range(3)])
        for n in range(len(problem.X))
        for m in range(columns)
    )
    for n in range(len(X)):
        for m in range(columns):
            p = [at.p[k, n, m] for k in range(3)]
            mean = sum(p) / 3
            a = sum(at.logit_scaled[k, n, m] for k in range(3)) / 3
            expected = {
                "mean_norm": sum(at.norm[k, n, m] for k in range(3)) / 3,
                "mean_logit_scaled": a,
                "variance": variance(p),
                "label_variance": mean * (1 - mean) if noise is None else noise**2,
                "combined": (8 * v_sum / a_sum * a + 2 * variance(p)) / 10,
            }
            for key, value in expected.items():
                assert found[key][n, m] == pytest.approx(value, rel=1e-9), key


def made_up(count, num=40, seed=0, columns=1):
    rng = np.random.default_rng(seed)
    return Predictions(*(rng.uniform(0.01, 0.99, (count, num, columns)) for _ in range(3)))


def test_the_combination_is_free_of_the_gradients_level_and_tends_to_the_variance():
    at, reference = made_up(6), made_up(6, seed=1)
    found = estimates_of(at, reference)["combined"]
    larger = [x._replace(logit_scaled=1000 * x.logit_scaled) for x in (at, reference)]
    np.testing.assert_allclose(estimates_of(*larger)["combined"], found, rtol=1e-12)
    one = slice(0, 1), slice(None)
    single = estimates_of(at.at(*one), reference.at(*one))
    np.testing.assert_array_equal(single["combined"], at.logit_scaled[0])
    assert "variance" not in single
    many = estimates_of(made_up(2000), made_up(2000, seed=1))
    np.testing.assert_allclose(many["combined"], many["variance"], rtol=0.02)


def compared(at, reference, counts, truth):
    everywhere = Predictions(*(np.concatenate(x, axis=1) for x in zip(at, reference, strict=True)))
    n = at.p.shape[1]
    return quality(
        everywhere, locations=slice(0, n), training=slice(n, None),
        groups=disjoint_groups(counts, len(at.p), 8), reference=truth, noise_sd=None,
    )  # fmt: skip


def test_correlations_are_averaged_over_disjoint_groups():
    at, reference = made_up(5, columns=2), made_up(5, seed=1, columns=2)
    truth = np.random.default_rng(2).uniform(size=(40, 2))
    found = compared(at, reference, 2, truth)
    for name, estimate in {
        "variance": lambda p: p.var(axis=0, ddof=1),
        "label_variance": lambda p: p.mean(0) * (1 - p.mean(0)),
    }.items():
        pairs = [(at.p[i : i + 2].mean(0), estimate(at.p[i : i + 2])) for i in (0, 2)]
        direct = {
            "trace": [np.corrcoef(e.sum(1), truth.sum(1))[0, 1] for _, e in pairs],
            # The class that the mean of the group predicts, location by location.
            "predicted": [
                np.corrcoef([(e[n, c], truth[n, c]) for n, c in enumerate(chosen)], rowvar=False)[
                    0, 1
                ]
                for mean, e in pairs
                for chosen in [[0 if a >= b else 1 for a, b in mean]]
            ],
        }
        for view, values in direct.items():
            numbers = found[view, name]
            assert numbers["pearson"] == pytest.approx(np.mean(values), rel=1e-9)
            assert numbers["num_groups"] == 2 and numbers["reason"] == ""
    assert found["trace", "label_variance"]["partial_pearson"] is None, (
        "nothing is left of the null"
    )
    assert disjoint_groups(3, 5, 8) == [slice(0, 3)]
    assert disjoint_groups(1, 5, 2) == [slice(0, 1), slice(1, 2)]


def test_what_is_undefined_has_a_reason():
    at, reference = made_up(4), made_up(4, seed=1)
    truth = np.random.default_rng(2).uniform(size=(40, 1))
    # Two networks that agree have no variance; the other group has.
    agreeing = at._replace(p=np.stack([at.p[0], at.p[0], at.p[2], at.p[3]]))
    found = compared(agreeing, reference, 2, truth)["trace", "variance"]
    assert found["num_groups_undefined"] == 1
    assert found["reason"] == "in 1 of 2 groups: " + found["reason"].partition(": ")[2]
    assert "estimate is zero everywhere" in found["reason"] and found["pearson"] is not None
    # No gradient at any training input: there is no level.
    flat = reference._replace(logit_scaled=np.zeros_like(reference.logit_scaled))
    found = compared(at, flat, 4, truth)
    assert found.keys() == {("trace", name) for name in estimates.ESTIMATES}, "a single column"
    found = found["trace", "combined"]
    assert found["pearson"] is None and "not finite" in found["reason"]


@pytest.mark.parametrize("name", ["xor", "clusters3"])
def test_last_layer_samples_have_the_laplace_covariance(name, x64):
    problem, model = small(name, parameterisation="fan_in")  # prior sds differ
    theta = some_thetas(model, 1)[0]
    trained = Networks(theta[None], 0.0, 0.5, ("",))
    made = last_layer_samples(problem, model, trained, 40_000, key=jax.random.key(1), prior_sd=0.7)
    assert made.reasons == () and made.seconds_each == 0 and made.seconds > 0.5
    # The GGN of the last layer in closed form, from its inputs.
    phi = np.asarray(model.features(theta, problem.X))
    outputs = phi.shape[1] * model.out_features
    p = np.asarray(model.predict(theta, jnp.asarray(problem.X)))
    if model.out_features == 1:
        curvature = p[:, :, None] * (1 - p[:, :, None])
    else:
        curvature = np.einsum("nc,cd->ncd", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    ggn = np.einsum("nf,ncd,ng->fcgd", phi, curvature, phi).reshape(outputs, outputs)
    sigma = np.linalg.inv(ggn + np.diag(model.param_prior_sd(0.7)[-outputs:] ** -2.0))
    np.testing.assert_array_equal(made.thetas[:, :-outputs], np.tile(theta[:-outputs], (40_000, 1)))
    last = made.thetas[:, -outputs:]
    sd = np.sqrt(np.diag(sigma))
    np.testing.assert_allclose((last.mean(0) - theta[-outputs:]) / sd, 0, atol=0.025)
    np.testing.assert_allclose(
        np.cov(last.T) / np.outer(sd, sd), sigma / np.outer(sd, sd), atol=0.03
    )


def test_an_ensemble_is_its_members_and_fails_with_one_of_them():
    problem, model = small("xor")
    key = jax.random.key(3)
    made = trained_ensemble(problem, model, 3, key=key, prior_sd=2.0, settings=TRAIN)
    alone = fit_trained(
        problem, model, key=jax.random.split(key, 3)[2], prior_sd=2.0, settings=TRAIN
    )
    np.testing.assert_allclose(made.thetas[2], alone.theta, atol=1e-4)
    assert np.ptp(made.thetas, axis=0).min() > 0 and made.seconds_each > 0
    failed = made._replace(failed=("", "Training diverged.", ""))
    assert failed.reasons == ("1 of 3 trained networks failed: Training diverged.",)


def test_draws_are_chosen_once_each():
    draws = np.arange(40.0).reshape(20, 2)
    made = posterior_draws(draws, 12, seed=1, seconds=3.0)
    assert len({row.tobytes() for row in made.thetas}) == 12 and made.seconds == 3.0
    assert {tuple(row) for row in made.thetas} <= {tuple(row) for row in draws}


def test_seconds_are_of_every_count_and_program():
    problem, model = small("xor")
    X = problem.regions["test"]
    seconds = seconds_of_passes(model, some_thetas(model, 2), X, (1, 2), num_timings=1)
    assert tuple(seconds) == PROGRAMS
    assert all(len(s) == 2 and min(s) > 0 for s in seconds.values())
