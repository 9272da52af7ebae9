"""Modules that change when they are called: counters, streams of random numbers, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from isounc import isotropic

X = np.random.default_rng(0).standard_normal((3, 2, 3)).astype(np.float32)


class Sequence(nnx.Module):
    """A classifier of sequences by a recurrent layer, in one direction or both."""

    def __init__(self, cell, *, both=False):
        rngs = nnx.Rngs(0)
        layer = nnx.RNN(cell(3, 4, rngs=rngs))
        self.layer = nnx.Bidirectional(layer, nnx.RNN(cell(3, 4, rngs=rngs))) if both else layer
        self.head = nnx.Linear(8 if both else 4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layer(x)[:, -1])


class Calls(nnx.Variable):
    """A number of calls."""


class Counted(nnx.Module):
    """Counts its calls, and shows how many there were in its outputs."""

    def __init__(self):
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.calls = Calls(jnp.array(2))

    def __call__(self, x):
        self.calls[...] += 1
        return self.calls[...] * self.layer(x[:, 0])


class Drawing(nnx.Module):
    """Draws random numbers at each call: without use, as noise, or for dropout."""

    def __init__(self, use):
        rngs = nnx.Rngs(0)
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.rngs, self.use = rngs, use

    def __call__(self, x):
        out = self.layer(x[:, 0])
        noise = jax.random.normal(self.rngs.params(), out.shape)
        out += noise if self.use == "noise" else 0
        return self.drop(out, deterministic=self.use != "dropout")


class Normalised(nnx.Module):
    """Takes the statistics of the batch unless it is told that it does not train."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, use_running_average=True, rngs=rngs)

    def __call__(self, x, train=True):
        return self.norm(self.layer(x[:, 0]), use_running_average=not train)


def squares(apply, params):
    """Squared norms of the gradients of all probabilities, by row, from plain gradients."""

    def prob(params, row):
        return jax.nn.softmax(apply(params, row[None])[0])

    # In single precision, as recurrent cells carry a state of their own type.
    jacobian = jax.jit(jax.jacrev(prob))
    return np.stack([
        sum((np.asarray(j, np.float64).reshape(2, -1) ** 2).sum(1) for j in jax.tree.leaves(leaves))
        for leaves in (jacobian(params, row) for row in X)
    ])  # fmt: skip


def plain(tree):
    """The arrays of a tree, random keys as numbers."""
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sequence(nnx.LSTMCell),
        lambda: Sequence(nnx.GRUCell),
        lambda: Sequence(nnx.LSTMCell, both=True),
        Counted,
        lambda: Drawing("none"),
    ],
    ids=["lstm", "gru", "both", "counter", "unused"],
)
def test_a_call_may_change_the_module(make):
    model = make()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    before = plain(rest)
    got = isotropic(model, X, task="multiclass")

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    np.testing.assert_allclose(got.epistemic, squares(apply, params), rtol=3e-4)
    np.testing.assert_allclose(got.prob, jax.nn.softmax(apply(params, X)), rtol=1e-5)
    # Whatever the number of batches, the model is as it was given.
    again = isotropic(model, np.repeat(X, 3, axis=0), task="multiclass", batch_size=3)
    np.testing.assert_allclose(again.epistemic[::3], got.epistemic, rtol=1e-5)
    for array, now in zip(before, plain(nnx.split(model, nnx.Param, ...)[2]), strict=True):
        np.testing.assert_array_equal(array, now)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Drawing("noise"), "uses random numbers"),
        (lambda: Drawing("dropout"), "uses random numbers"),
        (Normalised, "updates the statistics of the batch"),
    ],
)
def test_what_shows_only_in_a_call_is_refused(make, what):
    with pytest.raises(ValueError, match=f"model must be in evaluation mode; it {what}"):
        isotropic(make(), X, task="multiclass")


def test_the_argument_that_switches_statistics_off():
    model = Normalised()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    got = isotropic(model, X, task="multiclass", kwargs={"train": False})
    expected = squares(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x, train=False), params)
    np.testing.assert_allclose(got.epistemic, expected, rtol=3e-4)


class LinenSequence(nn.Module):
    """The recurrent classifier in Linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])


def test_a_recurrent_linen_module():
    module = LinenSequence()
    variables = module.init(jax.random.key(0), X)
    got = isotropic(module, X, variables, task="multiclass")
    expected = squares(lambda p, x: module.apply({"params": p}, x), variables["params"])
    np.testing.assert_allclose(got.epistemic, expected, rtol=3e-4)
