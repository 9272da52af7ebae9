"""A run folder with made-up numbers, in the form that the scaling experiment writes."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from isounc.metrics import class_views
from isounc.runs.folder import Record, RunFolder
from isounc.sampling.moments import Moments, two_valued
from isounc.statistics import compare
from isounc.studies.scaling.comparisons import RESULT_COLUMNS, row_numbers

LIKELIHOODS = {
    **{name: ("bernoulli", 1, 2) for name in ("linear", "xor", "rings", "moons")},
    **{name: ("categorical", 3, 2) for name in ("clusters3", "spirals3", "rings3")},
    **{name: ("gaussian", 1, 1) for name in ("linear_regression", "nonlinear_regression")},
    **{name: ("bernoulli", 1, 5) for name in ("breast_cancer", "digits_3v8")},
    "wine": ("categorical", 3, 5),
}
NULLS = ("null_aleatoric", "null_squared", "null_distance")
CHEAP = ("isotropic", *NULLS, "logit_scaled", "logit_scaled_level", "link_aware", "layer_scaled")
FULL = (
    *CHEAP,
    *("laplace", "laplace_diagonal", "oracle", "oracle_within_chain", "oracle_diagonal"),
)
AT_POINT = {
    "map": FULL,
    "trained": ("isotropic", "null_aleatoric", "link_aware", "layer_scaled", "laplace"),
    "draw": ("isotropic", "null_aleatoric", "null_distance", "link_aware", "layer_scaled"),
    "posterior": ("posterior_averaged",),
}
NOISE = {
    "logit_scaled": 0.55,
    "logit_scaled_level": 0.65,
    **{"isotropic": 0.9, "link_aware": 0.6, "layer_scaled": 0.9, "laplace": 0.5},
    **{"laplace_diagonal": 0.8, "oracle": 0.7, "oracle_within_chain": 0.75},
    **{"oracle_diagonal": 1.0, "posterior_averaged": 0.2},
}
FAILED = (("xor", 2, 0), ("xor", 2, 2), ("rings3", 32, 1))
"""Cells (problem, width, seed) whose gate failed."""
CONSTANT = (("xor", 32, 0), ("xor", 32, 1), ("xor", 32, 2))
"""Cells whose isotropic estimate at the MAP is constant, so has no correlation."""
HOSTILE = "R-hat 1.4 <script>alert('gate')</script> & more"


def write_run(
    path: Path,
    *,
    problems=("xor", "rings3", "nonlinear_regression"),
    widths=(2, 8, 32),
    seeds=(0, 1, 2),
    regions=("test", "grid", "far"),
    points=tuple(AT_POINT),
    failed=FAILED,
    constant=CONSTANT,
    tables=True,
    grid_size=21,
    **settings,
) -> RunFolder:
    given = {"problems": problems, "widths": widths, "num_seeds": max(seeds) + 1}
    run = RunFolder.open(path, {**given, **settings}, study="scaling")
    rows = []
    for problem in problems:
        for width in widths:
            for seed in seeds:
                cell = (problem, width, seed)
                record = _record(
                    cell, regions, points, cell not in failed, cell in constant, grid_size
                )
                run.write(record)
                rows += record.meta["rows"]
    if tables:
        run.write_table("results.csv", rows, RESULT_COLUMNS)
    run.write_info({"versions": {"jax": "0.0.1", "numpy": "0.0.2"}, "device": {"kind": "cpu"}})
    return run


def _record(cell, regions, points, passed, is_constant, grid_size) -> Record:
    problem, width, seed = cell
    likelihood, columns, dimension = LIKELIHOODS[problem]
    rng = np.random.default_rng([zlib.crc32(problem.encode()), width, seed])
    X = rng.normal(size=(60, dimension))
    arrays = {"X": X, "y": _labels(X, likelihood, columns, rng)}
    gate = {
        "passed": passed, "reasons": [] if passed else [HOSTILE], "rhat_max": 1.004,
        "ess_bulk_min": 1500.0, "ess_var_min": 1200.0, "ess_tail_min": 900.0, "ebfmi_min": 0.9,
        "divergences": 0, "num_zero_variance": 0, "var_mcse_median": 0.02,
    }  # fmt: skip
    if not passed:
        gate |= {"rhat_max": 1.4, "ess_bulk_min": 12.0, "ess_tail_min": None}
    setup = {
        "problem": problem, "width": width, "depth": 1, "activation": "tanh",
        "parameterisation": "ntk", "prior_sd": 2.0, "seed": seed,
    }  # fmt: skip
    rows = []
    for region in regions:
        x = _locations(region, dimension, grid_size, rng)
        if x is None:
            continue
        p, var = _truth(x, likelihood, columns)
        aleatoric = p * (1 - p) if likelihood != "gaussian" else np.full_like(p, 0.01)
        # As if all were far from equality, but for a tenth of the locations.
        se = np.where(np.arange(len(p)) % 10 == 0, 1.0, 0.0)[:, None] + 0 * p
        moments = Moments(p, se, var, se, aleatoric - var, se, *[np.zeros(len(p))] * 3)
        at = two_valued(moments, likelihood, p=p)
        arrays |= {
            f"{region}/X": x, f"{region}/mcmc_mean": p, f"{region}/mcmc_var": var,
            f"{region}/mcmc_var_se": 0.05 * var, f"{region}/mcmc_aleatoric": aleatoric,
        }  # fmt: skip
        if dimension <= 2:
            arrays[f"{region}/p_true"] = p
        for point in points:
            where = {**setup, "point": point, "region": region, "gate": _verdict(passed)}
            if point != "posterior":
                arrays[f"{region}/{point}/p"] = p
                noisy = aleatoric * np.exp(0.1 * rng.normal(size=p.shape))
                for name, values in (("aleatoric", noisy), ("aleatoric_corrected", 0.9 * noisy)):
                    arrays[f"{region}/{point}/{name}"] = values
                    about = {**where, "estimator": "isotropic", "quantity": name}
                    rows += _rows(about, likelihood, p, values, aleatoric, at)
                if region == "test":
                    numbers = {"nll": 0.5, "ece": 0.1, "mcmc_nll": 0.4, "mcmc_ece": 0.05}
                    about = {"estimator": "isotropic", "quantity": "predictive", "class": ""}
                    rows.append({**where, **about, **numbers})
            nulls = _nulls(x, X, p, likelihood)
            for estimator in AT_POINT[point]:
                if estimator in NULLS:
                    values = nulls[estimator]
                    arrays[f"{region}/{point}/epistemic/{estimator}"] = values
                    about = {**where, "estimator": estimator, "quantity": "epistemic"}
                    rows += _rows(about, likelihood, p, values, var, at)
                    continue
                spread = NOISE[estimator] * (2.0 if point == "trained" else 1.0) / width**0.2
                noise = 0.3 * rng.normal() + spread * rng.normal(size=(len(x), 1))
                if estimator == "layer_scaled":
                    values = 4 * arrays[f"{region}/{point}/epistemic/isotropic"]
                else:
                    values = var * np.exp(noise) * 12
                if is_constant and point == "map" and estimator == "isotropic":
                    values = np.ones_like(var)
                arrays[f"{region}/{point}/epistemic/{estimator}"] = values
                about = {**where, "estimator": estimator, "quantity": "epistemic"}
                rows += _rows(about, likelihood, p, values, var, at)
    checks = {
        point: {
            "passed": passed, "reasons": [], "rel_grad_norm": 1e-7,
            "hessian_min_eigenvalue": 0.25, "log_density": -50.0,
        }
        for point in points
        if point != "posterior"
    }  # fmt: skip
    meta = {
        "cell": setup, "likelihood": likelihood, "num_params": 4 * width + 1, "gate": gate,
        "points": checks, "rows": rows,
        "seconds": {"fit": 1.0, "posterior": 2.0, "estimates": 0.5, "total": 3.5},
    }  # fmt: skip
    return Record(f"{problem}-w{width}-s{seed}", meta, arrays)


def _rows(about, likelihood, p, values, reference, at):
    null = p * (1 - p) if likelihood != "gaussian" else np.full_like(p, 0.01)
    estimates, references, nulls = (
        class_views(p, v, likelihood) for v in (values, reference, null)
    )
    rows = []
    for name, estimate in estimates.items():
        if likelihood == "categorical" and name.isdigit() and about["estimator"] != "isotropic":
            continue
        places = [at[name]] if at else []
        numbers = compare(
            estimate, references[name], reference_se=0.05 * references[name],
            given=nulls[name] if about["quantity"] == "epistemic" else None,
            two_valued=places[0].mask if places else None,
        )  # fmt: skip
        rows.append({**about, "class": name, **row_numbers([numbers], places)})
    return rows


def _nulls(x, X, p, likelihood):
    nearest = np.linalg.norm(x[:, None] - X[None], axis=2).min(axis=1)[:, None]
    if likelihood == "gaussian":
        return dict(zip(NULLS, (np.full_like(p, 0.01), np.ones_like(p), nearest), strict=True))
    squared = (p * (1 - p)) ** 2
    return dict(zip(NULLS, (p * (1 - p), squared, squared * nearest), strict=True))


def _verdict(passed):
    return "pass" if passed else "fail"


def _locations(region, dimension, grid_size, rng):
    if region == "grid" and dimension > 2:
        return None
    if region == "grid":
        axis = np.linspace(-3, 3, grid_size if dimension == 2 else 5 * (grid_size - 1) + 1)
        mesh = np.meshgrid(*[axis] * dimension, indexing="ij")
        return np.stack([coordinate.ravel() for coordinate in mesh], axis=1)
    scale = 1.0 if region == "test" else 4.0
    return scale * rng.normal(size=(50, dimension))


def _truth(x, likelihood, columns):
    radius = np.linalg.norm(x, axis=1)
    if likelihood == "gaussian":
        return np.sin(2 * x[:, :1]), 0.01 + 0.05 * x[:, :1] ** 2
    if columns == 1:
        p = 1 / (1 + np.exp(-3 * x[:, :1] * x[:, 1:2]))
        return p, p * (1 - p) * (0.02 + 0.1 * radius[:, None])
    logits = -2 * (radius[:, None] - np.arange(columns)) ** 2
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p, p * (1 - p) * (0.02 + 0.1 * radius[:, None])


def _labels(X, likelihood, columns, rng):
    p, _ = _truth(X, likelihood, columns)
    if likelihood == "gaussian":
        return p[:, 0] + 0.1 * rng.normal(size=len(X))
    if columns == 1:
        return (rng.random(len(X)) < p[:, 0]).astype(int)
    return (rng.random((len(X), 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, columns - 1)
