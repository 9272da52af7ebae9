"""The reading of a run of protocols: its protocols first, then what their verdicts say, in sentences.

Every number is one of the tables `verdicts.csv` and `closest.csv`, a count of their rows, or a mean
over seeds of rows of `results.csv`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isounc.runs.words import listed
from isounc.studies.scaling.figures.looks import POINT_WORDS
from isounc.studies.scaling.gates import gate_sentence
from isounc.studies.scaling.paper import TABLE1
from isounc.studies.scaling.protocols import (
    PROTOCOLS,
    cells_of,
    num_examples,
    protocol_names,
)
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.settings import Settings
from isounc.studies.scaling.verdicts import VERDICTS, Row, compared

_BESIDE = {"null_aleatoric": "p(1−p)", "logit_scaled": "logit-scaled"}
_SIZES = {"width": "width", "depth": "depth", "params": "the number of parameters"}


def reading(
    results: Results, verdicts: Sequence[Row], closest: Sequence[Row], missing: Mapping[Any, str],
    settings: Settings,
) -> tuple[str, ...]:  # fmt: skip
    """Say what the protocols are, what each found, and which is closest to the paper's table."""
    names = protocol_names(settings)
    return tuple(
        filter(
            None,
            (
                *(_protocol(name, settings) for name in names),
                gate_sentence(results),
                _missing(missing),
                *(_verdicts(name, verdicts) for name in names),
                _closest(closest),
                _chain_means(results),
            ),
        )
    )


def _protocol(name: str, settings: Settings) -> str:
    """What a protocol asks, and with what."""
    protocol, cells = PROTOCOLS[name], cells_of(name, settings)

    def values(found: Iterable[Any], word: str) -> str:
        texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in dict.fromkeys(found)]
        return f"{word} {listed(texts)}".strip()

    parts = [
        values((cell.problem for cell in cells), ""),
        values((cell.width for cell in cells), "width"),
        values((cell.depth for cell in cells), "depth"),
        values((cell.activation for cell in cells), ""),
        values((cell.parameterisation for cell in cells), ""),
        values((cell.prior_sd for cell in cells), "prior sd"),
        values((num_examples(cell, settings) for cell in cells), "n ="),
        f"{settings.num_seeds} seed{'s' if settings.num_seeds > 1 else ''}",
        f"{listed(POINT_WORDS.get(p, p) for p in protocol.points)}",
        f"region {listed(protocol.regions)}",
        compared(protocol),
    ]
    if protocol.grid_margin:
        parts.append(
            f"the grid reaches {protocol.binary_grid_margin:g} standard deviations of an input beyond "
            f"the data with two classes and {protocol.grid_margin:g} otherwise"
        )
    limit = protocol.seconds.get(settings.preset, math.inf)
    given = settings.sampling.max_seconds
    if math.isfinite(given):
        seeds = f"{settings.seeds_per_batch}" if settings.seeds_per_batch else "all"
        parts.append(f"at most {given:g} s of sampling for {seeds} seeds of a cell together")
    elif math.isfinite(limit):
        parts.append(f"at most {limit:g} s of sampling for a cell")
    return f"Protocol {name}: {protocol.question} ({'; '.join(parts)}.)"


def _missing(missing: Mapping[Any, str]) -> str:
    if not missing:
        return ""
    cells = "; ".join(f"{cell.label}: {why}" for cell, why in missing.items())
    return f"{len(missing)} cell{'s were' if len(missing) > 1 else ' was'} not run. {cells}."


def _verdicts(name: str, verdicts: Sequence[Row]) -> str:
    """How often the estimate improves under a protocol, by kind of point, beside the others."""
    protocol = PROTOCOLS[name]
    parts = []
    for point in protocol.points:
        mine = [row for row in verdicts if row["protocol"] == name and row["point"] == point]
        isotropic = [row for row in mine if row["estimator"] == "isotropic"]
        text = f"{POINT_WORDS.get(point, point)} it {_counted(isotropic, named=True)}"
        beside = [
            f"{words} {_counted([row for row in mine if row['estimator'] == estimator])}"
            for estimator, words in _BESIDE.items()
        ]
        parts.append(f"{text} ({'; '.join(beside)})")
    place = f"region {listed(protocol.regions)}, with {_SIZES[protocol.axis]}"
    return (
        f"Under {name} ({place}; slope per doubling, and Pearson's r at the largest size) the "
        f"isotropic estimate: {'; '.join(parts)}."
    )


def _counted(rows: Sequence[Row], *, named: bool = False) -> str:
    """Verdicts with their counts; where `named`, the decided ones by name, and why others are none."""
    counts = Counter(row["verdict"] for row in rows)
    texts = []
    for verdict in VERDICTS:
        if not counts[verdict]:
            continue
        verbs = {"undecided": "is undecided", "undefined": "is undefined", "not run": "is not run"}
        verb = verbs.get(verdict, verdict)
        text = f"{verb} in {counts[verdict]}"
        if named and verdict in ("improves", "gets worse"):
            text += f" ({', '.join(_named(row) for row in rows if row['verdict'] == verdict)})"
        elif named and verdict in ("undefined", "not run"):
            reasons = [row["why"].split("; ") for row in rows if row["verdict"] == verdict]
            # The same reason with other numbers, in brackets, is the same.
            whys = dict.fromkeys(why.split(" (")[0] for of_row in reasons for why in of_row)
            text += f" ({'; '.join(whys)})"
        texts.append(text)
    return f"{listed(texts)} of {len(rows)}"


def _named(row: Row) -> str:
    what = " ".join(filter(None, (row["problem"], row["setting"])))
    slope, low, high = (row[f"slope_{part}"] for part in ("mean", "low", "high"))
    # Of a correlation that is negative, an improvement is something else.
    return f"{what} {slope:+.3f} [{low:+.3f}, {high:+.3f}] to {row['pearson_mean']:.2f}"


def _closest(closest: Sequence[Row]) -> str:
    """The reading with the smallest difference of those with the most problems."""
    if not closest:
        return "No reading has a problem of the paper's Table 1."
    most = closest[0]["num_problems"]
    first, *others = [row for row in closest if row["num_problems"] == most]
    text = (
        f"Closest to the paper's Table 1, of {len(others) + 1} readings with {most} of its "
        f"{len(TABLE1)} problems ({first['problems'].replace(' ', ', ')}), is {_where(first)}: its "
        f"Pearson correlations differ by {first['pearson_difference']:.2f} on average"
    )
    if first["spearman_difference"] is not None:
        text += f", Spearman's by {first['spearman_difference']:.2f}"
    if others:
        last = others[-1]
        text += (
            f"; next is {_where(others[0])} with {others[0]['pearson_difference']:.2f}, last "
            f"{_where(last)} with {last['pearson_difference']:.2f}"
        )
    fewer = [row for row in closest if row["num_problems"] < most]
    by_name = {row["protocol"]: row for row in reversed(fewer)}
    alone = [row for name, row in by_name.items() if all(r["protocol"] != name for r in others)
             and name != first["protocol"]]  # fmt: skip
    if alone:
        listed = "; ".join(
            f"{row['protocol']} {row['pearson_difference']:.2f} over {row['num_problems']} "
            f"({row['problems'].replace(' ', ', ')})"
            for row in reversed(alone)
        )
        text += f". Protocols with fewer problems, at best: {listed}"
    return text + ". No default is chosen by this."


def _where(row: Row) -> str:
    parts = [row["setting"], row["point"], f"region {row['region']}", f"width {row['width']}"]
    if row["depth"] != 1:
        parts.append(f"depth {row['depth']}")
    return f"{row['protocol']} ({', '.join(filter(None, parts))})"


def _chain_means(results: Results) -> str:
    """How the mean of a chain predicts, which need not be a model."""
    rows = results.rows.query(
        "quantity == 'predictive' and point == 'chain_mean' and region == 'test' and gate == 'pass'"
    )
    rows = rows.dropna(subset=["nll", "mcmc_nll"])
    if rows.empty:
        return ""
    by_cell = rows.groupby(["setup", "width"], observed=True)[["nll", "mcmc_nll"]]
    rows = by_cell.mean().reset_index()
    more = rows["nll"] - rows["mcmc_nll"]
    worst, best = rows.iloc[int(more.argmax())], rows.iloc[int(more.argmin())]

    def told(row: Any) -> str:
        return (
            f"{row['nll']:.2f} against {row['mcmc_nll']:.2f} ({row['setup']}, width {row['width']})"
        )

    return (
        "The mean of the draws of one chain need not be a model of the data: its negative log "
        f"likelihood on test is above that of the posterior's predictions in {int((more > 0).sum())} "
        f"of {len(rows)} means over seeds, from {told(best)} to {told(worst)} nats."
    )
