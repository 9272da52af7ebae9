"""Whether two answers mean the same, by a model of natural language inference.

Two answers mean the same if each entails the other, both read after their question: these are the
clusters of semantic entropy. No such model comes with isounc; `transformers` loads one, if that
package and PyTorch are installed (`pip install transformers torch`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SameMeaning = Callable[[str, str, str], bool]
"""Whether two answers to a question mean the same: from the question and both answers."""


def load_entailment(source: str | Path) -> SameMeaning:
    """Two-way entailment by a sequence classifier with a label "entailment".

    Parameters
    ----------
    source
        A folder with the model as `transformers` saves it (weights in safetensors), or its name on
        the Hugging Face hub, for instance cross-encoder/nli-deberta-v3-small, which needs a
        network.

    Raises
    ------
    ImportError
        `transformers` is not installed.
    ValueError
        The folder does not exist, or the classifier has no such label.

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
            "nli must be a folder with a saved classifier, or OWNER/NAME on the Hugging Face hub, "
            f"got {str(source)!r}"
        )
    classify = pipeline(
        "text-classification", model=str(path if path.is_dir() else source), device="cpu",
        trust_remote_code=False, model_kwargs={"use_safetensors": True},
    )  # fmt: skip
    labels = sorted(map(str, classify.model.config.id2label.values()))
    if "entailment" not in map(str.lower, labels):
        raise ValueError(
            "nli must be a classifier with a label 'entailment', got "
            f"{', '.join(labels)} in {source}"
        )
    return two_way(classify)


def two_way(
    classify: Callable[[Sequence[dict[str, str]]], Sequence[dict[str, Any]]],
) -> SameMeaning:
    """Whether the most probable label is "entailment" from each answer to the other.

    `classify` takes a list of `{"text": premise, "text_pair": hypothesis}` and gives the most
    probable `{"label": ...}` of each.
    """

    def same(question: str, answer: str, other: str) -> bool:
        first, second = f"{question} {answer}", f"{question} {other}"
        pairs = [{"text": first, "text_pair": second}, {"text": second, "text_pair": first}]
        return all(verdict["label"].lower() == "entailment" for verdict in classify(pairs))

    return same
