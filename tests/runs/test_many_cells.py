"""Runs of many cells: what is there already is not read again, and tables are as those of few cells."""

import dataclasses
import hashlib
import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from benchmarks.scale_cells import Template, fill
from benchmarks.scale_schedule import simulate
from isounc import untrusted
from isounc.fields import integer, number, text
from isounc.runs import csv_tables, verified
from isounc.runs.executors import Batch
from isounc.runs.folder import DamagedRecordWarning, Record, RunFolder
from isounc.runs.settings import RunSettings
from isounc.runs.study import Report, Study, TableFile, report_run, run_study
from isounc.runs.tables import rows_of_run

NUM_CELLS = 2000
COLUMNS = ("seed", "name", "value", "count")
FIELDS = {
    "seed": integer(), "name": text(), "value": number(default=None), "count": integer(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    seed: int

    @property
    def name(self):
        return f"cell-{self.seed}"


def record(seed, value=None):
    rows = [
        {"seed": seed, "name": 'a, "b"', "value": value or seed % 7 / 3, "count": 2},
        {"seed": seed, "name": "NaN", "value": None, "count": seed % 7},
    ]
    return Record(
        f"cell-{seed}", {"cell": {"seed": seed}, "rows": rows}, {"x": np.arange(seed % 7)}
    )


def study(computed):
    """A study whose cells are the seeds; `computed` gets those that are computed."""

    def evaluate(batch, settings, say):
        computed.extend(cell.seed for cell in batch.cells)
        return [record(cell.seed) for cell in batch.cells]

    def report(folder, settings):
        rows = rows_of_run(folder, FIELDS)
        tables = {name: TableFile(COLUMNS, rows) for name in ("results.csv", "summary.csv")}
        return Report(tables, [], lambda drawn: [], f"{len(rows)} rows", {})

    batches = [
        Batch(f"{k}", tuple(map(Cell, range(k, NUM_CELLS, 200))), work=1) for k in range(200)
    ]
    return Study(
        name="many", description="", presets={"quick": RunSettings()}, unit="cells",
        check=lambda settings: None, plan=lambda settings: [tuple(batches)],
        evaluate=evaluate, report=report, separable=True,
    )  # fmt: skip


@pytest.fixture
def many(tmp_path):
    """A folder of finished cells, its settings, and what is opened and computed from now on."""
    settings = RunSettings(out=str(tmp_path / "run"), cache="")
    run = RunFolder.open(settings.out, {"preset": "quick", "device": "auto", "dtype": "float32"})
    templates = [Template(record(k), run, "cell-{}") for k in range(7)]
    fill(run, templates, range(NUM_CELLS), linked=False)
    return run, settings


@pytest.fixture
def opened(monkeypatch):
    """How often each file of a cell is opened."""
    counts, real = Counter(), untrusted.open_regular

    def counting(path, what=None):
        if os.path.basename(os.path.dirname(path)) == "cells":
            counts[os.path.basename(path)] += 1
        return real(path, what)

    monkeypatch.setattr(untrusted, "open_regular", counting)
    return counts


def expected_table():
    rows = [row for name in sorted(f"cell-{s}" for s in range(NUM_CELLS))
            for row in record(int(name[5:])).meta["rows"]]  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def test_copies_are_what_would_be_written(tmp_path):
    run = RunFolder.open(tmp_path / "a", {"n": 1})
    other = RunFolder.open(tmp_path / "b", {"n": 1})
    template = Template(record(3), run, "cell-{}")
    fill(run, [template], [10, 17], linked=True)
    for seed in (10, 17):
        other.write(record(seed, value=record(3).meta["rows"][0]["value"]))
        for half in ("json", "npz"):
            name = f"cell-{seed}.{half}"
            written = (other.path / "cells" / name).read_bytes()
            assert (run.path / "cells" / name).read_bytes() == written
    lines = [(p / ".verified").read_text().split() for p in (run.path, other.path)]
    # But for the times: the format, the run, sizes, the checksum and the name.
    kept = [[part for i, part in enumerate(of) if i % 8 not in (3, 5)] for of in lines]
    assert kept[0] == kept[1] and len(kept[0]) == 12


def test_a_finished_run_is_resumed_without_reading_it_and_each_file_is_read_once(
    many, opened, capsys
):
    run, settings = many
    computed = []
    assert run_study(study(computed), settings)
    assert not computed
    assert f"{NUM_CELLS} cells are there already" in capsys.readouterr().out
    # The table is made from the JSON files; no array is asked for.
    assert opened == Counter(f"cell-{seed}.json" for seed in range(NUM_CELLS))
    assert (run.path / "results.csv").read_text() == expected_table()
    opened.clear()
    RunFolder.open(settings.out, run.settings)
    assert not opened


def test_a_folder_without_the_list_is_verified_once_and_gives_the_same_table(many, opened):
    run, settings = many
    (run.path / ".verified").unlink()
    report_run(study([]), RunFolder.load(run.path, writable=True))
    assert opened == Counter(
        f"cell-{seed}.{half}" for seed in range(NUM_CELLS) for half in ("json", "npz")
    )
    assert (run.path / "results.csv").read_text() == expected_table()
    assert len(RunFolder.open(settings.out, run.settings).untouched) == NUM_CELLS
    assert not (RunFolder.load(run.path).path / "cells" / "damaged").exists()


def test_what_was_touched_or_is_not_in_the_list_is_verified_and_computed_again(many, tmp_path):
    run, settings = many
    cells = run.path / "cells"
    for name, at in (("cell-7.npz", -1), ("cell-8.json", -90)):
        content = bytearray((cells / name).read_bytes())
        content[at] ^= 1
        (cells / name).write_bytes(content)
        os.utime(cells / name, (1, 1))
    (cells / "cell-9.json").unlink()
    os.utime(cells / "cell-10.json", (1, 1))
    lines = (run.path / ".verified").read_text().splitlines()
    kept = [line for line in lines if not line.endswith((" cell-11", " cell-12"))]
    torn = [f"{lines[12][:60]}", "2 x y z", "", "\x00", lines[5].replace(" ", "\t")]
    (run.path / ".verified").write_text("\n".join([*torn, *kept, lines[11][:-4]]))
    untouched = RunFolder.open(settings.out, run.settings).untouched
    assert {f"cell-{s}" for s in range(NUM_CELLS)} - untouched == {
        f"cell-{s}" for s in (7, 8, 9, 10, 11, 12)
    }
    computed = []
    with pytest.warns(DamagedRecordWarning) as warned:
        assert run_study(study(computed), settings)
    assert sorted(computed) == [7, 8, 9] and len(warned) == 3
    assert (run.path / "results.csv").read_text() == expected_table()
    assert len(RunFolder.open(settings.out, run.settings).untouched) == NUM_CELLS


def test_a_json_file_that_changed_behind_its_stamp_is_found_when_it_is_read(many):
    run, _ = many
    path = run.path / "cells" / "cell-5.json"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"count": 2', b'"count": 3'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "cell-5" in RunFolder.open(run.path, run.settings).untouched
    with pytest.warns(DamagedRecordWarning, match="checksum of the meta"):
        names = [r.name for r in run.records(with_arrays=False, prefix="cell-5")]
    assert "cell-5" not in names and "cell-50" in names


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "binary"])
def test_a_list_that_is_none_is_neither_followed_nor_waited_for(tmp_path, kind):
    run = RunFolder.open(tmp_path / "run", {})
    place, outside = run.path / ".verified", tmp_path / "outside"
    outside.write_text("mine")
    if kind == "link":
        place.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.write_bytes(b"\xff\xfe")
    run.write(record(1))
    again = RunFolder.open(run.path, {})
    assert not again.untouched and again.has("cell-1")
    assert outside.read_text() == "mine"


def test_a_newer_record_is_refused_though_the_list_has_it(tmp_path):
    run = RunFolder.open(tmp_path / "run", {})
    run.write(record(1))
    path = run.path / "cells" / "cell-1.json"
    path.write_bytes(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 2'))
    stamp = verified.stamp_of(path.with_suffix(".npz"), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    line = (run.path / ".verified").read_text().split()
    # As a newer isounc would list it.
    (run.path / ".verified").write_text(f"2 {line[1]} {stamp} {sha256} cell-1\n")
    with pytest.raises(ValueError, match=r"cell-1.*newer"):
        RunFolder.open(run.path, {})


def test_a_long_table_is_the_same_in_a_temporary_file_and_in_parts(monkeypatch):
    rows = [row for seed in range(50) for row in record(seed).meta["rows"]]
    whole = csv_tables.encoded(rows, COLUMNS, name="results.csv")
    monkeypatch.setattr(csv_tables, "MOST_IN_MEMORY", 100)
    parts = csv_tables.Encoder(COLUMNS, name="results.csv")
    for k in range(0, len(rows), 7):
        parts.add(rows[k : k + 7])
    assert parts.open().read() == whole.open().read() and parts.size == whole.size > 1000
    assert parts.text_columns == whole.text_columns == ["name"] and parts.num_rows == 100


@pytest.mark.parametrize("often", [0.0, 1 / 3])
def test_numbers_that_come_often_are_written_as_others(often):
    values = [often, -often, None, float("nan"), *([often] * 200)]
    texts = ["a\rb", *(["c"] * 203)]
    rows = [{"value": v, "name": t} for v, t in zip(values, texts, strict=True)]
    table = csv_tables.encoded(rows, ("value", "name"), name="results.csv")
    text = f"{often:.6g}"
    first = [f'"{text}","a\rb"', f"-{text},c", ",c", ",c"]
    assert table.open().read().decode().split("\n")[1:-1] == [*first, *([f"{text},c"] * 200)]
    assert table.num_rows == 204


def test_schedules_are_those_of_closed_forms():
    for units, workers in ((1, 1), (10, 3), (12, 4), (5, 8), (1000, 512)):
        found = simulate([2.5] * units, workers)
        rounds = -(-units // workers)
        assert found.makespan == 2.5 * rounds
        assert found.idle_share == pytest.approx(1 - units / (workers * rounds))
        assert found.least == pytest.approx(max(2.5, 2.5 * units / workers))
        assert found.is_bound_by_largest == (units < workers)
    # One that takes as long as all others together, begun first: its worker alone is busy to the end.
    others = [1.0] * 12
    for workers in (2, 3, 5, 20):
        found = simulate([12.0, *others], workers)
        assert found.makespan == 12.0
        assert found.idle_share == pytest.approx(1 - 24 / (12 * workers))
        assert found.is_bound_by_largest == (workers > 2)
    # Begun last it is waited for.
    assert simulate([*others, 12.0], 3).makespan == 4 + 12
    with pytest.raises(ValueError, match="units and workers, got 0 and 1"):
        simulate([], 1)
