"""Exact squared gradient norms of any JAX function, and Gram matrices of the gradients of several outputs."""

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

__all__ = [
    "Explanation",
    "Filter",
    "LeafReport",
    "check_leaves",
    "explain",
    "value_and_grad_gram",
    "value_and_log_sq_grad_norm",
    "value_and_sq_grad_norm",
    "value_and_sq_grad_norms",
]
