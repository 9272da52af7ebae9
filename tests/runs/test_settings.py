"""Settings that every study has: what is stored, read back, and made of `auto`."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from isounc.runs.settings import (
    RunSettings,
    check_run_settings,
    executor_and_workers,
    restored_settings,
    stored_settings,
)


@dataclass(frozen=True)
class Inner:
    draws: int = 4
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    widths: tuple[int, ...] = (2, 4)
    inner: Inner = field(default_factory=Inner)
    maybe: tuple[float, ...] | None = None


def test_what_changes_no_number_is_not_stored():
    stored = stored_settings(Settings(workers=3, out="somewhere", cache="x"), ("widths",))
    assert set(stored) == {"preset", "device", "dtype", "inner", "maybe"}
    assert stored["inner"] == {"draws": 4, "names": ("a",)}


def test_settings_come_back_from_what_json_makes_of_them():
    settings = Settings(widths=(8,), inner=Inner(9, ("b", "c")), maybe=(0.5,), dtype="float64")
    # JSON gives lists for tuples. A name that this version does not have is left out.
    stored = {
        "widths": [8], "inner": {"draws": 9, "names": ["b", "c"], "gone": 1}, "maybe": [0.5],
        "dtype": "float64", "forgotten": {"x": 1},
    }  # fmt: skip
    assert restored_settings(Settings(), stored) == settings
    assert restored_settings(Settings(), {}) == Settings()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"widths": "abc"}, "widths of the run's settings must be a list, got 'abc'"),
        (
            {"widths": [8, "x"]},
            "item 1 of widths of the run's settings must be an integer, got 'x'",
        ),
        ({"widths": None}, "widths of the run's settings must be a list, got None"),
        ({"inner": 3}, "inner of the run's settings must be a mapping, got 3"),
        ({"inner": {"draws": True}}, "draws of inner of the run's settings must be an integer"),
        ({"inner": {"names": [1]}}, "item 0 of names of inner .* must be text, got 1"),
        ({"maybe": [[]]}, "maybe of the run's settings must be one of its kinds, got"),
        ({"dtype": "float16"}, "dtype of the run's settings must be float32 or float64, got"),
        ({"dry_run": 1}, "dry_run of the run's settings must be true or false, got 1"),
    ],
)
def test_stored_settings_of_another_kind_are_named(stored, message):
    with pytest.raises(ValueError, match=message):
        restored_settings(Settings(), stored)


def test_executor_and_workers(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert executor_and_workers(Settings(), "processes", 30) == ("processes", 8)
    assert executor_and_workers(Settings(), "processes", 3) == ("processes", 3)
    assert executor_and_workers(Settings(workers=20), "processes", 30) == ("processes", 20)
    assert executor_and_workers(Settings(), "serial", 30) == ("serial", 1)
    assert executor_and_workers(Settings(executor="serial"), "processes", 30) == ("serial", 1)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert executor_and_workers(Settings(), "processes", 30) == ("serial", 1)
    assert executor_and_workers(Settings(executor="processes"), "serial", 30) == ("processes", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"executor": "procesess"}, "executor must be one of .*did you mean 'processes'"),
        ({"workers": -1}, "workers must be an integer from 0 to 1024, got -1"),
    ],
)
def test_shared_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_run_settings(Settings(**changes))
