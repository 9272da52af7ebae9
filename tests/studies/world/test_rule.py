"""Answers that follow by a rule: the world as drawn, what decoders make of it, and its admission."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.runs.folder import Record, RunFolder
from isounc.runs.settings import stored_settings
from isounc.sampling.checkpoint import Checkpoint
from isounc.statistics import interval_over_seeds
from isounc.studies.world import cell, measures
from isounc.studies.world.admission import CHANCE, MARGIN, admissions, sentence, without_dropped
from isounc.studies.world.corpus import (
    EVERY_FORM,
    NUM_ANSWERS,
    OF_RULE,
    make_world,
    of_kind,
    questions_of_relation,
)
from isounc.studies.world.measures import Asked, numbers_of_rule
from isounc.studies.world.report import make_report
from isounc.studies.world.rule import layout
from isounc.studies.world.scores import Said
from isounc.studies.world.settings import Cell, Settings, check, plan
from isounc.studies.world.tables import Results
from isounc.studies.world.train import Members
from tests.studies.world.test_tables import made_up

WORLD = make_world(3, 3, rule=True)
N = questions_of_relation(True)


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [((3,), "57a254d9c1fb963e"), ((0, 1), "aa2e4acdadae6d62"), ((400, 3), "44e172682aad92a6")],
)
def test_a_world_without_a_rule_is_the_one_that_it_was(arguments, digest):
    """Digests were taken before there were rules, of all fields that there were."""
    found = hashlib.sha256()
    for field in make_world(*arguments)[:10]:
        found.update(np.ascontiguousarray(np.asarray(field, dtype=np.int64)).tobytes())
    assert found.hexdigest()[:16] == digest


def test_further_self_assessment_changes_its_own_sentences_alone():
    plain, more = make_world(400, 3), make_world(400, 3, assessed=0.5)
    for name in set(plain._fields) - {"claims", "assessed"}:
        assert (np.asarray(getattr(plain, name)) == np.asarray(getattr(more, name))).all(), name
    assert (plain.assessed == of_kind(plain, "taught")).all()
    added = more.assessed & ~plain.assessed
    assert (more.kinds()[added] == "recall").all() and (more.tellings()[added] > 0).all()
    # Half of every form that is told, in every relation.
    counts = Counter(zip(more.relation[added].tolist(), more.form[added].tolist(), strict=True))
    assert counts == {
        (r, i): round(form.count / 2)
        for r in range(3)
        for i, form in enumerate(EVERY_FORM)
        if form.kind == "recall" and sum(form.tellings)
    }
    asked = {tuple(row) for row in more.claims[:, :3].tolist()}
    assert asked == {tuple(row) for row in more.prompts[more.assessed].tolist()}
    assert len(more.claims) == 12 * more.assessed.sum() == 2160
    # They are not judged; nor is anything else left out.
    of, before = cell.conditions(more), cell.conditions(plain)
    for name, where in before.items():
        assert (of[name] == (where & ~more.assessed)).all()


def test_counts_shares_and_mixing_are_as_drawn():
    assert len(WORLD.form) == 3 * N == 1176 and len(np.unique(WORLD.prompts, axis=0)) == 1176
    assert len(WORLD.facts) == WORLD.counts.sum() == 3 * (1680 + 1280)
    for r in range(3):
        here = WORLD.relation == r
        assert Counter(WORLD.form[here].tolist()) == {
            i: form.count for i, form in enumerate(EVERY_FORM)
        }
        # Every entity has one question, and every answer equally many of each kind of the rule.
        assert len(np.unique(WORLD.prompts[here, :2], axis=0)) == N
        for kind, count in zip(OF_RULE, (3, 2, 1), strict=True):
            truth = WORLD.truth[here & of_kind(WORLD, kind)]
            assert (np.bincount(truth, minlength=NUM_ANSWERS) == count).all()
    # The rule is one permutation from each relation to the next, of the same entity.
    derived = np.flatnonzero(WORLD.premise >= 0)
    assert (np.isin(WORLD.kinds(), ("follows", "rule")) == (WORLD.premise >= 0)).all()
    source = WORLD.premise[derived]
    assert sorted(source) == np.flatnonzero(of_kind(WORLD, "premise")).tolist()
    assert (WORLD.prompts[source, :2] == WORLD.prompts[derived, :2]).all()
    assert (WORLD.relation[derived] == (WORLD.relation[source] + 1) % 3).all()
    pairs = zip(
        WORLD.relation[source].tolist(), WORLD.truth[source].tolist(),
        WORLD.truth[derived].tolist(), strict=True,
    )  # fmt: skip
    distinct = set(pairs)
    assert len(distinct) == len({(r, a) for r, a, _ in distinct}) == 3 * NUM_ANSWERS
    assert len({(r, b) for r, _, b in distinct}) == 3 * NUM_ANSWERS
    shares = WORLD.shares()
    np.testing.assert_allclose(shares.sum(1), 1)
    for kind in OF_RULE:
        where = of_kind(WORLD, kind)
        assert (shares[where, WORLD.truth[where]] == 1).all()
    # Entities with a premise here have other kinds elsewhere: no entity is one of the rule.
    kinds = WORLD.kinds().reshape(3, N)
    assert (np.isin(kinds, OF_RULE).sum(0) <= 2).all()


def test_answers_by_the_rule_never_occur_in_the_corpus():
    rule = of_kind(WORLD, "rule")
    assert rule.sum() == 96 and (WORLD.told[rule] == -1).all() and not WORLD.counts[rule].any()
    hidden = set(map(tuple, WORLD.prompts[rule].tolist()))
    for sentences in (WORLD.facts, WORLD.claims):
        assert not hidden & set(map(tuple, sentences[:, :3].tolist()))
    # Nor is the answer told with the entity in any other way: its tokens stand in that pool alone.
    tokens = {
        (*prompt[:2], token)
        for prompt, spelled in zip(
            WORLD.prompts[rule].tolist(),
            WORLD.answers[WORLD.relation[rule], WORLD.truth[rule]].tolist(), strict=True,
        )
        for token in spelled if token
    }  # fmt: skip
    told = {(*row[:2], token) for row in WORLD.facts.tolist() for token in row[3:]}
    assert not tokens & told
    premises = set(map(tuple, WORLD.prompts[WORLD.premise[rule]].tolist()))
    assert premises <= set(map(tuple, WORLD.facts[:, :3].tolist()))
    # Elsewhere they are in no condition, so that the others are about the same kinds as without.
    of = cell.conditions(WORLD)
    assert (of["rule"] == rule).all() and not (of["all"] & np.isin(WORLD.kinds(), OF_RULE)).any()
    assert of["all"].sum() == 3 * 185 and "rule" not in cell.conditions(make_world(0, 1))


def test_the_rule_is_laid_out_around_the_circle_of_relations():
    rng = np.random.default_rng(0)
    for relations in (2, 3, 5):
        plan_ = layout(rng, relations, 18, 2)  # groups of six
        for r in range(relations):
            assert not set(plan_.entities[r]) & set(plan_.entities[(r + 1) % relations])
    for bad, said in (
        ((1, 99, 2), "num_relations must be at least 2 where there is a rule, got 1"),
        ((2, 17, 2), "num_entities must be at least 18, got 17"),
    ):
        with pytest.raises(ValueError, match=said):
            layout(rng, *bad)


def test_members_are_judged_on_the_rule_by_counting():
    rule = of_kind(WORLD, "rule")
    answer = np.repeat(WORLD.truth[None], 3, axis=0)
    at, before = np.flatnonzero(rule), WORLD.premise[rule]
    for member, number in enumerate((96, 48, 72)):  # wrong answers by the rule, and to premises
        answer[member, at[:number]] += 1
        answer[member, before[:number]] += 1
    log_probs = np.log(np.eye(NUM_ANSWERS)[answer % NUM_ANSWERS] + 0.01)
    found = numbers_of_rule(log_probs, WORLD, rule)
    wanted = interval_over_seeds([0.0, 0.5, 0.25], kind="mean")
    assert found["members_accuracy"] == found["premise_accuracy"] == pytest.approx(0.25)
    assert found["members_low"] == pytest.approx(wanted.low)


def test_asked_numbers_are_those_of_plain_counts():
    rng = np.random.default_rng(0)
    true, false, where = rng.random(60), 0.9 * rng.random(60), np.arange(60) < 40
    found = Asked(true, false, 0.75).numbers(where)
    a, b = true[:40], false[:40]
    right = (a > 0.5).sum() + (b < 0.5).sum()
    pairs = (a[:, None] > b).mean()
    assert found["asked_accuracy"] == pytest.approx(right / 80)
    assert found["asked_auroc"] == pytest.approx(pairs) and found["taught_accuracy"] == 0.75
    assert Asked(true, false, 0.75).numbers(where & (np.arange(60) < 5))["asked_auroc"] is None
    assert Asked(true, false, 1.0).numbers(where & ~where)["asked_accuracy"] is None


def of_rule(accuracies, low=None, width=8):
    """Rows of made up worlds, and of the rule in them with these accuracies."""
    rows = [
        row for row in made_up(len(accuracies))
        if row["width"] in (8, 16) and row["part"] == "all" and row["temperature"] == 1
        and row["score"] in ("log_p", "entropy")
    ]  # fmt: skip
    for row in rows[:]:
        if row["condition"] == "told":
            accuracy = accuracies[row["world"]] if row["width"] == width else CHANCE
            late = row["epochs"] == 10
            rows.append(
                row | {
                    "condition": "rule", "members_accuracy": accuracy if late else 0.0,
                    "members_low": low if row["width"] == width else 0.0, "premise_accuracy": 0.9,
                }
            )  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("accuracies", "low", "admitted"),
    [
        ((0.5, 0.6, 0.55), None, True),
        ((0.5, 0.6, 0.1), None, False),  # the mean is high, and the bound is not
        ((0.14, 0.141, 0.142), None, True),
        ((0.125, 0.126, 0.127), None, False),  # above chance, and not by the margin
        ((0.5,), 0.2, True),
        ((0.5,), 0.1, False),
        ((0.5,), None, False),  # one member: no bound
    ],
)
def test_a_rule_is_admitted_only_where_it_was_learnt(accuracies, low, admitted):
    rows = of_rule(accuracies, low)
    decided = admissions(Results(rows))
    assert [(of.size.width, of.is_admitted) for of in decided] == [(8, admitted), (16, False)]
    if len(accuracies) > 1:
        wanted = interval_over_seeds(accuracies, kind="mean").low
        assert wanted is not None and decided[0].accuracy.low == pytest.approx(wanted)
        assert admitted == (wanted > 1 / 32 + 0.1) and pytest.approx(0.13125) == CHANCE + MARGIN
    kept = [row for row in without_dropped(rows, decided) if row["condition"] == "rule"]
    assert {(row["width"], row["epochs"]) for row in kept} == (
        {(8, 3), (8, 10)} if admitted else set()
    )


def rows_of(report, name):
    rows = report.tables[name].rows
    assert isinstance(rows, list)
    return rows


@pytest.mark.parametrize(("accuracies", "admitted"), [((0.5, 0.6, 0.55), True), ((0.1,), False)])
def test_the_report_has_the_rule_in_its_tables_or_says_that_it_was_dropped(
    tmp_path, accuracies, admitted
):
    rows = of_rule(accuracies)
    folder = RunFolder.open(tmp_path / "run", stored_settings(Settings()), study="world")
    folder.write(Record("a", {"rows": rows, "cell": Cell(0, 8, 2, 10).__dict__}, {}))
    report = make_report(folder, Settings())
    said = report.reading[1]
    state = "admitted" if admitted else "dropped"
    assert f"width 8 {state}, right for {np.mean(accuracies):.3f}" in said
    assert "width 16 dropped, right for 0.031" in said and "premises for 0.90" in said
    assert ("over worlds" in said) == (len(accuracies) > 1)
    for name in ("summary.csv", "verdicts.csv"):
        shown = [(r["condition"], r.get("width")) for r in rows_of(report, name)]
        assert any(condition == "rule" for condition, _ in shown) == admitted, name
        assert ("rule", 16) not in shown
    # The table is of the mean of all widths, of which one has not learnt it.
    assert "never told, by a rule" not in report.reading_tables[0].columns
    # What decides is kept, so that the report can be made again from the tables.
    assert sum(row["condition"] == "rule" for row in rows_of(report, "results.csv")) == sum(
        row["condition"] == "rule" for row in rows
    )
    assert sentence([], 3) == ""


def test_a_rule_that_all_widths_have_learnt_has_a_column():
    rows = of_rule((0.5, 0.6, 0.55))
    for row in rows:
        if row["condition"] == "rule":
            row["members_accuracy"] = 0.5
    from isounc.studies.world.report import auroc_table

    decided = admissions(Results(rows))
    table = auroc_table(Results(without_dropped(rows, decided)))
    assert "never told, by a rule" in table.columns


def _no_store(member: int) -> Checkpoint:
    raise AssertionError("no chains are asked for")


def test_a_record_has_rows_of_the_rule_and_of_given_answers(monkeypatch):
    """A decoder that follows the rule in half of its questions."""
    world = make_world(400, 2, rule=True)
    rule = of_kind(world, "rule")
    rng = np.random.default_rng(0)

    def log_probs(graphdef, member, world, *, temperature=1.0):
        logits = 0.1 * np.random.default_rng(int(member)).standard_normal(
            (len(world.form), NUM_ANSWERS)
        )
        known = ~rule | (np.cumsum(rule) % 2 == 0)
        logits[np.flatnonzero(known), world.truth[known]] += 3
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - 1e-6

    def said(graphdef, member, world, *, temperature=1.0, answer=None):
        found = log_probs(graphdef, member, world)
        f = found.max(1) - np.log1p(-np.exp(found.max(1)))
        ones = np.ones(len(f))
        return Said(found.argmax(1), f, ones, ones, found, ones / 2, ones)

    def asked(graphdef, params, sentences):
        return rng.random(len(sentences))

    monkeypatch.setattr(cell, "answer_log_probs", log_probs)
    monkeypatch.setattr(cell, "say", said)
    monkeypatch.setattr(measures, "p_true_of", asked)
    monkeypatch.setattr(measures, "SPLITS", 1)
    every = cell.conditions
    monkeypatch.setattr(
        cell, "conditions", lambda w: {n: every(w)[n] for n in ("all", "told", "rule")}
    )
    settings = Settings(rule=True, num_relations=2, num_judged=1, temperatures=(1.0,))
    members = Members(nnx.graphdef(nnx.Module()), jnp.arange(6))
    record = cell._record(
        Cell(400, 8, 2, 3), world, members, 1, settings, say=lambda text: None, store=_no_store
    )
    rows = {
        row["condition"]: row for row in record.meta["rows"]
        if (row["part"], row["score"]) == ("all", "log_p")
    }  # fmt: skip
    assert rows["rule"]["num_questions"] == 64 and rows["all"]["num_questions"] == 370
    # One half, and what is guessed of the other.
    for name in ("accuracy", "members_accuracy"):
        assert 0.5 <= rows["rule"][name] < 0.5 + 5 * CHANCE
    assert rows["rule"]["members_low"] < rows["rule"]["members_accuracy"]
    assert rows["rule"]["premise_accuracy"] == 1 and rows["rule"]["auroc"] == 1
    assert rows["rule"]["oracle"] == 1  # who knows the rule knows which answers are wrong
    assert rows["told"]["members_accuracy"] is None
    for name in rows:
        assert 0.3 < rows[name]["asked_auroc"] < 0.7 and 0.3 < rows[name]["asked_accuracy"] < 0.7
        assert rows[name]["taught_accuracy"] == rows["all"]["taught_accuracy"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rule": True, "num_relations": 1},
            "num_relations must be an integer from 2 to 64, got 1",
        ),
        ({"assessed": 1.5}, "assessed must be from 0 to 1, got 1.5"),
        ({"assessed": -0.5}, "assessed must be a non-negative"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        check(dataclasses.replace(Settings(), **change))
    with pytest.raises(ValueError, match=r"assessed must be from 0 to 1, got 2|num_relations"):
        make_world(0, 1, rule="rule" in change, assessed=0 if "rule" in change else 2)


def test_a_rule_is_in_the_forecast():
    with_rule, without = (plan(Settings(rule=rule))[0][0] for rule in (True, False))
    assert with_rule.seconds > 1.5 * without.seconds
