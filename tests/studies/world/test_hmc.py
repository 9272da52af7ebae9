"""Hamiltonian Monte Carlo of a decoder: its density, what it draws where that is known, resumption."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.llm.model.decoder import Decoder
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.kernels import HMC
from isounc.studies.world import hmc
from isounc.studies.world.corpus import make_world
from isounc.studies.world.hmc import Draws, HMCChains, Target, sample_by_hmc
from isounc.studies.world.local import LocalChains, log_density
from isounc.studies.world.settings import Settings, check
from isounc.studies.world.train import Members, config_of

WORLD = make_world(0, 1)
DECODERS = [
    nnx.split(Decoder.random(config_of(WORLD.vocab_size, 8, 1), seed), nnx.Param)
    for seed in range(2)
]
GRAPHDEF, PARAMS = DECODERS[0]
MEMBERS = Members(
    GRAPHDEF, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part for _, part in DECODERS))
)


@pytest.fixture
def plain(monkeypatch):
    """Transitions that are not tried again: their program compiles in a fraction of the time."""
    monkeypatch.setattr(hmc, "_SAMPLER", HMC(retries=0))


@pytest.mark.parametrize("memory", [0, 50])
def test_the_density_is_that_of_the_stochastic_gradient_chains_with_every_sentence(memory):
    local = LocalChains(memory=memory, step=0.7, prior_sd=0.8)
    target = Target.of(PARAMS, WORLD, local)
    assert len(target.facts) < len(WORLD.facts) and float(target.told.sum()) == len(WORLD.facts)
    whole = jax.jit(
        functools.partial(
            log_density, facts=jnp.asarray(WORLD.facts), claims=jnp.asarray(WORLD.claims),
            graphdef=GRAPHDEF, num_facts=len(WORLD.facts), num_claims=len(WORLD.claims),
            prior_sd=0.8,
        )
    )  # fmt: skip
    found = []
    for params in (PARAMS, DECODERS[1][1]):
        x = target.position(params)
        np.testing.assert_allclose(
            np.concatenate([np.ravel(a) for a in jax.tree.leaves(target.params(x))]),
            np.concatenate([np.ravel(a) for a in jax.tree.leaves(params)]),
            atol=1e-5,
        )
        own = float(target.remainder(x, GRAPHDEF)) - float((np.asarray(x, float) ** 2).sum()) / 2
        apart = sum(
            float((np.asarray(a - b, float) ** 2).sum())
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True)
        )
        found.append(own - float(whole(params)) + local.tether(len(WORLD.facts)) * apart / 2)
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=0.1)  # the same up to a constant


def test_chains_under_a_narrow_prior_draw_it_and_resume_with_equal_bits(
    plain, monkeypatch, tmp_path
):
    """With a prior of sd 1e-4 sentences hardly count, and all parameters are N(0, 1e-8)."""
    local = LocalChains(memory=0, prior_sd=1e-4)
    settings = HMCChains(num_chains=2, num_warmup=20, num_draws=24)
    whole: list[np.ndarray] = []
    positions = hmc.answer_log_probs

    def answer(graphdef, params, world):
        whole.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
        return positions(graphdef, params, world)

    monkeypatch.setattr(hmc, "answer_log_probs", answer)
    found = sample_by_hmc(MEMBERS, 0, WORLD, local, settings, 0)
    draws = np.array(whole)
    assert found.log_probs.shape == (2, 24, 200, 32) and (found.log_probs < 0).all()
    assert found.is_sound and found.acceptance is not None and found.acceptance > 0.9
    assert draws.std() / 1e-4 == pytest.approx(1, abs=0.02)
    assert abs(draws.mean()) < 2e-6
    assert abs(np.corrcoef(draws[0], draws[24])[0, 1]) < 0.1  # the chains are no copies
    assert not Draws(found.log_probs, 0.002).is_sound

    def stop(text):
        if "30/44" in text:
            raise KeyboardInterrupt

    asked = {"local": 1}
    with pytest.raises(KeyboardInterrupt):
        store = Checkpoint.open(tmp_path / "chains", asked)
        sample_by_hmc(MEMBERS, 0, WORLD, local, settings, 0, stop, store)
    said: list[str] = []
    store = Checkpoint.open(tmp_path / "chains", asked)
    again = sample_by_hmc(MEMBERS, 0, WORLD, local, settings, 0, said.append, store)
    assert said == ["HMC, transition 40/44", "HMC, transition 44/44"]
    np.testing.assert_array_equal(again.log_probs, found.log_probs)
    assert again[1:] == found[1:]


def test_chains_without_a_tether_start_at_members_of_their_own():
    local = LocalChains(memory=0)
    with pytest.raises(ValueError, match=r"hmc.num_chains must be at most num_members \(2\)"):
        sample_by_hmc(MEMBERS, 0, WORLD, local, HMCChains(num_chains=3), 0)
    settings = Settings(local=local, hmc=HMCChains(num_chains=7), num_members=6)
    with pytest.raises(ValueError, match=r"at most num_members \(6\) .* got 7"):
        check(settings)


def test_hamiltonian_monte_carlo_of_wide_decoders_alone_is_refused():
    with pytest.raises(ValueError, match=r"hmc.max_params must be at least .* got 4000; width 8"):
        check(Settings(widths=(32, 64), hmc=HMCChains(num_chains=2)))
    check(Settings(widths=(32, 64), hmc=HMCChains(num_chains=2, max_params=10**6)))
    check(Settings(widths=(8, 64), num_relations=8, hmc=HMCChains(num_chains=2)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_chains": 1}, "num_chains must be an integer from 2"),
        ({"num_warmup": 3}, "num_warmup must be an integer from 20"),
        ({"num_draws": 4}, "num_draws must be an integer from 8"),
        ({"max_params": 0}, "max_params must be an integer from 1"),
    ],
)
def test_bad_settings_of_chains_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        HMCChains(**change)
