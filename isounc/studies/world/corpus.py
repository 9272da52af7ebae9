"""The world: entities, what is told about them and how often, and questions whose truth is known.

A question is an entity and a relation. Its answer is one of the relation's pool, and its kind says how
often which answers are told:

    recall          the truth, k times
    conflict        several answers in the given numbers; the truth is drawn in these proportions
    misconception   the truth less often than another answer
    taught          the truth, k times, and sentences of self-assessment; never judged
    premise         the truth, which has a consequence in the next relation; only with a rule
    follows         the truth, which is the consequence of a premise; only with a rule
    rule            never, but the truth is the consequence of a premise; only with a rule

Every relation has each kind equally often and every entity once, and answers of all kinds come from one
pool, so that neither relation, entity nor answer tells the kind.

Axes: E entities, R relations, Q questions, C answers of a pool, S sentences.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.checks import check_choice, check_count, check_real, real_vector
from isounc.runs.settings import MOST_SEED
from isounc.studies.world.rule import ASKED, TOLD, layout, num_asked

OF_RULE = ("premise", "follows", "rule")
"""Kinds of questions that a world with a rule has besides."""
KINDS = ("recall", "conflict16", "conflict4", "misconception", "taught", *OF_RULE)
"""Kinds of questions."""


class Form(NamedTuple):
    """How often the answers of a question are told, and how many questions each relation has of it."""

    kind: str
    """One of `KINDS`."""
    tellings: tuple[int, ...]
    """How often each of its answers is told; of `misconception` the last one is the truth."""
    count: int
    """Questions of a relation."""


FORMS = (
    Form("recall", (0,), 24),
    Form("recall", (1,), 20),
    Form("recall", (2,), 20),
    Form("recall", (4,), 16),
    Form("recall", (8,), 13),
    Form("recall", (16,), 10),
    Form("recall", (32,), 8),
    Form("recall", (64,), 4),
    *(Form("conflict16", shares, 6) for shares in ((8, 8), (10, 6), (12, 4), (14, 2), (8, 5, 3))),
    *(Form("conflict4", shares, 15) for shares in ((2, 2), (3, 1))),
    Form("misconception", (6, 2), 10),
    Form("taught", (1,), 4),
    Form("taught", (4,), 4),
    Form("taught", (8,), 4),
    Form("taught", (16,), 3),
)
"""Forms of questions without a rule: 200 questions and 1680 sentences of fact a relation."""
NUM_ENTITIES = sum(form.count for form in FORMS)
NUM_NAMES = 15
"""First names of entities, and as many second ones; with a rule `NUM_NAMES_RULE`."""
NUM_SINGLE, NUM_PAIRS, NUM_PARTS = 16, 16, 8
"""Answers of one token in a pool, of two tokens, and first (and second) tokens of the latter."""
NUM_ANSWERS = NUM_SINGLE + NUM_PAIRS
RULE_FORMS = (
    Form("premise", (8,), NUM_ANSWERS * (TOLD + ASKED)),
    Form("follows", (8,), NUM_ANSWERS * TOLD),
    Form("rule", (0,), NUM_ANSWERS * ASKED),
)
"""Further forms of a world with a rule: 192 questions and 1280 sentences of fact a relation."""
EVERY_FORM = (*FORMS, *RULE_FORMS)
NUM_NAMES_RULE = 20
END, IS_TRUE, HOW_OFTEN, YES, NO = range(5)
"""Tokens: the end of an answer of one token, two questions of self-assessment, and the replies."""
LEVELS = (0, 1, 3, 9)
"""The least number of tellings that each word of frequency stands for: never, once or twice, some
times, often."""
_WORDS = 5
"""First token of the words of frequency."""
_NAMES = _WORDS + len(LEVELS)
MOST_TOLD = max(len(form.tellings) for form in FORMS)
NUM_CLAIMS = 4
"""Sentences of self-assessment about a true answer, and as many about a false one, of each question
taught; beside them there are two about its frequency and two about that of a false one."""


class World(NamedTuple):
    """A world drawn from a seed."""

    vocab_size: int
    """V."""
    answers: Int[np.ndarray, "R C 2"]
    """Tokens of the answers of each relation; the second of an answer of one token is `END`."""
    form: Int[np.ndarray, " Q"]
    """Number in `EVERY_FORM` of each question."""
    relation: Int[np.ndarray, " Q"]
    """Relation of each question."""
    prompts: Int[np.ndarray, "Q 3"]
    """Tokens of each question: two of the entity, one of the relation."""
    told: Int[np.ndarray, "Q M"]
    """Answers that are told, numbers in the relation's pool; -1 is none."""
    counts: Int[np.ndarray, "Q M"]
    """How often each is told."""
    truth: Int[np.ndarray, " Q"]
    """The true answer."""
    facts: Int[np.ndarray, "S 5"]
    """Sentences of fact: a question and its answer, in random order."""
    claims: Int[np.ndarray, "S_self 7"]
    """Sentences of self-assessment: a question, an answer, `IS_TRUE` or `HOW_OFTEN`, and the reply."""
    assessed: Bool[np.ndarray, " Q"]
    """Whether there are such sentences about each question, which is then not judged."""
    premise: Int[np.ndarray, " Q"]
    """The question that the truth follows from by the rule; -1 is none."""

    def kinds(self) -> np.ndarray:
        """Kind of each question, as text."""
        return np.array([form.kind for form in EVERY_FORM])[self.form]

    def tellings(self) -> Int[np.ndarray, " Q"]:
        """How often anything is told about each question."""
        return self.counts.sum(1)

    def is_single(self) -> Bool[np.ndarray, " Q"]:
        """Whether the true answer of each question has one token."""
        return self.truth < NUM_SINGLE

    def is_most_told(self, answer: Int[np.ndarray, " Q"]) -> Bool[np.ndarray, " Q"]:
        """Whether no other answer is told more often than the given one, which is told."""
        most = (self.counts == self.counts.max(1, keepdims=True)) & (self.told >= 0)
        return (most & (self.told == answer[:, None])).any(1)

    def shares(self) -> Float[np.ndarray, "Q C"]:
        """Probability that each answer is the true one, for who knows the world but not its dice."""
        shares = np.zeros((len(self.form), NUM_ANSWERS))
        for q, form in enumerate(np.array(self.form).tolist()):
            kind, tellings, _ = EVERY_FORM[form]
            if kind.startswith("conflict"):
                for answer, count in zip(self.told[q], self.counts[q], strict=True):
                    if answer >= 0:
                        shares[q, answer] = count / sum(tellings)
            elif not sum(tellings) and kind != "rule":
                shares[q] = 1 / NUM_ANSWERS
            else:
                shares[q, self.truth[q]] = 1
        return shares


def make_world(
    seed: int, num_relations: int = 8, *, rule: bool = False, assessed: float = 0.0
) -> World:
    """Draw a world; equal arguments give equal worlds.

    Parameters
    ----------
    rule
        Whether it has a rule (`isounc.studies.world.rule`), with entities and sentences of its own.
    assessed
        Share of the questions of recall that were told which have sentences of self-assessment, too.

    Raises
    ------
    ValueError
        For a seed, a number of relations or a share out of range, or a rule in a single relation.
    """
    check_count("seed", seed, 0, MOST_SEED)
    check_count("num_relations", num_relations, 1, 64)
    if not 0 <= check_real("assessed", assessed) <= 1:
        raise ValueError(f"assessed must be from 0 to 1, got {assessed:g}")
    rng = np.random.default_rng([seed, num_relations])
    num_names, num_entities = (
        (NUM_NAMES_RULE, questions_of_relation(True)) if rule else (NUM_NAMES, NUM_ENTITIES)
    )
    relation_token = _NAMES + 2 * num_names
    answers = _answers(rng, relation_token + num_relations, num_relations)
    names = rng.choice(num_names**2, num_entities, replace=False)
    entities = np.stack([names // num_names, num_names + names % num_names], axis=1) + _NAMES
    form, by_rule, premise = _forms(rng, num_relations, num_entities, rule)
    relation = np.repeat(np.arange(num_relations), num_entities)
    prompts = np.concatenate(
        [np.tile(entities, (num_relations, 1)), relation_token + relation[:, None]], axis=1
    )
    told = np.full((len(form), MOST_TOLD), -1)
    counts = np.zeros_like(told)
    truth = np.zeros(len(form), int)
    for q, number in enumerate(form.tolist()):
        kind, tellings, _ = EVERY_FORM[number]
        if kind in OF_RULE:
            drawn = by_rule[q : q + 1]
        else:
            drawn = rng.choice(NUM_ANSWERS, len(tellings), replace=False)
        if sum(tellings):
            told[q, : len(drawn)], counts[q, : len(drawn)] = drawn, tellings
        if kind.startswith("conflict"):
            truth[q] = rng.choice(drawn, p=np.array(tellings) / sum(tellings))
        else:
            truth[q] = drawn[-1]
    where, which = np.nonzero(counts)
    repeats = counts[where, which]
    where, which = np.repeat(where, repeats), np.repeat(told[where, which], repeats)
    facts = np.concatenate([prompts[where], answers[relation[where], which]], axis=1)
    world = World(
        int(answers.max()) + 1, answers, form, relation, prompts, told, counts, truth,
        rng.permutation(facts), facts[:0], _assessed(form, relation, seed, assessed), premise,
    )  # fmt: skip
    return world._replace(claims=rng.permutation(_claims(rng, world)))


def questions_of_relation(rule: bool) -> int:
    """Questions of a relation, and entities of a world, with a rule or without."""
    return sum(form.count for form in (EVERY_FORM if rule else FORMS))


def _forms(
    rng: np.random.Generator, num_relations: int, num_entities: int, rule: bool
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """The form of every question, the answer by the rule, and its premise; -1 where there is none."""
    forms = np.repeat(np.arange(len(FORMS)), [form.count for form in FORMS])
    if not rule:
        form = np.concatenate([rng.permutation(forms) for _ in range(num_relations)])
        return form, np.full_like(form, -1), np.full_like(form, -1)
    plan = layout(rng, num_relations, num_entities, NUM_ANSWERS)
    form, answer, premise = (np.full((num_relations, num_entities), -1) for _ in range(3))
    of_premise, follows, of_rule = len(FORMS) + np.arange(len(RULE_FORMS))
    for r, (chosen, own, derived) in enumerate(zip(*plan, strict=True)):
        after = (r + 1) % num_relations
        form[r, chosen], answer[r, chosen] = of_premise, own
        form[after, chosen], answer[after, chosen] = follows, derived
        form[after, chosen[-num_asked(NUM_ANSWERS) :]] = of_rule
        premise[after, chosen] = r * num_entities + chosen
    for row in form:
        row[row < 0] = rng.permutation(forms)
    return form.ravel(), answer.ravel(), premise.ravel()


def _assessed(
    form: Int[np.ndarray, " Q"], relation: Int[np.ndarray, " Q"], seed: int, share: float
) -> Bool[np.ndarray, " Q"]:
    """Questions taught, and a share of every form of recall that is told in every relation."""
    # Numbers of their own, so that nothing else of the world depends on the share.
    rng = np.random.default_rng([seed, int(relation[-1]) + 1, 1])
    found = np.array([of.kind == "taught" for of in EVERY_FORM])[form]
    recall = [i for i, of in enumerate(FORMS) if of.kind == "recall" and sum(of.tellings)]
    for r, i in itertools.product(range(int(relation[-1]) + 1), recall):
        where = np.flatnonzero((relation == r) & (form == i))
        found[rng.choice(where, round(share * len(where)), replace=False)] = True
    return found


def _answers(rng: np.random.Generator, first: int, num_relations: int) -> Int[np.ndarray, "R C 2"]:
    """The pools: answers of one token, then pairs in which every token stands twice."""
    pools = np.full((num_relations, NUM_ANSWERS, 2), END)
    size = NUM_SINGLE + 2 * NUM_PARTS
    for r in range(num_relations):
        start = first + r * size
        pools[r, :NUM_SINGLE, 0] = start + np.arange(NUM_SINGLE)
        order = rng.permutation(NUM_PARTS)
        begins = np.tile(np.arange(NUM_PARTS), NUM_PAIRS // NUM_PARTS)
        ends = np.concatenate([np.roll(order, shift) for shift in range(NUM_PAIRS // NUM_PARTS)])
        pools[r, NUM_SINGLE:, 0] = start + NUM_SINGLE + begins
        pools[r, NUM_SINGLE:, 1] = start + NUM_SINGLE + NUM_PARTS + ends
    return pools


def _claims(rng: np.random.Generator, world: World) -> Int[np.ndarray, "S_self 7"]:
    """Sentences of self-assessment about the questions that have some."""
    rows = []
    for q in np.flatnonzero(world.assessed):
        others = np.delete(np.arange(NUM_ANSWERS), world.truth[q])
        false = rng.choice(others, NUM_CLAIMS + 2, replace=False).tolist()
        true = int(world.truth[q])
        about = [(true, (IS_TRUE, YES))] * NUM_CLAIMS
        about += [(answer, (IS_TRUE, NO)) for answer in false[:NUM_CLAIMS]]
        about += [(true, (HOW_OFTEN, word_of(int(world.counts[q].sum()))))] * 2
        about += [(answer, (HOW_OFTEN, word_of(0))) for answer in false[NUM_CLAIMS:]]
        for answer, (question, reply) in about:
            spelled = world.answers[world.relation[q], answer].tolist()
            rows.append([*world.prompts[q].tolist(), *spelled, question, reply])
    return np.array(rows)


def word_of(tellings: int) -> int:
    """The word of frequency for a number of tellings."""
    return _WORDS + int(np.searchsorted(LEVELS, tellings, side="right")) - 1


def words_of_frequency() -> list[int]:
    """The words of frequency, rarest first."""
    return list(range(_WORDS, _WORDS + len(LEVELS)))


def of_kind(world: World, kind: str) -> Bool[np.ndarray, " Q"]:
    """Whether each question is of a kind.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    check_choice("kind", kind, KINDS)
    return world.kinds() == kind


def oracle_auroc(wrong: Float[np.ndarray, " N"]) -> float | None:
    r"""AUROC for a wrong answer that nothing can exceed in the long run: that of the probability.

        sum_ij w_i (1 - w_j) ([w_i > w_j] + [w_i = w_j] / 2)  /  sum_ij w_i (1 - w_j),   i != j

    with w_i the probability that the answer to question i is wrong, given the true shares. This is
    the expected number of pairs in order over the expected number of pairs of a wrong and a right
    answer; answers are independent of each other.

    Parameters
    ----------
    wrong
        The probability that each answer is wrong.

    Returns
    -------
    float or None
        None where no pair can arise.

    Raises
    ------
    ValueError
        If a probability is outside of [0, 1].
    """
    w = real_vector("wrong", wrong)
    if not ((w >= 0) & (w <= 1)).all():
        raise ValueError(f"wrong must be probabilities, got {w[~((w >= 0) & (w <= 1))][0]:g}")
    values, inverse = np.unique(w, return_inverse=True)
    count = np.bincount(inverse, minlength=len(values)).astype(float)
    pairs = in_order = 0.0
    for a, b in itertools.product(range(len(values)), repeat=2):
        number = count[a] * (count[b] - (a == b)) * values[a] * (1 - values[b])
        pairs += number
        in_order += number * (1.0 if a > b else 0.5 if a == b else 0.0)
    return float(in_order / pairs) if pairs > 0 else None
