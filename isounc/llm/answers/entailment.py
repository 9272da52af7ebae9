"""Whether two answers mean the same, by a model of natural language inference: the clusters of semantic entropy.

Two answers mean the same where each entails the other, both read after their question. Such a model is not part of
isounc: `transformers` loads one, where that package and its PyTorch are installed (`pip install transformers torch`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Same = Callable[[str, str, str], bool]
"""Whether, to a question, one and another answer mean the same."""


def load_entailment(source: str | Path) -> Same:
    """Two-way entailment by a sequence classifier with a label "entailment".

    Parameters
    ----------
    source
        A folder with the model as `transformers` saves it (weights in safetensors), or its name on the Hugging Face
        hub, which needs a network; for instance cross-encoder/nli-deberta-v3-small.

    Raises
    ------
    ImportError
        `transformers` is not installed.
    ValueError
        A folder that lacks, or a classifier without that label.

    Source: Kuhn et al. 2023 (arXiv 2302.09664); Farquhar et al. 2024 (Nature 630).
    """
    try:
        from transformers import pipeline  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "nli needs the packages transformers and torch: pip install transformers torch"
        ) from error
    path = Path(source).expanduser()
    if not path.is_dir() and (str(source).count("/") != 1 or str(source)[0] in "./~"):
        raise ValueError(
            f"nli must be a folder with a saved classifier, or OWNER/NAME on the Hugging Face hub; got {str(source)!r}"
        )
    classify = pipeline(
        "text-classification", model=str(path if path.is_dir() else source), device="cpu",
        trust_remote_code=False, model_kwargs={"use_safetensors": True},
    )  # fmt: skip
    labels = sorted(map(str, classify.model.config.id2label.values()))
    if "entailment" not in map(str.lower, labels):
        raise ValueError(
            f"nli must be a classifier with a label 'entailment'; that of {source} has {', '.join(labels)}"
        )
    return two_way(classify)


def two_way(classify: Any) -> Same:
    """Whether the most probable label is "entailment" from each answer to the other.

    ``classify`` takes a list of ``{"text": premise, "text_pair": hypothesis}`` and gives for each the most probable
    ``{"label": ...}``.
    """

    def same(question: str, one: str, other: str) -> bool:
        a, b = f"{question} {one}", f"{question} {other}"
        pairs = [{"text": a, "text_pair": b}, {"text": b, "text_pair": a}]
        return all(found["label"].lower() == "entailment" for found in classify(pairs))

    return same
