"""The reference posteriors of a batch: what fails its gate is sampled again by another sampler.

Chains that do not mix, as over the separate modes of narrow networks, fail the gate however many
draws they make. Tempered particles come from the prior and find the mass of each mode, at many times
the cost, so that they are asked only then. A cell is drawn hollow if they fail as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.compute import Say
from isounc.sampling.gate import fail
from isounc.sampling.moments import Posterior
from isounc.sampling.posterior import sample_posteriors
from isounc.sampling.settings import UNSUITED, SamplerSettings
from isounc.sampling.stopping import is_too_coarse
from isounc.studies.scaling.settings import Settings

AGAIN = 20260401
"""Folded into the key of a cell that is sampled again."""
PARTICLES, ROUNDS = 1000, 2
"""Particles of a chain and round, and rounds at most. On xor at width 2 one round has an effective
sample size of 1900 to 3600; half the particles had 770, where the gate asks for 1000."""


class Reference(NamedTuple):
    """The posterior that a cell is compared with, and how it came about."""

    posterior: Posterior
    """The first posterior that converged (`Gate.converged`); the first of all if none did."""
    sampler: str
    """Its sampler."""
    tries: list[dict[str, Any]]
    """The samplers that were tried, in order, each with the verdict of its gate."""


def sample_references(
    problems: Sequence[Problem],
    model: Model,
    *,
    prior_sd: float,
    keys: Sequence[PRNGKeyArray],
    settings: Settings,
    report: Say,
) -> list[Reference]:
    """Sample the posteriors of problems of one shape, and those that failed again by themselves.

    One problem at a time is sampled again, so that its numbers do not depend on which others
    failed, and a shape is compiled once.
    """
    first = sample_posteriors(
        problems, model, prior_sd=prior_sd, keys=keys, settings=settings.sampling,
        progress=_heard(report),
    )  # fmt: skip
    sampling = settings_of_retry(settings)
    references = []
    for problem, key, posterior in zip(problems, keys, first, strict=True):
        reference = Reference(posterior, posterior.sampler, [])
        reference.tries.append(_verdict(reference.sampler, posterior))
        # No sampler mends what single precision has lost, or draws rare ones in passing.
        if sampling and not posterior.gate.converged and not is_too_coarse(posterior.gate):
            try:
                (again,) = sample_posteriors(
                    [problem], model, prior_sd=prior_sd, keys=[jax.random.fold_in(key, AGAIN)],
                    settings=sampling, progress=_heard(report, f"{sampling.sampler}: "),
                )  # fmt: skip
            except ValueError as error:  # particles that cannot be tempered: the cell stays failed
                reason = f"{sampling.sampler} could not sample it: {error}"
                gate = fail(posterior.gate, reason)
                failed = dataclasses.replace(posterior, gate=gate)
                reference = reference._replace(posterior=failed)
            else:
                reference.tries.append(_verdict(sampling.sampler, again))
                if again.gate.converged:
                    reference = reference._replace(posterior=again, sampler=sampling.sampler)
        references.append(reference)
    return references


def settings_of_retry(settings: Settings) -> SamplerSettings | None:
    """How cells that failed are sampled again; None if they are not.

    A retry has the gate and the precision of the first attempt, and `ROUNDS` rounds of `PARTICLES`
    in each chain, whatever its draws: a cell that no sampler can do must not hold up a run.
    """
    first = settings.sampling
    if settings.retry in ("none", first.sampler):
        return None
    suited = {"coordinates": "prior", "metric": "diagonal"}
    changes = {
        name: suited[name]
        for name, value in UNSUITED.get(settings.retry, {}).items()
        if getattr(first, name) == value
    }
    return dataclasses.replace(
        first, sampler=settings.retry, num_draws=PARTICLES, max_draws=ROUNDS * PARTICLES,
        check_modes=False, **changes,
    )  # fmt: skip


def _verdict(sampler: str, posterior: Posterior) -> dict[str, Any]:
    return {"sampler": sampler, "gate": posterior.gate._asdict()}


def _heard(report: Say, prefix: str = ""):
    return lambda what, done, total: report(
        f"{prefix}{what} {done}/{total}" if done else f"{prefix}{what}"
    )
