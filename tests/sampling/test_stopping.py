"""When sampling stops, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from isounc.sampling import stopping
from isounc.sampling.gate import gate
from isounc.sampling.settings import GateSettings, SamplerSettings

SETTINGS = SamplerSettings(target_var_se=0.04, gate=GateSettings(ess_min=400.0))


@pytest.fixture(scope="module")
def passed():
    """The verdict on independent draws, which passes."""
    draws = np.random.default_rng(0).normal(size=(4, 1000, 2))
    verdict = gate(
        draws, energy=None, num_divergent=0, num_saturated=0, num_transitions=4000,
        settings=SETTINGS.gate,
    )  # fmt: skip
    assert verdict.passed, verdict.reasons
    return verdict


def with_numbers(verdict, *, passed, bulk, var, error, rhat=1.004):
    return verdict._replace(
        passed=passed, ess_bulk_min=bulk, ess_var_min=var, var_mcse_median=error, rhat_max=rhat
    )


@pytest.mark.parametrize(
    ("numbers", "factor"),
    [
        # Both targets met; the precision is met at the target itself.
        ({"passed": True, "bulk": 900, "var": 900, "error": 0.03}, 1.0),
        ({"passed": True, "bulk": 900, "var": 900, "error": 0.04}, 1.0),
        # ESS of 400 wanted: the smaller of the two is short by 400 / 320, and a tenth is added.
        ({"passed": False, "bulk": 320, "var": 900, "error": 0.01}, 1.1 * 1.25),
        ({"passed": False, "bulk": 900, "var": 320, "error": 0.01}, 1.1 * 1.25),
        # An error of 1.2 times the target takes 1.44 times the draws.
        ({"passed": True, "bulk": 900, "var": 900, "error": 0.048}, 1.1 * 1.44),
        ({"passed": False, "bulk": 320, "var": 900, "error": 0.048}, 1.1 * 1.44),
        # Never less than 1.2, nor more than 2.
        ({"passed": True, "bulk": 900, "var": 900, "error": 0.0401}, 1.2),
        ({"passed": False, "bulk": 40, "var": 900, "error": 0.01}, 2.0),
        # What is not short fails by its R-hat, of which nobody can say how it falls.
        ({"passed": False, "bulk": 900, "var": 900, "error": 0.01}, 1.5),
        ({"passed": False, "bulk": 400, "var": 900, "error": 0.04}, 1.5),
        ({"passed": False, "bulk": 900, "var": 900, "error": 0.01, "rhat": None}, 1.2),
        # Nothing is known.
        ({"passed": False, "bulk": None, "var": None, "error": None, "rhat": None}, 2.0),
        ({"passed": False, "bulk": None, "var": 900, "error": 0.01}, 2.0),
        ({"passed": False, "bulk": 900, "var": None, "error": 0.01}, 2.0),
        ({"passed": True, "bulk": 900, "var": 900, "error": None}, 2.0),
    ],
)
def test_growth(passed, numbers, factor):
    assert stopping.growth(with_numbers(passed, **numbers), SETTINGS) == pytest.approx(factor)


def test_rare_draws_are_not_waited_for(passed):
    """They alone must fail the gate, with ten times the effective draws and the precision met."""
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4, 2000, 2))
    draws[..., 0] = np.exp(2.5 * draws[..., 0])
    verdict = gate(
        draws, energy=None, num_divergent=0, num_saturated=0, num_transitions=8000,
        regions={"far": 1, "test": 1}, settings=SETTINGS.gate,
    )  # fmt: skip
    assert len(verdict.reasons) == 1, verdict.reasons
    assert "rare draws decide" in verdict.reasons[0]
    stuck = with_numbers(verdict, passed=False, bulk=4000, var=4000, error=0.01)
    assert stopping.growth(stuck, SETTINGS) == 1
    said = stopping.why_stopped(stuck, 2000, SETTINGS)
    assert said.startswith("more draws would hardly help: rare draws decide about the variance")
    for numbers in ({"ess_var_min": 3990.0}, {"ess_bulk_min": None}, {"var_mcse_median": 0.05}):
        assert stopping.growth(stuck._replace(**numbers), SETTINGS) > 1
    others = stuck._replace(reasons=(*stuck.reasons, "R-hat is 1.02"))
    assert stopping.growth(others, SETTINGS) > 1
    assert stopping.growth(stuck._replace(reasons=("R-hat is 1.02",)), SETTINGS) > 1


def test_words(passed):
    good = with_numbers(passed, passed=True, bulk=912.4, var=850.2, error=0.0312)
    assert stopping.describe(good) == "R-hat 1.004, ESS 850"
    assert stopping.describe(good._replace(ess_var_min=None)) == "R-hat 1.004, ESS 912"
    nothing = with_numbers(passed, passed=False, bulk=None, var=None, error=None, rhat=None)
    assert stopping.describe(nothing) == "R-hat ?, ESS ?"
    assert stopping.why_stopped(good, 750, SETTINGS) == (
        "target met: gate passed, standard error of the variance 3.1%, target 4.0%"
    )
    coarse = good._replace(var_mcse_median=0.08)
    assert stopping.why_stopped(coarse, 750, SETTINGS) == (
        "budget of 750 draws a chain spent: gate passed, standard error of the variance 8.0%, "
        "target 4.0%"
    )
    assert stopping.why_stopped(nothing, 750, SETTINGS).startswith(
        "budget of 750 draws a chain spent: gate failed, standard error of the variance undefined"
    )
    ended = "budget of 60 seconds spent after 412 draws a chain"
    assert stopping.why_stopped(coarse, 412, SETTINGS, ended) == (
        f"{ended}: gate passed, standard error of the variance 8.0%, target 4.0%"
    )
    # Not the end, but the target, is what stopped it where both were reached.
    assert stopping.why_stopped(good, 412, SETTINGS, ended).startswith("target met")


def test_r_hat_comes_every_five_seconds_and_takes_a_tenth_of_the_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    pace = stopping.Pace()
    assert not pace.is_due() and pace.left(100) == []
    pace.count(0)
    assert not pace.is_due() and pace.left(100) == []
    # The first draws start the clock; their own time, with the compilation, does not count.
    pace.count(10)
    assert pace.is_due() and pace.left(100) == []
    pace.judged()
    clock[0] += 4.9
    assert not pace.is_due()
    clock[0] += 0.1
    assert pace.is_due()
    pace.count(30)
    # 20 draws in 5 seconds.
    assert pace.left(90) == ["15 s to 90 draws"] and pace.left(30) == []
    clock[0] += 95
    pace.judged()
    clock[0] += 9.9
    assert not pace.is_due()
    clock[0] += 0.1
    assert pace.is_due()


def test_draws_of_a_checkpoint_tell_nothing_of_the_pace(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    pace = stopping.Pace()
    pace.count(500)
    clock[0] += 4
    pace.count(504)
    assert pace.left(514) == ["10 s to 514 draws"]
