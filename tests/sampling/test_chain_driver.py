"""Chains in parts: no bit depends on the cuts; what a budget of seconds and an interrupt leave."""

from __future__ import annotations

import _thread
import dataclasses
import itertools
import re
import signal
import threading
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import isounc
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling import chains, clock, cores, parts
from isounc.sampling.posterior import sample_posterior, sample_posteriors
from isounc.sampling.settings import GateSettings, SamplerSettings
from tests.sampling.test_checkpoint import SETTINGS, assert_same_bits, sampled

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def uninterrupted():
    return sampled()


@pytest.mark.parametrize(
    ("changes", "serial_work"),
    [
        ({}, chains.SERIAL_WORK),
        ({}, 0),
        pytest.param({"metric": "low_rank"}, chains.SERIAL_WORK, marks=pytest.mark.slow),
    ],
)
def test_no_bit_depends_on_where_the_work_is_cut(monkeypatch, changes, serial_work):
    monkeypatch.setattr(chains, "SERIAL_WORK", serial_work)
    settings = dataclasses.replace(SETTINGS, **changes)
    whole = sampled(settings=settings)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    assert_same_bits(sampled(settings=settings), whole)


@pytest.mark.parametrize(("serial_work", "group_work"), [(0, 0), (10**9, 0)])
def test_no_bit_depends_on_the_number_of_threads(monkeypatch, serial_work, group_work):
    monkeypatch.setattr(chains, "SERIAL_WORK", serial_work)
    monkeypatch.setattr(cores, "GROUP_WORK", group_work)
    threads = set()
    draw = chains.draw

    def seen(*args, **kwargs):
        threads.add(threading.get_ident())
        return draw(*args, **kwargs)

    monkeypatch.setattr(chains, "draw", seen)
    results = []
    for count in (1, 2, 7):
        monkeypatch.setattr(cores, "num_threads", lambda count=count: count)
        threads.clear()
        results.append(sampled())
        assert (len(threads) > 1) == (count > 1)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_chains_apart_resume_in_the_middle_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "SERIAL_WORK", 0)
    whole = sampled()
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    monkeypatch.setattr(parts, "TELL_EVERY", 0.0)
    assert sampled(tmp_path, interrupt_at(47)).num_draws == 47
    assert list(tmp_path.glob("part-*"))
    assert_same_bits(sampled(tmp_path), whole)


def test_settings_of_a_context_hold_in_all_threads(monkeypatch):
    # JAX's context managers act on one thread; in the others arrays would be float32.
    monkeypatch.setattr(chains, "SERIAL_WORK", 0)
    monkeypatch.setattr(cores, "num_threads", lambda: 2)
    with jax.enable_x64(True):
        posterior = sampled()
    assert {v.dtype for v in posterior.values.values()} == {np.dtype(float)}


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by a second whenever somebody looks at it."""

    def start():
        readings = itertools.count()
        fake = types.SimpleNamespace(monotonic=lambda: float(next(readings)))
        monkeypatch.setattr(clock, "time", fake)

    # One transition a part, so that there is time to look.
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    return start


def assert_prefix(posterior, whole):
    """The posterior has the first draws of another, and the moments of just these."""
    count = posterior.num_draws
    for region, moments in posterior.regions.items():
        values = np.asarray(posterior.values[region], float)
        np.testing.assert_array_equal(values, whole.values[region][:, :count])
        rows = posterior.locations[region]
        np.testing.assert_allclose(moments.mean[rows], values.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(moments.var[rows], values.var((0, 1)), rtol=1e-3)
        batches = np.split(values, range(20, count, 20), axis=1)
        spread = sum(
            (batch.shape[1] * (batch.mean(1) - values.mean((0, 1))) ** 2).sum(0)
            for batch in batches
        )
        error = np.sqrt(spread / (4 * len(batches) - 1) / (4 * count))
        np.testing.assert_allclose(moments.mean_se[rows], error, rtol=1e-3)
    assert len(posterior.draws) >= 4 and np.isfinite(posterior.draws).all()
    assert not np.isin(posterior.draws, 0.0).any()


def test_a_budget_of_seconds_ends_with_what_there_is(tmp_path, uninterrupted, ticking):
    ticking()
    settings = dataclasses.replace(SETTINGS, max_seconds=260.0)
    posterior = sampled(tmp_path / "run", settings=settings)
    count = posterior.num_draws
    assert 40 < count < 80 and count % 20, "in the middle of a block"
    assert re.match(
        rf"budget of 260 seconds spent after {count} draws a chain: gate failed, standard error",
        posterior.stopped,
    )
    assert_prefix(posterior, uninterrupted)
    # With more seconds the same call goes on, to the same bits.
    assert_same_bits(sampled(tmp_path / "run"), uninterrupted)


def test_a_warm_up_without_time_is_cut_short(tmp_path, uninterrupted, ticking):
    ticking()
    settings = dataclasses.replace(SETTINGS, max_seconds=80.0)
    posterior = sampled(tmp_path / "run", settings=settings)
    assert re.match(
        r"budget of 80 seconds spent after \d+ draws a chain, with \d+ of 40 transitions of warm-up: "
        "gate failed",
        posterior.stopped,
    )
    assert posterior.num_draws >= 4 and not posterior.gate.passed
    assert np.isfinite(posterior.regions["test"].var).all() and posterior.step_size[0] > 0
    # What hung on the clock is not in the checkpoint: the warm-up goes on where it was.
    assert not list((tmp_path / "run").glob("block-*"))
    assert_same_bits(sampled(tmp_path / "run"), uninterrupted)
    ticking()
    none = sampled(settings=dataclasses.replace(SETTINGS, max_seconds=0.5))
    assert none.num_draws == 4 and "with 0 of 40 transitions of warm-up" in none.stopped


def test_a_target_that_is_met_in_time_is_met(ticking):
    bounds = GateSettings(ess_min=1.0, rhat_max=2.0, ebfmi_min=0.0, divergence_rate_max=1.0)
    settings = dataclasses.replace(
        SETTINGS, max_draws=10_000, target_var_se=1e6, gate=bounds, max_seconds=1e6
    )
    posterior = sampled(settings=settings)
    assert posterior.num_draws == 80 and posterior.stopped.startswith("target met")


def interrupt_at(draws, prefix="sampling"):
    def progress(what, done, total):
        if what.startswith(prefix) and done >= draws:
            raise KeyboardInterrupt

    return progress


def test_an_interrupt_ends_with_what_there_is(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    monkeypatch.setattr(parts, "TELL_EVERY", 0.0)
    posterior = sampled(tmp_path / "run", interrupt_at(47))
    assert posterior.stopped.startswith("interrupted after 47 draws a chain: gate failed")
    assert (tmp_path / "run" / "part-00006.npz").exists(), "not one draw is lost"
    assert_prefix(posterior, uninterrupted)
    assert_prefix(sampled(progress=interrupt_at(13)), uninterrupted)  # of the first block
    assert_same_bits(sampled(tmp_path / "run"), uninterrupted)
    # Before there are draws to judge, an interrupt is one.
    for progress in (interrupt_at(0, "warm-up"), interrupt_at(0), interrupt_at(3)):
        with pytest.raises(KeyboardInterrupt):
            sampled(tmp_path / "other", progress)
    assert_same_bits(sampled(tmp_path / "other"), uninterrupted)


def test_an_interrupt_ends_the_call_of_a_study():
    problem = make_problem("moons", n=12, num_test=5, num_far=5, grid_size=3, seed=0)
    model = make_model(problem, width=3)
    with pytest.raises(KeyboardInterrupt):
        sample_posteriors(
            [problem], model, prior_sd=1.0, keys=[KEY], settings=SETTINGS, keep_values=True,
            progress=interrupt_at(40),
        )  # fmt: skip
    # So studies call nothing else, or they would store what an interrupt left as a record.
    studies = Path(isounc.__file__).parent / "studies"
    for path in studies.rglob("*.py"):
        assert not re.search(r"\bsample_posterior\b", path.read_text()), path


def test_a_signal_ends_a_long_part_at_once(monkeypatch):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    # One part for all of a block but its first two draws.
    monkeypatch.setattr(parts, "SECONDS", 1e6)
    monkeypatch.setattr(parts, "GROWTH", 10**6)
    problem = make_problem("moons", n=12, num_test=5, num_far=5, grid_size=3, seed=0)
    settings = SamplerSettings(
        num_warmup=20, num_draws=20_000, max_draws=20_000, block=20_000, num_kept=40,
        locations_per_region=4, coordinates="readout",
    )  # fmt: skip
    begun = []

    def progress(what, done, total):
        if done and not begun:  # after the compilation, and a first transition
            begun.append(done)
            threading.Timer(0.5, _thread.interrupt_main).start()

    try:
        # Had it waited for the part, there would be draws to return.
        with pytest.raises(KeyboardInterrupt):
            sample_posterior(
                problem, make_model(problem, width=3), prior_sd=1.0, key=KEY, settings=settings,
                progress=progress,
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)


def test_modes_that_an_interrupt_leaves_unchecked_fail_the_gate():
    bounds = GateSettings(
        ess_min=1.0, rhat_max=2.0, ebfmi_min=0.0, divergence_rate_max=1.0, heavy_tails_max=1.0
    )
    settings = dataclasses.replace(SETTINGS, check_modes=True, target_var_se=1e6, gate=bounds)
    posterior = sampled(settings=settings, progress=interrupt_at(0, "tempered run"))
    assert not posterior.gate.passed
    assert posterior.gate.reasons == ("the tempered run that check_modes asks for was cut short",)
