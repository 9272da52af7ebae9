"""Semantic entropy by entailment, with a classifier that is not there."""

import sys
import types

import numpy as np
import pytest

from isounc.llm.answers.baseline_scores import baseline_scores
from isounc.llm.answers.entailment import load_entailment
from tests.llm.answers.made_up import measured, values


class Classifier:
    """Says that the longer text entails the shorter one, if it begins with it."""

    model = types.SimpleNamespace(
        config=types.SimpleNamespace(id2label={0: "ENTAILMENT", 1: "neutral"})
    )

    def __call__(self, pairs):
        return [
            {"label": "ENTAILMENT" if p["text"].startswith(p["text_pair"]) else "neutral"}
            for p in pairs
        ]


def test_answers_mean_the_same_that_entail_each_other(monkeypatch, tmp_path):
    asked = []

    def pipeline(task, **options):
        asked.append((task, options))
        return Classifier()

    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(pipeline=pipeline))
    same = load_entailment(tmp_path)
    assert asked[0][0] == "text-classification" and asked[0][1]["model"] == str(tmp_path)
    assert not asked[0][1]["trust_remote_code"]
    assert asked[0][1]["model_kwargs"] == {"use_safetensors": True}
    assert same("Which?", "Rome", "Rome") and not same("Which?", "Rome, Italy", "Rome")
    *_, entropy = baseline_scores(same)
    (value,) = values(entropy, [measured(texts=("Rome", "Rome, Italy", "Rome", "Rome."))])
    assert value == pytest.approx(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)))
    with pytest.raises(ValueError, match=r"OWNER/NAME on the Hugging Face hub, got '\./nowhere'"):
        load_entailment("./nowhere")
    monkeypatch.setattr(Classifier.model.config, "id2label", {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(ValueError, match=r"label 'entailment', got LABEL_0, LABEL_1"):
        load_entailment(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers torch"):
        load_entailment(tmp_path)
