"""Tables, figures and the report of `experiments/qa.py`, from the records of a run alone.

results.csv         every score by itself: AUROC for a wrong answer, AURC, PRR, with intervals
tests.csv           every score against the best baseline, and against P(True), corrected for their number
correlations.csv    Spearman between the scores of the headline
gains.csv           what the isotropic scores add to all baselines together
transfer.csv        fitted on all models but one, tested on that one (where there are several models)
answers.csv         every question with its answer and whether it is right
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isounc.llm.answers.entailment import Same
from isounc.llm.answers.scores import ScoreSettings, score_table
from isounc.runs.folder import RunFolder
from isounc.runs.page import Section, settings_table, write_page
from isounc.studies.qa import figures
from isounc.studies.qa.combination import (
    GAIN_COLUMNS,
    NORMALISATIONS,
    TRANSFER_COLUMNS,
    auroc_gain,
    transfer,
)
from isounc.studies.qa.evaluation import (
    CORRELATION_COLUMNS,
    EVALUATION_COLUMNS,
    TEST_COLUMNS,
    BootstrapSettings,
    Scores,
    correlations,
    evaluate,
    paired_tests,
)
from isounc.studies.qa.tables import (
    Part,
    accuracy_table,
    auroc_table,
    comparison_table,
    correlation_table,
    estimand_table,
    gain_table,
    interval,
    transfer_table,
)
from isounc.studies.qa.tasks import FORMS

WHERE = ("model", "benchmark")
ANSWER_COLUMNS = (
    *("model", "benchmark", "id", "question", "answer", "correct", "rule", "score"),
    *("num_prompt_tokens", "num_tokens"),
)


def headline_estimand(benchmark: str, main_estimand: str) -> str:
    """The estimand that a benchmark's headline is about; auto is choice where there are choices."""
    if main_estimand != "auto":
        return main_estimand
    return "length_normalised" if FORMS[benchmark] == "generated" else "choice"


def make(
    folder: RunFolder,
    names: Mapping[tuple[str, str], Sequence[str]],
    *,
    scores: ScoreSettings,
    bootstrap: BootstrapSettings,
    main_estimand: str = "auto",
    same: Same | None = None,
) -> str:
    """Write the tables, figures and report of a run; a summary for the terminal.

    Parameters
    ----------
    folder
        The run.
    names
        Records by model and benchmark.
    scores, bootstrap
        How they are scored and compared.
    main_estimand
        Estimand of the headline; auto is choice where a benchmark gives choices, else length_normalised.
    same
        Whether two answers mean the same (`isounc.llm.answers.entailment`), for semantic entropy by entailment.
    """
    parts = []
    for (model, benchmark), own in names.items():
        measured = [record.meta for record in map(folder.read, own) if record is not None]
        if not measured:
            continue
        estimand = headline_estimand(benchmark, main_estimand)
        table = score_table(measured, scores, same=same)
        parts.append(Part(model, benchmark, estimand, measured, table))
    tables = _tables(parts, bootstrap)
    for name, (rows, columns) in tables.items():
        folder.write_table(f"{name}.csv", rows, columns)
    rows = {name: found for name, (found, _) in tables.items()}
    with warnings.catch_warnings():
        # Few questions give intervals whose bars touch; that is what they show.
        warnings.simplefilter("ignore", UserWarning)
        drawn = figures.draw(folder.path / "figures", parts, rows["results"])
    write_page(folder.path, folder.path.resolve().name, _sections(folder, parts, rows, drawn))
    return _summary(parts, rows)


def _tables(parts: Sequence[Part], bootstrap: BootstrapSettings) -> dict[str, tuple[list, tuple]]:
    found: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("results", "tests", "correlations", "gains", "transfer", "answers")
    }
    for part in parts:
        found["results"] += [part.where | row for row in evaluate(part.scores, settings=bootstrap)]
        for against in (part.compared, "p_true"):
            if against and (against != "p_true" or "p_true" in part.scores.uncertainty):
                rows = paired_tests(part.scores, against, settings=bootstrap)
                found["tests"] += [part.where | row for row in rows]
        chosen = Scores(
            {name: part.scores.uncertainty[name] for name in part.headline},
            part.scores.wrong, part.scores.reasons,
        )  # fmt: skip
        found["correlations"] += [
            part.where | row for row in correlations(chosen, settings=bootstrap)
        ]
        own = [
            n
            for n in (f"epistemic/{part.estimand}", f"aleatoric/{part.estimand}")
            if n in part.headline
        ]
        if part.compared:
            for extra in ([name] for name in own):
                row = auroc_gain(
                    part.scores, baselines=part.compared, extra=extra, bootstrap=bootstrap
                )
                found["gains"].append(part.where | row)
        for one in part.measured:
            row = {name: one.get(name) for name in ANSWER_COLUMNS if name in one}
            row |= {"rule": one["judgement"]["rule"], "score": one["judgement"]["score"]}
            found["answers"].append(row | part.where)
    for benchmark in dict.fromkeys(part.benchmark for part in parts):
        same = [part for part in parts if part.benchmark == benchmark]
        if len(same) > 1:
            found["transfer"] += _transferred(benchmark, same, bootstrap)
    columns = {
        "results": (*WHERE, *EVALUATION_COLUMNS),
        "tests": (*WHERE, *TEST_COLUMNS),
        "correlations": (*WHERE, *CORRELATION_COLUMNS),
        "gains": (*WHERE, *GAIN_COLUMNS),
        "transfer": ("benchmark", *TRANSFER_COLUMNS),
        "answers": ANSWER_COLUMNS,
    }
    return {name: (rows, columns[name]) for name, rows in found.items()}


def _transferred(benchmark: str, same: Sequence[Part], bootstrap: BootstrapSettings) -> list[dict]:
    """With raw and layer-scaled norms, each raw and normalised within models."""
    by_model = {part.model: part.scores for part in same}
    estimand, rows = same[0].estimand, []
    for kind in ("epistemic", "epistemic_layer_scaled"):
        features = [f"{kind}/{estimand}", f"aleatoric/{estimand}"]
        columns = [scores.uncertainty.get(n) for scores in by_model.values() for n in features]
        if any(column is None for column in columns):
            continue
        infinite = any(np.isinf(column).any() for column in columns if column is not None)
        for normalise in NORMALISATIONS:
            if infinite and normalise != "rank":
                rows.append(
                    dict.fromkeys(TRANSFER_COLUMNS)
                    | {"benchmark": benchmark, "features": " ".join(features), "normalise": normalise}
                    | {"reason": "a score is infinite"}
                )  # fmt: skip
                continue
            found = transfer(by_model, features, normalise=normalise, bootstrap=bootstrap)
            rows += [{"benchmark": benchmark} | row for row in found]
    return rows


def _sections(folder: RunFolder, parts, rows, drawn) -> list[Section]:
    def of(kind: str):
        return tuple(figure for figure in drawn if figure.kind == kind)

    info = folder.read_info()
    return [
        Section(
            "summary", "Which uncertainty predicts a wrong answer?",
            (
                "AUROC of each score for the event that the answer is wrong. Estimands and rules were fixed before the "
                "first result (see the settings and experiments/qa.py).",
            ),
            of("auroc"), (auroc_table(parts, rows["results"]), accuracy_table(parts)),
        ),
        Section("tests", "Against the baselines", (), (),
                (comparison_table(parts, rows["tests"]), gain_table(rows["gains"]))),
        Section("curves", "ROC and risk-coverage", (), of("curves"), ()),
        Section("answers", "Scores of right and wrong answers", (), of("distributions"), ()),
        Section("estimands", "Which probability is meant decides the result", (), (),
                tuple(estimand_table(part, rows["results"]) for part in parts)),
        Section("correlations", "Between the scores", (), (),
                (correlation_table(parts, rows["correlations"]),)),
        *(
            [Section("transfer", "Fitted on all models but one", (), (), (transfer_table(rows["transfer"]),))]
            if rows["transfer"] else []
        ),
        Section("settings", "Settings and environment", (), (),
                (settings_table(folder.settings, "Settings"), settings_table(info, "Environment and questions"))),
    ]  # fmt: skip


def _summary(parts: Sequence[Part], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = []
    for part in parts:
        lines.append(
            f"{part.model}, {part.benchmark}: {len(part.measured)} questions, "
            f"{1 - part.scores.wrong.mean():.1%} right"
        )
        for row in rows["results"]:
            if {"model": row["model"], "benchmark": row["benchmark"]} != part.where:
                continue
            if row["score"] in part.headline:
                more = f"  ({row['reason']})" if row["reason"] else ""
                lines.append(f"  {row['score']:<34} AUROC {interval(row, 'auroc')}{more}")
    return "\n".join(lines)
