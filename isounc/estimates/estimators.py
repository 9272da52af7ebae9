"""Estimators: a covariance of the parameters and the way it reaches the prediction, by name.

Two ways: to first order in p itself (`Linearised`, the delta method), or to first order in the
logit and exactly through the link (`GaussianLogit`). Null baselines say what a forward pass gives
for nothing, without a gradient: theirs is a covariance of the outputs. `ESTIMATORS` holds all of
them with what the scaling study needs to know; `register_estimator` adds one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from isounc import covariance as cov
from isounc.checks import check_choice, check_name
from isounc.densities import Data
from isounc.estimates.grams import group_grams
from isounc.estimates.links import LINK_MOMENTS
from isounc.estimates.scale_rules import effective_var, unit_var
from isounc.likelihoods import LIKELIHOODS, Likelihood, NoiseSd
from isounc.models import Model

POINTS = ("map", "trained", "stopped", "chain_mean", "draw", "posterior")
"""Points theta*: the MAP, a trained network, one whose training stopped early, the mean of the draws of
a chain, single posterior draws; and none, but an average."""
VIEWS = ("curves", "levels", "maps", "bands")
"""Where reports show an estimator: as curves against width, in the table of levels, as maps over
two inputs (the first three have room), as bands over one input."""


class Estimate(NamedTuple):
    """An estimate at N locations, per column M (class), in squared units of the prediction."""

    prob: Float[Array | np.ndarray, "N M"]
    """Point prediction p(y|x, theta*); for regression f(x, theta*)."""
    epistemic: Float[Array | np.ndarray, "N M"]
    """Estimate of Var[p | x] over the posterior; isotropic, layer_scaled: up to a constant."""
    aleatoric: Float[Array | np.ndarray, "N M"]
    """p* (1 - p*), as the paper defines it; the noise variance for regression."""
    total: Float[Array | np.ndarray, "N M"]
    """epistemic + aleatoric, the paper's sum. The consistent total is p* (1 - p*), `aleatoric`."""
    aleatoric_corrected: Float[Array | np.ndarray, "N M"]
    """Estimate of E[p (1 - p)]: to first order p* (1 - p*) - epistemic, negative where it fails."""
    target: Int[Array | np.ndarray, "N M"] | None = None
    """The class or token of each column, where `isounc.isotropic` was given or chose one."""
    moderated: Float[Array | np.ndarray, "N M"] | None = None
    """E[p] under Gaussian logits, from `isounc.isotropic(..., method="logit_scaled")` of a classifier;
    1 - moderated of the predicted class is an uncertainty whose sign is the same at every p."""

    def __repr__(self) -> str:
        """Shape and ranges: the numbers of a few hundred locations fill a screen."""
        fields = {name: a for name, a in self._asdict().items() if a is not None}
        if not all(map(_has_numbers, fields.values())):  # while JAX traces, and in pytrees
            return tuple.__repr__(self)
        lines = [f"Estimate of shape {np.shape(self.prob)}; least to largest:"]
        for name, values in fields.items():
            array = np.asarray(values)
            span = f"{array.min():.3g} to {array.max():.3g}" if array.size else "none"
            lines.append(f"    {name:<21}{span}")
        return "\n".join(lines)


def _has_numbers(value: Any) -> bool:
    """Whether a value is an array whose numbers are there."""
    return isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer)


class Evidence(NamedTuple):
    """Arrays that estimators may need beside the model and theta*; None where not at hand."""

    data: Data | None = None
    """Training data and prior."""
    prior_sd: Float[Array, " P"] | None = None
    """Prior standard deviation of each parameter, where there may be no data."""
    layer_sd: Float[Array, " P"] | None = None
    """Scales for layer_scaled, one value within a group: the prior's sd, or rms(W_l)."""
    draws: Float[Array, "S P"] | None = None
    """Posterior draws, chain-major."""
    hessian: Float[Array, "P P"] | None = None
    """Dense Hessian of minus the log posterior at theta*; the GGN takes its place without it."""


@runtime_checkable
@dataclass(frozen=True, kw_only=True)
class Estimator(Protocol):
    """A covariance of the parameters and the way it reaches the prediction.

    The fields say how a study computes, orders, compares and shows it. Instances are hashable: they
    are static arguments of the compiled estimates.
    """

    label: str = ""
    """Name in legends and titles; if empty, the one that it is registered by."""
    about: str = ""
    """One-line description, which reports show."""
    order: int | float = math.inf
    """Place among the others in tables and legends, ascending; equal ones as registered."""
    points: tuple[str, ...] = ("map", "trained")
    """The `POINTS` at which it is computed; only `posterior_averaged` has posterior."""
    needs: tuple[str, ...] = ()
    """Fields of `Evidence` without which there is no estimate."""
    uses: tuple[str, ...] = ()
    """Fields of `Evidence` that it reads where they are at hand."""
    by_group: bool = False
    """Whether Sigma is a `Diagonal` that is constant on each of the model's parameter groups, or an
    `OutputVariance`: then no gradient needs to be formed."""
    quantities: tuple[str, ...] = ("epistemic",)
    """Fields of `Estimate` that are compared with the reference."""
    per_class: bool = False
    """Whether single classes are compared too, beside their sum and the predicted class."""
    views: tuple[str, ...] = ("curves", "levels")
    """The `VIEWS` that show it."""

    def __post_init__(self):
        for field, choices in (
            ("points", POINTS),
            ("needs", Evidence._fields),
            ("uses", Evidence._fields),
            ("quantities", Estimate._fields[1:5]),
            ("views", VIEWS),
        ):
            for value in getattr(self, field):
                check_choice(field, value, choices)

    @abstractmethod
    def covariance(
        self, model: Model, theta: Float[Array, " P"], evidence: Evidence, num_chains: int
    ) -> cov.Covariance | cov.OutputVariance:
        """Sigma at theta*, or a covariance of the outputs."""
        ...

    @abstractmethod
    def moments(
        self,
        likelihood: Likelihood,
        outputs: Float[Array, "N O"],
        gram: Float[Array, "N O O"],
        noise_sd: NoiseSd,
    ) -> tuple[Float[Array, "N M"], Float[Array, "N M"]]:
        """Epistemic and corrected aleatoric variance from f(x, theta*) and J Sigma J^T."""
        ...


CovarianceRule = Callable[
    [Model, Float[Array, " P"], Evidence, int], cov.Covariance | cov.OutputVariance
]
"""Sigma from the model, theta*, the evidence and the number of chains in its draws."""


@dataclass(frozen=True)
class Linearised(Estimator):
    """Var[p_m] = g_m^T Sigma g_m with g_m = dp_m/dtheta = A_m J, A = dp/df and J = df/dtheta.

    Source: the delta method, as in Grünefeld, Frellsen, Hardmeier 2026 (arXiv 2603.29466) for
    Sigma = I.
    """

    rule: CovarianceRule
    """Sigma."""

    def covariance(self, model, theta, evidence, num_chains):
        """Sigma at theta*."""
        return self.rule(model, theta, evidence, num_chains)

    def moments(self, likelihood, outputs, gram, noise_sd):
        """Diagonal of A gram A^T, and the label variance corrected by it."""
        a = likelihood.predict_jacobian(outputs)
        epistemic = jnp.einsum("nmo,noq,nmq->nm", a, gram, a)
        # Rounding may leave a tiny negative number where a row of A cancels, at saturation.
        epistemic = jnp.maximum(epistemic, 0)
        label_variance = likelihood.label_variance(outputs, noise_sd)
        return epistemic, likelihood.expected_label_variance(label_variance, epistemic)


@dataclass(frozen=True)
class GaussianLogit(Linearised):
    """Logits f ~ N(f(x, theta*), J Sigma J^T), moments of sigmoid(f) or softmax(f) by quadrature.

    Source: MacKay 1992, "The evidence framework applied to classification networks", for the
    Gaussian logit; the moments are integrated (`isounc.estimates.links`) where he approximates
    them. A likelihood whose link is not in `isounc.estimates.links.LINK_MOMENTS`, such as
    regression, is treated as by `Linearised`.
    """

    def moments(self, likelihood, outputs, gram, noise_sd):
        """Var[p] and E[p (1 - p)] under the Gaussian logits."""
        if likelihood.link not in LINK_MOMENTS:
            return super().moments(likelihood, outputs, gram, noise_sd)
        moments = LINK_MOMENTS[likelihood.link](outputs, gram)
        return moments.var, moments.label_var


@dataclass(frozen=True)
class LabelVariance(Linearised):
    """The variance of the label at theta*, p* (1 - p*), in place of that of p: a null baseline."""

    def moments(self, likelihood, outputs, gram, noise_sd):
        """Var[y | f(x, theta*)], and the label variance corrected by it."""
        label_variance = likelihood.label_variance(outputs, noise_sd)
        return label_variance, likelihood.expected_label_variance(label_variance, label_variance)


def alike(estimator: Estimator) -> Estimator:
    """An estimator of the same moments, one for all of a built-in kind: they are compiled once."""
    kind = type(estimator)
    return kind(isotropic_rule) if kind in (Linearised, GaussianLogit, LabelVariance) else estimator


def isotropic_rule(model, theta, evidence, num_chains):
    """Sigma = I."""
    return cov.Diagonal(jnp.ones_like(theta))


def _prior(model, theta, evidence, num_chains):
    return cov.Diagonal(evidence.prior_sd)


def _white_outputs(model, theta, evidence, num_chains):
    return cov.OutputVariance()


def _distance(model, theta, evidence, num_chains):
    return cov.OutputVariance(evidence.data.X)


def _unit(model, theta, evidence, num_chains):
    outputs, parts = group_grams(model, theta, evidence.data.X)
    likelihood = LIKELIHOODS[model.likelihood]
    var = unit_var(likelihood, outputs, parts.sum(0), evidence.data.noise_sd)
    return cov.Diagonal(jnp.full_like(theta, jnp.sqrt(var)))


def _effective_dimension(model, theta, evidence, num_chains):
    factor = cov.gauss_newton_factor(model, theta, evidence.data)
    var, _ = effective_var(factor, evidence.data.prior_sd)
    return cov.Diagonal(jnp.full_like(theta, jnp.sqrt(var)))


def _layer_scaled(model, theta, evidence, num_chains):
    return cov.Diagonal(evidence.layer_sd)


def _laplace(model, theta, evidence, num_chains):
    if evidence.hessian is None:
        return cov.gauss_newton(model, theta, evidence.data)
    # In prior coordinates the precision is well scaled, which float32 needs.
    sd = evidence.data.prior_sd
    white = cov.inverse_precision(evidence.hessian * sd[None, :] * sd[:, None])
    return cov.Factor(sd[:, None] * white.factor)


def _laplace_diagonal(model, theta, evidence, num_chains):
    if evidence.hessian is None:
        return cov.gauss_newton_diagonal(model, theta, evidence.data)
    return cov.Diagonal(jnp.diagonal(evidence.hessian) ** -0.5)


def _oracle(model, theta, evidence, num_chains):
    return cov.from_draws(evidence.draws)


def _oracle_within_chain(model, theta, evidence, num_chains):
    return cov.from_draws(evidence.draws, num_chains=num_chains)


def _oracle_diagonal(model, theta, evidence, num_chains):
    return cov.diagonal_from_draws(evidence.draws)


_EVERYWHERE = ("map", "trained", "stopped", "chain_mean", "draw")
ESTIMATORS: dict[str, Estimator] = {
    "isotropic": Linearised(
        isotropic_rule, label="isotropic ‖∇p‖²", order=0, points=_EVERYWHERE, by_group=True,
        quantities=("epistemic", "aleatoric", "aleatoric_corrected", "total"), per_class=True,
        views=("curves", "levels", "maps", "bands"),
        about="‖∂p/∂θ‖²: Σ is the identity",
    ),
    "null_aleatoric": LabelVariance(
        _white_outputs, label="null: p(1−p)", order=0.1, points=_EVERYWHERE, by_group=True,
        per_class=True, views=("curves", "levels", "maps"),
        about="p(1 − p) of the point prediction; the constant noise of a regression",
    ),
    "null_squared": Linearised(
        _white_outputs, label="null: (p(1−p))²", order=0.2, points=_EVERYWHERE, by_group=True,
        per_class=True,
        about="(p(1 − p))²: each logit has variance one; constant in regression",
    ),
    "null_distance": Linearised(
        _distance, label="null: distance to the data", order=0.3, points=_EVERYWHERE,
        needs=("data",), by_group=True, views=("curves", "levels", "bands"),
        about="the outputs' variance is the distance to the nearest training input",
    ),
    "logit_scaled": GaussianLogit(
        _unit, label="logit-scaled", order=0.4, points=_EVERYWHERE, needs=("data",), by_group=True,
        quantities=("epistemic", "aleatoric_corrected"), per_class=True,
        views=("curves", "levels", "maps"),
        about="Gaussian outputs; Σ = σ²I, at the median input as uncertain as the label itself",
    ),
    "logit_scaled_level": GaussianLogit(
        _effective_dimension, label="logit-scaled, with level", order=0.5, points=_EVERYWHERE,
        needs=("data",), by_group=True, quantities=("epistemic", "aleatoric_corrected"),
        about="Gaussian outputs; Σ = σ²I with the effective dimension that the data leave",
    ),
    "link_aware": GaussianLogit(
        _prior, label="link-aware", order=1, points=_EVERYWHERE, needs=("prior_sd",),
        by_group=True, quantities=("epistemic", "aleatoric_corrected"), per_class=True,
        about="Gaussian outputs; Σ is the covariance of the prior",
    ),
    "layer_scaled": Linearised(
        _layer_scaled, label="layer-scaled", order=2, points=_EVERYWHERE, needs=("layer_sd",),
        by_group=True,
        about="Σ is constant on each parameter group, by the sd of the prior or the rms of the weights",
    ),
    "laplace": Linearised(
        _laplace, label="Laplace", order=3, needs=("data",), uses=("hessian",),
        quantities=("epistemic", "aleatoric_corrected"), views=("curves", "levels", "bands"),
        about="Σ is the inverse Hessian, or Gauss–Newton matrix where there is none",
    ),
    "laplace_diagonal": Linearised(
        _laplace_diagonal, label="Laplace, diagonal", order=4, needs=("data",), uses=("hessian",),
        views=("curves",),
        about="Σ is the inverse of the diagonal of the matrix of `laplace`",
    ),
    "oracle": Linearised(
        _oracle, label="oracle Σ", order=5, needs=("draws",),
        about="Σ is the covariance of the reference's draws",
    ),
    "oracle_within_chain": Linearised(
        _oracle_within_chain, label="oracle Σ within chains", order=6, needs=("draws",), views=(),
        about="Σ is the covariance of the draws' deviations from the mean of their chain",
    ),
    "oracle_diagonal": Linearised(
        _oracle_diagonal, label="oracle Σ, diagonal", order=7, needs=("draws",), views=(),
        about="Σ is the diagonal of the covariance of the reference's draws",
    ),
    "posterior_averaged": Linearised(
        isotropic_rule, label="averaged over draws", order=8, points=("posterior",),
        needs=("draws",), by_group=True, quantities=("epistemic", "aleatoric"),
        views=("curves", "levels", "bands"),
        about="‖∂p/∂θ‖² averaged over the reference's draws",
    ),
}  # fmt: skip
"""Estimators by name; `about` says what each is, `isounc.estimates.scale_rules` has the rules.

Through the identity of a regression logit_scaled and logit_scaled_level are sigma^2
||df/dtheta||^2: they order inputs as `isotropic` does, and differ from it in their level alone."""


def estimator_names(point: str | None = None) -> list[str]:
    """Names of `ESTIMATORS` in their order; those computed at a point, where one is given."""
    names = sorted(ESTIMATORS, key=lambda name: ESTIMATORS[name].order)
    return [name for name in names if point is None or point in ESTIMATORS[name].points]


def register_estimator(name: str, estimator: Estimator, *, overwrite: bool = False) -> None:
    """Add an estimator to `ESTIMATORS`, e.g. `Linearised(my_rule, needs=("data",))`.

    The scaling study then computes it at its points and shows it in its tables and figures. Worker
    processes know it if it is registered where a script is imported, not under
    `if __name__ == "__main__":`.

    Raises
    ------
    ValueError
        If the name is taken and `overwrite` is False, or is no name, or the estimator not an
        `Estimator`.
    """
    check_name("name", name)
    if not isinstance(estimator, Estimator):
        raise ValueError(f"estimator must be an Estimator, got {estimator!r}")
    if name in ESTIMATORS and not overwrite:
        raise ValueError(
            f"name {name!r} is already registered; choose another or pass overwrite=True"
        )
    ESTIMATORS[name] = estimator
