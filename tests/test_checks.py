"""Checks of arguments: what they let through, and their messages."""

import numpy as np
import pytest

from isounc.checks import check_choice, check_count, check_name


@pytest.mark.parametrize("value", [1, 999, np.int32(7)])
def test_counts_within_bounds_pass(value):
    check_count("num_ranked", value, 1, 999)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (2000, (1, 999), "num_ranked must be an integer from 1 to 999, got 2000"),
        (0, (1, 999), "num_ranked must be an integer from 1 to 999, got 0"),
        (0, (1,), "num_ranked must be an integer of at least 1, got 0"),
        (3, (2, 2), "num_ranked must be 2, got 3"),
        (2.0, (1,), "num_ranked must be an integer of at least 1, got 2.0"),
        (True, (1,), "num_ranked must be an integer of at least 1, got True"),
    ],
)
def test_counts_out_of_bounds_name_both_bounds(value, bounds, message):
    with pytest.raises(ValueError) as raised:
        check_count("num_ranked", value, *bounds)
    assert str(raised.value) == message


def test_a_near_choice_is_suggested():
    check_choice("metric", "diagonal", ["identity", "diagonal"])
    message = "metric must be one of identity, diagonal, got 'diagnal'; did you mean 'diagonal'?"
    with pytest.raises(ValueError) as raised:
        check_choice("metric", "diagnal", ["identity", "diagonal"])
    assert str(raised.value) == message


@pytest.mark.parametrize("value", ["", "a/b", "..", "-x", 3])
def test_names_that_are_no_part_of_a_path_are_refused(value):
    check_name("region", "far-2.b_c")
    with pytest.raises(ValueError, match=r"region must be letters, digits, .*, got "):
        check_name("region", value)
