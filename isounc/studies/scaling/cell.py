"""One cell of the scaling study, from its problem to its record.

A cell finds the point estimates, samples the posterior, computes the estimates and compares them.
Cells that differ in the seed alone are evaluated together (`evaluate_seeds`), vmapped in one
compiled program. All of them always are, so that a resumed run computes the same numbers as an
uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isounc import densities
from isounc.estimates import ESTIMATORS, Estimate, Evidence
from isounc.estimates.estimate import by_region, estimate_all, layer_rms, posterior_averaged
from isounc.estimates.estimators import estimator_names
from isounc.fit import PointEstimate, fit_maps
from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.sampling.moments import Moments, Posterior
from isounc.studies.scaling.comparisons import compare_classes, predictive_row, quantities
from isounc.studies.scaling.points import chain_mean, with_grid
from isounc.studies.scaling.protocols import num_examples, settings_of_cells
from isounc.studies.scaling.references import Reference, sample_references
from isounc.studies.scaling.settings import Cell, Settings
from isounc.training import fit_trained_many


def cell_problem(cell: Cell, settings: Settings) -> Problem:
    """Return the problem of a cell, whose data depend on the seed."""
    noise = settings.label_noise if make_problem(cell.problem).p_true else 1.0
    n = num_examples(cell, settings)
    problem = make_problem(cell.problem, n=n, seed=cell.seed, label_noise=noise)
    return with_grid(problem, cell.grid_margin) if cell.grid_margin else problem


def cell_model(cell: Cell, problem: Problem) -> Model:
    """Return the model of a cell."""
    return make_model(
        problem,
        width=cell.width,
        depth=cell.depth,
        activation=cell.activation,
        parameterisation=cell.parameterisation,
    )


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Evaluate a batch, whose cells differ in the seed alone; one record each."""
    return evaluate_seeds(batch.cells, settings, say)


def evaluate_seeds(
    cells: Sequence[Cell], settings: Settings, report: Say | None = None
) -> list[Record]:
    """Evaluate cells that differ in the seed alone; one record each."""
    report = report or (lambda _: None)
    clock = _Clock()
    problems = [cell_problem(cell, settings) for cell in cells]
    model = cell_model(cells[0], problems[0])
    prior_sd = cells[0].prior_sd
    # The key of a cell depends on what the cell is, not on where it stands in the sweep.
    keys = [jax.random.split(jax.random.key(zlib.crc32(cell.name.encode())), 3) for cell in cells]

    report("MAP")
    maps = fit_maps(
        problems, model, prior_sd=prior_sd, keys=[k[0] for k in keys], settings=settings.map
    )
    clock.lap("map")
    report("training")
    fitted = {"map": maps}
    # From the same start, if training stops early.
    ways = {"trained": settings.train} | ({"stopped": settings.stop} if settings.protocol else {})
    for kind, how in ways.items():
        fitted[kind] = fit_trained_many(
            problems, model, prior_sd=prior_sd, keys=[k[1] for k in keys], settings=how
        )
    clock.lap("trained")
    references = sample_references(
        problems, model, prior_sd=prior_sd, keys=[k[2] for k in keys],
        settings=settings_of_cells(cells, settings), report=report,
    )  # fmt: skip
    posteriors = [reference.posterior for reference in references]
    clock.lap("posterior")
    report("estimates")
    points, estimates = [], []
    for i, problem in enumerate(problems):
        points.append({kind: fits[i] for kind, fits in fitted.items()})
        if settings.protocol:
            points[i]["chain_mean"] = chain_mean(posteriors[i], problem, prior_sd=prior_sd)
        estimates.append(_estimate(problem, model, prior_sd, points[i], posteriors[i], settings))
    clock.lap("estimates")
    seconds = {name: value / len(cells) for name, value in clock.seconds.items()}
    seconds["total"] = sum(seconds.values())
    return [
        _record(cell, problems[i], model, points[i], references[i], estimates[i], seconds, settings)
        for i, cell in enumerate(cells)
    ]


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


Estimates = dict[str, dict[str, list[dict[str, Estimate]]]]
"""Estimates of one cell by point and estimator: a list over draws of the point, each by region."""


def _estimate(
    problem: Problem,
    model: Model,
    prior_sd: float,
    points: Mapping[str, PointEstimate],
    posterior: Posterior,
    settings: Settings,
) -> Estimates:
    data = densities.make_data(problem, model, prior_sd)
    dtype = data.X.dtype
    X = jnp.asarray(np.concatenate(list(problem.regions.values())).astype(dtype))
    draws = np.asarray(posterior.draws, dtype)
    noise_sd = 1.0 if problem.noise_sd is None else problem.noise_sd
    estimates: Estimates = {}

    def estimate_at(point: str, theta: Float[Array, " P"], evidence: Evidence) -> None:
        for names, fields in _programs(point, without):
            results = estimate_all(
                names, model, X, theta,
                evidence=Evidence(**{field: getattr(evidence, field) for field in fields}),
                num_chains=posterior.num_chains, noise_sd=noise_sd,
            )  # fmt: skip
            for name, result in jax.device_get(results).items():
                parts = by_region(result, problem.regions)
                estimates.setdefault(point, {}).setdefault(name, []).append(parts)

    all_draws = jnp.asarray(draws)
    # Seconds may be spent after one draw a chain, which has no covariance; the gate fails as well.
    without = () if len(draws) > posterior.num_chains else ("draws",)
    for kind, point in points.items():
        theta = jnp.asarray(point.theta, dtype)
        # A trained network has no prior: its layers are scaled by their own weights.
        is_trained = kind in ("trained", "stopped")
        layer_sd = layer_rms(model, theta) if is_trained else data.prior_sd
        hessian = None if point.hessian is None else jnp.asarray(point.hessian, dtype)
        estimate_at(kind, theta, Evidence(data, data.prior_sd, layer_sd, all_draws, hessian))
    for theta in draws[_evenly_spaced(len(draws), settings.num_point_draws)]:
        estimate_at(
            "draw", jnp.asarray(theta), Evidence(data, data.prior_sd, data.prior_sd, all_draws)
        )
    thinned = jnp.asarray(draws[_evenly_spaced(len(draws), settings.num_averaged_draws)])
    averaged = posterior_averaged(model, X, thinned, noise_sd=noise_sd)
    parts = by_region(jax.device_get(averaged), problem.regions)
    estimates["posterior"] = {"posterior_averaged": [parts]}
    return estimates


def _programs(point: str, without: Sequence[str] = ()) -> list[tuple[list[str], list[str]]]:
    """Group the estimators at a point by compiled program, with the `Evidence` that each reads.

    Those that form no gradient are one program, which serves every point. The others share their
    gradients with those that need the same evidence. Those that need evidence in `without` are left
    out.
    """
    groups: dict[object, list[str]] = {}
    for name in estimator_names(point):
        estimator = ESTIMATORS[name]
        if set(without) & set(estimator.needs):
            continue
        groups.setdefault(estimator.by_group or estimator.needs, []).append(name)
    reads = [
        {f for name in names for f in (*ESTIMATORS[name].needs, *ESTIMATORS[name].uses)}
        for names in groups.values()
    ]
    return list(zip(groups.values(), map(sorted, reads), strict=True))


def _evenly_spaced(total: int, wanted: int) -> Int[np.ndarray, " chosen"]:
    return np.unique(np.linspace(0, total - 1, wanted).round().astype(int))


def _record(
    cell: Cell,
    problem: Problem,
    model: Model,
    points: Mapping[str, PointEstimate],
    reference: Reference,
    estimates: Estimates,
    seconds: dict[str, float],
    settings: Settings,
) -> Record:
    arrays: dict[str, Array | np.ndarray] = {"X": problem.X, "y": problem.y}
    rows: list[dict[str, Any]] = []
    checks = {kind: (point.passed, point.reasons) for kind, point in points.items()}
    posterior = reference.posterior
    gate = posterior.gate
    described = dataclasses.asdict(cell) | {"n": len(problem.X)}
    key = described | {
        "num_params": model.num_params,
        "rhat_max": gate.rhat_max,
        "ess_min": _least(gate.ess_bulk_min, gate.ess_var_min),
        "sampler": reference.sampler,
        "seconds": seconds["total"],
    }
    for region, moments in posterior.regions.items():
        trusted = not gate.reasons_in(region)
        arrays |= _reference_arrays(problem, region, moments)
        for point, by_estimator in estimates.items():
            passed, reasons = checks.get(point, (True, ()))
            place = key | {
                "point": point,
                "region": region,
                "gate": "pass" if trusted and passed else "fail",
            }
            note = "; ".join(reasons)
            for estimator, alternatives in by_estimator.items():
                regional = [parts[region] for parts in alternatives]
                # The first of several draws is stored; the rows average over all of them.
                first = regional[0]
                arrays[f"{region}/{point}/epistemic/{estimator}"] = first.epistemic
                if "aleatoric" in ESTIMATORS[estimator].quantities:
                    arrays[f"{region}/{point}/p"] = first.prob
                    arrays[f"{region}/{point}/aleatoric"] = first.aleatoric
                    arrays[f"{region}/{point}/aleatoric_corrected"] = first.aleatoric_corrected
                per_class = ESTIMATORS[estimator].per_class
                for quantity in quantities(point, estimator, with_sd=bool(settings.protocol)):
                    comparisons = compare_classes(
                        problem.likelihood, regional, moments, quantity, per_class=per_class
                    )
                    for name, numbers in comparisons.items():
                        numbers["reason"] = "; ".join(filter(None, (note, numbers["reason"])))
                        about = {"estimator": estimator, "quantity": quantity, "class": name}
                        rows.append(place | about | numbers)
            if region in problem.targets:
                # All estimators at a point share its prediction.
                predictions = [parts[region].prob for parts in next(iter(by_estimator.values()))]
                row = predictive_row(problem, region, predictions, moments)
                rows.append(place | {"reason": note} | row)
    # Estimates were computed in single precision: storing more digits would store noise.
    stored = {
        name: np.asarray(a, np.float32 if a.dtype == np.float64 and "/" in name else a.dtype)
        for name, a in arrays.items()
    }
    meta = {
        "cell": described,
        "likelihood": problem.likelihood,
        "num_params": model.num_params,
        "gate": gate._asdict(),
        "tries": reference.tries,
        "sampling": {
            "sampler": reference.sampler,
            "num_chains": posterior.num_chains,
            "num_draws": posterior.num_draws,
            "num_gradients": posterior.num_gradients,
            "step_size": float(posterior.step_size[0]),
            "acceptance": posterior.acceptance,
            "coordinates": posterior.coordinates,
            "stopped": posterior.stopped,
        },
        "points": {kind: _point_meta(point) for kind, point in points.items()},
        "rows": rows,
        "seconds": seconds,
    }
    return Record(cell.name, meta, stored)


def _least(*values: float | None) -> float | None:
    known = [v for v in values if v is not None]
    return min(known) if known else None


def _point_meta(point: PointEstimate) -> dict[str, Any]:
    meta = point._asdict()
    curvature = "dense Hessian" if meta.pop("hessian") is not None else "GGN (Woodbury)"
    del meta["theta"]
    has_laplace = point.kind in ESTIMATORS["laplace"].points
    return meta | ({"laplace": curvature} if has_laplace else {})


def _reference_arrays(problem: Problem, region: str, moments: Moments) -> dict[str, np.ndarray]:
    arrays = {
        f"{region}/X": problem.regions[region],
        f"{region}/mcmc_mean": moments.mean,
        f"{region}/mcmc_var": moments.var,
        f"{region}/mcmc_var_se": moments.var_se,
        f"{region}/mcmc_aleatoric": moments.aleatoric,
    }
    if region in problem.p_true:
        arrays[f"{region}/p_true"] = problem.p_true[region]
    return arrays
