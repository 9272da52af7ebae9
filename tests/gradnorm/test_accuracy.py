"""Single precision against exact sums: rows that cancel, and numbers at the ends of the range."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.gradnorm import explain, products, value_and_grad_gram, value_and_sq_grad_norm
from isounc.gradnorm.products import MOST_CANCELLED

EPS = float(np.finfo(np.float32).eps)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def alike(seed, distance, rows=8, width=64):
    """Rows that are alike but for a relative distance, and cotangents of alternating sign."""
    a = normal(seed, 1, width) + np.float32(distance) * normal(seed + 1, rows, width)
    g = np.where(np.arange(rows)[:, None] % 2, -1, 1) * normal(seed + 2, 1, width)
    return a, g.astype(np.float32)


def clusters(seed, distance, rows=8, width=64):
    """Rows that are alike in two groups, so that subtracting their mean would not help."""
    a, g = alike(seed, distance, rows, width)
    a[rows // 2 :] += normal(seed + 3, 1, width)
    return a, g


def checked(sq_norm, a, g):
    """Assert an error of no more than that of forming A^T G, and of the bound that is promised."""
    a, g = (np.asarray(rows, np.float64) for rows in (a, g))
    exact = ((a.T @ g) ** 2).sum()
    terms = (np.sqrt((a**2).sum(1)) * np.sqrt((g**2).sum(1))).sum()
    formed = 2 * EPS * terms / np.sqrt(exact)
    assert abs(sq_norm / exact - 1) < 2 * formed + 2 * MOST_CANCELLED * len(a) * EPS
    return abs(sq_norm / exact - 1)


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("make", [alike, clusters])
def test_rows_that_cancel_in_a_product(make, distance):
    a, g = make(0, distance)
    f = lambda w, a: ((a @ w) * g).sum()  # noqa: E731
    w = normal(9, 64, 64)
    assert explain(f, w, a).leaves[0].uses == ("dot_general (gram)",)
    _, sq_norm = value_and_sq_grad_norm(f)(w, a)
    assert checked(sq_norm, a, g) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_random_cancellation_in_a_product(seed):
    """Rows of any mixture: the bound holds on either side of the switch to the formed gradient."""
    rng = np.random.default_rng(seed)
    f = jax.jit(value_and_sq_grad_norm(lambda w, a, g: ((a @ w) * g).sum()))
    w = normal(seed, 48, 64)
    for _ in range(20):
        common, distance = rng.integers(1, 6), 10 ** rng.uniform(-4, 0.5)
        a = normal(rng.integers(1000), 16, common) @ normal(rng.integers(1000), common, 48)
        a += np.float32(distance) * normal(rng.integers(1000), 16, 48)
        g = normal(rng.integers(1000), 16, 64)
        g -= (
            np.float32(1 - distance) * a @ np.linalg.lstsq(a, g, rcond=None)[0] * rng.choice([0, 1])
        )
        checked(f(w, a, g)[1], a, g)


def test_one_cancelling_example_of_a_batch():
    a, g = zip(*(alike(0, d) for d in (1.0, 1e-4, 0.1)), strict=True)
    a, g = np.stack(a), np.stack(g)
    f = value_and_sq_grad_norm(lambda w, a, g: ((a @ w) * g).sum(), in_axes=0)
    w = normal(9, 64, 64)
    for i, sq_norm in enumerate(f(w, a, g)[1]):
        checked(sq_norm, a[i], g[i])
    # Under a vmap of the user's own, and under a derivative of the norms.
    one = value_and_sq_grad_norm(lambda w, a, g: ((a @ w) * g).sum())
    np.testing.assert_allclose(jax.vmap(one, (None, 0, 0))(w, a, g)[1], f(w, a, g)[1], rtol=1e-6)
    slope = jax.grad(lambda g: f(w, a, g)[1].sum())(g)
    with jax.enable_x64(True):
        formed = np.einsum("ntc,nto->nco", a.astype(float), g.astype(float))
    expected = 2 * np.einsum("ntc,nco->nto", a.astype(float), formed)
    for i in range(3):
        error = np.abs(slope[i] - expected[i]).max()
        assert error < 1e-5 * np.abs(a[i]).max() ** 2 * np.abs(g[i]).max() * 64 * 8


def test_cancelling_products_of_two_gradients():
    a, g = alike(0, 1e-3)
    h = normal(5, *g.shape)
    f = lambda w, a: jnp.stack([((a @ w) * g).sum(), ((a @ w) * h).sum()])  # noqa: E731
    _, gram = value_and_grad_gram(f)(normal(9, 64, 64), a)
    first, second = (a.astype(float).T @ rows.astype(float) for rows in (g, h))
    np.testing.assert_allclose(gram[0, 0], (first**2).sum(), rtol=1e-3)
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    np.testing.assert_allclose(gram[0, 1], (first * second).sum(), atol=1e-3 * scale)


def test_cancelling_patches_of_a_convolution():
    image = 1 + 1e-3 * normal(0, 1, 12, 12, 16)
    signs = np.where(np.indices((12, 12)).sum(0) % 2, -1, 1)[None, :, :, None].astype(np.float32)
    g = (signs * normal(1, 1, 1, 1, 64)).astype(np.float32)
    options = {"padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def f(w, image):
        return (jax.lax.conv_general_dilated(image, w, (1, 1), **options) * g).sum()

    w = normal(2, 3, 3, 16, 64)
    gradient = np.asarray(jax.grad(f)(w, image), np.float64)
    _, sq_norm = value_and_sq_grad_norm(f)(w, image)
    np.testing.assert_allclose(sq_norm, (gradient**2).sum(), rtol=1e-4)


def test_cancelling_rows_of_a_table():
    table, ids = normal(0, 10, 16), np.array([3, 3, 3, 3, 5, 5], np.int8)
    g = normal(1, 1, 16) * np.array([[1], [-1], [1], [-1 + 1e-4], [1], [-1]], np.float32)
    f = lambda table, ids: (table[ids] * g).sum()  # noqa: E731
    expected = np.zeros((10, 16))
    np.add.at(expected, ids, g.astype(float))
    _, sq_norm = value_and_sq_grad_norm(f)(table, ids)
    np.testing.assert_allclose(sq_norm, (expected**2).sum(), rtol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_uses_of_a_tied_matrix_that_cancel(transposed):
    w = normal(0, 40, 48)
    a, g = alike(1, 1e-3, rows=4, width=40)
    h = (g[:, :1] * normal(2, 1, 48)).astype(np.float32)
    near = a + np.float32(1e-3) * normal(3, *a.shape)

    def f(w, a):
        second = -((w.T @ near.T).T if transposed else near @ w)
        return ((a @ w) * h).sum() + (second * h).sum()

    assert explain(f, w, a).leaves[0].way == "tied"
    exact = (((a.astype(float) - near.astype(float)).T @ h.astype(float)) ** 2).sum()
    _, sq_norm = value_and_sq_grad_norm(f)(w, a)
    np.testing.assert_allclose(sq_norm, exact, rtol=1e-2)


def test_a_tied_table_and_head_that_cancel():
    table, ids = normal(0, 30, 24), np.array([7, 7, 2], np.uint8)
    g = (normal(1, 1, 24) * np.array([[1], [-1 + 1e-4], [1e-4]])).astype(np.float32)
    rows, h = normal(2, 2, 24), normal(3, 2, 30) * np.float32(1e-4)
    f = lambda t, ids: (t[ids] * g).sum() + ((rows @ t.T) * h).sum()  # noqa: E731
    assert explain(f, table, ids).leaves[0].way == "tied"
    expected = h.astype(float).T @ rows.astype(float)
    np.add.at(expected, ids, g.astype(float))
    _, sq_norm = value_and_sq_grad_norm(f)(table, ids)
    np.testing.assert_allclose(sq_norm, (expected**2).sum(), rtol=2e-3)


@pytest.mark.parametrize(
    ("rows", "data", "cotangent"),
    [(1, 1e9, 1e-22), (4, 1e9, 1e-22), (4, 1e-22, 1e9), (4, 1e20, 1e-20)],
)
def test_large_data_and_small_cotangents(rows, data, cotangent):
    """Unix seconds and a saturated output: their product is in range, squares of them are not."""
    a = np.float32(data) * normal(0, rows, 32)
    g = np.float32(cotangent) * normal(1, rows, 32)
    _, sq_norm = value_and_sq_grad_norm(lambda w, a, g: ((a @ w) * g).sum())(
        normal(2, 32, 32), a, g
    )
    exact = ((a.astype(float).T @ g.astype(float)) ** 2).sum()
    np.testing.assert_allclose(sq_norm, exact, rtol=1e-5)


def test_large_data_and_a_small_factor_of_one_example():
    """XLA takes a factor of a vector out of its product with itself, whose square then underflows."""
    a, v = np.float32(1e15) * normal(0, 1, 32), normal(1, 8)
    f = lambda w, a: ((a @ w) * v * 1e-20).sum()  # noqa: E731
    _, sq_norm = value_and_sq_grad_norm(f, in_axes=0)(normal(2, 32, 8), a)
    exact = (a.astype(float) ** 2).sum() * (v.astype(float) ** 2).sum() * 1e-40
    np.testing.assert_allclose(sq_norm, [exact], rtol=1e-5)


def test_zero_gradients():
    f = lambda w, a: ((a @ w) * 0).sum()  # noqa: E731
    for rows in (1, 8):
        assert value_and_sq_grad_norm(f)(normal(0, 64, 64), normal(1, rows, 64))[1] == 0
        zero = np.zeros((rows, 64), np.float32)
        norm = value_and_sq_grad_norm(lambda w, a: jnp.sin(a @ w).sum())
        assert norm(normal(0, 64, 64), zero)[1] == 0
        slope = jax.grad(lambda a: norm(normal(0, 64, 64), a)[1])(zero)  # noqa: B023
        assert (slope == 0).all()


@pytest.mark.parametrize("width", [64, 61])
def test_a_formed_gradient_in_groups_of_columns(monkeypatch, width):
    monkeypatch.setattr(products, "BLOCK", 1000)
    a, g = alike(0, 1e-4, width=width)
    f = lambda w, a: ((a @ w) * g).sum()  # noqa: E731
    assert explain(f, normal(9, width, width), a).leaves[0].uses == ("dot_general (gram)",)
    checked(value_and_sq_grad_norm(f)(normal(9, width, width), a)[1], a, g)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_uses_of_a_tied_matrix_that_cancel_at_any_scale(scale):
    """Large data with small cotangents, and the other way round."""
    a, g = alike(1, 1e-3, rows=4, width=40)
    near = a + np.float32(1e-3) * normal(3, *a.shape)
    a, near = np.float32(scale) * a, np.float32(scale) * near
    h = (g[:, :1] * normal(2, 1, 48) / np.float32(scale)).astype(np.float32)
    f = lambda w, a: ((a @ w) * h).sum() - ((near @ w) * h).sum()  # noqa: E731
    w = normal(0, 40, 48)
    assert explain(f, w, a).leaves[0].way == "tied"
    exact = (((a.astype(float) - near.astype(float)).T @ h.astype(float)) ** 2).sum()
    np.testing.assert_allclose(value_and_sq_grad_norm(f)(w, a)[1], exact, rtol=1e-2)
