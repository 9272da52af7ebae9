"""Runs on other machines: whatever is lost on the way, the records are those of a serial run."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickletools
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import psutil
import pytest

from isounc.runs import cluster, extras, part, slurm_jobs
from isounc.runs.batches import Batch
from isounc.runs.compilation import LARGE_WORK, quick_compilation
from isounc.runs.compute import MARK, WORKER_MEBIBYTES, open_if_shared, what_is_left, work_of
from isounc.runs.executors import run_groups
from isounc.runs.folder import Record, RunFolder
from isounc.runs.ray_tasks import environment_of_tasks
from isounc.runs.settings import check_run_settings, stored_settings
from isounc.runs.study import run_study
from isounc.runs.worker_processes import _environment_of_children
from tests.runs.cluster_study import STUDY, Cell, Settings, plan, records_of
from tests.runs.test_ends import gone, wait_until

ROOT = Path(__file__).resolve().parents[2]
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _children_find_the_tests(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on loopback
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home of who runs the tests


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "events").mkdir()
    events = str(tmp_path / "events")
    return Settings(executor="serial", out=str(tmp_path / "run"), events=events, cache="")


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The records of an undisturbed serial run."""
    folder = tmp_path_factory.mktemp("serial") / "run"
    run_study(
        STUDY, Settings(executor="serial", out=str(folder), events=str(folder.parent), cache="")
    )
    records = records_of(folder)
    assert len(records) == 8
    return records


def ask(settings, *faults):
    for fault in faults:
        (Path(settings.events) / fault).touch()


def began(settings, name):
    """Processes that began a cell."""
    return [path.name for path in Path(settings.events).glob(f"began-{name}-*")]


def complete(settings, serial):
    """What is missing, computed without faults; then nothing tells the run from a serial one."""
    for fault in Path(settings.events).glob("f*-*"):
        fault.unlink()
    run_study(STUDY, dataclasses.replace(settings, executor="serial"))
    assert records_of(Path(settings.out)) == serial


# ---- Ray


def test_on_ray_a_killed_worker_a_full_disk_and_a_cell_that_fails_cost_nothing_else(
    settings, serial
):
    ask(settings, "kill-a", "full-b", "fail-c")
    done = subprocess.run(program(settings), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    said = done.stderr[done.stderr.index("error: ") :]
    assert said.startswith("error: 1 of 4 batches are missing:\n  c (c): Traceback"), said
    assert "ValueError: c cannot be computed" in said
    assert len(began(settings, "a")) == 2, "it was killed once, and computed again"
    assert done.stdout.endswith("this process has started no device\n")
    others = {name: content for name, content in serial.items() if name[0] != "c"}
    assert records_of(Path(settings.out)) == others
    assert not (Path(settings.out) / MARK).exists()
    complete(settings, serial)


def program(settings):
    """The study on a Ray cluster of its own, of one core, as a command."""
    return [
        sys.executable, "-m", "tests.runs.cluster_study", "--executor", "ray", "--workers", "1",
        "--out", settings.out, "--events", settings.events, "--cache", "",
    ]  # fmt: skip


NODES = """
import pathlib, sys, threading, time
from ray.cluster_utils import Cluster
from isounc.runs.study import run_study
from isounc.runs.worker_processes import _environment_of_children
from tests.runs.cluster_study import STUDY, Settings

out, events = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False})
cluster.add_node()

def remove_other_node():
    '''Once both nodes compute, the one without the driver goes.'''
    while len(list(pathlib.Path(events).glob("began-*"))) < 2:
        time.sleep(0.1)
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    for fault in pathlib.Path(events).glob("wait-*"):
        fault.unlink()

threading.Thread(target=remove_other_node, daemon=True).start()
run_study(STUDY, Settings(
    executor="ray", ray_address=cluster.address, out=out, events=events, cache=""
))
cluster.shutdown()
"""


@slow
def test_on_ray_a_machine_that_is_removed_costs_nothing(settings, serial):
    ask(settings, "wait-a", "wait-b")
    done = subprocess.run(
        [sys.executable, "-c", NODES, settings.out, settings.events],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert records_of(Path(settings.out)) == serial
    assert max(len(began(settings, name)) for name in "ab") == 2, done.stderr


@slow
def test_on_ray_a_driver_that_is_killed_and_started_again_goes_on(settings, serial):
    ask(settings, "wait-c")
    driver = subprocess.Popen(program(settings))
    wait_until(lambda: began(settings, "c"))
    # Its agents look for their parent every half minute; what computes must not outlive the driver.
    tasks = [p for p in psutil.Process(driver.pid).children(recursive=True) if is_worker(p)]
    assert len(tasks) == 1
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: gone(tasks))
    (Path(settings.events) / "wait-c").unlink()
    assert sorted(RunFolder.load(settings.out).names()) == ["a", "b"]
    done = subprocess.run(program(settings), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert records_of(Path(settings.out)) == serial
    assert len(began(settings, "a")) == 1


def is_worker(process):
    title = " ".join(process.cmdline())
    return title.startswith("ray::") and "Agent" not in title


def test_tasks_keep_to_what_they_reserve(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    variables = environment_of_tasks(1.0, 0.0)
    assert variables["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false --mine"
    assert variables["OMP_NUM_THREADS"] == variables["NPROC"] == "1"
    assert variables["JAX_PLATFORMS"] == "cpu"
    on_gpu = environment_of_tasks(4.0, 0.25)
    assert on_gpu["XLA_FLAGS"] == "--mine" and on_gpu["OMP_NUM_THREADS"] == "4"
    assert on_gpu["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert on_gpu["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.225"
    # CUDA_VISIBLE_DEVICES is Ray's.
    assert not {"JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"} & set(on_gpu)
    assert environment_of_tasks(1.0, 1.0, "gpu")["JAX_PLATFORMS"] == "cuda"


def test_small_work_is_compiled_as_worker_processes_compile_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with _environment_of_children(is_large=False):
        of_processes = os.environ["XLA_FLAGS"]
    assert quick_compilation() and of_processes.endswith(" ".join(quick_compilation()))
    for device in ("auto", "cpu"):
        small = environment_of_tasks(1.0, 0.0, device, is_large=False)
        assert small["XLA_FLAGS"] == of_processes
    on_gpu = environment_of_tasks(1.0, 1.0, "gpu", is_large=False)["XLA_FLAGS"]
    assert on_gpu == environment_of_tasks(1.0, 0.0)["XLA_FLAGS"] != of_processes


def test_without_a_shared_folder_records_are_sent(settings, serial):
    folder = RunFolder.open(settings.out, stored_settings(settings, ("events",)), study="cluster")
    (folder.path / MARK).write_text("token")
    work = work_of(STUDY, settings, most_mebibytes=WORKER_MEBIBYTES, is_remote=True)
    open_folder = work.keywords["open_folder"]
    assert open_if_shared(open_folder, settings.out, "token") is not None
    for other in ("other", "tok", ""):  # a folder of before, on a machine of its own
        assert open_if_shared(open_folder, settings.out, other) is None
    news = []
    for group in plan(settings):
        session = work(group, news.append, open_folder=lambda: None)
        assert session.device["platform"] == "cpu"
    assert folder.names() == []
    for record in news:
        if isinstance(record, Record):
            assert type(record.arrays["product"]) is np.ndarray
            folder.write(record)
    (folder.path / MARK).unlink()
    assert records_of(folder.path) == serial


def test_the_mark_of_a_shared_folder_takes_the_place_of_a_link(settings, tmp_path, monkeypatch):
    settings = dataclasses.replace(settings, executor="ray")
    folder = RunFolder.open(settings.out, stored_settings(settings, ("events",)), study="cluster")
    mark, outside = folder.path / MARK, tmp_path / "outside"
    outside.write_text("kept")
    mark.symlink_to(outside)

    def computing(*_, **__):
        assert mark.is_file() and not mark.is_symlink()
        return []

    monkeypatch.setattr(cluster, "run_groups", computing)
    assert cluster.compute_elsewhere(STUDY, settings, folder, plan(settings)) == []
    assert outside.read_text() == "kept" and not mark.exists()


def test_what_is_there_is_not_handed_out(tmp_path):
    folder = RunFolder.open(tmp_path / "run", {})
    for name in "ab":
        folder.write(Record(name, {}, {}))
    first, second = Batch("first", (Cell("a"), Cell("b"))), Batch("second", (Cell("b"), Cell("c")))
    groups = [(first,), (first, second)]
    assert what_is_left(groups, folder, separable=False) == [(second,)]
    narrow = second._replace(cells=(Cell("c"),))
    assert what_is_left(groups, folder, separable=True) == [(narrow,)]


# ---- Slurm


@pytest.fixture
def local(monkeypatch):
    """submitit's executor for processes of this machine, and one job for all batches."""
    monkeypatch.setattr(slurm_jobs, "CLUSTER", "local")
    monkeypatch.setattr(slurm_jobs, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(slurm_jobs, "MOST_JOBS", 1)


def test_a_job_that_is_preempted_goes_on_and_a_cell_that_fails_costs_nothing_else(
    settings, serial, local
):
    ask(settings, "preempt-b", "fail-c", "full-d")
    with pytest.raises(ChildProcessError) as raised:
        run_study(STUDY, dataclasses.replace(settings, executor="slurm"))
    said = str(raised.value)
    assert said.startswith("2 of 4 batches are missing:\n  c (c): Traceback"), said
    assert "ValueError: c cannot be computed" in said
    # A job writes into the run folder, where all of it must go: it has nobody to send records to.
    assert "  d (d): Traceback" in said and "could not write record 'd'" in said
    assert [len(began(settings, name)) for name in "ab"] == [1, 2]
    (submitted,) = Path(settings.out).glob("jobs/*/*/*_submitted.pkl")
    names = texts_of(submitted.read_bytes())
    assert "tests.runs.cluster_study:STUDY" in names
    modules = {
        name for name in names if name.startswith(("isounc", "submitit", "tests.", "builtins"))
    }
    assert modules == {
        "isounc.runs.part", "submitit.core.utils", "tests.runs.cluster_study:STUDY",
    }  # fmt: skip
    assert not {"_make_function", "_builtin_type", "CodeType", "_reconstruct"} & names
    complete(settings, serial)


def texts_of(pickled):
    """Every text of a pickle, names of what it loads among them; nothing is loaded."""
    return {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}


def test_a_job_that_is_lost_is_named_with_its_log(settings, monkeypatch, tmp_path):
    class Ended:
        state = "OUT_OF_MEMORY"
        paths = type("Paths", (), {"stderr": "jobs/1_0_log.err"})

        def done(self):
            return True

    monkeypatch.setattr(slurm_jobs, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(slurm_jobs, "_submit", lambda parts, folder, job: [Ended() for _ in parts])
    groups, folder = plan(settings), tmp_path / "jobs"
    parts = part.parts_of(STUDY, settings, groups, folder, most=4)
    with pytest.raises(ChildProcessError, match=r"OUT_OF_MEMORY\); see jobs/1_0_log.err"):
        run_groups(
            groups,
            lambda *_: None,
            executor="slurm",
            parts=parts,
            folder=folder,
            job=slurm_jobs.Job(),
        )
    assert folder.exists()


def test_a_dry_run_prints_the_script(settings, capsys):
    asked = dataclasses.replace(
        settings, executor="slurm", dry_run=True, partition="long", time=90, gpus=1,
        cpus_per_cell=4.0, workers=2,
    )  # fmt: skip
    run_study(STUDY, asked)
    said = capsys.readouterr().out
    for line in (
        "#SBATCH --partition=long", "#SBATCH --time=90", "#SBATCH --array=0-3%2",
        "#SBATCH --cpus-per-task=4", "#SBATCH --gpus-per-node=1", "#SBATCH --requeue",
        "export OMP_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4 NPROC=4",
    ):  # fmt: skip
        assert line in said
    assert not Path(settings.out).exists()


def test_jobs_read_the_settings_as_they_were_given(settings, tmp_path):
    asked = dataclasses.replace(settings, names=("x", "y"), dtype="float64")
    part.write_settings(STUDY, asked, tmp_path / "settings.json")
    again = part.read_settings(STUDY, tmp_path / "settings.json")
    assert stored_settings(again) == stored_settings(asked)


def test_very_many_batches_share_jobs(settings, tmp_path):
    parts = part.parts_of(STUDY, settings, plan(settings), tmp_path / "jobs", most=3)
    assert [one.batches for one in parts] == [("a", "b"), ("c", "d")]
    assert {one.flags for one in parts} == {" ".join(quick_compilation())}


def test_a_job_has_work_that_compiles_in_one_way(settings, tmp_path):
    names = iter("abcdefghi")
    groups = [
        tuple(Batch(name, (Cell(name),), work=work) for name in itertools.islice(names, count))
        for count, work in ((2, LARGE_WORK), (3, 0), (3, LARGE_WORK))
    ]
    parts = part.parts_of(STUDY, settings, groups, tmp_path / "jobs", most=4)
    assert len(parts) <= 4 and [one.index for one in parts] == list(range(len(parts)))
    flags = {name: one.flags for one in parts for name in one.batches}
    quick = " ".join(quick_compilation())
    assert flags == dict.fromkeys("abfgh", "") | dict.fromkeys("cde", quick)
    on_gpu = dataclasses.replace(settings, executor="slurm", gpus=1)
    parts = part.parts_of(STUDY, on_gpu, groups, tmp_path / "more", most=100)
    assert len(parts) == 8 and {one.flags for one in parts} == {""}


def test_a_study_that_jobs_cannot_find_is_refused(monkeypatch):
    script = types.ModuleType("__main__")
    script.STUDY = STUDY  # pyright: ignore
    for name in ("__main__", "__mp_main__"):  # a script, by both of its names, which jobs have not
        monkeypatch.setitem(sys.modules, name, script)
    assert part.place_of_study(STUDY) == "tests.runs.cluster_study:STUDY"
    assert part.found_study(part.place_of_study(STUDY)) is STUDY
    with pytest.raises(ValueError, match="study must be an attribute of a module"):
        part.place_of_study(dataclasses.replace(STUDY))


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ray_address": "auto"},
            "ray_address must be left out with executor serial, got 'auto'; ",
        ),
        (
            {"executor": "slurm", "gpus_per_cell": 0.5},
            "gpus_per_cell must be left out with executor",
        ),
        ({"executor": "ray", "partition": "x"}, "partition .* it belongs to executor slurm"),
        ({"executor": "processes", "cpus_per_cell": 2.0}, "it belongs to executor ray and slurm"),
        ({"executor": "ray", "cpus_per_cell": 0.0}, "cpus_per_cell must be a positive"),
        ({"executor": "ray", "gpus_per_cell": 1.5}, "gpus_per_cell must be a share of one, or a"),
        ({"executor": "slurm", "cpus_per_cell": 0.5}, "cpus_per_cell must be a whole number, got"),
        ({"executor": "slurm", "time": 0}, "time must be an integer of at least 1, got 0"),
        ({"executor": "ray", "device": "gpu"}, "gpus_per_cell must be positive with device gpu"),
    ],
)
def test_settings_of_another_executor_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        check_run_settings(dataclasses.replace(settings, **changes))


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_without_the_package_the_extra_is_named(settings, monkeypatch, executor, package):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=rf"needs the package {package}: .*isounc\[{executor}\]"):
        run_study(STUDY, dataclasses.replace(settings, executor=executor))
