"""The hypotheses, each a bound on a number of a seed; the study's docstring states them."""

from __future__ import annotations

from typing import NamedTuple

from isounc.studies.spectrum.cell import DRAWS, ISOTROPIC, LAPLACE
from isounc.studies.spectrum.settings import ALL, TRAIN

MARGIN = 0.05
"""Loss of r up to which "enough" holds."""


class Hypothesis(NamedTuple):
    """A claim that a number lies above a bound, or below it."""

    claim: str
    """The claim in words."""
    column: str
    """Column of the results that it is about."""
    form: str
    """Form that it is about; {k} stands for the rank of the verdicts."""
    bound: float
    """The bound."""
    below: bool = False
    """Whether the number has to lie below it."""
    rival: str = ""
    """Form whose number is subtracted; empty for none."""
    region: str = ""
    """The region that it is about; empty for each of them."""
    slope: str = ""
    """Whether the number is the slope of the column on log2 of the width, or on the depth."""
    absolute: bool = False
    """Whether the absolute value is bounded."""
    source: str = ""
    """Where theory says so."""


_WIDTH, _DEPTH = "width", "depth"
HYPOTHESES = {
    "outliers": Hypothesis(
        "as many eigenvalues of the GGN as there are classes have more than half of its trace",
        "outlier_share", LAPLACE, 0.5, region=ALL, source="Papyan 2018, Ghorbani et al. 2019",
    ),
    "outliers, Hessian": Hypothesis(
        "the largest eigenvalue of the Hessian is the GGN's within a factor of 2",
        "log2_hessian", LAPLACE, 1.0, below=True, region=ALL, absolute=True,
        source="Papyan 2018, Ghorbani et al. 2019",
    ),
    "grows with width": Hypothesis(
        "the largest eigenvalue over the mean of all grows with the width",
        "log2_over_mean", LAPLACE, 0.0, region=ALL, slope=_WIDTH, source="Karakida et al. 2019",
    ),
    "grows with depth": Hypothesis(
        "the largest eigenvalue over the bulk's mean grows with the depth",
        "log2_over_bulk", LAPLACE, 0.0, region=ALL, slope=_DEPTH, source="arXiv 2602.00545",
    ),
    "grows with depth, sum": Hypothesis(
        "the largest eigenvalue over the bulk's sum, which no count enters, grows with the depth",
        "log2_over_rest", LAPLACE, 0.0, region=ALL, slope=_DEPTH, source="arXiv 2602.00545",
    ),
    "repriorises": Hypothesis(
        "with the width the posterior approaches N(0, I) where the read-out is whitened",
        "jeffreys_readout", DRAWS, 0.0, below=True, region=ALL, slope=_WIDTH,
        source="Hron et al. 2022, arXiv 2206.07673",
    ),
    "repriorises, weights": Hypothesis(
        "with the width the posterior of the weights approaches their prior",
        "jeffreys_weights", DRAWS, 0.0, below=True, region=ALL, slope=_WIDTH,
    ),
    "isotropic in trace": Hypothesis(
        "the data determine less than a tenth of the parameters",
        "dimension_share", LAPLACE, 0.1, below=True, region=ALL,
    ),
    "isotropic": Hypothesis(
        "the coefficient of variation of gᵀΣg / s²‖g‖² is below 0.1",
        "ratio_cv", LAPLACE, 0.1, below=True,
    ),
    "data leave little": Hypothesis(
        "at the training inputs gᵀΣg is less than half of s²‖g‖² in the mean",
        "ratio_mean", LAPLACE, 0.5, below=True, region=TRAIN,
    ),
    "order kept": Hypothesis(
        "gᵀΣg and ‖g‖² have a correlation above 0.9", "order", LAPLACE, 0.9,
    ),
    "cure": Hypothesis(
        "‖g‖² without its part in the k strongest directions orders inputs better than ‖g‖²",
        "log10_pearson", "removed_{k}", 0.0, rival=ISOTROPIC,
    ),
    "cure, shrunk": Hypothesis(
        "‖g‖² without l / (1 + l) of its part in the k strongest directions orders inputs better "
        "than ‖g‖²", "log10_pearson", "low_rank_{k}", 0.0, rival=ISOTROPIC,
    ),
    "k is enough": Hypothesis(
        "k directions order inputs as well as all of them", "log10_pearson", "low_rank_{k}", -MARGIN,
        rival=LAPLACE,
    ),
    "no wider than prior": Hypothesis(
        "the largest eigenvalue of the draws' covariance is at the edge of independent draws of the "
        "prior", "draws_over_edge", DRAWS, 0.1, below=True, region=ALL,
        source="Marchenko and Pastur 1967",
    ),
}  # fmt: skip
"""Hypotheses by name."""
