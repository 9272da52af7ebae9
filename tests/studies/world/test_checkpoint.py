"""A training that was killed goes on from its last length, with equal bits."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from isounc.studies.world import train
from isounc.studies.world.checkpoint import FOLDER, Progress
from isounc.studies.world.corpus import make_world
from isounc.studies.world.settings import Cell, Settings
from isounc.studies.world.train import WorldTraining, config_of, rows_of_members, train_members

SETTINGS = Settings(
    widths=(8,), epochs=(1, 2, 4), num_relations=1,
    train=WorldTraining(minibatch=64, warmup=5),
)  # fmt: skip
WORLD = make_world(0, 1)
CELLS = [Cell(0, 8, 1, epochs) for epochs in SETTINGS.epochs]


def trained(folder, epochs, *, most=9, settings=SETTINGS):
    """Leaves of the members by epoch; at most so many lengths, as of a run that is killed."""
    cells = [cell for cell in CELLS if cell.epochs in epochs]
    store = folder and Progress(folder, cells, settings)
    found = {}
    for epoch, members in train_members(
        WORLD, config_of(WORLD.vocab_size, 8, 1), epochs, range(2), rows_of_members(WORLD, 2, 0, 0),
        settings.train, store=store,
    ):  # fmt: skip
        found[epoch] = [np.asarray(leaf) for leaf in jax.tree.leaves(members.params)]
        if len(found) == most:
            break
    return found, store


@pytest.fixture
def epochs_done(monkeypatch):
    """Counts the epochs that are trained."""
    done, plain = [], train._epoch
    monkeypatch.setattr(train, "_epoch", lambda *a, **k: done.append(1) or plain(*a, **k))
    return done


def test_a_killed_training_goes_on_with_equal_bits(tmp_path, epochs_done):
    whole, _ = trained(None, (1, 2, 4))
    assert len(epochs_done) == 4
    # Killed after the second length was stored, before its record was written.
    cut, _ = trained(tmp_path, (1, 2, 4), most=2)
    assert list(cut) == [1, 2] and len(epochs_done) == 6
    (path,) = (tmp_path / FOLDER).iterdir()
    rest, store = trained(tmp_path, (2, 4))
    assert list(rest) == [2, 4] and len(epochs_done) == 8
    for epoch in (2, 4):
        for a, b in zip(whole[epoch], rest[epoch], strict=True):
            np.testing.assert_array_equal(a, b)
    # A state that is torn is not read: the one before it is.
    newest = max(path.glob("state-*.npz"))
    newest.write_bytes(newest.read_bytes()[:-7])
    again, _ = trained(tmp_path, (4,))
    assert len(epochs_done) == 10
    assert all((a == b).all() for a, b in zip(whole[4], again[4], strict=True))
    # A record that was lost before the newest state makes the training start again.
    trained(tmp_path, (1,))
    assert len(epochs_done) == 11
    store.remove()
    assert not (tmp_path / FOLDER).exists()


def test_states_of_other_settings_are_not_read(tmp_path, epochs_done):
    trained(tmp_path, (1,))
    other = dataclasses.replace(SETTINGS, train=WorldTraining(minibatch=64, warmup=6))
    _, store = trained(tmp_path, (1,), settings=other)
    assert len(epochs_done) == 2 and len(list((tmp_path / FOLDER).iterdir())) == 2
    store.remove()
    assert not (tmp_path / FOLDER).exists()
