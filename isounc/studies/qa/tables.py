"""What `isounc.studies.qa.report` shows: a model's answers with their scores, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isounc.runs.page import Table
from isounc.studies.qa.paper import TABLE2
from isounc.studies.qa.scored_answers import BASELINES, KINDS, Part


def interval(row: Mapping[str, Any], name: str, form: str = "{:.2f}") -> str:
    """Value and interval of a statistic in a row of `isounc.studies.qa.evaluation`."""
    if row[name] is None:
        return "undefined"
    if row[f"{name}_low"] is None:
        return f"{form.format(row[name])} (no interval)"
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


def auroc_table(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Table:
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
                "" if row is None else interval(row, "auroc") + _paper(name, part.benchmark)
            )
        if any(cells):
            lines.append((kind, *cells))
    heads = tuple(f"{p.model}, {p.benchmark} ({p.estimand})" for p in parts)
    return Table(
        "AUROC for a wrong answer (Table 2)", ("score", *heads), lines,
        "Mean and 95% bootstrap interval over questions; .5 is chance. In brackets the estimand of the isotropic "
        "scores. The paper's values are means and standard deviations over four other models.",
    )  # fmt: skip


def estimand_table(part: Part, rows: Sequence[Mapping[str, Any]]) -> Table:
    """AUROC of the isotropic scores, a column for each estimand."""
    own = {
        r["score"]: r for r in rows if (r["model"], r["benchmark"]) == (part.model, part.benchmark)
    }
    kinds = list(dict.fromkeys(name.split("/")[0] for name in own if "/" in name))
    estimands = list(dict.fromkeys(name.split("/")[1] for name in own if "/" in name))
    lines = [
        (
            kind,
            *(
                interval(own[f"{kind}/{e}"], "auroc") if f"{kind}/{e}" in own else ""
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


def comparison_table(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Tests of the headline's isotropic scores against the baselines."""
    headline = {(p.model, p.benchmark): set(p.headline) for p in parts}
    lines = [
        (
            f"{r['model']}, {r['benchmark']}", r["score"],
            f"best baseline ({r['best']})" if r["alternative"] == "greater" else r["against"],
            interval(r, "gain", "{:+.3f}"), f"{r['p_adjusted']:.3g}", r["alternative"],
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


def gain_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """AUROC of all baselines together, and what a score adds to it."""
    lines = [
        (
            f"{r['model']}, {r['benchmark']}", r["extra"],
            "undefined" if r["auroc_without"] is None else f"{r['auroc_without']:.3f}",
            interval(r, "gain", "{:+.3f}"),
            r["reason"] or "",
        )
        for r in rows
    ]  # fmt: skip
    return Table(
        "What a score adds to all baselines together",
        ("answers", "score", "AUROC of the baselines", "gain", "reason"), lines,
        "AUROC of cross-validated logistic regressions with the score less that without.",
    )  # fmt: skip


def correlation_table(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Spearman of the headline's epistemic score with the others."""
    lines = []
    for part in parts:
        name = f"epistemic/{part.estimand}"
        for r in rows:
            if (r["model"], r["benchmark"]) != (part.model, part.benchmark):
                continue
            if name in (r["score"], r["other"]) and r["spearman"] is not None:
                other = r["other"] if r["score"] == name else r["score"]
                lines.append(
                    (f"{part.model}, {part.benchmark}", name, other, interval(r, "spearman"))
                )
    return Table(
        "Is epistemic a signal of its own? Spearman with the other scores",
        ("answers", "score", "other", "Spearman"), lines, "All turned so that higher is more uncertain.",
    )  # fmt: skip


def transfer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """AUROC on the answers of a model that a logistic regression has not seen."""
    lines = [
        (
            r["benchmark"], r["left_out"] or "", r["features"], r["normalise"],
            interval(r, "auroc"), r["reason"] or "",
        )
        for r in rows
    ]  # fmt: skip
    return Table(
        "Leave one model out", ("benchmark", "left out", "scores", "normalised", "AUROC", "reason"), lines,
        "Logistic regression of the named scores, fitted on the answers of all other models; normalised within each "
        "model, or raw.",
    )  # fmt: skip


def accuracy_table(parts: Sequence[Part]) -> Table:
    """How many answers are right, and how that was judged."""
    lines = []
    for part in parts:
        rule = part.measured[0]["judgement"]
        empty = sum(not one["answer"] for one in part.measured)
        mass = [
            np.logaddexp(one["p_true"]["true"], one["p_true"]["false"])
            for one in part.measured
            if one.get("p_true")
        ]
        # Of a single best choice; a sum over true choices (mc2) has no such level.
        guess = [
            1 / len(one["choice_log_probs"])
            for one in part.measured
            if rule["rule"] == "mc1" and one.get("choice_log_probs")
        ]
        lines.append(
            (
                f"{part.model}, {part.benchmark}", str(len(part.measured)),
                f"{1 - part.scores.wrong.mean():.3f}", f"{np.mean(guess):.3f}" if guess else "",
                rule["rule"] + (" (a proxy)" if rule["proxy"] else ""), str(empty),
                f"{np.exp(np.median(mass)):.2g}" if mass else "",
            )
        )  # fmt: skip
    return Table(
        "Answers",
        ("answers", "questions", "right", "by guessing", "judged by", "empty answers", "P(True): mass on both options"),
        lines, "The last column is the median over questions; P(True) is the share of the mass that is on True.",
    )  # fmt: skip
