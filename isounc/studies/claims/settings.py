"""Settings of the claims: run folders to read, and pages to write the table of verdicts into."""

from __future__ import annotations

from dataclasses import dataclass

from isounc.checks import check_choice
from isounc.runs.executors import Group
from isounc.runs.settings import RunSettings
from isounc.studies.claims.pages import check_page
from isounc.studies.claims.sources import Source, given, published
from isounc.studies.claims.statements import CLAIMS


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the claims."""

    runs: tuple[str, ...] = ()
    """Run folders, or published ones, of the studies; empty means all below the folder `results`."""
    results: str = "results"
    """Folder of published runs, which is read where no runs are named: that of a clone."""
    claims: tuple[str, ...] = tuple(CLAIMS)
    """Claims to settle, by number."""
    pages: tuple[str, ...] = ()
    """Markdown files into which the table of verdicts is written, between the lines
    <!-- claims --> and <!-- /claims -->; the README of a clone is one."""


VIEWS = ("runs", "results", "claims", "pages", "device", "dtype")
"""Settings that may differ from one time to the next: evidence is gathered anew each time."""


def check(settings: Settings) -> None:
    """Check that there is evidence that can be read, and that the pages have a place for the table.

    Raises
    ------
    ValueError
        If a claim is unknown or twice, a folder or a page is not what it should be.
    """
    if not settings.claims or len(set(settings.claims)) < len(settings.claims):
        raise ValueError(f"claims must have one value or more, none twice, got {settings.claims}")
    for claim in settings.claims:
        check_choice("claims", claim, CLAIMS)
    for page in settings.pages:
        check_page(page)
    find_sources(settings)


def find_sources(settings: Settings) -> list[Source]:
    """The run folders that are read."""
    return given(settings.runs) if settings.runs else published(settings.results)


def plan(settings: Settings) -> list[Group]:
    """Nothing is computed: all is read from tables that are there."""
    return []


def remarks(settings: Settings) -> list[str]:
    """Say which folders are read."""
    return [f"{source.name}: {source.study}" for source in find_sources(settings)]
