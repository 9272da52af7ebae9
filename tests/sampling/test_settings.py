"""Settings of sampling: what is refused, and names that agree with the registries."""

from __future__ import annotations

import dataclasses

import pytest

from isounc.runs import values
from isounc.runs.command import settings_of
from isounc.runs.settings import restored_settings, stored_settings
from isounc.sampling import register_sampler
from isounc.sampling.chain_driver import ChainDriver
from isounc.sampling.coordinates import COORDINATES
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.kernels import HMC, SAMPLERS
from isounc.sampling.settings import (
    COORDINATE_NAMES,
    SAMPLER_NAMES,
    GateSettings,
    SamplerSettings,
)
from isounc.studies.scaling.settings import PRESETS as SCALING
from isounc.studies.scaling.study import STUDY as SCALING_STUDY


def test_names_are_those_of_the_registries():
    assert SAMPLER_NAMES == [*DRIVERS] == [*SAMPLERS, "tempered_smc"]
    assert COORDINATE_NAMES == ("auto", *COORDINATES)


def test_a_registered_sampler_is_taken():
    sampler = HMC()
    with pytest.raises(ValueError, match="sampler must be one of"):
        SamplerSettings(sampler="mine")
    register_sampler("mine", sampler)
    try:
        assert SamplerSettings(sampler="mine").sampler == "mine"
        assert SAMPLERS["mine"] is sampler
        assert DRIVERS["mine"] == ChainDriver(sampler)
        with pytest.raises(ValueError, match="name must be one that no sampler has, got 'mine'"):
            register_sampler("mine", HMC())
    finally:
        del SAMPLERS["mine"], DRIVERS["mine"]
        SAMPLER_NAMES.remove("mine")
    for name in ("hmc", "tempered_smc"):
        with pytest.raises(ValueError, match="name must be one that no sampler has"):
            register_sampler(name, sampler)
    with pytest.raises(ValueError, match="name must be letters"):
        register_sampler("my sampler", sampler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampler": "nutz"},
            "adjusted_mclmc, tempered_smc, auto, got 'nutz'; did you mean 'nuts'",
        ),
        (
            {"num_draws": 2000, "max_draws": 500},
            r"max_draws must be at least num_draws \(2000\), got 500",
        ),
        ({"num_chains": 1}, "num_chains must be an integer from 2"),
        ({"num_chains": 2.5}, "num_chains must be an integer from 2"),
        ({"num_draws": 0}, "num_draws must be an integer from 4"),
        ({"block": 1}, "block must be"),
        ({"num_kept": 0}, "num_kept must be"),
        ({"target_acceptance": 1.0}, "target_acceptance must be between 0 and 1, got 1.0"),
        ({"trajectory_length": 0.0}, "trajectory_length must be a positive"),
        ({"max_integration_steps": 0}, "max_integration_steps must be an integer from 1"),
        ({"target_var_se": 0.0}, "target_var_se must be a positive"),
        *(
            (
                {"max_seconds": value},
                r"max_seconds \(finite, or inf for no limit\) must be a positive",
            )
            for value in (0, -1.0, float("nan"), -float("inf"), "60")
        ),
        *(
            (
                {"anneal_above": value},
                r"anneal_above \(finite, or inf for nowhere\) must be a non-negative",
            )
            for value in (-1.0, float("nan"), "3000")
        ),
        ({"tempering_ess": 1.0}, "tempering_ess must be above 0 and at most 0.99, got 1.0"),
        ({"num_mutations": 0}, "num_mutations must be an integer from 1"),
        (
            {"sampler": "tempered_smc", "metric": "low_rank"},
            "metric must be one of identity, diagonal for sampler 'tempered_smc', got 'low_rank'",
        ),
        (
            {"sampler": "tempered_smc", "coordinates": "curvature"},
            "coordinates must be one of auto, prior, readout for sampler 'tempered_smc', got 'curv",
        ),
        ({"metric": "dense"}, "metric must be one of identity, diagonal, low_rank, got 'dense'"),
        ({"coordinates": "reedout"}, "coordinates must be one of .*did you mean 'readout'"),
    ],
)
def test_settings_out_of_range_are_refused(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**changes)


def test_no_limit_of_seconds_is_stored_and_read_again():
    settings = SCALING["quick"]
    assert settings.sampling.max_seconds == float("inf")
    for seconds in (float("inf"), 90.0):
        sampling = dataclasses.replace(settings.sampling, max_seconds=seconds)
        chosen = dataclasses.replace(settings, sampling=sampling)
        text = values.json_bytes(values.encode(stored_settings(chosen), "settings"))
        assert b'"max_seconds": ' in text
        stored = values.decode(values.parse_json(text, "settings"))
        assert restored_settings(settings, stored).sampling == sampling
    chosen = settings_of(SCALING_STUDY, ["--sampling.max-seconds", "90"])
    assert chosen.sampling.max_seconds == 90  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "bound",
    [
        {"ess_min": 0.0},
        {"rhat_max": 1.0},
        {"ebfmi_min": -0.1},
        {"divergence_rate_max": 1.5},
        {"saturated_max": -1},
        {"ess_min": float("nan")},
    ],
)
def test_senseless_bounds_are_refused(bound):
    (name,) = bound
    with pytest.raises(ValueError, match=f"{name} must be"):
        GateSettings(**bound)
