"""A cell that fails its gate is sampled again by itself, and the record says so."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
import pytest

from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling.gate import TOO_COARSE, fail, gate
from isounc.sampling.moments import Posterior
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.scaling import references
from isounc.studies.scaling.settings import PRESETS, Settings

SEEDS = (0, 1, 2)


@pytest.fixture
def problems():
    return [make_problem("xor", n=20, seed=seed) for seed in SEEDS]


@pytest.fixture(autouse=True)
def stand_ins_have_no_draws(unchecked):
    """Of a posterior only the gate matters here."""


def sampled(passed, reason="R-hat is 1.4", *, sampler="hmc"):
    values = np.random.default_rng(0).normal(size=(4, 500, 3))
    verdict = gate(values, energy=None, num_divergent=0, num_saturated=0, num_transitions=2000)
    assert verdict.passed
    fields: dict = dict.fromkeys(field.name for field in dataclasses.fields(Posterior))
    judged = verdict if passed else fail(verdict, reason)
    return Posterior(**fields | {"gate": judged, "sampler": sampler})


def sample(problems, monkeypatch, *, first, again, **settings):
    """Run `sample_references` with samplers that are stand-ins; also their calls."""
    calls = []

    def stand_in(given, model, *, prior_sd, keys, settings, progress):
        calls.append((list(given), keys, settings))
        progress("sampling", 1, 2)
        if settings.sampler != "tempered_smc":
            return first
        result = again[len(calls) - 2]
        if isinstance(result, Exception):
            raise result
        return [result]

    monkeypatch.setattr(references, "sample_posteriors", stand_in)
    heard = []
    keys = [jax.random.key(seed) for seed in SEEDS]
    found = references.sample_references(
        problems, make_model(problems[0], width=2), prior_sd=2.0, keys=keys,
        settings=Settings(**settings), report=heard.append,
    )  # fmt: skip
    return found, calls, heard


def test_what_failed_is_sampled_again_by_itself(problems, monkeypatch):
    first = [sampled(True), sampled(False), sampled(False)]
    again = [sampled(True), sampled(False)]
    found, calls, heard = sample(problems, monkeypatch, first=first, again=again)
    assert [reference.sampler for reference in found] == ["hmc", "tempered_smc", "hmc"]
    assert found[0].posterior is first[0]
    assert found[1].posterior is again[0]
    assert found[2].posterior is first[2]  # neither passed: it stays what was asked for
    tried = [[one["sampler"] for one in reference.tries] for reference in found]
    assert tried == [["hmc"], ["hmc", "tempered_smc"], ["hmc", "tempered_smc"]]
    assert found[1].tries[0]["gate"]["reasons"] == ("R-hat is 1.4",)
    assert [one["gate"]["passed"] for one in found[1].tries] == [False, True]
    (_, given, _), *retries = calls
    for (alone, keys, settings), place in zip(retries, (1, 2), strict=True):
        assert alone == [problems[place]] and settings.sampler == "tempered_smc"
        # Not the key of the chains, and that of the cell whatever else failed.
        assert keys[0] == jax.random.fold_in(given[place], references.AGAIN)
        assert keys[0] != given[place]
    assert heard == ["sampling 1/2", *["tempered_smc: sampling 1/2"] * 2]


def test_nothing_is_sampled_again_where_that_is_no_use(problems, monkeypatch):
    lost = [sampled(True), sampled(True), sampled(False, f"wrong by 3 nats: {TOO_COARSE}")]
    _, calls, _ = sample(problems, monkeypatch, first=lost, again=[])
    assert len(calls) == 1
    failed = [sampled(False)] * 3
    found, calls, _ = sample(problems, monkeypatch, first=failed, again=[], retry="none")
    assert len(calls) == 1 and not any(reference.posterior.gate.passed for reference in found)


def test_particles_that_cannot_be_tempered_leave_a_failed_cell(problems, monkeypatch):
    first = [sampled(True), sampled(True), sampled(False)]
    why = ValueError("the log likelihood must be finite at some particle")
    found, _, _ = sample(problems, monkeypatch, first=first, again=[why])
    verdict = found[2].posterior.gate
    assert not verdict.passed and found[2].sampler == "hmc"
    assert verdict.reasons[0] == "R-hat is 1.4" and str(why) in verdict.reasons[1]


def test_a_retry_has_the_bounds_of_the_first_attempt_and_particles_of_its_own():
    assert all(settings.retry == "tempered_smc" for settings in PRESETS.values())
    first = SamplerSettings(
        num_draws=700,
        max_draws=9000,
        metric="low_rank",
        coordinates="curvature",
        check_modes=True,
        target_var_se=0.01,
        gate=GateSettings(rhat_max=1.02),
    )
    again = references.settings_of_retry(Settings(sampling=first))
    assert again is not None and (again.num_draws, again.max_draws) == (1000, 2000)
    assert again.gate == first.gate and again.target_var_se == first.target_var_se
    assert (again.sampler, again.metric, again.coordinates, again.check_modes) == (
        "tempered_smc", "diagonal", "prior", False,
    )  # fmt: skip
    readout = references.settings_of_retry(
        Settings(sampling=SamplerSettings(coordinates="readout"))
    )
    assert readout is not None and readout.coordinates == "readout"
    particles = SamplerSettings(sampler="tempered_smc")
    assert references.settings_of_retry(Settings(sampling=particles)) is None


@pytest.mark.skipif("ISOUNC_SLOW" not in os.environ, reason="a minute; ISOUNC_SLOW=1 runs it")
def test_a_cell_that_does_not_mix_passes_in_the_end(tmp_path):
    """Width 2 on xor: chains stay in their modes (R-hat 1.4 and more)."""
    from isounc.runs.study import run_study
    from isounc.studies.scaling.study import STUDY

    settings = Settings(
        problems=("xor",), widths=(2,), num_seeds=2, sampling=SamplerSettings(max_draws=2000),
        out=str(tmp_path / "run"), executor="serial", figures="shown",
    )  # fmt: skip
    run_study(STUDY, settings)
    from isounc.runs.folder import RunFolder

    run = RunFolder.load(tmp_path / "run")
    for record in run.records():
        assert record.meta["sampling"]["sampler"] == "tempered_smc"
        assert record.meta["gate"]["passed"] and not record.meta["tries"][0]["gate"]["passed"]
    assert set(run.results["sampler"]) == {"tempered_smc"}
