"""Scores against numbers worked out by hand from what they are made of."""

import sys
import types

import numpy as np
import pytest

from isounc.llm.answers.entailment import load_entailment
from isounc.llm.answers.scores import (
    OfOne,
    ScoreSettings,
    baselines,
    clusters,
    isotropic_scores,
    same_words,
    score_table,
)

RNG = np.random.default_rng(0)


def one(i, *, correct=True, p=0.3, log_norm=2.0, texts=("Paris", "paris.", "Rome", "Lyon"), **more):
    logit = float(np.log(p / (1 - p)))
    return {
        "id": f"q-{i}",
        "question": "Which city?",
        "answer": "Paris",
        "correct": correct,
        "num_tokens": 2,
        "log_odds": {"sequence": logit, "choice": None},
        "log_sq_norms": {
            "sequence": {"all": log_norm, "layer_scaled": log_norm - 1, "last_layer": log_norm - 2},
            "choice": {"all": None, "layer_scaled": None, "last_layer": None},
        },
        "token_log_probs": [-0.5, -1.5],
        "token_entropies": [0.25, 1.25],
        "choice_log_probs": None,
        "samples": [{"text": t, "log_prob": -float(k), "num_tokens": 1} for k, t in enumerate(texts)],
        "p_true": {"true": float(np.log(0.03)), "false": float(np.log(0.01))},
        "p_true_ideas": None,
        "confidence": 0.8,
    } | more  # fmt: skip


def value(name, measured, **settings):
    scores = {s.name: s for s in (*isotropic_scores(ScoreSettings(**settings)), *baselines())}
    return scores[name](measured, np.array([not m["correct"] for m in measured]))


def test_isotropic_scores_by_hand():
    p, norm, sigma = 0.3, np.exp(2.0), 0.5
    measured = [one(0, p=p)]
    found = {
        name: value(f"{name}/sequence", measured, sigma=sigma)[0]
        for name in ("epistemic", "epistemic_layer_scaled", "epistemic_last_layer", "aleatoric", "total_sum")
    }  # fmt: skip
    assert found["epistemic"] == pytest.approx(np.log(p**2 * norm))
    assert found["epistemic_layer_scaled"] == pytest.approx(np.log(p**2 * norm) - 1)
    assert found["epistemic_last_layer"] == pytest.approx(np.log(p**2 * norm) - 2)
    assert found["aleatoric"] == pytest.approx(p * (1 - p))
    assert found["total_sum"] == pytest.approx(sigma**2 * p**2 * norm + p * (1 - p))


def test_link_aware_by_sampling():
    p, sigma = 0.3, 0.5
    measured = [one(0, p=p, log_norm=2.0)]
    sd = sigma * np.exp(1.0) / (1 - p)  # ||grad logit p|| = ||grad log p|| / (1 - p)
    draws = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + sd * RNG.standard_normal(1_000_000))))
    assert value("link_aware/sequence", measured, sigma=sigma)[0] == pytest.approx(
        draws.var(), rel=5e-3
    )
    total = draws.mean() * (1 - draws.mean())
    assert value("link_aware_total/sequence", measured, sigma=sigma)[0] == pytest.approx(
        total, rel=5e-3
    )


def test_extreme_probabilities_stay_finite_and_in_order():
    """Answers of probability e^-200 and 1 - e^-200 are neither infinite nor equal to their neighbours."""
    logits = [-200.0, -100.0, 0.0, 100.0, 200.0]
    measured = [one(i) | {"log_odds": {"sequence": d}} for i, d in enumerate(logits)]
    epistemic = value("epistemic/sequence", measured)
    assert np.isfinite(epistemic).all() and (np.diff(epistemic[:3]) > 0).all()
    for name in ("aleatoric", "link_aware", "link_aware_total", "total_sum"):
        assert np.isfinite(value(f"{name}/sequence", measured)).all(), name


def test_baselines_by_hand():
    measured = [one(0)]
    expected = {
        "p_true": 0.75,
        "verbalised": 0.8,
        "log_prob": -2.0,
        "mean_log_prob": -1.0,
        "mean_token_entropy": 0.75,
        "max_token_entropy": 1.25,
        "naive_entropy": 1.5,
        # Two of four samples are one answer.
        "semantic_entropy": -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)),
        # Of six pairs one shares its word.
        "lexical_similarity": 1 / 6,
        "answer_length": 2,
    }
    for name, number in expected.items():
        assert value(name, measured)[0] == pytest.approx(number), name
    assert np.isnan(value("p_true_ideas", measured)[0]) and np.isnan(
        value("choice_entropy", measured)[0]
    )
    even = [one(0, choice_log_probs=[-3.0, -3.0, -3.0])]
    assert value("choice_entropy", even)[0] == pytest.approx(1.0)


def test_directions():
    """Every score, turned as it says, is higher for the answer that is worse in every way."""
    good = one(0, p=0.9, log_norm=-2.0, texts=("a", "a"), choice_log_probs=[-0.1, -9.0],
               p_true_ideas={"true": -0.1, "false": -3.0})  # fmt: skip
    bad = one(1, p=0.5, log_norm=3.0, texts=("a", "b"), choice_log_probs=[-2.0, -2.0], correct=False,
              p_true={"true": -3.0, "false": -0.1}, p_true_ideas={"true": -3.0, "false": -0.1},
              confidence=0.1, token_log_probs=[-3.0, -4.0], token_entropies=[2.0, 3.0], num_tokens=9)  # fmt: skip
    bad["samples"] = [s | {"log_prob": s["log_prob"] - 5} for s in bad["samples"]]
    table = score_table([good, bad], ScoreSettings(rules=("sum", "rank", "z")))
    assert len(table.uncertainty) >= 20
    for name, (low, high) in table.uncertainty.items():
        assert low < high, name


def test_empty_answers_are_undefined_and_say_so():
    empty = {"id": "e", "answer": "", "correct": False, "num_tokens": 0, "samples": []}
    table = score_table([one(0), one(1, correct=False), empty], ScoreSettings(rules=("sum",)))
    for name in ("epistemic/sequence", "p_true", "mean_log_prob", "answer_length"):
        assert (
            np.isnan(table.uncertainty[name][2]) and not np.isnan(table.uncertainty[name][:2]).any()
        )
    assert "empty" in table.reasons["epistemic/sequence"]
    # No question has choices: the scores of that estimand are left out, not filled with NaN.
    assert not any(name.endswith("/choice") for name in table.uncertainty)


def test_a_score_of_ones_own():
    mine = OfOne("shouting", lambda m: float(m["answer"].isupper()))
    table = score_table([one(0), one(1, answer="PARIS", correct=False)], more=[mine])
    np.testing.assert_array_equal(table.uncertainty["shouting"], [0, 1])
    with pytest.raises(ValueError, match="'p_true' is there twice"):
        score_table([one(0)], more=[OfOne("p_true", lambda m: 0.0)])


def test_logistic_is_fitted_out_of_fold():
    """On pure noise a fit within its own questions would look better than chance."""
    rng = np.random.default_rng(1)
    measured = [
        one(i, p=float(rng.uniform(0.1, 0.9)), log_norm=float(rng.normal()), correct=bool(rng.random() < 0.5))
        for i in range(60)
    ]  # fmt: skip
    wrong = np.array([not m["correct"] for m in measured])
    found = value("total_logistic/sequence", measured)
    ranks = np.argsort(np.argsort(found))
    auroc = (ranks[wrong].mean() - (wrong.sum() - 1) / 2) / (~wrong).sum()
    assert auroc < 0.6
    few = score_table([one(i, correct=i > 0) for i in range(8)])
    assert "total_logistic/sequence" not in few.uncertainty


def test_clusters_by_any_notion_of_the_same():
    assert clusters(["The cat", "cat", "a dog", "Dog!", "bird"], same_words) == [0, 0, 1, 1, 2]
    assert clusters(["ab", "ac", "b"], lambda question, a, b: a[0] == b[0]) == [0, 0, 1]
    table = score_table([one(0), one(1, correct=False)], same=lambda question, a, b: True)
    np.testing.assert_array_equal(table.uncertainty["semantic_entropy_entailment"], [0, 0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"estimands": ("sequences",)}, ("sequences", "mean_token")),
        ({"rules": ("product",)}, ("product", "sum")),
        ({"sigma": 0.0}, ("sigma", "0")),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError) as error:
        ScoreSettings(**settings)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(ValueError, match="measured must hold a question"):
        score_table([])


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
    assert not asked[0][1]["trust_remote_code"] and asked[0][1]["model_kwargs"] == {
        "use_safetensors": True
    }
    assert same("Which?", "Rome", "Rome") and not same("Which?", "Rome, Italy", "Rome")
    measured = one(0, texts=("Rome", "Rome, Italy", "Rome", "Rome."))
    table = score_table([measured, one(1, correct=False)], same=same)
    by_hand = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    assert table.uncertainty["semantic_entropy_entailment"][0] == pytest.approx(by_hand)
    with pytest.raises(ValueError, match=r"OWNER/NAME on the Hugging Face hub; got '\./nowhere'"):
        load_entailment("./nowhere")
    Classifier.model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    with pytest.raises(ValueError, match=r"label 'entailment'; that of .* has LABEL_0, LABEL_1"):
        load_entailment(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers torch"):
        load_entailment(tmp_path)
