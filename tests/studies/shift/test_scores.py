"""Scores against plain gradients, SciPy and NumPy in double precision, on inputs of every kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate
from scipy.spatial.distance import cdist, mahalanobis
from scipy.special import softmax

from isounc.studies.shift.cell import _forward, _values
from isounc.studies.shift.networks import SIDE, network_of
from isounc.studies.shift.scores import (
    SCORES,
    Options,
    Signals,
    Undefined,
    evaluate_score,
    vim_dimension,
)

RNG = np.random.default_rng(0)
OPTIONS = Options(knn_k=3, temperature=1000.0)
EPSILON = 0.01


def signals_of(network, params, X, y, **more):
    scale = jnp.asarray([EPSILON, OPTIONS.temperature], X.dtype)
    found = map(np.asarray, _forward(params, X, scale, network=network))
    logits, hidden, gram, perturbed = found
    return Signals(
        y, logits, hidden, gram, *map(np.asarray, network.read_out(params)), perturbed, **more
    )


@pytest.fixture(scope="module")
def trained():
    """An MLP, its parameters, inputs (20 of training), and what scores are made from."""
    network = network_of("mlp", 3, 3, 4)
    params = jax.tree.map(lambda leaf: 2 * leaf, network.init(jax.random.key(0)))
    X = jnp.asarray(RNG.normal(size=(32, 3)), jnp.float32)
    y = np.resize(np.arange(3), 20)
    return network, params, X, signals_of(network, params, X, y)


def score(name, signals, options=OPTIONS):
    return evaluate_score(name, signals, options)


def test_norms_are_those_of_plain_gradients(trained):
    network, params, X, signals = trained

    def of(function):
        """A function of the gradients of the predicted class's number, at each input."""
        return [
            jax.tree.leaves(function(x, int(k)))
            for x, k in zip(X, signals.logits.argmax(1), strict=True)
        ]

    def p(params, x, k):
        return jax.nn.softmax(network.logits(params, x[None])[0])[k]

    gradient, of_log = jax.jit(jax.grad(p)), jax.jit(jax.grad(lambda *a: jnp.log(p(*a))))
    squares = [
        sum(float((g**2).sum()) for g in leaves)
        for leaves in of(lambda x, k: gradient(params, x, k))
    ]
    np.testing.assert_allclose(score("isotropic", signals), squares, rtol=1e-4)
    every = [
        [
            sum(float((g**2).sum()) for g in jax.tree.leaves(gradient(params, x, c)))
            for c in range(3)
        ]
        for x in X
    ]
    np.testing.assert_allclose(score("isotropic_trace", signals), np.sum(every, 1), rtol=1e-4)
    squares = [
        sum(float((g**2).sum()) for g in leaves) for leaves in of(lambda x, k: of_log(params, x, k))
    ]
    np.testing.assert_allclose(score("log_norm", signals), squares, rtol=1e-4)
    heads = of(lambda x, k: network.read_out(gradient(params, x, k)))
    squares = [sum(float((g**2).sum()) for g in leaves) for leaves in heads]
    np.testing.assert_allclose(score("head", signals), squares, rtol=1e-4)
    parts = score("head_features", signals) * score("head_output", signals)
    np.testing.assert_allclose(parts, squares, rtol=1e-4)

    def kl(params, x):
        return (jnp.log(1 / 3) - jax.nn.log_softmax(network.logits(params, x[None])[0])).mean()

    of_kl = jax.jit(jax.grad(kl))
    absolute = [float(jnp.abs(network.read_out(of_kl(params, x))[0]).sum()) for x in X]
    np.testing.assert_allclose(score("gradnorm", signals), absolute, rtol=1e-4)
    parts = score("gradnorm_features", signals) * score("gradnorm_output", signals)
    np.testing.assert_allclose(parts, absolute, rtol=1e-4)


def test_logit_scaled_is_the_variance_of_sampled_logits(trained):
    """Of the first two classes, whose log-odds have the variance of the difference of their logits."""
    _, _, _, signals = trained
    f, G = (np.asarray(a, float) for a in (signals.logits[:, :2], signals.gram[:, :2, :2]))
    spread = np.einsum("c,ncd,d->n", [1, -1], G, [1, -1])
    scaled = spread * np.pi**2 / 3 / np.median(spread[:20])
    draws = f[:, 0] - f[:, 1] + np.sqrt(scaled) * RNG.standard_normal((200_000, 1))
    found = score("logit_scaled", signals._replace(logits=f, gram=G))
    np.testing.assert_allclose(found, 2 * (1 / (1 + np.exp(-draws))).var(0), rtol=0.02)


def test_distances_are_scipys_and_numpys(trained):
    _, _, _, signals = trained
    h, y = np.asarray(signals.hidden, float), signals.y
    n = len(y)
    means = [h[:n][y == c].mean(0) for c in range(3)]
    within = (
        sum((y == c).sum() * np.cov(h[:n][y == c], rowvar=False, bias=True) for c in range(3)) / n
    )
    inverse, whole = np.linalg.inv(within), np.linalg.inv(np.cov(h[:n], rowvar=False, bias=True))
    each = np.array([[mahalanobis(x, m, inverse) ** 2 for m in means] for x in h]).min(1)
    background = [mahalanobis(x, h[:n].mean(0), whole) ** 2 for x in h]
    np.testing.assert_allclose(score("mahalanobis", signals), each, rtol=1e-6)
    np.testing.assert_allclose(score("relative_mahalanobis", signals), each - background, rtol=1e-5)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    apart = cdist(unit, unit[:n])
    apart[np.arange(n), np.arange(n)] = np.inf  # no training input is its own neighbour
    third = np.sort(apart, axis=1)[:, 2]
    np.testing.assert_allclose(score("knn", signals), third, rtol=1e-9, atol=1e-12)


def test_vim_is_its_formula(trained):
    """A matrix of residuals by the singular vectors, where the score takes eigenvectors."""
    _, _, _, signals = trained
    h, f = np.asarray(signals.hidden, float), np.asarray(signals.logits, float)
    V, b, n = np.asarray(signals.kernel, float), np.asarray(signals.bias, float), len(signals.y)
    assert vim_dimension(4) == 2 and vim_dimension(768) == 512 and vim_dimension(2048) == 1000
    origin = -np.linalg.lstsq(V.T, b, rcond=None)[0]
    principal = np.linalg.svd(h[:n] - origin)[2][:2].T
    residual = np.linalg.norm((h - origin) @ (np.eye(4) - principal @ principal.T), axis=1)
    alpha = f[:n].max(1).mean() / residual[:n].mean()
    virtual = np.concatenate([f, alpha * residual[:, None]], axis=1)
    p = np.exp(virtual - virtual.max(1, keepdims=True))
    log_odds = np.log(
        p[:, -1] / p[:, :-1].sum(1)
    )  # of the virtual class, as the paper orders by it
    np.testing.assert_allclose(score("vim", signals), log_odds, rtol=1e-6, atol=1e-8)


def test_odin_moves_towards_a_surer_prediction():
    network = network_of("logistic", 2, 3, 4)
    params = network.init(jax.random.key(1))
    X = jnp.asarray(RNG.normal(size=(9, 2)), jnp.float32)
    signals = signals_of(network, params, X, np.resize(np.arange(3), 6))
    V, b = np.asarray(signals.kernel, float), np.asarray(signals.bias, float)
    x = np.asarray(X, float)
    f = x / np.sqrt(2) @ V + b
    p = softmax(f / OPTIONS.temperature, axis=1)
    gradient = (np.eye(3)[f.argmax(1)] - p) @ V.T
    moved = x + EPSILON * np.sign(gradient)
    np.testing.assert_allclose(signals.perturbed, moved / np.sqrt(2) @ V + b, rtol=1e-4, atol=1e-5)
    tempered = (moved / np.sqrt(2) @ V + b) / OPTIONS.temperature
    np.testing.assert_allclose(score("odin", signals), softmax(tempered, axis=1).max(1), rtol=1e-7)
    assert (softmax(tempered, axis=1).max(1) > p.max(1)).all()


def made(logits, **more):
    """Signals with these logits, and features and products that are as simple as can be."""
    logits = np.asarray(logits)
    num, classes = logits.shape
    hidden = more.pop("hidden", np.ones((num, 3)))
    return Signals(
        np.resize(np.arange(classes), num), logits, hidden,
        np.broadcast_to(np.eye(classes), (num, classes, classes)), np.ones((3, classes)),
        np.zeros(classes), logits, members=np.stack([logits, logits]),
        passes=np.stack([logits, 0 * logits]), **more,
    )  # fmt: skip


def test_scores_of_outputs_at_tiny_huge_equal_and_integer_logits():
    logits = np.array([[0, 0, 0], [1, 2, 3], [-7, -7, -7], [800, 0, 0], [10**6, 0, -(10**6)]])
    signals = made(logits)
    np.testing.assert_allclose(
        score("energy", signals), np.logaddexp.reduce(logits.astype(float), axis=1), rtol=1e-14
    )
    np.testing.assert_array_equal(score("max_logit", signals), logits.max(1))
    # Beyond 745 even double precision has no number left for p (1 - p), before that all its digits.
    sure = made([[0.0, 700.0], [0.0, -300.0], [0.0, 20.0]])
    exact = np.exp([-700.0, -300.0, -20.0])
    exact[2] *= 1 / (1 + exact[2]) ** 2
    np.testing.assert_allclose(score("null", sure), exact, rtol=1e-12)
    np.testing.assert_allclose(
        score("log_norm", sure),
        2 * (exact * (1 + np.exp([-700.0, -300.0, -20.0]))) ** 2,
        rtol=1e-12,
    )
    np.testing.assert_allclose(score("isotropic", sure)[2], 2 * exact[2] ** 2, rtol=1e-12)
    np.testing.assert_array_equal(score("ensemble", signals), 0.0)
    thirds = score("ensemble_entropy", signals)
    np.testing.assert_allclose(thirds[[0, 2, 3]], [np.log(3), np.log(3), 0.0], atol=1e-12)
    p = softmax(logits.astype(float), axis=1)
    np.testing.assert_allclose(
        score("dropout", signals), ((p - 1 / 3) ** 2).sum(1) / 4, rtol=1e-12, atol=1e-300
    )
    # One network that diverged takes its own score away, not the run; the reference may be missing at
    # the training inputs.
    ends = np.where(np.arange(6) < 3, np.nan, 1.0)
    apart = made(np.zeros((6, 3)))._replace(y=np.arange(3), passes=np.full((2, 6, 3), np.nan))
    assert _values("dropout", apart, OPTIONS) == (None, "it is not finite at 3 of 3 inputs")
    found, reason = _values("mcmc", apart._replace(mcmc_var=ends), OPTIONS)
    assert found is not None and reason == ""
    for name in ("isotropic", "gradnorm", "msp", "head", "log_norm", "isotropic_trace"):
        assert np.isfinite(score(name, signals)).all() and (score(name, signals) >= 0).all()


def test_signs_are_those_of_the_sources():
    inward = {name for name, score in SCORES.items() if score.higher == "in"}
    assert inward == {
        "gradnorm", "gradnorm_features", "gradnorm_output", "msp", "max_logit", "energy", "odin"
    }  # fmt: skip
    # A sure prediction with usual features looks in distribution, an unsure one far away does not.
    rng = np.random.default_rng(1)
    y, hidden = np.resize([0, 1], 30), rng.normal(size=(31, 3))
    hidden[:, 0] += np.resize([5.0, -5.0], 31)
    hidden[-1] = [-0.1, 9.0, 0.3]
    kernel = np.array([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    logits = hidden @ kernel
    gram = np.einsum("n,cd->ncd", (hidden**2).sum(1) + 1, np.eye(2))
    members = logits + np.where(np.arange(31) == 30, 3.0, 0.1)[:, None] * rng.normal(
        size=(5, 31, 2)
    )
    signals = Signals(
        y, logits, hidden, gram, kernel, np.zeros(2), logits, members, members, np.arange(31.0)
    )
    for name, one in SCORES.items():
        if name == "gradnorm_features":  # its norm is larger out here, against what it is to mean
            continue
        values = score(name, signals)
        is_out = values[-1] > values[:-1] if one.higher == "out" else values[-1] < values[:-1]
        assert is_out.all(), name


def test_cnn_is_convolutions_and_pools():
    network = network_of("cnn", SIDE**2, 2, 3)
    params = jax.tree.map(lambda a: a + 0.05, network.init(jax.random.key(2)))
    X = RNG.normal(size=(2, SIDE**2))
    planes = [X.reshape(2, SIDE, SIDE).astype(float)]
    for name in ("first", "second"):
        kernel, bias = (np.asarray(params[name][part], float) for part in ("kernel", "bias"))
        convolved = [
            np.maximum(bias[o] + sum(
                correlate(plane, kernel[None, :, :, i, o], mode="constant")
                for i, plane in enumerate(planes)
            ), 0)
            for o in range(len(bias))
        ]  # fmt: skip
        planes = [
            (c[:, ::2, ::2] + c[:, 1::2, ::2] + c[:, ::2, 1::2] + c[:, 1::2, 1::2]) / 4
            for c in convolved
        ]
    flat = np.stack(planes, axis=-1).reshape(2, -1)
    layer = params["layers"][0]
    hidden = np.maximum(flat @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"]), 0)
    found = jax.jit(network.hidden)(params, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(found, hidden, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    signals = made(np.eye(2)[np.resize([0, 1], 6)])
    cases = [
        (lambda: score("isotropc", signals), "scores must be one of .*did you mean 'isotropic'"),
        (lambda: score("knn", signals, Options(6, 1.0)), "knn_k must be an integer from 1 to 5"),
        (lambda: score("mahalanobis", signals._replace(y=np.array([0, 0, 0, 1]))),
         "y must have two examples or more of each of the 2 classes .* got 1 of class 1"),
        (lambda: score("dropout", signals._replace(passes=None)), "signals must have passes"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    flat = signals._replace(gram=0 * signals.gram)
    with pytest.raises(Undefined, match="zero"):
        score("logit_scaled", flat)
    with pytest.raises(Undefined, match="no part outside"):
        score("vim", signals._replace(hidden=np.eye(3)[np.zeros(6, int)]))
