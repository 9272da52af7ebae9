"""The report of a run of the world study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from isounc.runs import files
from isounc.runs.figures import Plot
from isounc.runs.folder import Record, RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run, rows_of_table
from isounc.runs.words import cells_run, interval, short
from isounc.statistics import Interval
from isounc.studies.world import figures
from isounc.studies.world.admission import admissions, sentence, without_dropped
from isounc.studies.world.cascade import (
    CASCADE_COLUMNS,
    CASCADE_ROW,
    cascade_table,
    cascades,
)
from isounc.studies.world.cell import CONDITIONS, UNKNOWN
from isounc.studies.world.local import SHARE
from isounc.studies.world.reading import CHAIN_WORDS, Tables, fewer_worlds, reading
from isounc.studies.world.references import LOCAL
from isounc.studies.world.scores import SCORES
from isounc.studies.world.settings import DEPTH, Cell, Settings, batches
from isounc.studies.world.tables import (
    ALL,
    MATCHED_COLUMNS,
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Results,
    Rows,
    Size,
    What,
    matched,
    summarise,
    verdicts,
)
from isounc.studies.world.transfer import (
    TRANSFER_COLUMNS,
    TRANSFER_ROW,
    transfer,
    transfer_table,
)
from isounc.studies.world.verdicts import HYPOTHESES

_REFERENCES = {
    "trace": "Σ_c Var p_c",
    "mi": "mutual information",
    "var_p": "Var p",
    "bootstrap": "Σ_c Var p_c, bootstrap",
    "local": "Σ_c Var p_c, around θ*",
    "local_var_p": "Var p, around θ*",
    "hmc": "Σ_c Var p_c, HMC",
    "hmc_var_p": "Var p, HMC",
}
"""References with their labels."""
_BARS = "Bars are 95% intervals over worlds."


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the world study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`; the sign plot needs the records.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows = rows_of_run(folder, ROW)
    everything = Results(rows)
    decided = admissions(everything)
    results, at_match, why_none = Results(without_dropped(rows, decided)), [], ""
    try:
        at_match = matched(results, settings.match)
    except ValueError as error:
        why_none = str(error)
    tables = Tables(results, verdicts(results, at_match), at_match, why_none, settings.match)
    cells = {(row["world"], row["width"], row["depth"], row["epochs"]) for row in rows}
    transferred = _between_sizes(folder, results, "transfer.csv", transfer, TRANSFER_ROW)
    passed_on = _between_sizes(folder, results, "cascade.csv", cascades, CASCADE_ROW)
    between = [
        *([transfer_table(transferred)] if transferred else []),
        *([cascade_table(passed_on)] if passed_on else []),
    ]
    state = cells_run(len(cells), batches(settings))
    said = reading(tables)
    if decided:
        said.insert(1, sentence(decided, len(everything.worlds)))
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "summary.csv": TableFile(SUMMARY_COLUMNS, summarise(results)),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, tables.verdicts),
            "matched.csv": TableFile(MATCHED_COLUMNS, at_match),
            **({"transfer.csv": TableFile(TRANSFER_COLUMNS, transferred)} if transferred else {}),
            **({"cascade.csv": TableFile(CASCADE_COLUMNS, passed_on)} if passed_on else {}),
        },
        plots=_plots(folder, tables),
        sections=functools.partial(_sections, tables, between, state),
        text=state,
        checks={
            "verdicts": {
                f"{row['hypothesis']}, {row['score']} {row['rival']}, {row['condition']} "
                f"{row['part']}": row["verdict"]
                for row in tables.verdicts
                if row["size"] == ALL
            }
        },
        reading=said,
        reading_tables=(
            auroc_table(results),
            *([table] if (table := assessment_table(results)).rows else []),
            *(correspondence_table(results, i) for i in range(len(results.longest))),
            *between,
            verdict_table(tables),
        ),
    )


def _between_sizes(
    folder: RunFolder,
    results: Results,
    name: str,
    make: Callable[[Iterable[Record], int], Rows],
    fields: Mapping[str, Any],
) -> Rows:
    """Rows of a table about several widths of a world: from the records, or as they were published."""
    if not results.epochs:
        return []
    rows = make(folder.records(), results.epochs[-1])
    if not rows and files.table_path(folder.path, name):
        rows = rows_of_table(folder.read_table(name), fields, f"{name} of {folder.path}")
    return rows


def _plots(folder: RunFolder, tables: Tables) -> list[Plot]:
    results = tables.results
    plots = [
        Plot(
            "accuracy", "accuracy",
            "AUROC for a wrong answer by condition against accuracy, means over worlds of every size "
            "and training length; larger marks are wider decoders. No score exceeds the oracle in the "
            "long run.",
            functools.partial(figures.against_accuracy, results),
        ),
        Plot(
            "size", "size",
            "Rank correlation with the spread of the other members against width, at equal accuracy "
            f"and after the longest training. {_BARS}",
            functools.partial(figures.by_size, results, tables.at_match, tables.match),
        ),
        Plot(
            "assessment", "assessment",
            "Self-assessment by training length: P(True) asked about the true answer and a random "
            "false one of questions that were told and have no sentences about it, right replies to "
            f"the sentences trained on, and P(True) of the decoders' own answers. {_BARS}",
            functools.partial(figures.self_assessment, results),
        ),
        Plot(
            "temperature", "temperature",
            f"AUROC of the same answers when a temperature divides their logits. {_BARS}",
            functools.partial(figures.by_temperature, results),
        ),
    ]  # fmt: skip
    for size in results.longest[::-1]:
        layers = f"-depth{size.depth}" if size.depth != DEPTH else ""
        plots.append(
            Plot(
                f"sign-width{size.width}{layers}", "sign",
                f"Norms against p for right and wrong answers of the first judged decoder of "
                f"{size.label}, by training length: ‖∇p‖² must fall towards p = 0 and p = 1.",
                functools.partial(_sign, folder, size, results),
            )
        )  # fmt: skip
    return plots


def _sign(folder: RunFolder, size: Size, results: Results) -> Figure:
    cells = [Cell(results.worlds[0], *size[:2], epochs) for epochs in results.epochs]
    chosen = cells if len(cells) <= 3 else [cells[0], cells[len(cells) // 2], cells[-1]]
    return figures.sign([r for r in map(folder.read, (c.name for c in chosen)) if r is not None])


def _sections(
    tables: Tables, between: Sequence[Table], state: str, drawn: Sequence[FigureFile]
) -> list[Section]:  # fmt: skip
    def of(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind and figure.paths)

    results = tables.results
    sizes = results.longest
    return [
        Section(
            "summary", "Wrong answers by condition", (state,), of("accuracy"),
            (score_table(results), auroc_table(results)),
        ),
        Section("verdicts", "Verdicts", (), (), (verdict_table(tables),)),
        Section("assessment", "Self-assessment", (), of("assessment"), (assessment_table(results),)),
        Section("sign", "Sign and temperature", (), of("sign") + of("temperature"), ()),
        Section(
            "correspondence", "Correspondence with the ensemble", (), of("size"),
            tuple(correspondence_table(results, i) for i in range(len(sizes))),
        ),
        *(
            [Section("transfer", "Transfer and cascades between sizes", (), (), tuple(between))]
            if between else []
        ),
    ]  # fmt: skip


def score_table(results: Results) -> Table:
    """Tabulate what the scores are."""
    lines = [
        (SCORES[name].label, SCORES[name].equation, SCORES[name].sign) for name in results.scores
    ]
    return Table(
        "Scores", ("score", "equation", "sign by theory"), lines,
        "Each is to be higher where the answer is wrong, and is never turned round.",
    )  # fmt: skip


def auroc_table(results: Results) -> Table:
    """Tabulate AUROC by condition, mean over the widths at the longest training."""
    over = functools.partial(results.over_widths, results.epochs[-1])
    spelled = functools.partial(_spelled, results)
    # That of a rule may have been dropped for some of the widths.
    names = [name for name in results.conditions if over(What(name), "num_questions").num_seeds]
    lines = [
        ("oracle, closed form", *(spelled(over(What(name), "oracle")) for name in names)),
        ("accuracy", *(spelled(over(What(name), "accuracy")) for name in names)),
        ("share below p = ½", *(spelled(over(What(name), "share_below")) for name in names)),
    ]
    for score in results.scores:
        cells = (
            # Of another task than to tell wrong answers it is no oracle.
            "-" if (score, name) == ("oracle", UNKNOWN)
            else spelled(over(What(name, score=score), "auroc"))
            for name in names
        )  # fmt: skip
        lines.append((SCORES[score].label, *cells))
    return Table(
        "AUROC for a wrong answer", ("score", *(CONDITIONS[name] for name in names)), lines,
        f"Mean of the widths after {results.epochs[-1]} epochs, with 95% intervals over worlds; an AUROC "
        "needs ten wrong and ten right answers, and a cell says where fewer worlds have one. In the last "
        "column the task is to tell what was never told from what is told in conflict.",
    )  # fmt: skip


_ASSESSMENT = {
    "of true and false answers": ("told", "asked_auroc", "p_true"),
    "right": ("told", "asked_accuracy", "p_true"),
    "right, sentences trained on": ("told", "taught_accuracy", "p_true"),
    "of its own answers": ("all", "auroc", "p_true"),
    "of its own answers, recall": ("recall", "auroc", "p_true"),
    "−log p, recall": ("recall", "auroc", "log_p"),
}
"""Columns of the table of self-assessment: condition, number and score."""


def assessment_table(results: Results) -> Table:
    """Tabulate what decoders reply about answers, by size; no lines where they were not asked."""
    lines = [
        (
            size.label,
            *(
                _spelled(results, results.over(size, What(condition, score=score), column))
                for condition, column, score in _ASSESSMENT.values()
            ),
        )
        for size in results.longest
        if results.values(size, What("told", score="p_true"), "asked_auroc")
    ]
    return Table(
        "Self-assessment", ("size", *_ASSESSMENT), lines,
        f"P(True) after {results.epochs[-1]} epochs, with 95% intervals over worlds: the AUROC with "
        "which it tells the true answer of a question from a random false one, and the share of right "
        "replies (P(True) on the right side of one half), where the question was told and has no "
        "sentences of self-assessment; the share of right replies to the sentences of the training; "
        "and the AUROC of 1 − P(True), beside that of −log p, for a wrong answer of the decoder's own.",
    )  # fmt: skip


def verdict_table(tables: Tables) -> Table:
    """Tabulate the verdicts over the widths."""
    lines = [
        (
            row["hypothesis"], SCORES[row["score"]].label,
            SCORES[row["rival"]].label if row["rival"] else "-", CONDITIONS[row["condition"]],
            row["part"], row["verdict"], interval(row), f"{row['bound']:g}", str(row["num_worlds"]),
        )
        for row in tables.verdicts
        if row["size"] == ALL
    ]  # fmt: skip
    claims = "; ".join(f"{name}: {hypothesis.claim}" for name, hypothesis in HYPOTHESES.items())
    return Table(
        "Verdicts, mean of the widths",
        (
            "hypothesis", "score", "less", "condition", "part", "verdict", "number", "bound",
            "worlds",
        ),
        lines,
        f"{claims[0].upper()}{claims[1:]}.",
    )  # fmt: skip


def correspondence_table(results: Results, i: int) -> Table:
    """Tabulate rank correlations with the references for a size."""
    size = results.longest[i]
    names = [n for n in _REFERENCES if _has(results, f"r_{n}", i)]
    lines = [
        (
            "reliability",
            *(
                text
                for name in names
                for text in (
                    "-" if name in ("bootstrap", *LOCAL)
                    else _spelled(results, results.over(size, What(), f"reliability_{name}")),
                    "-",
                )
            ),
        )
    ]  # fmt: skip
    for score in results.scores:
        cells = (
            _spelled(results, results.over(size, What(score=score), f"{kind}_{name}"))
            for name in names
            for kind in ("r", "partial")
        )
        lines.append((SCORES[score].label, *cells))
    headings = [h for name in names for h in (_REFERENCES[name], "given p(1−p)")]
    note = "All judged questions, with 95% intervals over worlds."
    for name, words in CHAIN_WORDS.items():
        passed, rhat, ess = (
            results.over(size, What(), f"{name}_{check}").mean
            for check in ("passed", "rhat", "ess")
        )
        if passed is not None and ess is not None:
            r = "infinite" if rhat is None else f"{rhat:.2f}"
            note += (
                f" Of the references by {words} {passed:.0%} converged (mean R-hat {r}, which "
                f"{SHARE:.0%} of the questions do not exceed, and {ess:.0f} effective draws, which "
                f"{SHARE:.0%} of them reach)."
            )
    return Table(
        f"Rank correlations, {size.label}", ("score", *headings), lines, note,
    )  # fmt: skip


def _has(results: Results, column: str, i: int) -> bool:
    return bool(results.values(results.longest[i], What(), column))


def _spelled(results: Results, found: Interval) -> str:
    """A mean with its interval, and the number of worlds in it where that is not all."""
    if found.mean is None:
        return "-"
    ends = "" if found.low is None else f" [{short(found.low)}, {short(found.high)}]"
    return f"{short(found.mean)}{ends}{fewer_worlds(results, found.num_seeds)}"
