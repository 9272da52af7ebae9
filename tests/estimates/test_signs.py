"""Where ||grad p||^2 rises with p, and that only those who may misread it are warned."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from isounc import isotropic
from isounc.estimates.signs import rises_with_p

RNG = np.random.default_rng(0)


def shifted(w, x):
    """Logits whose gradients are the unit vectors."""
    return x + w[None, :]


def norms(x, task="multiclass", **given):
    width = x.shape[1] if task != "binary" else 1
    return isotropic(shifted, x, jnp.zeros(width), task=task, **given)


@pytest.mark.parametrize("num_classes", [3, 12])
def test_it_is_the_direction_of_a_sharper_prediction(num_classes):
    """By the norms themselves, at logits and at 1.001 times these."""
    x = RNG.normal(size=(64, num_classes)) * RNG.uniform(0.1, 4, size=(64, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        now, sharper = (norms(scale * x) for scale in (1, 1.001))
        one = norms(x, target="predicted")
    below = now.prob.max(1) < 0.5
    rises = sharper.epistemic.sum(1) > now.epistemic.sum(1)
    np.testing.assert_array_equal(rises_with_p(now.prob, over_classes=True), below & rises)
    assert 0 < (below & rises).sum() < 64
    p = one.prob[:, 0]
    np.testing.assert_array_equal(rises_with_p(one.prob, over_classes=False), p < 0.5)
    # The remedy that the warning names falls with p: ||grad log p||^2 = |e_c - p|^2 here.
    sums = (now.prob**2).sum(1)
    np.testing.assert_allclose(one.epistemic[:, 0] / p**2, 1 - 2 * p + sums, rtol=1e-4)


def test_those_are_warned_who_may_misread_it():
    x = np.zeros((5, 10))
    x[:, 0], x[:, 1] = [0.5, 0.8, 1.0, 5.0, 6.0], 0.3  # p of .15 to .24, and two above 1/2
    with pytest.warns(
        UserWarning, match=r"the largest p is below 1/2 at 3 of 5 examples, .*wrong way"
    ):
        norms(x)
    with pytest.warns(UserWarning, match="p of the predicted class or token is below 1/2 at 3"):
        norms(x, target="predicted")
    rows = jnp.asarray(x)
    with pytest.warns(UserWarning, match="at 3 of 5"):  # of the most probable next token
        isotropic(lambda w, ids: w[ids[:, -1]], np.arange(5)[:, None], rows, task="token")


@pytest.mark.parametrize(
    ("x", "given"),
    [
        # Two of five below 1/2; a class that is asked for; equal probabilities; three that are level.
        (np.eye(10)[0] * np.array([[0.5], [0.8], [4.0], [5.0], [6.0]]), {}),
        (np.eye(10)[0] * np.full((5, 1), 0.7), {"target": [0] * 5}),
        (np.zeros((5, 10)), {}),
        (np.array([[0.3, 0.0, 0.0]] * 4), {}),
        # A binary model's other class has 1 - p.
        (np.linspace(-9, -1, 8)[:, None], {"task": "binary"}),
        (np.zeros((5, 10)), {"task": "regression"}),
        (
            np.eye(10)[0] * np.full((5, 1), 0.7),
            {"method": "logit_scaled", "scale": 1.0, "target": "predicted"},
        ),
    ],
)
def test_others_are_not(x, given):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        norms(x, **given)
