"""Estimators: a covariance of the parameters and the way it reaches the prediction, by name.

Two ways: to first order in p itself (`Linearised`, the delta method), or to first order in the logit and exactly
through the link (`GaussianLogit`). `ESTIMATORS` lists them; `register_estimator` adds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isounc import covariance as cov
from isounc.densities import Data
from isounc.estimates.links import LINK_MOMENTS
from isounc.likelihoods import Likelihood, NoiseSd
from isounc.models import Model


class Estimate(NamedTuple):
    """An estimate at N locations, per column M (class); variances are in squared units of the predictive quantity."""

    prob: Float[Array | np.ndarray, "N M"]
    """Point prediction p(y|x, theta*); for regression f(x, theta*)."""
    epistemic: Float[Array | np.ndarray, "N M"]
    """Estimate of Var[p | x] over the posterior, up to a constant for isotropic and layer-scaled ones."""
    aleatoric: Float[Array | np.ndarray, "N M"]
    """p* (1 - p*), as the paper defines it; the noise variance for regression."""
    total: Float[Array | np.ndarray, "N M"]
    """epistemic + aleatoric, the paper's sum. The consistent total is p* (1 - p*), which is `aleatoric` itself."""
    aleatoric_corrected: Float[Array | np.ndarray, "N M"]
    """Estimate of E[p (1 - p)]: p* (1 - p*) - epistemic to first order (negative where that breaks down)."""
    target: Int[Array | np.ndarray, "N M"] | None = None
    """The class or token of each column, where `isounc.isotropic` was given one or chose the predicted one."""


class Evidence(NamedTuple):
    """What estimators may draw on beside the model and theta*; None where it is not at hand."""

    data: Data | None = None
    """Training data and prior."""
    layer_sd: Float[Array, " P"] | None = None
    """Scales for layer_scaled, one value within a group: the prior's sd, or rms(W_l) (`layer_rms`)."""
    draws: Float[Array, "S P"] | None = None
    """Posterior draws, chain-major."""
    hessian: Float[Array, "P P"] | None = None
    """Dense Hessian of minus the log posterior at theta*; the GGN takes its place without it."""


@runtime_checkable
class Estimator(Protocol):
    """A covariance of the parameters and the way it reaches the prediction.

    Instances are hashable (a frozen dataclass is): they are static arguments of the compiled estimates.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Evidence` without which there is no estimate."""
        ...

    @property
    def by_group(self) -> bool:
        """Whether Sigma is a `Diagonal` that is constant on each of the model's parameter groups."""
        ...

    def covariance(
        self, model: Model, theta: Float[Array, " P"], evidence: Evidence, num_chains: int
    ) -> cov.Covariance:
        """Sigma at theta*."""
        ...

    def moments(
        self,
        likelihood: Likelihood,
        outputs: Float[Array, "N O"],
        gram: Float[Array, "N O O"],
        noise_sd: NoiseSd,
    ) -> tuple[Float[Array, "N M"], Float[Array, "N M"]]:
        """Epistemic variance and corrected aleatoric variance from f(x, theta*) and J Sigma J^T."""
        ...


CovarianceRule = Callable[[Model, jax.Array, Evidence, int], cov.Covariance]


@dataclass(frozen=True)
class Linearised:
    """Var[p_m] = g_m^T Sigma g_m with g_m = dp_m/dtheta = A_m J, hence A (J Sigma J^T) A^T on the diagonal.

    Source: the delta method, as in Grünefeld, Frellsen, Hardmeier 2026 (arXiv 2603.29466) for Sigma = I.
    """

    rule: CovarianceRule
    """Sigma."""
    needs: tuple[str, ...] = ()
    """Fields of `Evidence` that the rule reads."""
    by_group: bool = False
    """Whether Sigma is a multiple of the identity on each parameter group: then no gradient needs to be formed."""

    def covariance(self, model, theta, evidence, num_chains):
        """Sigma at theta*."""
        return self.rule(model, theta, evidence, num_chains)

    def moments(self, likelihood, outputs, gram, noise_sd):
        """Diagonal of A gram A^T, and p*(1-p*) minus it (regression: the noise does not depend on theta)."""
        a = likelihood.predict_jacobian(outputs)
        epistemic = jnp.einsum("nmo,noq,nmq->nm", a, gram, a)
        # Rounding may leave a tiny negative number at saturated probabilities, where a row of A cancels.
        epistemic = jnp.maximum(epistemic, 0)
        label_variance = likelihood.label_variance(outputs, noise_sd)
        return epistemic, likelihood.expected_label_variance(label_variance, epistemic)


@dataclass(frozen=True)
class GaussianLogit:
    """Logits f ~ N(f(x, theta*), J Sigma J^T), moments of sigmoid(f) or softmax(f) to quadrature accuracy.

    Source: MacKay 1992, "The evidence framework applied to classification networks", for the Gaussian logit; the
    moments are integrated (`isounc.estimates.links`) where he approximates them. A likelihood whose link is not in
    `isounc.estimates.links.LINK_MOMENTS`, such as regression, is treated as by `Linearised`.
    """

    rule: CovarianceRule
    """Sigma."""
    needs: tuple[str, ...] = ()
    """Fields of `Evidence` that the rule reads."""
    by_group: bool = False
    """Whether Sigma is a multiple of the identity on each parameter group: then no gradient needs to be formed."""

    def covariance(self, model, theta, evidence, num_chains):
        """Sigma at theta*."""
        return self.rule(model, theta, evidence, num_chains)

    def moments(self, likelihood, outputs, gram, noise_sd):
        """Var[p] and E[p (1 - p)] under the Gaussian logits."""
        if likelihood.link not in LINK_MOMENTS:
            return Linearised(self.rule).moments(likelihood, outputs, gram, noise_sd)
        moments = LINK_MOMENTS[likelihood.link](outputs, gram)
        return moments.var, moments.label_var


def isotropic_rule(model, theta, evidence, num_chains):
    """Sigma = I."""
    return cov.Diagonal(jnp.ones_like(theta))


def _prior(model, theta, evidence, num_chains):
    return cov.Diagonal(evidence.data.prior_sd)


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


ESTIMATORS: dict[str, Estimator] = {
    "isotropic": Linearised(isotropic_rule, by_group=True),
    "link_aware": GaussianLogit(_prior, ("data",), by_group=True),
    "layer_scaled": Linearised(_layer_scaled, ("layer_sd",), by_group=True),
    "laplace": Linearised(_laplace, ("data",)),
    "laplace_diagonal": Linearised(_laplace_diagonal, ("data",)),
    "oracle": Linearised(_oracle, ("draws",)),
    "oracle_within_chain": Linearised(_oracle_within_chain, ("draws",)),
    "oracle_diagonal": Linearised(_oracle_diagonal, ("draws",)),
}
"""Estimators at a point, by name. `posterior_averaged` stands apart: it has no theta*."""


def register_estimator(name: str, estimator: Estimator, *, overwrite: bool = False) -> None:
    """Add an estimator to `ESTIMATORS`, e.g. ``Linearised(my_rule, ("data",))``.

    Raises
    ------
    ValueError
        If the name is taken and ``overwrite`` is False.
    """
    if name in (*ESTIMATORS, "posterior_averaged") and not overwrite:
        raise ValueError(f"name {name!r} is taken; give overwrite=True to replace that estimator.")
    ESTIMATORS[name] = estimator
