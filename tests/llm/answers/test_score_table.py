"""Score tables: directions, undefined values, scores of one's own, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

from isounc.llm.answers.isotropic_scores import ScoreSettings
from isounc.llm.answers.score_table import make_score_table, score_answers
from isounc.llm.answers.scores import Score, ScoreInfo, score_of_each
from tests.llm.answers.made_up import assessment, empty_answer, measured


def test_every_score_is_higher_for_the_answer_that_is_worse_in_every_way():
    good = measured(0, p=0.9, log_norm=-2.0, texts=("a", "a"), choice_log_probs=(-0.1, -9.0),
                    said=assessment(ideas=(0.9, 0.05)))  # fmt: skip
    bad = measured(
        1, p=0.5, log_norm=3.0, texts=("a", "b"), choice_log_probs=(-2.0, -2.0), correct=False,
        said=assessment(0.05, 0.9, (0.05, 0.9), 0.1), token_log_probs=(-3.0, -4.0),
        token_entropies=(2.0, 3.0), num_tokens=9,
    )  # fmt: skip
    samples = tuple(s._replace(log_prob=s.log_prob - 5) for s in bad.samples or ())
    bad = measured(**vars(bad) | {"samples": samples, "self_assessment": bad.self_assessment})
    table = score_answers([good, bad], ScoreSettings(rules=("sum", "rank", "z")))
    assert len(table.uncertainty) >= 20
    for name, (low, high) in table.uncertainty.items():
        assert low < high, name


def test_empty_answers_are_undefined_and_say_so():
    answers = [measured(0), measured(1, correct=False), empty_answer()]
    table = score_answers(answers, ScoreSettings(rules=("sum",)))
    for name in ("epistemic/sequence", "p_true", "mean_log_prob", "answer_length"):
        assert np.isnan(table.uncertainty[name]).tolist() == [False, False, True]
    assert "empty" in table.scores["epistemic/sequence"].why_undefined
    assert table.wrong.tolist() == [False, True, True]
    # No question has choices: the scores of that estimand are left out, not filled with NaN.
    assert not any(score.estimand == "choice" for score in table.scores.values())


def test_a_score_of_ones_own():
    shouting = Score(
        family="shouting", values=score_of_each(lambda answer: float(answer.text.isupper()))
    )
    answers = [measured(0), measured(1, text="PARIS", correct=False)]
    table = score_answers(answers, more=[shouting])
    np.testing.assert_array_equal(table.uncertainty["shouting"], [0, 1])
    assert table.scores["shouting"] == shouting and "shouting" not in table.baselines
    p_true = Score(family="p_true", values=score_of_each(lambda answer: 0.0))
    with pytest.raises(ValueError, match="names of their own, got 'p_true' twice"):
        score_answers(answers, more=[p_true])
    with pytest.raises(ValueError, match="answers must hold at least one answer"):
        score_answers([])


def test_scores_are_found_by_what_they_are():
    infos = [ScoreInfo(family="epistemic", estimand="choice"), ScoreInfo(family="u")]
    infos.append(ScoreInfo(family="sure", higher_is_certain=True, is_baseline=True))
    columns = {"epistemic/choice": [1.0, 2.0], "u": [0.0, np.nan], "sure": [3.0, 4.0]}
    arrays = {name: np.array(column) for name, column in columns.items()}
    table = make_score_table(arrays, np.array([1, 0]), scores=infos)
    assert table.find("epistemic", "choice") == "epistemic/choice"
    assert table.find("epistemic") is table.find("u", "choice") is None
    assert table.baselines == ["sure"]
    np.testing.assert_array_equal(table.uncertainty["sure"], [-3, -4])
    np.testing.assert_array_equal(table.wrong, [False, True])
    part = table.only(["sure", "u"])
    assert list(part.uncertainty) == list(part.scores) == ["sure", "u"] and len(part) == 2


@pytest.mark.parametrize(
    ("values", "correct", "scores", "message"),
    [
        ({}, [1], (), "at least one score"),
        ({"u": [1.0]}, [], (), "correct must be"),
        ({"u": [1.0]}, [0.5], (), "correct must be"),
        ({"u": [1.0]}, [1, 0], (), r"values\['u'\] must have shape \(2,\).*got \(1,\)"),
        ({"u": [1.0]}, [1], [ScoreInfo(family="v")], "scores must be one of u.*got 'v'"),
    ],
)
def test_bad_tables(values, correct, scores, message):
    with pytest.raises(ValueError, match=message):
        make_score_table(values, correct, scores=scores)
