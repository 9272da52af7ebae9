"""Baselines against numbers worked out by hand."""

import numpy as np
import pytest

from isounc.llm.answers.baseline_scores import baseline_scores, clusters, same_words
from tests.llm.answers.made_up import assessment, measured, values

BASELINES = {score.name: score for score in baseline_scores()}


def test_baselines_by_hand():
    answers = [measured(log_semgrad=-3.0)]
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
        "semgrad": -3.0,
        "semgrad_mean": -3.0 - np.log(2),
        "answer_length": 2,
    }
    for name, number in expected.items():
        assert values(BASELINES[name], answers)[0] == pytest.approx(number), name
    undefined = BASELINES.keys() - expected.keys()
    assert undefined == {"p_true_ideas", "choice_entropy"}
    assert all(np.isnan(values(BASELINES[name], answers)).all() for name in undefined)
    even = [measured(choice_log_probs=(-3.0, -3.0, -3.0))]
    assert values(BASELINES["choice_entropy"], even)[0] == pytest.approx(1.0)


def test_what_was_not_measured_is_undefined():
    answers = [measured(samples=None, self_assessment=None)]
    undefined = {name for name, score in BASELINES.items() if np.isnan(values(score, answers)[0])}
    assert undefined == {
        "p_true", "p_true_ideas", "verbalised", "naive_entropy", "semantic_entropy",
        "lexical_similarity", "choice_entropy", "semgrad", "semgrad_mean",
    }  # fmt: skip


def test_all_are_baselines():
    assert all(score.is_baseline and score.estimand is None for score in BASELINES.values())


def test_clusters_by_any_notion_of_the_same():
    assert clusters(["The cat", "cat", "a dog", "Dog!", "bird"], same_words) == [0, 0, 1, 1, 2]
    assert clusters(["ab", "ac", "b"], lambda question, a, b: a[0] == b[0]) == [0, 0, 1]
    *_, entailment = baseline_scores(lambda question, a, b: True)
    assert entailment.name == "semantic_entropy_entailment"
    np.testing.assert_array_equal(values(entailment, [measured()]), [0])


def test_samples_and_choices_at_their_fewest():
    def of(name, **changes):
        return values(BASELINES[name], [measured(**changes)])[0]

    # One sample agrees with itself; of two that are empty each shares all words of the other.
    assert of("lexical_similarity", texts=("Rome",)) == 1.0
    assert of("lexical_similarity", texts=("", "")) == 1.0
    assert of("lexical_similarity", texts=("", "Rome")) == 0.0
    # F1 of one shared word of two and three, of none, and of one word of one and three.
    texts = ("Rome Italy", "Rome by night", "night")
    assert of("lexical_similarity", texts=texts) == pytest.approx((0.4 + 0 + 0.5) / 3)
    assert of("semantic_entropy", texts=("Rome",)) == 0.0
    assert np.isnan(of("choice_entropy", choice_log_probs=(-1.0,)))
    p = 0.2
    pair = (float(np.log(p)) - 7, float(np.log(1 - p)) - 7)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(2)
    assert of("choice_entropy", choice_log_probs=pair) == pytest.approx(entropy)
    said = assessment(ideas=(0.02, 0.06))
    assert of("p_true_ideas", said=said) == pytest.approx(0.25)
    assert of("p_true", said=said) == pytest.approx(0.75)
    # A cluster is known by its first answer, and the question is told.
    asked = []

    def near(question, first, other):
        asked.append(question)
        return abs(len(first) - len(other)) <= 1

    assert clusters(["a", "bb", "ccc", "dddd"], near, "how long?") == [0, 0, 1, 1]
    assert set(asked) == {"how long?"}
