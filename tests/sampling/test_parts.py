"""Parts: how long they are, what is told while they last, and how an interrupt leaves them."""

from __future__ import annotations

import itertools
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from isounc.sampling import clock, parts
from isounc.sampling.clock import Clock, TimeIsUp
from isounc.sampling.run import Run


class Machine:
    """A clock, and a program whose pieces take so many seconds each."""

    def __init__(self, monkeypatch, cost):
        self.now, self.cost, self.counts = 0.0, cost, []
        monkeypatch.setattr(clock, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def parts(self, max_seconds=float("inf")):
        nothing: dict[str, Any] = dict.fromkeys(Run._fields)
        return parts.Parts(Run(**nothing | {"clock": Clock(max_seconds)}))

    def program(self, state, first, count):
        assert state == first, "each part goes on where the last one ended"
        self.counts.append(count)
        self.now += sum(self.cost(i) for i in range(first, first + count))
        return jnp.asarray(first + count)


def test_parts_grow_to_two_seconds(monkeypatch):
    # The first piece is compiled, which takes 30 s.
    machine = Machine(monkeypatch, lambda i: 30.0 if i == 0 else 0.0625)
    some, told = machine.parts(), []
    some.begin(0, jnp.zeros((), int))
    assert (
        some.work(machine.program, 150, tell=lambda done: told.append((machine.now, done))) == 150
    )
    assert machine.counts == [1, 1, 4, 16, 32, 32, 32, 32]
    # Told at most once a second, and not at the end, of which others tell.
    seconds = [now for now, _ in told]
    assert all(b - a >= 1 for a, b in itertools.pairwise(seconds))
    assert [done for _, done in told] == [1, 22, 54, 86, 118]
    # The next step begins with what is known.
    machine.counts.clear()
    machine.cost = lambda i: 0.0625
    some.begin(1, jnp.zeros((), int))
    some.work(machine.program, 60, tell=lambda done: None)
    assert machine.counts == [32, 28]


def test_cheap_work_is_one_part_and_dear_work_one_piece_at_a_time(monkeypatch):
    for cost, counts in ((1e-5, [250]), (20.0, [1] * 250)):
        machine = Machine(monkeypatch, lambda i, cost=cost: cost)
        some = machine.parts()
        for step in range(2):
            machine.counts.clear()
            some.begin(step, jnp.zeros((), int))
            some.work(machine.program, 250, tell=lambda done: None)
        assert machine.counts == counts


def test_dearer_pieces_make_shorter_parts(monkeypatch):
    machine = Machine(monkeypatch, lambda i: 1 / 64 if i < 90 else 0.5)
    some = machine.parts()
    some.begin(0, jnp.zeros((), int))
    some.work(machine.program, 250, tell=lambda done: None)
    assert machine.counts == [1, 1, 4, 16, 64, 128, 4, 4, 4, 4, 4, 4, 4, 4, 4]


def test_time_is_up_between_parts_but_not_before_the_least(monkeypatch):
    machine = Machine(monkeypatch, lambda i: 1.0)
    some = machine.parts()
    some.begin(0, jnp.zeros((), int))
    with pytest.raises(TimeIsUp):
        some.work(machine.program, 100, tell=lambda done: None, until=5.0)
    assert some.stage.done == int(some.stage.state) == 6  # parts of 1, 1, 2, 2 pieces
    some.begin(1, jnp.zeros((), int))
    with pytest.raises(TimeIsUp):
        some.work(machine.program, 100, tell=lambda done: None, until=5.0, least=3)
    assert some.stage.done == 4
    some.begin(2, jnp.zeros((), int))
    with pytest.raises(TimeIsUp):
        some.work(machine.program, 100, tell=lambda done: None, until=5.0)
    assert some.stage.done == 0


def test_a_long_part_is_told_of_and_can_be_interrupted(monkeypatch):
    monkeypatch.setattr(parts, "SILENCE", 0.05)

    @jax.jit
    def long(x, count):
        return jax.lax.fori_loop(0, count, lambda i, x: jnp.tanh(x @ x), x)

    x = jnp.eye(64) + 0.01
    jax.block_until_ready(long(x, 1))
    told = []
    assert parts.wait(long(x, 100_000), lambda: told.append(None)).shape == (64, 64)
    assert len(told) >= 2

    def interrupt():
        raise KeyboardInterrupt

    running = long(x, 100_000)
    with pytest.raises(KeyboardInterrupt):
        parts.wait(running, interrupt)
    assert not running.is_ready(), "it is not waited for"
