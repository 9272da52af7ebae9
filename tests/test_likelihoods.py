"""Likelihoods against float64 and autodiff; and one written here, from a problem to a comparison."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

import isounc
from isounc import likelihoods
from isounc.estimates import links
from isounc.likelihoods import LIKELIHOODS, Likelihood, register_likelihood
from isounc.metrics import class_views, negative_log_likelihood
from isounc.problems import Problem

BERNOULLI, CATEGORICAL = LIKELIHOODS["bernoulli"], LIKELIHOODS["categorical"]
NUM_OUTPUTS = {"bernoulli": 1, "categorical": 3, "gaussian": 1}
NAMES = pytest.mark.parametrize("name", NUM_OUTPUTS)

SATURATED = np.array([-80.0, -30, -17, -4, 0, 0.5, 17, 30, 80])[:, None]
"""Logits where p or 1 - p is far below float32's epsilon."""
SATURATED_CLASSES = np.array(
    [[0.0, 0, 0], [30, 0, -5], [-5, 30, 0], [20, 19, -60], [80, -80, 0], [1030, 1000, 1001]]
)


def saturated(name):
    return SATURATED_CLASSES if name == "categorical" else SATURATED


@pytest.mark.parametrize("label", [0, 1])
def test_binary_log_likelihood_and_its_gradient_keep_their_digits_in_float32(label):
    y, outputs = jnp.full(len(SATURATED), label), jnp.asarray(SATURATED, jnp.float32)
    f = SATURATED[:, 0] * (1 if label else -1)
    log_prob = BERNOULLI.log_prob(outputs, y, 1.0)
    np.testing.assert_allclose(log_prob, special.log_expit(f), rtol=1e-5)
    gradient = jax.grad(lambda f: BERNOULLI.log_prob(f, y, 1.0).sum())(outputs)[:, 0]
    expected = (1 if label else -1) * special.expit(-f)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_categorical_log_likelihood_in_float32():
    expected = special.log_softmax(SATURATED_CLASSES, axis=1)
    outputs = jnp.asarray(SATURATED_CLASSES, jnp.float32)
    for label in range(3):
        log_prob = CATEGORICAL.log_prob(outputs, jnp.full(len(expected), label), 1.0)
        np.testing.assert_allclose(log_prob, expected[:, label], rtol=1e-5, atol=2e-7)


@NAMES
def test_predict_in_float32(name):
    outputs = saturated(name)
    p = LIKELIHOODS[name].predict(jnp.asarray(outputs, jnp.float32))
    expected = {
        "bernoulli": special.expit,
        "categorical": lambda f: special.softmax(f, axis=1),
        "gaussian": lambda f: f,
    }[name](outputs)
    assert p.shape == outputs.shape
    # Denormal numbers may be flushed to zero.
    np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-37)


@NAMES
def test_predict_jacobian_is_that_of_autodiff(name, x64):
    likelihood, num_outputs = LIKELIHOODS[name], NUM_OUTPUTS[name]
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, num_outputs)))
    jacobian = likelihood.predict_jacobian(outputs)
    assert jacobian.shape == (4, num_outputs, num_outputs)
    by_autodiff = Likelihood.predict_jacobian(likelihood, outputs)
    np.testing.assert_allclose(jacobian, by_autodiff, rtol=1e-12)


def exact_complement(p):
    return np.stack([np.delete(p, c, axis=1).sum(1) for c in range(p.shape[1])], axis=1)


@NAMES
def test_variances_and_jacobians_keep_their_digits_at_saturation(name):
    outputs = saturated(name)
    f32 = jnp.asarray(outputs, jnp.float32)
    variance = LIKELIHOODS[name].label_variance(f32, 0.5)
    jacobian = LIKELIHOODS[name].predict_jacobian(f32)
    tolerance = dict(rtol=2e-5, atol=1e-37)
    if name == "gaussian":
        np.testing.assert_allclose(variance, 0.25)
        np.testing.assert_array_equal(jacobian, 1)
        return
    if name == "bernoulli":
        expected = special.expit(outputs) * special.expit(-outputs)
        np.testing.assert_allclose(jacobian[..., 0], expected, **tolerance)
    else:
        p = special.softmax(outputs, axis=1)
        expected = p * exact_complement(p)
        dense = -p[:, :, None] * p[:, None, :]
        dense[:, range(3), range(3)] = expected
        np.testing.assert_allclose(jacobian, dense, **tolerance)
        # Probabilities add up to one, so that the rows add up to zero.
        np.testing.assert_allclose(jacobian.sum(-1), 0, atol=1e-7)
    np.testing.assert_allclose(variance, expected, **tolerance)
    assert (np.asarray(variance) >= 0).all()


@NAMES
def test_label_entropy_is_scipys_and_never_negative_in_float32(name, x64):
    outputs, likelihood = saturated(name), LIKELIHOODS[name]
    if name == "bernoulli":
        f = np.abs(outputs[:, 0])
        expected = -special.log_expit(f) + f * special.expit(-f)
        np.testing.assert_allclose(
            expected[3:6], stats.bernoulli.entropy(special.expit(outputs[3:6, 0])), rtol=1e-9
        )
    elif name == "categorical":
        expected = stats.entropy(special.softmax(outputs, axis=1), axis=1)
    else:
        expected = np.full(len(outputs), stats.norm.entropy(scale=0.4))
    entropy = likelihood.label_entropy(jnp.asarray(outputs), 0.4)
    assert entropy.shape == (len(outputs),)
    np.testing.assert_allclose(entropy, expected, rtol=1e-9, atol=1e-20)
    single = likelihood.label_entropy(jnp.asarray(outputs, jnp.float32), 0.4)
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=2e-7)
    if name == "bernoulli":
        np.testing.assert_allclose(single, expected, rtol=2e-5, atol=1e-30)
    assert name == "gaussian" or (np.asarray(single) >= 0).all()


@NAMES
def test_curvature_factor_squares_to_minus_the_hessian(name, x64):
    likelihood, num_outputs = LIKELIHOODS[name], NUM_OUTPUTS[name]
    outputs = jnp.asarray(2 * np.random.default_rng(0).normal(size=(5, num_outputs)))
    labels = jnp.asarray([0, 1, 2, 1, 0] if name == "categorical" else [0, 1, 0, 1, 1])

    def log_prob(f, y):
        return likelihood.log_prob(f[None], y[None], 0.4)[0]

    expected = -jax.jit(jax.vmap(jax.hessian(log_prob)))(outputs, labels)
    factor = likelihood.curvature_factor(outputs, 0.4)
    assert factor.shape == (5, num_outputs, num_outputs)
    np.testing.assert_allclose(factor @ factor.mT, expected, rtol=1e-10, atol=1e-14)


def test_curvature_factor_at_saturation_in_float32():
    p = special.softmax(SATURATED_CLASSES, axis=1)
    expected = -p[:, :, None] * p[:, None, :]
    expected[:, range(3), range(3)] = p * exact_complement(p)
    outputs = jnp.asarray(SATURATED_CLASSES, jnp.float32)
    factor = np.asarray(CATEGORICAL.curvature_factor(outputs, 1.0))
    np.testing.assert_allclose(factor @ factor.transpose(0, 2, 1), expected, rtol=1e-4, atol=1e-35)


@NAMES
def test_drawn_labels_have_the_mean_and_variance_of_the_likelihood(name):
    likelihood, n = LIKELIHOODS[name], 40_000
    outputs = jnp.tile(jnp.array([[0.7, -0.4, 0.1]])[:, : NUM_OUTPUTS[name]], (n, 1))
    y = np.asarray(likelihood.sample_labels(jax.random.key(0), outputs, 0.5))
    drawn = np.eye(3)[y] if name == "categorical" else y[:, None]
    variance = np.asarray(likelihood.label_variance(outputs[:1], 0.5))[0]
    error = drawn.mean(0) - np.asarray(likelihood.predict(outputs[:1]))[0]
    assert (np.abs(error) < 4 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.04)


def test_entropy_of_the_averaged_prediction():
    p = np.array([[0.0], [0.3], [1.0]])
    expected = stats.bernoulli.entropy(p[:, 0])
    np.testing.assert_allclose(BERNOULLI.predictive_entropy(p), expected, atol=1e-15)
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    expected = stats.entropy(p, axis=1)
    np.testing.assert_allclose(CATEGORICAL.predictive_entropy(p), expected, atol=1e-15)
    assert np.isnan(LIKELIHOODS["gaussian"].predictive_entropy(np.zeros((2, 1)))).all()


def test_the_gaussian_likelihood_is_scipys():
    y, f, sd = np.array([0.3, -2.0, 1e4]), np.array([[0.1], [1.0], [1e4 - 0.5]]), 0.7
    gaussian = LIKELIHOODS["gaussian"]
    found = gaussian.log_prob(jnp.asarray(f), jnp.asarray(y), sd)
    np.testing.assert_allclose(found, stats.norm.logpdf(y, f[:, 0], sd), rtol=1e-4)
    entropy = gaussian.label_entropy(jnp.asarray(f), sd)
    np.testing.assert_allclose(entropy, stats.norm(0, sd).entropy(), rtol=1e-6)
    np.testing.assert_allclose(gaussian.label_variance(jnp.asarray(f), sd), 0.49, rtol=1e-6)
    alone = gaussian.predictive_log_prob(f, y, noise_sd=sd)
    np.testing.assert_allclose(alone, stats.norm.logpdf(y, f[:, 0], sd), rtol=1e-12)
    var = np.array([[0.0], [1.0], [3.0]])
    with_var = gaussian.predictive_log_prob(f, y, noise_sd=sd, p_var=var)
    expected = stats.norm.logpdf(y, f[:, 0], np.sqrt(0.49 + var[:, 0]))
    np.testing.assert_allclose(with_var, expected, rtol=1e-12)


def test_the_log_probability_of_a_class_is_clipped_where_float32_ends():
    p, y = np.array([[0.3], [0.3], [0.0], [1.0]]), np.array([1, 0, 1, 1])
    expected = np.log([0.3, 0.7, 2.0**-24, 1.0])
    np.testing.assert_allclose(BERNOULLI.predictive_log_prob(p, y), expected, rtol=1e-12)
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    found = CATEGORICAL.predictive_log_prob(p, np.array([2, 1]))
    np.testing.assert_allclose(found, np.log([0.3, 2.0**-24]), rtol=1e-12)


@pytest.mark.parametrize(
    ("p", "refused"),
    [
        ([[0.3], [-0.9e-6], [1 + 0.9e-6]], ""),
        ([[0.3], [-1.1e-6]], "must hold probabilities, got"),
        ([[0.3], [1 + 1.1e-6]], "must hold probabilities, got"),
        ([[0.3], [np.nan]], "must hold probabilities, got"),
        ([[0.2, 0.8], [0.5, 0.5009]], ""),
        ([[0.2, 0.8], [0.5, 0.4991]], ""),
        ([[0.2, 0.8], [0.5, 0.5011]], "sum to 1 in each row, got 1.0011"),
        ([[0.5, 0.4989], [0.2, 0.8]], "sum to 1 in each row, got 0.9989"),
    ],
)
def test_predictions_are_probabilities_but_for_rounding(p, refused):
    p = np.array(p)
    likelihood = BERNOULLI if p.shape[1] == 1 else CATEGORICAL
    if refused:
        with pytest.raises(ValueError, match=refused):
            likelihood.check_prediction("p", p)
    else:
        likelihood.check_prediction("p", p)


def test_labels_are_classes_or_numbers():
    labels = CATEGORICAL.check_labels("y", np.array([0.0, 2.0, 1.0]), 3)
    assert labels.dtype == np.int64 and labels.tolist() == [0, 2, 1]
    for bad in (3, -1, 0.5):
        with pytest.raises(ValueError, match=r"y must hold labels 0\.\.2 for 3 classes, got"):
            CATEGORICAL.check_labels("y", np.array([0, bad]), 3)
    with pytest.raises(ValueError, match=r"got 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.; recode"):
        CATEGORICAL.check_labels("y", np.arange(3, 12), 3)
    with pytest.raises(ValueError, match="got 3, 4, 5, 6, 7, 8, 9, 10; recode"):
        CATEGORICAL.check_labels("y", np.arange(3, 11), 3)
    real = LIKELIHOODS["gaussian"].check_labels("y", np.array([1, 2]), 0)
    assert real.dtype == np.float64 and real.tolist() == [1.0, 2.0]


def test_what_a_likelihood_needs_and_predicts():
    X, y = np.zeros((4, 1)), np.array([0, 1, 1, 1])
    binary = Problem.from_arrays(X, y)
    assert (binary.likelihood, binary.num_classes, binary.num_outputs) == ("bernoulli", 2, 1)
    many = Problem.from_arrays(X, y, num_classes=3)
    assert (many.likelihood, many.num_classes, many.num_outputs) == ("categorical", 3, 3)
    for classes in (1, 3):
        with pytest.raises(ValueError, match="num_classes"):
            Problem.from_arrays(X, y, likelihood="bernoulli", num_classes=classes)
    with pytest.raises(ValueError, match="noise_sd"):
        Problem.from_arrays(X, y / 2, likelihood="gaussian")
    # Static arguments of compiled functions are hashed.
    assert all(hash(LIKELIHOODS[name]) == hash(LIKELIHOODS[name]) for name in NUM_OUTPUTS)
    both = Problem.from_arrays(X, y, likelihood="categorical", num_classes=2)
    assert both.num_outputs == 2
    assert BERNOULLI.column_names(1) == ("1",) and CATEGORICAL.column_names(3) == ("0", "1", "2")
    assert LIKELIHOODS["gaussian"].column_names(1) == ("f",)
    np.testing.assert_allclose(BERNOULLI.constant_prediction(y, 1), [0.75])
    np.testing.assert_allclose(CATEGORICAL.constant_prediction(y, 3), [0.25, 0.75, 0.0])
    np.testing.assert_allclose(LIKELIHOODS["gaussian"].constant_prediction(y / 2, 1), [0.375])
    v, var = jnp.array([[0.2]]), jnp.array([[0.05]])
    np.testing.assert_allclose(BERNOULLI.expected_label_variance(v, var), 0.15, rtol=1e-6)
    np.testing.assert_allclose(LIKELIHOODS["gaussian"].expected_label_variance(v, var), 0.2)


# --- a likelihood of one's own ---------------------------------------------------------------


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts through a log link: y ~ Poisson(exp(f))."""

    quantity = "rate"
    link = "exp"

    def check_labels(self, argument, y, num_classes):
        if (y < 0).any() or (y % 1).any():
            raise ValueError(f"{argument} must hold counts, got {y.min()}")
        return y.astype(np.int64)

    def log_prob(self, outputs, y, noise_sd):
        f = outputs[:, 0]
        return y * f - jnp.exp(f) - jax.scipy.special.gammaln(y + 1.0)

    def predict(self, outputs):
        return jnp.exp(outputs)

    def label_variance(self, outputs, noise_sd):
        return jnp.exp(outputs)

    def curvature_factor(self, outputs, noise_sd):
        return jnp.exp(outputs / 2)[..., None]

    def sample_labels(self, key, outputs, noise_sd):
        return jax.random.poisson(key, jnp.exp(outputs[:, 0]))

    def predictive_log_prob(self, p, y, *, noise_sd=None, p_var=None):
        return stats.poisson.logpmf(y, p[:, 0])


def lognormal_moments(mean, cov):
    """Moments of exp(f) for f ~ N(mean, cov): mean, variance, and E[Var[y | f]] = E[exp(f)]."""
    var = cov[:, :, 0]
    average = jnp.exp(mean + var / 2)
    return links.LinkMoments(average, jnp.expm1(var) * average**2, average)


PRIOR_SD = 1.2
QUERY = np.linspace(-2, 2, 9)[:, None]


@pytest.fixture(scope="module")
def poisson():
    """A problem of counts with one input, its linear model, and the point of highest density."""
    register_likelihood("poisson", Poisson())
    links.LINK_MOMENTS["exp"] = lognormal_moments
    rng = np.random.default_rng(3)
    X = rng.uniform(-1.5, 1.5, size=(30, 1))
    y = rng.poisson(np.exp(0.4 + 0.8 * X[:, 0]))
    problem = Problem.from_arrays(X, y, likelihood="poisson", regions={"query": QUERY})
    model = isounc.make_model(problem, depth=0)
    map_fit = isounc.fit_map(problem, model, prior_sd=PRIOR_SD, key=jax.random.key(0))
    yield problem, model, map_fit
    del LIKELIHOODS["poisson"], links.LINK_MOMENTS["exp"]


def minus_log_density(theta, problem):
    """Of theta (..., 2), without constants: f = theta_0 x + theta_1."""
    f = np.asarray(theta) @ np.concatenate([problem.X, np.ones((len(problem.X), 1))], 1).T
    prior = 0.5 * (np.asarray(theta) ** 2).sum(-1) / PRIOR_SD**2
    return (np.exp(f) - problem.y * f).sum(-1) + prior


def test_a_problem_takes_its_labels_from_the_likelihood(poisson):
    problem, model, _ = poisson
    assert (problem.num_classes, problem.num_outputs, model.likelihood) == (0, 1, "poisson")
    assert problem.y.dtype == np.int64
    with pytest.raises(ValueError, match="y must hold counts, got -1"):
        replace(problem, y=problem.y - problem.y.min() - 1)
    with pytest.raises(ValueError, match="noise_sd must be left out for likelihood 'poisson'"):
        replace(problem, noise_sd=1.0)
    with pytest.raises(ValueError, match="num_classes must be 0"):
        replace(problem, num_classes=2)


def test_the_point_estimate_is_scipys(poisson):
    problem, _, map_fit = poisson
    expected = optimize.minimize(minus_log_density, np.zeros(2), (problem,), tol=1e-12)
    assert map_fit.passed, map_fit.reasons
    np.testing.assert_allclose(map_fit.theta, expected.x, rtol=1e-4)


def test_estimates_are_those_in_closed_form(poisson):
    problem, model, map_fit = poisson
    design = np.concatenate([QUERY, np.ones_like(QUERY)], 1)
    f = design @ map_fit.theta
    rate, sq_norm = np.exp(f), (design**2).sum(1)
    isotropic = isounc.estimate("isotropic", model, QUERY, map_fit.theta)
    np.testing.assert_allclose(isotropic.prob[:, 0], rate, rtol=1e-5)
    np.testing.assert_allclose(isotropic.epistemic[:, 0], rate**2 * sq_norm, rtol=1e-5)
    # Var[y | theta] is the rate itself, which is linear in the prediction: nothing is corrected.
    np.testing.assert_allclose(isotropic.aleatoric[:, 0], rate, rtol=1e-5)
    np.testing.assert_array_equal(isotropic.aleatoric_corrected, isotropic.aleatoric)

    laplace = isounc.laplace(model, QUERY, map_fit.theta, problem=problem, prior_sd=PRIOR_SD)
    train = np.concatenate([problem.X, np.ones_like(problem.X)], 1)
    weights = np.exp(train @ map_fit.theta)
    precision = train.T @ (weights[:, None] * train) + np.eye(2) / PRIOR_SD**2
    expected = rate**2 * np.einsum("np,pq,nq->n", design, np.linalg.inv(precision), design)
    np.testing.assert_allclose(laplace.epistemic[:, 0], expected, rtol=1e-4)

    link_aware = isounc.link_aware(model, QUERY, map_fit.theta, prior_sd=PRIOR_SD)
    drawn = stats.lognorm(s=PRIOR_SD * np.sqrt(sq_norm), scale=rate)
    np.testing.assert_allclose(link_aware.epistemic[:, 0], drawn.var(), rtol=1e-3)
    np.testing.assert_allclose(link_aware.aleatoric_corrected[:, 0], drawn.mean(), rtol=1e-4)


def test_the_sampled_posterior_is_that_of_quadrature_and_can_be_compared_with(poisson):
    problem, model, map_fit = poisson
    posterior = isounc.sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=jax.random.key(1), num_draws=2000
    )
    assert posterior.coordinates == "prior"
    moments = posterior.regions["query"]
    axes = [np.linspace(t - 1.5, t + 1.5, 301) for t in map_fit.theta]
    theta = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    weight = special.softmax(-minus_log_density(theta, problem))
    rate = np.exp(theta @ np.concatenate([QUERY, np.ones_like(QUERY)], 1).T)
    mean = weight @ rate
    var = weight @ (rate - mean) ** 2
    assert (np.abs(moments.mean[:, 0] - mean) < 5 * moments.mean_se[:, 0]).all()
    assert (np.abs(moments.var[:, 0] - var) < 5 * moments.var_se[:, 0]).all()
    np.testing.assert_allclose(moments.aleatoric, moments.mean, rtol=1e-4)
    assert np.isnan(moments.entropy).all()

    averaged = isounc.posterior_averaged(model, QUERY, posterior.draws)
    drawn = np.exp(posterior.draws @ np.concatenate([QUERY, np.ones_like(QUERY)], 1).T)
    expected = (drawn**2).mean(0) * (QUERY[:, 0] ** 2 + 1)
    np.testing.assert_allclose(averaged.epistemic[:, 0], expected, rtol=1e-4)

    estimate = isounc.laplace(model, QUERY, map_fit.theta, problem=problem, prior_sd=PRIOR_SD)
    comparison = isounc.compare(
        estimate.epistemic[:, 0], moments.var[:, 0], reference_se=moments.var_se[:, 0]
    )
    expected = stats.pearsonr(estimate.epistemic[:, 0], var).statistic
    assert comparison.pearson == pytest.approx(expected, abs=0.02)
    assert comparison.slope == pytest.approx(var.sum() / float(estimate.epistemic.sum()), rel=0.1)


def test_coordinates_that_need_a_known_curvature_are_refused(poisson):
    problem, model, _ = poisson
    with pytest.raises(ValueError, match="coordinates must be 'prior' or 'curvature'"):
        isounc.sample_posterior(
            problem, model, prior_sd=1.0, key=jax.random.key(0), coordinates="readout"
        )


def test_metrics_and_training_know_the_likelihood(poisson):
    problem, model, _ = poisson
    rate = np.full((4, 1), 1.7)
    counts = np.array([0, 1, 3, 2])
    found = negative_log_likelihood(rate, counts, likelihood="poisson")
    assert found == pytest.approx(-stats.poisson.logpmf(counts, 1.7).mean())
    assert list(class_views(rate, rate, "poisson")) == ["rate"]
    trained = isounc.fit_trained(problem, model, key=jax.random.key(0))
    assert trained.passed, trained.reasons
    best = stats.poisson.logpmf(problem.y, problem.y.mean()).sum()
    assert trained.log_likelihood > best


def test_the_registry_refuses_what_it_cannot_use(monkeypatch):
    monkeypatch.setattr(likelihoods, "LIKELIHOODS", dict(LIKELIHOODS))
    with pytest.raises(ValueError, match=r"'bernoulli' is already registered.*overwrite=True"):
        register_likelihood("bernoulli", Poisson())
    with pytest.raises(ValueError, match="name must be letters"):
        register_likelihood("log normal", Poisson())
    with pytest.raises(ValueError, match="likelihood must have every member of Likelihood"):
        register_likelihood("other", object())
    with pytest.raises(TypeError, match="abstract"):

        class Half(Likelihood):
            def predict(self, outputs):
                return outputs

        Half()  # pyright: ignore
    register_likelihood("bernoulli", Poisson(), overwrite=True)
    assert likelihoods.LIKELIHOODS["bernoulli"] == Poisson()
