"""Reference posteriors, sampled and exact: the bank of isounc, and z-scores against it."""

from isounc.references.bank import Entry, FailedReferenceWarning, list, load, save
from isounc.references.exact import linear_gaussian
from isounc.references.quadrature import logistic_by_quadrature
from isounc.references.reference import Reference, Thinning, from_exact, from_posterior, from_record
from isounc.references.zscores import Agreement, compare

__all__ = [
    "Agreement",
    "Entry",
    "FailedReferenceWarning",
    "Reference",
    "Thinning",
    "compare",
    "from_exact",
    "from_posterior",
    "from_record",
    "linear_gaussian",
    "list",
    "load",
    "logistic_by_quadrature",
    "save",
]
