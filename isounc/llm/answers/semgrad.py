r"""SemGrad: how an answer's log probability changes with the states of one token of the prompt.

With y_1 ... y_A the answer, H_t the entropy of the distribution of y_t (not differentiated), h_l the
residual stream after block l of L at one token of the prompt, and W its width,

    S = mean_l mean_i |d/dh_li sum_t H_t log p(y_t | prompt, y_<t)|,   l = L - floor(L/2) ... L - 1.

Each derivative is a total one: the state changes all that follows it. No state after the last block
is among them, as no other token attends to it, and a decoder of one block has no S.

Layers
    Those of the authors' code, for even L also those of the heads of their Table 2. Section 3.2
    begins one later.
Tokens of the answer
    Equation 4 has the sum over t, the authors' code the mean, which is S/A. What stopped the answer
    is not among its tokens here.
The token of the prompt
    The authors take the one whose states are most alike among paraphrases of a question and least
    among questions: it opens the turn of the assistant in Qwen3 (the third from the end) and Llama
    3.1 (the fourth), and ends the question in Mistral Nemo (the second). Without a chat template
    the last token is the one that has seen the whole prompt. It is a setting here.

For an answer of one token S = H (1 - p) mean |df/dh|, f = log p - log(1 - p). It falls as p rises if H
stays the same. Where a single other token is possible, H is that of p, and H (1 - p) is largest at
p = .30, below which S rises with p.

Source: Li, Lv, Li, Zhang, Liu 2026 (arXiv 2605.04638), equation 4; their code,
github.com/mingdali6717/SemGrad.

Axes: A tokens of the answers in a packed sequence, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from isounc.llm.answers.packing import PackedAnswers
from isounc.llm.model.transformer import PADDING, SHARED


def weighted_log_odds(
    log_odds: Float[Array, " A"], entropies: Float[Array, " A"], included: Bool[Array, " A"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A number whose gradient, times exp(log_factor), is that of sum_t H_t log p_t over some tokens.

    As grad log p_t = (1 - p_t) grad d_t with d_t the log-odds, it is sum_t c_t d_t with fixed c_t,
    the largest of which is 1: gradients keep their digits where 1 - p_t is far below the least
    number of float32.

    Returns
    -------
    tuple
        The number, and log_factor; that is minus infinity, and the number constant, if every H_t is 0.
    """
    fixed, entropies = jax.lax.stop_gradient((log_odds, entropies))
    logs = jnp.log(jnp.maximum(entropies, 0)) - jax.nn.softplus(fixed)
    logs = jnp.where(included, logs, -jnp.inf)
    log_factor = logs.max()
    factors = jnp.exp(logs - jnp.where(jnp.isfinite(log_factor), log_factor, 0))
    return jnp.vdot(factors, jnp.where(included, log_odds, 0)), log_factor


def first_block(num_blocks: int) -> int:
    """The first block that is given one of the states: L - floor(L/2), counted from 0."""
    return num_blocks - num_blocks // 2


def log_semgrad(mean_abs: Float[np.ndarray, " L"], log_factor: float) -> float:
    """Log S, from the mean absolute derivative of `weighted_log_odds` in the state before each block.

    NaN for a single block; minus infinity if all derivatives are zero.
    """
    of_states = mean_abs[first_block(len(mean_abs)) :].astype(float)
    if not of_states.size:
        return np.nan
    with np.errstate(divide="ignore"):
        return float(log_factor + np.log(of_states.mean()))


def places(
    packed: Sequence[PackedAnswers], from_end: int, num_blocks: int
) -> Int[np.ndarray, " N"]:
    """Index of the token of each prompt that is so many from its end; 1 is the last.

    Raises
    ------
    ValueError
        A prompt is shorter, or the decoder has one block.
    """
    lengths = np.array([num_prompt_tokens(sequence) for sequence in packed], int)
    for i, length in enumerate(lengths):
        if length < from_end:
            raise ValueError(
                "semgrad_token must be a token of every prompt, counted from its end, got "
                f"{from_end} for the {length} tokens of prompt {i}"
            )
    if num_blocks < 2:
        raise ValueError(
            f"semgrad_token must be 0 for a decoder of one block, which has no SemGrad, got {from_end}"
        )
    return lengths - from_end


def num_prompt_tokens(packed: PackedAnswers) -> int:
    """Number of tokens of a sequence's prompt."""
    return int(((packed.branches == SHARED) & (packed.positions != PADDING)).sum())
