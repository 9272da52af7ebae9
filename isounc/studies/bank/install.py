"""Finished references are installed into a bank, or made again and compared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from isounc import references
from isounc.fields import anything, declared, number
from isounc.references import Reference
from isounc.references.bank import bank_page, installed_bank
from isounc.runs.files import write_atomic
from isounc.runs.folder import RunFolder
from isounc.studies.bank.cell import make

MAX_BYTES = 20_000_000
"""Most that a bank may take on disk."""


def read(folder: RunFolder, name: str) -> Reference:
    """Read a reference from the record of a run.

    Raises
    ------
    ValueError
        If the run has no such record.
    """
    record = folder.require(name)
    meta = declared(
        record.meta, {"reference": anything(), "seconds": number(0)}, f"record {name!r}"
    )
    return references.from_record(name, meta["reference"], record.arrays)


def verdict(reference: Reference) -> str:
    """Say whether a reference passed its checks, and why not."""
    return "passed" if reference.passed else f"FAILED: {'; '.join(reference.reasons)}"


def install(run: str | Path, bank: str | Path | None = None, *, overwrite: bool = False) -> str:
    """Copy the references of a finished run into a bank, write its page, and return the page.

    Parameters
    ----------
    run
        A run folder of the bank study.
    bank
        The folder of the bank; None is that of isounc-bank.
    overwrite
        Whether to replace references of the same name and other content.

    Raises
    ------
    ValueError
        If the run is not finished, the bank has another reference of the same name, or the bank
        becomes too large.
    ImportError
        If isounc-bank is not installed and no folder is given.
    """
    folder, bank = RunFolder.load(run), Path(str(bank or installed_bank()))
    if "checks" not in folder.read_info():
        raise ValueError(
            f"run must be finished (repeat its command), got {folder.path}, which is not"
        )
    for name in folder.names():
        references.save(read(folder, name), bank, overwrite=overwrite)
    num_bytes = sum(path.stat().st_size for path in bank.iterdir())
    page = bank_page(references.list(bank), num_bytes=num_bytes)
    write_atomic({bank / "README.md": page.encode()}, "the bank's page")
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"thinning must leave a bank of at most {MAX_BYTES / 1e6:g} MB, got "
            f"{num_bytes / 1e6:.1f} MB"
        )
    return page


def check_again(names: Sequence[str], bank: str | Path | None = None) -> bool:
    """Make references again with the next key, compare them with the bank, and print the outcome.

    Returns
    -------
    bool
        Whether all agree within their errors.
    """
    agreed = True
    for name in names:
        with warnings.catch_warnings():
            # Both verdicts are printed below.
            warnings.simplefilter("ignore", references.FailedReferenceWarning)
            stored = references.load(name, bank)
        recipe = dict(stored.settings) | {"key": stored.settings["key"] + 1}
        with tqdm(desc=name, bar_format="{desc}{postfix}") as bar:
            again = make(name, recipe, bar.set_postfix_str)
        agreement = references.compare(stored, again)
        print(f"\n{name}\nstored: {verdict(stored)}\nagain: {verdict(again)}\n{agreement}")
        agreed &= agreement.agrees
    return agreed
