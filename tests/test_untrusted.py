"""Files that anybody may have written: pipes, devices, bombs, and what no format allows."""

import io
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isounc import untrusted
from isounc.fields import Unreadable
from isounc.untrusted import (
    open_regular,
    parse_csv,
    parse_json,
    parse_npz,
    read_bytes,
    read_json,
    reading,
)


def npz(arrays, **kwargs):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **kwargs)
    return buffer.getvalue()


def archive(members, kind=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def npy(shape, descr="<f8", body=b""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, kind in [("pipe", "a pipe"), ("zero", "a device"), (".", "a folder")]:
        with pytest.raises(Unreadable, match=f"must be a regular file, got {kind}"):
            read_bytes(tmp_path / path, most=10)
    with pytest.raises(FileNotFoundError, match="absent"):
        open_regular(tmp_path / "absent")
    with pytest.raises(Unreadable, match="must be the path of a file, got one with"):
        open_regular("a\0b")


def test_size_is_checked_before_anything_is_read(tmp_path):
    path = tmp_path / "sparse.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Unreadable, match=r"sparse\.json must have at most 1000 bytes, got 1099511"):
        read_bytes(path, most=1000)
    path.write_bytes(b"\xef\xbb\xbf[1]")
    (tmp_path / "link.json").symlink_to(path)
    assert read_json(tmp_path / "link.json", most=6) == [1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "at most 64 lists and objects within each other"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "at most 64 lists and objects within each other"),
        (b"[" + b"[]," * 600_000 + b"[]]", "at most 500000 lists and objects"),
        (b'{"a": 1, "a": 2}', "be JSON, got a file that is none: 'a' is twice"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"[1e999]", "1e999 is no number of JSON"),
        (b"1" * 5000, "be JSON"),
        (b"[1, ", "be JSON"),
        (b"", "be JSON"),
        (b"\xff\xfe[\x00", "be UTF-8 text, got byte 0xff at 0"),
    ],
)
def test_what_is_no_json(data, message):
    with pytest.raises(Unreadable, match=rf"x\.json must .*{message}"):
        parse_json(data, "x.json")


def test_json_values():
    assert parse_json(b'{"a": [1, 2.5, null, "x", {}]}', "x") == {"a": [1, 2.5, None, "x", {}]}
    assert parse_json(b"[" * 64 + b"]" * 64, "x")
    assert parse_json(b"7", "x") == 7
    assert parse_json('{"a": 1, "a": 2}', "x", pairs=list) == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n3\n", "line 3 of x.csv must have 2 cells, as the header has, got 1"),
        (b"a,b\n1,2,3\n", "line 2 of x.csv must have 2 cells"),
        (b"a,b,a\n", "must have each column once, got 'a' twice"),
        (b"", "must have a header, got an empty file"),
        (b"a\n" + b"x" * (9 * 2**20), "must be CSV, got line 2"),
        (b"," * 5000, "at most 1000 columns, got 5001"),
        (b"a,b\n\xe9,1\n", "must be UTF-8 text, got byte 0xe9 at 4"),
    ],
)
def test_what_is_no_table(data, message):
    with pytest.raises(Unreadable, match=message):
        parse_csv(data, "x.csv")


def test_tables():
    data = '\ufeffa,b\r\n"1\r\n2","x ""y"", z"\n\n3,\u2028\n'.encode()
    assert parse_csv(data, "x") == (["a", "b"], [["1\r\n2", 'x "y", z'], ["3", "\u2028"]])


def test_rows_are_counted(monkeypatch):
    monkeypatch.setattr(untrusted, "MOST_ROWS", 2)
    with pytest.raises(Unreadable, match="at most 2 rows"):
        parse_csv(b"a\n1\n2\n3\n", "x")


def test_arrays_come_back():
    arrays = {
        "a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array(["x", "yz"]), "d": np.zeros((0, 3), np.float32), "e": np.float32(2.5),
        "f/g": np.array([True, False]),
    }  # fmt: skip
    read = parse_npz(npz(arrays), "x.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == np.asarray(array).dtype and read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must be an npz file of plain arrays"),
        (npz({"a": np.arange(9)})[:-30], "must be an npz file of plain arrays"),
        (npz({"a": np.array([None, 1])}), "'a' of x.npz must be a plain array, got one of Python"),
        (npz({"a": np.zeros(2, "i4,f4")}), "must be a plain array"),
        (archive([("a.txt", b"x")]), "got 'a.txt' which is no array"),
        (archive([("a.npy", npy((10**15,)))]), "must have the 8000000000000000 bytes that"),
        (archive([("a.npy", npy((-1, -2), body=b"x" * 16))]), "must have the 16 bytes that"),
        (archive([("a.npy", npy((10**18,), "<U0"))]), "must be a plain array"),
        (archive([("a.npy", npy("(" * 3000))]), "must be an npz file of plain arrays"),
        (archive([("a.npy", b"\x93NUMPY\x03\x00")]), "format 1 or 2"),
    ],
)
def test_what_is_no_npz(data, message):
    with pytest.raises(Unreadable, match=message):
        parse_npz(data, "x.npz")


def test_a_bomb_is_refused_before_it_is_unpacked():
    data = npz({"a": np.zeros(2**27, np.uint8)})
    assert len(data) < 2**18
    with pytest.raises(
        Unreadable, match=r"the arrays of x\.npz must have at most .* got 134217856"
    ):
        parse_npz(data, "x.npz")
    assert parse_npz(data, "x.npz", most=2**28)["a"].size == 2**27


def test_damaged_bytes_of_an_array_are_noticed():
    data = bytearray(archive([("a.npy", npy((2,), body=b"y" * 16))]))
    data[data.index(b"y" * 16)] ^= 1
    with pytest.raises(Unreadable, match="Bad CRC"):
        parse_npz(bytes(data), "x.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused():
    data = archive([("a.npy", npy((0,))), ("a.npy", npy((0,)))])
    with pytest.raises(Unreadable, match=r"got 'a\.npy' twice"):
        parse_npz(data, "x.npz")


class Panic(BaseException):
    """As packages written in Rust raise it."""


def test_whatever_goes_wrong_names_the_file():
    for error in (Panic("index 3"), AttributeError("lower"), MemoryError(), RecursionError("deep")):
        with pytest.raises(Unreadable, match=r"a.gguf must be a whole file, got one (that|whose)"):
            with reading("a.gguf", "a whole file"):
                raise error
    for error in (KeyboardInterrupt(), SystemExit(1), FileNotFoundError("b"), ImportError("c")):
        with pytest.raises(type(error)), reading("a.gguf", "a whole file"):
            raise error


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_one_kind_of_error(data):
    for parse in (parse_json, parse_csv, parse_npz):
        try:
            parse(data, "the file")
        except Unreadable as error:
            assert "the file" in str(error)


@given(st.data())
def test_any_change_of_a_good_archive_gives_arrays_or_one_kind_of_error(data):
    good = bytearray(npz({"a": np.arange(4.0), "b": np.array(["x"])}))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_npz(bytes(good), "the file")
    except Unreadable as error:
        assert "the file" in str(error)
