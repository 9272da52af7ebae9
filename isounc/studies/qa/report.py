"""Tables, figures and the report on a run of question answering, from its records alone.

results.csv         every score by itself: AUROC for a wrong answer, AURC, PRR, with intervals
summary.csv         the same of the scores of the headline
tests.csv           every score against the best baseline, and against P(True), corrected for their
                    number
correlations.csv    Spearman between the scores of the headline
gains.csv           what the isotropic scores add to all baselines together
halves.csv          the isotropic scores of the headline apart for answers of p below 1/2 and others,
                    where the signs of some flip
transfer.csv        fitted on all models but one, tested on that one (if there are several models)
answers.csv         every question with its answer and whether it is right
routing*.csv        if there is a second answerer: `isounc.studies.qa.routing.tables`
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isounc.llm.answers.answer import MeasuredAnswer, from_record
from isounc.llm.answers.entailment import load_entailment
from isounc.llm.answers.score_table import score_answers
from isounc.llm.answers.scores import Score
from isounc.runs import files
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.studies.qa import figures
from isounc.studies.qa.cell import ORDER
from isounc.studies.qa.evaluation import (
    CORRELATION_COLUMNS,
    EVALUATION_COLUMNS,
    TEST_COLUMNS,
    BootstrapSettings,
    correlations,
    evaluate_scores,
    paired_tests,
)
from isounc.studies.qa.gains import GAIN_COLUMNS, auroc_gain
from isounc.studies.qa.routing import report as routing_report
from isounc.studies.qa.routing import tables as routing_tables
from isounc.studies.qa.routing.results import Pair, make_pair
from isounc.studies.qa.routing.second import second_name
from isounc.studies.qa.scored_answers import ScoredAnswers
from isounc.studies.qa.settings import Settings, headline_estimand
from isounc.studies.qa.tables import (
    accuracy_table,
    auroc_table,
    comparison_table,
    correlation_table,
    estimand_table,
    gain_table,
    half_table,
    interval,
    sign_table,
    transfer_table,
)
from isounc.studies.qa.tasks import record_name
from isounc.studies.qa.transfer import NORMALISATIONS, TRANSFER_COLUMNS, transfer

KEY = ("model", "benchmark")
"""Columns that say whose answers a row is about."""
ANSWER_COLUMNS = (
    *("model", "benchmark", "id", "question", "answer", "correct", "rule", "score"),
    *("num_prompt_tokens", "num_tokens"),
)
"""Columns of answers.csv."""
COLUMNS = {
    "results": (*KEY, *EVALUATION_COLUMNS),
    "summary": (*KEY, *EVALUATION_COLUMNS),
    "tests": (*KEY, *TEST_COLUMNS),
    "correlations": (*KEY, *CORRELATION_COLUMNS),
    "gains": (*KEY, *GAIN_COLUMNS),
    "halves": (*KEY, "estimand", "half", "share", *EVALUATION_COLUMNS),
    "transfer": ("benchmark", *TRANSFER_COLUMNS),
    "answers": ANSWER_COLUMNS,
}
"""Columns of each table, by the name of its file."""

Rows = list[dict[str, Any]]
"""Rows of a table."""


def make_report(folder: RunFolder, settings: Settings, *, more: Iterable[Score] = ()) -> Report:
    """Tables, figures and sections of a run of the question-answering study.

    They cover every model and benchmark of the run, in the order in which questions were asked.

    Parameters
    ----------
    more
        Scores of your own.
    """
    same = load_entailment(settings.nli) if settings.nli else None
    info, more_scores, scored = folder.read_info(), tuple(more), []
    if is_published(folder):
        return _of_tables(folder)
    for model in info.get("models", {}):
        for benchmark in info.get("questions", {}):
            ids = folder.require(f"{ORDER}{benchmark}").meta["ids"]
            names = [record_name(model, question) for question in ids]
            records = [record for record in map(folder.read, names) if record is not None]
            if records:
                answers = [from_record(record.meta) for record in records]
                estimand = headline_estimand(benchmark, settings.main_estimand)
                table = score_answers(answers, settings.scores, same=same, more=more_scores)
                scored.append(ScoredAnswers(model, benchmark, estimand, answers, table))
    rows = make_tables(scored, settings.bootstrap)
    tables = {f"{name}.csv": TableFile(COLUMNS[name], rows[name]) for name in COLUMNS}
    plots = figures.plots(scored, rows["results"])
    sections, text = functools.partial(_sections, scored, rows), _summary(scored, rows["results"])
    checks: dict[str, Any] = {"questions": sum(len(answers.answers) for answers in scored)}
    pairs = [pair for answers in scored for pair in _pairs(folder, answers, settings.routing.clock)]
    if not pairs:
        return Report(tables, plots, sections, text, checks)
    passed_on = routing_tables.make_tables(pairs, settings.routing, seed=settings.bootstrap.seed)
    columns = routing_tables.COLUMNS
    said, shown = routing_report.reading(passed_on), routing_report.page_tables(passed_on)
    verdicts = passed_on["routing_verdicts"]
    return Report(
        tables=tables | {f"{n}.csv": TableFile(columns[n], passed_on[n]) for n in columns},
        plots=[*plots, *routing_report.plots(passed_on)],
        sections=lambda drawn: [*sections(drawn), _passing_on(said, shown, drawn)],
        text=text,
        checks=checks | {f"{r['hypothesis']}, {r['score']}": r["verdict"] for r in verdicts},
        reading=said,
        reading_tables=shown,
    )


def is_published(folder: RunFolder) -> bool:
    """Whether a run has tables and no records: they stayed behind."""
    return not folder.names() and files.table_path(folder.path, "results.csv") is not None


def _of_tables(folder: RunFolder) -> Report:
    """The report of a published run: its tables as they are, and what they say about passing on."""
    columns = {**COLUMNS, **routing_tables.COLUMNS}
    there = [name for name in columns if files.table_path(folder.path, f"{name}.csv")]
    rows: dict[str, Rows] = {}
    for name in there:
        table = folder.read_table(f"{name}.csv")
        cells = table.astype(object).where(table.notna(), None).to_dict("records")
        rows[name] = [{column: row.get(column) for column in columns[name]} for row in cells]
    said: list[str] = []
    shown: list[Table] = []
    if rows.keys() >= routing_tables.COLUMNS.keys():
        for row in rows["routing_verdicts"]:
            row["score"] = row["score"] or ""
        said, shown = routing_report.reading(rows), routing_report.page_tables(rows)
    return Report(
        tables={f"{name}.csv": TableFile(columns[name], rows[name]) for name in there}, plots=[],
        sections=lambda drawn: [_passing_on(said, shown, drawn)] if said else [],
        text="\n".join(said), checks=folder.read_info().get("checks", {}), reading=said,
        reading_tables=shown,
    )  # fmt: skip


def _pairs(folder: RunFolder, answers: ScoredAnswers, clock: str) -> list[Pair]:
    """The first answerer with each second one that was asked the same questions."""
    pairs = []
    for second in folder.read_info().get("second", {}):
        names = [second_name(second, answers.model, answer.id) for answer in answers.answers]
        pair = make_pair(answers, second, [folder.read(name) for name in names], clock=clock)
        pairs += [] if pair is None else [pair]
    return pairs


def _passing_on(
    said: Sequence[str], shown: Sequence[Table], drawn: Sequence[FigureFile]
) -> Section:
    figures_of = tuple(figure for figure in drawn if figure.kind == "routing")
    title = "When should a second answerer be asked?"
    return Section("routing", title, tuple(said), figures_of, tuple(shown))


def make_tables(scored: Sequence[ScoredAnswers], bootstrap: BootstrapSettings) -> dict[str, Rows]:
    """Rows of every table in `COLUMNS`."""
    tables: dict[str, Rows] = {name: [] for name in COLUMNS}
    for answers in scored:
        table, key = answers.table, answers.key
        headline = table.only(answers.headline)
        rows = {
            "results": evaluate_scores(table, settings=bootstrap),
            "tests": _tests(answers, bootstrap),
            "correlations": correlations(headline, settings=bootstrap),
            "gains": _gains(answers, bootstrap),
            "halves": _halves(answers, bootstrap),
            "answers": [_answer_row(answer) for answer in answers.answers],
        }
        rows["summary"] = [row for row in rows["results"] if row["score"] in answers.headline]
        for name, new in rows.items():
            tables[name] += [key | row for row in new]
    for benchmark in dict.fromkeys(answers.benchmark for answers in scored):
        of_benchmark = [answers for answers in scored if answers.benchmark == benchmark]
        if len(of_benchmark) > 1:
            rows = _transfer(of_benchmark, bootstrap)
            tables["transfer"] += [{"benchmark": benchmark} | row for row in rows]
    return tables


def _tests(answers: ScoredAnswers, bootstrap: BootstrapSettings) -> Rows:
    """Every score against the best of all baselines, and against P(True)."""
    rows = []
    if answers.compared:
        rows += paired_tests(answers.table, answers.compared, settings=bootstrap)
    if (p_true := answers.table.find("p_true")) is not None:
        rows += paired_tests(answers.table, p_true, settings=bootstrap)
    return rows


def _gains(answers: ScoredAnswers, bootstrap: BootstrapSettings) -> Rows:
    if not answers.compared:
        return []
    names = [answers.table.find(f, answers.estimand) for f in ("epistemic", "aleatoric")]
    return [
        auroc_gain(answers.table, baselines=answers.compared, extra=[name], bootstrap=bootstrap)
        for name in names
        if name is not None
    ]


def _halves(answers: ScoredAnswers, bootstrap: BootstrapSettings) -> Rows:
    """Isotropic scores of the headline at answers of p below 1/2, and at others."""
    table = answers.table
    names = [name for name in answers.headline if not table.scores[name].is_baseline]
    if not names:
        return []
    rows = []
    defined = ~np.isnan(answers.log_odds)
    for half, chosen in (("p < 1/2", answers.log_odds < 0), ("p >= 1/2", answers.log_odds >= 0)):
        if not chosen.any():
            continue
        share = float(chosen[defined].mean())
        about = {"estimand": answers.estimand, "half": half, "share": share}
        evaluated = evaluate_scores(table.only(names).at(chosen), settings=bootstrap)
        rows += [about | row for row in evaluated]
    return rows


def _answer_row(answer: MeasuredAnswer) -> dict[str, Any]:
    judgement = answer.judgement
    return {
        "id": answer.id,
        "question": answer.question,
        "answer": answer.text,
        "correct": answer.correct,
        "rule": None if judgement is None else judgement.rule,
        "score": None if judgement is None else judgement.score,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_tokens": answer.num_tokens,
    }


def _transfer(scored: Sequence[ScoredAnswers], bootstrap: BootstrapSettings) -> Rows:
    """With raw and layer-scaled norms, each raw and normalised within models."""
    by_model = {answers.model: answers.table for answers in scored}
    estimand, rows = scored[0].estimand, []
    for family in ("epistemic", "epistemic_layer_scaled"):
        names = [scored[0].table.find(f, estimand) for f in (family, "aleatoric")]
        features = [name for name in names if name is not None]
        tables = list(by_model.values())
        if None in names or any(n not in t.uncertainty for t in tables for n in features):
            continue
        infinite = any(np.isinf(t.uncertainty[n]).any() for t in tables for n in features)
        for normalise in NORMALISATIONS:
            if infinite and normalise != "rank":
                row: dict[str, Any] = dict.fromkeys(TRANSFER_COLUMNS)
                row |= {"features": " ".join(features), "normalise": normalise}
                rows.append(row | {"reason": "a score is infinite"})
            else:
                rows += transfer(by_model, features, normalise=normalise, bootstrap=bootstrap)
    return rows


def _sections(
    scored: Sequence[ScoredAnswers],
    tables: Mapping[str, Rows],
    drawn: Sequence[FigureFile],
) -> list[Section]:
    def of_kind(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind)

    return [
        Section(
            "summary", "Which uncertainty predicts a wrong answer?",
            (
                "AUROC of each score for the event that the answer is wrong. Estimands and rules "
                "were fixed before the first result (see `isounc qa --help` and the settings).",
            ),
            of_kind("auroc"), (auroc_table(scored, tables["results"]), accuracy_table(scored)),
        ),
        Section("signs", "Which way a score points", (), (),
                (sign_table(scored), half_table(tables["halves"]))),
        Section("tests", "Against the baselines", (), (),
                (comparison_table(scored, tables["tests"]), gain_table(tables["gains"]))),
        Section("curves", "ROC and risk-coverage", (), of_kind("curves"), ()),
        Section("answers", "Scores of right and wrong answers", (), of_kind("distributions"), ()),
        Section("estimands", "Which probability is meant decides the result", (), (),
                tuple(estimand_table(answers, tables["results"]) for answers in scored)),
        Section("correlations", "Between the scores", (), (),
                (correlation_table(scored, tables["correlations"]),)),
        *(
            [Section("transfer", "Fitted on all models but one", (), (),
                     (transfer_table(tables["transfer"]),))]
            if tables["transfer"] else []
        ),
    ]  # fmt: skip


def _summary(scored: Sequence[ScoredAnswers], results: Rows) -> str:
    lines = []
    for answers in scored:
        right = 1 - answers.table.wrong.mean()
        lines.append(f"{answers.title}: {len(answers.answers)} questions, {right:.1%} right")
        for row in answers.rows_of(results):
            if row["score"] in answers.headline:
                why = f"  ({row['reason']})" if row["reason"] else ""
                lines.append(f"  {row['score']:<34} AUROC {interval(row, 'auroc')}{why}")
    return "\n".join(lines)
