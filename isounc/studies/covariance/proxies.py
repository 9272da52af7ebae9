"""Proxy data: inputs that stand in for the training inputs where a covariance is built, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.checks import check_choice
from isounc.problems import GRID_RANGE, Problem, make_problem
from isounc.sources import SOURCES, RealSource

OTHER_PROBLEMS = ("moons", "spirals3", "breast_cancer", "digits_3v8")
"""Problems of which `other` takes the first that is another one and has inputs enough."""
TIGHT_SD, SCALE, ANGLE = 0.1, 2.0, np.pi / 4

Inputs = Float[np.ndarray, "n D"]
Make = Callable[[Problem, Inputs, np.random.Generator], Inputs]


class Proxy(NamedTuple):
    """Some inputs, as many as there are training inputs."""

    label: str
    """Name in figures and tables."""
    make: Make
    """Makes them from a problem, fresh inputs of its distribution, and a random generator."""
    real_alone: bool = False
    """Whether it is made for the real sets alone."""


def _train(problem, fresh, rng):
    return problem.X


def _fresh(problem, fresh, rng):
    # A small real set has fewer rows left: some count twice.
    return np.resize(fresh, problem.X.shape)


def _shifted(by: float) -> Make:
    def make(problem, fresh, rng):
        X = problem.X.copy()
        X[:, 0] += by * X[:, 0].std()
        return X

    return make


def _rotated(problem, fresh, rng):
    centre = problem.X.mean(axis=0)
    X = problem.X - centre
    if X.shape[1] == 1:
        return centre - X
    cos, sin = np.cos(ANGLE), np.sin(ANGLE)
    X[:, :2] = X[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    return centre + X


def _scaled(problem, fresh, rng):
    centre = problem.X.mean(axis=0)
    return centre + SCALE * (problem.X - centre)


def _tight(problem, fresh, rng):
    X = problem.X
    return X.mean(axis=0) + TIGHT_SD * X.std(axis=0) * rng.standard_normal(X.shape)


def _box(problem, fresh, rng):
    low, high = problem.X.min(axis=0), problem.X.max(axis=0)
    reach = GRID_RANGE * (high - low) / 2
    return (low + high) / 2 + reach * rng.uniform(-1, 1, problem.X.shape)


def _other(problem, fresh, rng):
    n, dim = problem.X.shape
    for name in OTHER_PROBLEMS:
        if name != problem.name:
            X = make_problem(name, n=n, seed=int(rng.integers(2**31))).X
            if X.shape[1] >= dim:
                return X[:, :dim]
    raise ValueError(
        f"proxies must leave out other for {problem.name!r}, whose {dim} inputs are more than those "
        f"of any of {', '.join(OTHER_PROBLEMS)}"
    )


def _permuted(problem, fresh, rng):
    return rng.permuted(problem.X, axis=0)


PROXIES: dict[str, Proxy] = {
    "train": Proxy("training inputs", _train),
    "fresh": Proxy("fresh, same distribution", _fresh),
    "shifted_1": Proxy("shifted by 1 sd", _shifted(1.0)),
    "shifted_2": Proxy("shifted by 2 sd", _shifted(2.0)),
    "shifted_4": Proxy("shifted by 4 sd", _shifted(4.0)),
    "rotated": Proxy("rotated by 45°", _rotated),
    "scaled": Proxy("scaled by 2", _scaled),
    "tight": Proxy("tight noise", _tight),
    "box": Proxy("uniform in the box", _box),
    "other": Proxy("another problem's inputs", _other),
    "permuted": Proxy("permuted features", _permuted, real_alone=True),
}
"""Proxies by name; the study's docstring defines them."""
SAME = ("train", "fresh")
"""Those of the training distribution."""


def is_made_for(proxy: str, problem: str) -> bool:
    """Whether a proxy is made for a problem."""
    return not PROXIES[proxy].real_alone or isinstance(SOURCES.get(problem), RealSource)


def proxy_inputs(
    proxy: str, problem: Problem, fresh: Float[np.ndarray, "m D"], rng: np.random.Generator
) -> Float[np.ndarray, "n D"]:
    """Make the inputs of a proxy, as many as the problem has for training.

    Raises
    ------
    ValueError
        For an unknown proxy, or `other` where no other problem has inputs enough.
    """
    check_choice("proxy", proxy, PROXIES)
    return PROXIES[proxy].make(problem, fresh, rng)
