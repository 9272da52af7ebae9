"""Isotropic scores by hand and by sampling."""

import numpy as np
import pytest

from isounc.llm.answers.isotropic_scores import (
    ScoreSettings,
    aleatoric,
    epistemic,
    epistemic_log,
    isotropic_scores,
    link_aware,
    link_aware_total,
    moderated,
    total,
)
from tests.llm.answers.made_up import measured, values


def test_epistemic_aleatoric_and_their_sum_by_hand():
    p, norm, sigma = 0.3, np.exp(2.0), 0.5
    answers = [measured(p=p, log_norm=2.0)]
    for scaling, less in (("all", 0), ("layer_scaled", 1), ("last_layer", 2)):
        (value,) = values(epistemic("sequence", scaling), answers)
        assert value == pytest.approx(np.log(p**2 * norm) - less)
    assert values(epistemic_log("sequence"), answers)[0] == 2.0
    assert values(aleatoric("sequence"), answers)[0] == pytest.approx(p * (1 - p))
    (value,) = values(total("sequence", "sum", sigma=sigma), answers)
    assert value == pytest.approx(sigma**2 * p**2 * norm + p * (1 - p))


def test_link_aware_by_sampling():
    p, sigma = 0.3, 0.5
    answers = [measured(p=p, log_norm=2.0)]
    sd = sigma * np.exp(1.0) / (1 - p)  # ||grad logit p|| = ||grad log p|| / (1 - p)
    logits = np.log(p / (1 - p)) + sd * np.random.default_rng(0).standard_normal(1_000_000)
    draws = 1 / (1 + np.exp(-logits))
    (var,) = values(link_aware("sequence", sigma=sigma), answers)
    assert var == pytest.approx(draws.var(), rel=5e-3)
    (value,) = values(link_aware_total("sequence", sigma=sigma), answers)
    assert value == pytest.approx(draws.mean() * (1 - draws.mean()), rel=5e-3)
    (value,) = values(moderated("sequence", sigma=sigma), answers)
    assert value == pytest.approx(1 - draws.mean(), rel=5e-3)


def test_the_scale_of_moderated_is_set_by_the_first_answers():
    """||grad log-odds||^2 = norm / (1 - p)^2: 4, 16 and 36 at p = 1/2, whose median is 16."""
    answers = [measured(i, p=0.5, log_norm=np.log(n)) for i, n in enumerate((1, 4, 9, 1e5))]
    answers.append(measured(4, p=0.8, log_norm=np.log(1e5)))
    found = values(moderated("sequence", num_reference=3), answers)
    sigma = np.sqrt(np.pi**2 / 3 / 16)
    np.testing.assert_allclose(found, values(moderated("sequence", sigma=sigma), answers))
    # Neither later answers nor right ones move it.
    others = [
        measured(i, p=0.5, log_norm=np.log(n), correct=False) for i, n in enumerate((1, 4, 9))
    ]
    np.testing.assert_array_equal(values(moderated("sequence"), others), found[:3])
    flat = [measured(i, log_norm=-np.inf) for i in range(3)]
    assert np.isnan(values(moderated("sequence"), flat)).all()


def test_every_score_has_the_sign_that_it_states():
    """Answers of rising p whose log-odds have one gradient norm, as under a change of temperature.

    Planted: the less probable answers are wrong, and ||grad p||^2 says the opposite below 1/2.
    """
    odds = np.linspace(-6, 6, 25)
    half = len(odds) // 2
    log_norms = 2.0 - 2 * np.logaddexp(0, odds)
    answers = [
        measured(i, log_odds={"sequence": float(d)}, correct=bool(d > -3),
                 log_sq_norms={"sequence": dict.fromkeys(("all", "layer_scaled", "last_layer"), n)})
        for i, (d, n) in enumerate(zip(odds, log_norms.tolist(), strict=True))
    ]  # fmt: skip
    for score in isotropic_scores(ScoreSettings(estimands=("sequence",))):
        step = np.diff(values(score, answers))
        if score.sign == "falls":
            assert (step < 0).all(), score.name
        elif score.sign == "turns":
            assert (step[:half] > 0).all() and (step[half:] < 0).all(), score.name
        else:
            assert score.name == "total_logistic/sequence"


def test_extreme_probabilities_stay_finite_and_in_order():
    """Answers of probability e^-200 and 1 - e^-200 are neither infinite nor equal to their
    neighbours."""
    logits = [-200.0, -100.0, 0.0, 100.0, 200.0]
    answers = [measured(i, log_odds={"sequence": d}) for i, d in enumerate(logits)]
    numbers = values(epistemic("sequence"), answers)
    assert np.isfinite(numbers).all() and (np.diff(numbers[:3]) > 0).all()
    for score in (
        aleatoric("sequence"),
        link_aware("sequence", sigma=0.01),
        link_aware_total("sequence", sigma=0.01),
        total("sequence", "sum", sigma=0.01),
    ):
        assert np.isfinite(values(score, answers)).all(), score.name


def test_logistic_is_fitted_out_of_fold():
    """On pure noise a fit within its own questions would look better than chance."""
    rng = np.random.default_rng(1)
    answers = []
    for i in range(60):
        p, log_norm = float(rng.uniform(0.1, 0.9)), float(rng.normal())
        answers.append(measured(i, p=p, log_norm=log_norm, correct=bool(rng.random() < 0.5)))
    wrong = np.array([not answer.correct for answer in answers])
    logistic = total("sequence", "logistic", sigma=0.01)
    ranks = np.argsort(np.argsort(values(logistic, answers)))
    auroc = (ranks[wrong].mean() - (wrong.sum() - 1) / 2) / (~wrong).sum()
    assert auroc < 0.6
    # One wrong answer is not enough for five folds.
    few = [measured(i, correct=i > 0) for i in range(8)]
    assert np.isnan(values(logistic, few)).all()


def test_every_estimand_has_every_family():
    # The constant of the committed results.
    assert ScoreSettings().sigma == 0.01
    scores = isotropic_scores(ScoreSettings(estimands=("sequence", "choice"), rules=("z",)))
    names = {score.name for score in scores}
    assert len(names) == len(scores) == 2 * 9
    for score in scores:
        assert score.name == f"{score.family}/{score.estimand}"
        assert not score.is_baseline and not score.higher_is_certain
    # No question has choices: the scores of that estimand are undefined.
    for score in scores:
        undefined = np.isnan(values(score, [measured(), measured(1, p=0.5)]))
        assert undefined.all() == undefined.any() == (score.estimand == "choice")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"estimands": ("sequences",)}, ("sequences", "mean_token")),
        ({"rules": ("product",)}, ("product", "sum")),
        ({"sigma": 0.0}, ("sigma", "0")),
        ({"num_reference": 0}, ("num_reference", "0")),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError) as error:
        ScoreSettings(**settings)
    for word in words:
        assert word in str(error.value)


def test_a_logit_that_may_be_anything_is_a_coin():
    """p = 1/2 and variances of the logit of e^60 and far more."""
    answers = [measured(i, p=0.5, log_norm=norm) for i, norm in enumerate((80.0, 500.0, 1e4))]
    np.testing.assert_allclose(values(link_aware("sequence", sigma=0.5), answers), 0.25, rtol=1e-6)
    totals = values(link_aware_total("sequence", sigma=0.5), answers)
    np.testing.assert_allclose(totals, 0.25, rtol=1e-6)


def test_undefined_answers_are_nan_among_others():
    answers = [
        measured(0),
        measured(1, log_odds={"sequence": None}),
        measured(2, log_sq_norms={}),
        measured(3, p=0.6),
    ]
    for score in isotropic_scores(ScoreSettings(estimands=("sequence",))):
        logistic = score.name.startswith("total_logistic")
        undefined = np.isnan(values(score, answers)).tolist()
        assert undefined == ([True] * 4 if logistic else [False, True, True, False]), score.name


def test_logistic_needs_five_of_each_among_the_defined():
    def made(num_wrong, num_right, undefined=0):
        correct = [False] * num_wrong + [True] * num_right
        return [
            measured(i, p=0.2 + 0.05 * i, correct=c,
                     log_odds={"sequence": None if i < undefined else 0.1 * i})
            for i, c in enumerate(correct)
        ]  # fmt: skip

    logistic = total("sequence", "logistic", sigma=0.01)
    assert not np.isnan(values(logistic, made(5, 5))).any()
    assert np.isnan(values(logistic, made(4, 6))).all()
    assert np.isnan(values(logistic, made(5, 5, undefined=1))).all()
    found = values(logistic, made(6, 5, undefined=1))
    assert np.isnan(found).tolist() == [True] + [False] * 10
