"""Exact squared gradient norms of any JAX function, and the Gram matrices that the estimates need."""

from isounc.gradnorm.api import (
    Explanation,
    Filter,
    LeafReport,
    check_leaves,
    explain,
    value_and_grad_gram,
    value_and_log_sq_grad_norm,
    value_and_sq_grad_norm,
    value_and_sq_grad_norms,
)
from isounc.gradnorm.jacobians import group_grams, output_grams

__all__ = [
    "Explanation",
    "Filter",
    "LeafReport",
    "check_leaves",
    "explain",
    "group_grams",
    "output_grams",
    "value_and_grad_gram",
    "value_and_log_sq_grad_norm",
    "value_and_sq_grad_norm",
    "value_and_sq_grad_norms",
]
