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
from typing import Any, NamedTuple

import numpy as np

from isounc.llm import qa_figures
from isounc.llm.asking import FORMS
from isounc.llm.combination import (
    GAIN_COLUMNS,
    NORMALISATIONS,
    TRANSFER_COLUMNS,
    auroc_gain,
    transfer,
)
from isounc.llm.entailment import Same
from isounc.llm.evaluation import (
    CORRELATION_COLUMNS,
    EVALUATION_COLUMNS,
    TEST_COLUMNS,
    BootstrapSettings,
    Scores,
    correlations,
    evaluate,
    paired_tests,
)
from isounc.llm.measure import Measured
from isounc.llm.scores import ScoreSettings, baselines, same_words, score_table
from isounc.page import Section, write_page
from isounc.paper import TABLE2
from isounc.records import RunFolder
from isounc.tables import Table, settings_table

KINDS = ("aleatoric", "epistemic", "total_sum", "link_aware", "link_aware_total")
"""Isotropic scores of the headline, for its estimand."""
BASELINES = tuple(score.name for score in baselines(same_words))
MOST_UNDEFINED = 0.05
"""A baseline that is undefined at a larger share of the questions is in the tables, but not among those of which the
best is taken: a test uses the questions where all of them are defined."""
WHERE = ("model", "benchmark")
ANSWER_COLUMNS = (
    *("model", "benchmark", "id", "question", "answer", "correct", "rule", "score"),
    *("num_prompt_tokens", "num_tokens"),
)


class Part(NamedTuple):
    """A model's answers to one benchmark."""

    model: str
    """Its name."""
    benchmark: str
    """Its name."""
    estimand: str
    """The one of the headline."""
    measured: list[Measured]
    """Answers."""
    scores: Scores
    """Their scores."""

    @property
    def where(self) -> dict[str, str]:
        """Columns that say which this is."""
        return {"model": self.model, "benchmark": self.benchmark}

    @property
    def headline(self) -> list[str]:
        """Scores of the headline that are defined here."""
        wanted = [*(f"{kind}/{self.estimand}" for kind in KINDS), *BASELINES]
        return [name for name in wanted if name in self.scores.uncertainty]

    @property
    def compared(self) -> list[str]:
        """Baselines of which the best is taken."""
        return [
            name
            for name in BASELINES
            if name in self.scores.uncertainty
            and np.isnan(self.scores.uncertainty[name]).mean() <= MOST_UNDEFINED
        ]


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
        Whether two answers mean the same (`isounc.llm.entailment`), for semantic entropy by entailment.
    """
    parts = []
    for (model, benchmark), own in names.items():
        measured = [record.meta for record in map(folder.read, own) if record is not None]
        if not measured:
            continue
        estimand = main_estimand
        if estimand == "auto":
            estimand = "length_normalised" if FORMS[benchmark] == "generated" else "choice"
        table = score_table(measured, scores, same=same)
        parts.append(Part(model, benchmark, estimand, measured, table))
    tables = _tables(parts, bootstrap)
    for name, (rows, columns) in tables.items():
        folder.write_rows(f"{name}.csv", rows, columns)
    rows = {name: found for name, (found, _) in tables.items()}
    with warnings.catch_warnings():
        # Few questions give intervals whose bars touch; that is what they show.
        warnings.simplefilter("ignore", UserWarning)
        drawn = qa_figures.draw(folder.path / "figures", parts, rows["results"])
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
        for normalise in NORMALISATIONS:
            found = transfer(by_model, features, normalise=normalise, bootstrap=bootstrap)
            rows += [{"benchmark": benchmark} | row for row in found]
    return rows


def _interval(row: Mapping[str, Any], name: str, form: str = "{:.2f}") -> str:
    if row[name] is None:
        return "undefined"
    return " ".join(
        [
            form.format(row[name]),
            "[" + ", ".join(form.format(row[f"{name}_{end}"]) for end in ("low", "high")) + "]",
        ]
    )


def _paper(score: str, benchmark: str) -> str:
    """The paper's AUROC, where it has one."""
    kind = score.split("/")[0]
    values = TABLE2.get("triviaqa" if benchmark == "triviaqa" else "truthfulqa", {})
    if benchmark not in ("triviaqa", "truthfulqa") or kind not in values:
        return ""
    mean, sd = values[kind]
    return f" (paper {mean:.2f} ± {sd:.2f})"


def _auroc_table(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Table 2: scores of the headline by benchmark."""
    wanted = [*KINDS, *BASELINES]
    by = {(r["model"], r["benchmark"], r["score"]): r for r in rows}
    lines = []
    for kind in wanted:
        cells = []
        for part in parts:
            name = f"{kind}/{part.estimand}" if kind in KINDS else kind
            row = by.get((part.model, part.benchmark, name))
            cells.append(
                "" if row is None else _interval(row, "auroc") + _paper(name, part.benchmark)
            )
        if any(cells):
            lines.append((kind, *cells))
    heads = tuple(f"{p.model}, {p.benchmark} ({p.estimand})" for p in parts)
    return Table(
        "AUROC for a wrong answer (Table 2)", ("score", *heads), lines,
        "Mean and 95% bootstrap interval over questions; .5 is chance. In brackets the estimand of the isotropic "
        "scores. The paper's values are means and standard deviations over four other models.",
    )  # fmt: skip


def _estimand_table(part: Part, rows: Sequence[Mapping[str, Any]]) -> Table:
    own = {
        r["score"]: r for r in rows if (r["model"], r["benchmark"]) == (part.model, part.benchmark)
    }
    kinds = list(dict.fromkeys(name.split("/")[0] for name in own if "/" in name))
    estimands = list(dict.fromkeys(name.split("/")[1] for name in own if "/" in name))
    lines = [
        (
            kind,
            *(
                _interval(own[f"{kind}/{e}"], "auroc") if f"{kind}/{e}" in own else ""
                for e in estimands
            ),
        )
        for kind in kinds
    ]
    return Table(
        f"{part.model}, {part.benchmark}: isotropic scores by estimand",
        ("score", *estimands),
        lines,
        "",
    )


def _test_table(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Table:
    headline = {(p.model, p.benchmark): set(p.headline) for p in parts}
    lines = [
        (
            f"{r['model']}, {r['benchmark']}", r["score"],
            f"best baseline ({r['best']})" if r["alternative"] == "greater" else r["against"],
            _interval(r, "gain", "{:+.3f}"), f"{r['p_adjusted']:.3g}", r["alternative"],
        )
        for r in rows
        if r["score"] in headline[(r["model"], r["benchmark"])] and r["p_adjusted"] is not None
        and "/" in r["score"]
    ]  # fmt: skip
    return Table(
        "AUROC against baselines", ("answers", "score", "against", "gain", "p, corrected", "alternative"), lines,
        "The best baseline is chosen anew in every resample. p-values are corrected over all scores and estimands of a "
        "benchmark (Benjamini and Hochberg), not over those shown.",
    )  # fmt: skip


def _gain_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    lines = [
        (
            f"{r['model']}, {r['benchmark']}", r["extra"],
            "undefined" if r["auroc_without"] is None else f"{r['auroc_without']:.3f}",
            "undefined" if r["gain"] is None else _interval(r, "gain", "{:+.3f}"),
            r["reason"] or "",
        )
        for r in rows
    ]  # fmt: skip
    return Table(
        "What a score adds to all baselines together",
        ("answers", "score", "AUROC of the baselines", "gain", "reason"), lines,
        "AUROC of cross-validated logistic regressions with the score less that without.",
    )  # fmt: skip


def _correlation_table(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Table:
    lines = []
    for part in parts:
        name = f"epistemic/{part.estimand}"
        for r in rows:
            if (r["model"], r["benchmark"]) != (part.model, part.benchmark):
                continue
            if name in (r["score"], r["other"]) and r["spearman"] is not None:
                other = r["other"] if r["score"] == name else r["score"]
                lines.append(
                    (f"{part.model}, {part.benchmark}", name, other, _interval(r, "spearman"))
                )
    return Table(
        "Is epistemic a signal of its own? Spearman with the other scores",
        ("answers", "score", "other", "Spearman"), lines, "All turned so that higher is more uncertain.",
    )  # fmt: skip


def _accuracy_table(parts: Sequence[Part]) -> Table:
    lines = []
    for part in parts:
        rule = part.measured[0]["judgement"]
        empty = sum(not one["answer"] for one in part.measured)
        mass = [
            np.logaddexp(one["p_true"]["true"], one["p_true"]["false"])
            for one in part.measured
            if one.get("p_true")
        ]
        lines.append(
            (
                f"{part.model}, {part.benchmark}", str(len(part.measured)),
                f"{1 - part.scores.wrong.mean():.3f}",
                rule["rule"] + (" (a proxy)" if rule["proxy"] else ""), str(empty),
                f"{np.exp(np.median(mass)):.2g}" if mass else "",
            )
        )  # fmt: skip
    return Table(
        "Answers", ("answers", "questions", "right", "judged by", "empty answers", "P(True): mass on both options"),
        lines, "The last column is the median over questions; P(True) is the share of the mass that is on True.",
    )  # fmt: skip


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
            of("auroc"), (_auroc_table(parts, rows["results"]), _accuracy_table(parts)),
        ),
        Section("tests", "Against the baselines", (), (),
                (_test_table(parts, rows["tests"]), _gain_table(rows["gains"]))),
        Section("curves", "ROC and risk-coverage", (), of("curves"), ()),
        Section("answers", "Scores of right and wrong answers", (), of("distributions"), ()),
        Section("estimands", "Which probability is meant decides the result", (), (),
                tuple(_estimand_table(part, rows["results"]) for part in parts)),
        Section("correlations", "Between the scores", (), (),
                (_correlation_table(parts, rows["correlations"]),)),
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
                lines.append(f"  {row['score']:<34} AUROC {_interval(row, 'auroc')}{more}")
    return "\n".join(lines)
