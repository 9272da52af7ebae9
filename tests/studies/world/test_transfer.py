"""Transfer between sizes where its outcome is known."""

from __future__ import annotations

import numpy as np
import pytest

from isounc.fields import Unreadable
from isounc.runs.folder import Record
from isounc.runs.tables import rows_of_table
from isounc.studies.world.scores import SCORES
from isounc.studies.world.transfer import (
    COVERAGE,
    TRANSFER_COLUMNS,
    TRANSFER_ROW,
    transfer,
    transfer_table,
)


def record(world, width, *, turned=False, share=0.3, epochs=10):
    """Answers of which the wrong ones have larger scores or, turned round, smaller ones."""
    rng = np.random.default_rng([world, width])
    wrong = rng.random(800) < share
    score = np.exp(rng.normal(size=800) + (-2 if turned else 2) * wrong)
    arrays = {f"score/{name}": score.astype(np.float32) for name in SCORES}
    arrays |= {"wrong": wrong, "judged": np.arange(800) < 780}
    cell = {"world": world, "width": width, "depth": 2, "epochs": epochs}
    return Record(f"{world}-{width}-{epochs}", {"cell": cell}, arrays)


def test_what_is_alike_transfers_and_what_is_turned_does_not(monkeypatch):
    monkeypatch.setattr("isounc.studies.world.transfer.FEATURES", {"entropy": ("entropy",)})
    records = [record(0, width) for width in (8, 16)] + [record(0, 32, turned=True)]
    # Another length takes no part, nor a world of one width.
    records += [record(0, 64, epochs=3), record(1, 8)]
    rows = {(r["left_out"], r["features"], r["form"]): r for r in transfer(records, 10)}
    assert {key[0] for key in rows} == {8, 16, 32} and {r["world"] for r in rows.values()} == {0}
    turned = rows[32, "entropy", "log"]
    assert turned["num_train"] == 1560 and turned["num_test"] == 780
    # Two normal distributions two standard deviations apart: Phi(sqrt 2) = .921.
    assert turned["auroc"] == pytest.approx(1 - 0.921, abs=0.03)
    assert turned["auroc_own"] == pytest.approx(0.921, abs=0.03)
    alike = [record(2, 8), record(2, 16)]
    (row, *_) = transfer(alike, 10)
    assert (
        row["auroc"] == pytest.approx(row["auroc_own"], abs=0.01) == pytest.approx(0.92, abs=0.03)
    )
    assert row["expected_wrong"] == pytest.approx(row["wrong"], abs=0.05)
    assert (
        row["kept"] == pytest.approx(COVERAGE, abs=0.05) and row["wrong_kept"] < row["wrong"] / 1.5
    )
    # A width that is wrong more often than it was fitted on is believed too much; ranks hide it.
    risky = {
        (r["left_out"], r["form"]): r
        for r in transfer([record(3, 8), record(3, 16, share=0.7)], 10)
    }
    assert risky[16, "rank"]["expected_wrong"] < risky[16, "rank"]["wrong"] - 0.2
    said = transfer_table(list(rows.values()))
    assert len(said.rows) == len(rows) and "80%" in said.note


def test_rows_come_back_from_a_table_that_anybody_may_have_edited(tmp_path):
    import pandas as pd

    rows = transfer([record(0, 8), record(0, 16, share=0.0)], 10)
    assert rows[0]["auroc"] is None and rows[0]["num_test"] == 780  # one class alone
    table = pd.DataFrame(rows, columns=list(TRANSFER_COLUMNS))
    assert rows_of_table(table, TRANSFER_ROW, "transfer.csv")[0]["left_out"] == 8
    table["form"] = "raw"
    with pytest.raises(Unreadable, match=r"form of row 0 of transfer.csv must be one of"):
        rows_of_table(table, TRANSFER_ROW, "transfer.csv")
