"""Gradient norms of a language model's answers against plain gradients of each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.llm.answers.estimands import (
    ESTIMANDS,
    SCALINGS,
    logit_of_log,
)
from isounc.llm.answers.layerwise import values_and_norms
from isounc.llm.answers.norms import answer_log_probs, answer_norms
from isounc.llm.answers.packing import PackedAnswers, only, pack, pad
from isounc.llm.answers.token_scores import scores_of_logits
from isounc.llm.model import transformer
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Decoder
from isounc.llm.model.huggingface_config import from_huggingface

PROMPT = [3, 1, 4, 1, 5, 2, 6, 5]
ANSWERS = [[9, 2, 6], [5], [3, 5, 8, 9], [7, 7]]
SINGLE = [pack([1], [[1]])]


def make(tied):
    config = from_huggingface(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 11,
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "rope_theta": 1e4, "tie_word_embeddings": tied,
            "hidden_act": "silu",
        }
    )  # fmt: skip
    return Decoder.random(config)


@pytest.fixture(scope="module")
def decoder():
    return make(True)


def log_probs(decoder, prompt, answer):
    """log p_t of one answer, read by itself."""
    ids = prompt + answer
    tokens = jnp.array([ids + [0] * (16 - len(ids))])
    logits = jax.nn.log_softmax(decoder(tokens)[0], axis=-1)
    return jnp.array([logits[len(prompt) + t - 1, y] for t, y in enumerate(answer)])


def log_probability(decoder, estimand, answers, chosen):
    """log p as the definition has it."""
    mine = log_probs(decoder, PROMPT, answers[chosen])
    if estimand == "sequence":
        return mine.sum()
    if estimand == "length_normalised":
        return mine.mean()
    if estimand == "mean_token":
        return jnp.log(jnp.exp(mine).mean())
    if estimand == "first_token":
        return mine[0]
    totals = jnp.stack([log_probs(decoder, PROMPT, answer).sum() for answer in answers])
    return jax.nn.log_softmax(totals)[chosen]


def dense(decoder, answers, chosen):
    """log p and the squared norms of its plain gradient, by estimand."""
    graphdef, params = nnx.split(decoder, nnx.Param)

    @jax.jit
    def values_and_squares(params):
        def values(params):
            model = nnx.merge(graphdef, params)
            return jnp.stack([log_probability(model, e, answers, chosen) for e in ESTIMANDS])

        gradients = jax.jacrev(values)(params)
        squares = jax.tree.map(lambda g: (g**2).reshape(len(ESTIMANDS), -1).sum(1), gradients)
        return values(params), squares

    values, squares = values_and_squares(params)
    sums = {scaling: np.zeros(len(ESTIMANDS)) for scaling in SCALINGS}
    last = "embed" if decoder.config.tied else "unembed"
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), square in zip(leaves, jax.tree.leaves(squares), strict=True):
        sums["all"] += square
        sums["layer_scaled"] += np.mean(np.square(leaf)) * np.asarray(square)
        sums["last_layer"] += np.asarray(square) * (f"['{last}']" in jax.tree_util.keystr(path))
    return np.asarray(values), sums


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_norms_are_those_of_plain_gradients(tied):
    """The numbers of a packed, padded and batched answer are those of the answer by itself."""
    decoder = make(tied)
    cases = [(ANSWERS, 2)] if tied else [(ANSWERS[::-1], 0)]
    rows = [pack(PROMPT, answers) for answers, _ in cases]
    found = answer_norms(decoder, rows, chosen=[chosen for _, chosen in cases], batch_size=1)
    for i, (answers, chosen) in enumerate(cases):
        log_p, squares = dense(decoder, answers, chosen)
        for j, estimand in enumerate(ESTIMANDS):
            expected = logit_of_log(float(log_p[j]))
            assert found.log_odds[estimand][i] == pytest.approx(expected, rel=2e-4, abs=1e-5)
            for scaling in SCALINGS:
                got = np.exp(found.log_sq_norms[estimand][scaling][i])
                assert got == pytest.approx(float(squares[scaling][j]), rel=1e-4), (
                    estimand,
                    scaling,
                )


def test_the_most_probable_answer_is_chosen(decoder):
    forward = jax.jit(decoder)
    totals = [float(log_probs(forward, PROMPT, a).sum()) for a in ANSWERS]
    found = answer_norms(decoder, [pack(PROMPT, ANSWERS)], batch_size=1)
    assert found.chosen[0] == np.argmax(totals)
    np.testing.assert_allclose(found.log_probs[0], totals, rtol=1e-4)
    best = log_probs(forward, PROMPT, ANSWERS[found.chosen[0]])
    np.testing.assert_allclose(found.tokens[0].log_probs, best, rtol=1e-4)


def test_forward_passes_alone_give_the_same_log_probabilities(decoder):
    forward = jax.jit(decoder)
    rows = [pack(PROMPT, ANSWERS), pack(PROMPT, [[2]]), pack(PROMPT[:3], ANSWERS[:2])]
    for row, found in zip(rows, answer_log_probs(decoder, rows), strict=True):
        prompt = row.tokens[row.branches == -1].tolist()
        answers = [row.targets[row.answer == k].tolist() for k in range(row.num_answers)]
        expected = [float(log_probs(forward, prompt, answer).sum()) for answer in answers]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_answer_alone_is_what_pack_makes_of_it():
    row = pack(PROMPT, ANSWERS)
    for k, answer in enumerate(ANSWERS):
        for a, b in zip(only(row, k), pack(PROMPT, [answer]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("estimands", [("choice",), ("mean_token", "length_normalised")])
def test_fewer_estimands_are_the_same_numbers(decoder, estimands):
    rows = [pack(PROMPT, ANSWERS), pack(PROMPT, ANSWERS[1:])]
    whole = answer_norms(decoder, rows)
    found = answer_norms(decoder, rows, estimands=estimands)
    assert found.log_odds.keys() == set(estimands)
    np.testing.assert_array_equal(found.chosen, whole.chosen)
    for estimand in estimands:
        np.testing.assert_allclose(found.log_odds[estimand], whole.log_odds[estimand], rtol=1e-4)
        got, right = (x.log_sq_norms[estimand]["all"] for x in (found, whole))
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)
    for a, b in zip(found.log_probs, whole.log_probs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_one_answer_has_no_choice(decoder):
    found = answer_norms(decoder, [pack(PROMPT, [[2]])], batch_size=1)
    assert np.isnan(found.log_odds["choice"][0])
    # An answer of one token: all estimands are one, and so is the backward pass.
    log_p, squares = dense(decoder, [[2]], 0)
    for estimand in ("sequence", "length_normalised", "mean_token", "first_token"):
        expected = logit_of_log(float(log_p[0]))
        assert found.log_odds[estimand][0] == pytest.approx(expected, rel=1e-4)
        for scaling in SCALINGS:
            got = np.exp(found.log_sq_norms[estimand][scaling][0])
            assert got == pytest.approx(float(squares[scaling][0]), rel=1e-4)


def test_nearly_certain_answers_keep_their_digits():
    """1 - p of 1e-9 is far below what 1 - p in float32 can tell."""
    sharp = make(True)
    sharp.norm[...] = sharp.norm[...] * 150
    logits = np.asarray(sharp(jnp.array([PROMPT]))[0, -1], np.float64)
    first = int(logits.argmax())
    found = answer_norms(sharp, [pack(PROMPT, [[first]])], batch_size=1)
    others = np.delete(logits, first)
    expected = logits[first] - others.max() - np.log(np.exp(others - others.max()).sum())
    assert expected > 18  # 1 - p rounds to 0 in float32
    for estimand in ("sequence", "mean_token", "first_token"):
        assert found.log_odds[estimand][0] == pytest.approx(expected, rel=1e-4)
        assert np.isfinite(found.log_sq_norms[estimand]["all"][0])


def squared_norm(decoder, log_odds):
    """Of the plain gradient of a number, over all parameters."""
    graphdef, params = nnx.split(decoder, nnx.Param)
    gradient = jax.grad(lambda params: log_odds(nnx.merge(graphdef, params)))(params)
    return sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(gradient))


def test_certain_answers_have_a_norm():
    """Log p and its squared gradient are 0 in float32."""
    certain = make(True)
    certain.norm[...] = certain.norm[...] * 1000
    logits = np.asarray(certain(jnp.array([PROMPT]))[0, -1], np.float64)
    best, other = (int(i) for i in np.argsort(logits)[[-1, 0]])
    found = answer_norms(certain, [pack(PROMPT, [[best], [other]])], batch_size=1)

    def between(decoder):
        last = decoder(jnp.array([PROMPT]))[0, -1]
        return last[best] - last[other]

    def against_all(decoder):
        last = decoder(jnp.array([PROMPT]))[0, -1]
        return last[best] - jax.nn.logsumexp(last.at[best].set(-jnp.inf))

    for estimand, log_odds in (("choice", between), ("sequence", against_all)):
        expected = float(log_odds(certain))
        assert expected > 100
        assert found.log_odds[estimand][0] == pytest.approx(expected, rel=1e-4)
        log_norm = np.log(squared_norm(certain, log_odds)) - 2 * expected
        assert found.log_sq_norms[estimand]["all"][0] == pytest.approx(log_norm, rel=1e-4)


def test_several_certain_tokens_keep_their_digits():
    """1 - prod p_t is sum (1 - p_t) where all are nearly certain."""
    certain = make(True)
    certain.norm[...] = certain.norm[...] * 300
    ids = list(PROMPT)
    for _ in range(3):
        ids.append(int(np.asarray(certain(jnp.array([ids]))[0, -1]).argmax()))
    row = pack(PROMPT, [ids[len(PROMPT) :]])
    found = answer_norms(certain, [row], batch_size=1)
    logits = np.asarray(certain(jnp.array([ids]))[0, len(PROMPT) - 1 : -1], np.float64)
    wrong = 0.0
    for line, token in zip(logits, ids[len(PROMPT) :], strict=True):
        others = np.exp(np.delete(line, token) - line[token]).sum()
        wrong += others / (1 + others)
    assert wrong < 1e-9
    assert found.log_odds["sequence"][0] == pytest.approx(-np.log(wrong), rel=1e-4)
    assert np.isfinite(found.log_sq_norms["sequence"]["all"][0])


def test_batches_do_not_change_the_numbers(decoder):
    """Three rows in two parts, the second of which is filled up."""
    rows = [pack(PROMPT, answers) for answers in (ANSWERS, ANSWERS[::-1], [*ANSWERS[1:], [4, 4]])]
    one, many = (answer_norms(decoder, rows, batch_size=b) for b in (1, 2))
    np.testing.assert_allclose(one.log_odds["choice"], many.log_odds["choice"], rtol=1e-4)
    norms = (found.log_sq_norms["choice"]["all"] for found in (one, many))
    np.testing.assert_allclose(*norms, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: pack([], [[1]]), ("prompt", "at least one token")),
        (lambda d: pack([1], [[1], []]), ("answers", "number 1")),
        (lambda d: pack([1], []), ("answers", "0 answers")),
        (lambda d: answer_norms(d, SINGLE, estimands=["choices"]), ("choices", "'choice'")),
        (lambda d: answer_norms(d, SINGLE, scalings=["last"]), ("'last'", "last_layer")),
        (lambda d: answer_norms(d, SINGLE, chosen=[1]), ("chosen", "question 0", "got 1")),
    ],
)  # fmt: skip
def test_bad_input(decoder, call, words):
    with pytest.raises(ValueError) as error:
        call(decoder)
    for word in words:
        assert word in str(error.value)


def test_logits_that_are_not_finite():
    broken = make(True)
    broken.norm[...] = broken.norm[...] * jnp.nan
    with pytest.raises(ValueError, match=r"finite, got .* for question 0"):
        answer_norms(broken, [pack(PROMPT, [[1]])], batch_size=1)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_norms_by_layer_are_those_of_plain_gradients(tied):
    """Of each parameter by its name; layers with a window and a rotary embedding of their own."""
    config = DecoderConfig(
        "gemma3_text", 11, 8, 3, 2, 1, 4, 12, 64, Rotary(1e4, 4), windows=(0, 2, 0),
        local_rotary=Rotary(100.0, 4), tied=tied, qkv_bias=True, qk_norm="head", norm_out=True,
        embed_scale=2.0,
    )  # fmt: skip
    weights = Decoder.random(config).weights()
    rows = [pack(PROMPT, [[9, 2, 6]]), pack(PROMPT[1:], [[5, 5, 1, 3]])]
    packed = PackedAnswers(*map(np.stack, zip(*(pad(row, 12, 4) for row in rows), strict=True)))

    def columns(tokens, sequence, chosen):
        log_odds = jnp.where(sequence.answer == chosen, tokens.log_odds, 0)
        return jnp.stack([log_odds.sum(), jnp.sin(log_odds).sum()]), tokens.entropies

    @jax.jit
    def dense(weights, packed):
        def one(weights, sequence):
            batch = jax.tree.map(lambda a: jnp.asarray(a)[None], sequence)
            states = transformer.hidden(config, weights, *batch[:3])[0]
            states = states[sequence.at]
            logits = transformer.logits_of(states, weights.embed, weights.head)
            return columns(scores_of_logits(logits, states, sequence.targets), sequence, 0)[0]

        def squares(sequence):
            gradients = jax.jacrev(one)(weights, sequence)
            return jax.tree.map(lambda g: (g**2).reshape(2, -1).sum(1), gradients)

        return jax.vmap(one, (None, 0))(weights, packed), jax.lax.map(squares, packed)

    chosen = np.zeros(2, np.int32)
    values, _, found, _ = values_and_norms(config, weights, packed, chosen, columns=columns)
    right_values, right = dense(weights, packed)
    np.testing.assert_allclose(values, right_values, rtol=1e-4)
    ends = {"embed": right.embed, "norm": right.norm} | ({} if tied else {"head": right.head})
    for norms, expected in zip((found.ends, *found.layers), (ends, *right.layers), strict=True):
        assert norms.keys() == expected.keys()
        for name, norm in norms.items():
            np.testing.assert_allclose(norm, expected[name], rtol=2e-4, atol=1e-9, err_msg=name)
