"""The bank of reference posteriors: named, versioned, checked, and loaded without a network.

    >>> import isounc
    >>> reference = isounc.references.load("xor-ntk-w64-v1")
    >>> reference.regions["grid"].var, reference.regions["grid"].var_se
    >>> print(reference.card)
    >>> print(isounc.references.compare(reference, posterior))

The bank is a package of data alone, `isounc-bank`, which the extra `isounc[bank]` installs. An entry
is two of its files: `<name>.npz` with plain arrays and `<name>.info.json` with everything else and
the SHA-256 of both. Moments and draws are float32 in sampled entries, float64 in exact ones.
Nothing is unpickled. `experiments/reference_bank.py` makes the bank.

Source of the layout: posteriordb (Magnusson et al. 2025, arXiv 2407.04967).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from isounc.checks import check_choice, check_path
from isounc.fields import Unreadable
from isounc.models import Model
from isounc.references.export import number, table
from isounc.references.reference import Reference, from_record
from isounc.runs import files, values
from isounc.untrusted import reading

_INFO = ".info.json"


class FailedReferenceWarning(UserWarning):
    """A reference that did not pass its checks was loaded."""


class Entry(NamedTuple):
    """A line of the bank's list."""

    name: str
    """Name that `load` takes."""
    method: str
    """hmc, nuts, quadrature or closed form."""
    num_params: int
    """P."""
    passed: bool
    """Whether it passed its checks."""
    rhat_max: float | None
    """Largest R-hat of a prediction; None for an exact entry."""
    ess_min: float | None
    """Smallest bulk ESS of p and of (p - mean)^2; None for an exact entry."""
    num_draws: int | None
    """Draws behind the moments, over all chains; None for an exact entry."""
    reasons: tuple[str, ...]
    """Which checks failed."""


def list(folder: str | Path | None = None) -> tuple[Entry, ...]:
    """Every entry of the bank by name, those that failed their checks included.

    Parameters
    ----------
    folder
        A bank of your own; None is that of isounc-bank.

    Raises
    ------
    ValueError
        For a damaged entry.
    ImportError
        If isounc-bank is not installed and no folder is given.
    """
    bank = _bank(folder)
    return tuple(_entry(name, _info(bank, name)["meta"]) for name in _names(bank))


def load(name: str, folder: str | Path | None = None) -> Reference:
    """Read a reference and verify its checksums.

    Parameters
    ----------
    name
        One of the names that `list` gives.
    folder
        A bank of your own; None is that of isounc-bank.

    Raises
    ------
    ValueError
        For an unknown name (with near matches), or an entry that is damaged or of a newer format.
    ImportError
        If isounc-bank is not installed and no folder is given.

    Warns
    -----
    FailedReferenceWarning
        If the reference did not pass its checks.
    """
    bank = _bank(folder)
    check_choice("name", name, _names(bank))
    payload = _info(bank, name)
    try:
        npz = _content(bank, f"{name}.npz")
        if hashlib.sha256(npz).hexdigest() != payload.get("sha256"):
            raise values.Damaged(f"the checksum of {name}.npz does not match")
        reference = from_record(name, payload["meta"], values.unpack(npz), payload["sha256"])
    except (values.Damaged, Unreadable, OSError) as error:
        raise _damaged(name, error) from error
    if not reference.passed:
        warnings.warn(
            f"reference {name!r} did not pass its checks: {'; '.join(reference.reasons)}",
            FailedReferenceWarning,
            stacklevel=2,
        )
    return reference


def save(reference: Reference, folder: str | Path, *, overwrite: bool = False) -> Reference:
    """Write a reference into a bank, and return it with its checksum.

    Raises
    ------
    ValueError
        If the bank has an entry of that name with other content and `overwrite` is False: a name,
        once published, keeps its content.
    OSError
        If it cannot be written.
    """
    folder = Path(folder)
    meta, arrays = reference.to_record()
    encoded = values.encode(meta, "meta")
    npz = values.pack(arrays, compress=True)
    payload = {
        "name": reference.name,
        "sha256": hashlib.sha256(npz).hexdigest(),
        "meta_sha256": values.json_digest(encoded),
        "meta": encoded,
    }
    contents = {
        folder / f"{reference.name}.npz": npz,
        folder / (reference.name + _INFO): values.json_bytes(payload),
    }
    if not overwrite and any(
        path.exists() and path.read_bytes() != contents[path] for path in contents
    ):
        raise ValueError(
            f"reference must have a name that is new in {folder}, got {reference.name!r}, which it "
            "has with other content; give a higher version, or pass overwrite=True"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(contents, f"reference {reference.name!r}")
    return dataclasses.replace(reference, checksum=payload["sha256"])


def installed_bank() -> Traversable:
    """The folder of the bank of isounc-bank.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        return importlib.resources.files("isounc_bank").joinpath("data")
    except ModuleNotFoundError as error:
        raise ImportError(
            "the bank of references needs the package isounc-bank: pip install isounc[bank]"
        ) from error


def bank_page(entries: Sequence[Entry], *, num_bytes: int) -> str:
    """A page that lists a bank, as Markdown."""
    passed = sum(e.passed for e in entries)
    rows = (
        (
            f"`{e.name}`",
            e.method,
            str(e.num_params),
            "pass" if e.passed else "**fail**",
            number(e.rhat_max, ".4f"),
            number(e.ess_min, ".0f"),
            number(e.num_draws, "d"),
        )
        for e in entries
    )
    failed = [f"- `{e.name}`: {'; '.join(e.reasons)}." for e in entries if not e.passed]
    return "\n".join(
        [
            "# The bank of reference posteriors",
            "",
            f"{len(entries)} references, {passed} of which passed their checks; "
            f"{num_bytes / 1e6:.1f} MB. Made by `uv run experiments/reference_bank.py`;",
            "`isounc.references.load(name)` reads one, its `card` says how it was made.",
            "",
            "R-hat is the largest and ESS the smallest (of p and of (p − mean)²) over the fixed "
            "locations of all",
            "regions; draws are those behind the moments, over all chains. `ntk` and `fan_in` are "
            "two",
            "parameterisations of one prior over functions, sampled apart: their predictive "
            "moments must agree, and",
            "a test compares them.",
            "",
            table(("name", "method", "P", "gate", "R-hat", "ESS", "draws"), rows),
            "",
            *(["## Failing entries", "", *failed, ""] if failed else []),
        ]
    )


def _bank(folder: str | Path | None) -> Traversable:
    if folder is None:
        return installed_bank()
    bank = check_path("folder", folder)
    if not bank.is_dir():
        raise ValueError(f"folder must be a folder with references, got {str(folder)!r}")
    return bank


def _names(bank: Traversable) -> tuple[str, ...]:
    names = (path.name for path in bank.iterdir())
    return tuple(sorted(name.removesuffix(_INFO) for name in names if name.endswith(_INFO)))


def _info(bank: Traversable, name: str) -> dict[str, Any]:
    """The content of the info file, decoded and verified."""
    try:
        payload = values.parse_json(_content(bank, name + _INFO), f"reference {name!r}")
        if payload.get("name") != name or not isinstance(payload.get("meta"), dict):
            raise values.Damaged(f"{name}{_INFO} does not describe it")
        if payload.get("meta_sha256") != values.json_digest(payload["meta"]):
            raise values.Damaged(f"the checksum of the meta in {name}{_INFO} does not match")
    except (values.Damaged, OSError) as error:
        raise _damaged(name, error) from error
    return values.decode(payload)


def _content(bank: Traversable, file: str) -> bytes:
    """Content of a file; of a folder that anybody may have written, within bounds."""
    path = bank.joinpath(file)
    content = files.bytes_or_none(path) if isinstance(path, Path) else path.read_bytes()
    if content is None:
        raise values.Damaged(f"{file} is missing")
    return content


def _damaged(name: str, error: object) -> ValueError:
    return ValueError(
        f"reference {name!r} is damaged ({error}); install isounc-bank again, or make the entry "
        "again with experiments/reference_bank.py"
    )


def _entry(name: str, meta: Mapping[str, Any]) -> Entry:
    try:
        with reading("it", "an entry of a bank"):
            return _read_entry(name, meta)
    except Unreadable as error:
        raise _damaged(name, error) from error


def _read_entry(name: str, meta: Mapping[str, Any]) -> Entry:
    gate = meta["gate"] or {}
    ess = [gate[k] for k in ("ess_bulk_min", "ess_var_min") if gate.get(k) is not None]
    return Entry(
        name=name,
        method=meta["method"],
        num_params=Model(**meta["model"]).num_params,
        passed=not meta["reasons"],
        rhat_max=gate.get("rhat_max"),
        ess_min=min(ess, default=None),
        num_draws=meta["num_chains"] * meta["checks"]["num_draws"] if gate else None,
        reasons=tuple(meta["reasons"]),
    )
