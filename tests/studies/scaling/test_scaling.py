"""The scaling study runs end to end, in small: command, resume after SIGKILL, damage, refusals."""

import fcntl
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from isounc.runs.folder import RunFolder

ROOT = Path(__file__).parents[3]
TINY = (
    "--problems", "xor", "moons", "--widths", "3", "--num-seeds", "2", "--n", "24",
    "--sampling.num-draws", "40", "--sampling.max-draws", "40",
    "--sampling.block", "20", "--sampling.num-warmup", "40",
    "--sampling.num-kept", "16", "--train.epochs", "5",
    "--map.num-restarts", "2", "--num-point-draws", "2",
    "--num-averaged-draws", "4", "--workers", "1", "--retry", "none",
    # The processes of these tests have every program from the first of them.
    "--cache", os.environ["JAX_COMPILATION_CACHE_DIR"],
)  # fmt: skip
SCRIPT = ROOT / "experiments/scaling.py"
# The script without figures, which one of the runs draws.
UNDRAWN = """
import runpy, sys
from isounc.runs import figures
figures.draw_plots = lambda *_, **__: []
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(out, *more):
    return [sys.executable, str(SCRIPT), *TINY, "--out", str(out), *more]


def start(out, *more, drawn=False):
    script, *options = command(out, *more)[1:]
    code = [] if drawn else ["-c", UNDRAWN]
    done = subprocess.run(
        [sys.executable, *code, script, *options], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def run_here(monkeypatch, capsys):
    """The script in this process: importing everything anew would take most of the time."""

    def run(out, *more):
        monkeypatch.setattr(sys, "argv", command(out, *more)[1:])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "scaling"
    shared.mkdir(exist_ok=True)
    said = shared / "stdout.txt"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            said.write_text(start(shared / "whole", drawn=True).stdout)
    return shared / "whole", said.read_text()


def results(out):
    """Everything but wall-clock times, by cell."""
    cells = {}
    for record in RunFolder.load(out).records():
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record.meta["rows"]]
        cells[record.name] = (rows, record.meta["gate"], record.arrays)
    return cells


def assert_same(one, other):
    assert one.keys() == other.keys() and len(one) == 4
    for name in one:
        assert one[name][:2] == other[name][:2]
        assert one[name][2].keys() == other[name][2].keys()
        for key, array in one[name][2].items():
            np.testing.assert_array_equal(array, other[name][2][key], err_msg=f"{name} {key}")


def test_writes_tables_figures_and_report(finished):
    out, said = finished
    for name in ("settings.json", "info.json", "results.csv", "summary.csv", "report.html"):
        assert (out / name).stat().st_size > 0, name
    # What the page shows unfolded, one figure of each kind, and the reading at its top.
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert drawn == {
        "scaling.png", "scaling_test_map.png", "error_budget_test.png", "maps_xor.png",
        "scatter_xor.png",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert page.index("0 of 4 cells passed the gate of their reference; 4 failed") < page.index(
        "<h2>Summary"
    )
    assert "maps_moons: isounc report draws it" in page
    rows = RunFolder.load(out).results.astype(object)
    rows = rows.where(rows.notna(), None).to_dict("records")
    assert {r["point"] for r in rows} == {"map", "trained", "draw", "posterior"}
    assert {r["region"] for r in rows} == {"test", "grid", "far"}
    assert {r["quantity"] for r in rows} == {
        "epistemic", "aleatoric", "aleatoric_corrected", "total", "predictive",
    }  # fmt: skip
    # 40 draws cannot pass the gate: every cell says so, none enters a mean.
    assert {r["gate"] for r in rows} == {"fail"}
    summary = RunFolder.load(out).summary
    assert (summary["num_failed_gate"] == 2).all() and summary["pearson_mean"].isna().all()
    assert "0 of 4 cells passed the gate" in said
    assert "0 of 4 cells passed the gate of their reference; 4 failed and are in no number" in said
    for row in rows:
        defined = row["pearson"] if row["quantity"] != "predictive" else row["nll"]
        assert defined is not None or row["reason"], row


def test_shares_of_two_valued_locations_are_those_of_the_stored_moments(finished):
    run = RunFolder.load(finished[0])
    for record in run.records():
        for row in record.meta["rows"]:
            if row["quantity"] == "predictive":
                continue
            region = row["region"]
            var, aleatoric = (record.arrays[f"{region}/mcmc_{m}"] for m in ("var", "aleatoric"))
            share = (var > aleatoric).mean()
            assert row["two_valued_share"] == pytest.approx(share, abs=1 / len(var))
            left = round(len(var) * (1 - row["two_valued_share"]))
            assert row["n_points_not_two_valued"] == left
            assert 0 <= row["two_valued_undecided"] <= 1
            if row["pearson_not_two_valued"] is None:
                assert row["reason_not_two_valued"]
            if share == 0:
                assert row["pearson_not_two_valued"] == row["pearson"]


def test_info_counts_one_compilation_for_two_problems(finished):
    info = RunFolder.load(finished[0]).read_info()
    assert info["versions"]["jax"] and info["last_session"]["peak_mebibytes"] > 0
    session = info["last_session"]
    programs = session["compiled"] + session["compilation_cache_hits"]
    # A second problem of the same shape must not compile the samplers again: twice as many programs
    # would be far above this.
    assert programs < 160


def test_resume_after_sigkill_and_damage_gives_the_same_numbers(finished, tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(list((out / "cells").glob("*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = sorted((out / "cells").glob("*.json"))
    assert 2 <= len(before) < 4 and not (out / "results.csv").exists()
    victim = before[0].with_suffix(".npz")
    victim.write_bytes(victim.read_bytes()[:-100] + bytes(100))
    kept = before[1].stat().st_mtime_ns
    done = start(out)
    assert victim.stem in done.stderr and "damaged" in done.stderr
    assert list((out / "cells" / "damaged").glob(f"{victim.stem}*"))
    assert before[1].stat().st_mtime_ns == kept  # what was whole is not computed again
    assert_same(results(finished[0]), results(out))


# Of the second one the second worker compiles another shape.
@pytest.mark.parametrize("widths", [("3",), ("3", "4")])
@pytest.mark.skipif(
    os.environ.get("ISOUNC_SLOW") != "1", reason="takes a minute or more: set ISOUNC_SLOW=1"
)
def test_worker_processes_give_the_same_numbers(finished, tmp_path, widths):
    out = tmp_path / "workers"
    start(out, "--workers", "2", "--widths", *widths)
    found = {k: v for k, v in results(out).items() if "-w3-" in k}
    whole = results(finished[0])
    assert found.keys() == whole.keys()
    for name in whole:
        for key, array in whole[name][2].items():
            # Worker processes are single-threaded, which may change the order of a sum.
            if "mcmc" not in key and "epistemic" not in key:
                np.testing.assert_allclose(found[name][2][key], array, rtol=1e-2, atol=1e-2)


def test_other_settings_are_refused(finished, run_here):
    code, _, _ = run_here(finished[0], "--n", "30")
    assert "n: 24 in the folder, 30 asked for" in code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--problems", "xorr"), ("xorr", "'xor'")),
        (("--widths", "0"), ("width", "0")),
        (("--activations", "tahn"), ("tahn", "'tanh'")),
        (("--prior-sds", "-1"), ("prior_sd", "-1")),
        (("--sampling.sampler", "nutz"), ("nutz", "'nuts'")),
    ],
)
def test_bad_settings_give_one_clear_error(tmp_path, run_here, options, words):
    code, _, err = run_here(tmp_path / "run", *options)
    assert code not in (0, None) and not (tmp_path / "run").exists()
    for word in words:
        assert word in f"{code} {err}", (code, err)


def test_dry_run_computes_nothing(tmp_path, run_here):
    code, said, _ = run_here(tmp_path / "run", "--dry-run")
    assert code == 0 and "4 cells in 2 batches and 1 shapes" in said
    assert not (tmp_path / "run").exists()


def test_help_names_the_settings(tmp_path, run_here):
    code, said, _ = run_here(tmp_path / "run", "--help")
    assert code == 0
    for word in ("--preset", "--widths", "--prior-sds", "--sampling.num-draws", "Hidden"):
        assert word in said


def test_settings_are_stored(finished):
    stored = json.loads((finished[0] / "settings.json").read_text())["settings"]
    assert stored["n"] == 24 and "workers" not in stored
    # What a run may be extended by stands beside it.
    views = json.loads((finished[0] / "info.json").read_text())["info"]["views"]
    assert views["widths"] == [3] and "widths" not in stored
