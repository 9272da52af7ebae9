"""Predictive moments, kept draws and the gate's counts against the draws that made the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from isounc.models import make_model
from isounc.problems import Problem
from isounc.sampling import moments
from isounc.sampling.settings import GateSettings

CHAINS, BLOCKS, LENGTH = 2, 5, 40
SIZES = {"near": 7, "far": 4, "edge": 2}
NUM_LOCATIONS = 13


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    regions = {name: rng.normal(size=(size, 2)) for name, size in SIZES.items()}
    return Problem.from_arrays(rng.normal(size=(9, 2)), np.arange(9) % 2, regions=regions)


@pytest.fixture
def values():
    """Probabilities (K, draws, N), of chains and locations that differ."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(CHAINS, BLOCKS * LENGTH, NUM_LOCATIONS))
    logits = logits * np.linspace(0.2, 2, NUM_LOCATIONS)
    return 1 / (1 + np.exp(-logits - 0.1 * np.arange(CHAINS)[:, None, None]))


def blocks_of(p_of_draws, fixed, shift, **changes):
    """The draws as a driver gives them, with the row and number of each draw as its parameters."""
    rng, blocks = np.random.default_rng(2), []
    for b in range(BLOCKS):
        p = p_of_draws[:, b * LENGTH : (b + 1) * LENGTH]
        entropy = stats.entropy(np.stack([p, 1 - p]), axis=0)
        chain, draw = np.meshgrid(
            range(CHAINS), b * LENGTH + np.arange(0, LENGTH, 4), indexing="ij"
        )
        fields = {
            "shifted_mean": (p - shift).mean(1)[..., None],
            "shifted_square": ((p - shift) ** 2).mean(1)[..., None],
            "aleatoric": (p * (1 - p)).mean(1)[..., None],
            "entropy": entropy.mean(1),
            "values": p[:, :, fixed],
            "draws": np.stack([chain, draw, 0 * draw], axis=-1).astype(float),
            "energy": rng.normal(size=(CHAINS, LENGTH)),
            "divergent": np.array([1, b]),
            "saturated": np.array([0, 2]),
            "acceptance": np.full(CHAINS, 0.8),
            "num_gradients": np.full(CHAINS, 100),
        }
        blocks.append(moments.Block(**fields | changes))
    return blocks


def test_moments_and_their_errors_are_those_of_the_draws(problem, values):
    blocks = blocks_of(values, [0], shift=0.4)
    model = make_model(problem, width=2)
    found = moments.predictive_moments(problem, model, blocks, np.full((NUM_LOCATIONS, 1), 0.4))
    batches = values.reshape(CHAINS * BLOCKS, LENGTH, NUM_LOCATIONS)
    mean, var = values.mean((0, 1)), values.var((0, 1))

    def se(of_each_draw):
        return of_each_draw.mean(1).std(0, ddof=1) / np.sqrt(CHAINS * BLOCKS)

    label = batches * (1 - batches)
    entropy = stats.entropy(np.stack([batches, 1 - batches]), axis=0)
    expected = moments.Moments(
        mean=mean, mean_se=se(batches), var=var, var_se=se((batches - mean) ** 2),
        aleatoric=label.mean((0, 1)), aleatoric_se=se(label),
        expected_entropy=entropy.mean((0, 1)), expected_entropy_se=se(entropy),
        entropy=stats.entropy(np.stack([mean, 1 - mean]), axis=0),
    )  # fmt: skip
    for name, rows in (("near", slice(0, 7)), ("far", slice(7, 11)), ("edge", slice(11, 13))):
        for field, array in found[name]._asdict().items():
            ours = array if "entropy" in field else array[:, 0]
            theirs = getattr(expected, field)[rows]
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, err_msg=f"{name} {field}")
    assert list(found) == ["near", "far", "edge"]


def moments_of(p_of_draws, se=0.0):
    """Moments (N, M) of draws (S, N, M) of class probabilities."""
    p = np.array(p_of_draws, float)
    shape = p.shape[1:]
    nothing, error = np.zeros(shape[0]), np.full(shape, float(se))
    return moments.Moments(
        p.mean(0), error, p.var(0), error, (p * (1 - p)).mean(0), error, *[nothing] * 3
    )


def test_two_valued_by_hand():
    draws = [
        [0, 0, 0, 0.1, 0.2, 1e-6],
        [1, 0, 0.5, 0.9, 0.8, 1e-6],
        [1, 0, 0.5, 0.1, 0.2, 1e-6],
        [1, 0, 0.5, 0.9, 0.8, 1e-6],
    ]
    given = moments_of(np.array(draws)[..., None])
    (found,) = moments.two_valued(given, "bernoulli").values()
    # Var p and half of mean p (1 - mean p): 3/16, 3/32; 0, 0; 3/64, 15/128; .16, .125; .09, .125.
    assert found.mask.tolist() == [True, False, False, True, False, False]
    half = given.mean * (1 - given.mean) / 2
    np.testing.assert_array_equal(found.mask, (given.var > half)[:, 0])
    assert found.share == pytest.approx(1 / 3)
    assert not found.undecided.any()


def test_two_valued_at_a_tie_and_within_an_error_of_one():
    var = np.array([0.125, 0.13, 0.12, 0.13, 0.12])[:, None]
    se = np.array([0.0, 0.004, 0.004, 0.006, 0.006])[:, None]
    given = moments_of(np.full((1, 5, 1), 0.5))._replace(
        var=var, aleatoric=0.25 - var, var_se=se, aleatoric_se=se
    )
    found = moments.two_valued(given, "bernoulli")["1"]
    # Var p - E[p (1 - p)] is 0 or +-.01, against the sum of the errors.
    assert found.mask.tolist() == [False, True, False, True, False]
    assert found.undecided.tolist() == [False, False, False, True, True]
    assert found.share == pytest.approx(0.4)


def test_two_valued_by_class_and_over_classes():
    draws = [
        [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0], [0.98, 0.01, 0.01], [0.9, 0.05, 0.05]],
        [[0, 1, 0], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.9, 0], [0, 0.5, 0.5], [0.9, 0.05, 0.05]],
    ]
    given = moments_of(draws)
    found = moments.two_valued(given, "categorical")
    # The fourth: class 0 .2401 of .2499, class 1 .060025 of .189975, over classes .36015 of .62985.
    assert {name: view.mask.tolist() for name, view in found.items()} == {
        "trace": [True, False, True, True, False],
        "predicted": [True, False, True, True, False],
        "0": [True, False, True, True, False],
        "1": [True, False, True, False, False],
        "2": [False, False, False, False, False],
    }
    last = moments.two_valued(given, "categorical", p=np.tile([0.1, 0.2, 0.7], (5, 1)))
    np.testing.assert_array_equal(last["predicted"].mask, found["2"].mask)
    # Errors of three classes and of both parts add up: 6 x .01 against .45 less .15 and so on.
    unsure = moments.two_valued(moments_of(draws, se=0.01), "categorical")
    margin = (given.var - given.aleatoric).sum(1)
    np.testing.assert_array_equal(unsure["trace"].undecided, np.abs(margin) < 0.06)
    np.testing.assert_array_equal(
        unsure["2"].undecided, np.abs(given.var - given.aleatoric)[:, 2] < 0.02
    )
    assert unsure["2"].undecided.tolist() == [True, False, True, False, False]


def test_two_valued_is_undefined_where_nothing_is_a_probability():
    regression = moments_of(np.array([[[5.0]], [[-5.0]]]))
    assert moments.two_valued(regression, "gaussian") == {}
    with pytest.raises(ValueError, match="likelihood must be one of bernoulli"):
        moments.two_valued(regression, "binary")
    with pytest.raises(ValueError, match=r"p must have shape \(N, C\)"):
        moments.two_valued(regression, "categorical")
    with pytest.raises(TypeError, match="moments must be a Moments"):
        moments.two_valued({"var": regression.var}, "bernoulli")
    with pytest.raises(ValueError, match="must be finite"):
        moments.two_valued(regression._replace(var=np.array([[np.nan]])), "bernoulli")


def test_fixed_locations_are_evenly_spaced_rows(problem):
    found = moments.fixed_locations(problem, 4)
    assert [rows.tolist() for rows in found.values()] == [[0, 2, 4, 6], [0, 1, 2, 3], [0, 1]]
    np.testing.assert_array_equal(
        moments.flat_locations(problem, found), [0, 2, 4, 6, 7, 8, 9, 10, 11, 12]
    )
    some = moments.fixed_locations(problem, 3)
    np.testing.assert_array_equal(
        moments.flat_locations(problem, some), [0, 3, 6, 7, 9, 10, 11, 12]
    )
    every = moments.fixed_locations(problem, 64)
    np.testing.assert_array_equal(moments.flat_locations(problem, every), np.arange(NUM_LOCATIONS))


def test_kept_values_are_the_draws_at_the_fixed_locations_of_each_region(problem, values):
    locations = moments.fixed_locations(problem, 3)
    blocks = blocks_of(values, moments.flat_locations(problem, locations), shift=0.0)
    found = moments.kept_values(problem, blocks, locations)
    np.testing.assert_array_equal(found["near"][..., 0], values[:, :, [0, 3, 6]])
    np.testing.assert_array_equal(found["far"][..., 0], values[:, :, [7, 9, 10]])
    np.testing.assert_array_equal(found["edge"][..., 0], values[:, :, [11, 12]])
    # Three classes: the columns of a location stand together.
    three = Problem.from_arrays(problem.X, np.arange(9) % 3, regions=dict(problem.regions))
    columns = np.arange(2 * 5 * 24).reshape(2, 5, 24).astype(float)
    made = blocks_of(values, [0], 0.0, values=columns)
    found = moments.kept_values(three, made[:1], locations)
    np.testing.assert_array_equal(found["near"], columns[:, :, :9].reshape(2, 5, 3, 3))
    np.testing.assert_array_equal(found["far"], columns[:, :, 9:18].reshape(2, 5, 3, 3))


def test_kept_draws_are_evenly_spaced_in_each_chain(values):
    blocks = blocks_of(values, [0], shift=0.0)
    # 50 thinned draws of each chain, every fourth of 200.
    for asked, expected in (
        (1000, np.arange(0, 200, 4)),
        (10, [0, 48, 96, 148, 196]),
        (5, [0, 196]),
        (1, [0]),
    ):
        kept = moments.kept_draws(blocks, asked).reshape(CHAINS, -1, 3)
        np.testing.assert_array_equal(kept[..., 0], np.repeat([[0], [1]], len(expected), axis=1))
        np.testing.assert_array_equal(kept[..., 1], [expected, expected])


def test_the_gate_counts_over_all_blocks_and_chains(values):
    blocks = blocks_of(values, [0, 5], shift=0.0)
    gate = moments.judge(blocks, GateSettings())
    # Divergences 1 + b in block b, of 2 x 200 transitions.
    assert (gate.divergences, gate.num_saturated, gate.num_locations) == (15, 10, 2)
    assert gate.divergence_rate == pytest.approx(15 / 400)
    energy = np.concatenate([block.energy for block in blocks], axis=1)
    ebfmi = (np.diff(energy) ** 2).sum(1) / ((energy - energy.mean(1, keepdims=True)) ** 2).sum(1)
    assert gate.ebfmi_min == pytest.approx(ebfmi.min())
    assert moments.judge(blocks, GateSettings(), has_energy=False).ebfmi_min is None
    of_two = [
        block._replace(
            **{k: np.stack([0 * a, a]) for k, a in block._asdict().items() if a is not None}
        )
        for block in blocks
    ]
    again = moments.judge(moments.of_problem(of_two, 1), GateSettings())
    assert again._asdict() == gate._asdict()
