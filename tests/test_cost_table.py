"""Verdicts on what an estimate costs are those of made up times, and the published are of theirs."""

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from benchmarks import cost_table

PUBLISHED = Path(__file__).parents[1] / "results/cost"


def made_up(ratios, widths=(8, 16)):
    """Rows of processes whose isotropic estimate takes so many forward passes."""
    rows = []
    for process, ratio in enumerate(ratios):
        for width in widths:
            passes = {"forward": 1.0, "backward": 2.0, "isotropic": ratio, "ensemble": 5.0}
            rows += [
                {
                    "process": process, "model": "mlp", "width": width, "examples": 4, "way": way,
                    "once_seconds": 0.0, "microseconds": 3.0 * of_way, "to_forward": of_way,
                    "mebibytes": 1.0 + process, "program_mebibytes": None,
                    "flops": {"forward": 10.0, "isotropic": 25.0}.get(way),
                    "rounds": 2, "note": None, "device": "cpu", "jax": "0",
                }
                for way, of_way in passes.items()
            ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((1.01, 1.02, 1.03), ("confirmed", "confirmed", "confirmed")),
        ((2.0, 2.02, 1.98), ("refuted", "confirmed", "confirmed")),
        ((1.0, 1.2, 1.1), ("undecided", "confirmed", "confirmed")),
        ((5.5, 5.6, 5.7), ("refuted", "refuted", "refuted")),
        ((1.01,), ("undecided", "undecided", "undecided")),
    ],
)
def test_verdicts_are_those_of_the_ratios(ratios, words):
    found = cost_table.verdicts(made_up(ratios))
    joined = [row for row in found if row["width"] == "all"]
    assert tuple(row["verdict"] for row in joined) == words
    assert {row["num_sizes"] for row in joined} == {2}
    single = next(row for row in found if row["hypothesis"] == "one pass" and row["width"] == 16)
    logs = [math.log(ratio / 2) for ratio in ratios]
    mean = sum(logs) / len(logs)
    assert single["mean"] == pytest.approx(math.exp(mean))
    if len(ratios) > 1:
        half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
        ends = math.exp(mean - half), math.exp(mean + half)
        assert (single["low"], single["high"]) == pytest.approx(ends)


def test_sizes_that_differ_decide_nothing():
    cheap, dear = made_up((1.01, 1.02, 1.03), (8,)), made_up((2.0, 2.1, 1.9), (16,))
    row = cost_table.verdicts(pd.concat([cheap, dear]))[2]
    assert (row["width"], row["verdict"]) == ("all", "undecided")
    assert row["low"] < 1.1 < row["high"]


def test_a_process_that_runs_again_replaces_its_rows(tmp_path):
    rows = made_up((2.0, 3.0))
    for process in (0, 1, 1):
        cost_table.add_rows(rows[rows["process"] == process].to_dict("records"), tmp_path)
    assert len(pd.read_csv(tmp_path / "processes.csv")) == len(rows)
    cost_table.write_tables(tmp_path)
    costs = pd.read_csv(tmp_path / "cost.csv").query("way == 'isotropic' and width == 8")
    assert costs["to_forward"].item() == pytest.approx(math.sqrt(6), rel=1e-5)
    assert costs["flops_to_forward"].item() == 2.5 and costs["mebibytes"].item() == 2


def test_the_published_tables_and_page_are_those_of_the_processes(tmp_path):
    for name in ("processes.csv", "README.md"):
        shutil.copy(PUBLISHED / name, tmp_path)
    cost_table.write_tables(tmp_path)
    for name in ("cost.csv", "verdicts.csv", "README.md"):
        assert (tmp_path / name).read_bytes() == (PUBLISHED / name).read_bytes(), name
