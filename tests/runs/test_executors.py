"""Executors: every group is computed once, wherever, and what fails in a worker is raised here."""

from __future__ import annotations

import os
import time

import pytest

from isounc.runs.compilation import LARGE_WORK, quick_compilation
from isounc.runs.executors import EXECUTORS, Batch, Event, Lost, run_groups
from isounc.runs.folder import Record

GROUPS = [(Batch("one", ("a", "b"), 2.0),), (Batch("two", ("c",)), Batch("three", ("d",)))]


def names(group, tell):
    for batch in group:
        tell(Event(os.getpid(), batch.label, batch.seconds))
    return os.getpid(), "".join(cell for batch in group for cell in batch.cells)


def news(group, tell):
    """A finished batch, and then steps of the next that finish nothing."""
    tell(Event(1, "first", group[0].seconds))
    for step in ("MAP", "warm-up", "sampling"):
        time.sleep(0.6)  # the bar is drawn at most every half second
        tell(Event(1, step, 0.0))


def test_steps_are_said_while_nothing_is_finished(capsys):
    run_groups([(Batch("one", (), 200.0), Batch("two", (), 100.0))], news)
    said = capsys.readouterr().err
    assert all(f"1/2 | {step}" in said for step in ("MAP", "warm-up", "sampling"))


def fail_at_c(group, tell):
    if "c" in group[0].cells:
        raise ValueError("c cannot be computed")
    return names(group, tell)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_every_group_is_computed_once(executor):
    results = run_groups(GROUPS, names, executor=executor, workers=2)
    assert sorted(text for _, text in results) == ["ab", "cd"]
    here = {process for process, _ in results} == {os.getpid()}
    assert here == (executor == "serial")


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_an_error_in_a_worker_is_raised_here(executor):
    with pytest.raises(ValueError, match="c cannot be computed"):
        run_groups(GROUPS, fail_at_c, executor=executor, workers=1)


def flags(group, tell):
    return group[0].label, os.environ["XLA_FLAGS"], os.getpid()


def test_groups_of_large_work_are_compiled_with_all_optimizations(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    works = {"tiny": 0, "small": LARGE_WORK - 1, "large": LARGE_WORK, "huge": 10**9}
    groups = [(Batch("nothing", ()), Batch(name, (), work=work)) for name, work in works.items()]
    seen = run_groups([group[::-1] for group in groups], flags, executor="processes", workers=1)
    assert [label for label, *_ in seen] == ["large", "huge", "tiny", "small"]
    assert {text for _, text, _ in seen[:2]} == {"--xla_cpu_multi_thread_eigen=false"}
    assert len({text for _, text, _ in seen[2:]}) == 1
    assert all(flag in seen[2][1] for flag in quick_compilation())
    assert [len({process for *_, process in seen[i : i + 2]}) for i in (0, 1, 2)] == [1, 2, 1]


def test_an_executor_that_is_not_known_is_refused():
    with pytest.raises(
        ValueError, match=r"executor must be one of serial, processes, .*, got 'dask'"
    ):
        run_groups(GROUPS, names, executor="dask")


def test_an_executor_can_be_added(monkeypatch):
    def backwards(groups, work, tell, workers):
        yield from (work(group, tell) for group in reversed(groups))

    monkeypatch.setitem(EXECUTORS, "backwards", backwards)
    assert [text for _, text in run_groups(GROUPS, names, executor="backwards")] == ["cd", "ab"]


def test_what_is_lost_is_said_at_the_end_with_its_reason(monkeypatch):
    def lossy(groups, work, tell, workers, *, reason):
        yield work(groups[0], tell)
        yield from (Lost(batch, reason) for batch in groups[1])

    monkeypatch.setitem(EXECUTORS, "lossy", lossy)
    with pytest.raises(ChildProcessError) as raised:
        run_groups(GROUPS, names, executor="lossy", reason="Traceback\nValueError: no")
    # Batches that were lost for the same reason are named together.
    assert str(raised.value).startswith(
        "2 of 3 batches are missing:\n  two (c); three (d): Traceback\n    ValueError: no\nAll others"
    )


def test_a_record_from_elsewhere_is_kept(monkeypatch):
    def distant(groups, work, tell, workers):
        tell(Record("a", {}, {}))
        yield "done"

    monkeypatch.setitem(EXECUTORS, "distant", distant)
    kept = []
    assert run_groups(GROUPS, names, executor="distant", keep=kept.append) == ["done"]
    assert [record.name for record in kept] == ["a"]
