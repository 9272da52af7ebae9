"""Problems: training data, named regions to predict in, and the truth where it is known.

`make_problem(name, seed=...)` builds a problem of the registry; `Problem.from_arrays(X, y)` takes a
user's own data exactly as given; `register_problem` adds a factory of one's own to the registry.

Built-in problems are standardised with the mean and sd of their training inputs, and have

    test   drawn like the training data, with its labels in `targets`;
    grid   a regular grid over the box of 1.5 x the range of the training inputs about its centre
           (1-D and 2-D problems);
    far    uniform in the shell between that box and the one of 3 x the range.

All problems of one kind (binary 2-D, three-class 2-D, 1-D regression) have arrays of the same
shapes at the same settings, so that one compilation can serve them all. Real sets have no `grid`
and no known truth. The formulas are in `isounc.sources`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

from isounc.checks import (
    check_array,
    check_choice,
    check_count,
    check_name,
    check_real,
)
from isounc.likelihoods import LIKELIHOODS
from isounc.sources import SOURCES

NUM_TRAIN = 100
MOST_ROWS = 10**6
"""Most rows that a built-in problem draws, of data and of each region."""
GRID_RANGE, FAR_RANGE = 1.5, 3.0
_MAX_REDRAWS = 1000


@dataclass(frozen=True, eq=False)
class Problem:
    """A data set, the likelihood of its labels, and the regions where predictions are compared.

    Everything is checked on construction; arrays are copied, held as float64 (labels as int64) and
    made read-only.

    Raises
    ------
    ValueError
        Naming the argument, what was given and what would be right.
    """

    name: str
    """Letters, digits, `_`, `-` and `.`."""
    likelihood: str
    """A name of `isounc.likelihoods.LIKELIHOODS`: `bernoulli`, `categorical`, `gaussian`, ..."""
    X: Float[np.ndarray, "n D"]
    """Training inputs, in the coordinates that the model sees."""
    y: Shaped[np.ndarray, " n"]
    """Labels 0..C-1, or targets as the likelihood asks for."""
    num_classes: int
    """C; 0 for targets that are no classes."""
    regions: Mapping[str, Float[np.ndarray, "N D"]]
    """Locations where predictions are made, by name."""
    noise_sd: float | None = None
    """Sd of y given x, in units of y; required by `gaussian`, refused by the others."""
    targets: Mapping[str, Shaped[np.ndarray, " N"]] = field(default_factory=dict)
    """Labels of a region's locations, where there are any."""
    p_true: Mapping[str, Float[np.ndarray, "N M"]] = field(default_factory=dict)
    """The truth where it is known: p(y=1|x) (M = 1), p(y=c|x) (M = C) or the mean of y (M = 1)."""
    grid_shape: tuple[int, ...] | None = None
    """`regions["grid"][:, j].reshape(grid_shape)` is coordinate j of a mesh ("ij" indexing)."""
    x_mean: Float[np.ndarray, " D"] | None = None
    """For built-in problems: original = x_mean + x_sd * X (in real sets, component scores)."""
    x_sd: Float[np.ndarray, " D"] | None = None
    """See `x_mean`."""
    description: str = ""
    """One line for people."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        X = check_array("X", self.X, ndim=2)
        width = X.shape[1]
        if X.size == 0:
            raise ValueError(f"X must have at least one row and one column, got shape {X.shape}")
        y = self._labels("y", self.y, len(X), "X")
        if self.num_classes and (y == y[0]).all():
            raise ValueError(f"y holds one class only ({y[0]}); at least two must occur in it")
        noise_sd = self.noise_sd
        if LIKELIHOODS[self.likelihood].uses_noise_sd:
            noise_sd = check_real("noise_sd", noise_sd, positive=True)
        elif noise_sd is not None:
            raise ValueError(
                f"noise_sd must be left out for likelihood {self.likelihood!r}, got {noise_sd!r} "
                "(for regression on integer y pass likelihood='gaussian')"
            )
        regions, targets, p_true = _check_arrays("regions", self.regions, ndim=2), {}, {}
        for region, points in regions.items():
            check_name("a name in regions", region)
            where = f"regions[{region!r}]"
            if points.shape[1] != width or len(points) == 0:
                raise ValueError(
                    f"{where} must have {width} columns, as X has, and at least one row; "
                    f"got shape {points.shape}"
                )
        if not regions:
            raise ValueError("regions must name at least one set of points, got none")
        for region, labels in _check_arrays("targets", self.targets, ndim=1).items():
            check_choice("a name in targets", region, regions)
            name, where = f"targets[{region!r}]", f"regions[{region!r}]"
            targets[region] = self._labels(name, labels, len(regions[region]), where)
        for region, truth in _check_arrays("p_true", self.p_true, ndim=2).items():
            check_choice("a name in p_true", region, regions)
            name, shape = f"p_true[{region!r}]", (len(regions[region]), self.num_columns)
            if truth.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {truth.shape}")
            LIKELIHOODS[self.likelihood].check_prediction(name, truth)
            p_true[region] = truth
        grid_shape = self.grid_shape
        if grid_shape is not None:
            grid_shape = tuple(int(size) for size in grid_shape)
            num_grid = len(regions["grid"]) if "grid" in regions else 0
            if len(grid_shape) != width or math.prod(grid_shape) != num_grid:
                raise ValueError(
                    f"grid_shape must have {width} entries whose product is the number of rows of "
                    f"regions['grid'] ({num_grid}), got {grid_shape}"
                )
        affine = {}
        for name in ("x_mean", "x_sd"):
            if (value := getattr(self, name)) is not None:
                affine[name] = value = check_array(name, value, ndim=1).astype(np.float64)
                if len(value) != width or (name == "x_sd" and value.min() <= 0):
                    raise ValueError(f"{name} must hold {width} (positive) numbers, got {value}")
        fields = dict(X=X, y=y, regions=regions, targets=targets, p_true=p_true, **affine)
        fields |= dict(noise_sd=noise_sd, grid_shape=grid_shape)
        for name, value in fields.items():
            for array in value.values() if isinstance(value, dict) else [value]:
                if isinstance(array, np.ndarray):
                    array.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def from_arrays(
        cls,
        X: Any,
        y: Any,
        *,
        likelihood: str | None = None,
        regions: Mapping[str, Any] | None = None,
        noise_sd: float | None = None,
        targets: Mapping[str, Any] | None = None,
        p_true: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        name: str = "user",
    ) -> Problem:
        """A problem from a user's arrays, used as given: nothing is standardised or reordered.

        Parameters
        ----------
        X : (n, D) array of numbers
            Training inputs.
        y : (n,) array
            Labels 0..C-1, or real targets.
        likelihood : str, optional
            Left out, floating y means `gaussian`; integer or boolean y `bernoulli` with two
            classes and `categorical` with more.
        regions : mapping of str to (N, D), optional
            Where to predict. Left out, there is one region, `train`: X itself, its targets y.
        noise_sd : float, optional
            Required for `gaussian`, refused elsewhere.
        num_classes : int, optional
            C, for when y does not hold every class; otherwise the number of distinct labels.
        targets, p_true, name
            As in `Problem`, whose other fields `dataclasses.replace` can add.

        Raises
        ------
        ValueError
            As `Problem`, for anything that does not fit.
        """
        y = check_array("y", y, ndim=1)
        seen = np.unique(y)
        if num_classes is not None:
            check_count("num_classes", num_classes, 0)
        if likelihood is None and y.dtype.kind == "f":
            likelihood = "gaussian"
            if noise_sd is None:
                raise ValueError(
                    "noise_sd is missing: y is floating, so the likelihood was taken to be "
                    "'gaussian', which needs noise_sd > 0; for class labels give integers "
                    "(y.astype(int)) or likelihood='bernoulli' or 'categorical'"
                )
        elif likelihood is None:
            likelihood = "bernoulli" if (num_classes or len(seen)) <= 2 else "categorical"
        check_choice("likelihood", likelihood, LIKELIHOODS)
        if num_classes is None:
            num_classes = int(np.clip(len(seen), *LIKELIHOODS[likelihood].num_classes))
        X = check_array("X", X, ndim=2)
        if regions is None:
            regions, targets = {"train": X}, {"train": y} if targets is None else targets
        return cls(
            name, likelihood, X, y, num_classes, _check_arrays("regions", regions, ndim=2),
            noise_sd, _check_arrays("targets", {} if targets is None else targets, ndim=1),
            _check_arrays("p_true", {} if p_true is None else p_true, ndim=2),
        )  # fmt: skip

    @property
    def num_features(self) -> int:
        """D, the number of columns of X."""
        return self.X.shape[1]

    @property
    def num_outputs(self) -> int:
        """O, the outputs that a model needs: C logits if categorical, else 1."""
        return LIKELIHOODS[self.likelihood].num_outputs(self.num_classes)

    @property
    def num_columns(self) -> int:
        """M, the columns of the predictive quantity: C if categorical, else 1."""
        return self.num_outputs

    @property
    def shape_key(self) -> tuple:
        """Likelihood and sizes: problems with equal keys can share one compiled program."""
        sizes = tuple((region, len(points)) for region, points in self.regions.items())
        return (self.likelihood, self.num_classes, self.X.shape, sizes)

    def _labels(self, name: str, values: Any, length: int, other: str) -> np.ndarray:
        labels = check_array(name, values, ndim=1)
        if len(labels) != length:
            raise ValueError(
                f"{name} and {other} must be of the same length, got {len(labels)} and {length}"
            )
        likelihood = LIKELIHOODS[self.likelihood]
        check_count("num_classes", self.num_classes, *likelihood.num_classes)
        return likelihood.check_labels(name, labels, self.num_classes)


def _check_arrays(argument: str, arrays: Any, *, ndim: int) -> dict[str, np.ndarray]:
    """Copies of arrays by name; a ValueError unless they are a mapping of finite arrays."""
    if not isinstance(arrays, Mapping):
        raise ValueError(f"{argument} must map names to arrays, got {type(arrays).__name__}")
    return {
        name: check_array(f"{argument}[{name!r}]", array, ndim=ndim)
        for name, array in arrays.items()
    }


@runtime_checkable
class ProblemFactory(Protocol):
    """An entry of the registry; a factory may ignore settings that mean nothing to it."""

    def __call__(
        self, *, n: int | None, seed: int, label_noise: float, num_test: int, num_far: int,
        grid_size: int,
    ) -> Problem:  # fmt: skip
        """Build the problem; `n` None asks for the factory's own number of training rows."""
        ...


def make_problem(
    name: str,
    *,
    n: int | None = None,
    seed: int = 0,
    label_noise: float = 1.0,
    num_test: int = 100,
    num_far: int = 100,
    grid_size: int = 21,
) -> Problem:
    """Build a problem of the registry `PROBLEMS`.

    Parameters
    ----------
    name : str
        `linear`, `xor`, `rings`, `moons` (binary, 2-D), `clusters3`, `spirals3`, `rings3` (three
        classes, 2-D), `linear_regression`, `nonlinear_regression` (1-D), `breast_cancer`, `wine`,
        `digits_3v8` (real), or a name given to `register_problem`.
    n : int, optional
        Training rows (100 if left out). A set drawn without one of the classes is drawn again.
    seed : int
        With `name`, decides every random number: equal arguments give equal arrays.
    label_noise : float
        T >= 0. Classification: a temperature of the true log odds, 0 for noise-free labels.
        Regression: multiplies the noise sd, so must be positive. Real sets: 1, as recorded.
    num_test : int
        Size of `test`; in real sets at most the rows that training leaves.
    num_far : int
        Size of `far`. In D dimensions most of that shell is near its outer edge.
    grid_size : int
        Points along each axis of a 2-D `grid`; a 1-D one has 5 (grid_size - 1) + 1 points.

    Raises
    ------
    ValueError
        For an unknown name (with near matches) or a setting that does not fit.
    """
    check_choice("problem", name, PROBLEMS)
    if n is not None:
        check_count("n", n, 2, MOST_ROWS)
    check_count("seed", seed, 0, 2**63 - 1)
    check_count("num_test", num_test, 1, MOST_ROWS)
    check_count("num_far", num_far, 1, MOST_ROWS)
    check_count("grid_size", grid_size, 2, math.isqrt(MOST_ROWS))
    return PROBLEMS[name](
        n=n, seed=int(seed), label_noise=check_real("label_noise", label_noise),
        num_test=num_test, num_far=num_far, grid_size=grid_size,
    )  # fmt: skip


def register_problem(name: str, factory: ProblemFactory, *, overwrite: bool = False) -> None:
    """Add a factory to the registry, so that `make_problem` and the experiments know its name.

    Raises
    ------
    ValueError
        If the name is taken and `overwrite` is False, or is no name, or the factory not callable.
    """
    check_name("name", name)
    if not callable(factory):
        raise ValueError(f"factory must be callable and return a Problem, got {factory!r}")
    if name in PROBLEMS and not overwrite:
        raise ValueError(
            f"name {name!r} is already registered; choose another or pass overwrite=True"
        )
    PROBLEMS[name] = factory


def _built_in(
    name: str, *, n: int | None, seed: int, label_noise: float, num_test: int, num_far: int,
    grid_size: int,
) -> Problem:  # fmt: skip
    source = SOURCES[name]
    n = NUM_TRAIN if n is None else n
    for attempt in range(_MAX_REDRAWS):
        drawn = source.draw(_rng(name, seed, "data", attempt), n, num_test, label_noise)
        if source.num_classes == 0 or len(np.unique(drawn.y)) == source.num_classes:
            break
    else:
        raise ValueError(
            f"n={n} training rows of {name!r} did not hold all {source.num_classes} classes in "
            f"any of {_MAX_REDRAWS} draws; choose a larger n"
        )
    mean, sd = drawn.X.mean(axis=0), drawn.X.std(axis=0)
    X = (drawn.X - mean) / sd
    far_rng = _rng(name, seed, "far")
    regions, grid_shape = _regions(X, (drawn.X_test - mean) / sd, far_rng, num_far, grid_size)
    truth = {k: source.truth(mean + sd * points, label_noise) for k, points in regions.items()}
    return Problem(
        name, source.likelihood, X, drawn.y, source.num_classes, regions,
        noise_sd=None if source.noise_sd is None else source.noise_sd * label_noise,
        targets={"test": drawn.y_test},
        p_true={region: p for region, p in truth.items() if p is not None},
        grid_shape=grid_shape, x_mean=mean, x_sd=sd, description=source.description,
    )  # fmt: skip


def _rng(name: str, seed: int, stream: str, attempt: int = 0) -> np.random.Generator:
    # A cryptographic hash, because Python's own of a string changes from process to process.
    digest = hashlib.sha256(f"{name}/{stream}".encode()).digest()
    key = (int.from_bytes(digest[:8], "big"), attempt)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _regions(
    X: np.ndarray, X_test: np.ndarray, rng: np.random.Generator, num_far: int, grid_size: int
) -> tuple[dict[str, np.ndarray], tuple[int, ...] | None]:
    """The regions of the module docstring (`grid` for D <= 2), and the shape of the grid."""
    centre = (X.max(axis=0) + X.min(axis=0)) / 2
    reach = (X.max(axis=0) - X.min(axis=0)) / 2
    dim = X.shape[1]
    regions, shape = {"test": X_test}, None
    if dim <= 2:
        shape = (grid_size,) * dim if dim == 2 else (5 * (grid_size - 1) + 1,)
        axes = [
            c + GRID_RANGE * r * np.linspace(-1, 1, size)
            for c, r, size in zip(centre, reach, shape, strict=True)
        ]
        mesh = np.meshgrid(*axes, indexing="ij")
        regions["grid"] = np.stack([coordinate.ravel() for coordinate in mesh], axis=1)
    kept = np.empty((0, dim))
    while len(kept) < num_far:
        # Rejection: at least half of the outer box lies outside the inner one, in any dimension.
        u = rng.uniform(-FAR_RANGE, FAR_RANGE, (2 * num_far, dim))
        kept = np.concatenate([kept, u[np.abs(u).max(axis=1) > GRID_RANGE]])
    regions["far"] = centre + reach * kept[:num_far]
    return regions, shape


PROBLEMS: dict[str, ProblemFactory] = {name: partial(_built_in, name) for name in SOURCES}
