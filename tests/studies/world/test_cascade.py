"""Cascades between sizes where their outcome is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isounc.runs.folder import Record
from isounc.runs.tables import rows_of_table
from isounc.studies.world.cascade import (
    CASCADE_COLUMNS,
    CASCADE_ROW,
    PASSING,
    TARGETS,
    cascade_table,
    cascades,
    chosen_target,
)


def record(world, width, *, share, epochs=10):
    """Of 600 judged answers the wrong ones are the last; `log_p` knows them, entropy nothing."""
    wrong = np.arange(640) >= 600 * (1 - share)
    rng = np.random.default_rng([world, width])
    arrays = {f"score/{name}": rng.random(640).astype(np.float32) for name in PASSING}
    arrays["score/log_p"] = (wrong + arrays["score/log_p"] / 2).astype(np.float32)
    arrays |= {"wrong": wrong, "judged": np.arange(640) < 600}
    cell = {"world": world, "width": width, "depth": 2, "epochs": epochs}
    return Record(f"{world}-{width}-{epochs}", {"cell": cell, "num_params": 100 * width}, arrays)


def test_a_score_that_knows_saves_and_one_that_does_not_gains_nothing():
    records = [record(world, width, share=0.4 if width == 8 else 0.12)
               for world in (0, 1, 2) for width in (8, 16)]  # fmt: skip
    records += [record(0, 32, share=0.1, epochs=3), record(9, 8, share=0.4)]
    rows = cascades(records, 10)
    assert {r["world"] for r in rows} == {0, 1, 2}
    assert len(rows) == 3 * len(PASSING) * len(TARGETS)
    by_score = {(r["world"], r["score"], r["target"]): r for r in rows}
    for world in (0, 1, 2):
        sure, unsure = (by_score[world, name, 0.2] for name in ("log_p", "entropy"))
        assert (sure["narrow_wrong"], sure["wide_wrong"]) == pytest.approx((0.4, 0.12))
        # The wrong answers of both come last: passing on by who is wrong is the best order but for those.
        assert sure["gain"] > 0.6 and abs(unsure["gain"]) < 0.35
        # All answers cost 800, those passed on 1600 more.
        assert sure["cost_share"] == pytest.approx(0.5 + sure["passed_on"])
        assert sure["cascade_wrong"] <= 0.25  # the promise is about 0.2, this is 300 questions
        assert sure["passed_on"] < (unsure["passed_on"] or 1)
        assert by_score[world, "log_p", 0.1]["found"] == 0
    assert chosen_target(rows) == 0.2  # below .12 no score helps
    table = cascade_table(rows)
    assert len(table.rows) == len(PASSING) and "at most 0.2 are wrong" in table.note
    assert dict(zip(table.columns, table.rows[0], strict=True))["found"] == "3 of 3"
    table = pd.DataFrame(rows, columns=list(CASCADE_COLUMNS))
    assert rows_of_table(table, CASCADE_ROW, "cascade.csv") == rows


def test_without_mapie_the_gains_are_reported(monkeypatch):
    def absent(*arguments, **keywords):
        raise ImportError("MAPIE")

    monkeypatch.setattr("isounc.guard.Cascade.fit", absent)
    rows = cascades([record(0, 8, share=0.4), record(0, 16, share=0.1)], 10)
    assert {r["found"] for r in rows} == {None} and rows[0]["gain"] > 0.6
    assert chosen_target(rows) is None
    assert "0 of 1" in cascade_table(rows).rows[0]
