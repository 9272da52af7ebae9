"""Synthetic finished cells: the records of a run again under other names, byte for byte as isounc writes.

Writing a hundred thousand records by `RunFolder.write` would take an hour, most of which is to encode
the same rows again. A record is therefore a text in which its name, its seed and the checksum of its
meta are put in; `tests/runs/test_many_cells.py` holds it against what `RunFolder.write` writes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from isounc.runs import record_files, values, verified
from isounc.runs.folder import Record, RunFolder

_SEED = 7_654_321_987_654_321
"""A number that no record has, in whose place seeds are put."""
_NAME, _SHA256 = "name-of-the-record", "0" * 64
_MOST_LINKS = 10_000
"""Names of one file of arrays; ext4 allows 65,000."""


class Template:
    """A record whose number (its seed, say) is open."""

    def __init__(self, record: Record, run: RunFolder, pattern: str):
        """Make a template.

        Parameters
        ----------
        record
            A record; if it has a cell and rows with a seed, the number is put there, too.
        run
            The run that the records are to belong to.
        pattern
            Name of a record, with the number as in `str.format`.
        """
        meta: dict[str, Any] = copy.deepcopy(record.meta)
        for part in (meta.get("cell"), *meta.get("rows", ())):
            if part and "seed" in part:
                part["seed"] = _SEED
        self.pattern = pattern
        encoded = values.encode(meta, "meta")
        self._sorted = json.dumps(encoded, sort_keys=True)
        self.npz, described = record_files.record_bytes(_NAME, meta, record.arrays, digest(run))
        self._text = described.decode().replace(values.json_digest(encoded), _SHA256)

    def name(self, number: int) -> str:
        """Name of the record of a number."""
        return self.pattern.format(number)

    def described(self, number: int) -> bytes:
        """The JSON file of the record of a number."""
        meta = self._sorted.replace(str(_SEED), str(number))
        sha256 = hashlib.sha256(meta.encode()).hexdigest()
        text = self._text.replace(str(_SEED), str(number)).replace(_SHA256, sha256)
        return text.replace(_NAME, self.name(number)).encode()


def digest(run: RunFolder) -> str:
    """The digest of the settings of a run, which its records have."""
    return values.json_digest(values.encode(run.settings, "settings"))


def fill(
    run: RunFolder, templates: Sequence[Template], numbers: Iterable[int], *, linked: bool
) -> int:
    """Write a record of each number for each pattern of the templates into a run.

    Templates of the same pattern take turns. Files are not synced to the disk, and the list of
    verified records gets its lines as if each had been written by `RunFolder.write`.

    Parameters
    ----------
    linked
        Whether files of arrays are links to those of an earlier record, which spares the disk.

    Returns
    -------
    int
        Bytes of the JSON files.
    """
    by_pattern: dict[str, list[Template]] = {}
    for template in templates:
        by_pattern.setdefault(template.pattern, []).append(template)
    cells, of_run = run.path / "cells", digest(run)
    links: dict[int, tuple[Path, int]] = {}
    total, lines = 0, []
    for i, number in enumerate(numbers):
        for alike in by_pattern.values():
            template = alike[i % len(alike)]
            name, content = template.name(number), template.described(number)
            arrays, described = cells / f"{name}.npz", cells / f"{name}.json"
            source, count = links.get(id(template), (arrays, _MOST_LINKS))
            if linked and count < _MOST_LINKS:
                os.link(source, arrays)
                links[id(template)] = source, count + 1
            else:
                arrays.write_bytes(template.npz)
                links[id(template)] = arrays, 1
            described.write_bytes(content)
            stamp = verified.stamp_of(arrays, described)
            assert stamp is not None
            lines.append((name, stamp, hashlib.sha256(content).hexdigest()))
            total += len(content)
    verified.add_to_list(run.path, of_run, lines)
    return total
