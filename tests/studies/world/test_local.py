"""Chains around a decoder: their density, what they draw where that is known, and their checks."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.llm.model.decoder import Decoder
from isounc.studies.world import local
from isounc.studies.world.corpus import make_world
from isounc.studies.world.local import (
    LocalChains,
    convergence,
    log_density,
    sample_locally,
)
from isounc.studies.world.references import Near, numbers_of_chains
from isounc.studies.world.scores import reference
from isounc.studies.world.train import config_of

WORLD = make_world(0, 1)
CONFIG = config_of(WORLD.vocab_size, 8, 1)
GRAPHDEF, PARAMS = nnx.split(Decoder.random(CONFIG, 0), nnx.Param)
DATA = (jnp.asarray(WORLD.facts), jnp.asarray(WORLD.claims))


def test_the_density_is_that_of_all_sentences_and_minibatches_estimate_it():
    density = jax.jit(
        functools.partial(
            log_density, graphdef=GRAPHDEF, num_facts=len(DATA[0]), num_claims=len(DATA[1]),
            prior_sd=0.5,
        )
    )  # fmt: skip
    decoder = nnx.merge(GRAPHDEF, PARAMS)
    facts, claims = DATA
    steps = jax.nn.log_softmax(decoder(facts[:, :-1]))
    told = jnp.take_along_axis(steps, facts[:, 1:, None], axis=2).sum()
    reply = jax.nn.log_softmax(decoder(claims[:, :-1])[:, -1])
    replied = jnp.take_along_axis(reply, claims[:, -1:], axis=1).sum()
    square = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(PARAMS))
    by_hand = float(told + replied) - square / (2 * 0.25)
    assert float(density(PARAMS, facts, claims)) == pytest.approx(by_hand, rel=1e-5)
    parts = [
        density(PARAMS, facts[i::4], claims[i::4]) for i in range(4)
    ]  # of equal size: 1680 facts, 180 claims
    assert len(facts) % 4 == len(claims) % 4 == 0
    assert float(np.mean(parts)) == pytest.approx(by_hand, rel=1e-5)


def test_chains_under_a_narrow_prior_draw_that_prior_and_give_probabilities(monkeypatch):
    """With a prior of sd 1e-4 sentences hardly count, and all parameters are N(0, 1e-8)."""
    seen, plain = [], local.answer_log_probs
    monkeypatch.setattr(
        local, "answer_log_probs", lambda *a, **k: seen.append(a[1]) or plain(*a, **k)
    )
    settings = LocalChains(
        num_chains=2,
        num_warmup=200,
        num_draws=8,
        thin=20,
        minibatch=4,
        prior_sd=1e-4,
        memory=0,
        step=0.1 * 1e-8 * len(WORLD.facts),
    )
    start = jax.tree.map(lambda leaf: 1e-4 * leaf, PARAMS)
    found = sample_locally(GRAPHDEF, start, WORLD, settings, seed=0)
    flat = np.array(
        [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(draw)]) for draw in seen]
    )
    # Euler's step of .1 makes the variance larger by 1 / (1 - .1 / 2).
    assert flat.std() / 1e-4 == pytest.approx((1 - 0.05) ** -0.5, abs=0.02)
    assert abs(flat.mean()) < 1e-5
    apart = [np.corrcoef(flat[i], flat[i + 1])[0, 1] for i in range(7)]
    assert np.mean(apart) == pytest.approx(0.9**20, abs=0.05)
    assert abs(np.corrcoef(flat[3], flat[11])[0, 1]) < 0.1  # the chains are no copies
    assert found.shape == (2, 8, 200, 32) and (found < 0).all()
    first = plain(GRAPHDEF, seen[9], WORLD)
    np.testing.assert_array_equal(found[1, 1], first)
    # With a tether of five steps' noise variances they stay about where they start.
    seen.clear()
    held = dataclasses.replace(settings, step=1e-12 * len(WORLD.facts), memory=5, prior_sd=1e6)
    sample_locally(GRAPHDEF, PARAMS, WORLD, held, seed=0)
    apart = [
        np.asarray(a - b).ravel()
        for draw in seen
        for a, b in zip(jax.tree.leaves(draw), jax.tree.leaves(PARAMS), strict=True)
    ]
    assert np.concatenate(apart).std() == pytest.approx((5e-12 / 0.9) ** 0.5, rel=0.05)
    with pytest.raises(ValueError, match=r"step must be short enough .* got 1e[+]30"):
        sample_locally(GRAPHDEF, start, WORLD, dataclasses.replace(settings, step=1e30), 0)


def test_convergence_of_chains_that_mix_and_of_chains_that_do_not():
    rng = np.random.default_rng(0)
    good = np.log(rng.uniform(0.2, 0.8, size=(4, 200, 30, 2)))
    answer, judged = np.ones(30, int), np.arange(30) < 20
    found = convergence(good, answer, judged)
    assert found.passed and found.rhat < 1.05 and found.ess > 300
    apart = good.copy()
    apart[0, :, :2, 1] -= 2  # one chain elsewhere at two of the twenty judged questions
    assert not convergence(apart, answer, judged).passed
    others = good.copy()
    others[0, :, 20:, 1] -= 2  # at questions that are not judged, and for other answers
    others[0, :, :, 0] -= 2
    assert convergence(others, answer, judged) == found
    grows = good.copy()  # around one mean with a spread that grows: no stationary variance
    grows[..., 1] = np.log(
        0.5 + 0.3 * np.linspace(0, 1, 200)[:, None] * rng.uniform(-1, 1, (4, 200, 30))
    )
    assert not convergence(grows, answer, judged).passed
    still = convergence(np.repeat(good[:, :1], 200, axis=1), answer, judged)
    assert not still.passed


def test_r_hat_of_chains_that_stand_still_apart_is_infinite_and_in_no_row():
    """As chains from different members whose proposals are all refused: no finite number stands for it."""
    p = np.random.default_rng(0).uniform(0.2, 0.8, size=(4, 1, 30, 2))
    still = np.log(np.repeat(p, 50, axis=1))
    everywhere = np.ones(30, bool)
    found = convergence(still, np.zeros(30, int), everywhere)
    assert found.rhat == np.inf and not found.passed
    near = Near(found, reference(still.reshape(-1, 30, 2), np.zeros(30, int)), None)
    assert set(numbers_of_chains({"local": near}, everywhere)) == {"local_passed", "local_ess"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_chains": 1}, "num_chains must be an integer from 2"),
        ({"num_draws": 4}, "num_draws must be an integer from 8"),
        ({"thin": 0}, "thin must be an integer from 1"),
        ({"memory": -1}, "memory must be an integer from 0"),
        ({"step": 0.0}, "step must be a positive"),
        ({"prior_sd": -1.0}, "prior_sd must be a positive"),
    ],
)
def test_bad_settings_of_chains_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        LocalChains(**change)
