"""Evidence on claims 7 to 12, from the verdicts and tests of the other studies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from isounc.studies.claims.evidence import Row, records, row_of, row_of_interval
from isounc.studies.claims.rules import Condition, to_scale
from isounc.studies.claims.sources import COSTS, NEEDED, Source

REAL = ("breast_cancer", "wine", "digits_3v8")
"""Problems whose data are real."""
FEWEST = 10
"""Right and wrong answers that an AUROC of question answering needs, as in the world study."""
FRESH = "the error grows with distance, fresh data"
"""The measure that shows what fresh inputs of the same distribution do."""
_SPECTRUM = ("width", "depth", "parameterisation", "n")


def _cells(source: Source, place: Sequence[str], **which: str | float) -> dict[tuple, Row]:
    """How many cells counted in each place and how many failed, from the summary of a run."""
    table = source.table("summary.csv", NEEDED[source.study]["summary.csv"])
    for column, value in which.items():
        table = table[table[column].eq(value).fillna(False)]
    return {
        tuple(row[name] for name in place): {
            "num_cells": row["num_cells"] - row["num_failed"], "num_failed": row["num_failed"]
        }
        for row in records(table)
    }  # fmt: skip


def covariance(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 7, from the verdicts of the covariance study on the mean of the other data."""
    names = {
        "distorts": "other data lower r", "structured": "the error grows with distance",
        "isotropic wins": "‖g‖² is better",
    }  # fmt: skip
    rows = []
    for source in sources:
        table = source.table("verdicts.csv", NEEDED["covariance"]["verdicts.csv"])
        counted = table["hypothesis"].isin(list(names)) & table["proxy"].eq("others")
        beside = table["hypothesis"].eq("structured") & table["proxy"].eq("fresh")
        chosen = table[
            (counted | beside) & table["problem"].ne("all") & table["statistic"].ne("spearman")
        ]
        place = ("problem", "width", "point", "region")
        cells = _cells(source, place, form="full", proxy="train", lam=1.0)
        for row in records(chosen):
            data = "real data" if row["problem"] in REAL else "synthetic data"
            region = "" if row["region"] == "all" else row["region"]
            setting = f"{data}, width {row['width']}"
            measure = FRESH if row["proxy"] == "fresh" else names[row["hypothesis"]]
            where = Condition(measure, row["point"], region, setting)
            own = cells.get(tuple(row[name] for name in place), {})
            widths = {"widths": str(row["width"])}
            rows.append(row_of_interval("7", where, row, source) | own | widths)
    # Runs follow each other with their own widths: conditions are listed by width, real data last.
    return sorted(rows, key=lambda row: (row["problem"] in REAL, int(row["widths"])))


def spectrum(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 8, at the largest width of each run of the spectrum study.

    The share of the parameters comes from its verdicts. Its correlations are averaged there as they
    are; here they are taken from its cells, to be averaged on Fisher's scale as all others.
    """
    rows = []
    for source in sources:
        table = source.table("verdicts.csv", NEEDED["spectrum"]["verdicts.csv"])
        chosen = table["hypothesis"].eq("isotropic in trace") & table["problem"].ne("all")
        found = records(table[chosen])
        place = ("problem", *_SPECTRUM, "point", "region", "statistic")
        cells = _cells(source, place, form="laplace")
        widest = max((row["width"] for row in found if row["width"]), default=None)
        for row in found:
            if row["width"] == widest:
                where = _spectrum_place("few parameters determined", row)
                own = cells.get(tuple(row[name] for name in place), {})
                rows.append(row_of_interval("8", where, row, source) | own)
        if widest is not None:
            rows += _orders(source, widest)
    return rows


def _orders(source: Source, width: int) -> list[Row]:
    """How far the order of inputs is kept, from the cells of one width that passed their checks."""
    table = source.table("results.csv", NEEDED["spectrum"]["results.csv"])
    table = table[table["width"].eq(width).fillna(False) & table["form"].eq("laplace")]
    values: dict[tuple[str, Condition], list[float]] = {}
    left: dict[tuple[str, Condition], int] = {}
    for row in records(table[table["order"].notna()]):
        key = str(row["problem"]), _spectrum_place("order of inputs kept", row)
        own = values.setdefault(key, [])
        if row["check"] == "pass":
            own.append(float(to_scale(row["order"], "correlation")))
        else:
            left[key] = left.get(key, 0) + 1
    return [
        row_of("8", where, problem, own, source)
        | {"num_cells": len(own), "num_failed": left.get((problem, where), 0)}
        for (problem, where), own in values.items()
    ]


def _spectrum_place(measure: str, row: Row) -> Condition:
    region = "" if row["region"] == "all" else row["region"]
    parts = (f"{k} {row[k]}" for k in ("width", "depth", "n"))
    return Condition(measure, row["point"], region, ", ".join([row["parameterisation"], *parts]))


def shift(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 9, from the verdicts of the shift study on the isotropic score."""
    names = {"detects": "larger out of distribution", "keeps its rate": "threshold kept"}
    rows = []
    for source in sources:
        table = source.table("verdicts.csv", NEEDED["shift"]["verdicts.csv"])
        chosen = table[
            table["hypothesis"].isin(list(names)) & table["score"].eq("isotropic")
            & table["problem"].ne("all") & table["network"].ne("all")
        ]  # fmt: skip
        place = ("problem", "network", "shift")
        cells = _cells(source, place, score="isotropic")
        for row in records(chosen):
            where = Condition(names[row["hypothesis"]], row["network"], row["shift"], "")
            own = cells.get(tuple(row[name] for name in place), {})
            rows.append(row_of_interval("9", where, row, source) | own)
    return rows


def cost(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 10, from the processes of the cost benchmark: sizes of a model are its strata."""
    rows = []
    for source in sources:
        table = source.table(COSTS, NEEDED["cost"][COSTS])
        ratios: dict[tuple[str, str], list[float]] = {}
        for row in records(table[table["way"].eq("isotropic")]):
            if row["to_forward"] is not None:
                size = f"width {row['width']}, batch {row['examples']}"
                ratios.setdefault((row["model"], size), []).append(float(row["to_forward"]) - 1)
        for (model, size), values in ratios.items():
            where = Condition("cost", model, "", "")
            rows.append(row_of("10", where, size, values, source) | {"num_cells": len(values)})
    return rows


def qa(
    sources: Sequence[Source], claims: Iterable[str], note: Callable[[str, Source, str], None]
) -> list[Row]:
    """Rows of claims 11 and 12, from the tests, correlations and gains of the qa study.

    A model that is asked in another way than few_shot is a condition of its own. A benchmark with fewer
    than `FEWEST` right or wrong answers is left out, and noted.
    """
    rows = []
    for source in sources:
        # Runs of before there were other ways do not say.
        way = str(source.settings.get("prompting", "few_shot"))
        by_place: dict[tuple[str, str], dict[str, list[Row]]] = {}
        for name, needed in NEEDED["qa"].items():
            for row in records(source.table(name, needed)):
                tables = by_place.setdefault((row["model"], row["benchmark"]), {})
                tables.setdefault(name, []).append(row)
        for (model, benchmark), tables in by_place.items():
            right, wrong = _counts(tables.get("results.csv", []))
            if min(right, wrong) < FEWEST:
                for claim in ("11", "12"):
                    note(
                        claim, source, f"{benchmark} has {right} right and {wrong} wrong "
                        f"answers, of which {FEWEST} each are asked for",
                    )  # fmt: skip
                continue
            point = model if way == "few_shot" else f"{model}, {way}"
            found = _of_benchmark(point, benchmark, tables, source)
            rows += [row for row in found if row["claim"] in claims]
    return rows


def _counts(rows: Sequence[Row]) -> tuple[float, float]:
    """Right and wrong answers to a benchmark's questions; infinite where its tables do not say."""
    known = [(r["num_questions"], r["num_wrong"]) for r in rows if r.get("num_wrong") is not None]
    if not known:
        return math.inf, math.inf
    asked, wrong = max(known)
    return asked - wrong, wrong


def _of_benchmark(
    model: str, benchmark: str, tables: Mapping[str, list[Row]], source: Source
) -> list[Row]:
    """Rows of one model on one benchmark, for the estimand that counts there."""

    def the(table: str, **which: str) -> Row | None:
        found = tables.get(table, [])
        return next((r for r in found if all(r[k] == v for k, v in which.items())), None)

    extra = [r["extra"] for r in tables.get("gains.csv", []) if r["extra"].startswith("epistemic/")]
    if not extra:
        return []
    norm, total = extra[0], extra[0].replace("epistemic", "total_sum")
    best = [r["against"] for r in tables.get("tests.csv", []) if r["against"].startswith("best of")]
    conflict = benchmark.startswith("truthfulqa")
    found = [
        (
            "12",
            "unlike P(True)",
            the("correlations.csv", score=norm, other="p_true"),
            "spearman",
            0.0,
        ),
        ("12", "adds to all baselines", the("gains.csv", extra=norm), "gain", 0.0),
    ]
    if conflict and best:
        test = the("tests.csv", score=total, against=best[0], statistic="auroc")
        found.append(("11", "combined is best", test, "gain", 0.0))
    elif not conflict:
        found.append(("11", "chance on recall", the("results.csv", score=total), "auroc", 0.5))
    return [
        row_of(claim, Condition(measure, model, benchmark, ""), benchmark, [], source)
        | {
            "mean": row[column] - origin,
            "se": row[f"{column}_se"],
            "num_seeds": row["num_questions"],
        }
        for claim, measure, row, column, origin in found
        if row is not None and row[column] is not None
    ]
