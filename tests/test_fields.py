"""Declared fields: what they let through, and their messages."""

import math

import pytest

from isounc.fields import (
    Unreadable,
    anything,
    declared,
    entries,
    integer,
    items,
    number,
    one_of,
    section,
    text,
    truth,
)

TABLE = {
    "layers": integer(1, 1000),
    "eps": number(0, 1, default=1e-6),
    "base": number(above=0, default=1e4),
    "kind": text(("silu", "gelu"), default="silu"),
    "tied": truth(default=False),
    "kinds": items(text(("full", "sliding")), most=4, default=None),
    "rope": section({"factor": number(above=0)}, default=None),
    "ids": one_of(integer(0, 99), items(integer(0, 99), most=4), default=None),
    "names": entries(text(longest=3), most=2, default=None),
    "other": anything(default=None),
}


def test_values_defaults_and_null():
    given = {
        "layers": 2, "eps": 0, "kinds": ["full"], "rope": {"factor": 2, "x": 1}, "ids": [1],
        "names": {"a": "b"}, "unknown": object(),
    }  # fmt: skip
    assert declared(given, TABLE, "config.json") == {
        "layers": 2, "eps": 0.0, "base": 1e4, "kind": "silu", "tied": False, "kinds": ["full"],
        "rope": {"factor": 2.0}, "ids": [1], "names": {"a": "b"}, "other": None,
    }  # fmt: skip
    absent = declared({"layers": 2, "rope": None, "ids": None}, TABLE, "config.json")
    assert absent["rope"] is None and absent["ids"] is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", 10**6, "layers of config.json must be an integer from 1 to 1000, got 1000000"),
        ("layers", True, "layers of config.json must be an integer from 1 to 1000, got True"),
        ("layers", 2.0, "must be an integer from 1 to 1000, got 2.0"),
        ("layers", None, "must be an integer from 1 to 1000, got None"),
        pytest.param("layers", 10**5000, "got an integer too long to spell", id="digits"),
        ("eps", math.nan, "eps of config.json must be a finite number from 0 to 1, got nan"),
        ("eps", "1e-6", "must be a finite number from 0 to 1, got '1e-6'"),
        ("eps", None, "got None"),
        ("base", 0, "base of config.json must be a finite number above 0, got 0"),
        pytest.param("base", 10**400, "must be a finite number above 0, got 1000", id="overflow"),
        ("base", math.inf, "must be a finite number above 0, got inf"),
        ("kind", "relu", "kind of config.json must be one of silu, gelu, got 'relu'"),
        ("kind", ["silu"], "must be one of silu, gelu"),
        ("tied", "no", "tied of config.json must be true or false, got 'no'"),
        ("tied", 0, "must be true or false, got 0"),
        ("kinds", ["full"] * 5, "a list of 0 to 4 values, each one of full, sliding, got"),
        ("kinds", ["full", 7], "item 1 of kinds of config.json must be one of full, sliding"),
        ("kinds", "full", "must be a list"),
        ("rope", {"factor": -1}, "factor of rope of config.json must be a finite number above 0"),
        ("rope", {}, r"rope of config.json must have factor \(a finite number above 0\), got"),
        ("rope", [], "must be a mapping with factor"),
        ("ids", 10**9, "an integer from 0 to 99 or a list of 0 to 4 values"),
        ("names", {"a": "long"}, "a of names of config.json must be text of at most 3 characters"),
        ("names", dict.fromkeys("abc", "x"), "at most 2 names"),
    ],
)
def test_wrong_values_are_named(field, value, message):
    with pytest.raises(Unreadable, match=message):
        declared({"layers": 2, field: value}, TABLE, "config.json")


def test_missing_fields_and_no_mapping():
    with pytest.raises(
        Unreadable, match=r"config.json must have layers \(an integer from 1 to 1000\), got eps"
    ):
        declared({"eps": 1}, TABLE, "config.json")
    with pytest.raises(Unreadable, match="must be a mapping of names to values, got a list of 9"):
        declared([1] * 9, TABLE, "config.json")
