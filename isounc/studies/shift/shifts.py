"""In-distribution data, and the data that are shifted away from it."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from isounc.checks import check_choice, check_count
from isounc.problems import make_problem
from isounc.sources import SOURCES, RealSource
from isounc.studies.shift.networks import SIDE

SYNTHETIC = ("linear", "xor", "rings", "moons", "clusters3", "spirals3", "rings3")
"""Problems with a known distribution, whose region `far` is out of it."""
TABLES = ("wine", "breast_cancer")
"""Tables of scikit-learn, by feature."""
IMAGES = ("digits",)
"""Images of scikit-learn, of which half of the classes are in distribution."""
PROBLEMS = (*IMAGES, *TABLES, *SYNTHETIC)
"""All problems."""
KINDS = ("near", "far")
"""Kinds of shifts."""
NUM_IN = 5
"""The digits 0 to NUM_IN - 1 are in distribution."""
SHIFT_SD = 1.0
"""By how many standard deviations of the training inputs `shifted` moves each feature."""
_BRIGHTEST = 16


class Shift(NamedTuple):
    """A way out of the distribution."""

    label: str
    """Name in figures and tables."""
    kind: str
    """One of `KINDS`, fixed beforehand."""
    problems: tuple[str, ...]
    """Problems that have it."""


SHIFTS = {
    "classes": Shift("digits 5 to 9", "near", IMAGES),
    "rotated": Shift("rotated by 90°", "near", IMAGES),
    "shuffled": Shift("pixels shuffled", "far", IMAGES),
    "noise": Shift("uniform noise", "far", IMAGES),
    "shifted": Shift("features shifted", "near", TABLES),
    "permuted": Shift("features permuted", "near", TABLES),
    "far": Shift("far region", "far", SYNTHETIC),
}
"""Shifts by name.

    classes     digits of the classes that were not trained on
    rotated     the images of `test`, rotated by 90 degrees
    shuffled    the images of `test`, all pixels in one other order
    noise       pixels drawn one by one from 0 to 16
    shifted     the rows of `test`, every feature moved by one sd, with one random sign each
    permuted    the rows of `test`, each feature permuted over the rows by itself
    far         uniform between 1.5 and 3 times the range of the training inputs
"""


def shifts_of(problem: str, names: tuple[str, ...]) -> list[str]:
    """Those of the shifts that a problem has."""
    return [name for name in names if problem in SHIFTS[name].problems]


class Sets(NamedTuple):
    """The data of a problem and a seed, in the coordinates that networks see."""

    X: Float[np.ndarray, "n D"]
    """Training inputs."""
    y: Int[np.ndarray, " n"]
    """Their labels, 0..C-1."""
    num_classes: int
    """C."""
    validation: Float[np.ndarray, "V D"]
    """New inputs of the same distribution, which set thresholds."""
    test: Float[np.ndarray, "N D"]
    """More of them, which judge."""
    test_y: Int[np.ndarray, " N"]
    """Labels of `test`."""
    shifted: dict[str, Float[np.ndarray, "N D"]]
    """Inputs of each shift."""


def make_sets(problem: str, shifts: tuple[str, ...], *, n: int, num_eval: int, seed: int) -> Sets:
    """Make the data of a problem.

    Parameters
    ----------
    problem
        A name of `PROBLEMS`.
    shifts
        Names of `SHIFTS`, of which the problem's own are made.
    n
        Training examples.
    num_eval
        Size of `validation`, of `test` and of each shift; in tables at most half of the rows that
        training leaves.
    seed
        With the problem, decides every random number of `X`, `validation` and `test`; the shifts
        of digits and tables draw one after the other, so that theirs depend on `shifts` too.

    Raises
    ------
    ValueError
        For an unknown problem or shift, or more examples than there are.
    """
    check_choice("problem", problem, PROBLEMS)
    for name in shifts:
        check_choice("shifts", name, SHIFTS)
    check_count("num_eval", num_eval, 1)
    names = shifts_of(problem, shifts)
    if problem in SYNTHETIC:
        made = make_problem(problem, n=n, seed=seed, num_test=2 * num_eval, num_far=num_eval)
        validation, test = np.split(made.regions["test"], 2)
        found = {name: made.regions[name] for name in names}
        y = np.asarray(made.targets["test"])[num_eval:]
        return Sets(made.X, made.y, made.num_classes, validation, test, y, found)
    rng = np.random.default_rng(zlib.crc32(f"shift/{problem}/{seed}".encode()))
    table, labels, outside = _table(problem)
    order = rng.permutation(len(table))
    check_count(f"n of {problem}", n, 2, len(table) - 2)
    num = min(num_eval, (len(table) - n) // 2)
    train, validation, test = np.split(order[: n + 2 * num], [n, n + num])
    if problem in IMAGES:  # pixels have one unit, and some are blank in every image
        mean, sd = table[train].mean(), table[train].std()
    else:
        mean, sd = table[train].mean(axis=0), table[train].std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    shifted = {name: _shifted(name, table[test], outside, sd, rng) for name in names}
    return Sets(
        (table[train] - mean) / sd, labels[train], int(labels.max()) + 1,
        (table[validation] - mean) / sd, (table[test] - mean) / sd, labels[test],
        {name: (x - mean) / sd for name, x in shifted.items()},
    )  # fmt: skip


def _table(problem: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in distribution, their labels, and rows out of it."""
    if problem in TABLES:
        source = SOURCES[problem]
        assert isinstance(source, RealSource)
        table, labels = source.load()
        return table, labels, table[:0]
    from sklearn.datasets import load_digits  # imported late: it takes seconds

    table, labels = map(np.asarray, load_digits(return_X_y=True))
    inside = labels < NUM_IN
    return table[inside], labels[inside], table[~inside]


def _shifted(
    name: str, rows: np.ndarray, outside: np.ndarray, sd: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """As many rows of a shift, in the units of the table."""
    if name == "classes":
        return outside[rng.permutation(len(outside))[: len(rows)]]
    if name == "rotated":
        return np.rot90(rows.reshape(-1, SIDE, SIDE), axes=(1, 2)).reshape(rows.shape)
    if name == "shuffled":
        return rows[:, rng.permutation(rows.shape[1])]
    if name == "noise":
        return rng.integers(0, _BRIGHTEST + 1, rows.shape).astype(float)
    if name == "shifted":
        return rows + SHIFT_SD * sd * rng.choice([-1.0, 1.0], rows.shape[1])
    return rng.permuted(rows, axis=0)
