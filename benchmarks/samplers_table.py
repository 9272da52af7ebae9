"""Rows of `benchmarks/samplers.py`: printed, stored and drawn."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def line(row: dict[str, Any]) -> str:
    """A row in one line of text."""
    compiling = row["compile_seconds"]
    return (
        f"{row['problem']:<22}{row['width']:>5}{row['n']:>6}{row['chains']:>4}"
        f" sd {row['prior_sd']:<4g} {row['parameterisation']:<9}"
        f"{row['way']:<23}{row['coordinates']:<10}"
        f"{row['gate']:<5} R-hat {row['rhat_max']:<7} ESS {row['ess_mean']:>6} {row['ess_var']:>6}"
        f"{row['seconds']:>8.2f} s {row['ess_mean_per_second']:>8.0f}"
        f" {row['ess_var_per_second']:>8.0f} /s"
        f"{'' if compiling is None else format(compiling, '7.1f') + ' s compiling'}"
    )


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def stored(path: Path, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an existing table, whose columns must have the values `wanted`."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    rows = [{name: _value(text) for name, text in row.items()} for row in rows]
    for row in rows:
        for name, value in wanted.items():
            if row[name] != value:
                sys.exit(
                    f"error: {name} must be {row[name]}, as in {path}, got {value}; choose "
                    "another --out"
                )
    return rows


OURS, THEIRS = "hmc auto", "numpyro model"
"""The ways that `pairs` compares."""
GOAL = 5.0
"""Times NumPyro that isounc aims at."""


def pairs(rows: list[dict[str, Any]]) -> str:
    """A page in Markdown: isounc beside NumPyro on every posterior that both have sampled.

    The ratio is that of effective draws per second, of p and of (p - mean)^2.
    """
    place = ("n", "parameterisation", "prior_sd", "width", "problem", "chains")
    found = {(*(row[name] for name in place), row["way"]): row for row in rows}
    lines, reached, both_pass = [], 0, 0
    posteriors = sorted({key[:-1] for key in found if key[-1] == OURS})
    posteriors = [key for key in posteriors if (*key, THEIRS) in found]
    for key in posteriors:
        ours, theirs = found[*key, OURS], found[*key, THEIRS]
        times = [
            ours[name] / theirs[name] for name in ("ess_mean_per_second", "ess_var_per_second")
        ]
        reached += min(times) >= GOAL
        both_pass += ours["gate"] == theirs["gate"] == "pass"
        n, parameterisation, prior_sd, width, problem, _ = key
        cells = [
            f"{n}", f"{parameterisation}, sd {prior_sd:g}", f"{problem}, width {width}",
            _sampled(ours), _sampled(theirs), ", ".join(f"{value:.1f}" for value in times),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    head = (
        "n", "prior", "posterior", "isounc hmc: effective draws of p, of (p − mean)²",
        "NumPyro NUTS", "times NumPyro, per second",
    )  # fmt: skip
    return "\n".join([
        f"Of {len(posteriors)} posteriors {reached} have {GOAL:g} times NumPyro's effective draws per "
        f"second or more, by the smaller of the two ratios. Both pass R-hat < 1.01 and the bound on "
        f"divergences in {both_pass}.",
        "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines, "",
    ])  # fmt: skip


def _sampled(row: Mapping[str, Any]) -> str:
    """Effective draws, seconds and R-hat of a run, in brackets if it failed its checks."""
    text = f"{row['ess_mean']}, {row['ess_var']} in {row['seconds']:.3g} s, R-hat {row['rhat_max']:.3f}"
    return text if row["gate"] == "pass" else f"({text})"


def _value(text: str) -> int | float | str | None:
    """A cell of a table: a number if it is one, None if it is empty."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw effective draws by width, per second (above) and per 1000 gradients (below).

    Every problem has a column; problems with one width are left to the table.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    shown = [r for r in rows if r["sweep"] == "width"]
    widths_of = {
        p: {r["width"] for r in shown if r["problem"] == p} for p in {r["problem"] for r in shown}
    }
    if max(map(len, widths_of.values())) > 1:
        shown = [r for r in shown if len(widths_of[r["problem"]]) > 1]
    problems = list(dict.fromkeys(r["problem"] for r in shown))
    fig, axes = pyplot.subplots(
        2, len(problems), figsize=(4.2 * len(problems) + 2, 6.4), squeeze=False, sharex=True,
        layout="constrained",
    )  # fmt: skip
    names = list(dict.fromkeys(r["way"] for r in shown))
    color_map = pyplot.get_cmap("tab20")
    colors = {name: color_map(i % color_map.N) for i, name in enumerate(names)}
    for problem, column in zip(problems, axes.T, strict=True):
        for panel, per in zip(column, ("second", "1000_gradients"), strict=True):
            for name in names:
                mine = [r for r in shown if r["problem"] == problem and r["way"] == name]
                mine = [r for r in mine if r[f"ess_var_per_{per}"]]
                ours = name not in ("numpyro", "blackjax", "pyro")
                y = [min(r[f"ess_{q}_per_{per}"] for q in ("mean", "var")) for r in mine]
                style = {"color": colors[name], "linestyle": "-" if ours else "--", "label": name}
                panel.plot([r["width"] for r in mine], y, **style)
                for passed, face in (("pass", colors[name]), ("fail", "white")):
                    at = [i for i, r in enumerate(mine) if r["gate"] == passed]
                    panel.plot(
                        [mine[i]["width"] for i in at], [y[i] for i in at], "o", markersize=5,
                        color=colors[name], markerfacecolor=face,
                    )  # fmt: skip
            panel.set(xscale="log", yscale="log")
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(ticker.NullFormatter())
        widths = sorted({r["width"] for r in shown})
        column[1].set_xticks(widths, map(str, widths))
        column[1].set_xticks([], minor=True)
        column[1].set_xlabel("hidden units")
        column[0].set_title(problem)
    axes[0, 0].set_ylabel("smallest ESS / second")
    axes[1, 0].set_ylabel("smallest ESS / 1000 gradients")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside right center", frameon=False,
        title="hollow: R-hat or\ndivergences fail",
    )  # fmt: skip
    fig.savefig(path, dpi=130)
    pyplot.close(fig)
