"""A cell of the confirmation study: its posterior, its networks, and a row for each comparison."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from isounc import densities
from isounc.estimates import Evidence
from isounc.estimates.estimate import estimate_all
from isounc.fit import PointEstimate, fit_maps
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.sampling.gate import Gate
from isounc.sampling.moments import Posterior, moment_arrays
from isounc.sampling.posterior import sample_posteriors
from isounc.statistics import Comparison, compare
from isounc.studies.confirmation.settings import (
    BASE,
    Cell,
    Condition,
    Settings,
    cell_model,
    cell_problem,
)
from isounc.training import disjoint_groups, fit_ensemble

SCALED = ("logit_scaled", "logit_scaled_level")
"""The estimates in question: scale "unit", and scale "effective_dimension"."""
ONE_PASS = (*SCALED, "isotropic", "null_aleatoric", "null_squared", "link_aware")
"""Estimates at any point, by name in `isounc.estimates.ESTIMATORS`."""
CURVED = ("laplace",)
"""Estimators that need a MAP or a trained network; they are not computed at posterior draws."""

Values = Float[np.ndarray, " N"]
"""A variance at N locations, summed over classes."""


class Made(NamedTuple):
    """An estimate as often as it was made: at several networks or draws, or of several groups."""

    condition: Condition
    """The condition that it belongs to."""
    estimate: str
    """Its name."""
    alternatives: Sequence[Values]
    """Its values, once for each network, draw or group."""
    reasons: tuple[str, ...]
    """Why the networks or the MAP that it is made at fail their check."""


def evaluate(batch: Batch, settings: Settings, say: Say) -> Iterator[Record]:
    """Evaluate a batch, whose cells differ in the seed alone; one record each."""
    cells: Sequence[Cell] = batch.cells
    problems = [cell_problem(cell) for cell in cells]
    model = cell_model(cells[0], problems[0], settings)
    prior_sd = cells[0].prior_sd
    posteriors = sample_posteriors(
        problems,
        model,
        prior_sd=prior_sd,
        keys=[_key(cell.name, "posterior") for cell in cells],
        settings=settings.sampling,
        progress=lambda what, done, total: say(f"{what} {done}/{total}" if done else what),
    )
    maps: Sequence[PointEstimate | None] = [None] * len(cells)
    if cells[0].factor == BASE:
        say("MAP")
        maps = fit_maps(
            problems, model, prior_sd=prior_sd, keys=[_key(cell.name, "map") for cell in cells]
        )
    for cell, problem, posterior, map_fit in zip(cells, problems, posteriors, maps, strict=True):
        say(f"networks of seed {cell.seed}")
        networks = fit_ensemble(
            problem, model, settings.counts[-1], key=_key(cell.networks, "networks"),
            prior_sd=prior_sd, settings=settings.train,
        )  # fmt: skip
        draws = np.asarray(posterior.draws)
        made = estimates(cell, problem, model, networks, map_fit, draws, settings)
        variances = {name: moments.var for name, moments in posterior.regions.items()}
        rows = compared(cell, problem, made, variances, posterior.gate)
        yield _record(cell, problem, model, posterior, rows)


def _key(name: str, purpose: str) -> PRNGKeyArray:
    # The numbers of a cell depend on what the cell is, not on where it stands in the run.
    return jax.random.key(zlib.crc32(f"confirmation/{name}/{purpose}".encode()))


def estimates(
    cell: Cell,
    problem: Problem,
    model: Model,
    networks: Sequence[PointEstimate],
    map_fit: PointEstimate | None,
    draws: Float[np.ndarray, "S P"],
    settings: Settings,
) -> Iterator[Made]:
    """Every estimate of a cell, at the locations of all regions one after the other.

    Parameters
    ----------
    networks
        The trained networks, as many as the largest ensemble has.
    map_fit
        The MAP; None where the cell is not at the base.
    draws
        Draws of the posterior, chain-major, of which few are taken, evenly spaced.
    """
    data = densities.make_data(problem, model, cell.prior_sd)
    X = jnp.asarray(np.concatenate(list(problem.regions.values())), data.X.dtype)
    at = functools.partial(_at, model, X, noise_sd=problem.noise_sd)
    thetas = np.stack([network.theta for network in networks])
    few = thetas[: settings.num_repeats]
    failed = [network.reasons[0] for network in networks if not network.passed]
    reasons = (f"{len(failed)} of {len(networks)} networks: {failed[0]}",) if failed else ()
    here = Condition(cell.factor, cell.value)
    evidence = Evidence(data, data.prior_sd)

    for name, values in at(few, (*ONE_PASS, *CURVED), evidence).items():
        yield Made(here, name, values, reasons)
    p = _predictions(jnp.asarray(thetas, X.dtype), X, model=model)
    for count, values in ensemble_variances(np.asarray(p), settings).items():
        yield Made(here, f"ensemble_{count}", values, reasons)
    if cell.factor != BASE:
        return
    for value, inputs in reference_inputs(cell, problem, settings).items():
        # The rules read nothing of the data but the inputs and the noise.
        others = data._replace(
            X=jnp.asarray(inputs, X.dtype), y=jnp.zeros(len(inputs), data.y.dtype)
        )
        for name, values in at(few, SCALED, Evidence(others, data.prior_sd)).items():
            yield Made(Condition("reference", value), name, values, reasons)
    assert map_fit is not None
    hessian = None if map_fit.hessian is None else jnp.asarray(map_fit.hessian, X.dtype)
    curved = evidence._replace(hessian=hessian)
    for name, values in at(map_fit.theta[None], (*ONE_PASS, *CURVED), curved).items():
        yield Made(Condition("point", "map"), name, values, map_fit.reasons)
    chosen = np.linspace(0, len(draws) - 1, settings.num_repeats).round().astype(int)
    for name, values in at(draws[chosen], ONE_PASS, evidence).items():
        yield Made(Condition("point", "draw"), name, values, ())


def _at(
    model: Model,
    X: Float[Array, "N D"],
    thetas: Float[np.ndarray, "K P"],
    names: Sequence[str],
    evidence: Evidence,
    *,
    noise_sd: float | None,
) -> dict[str, list[Values]]:
    """Estimates at each of K points, summed over classes."""
    found: dict[str, list[Values]] = {name: [] for name in names}
    for theta in thetas:
        made = estimate_all(
            names, model, X, jnp.asarray(theta, X.dtype), evidence=evidence,
            noise_sd=1.0 if noise_sd is None else noise_sd,
        )  # fmt: skip
        for name, estimate in jax.device_get(made).items():
            found[name].append(np.asarray(estimate.epistemic, float).sum(axis=1))
    return found


@functools.partial(jax.jit, static_argnames="model")
def _predictions(
    thetas: Float[Array, "K P"], X: Float[Array, "N D"], *, model: Model
) -> Float[Array, "K N M"]:
    return jax.lax.map(lambda theta: model.predict(theta, X), thetas)


def ensemble_variances(
    p: Float[np.ndarray, "K N M"], settings: Settings
) -> dict[int, list[Values]]:
    """Variance of p over each of the disjoint groups of networks, summed over classes, by size."""
    p = np.asarray(p, float)
    return {
        count: [
            p[group].var(axis=0, ddof=1).sum(axis=1)
            for group in disjoint_groups(count, len(p), settings.num_repeats)
        ]
        for count in settings.counts
    }


def reference_inputs(
    cell: Cell, problem: Problem, settings: Settings
) -> dict[str, Float[np.ndarray, "R D"]]:
    """Inputs that set the scale in place of all training inputs, by value of the factor."""
    X = problem.X
    rng = np.random.default_rng(zlib.crc32(f"confirmation/{cell.name}/wide".encode()))
    shifted = {
        "far": problem.regions["far"],
        "wide": X.mean(axis=0) + 2 * X.std(axis=0) * rng.standard_normal(X.shape),
    }
    found = {str(size): X[:size] for size in settings.reference_sizes}
    return found | {name: shifted[name] for name in settings.reference_shifts}


def compared(
    cell: Cell,
    problem: Problem,
    made: Iterator[Made],
    variances: Mapping[str, Float[np.ndarray, "N M"]],
    gate: Gate,
) -> list[dict[str, Any]]:
    """A row for each estimate and region: how it compares with the variance of p.

    Parameters
    ----------
    variances
        The reference by region, in the order of the problem's.
    gate
        The verdict on the reference.
    """
    ends = np.cumsum([len(x) for x in problem.regions.values()]).tolist()
    where = {
        region: slice(end - len(x), end)
        for (region, x), end in zip(problem.regions.items(), ends, strict=True)
    }
    rows: list[dict[str, Any]] = []
    for one in made:
        for region, variance in variances.items():
            reasons = (*gate.reasons_in(region), *one.reasons)
            truth = variance.sum(axis=1)
            values = [compare(v[where[region]], truth) for v in one.alternatives]
            rows.append({
                "problem": cell.problem, "seed": cell.seed,
                "link": LIKELIHOODS[problem.likelihood].link,
                **one.condition._asdict(), "region": region, "estimate": one.estimate,
                **averaged(values), "gate": "fail" if reasons else "pass",
                "gate_reasons": "; ".join(dict.fromkeys(reasons)),
            })  # fmt: skip
    return rows


def _record(
    cell: Cell, problem: Problem, model: Model, posterior: Posterior, rows: list[dict[str, Any]]
) -> Record:
    arrays = moment_arrays(problem, posterior)
    meta = {
        "cell": dataclasses.asdict(cell),
        "gate": posterior.gate._asdict(),
        "stopped": posterior.stopped,
        "num_params": model.num_params,
        "rows": rows,
    }
    return Record(cell.name, meta, arrays)


def averaged(comparisons: Sequence[Comparison]) -> Mapping[str, Any]:
    """Mean correlations, and the log2 of the level's geometric mean, of those that are defined."""
    undefined = [c for c in comparisons if c.pearson is None]
    reasons = "; ".join(sorted({c.reason for c in undefined}))
    many = len(comparisons) > 1
    where = f"{len(undefined)} of {len(comparisons)}: " if many else ""
    return {
        "pearson": _mean([c.pearson for c in comparisons]),
        "spearman": _mean([c.spearman for c in comparisons]),
        "log2_level": _mean(
            [None if c.slope is None else -math.log2(c.slope) for c in comparisons]
        ),
        "num_averaged": len(comparisons),
        "num_undefined": len(undefined),
        "reason": f"{where}{reasons}" if undefined else "",
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are defined."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
