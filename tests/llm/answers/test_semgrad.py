"""SemGrad of answers against plain derivatives in one state after the other, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.llm.answers import norms
from isounc.llm.answers.norms import answer_norms
from isounc.llm.answers.packing import pack
from isounc.llm.answers.semgrad import log_semgrad
from isounc.llm.model import transformer
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Decoder

PROMPT = [3, 1, 4, 1, 5, 2, 6, 5]


def make(num_layers, sharpness=1.0):
    config = DecoderConfig("llama", 11, 8, num_layers, 2, 1, 4, 12, 64, Rotary(1e4, 4))
    decoder = Decoder.random(config)
    decoder.norm[...] = decoder.norm[...] * sharpness
    return decoder


def plain_semgrad(decoder, prompt, answer, from_end):
    """S as its equation has it: every block after a state is computed anew from that state."""
    with jax.enable_x64(True):
        config = decoder.config
        weights = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), float), decoder.weights())
        ids = jnp.array([prompt + answer[:-1]])
        given = transformer.inputs(config, weights.embed, ids, jnp.arange(ids.size)[None])

        def through(x, blocks):
            for i in blocks:
                x, _ = transformer.block(config, weights.layers[i], x, *given.of_layer(config, i))
            return x

        def logits_of(x):
            states = transformer.final_norm(config, weights.norm, x)[0, len(prompt) - 1 :]
            return jax.nn.log_softmax(transformer.logits_of(states, weights.embed, None))

        num = config.num_layers
        log_q = np.asarray(logits_of(through(given.x, range(num))))
        entropies = -(np.exp(log_q) * log_q).sum(1)
        at, absolute = len(prompt) - from_end, []
        for block in range(num - num // 2, num):
            before = through(given.x, range(block))

            def weighted(state, block=block, before=before):
                log_p = logits_of(through(before.at[0, at].set(state), range(block, num)))
                return jnp.vdot(entropies, log_p[jnp.arange(len(answer)), jnp.array(answer)])

            absolute.append(np.abs(jax.grad(weighted)(before[0, at])))
        return float(np.mean(absolute))


@pytest.mark.parametrize("from_end", [1, 3])
def test_semgrad_is_that_of_plain_derivatives(from_end):
    """Of packed, padded, batched and chosen answers, of one token and of several."""
    decoder = make(5)  # two states, behind the third block and the fourth
    cases = [(PROMPT, [[9, 2, 6], [5]], 0), (PROMPT[2:], [[4, 4]], 0), (PROMPT[1:], [[7]], 0),
             (PROMPT, [[9, 2, 6], [5]], 1)]  # fmt: skip
    found = answer_norms(
        decoder, [pack(prompt, answers) for prompt, answers, _ in cases],
        chosen=[k for *_, k in cases], estimands=("sequence",), scalings=("all",),
        semgrad_token=from_end,
    )  # fmt: skip
    for (prompt, answers, k), log_s in zip(cases, found.log_semgrad, strict=True):
        expected = plain_semgrad(decoder, prompt, answers[k], from_end)
        assert np.exp(log_s) == pytest.approx(expected, rel=2e-4)


def test_nearly_certain_answers_keep_their_digits():
    """1 - p is far below what float32 can tell from 0 in e_y - softmax."""
    sharp = make(2, 50.0)
    ids = list(PROMPT)
    for _ in range(2):
        ids.append(int(np.asarray(sharp(jnp.array([ids]))[0, -1]).argmax()))
    answer = ids[len(PROMPT) :]
    found = answer_norms(
        sharp, [pack(PROMPT, [answer])], estimands=("sequence",), scalings=("all",), semgrad_token=1
    )
    assert 18 < found.log_odds["sequence"][0] < 30  # float64 can tell
    expected = plain_semgrad(sharp, PROMPT, answer, 1)
    assert found.log_semgrad[0] == pytest.approx(np.log(expected), abs=2e-3)


def test_no_backward_pass_unless_it_is_asked_for(monkeypatch):
    """Nor for an answer of one token, whose numbers have one gradient but for a factor."""
    passes, original = [], norms.values_and_norms

    def counted(*args, **kwargs):
        result = original(*args, **kwargs)
        passes.append(result[0].shape[1])
        return result

    monkeypatch.setattr(norms, "values_and_norms", counted)
    decoder, rows = make(2), [pack(PROMPT, [[1, 2]]), pack(PROMPT, [[1]])]
    for token, expected in ((0, [1, 1]), (2, [2, 1])):
        passes.clear()
        found = answer_norms(
            decoder, rows, estimands=("sequence",), scalings=("all",), semgrad_token=token
        )
        assert passes == expected
        assert (found.log_semgrad is None) == (token == 0)


def test_where_there_is_none():
    assert np.isnan(log_semgrad(np.ones(1), 0.0))
    assert log_semgrad(np.zeros(2), 0.0) == log_semgrad(np.ones(2), -np.inf) == -np.inf
    rows = [pack(PROMPT, [[1]]), pack(PROMPT[:2], [[1]])]
    for decoder, token, words in (
        (make(2), 3, "semgrad_token must be .* of every prompt.* 3 for the 2 tokens of prompt 1"),
        (make(1), 1, "semgrad_token must be 0 for a decoder of one block"),
        (make(2), -1, "semgrad_token must be .* -1"),
    ):
        with pytest.raises(ValueError, match=words):
            answer_norms(decoder, rows, semgrad_token=token)


def test_the_sign_between_two_answers():
    """H(p) (1 - p), of which the table of signs says that it is largest at p = .30."""
    p = np.linspace(1e-4, 1 - 1e-4, 9999)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert round(float(p[(entropy * (1 - p)).argmax()]), 2) == 0.30
