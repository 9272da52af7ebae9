"""An estimator and a likelihood from outside of the package run through the scaling study."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from isounc import register_estimator
from isounc.covariance import Diagonal
from isounc.estimates.estimators import ESTIMATORS, Linearised
from isounc.fit import MapSettings
from isounc.runs.folder import RunFolder
from isounc.runs.study import run_study
from isounc.sampling.settings import SamplerSettings
from isounc.studies.scaling.cell import _programs
from isounc.studies.scaling.figures import scaling_curves
from isounc.studies.scaling.settings import Settings
from isounc.studies.scaling.study import STUDY
from isounc.training import TrainSettings


def nine_fold(model, theta, evidence, num_chains):
    """Sigma = 9 I: nine times the isotropic estimate."""
    return Diagonal(jnp.full_like(theta, 3.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one cell with an estimator that is registered for it, and its rows."""
    register_estimator(
        "nine_fold",
        Linearised(
            nine_fold, label="nine times isotropic", points=("map", "draw"), by_group=True,
            quantities=("epistemic", "total"),
        ),
    )  # fmt: skip
    sampling = SamplerSettings(num_draws=40, max_draws=40, block=20, num_warmup=40, num_kept=16)
    settings = Settings(
        problems=("moons",), widths=(2,), num_seeds=1, n=24, sampling=sampling, retry="none",
        prior_sds=(10.0,),  # far from the data every unit is saturated
        map=MapSettings(num_restarts=1), train=TrainSettings(epochs=2), num_point_draws=2,
        num_averaged_draws=4, executor="serial", out=str(tmp_path_factory.mktemp("run")),
        cache="", figures="shown",
    )  # fmt: skip
    run_study(STUDY, settings)
    folder = RunFolder.load(settings.out)
    yield folder, folder.results.to_dict("records")
    del ESTIMATORS["nine_fold"]


def test_it_has_rows_whose_numbers_follow_from_those_of_isotropic(run):
    folder, rows = run

    def row_of(estimator, **which):
        which |= {"estimator": estimator, "region": "test"}
        return next(r for r in rows if all(r[k] == v for k, v in which.items()))

    mine = [row for row in rows if row["estimator"] == "nine_fold"]
    assert {row["point"] for row in mine} == {"map", "draw"}
    assert {row["quantity"] for row in mine if row["point"] == "map"} == {"epistemic", "total"}
    for point in ("map", "draw"):
        which = {"point": point, "quantity": "epistemic"}
        scaled, isotropic = (row_of(name, **which) for name in ("nine_fold", "isotropic"))
        assert scaled["pearson"] == pytest.approx(isotropic["pearson"], abs=1e-5)
        assert scaled["slope"] == pytest.approx(isotropic["slope"] / 9, rel=1e-5)
    (record,) = folder.records()
    scaled, isotropic = (
        record.arrays[f"grid/map/epistemic/{name}"] for name in ("nine_fold", "isotropic")
    )
    np.testing.assert_allclose(scaled, 9 * isotropic, rtol=1e-5)


def test_its_rows_have_correlations_without_the_two_valued_locations(run):
    folder, rows = run
    (record,) = folder.records()
    var, aleatoric, of_nine, of_isotropic = (
        record.arrays[f"far/{name}"][:, 0].astype(float)
        for name in (
            *("mcmc_var", "mcmc_aleatoric"),
            *("map/epistemic/nine_fold", "map/epistemic/isotropic"),
        )
    )
    left = var <= aleatoric
    assert 3 <= left.sum() < len(left)
    for row in rows:
        if row["region"] == "far" and row["quantity"] != "predictive":
            assert row["two_valued_share"] == pytest.approx((~left).mean(), abs=1e-5)
            assert row["n_points_not_two_valued"] == left.sum()
    for name, estimate in (("nine_fold", of_nine), ("isotropic", of_isotropic)):
        row = next(
            row
            for row in rows
            if (row["estimator"], row["point"], row["region"]) == (name, "map", "far")
            and row["quantity"] == "epistemic"
        )
        expected = np.corrcoef(estimate[left], var[left])[0, 1]
        assert row["pearson_not_two_valued"] == pytest.approx(expected, abs=1e-4)
        difference = row["pearson"] - row["pearson_not_two_valued"]
        assert row["pearson_from_two_valued"] == pytest.approx(difference, abs=1e-5)


def test_its_rows_have_partial_correlations_given_the_label_variance(run):
    folder, rows = run
    (record,) = folder.records()
    var, p, mine = (
        record.arrays[f"far/{name}"][:, 0].astype(float)
        for name in ("mcmc_var", "map/p", "map/epistemic/nine_fold")
    )
    design = np.column_stack([np.ones_like(p), p * (1 - p)])
    rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (mine, var)]
    at_map = {
        (row["estimator"], row["quantity"]): row
        for row in rows
        if row["point"] == "map" and row["region"] == "far"
    }
    expected = np.corrcoef(*rest)[0, 1]
    assert at_map["nine_fold", "epistemic"]["partial_pearson"] == pytest.approx(expected, abs=1e-3)
    own = at_map["null_aleatoric", "epistemic"]
    assert pd.isna(own["partial_pearson"])
    assert "partial Pearson undefined: given leaves nothing of the estimate" in own["reason"]
    # Only what estimates the variance of p can say something beyond its null.
    assert pd.isna(at_map["isotropic", "aleatoric"]["partial_pearson"])


def test_nulls_stand_wherever_the_isotropic_estimate_does(run):
    _, rows = run
    places = {
        name: {
            (row["point"], row["region"], row["class"])
            for row in rows
            if row["estimator"] == name and row["quantity"] == "epistemic"
        }
        for name in ("isotropic", "null_aleatoric", "null_squared", "null_distance", "logit_scaled")
    }
    assert len(places["isotropic"]) == 9
    assert all(where == places["isotropic"] for where in places.values())


def test_the_built_in_rows_keep_their_order(run):
    _, rows = run
    cheap = ["isotropic", "layer_scaled", "link_aware"]
    dear = [
        *("laplace", "laplace_diagonal"),
        *("oracle", "oracle_diagonal", "oracle_within_chain"),
    ]
    for point, expected in {
        "map": [*cheap, *dear],
        "trained": [*cheap, *dear],
        "draw": cheap,
        "posterior": ["posterior_averaged"],
    }.items():
        names = dict.fromkeys(row["estimator"] for row in rows if row["point"] == point)
        assert [name for name in names if name in expected] == expected


def test_it_is_in_the_legend_with_a_look_of_its_own(run):
    figure = scaling_curves(run[0], region="test", point="map")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "nine times isotropic" in legend
    # The gate fails with so few draws: its mark is hollow, and no other estimator's.
    drawn = {line.get_label(): line for ax in figure.axes for line in ax.lines}
    own = drawn.pop("_failed nine times isotropic")
    looks = {(line.get_color(), line.get_marker()) for line in drawn.values()}
    assert (own.get_color(), own.get_marker()) not in looks
    assert (run[0].path / "figures" / "scaling_test_map.png").is_file()


def test_estimators_that_form_no_gradient_share_a_program_with_the_built_in_ones(run):
    names = [group for group, _ in _programs("map")]
    no_gradient = [
        *("isotropic", "null_aleatoric", "null_squared", "null_distance", "logit_scaled"),
        *("logit_scaled_level", "link_aware", "layer_scaled", "nine_fold"),
    ]
    assert names == [
        no_gradient,
        ["laplace", "laplace_diagonal"],
        ["oracle", "oracle_within_chain", "oracle_diagonal"],
    ]
    # After one draw a chain there is no covariance of the draws.
    assert _programs("map", without=("draws",)) == _programs("map")[:2]
    assert _programs("draw") == [(no_gradient, ["data", "layer_sd", "prior_sd"])]
