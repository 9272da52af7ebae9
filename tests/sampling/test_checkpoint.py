"""Checkpoints: a killed run is resumed to the same bits, and nothing half-written is read."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from isounc.models import make_model
from isounc.problems import make_problem
from isounc.runs import unfinished
from isounc.sampling import parts
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import SamplerSettings

SETTINGS = SamplerSettings(
    num_warmup=40, num_draws=80, max_draws=80, block=20, num_kept=40, locations_per_region=4,
    coordinates="readout",
)  # fmt: skip
# The same call in a process of its own, stored after each transition, which kills itself once a
# given step is reported.
CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from isounc.sampling import parts
from tests.sampling.test_checkpoint import sampled
parts.SECONDS = parts.TELL_EVERY = parts.SAVE_EVERY = 0.0
def progress(what, done, total):
    if what.startswith(sys.argv[2]) or sys.argv[2] == f"{what.partition(' ')[0]} {done}":
        os.kill(os.getpid(), signal.SIGKILL)
sampled(sys.argv[1], progress=progress)
"""


def sampled(checkpoint=None, progress=None, settings=SETTINGS, seed=0):
    problem = make_problem("moons", n=12, num_test=5, num_far=5, grid_size=3, seed=0)
    return sample_posterior(
        problem, make_model(problem, width=3), prior_sd=1.0, key=jax.random.key(seed),
        settings=settings, keep_values=True, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted():
    return sampled()


def assert_same_bits(a, b):
    np.testing.assert_array_equal(a.draws, b.draws)
    assert a.gate == b.gate and a.stopped == b.stopped
    for region in a.regions:
        np.testing.assert_array_equal(a.values[region], b.values[region])
        for name, left, right in zip(
            a.regions[region]._fields, a.regions[region], b.regions[region], strict=True
        ):
            np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.slow  # a run of the scaling study is killed and resumed in every session
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_runs_give_the_same_bits(tmp_path, uninterrupted):
    here = str(Path(__file__).resolve().parents[2])
    run = tmp_path / "run"
    # Within a window of warm-up, and within a block.
    for moment, left in (
        ("warm-up (17 of 40", {"part-00001.npz", "state-00000.npz"}),
        ("sampling 47", {"part-00006.npz", "block-00004.npz", "block-00005.npz"}),
    ):
        child = [sys.executable, "-c", textwrap.dedent(CHILD), str(run), moment, here]
        ended = subprocess.run(child, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert left <= {path.name for path in run.iterdir()}
    calls = []
    resumed = sampled(run, progress=lambda *call: calls.append(call))
    assert_same_bits(resumed, uninterrupted)
    done = [done for what, done, _ in calls if what.startswith("sampling")]
    assert {60, 80} <= set(done) and min(done) >= 46, "nothing is done twice"
    assert not list(run.glob("part-*")), "whole steps take their place"


def test_a_job_that_is_taken_away_goes_on_with_its_samplings(tmp_path, uninterrupted):
    """Nothing between the job and the sampler passes a folder on."""

    class Taken(Exception):
        pass

    def progress(what, done, total):
        if what.startswith("sampling") and done >= 40:
            raise Taken

    with unfinished.kept_in(tmp_path), pytest.raises(Taken):
        sampled(progress=progress)
    with pytest.raises(LookupError, match="in jobs of a cluster alone"):
        unfinished.place_of({})
    calls = []
    with unfinished.kept_in(tmp_path):
        resumed = sampled(progress=lambda *call: calls.append(call))
        assert_same_bits(resumed, uninterrupted)
        assert min(done for what, done, _ in calls if what.startswith("sampling")) >= 40
        (folder,) = tmp_path.iterdir()
        with pytest.raises(Taken):
            sampled(progress=progress, seed=1)
    assert len(list(tmp_path.iterdir())) == 2, "another sampling has a folder of its own"
    assert (folder / "run.json").exists()


def test_damaged_and_half_written_files_are_not_read(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    short = SamplerSettings(**{**vars(SETTINGS), "num_draws": 80, "max_draws": 80})
    sampled(folder, settings=short)
    states = sorted(folder.glob("state-*.npz"))
    assert len(states) == 2
    states[-1].write_bytes(states[-1].read_bytes()[:-100])
    (folder / ".tmp-0123456789abcdef").write_bytes(b"half a checkpoint")
    assert_same_bits(sampled(folder), uninterrupted)
    # A block that lost its bytes: no state after it can be used.
    block = sorted(folder.glob("block-*.npz"))[0]
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes(bytes(content))
    assert_same_bits(sampled(folder), uninterrupted)


def test_a_damaged_part_is_not_read(tmp_path, uninterrupted, monkeypatch):
    for name in ("SECONDS", "TELL_EVERY", "SAVE_EVERY"):
        monkeypatch.setattr(parts, name, 0.0)

    def stop(what, done, total):
        if done == 47:
            raise KeyboardInterrupt

    assert sampled(tmp_path / "run", stop).num_draws == 47
    part = tmp_path / "run" / "part-00006.npz"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    calls = []
    again = sampled(tmp_path / "run", lambda *call: calls.append(call))
    assert_same_bits(again, uninterrupted)
    assert min(done for what, done, _ in calls if what.startswith("sampling")) in (40, 41)


def test_a_finished_run_goes_on_with_a_longer_budget(tmp_path):
    longer = SamplerSettings(**{**vars(SETTINGS), "max_draws": 120})
    sampled(tmp_path / "run")
    assert_same_bits(sampled(tmp_path / "run", settings=longer), sampled(settings=longer))


def test_another_run_and_other_folders_are_refused(tmp_path):
    sampled(tmp_path / "run")
    other = SamplerSettings(**{**vars(SETTINGS), "target_acceptance": 0.7})
    with pytest.raises(
        ValueError, match=r"of another run; .*\n.*target_acceptance: 0.8 in the folder, 0.7"
    ):
        sampled(tmp_path / "run", settings=other)
    with pytest.raises(ValueError, match="data_and_keys"):
        sampled(tmp_path / "run", seed=1)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="must be a folder that is new, empty or of this run, got"):
        sampled(tmp_path / "else")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"must be a folder with a run\.json that can be read, got"
    ):
        sampled(tmp_path / "run")
