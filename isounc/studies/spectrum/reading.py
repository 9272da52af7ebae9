"""Sentences, generated from the tables, that say what a run of the spectrum study shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isounc.runs.words import listed, short
from isounc.statistics import VERDICTS
from isounc.studies.spectrum.cell import DRAWS, ISOTROPIC, LAPLACE
from isounc.studies.spectrum.settings import ALL, POINTS, POSTERIOR, Condition, Settings
from isounc.studies.spectrum.tables import Results, Row, failing
from isounc.studies.spectrum.verdicts import HYPOTHESES


class Tables:
    """The tables of a run, for look-ups."""

    def __init__(
        self, results: Results, rows: Sequence[Row], summary: Sequence[Row],
        verdicts: Sequence[Row], settings: Settings,
    ):  # fmt: skip
        self.results, self.rows, self.summary = results, rows, summary
        self.verdicts, self.settings = verdicts, settings
        self.base = Condition(
            settings.width, settings.depth, settings.parameterisations[0], settings.n
        )

    def line(self, statistic: str, **where: Any) -> Row | None:
        """The line of the summary with these values, at the base."""
        where = {"problem": ALL, **self.base._asdict(), **where, "statistic": statistic}
        return next(
            (r for r in self.summary if all(r[name] == value for name, value in where.items())),
            None,
        )


def number(row: Row | None) -> str:
    """A mean with its interval, in three digits."""
    if row is None or row["mean"] is None:
        return "undefined"
    mean, low, high = (row[name] for name in ("mean", "low", "high"))
    return f"{mean:.3g}" if low is None else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def condition_of(row: Row) -> str:
    """The condition of a verdict; of a slope, what is held fixed."""
    names = {"width": "width", "depth": "depth", "n": "n"}
    parts = [row["parameterisation"]]
    parts += [f"{called} {row[name]}" for name, called in names.items() if row[name] is not None]
    return ", ".join(parts)


def reading(tables: Tables) -> list[str]:
    """Paragraphs: what was run, each hypothesis, the base in numbers, and the price."""
    found = [_scope(tables)]
    found += [_hypothesis(tables, name) for name in HYPOTHESES]
    found += [_base(tables), _gradients(tables), _coordinates(tables), _price(tables)]
    return [paragraph for paragraph in found if paragraph]


def _scope(tables: Tables) -> str:
    rows = tables.rows
    names = ("problem", *Condition._fields, "seed")
    cells = {tuple(row[name] for name in names) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    failed = failing(rows)
    whole = {(f["problem"], f["condition"], f["seed"]) for f in failed if f["what"] == POSTERIOR}
    points = [f for f in failed if f["what"] in POINTS and f["what"] != "draw"]
    some = {
        (f["problem"], f["condition"], f["seed"]) for f in failed if f["what"] == "reference"
    } - whole
    words = (
        f"{len(cells)} cells, seeds {seeds[0]} to {seeds[-1]}, on {listed(tables.results.problems)}; "
        f"the base is {tables.base.label}."
    )
    if not failed:
        return f"{words} Every posterior and every point passed."
    return (
        f"{words} The posterior failed its gate in {len(whole)} cells, and in some region only in "
        f"{len(some)} more; {len(points)} MAPs and networks failed their check. What rests on these is in "
        "no number."
    )


def _hypothesis(tables: Tables, name: str) -> str:
    hypothesis = HYPOTHESES[name]
    rows = [r for r in tables.verdicts if r["hypothesis"] == name and r["problem"] == ALL]
    if not rows:
        return ""
    parts = []
    for point in dict.fromkeys(row["point"] for row in rows):
        at_point = [row for row in rows if row["point"] == point]
        for region in dict.fromkeys(row["region"] for row in at_point):
            here = [row for row in at_point if row["region"] == region]
            counts = ", ".join(
                f"{count} {word}" for word in VERDICTS
                if (count := sum(row["verdict"] == word for row in here))
            )  # fmt: skip
            first = next((row for row in here if _is_base(tables, row)), here[0])
            # The posterior, and a region that is the whole, go without saying.
            place = [] if point == POSTERIOR else [POINTS[point]]
            place += [] if region == ALL else [region]
            where = f"{', '.join(place)}: " * bool(place)
            parts.append(f"{where}{counts} ({number(first)} under {condition_of(first)})")
    source = f"; {hypothesis.source}" if hypothesis.source else ""
    kind = "slope" if hypothesis.slope else "difference" if hypothesis.rival else "number"
    sign = "below" if hypothesis.below else "above"
    return (
        f"“{name[0].upper()}{name[1:]}” ({hypothesis.claim}{source}) is confirmed where the {kind} is "
        f"{sign} {hypothesis.bound:g} beyond doubt. Conditions, over the problems: {'; '.join(parts)}."
    )


def _is_base(tables: Tables, row: Row) -> bool:
    return all(row[name] in (None, value) for name, value in tables.base._asdict().items())


def _base(tables: Tables) -> str:
    """The dimension and the divergence from the prior at the base."""
    parts = []
    for point in tables.results.points:
        where = {"point": point, "region": ALL, "form": LAPLACE}
        dimension = tables.line("dimension", **where)
        if dimension is not None:
            shape, mean = (tables.line(f"kl_{name}", **where) for name in ("covariance", "mean"))
            share = tables.line("dimension_share", **where)
            parts.append(
                f"at {POINTS[point]} {number(dimension)} effective dimensions, {number(share)} of the "
                f"parameters, and {number(shape)} nats a parameter for the covariance and {number(mean)} "
                "for the mean"
            )
    if not parts:
        return ""
    return f"At the base, KL of the Laplace approximation from the prior: {'; '.join(parts)}."


def _gradients(tables: Tables) -> str:
    """Where gradients lie, and how isotropic the ratio is, at the base."""
    rank, parts = tables.settings.rank, []
    for point in [p for p in tables.results.points if p in POINTS]:
        regions = []
        for region in tables.results.regions:
            where = {"point": point, "region": region}
            share = tables.line("share", form=f"removed_{rank}", **where)
            mean = tables.line("ratio_mean", form=LAPLACE, **where)
            rest = tables.line("ratio_mean", form=DRAWS, **where)
            follows = tables.line("ratio_spearman", form=LAPLACE, **where)
            values = [None if row is None else row["mean"] for row in (share, mean, rest, follows)]
            regions.append(f"{region} {', '.join(map(short, values))}")
        parts.append(f"{POINTS[point]}: {'; '.join(regions)}")
    return (
        f"At the base, by region: share of ‖g‖² in the {rank} strongest directions, mean of gᵀΣg over "
        "s²‖g‖² (Laplace, then the covariance of the draws), and rank correlation of the Laplace ratio "
        f"with ‖g‖². {'. '.join(parts)}."
    )


def _coordinates(tables: Tables) -> str:
    """Divergences from N(0, I) by problem, at the smallest and the largest width."""
    widths = sorted(
        c.width
        for c in tables.results.conditions
        if c._replace(width=tables.base.width) == tables.base
    )
    parts = []
    for problem in tables.results.problems:
        numbers = []
        for width in dict.fromkeys((widths[0], widths[-1])) if widths else ():
            place = {
                "problem": problem, "width": width, "point": POSTERIOR, "region": ALL, "form": DRAWS,
            }  # fmt: skip
            found = [
                number(tables.line(f"{statistic}_{name}", **place))
                for statistic in ("jeffreys", "sq") for name in ("weights", "readout")
            ]  # fmt: skip
            numbers.append(
                f"width {width}: {found[0]} and {found[1]} (mean square of the read-out {found[2]} and "
                f"{found[3]})"
            )
        parts.append(f"{problem} {'; '.join(numbers)}")
    return (
        "Jeffreys divergence of the posterior from N(0, I) in nats, in weights and with the read-out "
        f"whitened, beside the mean square of the read-out there, which is 1 under N(0, I): "
        f"{'. '.join(parts)}."
    )


def _price(tables: Tables) -> str:
    """What the correction gains at the base and costs, in correlation, passes and seconds."""
    rank, parts = tables.settings.rank, []
    for point in [p for p in tables.results.points if p in POINTS]:
        gains = []
        for region in tables.results.regions:
            forms = (ISOTROPIC, f"removed_{rank}", f"low_rank_{rank}", LAPLACE, DRAWS)
            found = [
                tables.line("log10_pearson", form=f, point=point, region=region) for f in forms
            ]
            values = [None if row is None else row["mean"] for row in found]
            if any(value is not None for value in values):
                gains.append(f"{region} {', '.join(map(short, values))}")
        if not gains:
            continue
        where = {"point": point, "region": ALL, "form": LAPLACE}
        names = ("isotropic", "removed", "set_up")
        times = [tables.line(f"seconds_{name}", **where) for name in names]
        known = [row["mean"] for row in times if row is not None and row["mean"] is not None]
        cost = ""
        if len(known) == len(names):
            cost = f" (seconds for 1000 locations {known[0]:.2g} and {known[1]:.2g}, set-up {known[2]:.2g})"
        parts.append(f"{POINTS[point]}: {'; '.join(gains)}{cost}")
    if not parts:
        return ""
    return (
        "Pearson's r of log10 with the MCMC variance at the base, of isotropic, without the "
        f"{rank} strongest directions, low rank {rank}, Laplace and the covariance of the draws: "
        f"{'. '.join(parts)}. A location takes the same forward and backward passes whatever the form; "
        f"the correction takes one forward pass and as many backward passes as there are outputs through "
        "each of the training inputs on top, once, and the eigenvalues of a matrix of their number."
    )
