"""Published results: small, readable like the run, from bytes that nobody can make dangerous."""

from __future__ import annotations

import gzip
import os

import pandas as pd
import pytest
from filelock import FileLock, Timeout

import isounc.runs
from isounc import untrusted
from isounc.__main__ import main
from isounc.runs import files, publish
from isounc.runs.folder import RunFolder
from isounc.runs.page import write_page
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.tables import trend_table
from tests.studies.scaling.synthetic_run import write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    few = {"problems": ("linear",), "widths": (8, 32), "seeds": (0, 1), "grid_size": 5}
    run = write_run(tmp_path_factory.mktemp("publish") / "run", **few)
    run.write_table("small.csv", [{"a": 1, "name": "1"}], ("a", "name"))
    (run.path / "figures").mkdir()
    for name in ("scaling.png", "scaling_far_map.png", "maps_linear.png", "scaling.svg"):
        (run.path / "figures" / name).write_bytes(name.encode())
    return run


@pytest.fixture
def run(made, monkeypatch):
    monkeypatch.setattr(publish, "MOST_PLAIN", 1000)
    return made


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["publish", *map(str, arguments)])
    return ended.value.code


def contents(folder):
    there = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in there}


def test_what_is_published_reads_like_the_run(run, tmp_path, capsys):
    out = tmp_path / "results"
    assert command(run.path, out, "--figures", "scaling*") == 0
    assert capsys.readouterr().out == f"{out}\n"
    there = contents(out)
    assert set(there) == {
        "settings.json", "info.json", "results.csv.gz", "small.csv", "reading.md",
        "figures/scaling.png", "figures/scaling_far_map.png",
    }  # fmt: skip
    loaded = isounc.runs.load(out)
    pd.testing.assert_frame_equal(loaded.results, run.results)
    assert loaded.read_table("small.csv")["name"].tolist() == ["1"]
    assert loaded.settings == run.settings and loaded.read_info() == run.read_info()
    said = there["reading.md"].decode()
    assert "4 of 4 cells passed the gate" in said
    table = trend_table(Results.of(RunFolder.load(out)))
    assert f"## {table.title}\n\n| {' | '.join(table.columns)} |\n| --- |" in said
    assert table.rows[0][-1].replace("[", r"\[").replace("]", r"\]") in said
    assert command(run.path, out, "--figures", "scaling*") == 0
    assert contents(out) == there  # to the byte


def test_publishing_in_place_packs_and_says_the_same(run, tmp_path):
    out = tmp_path / "results"
    publish.publish(_study(), RunFolder.load(run.path), out)
    before = contents(out)
    packed = out / "results.csv.gz"
    (out / "results.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    (out / "reading.md").unlink()
    assert command(out) == 0
    assert contents(out) == before


def _study():
    from isounc.studies import load

    return load("scaling")


def test_a_table_is_read_packed_or_not_and_written_once(run, tmp_path):
    mine = RunFolder.open(tmp_path / "mine", {})
    mine.write_table("results.csv", [{"a": 1}], ("a",))
    plain = tmp_path / "mine" / "results.csv"
    packed = tmp_path / "mine" / "results.csv.gz"
    packed.write_bytes(gzip.compress(b"a\n2\n"))
    assert mine.results["a"].tolist() == [1]
    plain.unlink()
    assert mine.results["a"].tolist() == [2]
    mine.write_table("results.csv", [{"a": 3}], ("a",))
    assert mine.results["a"].tolist() == [3] and not packed.exists()
    plain.unlink()
    with pytest.raises(ValueError, match=r"has no results.csv and no results.csv.gz"):
        _ = mine.results


@pytest.mark.parametrize(
    "content",
    [b"", b"a\n1\n", gzip.compress(b"a\n" + b"1\n" * 999, mtime=0)[:-9], b"\x1f\x8bjunk" * 9],
    ids=["empty", "plain", "cut", "junk"],
)
def test_a_damaged_archive_is_named(tmp_path, content):
    mine = RunFolder.open(tmp_path / "mine", {})
    (tmp_path / "mine" / "results.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.csv\.gz must be|results\.csv must"):
        _ = mine.results


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="bomb must unpack to at most 1000 bytes, got more"):
        untrusted.gunzip(gzip.compress(b"0" * 10**7), 1000, "bomb")
    assert untrusted.gunzip(gzip.compress(b"0" * 1000), 1000, "full") == b"0" * 1000
    monkeypatch.setitem(files.MOST_BYTES, ".csv", 100)
    mine = RunFolder.open(tmp_path / "mine", {})
    (tmp_path / "mine" / "results.csv.gz").write_bytes(gzip.compress(b"a\n" + b"1\n" * 10**6))
    with pytest.raises(ValueError, match=r"results.csv.gz must unpack to at most 100 bytes"):
        _ = mine.results


def test_a_figure_that_is_no_file_is_neither_read_nor_waited_for(run, tmp_path):
    pipe = run.path / "figures" / "pipe.png"
    os.mkfifo(pipe)
    try:
        assert "pipe.png must be a regular file, got a pipe" in command(run.path, tmp_path / "out")
    finally:
        pipe.unlink()


def test_page_and_publication_are_written_under_the_lock(run, tmp_path, monkeypatch):
    write, written = files.write_atomic, []

    def watched(contents, what):
        folder = next(iter(contents)).parent
        with pytest.raises(Timeout):  # else whoever opens the run removes temporary files meanwhile
            FileLock(folder / files.LOCK_NAME).acquire(timeout=0)
        write(contents, what)
        written.append(what)

    monkeypatch.setattr(files, "write_atomic", watched)
    out = publish.publish(_study(), run, tmp_path / "out")
    write_page(out, "run", [])
    assert {"results", "the reading", "the report"} <= set(written)
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    write_page(tmp_path / "other", "no run", [])
    assert {p.name for p in (tmp_path / "other").iterdir()} == {"report.html", "report.md"}


def test_what_cannot_be_published_is_refused(run, tmp_path):
    for path, why in (
        (tmp_path / "none", "does not exist"),
        (run.path / "info.json", "is a file"),
        (run.path / "figures", "has no settings.json"),
    ):
        with pytest.raises(ValueError, match=why):
            isounc.runs.load(path)
        assert why in command(path)
    unfinished = RunFolder.open(tmp_path / "unfinished", {}, study="scaling")
    assert "which has no results.csv" in command(unfinished.path)
    other = RunFolder.open(tmp_path / "other", {"n": 1}, study="scaling")
    assert "holds a run with other settings" in command(run.path, other.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert "is not empty" in command(run.path, tmp_path / "full")
    assert "got 'maps*'" not in (said := command(run.path, tmp_path / "new", "--figures", "bars*"))
    assert "got bars*, which fit none of maps_linear, scaling" in said
    assert not (tmp_path / "new").exists()
