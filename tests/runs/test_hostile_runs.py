"""Runs that somebody else has made: bounded, named in one error, and nothing leaves the folder."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
import zipfile

import matplotlib.text
import numpy as np
import pytest
from matplotlib.figure import Figure

from isounc import doorway
from isounc.__main__ import main
from isounc.runs import style
from isounc.runs.figures import Plot, draw_plots
from isounc.runs.folder import DamagedRecordWarning, Record, RunFolder
from isounc.runs.place import SUBFOLDERS, check_place
from tests.runs.test_folder import plant


@pytest.fixture
def run(tmp_path):
    run = RunFolder.open(tmp_path / "run", {"n": 1}, study="scaling")
    run.write(Record("moons-w8", {"seed": 0}, {"x": np.arange(3)}))
    return run


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def zeros(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path):
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(2**40)  # a terabyte that takes no room


@pytest.mark.parametrize("make", [fifo, zeros, sparse])
@pytest.mark.parametrize("name", ["npz", "json"])
def test_a_record_that_is_no_file_is_damaged(run, make, name):
    make(run.path / "cells" / f"moons-w8.{name}")
    began = time.monotonic()
    with pytest.warns(
        DamagedRecordWarning, match="must be a regular file, got a|must have at most"
    ):
        assert RunFolder.load(run.path).read("moons-w8") is None
    with pytest.warns(DamagedRecordWarning, match="set aside"):
        assert run.read("moons-w8") is None
    assert not run.has("moons-w8") and time.monotonic() - began < 10


@pytest.mark.parametrize("make", [fifo, zeros, sparse])
@pytest.mark.parametrize("name", ["settings.json", "results.csv"])
def test_a_file_of_a_run_that_is_no_file_is_named(run, make, name):
    make(run.path / name)
    with pytest.raises(ValueError, match=re.escape(name)):
        RunFolder.load(run.path).read_table("results.csv")
    if name == "settings.json":
        with pytest.raises(ValueError, match=r"settings\.json"):
            RunFolder.open(run.path, {"n": 1})


def test_an_archive_that_unpacks_to_more_than_its_size_is_damaged(run):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            for _ in range(80):
                member.write(bytes(2**20))
    plant(run, buffer.getvalue())
    assert len(buffer.getvalue()) < 2**21
    with pytest.warns(DamagedRecordWarning, match="the arrays of the archive must have at most"):
        assert run.read("moons-w8") is None


def test_a_record_of_another_run_is_not_taken_for_one_of_this(run, tmp_path):
    other = RunFolder.open(tmp_path / "other", {"n": 2}, study="scaling")
    other.write(Record("moons-w8", {"seed": 1}, {"x": np.arange(4)}))
    for half in ("npz", "json"):
        shutil.copy(other.path / "cells" / f"moons-w8.{half}", run.path / "cells")
    with pytest.warns(DamagedRecordWarning, match="belongs to a run with other settings"):
        assert run.read("moons-w8") is None
    # One of the same settings is: runs may be put together, and resumed elsewhere.
    same = RunFolder.open(tmp_path / "same", {"n": 1}, study="scaling")
    same.write(Record("moons-w8", {"seed": 2}, {"x": np.arange(5)}))
    for half in ("npz", "json"):
        shutil.copy(same.path / "cells" / f"moons-w8.{half}", run.path / "cells")
    assert run.require("moons-w8").meta == {"seed": 2}


@pytest.mark.parametrize("name", SUBFOLDERS)
def test_nothing_is_written_through_a_link_out_of_the_run(run, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    place = run.path / name
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    for attempt in (
        lambda: RunFolder.open(run.path, {"n": 1}, study="scaling"),
        lambda: RunFolder.load(run.path, writable=True),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a folder of the run, got a link to"):
            attempt()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.path)])
    assert "got a link to" in ended.value.code
    assert not list(outside.iterdir())


def test_the_run_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    assert RunFolder.open(tmp_path / "link", {"n": 1}, study="scaling").has("moons-w8")


def test_a_place_that_cannot_be_written_is_noticed_before_anything_is_imported(
    run, tmp_path, monkeypatch
):
    def access(path, mode):
        return not (mode & os.W_OK and str(path).startswith(str(read_only)))

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr("isounc.studies.load", None)
    for read_only in (run.path / "cells", run.path, tmp_path):
        for out in (run.path, tmp_path / "new") if read_only == tmp_path else (run.path,):
            with pytest.raises(OSError, match=r"cannot be written .* choose another --out"):
                check_place(out)
            with pytest.raises(SystemExit) as ended:
                main(["scaling", "--out", str(out), "--preset", "paper"])
            assert "cannot be written" in ended.value.code


def test_a_wrong_place_is_noticed_before_anything_is_imported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    monkeypatch.setattr("isounc.studies.load", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    for out in (["--out=file"], ["--out", "file/run"], ["--out", "thesis"], []):
        with pytest.raises(SystemExit) as ended:
            main(["qa", *out])
        assert "choose another --out" in ended.value.code


HOSTILE = r"$\frac{1}{$ \x $a_$" + "\x00\x1b[31m"


def test_texts_of_figures_are_drawn_as_they_are(tmp_path, recwarn):
    with style.styled():
        figure = Figure(figsize=(4, 3), layout="constrained")
        ax = figure.subplots()
        ax.loglog([1, 10, 100], [1, 1e3, 1e6], label=HOSTILE)
        ax.set_title(300 * "x")
        ax.set_xlabel(HOSTILE)
        ax.annotate(HOSTILE, (10, 10))
        figure.suptitle(HOSTILE)
        style.legend_below(figure, {HOSTILE: ax.lines[0]})
        other = figure.add_subplot()
        other.set_yticks([0, 1], [HOSTILE, 300 * "y"])
    for path in style.save(figure, tmp_path / "hostile"):
        assert path.stat().st_size > 1000
    texts = {t.get_text() for t in figure.findobj(matplotlib.text.Text)}
    assert max(map(len, texts)) < 300 and any(r"$\frac{1}{$" in text for text in texts)
    assert r"$\mathdefault{10^{1}}$" in texts  # a number of the axis, which stays a formula
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_names_of_figures_stay_in_their_folder_and_are_no_longer_than_a_name(tmp_path):
    names = ["plain_name", "../../out", "a/b", 300 * "x", 300 * "x" + "y", "", "über", "\x00"]
    plots = [Plot(name, "kind", "", lambda: Figure(figsize=(1, 1))) for name in names]
    drawn = draw_plots(plots, tmp_path / "figures")
    stems = [figure.paths[0].stem for figure in drawn]
    assert stems[0] == "plain_name" and len(set(stems)) == len(names)
    for figure in drawn:
        assert all(path.exists() and path.parent == tmp_path / "figures" for path in figure.paths)
        assert len(figure.paths[0].name) < 120
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link must be a folder, got a link to"):
        draw_plots(plots[:1], tmp_path / "link")


# ---- the doorway


def ending(error):
    def run():
        raise error

    with pytest.raises(SystemExit) as ended:
        doorway.end(run, kept="cells")
    return ended.value.code


def test_an_error_of_the_input_has_one_line(capsys):
    assert ending(ValueError("width must be 3, got 2")) == "error: width must be 3, got 2"
    assert ending(OSError(2, "No such file", "x")) == "error: x: no such file"
    assert ending(OSError(5, "Broken", 7)) == "error: [Errno 5] Broken: 7"
    assert ending(OSError("no room")) == "error: no room"
    assert ending(MemoryError()) == "error: there is not enough memory for this command."
    said = ending(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert said.startswith("error: there is not enough memory for this command. RESOURCE_EXHAUSTED")
    assert capsys.readouterr() == ("", "")


def test_a_fault_shows_its_traceback_and_what_to_report(capsys):
    class PanicException(BaseException):
        """As packages written in Rust raise it."""

    for error in (KeyError("rows"), AssertionError(), PanicException("index out of range")):
        said = ending(error)
        assert said.startswith("This is a fault of isounc: please report the lines above, with\n")
        for package in ("Python 3.", "isounc 0.", "jax 0.", "numpy 2."):
            assert package in said
        assert type(error).__name__ in capsys.readouterr().err
    assert ending(SystemExit(3)) == 3
