"""A cell of the spectrum study: its posterior, its points, and a row for each form and region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from isounc import densities
from isounc.fit import PointEstimate, fit_maps
from isounc.models import Model
from isounc.precision import double_precision
from isounc.problems import Problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.sampling.moments import Posterior, moment_arrays
from isounc.sampling.posterior import sample_posteriors
from isounc.statistics import Comparison, compare
from isounc.studies.spectrum import curvature, draws, repriorised
from isounc.studies.spectrum.curvature import AtPoint, Projected, Values
from isounc.studies.spectrum.hessian import hessian_spectrum
from isounc.studies.spectrum.settings import (
    ALL,
    POSTERIOR,
    Cell,
    Settings,
    cell_model,
    cell_problem,
    seed_of,
)
from isounc.training import fit_trained_many

DIGITS = 6
"""Significant digits of the numbers in rows."""
OF_REFERENCE = ("log10_pearson", "pearson", "spearman", "log2_level")
"""Columns that compare a form with the MCMC variance."""
OF_REGION = ("share", "ratio_mean", "ratio_cv", "ratio_pearson", "ratio_spearman", "order")
"""Columns of a form in a region, without a reference."""
OF_POINT = (
    *("log2_top", "log2_over_mean", "log2_over_bulk", "log2_over_rest", "num_nonzero"),
    *("outlier_share", "num_beyond_prior", "dimension", "dimension_share", "kl_covariance"),
    *("kl_mean", "log2_hessian", "hessian_lowest"),
    *("seconds_isotropic", "seconds_removed", "seconds_set_up"),
)
"""Columns of the curvature at a point."""
OF_POSTERIOR = (
    *("draws_over_edge", "draws_num_over_edge", "draws_variance", "effective_draws"),
    *("jeffreys_readout", "jeffreys_weights", "kl_readout", "kl_weights"),
    *("evidence_effective", "sq_readout", "sq_weights"),
)
"""Columns of the draws."""
ISOTROPIC, LAPLACE, DRAWS = "isotropic", "laplace", "draws"

Row = dict[str, Any]


class Point(NamedTuple):
    """A point theta* and why it fails its check."""

    theta: Float[np.ndarray, " P"]
    """The parameters."""
    reasons: tuple[str, ...]
    """Empty where it passes."""


class Found(NamedTuple):
    """The rows of a cell, of both tables."""

    rows: list[Row]
    """Of results.csv."""
    eigenvalues: list[Row]
    """Of eigenvalues.csv."""


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Evaluate a batch, whose cells differ in the seed alone; one record each."""
    cells: Sequence[Cell] = batch.cells
    problems = [cell_problem(cell, settings) for cell in cells]
    model = cell_model(problems[0], cells[0].condition, settings)

    def keys(purpose: str) -> list[jax.Array]:
        return [jax.random.key(seed_of(cell, purpose)) for cell in cells]

    posteriors = sample_posteriors(
        problems, model, prior_sd=settings.prior_sd, keys=keys("posterior"),
        settings=settings.sampling,
        progress=lambda what, done, total: say(f"{what} {done}/{total}" if done else what),
    )  # fmt: skip
    say("points")
    fits: dict[str, list[PointEstimate]] = {}
    ways: dict[str, tuple[Any, Any]] = {
        "map": (fit_maps, settings.map), "trained": (fit_trained_many, settings.train),
    }  # fmt: skip
    for name, (fit, how) in ways.items():
        if name in settings.points:
            fits[name] = fit(
                problems, model, prior_sd=settings.prior_sd, keys=keys(name), settings=how
            )
    records = []
    for i, (cell, problem, posterior) in enumerate(zip(cells, problems, posteriors, strict=True)):
        say(f"spectra of seed {cell.seed}")
        points = {name: Point(of[i].theta, of[i].reasons) for name, of in fits.items()}
        if "draw" in settings.points:
            middle = np.asarray(posterior.draws[len(posterior.draws) // 2])
            points["draw"] = Point(middle, posterior.gate.reasons_in(ALL))
        found = measure(cell, problem, model, posterior, points, settings)
        records.append(_record(cell, problem, model, posterior, found))
    return records


def measure(
    cell: Cell,
    problem: Problem,
    model: Model,
    posterior: Posterior,
    points: Mapping[str, Point],
    settings: Settings,
) -> Found:
    """All rows of a cell; the curvature in double precision where there is one."""
    found = Found([], [])
    few = thinned(np.asarray(posterior.draws), posterior.num_chains, settings.num_draws)
    X = np.concatenate(list(problem.regions.values()))
    identity: Row = {
        "problem": cell.problem, **cell.condition._asdict(), "seed": cell.seed,
    }  # fmt: skip
    for name, point in points.items():
        along = draws.variance_along(point.theta, X, few, posterior.num_chains, model=model)
        with double_precision():
            data = densities.make_data(problem, model, settings.prior_sd)
            theta = jnp.asarray(point.theta, data.X.dtype)
            at = AtPoint.of(theta, data, model)
            projected = at.project(X)
            numbers = _point_numbers(cell, problem, at, X, settings, found, identity, name)
        made = forms(projected, at, settings) | {DRAWS: along}
        here = identity | {"point": name}
        of_all = {"region": ALL, "form": LAPLACE, **numbers}
        found.rows.append(_row(here | of_all, posterior.gate.reasons_in(ALL), point.reasons))
        for region, where in _places(problem).items():
            part = Projected(*(values[where] for values in projected))
            truth = posterior.regions[region].var.sum(axis=1)
            gate = posterior.gate.reasons_in(region)
            for form, values in made.items():
                more = gate if form == DRAWS else ()
                compared = _compared(values[where], part, truth, form)
                place = {"region": region, "form": form}
                found.rows.append(_row(here | place | compared, gate, (*point.reasons, *more)))
    _add_posterior(cell, problem, model, posterior, few, settings, found, identity)
    return found


def thinned(kept: Float[np.ndarray, "T P"], num_chains: int, num: int) -> Float[np.ndarray, "S P"]:
    """At most `num` draws, evenly spaced, as many of each chain."""
    chains = kept.reshape(num_chains, -1, kept.shape[1])
    each = min(chains.shape[1], num // num_chains)
    rows = np.linspace(0, chains.shape[1] - 1, each).round().astype(int)
    return chains[:, rows].reshape(-1, kept.shape[1])


def forms(projected: Projected, at: AtPoint, settings: Settings) -> dict[str, Values]:
    """The forms of g^T Sigma g that the curvature makes, by name."""
    made = {ISOTROPIC: projected.sq_norm}
    for rank in settings.ranks:
        made[f"removed_{rank}"] = curvature.removed(projected, rank)
        made[f"low_rank_{rank}"] = curvature.low_rank(projected, at.spectrum, rank)
    return made | {LAPLACE: curvature.laplace(projected, at.spectrum)}


def _places(problem: Problem) -> dict[str, slice]:
    """Where the locations of each region are among those of all of them."""
    ends = np.cumsum([0, *(len(x) for x in problem.regions.values())]).tolist()
    return dict(zip(problem.regions, map(slice, ends[:-1], ends[1:]), strict=True))


def _compared(values: Values, projected: Projected, truth: Values, form: str) -> Row:
    """The numbers of a form in a region."""
    there = projected.sq_norm > 0
    norms = projected.sq_norm[there]
    ratio = compare(values[there] / norms, norms)
    with_reference = compare(values, truth)
    level = with_reference.slope
    rank = form.removeprefix("removed_")
    return {
        "share": float(curvature.shares(projected, int(rank)).mean())
        if rank.isdigit() and there.any()
        else None,
        **curvature.spread(values, projected.sq_norm),
        "ratio_pearson": ratio.pearson,
        "ratio_spearman": ratio.spearman,
        "order": _log10_pearson(compare(values[there], norms)),
        "log10_pearson": _log10_pearson(with_reference),
        "pearson": with_reference.pearson,
        "spearman": with_reference.spearman,
        "log2_level": curvature.log2(1 / level) if level else None,
        "reason": _reason(with_reference),
    }


def _log10_pearson(comparison: Comparison) -> float | None:
    """Pearson's r of log10, of all locations or of none: forms are compared over the same ones."""
    return None if comparison.n_dropped else comparison.log10_pearson


def _reason(comparison: Comparison) -> str:
    """Why a correlation with the MCMC variance is None."""
    if comparison.pearson is None:
        return comparison.reason
    if comparison.n_dropped:
        num = comparison.n_points
        return f"log10 undefined: {comparison.n_dropped} of {num} locations have no positive value"
    return comparison.reason if comparison.log10_pearson is None else ""


def _point_numbers(
    cell: Cell,
    problem: Problem,
    at: AtPoint,
    X: Float[np.ndarray, "N D"],
    settings: Settings,
    found: Found,
    identity: Row,
    name: str,
) -> Row:
    """Numbers of the curvature at a point; its eigenvalues go into a table."""
    key = jax.random.key(seed_of(cell, f"hessian/{name}"))
    hessian = hessian_spectrum(
        at.theta, at.data, model=at.model, key=key, steps=settings.lanczos_steps
    )
    values = at.spectrum.values[at.spectrum.values > 0]
    for kind, shown in (("ggn", values), ("hessian", hessian.values)):
        found.eigenvalues.extend(_listed(identity | {"point": name, "kind": kind}, shown))
    num_params = at.model.num_params
    top = hessian.values[0] if len(hessian.values) else 0.0
    return {
        **curvature.summary(
            at.spectrum, num_params=num_params, num_outliers=max(1, problem.num_classes),
            mean=np.asarray(at.theta / at.data.prior_sd),
        ),
        "log2_hessian": curvature.log2(top / at.spectrum.values[0]) if len(values) else None,
        "hessian_lowest": hessian.lowest,
        **curvature.seconds(at, X, settings.rank, num_timings=settings.num_timings),
    }  # fmt: skip


def _listed(where: Row, values: Float[np.ndarray, " K"]) -> list[Row]:
    ranks = curvature.ranks_shown(len(values)) if len(values) else ()
    shown = [(rank, float(values[rank - 1])) for rank in ranks]
    return [where | {"rank": rank, "value": _short(value)} for rank, value in shown]


def _add_posterior(
    cell: Cell,
    problem: Problem,
    model: Model,
    posterior: Posterior,
    few: Float[np.ndarray, "S P"],
    settings: Settings,
    found: Found,
    identity: Row,
) -> None:
    """Numbers of the draws: their covariance, and how far they are from N(0, I)."""
    white = np.asarray(posterior.draws, float) / model.param_prior_sd(settings.prior_sd)
    effective = draws.effective_draws(white, posterior.num_chains)
    values = draws.covariance_eigenvalues(white, posterior.num_chains)
    numbers = draws.numbers_of_draws(values, num_params=model.num_params, num_effective=effective)
    levels = 1 - (np.arange(len(values)) + 0.5) / len(values)
    null = draws.marchenko_pastur_quantiles(model.num_params, effective, levels)
    for kind, shown in (("draws", values), ("null", null)):
        where = identity | {"point": POSTERIOR, "kind": kind}
        found.eigenvalues.extend(_listed(where, shown))
    with double_precision():
        data = densities.make_data(problem, model, settings.prior_sd)
        key = jax.random.key(seed_of(cell, "divergences"))
        kernel_key, readout_key, prior_key = jax.random.split(key, 3)
        observed = repriorised.observe(problem, model, data, kernel_key)
        num = len(few)
        sets = (
            jnp.asarray(few, data.X.dtype),
            repriorised.sample_readout(readout_key, observed, data, model=model, num=num),
            repriorised.sample_prior(prior_key, data, num),
        )
        numbers |= repriorised.divergences(
            *(repriorised.ratios(thetas, observed, data, model=model) for thetas in sets)
        )
    here = {"point": POSTERIOR, "region": ALL, "form": DRAWS}
    reasons = posterior.gate.reasons_in(ALL)
    found.rows.append(_row(identity | here | numbers, reasons, reasons))


def _row(values: Row, gate: Sequence[str], check: Sequence[str]) -> Row:
    """A row with every column; numbers are rounded, and None where they are not finite."""
    numbers = (*OF_REFERENCE, *OF_REGION, *OF_POINT, *OF_POSTERIOR)
    row = {**dict.fromkeys(numbers), "reason": "", **values}
    row |= {
        "gate": "fail" if gate else "pass", "gate_reasons": "; ".join(dict.fromkeys(gate)),
        "check": "fail" if check else "pass", "check_reasons": "; ".join(dict.fromkeys(check)),
    }  # fmt: skip
    return {name: _short(value) for name, value in row.items()}


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def _record(
    cell: Cell, problem: Problem, model: Model, posterior: Posterior, found: Found
) -> Record:
    arrays = moment_arrays(problem, posterior)
    meta = {
        "cell": {"problem": cell.problem, **cell.condition._asdict(), "seed": cell.seed},
        "gate": posterior.gate._asdict(),
        "stopped": posterior.stopped,
        "num_params": model.num_params,
        "rows": found.rows,
        "eigenvalues": found.eigenvalues,
    }
    return Record(cell.name, meta, arrays)
