"""One reference posterior, as the bank holds it, made from a sampled or an exact posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from isounc.checks import check_count, check_name
from isounc.models import Model
from isounc.problems import Problem
from isounc.references.exact import Exact
from isounc.references.export import Exports
from isounc.sampling.gate import Gate
from isounc.sampling.moments import Moments, Posterior, fixed_locations
from isounc.untrusted import reading


@dataclass(frozen=True)
class Thinning:
    """The share of a posterior that an entry of the bank keeps."""

    draw_bytes: int = 128_000
    """Room for parameter draws in float32, unless that is fewer than `min_draws`."""
    min_draws: int = 64
    """Fewest parameter draws, over all chains."""
    max_draws: int = 256
    """Most parameter draws, over all chains."""
    num_values: int = 200
    """Evenly spaced draws of each chain whose predictions are kept."""
    locations_per_region: int = 4
    """Fixed locations of each region at which they are kept."""

    def __post_init__(self):
        check_count("draw_bytes", self.draw_bytes, 0, 10**9)
        check_count("min_draws", self.min_draws, 1, 10**7)
        check_count("max_draws", self.max_draws, self.min_draws, 10**7)
        check_count("num_values", self.num_values, 4, 10**7)
        check_count("locations_per_region", self.locations_per_region, 1, 10**5)

    def num_draws(self, num_params: int) -> int:
        """Number of parameter draws that are kept of a model with P parameters."""
        room = self.draw_bytes // (4 * num_params)
        return min(max(room, self.min_draws), self.max_draws)


@dataclass(frozen=True, eq=False)
class Reference(Exports):
    """A posterior to compare with: predictive moments with errors, draws, and their origin."""

    name: str
    """Name in the bank, ending in its version."""
    method: str
    """hmc or nuts (sampled); quadrature or closed form (exact)."""
    problem: Problem
    """Training data X, y and the regions' locations as they were used, without targets and truth,
    which `make_problem` gives."""
    model: Model
    """The model whose posterior this is."""
    prior_sd: float
    """Prior standard deviation; `Model.group_prior_sd` spreads it over the parameters."""
    regions: Mapping[str, Moments]
    """Predictive moments by region; `_se` are Monte Carlo standard errors, in exact entries
    numerical errors."""
    draws: Float[np.ndarray, "T P"]
    """Thinned parameter draws, chain-major, equally many from each chain; independent in exact
    entries."""
    values: Mapping[str, Float[np.ndarray, "K S Q M"]]
    """Evenly spaced draws of the predictive quantity of each chain at the `locations`."""
    locations: Mapping[str, Int[np.ndarray, " Q"]]
    """Rows of each region at which `values` are."""
    num_chains: int
    """K; exact entries deal their independent draws out to as many."""
    gate: Gate | None
    """The convergence checks over all draws of a sampled entry; None for an exact one."""
    checks: Mapping[str, Any]
    """Other numbers about the computation: counts of the sampler, errors of the quadrature."""
    reasons: tuple[str, ...]
    """A sentence for each check that failed."""
    settings: Mapping[str, Any]
    """Settings of the problem, of sampling and of thinning: enough to make it again."""
    versions: Mapping[str, Any]
    """Versions and device that computed it (`isounc.runs.provenance`)."""
    checksum: str = ""
    """SHA-256 of the npz file it was read from; empty if it was not read from one."""

    @property
    def passed(self) -> bool:
        """Whether it may be compared with."""
        return not self.reasons

    def to_record(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The reference as (meta, arrays), which `from_record` reads back."""
        problem = self.problem
        meta = {
            "method": self.method,
            "problem": {
                "name": problem.name,
                "likelihood": problem.likelihood,
                "num_classes": problem.num_classes,
                "noise_sd": problem.noise_sd,
                "grid_shape": problem.grid_shape,
                "description": problem.description,
            },
            "model": dataclasses.asdict(self.model),
            "prior_sd": self.prior_sd,
            "regions": [*self.regions],
            "num_chains": self.num_chains,
            "gate": None if self.gate is None else self.gate._asdict(),
            "checks": dict(self.checks),
            "reasons": self.reasons,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        arrays = {"X": problem.X, "y": problem.y, "draws": self.draws}
        for region, moments in self.regions.items():
            arrays[f"{region}/X"] = problem.regions[region]
            arrays[f"{region}/rows"] = np.asarray(self.locations[region])
            arrays[f"{region}/values"] = self.values[region]
            arrays |= {f"{region}/{name}": a for name, a in moments._asdict().items()}
        return meta, arrays


def from_posterior(
    name: str,
    problem: Problem,
    posterior: Posterior,
    *,
    prior_sd: float,
    method: str,
    settings: Mapping[str, Any],
    versions: Mapping[str, Any],
    thinning: Thinning,
) -> Reference:
    """A reference from a sampled posterior, thinned, in float32.

    Raises
    ------
    ValueError
        For a posterior that was sampled without `keep_values`, or a name that cannot be a file's.
    """
    check_name("name", name)
    if posterior.values is None:
        raise ValueError("posterior must have values (keep_values=True), got none")
    chains, num_params = posterior.num_chains, posterior.model.num_params
    per_chain = posterior.draws.reshape(chains, -1, num_params)
    kept = max(1, thinning.num_draws(num_params) // chains)
    draws = per_chain[:, _evenly(per_chain.shape[1], kept)]
    values, locations = {}, {}
    for region, drawn in posterior.values.items():
        columns = _evenly(drawn.shape[2], thinning.locations_per_region)
        rows = _evenly(drawn.shape[1], thinning.num_values)
        values[region] = np.asarray(drawn[:, rows][:, :, columns], np.float32)
        locations[region] = posterior.locations[region][columns]
    return Reference(
        name=name,
        method=method,
        problem=problem,
        model=posterior.model,
        prior_sd=prior_sd,
        regions={
            region: Moments(*(np.asarray(a, np.float32) for a in moments))
            for region, moments in posterior.regions.items()
        },
        draws=np.asarray(draws.reshape(-1, num_params), np.float32),
        values=values,
        locations=locations,
        num_chains=chains,
        gate=posterior.gate,
        checks={
            "num_draws": posterior.num_draws,
            "num_gradients": posterior.num_gradients,
            "step_size": float(np.median(posterior.step_size)),
            "acceptance": posterior.acceptance,
        },
        reasons=tuple(posterior.gate.reasons),
        settings=settings,
        versions=versions,
    )


def from_exact(
    name: str,
    problem: Problem,
    model: Model,
    exact: Exact,
    *,
    prior_sd: float,
    settings: Mapping[str, Any],
    versions: Mapping[str, Any],
    thinning: Thinning,
    num_chains: int = 4,
) -> Reference:
    """A reference from an exact posterior, in float64.

    Its draws, being independent, are dealt out to the chains.

    Raises
    ------
    ValueError
        For fewer than 4 draws a chain, or a name that cannot be a file's.
    """
    check_name("name", name)
    each = len(exact.draws) // num_chains
    check_count("the number of draws", len(exact.draws), 4 * num_chains)
    chains = exact.draws[: each * num_chains].reshape(num_chains, each, -1)
    locations = fixed_locations(problem, thinning.locations_per_region)
    theta = jnp.asarray(chains[:, : thinning.num_values].reshape(-1, chains.shape[-1]))
    values = {}
    for region, rows in locations.items():
        x = jnp.asarray(problem.regions[region][rows])
        p = jax.vmap(lambda t, x=x: model.predict(t, x))(theta)
        values[region] = np.asarray(p, np.float32).reshape(num_chains, -1, *p.shape[1:])
    return Reference(
        name=name,
        method=exact.method,
        problem=problem,
        model=model,
        prior_sd=prior_sd,
        regions=exact.regions,
        draws=exact.draws[: each * num_chains],
        values=values,
        locations=locations,
        num_chains=num_chains,
        gate=None,
        checks=exact.checks,
        reasons=exact.reasons,
        settings=settings,
        versions=versions,
    )


def from_record(
    name: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], checksum: str = ""
) -> Reference:
    """Undo `Reference.to_record`.

    Raises
    ------
    Unreadable
        A ValueError, where something is missing or of another kind.
    """
    with reading("meta and arrays", "those of Reference.to_record"):
        return _from_record(name, meta, arrays, checksum)


def _from_record(
    name: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], checksum: str
) -> Reference:
    regions, about = meta["regions"], dict(meta["problem"])
    if about["grid_shape"] is not None:
        about["grid_shape"] = tuple(about["grid_shape"])  # JSON has lists
    problem = Problem(
        X=arrays["X"],
        y=arrays["y"],
        regions={region: arrays[f"{region}/X"] for region in regions},
        **about,
    )
    gate = None
    if meta["gate"] is not None:
        gate = Gate.of(meta["gate"] | {"reasons": tuple(meta["gate"]["reasons"])})
    return Reference(
        name=name,
        method=meta["method"],
        problem=problem,
        model=Model(**meta["model"]),
        prior_sd=meta["prior_sd"],
        regions={
            region: Moments(*(arrays[f"{region}/{field}"] for field in Moments._fields))
            for region in regions
        },
        draws=arrays["draws"],
        values={region: arrays[f"{region}/values"] for region in regions},
        locations={region: arrays[f"{region}/rows"] for region in regions},
        num_chains=meta["num_chains"],
        gate=gate,
        checks=meta["checks"],
        reasons=tuple(meta["reasons"]),
        settings=meta["settings"],
        versions=meta["versions"],
        checksum=checksum,
    )


def _evenly(total: int, wanted: int) -> Int[np.ndarray, " rows"]:
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(int))
