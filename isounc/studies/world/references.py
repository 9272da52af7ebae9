"""References around a judged decoder: chains of one density by two samplers, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from isounc.sampling.checkpoint import Checkpoint
from isounc.statistics import compare
from isounc.studies.world.corpus import World
from isounc.studies.world.hmc import Draws, sample_by_hmc
from isounc.studies.world.local import Convergence, convergence, sample_locally
from isounc.studies.world.scores import Reference, reference
from isounc.studies.world.settings import Cell, Settings, seed_of
from isounc.studies.world.train import Members

CHAINS = ("local", "hmc")
"""Chains: by stochastic gradients (`isounc.studies.world.local`), and by Hamiltonian Monte Carlo with
all sentences (`isounc.studies.world.hmc`)."""
LOCAL = tuple(f"{chains}{number}" for chains in CHAINS for number in ("", "_var_p"))
"""Numbers of these references: the trace, and Var p of the answer."""
CHECKS = (
    *(f"{chains}_{check}" for chains in CHAINS for check in ("passed", "rhat", "ess")),
    *("hmc_divergent", "langevin_r", "langevin_ratio"),
)
"""Columns about the chains themselves (`numbers_of_chains`)."""
FROM_CHAINS = (
    *CHECKS,
    *(f"{kind}_{name}" for name in LOCAL for kind in ("r", "partial")),
    *("near", "nearer", "nearer_var_p", "near_hmc", "beyond_hmc"),
)
"""Columns that only the decoders with chains of their own have."""


class Near(NamedTuple):
    """Spread of the predictions in chains around a decoder, and their checks."""

    convergence: Convergence
    """Whether they converged."""
    spread: Reference
    """Their spread."""
    divergent: float | None
    """As in `Draws`."""


def draw(
    cell: Cell,
    world: World,
    members: Members,
    i: int,
    settings: Settings,
    size: int,
    store: Callable[[int], Checkpoint],
    say: Callable[[str], Any],
) -> dict[str, Draws]:
    """The draws of all chains around member i, by name; none but after the longest training.

    Parameters
    ----------
    size
        Number of parameters of a decoder.
    store
        Where Hamiltonian Monte Carlo of a member is kept, so that it can go on.
    """
    local, hmc = settings.local, settings.hmc
    found = {}
    if i >= local.num_members or cell.epochs != settings.epochs[-1]:
        return found
    if local.num_chains:
        say(f"chains around member {i}")
        found["local"] = Draws(
            sample_locally(
                members.graphdef, members.member(i), world, local, seed_of(cell, f"local {i}")
            )
        )
    if hmc.num_chains and size <= hmc.max_params:
        found["hmc"] = sample_by_hmc(
            members, i, world, local, hmc, seed_of(cell, f"hmc {i}"), say, store(i)
        )
    return found


def judge_chains(
    draws: Mapping[str, Draws], answer: Int[np.ndarray, " Q"], judged: Bool[np.ndarray, " Q"]
) -> dict[str, Near]:
    """Convergence and spread of chains, by name."""
    return {
        name: Near(
            convergence(chains.log_probs, answer, judged)._replace(is_sound=chains.is_sound),
            reference(chains.log_probs.reshape(-1, *chains.log_probs.shape[2:]), answer),
            chains.divergent,
        )
        for name, chains in draws.items()
    }


def numbers_of_chains(
    chains: Mapping[str, Near], where: Bool[np.ndarray, " Q"]
) -> dict[str, float | None]:
    """The columns of `CHECKS` that are known, for some of the questions."""
    found: dict[str, float | None] = {}
    for name, near in chains.items():
        found[f"{name}_passed"] = float(near.convergence.passed)
        found[f"{name}_ess"] = near.convergence.ess
        # JSON and tables hold no infinity: R-hat of chains that stand still.
        if np.isfinite(near.convergence.rhat):
            found[f"{name}_rhat"] = near.convergence.rhat
        if near.divergent is not None:
            found[f"{name}_divergent"] = near.divergent
    if set(CHAINS) <= set(chains) and all(near.convergence.passed for near in chains.values()):
        by_gradients, exact = (chains[name].spread.var_p[where] for name in CHAINS)
        found["langevin_r"] = compare(by_gradients, exact).spearman
        # Both are zero where an answer is certain to the last bit.
        known = exact > 0
        if known.any():
            found["langevin_ratio"] = float(np.median(by_gradients[known] / exact[known]))
    return found
