"""`isounc.isotropic` of any trained model, against plain gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc import Estimate, Model, estimate, fit_map, isotropic, make_model, make_problem
from isounc.estimates.adapters import bind
from isounc.fit import MapSettings
from isounc.padding import bucket

# Random models are unsure, and test_signs.py has what they are warned of.
pytestmark = pytest.mark.filterwarnings("ignore:(p of the predicted|the largest p)")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 5)).astype(np.float32)


class Net(nnx.Module):
    """A classifier with everything that has a training mode."""

    def __init__(self, out, *, rate=0.5):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(8, out, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))


class LinenNet(nn.Module):
    """The same in Linen."""

    out: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(self.out)(nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x)))


class Decoder(nnx.Module):
    """Causal: position t sees the running mean of the embeddings up to t."""

    def __init__(self):
        rngs = nnx.Rngs(1)
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.mix = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        x = jnp.cumsum(x, 1) / jnp.arange(1.0, 1 + ids.shape[1])[None, :, None]
        return self.embed.attend(jnp.tanh(self.mix(x)))


def evaluating(out):
    model = Net(out)
    model.eval()
    return model


def gradients(f, params, rows):
    """Squared norm of each output's gradient, by row, in float64: f(params, row) -> outputs (M,)."""

    # Compiled as a whole, which takes less time than operation by operation.
    @jax.jit
    def squares(params, row):
        jacobian = jax.jacrev(f)(params, row)
        return sum((j.reshape(j.shape[0], -1) ** 2).sum(1) for j in jax.tree.leaves(jacobian))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        return np.stack([squares(params, row) for row in rows])


def nnx_reference(model, x, link):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    f = lambda p, row: link(nnx.merge(graph, p, rest)(row[None])[0])  # noqa: E731
    return np.asarray(jax.vmap(link)(model(x))), gradients(f, params, x)


@pytest.mark.parametrize(
    ("task", "out", "link"),
    [
        ("binary", 1, jax.nn.sigmoid),
        ("multiclass", 3, jax.nn.softmax),
        ("regression", 2, lambda f: f),
    ],
)
def test_an_nnx_module(task, out, link):
    model = evaluating(out)
    got = isotropic(model, X, task=task)
    prob, sq_norms = nnx_reference(model, X, link)
    np.testing.assert_allclose(got.prob, prob, rtol=1e-5)
    np.testing.assert_allclose(got.epistemic, sq_norms, rtol=1e-5)
    aleatoric = np.ones_like(prob) if task == "regression" else prob * (1 - prob)
    np.testing.assert_allclose(got.aleatoric, aleatoric, rtol=1e-5)
    np.testing.assert_allclose(got.total, got.epistemic + got.aleatoric)
    assert got.prob.shape == (7, out)
    assert got.target is None


def test_a_linen_module_equals_its_function_and_the_chosen_class_its_column():
    module = LinenNet(3)
    variables = module.init(jax.random.key(0), X)
    got = isotropic(module, X, variables, task="multiclass")
    rest = {"batch_stats": variables["batch_stats"]}
    f = lambda p, x: module.apply({"params": p, **rest}, x)  # noqa: E731
    same = isotropic(f, X, variables["params"], task="multiclass")
    sq_norms = gradients(lambda p, row: jax.nn.softmax(f(p, row[None])[0]), variables["params"], X)
    np.testing.assert_allclose(got.epistemic, sq_norms, rtol=1e-5)
    np.testing.assert_allclose(same.epistemic, got.epistemic, rtol=1e-6)
    one = isotropic(module, X, variables, task="multiclass", target="predicted", sigma=2.0)
    best = got.prob.argmax(1)
    np.testing.assert_array_equal(one.target[:, 0], best)
    np.testing.assert_allclose(one.epistemic[:, 0], 4 * got.epistemic[range(7), best], rtol=1e-5)
    chosen = isotropic(module, X, variables, task="multiclass", target=[2] * 7)
    np.testing.assert_allclose(chosen.epistemic[:, 0], got.epistemic[:, 2], rtol=1e-5)
    part = isotropic(module, X, variables, task="multiclass", wrt="Dense_1")
    assert (part.epistemic < got.epistemic).all()


def test_probabilities_give_what_their_logits_do():
    weights = {"w": jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)}
    logits = isotropic(lambda p, x: x @ p["w"], X, weights, task="multiclass")
    ends = lambda p, x: jax.nn.softmax(x @ p["w"])  # noqa: E731
    got = isotropic(ends, X, weights, task="multiclass", outputs="probabilities")
    for field in ("prob", "epistemic", "aleatoric"):
        np.testing.assert_allclose(getattr(got, field), getattr(logits, field), rtol=1e-4)
    with pytest.raises(ValueError, match="outputs must be 'probabilities'"):
        isotropic(ends, X, weights, task="multiclass")
    with pytest.raises(ValueError, match="the model must return probabilities"):
        isotropic(lambda p, x: x @ p["w"], X, weights, task="multiclass", outputs="probabilities")


@pytest.mark.parametrize("chosen", [None, "target"])
def test_tokens_of_sequences_of_different_lengths(chosen):
    model = Decoder()
    sequences = [RNG.integers(0, 11, n) for n in (3, 20, 16, 5, 17)]
    target = None if chosen is None else [1, 2, 3, 4, 5]
    got = isotropic(model, sequences, task="token", target=target, batch_size=2)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    logits = [np.asarray(model(ids[None])[0, -1]) for ids in sequences]
    best = [np.argmax(f) for f in logits] if target is None else target
    np.testing.assert_array_equal(got.target[:, 0], best)

    def prob(p, row):
        ids, token = row
        return jax.nn.softmax(nnx.merge(graph, p, rest)(ids[None])[0, -1])[token][None]

    rows = list(zip(sequences, best, strict=True))
    np.testing.assert_allclose(got.epistemic, gradients(prob, params, rows), rtol=1e-5)
    # An array, and a list of one length, are taken as they are, without padding.
    last = lambda p, ids: nnx.merge(graph, p, rest)(ids)[:, -1]  # noqa: E731
    for x in (sequences[1][None], [sequences[1]]):
        for of in ((model, x), (last, x, params)):
            alone = isotropic(*of, task="token", target=best[1:2])
            np.testing.assert_allclose(alone.epistemic[0], got.epistemic[1], rtol=1e-5)
    with pytest.raises(ValueError, match="logits at every position"):
        isotropic(last, sequences, params, task="token")


def test_no_sequence_is_padded_beyond_the_longest():
    seen = set()

    def f(p, ids):
        seen.add(ids.shape[1])
        return p[ids]

    isotropic(f, [[1] * n for n in (3, 9, 17, 18)], jnp.asarray(RNG.random((4, 4))), task="token")
    assert seen == {16, 18}


def test_digits_at_saturated_probabilities():
    weights = jnp.asarray([9.0, -9.0], jnp.float32)
    x = np.array([[1.0, -1.0], [2.0, -2.0], [-2.0, 2.0], [5.0, -5.0]], np.float32)
    f = lambda w, x: x @ w  # noqa: E731
    binary = isotropic(f, x, weights, task="binary")
    two = lambda w, x: jnp.stack([0 * x @ w, x @ w], 1)  # noqa: E731
    classes = isotropic(two, x, weights, task="multiclass")
    d = x.astype(float) @ np.array([9.0, -9.0])
    assert d.max() == 90
    level = np.exp(-np.abs(d)) / (1 + np.exp(-np.abs(d))) ** 2
    expected = level**2 * (x.astype(float) ** 2).sum(1)
    np.testing.assert_allclose(binary.epistemic[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(classes.epistemic, np.stack([expected] * 2, 1), rtol=1e-5)


def test_fits_of_fit_map():
    problem = make_problem("moons", seed=0)
    model = make_model(problem, width=4)
    point = fit_map(
        problem, model, prior_sd=1.0, key=jax.random.key(0), settings=MapSettings(num_restarts=1)
    )
    x = problem.regions["test"][:9]
    got, same = isotropic(model, x, point), isotropic(model, x, point.theta)
    f = lambda w, row: jax.nn.sigmoid(model.apply(w["w"], row[None])[0])  # noqa: E731
    np.testing.assert_allclose(got.epistemic, gradients(f, {"w": point.theta}, x), rtol=1e-4)
    np.testing.assert_array_equal(got.epistemic, same.epistemic)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_of_a_model_it_is_the_estimate_of_the_registry(likelihood):
    model = Model(5, 1 if likelihood == "bernoulli" else 3, likelihood, width=4)
    theta = RNG.standard_normal(model.num_params).astype(np.float32)
    got, same = isotropic(model, X, theta), estimate("isotropic", model, X, theta)
    for field in Estimate._fields[:5]:
        assert getattr(got, field).dtype == np.float64
        np.testing.assert_allclose(getattr(got, field), getattr(same, field), rtol=2e-5, atol=1e-9)
    # Parts of the parameters, and another scale, against gradients of those parts.
    link = jax.nn.sigmoid if likelihood == "bernoulli" else jax.nn.softmax
    params = model.unflatten(theta)

    def of_biases(biases, row):
        layers = {i: params["layers"][i] | {"bias": biases[i]} for i in biases}
        return link(model.apply_params({"layers": layers}, row[None])[0])

    biases = {i: layer["bias"] for i, layer in params["layers"].items()}
    expected = 4 * gradients(of_biases, biases, X)
    part = isotropic(model, X, theta, sigma=2.0, wrt="bias")
    np.testing.assert_allclose(part.epistemic, expected, rtol=2e-5)
    np.testing.assert_allclose(part.total, part.aleatoric + part.epistemic, rtol=1e-6)
    if likelihood == "categorical":
        best = got.prob.argmax(axis=1)
        chosen = isotropic(model, X, theta, target="predicted")
        np.testing.assert_array_equal(chosen.target[:, 0], best)
        np.testing.assert_array_equal(chosen.epistemic[:, 0], got.epistemic[range(7), best])


def test_a_saturated_model_keeps_its_digits():
    model = Model(1, 1, "bernoulli", depth=0)
    got = isotropic(model, np.ones((1, 1), np.float32), np.array([30.0, 30.0], np.float32))
    # Logit 60, and p (1 - p) = exp(-60) to rounding; the logit's gradient is (1, 1).
    np.testing.assert_allclose(got.epistemic, 2 * np.exp(-120.0), rtol=1e-5)


def test_chunks_and_containers_change_nothing():
    model = evaluating(1)
    whole = isotropic(model, X, task="binary").epistemic
    for batch_size in (1, 2, 3, 100):
        got = isotropic(model, X, task="binary", batch_size=batch_size)
        np.testing.assert_allclose(got.epistemic, whole, rtol=1e-5)
    weights = jnp.ones(5)
    f = lambda w, x: (x["a"] + x["b"]) @ w  # noqa: E731
    pair = isotropic(f, {"a": X, "b": 0 * X}, weights, task="binary")
    np.testing.assert_allclose(
        pair.epistemic, isotropic(lambda w, x: x @ w, X, weights, task="binary").epistemic
    )


def test_a_second_call_compiles_nothing():
    model = evaluating(3)
    assert bind(model).apply == bind(evaluating(3)).apply
    isotropic(model, X, task="multiclass")
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(
            "logging.Logger.handle", lambda self, record: seen.append(record.getMessage())
        )
        isotropic(evaluating(3), 2 * X, task="multiclass")
    assert not [message for message in seen if "Compiling jit(_norms)" in message]


def test_buckets_are_few_and_not_much_larger():
    sizes = [bucket(n) for n in range(1, 200)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(n <= size <= 1.5 * n for n, size in enumerate(sizes, 1))


class Settings:
    """Equal by value, and so without a hash."""

    def __eq__(self, other):
        return isinstance(other, Settings)


class Configured(nnx.Module):
    """A module that holds settings without a hash."""

    def __init__(self):
        self.settings = Settings()
        self.rate = nnx.Param(jnp.ones(5))

    def __call__(self, x):
        return x @ self.rate


def test_modules_with_settings_that_have_no_hash():
    got = isotropic(Configured(), X, task="binary")
    expected = isotropic(lambda w, x: x @ w, X, jnp.ones(5), task="binary")
    np.testing.assert_allclose(got.epistemic, expected.epistemic)


def bad_statistics():
    model = evaluating(1)
    model.norm.mean[...] = model.norm.mean[...].at[0].set(np.nan)
    isotropic(model, X, task="binary")


def training_linen():
    module = LinenNet(1)
    variables = module.init(jax.random.key(0), X)
    isotropic(module, X, variables, task="binary", kwargs={"train": True})


SQUEEZED = lambda p, x: (x @ p).squeeze()  # noqa: E731
SIGMOID = lambda p, x: jax.nn.sigmoid(x @ p)  # noqa: E731


def broken(place, value):
    model = evaluating(1)
    leaf = model.first.kernel if place == "first" else model.last.bias
    leaf[...] = leaf[...].at[0].set(value)
    return model


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: isotropic(Net(1), X, task="binary"), ValueError, ["drop (Dropout)", "model.eval()"]),
        (lambda: isotropic(Net(1, rate=0.0), X, task="binary"), ValueError, ["norm (BatchNorm)", "model.eval()"]),
        (training_linen, ValueError, ["evaluation mode", "kwargs={'train': False}"]),
        (lambda: isotropic(broken("first", np.nan), X, task="binary"), ValueError, ["got 8 of 40", "['first']"]),
        (lambda: isotropic(broken("last", np.inf), X, task="regression"), ValueError, ["'last'", "'bias'"]),
        (lambda: isotropic(evaluating(1), X * np.nan, task="binary"), ValueError, ["7 rows of x", "params are finite"]),
        (bad_statistics, ValueError, ["other arrays must be finite", "norm", "1 of 8"]),
        (lambda: isotropic(SQUEEZED, X, jnp.ones((5, 3)), task="regression"), ValueError, ["got (3,)"]),
        (lambda: isotropic(lambda p, x: x @ p > 0, X, jnp.ones(5), task="binary"), TypeError, ["real numbers", "bool"]),
        (lambda: isotropic(SIGMOID, np.tile(X, (2, 1)), jnp.ones(5), task="binary"), ValueError, ["between 0 and 1"]),
        (lambda: isotropic(evaluating(1), X, task="regression", outputs="logits"), ValueError, ["left out for"]),
        (lambda: isotropic(evaluating(1), X), ValueError, ["task must be one of binary, multiclass"]),
        (lambda: isotropic(evaluating(1), X, task="binry"), ValueError, ["did you mean 'binary'"]),
        (lambda: isotropic(evaluating(2), X, task="binary"), ValueError, ["(N,) or (N, 1)", "(1, 2)"]),
        (lambda: isotropic(evaluating(1), X, task="multiclass"), ValueError, ["two or more classes", "(1, 1)"]),
        (lambda: isotropic(evaluating(3), X, task="multiclass", target=[3] * 7), ValueError, ["below 3, got 3"]),
        (lambda: isotropic(evaluating(3), X, task="multiclass", target=[0]), ValueError, ["7 non-negative integers"]),
        (lambda: isotropic(evaluating(1), X, task="binary", target="predicted"), ValueError, ["left out for binary"]),
        (lambda: isotropic(evaluating(1), X[:0], task="binary"), ValueError, ["x must be a batch"]),
        (lambda: isotropic(evaluating(1), {"a": X, "b": X[:3]}, task="binary"), ValueError, ["(7, 5), (3, 5)"]),
        (lambda: isotropic(evaluating(1), X, {}, task="binary"), TypeError, ["params must be left out"]),
        (lambda: isotropic(LinenNet(1), X, task="binary"), TypeError, ["params must be given for a Linen module"]),
        (lambda: isotropic(lambda p, x: x, X, task="binary"), TypeError, ["params must be given for a function"]),
        (lambda: isotropic(3, X, task="binary"), TypeError, ["model must be a Flax module", "int"]),
        (lambda: isotropic(lambda p, x: (x, p), X, jnp.ones(2), task="binary"), TypeError, ["one array"]),
        (lambda: isotropic(lambda p, x: x, X, {"act": "tanh"}, task="binary"), TypeError, ["str ('tanh') at ['act']"]),
        (lambda: isotropic(evaluating(1), X, task="binary", kwargs={"a": X}), TypeError, ["must hold constants"]),
        (lambda: isotropic(evaluating(1), X, task="binary", sigma=0), ValueError, ["sigma must be a positive"]),
        (lambda: isotropic(Model(5, 1), X, np.ones(29), task="binary"), TypeError, ["task must be left out"]),
        (lambda: isotropic(Model(5, 1), X), TypeError, ["params must be given for a Model"]),
        (lambda: isotropic(Model(5, 1, depth=0), X, np.ones(6), wrt="nothing"), ValueError, ["wrt must keep"]),
        (lambda: isotropic(Model(5, 1, depth=0), X, np.ones(6), target="predicted"), ValueError, ["for binary"]),
        (lambda: isotropic(Decoder(), [[1, 2], [0.5]], task="token"), ValueError, ["token ids", "at 1"]),
    ],
)  # fmt: skip
def test_bad_input(call, error, words):
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value), str(raised.value)


def embedded(params, ids):
    """Logits of 11 tokens after the mean of embeddings, which takes whatever it can make ids of."""
    return params["embed"][ids.astype(int)].mean(1) @ params["head"]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.array([[1, 2, 50]]), "from 0 to 10, got 50 at 0, 2"),
        (np.array([[1, 2, 3], [1, -3, 2]]), "from 0 to 10, got -3 at 1, 1"),
        (np.array([[1, 2, 3.5]]), "from 0 to 10, got float64"),
        (np.array([[True, False]]), "from 0 to 10, got bool"),
        (np.array([[1, 2**40]]), f"got {2**40} at 0, 1"),
        ([[1, 2], [3, 11]], "from 0 to 10, got 11 at 1, 1"),
        ([[1, -1], [3, 4]], "from 0 to 10, got -1 at 0, 1"),
    ],
)
def test_numbers_that_are_no_tokens(x, words):
    params = {"embed": jnp.ones((11, 6)), "head": jnp.ones((6, 11))}
    with pytest.raises(ValueError, match=words):
        isotropic(embedded, x, params, task="token")


def test_embeddings_instead_of_tokens():
    params = jnp.asarray(RNG.random((4, 11)), jnp.float32)
    x = RNG.standard_normal((2, 3, 4))
    assert isotropic(lambda p, x: x[:, -1] @ p, x, params, task="token").prob.shape == (2, 1)


def test_an_estimate_is_shown_by_its_ranges():
    column = np.array([[0.25], [0.75]])
    shown = Estimate(*(column * factor for factor in (1, 0.1, 0.2, 0.3, -0.4)))
    assert str(shown).splitlines() == [
        "Estimate of shape (2, 1); least to largest:",
        "    prob                 0.25 to 0.75",
        "    epistemic            0.025 to 0.075",
        "    aleatoric            0.05 to 0.15",
        "    total                0.075 to 0.225",
        "    aleatoric_corrected  -0.3 to -0.1",
    ]
    empty = Estimate(*(column[:0],) * 5)
    assert "prob                 none" in str(empty)
    texts = []
    jax.jit(lambda estimate: texts.append(repr(estimate)))(shown)
    assert "Tracer" in texts[0]  # as JAX shows them
