"""Protocols: readings of the claim that the estimate improves with the size of the model.

The paper gives neither the width of its networks, nor the locations, nor the prior of its
correlations. A `Protocol` is one way to fill these gaps, fixed before its results were seen: what is
trained, where and with what the estimate is compared, and what counts as size. The command line names
protocols (`isounc scaling --protocol near thesis`), and a run computes the cells of all of them, each
once. Lists of settings that are given beside the names hold for every protocol.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from isounc.checks import check_choice
from isounc.problems import NUM_TRAIN, make_problem
from isounc.runs.settings import check_cells
from isounc.studies.scaling import settings as of_study
from isounc.studies.scaling.paper import TABLE1
from isounc.studies.scaling.settings import Cell, Settings, cells_of_lists
from isounc.studies.scaling.unreachable import why_out_of_reach

MOST_DRAWS = 8000
"""Draws of a chain at most where seconds are what limits it."""


class Sweep(NamedTuple):
    """Cells of every combination of these values."""

    problems: tuple[str, ...]
    """Problems, by name."""
    widths: tuple[int, ...]
    """Hidden units per layer."""
    depths: tuple[int, ...] = (1,)
    """Hidden layers."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """Parameterisations."""
    prior_sds: tuple[float, ...] = (2.0,)
    """Prior standard deviations of a weight."""
    ns: tuple[int, ...] = (NUM_TRAIN,)
    """Training examples."""


class Protocol(NamedTuple):
    """One reading of "improves with model size"."""

    question: str
    """What it asks, in a sentence."""
    axis: Literal["width", "depth", "params"]
    """What counts as size: hidden units of a layer, hidden layers, or parameters."""
    points: tuple[str, ...]
    """Kinds of theta*."""
    regions: tuple[str, ...]
    """Regions over whose locations estimates are correlated with the reference."""
    sweeps: Mapping[str, tuple[Sweep, ...]]
    """Cells by preset."""
    activation: str = "tanh"
    """Activation of networks for two classes or a regression."""
    multi_class_activation: str = "tanh"
    """Activation of networks for three classes or more."""
    grid_margin: float = 0.0
    """The grid reaches this far beyond the training inputs, in standard deviations of an input; 0 is
    the problem's own grid of 1.5 x their range."""
    binary_grid_margin: float = 0.0
    """The same where there are two classes."""
    moment: Literal["variance", "sd"] = "variance"
    """Squared gradient norm against the variance of MCMC, or norm against its standard deviation."""
    view: Literal["trace", "predicted"] = "trace"
    """With three classes or more: sums over classes, or the predicted class."""
    seconds: Mapping[str, float] = {}
    """By preset, seconds of sampling that a cell may take; without one its draws are limited."""


_POINTS = ("map", "trained", "draw")
_QUICK, _PAPER, _PAIR = ("linear", "xor", "rings", "clusters3"), tuple(TABLE1), ("xor", "rings")
_WIDTHS = {
    "quick": (Sweep(_QUICK, (4, 8, 16, 32)),),
    "standard": (Sweep(_PAPER, (2, 4, 8, 16, 32, 64, 128, 256)),),
    "paper": (Sweep(_PAPER, (2, 4, 8, 16, 32, 64, 128, 256, 512)),),
}
_DEPTHS = {
    "quick": (Sweep(_PAIR, (16,), (1, 2, 3, 4)),),
    "standard": (Sweep(_PAPER, (32,), (1, 2, 3, 4)),),
    "paper": (Sweep(_PAPER, (32, 128), (1, 2, 3, 4)),),
}


def _swept(**by_name: Mapping[str, tuple]) -> dict[str, tuple[Sweep, ...]]:
    """A few widths for each value of something else."""
    few = {
        "quick": Sweep(_PAIR, (8, 32)),
        "standard": Sweep(_PAPER, (4, 16, 64)),
        "paper": Sweep(_PAPER, (2, 8, 32, 128)),
    }
    ((field, values),) = by_name.items()
    return {preset: (sweep._replace(**{field: values[preset]}),) for preset, sweep in few.items()}


PROTOCOLS: dict[str, Protocol] = {
    "near": Protocol(
        "Near the data, does the estimate improve with the width of one hidden layer?",
        "width", _POINTS, ("test",), _WIDTHS,
    ),
    "wide": Protocol(
        "On a grid of 1.5 times the range of the data, does it improve with the width?",
        "width", _POINTS, ("grid",), _WIDTHS,
    ),
    "depth": Protocol(
        "Near the data, does it improve with the number of hidden layers of equal width?",
        "depth", _POINTS, ("test",), _DEPTHS,
    ),
    "params": Protocol(
        "Near the data, does it improve with the number of parameters, wide or deep?",
        "params", _POINTS, ("test",), {k: _WIDTHS[k] + _DEPTHS[k] for k in _WIDTHS},
    ),
    "thesis": Protocol(
        "As in the only protocol that the authors' group has documented: does the gradient norm at "
        "the mean of the draws of one chain follow the MCMC standard deviation better on a wide grid "
        "as the width grows, with much data and a wide prior?",
        "width", ("chain_mean",), ("grid",),
        {
            preset: (
                Sweep(
                    problems, widths, parameterisations=("standard",), prior_sds=(10.0,),
                    ns=(1000,),
                ),
            )
            for preset, problems, widths in (
                ("quick", _QUICK, (8, 32)),
                ("standard", _PAPER, (8, 16, 32, 64)),
                ("paper", _PAPER, (8, 16, 32, 64, 128, 256, 512)),
            )
        },
        multi_class_activation="relu", grid_margin=1.5, binary_grid_margin=5.5, moment="sd",
        view="predicted", seconds={"quick": 60.0, "standard": 300.0, "paper": 900.0},
    ),
    "early": Protocol(
        "Near the data, does it improve with the width at networks whose training stopped early, by "
        "a validation loss?",
        "width", ("stopped",), ("test",), _WIDTHS,
    ),
    "chain_mean": Protocol(
        "Near the data, does it improve with the width at the mean of the draws of one chain?",
        "width", ("chain_mean",), ("test",), _WIDTHS,
    ),
    "examples": Protocol(
        "Near the data, does the change with width depend on the number of training examples?",
        "width", _POINTS, ("test",),
        _swept(ns={"quick": (30, 100, 300)}
               | dict.fromkeys(("standard", "paper"), (30, 100, 300, 1000))),
    ),
    "prior": Protocol(
        "Near the data, does the change with width depend on the prior?",
        "width", _POINTS, ("test",),
        _swept(prior_sds={"quick": (0.5, 2.0, 10.0)}
               | dict.fromkeys(("standard", "paper"), (0.5, 1.0, 2.0, 5.0, 10.0))),
    ),
    "parameterisation": Protocol(
        "Near the data, does the change with width depend on how weights are scaled?",
        "width", _POINTS, ("test",),
        _swept(parameterisations=dict.fromkeys(_WIDTHS, ("ntk", "fan_in", "standard"))),
    ),
}  # fmt: skip
"""Protocols by name, in the order in which they are shown."""


def protocol_names(settings: Settings) -> list[str]:
    """The protocols of a run in the order of `PROTOCOLS`; none for a run without."""
    return [name for name in PROTOCOLS if {name, "all"} & set(settings.protocol)]


def defaults(preset: Settings, arguments: Sequence[str] | None) -> Settings:
    """A preset as the command line finds it: with protocols its lists are theirs."""
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--protocol", nargs="*")
    if not asked.parse_known_args(arguments)[0].protocol:
        return preset
    return dataclasses.replace(
        preset, problems=(), widths=(), depths=(), activations=(), parameterisations=(),
        prior_sds=(), n=0, out=f"runs/scaling-protocols-{preset.preset}",
    )  # fmt: skip


def check(settings: Settings) -> None:
    """Check that settings can be run, as `isounc.studies.scaling.settings.check` and for protocols.

    Raises
    ------
    ValueError
        Also if a protocol is unknown, or all of its cells are out of reach.
    """
    for name in settings.protocol:
        check_choice("protocol", name, [*PROTOCOLS, "all"])
    of_study.check(settings)
    if settings.try_unreachable and not settings.protocol:
        raise ValueError("try_unreachable must be left out without a protocol, got True")
    left = cells(settings)
    check_cells(len(left) * settings.num_seeds, "num_seeds and the protocols")
    if not left:
        raise ValueError(
            "\n  ".join(["protocol must leave a cell that can be run, got none:",
                         *skipped_lines(settings)])
        )  # fmt: skip


def cells_of(name: str, settings: Settings) -> list[Cell]:
    """The cells of a protocol of a run, each of seed 0, those out of reach among them.

    An `n` of a cell is None where it is that of most protocols, so that they share its record.
    """
    protocol = PROTOCOLS[name]
    found: dict[Cell, None] = {}
    for sweep in protocol.sweeps[settings.preset]:
        lists = [getattr(settings, field) or getattr(sweep, field) for field in sweep._fields[:-1]]
        ns = (settings.n,) if settings.n else sweep.ns
        for problem, width, depth, parameterisation, prior_sd, n in itertools.product(*lists, ns):
            classes = _num_classes(problem)
            margin = protocol.binary_grid_margin if classes == 2 else protocol.grid_margin
            own = protocol.multi_class_activation if classes > 2 else protocol.activation
            for activation in settings.activations or (own,):
                cell = Cell(
                    problem, width if depth else 1, depth, activation, parameterisation, prior_sd,
                    seed=0, n=None if n in (settings.n, NUM_TRAIN) else n, grid_margin=margin,
                )  # fmt: skip
                found[cell] = None
    return list(found)


def cells(settings: Settings) -> list[Cell]:
    """The cells of a run that are to be computed, each of seed 0."""
    if not settings.protocol:
        return cells_of_lists(settings)
    of_all = (cell for name in protocol_names(settings) for cell in cells_of(name, settings))
    return [cell for cell in dict.fromkeys(of_all) if not why_not_run(cell, settings)]


def seed_batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells of a run, in tuples of the seeds that are computed together."""
    seeds, size = range(settings.num_seeds), settings.seeds_per_batch or settings.num_seeds
    parts = [seeds[start : start + size] for start in seeds[::size]]
    return [
        tuple(dataclasses.replace(cell, seed=seed) for seed in part)
        for cell in cells(settings)
        for part in parts
    ]


def why_not_run(cell: Cell, settings: Settings) -> str:
    """Why a cell of a protocol is skipped; empty if it is not."""
    if not settings.protocol or settings.try_unreachable:
        return ""
    return why_out_of_reach(cell, num_examples(cell, settings))


def num_examples(cell: Cell, settings: Settings) -> int:
    """Training examples of a cell."""
    return cell.n or settings.n or NUM_TRAIN


def settings_of_cells(batch: Sequence[Cell], settings: Settings) -> Settings:
    """The settings for cells that are sampled together: some protocols limit their seconds.

    What is spent by then is spent: such a cell is not sampled again by another sampler.
    """
    cell = dataclasses.replace(batch[0], seed=0)
    seconds = [
        PROTOCOLS[name].seconds.get(settings.preset, math.inf)
        for name in protocol_names(settings)
        if cell in cells_of(name, settings)
    ]
    given = settings.sampling.max_seconds
    most = given if math.isfinite(given) else max(seconds, default=math.inf) * len(batch)
    if not seconds or not math.isfinite(max(seconds)):
        return settings
    sampling = dataclasses.replace(
        settings.sampling, max_seconds=most, max_draws=max(MOST_DRAWS, settings.sampling.num_draws)
    )
    return dataclasses.replace(settings, sampling=sampling, retry="none")


def skipped_lines(settings: Settings) -> list[str]:
    """A line for each cell of the protocols that is not run, in words."""
    names = protocol_names(settings)
    of_all = dict.fromkeys(cell for name in names for cell in cells_of(name, settings))
    return [
        f"{cell.label} is not run: {why} (--try-unreachable runs it)"
        for cell in of_all
        if (why := why_not_run(cell, settings))
    ]


@functools.cache
def _num_classes(problem: str) -> int:
    return make_problem(problem).num_classes
