"""Every form of g^T Sigma g against a dense construction in float64, and planted covariances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag

from isounc import densities
from isounc.covariance import gauss_newton_factor
from isounc.models import Model
from isounc.statistics import compare
from isounc.studies.covariance.forms import (
    FORMS,
    estimate_forms,
    gradients,
    layer_inputs,
    layers_of,
)

LAMS = (1e-8, 1.0, 1e12)
RANK = 3


def dense(form, G, sd, lam, layers, inputs, rank=RANK):
    """Sigma as a P x P matrix, by its definition alone; in eigenvectors where GGN is singular."""
    white = G * sd

    def inverse(ggn):
        values, vectors = np.linalg.eigh(ggn)
        return (vectors / (np.maximum(values, 0) + lam)) @ vectors.T

    ggn = white.T @ white
    blocks = [ggn[where, where] for where in layers]
    if form == "low_rank":
        values, vectors = np.linalg.eigh(ggn)
        top = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))
        ggn = top @ top.T
    if form == "diagonal":
        ggn = np.diag(np.diag(ggn))
    if form == "block_diagonal":
        ggn = block_diag(*blocks)
    if form == "kfac":
        found = []
        for a, where in zip(inputs, layers, strict=True):
            width = (where.stop - where.start) // a.shape[1]
            kernel, bias = sd[where][0], sd[where][-1]
            scaled = a * np.r_[np.full(a.shape[1] - 1, kernel), bias]
            A = sum(np.outer(row, row) for row in scaled) / len(a)
            B = sum(np.outer(row, row) for row in G[:, where][:, -width:])
            found.append(np.kron(A, B))
        ggn = block_diag(*found)
    sigma = inverse(ggn) * np.outer(sd, sd)
    if form == "last_layer":
        last = layers[-1]
        sigma = np.zeros_like(ggn)
        sigma[last, last] = inverse(ggn[last, last]) * np.outer(sd[last], sd[last])
    if form == "isotropic":
        sigma = np.trace(sigma) / len(sd) * np.eye(len(sd))
    return sigma


def made(likelihood, outputs, depth, parameterisation, X, X_star, *, activation="tanh"):
    model = Model(
        2, outputs, likelihood, width=3, depth=depth, activation=activation,
        parameterisation=parameterisation,
    )  # fmt: skip
    theta = model.sample_prior(jax.random.key(3), 1.0)
    prior = jnp.asarray(model.param_prior_sd(1.7))
    data = densities.Data(jnp.asarray(X), jnp.zeros(len(X), int), jnp.asarray(0.5), prior)
    return model, theta, data, jnp.asarray(X_star)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "depth", "parameterisation", "kind"),
    [
        ("bernoulli", 1, 1, "ntk", "many"),
        ("gaussian", 1, 1, "fan_in", "one"),
        ("categorical", 3, 2, "fan_in", "duplicates"),
    ],
)
def test_forms_are_those_of_dense_matrices(x64, likelihood, outputs, depth, parameterisation, kind):
    rng = np.random.default_rng(0)
    X = {
        "many": rng.standard_normal((40, 2)),
        "one": rng.standard_normal((1, 2)),
        "duplicates": np.repeat(rng.standard_normal((2, 2)), 2, axis=0),
    }[kind]
    X_star = np.concatenate([rng.standard_normal((5, 2)), X[:1], [[40.0, -7.0]]])
    model, theta, data, at = made(likelihood, outputs, depth, parameterisation, X, X_star)
    g = gradients(theta, at, model=model)
    G, sd = np.asarray(gauss_newton_factor(model, theta, data)), np.asarray(data.prior_sd)
    inputs = [np.asarray(a) for a in layer_inputs(model, theta, data.X)]
    layers = layers_of(model)
    assert sum(s.stop - s.start for s in layers) == model.num_params == g.shape[2]
    # The gradients against finite differences of the prediction.
    step = 1e-6 * np.eye(model.num_params)[5]
    difference = model.predict(theta + step, at) - model.predict(theta - step, at)
    np.testing.assert_allclose(g[:, :, 5], difference / 2e-6, rtol=1e-5, atol=1e-9)
    found = estimate_forms(
        theta, g, data, jnp.asarray(LAMS), model=model, forms=tuple(FORMS), rank=RANK
    )

    def direct(form, lam):
        sigma = dense(form, G, sd, lam, layers, inputs)
        return np.einsum("nmp,pq,nmq->n", np.asarray(g), sigma, np.asarray(g))

    for form in FORMS:
        np.testing.assert_allclose(found.forms[form], direct(form, 1.0), rtol=1e-8, err_msg=form)
    for lam, values in zip(LAMS, found.lams, strict=True):
        np.testing.assert_allclose(values, direct("full", lam), rtol=1e-5, err_msg=str(lam))
    # lambda to infinity leaves the prior, over lambda.
    prior = ((np.asarray(g) * sd) ** 2).sum((1, 2))
    np.testing.assert_allclose(found.lams[2] * LAMS[2], prior, rtol=1e-8)
    # Eigenvectors of the GGN in prior coordinates and its eigenvalues.
    basis, strengths = np.asarray(found.basis), np.asarray(found.strengths)
    ggn = (G * sd).T @ (G * sd)
    np.testing.assert_allclose((basis * strengths) @ basis.T, ggn, atol=1e-9 * ggn.max())
    if kind == "one" and outputs == 1:  # one input, one output: the blocks are Kronecker products
        np.testing.assert_allclose(found.forms["kfac"], found.forms["block_diagonal"], rtol=1e-9)


def test_a_model_of_one_example_and_all_directions_is_its_low_rank_form(x64):
    X = np.array([[0.3, -1.0]])
    model, theta, data, at = made("bernoulli", 1, 1, "ntk", X, np.eye(2))
    g = gradients(theta, at, model=model)
    forms = ("full", "low_rank", "isotropic")
    found = estimate_forms(theta, g, data, jnp.ones(1), model=model, forms=forms, rank=1)
    np.testing.assert_allclose(found.forms["low_rank"], found.forms["full"], rtol=1e-12)
    np.testing.assert_allclose(found.lams[0], found.forms["full"], rtol=1e-12)
    ratio = np.asarray(found.forms["isotropic"]) / np.asarray((g**2).sum((1, 2)))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def planted(X, proxy, X_star, noise_sd=0.3):
    """Estimates of Var[f] by form for a linear model, where the full form is exact, and it."""
    model = Model(2, 1, "gaussian", depth=0, parameterisation="standard")
    theta = jnp.asarray([0.5, -1.0, 0.2])
    prior = jnp.full(3, 2.0)
    data = densities.Data(jnp.asarray(proxy), jnp.zeros(len(proxy)), jnp.asarray(noise_sd), prior)
    g = gradients(theta, jnp.asarray(X_star), model=model)
    found = estimate_forms(
        theta, g, data, jnp.ones(1), model=model, forms=("full", "isotropic", "diagonal"), rank=1
    )
    phi, phi_star = (np.c_[a, np.ones(len(a))] for a in (X, X_star))
    sigma = np.linalg.inv(phi.T @ phi / noise_sd**2 + np.eye(3) / 4)
    truth = np.einsum("np,pq,nq->n", phi_star, sigma, phi_star)
    return {name: np.asarray(values) for name, values in found.forms.items()}, truth


def test_isotropic_is_exact_where_the_posterior_is(x64):
    # Columns of a Hadamard matrix: the GGN is a multiple of the identity.
    X = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    X_star = np.random.default_rng(1).standard_normal((50, 2))
    found, truth = planted(X, X, X_star)
    for form in ("full", "diagonal", "isotropic"):
        np.testing.assert_allclose(found[form], truth, rtol=1e-10)


def test_a_shifted_proxy_distorts_the_full_form_and_leaves_the_isotropic_one(x64):
    rng = np.random.default_rng(2)
    X, X_star = rng.standard_normal((30, 2)), rng.standard_normal((200, 2))
    right, truth = planted(X, X, X_star)
    np.testing.assert_allclose(right["full"], truth, rtol=1e-10)
    shifted, _ = planted(X, X + np.array([4.0, 0.0]), X_star)
    r = {form: compare(values, truth).pearson or 0.0 for form, values in shifted.items()}
    assert r["full"] < 0.5 and r["isotropic"] > 0.9 and r["full"] < r["diagonal"]
    assert r["isotropic"] == pytest.approx(compare(right["isotropic"], truth).pearson, abs=1e-12)
