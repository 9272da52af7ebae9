"""Settings and cells of the routing study."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from isounc.checks import check_choice, check_count
from isounc.guard.sample import check_share
from isounc.models import Model
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_CELLS, RunSettings, check_cells
from isounc.studies.routing.networks import CNN, SIDE, cnn_of
from isounc.training import TrainSettings

PROBLEMS = {
    "digits": "handwritten digits, 10 classes",
    "breast_cancer": "breast tumours, 2 classes",
}
"""Problems, with what people call them."""
NETWORKS = {"mlp": "MLP", "cnn": "CNN"}
"""Kinds of networks, with what people call them."""
SIZES = {"digits": (300, 700), "breast_cancer": (100, 230)}
"""Training rows and guard rows of each; the rest are test rows."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the routing study."""

    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Problems, by name: digits breast_cancer."""
    networks: Literal["mlp", "cnn"] = "mlp"
    """Kind of both networks: mlp, or cnn (digits alone), whose widths are channels and whose depth is the
    number of convolutions."""
    cheap_widths: tuple[int, ...] = (4,)
    """Hidden units of the cheap network, of one hidden layer."""
    width: int = 256
    """Hidden units per layer of the expensive network."""
    depth: int = 2
    """Hidden layers of the expensive network."""
    num_seeds: int = 5
    """Number of seeds 0, 1, ...; each splits the rows anew and trains new networks."""
    target_risks: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2)
    """Target risks of the whole cascade, rising."""
    confidence: float = 0.9
    """Confidence of the cascade's promise."""
    train: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=100))
    """Settings of the training of both networks."""
    num_timings: int = 5
    """Measurements of the seconds of an answer, of which the shortest counts."""


PRESETS = {
    "quick": Settings(),
    "standard": Settings(preset="standard", cheap_widths=(2, 4, 8), num_seeds=10),
    "paper": Settings(preset="paper", cheap_widths=(2, 4, 8, 16, 32), num_seeds=20),
}


@dataclass(frozen=True)
class Cell:
    """A problem, the width of the cheap network, and a seed."""

    problem: str
    """Name of the problem."""
    cheap_width: int
    """Hidden units of the cheap network."""
    seed: int
    """Seed of the split and of the networks."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.problem}-w{self.cheap_width}-seed{self.seed}"


class Rows(NamedTuple):
    """Inputs and labels of one part of a split."""

    X: np.ndarray
    """Standardised inputs, (N, D)."""
    y: np.ndarray
    """Labels."""


class Split(NamedTuple):
    """The parts of a problem's rows."""

    train: Rows
    """What networks are trained on."""
    guard: Rows
    """What cascades, and the router, are fitted to."""
    test: Rows
    """What they are judged on."""
    num_classes: int
    """Classes."""


def make_split(problem: str, seed: int) -> Split:
    """Split the rows of a problem at random, and standardise its columns by the training rows."""
    from sklearn import datasets  # takes seconds to import

    X, y = getattr(datasets, f"load_{problem}")(return_X_y=True)
    first, second = SIZES[problem]
    order = np.random.default_rng(seed_of(problem, seed, "split")).permutation(len(X))
    sd = X[order[:first]].std(axis=0)
    Z = (X - X[order[:first]].mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    parts = np.split(order, [first, first + second])
    return Split(*(Rows(Z[part], y[part]) for part in parts), num_classes=int(y.max()) + 1)


def seed_of(problem: str, seed: int, purpose: str) -> int:
    """A seed for one purpose, the same for every width of the cheap network."""
    return zlib.crc32(f"routing/{problem}/{seed}/{purpose}".encode())


def networks_of(
    split: Split, cheap_width: int, settings: Settings
) -> tuple[Model, Model] | tuple[CNN, CNN]:
    """The cheap network and the expensive one."""
    if settings.networks == "cnn":
        return (
            cnn_of(cheap_width, 1, split.num_classes),
            cnn_of(settings.width, settings.depth, split.num_classes),
        )
    shape = split.train.X.shape[1], split.num_classes, "categorical"
    return (
        Model(*shape, width=cheap_width, depth=1),
        Model(*shape, width=settings.width, depth=settings.depth),
    )


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty, repeats a value or does not rise, or a number is out
        of its range.
    """
    for argument in ("problems", "cheap_widths", "target_risks"):
        values = getattr(settings, argument)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice, got {values}"
            )
    for problem in settings.problems:
        check_choice("problems", problem, PROBLEMS)
    check_choice("networks", settings.networks, NETWORKS)
    for width in settings.cheap_widths:
        check_count("cheap_widths", width, 1, 10**5)
    if settings.networks == "cnn":
        if settings.problems != ("digits",):
            raise ValueError(
                f"problems must be digits, which are images, with networks cnn, got {settings.problems}"
            )
        check_count("depth of a cnn", settings.depth, 1, SIDE.bit_length() - 1)
        check_count("train.patience with networks cnn", settings.train.patience, 0, 0)
    for target in settings.target_risks:
        check_share("target_risks", target)
    if list(settings.target_risks) != sorted(settings.target_risks):
        raise ValueError(f"target_risks must rise, got {settings.target_risks}")
    check_share("confidence", settings.confidence)
    for argument, least, most in (
        ("width", 1, 10**5), ("depth", 1, 1000), ("num_seeds", 1, MOST_CELLS),
        ("num_timings", 1, 1000),
    ):  # fmt: skip
        check_count(argument, getattr(settings, argument), least, most)
    count = settings.num_seeds * len(settings.problems) * len(settings.cheap_widths)
    check_cells(count, "num_seeds, problems and cheap_widths")


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the seeds of a problem and width, and a group of the batches of a problem."""
    keyed: list[tuple[Any, Batch]] = []
    for problem in settings.problems:
        for width in settings.cheap_widths:
            cells = tuple(Cell(problem, width, seed) for seed in range(settings.num_seeds))
            steps = settings.train.epochs * SIZES[problem][0] / settings.train.minibatch
            # Measured: 1.5e-11 seconds for each parameter of the expensive network, example and step.
            work = steps * settings.train.minibatch * settings.width**2 * max(settings.depth - 1, 1)
            if settings.networks == "cnn":  # nine weights, at a quarter of the pixels
                work *= 9 * SIDE**2 // 4
            seconds = len(cells) * (1.0 + 1.5e-10 * work)
            keyed.append((problem, Batch(f"{problem} width {width}", cells, seconds, 50)))
    return grouped(keyed)
