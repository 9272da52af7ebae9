"""The report and the tables: numbers against the summary, self-contained, escaped, never half."""

from __future__ import annotations

import base64
import functools
import html.parser
import re

import numpy as np
import pandas as pd
import pytest

from isounc.__main__ import main
from isounc.estimates.estimators import ESTIMATORS
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile
from isounc.runs.study import report_run
from isounc.runs.tables import settings_table
from isounc.statistics import trend
from isounc.studies.scaling import null, report, tables
from isounc.studies.scaling.comparisons import RESULT_COLUMNS
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.study import STUDY
from isounc.studies.scaling.summary import summarise
from tests.studies.scaling.synthetic_run import HOSTILE, write_run

WIDTHS = (2, 8, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "a <b>run & co"
    return write_run(path, grid_size=5, note='<img src="http://example.org/x.png"> | `x` *y*')


@pytest.fixture(scope="module")
def results(run):
    return Results.of(run)


def quick_figures(plots, folder, *, shown_alone):
    """In place of figures that take a second each: as many as a section must cope with."""
    drawn = []
    for name, kind in (
        *(("scaling", "headline"), ("scaling_test_map", "scaling"), ("scaling_far_map", "scaling")),
        *(("error_budget_test", "budget"), ("maps_xor", "maps"), ("scatter_xor", "scatter")),
    ):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x89PNG " + name.encode())
        drawn.append(
            FigureFile(name, kind, f"What {name} shows, for <those> who listen.", (path,), "")
        )
    return [*drawn, FigureFile("maps_wine", "maps", "Nothing.", (), "wine has <no> grid")]


def page_of(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isounc.runs.figures.draw_plots", quick_figures)
        report_run(STUDY, RunFolder.load(run.path, writable=True))
    return run.path / "report.html"


@pytest.fixture(scope="module")
def page(run):
    return page_of(RunFolder.load(run.path))


@functools.cache
def _read(path):
    return RunFolder.load(path).results


def table(run):
    """Rows of the run, read once, as a copy that a test may change."""
    return _read(run.path).copy()


class Page(html.parser.HTMLParser):
    """Tags and their attributes, texts of tables, and whether every tag is closed."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page.read_text(encoding="utf-8"))


def test_page_loads_and_runs_nothing(parsed):
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "svg"}
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "data", "poster", "action"):
                assert value.startswith("data:image/png;base64,")
            if name == "href":
                assert tag == "a"
                assert value.startswith("#")
    policy = [a for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_page_holds_every_figure_with_a_caption(run, parsed):
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    figures = list((run.path / "figures").glob("*.png"))
    assert len(images) == len(figures) == 6
    held = {base64.b64decode(image["src"].split(",")[1]) for image in images}
    assert held == {path.read_bytes() for path in figures}
    assert all(len(image["alt"]) > 20 for image in images)


def test_page_can_be_found_one_s_way_in(parsed):
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for tag, a in parsed.tags if tag == "a"]
    assert links == ids
    assert parsed.tags[0] == ("html", {"lang": "en"})
    heads = [a["scope"] for tag, a in parsed.tags if tag == "th"]
    assert {"col", "row"} == set(heads)
    assert [tag for tag, _ in parsed.tags].count("h1") == 1


def test_text_of_the_run_is_escaped(page, parsed):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "example.org/x.png&#34;" in text
    shown = "".join(parsed.text)
    assert HOSTILE in shown
    assert "a <b>run & co" in shown
    assert not [tag for tag, _ in parsed.tags if tag == "b"]
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "<" not in markdown
    assert "\\| \\`x\\` \\*y\\*" in markdown
    assert "&lt;script&gt;" in markdown


def test_page_says_what_must_be_known(parsed):
    shown = " ".join("".join(parsed.text).split())
    for wanted in (
        "24 of 27 cells passed the gate", "3 failed and are in no number below", "drawn hollow",
        "Gate of the reference posterior", "Checks of the point estimates", "Trend with width",
        "Level of the estimates", "Aleatoric part", "Calibration of the predictions",
        "Undefined correlations", "estimate is constant", "versions.jax", "0.0.1", "device.kind",
        "widths", "2, 8, 32", "arXiv 2603.29466",
        "width, region, prior unknown", "maps_wine: wine has <no> grid",
    ):  # fmt: skip
        assert wanted in shown


def test_markdown_points_to_the_figures(page):
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert len(links) == 6
    assert all((page.parent / link).is_file() for link in links)
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1


def test_report_changes_no_record(tmp_path):
    run = write_run(tmp_path / "run", problems=("xor",), widths=(2,), seeds=(0,), grid_size=5)

    def content():
        outputs = ("report.html", "report.md", "summary.csv", "info.json")
        return {
            path: path.read_bytes()
            for path in run.path.rglob("*")
            if path.is_file() and path.parent.name != "figures" and path.name not in outputs
        }

    before = content()
    first = page_of(run).read_bytes()
    assert content() == before
    assert page_of(run).read_bytes() == first


def find(table, *start):
    rows = [row for row in table.rows if row[: len(start)] == start]
    assert len(rows) == 1
    return dict(zip(table.columns, rows[0], strict=True))


def summary_of(run, problem, estimator, width, *, name, point="map", **more):
    wanted = {
        "problem": problem, "estimator": estimator, "width": width, "point": point,
        "region": "test", "class": name, "quantity": "epistemic", **more,
    }  # fmt: skip
    rows = table(run)
    (row,) = summarise(rows[(rows[list(wanted)] == pd.Series(wanted)).all(axis=1)]).to_dict(
        "records"
    )
    return row


def test_gate_table_counts_and_says_why(results):
    table = tables.gate_table(results)
    assert len(table.rows) == 9
    failed = find(table, "xor", "2")
    assert failed["passed"] == "1 of 3"
    assert failed["largest R-hat"] == "1.4000"
    assert failed["least bulk ESS"] == "12"
    assert failed["least tail ESS"] == "900"  # None in the seeds that failed
    assert failed["failed because"] == f"{HOSTILE} (seed 0, 2)"
    passed = find(table, "xor", "8")
    assert (passed["passed"], passed["failed because"]) == ("3 of 3", "")
    assert 0.9 < float(passed["least attenuation"]) < 1


def test_point_table_has_every_point(results):
    table = tables.point_table(results)
    assert len(table.rows) == 27
    row = find(table, "rings3", "8", "trained")
    assert row["passed"] == "3 of 3"
    assert row["largest relative gradient norm"] == "1.0e-07"


def test_paper_table_has_the_largest_width_beside_the_paper(run, results):
    table = tables.paper_table(results)
    row = summary_of(run, "rings3", "isotropic", 32, name="trace")
    pearson = [f"{row[f'pearson_{part}']:.2f}" for part in ("mean", "low", "high")]
    spearman = [f"{row[f'spearman_{part}']:.2f}" for part in ("mean", "low", "high")]
    cells = ("{} [{}, {}]".format(*pearson), "0.88", "{} [{}, {}]".format(*spearman), "0.97")
    assert ("rings3", "32", "isotropic", "2/3", *cells) in table.rows
    assert ("xor", "32", "isotropic", "0/3", "undefined", "0.65", "undefined", "0.68") in table.rows
    names = [row[2] for row in table.rows]
    # The noise variance of a regression is the same everywhere.
    # Nor is there a link that could make its logit_scaled another order than isotropic.
    classes = ["isotropic", "null p(1−p)", "logit_scaled", "laplace", "aleatoric"]
    assert names == classes * 2 + ["isotropic", "distance", "laplace"]


def test_level_table_has_geometric_means(run, results):
    row = summary_of(run, "xor", "laplace", 8, name="1")
    parts = [f"{row[f'slope_{part}']:.3g}" for part in ("mean", "low", "high")]
    assert find(tables.level_table(results), "xor", "8")["laplace"] == "{} [{}, {}]".format(*parts)
    one = summary_of(run, "xor", "laplace", 2, name="1")
    assert find(tables.level_table(results), "xor", "2")["laplace"] == f"{one['slope_mean']:.3g}"


def test_aleatoric_table_compares_both(run, results):
    row = find(tables.aleatoric_table(results), "xor", "32", "map", "test")
    for column, quantity in (("aleatoric", "aleatoric"), ("corrected", "aleatoric_corrected")):
        expected = summary_of(run, "xor", "isotropic", 32, name="1", quantity=quantity)
        assert row[f"Pearson, {column}"].startswith(f"{expected['pearson_mean']:.2f} [")
        assert row[f"level, {column}"].startswith(f"{expected['slope_mean']:.3g} [")


def test_predictive_table_stands_beside_mcmc(results):
    row = find(tables.predictive_table(results), "rings3", "8", "draw", "test")
    assert row["NLL"] == "0.50 [0.50, 0.50]"
    assert row["MCMC NLL"] == "0.40 [0.40, 0.40]"
    assert row["MCMC ECE"] == "0.05 [0.05, 0.05]"
    assert row["seeds"] == "3/3"


def test_trend_table_is_the_trend_of_the_summary(run, results):
    seeds: dict = {seed: dict.fromkeys(WIDTHS) for seed in (0, 1, 2)}
    wanted = {
        "problem": "rings3", "estimator": "isotropic", "point": "trained", "region": "far",
        "class": "trace", "quantity": "epistemic",
    }  # fmt: skip
    for row in table(run).to_dict("records"):
        if all(row[k] == v for k, v in wanted.items()) and row["gate"] == "pass":
            seeds[row["seed"]][row["width"]] = row["pearson"]
    expected = trend(WIDTHS, {s: list(values.values()) for s, values in seeds.items()})
    row = find(tables.trend_table(results), "rings3", "isotropic", "trained")
    numbers = f"{expected.slope_mean:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}]"
    assert row["region far"] == f"{numbers} {expected.verdict}"


def test_trend_finds_what_improves_and_what_declines(run):
    rows = table(run)
    changed = rows.eval("estimator == 'isotropic' and quantity == 'epistemic'")
    sign = np.where(rows["point"] == "map", 1, -1)
    pearson = sign * (0.1 * rows["width"] ** 0.5 + 0.001 * rows["seed"])
    rows = rows.assign(
        pearson=rows["pearson"].mask(changed, pearson), gate=rows["gate"].mask(changed, "pass")
    )
    found = tables.trend_table(Results(run, rows, {}, "changed rows"))
    for point, verdict in (("map", "improves"), ("trained", "declines")):
        assert find(found, "xor", "isotropic", point)["region test"].endswith(verdict)
    one = Results(run, rows.query("seed == 0"), {}, "one seed")
    cell = find(tables.trend_table(one), "xor", "isotropic", "map")["region test"]
    assert cell.endswith("undecided (one seed)")
    narrow = Results(run, rows.query("width == 2"), {}, "one width")
    assert tables.trend_table(narrow).rows == []
    standard = rows.assign(parameterisation="standard")
    assert "confounds" in tables.trend_table(Results(run, standard, {}, "standard")).note
    assert "confounds" not in found.note


@pytest.mark.parametrize("statistic", ["pearson", "partial_pearson", "partial_spearman"])
def test_table_beside_the_null_is_that_of_the_summary(run, results, statistic):
    found = null.beside_null_table(results, statistic)
    for estimator in ("isotropic", "logit_scaled", "laplace", "link_aware"):
        row = summary_of(run, "rings3", estimator, 32, name="trace", region="far")
        parts = [f"{row[f'{statistic}_{part}']:.2f}" for part in ("mean", "low", "high")]
        cell = find(found, "rings3", "32", "far", "map")[estimator]
        assert cell == "{} [{}, {}]".format(*parts)
    own = find(found, "rings3", "32", "far", "map")["null_aleatoric"]
    assert (own == "undefined") == statistic.startswith("partial")
    regression = find(found, "nonlinear_regression", "32", "test", "map")
    assert (regression["isotropic"] == "undefined") == statistic.startswith("partial")
    assert find(found, "rings3", "32", "test", "draw")["laplace"] == "-"


def test_the_page_has_the_nulls_where_a_run_has_them(run, results):
    assert [len(table.rows) for table in null.null_section(results).tables] == [27] * 4
    rows = table(run)
    before = Results(run, rows[~rows["estimator"].str.startswith("null")], {}, "before the nulls")
    assert null.null_section(before).tables == ()


def test_undefined_table_gives_widths_and_reasons(results):
    row = find(tables.undefined_table(results), "xor", "map", "test", "isotropic")
    assert (row["widths"], row["cells"]) == ("32", "3")
    assert "constant" in row["reason"]


def test_every_estimate_of_a_run_is_explained_on_its_page(results):
    assert all(estimator.about for estimator in ESTIMATORS.values())
    rows = tables.estimate_table(results).rows
    assert {row[0] for row in rows} == set(results.rows["estimator"])
    assert ("oracle", "oracle Σ", ESTIMATORS["oracle"].about) in rows


def test_cost_table_adds_up(results):
    row = find(tables.cost_table(results), "rings3")
    assert (row["cells"], row["fit"], row["total"]) == ("9", "9.0", "31.5")


def test_settings_are_shown_whatever_they_are():
    settings = {"widths": [2, 4], "sampler": {"chains": 4, "more": {"x": 0.1}}, "none": None}
    table = settings_table(settings | {"empty": {}, "on": True}, "Settings")
    assert dict(table.rows) == {
        "widths": "2, 4", "sampler.chains": "4", "sampler.more.x": "0.1", "none": "-",
        "empty": "{}", "on": "yes",
    }  # fmt: skip


def test_summary_table_fits_a_terminal(run, results):
    text = report.summary_table(run)
    assert max(map(len, text.splitlines())) <= 100
    row = summary_of(run, "rings3", "laplace", 32, name="trace")
    (line,) = [x for x in text.splitlines() if "laplace" in x and f"{row['pearson_mean']:.2f}" in x]
    assert "2/3" in line
    assert re.search(r"xor +32 +isotropic +0/3 +undefined +0\.65 +undefined +0\.68", text)
    assert "2603.29466" in text
    xor = results.rows.query("problem == 'xor'").assign(problem="a_problem_with_a_long_name")
    two = pd.concat([xor.assign(depth=depth) for depth in (1, 2)])
    text = report.summary_table(Results(run, two, {}, "two depths"))
    assert max(map(len, text.splitlines())) <= 100
    assert "a_problem_with_a_long_name (depth 1)" in text
    assert "a_problem_with_a_long_name (depth 2)" in text


def test_empty_run_has_a_report_that_says_so(tmp_path):
    run = RunFolder.open(tmp_path / "run", {"widths": [2]})
    text = page_of(run).read_text(encoding="utf-8")
    assert "holds no results yet" in text
    assert "Settings" in text
    assert "no result rows" in report.summary_table(run)


def test_table_without_records_and_records_without_table(run, tmp_path):
    only_table = RunFolder.open(tmp_path / "table", {})
    only_table.write_table("results.csv", table(run).query("region == 'test'"), RESULT_COLUMNS)
    text = page_of(only_table).read_text(encoding="utf-8")
    assert "no gate results, maps or scatter plots" in text
    assert "Trend with width" in text
    few = {"problems": ("xor",), "widths": (2,), "seeds": (0, 2), "grid_size": 5}
    unfinished = write_run(tmp_path / "unfinished", tables=False, **few)
    text = page_of(unfinished).read_text(encoding="utf-8")
    assert "did not finish" in text
    assert "No reference can be trusted" in text
    assert "gate failed" in text


def test_command_draws_writes_and_prints(tmp_path, capsys):
    run = write_run(
        tmp_path / "run", problems=("nonlinear_regression",), widths=(2, 8), seeds=(0, 1),
        regions=("grid",), points=("map",), grid_size=5,
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.path)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "beside the paper" in printed
    assert "report.html" in printed
    page = Page((run.path / "report.html").read_text(encoding="utf-8"))
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    files = [path.read_bytes() for path in (run.path / "figures").glob("*.png")]
    assert len(images) == len(files) == 5
    assert {base64.b64decode(image.split(",")[1]) for image in images} == set(files)
