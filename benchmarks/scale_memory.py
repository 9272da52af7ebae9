"""Forecast of the memory of a batch of `isounc scaling` beside what its programs take.

The programs are those that chains are moved by, a window of warm-up and a block of draws; they are
compiled and not run. What they take is what the compiler plans for: arguments, results and temporary
values (`compiled.memory_analysis()`). What the forecast counts beyond them lies in the host's memory:
predictions of all draws, and the Hessian of the fit.
"""

from __future__ import annotations

from typing import Any

import jax

from isounc.runs.executors import Batch
from isounc.sampling import chains
from isounc.sampling.posterior import sample_posteriors
from isounc.studies.scaling.cell import cell_model, cell_problem
from isounc.studies.scaling.settings import Settings


class _Compiled(Exception):
    """All programs are compiled."""


def program_mebibytes(batch: Batch, settings: Settings) -> dict[str, float]:
    """MiB of the programs of a batch by name, by the compiler's plan; nothing is sampled."""
    found: dict[str, float] = {}
    problems = [cell_problem(cell, settings) for cell in batch.cells]
    model = cell_model(batch.cells[0], problems[0])
    originals = chains.warm_up, chains.draw

    def planned(program: Any, args: tuple, kwargs: dict) -> float:
        plan = program.lower(*args, **kwargs).compile().memory_analysis()
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return (held - plan.alias_size_in_bytes) / 2**20

    def warm_up(window: Any, *args: Any, **kwargs: Any) -> Any:
        if "warm_up" not in found:
            found["warm_up"] = planned(originals[0], (window, *args), kwargs)
        return window

    def draw(*args: Any, **kwargs: Any) -> Any:
        found["draw"] = planned(originals[1], args, kwargs)
        raise _Compiled

    chains.warm_up, chains.draw = warm_up, draw  # type: ignore[assignment]
    try:
        sample_posteriors(
            problems, model, prior_sd=batch.cells[0].prior_sd,
            keys=list(jax.random.split(jax.random.key(0), len(problems))),
            settings=settings.sampling,
        )  # fmt: skip
    except _Compiled:
        pass
    finally:
        chains.warm_up, chains.draw = originals
    return found
