"""Sources of the built-in problems: true distributions as formulas, and real tables.

A synthetic source is *defined* by a density for x and by p(y|x); labels are drawn from p(y|x), so
the true aleatoric part is known at every x, however far from the data. Nothing here standardises
or validates: `isounc.problems` turns a source into a `Problem`.

Classification: every source gives one score per class, h_c(x), and with T = `label_noise` >= 0

    p(y = c | x) = exp(h_c(x) / T) / sum_k exp(h_k(x) / T).

T is a temperature of the log odds: 1 is the source's own, moderate setting (Bayes error 5-10%,
stated with each source); at 0, p is 0 or 1 and the noise-free shape is left (classes that tie
share the probability). The density of x does not depend on T. Except for `Linear` and `Xor`, class
c has a curve (a ring, a moon, a spiral arm, a point) and, with d_c(x) the Euclidean distance of x
to it, h_c(x) = -d_c(x)^2 / (2 s^2), so at T = 0 every x has the class of the nearest curve. There x
is drawn around the curves: one is picked uniformly, a point on it (uniform along its parameter),
then isotropic Gaussian jitter is added; the label is drawn from p(y|x) afterwards and need not be
the curve that was picked.

Regression: y | x ~ N(f(x), (T noise_sd)^2) with f and noise_sd given by the source.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Draw(NamedTuple):
    """Training and test data in original coordinates; labels 0..C-1 (int) or targets (float)."""

    X: Float[np.ndarray, "n D"]
    y: Shaped[np.ndarray, " n"]
    X_test: Float[np.ndarray, "N D"]
    y_test: Shaped[np.ndarray, " N"]


class Source(ABC):
    """A distribution of (x, y); where it is known, a density for x and one for y given x.

    Attributes
    ----------
    likelihood : str
        `bernoulli`, `categorical` or `gaussian`.
    num_classes : int
        C; 0 for regression.
    noise_sd : float or None
        Regression: the sd of y given x at `label_noise` 1.
    description : str
        One line for people.
    """

    likelihood: str = "bernoulli"
    num_classes: int = 2
    noise_sd: float | None = None
    description: str

    @abstractmethod
    def draw(self, rng: np.random.Generator, n: int, num_test: int, label_noise: float) -> Draw:
        """Draw n training and num_test test rows, independently of each other."""

    def truth(
        self, x: Float[np.ndarray, "N D"], label_noise: float
    ) -> Float[np.ndarray, "N M"] | None:
        """Return the true p(y=1|x) (M = 1), p(y=c|x) (M = C) or f(x) (M = 1); None if unknown."""
        return None


class SyntheticSource(Source):
    """A source whose p(y|x) is known: subclasses give the density of x, the truth and the noise."""

    @abstractmethod
    def sample_x(self, rng: np.random.Generator, n: int) -> Float[np.ndarray, "n D"]:
        """Draw n independent inputs."""

    @abstractmethod
    def sample_y(
        self, rng: np.random.Generator, x: Float[np.ndarray, "n D"], label_noise: float
    ) -> Shaped[np.ndarray, " n"]:
        """Draw one label (int) or target (float) for each x from p(y|x)."""

    def draw(self, rng, n, num_test, label_noise):
        if self.noise_sd is not None and label_noise == 0:
            raise ValueError("label_noise must be positive for a regression problem, got 0")
        # A generator for each array: the inputs do not move with label_noise, nor `test` with n.
        for_x, for_y, for_x_test, for_y_test = rng.spawn(4)
        x, x_test = self.sample_x(for_x, n), self.sample_x(for_x_test, num_test)
        y = self.sample_y(for_y, x, label_noise)
        return Draw(x, y, x_test, self.sample_y(for_y_test, x_test, label_noise))


class ClassificationSource(SyntheticSource):
    """A source given by class scores; `bayes_error` is E[1 - max_c p(y=c|x)] at `label_noise` 1."""

    bayes_error: float

    @abstractmethod
    def scores(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
        """Return class scores h_c(x) at temperature 1; only their differences matter."""

    def class_probability(
        self, x: Float[np.ndarray, "N D"], label_noise: float
    ) -> Float[np.ndarray, "N C"]:
        """Return p(y = c | x), the softmax of h_c(x) / label_noise; one-hot (ties shared) at 0."""
        scores = self.scores(x)
        # With the maximum subtracted first, any positive temperature is safe: the largest gap is
        # 0 / T = 0, and the others fall to -inf at worst.
        gap = scores - scores.max(axis=1, keepdims=True)
        if label_noise == 0:
            weight = (gap == 0).astype(float)
        else:
            with np.errstate(over="ignore", under="ignore"):
                weight = np.exp(gap / label_noise)
        return weight / weight.sum(axis=1, keepdims=True)

    def truth(self, x, label_noise):
        p = self.class_probability(x, label_noise)
        return p[:, 1:] if self.num_classes == 2 else p

    def sample_y(self, rng, x, label_noise) -> Int[np.ndarray, " n"]:
        # Inverts the distribution function, so one uniform number decides each label.
        cumulative = np.cumsum(self.class_probability(x, label_noise)[:, :-1], axis=1)
        return np.sum(rng.random((len(x), 1)) >= cumulative, axis=1)


class RegressionSource(SyntheticSource):
    """A source given by f(x) and `noise_sd`, the sd of y given x at `label_noise` 1."""

    likelihood, num_classes = "gaussian", 0
    noise_sd: float

    @abstractmethod
    def mean(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
        """Return the true regression function f(x)."""

    def truth(self, x, label_noise):
        return self.mean(x)[:, None]

    def sample_y(self, rng, x, label_noise):
        return self.mean(x) + label_noise * self.noise_sd * rng.standard_normal(len(x))


def _binary_scores(log_odds: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(log_odds), log_odds], axis=1)


def _on_circle(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


class Linear(ClassificationSource):
    """Two half-planes: x ~ N(0, I_2), a logistic regression without intercept.

        p(y = 1 | x) = sigmoid((6 x_1 + 4 x_2) / T)

    Bayes error 7.5% at T = 1.
    """

    bayes_error = 0.075
    description = "two half-planes; log odds (6 x1 + 4 x2) / T, x standard normal"

    def sample_x(self, rng, n):
        return rng.standard_normal((n, 2))

    def scores(self, x):
        return _binary_scores(6.0 * x[:, 0] + 4.0 * x[:, 1])


class Xor(ClassificationSource):
    """Four quadrants: x uniform on [-1, 1]^2, class 1 where the signs of x_1 and x_2 differ.

        p(y = 1 | x) = sigmoid(-30 x_1 x_2 / T)

    Bayes error 8.6% at T = 1.
    """

    bayes_error = 0.086
    description = "four quadrants; log odds -30 x1 x2 / T, x uniform on a square"

    def sample_x(self, rng, n):
        return rng.uniform(-1.0, 1.0, (n, 2))

    def scores(self, x):
        return _binary_scores(-30.0 * x[:, 0] * x[:, 1])


class Rings(ClassificationSource):
    """Two concentric rings of radius R_0 = 1 and R_1 = 2, jitter 0.2.

        h_c(x) = -(|x| - R_c)^2 / (2 s^2),  s = 0.4,

    so the log odds of class 1 are (|x| - 1.5) / 0.16 / T. Bayes error 7.4% at T = 1.
    """

    radii = (1.0, 2.0)
    bayes_error = 0.074
    description = "two concentric rings; log odds (|x| - 1.5) / 0.16 / T"

    def sample_x(self, rng, n):
        radius = np.asarray(self.radii)[rng.integers(len(self.radii), size=n)]
        curve = _on_circle(radius, rng.uniform(0.0, 2 * np.pi, n))
        return curve + 0.2 * rng.standard_normal((n, 2))

    def scores(self, x):
        distance = np.linalg.norm(x, axis=1)[:, None] - np.asarray(self.radii)
        return -(distance**2) / (2 * 0.4**2)


class Rings3(Rings):
    """Three concentric rings of radius R = (1, 2, 3), jitter 0.2.

        h_c(x) = -(|x| - R_c)^2 / (2 s^2),  s = 0.4

    Bayes error 9.7% at T = 1.
    """

    likelihood, num_classes = "categorical", 3
    radii = (1.0, 2.0, 3.0)
    bayes_error = 0.097
    description = "three concentric rings; p_c ~ exp(-(|x| - R_c)^2 / 0.32 / T), R = 1, 2, 3"


class Moons(ClassificationSource):
    """Two interleaving half circles of radius 1, jitter 0.1.

    Moon 0 is the upper half of the circle about m_0 = (0, 0), moon 1 the lower half of the one
    about m_1 = (1, 0.5). With u = x for moon 0 and u = m_1 - x for moon 1 (half a turn maps one on
    the other), the distance to the moon is

        d_c(x) = | |u| - 1 |                             where u_2 >= 0,
        d_c(x) = min(|u - (1, 0)|, |u + (1, 0)|)         elsewhere (the nearer end),

    and h_c(x) = -d_c(x)^2 / (2 s^2) with s = 0.25. Bayes error 5.1% at T = 1.
    """

    bayes_error = 0.051
    description = "two half moons; p_c ~ exp(-d_c(x)^2 / 0.125 / T), d_c the distance to moon c"

    def sample_x(self, rng, n):
        moon = rng.integers(2, size=n)[:, None]
        arc = _on_circle(1.0, rng.uniform(0.0, np.pi, n))
        curve = np.where(moon == 0, arc, np.array([1.0, 0.5]) - arc)
        return curve + 0.1 * rng.standard_normal((n, 2))

    def scores(self, x):
        distance = []
        for u in (x, np.array([1.0, 0.5]) - x):
            to_arc = np.abs(np.linalg.norm(u, axis=1) - 1.0)
            to_end = np.hypot(np.abs(u[:, 0]) - 1.0, u[:, 1])
            distance.append(np.where(u[:, 1] >= 0, to_arc, to_end))
        return -(np.stack(distance, axis=1) ** 2) / (2 * 0.25**2)


class Clusters3(ClassificationSource):
    """Three Gaussian clusters, sd 1, centres m_c at radius 2 and angles 90, 210, 330 degrees.

        h_c(x) = -|x - m_c|^2 / 2

    At T = 1 this is the exact posterior of the mixture, a softmax regression linear in x; its
    Bayes error is 7.4%.
    """

    likelihood, num_classes = "categorical", 3
    bayes_error = 0.074
    description = "three Gaussian clusters; p_c ~ exp(-|x - m_c|^2 / 2 / T)"
    centres = _on_circle(2.0, np.pi * (1 / 2 + 2 * np.arange(3) / 3))

    def sample_x(self, rng, n):
        return self.centres[rng.integers(3, size=n)] + rng.standard_normal((n, 2))

    def scores(self, x):
        return -np.sum((x[:, None, :] - self.centres) ** 2, axis=2) / 2


class Spirals3(ClassificationSource):
    """Three spiral arms, jitter 0.1, arm c turned by 2 pi c / 3.

        gamma_c(t) = r (cos a, sin a),  r = 0.3 + 1.7 t,  a = 1.4 pi t + 2 pi c / 3,  0 <= t <= 1

    d_c(x) is the smallest distance to the 401 points of the arm with t = 0, 1/400, ..., 1 (which
    *is* the definition), and h_c(x) = -d_c(x)^2 / (2 s^2) with s = 0.25. Bayes error 5.7% at T = 1.
    """

    likelihood, num_classes = "categorical", 3
    bayes_error = 0.057
    description = "three spiral arms; p_c ~ exp(-d_c(x)^2 / 0.125 / T), d_c the distance to arm c"

    @staticmethod
    def _arm(t: np.ndarray, arm: np.ndarray | int) -> np.ndarray:
        return _on_circle(0.3 + 1.7 * t, 1.4 * np.pi * t + 2 * np.pi * arm / 3)

    def sample_x(self, rng, n):
        curve = self._arm(rng.uniform(0.0, 1.0, n), rng.integers(3, size=n))
        return curve + 0.1 * rng.standard_normal((n, 2))

    def scores(self, x):
        t = np.linspace(0.0, 1.0, 401)
        squared = [np.sum((x[:, None] - self._arm(t, c)) ** 2, axis=2).min(1) for c in range(3)]
        return -np.stack(squared, axis=1) / (2 * 0.25**2)


class LinearRegression(RegressionSource):
    """A straight line: f(x) = 0.2 + 0.8 x, x uniform on [-2, 2], noise_sd 0.3 (times T)."""

    noise_sd = 0.3
    description = "f(x) = 0.2 + 0.8 x, x uniform on [-2, 2], noise sd 0.3 T"

    def sample_x(self, rng, n):
        return rng.uniform(-2.0, 2.0, (n, 1))

    def mean(self, x):
        return 0.2 + 0.8 * x[:, 0]


class NonlinearRegression(RegressionSource):
    """A wave on a trend, with a gap in the data in which a model should be uncertain.

        f(x) = sin(1.5 x) + 0.3 x,  x uniform on [-3, -1] and [1, 3] together,  noise_sd 0.2

    (noise_sd times T).
    """

    noise_sd = 0.2
    description = "f(x) = sin(1.5 x) + 0.3 x, x uniform on [-3, -1] and [1, 3], noise sd 0.2 T"

    def sample_x(self, rng, n):
        side = np.where(rng.random((n, 1)) < 0.5, -1.0, 1.0)
        return side * rng.uniform(1.0, 3.0, (n, 1))

    def mean(self, x):
        return np.sin(1.5 * x[:, 0]) + 0.3 * x[:, 0]


class RealSource(Source):
    """A table that scikit-learn ships (nothing is downloaded), split at random; p(y|x) is unknown.

    The columns are standardised and their principal components fitted on the training rows alone;
    X holds the scores of the first `num_components`. `test` is taken from the remaining rows.
    """

    def __init__(self, table: str, num_classes: int, num_components: int, about: str) -> None:
        self.table = table
        self.likelihood = "bernoulli" if num_classes == 2 else "categorical"
        self.num_classes = num_classes
        self.num_components = num_components
        self.description = f"{about}; {num_components} whitened principal components"

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the whole table (rows, columns) and its labels (rows,)."""
        # Imported late: scikit-learn takes seconds, and synthetic data need none of it.
        from sklearn import datasets

        table, labels = getattr(datasets, f"load_{self.table}")(return_X_y=True)
        if self.table == "digits":
            keep = (labels == 3) | (labels == 8)
            table, labels = table[keep], (labels[keep] == 8).astype(np.int64)
        return table, labels

    def draw(self, rng, n, num_test, label_noise):
        from sklearn.decomposition import PCA

        table, labels = self.load()
        if label_noise != 1:
            raise ValueError(
                "label_noise must be 1 for a real data set, whose labels are recorded and not "
                f"drawn, got {label_noise:g}"
            )
        if not self.num_components < n < len(table):
            raise ValueError(
                f"n must be {self.num_components + 1} to {len(table) - 1}, for the data set has "
                f"{len(table)} rows and is reduced to {self.num_components} components, got {n}"
            )
        order = rng.permutation(len(table))
        train, test = order[:n], order[n : n + num_test]
        sd = table[train].std(axis=0)
        # A pixel that is blank in every training row stays zero, whatever divides it.
        z = (table - table[train].mean(axis=0)) / np.where(sd > 0, sd, 1.0)
        scores = PCA(self.num_components, svd_solver="full").fit(z[train]).transform(z)
        return Draw(scores[train], labels[train], scores[test], labels[test])


SOURCES: dict[str, Source] = {
    "linear": Linear(),
    "xor": Xor(),
    "rings": Rings(),
    "moons": Moons(),
    "clusters3": Clusters3(),
    "spirals3": Spirals3(),
    "rings3": Rings3(),
    "linear_regression": LinearRegression(),
    "nonlinear_regression": NonlinearRegression(),
    "breast_cancer": RealSource("breast_cancer", 2, 10, "breast tumours, malignant 0, benign 1"),
    "wine": RealSource("wine", 3, 5, "wines of three cultivars"),
    "digits_3v8": RealSource("digits", 2, 10, "8 x 8 handwritten digits, 3 (0) or 8 (1)"),
}
