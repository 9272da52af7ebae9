"""Sampled answers against a loop without cache and frequencies, and in batches of any size."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.llm import GenerationSettings, generate, load_model
from isounc.llm.model import decode
from tests.llm import files as llm_files

PROMPTS = ["abc", "a bad cab\nfed", "dead beef"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(
        llm_files.write_folder(tmp_path_factory.mktemp("tiny") / "mistral", "mistral")
    )


@pytest.fixture(scope="module")
def log_probs(model):
    """Log-probabilities (T, V) of the tokens after each of at most 64, without a cache."""
    graph, state = nnx.split(model.decoder)
    run = jax.jit(lambda state, ids: jax.nn.log_softmax(nnx.merge(graph, state)(ids)[0]))

    def of(ids):
        return np.asarray(run(state, np.pad(ids, (0, 64 - len(ids)))[None]))[: len(ids)]

    return of


def settings(**changes):
    return GenerationSettings(**{"max_new_tokens": 20, "stop_ids": (), **changes})


def test_greedy_is_argmax_without_a_cache(model, log_probs):
    found = generate(model, PROMPTS, settings(temperature=0.0))
    assert found.tokens.shape == (3, 1, 20)
    for i, prompt in enumerate(PROMPTS):
        ids = model.tokenizer.encode(prompt)
        assert found.prompt_lengths[i] == len(ids)
        for _ in range(20):
            ids.append(int(log_probs(ids)[-1].argmax()))
        assert found.tokens[i, 0].tolist() == ids[-20:]


def test_log_probs_and_entropies_are_the_models_own(model, log_probs):
    found = generate(model, PROMPTS, settings(num_samples=3, temperature=1.7, top_k=20, top_p=0.9))
    for i, s in np.ndindex(3, 3):
        ids = [*model.tokenizer.encode(PROMPTS[i]), *found.tokens[i, s]]
        at = found.prompt_lengths[i] - 1
        right = log_probs(ids)[at:-1]
        chosen = right[np.arange(20), found.tokens[i, s]]
        np.testing.assert_allclose(found.log_probs[i, s], chosen, atol=1e-4)
        entropy = -(np.exp(right) * right).sum(-1)
        np.testing.assert_allclose(found.entropies[i, s], entropy, atol=1e-4)


def test_frequencies_of_first_tokens(model, log_probs):
    """Pearson's chi-squared of 600 draws for each strategy, and no token that it excludes."""
    prompt = PROMPTS[0]
    p = np.exp(log_probs(model.tokenizer.encode(prompt))[-1].astype(float))
    order = np.argsort(-p)
    for changes, allowed, power in (
        ({}, order, 1.0),
        ({"temperature": 2.0}, order, 0.5),
        ({"top_k": 5}, order[:5], 1.0),
        ({"top_p": 0.6}, order[: np.searchsorted(np.cumsum(p[order]), 0.6) + 1], 1.0),
    ):
        q = np.zeros_like(p)
        q[allowed] = p[allowed] ** power
        q /= q.sum()
        found = generate(model, [prompt], settings(num_samples=600, max_new_tokens=1, **changes))
        counts = np.bincount(found.tokens.ravel(), minlength=64)
        assert counts[q == 0].sum() == 0
        kept = 600 * q > 5
        expected = [*600 * q[kept], 600 * q[~kept].sum()]
        seen = [*counts[kept], counts[~kept].sum()]
        chi = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True) if e > 0)
        assert chi < kept.sum() + 5 * np.sqrt(2 * kept.sum())


def test_a_prompts_samples_are_its_own(model):
    base = settings(num_samples=4)
    together = generate(model, PROMPTS, base)
    alone = generate(model, PROMPTS[::-1], settings(num_samples=2, batch_size=1))
    np.testing.assert_array_equal(alone.tokens[::-1], together.tokens[:, :2])
    np.testing.assert_allclose(alone.log_probs[::-1], together.log_probs[:, :2], atol=1e-4)
    other = generate(model, PROMPTS, settings(num_samples=4, seed=1))
    assert (other.tokens != together.tokens).any()
    assert len({tuple(t) for t in together.tokens[1]}) == 4
    ids = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    np.testing.assert_array_equal(generate(model, ids, base).tokens, together.tokens)


def test_a_shared_beginning_is_read_once_and_changes_nothing(model):
    beginning = [3 + i % 50 for i in range(37)]
    prompts = [[*beginning, *rest] for rest in ([5], [6, 7, 8], [5, 9])]
    base = settings(num_samples=3)
    together = generate(model, prompts, base)
    for i, prompt in enumerate(prompts):
        alone = generate(model, [prompt], base)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[i], atol=1e-4)


def test_samples_that_have_ended_are_left_out_of_the_rest(model):
    free = generate(model, PROMPTS, settings(num_samples=6, max_new_tokens=40))
    ends = (3, 17, 40)
    found = generate(model, PROMPTS, settings(num_samples=6, max_new_tokens=40, stop_ids=ends))
    assert len(set(found.lengths.ravel())) > 4
    for at in np.ndindex(found.lengths.shape):
        n = found.lengths[at]
        np.testing.assert_array_equal(found.tokens[at][:n], free.tokens[at][:n])
        np.testing.assert_allclose(found.log_probs[at][:n], free.log_probs[at][:n], atol=1e-4)
        assert found.stopped[at] == (found.tokens[at][n - 1] in ends) == (n < 40)


def test_draws_of_one_among_many_follow_the_softmax():
    """Pearson's chi-squared over 1000 scores in four blocks; impossible ones are never drawn."""
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=2, size=1000).astype(np.float32)
    scores[rng.permutation(1000)[:300]] = -np.inf
    scores[256:512] = -np.inf
    scores[-1] = -np.inf
    keys = jax.random.split(jax.random.key(0), 200_000)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: decode._draw(key, jnp.asarray(scores))))(keys))
    counts = np.bincount(draws, minlength=1000)
    p = np.exp(scores - scores.max())
    expected = len(keys) * p / p.sum()
    assert counts[p == 0].sum() == 0
    kept = expected > 5
    chi = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert kept.sum() > 200
    assert abs(chi - kept.sum()) < 4 * np.sqrt(2 * kept.sum())


def test_stops(model):
    free = generate(model, PROMPTS, settings(num_samples=4))
    whole = free.text[1][0]
    assert (free.lengths == 20).all() and not free.stopped.any()
    # A string that spans tokens, beyond the first segment, and is in no single one.
    cut = next(
        i for i in range(18, 2, -1) if len(model.tokenizer.decode(free.tokens[1, 0, i : i + 2])) > 2
    )
    stop = model.tokenizer.decode(free.tokens[1, 0, cut : cut + 2])
    found = generate(model, PROMPTS, settings(num_samples=4, stop=(stop,)))
    assert found.text[1][0] == whole[: whole.index(stop)]
    assert found.stopped[1, 0]
    n = found.lengths[1, 0]
    ids = free.tokens[1, 0]
    assert stop in model.tokenizer.decode(ids[:n]) and stop not in model.tokenizer.decode(
        ids[: n - 1]
    )
    np.testing.assert_array_equal(found.tokens[1, 0, :n], ids[:n])
    assert (found.tokens[1, 0, n:] == -1).all() and (found.log_probs[1, 0, n:] == 0).all()
    assert model.tokenizer.decode(ids[: found.text_lengths[1, 0]]).startswith(found.text[1][0])
    # A token that stops belongs to the answer, not to its text.
    end = int(ids[3])
    found = generate(model, PROMPTS, settings(num_samples=4, stop_ids=(end,)))
    n = int(np.flatnonzero(ids == end)[0]) + 1
    assert (found.lengths[1, 0], found.tokens[1, 0, n - 1]) == (n, end)
    assert found.tokens.shape[2] == found.lengths.max()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_k": 0}, "top_k"),
        ({"stop": "\n"}, "stop must be a tuple"),
        ({"stop": ("",)}, "stop must be a tuple of non-empty"),
        ({"temperature": 0.0, "num_samples": 2}, "num_samples must be 1 at temperature 0"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_prompts_that_cannot_be(model):
    with pytest.raises(ValueError, match="at least one prompt"):
        generate(model, [])
    with pytest.raises(ValueError, match="got no tokens for prompt 1"):
        generate(model, ["a", ""], settings())
    with pytest.raises(
        ValueError, match=r"20 new tokens in the context of 64, got 50 tokens in prompt 0"
    ):
        generate(model, ["ab " * 25], settings())
    with pytest.raises(ValueError, match=r"token ids 0..63, got 1 to 64 in prompt 0"):
        generate(model, [[1, 64]], settings())
    with pytest.raises(ValueError, match=r"stop_ids must be token ids 0..63, got 64"):
        generate(model, ["a"], settings(stop_ids=(64,)))
    with pytest.raises(ValueError, match="prompts must be texts"):
        generate(model, "a", settings())
    nans = jax.tree.map(lambda a: np.full(a.shape, np.nan, np.float32), model.weights())
    broken = dataclasses.replace(model, parameters=nans)
    with pytest.raises(ValueError, match="logits of model mistral must be finite"):
        generate(broken, PROMPTS, settings(num_samples=4))
