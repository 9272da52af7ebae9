"""Tables of a report on question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isounc.llm.answers.baseline_scores import baseline_scores, same_words
from isounc.llm.answers.scores import SIGNS, ScoreInfo
from isounc.runs.page import Table
from isounc.studies.qa.paper import TABLE2
from isounc.studies.qa.scored_answers import HEADLINE_FAMILIES, ScoredAnswers

Row = Mapping[str, Any]
"""A row of one of the tables of `isounc.studies.qa.evaluation`, with its model and benchmark."""


def interval(row: Row, name: str, form: str = "{:.2f}") -> str:
    """Value and interval of a statistic in a row."""
    if row[name] is None:
        return "undefined"
    value = form.format(row[name])
    if row[f"{name}_low"] is None:
        return f"{value} (no interval)"
    low, high = (form.format(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{value} [{low}, {high}]"


def auroc_table(scored: Sequence[ScoredAnswers], rows: Sequence[Row]) -> Table:
    """AUROC of the headline's scores, a column for each model and benchmark (Table 2)."""
    columns = [_headline_cells(answers, rows) for answers in scored]
    # Baselines in the order that they have of their own, whichever of them the first column lacks.
    families = [*HEADLINE_FAMILIES, *(score.family for score in baseline_scores(same_words))]
    families += [family for column in columns for family in column]
    lines = [
        (family, *(column.get(family, "") for column in columns))
        for family in dict.fromkeys(families)
        if any(family in column for column in columns)
    ]
    heads = tuple(f"{answers.title} ({answers.estimand})" for answers in scored)
    return Table(
        "AUROC for a wrong answer (Table 2)", ("score", *heads), lines,
        "Mean and 95% bootstrap interval over questions; .5 is chance. In brackets the estimand of "
        "the isotropic scores. The paper's values are means and standard deviations over four "
        "other models.",
    )  # fmt: skip


def _headline_cells(answers: ScoredAnswers, rows: Sequence[Row]) -> dict[str, str]:
    """AUROC by family, beside that of the paper."""
    by_score = {row["score"]: row for row in answers.rows_of(rows)}
    cells = {}
    for name in answers.headline:
        if name in by_score:
            score = answers.table.scores[name]
            cells[score.family] = interval(by_score[name], "auroc") + _paper(score, answers)
    return cells


def _paper(score: ScoreInfo, answers: ScoredAnswers) -> str:
    """The paper's AUROC, where it has one."""
    values = TABLE2.get(answers.benchmark, {})
    if score.family not in values:
        return ""
    mean, sd = values[score.family]
    return f" (paper {mean:.2f} ± {sd:.2f})"


def estimand_table(answers: ScoredAnswers, rows: Sequence[Row]) -> Table:
    """AUROC of the isotropic scores, a column for each estimand."""
    cells: dict[str, dict[str, str]] = {}
    for row in answers.rows_of(rows):
        score = answers.table.scores[row["score"]]
        if score.estimand is not None:
            cells.setdefault(score.family, {})[score.estimand] = interval(row, "auroc")
    estimands = list(dict.fromkeys(estimand for line in cells.values() for estimand in line))
    lines = [(family, *(line.get(e, "") for e in estimands)) for family, line in cells.items()]
    title = f"{answers.title}: isotropic scores by estimand"
    return Table(title, ("score", *estimands), lines, "")


def sign_table(scored: Sequence[ScoredAnswers]) -> Table:
    """How each score changes with p in theory."""
    scores = {score.family: score for answers in scored for score in answers.table.scores.values()}
    lines = [
        (family, SIGNS[score.sign])
        for family, score in scores.items()
        if not score.is_baseline or score.sign != "none"
    ]
    return Table(
        "Signs in theory", ("uncertainty", "while the norm of the gradient of log-odds is the same"),
        lines,
        "||grad p||² = (p (1 - p))² ||grad f||², f = log p - log(1 - p). An uncertainty must fall as "
        "the probability p of the answer rises. log_prob and mean_log_prob are about p itself.",
    )  # fmt: skip


def half_table(rows: Sequence[Row]) -> Table:
    """AUROC below and above p = 1/2."""
    families = list(dict.fromkeys(row["score"].partition("/")[0] for row in rows))
    cells: dict[tuple, dict[str, str]] = {}
    for row in rows:
        place = (
            f"{row['model']}, {row['benchmark']}", row["estimand"], row["half"],
            f"{row['share']:.0%}", f"{row['num_wrong']} of {row['num_questions']}",
        )  # fmt: skip
        cells.setdefault(place, {})[row["score"].partition("/")[0]] = interval(row, "auroc")
    return Table(
        "AUROC on either side of p = 1/2",
        ("answers", "p", "side", "share", "wrong", *families),
        [(*place, *(line.get(f, "") for f in families)) for place, line in cells.items()],
        "p is the headline's estimand. Where most answers lie below 1/2, scores that flip there "
        "point the wrong way in theory.",
    )  # fmt: skip


def comparison_table(scored: Sequence[ScoredAnswers], rows: Sequence[Row]) -> Table:
    """Tests of the headline's isotropic scores against the baselines."""
    lines = []
    for answers in scored:
        compared = {n for n in answers.headline if not answers.table.scores[n].is_baseline}
        for row in answers.rows_of(rows):
            if row["score"] not in compared or row["p_adjusted"] is None:
                continue
            best = row["alternative"] == "greater"
            against = f"best baseline ({row['best']})" if best else row["against"]
            lines.append(
                (
                    answers.title, row["score"], against, interval(row, "gain", "{:+.3f}"),
                    f"{row['p_adjusted']:.3g}", row["alternative"],
                )
            )  # fmt: skip
    return Table(
        "AUROC against baselines",
        ("answers", "score", "against", "gain", "p, corrected", "alternative"), lines,
        "The best baseline is chosen anew in every resample. p-values are corrected over all "
        "scores and estimands of a benchmark (Benjamini and Hochberg), not over those shown.",
    )  # fmt: skip


def gain_table(rows: Sequence[Row]) -> Table:
    """AUROC of all baselines together, and what a score adds to it."""
    lines = [
        (
            f"{row['model']}, {row['benchmark']}", row["extra"],
            "undefined" if row["auroc_without"] is None else f"{row['auroc_without']:.3f}",
            interval(row, "gain", "{:+.3f}"), row["reason"] or "",
        )
        for row in rows
    ]  # fmt: skip
    return Table(
        "What a score adds to all baselines together",
        ("answers", "score", "AUROC of the baselines", "gain", "reason"), lines,
        "AUROC of cross-validated logistic regressions with the score less that without.",
    )  # fmt: skip


def correlation_table(scored: Sequence[ScoredAnswers], rows: Sequence[Row]) -> Table:
    """Spearman of the headline's epistemic score with the others."""
    lines = []
    for answers in scored:
        name = answers.table.find("epistemic", answers.estimand)
        if name is None:
            continue
        for row in answers.rows_of(rows):
            if name in (row["score"], row["other"]) and row["spearman"] is not None:
                other = row["other"] if row["score"] == name else row["score"]
                lines.append((answers.title, name, other, interval(row, "spearman")))
    return Table(
        "Is epistemic a signal of its own? Spearman with the other scores",
        ("answers", "score", "other", "Spearman"), lines,
        "All turned so that higher is more uncertain.",
    )  # fmt: skip


def transfer_table(rows: Sequence[Row]) -> Table:
    """AUROC on the answers of a model that a logistic regression was not fitted on."""
    lines = [
        (
            row["benchmark"], row["left_out"] or "", row["features"], row["normalise"],
            interval(row, "auroc"), row["reason"] or "",
        )
        for row in rows
    ]  # fmt: skip
    return Table(
        "Leave one model out",
        ("benchmark", "left out", "scores", "normalised", "AUROC", "reason"), lines,
        "Logistic regression of the named scores, fitted on the answers of all other models; "
        "normalised within each model, or raw.",
    )  # fmt: skip


def accuracy_table(scored: Sequence[ScoredAnswers]) -> Table:
    """How many answers are right, and how that was judged."""
    return Table(
        "Answers",
        ("answers", "questions", "right", "by guessing", "judged by", "empty answers",
         "P(True): mass on both options"),
        [_accuracy_line(answers) for answers in scored],
        "The last column is the median over questions; P(True) is the share of the mass that is on "
        "True.",
    )  # fmt: skip


def _accuracy_line(scored: ScoredAnswers) -> tuple[str, ...]:
    rule, is_proxy, masses, guesses = "", False, [], []
    for answer in scored.answers:
        if answer.judgement is not None:
            rule, is_proxy = answer.judgement.rule, answer.judgement.proxy
        options = answer.self_assessment and answer.self_assessment.p_true
        if options:
            masses.append(np.logaddexp(options.true, options.false))
        # Guessing is for a single best choice; a sum over true choices (mc2) has no such level.
        if rule == "mc1" and answer.choice_log_probs:
            guesses.append(1 / len(answer.choice_log_probs))
    return (
        scored.title, str(len(scored.answers)), f"{1 - scored.table.wrong.mean():.3f}",
        f"{np.mean(guesses):.3f}" if guesses else "", rule + (" (a proxy)" if is_proxy else ""),
        str(sum(not answer.text for answer in scored.answers)),
        f"{np.exp(np.median(masses)):.2g}" if masses else "",
    )  # fmt: skip
