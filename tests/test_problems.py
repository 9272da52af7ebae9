"""Built-in problems have the distributions they state, and bad input is refused in one line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest

from isounc import problems
from isounc.problems import PROBLEMS, Problem, make_problem, register_problem
from isounc.sources import SOURCES, ClassificationSource, RegressionSource, SyntheticSource

BINARY = ["linear", "xor", "rings", "moons"]
THREE_CLASS = ["clusters3", "spirals3", "rings3"]
REGRESSION = ["linear_regression", "nonlinear_regression"]
REAL = ["breast_cancer", "wine", "digits_3v8"]

# Straight from the docstrings, for points in original coordinates, and written apart from the code.
CENTRES = [(0.0, 2.0), (-np.sqrt(3), -1.0), (np.sqrt(3), -1.0)]


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _softmax(*scores):
    e = np.exp(np.stack(scores, 1) - np.max(scores, axis=0)[:, None])
    return e / e.sum(1, keepdims=True)


def _moon_probability(x, y):
    """p(y=1|x) of the moons with the distances taken to finely sampled half circles."""
    angle = np.linspace(0, np.pi, 20_001)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.stack([x, y], 1)
    d0, d1 = (
        np.array([np.min(np.linalg.norm(point - curve, axis=1)) for point in points])
        for curve in (upper, lower)
    )
    return _sigmoid((d0**2 - d1**2) / 0.125)[:, None]


def _spiral_probability(x, y):
    t = np.arange(401) / 400
    scores = []
    for c in range(3):
        a = 1.4 * np.pi * t + 2 * np.pi * c / 3
        dx = x[:, None] - (0.3 + 1.7 * t) * np.cos(a)
        dy = y[:, None] - (0.3 + 1.7 * t) * np.sin(a)
        scores.append(-np.min(dx**2 + dy**2, axis=1) / 0.125)
    return _softmax(*scores)


TRUTH = {
    "linear": lambda x, y: _sigmoid(6 * x + 4 * y)[:, None],
    "xor": lambda x, y: _sigmoid(-30 * x * y)[:, None],
    "rings": lambda x, y: _sigmoid((np.hypot(x, y) - 1.5) / 0.16)[:, None],
    "moons": _moon_probability,
    "clusters3": lambda x, y: _softmax(*[-((x - a) ** 2 + (y - b) ** 2) / 2 for a, b in CENTRES]),
    "rings3": lambda x, y: _softmax(*[-((np.hypot(x, y) - r) ** 2) / 0.32 for r in (1, 2, 3)]),
    "spirals3": _spiral_probability,
    "linear_regression": lambda x: (0.2 + 0.8 * x)[:, None],
    "nonlinear_regression": lambda x: (np.sin(1.5 * x) + 0.3 * x)[:, None],
}


def _original(problem, region):
    return problem.x_mean + problem.x_sd * problem.regions[region]


# --- the truth of the synthetic problems -----------------------------------------------------


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.filterwarnings("ignore:overflow")  # the reference's sigmoid, far away
def test_p_true_is_the_stated_formula_through_the_affine_map(name):
    problem = make_problem(name, seed=3)
    assert set(problem.p_true) == {"test", "grid", "far"}
    for region, p in problem.p_true.items():
        expected = TRUTH[name](*_original(problem, region).T)
        np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BINARY + THREE_CLASS)
@pytest.mark.parametrize("label_noise", [0.5, 1.0, 2.0])
def test_label_frequencies_follow_p_true(name, label_noise):
    problem = make_problem(name, seed=1, num_test=10_000, label_noise=label_noise)
    p, y = problem.p_true["test"], problem.targets["test"]
    for column in range(problem.num_columns):
        hit = y == (1 if problem.num_columns == 1 else column)
        order = np.argsort(p[:, column])
        for part in np.array_split(order, 10):
            q = p[part, column]
            se = np.sqrt(np.sum(q * (1 - q))) + 1e-9
            assert abs(hit[part].sum() - q.sum()) < 4.5 * se + 0.5


@pytest.mark.parametrize("name", BINARY + THREE_CLASS)
def test_bayes_error_is_moderate_and_as_stated(name):
    source = SOURCES[name]
    x = source.sample_x(np.random.default_rng(0), 20_000)
    error = 1 - source.class_probability(x, 1.0).max(axis=1)
    assert abs(error.mean() - source.bayes_error) < 4 * error.std() / np.sqrt(len(x)) + 5e-4
    assert 0.05 <= source.bayes_error <= 0.10
    assert f"{100 * source.bayes_error:.1f}%" in " ".join(source.__doc__.split())


@pytest.mark.parametrize("name", REGRESSION)
def test_regression_noise_is_gaussian_with_the_stated_sd(name):
    problem = make_problem(name, num_test=20_000, label_noise=0.5)
    assert problem.noise_sd == pytest.approx(0.5 * SOURCES[name].noise_sd)
    z = (problem.targets["test"] - problem.p_true["test"][:, 0]) / problem.noise_sd
    assert abs(z.mean()) < 4.5 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 4.5 / np.sqrt(2 * len(z))
    assert abs(np.mean(z**4) - 3) < 4.5 * np.sqrt(96 / len(z))


def test_nonlinear_regression_has_a_gap_in_its_inputs():
    problem = make_problem("nonlinear_regression", n=500)
    x = problem.x_mean + problem.x_sd * problem.X
    assert 1 <= np.abs(x).min() < 1.05
    assert 2.95 < np.abs(x).max() <= 3
    assert np.any(np.abs(_original(problem, "grid")) < 0.9)


# --- the noise-free limit --------------------------------------------------------------------


def test_without_noise_the_familiar_shapes_come_back():
    expected = {
        "linear": lambda x: (6 * x[:, 0] + 4 * x[:, 1] > 0).astype(int),
        "xor": lambda x: (np.sign(x[:, 0]) != np.sign(x[:, 1])).astype(int),
        "rings": lambda x: (np.linalg.norm(x, axis=1) > 1.5).astype(int),
        "rings3": lambda x: np.digitize(np.linalg.norm(x, axis=1), [1.5, 2.5]),
        "clusters3": lambda x: np.argmin(np.linalg.norm(x[:, None] - CENTRES, axis=2), axis=1),
    }
    for name, rule in expected.items():
        problem = make_problem(name, label_noise=0.0, num_test=400)
        np.testing.assert_array_equal(problem.targets["test"], rule(_original(problem, "test")))


@pytest.mark.parametrize("name", BINARY + THREE_CLASS)
def test_without_noise_p_true_is_zero_or_one_and_is_the_limit(name):
    noise_free, nearly = (make_problem(name, label_noise=t, seed=2) for t in (0.0, 1e-9))
    for region in ("test", "far"):
        p = noise_free.p_true[region]
        assert set(np.unique(p)) <= {0.0, 1.0}
        np.testing.assert_array_equal(p, nearly.p_true[region])
        np.testing.assert_allclose(p, make_problem(name, label_noise=1e-300, seed=2).p_true[region])
    label = noise_free.targets["test"]
    p = noise_free.p_true["test"]
    assert np.all((p[:, 0] == label) if p.shape[1] == 1 else (p.argmax(1) == label))


def test_tied_classes_share_the_probability_without_noise():
    np.testing.assert_array_equal(SOURCES["xor"].truth(np.zeros((1, 2)), 0.0), [[0.5]])
    np.testing.assert_allclose(SOURCES["rings3"].class_probability(np.array([[1.5, 0]]), 0.0),
                               [[0.5, 0.5, 0]])  # fmt: skip


@pytest.mark.parametrize("name", ["moons", "spirals3"])
def test_curves_are_separated_without_noise(name):
    # A one-nearest-neighbour rule fitted on 400 points finds the curves again.
    problem = make_problem(name, label_noise=0.0, n=400, num_test=400)
    distance = np.linalg.norm(problem.regions["test"][:, None] - problem.X, axis=2)
    accuracy = np.mean(problem.y[distance.argmin(axis=1)] == problem.targets["test"])
    assert accuracy > 0.97


def test_inputs_do_not_depend_on_the_label_noise():
    quiet, noisy = (make_problem("moons", label_noise=t, seed=4) for t in (0.0, 1.5))
    np.testing.assert_array_equal(quiet.X, noisy.X)
    np.testing.assert_array_equal(quiet.regions["far"], noisy.regions["far"])
    assert np.any(quiet.y != noisy.y)


# --- shapes, standardisation, regions --------------------------------------------------------


@pytest.mark.parametrize("kind", [BINARY, THREE_CLASS, REGRESSION])
def test_problems_of_a_kind_share_every_shape(kind):
    def shapes(name, seed):
        problem = make_problem(name, seed=seed)
        return problem.shape_key, {
            key: {region: (a.shape, a.dtype) for region, a in getattr(problem, key).items()}
            for key in ("regions", "targets", "p_true")
        }, problem.grid_shape  # fmt: skip

    first = shapes(kind[0], 0)
    assert all(shapes(name, seed) == first for name in kind for seed in (0, 1))


@pytest.mark.parametrize(
    ("name", "likelihood", "features", "outputs", "classes"),
    [("xor", "bernoulli", 2, 1, 2), ("rings3", "categorical", 2, 3, 3),
     ("linear_regression", "gaussian", 1, 1, 0), ("wine", "categorical", 5, 3, 3),
     ("breast_cancer", "bernoulli", 10, 1, 2), ("digits_3v8", "bernoulli", 10, 1, 2)],
)  # fmt: skip
def test_defaults_and_sizes(name, likelihood, features, outputs, classes):
    problem = make_problem(name)
    assert problem.name == name
    assert problem.description
    assert problem.likelihood == likelihood
    assert (problem.num_features, problem.num_outputs) == (features, outputs)
    assert (problem.num_columns, problem.num_classes) == (outputs, classes)
    assert problem.X.shape == (100, features)
    assert len(problem.regions["far"]) == 100
    assert (
        len(problem.regions["test"])
        == len(problem.targets["test"])
        == min(100, 78 if name == "wine" else 100)
    )
    assert (problem.noise_sd is not None) == (likelihood == "gaussian")
    assert problem.y.dtype == (np.float64 if likelihood == "gaussian" else np.int64)


def test_settings_change_the_sizes():
    problem = make_problem("xor", n=30, num_test=7, num_far=9, grid_size=4)
    assert problem.shape_key == (
        "bernoulli", 2, (30, 2), (("test", 7), ("grid", 16), ("far", 9)),
    )  # fmt: skip
    assert make_problem("linear_regression", grid_size=3).grid_shape == (11,)


@pytest.mark.parametrize("name", PROBLEMS)
def test_inputs_are_standardised_on_the_training_data(name):
    problem = make_problem(name, seed=5)
    np.testing.assert_allclose(problem.X.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(problem.X.std(axis=0), 1, rtol=1e-10)
    # Not on the test data, which therefore miss it by what chance allows.
    assert np.all(problem.regions["test"].mean(axis=0) != 0)
    assert np.all(np.abs(problem.regions["test"].mean(axis=0)) < 0.7)


@pytest.mark.parametrize("name", PROBLEMS)
def test_grid_and_far_lie_where_they_are_defined(name):
    problem = make_problem(name, seed=6, num_far=500)
    low, high = problem.X.min(axis=0), problem.X.max(axis=0)
    reach = {
        region: np.max(np.abs(points - (low + high) / 2) / ((high - low) / 2), axis=1)
        for region, points in problem.regions.items()
    }
    assert reach["far"].min() > 1.5
    assert reach["far"].max() <= 3 + 1e-12
    assert (reach["far"] < 2.6).any()
    if name in REAL:
        assert "grid" not in problem.regions
        assert problem.grid_shape is None
        return
    assert reach["grid"].max() == pytest.approx(1.5)
    grid = problem.regions["grid"]
    np.testing.assert_allclose(grid.max(0) - grid.min(0), 1.5 * (high - low))
    expected = (21, 21) if problem.num_features == 2 else (101,)
    assert problem.grid_shape == expected
    for j in range(problem.num_features):
        axis = np.moveaxis(grid[:, j].reshape(expected), j, 0).reshape(expected[j], -1)
        np.testing.assert_array_equal(axis, np.repeat(axis[:, :1], axis.shape[1], axis=1))
        assert np.all(np.diff(axis[:, 0]) > 0)
    # All around the box, not on one side of it.
    signs = {tuple(s) for s in np.sign(problem.regions["far"] - (low + high) / 2)}
    assert len(signs) == 2**problem.num_features


def test_far_is_uniform_in_the_shell():
    points = make_problem("linear", num_far=20_000).regions["far"]
    problem = make_problem("linear")
    low, high = problem.X.min(axis=0), problem.X.max(axis=0)
    u = (points - (low + high) / 2) / ((high - low) / 2)
    outer = np.mean(np.abs(u).max(axis=1) > 2.25)
    expected = (9 - 2.25**2) / (9 - 1.5**2)
    assert abs(outer - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(u))


# --- seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_seeds_reproduce_and_differ(name):
    first, again, other = (make_problem(name, seed=s) for s in (0, 0, 1))
    for region in first.regions:
        np.testing.assert_array_equal(first.regions[region], again.regions[region])
        assert not np.array_equal(first.regions[region], other.regions[region])
    np.testing.assert_array_equal(first.y, again.y)
    np.testing.assert_array_equal(first.targets["test"], again.targets["test"])
    assert not np.array_equal(first.X, other.X)
    assert not np.array_equal(first.X, first.regions["test"][: len(first.X)])


def test_seeds_mean_the_same_in_another_process():
    # Python salts the hash of a string anew in every process.
    code = "from isounc.problems import make_problem as m; print(m('moons', seed=7).X[0].tolist())"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == str(make_problem("moons", seed=7).X[0].tolist())


def test_global_random_state_plays_no_part():
    np.random.seed(0)  # noqa: NPY002
    first = make_problem("wine")
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first.X, make_problem("wine").X)


def test_problems_do_not_share_their_random_numbers():
    def in_box(name):
        problem = make_problem(name, seed=0)
        low, high = problem.X.min(axis=0), problem.X.max(axis=0)
        return (problem.regions["far"] - (low + high) / 2) / (high - low)

    assert np.all(np.abs(in_box("linear") - in_box("clusters3")) > 1e-9)


def test_training_sets_without_a_class_are_drawn_again():
    # A third of all draws of three points have all three clusters: the redraw is at work here.
    for seed in range(20):
        problem = make_problem("clusters3", n=3, seed=seed, label_noise=0.0)
        assert sorted(problem.y) == [0, 1, 2]
        np.testing.assert_array_equal(
            problem.X, make_problem("clusters3", n=3, seed=seed, label_noise=0.0).X
        )
    assert all(len(set(make_problem("xor", n=2, seed=s).y)) == 2 for s in range(10))


# --- real sets -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_split_without_overlap_and_whitened(name):
    problem = make_problem(name, seed=2)
    assert dict(problem.p_true) == {}
    np.testing.assert_allclose(
        problem.X.T @ problem.X / len(problem.X), np.eye(problem.num_features), atol=1e-9
    )
    distance = np.linalg.norm(problem.X[:, None] - problem.regions["test"], axis=2)
    assert distance.min() > 0
    # The first components carry the labels: the nearest class mean does far better than chance.
    means = np.stack([problem.X[problem.y == c].mean(0) for c in range(problem.num_classes)])
    nearest = np.linalg.norm(problem.regions["test"][:, None] - means, axis=2).argmin(1)
    assert np.mean(nearest == problem.targets["test"]) > 0.85


def test_real_sets_fit_nothing_on_the_test_rows(monkeypatch):
    # Changing rows that training does not see must not move the training inputs.
    before = make_problem("wine", seed=0)
    source = SOURCES["wine"]
    table, labels = source.load()
    order = problems._rng("wine", 0, "data").permutation(len(table))
    changed = np.array(table)
    changed[order[100:]] += 50.0
    monkeypatch.setattr(source, "load", lambda: (changed, labels))
    after = make_problem("wine", seed=0)
    np.testing.assert_array_equal(before.X, after.X)
    assert not np.allclose(before.regions["test"], after.regions["test"])


def test_real_sets_use_all_rows_at_most_once():
    problem = make_problem("wine", n=170, num_test=100)
    assert (len(problem.X), len(problem.regions["test"])) == (170, 8)


# --- a user's arrays -------------------------------------------------------------------------

X = np.random.default_rng(0).normal(3.0, 5.0, (12, 2))
Y = np.array([0, 1] * 6)


def test_from_arrays_uses_the_arrays_as_given():
    query = np.random.default_rng(1).normal(size=(5, 2))
    problem = Problem.from_arrays(
        X, Y, regions={"query": query}, targets={"query": [0, 1, 1, 0, 0]}
    )
    np.testing.assert_array_equal(problem.X, X)
    np.testing.assert_array_equal(problem.y, Y)
    np.testing.assert_array_equal(problem.regions["query"], query)
    assert problem.targets["query"].tolist() == [0, 1, 1, 0, 0]
    assert problem.name == "user"
    assert problem.x_mean is None


def test_from_arrays_without_regions_predicts_at_the_training_inputs():
    problem = Problem.from_arrays(X.tolist(), Y.tolist())
    assert list(problem.regions) == ["train"]
    np.testing.assert_array_equal(problem.regions["train"], X)
    np.testing.assert_array_equal(problem.targets["train"], Y)


@pytest.mark.parametrize(
    ("y", "settings", "likelihood", "classes"),
    [(Y, {}, "bernoulli", 2), (Y == 1, {}, "bernoulli", 2),
     (Y.astype(np.uint8), {}, "bernoulli", 2),
     (np.arange(12) % 4, {}, "categorical", 4), (X[:, 0], {"noise_sd": 0.1}, "gaussian", 0),
     (Y.astype(float), {"likelihood": "bernoulli"}, "bernoulli", 2),
     (Y, {"likelihood": "categorical"}, "categorical", 2),
     (Y, {"num_classes": 5}, "categorical", 5),
     (np.arange(12), {"likelihood": "gaussian", "noise_sd": 2.0}, "gaussian", 0)],
)  # fmt: skip
def test_likelihood_is_inferred_from_y(y, settings, likelihood, classes):
    problem = Problem.from_arrays(X, y, **settings)
    assert (problem.likelihood, problem.num_classes) == (likelihood, classes)
    assert problem.y.dtype == (np.float64 if likelihood == "gaussian" else np.int64)
    np.testing.assert_array_equal(problem.y, y)


def test_arrays_are_copied_and_read_only():
    x, query = X.copy(), X[:3].copy()
    problem = Problem.from_arrays(x, Y, regions={"query": query})
    x[0, 0] = query[0, 0] = 99.0
    assert problem.X[0, 0] == problem.regions["query"][0, 0] == X[0, 0]
    for array in (
        problem.X,
        problem.y,
        problem.regions["query"],
        make_problem("xor").p_true["far"],
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.name = "other"


def test_jax_arrays_and_replace_work():
    import jax.numpy as jnp

    problem = Problem.from_arrays(jnp.asarray(X), jnp.asarray(Y))
    np.testing.assert_allclose(problem.X, X, rtol=1e-6)
    half = Problem.from_arrays(jnp.asarray(X, jnp.bfloat16), Y)
    np.testing.assert_allclose(half.X, X, rtol=1e-2)
    renamed = dataclasses.replace(problem, name="renamed")
    assert renamed.name == "renamed"
    np.testing.assert_array_equal(renamed.X, problem.X)


# --- bad input -------------------------------------------------------------------------------

NAN, INF = X.copy(), X.copy()
NAN[3, 1], INF[7, 0] = np.nan, np.inf

BAD_ARRAYS = {
    "nan in X": ((NAN, Y), {}, "X must be finite, got nan at row 3, column 1"),
    "inf in X": ((INF, Y), {}, "X must be finite, got inf at row 7, column 0"),
    "nan in y": ((X, np.where(Y, np.nan, 0.0)), {"noise_sd": 1},
                 "y must be finite, got nan at row 1 (counted from 0; 6 such in all)"),
    "lengths": ((X, Y[:-1]), {}, "y and X must be of the same length, got 11 and 12"),
    "labels 1, 2": ((X, Y + 1), {}, "y must hold labels 0..1 for 2 classes, got 1, 2; recode"),
    "labels -1, 1": ((X, 2 * Y - 1), {}, "y must hold labels 0..1 for 2 classes, got -1, 1"),
    "gap in labels": ((X, np.arange(12) % 3 * 2), {}, "labels 0..2 for 3 classes, got 0, 2, 4"),
    "three in bernoulli": ((X, np.arange(12) % 3), {"likelihood": "bernoulli"}, "got 0, 1, 2"),
    "fraction": ((X, Y * 0.5), {"likelihood": "bernoulli"}, "0..1 for 2 classes, got 0, 0.5"),
    "one class": ((X, 0 * Y), {}, "y holds one class only (0)"),
    "one class, categorical": ((X, 0 * Y), {"likelihood": "categorical"}, "one class only (0)"),
    "X is 1-D": ((X[:, 0], Y), {}, "X must have shape (rows, columns), got (12,)"),
    "y is 2-D": ((X, Y[:, None]), {}, "y must have shape (rows,), got (12, 1)"),
    "empty": ((X[:0], Y[:0]), {}, "X must have at least one row and one column, got shape (0, 2)"),
    "strings": ((X, ["a", "b"] * 6), {}, "y must hold real numbers, got dtype"),
    "complex": ((X + 1j, Y), {}, "X must hold real numbers, got dtype complex128"),
    "ragged": (([[1.0], [1.0, 2.0]], [0, 1]), {}, "X must be a rectangular array of numbers"),
    "no noise_sd": ((X, X[:, 0]), {}, "noise_sd is missing: y is floating"),
    "no noise_sd, explicit": ((X, Y), {"likelihood": "gaussian"}, "noise_sd must be a positive"),
    "zero noise_sd": ((X, X[:, 0]), {"noise_sd": 0}, "must be a positive finite number, got 0"),
    "negative noise_sd": ((X, X[:, 0]), {"noise_sd": -1.0}, "noise_sd must be a positive"),
    "nan noise_sd": ((X, X[:, 0]), {"noise_sd": np.nan}, "noise_sd must be a positive"),
    "text noise_sd": ((X, X[:, 0]), {"noise_sd": "1"}, "noise_sd must be a positive"),
    "needless noise_sd": ((X, Y), {"noise_sd": 1.0}, "noise_sd must be left out for likelihood"),
    "likelihood": ((X, Y), {"likelihood": "bernouli"}, "got 'bernouli'; did you mean 'bernoulli'?"),
    "num_classes": ((X, Y), {"likelihood": "bernoulli", "num_classes": 3}, "num_classes must be 2"),
    "num_classes text": ((X, Y), {"num_classes": "2"}, "num_classes must be an integer"),
    "region width": ((X, Y), {"regions": {"q": X[:, :1]}},
                     "regions['q'] must have 2 columns, as X has, and at least one row; got shape"),
    "region empty": ((X, Y), {"regions": {"q": X[:0]}}, "regions['q'] must have 2 columns"),
    "region nan": ((X, Y), {"regions": {"q": NAN}}, "regions['q'] must be finite, got nan"),
    "region 1-D": ((X, Y), {"regions": {"q": X[0]}}, "regions['q'] must have shape (rows,"),
    "no regions": ((X, Y), {"regions": {}}, "regions must name at least one set of points"),
    "bare regions": ((X, Y), {"regions": X}, "regions must map names to arrays, got ndarray"),
    "region name": ((X, Y), {"regions": {"a/b": X}}, "a name in regions must be letters"),
    "name": ((X, Y), {"name": "../up"}, "name must be letters, digits"),
    "target region": ((X, Y), {"regions": {"test": X}, "targets": {"tests": Y}},
                      "a name in targets must be one of test, got 'tests'; did you mean 'test'?"),
    "target length": ((X, Y), {"regions": {"test": X}, "targets": {"test": Y[:3]}},
                      "targets['test'] and regions['test'] must be of the same length, got 3 and"),
    "target labels": ((X, Y), {"regions": {"test": X}, "targets": {"test": Y + 1}},
                      "targets['test'] must hold labels 0..1"),
    "truth shape": ((X, Y), {"regions": {"test": X}, "p_true": {"test": np.zeros((12, 2))}},
                    "p_true['test'] must have shape (12, 1), got (12, 2)"),
    "truth range": ((X, Y), {"regions": {"test": X}, "p_true": {"test": np.full((12, 1), 1.5)}},
                    "p_true['test'] must hold probabilities, got 1.5 to 1.5"),
    "truth sum": ((X, np.arange(12) % 3),
                  {"regions": {"test": X}, "p_true": {"test": np.full((12, 3), 0.5)}},
                  "p_true['test'] must hold probabilities that sum to 1 in each row"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(case):
    arrays, settings, message = BAD_ARRAYS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        Problem.from_arrays(*arrays, **settings)


def test_bad_grid_shape_and_affine_map_are_refused():
    problem = make_problem("xor")
    for bad in ((21,), (20, 21)):
        with pytest.raises(ValueError, match=r"grid_shape must have 2 entries .* \(441\)"):
            dataclasses.replace(problem, grid_shape=bad)
    for bad in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="x_sd must hold 2"):
            dataclasses.replace(problem, x_sd=bad)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [("moon", {}, "got 'moon'; did you mean 'moons'?"),
     ("ring", {}, "did you mean 'rings' or 'rings3'?"),
     ("nothing-like-it", {}, "problem must be one of linear, xor"),
     (["moons"], {}, "problem must be one of"),
     ("xor", {"n": 1}, "n must be an integer from 2 to 1000000, got 1"),
     ("xor", {"n": 10.0}, "n must be an integer from 2 to 1000000, got 10.0"),
     ("xor", {"seed": -1}, "seed must be an integer from 0 to 9223372036854775807, got -1"),
     ("xor", {"seed": True}, "seed must be an integer"),
     ("xor", {"label_noise": -0.1}, "label_noise must be a non-negative finite number, got -0.1"),
     ("xor", {"label_noise": np.inf}, "label_noise must be a non-negative finite number, got inf"),
     ("xor", {"num_test": 0}, "num_test must be an integer from 1 to"),
     ("xor", {"num_far": 0}, "num_far must be an integer from 1 to"),
     ("xor", {"grid_size": 1}, "grid_size must be an integer from 2 to"),
     ("rings3", {"n": 2}, "n=2 training rows of 'rings3' did not hold all 3 classes"),
     ("linear_regression", {"label_noise": 0.0}, "label_noise must be positive for a regression"),
     ("wine", {"label_noise": 0.5}, "label_noise must be 1 for a real data set"),
     ("wine", {"n": 178}, "n must be 6 to 177, for the data set has 178 rows"),
     ("digits_3v8", {"n": 10}, "n must be 11 to 356")],
)  # fmt: skip
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_problem(name, **settings)


# --- the registry ----------------------------------------------------------------------------


def test_registry_can_be_extended(monkeypatch):
    monkeypatch.setattr(problems, "PROBLEMS", dict(PROBLEMS))
    seen = {}

    def factory(**settings):
        seen.update(settings)
        return Problem.from_arrays(X, Y, name="mine")

    register_problem("mine", factory)
    assert make_problem("mine", seed=3).name == "mine"
    assert seen == {
        "n": None, "seed": 3, "label_noise": 1.0, "num_test": 100, "num_far": 100, "grid_size": 21,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"'mine' is already registered.*overwrite=True"):
        register_problem("mine", factory)
    register_problem("mine", lambda **_: Problem.from_arrays(X, 1 - Y), overwrite=True)
    np.testing.assert_array_equal(make_problem("mine").y, 1 - Y)
    with pytest.raises(ValueError, match="already registered"):
        register_problem("moons", factory)
    with pytest.raises(ValueError, match="factory must be callable"):
        register_problem("other", Problem.from_arrays(X, Y))
    with pytest.raises(ValueError, match="name must be letters"):
        register_problem("my problem", factory)


def test_registry_holds_the_documented_names():
    assert list(PROBLEMS) == BINARY + THREE_CLASS + REGRESSION + REAL
    for name in PROBLEMS:
        assert f"`{name}`" in make_problem.__doc__
    for name in BINARY + THREE_CLASS:
        assert isinstance(SOURCES[name], ClassificationSource)
    for name in REGRESSION:
        assert isinstance(SOURCES[name], RegressionSource)
    assert not any(isinstance(SOURCES[name], SyntheticSource) for name in REAL)
