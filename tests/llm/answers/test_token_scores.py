"""Scores of tokens from a forward pass against plain gradients in the logits and the output matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.llm.answers import token_scores as module
from isounc.llm.answers.norms import answer_norms
from isounc.llm.answers.packing import pack
from isounc.llm.answers.token_scores import scores_of_logits, token_scores
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Decoder

PROMPT = [3, 1, 4, 1, 5]
ANSWERS = [[9, 2, 6], [5], [7, 7]]
ROWS = [pack(PROMPT, ANSWERS), pack(PROMPT[2:], [[8]]), pack(PROMPT[1:], [[2, 10]])]


def make(tied, dtype="float32"):
    config = DecoderConfig("llama", 11, 8, 1, 2, 1, 4, 12, 64, Rotary(1e4, 4), tied=tied)
    return Decoder.random(config, dtype=dtype)


def double(decoder):
    """The same decoder in float64."""
    shapes, weights = decoder.config.shapes(), decoder.weights()
    flat = {"embed": weights.embed, "norm": weights.norm, "head": weights.head}
    flat |= {
        f"layers.{i}.{n}": w for i, layer in enumerate(weights.layers) for n, w in layer.items()
    }
    return Decoder(
        decoder.config, {name: jnp.asarray(np.asarray(flat[name]), float) for name in shapes}
    )


def plain(states, matrix, token):
    """log p, entropy, and squared norms of plain gradients: of log p in z, of log p and p in U."""

    def log_q(matrix, shift=0.0):
        return jax.nn.log_softmax(states @ matrix + shift)

    def sq_norm(function, at):
        return float((jax.grad(function)(at) ** 2).sum())

    q = np.exp(np.asarray(log_q(matrix)))
    return (
        float(log_q(matrix)[token]), float(-(q * np.log(q)).sum()),
        sq_norm(lambda shift: log_q(matrix, shift)[token], jnp.zeros(len(q))),
        sq_norm(lambda matrix: log_q(matrix)[token], matrix),
        sq_norm(lambda matrix: jnp.exp(log_q(matrix)[token]), matrix),
    )  # fmt: skip


def check(found, row, answers, prompt, decoder, tolerance):
    """The scores of a packed sequence against each answer read by itself."""
    assert [len(column) for column in found] == [row.targets.size] * 4
    weights = decoder.weights()
    matrix = weights.embed.T if weights.head is None else weights.head
    matrix = jnp.asarray(np.asarray(matrix), float)
    expected = []
    for answer in answers:
        states = decoder.hidden(jnp.array([prompt + answer]))[0, len(prompt) - 1 : -1]
        states = jnp.asarray(np.asarray(states), float)
        expected += [plain(h, matrix, y) for h, y in zip(states, answer, strict=True)]
    log_p, entropy, of_logits, of_head, of_head_of_p = np.array(expected).T
    np.testing.assert_allclose(found.log_probs, log_p, **tolerance)
    np.testing.assert_allclose(found.entropies, entropy, **tolerance)
    np.testing.assert_allclose(found.aleatoric, np.exp(log_p) * -np.expm1(log_p), **tolerance)
    for log_norms, norms in (
        (found.log_sq_norms_logits, of_logits), (found.log_sq_norms_head, of_head),
        (found.log_sq_norms_head_of_p, of_head_of_p),
    ):  # fmt: skip
        np.testing.assert_allclose(np.exp(log_norms), norms, **tolerance)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_plain_gradients_in_float64(tied):
    """The output matrix is a layer of its own there, tied or not."""
    with jax.enable_x64(True):
        decoder = double(make(tied))
        found = token_scores(decoder, ROWS[: 3 if tied else 1], batch_size=2)
        check(found[0], ROWS[0], ANSWERS, PROMPT, decoder, {"rtol": 1e-10})
        if tied:
            check(found[1], ROWS[1], [[8]], PROMPT[2:], decoder, {"rtol": 1e-10})
            check(found[2], ROWS[2], [[2, 10]], PROMPT[1:], decoder, {"rtol": 1e-10})


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_types_of_the_weights(dtype, rtol):
    decoder = make(True, dtype)
    found = token_scores(decoder, ROWS[:1])
    with jax.enable_x64(True):
        check(found[0], ROWS[0], ANSWERS, PROMPT, decoder, {"rtol": rtol, "atol": rtol * 1e-2})


@pytest.mark.parametrize("z", [0.0, 5.0, 60.0, 1e4, 1e30])
def test_extreme_probabilities_keep_their_digits(z):
    """Two tokens with logits z and 0: ||e - q||^2 = 2 (1 - p)^2 in closed form."""
    states = jnp.full((2, 4), 0.5)  # of squared norm 1
    logits = jnp.array([[z, 0.0], [z, 0.0]], jnp.float32)
    found = scores_of_logits(logits, states, jnp.array([0, 1]))
    log_p = np.array([-np.logaddexp(0, -z), -np.logaddexp(0, z)])
    log_1mp = log_p[::-1]
    np.testing.assert_allclose(found.log_probs, log_p, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(found.aleatoric, np.exp(log_p + log_1mp), rtol=1e-4, atol=1e-35)
    for log_norms in (found.log_sq_norms_logits, found.log_sq_norms_head):
        np.testing.assert_allclose(log_norms, np.log(2) + 2 * log_1mp, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        found.log_sq_norms_head_of_p, np.log(2) + 2 * (log_p + log_1mp), rtol=1e-5
    )
    assert np.isfinite(found.entropies).all()


@pytest.mark.parametrize("tied", [True, False])
def test_answer_norms_give_the_same_from_their_own_pass(tied):
    decoder, rows = make(tied), [pack(PROMPT, [[9, 2, 6]]), pack(PROMPT[2:], [[8]])]
    # One row with a backward pass, and one without.
    for estimands in (("sequence",), ()):
        norms = answer_norms(decoder, rows, estimands=estimands, scalings=("all",))
        for of_norms, alone in zip(norms.tokens, token_scores(decoder, rows), strict=True):
            for mine, other in zip(of_norms, alone, strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_a_shape_compiles_once():
    decoder = make(True)
    before = module._of_states._cache_size()
    one, two = (token_scores(decoder, [row]) for row in (pack([1, 2], [[3, 4]]), ROWS[2]))
    assert module._of_states._cache_size() == before + 1
    np.testing.assert_allclose(token_scores(decoder, ROWS)[2], two[0], rtol=1e-5)
    assert not np.allclose(one[0], two[0])


def test_bad_input():
    broken = make(True)
    broken.norm[...] = broken.norm[...] * jnp.nan
    for decoder, rows, given, words in (
        (broken, ROWS, {}, r"logits must be finite, got .* question 0"),
        (make(True), [pack([1], [[11]])], {}, "tokens must be below 11"),
        (make(True), ROWS, {"batch_size": 0}, "batch_size must be .* 0"),
    ):
        with pytest.raises(ValueError, match=words):
            token_scores(decoder, rows, **given)
