"""The report of a run of the shift study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from matplotlib.figure import Figure

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run
from isounc.runs.words import cells_run, interval, short
from isounc.studies.shift import figures
from isounc.studies.shift.cell import IN_DISTRIBUTION
from isounc.studies.shift.networks import NETWORKS
from isounc.studies.shift.reading import Tables, reading
from isounc.studies.shift.scores import SCORES
from isounc.studies.shift.settings import ALL, BASE, Cell, Settings, batches
from isounc.studies.shift.shifts import KINDS, SHIFTS
from isounc.studies.shift.tables import (
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Place,
    Results,
    Row,
    Rows,
    failing,
    summarise,
    verdicts,
)
from isounc.studies.shift.verdicts import HYPOTHESES

_BARS = "Bars are 95% intervals over seeds; hollow means that there is none."


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the shift study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`; distributions need the records.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows = rows_of_run(folder, ROW)
    results = Results(rows)
    tables = Tables(results, rows, summarise(results), verdicts(results))
    failures, state = failing(rows), _state(rows, settings)
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "summary.csv": TableFile(SUMMARY_COLUMNS, tables.summary),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, tables.verdicts),
        },
        plots=_plots(folder, results, sorted({row["seed"] for row in rows})),
        sections=functools.partial(_sections, tables, state, failures),
        text=state,
        checks={
            "verdicts": {
                f"{row['hypothesis']}, {row['network']}, {row['score']} {row['rival']}, "
                f"{row['shift']}": row["verdict"]
                for row in tables.verdicts
                if row["problem"] == ALL and row["score"] == BASE
            },
            "failing": failures,
        },
        reading=reading(tables),
    )


def _state(rows: Sequence[Row], settings: Settings) -> str:
    """Say whether the run has all its cells."""
    done = {(row["problem"], row["network"], row["seed"]) for row in rows}
    return cells_run(len(done), batches(settings))


def _plots(folder: RunFolder, results: Results, seeds: Sequence[int]) -> list[Plot]:
    plots = [
        Plot(
            "scores", "scores",
            f"AUROC of every score at its stated sign, mean over the problems. {_BARS}",
            functools.partial(figures.by_score, results),
        ),
        Plot(
            "differences", "differences",
            f"AUROC of ‖∇p‖² less that of every other score, paired by seed. {_BARS}",
            functools.partial(figures.differences, results),
        ),
        Plot(
            "rates", "rates",
            f"False alarms of thresholds, with their exact expectation. {_BARS}",
            functools.partial(figures.rates, results),
        ),
    ]  # fmt: skip
    for problem in results.problems:
        plots.append(
            Plot(
                f"shifts-{problem}", "shifts",
                f"AUROC of every score on {problem}, by shift. {_BARS}",
                functools.partial(figures.by_shift, results, problem),
            )
        )  # fmt: skip
        for network in results.networks_of(problem):
            plots.append(
                Plot(
                    f"distributions-{problem}-{network}", "distributions",
                    f"Distributions of norms and other scores on {problem}, {NETWORKS[network]}, in "
                    "and out of distribution, the inputs of all seeds together; faint where the "
                    "reference fails its gate for every seed.",
                    functools.partial(_distributions, folder, problem, network, seeds),
                )
            )  # fmt: skip
    return plots


def _distributions(folder: RunFolder, problem: str, network: str, seeds: Sequence[int]) -> Figure:
    cells = (Cell(problem, network, seed).name for seed in seeds)
    return figures.distributions([r for r in map(folder.read, cells) if r is not None])


def _sections(
    tables: Tables, state: str, failures: Rows, drawn: Sequence[FigureFile]
) -> list[Section]:
    def of(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind and figure.paths)

    return [
        Section(
            "summary",
            "Scores over the problems",
            (state,),
            of("scores") + of("differences"),
            (score_table(tables), *(kind_table(tables, kind) for kind in KINDS)),
        ),
        Section("verdicts", "Verdicts", (), (), (verdict_table(tables),)),
        Section("shifts", "Problem by problem", (), of("shifts"), (place_table(tables),)),
        Section("distributions", "Distributions", (), of("distributions"), ()),
        Section("rates", "False alarms", (), of("rates"), (rate_table(tables),)),
        Section("failing", "Failed checks", (), (), (_failing_table(failures),)),
    ]


def score_table(tables: Tables) -> Table:
    """Tabulate what the scores are."""
    lines = [
        (name, score.label, score.higher, score.equation, score.source)
        for name, score in SCORES.items()
        if name in tables.results.scores
    ]
    return Table(
        "Scores", ("score", "called", "higher means", "equation", "source, and what was fixed"),
        lines, "p of the predicted class k, features h, read-out V and b, u = 1/C.",
    )  # fmt: skip


def kind_table(tables: Tables, kind: str) -> Table:
    """Tabulate AUROC, AUPR and FPR at 95% over the problems for a kind of shift."""
    lines = []
    for network in tables.results.networks:
        place = Place(ALL, network, kind)
        for score in tables.results.scores:
            line = tables.line(place, score)
            if line.get("auroc_mean") is None:
                continue
            rows = tables.found(
                "isotropic wins", problem=ALL, network=network, shift=kind, rival=score
            )
            said = f"{rows[0]['verdict']} {interval(rows[0])}" if rows else "-"
            lines.append((
                network, SCORES[score].label, SCORES[score].higher,
                *(_number(line, name) for name in ("auroc", "aupr", "fpr95")),
                said, str(line["num_seeds"]),
            ))  # fmt: skip
    return Table(
        f"Shifts of the kind {kind}",
        (
            "network", "score", "higher means", "AUROC", "AUPR", "FPR at 95%",
            "isotropic less it", "cells",
        ),
        lines,
        "Means over the problems with 95% intervals over seeds. Out of distribution is positive for "
        "AUPR; the FPR is the share of shifted inputs that pass where 95% of the others do.",
    )  # fmt: skip


def verdict_table(tables: Tables) -> Table:
    """Tabulate the verdicts over the problems on the isotropic estimate and other norms."""
    lines = [
        (
            row["hypothesis"], row["network"], SCORES[row["score"]].label,
            SCORES[row["rival"]].label if row["rival"] else "-", row["shift"], row["verdict"],
            _spelled(row), str(row["num_problems"]), str(row["num_seeds"]),
        )
        for row in tables.verdicts
        if row["problem"] == ALL and row["hypothesis"] != "isotropic wins"
    ]  # fmt: skip
    claims = "; ".join(f"{name}: {hypothesis.claim}" for name, hypothesis in HYPOTHESES.items())
    return Table(
        "Verdicts over the problems",
        (
            "hypothesis", "network", "score", "less", "shift", "verdict", "number", "problems",
            "cells",
        ),
        lines,
        f"Numbers with 95% intervals over seeds. {claims[0].upper()}{claims[1:]}.",
    )  # fmt: skip


def place_table(tables: Tables) -> Table:
    """Tabulate the AUROC of every score by problem, network and shift."""
    results, lines, places = tables.results, [], []
    for problem in results.problems:
        for network in results.networks_of(problem):
            places += [
                Place(problem, network, shift) for shift in results.shifts_of(problem, network)
            ]
    for score in results.scores:
        found = [tables.mean(place, score, "auroc") for place in places]
        means = ["-" if value is None else short(value) for value in found]
        lines.append((SCORES[score].label, SCORES[score].higher, *means))
    headings = [f"{place.problem} {place.network}, {SHIFTS[place.shift].label}" for place in places]
    return Table("AUROC", ("score", "higher means", *headings), lines, "Means over seeds.")


def rate_table(tables: Tables) -> Table:
    """Tabulate rates of false alarms and of alarms on shifted inputs."""
    lines = []
    for network in tables.results.networks:
        for score in tables.results.scores:
            line = tables.line(Place(ALL, network, IN_DISTRIBUTION), score)
            if line.get("alarms_mean") is None:
                continue
            caught = [
                _number(tables.line(Place(ALL, network, kind), score), "alarms") for kind in KINDS
            ]
            lines.append((
                network, SCORES[score].label, f"{line['expected_mean']:.3f}",
                _number(line, "alarms"), _number(line, "alarms_train"), *caught,
            ))  # fmt: skip
    return Table(
        "Alarms",
        (
            "network", "score", "expected", "false alarms", "false alarms, training inputs",
            "near caught", "far caught",
        ),
        lines,
        "Thresholds of new inputs of the distribution, unless said; means over the problems.",
    )  # fmt: skip


def _spelled(row: Row) -> str:
    if row["statistic"] == "auroc" and not row["rival"]:
        ends = f" [{short(row['low'])}, {short(row['high'])}]" if row["low"] is not None else ""
        return f"{short(row['mean'])}{ends}"
    return interval(row)


def _number(line: Row, name: str) -> str:
    mean, low, high = (line.get(f"{name}_{part}") for part in ("mean", "low", "high"))
    if mean is None:
        return "-"
    return short(mean) if low is None else f"{short(mean)} [{short(low)}, {short(high)}]"


def _failing_table(failures: Rows) -> Table:
    names = ("problem", "network", "seed", "score", "shift", "reasons")
    lines = [tuple(str(row[name]) for name in names) for row in failures]
    return Table("Failed checks", names, lines, "")
