"""`isounc doctor` and `isounc --version`: what they say, and that a fault is seen."""

import dataclasses

import pytest

import isounc
from isounc import doctor
from isounc.__main__ import main as isounc_main


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        isounc_main(arguments)
    return ended.value.code


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"isounc {isounc.__version__}\n"


def test_a_sound_installation_passes(capsys, tmp_path, monkeypatch):
    # The tests have a cache of their own.
    monkeypatch.setattr(doctor, "use_compilation_cache", lambda folder: None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "program").write_bytes(bytes(3 * 2**19))
    (tmp_path / "b").write_bytes(bytes(2**19))
    assert run("doctor", "--cache", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path} (2 files, 2.0 MiB)" in said
    assert f"isounc      {isounc.__version__}\n" in said and "\ndevices     " in said
    assert said.count("\npass  ") == 4 and "4 of 4 checks passed" in said


def test_a_norm_that_is_wrong_in_the_fourth_digit_fails(capsys, monkeypatch):
    right = doctor.value_and_sq_grad_norm

    def wrong(f, **settings):
        def norms(*arguments):
            value, sq_norm = right(f, **settings)(*arguments)
            return value, sq_norm.at[3].multiply(1.0002)

        return norms

    monkeypatch.setattr(doctor, "value_and_sq_grad_norm", wrong)
    monkeypatch.setattr(doctor, "check_sampler", lambda: [])
    assert run("doctor", "--cache", "") == 1
    said = capsys.readouterr().out
    assert "FAIL  gradient norms against jax.grad, largest relative error: 2.0e-04" in said
    assert "0 of 1 checks passed" in said


def test_a_sampler_of_another_posterior_fails(monkeypatch):
    """The noise a tenth larger: the gate sees nothing, the closed form does."""
    right = doctor.sample_posterior

    def wrong(problem, *arguments, **settings):
        other = dataclasses.replace(problem, noise_sd=1.1 * problem.noise_sd)
        return right(other, *arguments, **settings)

    monkeypatch.setattr(doctor, "sample_posterior", wrong)
    gate, _, variances = doctor.check_sampler()
    assert gate.passed and not variances.passed
    # A variance of 1.21 times the right one, with a standard error of some hundredths of it.
    assert 6 < float(variances.found) < 30


def test_a_gate_that_fails_is_said(monkeypatch):
    right = doctor.sample_posterior

    def short(*arguments, **settings):
        return right(*arguments, **settings | {"num_draws": 250, "max_draws": 250})

    monkeypatch.setattr(doctor, "sample_posterior", short)
    gate = doctor.check_sampler()[0]
    assert str(gate).startswith("FAIL  sampler's own gate: ") and "ESS" in gate.found


def test_an_error_is_a_failed_check():
    def check_device():
        raise RuntimeError("INTERNAL: no kernel image\nand more")

    [check] = doctor.attempt(check_device)
    assert not check.passed and check.name == "device"
    assert check.found == "RuntimeError: INTERNAL: no kernel image"


def test_a_folder_that_is_not_there(tmp_path):
    assert doctor.describe_folder(str(tmp_path / "none")).endswith("none (not there yet)")
    assert doctor.describe_folder("") == "none"
