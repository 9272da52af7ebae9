"""Run folders: what is written comes back, what is damaged is noticed, nothing is ever executed."""

import errno
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import isounc.runs
from isounc.runs import files
from isounc.runs.folder import DamagedRecordWarning, Record, RunFolder
from isounc.runs.provenance import git_state, provenance
from isounc.runs.values import FORMAT_VERSION

SETTINGS = {"preset": "quick", "widths": (2, 8), "posterior": {"num_draws": 100}, "workers": 1}


@pytest.fixture
def run(tmp_path):
    return RunFolder.open(tmp_path / "run", SETTINGS)


def make_record(name="moons-w8", seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        "test/X": rng.normal(size=(5, 2)),
        "test/mcmc_var": rng.normal(size=(5, 1)).astype(np.float32),
        "y": np.arange(5),
        "mask": np.array([True, False]),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 2)),
        "labels": np.array(["θ", "map"]),
        "odd": np.array([np.nan, np.inf, -0.0]),
    }
    meta = {"gate": {"passed": True, "rhat_max": 1.01, "reasons": []}, "seed": seed}
    return Record(name, meta, arrays)


def assert_equal(read, written):
    assert read is not None
    assert read.name == written.name
    assert read.meta == written.meta
    assert read.arrays.keys() == written.arrays.keys()
    for name, array in written.arrays.items():
        assert read.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays[name], array, strict=True)


def cell(run, ending, name="moons-w8"):
    return run.path / "cells" / f"{name}.{ending}"


def files_below(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


# ---- a round trip


def test_record_comes_back_as_written(run):
    record = make_record()
    assert run.read(record.name) is None
    assert not run.has(record.name)
    run.write(record)
    assert_equal(run.read(record.name), record)
    assert run.has(record.name)
    assert run.names() == [record.name]
    assert [r.name for r in RunFolder.load(run.path).records()] == [record.name]


def test_writing_again_replaces(run):
    run.write(make_record(seed=0))
    run.write(make_record(seed=1))
    assert_equal(run.read("moons-w8"), make_record(seed=1))
    assert files_below(run.path / "cells") == ["moons-w8.json", "moons-w8.npz"]


def test_numpy_reads_the_arrays_without_pickle(run):
    record = make_record()
    run.write(record)
    with np.load(cell(run, "npz"), allow_pickle=False) as archive:
        assert set(archive.files) == set(record.arrays)
        np.testing.assert_array_equal(archive["test/X"], record.arrays["test/X"])


def test_record_file_says_what_the_format_says(run):
    run.write(make_record())
    described = json.loads(cell(run, "json").read_bytes())
    assert described["format_version"] == FORMAT_VERSION
    assert described["name"] == "moons-w8"
    assert described["sha256"] == hashlib.sha256(cell(run, "npz").read_bytes()).hexdigest()
    assert described["meta"] == make_record().meta


def test_equal_arrays_give_equal_bytes(run, tmp_path, monkeypatch):
    values = np.arange(6.0).reshape(2, 3)
    other = RunFolder.open(tmp_path / "other", {})
    run.write(Record("a", {}, {"x": values, "y": np.ones(2)}))
    later = time.localtime(time.time() + 1e6)
    monkeypatch.setattr(zipfile.time, "localtime", lambda *_: later)
    other.write(Record("a", {}, {"y": np.ones(4)[::2], "x": np.asfortranarray(values)}))
    assert cell(run, "npz", "a").read_bytes() == cell(other, "npz", "a").read_bytes()
    other.write(Record("a", {}, {"y": np.ones(2), "x": values + 1e-12}))
    assert cell(run, "npz", "a").read_bytes() != cell(other, "npz", "a").read_bytes()


def test_meta_keeps_nonfinite_numbers_and_scalars_in_strict_json(run):
    meta = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "numpy": np.float64(0.1),
        "count": np.int32(3),
        "array0": np.array(True),
        "pair": (1, None),
        "text": "nan θ\n",
    }
    run.write(Record("a", meta, {}))

    def no_constants(text):
        raise AssertionError(f"{text} is not strict JSON")

    json.loads(cell(run, "json", "a").read_text(), parse_constant=no_constants)
    back = run.read("a").meta
    assert math.isnan(back.pop("nan"))
    assert back == {
        "inf": [math.inf, -math.inf],
        "numpy": 0.1,
        "count": 3,
        "array0": True,
        "pair": [1, None],
        "text": "nan θ\n",
    }


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", r"\NaN", r"\\-Infinity", r"a\NaN"]
)
def test_texts_that_look_like_numbers_stay_texts(run, text):
    """A language model answers Infinity when it is asked for a number."""
    meta = {"a": text, "b": [text, math.inf]}
    run.write(Record("a", meta, {}))
    assert run.read("a").meta == meta


@pytest.mark.parametrize(
    ("meta", "place"),
    [
        ({"a": {"b": np.zeros(2)}}, r"meta\.a\.b"),
        ({"a": [1, {1: 2}]}, r"meta\.a\[1\]"),
        ({"a": 1j}, r"meta\.a"),
        ({"a": {1, 2}}, r"meta\.a"),
    ],
)
def test_meta_that_json_would_change_is_refused(run, meta, place):
    with pytest.raises(ValueError, match=place):
        run.write(Record("a", meta, {}))
    assert run.names() == []


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
        np.ma.masked_array([1.0, 2.0], mask=[True, False]),
        [[1.0], [1.0, 2.0]],
    ],
    ids=["object", "structured", "masked", "ragged"],
)
def test_arrays_that_npy_would_pickle_or_change_are_refused(run, array):
    with pytest.raises(ValueError, match="'bad'"):
        run.write(Record("a", {}, {"good": np.ones(2), "bad": array}))
    assert files_below(run.path / "cells") == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (json.loads("[" * 70 + "]" * 70), "at most 64 lists"),
        ("[" * 500_001, "at most 500000 lists"),
        ("x" * 2**25, "at most 33554432 bytes"),
    ],
    ids=["deep", "brackets", "long"],
)
def test_what_would_be_damaged_when_it_is_read_is_not_written(run, value, reason):
    with pytest.raises(ValueError, match=f"record 'a' must .*{reason}"):
        run.write(Record("a", {"value": value}, {}))
    assert run.names() == []


def test_jax_arrays_are_stored_and_bfloat16_is_refused(run):
    run.write(Record("a", {"x": jnp.float32(0.5)}, {"x": jnp.arange(3)}))
    assert run.read("a").meta == {"x": 0.5}
    np.testing.assert_array_equal(run.read("a").arrays["x"], [0, 1, 2])
    with pytest.raises(ValueError, match="bfloat16"):
        run.write(Record("b", {}, {"x": jnp.ones(3, dtype=jnp.bfloat16)}))


BAD_NAMES = ["", ".", "..", "../a", "a/b", "a\\b", "/etc/a", ".hidden", "a\n", "a b", "x" * 201, 7]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_names_that_leave_the_folder_are_refused(run, name):
    before = files_below(run.path.parent)
    with pytest.raises(ValueError, match="record name"):
        run.write(Record(name, {}, {}))
    with pytest.raises(ValueError, match="record name"):
        run.read(name)
    with pytest.raises(ValueError, match="table name"):
        run.write_table(f"{name}.txt", [], ["a"])
    with pytest.raises(ValueError, match="table name"):
        run.read_table("../results.csv")
    assert files_below(run.path.parent) == before


# ---- damage


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def plant(run, npz, **changes):
    """Put other arrays into a record and make every checksum agree."""
    cell(run, "npz").write_bytes(npz)
    described = json.loads(cell(run, "json").read_bytes())
    described |= {"sha256": hashlib.sha256(npz).hexdigest(), **changes}
    cell(run, "json").write_text(json.dumps(described))


def edit(run, **changes):
    plant(run, cell(run, "npz").read_bytes(), **changes)


def npz_of(content, name="x.npy"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


DAMAGE = {
    "npz missing": (lambda run: cell(run, "npz").unlink(), "npz is missing"),
    "json missing": (lambda run: cell(run, "json").unlink(), "json is missing"),
    "npz flipped": (lambda run: flip_byte(cell(run, "npz")), "checksum of .*npz"),
    "npz truncated": (lambda run: truncate(cell(run, "npz")), "checksum of .*npz"),
    "npz empty": (lambda run: cell(run, "npz").write_bytes(b""), "checksum of .*npz"),
    "json truncated": (lambda run: truncate(cell(run, "json")), "not valid JSON"),
    "json binary": (lambda run: cell(run, "json").write_bytes(b"\xff\xfe"), "not valid JSON"),
    "json deep": (lambda run: cell(run, "json").write_text("[" * 200_000), "not valid JSON"),
    "json not strict": (lambda run: edit(run, meta={"a": math.nan}), "not valid JSON"),
    "json a list": (lambda run: cell(run, "json").write_text("[1]"), "no format_version"),
    "version text": (lambda run: edit(run, format_version="2"), "no format_version"),
    "meta edited": (lambda run: edit(run, meta={"seed": 1}), "checksum of the meta"),
    "meta no dict": (lambda run: edit(run, meta=[]), "does not describe"),
    "other name": (lambda run: edit(run, name="rings-w8"), "does not describe"),
    "zip truncated": (lambda run: plant(run, cell(run, "npz").read_bytes()[:-9]), "cannot be read"),
    "not a zip": (lambda run: plant(run, b"hello"), "cannot be read"),
    "not an array": (lambda run: plant(run, npz_of(b"hi", "x.txt")), "no array"),
    "npy malformed": (lambda run: plant(run, npz_of(b"\x93NUMPY\x01\x00")), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_record_is_set_aside_and_can_be_written_again(run, damage):
    inflict, reason = DAMAGE[damage]
    run.write(make_record())
    run.write(make_record("other"))
    inflict(run)
    left = {p.suffix: p.read_bytes() for p in (cell(run, "npz"), cell(run, "json")) if p.exists()}

    before = files_below(run.path)
    with pytest.warns(DamagedRecordWarning, match=f"'moons-w8'.*{reason}.*left in place"):
        assert RunFolder.load(run.path).read("moons-w8") is None
    assert files_below(run.path) == before

    with pytest.warns(DamagedRecordWarning, match=f"'moons-w8'.*{reason}.*cells/damaged/moons-w8-"):
        assert not run.has("moons-w8")
    assert not run.has("moons-w8")  # without a second warning: it is absent now
    kept = {p.suffix: p.read_bytes() for p in (run.path / "cells" / "damaged").iterdir()}
    assert kept == left
    run.write(make_record())
    assert_equal(run.read("moons-w8"), make_record())
    assert run.names() == ["moons-w8", "other"]


def test_damaged_records_of_one_name_are_all_kept(run):
    for _ in range(3):
        run.write(make_record())
        flip_byte(cell(run, "npz"))
        with pytest.warns(DamagedRecordWarning):
            assert run.read("moons-w8") is None
    assert len(list((run.path / "cells" / "damaged").iterdir())) == 6


@pytest.mark.parametrize("with_arrays", [True, False])
def test_records_skips_the_damaged_with_a_warning(run, with_arrays):
    for name in ("a", "b", "c"):
        run.write(make_record(name))
    truncate(cell(run, "npz", "b"))
    with pytest.warns(DamagedRecordWarning, match="'b'"):
        found = list(run.records(with_arrays=with_arrays))
    assert [record.name for record in found] == ["a", "c"]
    for record in found:
        expected = make_record(record.name)
        assert_equal(record, expected if with_arrays else expected._replace(arrays={}))


def test_a_planted_pickle_is_never_executed(run, tmp_path):
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    bomb = io.BytesIO()
    np.save(bomb, np.array([Bomb()], dtype=object), allow_pickle=True)
    run.write(make_record())
    plant(run, npz_of(bomb.getvalue()))
    with pytest.warns(DamagedRecordWarning, match="cannot be read"):
        assert run.read("moons-w8") is None
    assert not mark.exists()
    bomb.seek(0)
    np.load(bomb, allow_pickle=True)  # the bomb does go off where pickle is allowed
    assert mark.exists()


def test_a_newer_record_is_refused_and_left_in_place(run):
    run.write(make_record())
    edit(run, format_version=FORMAT_VERSION + 1)
    before = cell(run, "json").read_bytes()
    for attempt in (
        lambda: run.read("moons-w8"),
        lambda: run.has("moons-w8"),
        lambda: list(RunFolder.load(run.path).records()),
        lambda: run.write(make_record()),
        lambda: RunFolder.open(run.path, SETTINGS),
    ):
        with pytest.raises(ValueError, match=r"moons-w8.*newer.*upgrade isounc"):
            attempt()
    assert cell(run, "json").read_bytes() == before
    assert run.names() == ["moons-w8"]


# ---- opening


def test_resuming_keeps_settings_and_records(run):
    run.write(make_record())
    again = RunFolder.open(run.path, SETTINGS)
    assert again.settings == {**SETTINGS, "widths": [2, 8]} == RunFolder.load(run.path).settings
    assert_equal(again.read("moons-w8"), make_record())


def test_other_settings_are_listed_with_both_values(run):
    run.write(make_record())
    other = {"preset": "paper", "widths": (2, 8), "posterior": {"num_draws": 9}, "device": "gpu"}
    with pytest.raises(ValueError) as caught:
        RunFolder.open(run.path, other | {"workers": 1})
    message = str(caught.value)
    assert "preset: 'quick' in the folder, 'paper' asked for" in message
    assert "posterior.num_draws: 100 in the folder, 9 asked for" in message
    assert "device: not set in the folder, 'gpu' asked for" in message
    assert "--out" in message
    assert "workers" not in message
    assert "widths" not in message
    assert_equal(run.read("moons-w8"), make_record())


def test_a_run_of_another_study_is_refused(tmp_path):
    RunFolder.open(tmp_path / "run", {"n": 1}, study="own").write(make_record())
    with pytest.raises(ValueError, match="a run of the study 'own', got 'other'; choose another"):
        RunFolder.open(tmp_path / "run", {"n": 1}, study="other")
    assert RunFolder.open(tmp_path / "run", {"n": 1}).study == "own"


def test_nan_in_settings_equals_itself(tmp_path):
    RunFolder.open(tmp_path / "a", {"x": math.nan})
    run = RunFolder.open(tmp_path / "a", {"x": math.nan})
    assert math.isnan(run.settings["x"])


def test_a_page_about_a_run_may_be_there_before_it(tmp_path):
    (tmp_path / "README.md").write_text("# What this run asks")
    RunFolder.open(tmp_path, {})
    assert files_below(tmp_path)[-1] == "settings.json"
    assert (tmp_path / "README.md").read_text() == "# What this run asks"


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder.open(tmp_path / "file", {})
    with pytest.raises(ValueError, match="below a file"):
        RunFolder.open(tmp_path / "file" / "run", {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "mine" / ".tmp-mine").write_text("mine")
    with pytest.raises(ValueError, match=r"no run folder.*thesis\.tex.*--out"):
        RunFolder.open(tmp_path / "mine", {})
    assert files_below(tmp_path) == ["file", "mine/.tmp-mine", "mine/thesis.tex"]
    for path in ("mine", "file", "nowhere"):
        with pytest.raises(
            ValueError,
            match=r"path must be a run folder, .* (has no settings.json|is a file|does not exist)",
        ):
            RunFolder.load(tmp_path / path)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 99, "settings": {}}', "newer"),
        ('{"format_version": 1}', "no settings"),
        ('{"format_version": 1, "sett', "not valid JSON"),
        ('{"font": 12}', "no format_version"),
    ],
)
def test_settings_that_are_not_ours_stop_the_run(run, content, message):
    (run.path / "settings.json").write_text(content)
    for attempt in (lambda: RunFolder.open(run.path, SETTINGS), lambda: RunFolder.load(run.path)):
        with pytest.raises(ValueError, match=message):
            attempt()
    assert (run.path / "settings.json").read_text() == content


def test_an_empty_folder_and_one_left_by_an_early_kill_become_runs(tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".lock").touch()
    (tmp_path / "killed" / ".tmp-0123").write_text('{"format_ver')
    run = RunFolder.open(tmp_path / "killed", SETTINGS)
    assert files_below(run.path) == [".lock", "settings.json"]


def test_stale_temporary_files_are_removed_on_opening_only(run):
    run.write(make_record())
    for folder in (run.path, run.path / "cells"):
        (folder / ".tmp-0123456789abcdef").write_text("half a rec")
    RunFolder.load(run.path)
    assert sum(".tmp-" in name for name in files_below(run.path)) == 2
    RunFolder.open(run.path, SETTINGS)
    assert not any(".tmp-" in name for name in files_below(run.path))
    assert run.has("moons-w8")


def test_a_loaded_run_cannot_be_written(run):
    loaded = RunFolder.load(run.path)
    for attempt in (
        lambda: loaded.write(make_record()),
        lambda: loaded.write_table("results.csv", [], ["a"]),
        lambda: loaded.write_info({}),
    ):
        with pytest.raises(ValueError, match="opened for reading"):
            attempt()
    assert files_below(run.path) == [".lock", "settings.json"]


# ---- kills, full disks, several writers

WRITER = """
import sys
import numpy as np
from isounc.runs.folder import Record, RunFolder

run = RunFolder.open(sys.argv[1], {"a": 1})
step = 0
while True:
    if step == 3:
        print("ready", flush=True)
    for name in ("a", "b", "c"):
        step += 1
        values = np.full(20_000, step, dtype=np.int64)
        run.write(Record(name, {"step": step, "name": name}, {"values": values}))
"""


def start(code, *arguments):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.filterwarnings("ignore::isounc.runs.folder.DamagedRecordWarning")
def test_a_kill_while_writing_leaves_whole_records_or_none(tmp_path):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2):
        child = start(WRITER, tmp_path / "run")
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.1))
        finally:
            child.kill()
            child.communicate()
        run = RunFolder.open(tmp_path / "run", {"a": 1})
        assert not any(".tmp-" in name for name in files_below(run.path))
        for name in ("a", "b", "c"):
            record = run.read(name)
            if record is not None:
                found += 1
                assert record.meta["name"] == name
                expected = np.full(20_000, record.meta["step"])
                np.testing.assert_array_equal(record.arrays["values"], expected, strict=True)
    assert found >= 4  # a kill costs one record of three, at most


@pytest.mark.parametrize("stage", ["npz staged", "json staged", "npz renamed", "json renamed"])
def test_a_kill_at_each_step_of_rewriting(tmp_path, stage):
    """The same, at every boundary: os.fsync and os.replace are made to end the process."""
    step, call = {
        "npz staged": (1, "fsync"),
        "json staged": (2, "fsync"),
        "npz renamed": (1, "replace"),
        "json renamed": (2, "replace"),
    }[stage]
    code = f"""
import os, sys
import numpy as np
from isounc.runs.folder import Record, RunFolder

run = RunFolder.open(sys.argv[1], {{}})
run.write(Record("a", {{"step": 1}}, {{"x": np.full(9, 1)}}))
real, count = os.{call}, 0

def dying(*arguments):
    global count
    count += 1
    real(*arguments)
    if count == {step}:
        os._exit(9)

os.{call} = dying
run.write(Record("a", {{"step": 2}}, {{"x": np.full(9, 2)}}))
"""
    child = start(code, tmp_path / "run")
    child.communicate()
    assert child.returncode == 9
    run = RunFolder.open(tmp_path / "run", {})
    if stage == "npz renamed":
        with pytest.warns(DamagedRecordWarning, match="checksum"):
            assert run.read("a") is None
    else:
        step = 2 if stage == "json renamed" else 1
        record = run.read("a")
        assert record is not None
        assert record.meta == {"step": step}
        np.testing.assert_array_equal(record.arrays["x"], np.full(9, step))
    names = {Path(n).name for n in files_below(run.path) if "damaged" not in n}
    assert names <= {".lock", ".verified", "settings.json", "a.npz", "a.json"}


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_gives_one_clear_error_and_keeps_what_was_written(run, monkeypatch, call, nth):
    run.write(make_record("before", seed=1))
    real, calls = getattr(os, call), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match=r"record 'moons-w8'.*No space left.*kept.*again") as caught:
        run.write(make_record())
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert not any(".tmp-" in name for name in files_below(run.path))
    assert_equal(run.read("before"), make_record("before", seed=1))
    run = RunFolder.open(run.path, SETTINGS)
    run.write(make_record())
    assert_equal(run.read("moons-w8"), make_record())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_when_bytes_arrive_leaves_the_old_record(run, monkeypatch):
    run.write(make_record(seed=0))

    def open_full(path, mode):
        path.touch()
        return open("/dev/full", "wb")

    monkeypatch.setattr(files, "open", open_full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        run.write(make_record(seed=1))
    for attempt in (
        lambda: run.write_table("results.csv", [], ["a"]),
        lambda: run.write_info({"a": 1}),
    ):
        with pytest.raises(OSError, match=r"(results\.csv|info\.json).*No space left"):
            attempt()
    monkeypatch.undo()
    assert_equal(run.read("moons-w8"), make_record(seed=0))
    assert files_below(run.path) == [
        ".lock",
        ".verified",
        "cells/moons-w8.json",
        "cells/moons-w8.npz",
        "settings.json",
    ]


def test_several_processes_open_and_write_at_once(tmp_path):
    code = """
import sys
import numpy as np
from isounc.runs.folder import Record, RunFolder

for step in range(15):
    run = RunFolder.open(sys.argv[1], {"a": 1})  # removes stale files, never those of the other
    run.write(Record(f"{sys.argv[2]}-{step}", {"step": step}, {"x": np.full(50_000, step)}))
    run.write(Record("shared", {"step": step}, {"x": np.full(50_000, step)}))
    run.write_info({f"{sys.argv[2]}-{step}": step})
    for record in run.records():
        assert (record.arrays["x"] == record.meta["step"]).all()
"""
    children = [start("import warnings; warnings.simplefilter('error')" + code, tmp_path / "run", w)
                for w in ("a", "b")]  # fmt: skip
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0]
    run = RunFolder.load(tmp_path / "run")
    expected = sorted(f"{worker}-{step}" for worker in "ab" for step in range(15))
    assert [r.name for r in run.records()] == [*expected, "shared"]
    assert sorted(run.read_info()) == expected
    assert not (run.path / "cells" / "damaged").exists()


LOCKER = """
import sys, time
from pathlib import Path
from isounc.runs.files import locked

print("ready", flush=True)
with locked(Path(sys.argv[1]), create=True) as held:
    print(held, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_excludes_others_until_it_is_given_back(run):
    with files.locked(run.path, create=True), files.locked(run.path, create=True) as again:
        assert again, "a thread may take it twice"
        child = start(LOCKER, run.path, 0)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
        run.write(make_record())
    assert child.communicate()[0] == "True\n"
    others = []
    with files.locked(run.path, create=True):
        thread = threading.Thread(target=lambda: others.append(run.write(make_record("b"))))
        thread.start()
        thread.join(timeout=0.2)
        assert not others
    thread.join()
    assert run.names() == ["b", "moons-w8"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_frees_the_lock(run):
    child = start(LOCKER, run.path, 600)
    assert child.stdout is not None
    assert [child.stdout.readline() for _ in range(2)] == ["ready\n", "True\n"]
    child.kill()
    child.communicate()
    with files.locked(run.path, create=True) as held:
        assert held


@pytest.mark.skipif(os.name == "nt", reason="needs flock")
@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
@pytest.mark.filterwarnings("error")
def test_a_file_system_without_locks_is_written_without(run, monkeypatch, code):
    import fcntl

    def no_locks(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (run.path / ".tmp-0123").write_text("of a process that may be alive")
    again = RunFolder.open(run.path, SETTINGS)
    again.write(make_record())
    assert again.has("moons-w8")
    assert (run.path / ".tmp-0123").exists()
    assert not [name for name in files_below(run.path) if "lock" in name and name != ".lock"]


def test_no_lock_is_made_where_nothing_may_be_written(run, monkeypatch):
    (run.path / ".lock").unlink()
    with files.locked(run.path, create=False) as held:
        assert not held
    assert not (run.path / ".lock").exists()

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)
    with files.locked(run.path, create=True) as held:
        assert not held


# ---- tables, info, provenance


COLUMNS = ("problem", "width", "class", "pearson", "slope", "reason", "seed", "ok")


def test_tables_are_written_in_six_digits_with_empty_cells(run):
    rows = [
        {"problem": "xor", "width": 8, "class": "1", "pearson": 0.123456789, "slope": 1.5e-9},
        {
            "problem": 'a, "b"\nc', "width": np.int64(1234567), "class": "trace",
            "pearson": math.nan, "slope": math.inf, "reason": "it is constant", "seed": None,
        },
        {"problem": "moons", "pearson": np.float32(2.5), "slope": jnp.float32(-0.0), "ok": True},
    ]  # fmt: skip
    expected = (
        "problem,width,class,pearson,slope,reason,seed,ok\n"
        "xor,8,1,0.123457,1.5e-09,,,\n"
        '"a, ""b""\nc",1234567,trace,,inf,it is constant,,\n'
        "moons,,,2.5,-0,,,True\n"
    )
    run.write_table("results.csv", rows, COLUMNS)
    assert (run.path / "results.csv").read_bytes() == expected.encode()
    # Read, and written again, the table stays the same to the byte.
    run.write_table("results.csv", isounc.runs.load(run.path).results, COLUMNS)
    assert (run.path / "results.csv").read_bytes() == expected.encode()
    run.write_table("results.csv", pd.DataFrame(rows), COLUMNS[::-1])
    assert (run.path / "results.csv").read_text().splitlines()[0] == ",".join(COLUMNS[::-1])


def test_tables_come_back_with_types(run):
    rows = [
        {"problem": "xor", "width": 8, "class": "1", "pearson": 0.123456789, "ok": True},
        {"problem": "NA", "width": None, "class": "2", "pearson": None, "ok": None},
        {"problem": "nan", "width": 64, "class": None, "pearson": math.inf, "ok": False},
    ]
    run.write_table("results.csv", rows, COLUMNS)
    table = isounc.runs.load(run.path).results
    assert tuple(table.columns) == COLUMNS
    types = {"width": "Int64", "class": "string", "pearson": "Float64", "ok": "boolean"}
    assert table.dtypes.astype(str).to_dict().items() >= types.items()
    missing = table[list(types)].isna().to_numpy()
    np.testing.assert_array_equal(
        missing, [[False] * 4, [True, False, True, True], [False, True, False, False]]
    )
    assert table["problem"].tolist() == ["xor", "NA", "nan"]
    assert table["class"].tolist()[:2] == ["1", "2"]
    assert table["pearson"][0] == 0.123457 and table["pearson"][2] == math.inf
    assert table["width"].sum() == 72 and table["seed"].isna().all()


@pytest.mark.parametrize("text", ["a\rb", "\r", "a\r\nb", "a\nb", 'a"b', "a,b", "é\u2028"])
def test_any_text_comes_back_from_a_table(run, text):
    rows = [{"problem": text, "width": 8}, {"problem": "xor", "width": None}]
    run.write_table("results.csv", rows, ("problem", "width"))
    table = isounc.runs.load(run.path).results
    assert table["problem"].tolist() == [text, "xor"] and table["width"].isna().tolist() == [0, 1]


def test_text_columns_are_those_that_held_text_or_are_said_to(run):
    rows = [{"x": -3, "name": "1", "code": "07"}, {"x": -1, "name": "1_000", "code": "08"}]
    run.write_table("summary.csv", rows, ["x", "name", "code"])
    assert run.summary.to_dict("records") == rows
    run.write_table("other.csv", [], ["x"])
    assert run.read_table("other.csv").empty
    run.write_info({"more": 1})
    assert run.summary.to_dict("records") == rows
    assert run.read_info() == {"more": 1}
    # A run of before has no note of it.
    (run.path / "info.json").unlink()
    assert run.summary["code"].tolist() == [7, 8]
    assert run.summary["name"].tolist() == ["1", "1_000"]
    told = run.read_table("summary.csv", text_columns=("code", "gone"))
    assert told["code"].tolist() == ["07", "08"]


def test_a_published_run_is_read():
    run = isounc.runs.load(Path(__file__).parents[2] / "results" / "standard")
    assert run.settings["preset"] == "standard"
    for table in (run.results, run.summary):
        assert {"1", "trace"} < set(table["class"])
        assert table["width"].max() == 256 and table.dtypes["width"] == "Int64"


def test_rows_that_do_not_fit_are_refused(run):
    columns = ["pearson", "slope"]
    with pytest.raises(
        ValueError, match=r"results.csv must be pearson, slope, got also \['pearsn'\]"
    ):
        run.write_table("results.csv", [{"pearson": 1.0}, {"pearsn": 1.0}], columns)
    with pytest.raises(
        ValueError, match=r"column 'pearson', must hold single numbers .*got a list"
    ):
        run.write_table("results.csv", [{"pearson": [1.0]}], columns)
    with pytest.raises(ValueError, match=r"no results\.csv"):
        run.results  # noqa: B018
    (run.path / "results.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"line 3 of .*results\.csv must have 2 cells.*, got 1"):
        run.read_table("results.csv")


def test_info_is_merged(run):
    assert run.read_info() == {}
    run.write_info({"checks": {"a": True}, "first": 1})
    run.write_info({"checks": {"b": math.nan}})
    info = RunFolder.load(run.path).read_info()
    assert info["first"] == 1
    assert list(info["checks"]) == ["b"]
    assert math.isnan(info["checks"]["b"])
    (run.path / "info.json").write_text("{")
    with pytest.warns(DamagedRecordWarning, match=r"info\.json"):
        run.write_info({"second": 2})
    assert run.read_info() == {"second": 2}
    for damaged in ('{"format_version": 1, "info": [1]}', '{"format_version": 1, "info": "ab"}'):
        (run.path / "info.json").write_text(damaged)
        with pytest.warns(DamagedRecordWarning, match=r"info\.json"):
            assert run.read_info() == {}
    (run.path / "info.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="newer"):
        run.write_info({"third": 3})


def test_provenance_can_be_stored_and_tells_no_paths(run):
    found = provenance()
    run.write_info({"provenance": found})
    assert run.read_info()["provenance"] == found
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) >= {"python", "jax", "flax", "blackjax", "isounc"}
    assert found["device"]["count"] >= 1
    assert found["cpu_count"] >= 1
    assert found["time"].endswith("+00:00")
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[2]) not in text
    node = os.uname().nodename if hasattr(os, "uname") else ""
    assert not node or node not in text


def test_git_state_of_tracked_changed_and_foreign_code(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init", "-q")
    except OSError:
        pytest.skip("needs git")
    code = tmp_path / "code.py"
    code.write_text("1")
    assert git_state(code) == {"commit": None, "dirty": None}  # not tracked, so not described
    git("add", "code.py")
    git("commit", "-q", "--no-verify", "-m", "first")
    (tmp_path / "notes.txt").write_text("untracked")
    commit = git("rev-parse", "HEAD")
    assert git_state(code) == {"commit": commit, "dirty": False}
    with monkeypatch.context() as hook:  # what a hook exports names another repository
        hook.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        assert git_state(code) == {"commit": commit, "dirty": False}
    code.write_text("2")
    assert git_state(code)["dirty"] is True
    assert git_state(tmp_path / "notes.txt") == {"commit": None, "dirty": None}
