"""The page about a guard: its certificate, risk-coverage curve and wrong answers by score."""

from __future__ import annotations

import functools
from pathlib import Path

from isounc.guard import figures
from isounc.guard.certificate import Certificate
from isounc.guard.guard import Guard
from isounc.guard.sample import Sample
from isounc.runs.figures import Plot, draw_plots
from isounc.runs.page import Section, Table, write_page


def write_report(guard: Guard, sample: Sample, out: Path, *, is_own: bool) -> Path:
    """Write `report.html`, which holds its figures, and what it is made from, into a folder.

    Parameters
    ----------
    guard
        The guard.
    sample
        Answers with their labels.
    out
        The folder; it is made.
    is_own
        Whether these are the answers that the guard was fitted to.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    certificate = guard.certificate
    of = "the calibration sample" if is_own else "other answers than the calibration sample"
    plots = [
        Plot(
            "risk_coverage", "curve",
            f"Risk against coverage on {of}: the share of wrong answers among the most certain ones. "
            "The band is a 95% interval at each coverage by itself.",
            functools.partial(figures.curve, sample, certificate),
        ),
        Plot(
            "by_score", "scores",
            f"Share of wrong answers by score on {of}, in ten parts of equal numbers of answers, with "
            "95% intervals.",
            functools.partial(figures.by_score, sample, certificate),
        ),
    ]  # fmt: skip
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = tuple(draw_plots(plots, folder))
    sections = [
        Section("promise", "The promise", tuple(str(certificate).split("\n")), (), ()),
        Section("curves", "Curves", (f"These are drawn from {of}.",), drawn, ()),
        Section("certificate", "Certificate", (), (), (certificate_table(certificate),)),
        Section("limits", "What it does not say", LIMITS, (), ()),
    ]
    return write_page(out, f"Guard on {certificate.score or 'a score'}", sections)


LIMITS = (
    "The promise is about further questions that are exchangeable with the calibration sample: drawn in "
    "the same way, in any order. Other questions, another model or another prompt void it.",
    "It holds with the stated confidence over calibration samples. Of the guards that people fit, a share "
    "of up to one minus the confidence breaks it, and nobody knows which.",
    "It is about the accepted answers taken together, not about each of them, and not about each kind of "
    "question; thresholds by group promise that.",
    "A score that says nothing about errors gives no threshold or hardly any accepted answers. That is the "
    "right outcome, and not a fault of the guard.",
)
"""Sentences that belong to every certificate."""


def certificate_table(certificate: Certificate) -> Table:
    """Tabulate all fields of a certificate."""
    rows = []
    for name, value in certificate.to_json().items():
        shown = getattr(certificate, name)
        if isinstance(value, dict) and name == "versions":
            shown = ", ".join(f"{k} {v}" for k, v in value.items())
        rows.append((name, "-" if shown in (None, "") else str(shown)))
    return Table("Fields", ("field", "value"), rows, "Shares are with exact 95% intervals.")
