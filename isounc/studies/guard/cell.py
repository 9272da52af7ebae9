"""A cell of the guard study: thresholds from many calibration samples, judged by their true risk.

The samples of a cell are judged together, with the ranks and p-values of `isounc.guard.control`; the
first ones go through `Guard.fit` as well, and have to give the same thresholds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom

from isounc.guard import Guard
from isounc.guard.certificate import METHODS
from isounc.guard.control import Promise, quantile_thresholds
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.studies.guard.scenarios import SCENARIOS, Answers
from isounc.studies.guard.settings import Cell, Settings

PLUG_IN = "plug_in"
"""The largest threshold whose share of wrong answers on the sample is at most the target."""
SCORES, QUANTILES, GIVEN = "scores", "quantiles", "given"
"""Thresholds that are tried: every score, the guard's quantiles of the sample, or those of another."""


class Tried(NamedTuple):
    """Thresholds that are tried on R calibration samples, from the safest on."""

    thresholds: Float[np.ndarray, "R T"]
    """Thresholds."""
    accepted: Int[np.ndarray, "R T"]
    """Answers of the sample that each accepts."""
    wrong: Int[np.ndarray, "R T"]
    """Wrong ones among them."""


class Samples(NamedTuple):
    """What is kept of R calibration samples for a target."""

    tried: dict[str, Tried]
    """By where the thresholds come from."""
    plug_in: Float[np.ndarray, " R"]
    """The plug-in threshold; NaN where there is none."""
    first: list[tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]]
    """Scores and right answers of the first samples."""


def evaluate(batch: Batch, settings: Settings, say: Say) -> Iterator[Record]:
    """Evaluate the cells of a scenario, one record each; the targets of a size share their samples."""
    for n, group in itertools.groupby(batch.cells, key=lambda cell: cell.n):
        say(f"n = {n}")
        cells = list(group)
        for cell, samples in zip(cells, draw_samples(cells, settings), strict=True):
            meta = {"cell": dataclasses.asdict(cell), "rows": measure(cell, samples, settings)}
            yield Record(cell.name, meta, {})


def measure(cell: Cell, samples: Samples, settings: Settings) -> list[dict[str, Any]]:
    """A row for each grid and method."""
    scenario = SCENARIOS[cell.scenario]
    judged = (scenario.shifted or scenario.calibration).of_target(cell.target)
    chosen: dict[tuple[str, str], Float[np.ndarray, " R"]] = {(SCORES, PLUG_IN): samples.plug_in}
    for grid, tried in samples.tried.items():
        p_values = binom.cdf(tried.wrong, tried.accepted, cell.target)
        for method in METHODS:
            chosen[grid, method] = pick(tried.thresholds, p_values, method, 1 - settings.confidence)
    shared = {
        **dataclasses.asdict(cell),
        "confidence": settings.confidence,
        "num_repetitions": settings.num_repetitions,
        "is_shifted": scenario.shifted is not None,
        "can_exceed": judged.can_exceed(cell.target),
        "best_coverage": float(judged.coverage(np.array([judged.best(cell.target)]))[0]),
    }
    coverage = {key: judged.coverage(thresholds) for key, thresholds in chosen.items()}
    rows = []
    for (grid, method), thresholds in chosen.items():
        sequence = coverage[QUANTILES if grid == SCORES else grid, "fixed_sequence"]
        rows.append({
            **shared, "grid": grid, "method": method,
            **_shares(judged, thresholds, cell.target),
            **_mean("coverage", coverage[grid, method]),
            **_mean("gain", sequence - coverage[grid, method]),
            "num_checked": 0 if grid == SCORES else settings.num_checked,
            "num_unlike": _num_unlike(cell, settings, samples, thresholds, grid, method),
        })  # fmt: skip
    return rows


def draw_samples(cells: Sequence[Cell], settings: Settings) -> list[Samples]:
    """Draw the calibration samples of cells that differ in the target alone, each from its own seed."""
    n, scenario = cells[0].n, SCENARIOS[cells[0].scenario]
    grids = (QUANTILES, *([GIVEN] if cells[0].scenario in settings.given_grids else []))
    ranks = [_ranks(n, cell.target, settings.confidence) for cell in cells]
    kept = [_Kept(grids) for _ in cells]
    for i in range(settings.num_repetitions):
        drawn: dict[Answers, dict[str, np.ndarray]] = {}
        for cell, cell_ranks, samples in zip(cells, ranks, kept, strict=True):
            answers = scenario.calibration.of_target(cell.target)
            if answers not in drawn:
                drawn[answers] = _draw(answers, n, [cell.seed, i], grids)
            scores, errors = drawn[answers][QUANTILES], drawn[answers]["errors"]
            samples.plug_in.append(_plug_in(scores, errors[1:], cell.target))
            for grid in grids:
                thresholds = drawn[answers][grid][cell_ranks - 1]
                accepted = np.searchsorted(scores, thresholds, side="right")
                samples.tried[grid].append((thresholds, accepted, errors[accepted]))
            if i < settings.num_checked:
                samples.first.append((scores, np.diff(errors) == 0))
    return [samples.stacked() for samples in kept]


class _Kept:
    """What is kept of the samples of a cell while they are drawn."""

    def __init__(self, grids: Sequence[str]):
        self.tried: dict[str, list[tuple[np.ndarray, ...]]] = {grid: [] for grid in grids}
        self.plug_in: list[float] = []
        self.first: list[tuple[np.ndarray, np.ndarray]] = []

    def stacked(self) -> Samples:
        tried = {
            grid: Tried(*(np.stack(parts) for parts in zip(*rows, strict=True)))
            for grid, rows in self.tried.items()
        }
        return Samples(tried, np.array(self.plug_in), self.first)


def _ranks(n: int, target: float, confidence: float) -> Int[np.ndarray, " T"]:
    """Ranks of the scores that a guard tries: those of untied ones, whose certainty at rank k is n - k."""
    promise = Promise(target, None, confidence, "fixed_sequence")
    return n - quantile_thresholds(np.arange(float(n)), promise).astype(int)


def _draw(
    answers: Answers, n: int, seed: list[int], grids: Sequence[str]
) -> dict[str, Float[np.ndarray, " n"] | Int[np.ndarray, " n+1"]]:
    """Ascending scores, by the grid that is made of them, and wrong answers among the first k."""
    rng = np.random.default_rng(seed)
    scores, wrong = answers.draw(n, rng)
    order = np.argsort(scores, kind="stable")
    found = {QUANTILES: scores[order], "errors": np.concatenate([[0], np.cumsum(wrong[order])])}
    if GIVEN in grids:
        found[GIVEN] = np.sort(answers.draw(n, rng)[0])
    return found


def _plug_in(
    scores: Float[np.ndarray, " n"], errors: Int[np.ndarray, " n"], target: float
) -> float:
    """The largest score up to which the share of wrong answers is at most the target, or NaN."""
    ends = np.append(scores[1:] > scores[:-1], True)  # equal scores are accepted together
    keeps = np.flatnonzero(ends & (errors <= target * np.arange(1, len(scores) + 1)))
    return float(scores[keeps[-1]]) if len(keeps) else math.nan


def pick(
    thresholds: Float[np.ndarray, "R T"],
    p_values: Float[np.ndarray, "R T"],
    method: str,
    delta: float,
) -> Float[np.ndarray, " R"]:
    """The largest threshold of each row that a method certifies at level delta; NaN if there is none.

    Thresholds ascend; equal ones are one.
    """
    num_rows, num_thresholds = thresholds.shape
    if not num_thresholds:
        return np.full(num_rows, np.nan)
    distinct = np.diff(thresholds, axis=1, prepend=-np.inf) > 0
    num = distinct.sum(axis=1, keepdims=True)
    if method == "fixed_sequence":
        valid = np.logical_and.accumulate(p_values <= delta, axis=1)
    elif method == "bonferroni":
        valid = p_values <= delta / num
    else:
        ordered = np.sort(np.where(distinct, p_values, np.inf), axis=1)
        levels = delta / np.maximum(num - np.arange(num_thresholds), 1)
        rejected = np.logical_and.accumulate(ordered <= levels, axis=1)
        valid = p_values <= np.where(rejected, ordered, -1).max(axis=1, keepdims=True)
    largest = np.where(valid, thresholds, -np.inf).max(axis=1)
    return np.where(valid.any(axis=1), largest, np.nan)


def _shares(
    judged: Answers, thresholds: Float[np.ndarray, " R"], target: float
) -> dict[str, int | float | None]:
    """Violations, repetitions without a threshold, mean risk, and by how much it is exceeded."""
    risk = judged.risk(thresholds)
    known = risk[~np.isnan(risk)]
    exceeded = known[known > target] - target
    return {
        "num_violations": len(exceeded),
        "num_without": len(risk) - len(known),
        **_mean("risk", known),
        "excess_mean": float(exceeded.mean()) if len(exceeded) else None,
    }


def _mean(name: str, values: Float[np.ndarray, " R"]) -> dict[str, float | None]:
    """The mean with its standard error."""
    se = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return {f"{name}_mean": float(values.mean()) if len(values) else None, f"{name}_se": se}


def _num_unlike(
    cell: Cell,
    settings: Settings,
    samples: Samples,
    thresholds: Float[np.ndarray, " R"],
    grid: str,
    method: str,
) -> int:
    """Of the first samples, the number for which `Guard.fit` has another threshold."""
    count = 0
    for i, (scores, correct) in enumerate(samples.first if grid != SCORES else []):
        tried = samples.tried[grid].thresholds[i]
        if grid == GIVEN and not len(tried):
            continue  # too few answers for any threshold
        guard = Guard.fit(
            scores, correct, target_risk=cell.target, confidence=settings.confidence, method=method,
            thresholds=tried if grid == GIVEN else None,
        )  # fmt: skip
        fitted = math.nan if guard.threshold is None else guard.threshold
        count += not np.array_equal(fitted, thresholds[i], equal_nan=True)
    return count
