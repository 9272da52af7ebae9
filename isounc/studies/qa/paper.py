"""The paper's results on question answering, with which this study is compared.

Source: Grünefeld, Frellsen, Hardmeier 2026, arXiv 2603.29466v1, Table 2. The numbers were
transcribed at second hand: check them against the paper before quoting them.
"""

from __future__ import annotations

from collections.abc import Mapping

TABLE2: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "triviaqa": {
        "p_true": (0.69, 0.06), "semantic_entropy": (0.55, 0.03), "naive_entropy": (0.52, 0.04),
        "aleatoric": (0.60, 0.04), "epistemic": (0.52, 0.07), "total_sum": (0.61, 0.05),
    },
    "truthfulqa": {
        "p_true": (0.55, 0.06), "semantic_entropy": (0.54, 0.08), "naive_entropy": (0.51, 0.08),
        "aleatoric": (0.60, 0.09), "epistemic": (0.55, 0.07), "total_sum": (0.63, 0.08),
    },
}  # fmt: skip
"""AUROC for whether an answer is right, by benchmark and family of the score (`total_sum` is
epistemic + aleatoric): mean and standard deviation over 300 bootstrap runs of four language
models."""
