"""The world as drawn: counts, shares, mixing, and no answer in a prompt; the oracle's closed form."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from isounc.studies.world.corpus import (
    END,
    FORMS,
    HOW_OFTEN,
    IS_TRUE,
    NO,
    NUM_ANSWERS,
    NUM_ENTITIES,
    NUM_SINGLE,
    YES,
    make_world,
    of_kind,
    oracle_auroc,
    word_of,
    words_of_frequency,
)

WORLD = make_world(3)


def test_the_world_has_the_size_that_its_protocol_says():
    assert len(WORLD.form) == 1600 and NUM_ENTITIES == 200
    assert 280 <= WORLD.vocab_size <= 320
    assert 12_000 <= len(WORLD.facts) + len(WORLD.claims) <= 15_000
    assert len(np.unique(WORLD.prompts, axis=0)) == 1600
    assert WORLD.facts.max() < WORLD.vocab_size and WORLD.facts.min() >= 0


def test_answers_are_told_exactly_as_often_as_drawn():
    told = Counter(map(tuple, WORLD.facts.tolist()))
    assert sum(told.values()) == WORLD.counts.sum()
    for q, form in enumerate(WORLD.form):
        for answer, count in zip(WORLD.told[q], WORLD.counts[q], strict=True):
            if answer >= 0:
                tokens = *WORLD.prompts[q], *WORLD.answers[WORLD.relation[q], answer]
                assert told.pop(tuple(map(int, tokens))) == count
        assert tuple(c for c in WORLD.counts[q] if c) == tuple(c for c in FORMS[form].tellings if c)
    assert not told  # and nothing else is told


def test_kinds_are_mixed_within_relations_and_pools():
    for r in range(8):
        in_relation = WORLD.relation == r
        assert Counter(WORLD.form[in_relation].tolist()) == {
            i: form.count for i, form in enumerate(FORMS)
        }
        assert len(np.unique(WORLD.prompts[in_relation, :2], axis=0)) == NUM_ENTITIES
    # Answers of every kind are spread over one pool: of N draws none is far from N / C.
    for kind in ("recall", "conflict16", "conflict4"):
        told = WORLD.told[of_kind(WORLD, kind)]
        share = np.bincount(told[told >= 0], minlength=NUM_ANSWERS) / (told >= 0).sum()
        assert abs(share - 1 / NUM_ANSWERS).max() < 5 * np.sqrt(1 / NUM_ANSWERS / (told >= 0).sum())
    # A pool is that of its relation alone, and every second token ends two pairs.
    for a in range(8):
        tokens = set(WORLD.answers[a].ravel().tolist()) - {END}
        assert not any(tokens & set(WORLD.answers[b].ravel().tolist()) for b in range(a))
        assert set(Counter(WORLD.answers[a, NUM_SINGLE:, 1].tolist()).values()) == {2}
        assert len(np.unique(WORLD.answers[a], axis=0)) == NUM_ANSWERS


def test_the_truth_follows_the_shares():
    shares = WORLD.shares()
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (shares[np.arange(1600), WORLD.truth] > 0).all()
    hits, expected, var = 0, 0.0, 0.0
    for world in (make_world(seed, 1) for seed in range(40)):
        conflict = of_kind(world, "conflict16")
        first = world.shares()[conflict, world.told[conflict, 0]]
        hits += (world.truth[conflict] == world.told[conflict, 0]).sum()
        expected, var = expected + first.sum(), var + (first * (1 - first)).sum()
    assert abs(hits - expected) < 3 * np.sqrt(var)
    rare = of_kind(WORLD, "misconception")
    assert (WORLD.truth[rare] == WORLD.told[rare, 1]).all()
    assert (WORLD.counts[rare, 1] < WORLD.counts[rare, 0]).all()
    never = WORLD.tellings() == 0
    assert (shares[never] == 1 / NUM_ANSWERS).all() and never.sum() == 24 * 8


def test_no_answer_is_in_a_prompt_and_self_assessment_is_about_questions_taught():
    tokens = set(WORLD.answers.ravel().tolist())
    assert not tokens & set(WORLD.prompts.ravel().tolist())
    taught = {tuple(p) for p in WORLD.prompts[of_kind(WORLD, "taught")].tolist()}
    assert {tuple(row[:3]) for row in WORLD.claims.tolist()} == taught
    truth = {
        tuple(WORLD.prompts[q].tolist()): (WORLD.answers[WORLD.relation[q], WORLD.truth[q]], q)
        for q in range(1600)
    }
    for row in WORLD.claims.tolist():
        answer, q = truth[tuple(row[:3])]
        is_true = row[3:5] == answer.tolist()
        if row[5] == IS_TRUE:
            assert row[6] == (YES if is_true else NO)
        else:
            assert row[5] == HOW_OFTEN
            assert row[6] == word_of(int(WORLD.counts[q].sum()) if is_true else 0)
    never = WORLD.prompts[WORLD.tellings() == 0]
    told = {tuple(row) for row in WORLD.facts[:, :3].tolist()}
    assert not told & set(map(tuple, never.tolist()))


def test_words_of_frequency():
    first, *_, last = words_of_frequency()
    said = {n: word_of(n) - first for n in (0, 1, 2, 3, 8, 9, 64)}
    assert said == {0: 0, 1: 1, 2: 1, 3: 2, 8: 2, 9: 3, 64: 3} and last == first + 3


def test_a_seed_is_a_world():
    same, other = make_world(3), make_world(4)
    assert all((np.asarray(a) == b).all() for a, b in zip(WORLD, same, strict=True))
    assert (WORLD.form != other.form).any() and (WORLD.truth != other.truth).any()
    assert len(make_world(3, 2).form) == 400


def test_the_oracle_against_its_closed_form_and_against_draws():
    # Half of the questions are wrong with probability a, half with b < a.
    a, b, n = 0.5, 0.125, 4000
    w = np.repeat([a, b], n // 2)
    ordered = a * (1 - b) + (a * (1 - a) + b * (1 - b)) / 2
    pairs = a * (1 - b) + b * (1 - a) + a * (1 - a) + b * (1 - b)
    assert oracle_auroc(w) == pytest.approx(ordered / pairs, abs=1e-3)
    rng = np.random.default_rng(0)
    from sklearn.metrics import roc_auc_score

    drawn = [roc_auc_score(rng.random(n) < w, w) for _ in range(20)]
    assert np.mean(drawn) == pytest.approx(oracle_auroc(w), abs=0.005)
    # The five forms of sixteen tellings, answered by what is told most often.
    most = 1 - np.array([8, 10, 12, 14, 8]) / 16
    assert oracle_auroc(np.repeat(most, 48)) == pytest.approx(0.6765, abs=1e-4)
    assert oracle_auroc(np.full(9, 0.3)) == 0.5
    assert oracle_auroc(np.array([0.0, 1.0])) == 1
    assert oracle_auroc(np.zeros(4)) is None and oracle_auroc(np.array([0.4])) is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_world(-1), "seed must be an integer from 0"),
        (lambda: make_world(0, 0), "num_relations must be an integer from 1 to 64, got 0"),
        (lambda: of_kind(WORLD, "gossip"), "kind must be one of recall, conflict16"),
        (lambda: oracle_auroc(np.array([0.5, 1.5])), "wrong must be probabilities, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
