"""Synthetic finished cells: the records of a run again under other seeds, byte for byte as isounc writes.

Writing a hundred thousand records by `RunFolder.write` would take an hour, most of which is to encode
the same rows again. A record of a seed is therefore a text in which the seed, the name and the checksum
of the meta are put in; `tests/test_scale.py` holds it against what `RunFolder.write` writes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from isounc.runs import record_files, values, verified
from isounc.runs.folder import Record, RunFolder

_SEED = 7_654_321_987_654_321
"""A number that no record has, in whose place seeds are put."""
_NAME, _SHA256 = "name-of-the-record", "0" * 64
_MOST_LINKS = 10_000
"""Names of one file of arrays; ext4 allows 65,000."""


class Template:
    """A record whose seed is open."""

    def __init__(self, record: Record, run: str):
        """Make a template of a record with a cell, of the run of digest `run`."""
        meta = copy.deepcopy(record.meta)
        meta["cell"]["seed"] = _SEED
        for row in meta["rows"]:
            row["seed"] = _SEED
        self.stem = record.name.removesuffix(f"-seed{record.meta['cell']['seed']}")
        encoded = values.encode(meta, "meta")
        self._sorted = json.dumps(encoded, sort_keys=True)
        self.npz, described = record_files.record_bytes(_NAME, meta, record.arrays, run)
        known = {"meta_sha256": values.json_digest(encoded)}
        self._text = described.decode().replace(known["meta_sha256"], _SHA256)

    def name(self, seed: int) -> str:
        """Name of the record of a seed."""
        return f"{self.stem}-seed{seed}"

    def described(self, seed: int) -> bytes:
        """The JSON file of the record of a seed."""
        digest = hashlib.sha256(self._sorted.replace(str(_SEED), str(seed)).encode()).hexdigest()
        text = self._text.replace(str(_SEED), str(seed)).replace(_SHA256, digest)
        return text.replace(_NAME, self.name(seed)).encode()


def fill(
    run: RunFolder, templates: Sequence[Template], seeds: Iterable[int], *, linked: bool
) -> Iterator[int]:
    """Write the records of many seeds into a run, each from one of the templates of its place.

    Templates of the same stem take turns. Files are not synced to the disk, and the list of verified
    records gets its lines as if each had been written by `RunFolder.write`.

    Parameters
    ----------
    linked
        Whether files of arrays are links to those of an earlier record, which spares the disk.

    Yields
    ------
    int
        Bytes of the JSON files of a seed.
    """
    by_stem: dict[str, list[Template]] = {}
    for template in templates:
        by_stem.setdefault(template.stem, []).append(template)
    cells = run.path / "cells"
    links: dict[int, tuple[Path, int]] = {}
    digest = values.json_digest(values.encode(run.settings, "settings"))
    for i, seed in enumerate(seeds):
        size, lines = 0, []
        for of_stem in by_stem.values():
            template = of_stem[i % len(of_stem)]
            content = template.described(seed)
            path = cells / f"{template.name(seed)}.json"
            arrays = cells / f"{template.name(seed)}.npz"
            source, count = links.get(id(template), (arrays, _MOST_LINKS))
            if linked and count < _MOST_LINKS:
                os.link(source, arrays)
                links[id(template)] = source, count + 1
            else:
                arrays.write_bytes(template.npz)
                links[id(template)] = arrays, 1
            path.write_bytes(content)
            stamp = verified.stamp_of(arrays, path)
            assert stamp is not None
            lines.append((template.name(seed), stamp, content))
            size += len(content)
        verified.add_to_list(run.path, digest, lines)
        yield size


def remove(folder: Path) -> None:
    """Remove a folder of many records."""
    shutil.rmtree(folder, ignore_errors=True)
