"""Sentences about a run."""

import pytest

from isounc.runs.words import cells_run


@pytest.mark.parametrize(
    ("done", "sentence"),
    [
        (0, "The run has 0 of 3 cells."),
        (3, "The run has 3 of 3 cells."),
        (5, "The run has 5 cells; 3 are asked for."),
    ],
)
def test_a_run_may_have_fewer_cells_than_it_should_or_more(done, sentence):
    assert cells_run(done, [("a", "b"), ("c",)]) == sentence
