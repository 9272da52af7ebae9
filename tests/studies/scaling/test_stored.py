"""Records and tables that somebody has edited: one error names the record and the field."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from isounc.__main__ import main
from isounc.runs.folder import Record, RunFolder
from isounc.studies.scaling import report, stored
from isounc.studies.scaling.figures.maps import uncertainty_maps
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.settings import Settings
from tests.studies.scaling.synthetic_run import write_run

ONE = {"problems": ("xor",), "widths": (2,), "seeds": (0,), "regions": ("test", "grid")}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("one") / "run", grid_size=3, failed=(), **ONE)
    return next(run.records())


def put(*path, value):
    def change(meta):
        for key in path[:-1]:
            meta = meta[key]
        meta[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("gate", value="passed"),
            "gate of record 'a' must be a mapping with passed, .*'passed'",
        ),
        (put("gate", "passed", value="yes"), "passed of gate of record 'a' must be true or false"),
        (put("gate", "rhat_max", value="big"), "rhat_max of gate .* must be a number, got 'big'"),
        (put("gate", "reasons", value=3), "reasons of gate .* must be a list of .*got 3"),
        (put("cell", value="x"), "cell of record 'a' must be a mapping with problem, .*got 'x'"),
        (put("cell", "width", value="wide"), "width of cell .* must be an integer from 1"),
        (put("cell", "width", value=10**30), "width of cell .* must be an integer from 1"),
        (lambda meta: meta["cell"].pop("seed"), "cell of record 'a' must have seed"),
        (put("cell", "problem", value=None), "problem of cell .* must be text"),
        (put("points", value="x"), "points of record 'a' must be a mapping"),
        (put("points", "map", value="x"), "map of points .* must be a mapping with passed"),
        (put("seconds", value=[1]), "seconds of record 'a' must be a mapping"),
        (put("seconds", "fit", value="x"), "fit of seconds .* must be a number, got 'x'"),
    ],
)
def test_the_meta_of_a_record(record, change, message):
    meta = copy.deepcopy(record.meta)
    stored.check_meta(meta, "record 'a'")
    change(meta)
    with pytest.raises(ValueError, match=message):
        stored.check_meta(meta, "record 'a'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("rows", value="abc"), "rows of record .* must be a list of mappings, got 'abc'"),
        (put("rows", value=["a"]), "rows of record .* must be a list of mappings"),
        (
            put("rows", 3, "pearson", value="high"),
            "pearson of row 3 of the result rows of .*'high'",
        ),
        (put("rows", 3, "pearson", value=True), "pearson of row 3 .* must be a number, got True"),
        (
            put("rows", 0, "width", value="wide"),
            "width of row 0 .* must be an integer of at least 0",
        ),
        (put("rows", 0, "width", value=None), "width of row 0 .* must be an integer of at least 0"),
        (put("rows", 0, "seed", value=1e300), "seed of row 0 .* must be an integer of at least 0"),
        (put("rows", 0, "problem", value=["a"]), r"problem of row 0 .* must be text, got \['a'\]"),
        (put("rows", 0, "gate", value=1), "gate of row 0 .* must be text, got 1"),
    ],
)
def test_the_rows_of_a_record(record, tmp_path, change, message):
    run = RunFolder.open(tmp_path / "run", {"problems": ["xor"]}, study="scaling")
    meta = copy.deepcopy(record.meta)
    change(meta)
    run.write(Record("a", meta, record.arrays))
    with pytest.raises(ValueError, match=message):
        report.make_report(run, Settings())


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.zeros(3), np.zeros((3, 1)), np.zeros((9, 1), complex)], ids=str
)
def test_the_arrays_of_a_record(record, tmp_path, array):
    run = RunFolder.open(tmp_path / "run", {}, study="scaling")
    run.write(record._replace(arrays=record.arrays | {"grid/mcmc_var": array}))
    with pytest.raises(
        ValueError, match=r"array 'grid/mcmc_var' of record .* numbers of shape \(9"
    ):
        uncertainty_maps(run, record.name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have a header, got an empty file"),
        (b"\x89PNG\xff\xfe\x00", "must be UTF-8 text, got byte 0x89 at 0"),
        (b"a,a\n1,2\n", "must have each column once, got 'a' twice"),
        (b"problem,width\nxor,2\n", "must have the columns"),
        (None, "must have rows, got a header alone"),
    ],
)
def test_a_table_that_is_no_table_ends_a_report_with_one_line(tmp_path, content, message):
    run = RunFolder.open(tmp_path / "run", {}, study="scaling")
    if content is None:
        content = (",".join([*report.RESULT_COLUMNS]) + "\n").encode()
    (run.path / "results.csv").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.path)])
    assert "results.csv" in ended.value.code and message in ended.value.code


def test_a_name_of_another_region_or_problem_stays_a_name(record, tmp_path):
    meta = copy.deepcopy(record.meta)
    for row in meta["rows"]:
        row["problem"] = r"../$\frac{1}{$" + 300 * "x"
    meta["cell"]["problem"] = meta["rows"][0]["problem"]
    run = RunFolder.open(tmp_path / "run", {}, study="scaling")
    run.write(record._replace(meta=meta))
    assert Results.of(run).setups[0].problem == meta["cell"]["problem"]
