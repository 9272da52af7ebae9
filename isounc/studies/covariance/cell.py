"""A cell of the covariance study: its posterior, its points, and a row for each comparison."""

from __future__ import annotations

import dataclasses
import itertools
import math
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
from isounc.statistics import compare
from isounc.studies.covariance.forms import estimate_forms, gradients
from isounc.studies.covariance.proxies import is_made_for, proxy_inputs
from isounc.studies.covariance.settings import (
    ALL,
    Cell,
    CellData,
    Settings,
    cell_data,
    cell_model,
    seed_of,
)
from isounc.studies.covariance.structure import (
    alignments,
    distance,
    log_ratio,
    regress,
    subspaces,
)
from isounc.training import fit_trained_many

PRIOR = 1.0
"""The lambda of the prior."""
DIGITS = 6
"""Significant digits of the numbers in rows."""
STRUCTURE = (
    *("slope_proxy", "slope_train", "r2", "alignment", "alignment_change"),
    *("overlap_top", "angle_top", "overlap_stiff", "angle_stiff", "log2_stiff"),
)
"""Columns that few rows have; the study's docstring says which."""
_ALIGNED = "grid"
"""The region whose locations are about the same for all seeds."""

Values = Float[np.ndarray, " N"]
"""A variance at N locations, summed over columns."""
Row = dict[str, Any]


class Key(NamedTuple):
    """An estimate of a cell."""

    point: str
    """Where it is made."""
    proxy: str
    """The inputs of its covariance."""
    form: str
    """The form of its covariance."""
    lam: float
    """Its lambda, in units of the prior's precision."""


class Made(NamedTuple):
    """The estimates of a cell and what their covariances are made from."""

    values: dict[Key, Values]
    """g^T Sigma g at the locations of all regions one after the other."""
    inputs: dict[str, Float[np.ndarray, "n D"]]
    """The inputs of each proxy."""
    directions: dict[tuple[str, str], tuple[Float[np.ndarray, "P R"], Float[np.ndarray, " R"]]]
    """Eigenvectors of the GGN in prior coordinates and its eigenvalues, by point and proxy."""


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Evaluate a batch, whose cells differ in the seed alone; one record each."""
    cells: Sequence[Cell] = batch.cells
    data = [cell_data(cell, settings) for cell in cells]
    problems = [one.problem for one in data]
    model = cell_model(problems[0], cells[0].width, settings)

    def keys(purpose: str) -> list[jax.Array]:
        return [jax.random.key(seed_of(cell, purpose)) for cell in cells]

    posteriors = sample_posteriors(
        problems, model, prior_sd=settings.prior_sd, keys=keys("posterior"),
        settings=settings.sampling,
        progress=lambda what, done, total: say(f"{what} {done}/{total}" if done else what),
    )  # fmt: skip
    say("points")
    fits = {"map": (fit_maps, settings.map), "trained": (fit_trained_many, settings.train)}
    points = {
        name: fit(problems, model, prior_sd=settings.prior_sd, keys=keys(name), settings=how)
        for name, (fit, how) in fits.items()
        if name in settings.points
    }
    made, rows = [], []
    for i, cell in enumerate(cells):
        say(f"covariances of seed {cell.seed}")
        at = {name: found[i] for name, found in points.items()}
        made.append(estimates(cell, data[i], model, at, settings))
        rows.append(compared(cell, problems[i], made[i], at, posteriors[i], settings))
    align(rows, made, problems, posteriors)
    return [
        _record(cell, problems[i], model, posteriors[i], made[i], rows[i])
        for i, cell in enumerate(cells)
    ]


def estimates(
    cell: Cell,
    data: CellData,
    model: Model,
    points: Mapping[str, PointEstimate],
    settings: Settings,
) -> Made:
    """Every estimate of a cell, in double precision where there is one."""
    problem = data.problem
    names = [name for name in settings.proxies if is_made_for(name, problem.name)]
    inputs = {
        name: proxy_inputs(name, problem, data.fresh, np.random.default_rng(seed_of(cell, name)))
        for name in names
    }
    made = Made({}, inputs, {})
    with double_precision():
        arrays = densities.make_data(problem, model, settings.prior_sd)
        X = jnp.asarray(_locations(problem), arrays.X.dtype)
        lams = jnp.asarray(settings.lams, X.dtype)
        for (point, fit), proxy in itertools.product(points.items(), names):
            theta = jnp.asarray(fit.theta, X.dtype)
            g = gradients(theta, X, model=model)
            proxy_data = arrays._replace(X=jnp.asarray(inputs[proxy], X.dtype))
            found = jax.device_get(
                estimate_forms(
                    theta, g, proxy_data, lams, model=model, forms=settings.forms,
                    rank=settings.rank,
                )
            )  # fmt: skip
            by_key = {Key(point, proxy, form, PRIOR): v for form, v in found.forms.items()}
            by_key |= {
                Key(point, proxy, "full", lam): values
                for lam, values in zip(settings.lams, found.lams, strict=True)
            }
            made.values.update({key: np.asarray(v, float) for key, v in by_key.items()})
            made.directions[point, proxy] = found.basis, found.strengths
    return made


def _locations(problem: Problem) -> Float[np.ndarray, "N D"]:
    return np.concatenate(list(problem.regions.values()))


def _places(problem: Problem) -> dict[str, slice]:
    """Where the locations of each region are among those of all of them."""
    ends = np.cumsum([0, *(len(x) for x in problem.regions.values())]).tolist()
    regions = dict(zip(problem.regions, map(slice, ends[:-1], ends[1:]), strict=True))
    return regions | {ALL: slice(0, ends[-1])}


def _reference(problem: Problem, posterior: Posterior) -> Values:
    return np.concatenate([posterior.regions[name].var.sum(axis=1) for name in problem.regions])


def compared(
    cell: Cell,
    problem: Problem,
    made: Made,
    points: Mapping[str, PointEstimate],
    posterior: Posterior,
    settings: Settings,
) -> list[Row]:
    """A row for each estimate and region: how it compares with the variance of the prediction."""
    truth, X = _reference(problem, posterior), _locations(problem)
    to = {name: distance(X, inputs) for name, inputs in made.inputs.items()}
    draws = np.asarray(posterior.draws, float) / posterior.model.param_prior_sd(settings.prior_sd)
    rows = []
    for (key, values), (region, where) in itertools.product(
        made.values.items(), _places(problem).items()
    ):
        comparison = compare(values[where], truth[where])
        gate = posterior.gate
        failed = gate.reasons if region == ALL else gate.reasons_in(region)
        reasons = (*failed, *points[key.point].reasons)
        row: Row = {
            "problem": cell.problem, "width": cell.width, "seed": cell.seed, **key._asdict(),
            "region": region, "pearson": comparison.pearson, "spearman": comparison.spearman,
            "log2_level": None if comparison.slope is None else -math.log2(comparison.slope),
            **dict.fromkeys(STRUCTURE),
            "gate": "fail" if reasons else "pass",
            "gate_reasons": "; ".join(dict.fromkeys(reasons)),
            "reason": comparison.reason if comparison.pearson is None else "",
        }  # fmt: skip
        if region == ALL and key.lam == PRIOR:
            found = regress(log_ratio(values, truth), to[key.proxy], to["train"])
            row |= {name: getattr(found, name) for name in ("slope_proxy", "slope_train", "r2")}
            if key.form == "full":
                spaces = subspaces(
                    *made.directions[key.point, key.proxy], draws, posterior.num_chains,
                    settings.num_directions,
                )  # fmt: skip
                row |= {name: getattr(spaces, name) for name in spaces._fields if name in STRUCTURE}
                row["reason"] = "; ".join(filter(None, (row["reason"], spaces.reason)))
        rows.append({name: _short(value) for name, value in row.items()})
    return rows


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def align(
    rows: Sequence[list[Row]],
    made: Sequence[Made],
    problems: Sequence[Problem],
    posteriors: Sequence[Posterior],
) -> None:
    """Write how each seed's errors on the grid agree with those of the other seeds that passed.

    `alignment` is about log2(estimate / reference), `alignment_change` about log2 of the estimate
    over that from the training inputs. Both are pseudo-values (`alignments`).
    """
    if _ALIGNED not in problems[0].regions:
        return
    where = _places(problems[0])[_ALIGNED]
    truths = [_reference(*pair)[where] for pair in zip(problems, posteriors, strict=True)]
    places = [
        {Key(*(row[f] for f in Key._fields)): row for row in of_cell if row["region"] == _ALIGNED}
        for of_cell in rows
    ]

    def write(name: str, key: Key, against: Sequence[Values]) -> None:
        passed = [found[key]["gate"] == "pass" for found in places]
        fields = [
            log_ratio(one.values[key][where], other) if ok else None
            for one, other, ok in zip(made, against, passed, strict=True)
        ]
        for found, value in zip(places, alignments(fields), strict=True):
            found[key][name] = _short(value)

    for key in made[0].values:
        if key.lam != PRIOR:
            continue
        write("alignment", key, truths)
        if key.proxy != "train":
            trained = key._replace(proxy="train")
            write("alignment_change", key, [one.values[trained][where] for one in made])


def _record(
    cell: Cell, problem: Problem, model: Model, posterior: Posterior, made: Made, rows: list[Row]
) -> Record:
    arrays, places = moment_arrays(problem, posterior), _places(problem)
    arrays |= {
        f"{region}/{key.point}/{key.proxy}/{key.form}": np.asarray(
            values[places[region]], np.float32
        )
        for region, (key, values) in itertools.product(problem.regions, made.values.items())
        if key.lam == PRIOR
    }
    arrays |= {f"proxies/{name}": inputs for name, inputs in made.inputs.items()}
    meta = {
        "cell": dataclasses.asdict(cell),
        "gate": posterior.gate._asdict(),
        "stopped": posterior.stopped,
        "num_params": model.num_params,
        "grid_shape": problem.grid_shape,
        "rows": rows,
    }
    return Record(cell.name, meta, arrays)
