"""A reference for people and other tools: its card, and its draws for ArviZ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.problems import Problem
from isounc.references.exact import RELATIVE_ERROR_MAX
from isounc.sampling.gate import Gate
from isounc.sampling.moments import Moments
from isounc.sampling.settings import GateSettings

METHODS = {
    "quadrature": "the trapezoid rule over all parameters, in float64 "
    "(`isounc.references.logistic_by_quadrature`)",
    "closed form": "linear algebra in float64 (`isounc.references.linear_gaussian`)",
}


class Exports:
    """Views of a reference; `isounc.references.Reference` defines the fields."""

    name: str
    method: str
    problem: Problem
    model: Model
    prior_sd: float
    regions: Mapping[str, Moments]
    draws: np.ndarray
    values: Mapping[str, np.ndarray]
    locations: Mapping[str, np.ndarray]
    num_chains: int
    gate: Gate | None
    checks: Mapping[str, Any]
    reasons: tuple[str, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    checksum: str

    @property
    def card(self) -> str:
        """The reference's origin and checks, as Markdown."""
        return _card(self)

    def to_arviz(self) -> Any:
        """The draws for ArviZ: `arviz.InferenceData` below ArviZ 1, `xarray.DataTree` from it on.

        Both have `to_netcdf(path)`, and `arviz.from_netcdf` reads what it writes. Groups:

            posterior                p (regression: f), predictions: chain, draw, location, column
            unconstrained_posterior  theta, fewer draws of the parameters: chain, draw, parameter
            constant_data            X and x, inputs of training and of the locations
            observed_data            y

        Predictions stand in `posterior` because they are what converges: a network's weights have
        symmetries that make a sound sampler look bad. Location `grid[7]` is row 7 of region `grid`.

        Raises
        ------
        ImportError
            If ArviZ is not installed.
        """
        return _to_arviz(self)


def _card(r: Exports) -> str:
    problem, model = r.problem, r.model
    noise = "" if problem.noise_sd is None else f", known noise sd {problem.noise_sd:g}"
    network = (
        f"{model.activation} network, {model.depth} hidden layer(s) of {model.width}"
        if model.depth
        else "linear in its parameters (depth 0)"
    )
    sizes = ", ".join(f"{name} ({len(x)})" for name, x in problem.regions.items())
    verdict = (
        "**Passed.**"
        if not r.reasons
        else "**FAILED; do not compare anything with it.**\n\n"
        + "\n".join(f"- {reason}" for reason in r.reasons)
    )
    kept = ", ".join(f"{name} {v.shape[2]}" for name, v in r.values.items())
    moments = next(iter(r.regions.values()))
    versions = ", ".join(f"{k} {v}" for k, v in r.versions.get("versions", {}).items() if v)
    device = r.versions.get("device", {})
    return f"""# {r.name}

{problem.description or problem.name}

| | |
| --- | --- |
| problem | {problem.name}, {problem.likelihood}{noise}; {len(problem.X)} training examples, \
{problem.num_features} input(s), seed {r.settings.get("seed", "unknown")} |
| model | {network}, `{model.parameterisation}`, P = {model.num_params} |
| prior | N(0, sigma²) on every parameter, prior_sd {r.prior_sd:g}: {_prior(r)} |
| likelihood | summed over the examples, temperature 1 |
| regions | {sizes} |

## How it was made

{_how(r)}

## Checks

{verdict}

{table(("check", "found", "right"), _checks(r))}

## What it holds

Per location: mean, variance, E[p(1-p)] and E[H] of the prediction with {_errors(r)}, and \
the entropy of
the averaged prediction, in {moments.mean.dtype}. Besides, {len(r.draws)} draws of the \
parameters, and {next(iter(r.values.values())).shape[1]} draws of each of {r.num_chains} \
chains of the
predictions at a few locations of each region ({kept}).

Rebuild it with another key and compare: `isounc references check {r.name}`

{versions}; {device.get("kind", "unknown device")}; {r.versions.get("time", "")}. \
SHA-256 of the arrays:
`{r.checksum or "not stored yet"}`
"""


def _to_arviz(r: Exports) -> Any:
    try:
        import arviz
        import xarray
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: install isounc[arviz], or arviz itself") from error
    quantity = LIKELIHOODS[r.problem.likelihood].quantity
    values = np.concatenate(tuple(r.values.values()), axis=2)
    theta = r.draws.reshape(r.num_chains, -1, r.model.num_params)
    x = np.concatenate([r.problem.regions[region][rows] for region, rows in r.locations.items()])
    counts = zip(r.model.groups, r.model.group_sizes, strict=True)
    labels = {
        "location": [f"{region}[{row}]" for region, rows in r.locations.items() for row in rows],
        "parameter": [f"{group}[{i}]" for group, size in counts for i in range(size)],
    }
    groups = {
        "posterior": {quantity: (["chain", "draw", "location", "column"], values)},
        "unconstrained_posterior": {"theta": (["chain", "draw", "parameter"], theta)},
        "constant_data": {"X": (["row", "input"], r.problem.X), "x": (["location", "input"], x)},
        "observed_data": {"y": (["row"], r.problem.y)},
    }
    # NetCDF knows no truth values.
    attrs = {
        "reference": r.name,
        "passed": int(not r.reasons),
        "card": r.card,
        "checksum": r.checksum,
    }
    datasets = {}
    for name, variables in groups.items():
        sizes = {
            axis: n
            for axes, array in variables.values()
            for axis, n in zip(axes, array.shape, strict=True)
        }
        coords = {axis: labels.get(axis, np.arange(n)) for axis, n in sizes.items()}
        datasets[name] = xarray.Dataset(variables, coords, attrs)
    # Built from data sets, because `from_dict` takes other arguments from ArviZ 1 on. There the
    # name InferenceData still exists, and gives a DataTree with a warning.
    if arviz.__version__.startswith("0."):
        return arviz.InferenceData(attrs=attrs, **datasets)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **datasets})


def _prior(r: Exports) -> str:
    sds = zip(r.model.groups, r.model.group_prior_sd(r.prior_sd), strict=True)
    return ", ".join(f"{group} {sd:.4g}" for group, sd in sds)


def _how(r: Exports) -> str:
    if r.gate is None:
        return f"By {METHODS[r.method]}. The draws are independent."
    s, c = r.settings["sampler"], r.checks
    return (
        f"By {r.method.upper()}, {r.num_chains} chains from prior draws, each {s['num_warmup']} "
        f"transitions of warm-up and {c['num_draws']} draws (between {s['num_draws']} and "
        f"{s['max_draws']}: until the gate passed or these were spent), {c['num_gradients']} "
        f"gradients in all. Step size {c['step_size']:.3g}, acceptance {c['acceptance']:.2f}. "
        f"Standard errors by batch means of {s['block']} draws. Key {r.settings['key']}."
    )


def _checks(r: Exports) -> list[tuple[str, str, str]]:
    if r.gate is None:
        right = {"var_relative_error_max": f"at most {RELATIVE_ERROR_MAX:g}"}
        return [(name, f"{value:.3g}", right.get(name, "")) for name, value in r.checks.items()]
    # An entry may be older than a bound.
    g, bound = r.gate, dataclasses.asdict(GateSettings()) | r.settings["sampler"]["gate"]
    return [
        ("largest R-hat", number(g.rhat_max, ".4f"), f"below {bound['rhat_max']:g}"),
        ("smallest bulk ESS of p", number(g.ess_bulk_min, ".0f"), f"{bound['ess_min']:g} or more"),
        (
            "smallest bulk ESS of (p − mean)²",
            number(g.ess_var_min, ".0f"),
            f"{bound['ess_min']:g} or more",
        ),
        ("smallest tail ESS", number(g.ess_tail_min, ".0f"), ""),
        ("smallest E-BFMI", number(g.ebfmi_min, ".2f"), f"above {bound['ebfmi_min']:g}"),
        (
            "divergent transitions",
            f"{g.divergences} ({g.divergence_rate:.3%})",
            f"below {bound['divergence_rate_max']:.3%}",
        ),
        ("trajectories cut short", str(g.num_saturated), f"at most {bound['saturated_max']}"),
        ("locations without variance", str(g.num_zero_variance), "0"),
        ("locations with a frozen chain", str(g.num_frozen), "0"),
        ("locations with draws that are not finite", str(g.num_nonfinite), "0"),
        ("chains with the draws of another", checked(g.num_equal_chains, "d"), "0"),
        (
            "largest error of the log posterior against float64, nats",
            checked(g.log_density_error, ".2g"),
            f"at most {bound['log_density_error_max']:g}",
        ),
        (
            "largest error of a prediction against float64, posterior sd",
            checked(g.prediction_error, ".2g"),
            f"at most {bound['prediction_error_max']:g}",
        ),
        (
            "largest Pareto k of (p − mean)²",
            checked(g.khat_max, ".2f"),
            f"{bound['khat_max']:g} where an error is to be trusted",
        ),
        (
            "locations where rare draws decide, so that neither variance nor error can be trusted",
            checked(g.num_heavy_tails, "d"),
            f"at most {bound['heavy_tails_max']:.0%} of them",
        ),
        (
            "agreement with a tempered run, p",
            checked(g.modes_p_value, ".2g"),
            f"at least {bound['modes_p_min']:g}",
        ),
        ("median error of a variance over the variance", number(g.var_mcse_median, ".2%"), ""),
        ("locations looked at", str(g.num_locations), ""),
    ]


def _errors(r: Exports) -> str:
    return "numerical errors" if r.gate is None else "Monte Carlo standard errors"


def number(value: int | float | None, spec: str) -> str:
    """A formatted number; a dash for None or a number that is not finite."""
    return "–" if value is None or not math.isfinite(value) else format(value, spec)


def checked(value: int | float | None, spec: str) -> str:
    """A formatted number; None is a check that was not made."""
    return "not checked" if value is None else format(value, spec)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
