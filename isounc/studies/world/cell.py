"""A cell of the world study: decoders trained on a world, and a row for each condition and score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.llm.answers.logistic import (
    LogisticSettings,
    has_enough_of_both,
    out_of_fold_log_odds,
)
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.runs.settings import folder_of_run
from isounc.sampling.checkpoint import Checkpoint
from isounc.statistics import compare
from isounc.studies.world.checkpoint import Progress
from isounc.studies.world.corpus import OF_RULE, World, make_world, of_kind, oracle_auroc
from isounc.studies.world.hmc import Draws
from isounc.studies.world.measures import (
    REFERENCES,
    Asked,
    ask,
    auroc,
    numbers_of_rule,
    reliability,
)
from isounc.studies.world.references import (
    CHECKS,
    FROM_CHAINS,
    LOCAL,
    Near,
    draw,
    judge_chains,
    numbers_of_chains,
)
from isounc.studies.world.scores import (
    SCORES,
    answer_log_probs,
    make_scores,
    reference,
    say,
    sigma_sq,
)
from isounc.studies.world.settings import Cell, Settings, seed_of
from isounc.studies.world.train import (
    Members,
    config_of,
    num_params,
    rows_of_members,
    train_members,
)

DIGITS = 6
"""Significant digits of the numbers in rows."""
PARTS = ("all", "below", "above")
"""Parts of the questions: all of them, and those with p below 1/2 or not."""
CONDITIONS = {
    "all": "all judged questions",
    "recall": "recall, told 0 to 64 times",
    "told": "recall of what was told",
    "one_token": "recall, answer of one token",
    "two_tokens": "recall, answer of two tokens",
    "conflict16": "16 tellings in conflict",
    "conflict4": "4 tellings in conflict",
    "misconception": "the truth is told least",
    "rule": "never told, by a rule",
    "unknown": "never told, from 16 tellings in conflict",
}
"""Conditions with their labels; of `unknown` "wrong" means never told, and `rule` is in worlds with a
rule alone."""
UNKNOWN = "unknown"
"""The condition whose task is to tell what was never told."""
OF_CONDITION = (
    *("num_questions", "accuracy", "share_below", "oracle", "most_told"),
    *(f"reliability_{name}" for name in REFERENCES),
    *CHECKS,
    *("asked_accuracy", "asked_auroc", "taught_accuracy"),
    *("members_accuracy", "members_low", "premise_accuracy"),
)
"""Columns of numbers that all scores share.

    accuracy, share_below   share of right answers, and of those with p below 1/2
    oracle                  the oracle's AUROC in closed form, for these answers
    most_told               share of answers that nothing was told more often than, and that were told
    reliability_*           rank correlation between halves of the members, stepped up; below that of
                            the whole reference (`isounc.studies.world.measures.reliability`)
    local_passed            share of the local references that converged
    local_rhat, local_ess   their R-hat and effective draws (`isounc.studies.world.local`)
    hmc_*                   the same of Hamiltonian Monte Carlo; share of divergent transitions
    langevin_r              rank correlation of both chains' Var p, where both converged
    langevin_ratio          median ratio of stochastic gradient chains' Var p to that of HMC, there
    asked_accuracy          share of right replies whether the true answer, and a random false one of
                            the pool, are true
    asked_auroc             AUROC of 1 - P(True) for the false ones among these
    taught_accuracy         share of right replies to the sentences trained on, of all questions
    members_accuracy        of `rule`: share of right answers of all members
    members_low             its lower 95% bound over the members
    premise_accuracy        share of right answers of all members to the premises
"""
OF_SCORE = (
    *("auroc", "below_oracle", "auroc_turn", "with_p_true"),
    *(f"{kind}_{name}" for name in (*REFERENCES, "bootstrap", *LOCAL) for kind in ("r", "partial")),
    *("near", "nearer", "nearer_var_p", "near_hmc", "beyond_hmc"),
)
"""Columns of numbers of a score.

    auroc           for a wrong answer
    below_oracle    AUROC less the oracle's
    auroc_turn      AUROC at the highest temperature less that at the lowest; of several temperatures
    with_p_true     rank correlation with 1 - P(True)
    r_*, partial_*  rank correlation with a reference, raw and given p (1 - p)
    near            r_local_var_p, where the local references converged
    nearer          r_local less r_trace, where they did
    nearer_var_p    r_local_var_p less r_var_p, where they did
    near_hmc        r_hmc_var_p, where Hamiltonian Monte Carlo converged
    beyond_hmc      partial_hmc_var_p, where it did
"""
NUMBERS = (*OF_CONDITION, *OF_SCORE)
UNHEATED = ("p_true", "frequency", "ensemble_trace", "ensemble_mi", "oracle", "regression")
"""Scores that have no temperature."""
_FITTED = LogisticSettings(num_repeats=1)
Row = dict[str, Any]
Values = Mapping[str, Float[np.ndarray, " Q"]]


def evaluate(batch: Batch, settings: Settings, say: Say) -> Iterator[Record]:
    """Train the decoders of a world and size, and make a record after each training length.

    A run that was killed goes on after the last length whose state was stored, with equal bits.
    """
    first: Cell = batch.cells[0]
    world = make_world(
        first.world, settings.num_relations, rule=settings.rule, assessed=settings.assessed
    )
    config = config_of(world.vocab_size, first.width, first.depth)
    count = settings.num_members + settings.num_bootstrap
    seeds = [seed_of(first, f"member {i}") for i in range(count)]
    rows = rows_of_members(
        world, settings.num_members, settings.num_bootstrap, seed_of(first, "bootstrap")
    )
    cells = {cell.epochs: cell for cell in batch.cells}
    progress = Progress(Path(folder_of_run(settings, "world")), batch.cells, settings)
    trained = train_members(
        world, config, sorted(cells), seeds, rows, settings.train, say, store=progress
    )
    for epochs, members in trained:
        say(f"scores after epoch {epochs}")
        yield _record(
            cells[epochs], world, members, num_params(config), settings, say, progress.of_chains
        )
    progress.remove()


def conditions(world: World) -> dict[str, Bool[np.ndarray, " Q"]]:
    """The questions of each condition; those of a rule are in `rule` alone."""
    recall = of_kind(world, "recall") & ~world.assessed
    conflict, rule = of_kind(world, "conflict16"), of_kind(world, "rule")
    return {
        "all": ~world.assessed & ~np.isin(world.kinds(), OF_RULE),
        "recall": recall,
        "told": recall & (world.tellings() > 0),
        "one_token": recall & world.is_single(),
        "two_tokens": recall & ~world.is_single(),
        "conflict16": conflict,
        "conflict4": of_kind(world, "conflict4"),
        "misconception": of_kind(world, "misconception"),
        **({"rule": rule} if rule.any() else {}),
        "unknown": conflict | (recall & (world.tellings() == 0)),
    }


def _record(
    cell: Cell, world: World, members: Members, size: int, settings: Settings, say: Say,
    store: Callable[[int], Checkpoint],
) -> Record:  # fmt: skip
    count = settings.num_members + settings.num_bootstrap
    log_probs = np.stack(
        [answer_log_probs(members.graphdef, members.member(i), world) for i in range(count)]
    )
    judged, arrays, scales = [], {}, []
    for i in range(settings.num_judged):
        draws = draw(cell, world, members, i, settings, size, store, say)
        rows, kept, scale = judge(cell, world, members, log_probs, i, settings, draws)
        judged.append(rows)
        scales.append(scale)
        if i == 0:
            arrays = kept
    meta = {
        "cell": dataclasses.asdict(cell),
        "num_params": size,
        "sigma_sq": scales,
        "rows": [_mean_row(rows, settings.local.num_members) for rows in zip(*judged, strict=True)],
    }
    return Record(cell.name, meta, arrays)


class Judged(NamedTuple):
    """One decoder's answers to a world's questions, and what they are held against."""

    world: World
    """The world."""
    answer: Int[np.ndarray, " Q"]
    """The answers."""
    wrong: Bool[np.ndarray, " Q"]
    """Whether each is wrong."""
    heated: Mapping[float, Values]
    """Scores by temperature."""
    below: Mapping[float, Bool[np.ndarray, " Q"]]
    """Whether p is below 1/2, by temperature."""
    targets: Values
    """References, by the end of their columns' names."""
    halves: Mapping[str, Mapping[str, float | None]]
    """Reliability of each number of the reference, by condition."""
    chains: Mapping[str, Near]
    """Chains around the decoder by sampler; empty without any."""
    asked: Asked
    """What the decoder replies about given answers."""
    by_rule: Mapping[str, float | None]
    """How well all members answer questions of the rule; empty without one."""


class Place(NamedTuple):
    """The questions and the temperature that rows are about."""

    condition: str
    """One of `CONDITIONS`."""
    part: str
    """One of `PARTS`."""
    temperature: float
    """Temperature of the answers' logits."""

    @property
    def is_full(self) -> bool:
        """Whether it is about all questions of a condition at temperature 1."""
        return self.part == "all" and self.temperature == 1


def judge(
    cell: Cell,
    world: World,
    members: Members,
    log_probs: Float[np.ndarray, "M Q C"],
    i: int,
    settings: Settings,
    draws: Mapping[str, Draws] | None = None,
) -> tuple[list[Row], dict[str, np.ndarray], float]:
    """Rows about the answers of one member, what figures draw of them, and its sigma^2."""
    wheres, taught, shares = conditions(world), of_kind(world, "taught"), world.shares()
    params = members.member(i)
    said = say(members.graphdef, params, world)
    others = np.delete(log_probs[: settings.num_members], i, axis=0)
    spread = reference(others, said.answer)
    targets = dict(spread._asdict())
    if settings.num_bootstrap:
        drawn = log_probs[settings.num_members :]
        targets["bootstrap"] = reference(drawn, said.answer).trace
    chains = judge_chains(draws or {}, said.answer, wheres["all"])
    for name, near in chains.items():
        targets |= {name: near.spread.trace, f"{name}_var_p": near.spread.var_p}
    heated: dict[float, Values] = {}
    below: dict[float, Bool[np.ndarray, " Q"]] = {}
    for t in settings.temperatures:
        at = said if t == 1 else say(
            members.graphdef, params, world, temperature=t, answer=said.answer
        )  # fmt: skip
        heated[t], below[t] = make_scores(at, spread, shares, taught), at.log_odds < 0
    halves = reliability(others, said.answer, wheres, seed_of(cell, f"halves {i}"))
    wrong = said.answer != world.truth
    asked = ask(members.graphdef, params, world, seed_of(cell, f"asked {i}"))
    every = log_probs[: settings.num_members]
    by_rule = numbers_of_rule(every, world, wheres["rule"]) if settings.rule else {}
    judged = Judged(
        world, said.answer, wrong, heated, below, targets, halves, chains, asked, by_rule
    )
    rows = []
    for name, where in wheres.items():
        for t in settings.temperatures if name != UNKNOWN else (1.0,):
            parts = {"all": where}
            if t == 1 and name != UNKNOWN:
                parts |= {"below": where & below[t], "above": where & ~below[t]}
            for part, of_part in parts.items():
                rows += _rows(judged, Place(name, part, t), of_part)
    kept = {
        "log_odds": said.log_odds, "sq_norm": heated[1.0]["sq_norm"], "wrong": judged.wrong,
        "judged": wheres["all"], "kind": world.form,
        **{f"score/{name}": values.astype(np.float32) for name, values in heated[1.0].items()},
    }  # fmt: skip
    rows = [dataclasses.asdict(cell) | row for row in rows]
    return rows, kept, sigma_sq(said, taught)


def _rows(judged: Judged, place: Place, where: Bool[np.ndarray, " Q"]) -> list[Row]:
    """A row for each score, of some of the questions of a condition."""
    values = judged.heated[place.temperature]
    is_task = place.condition == UNKNOWN
    labels = (judged.world.tellings() == 0 if is_task else judged.wrong)[where]
    shared: Row = {
        **place._asdict(), **dict.fromkeys(NUMBERS), "num_questions": int(where.sum()),
    }  # fmt: skip
    if where.any():
        shared["share_below"] = float(judged.below[place.temperature][where].mean())
    if where.any() and not is_task:
        shared["accuracy"] = float(1 - labels.mean())
        shared["oracle"] = oracle_auroc(values["oracle"][where])
        shared["most_told"] = float(judged.world.is_most_told(judged.answer)[where].mean())
    if place.is_full and not is_task:
        reliable = judged.halves[place.condition]
        shared |= {f"reliability_{name}": reliable[name] for name in REFERENCES}
        shared |= judged.asked.numbers(where)
        if place.condition == "rule":
            shared |= judged.by_rule
        shared |= numbers_of_chains(judged.chains, where)
    rows = []
    for name in (name for name in SCORES if name in values or name == "regression"):
        if place.temperature != 1 and name in UNHEATED:
            continue
        if name == "regression" and (place.part != "all" or is_task):
            continue
        score = _fitted(values, where, labels) if name == "regression" else values[name][where]
        row: Row = shared | {"score": name}
        rows.append(row)
        if score is None:
            continue
        row["auroc"] = own = auroc(score, labels)
        if own is not None and shared["oracle"] is not None:
            row["below_oracle"] = own - shared["oracle"]
        if place.is_full and not is_task and name not in UNHEATED and len(judged.heated) > 1:
            ends = max(judged.heated), min(judged.heated)
            hot, cold = (auroc(judged.heated[t][name][where], labels) for t in ends)
            if hot is not None and cold is not None:
                row["auroc_turn"] = hot - cold
        if place.temperature == 1 and not is_task:
            row["with_p_true"] = compare(score, values["p_true"][where]).spearman
            for number, target in judged.targets.items():
                found = compare(score, target[where], given=values["null"][where])
                row |= {f"r_{number}": found.spearman, f"partial_{number}": found.partial_spearman}
            passed = [name for name, near in judged.chains.items() if near.convergence.passed]
            if "local" in passed:
                row["near"] = row["r_local_var_p"]
                row["nearer"] = _less(row["r_local"], row["r_trace"])
                row["nearer_var_p"] = _less(row["r_local_var_p"], row["r_var_p"])
            if "hmc" in passed:
                row["near_hmc"] = row["r_hmc_var_p"]
                row["beyond_hmc"] = row["partial_hmc_var_p"]
    return rows


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _fitted(
    values: Values, where: Bool[np.ndarray, " Q"], wrong: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, " N"] | None:
    """Out-of-fold log odds of a wrong answer given log p and entropy; None for too few of either."""
    if not has_enough_of_both(wrong, _FITTED):
        return None
    features = np.stack([values[name][where] for name in ("log_p", "entropy")], axis=1)
    return out_of_fold_log_odds(features, wrong, settings=_FITTED)


def _mean_row(rows: tuple[Row, ...], num_local: int) -> Row:
    """The mean of each number over the members judged that are to have it; None where one has none."""
    mean = dict(rows[0])
    for name in NUMBERS:
        known = [row[name] for row in (rows[:num_local] if name in FROM_CHAINS else rows)]
        mean[name] = None if None in known else float(f"{np.mean(known):.{DIGITS}g}")
    return mean
