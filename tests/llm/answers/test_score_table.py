"""Score tables: bad input."""

from __future__ import annotations

import pytest

from isounc.llm.answers.score_table import make_score_table


@pytest.mark.parametrize(
    ("values", "correct", "kwargs", "message"),
    [
        ({}, [1], {}, "must hold a score"),
        ({"u": [1.0]}, [], {}, "correct must be"),
        ({"u": [1.0]}, [0.5], {}, "correct must be"),
        ({"u": [1.0]}, [1, 0], {}, r"values\['u'\] must have shape \(2,\).*got \(1,\)"),
        (
            {"u": [1.0]},
            [1],
            {"higher_is_certain": ["v"]},
            "higher_is_certain must be one of u, got 'v'",
        ),
    ],
)
def test_bad_tables(values, correct, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_score_table(values, correct, **kwargs)
