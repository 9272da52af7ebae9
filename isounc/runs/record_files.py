"""The two files of a record: its arrays, and a JSON file with its meta and the checksums of both."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from isounc.runs.values import (
    Damaged,
    decode,
    encode,
    json_bytes,
    json_digest,
    pack,
    parse_json,
    unpack,
)


def record_bytes(
    name: str, meta: Mapping[str, Any], arrays: Mapping[str, Any], run: str
) -> tuple[bytes, bytes]:
    """Encode a record as an npz and a JSON file, which holds the checksums of both halves.

    `run` is the digest of the settings of the run that it belongs to.
    """
    encoded, npz = encode(dict(meta), "meta"), pack(arrays)
    payload = {
        "name": name,
        "run": run,
        "sha256": hashlib.sha256(npz).hexdigest(),
        "meta_sha256": json_digest(encoded),
        "meta": encoded,
    }
    return npz, json_bytes(payload)


def record_parts(
    name: str,
    npz: bytes | None,
    described: bytes | None,
    what: str,
    run: str,
    with_arrays: bool,
    *,
    is_known: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Verify and decode what `record_bytes` wrote: the meta and, `with_arrays`, the arrays.

    Parameters
    ----------
    is_known
        Whether the bytes of the JSON file are those that were verified before. Its checksum is then
        not computed again, and the arrays may be left out if they are not asked for.

    Raises
    ------
    Damaged
        If a half is missing, does not agree with the other, or belongs to another run.
    ValueError
        If the record is of a newer format.
    """
    if described is None:
        raise Damaged(f"{name}.json is missing")
    payload = parse_json(described, what)
    if npz is None and (with_arrays or not is_known):
        raise Damaged(f"{name}.npz is missing")
    meta = payload.get("meta")
    if payload.get("name") != name or not isinstance(meta, dict):
        raise Damaged(f"{name}.json does not describe this record")
    if payload.get("run", run) != run:  # absent in records of before
        raise Damaged("it belongs to a run with other settings")
    if npz is not None and payload.get("sha256") != hashlib.sha256(npz).hexdigest():
        raise Damaged(f"the checksum of {name}.npz does not match")
    if not is_known and payload.get("meta_sha256") != json_digest(meta):
        raise Damaged(f"the checksum of the meta in {name}.json does not match")
    meta = decode(meta) if _may_be_encoded(described) else meta
    return meta, unpack(npz) if with_arrays and npz is not None else {}


def format_of(head: bytes) -> int | None:
    """The format version at the beginning of a JSON file; None if it does not begin with it."""
    match = _FORMAT.match(head)
    return int(match[1]) if match else None


def _may_be_encoded(described: bytes) -> bool:
    """Whether a JSON file may have a text that `decode` changes; going through all takes long."""
    return any(mark in described for mark in (b'NaN"', b'Infinity"', b"\\"))


_FORMAT = re.compile(rb'\s*\{\s*"format_version"\s*:\s*([0-9]{1,9})\s*,')
