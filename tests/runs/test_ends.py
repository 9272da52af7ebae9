"""How a command ends: one message and a status, no process left behind, and a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from isounc import doorway
from isounc.runs import worker_processes
from isounc.runs.folder import RunFolder

REST = "Finished cells are kept: the same command goes on from here."
ROOT = Path(__file__).resolve().parents[2]
CHILD_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PATIENCE = 60
"""Seconds to wait for what takes a few on a quiet machine."""


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """Whoever started the tests may ignore signals (nohup, a job in the background)."""
    wanted = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Command:
    """The tiny study as a process, in a group of its own as a shell starts it."""

    def __init__(self, folder, *arguments, program=None, **environment):
        self.events, self.run = folder / "events", folder / "run"
        self.events.mkdir(exist_ok=True)
        study = [str(ROOT / "tests" / "runs" / "tiny_study.py"), str(self.events)]
        options = ["--out", str(self.run), "--cache", "", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, *(program or [*study, *options])],
            env={**CHILD_ENVIRONMENT, **environment},
            cwd=folder, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, pattern, count=1):
        """Paths that a step has made."""
        return wait_until(
            lambda: len(found := sorted(self.events.glob(pattern))) >= count and found
        )

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self):
        """Status, output, and the last line of the errors."""
        out, errors = (text.decode() for text in self.process.communicate(timeout=PATIENCE))
        return self.process.returncode, out, errors


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come in time")


def gone(processes):
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def workers(command):
    """Worker processes, from their first moment on; the resource tracker is none."""
    return [p for p in command.children() if "spawn_main" in " ".join(p.cmdline())]


def test_workers_that_import_end_with_a_parent_that_is_killed(tmp_path):
    command = Command(tmp_path, "--executor", "processes", "--workers", "2")
    children = wait_until(lambda: len(found := workers(command)) == 2 and found)
    command.process.kill()
    assert not list(command.events.iterdir()), "they have imported everything already"
    wait_until(lambda: gone(children))
    command.end()


def test_a_worker_that_is_killed_costs_its_batch_alone(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "kill-b").touch()
    options = ("--executor", "processes", "--workers", "2")
    status, _, errors = Command(tmp_path, *options).end()
    assert status == 1 and "Traceback" not in errors
    assert "1 of 4 batches are missing:\n  b (b): it was ended by SIGKILL, as the system" in errors
    assert RunFolder.load(tmp_path / "run").names() == ["a", "c", "d"]
    (tmp_path / "events" / "kill-b").unlink()
    # It goes on, and an output that is ASCII gets escapes and no error.
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, out, errors = Command(tmp_path, "--executor", "serial", **ascii_only).end()
    assert status == 0, errors
    assert r"4 cells, \u03b8 \xb1 1" in out


def test_a_signal_ends_all_processes_with_one_message_and_a_run_that_goes_on(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "wait-b").touch()
    command = Command(tmp_path, "--executor", "processes", "--workers", "1")
    command.wait_for("began-b-*")
    children = workers(command)
    os.killpg(command.process.pid, signal.SIGHUP)  # all of the group, as a closed terminal does
    status, _, errors = command.end()
    assert status == 1 and "Traceback" not in errors and "resource_tracker" not in errors
    assert errors.splitlines()[-1] == f"Ended by SIGHUP. {REST}"
    assert gone(children)
    assert RunFolder.load(command.run).names() == ["a"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_with_one_message(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        doorway.end(lambda: signal.raise_signal(number), kept="cells")
    said = "Interrupted" if name == "SIGINT" else f"Ended by {name}"
    assert ended.value.code == f"{said}. {REST}"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("when", ["at once", "while workers start"])
def test_ctrl_c_while_everything_starts_prints_one_message(tmp_path, when):
    if when == "at once":
        command = Command(tmp_path, program=["-m", "isounc", "scaling", "--out", "run"])
        # It is behind the doorway as soon as it reads a library, long before it has them all.
        wait_until(lambda: maps(command.process.pid, "numpy"))
    else:
        command = Command(tmp_path, "--executor", "processes", "--workers", "2")
        wait_until(lambda: len(workers(command)) == 2)
    os.killpg(command.process.pid, signal.SIGINT)
    status, _, errors = command.end()
    assert status == 1
    assert errors.count("Interrupted. Finished") == 1 and "Traceback" not in errors, errors


def test_a_signal_that_another_thread_takes_waits_until_children_are_born():
    end, reached = threading.Event(), []
    other = threading.Thread(target=end.wait)
    other.start()  # which the signals that are held back later do not spare
    try:
        with pytest.raises(KeyboardInterrupt), worker_processes._signals_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            reached.append("the end of the block")
    finally:
        end.set()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def maps(pid, library):
    try:
        return library in Path(f"/proc/{pid}/maps").read_text()
    except FileNotFoundError:
        pytest.skip("looks at /proc")


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with pytest.raises(SystemExit) as ended:
            doorway.end(lambda: os.kill(os.getpid(), signal.SIGHUP), kept="cells")
        assert ended.value.code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_computation_that_does_not_return_is_left_in_time():
    # A minute of hashing, without a look at signals, stands for a long program of the device.
    code = (
        "import hashlib, os, signal, threading\n"
        "from isounc import doorway\n"
        "doorway.PATIENCE = 0.2\n"
        "def run():\n"
        "    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)\n"
        "doorway.end(run, kept='cells')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=CHILD_ENVIRONMENT, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert done.stderr.decode().strip() == f"Ended by SIGTERM. {REST}"
