"""Figures against the numbers they show: artists are read back and compared with the records."""

from __future__ import annotations

import functools
import xml.etree.ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest

from isounc.estimates.estimators import ESTIMATORS
from isounc.runs.figures import draw_plots
from isounc.runs.folder import Record, RunFolder
from isounc.runs.style import NothingToDraw, save
from isounc.statistics import compare
from isounc.studies.scaling.comparisons import RESULT_COLUMNS
from isounc.studies.scaling.figures import plots
from isounc.studies.scaling.figures.curves import error_budget, scaling_curves, scaling_headline
from isounc.studies.scaling.figures.looks import estimator_look
from isounc.studies.scaling.figures.maps import uncertainty_maps
from isounc.studies.scaling.figures.scatter import scatter
from isounc.studies.scaling.paper import TABLE1, paper_value
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.summary import summarise
from tests.studies.scaling.synthetic_run import CONSTANT, FAILED, write_run

WIDTHS = (2, 8, 32)
PROBLEMS = ("xor", "rings3", "nonlinear_regression")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("figures") / "run", grid_size=9)


@pytest.fixture(scope="module")
def results(run):
    return Results.of(run)


@functools.cache
def _read(path):
    return RunFolder.load(path).results


def table(run):
    """Rows of the run, read once, as a copy that a test may change."""
    return _read(run.path).copy()


def panel(figure, problem):
    panels = [ax for ax in figure.axes if ax.get_title(loc="left").split(",")[0] == problem]
    assert len(panels) == 1
    return panels[0]


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def notes(ax):
    return [text.get_text() for text in ax.texts]


def label(estimator):
    return estimator_look(estimator).label


def rows_of(run, problem, estimator, *, point="map", region="test", quantity="epistemic"):
    name = {"rings3": "trace", "nonlinear_regression": "f"}.get(problem, "1")
    wanted = {
        "problem": problem, "estimator": estimator, "point": point, "region": region,
        "quantity": quantity, "class": name,
    }  # fmt: skip
    rows = table(run)
    return rows[(rows[list(wanted)] == pd.Series(wanted)).all(axis=1)]


def means(run, *which, statistic="pearson", **more):
    summary = summarise(rows_of(run, *which, **more)).set_index("width")
    return summary.loc[list(WIDTHS), f"{statistic}_mean"].to_numpy()


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "log10_pearson"])
def test_lines_are_the_means_of_the_summary(run, results, statistic):
    figure = scaling_curves(results, region="grid", point="map", statistic=statistic)
    wanted = {"region": "grid", "statistic": statistic}
    for problem in PROBLEMS:
        drawn = lines(panel(figure, problem))
        for estimator in ("isotropic", "link_aware", "laplace", "laplace_diagonal", "oracle"):
            line = drawn[label(estimator)]
            np.testing.assert_array_equal(line.get_xdata(), WIDTHS)
            expected = means(run, problem, estimator, **wanted)
            np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
        expected = means(run, problem, "posterior_averaged", point="posterior", **wanted)
        np.testing.assert_allclose(drawn[label("posterior_averaged")].get_ydata(), expected)


def test_undefined_is_a_gap_and_is_said(results):
    ax = panel(scaling_curves(results, region="test", point="map"), "xor")
    y = lines(ax)[label("isotropic")].get_ydata()
    assert np.isnan(y).tolist() == [False, False, True]
    assert notes(ax) == ["2 of 9 cells failed the gate", "undefined in 3 cells: isotropic"]
    ax = panel(scaling_curves(results, region="test", point="trained"), "xor")
    assert notes(ax) == ["2 of 9 cells failed the gate"]


def test_failed_cells_are_hollow_and_in_no_line(run, results):
    figure = scaling_curves(results, region="far", point="map")
    for problem in PROBLEMS:
        for estimator in ("isotropic", "laplace"):
            rows = rows_of(run, problem, estimator, region="far")
            failed = rows[rows["gate"] == "fail"]
            assert len(failed) == sum(cell[0] == problem for cell in FAILED)
            hollow = lines(panel(figure, problem)).get(f"_failed {label(estimator)}")
            if failed.empty:
                assert hollow is None
                continue
            assert hollow.get_markerfacecolor() == "white"
            assert hollow.get_linestyle() == "None"
            np.testing.assert_array_equal(hollow.get_xdata(), failed["width"])
            np.testing.assert_array_equal(hollow.get_ydata(), failed["pearson"])


def test_seeds_that_passed_are_dots(run, results):
    figure = scaling_curves(results, region="far", point="map")
    for problem in PROBLEMS:
        rows = rows_of(run, problem, "isotropic", region="far").dropna(subset="pearson")
        passed = rows.loc[rows["gate"] == "pass", ["width", "pearson"]].to_numpy().tolist()
        dots = lines(panel(figure, problem))[f"_seeds {label('isotropic')}"]
        assert sorted(np.stack(dots.get_data(), axis=1).tolist()) == sorted(passed)


def test_cell_that_failed_only_the_check_of_its_point(run):
    rows = table(run)
    cell = "problem == 'nonlinear_regression' and width == 8 and seed == 1 and point == 'map'"
    rows.loc[rows.eval(cell), "gate"] = "fail"
    figure = scaling_headline(Results(run, rows, {}, "changed rows"))
    assert notes(panel(figure, "nonlinear_regression")) == ["1 of 9 failed a point's check"]


def test_bands_are_intervals_of_two_seeds_or_more(run, results):
    ax = panel(scaling_curves(results, region="test", point="trained"), "xor")
    color = matplotlib.colors.to_rgb(estimator_look("isotropic").color)
    bands = [
        c for c in ax.collections
        if len(c.get_facecolor()) and tuple(c.get_facecolor()[0][:3]) == color
    ]  # fmt: skip
    assert len(bands) == 1
    vertices = np.concatenate([path.vertices for path in bands[0].get_paths()])
    # One seed passed at width 2, which makes no interval.
    assert set(vertices[:, 0]) == {8, 32}
    summary = summarise(rows_of(run, "xor", "isotropic", point="trained")).set_index("width")
    for width in (8, 32):
        ends = vertices[vertices[:, 0] == width, 1]
        assert ends.min() == pytest.approx(summary.loc[width, "pearson_low"])
        assert ends.max() == pytest.approx(summary.loc[width, "pearson_high"])
    assert np.isnan(summary.loc[2, "pearson_low"])


def test_an_interval_between_gaps_is_a_stroke(run):
    results = Results(run, table(run).query("width == 8"), {}, "one width")
    ax = panel(scaling_curves(results, region="test", point="map"), "rings3")
    row = summarise(rows_of(run, "rings3", "isotropic")).loc[1]
    strokes = [path.vertices for c in ax.collections for path in c.get_paths() if len(path) == 2]
    ends = [[8, row["pearson_low"]], [8, row["pearson_high"]]]
    assert any(np.allclose(stroke, ends) for stroke in strokes)


@pytest.mark.parametrize(
    ("quantity", "statistic", "expected"),
    [
        ("epistemic", "pearson", {"xor": 0.65, "rings3": 0.88, "nonlinear_regression": 0.73}),
        ("epistemic", "spearman", {"xor": 0.68, "rings3": 0.97, "nonlinear_regression": 0.81}),
        ("aleatoric", "pearson", {"xor": 0.76, "rings3": 0.96, "nonlinear_regression": None}),
        ("epistemic", "log10_pearson", dict.fromkeys(PROBLEMS)),
    ],
)
def test_paper_is_a_labelled_dashed_line(results, quantity, statistic, expected):
    figure = scaling_curves(
        results, region="test", point="map", quantity=quantity, statistic=statistic
    )
    for problem, value in expected.items():
        found = [ln for ln in panel(figure, problem).lines if "paper" in str(ln.get_label())]
        assert [ln.get_ydata()[0] for ln in found] == ([] if value is None else [value])
        assert all("width, region, prior unknown" in ln.get_label() for ln in found)
        assert all(ln.get_linestyle() == "--" for ln in found)


def test_table_of_the_paper_is_complete():
    assert set(TABLE1) == {
        *("linear", "xor", "rings", "clusters3", "spirals3", "rings3"),
        *("linear_regression", "nonlinear_regression"),
    }
    assert paper_value("linear_regression", "pearson", estimator="laplace") == 1.0
    assert paper_value("rings", "spearman", estimator="laplace") == 0.46
    assert paper_value("rings", "spearman", quantity="aleatoric") == 0.58
    for nothing in (
        paper_value("moons", "pearson"),
        paper_value("rings3", "pearson", estimator="laplace"),
        paper_value("xor", "pearson", estimator="oracle"),
        paper_value("xor", "pearson", quantity="total"),
    ):
        assert nothing is None


def test_panels_share_limits_that_hold_every_mean_and_seed(results):
    figure = scaling_curves(results, region="test", point="trained")
    limits = {ax.get_ylim() for ax in figure.axes}
    assert len(limits) == 1
    low, high = limits.pop()
    values = np.concatenate([np.ravel(ln.get_ydata()) for ax in figure.axes for ln in ax.lines])
    assert low < np.nanmin(values)
    assert np.nanmax(values) < high
    assert low <= 0
    assert high > 1
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["2", "8", "32"]
    assert figure.axes[0].get_xscale() == "log"


def test_layer_scaled_is_left_out_where_it_is_isotropic(run):
    assert label("layer_scaled") not in lines(
        panel(scaling_curves(run, region="test", point="map"), "rings3")
    )
    rows = table(run)
    cell = "estimator == 'layer_scaled' and problem == 'xor' and width == 8"
    rows.loc[rows.eval(cell), "pearson"] = 0.123
    changed = Results(run, rows, {}, "changed rows")
    assert label("layer_scaled") in lines(
        panel(scaling_curves(changed, region="test", point="map"), "rings3")
    )


def test_an_estimator_and_a_region_of_ones_own_are_drawn(run):
    rows = table(run).query("region == 'test'")
    rows = rows.replace({"region": {"test": "shifted"}, "estimator": {"laplace": "my_estimator"}})
    results = Results(run, rows, {}, "own rows")
    figure = scaling_curves(results, region="shifted", point="map")
    expected = means(run, "rings3", "laplace")
    drawn = lines(panel(figure, "rings3"))["my_estimator"]
    np.testing.assert_allclose(drawn.get_ydata(), expected)
    assert drawn.get_color() not in {estimator_look(name).color for name in ESTIMATORS}
    assert "shifted" in scaling_headline(results).get_suptitle()


def test_settings_of_the_model_make_panels_of_their_own(run):
    rows = table(run)
    more = rows.assign(prior_sd=1.0, parameterisation="standard")
    results = Results(run, pd.concat([rows, more]), {}, "two priors")
    figure = scaling_headline(results)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(titles) == len(set(titles)) == 6
    assert titles[0] == "xor (parameterisation ntk, prior_sd 2)"
    assert "variance grows with width" in figure.get_suptitle()
    assert "variance grows" not in scaling_headline(run).get_suptitle()
    slugs = {results.slug(setup) for setup in results.setups}
    assert len(slugs) == 6
    assert all("/" not in slug and " " not in slug for slug in slugs)


def test_headline_has_each_point_and_the_average(run, results):
    figure = scaling_headline(results)
    drawn = lines(panel(figure, "rings3"))
    expected = {
        "isotropic at the MAP": means(run, "rings3", "isotropic"),
        "isotropic at a trained network": means(run, "rings3", "isotropic", point="trained"),
        "isotropic at a posterior draw": means(run, "rings3", "isotropic", point="draw"),
        "isotropic averaged over draws": means(
            run, "rings3", "posterior_averaged", point="posterior"
        ),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(drawn[name].get_ydata(), values)
    assert "region: test" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {*expected, "paper (GN; width, region, prior unknown)"} < set(legend)
    assert any(text.startswith("hollow") for text in legend)


def test_headline_has_the_null_beside_each_point(run, results):
    figure = scaling_headline(results)
    drawn = lines(panel(figure, "rings3"))
    beside = {"map": "the MAP", "trained": "a trained network", "draw": "a posterior draw"}
    for point, words in beside.items():
        null, isotropic = drawn[f"null: p(1−p) at {words}"], drawn[f"isotropic at {words}"]
        expected = means(run, "rings3", "null_aleatoric", point=point)
        np.testing.assert_allclose(null.get_ydata(), expected)
        assert null.get_linestyle() == ":"
        assert null.get_color() == isotropic.get_color()
    assert not any("distance" in name for name in drawn)
    # p(1-p) of a regression is its constant noise.
    drawn = lines(panel(figure, "nonlinear_regression"))
    expected = means(run, "nonlinear_regression", "null_distance")
    np.testing.assert_allclose(drawn[label("null_distance")].get_ydata(), expected)
    assert not any("p(1−p)" in name for name in drawn)
    assert notes(panel(figure, "nonlinear_regression")) == []
    rows = table(run)
    before = Results(run, rows[~rows["estimator"].str.startswith("null")], {}, "before the nulls")
    assert "beside the null" in figure.get_suptitle()
    figure = scaling_headline(before)
    assert not any("null" in name for name in lines(panel(figure, "rings3")))
    assert "null" not in figure.get_suptitle()


def test_curves_leave_out_what_regression_makes_constant_or_equal(results):
    figure = scaling_curves(results, region="test", point="map")
    both = {label("isotropic"), label("null_distance")}
    others = {label(name) for name in ("null_aleatoric", "null_squared", "logit_scaled")}
    assert both | others < set(lines(panel(figure, "rings3")))
    of_regression = set(lines(panel(figure, "nonlinear_regression")))
    assert both < of_regression
    assert not others & of_regression


def test_no_legend_of_hollow_markers_where_no_cell_failed(run):
    figure = scaling_headline(Results(run, table(run).query("gate == 'pass'"), {}, "passed"))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert not any(text.startswith("hollow") for text in legend)


def test_colours_are_named_where_every_cell_failed(run):
    rows = table(run).assign(gate="fail")
    figure = scaling_curves(Results(run, rows, {}, "failed"), region="far", point="map")
    named = dict(zip((t.get_text() for t in figure.legends[0].get_texts()),
                     figure.legends[0].legend_handles, strict=True))  # fmt: skip
    for estimator in ("isotropic", "laplace"):
        drawn = lines(panel(figure, "xor"))[f"_failed {label(estimator)}"]
        assert named[label(estimator)].get_markeredgecolor() == drawn.get_markeredgecolor()


def test_bars_of_the_budget_are_the_means(run, results):
    ax = panel(error_budget(results, region="grid"), "rings3")
    estimators = (
        *("posterior_averaged", "oracle", "oracle_within_chain", "isotropic", "link_aware"),
        *("logit_scaled", "null_aleatoric"),
    )
    color = {matplotlib.colors.to_hex(p.get_facecolor()): [] for p in ax.patches}
    for patch in sorted(ax.patches, key=lambda p: p.get_x()):
        color[matplotlib.colors.to_hex(patch.get_facecolor())].append(patch.get_height())
    assert len(color) == len(estimators)
    for estimator in estimators:
        point = "posterior" if estimator == "posterior_averaged" else "map"
        expected = means(run, "rings3", estimator, point=point, region="grid")
        found = color[estimator_look(estimator).color.lower()]
        np.testing.assert_allclose(found, expected)
    assert notes(ax) == ["1 of 9 cells failed the gate"]


def test_budget_says_what_is_undefined_or_failed(run):
    rows = table(run)
    rows.loc[rows.eval("problem == 'rings3' and width == 2"), "gate"] = "fail"
    figure = error_budget(Results(run, rows, {}, "changed rows"), region="test")
    assert notes(panel(figure, "xor")).count("undefined") == 1
    assert notes(panel(figure, "rings3")).count("gate failed") == 7
    assert notes(panel(figure, "nonlinear_regression")) == []


def cell(problem, width=32, seed=0):
    return f"{problem}-w{width}-s{seed}"


@pytest.mark.parametrize("problem", ["xor", "rings3"])
def test_maps_show_the_arrays_the_right_way_round(run, results, problem):
    arrays = run.read(cell(problem)).arrays
    figure = uncertainty_maps(results, cell(problem))
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.images}
    expected = {
        "MCMC epistemic": "grid/mcmc_var",
        "logit-scaled": "grid/map/epistemic/logit_scaled",
        "null: p(1−p),": "grid/map/epistemic/null_aleatoric",
        "MCMC aleatoric": "grid/mcmc_aleatoric",
        "Point p(1−p),": "grid/map/aleatoric",
        "Point p(1−p) −": "grid/map/aleatoric_corrected",
    }
    x, y = arrays["grid/X"].T
    for start, key in expected.items():
        (ax,) = [a for title, a in panels.items() if title.startswith(start)]
        shown, extent = ax.images[0].get_array(), ax.images[0].get_extent()
        assert ax.images[0].origin == "lower"
        assert shown.shape == (9, 9)
        # Row and column of each location by its own coordinates: x to the right, y upwards.
        column = ((x - extent[0]) / (extent[1] - extent[0]) * 9).astype(int)
        row = ((y - extent[2]) / (extent[3] - extent[2]) * 9).astype(int)
        np.testing.assert_allclose(shown[row, column], arrays[key].sum(axis=1))
        data = np.concatenate([np.stack(line.get_data(), axis=1) for line in ax.lines])
        np.testing.assert_allclose(np.sort(data, axis=0), np.sort(arrays["X"], axis=0))
    reference = arrays["grid/mcmc_var"].sum(axis=1)
    r = compare(arrays["grid/map/epistemic/logit_scaled"].sum(axis=1), reference).pearson
    assert f"logit-scaled, r = {r:.2f}" in panels
    if (problem, 32, 0) in CONSTANT:
        assert f"{label('isotropic')}, r undefined" in panels


def rewritten(run, tmp_path, change):
    """Two cells of the run again, with the arrays of the first changed."""
    copy = RunFolder.open(tmp_path / "copy", run.settings)
    record, other = run.read(cell("xor")), run.read(cell("xor", seed=1))
    copy.write(Record(record.name, record.meta, change(dict(record.arrays))))
    copy.write(other)
    return copy


def test_maps_do_not_depend_on_the_order_of_the_grid(run, tmp_path):
    def shuffle(arrays):
        order = np.random.default_rng(0).permutation(len(arrays["grid/X"]))
        return {k: v[order] if k.startswith("grid/") else v for k, v in arrays.items()}

    before = uncertainty_maps(run, cell("xor"))
    after = uncertainty_maps(rewritten(run, tmp_path, shuffle), cell("xor"))
    for one, other in zip(before.axes, after.axes, strict=True):
        for image, moved in zip(one.images, other.images, strict=True):
            np.testing.assert_array_equal(image.get_array(), moved.get_array())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: {k: v for k, v in a.items() if not k.startswith("grid/")}, "no region 'grid'"),
        (lambda a: {k: v for k, v in a.items() if "/map/" not in k}, "no estimates at point 'map'"),
        (lambda a: a | {"grid/X": a["grid/X"] + np.arange(81)[:, None] / 1e3}, "not a mesh"),
        (lambda a: a | {"grid/X": np.tile(a["grid/X"], 2)}, "4 inputs"),
    ],
)
def test_maps_that_cannot_be_drawn_say_why(run, tmp_path, change, why):
    copy = rewritten(run, tmp_path, change)
    with pytest.raises(NothingToDraw, match=why):
        uncertainty_maps(copy, cell("xor"))
    # The truth is optional.
    assert uncertainty_maps(copy, cell("xor", seed=1))


def test_map_without_truth_says_so(run, tmp_path):
    copy = rewritten(run, tmp_path, lambda a: {k: v for k, v in a.items() if "p_true" not in k})
    titles = [ax.get_title() for ax in uncertainty_maps(copy, cell("xor")).axes]
    assert "Truth, p(y = 1): not in the record" in titles


def test_one_input_shows_two_sds_and_estimates_at_their_level(run, results):
    arrays = run.read(cell("nonlinear_regression")).arrays
    figure = uncertainty_maps(results, cell("nonlinear_regression"))
    top, bottom = figure.axes
    x = arrays["grid/X"][:, 0]
    sd = np.sqrt(arrays["grid/mcmc_var"][:, 0])
    vertices = top.collections[0].get_paths()[0].vertices
    for sign in (-1, 1):
        line = np.stack([x, arrays["grid/mcmc_mean"][:, 0] + sign * 2 * sd], axis=1)
        assert all(np.abs(vertices - point).sum(axis=1).min() < 1e-12 for point in line)
    level = compare(
        arrays["test/map/epistemic/isotropic"][:, 0], arrays["test/mcmc_var"][:, 0]
    ).slope
    (line,) = [ln for ln in bottom.lines if str(ln.get_label()).startswith(label("isotropic"))]
    expected = np.sqrt(level * arrays["grid/map/epistemic/isotropic"][:, 0])
    np.testing.assert_allclose(line.get_ydata(), expected)
    (data,) = [ln for ln in top.lines if ln.get_label() == "training data"]
    np.testing.assert_array_equal(data.get_ydata(), arrays["y"])


def test_scatter_shows_every_positive_location_with_its_error(run, results):
    arrays = run.read(cell("rings3")).arrays
    figure = scatter(results, cell("rings3"))
    panels = {ax.get_title(loc="left").split(", σ²")[0]: ax for ax in figure.axes}
    assert set(panels) == {label(name) for name in ESTIMATORS}
    for estimator in ("isotropic", "posterior_averaged"):
        ax = panels[label(estimator)]
        point = "posterior" if estimator == "posterior_averaged" else "map"
        assert ax.get_xscale() == ax.get_yscale() == "log"
        shown, correlations = 0, []
        for region in ("test", "grid", "far"):
            estimate = arrays[f"{region}/{point}/epistemic/{estimator}"].sum(axis=1)
            reference = arrays[f"{region}/mcmc_var"].sum(axis=1)
            correlations.append(f"{region} {compare(estimate, reference).pearson:.2f}")
            x, y = lines(ax)[f"region {region}"].get_data()
            shown += len(x)
            kept = np.isin(estimate, x)
            np.testing.assert_array_equal(estimate[kept], x)
            np.testing.assert_array_equal(reference[kept], y)
        (note,) = notes(ax)
        assert note.startswith("r: " + ", ".join(correlations))
        total = sum(len(arrays[f"{region}/X"]) for region in ("test", "grid", "far"))
        hidden = int(note.split("; ")[1].split()[0]) if ";" in note else 0
        assert shown + hidden == total
        assert shown > total / 2
        x, y = lines(ax)["region test"].get_data()
        se = arrays["test/mcmc_var_se"].sum(axis=1)[np.isin(arrays["test/mcmc_var"].sum(axis=1), y)]
        bars = np.stack(lines(ax)["_error test"].get_data(), axis=1).reshape(len(x), 3, 2)
        np.testing.assert_allclose(bars[:, 0], np.stack([x, y - se], axis=1))
        np.testing.assert_allclose(bars[:, 1], np.stack([x, y + se], axis=1))
        assert np.isnan(bars[:, 2, 1]).all()


def test_scatter_of_a_constant_and_of_zeros(run, results, tmp_path):
    ax = next(a for a in scatter(results, cell("xor")).axes if "isotropic" in a.get_title("left"))
    assert "test undef." in notes(ax)[0]

    def zero(arrays):
        wanted = "map/epistemic/oracle"
        return {k: np.zeros_like(v) if k.endswith(wanted) else v for k, v in arrays.items()}

    figure = scatter(rewritten(run, tmp_path, zero), cell("xor"))
    ax = next(a for a in figure.axes if a.get_title("left") == label("oracle"))
    assert "no positive values" in notes(ax)


def test_title_says_that_the_gate_failed(results):
    assert "failed its gate" in scatter(results, cell("xor", 2, 0)).get_suptitle()
    assert "failed" not in scatter(results, cell("xor", 8, 0)).get_suptitle()


def test_shown_cell_is_the_widest_that_passed(results):
    setups = {setup.problem: setup for setup in results.setups}
    assert results.shown_cell(setups["xor"]).name == cell("xor")
    later = [c for c in results.cells if not (c.width == 32 and c.seed == 0)]
    metas = {c.name: c.meta for c in later if c.setup == setups["rings3"]}
    # Seed 1 failed its gate at this width.
    some = Results(results.run, results.rows.iloc[:0], metas, "some cells")
    shown = some.shown_cell(setups["rings3"])
    assert shown.name == cell("rings3", 32, 2)


def files_of(results):
    drawn = draw_plots(plots(results), results.run.path / "figures")
    return [path for figure in drawn for path in figure.paths]


def test_every_figure_is_written_as_png_and_svg(tmp_path):
    run = write_run(
        tmp_path / "run", problems=("xor",), widths=(2, 32), seeds=(0, 1),
        regions=("grid",), points=("map", "posterior"), grid_size=5,
    )  # fmt: skip
    paths = files_of(Results.of(RunFolder.load(run.path)))
    names = ["scaling", "scaling_grid_map", "error_budget_grid", "maps_xor", "scatter_xor"]
    assert [p.name for p in paths] == [f"{n}.{end}" for n in names for end in ("png", "svg")]
    assert sorted(p.name for p in (run.path / "figures").iterdir()) == sorted(p.name for p in paths)
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n")
        else:
            root = xml.etree.ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg")


def test_skipped_figures_have_a_reason(tmp_path):
    run = write_run(
        tmp_path / "run", problems=("wine",), widths=(2,), seeds=(0,), points=("map",),
        regions=("test",),
    )  # fmt: skip
    metas = {record.name: record.meta for record in run.records()}
    results = Results(run, table(run).iloc[:0], metas, "no rows")
    figures = draw_plots(plots(results), run.path / "figures")
    assert [(d.name, d.kind, len(d.paths)) for d in figures] == [
        ("maps_wine", "maps", 0),
        ("scatter_wine", "scatter", 2),
    ]
    assert "no region 'grid'" in figures[0].reason
    assert figures[1].reason == ""


def test_equal_figures_give_equal_files(results, tmp_path):
    one, other = (
        save(error_budget(results, region="test"), tmp_path / folder / "budget")
        for folder in ("one", "other")
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_unfinished_run_is_drawn_from_its_records(run, tmp_path):
    settings = {"problems": ("xor",), "widths": (2, 8), "grid_size": 5}
    unfinished = write_run(tmp_path / "unfinished", tables=False, **settings)
    finished = write_run(tmp_path / "finished", **settings)
    assert "no results.csv" in Results.of(unfinished).source
    one, other = (
        lines(panel(scaling_curves(r, region="test", point="map"), "xor"))
        for r in (unfinished, finished)
    )
    assert set(one) == set(other)
    for name, line in one.items():
        # A table keeps six digits.
        np.testing.assert_allclose(line.get_ydata(), other[name].get_ydata(), rtol=1e-5)


def test_run_without_regions_records_or_anything(run, tmp_path):
    empty = RunFolder.open(tmp_path / "empty", {})
    assert files_of(Results.of(empty)) == []
    with pytest.raises(NothingToDraw, match="no result rows"):
        scaling_headline(empty)
    with pytest.raises(NothingToDraw, match="no records"):
        scatter(empty, "cell")
    only_table = RunFolder.open(tmp_path / "table", {})
    rows = table(run).query("region == 'far' and point == 'map'")
    only_table.write_table("results.csv", rows, RESULT_COLUMNS)
    names = [path.stem for path in files_of(Results.of(only_table))]
    assert names[::2] == ["scaling", "scaling_far_map", "error_budget_far"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: scaling_curves(r, region="gird", point="map"), "region .* mean 'grid'"),
        (lambda r: scaling_curves(r, region="grid", point="maps"), "point .* mean 'map'"),
        (
            lambda r: scaling_curves(r, region="grid", point="map", statistic="pearsson"),
            "statistic .* mean 'pearson'",
        ),
        (
            lambda r: scaling_curves(r, region="grid", point="map", quantity="predictive"),
            "quantity must be one of",
        ),
        (lambda r: error_budget(r, region="tests"), "region .* mean 'test'"),
        (lambda r: scatter(r, "xor-w32"), "cell_name must be one of .* mean 'xor-w32-s"),
    ],
)
def test_wrong_names_are_refused_with_near_matches(results, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(results)


def test_table_without_a_column_is_refused(tmp_path):
    run = RunFolder.open(tmp_path / "run", {})
    run.write_table("results.csv", [{"problem": "xor", "width": 2}], ("problem", "width"))
    with pytest.raises(
        ValueError, match=r"results.csv .* must have the columns .* got none of \['depth'"
    ):
        Results.of(run)


def test_colours_and_markers_tell_estimators_apart():
    looks = [estimator_look(name) for name in ESTIMATORS]
    for part in ("label", "color", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(looks)


def test_drawing_leaves_the_settings_of_matplotlib_alone(results):
    before = dict(matplotlib.rcParams)
    scaling_headline(results)
    assert dict(matplotlib.rcParams) == before
