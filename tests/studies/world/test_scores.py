"""What decoders say against plain computations; scores whose sign is known beforehand."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.llm.model import transformer
from isounc.llm.model.decoder import Decoder
from isounc.statistics import compare
from isounc.studies.world.cell import conditions
from isounc.studies.world.corpus import NUM_ANSWERS, NUM_SINGLE, make_world, of_kind
from isounc.studies.world.measures import FEWEST, ask, auroc, reliability
from isounc.studies.world.scores import (
    Said,
    _log_semgrads,
    answer_log_probs,
    log_odds_and_logit_norm,
    make_scores,
    reference,
    say,
    sigma_sq,
)
from isounc.studies.world.train import (
    WorldTraining,
    config_of,
    num_params,
    rows_of_members,
    train_members,
)

WORLD = make_world(0, 1)
CONFIG = config_of(WORLD.vocab_size, 8, 1)


@pytest.fixture(scope="module")
def members():
    """Five decoders after one epoch and after two, the last on a bootstrap sample."""
    rows = rows_of_members(WORLD, 4, 1, seed=0)
    settings = WorldTraining(minibatch=16, learning_rate=1e-2, warmup=5)
    return dict(train_members(WORLD, CONFIG, [1, 2], range(5), rows, settings))


def test_members_are_trained_on_their_sentences(members):
    sizes = [leaf.size // 5 for leaf in jax.tree.leaves(members[2].params)]
    assert num_params(CONFIG) == sum(sizes)
    often = WORLD.counts[:, 0] == 64
    found = []
    for epochs, i in ((1, 0), (2, 0), (2, 1), (2, 4)):
        of = members[epochs]
        log_probs = answer_log_probs(of.graphdef, of.member(i), WORLD)
        found.append(log_probs[often, WORLD.truth[often]].mean())
    assert np.log(1 / NUM_ANSWERS) < found[0] < found[1]  # what is told 64 times is learnt
    assert len(set(found)) == 4  # members and times differ
    rows = rows_of_members(WORLD, 4, 1, seed=0)
    assert all((np.sort(row) == np.arange(len(WORLD.facts))).all() for row in rows[:4])
    assert 0.6 < len(np.unique(rows[4])) / len(WORLD.facts) < 0.66  # 1 - 1/e


def test_probabilities_and_norms_are_those_of_plain_computations(members):
    graphdef, params = members[2].graphdef, members[2].member(0)
    log_probs = answer_log_probs(graphdef, params, WORLD, temperature=2.0)
    said = say(graphdef, params, WORLD, temperature=2.0)
    np.testing.assert_array_equal(said.answer, log_probs.argmax(1))
    chosen = {0: 3, 5: NUM_SINGLE, 9: NUM_ANSWERS - 1}
    answer = said.answer.copy()
    answer[list(chosen)] = list(chosen.values())
    said = say(graphdef, params, WORLD, temperature=2.0, answer=answer)
    p = np.exp(np.take_along_axis(log_probs, answer[:, None], 1)[:, 0])
    np.testing.assert_allclose(said.log_odds, np.log(p) - np.log1p(-p), rtol=1e-3, atol=1e-4)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def plain(params, tokens, is_pair):
        """The probability itself, by a softmax of the logits after each token but the last."""
        steps = jax.nn.softmax(nnx.merge(graphdef, params)(tokens[None, :-1])[0, 2:] / 2.0)
        return steps[0, tokens[3]] * jnp.where(is_pair, steps[1, tokens[4]], 1.0), steps

    for q, a in chosen.items():
        tokens = np.concatenate([WORLD.prompts[q], WORLD.answers[0, a]])
        is_pair = a >= NUM_SINGLE
        (value, steps), gradient = plain(params, tokens, is_pair)
        assert p[q] == pytest.approx(float(value), rel=1e-4)
        norm = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient))
        assert (p[q] * (1 - p[q])) ** 2 * said.odds_sq_norm[q] == pytest.approx(norm, rel=2e-3)
        # In the logits: d p / d z_tk = p (1[k is the token] - softmax_tk).
        slopes = float(value) * (np.eye(steps.shape[1])[tokens[3:]] - np.asarray(steps, float))
        norm = (slopes[: 2 if is_pair else 1] ** 2).sum()
        assert said.logit_sq_norm[q] == pytest.approx(norm, rel=1e-3)
    assert said.log_semgrad is None  # a decoder of one layer
    assert ((said.p_true > 0) & (said.p_true < 1)).all()
    assert ((said.frequency > 0) & (said.frequency < 3)).all()
    # Asked about given answers: as about its own, where these are the ones.
    asked = ask(graphdef, params, WORLD, seed=0)
    same = said.answer == WORLD.truth
    assert same.any() and not (asked.of_true == asked.of_false).all()
    np.testing.assert_allclose(asked.of_true[same], said.p_true[same], rtol=1e-5)
    assert 0 <= asked.taught <= 1


def test_the_norm_in_the_logits_keeps_its_digits_where_p_is_near_one():
    """At log-odds of 14 to 18, with what is left spread over 30 other tokens, against float64."""
    logits = np.zeros((2, 31))
    logits[[0, 1], [3, 7]] = np.log(30) + np.array([18.0, 14.0])
    targets, p = np.array([3, 7]), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rest = 1 / (1 + np.exp([18.0, 14.0]))
    parts = rest**2 * (1 + 1 / 30)
    function = jax.jit(log_odds_and_logit_norm)
    for included in ([True, False], [True, True]):
        f, norm = function(
            jnp.asarray(logits, jnp.float32), jnp.asarray(targets), jnp.asarray(included)
        )
        own = p[[0, 1], targets][included].prod()
        assert float(norm) == pytest.approx(own**2 * parts[included].sum(), rel=1e-4)
        wrong = rest[included].sum() - rest.prod() * all(included)
        assert float(f) == pytest.approx(np.log(own / wrong), rel=1e-5)


def test_semgrad_is_that_of_plain_derivatives():
    """The states of two layers: one, behind the first block, at the last token of the prompt."""
    decoder = Decoder.random(config_of(WORLD.vocab_size, 8, 2))
    graphdef, params = nnx.split(decoder, nnx.Param)
    chosen = {0: 3, 5: NUM_SINGLE}
    inputs = np.stack(
        [
            np.append(WORLD.prompts[q], WORLD.answers[WORLD.relation[q], a])
            for q, a in chosen.items()
        ]
    ).astype(np.int32)
    is_pair = np.array([False, True])
    found = _log_semgrads(params, inputs, is_pair, jnp.float32(2), graphdef=graphdef)
    config, weights = decoder.config, decoder.weights()

    @jax.jit
    def plain(tokens, is_pair):
        given = transformer.inputs(config, weights.embed, tokens[None, :4], jnp.arange(4)[None])
        rotation, mask = given.of_layer(config, 0)
        before, _ = transformer.block(config, weights.layers[0], given.x, rotation, mask)

        def log_q(state):
            x = before.at[0, 2].set(state)
            x, _ = transformer.block(config, weights.layers[1], x, rotation, mask)
            states = transformer.final_norm(config, weights.norm, x)[0, 2:]
            return jax.nn.log_softmax(decoder.head(states) / 2.0)

        q = log_q(before[0, 2])
        weight = -(jnp.exp(q) * q).sum(1) * jnp.stack([1.0, is_pair])
        slopes = jax.jacrev(lambda state: log_q(state)[jnp.arange(2), tokens[3:]])(before[0, 2])
        return jnp.abs(weight @ slopes).mean()

    expected = [float(plain(*row)) for row in zip(inputs, is_pair.astype(float), strict=True)]
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)


def test_the_spread_of_an_ensemble_against_a_loop():
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(5), size=(4, 7))[:, :, :4])
    answer = rng.integers(4, size=7)
    found = reference(log_probs, answer)
    for q in range(7):
        p = np.exp(log_probs[:, q])
        var = [np.mean([(p[m, c] - p[:, c].mean()) ** 2 for m in range(4)]) for c in range(4)]
        assert found.trace[q] == pytest.approx(sum(var))
        assert found.var_p[q] == pytest.approx(var[answer[q]])
        whole = np.c_[p, 1 - p.sum(1)]
        mean = whole.mean(0)
        divergence = np.mean([(row * np.log(row / mean)).sum() for row in whole])
        assert found.mi[q] == pytest.approx(divergence)
    alike = reference(np.repeat(log_probs[:1], 3, axis=0), answer)
    assert max(alike.mi.max(), alike.trace.max()) < 1e-12
    with pytest.raises(ValueError, match="log_probs must be of two members or more, got 1"):
        reference(log_probs[:1], answer)


def test_reliability_of_members_that_agree_and_of_noise():
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=(1, 400, 1)))
    noise = rng.uniform(0.01, 0.02, size=(16, 400, 2))
    where, answer = {"all": np.ones(400, bool)}, np.zeros(400, int)
    clear = reliability(np.log(noise * scale / scale.max()), answer, where, 0)["all"]
    none = reliability(np.log(noise), answer, where, 0)["all"]
    assert clear["trace"] == pytest.approx(0.95, abs=0.05)
    assert none["trace"] == pytest.approx(0, abs=0.3)
    assert reliability(np.log(noise[:4] * 0 + 0.1), answer, where, 0)["all"]["trace"] is None


def made_up(log_odds, *, answer=None, sq_norm=None):
    """What a decoder might say, with equal norms of the log-odds' gradient."""
    n = len(log_odds)
    p = 1 / (1 + np.exp(-np.asarray(log_odds, float)))
    probs = np.full((n, NUM_ANSWERS), 1e-9)
    answer = np.zeros(n, int) if answer is None else answer
    probs[np.arange(n), answer] = p
    norm = np.ones(n) if sq_norm is None else sq_norm
    return Said(
        answer, np.asarray(log_odds, float), norm, (p * (1 - p)) ** 2, np.log(probs), p, 3 * p
    )


def test_below_one_half_the_norm_of_p_must_point_the_wrong_way():
    """Planted: wrong answers have the smaller p, all of them below 1/2, and ‖∇f‖² is constant."""
    log_odds = np.linspace(-4, -0.1, 60)
    wrong = np.arange(60) < 30
    shares = np.full((60, NUM_ANSWERS), 1 / NUM_ANSWERS)
    spread = reference(np.log(np.full((2, 60, 3), 0.1)), np.zeros(60, int))
    taught = np.arange(60) % 2 == 0
    found = {
        name: auroc(score, wrong)
        for name, score in make_scores(made_up(log_odds), spread, shares, taught).items()
    }
    for name in ("sq_norm", "null", "total", "logit_norm", "logit_scaled"):
        assert found[name] == 0.0, name
    for name in ("log_p", "log_sq_norm", "moderated", "p_true", "frequency"):
        assert found[name] == 1.0, name
    assert found["odds_sq_norm"] == 0.5
    # The same answers above one half: the norm of p points right.
    above = make_scores(made_up(log_odds + 4.05), spread, shares, taught)
    assert auroc(above["sq_norm"], wrong) == 1.0
    # So it does at a lower temperature, which moves them further up.
    heated = make_scores(made_up(4 * log_odds + 4.05 * 4), spread, shares, taught)
    assert auroc(heated["sq_norm"], wrong) == 1.0


def test_scores_are_what_they_say():
    log_odds = np.tile([-60.0, -1.0, 0.0, 2.0, 60.0], 12)
    said = made_up(log_odds, sq_norm=np.tile([3.0, 2.0, 5.0, 0.0, 1e6], 12))
    spread = reference(np.log(np.full((2, 60, 3), 0.1)), np.zeros(60, int))
    shares = np.zeros((60, NUM_ANSWERS))
    shares[:, 0] = np.tile([0.25, 1, 0, 0.5, 1], 12)
    taught = np.tile([True, True, True, False, False], 12)
    assert sigma_sq(said, taught) == pytest.approx(np.pi**2 / 3 / 3.0)
    found = make_scores(said._replace(log_semgrad=log_odds), spread, shares, taught)
    assert "semgrad" not in make_scores(said, spread, shares, taught)
    np.testing.assert_allclose(found["semgrad"], np.exp(log_odds))
    p = 1 / (1 + np.exp(-log_odds))
    np.testing.assert_allclose(found["oracle"], 1 - shares[:, 0])
    np.testing.assert_allclose(found["log_p"], -np.log(p), rtol=1e-12, atol=1e-15)
    assert found["null"][4] == pytest.approx(np.exp(-60)) and found["sq_norm"][3] == 0
    # Without a gradient the moderated probability is the probability; with a huge one it is 1/2.
    assert found["moderated"][3] == pytest.approx(1 - p[3], rel=1e-6)
    assert 0.4 < found["moderated"][4] < 0.5 and found["logit_scaled"][3] == 0
    draws = np.random.default_rng(0).normal(-1, np.sqrt(np.pi**2 / 9 * 2), 400_000)
    drawn = 1 / (1 + np.exp(-draws))
    assert found["moderated"][1] == pytest.approx(1 - drawn.mean(), abs=2e-3)
    assert found["logit_scaled"][1] == pytest.approx(drawn.var(), rel=1e-2)
    for norms in (np.zeros(60), np.full(60, np.nan)):
        with pytest.raises(ValueError, match="median of ‖∇f‖² must be positive and finite"):
            sigma_sq(said._replace(odds_sq_norm=norms), taught)


def test_conditions_and_the_auroc():
    of = conditions(WORLD)
    assert {name: int(where.sum()) for name, where in of.items()} == {
        "all": 185, "recall": 115, "told": 91, "one_token": int(of["one_token"].sum()),
        "two_tokens": 115 - int(of["one_token"].sum()), "conflict16": 30, "conflict4": 30,
        "misconception": 10, "unknown": 54,
    }  # fmt: skip
    assert not (of["all"] & of_kind(WORLD, "taught")).any()
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    values, wrong = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    assert auroc(values, wrong) == pytest.approx(roc_auc_score(wrong, values))
    assert auroc(values, np.arange(80) < FEWEST - 1) is None
    assert auroc(np.where(wrong, np.nan, values), wrong) is None
    assert compare(values, values).spearman == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minibatch": 0}, "minibatch must be an integer from 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive"),
        ({"warmup": 0}, "warmup must be an integer from 1"),
    ],
)
def test_bad_settings_of_the_training_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(WorldTraining(), **change)
