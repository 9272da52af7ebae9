"""Exact squared gradient norms of any JAX function, and Gram matrices of several gradients."""

from isounc.gradnorm.api import (
    value_and_grad_gram,
    value_and_log_sq_grad_norm,
    value_and_sq_grad_norm,
    value_and_sq_grad_norms,
)
from isounc.gradnorm.comparison import Comparison, LeafComparison, check
from isounc.gradnorm.leaves import Filter, check_leaves
from isounc.gradnorm.report import Explanation, LeafReport, explain
from isounc.gradnorm.stages import Pullback, linearise_stage

__all__ = [
    "Comparison",
    "Explanation",
    "Filter",
    "LeafComparison",
    "LeafReport",
    "Pullback",
    "check",
    "check_leaves",
    "explain",
    "linearise_stage",
    "value_and_grad_gram",
    "value_and_log_sq_grad_norm",
    "value_and_sq_grad_norm",
    "value_and_sq_grad_norms",
]
