"""A process that crashes while it runs tests costs one test, and holds up nobody."""

from types import SimpleNamespace
from typing import Any

from xdist.remote import Producer

from tests.distribution import WholeFiles

TESTS = [f"tests/test_{file}.py::test_{k}" for file in "abcd" for k in range(3)]


class Process:
    """A process that runs tests, as the scheduler sees it."""

    def __init__(self):
        self.sent: list[str] = []
        self.shutting_down = False
        self.gateway = SimpleNamespace(id="a process")

    def send_runtest_some(self, indices):
        self.sent += [TESTS[i] for i in indices]
        # It would report nothing, and nothing more would be sent to it.
        assert indices

    def shutdown(self):
        self.shutting_down = True


def scheduler_of(number):
    config: Any = SimpleNamespace(
        getvalue=lambda name: [f"{number}*popen"], option=SimpleNamespace(loadscopereorder=True)
    )
    return WholeFiles(config, Producer("tests", enabled=False))


def start(scheduler, process):
    scheduler.add_node(process)
    scheduler.add_node_collection(process, TESTS)


def finish(scheduler, process, number):
    for test in process.sent[:number]:
        scheduler.mark_test_complete(process, TESTS.index(test))


def test_the_tests_of_a_process_that_crashed_are_run_by_its_replacement():
    scheduler = scheduler_of(2)
    busy, crashing, replacement = Process(), Process(), Process()
    start(scheduler, busy)
    start(scheduler, crashing)
    scheduler.schedule()
    assert (len(busy.sent), len(crashing.sent)) == (3, 3)
    finish(scheduler, crashing, 1)
    assert len(crashing.sent) == 6  # its second file
    finish(scheduler, crashing, 4)
    expected = crashing.sent[4:]
    assert scheduler.remove_node(crashing) == expected[0]
    start(scheduler, replacement)
    scheduler.schedule()
    finish(scheduler, replacement, 1)
    finish(scheduler, replacement, 2)
    assert set(expected[1:]) <= set(busy.sent + replacement.sent)
    assert expected[0] not in busy.sent + replacement.sent
    assert len(busy.sent + replacement.sent) + 4 + 1 == len(TESTS)


def test_a_process_that_ends_with_nothing_left_has_not_crashed():
    scheduler = scheduler_of(1)
    only = Process()
    start(scheduler, only)
    scheduler.schedule()
    for number in (3, 6, 9, 12):
        finish(scheduler, only, number)
    assert only.shutting_down
    assert len(only.sent) == len(TESTS)
    assert scheduler.remove_node(only) is None
