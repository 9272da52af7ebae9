"""Claims from made-up run folders whose truth is known; folders that are not what they should be."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from isounc.__main__ import main
from isounc.runs.folder import RunFolder
from isounc.statistics import interval_over_seeds
from isounc.studies.claims import figures, pages, report, tables
from isounc.studies.claims.evidence import records
from isounc.studies.claims.gather import gather
from isounc.studies.claims.rules import Condition
from isounc.studies.claims.settings import Settings
from isounc.studies.claims.sources import NEEDED, given, published
from isounc.studies.claims.statements import CLAIMS, NARROW, WIDE
from isounc.studies.scaling.paper import TABLE1

ROOT = Path(__file__).resolve().parents[3]


def run(path, study, settings=(("preset", "quick"),), **named):
    """A run folder of a study with these tables, each a list of rows."""
    folder = RunFolder.open(path, dict(settings), study=study)
    for name, rows in named.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        folder.write_table(f"{name}.csv", rows, columns)
    return str(path)


ISOTROPIC = [("isotropic", "epistemic")]


def scaling_rows(
    value, *, problems=tuple(TABLE1), widths=(8, 32), num_seeds=5, gate=lambda **_: "pass",
    pairs=ISOTROPIC,
):  # fmt: skip
    """Rows of a scaling run at the base, in which `value` gives the statistics of each."""
    rng = np.random.default_rng(0)
    base = {"depth": 1, "activation": "tanh", "parameterisation": "ntk", "prior_sd": 2.0}
    base |= {"pearson": 0.5, "spearman": 0.5, "slope": 1.0, "partial_spearman": 0.5}
    rows = []
    for problem, width, seed, point, region in itertools.product(
        problems, widths, range(num_seeds), ("map", "trained", "draw"), ("test", "grid", "far")
    ):
        where = {"problem": problem, "width": width, "seed": seed, "point": point, "region": region}
        of_class = {"class": "trace" if problem.endswith("3") else "1", "gate": gate(**where)}
        for estimator, quantity in pairs:
            which = {"estimator": estimator, "quantity": quantity}
            rows.append(base | where | of_class | which | value(rng=rng, **which, **where))
    return rows


def settled(path, *claims):
    rows, notes = gather(given([path]), claims)
    return tables.settle(rows, notes, claims)


def near(mean, sd=0.02):
    """A number of every row, with a little spread."""
    return lambda rng, **_: {"pearson": float(np.tanh(np.arctanh(mean) + sd * rng.normal()))}


def test_a_true_claim_is_supported_and_a_false_one_is_not(tmp_path):
    (strong,) = settled(run(tmp_path / "a", "scaling", results=scaling_rows(near(0.9))), "3")
    assert strong.verdict == "supported" and tables.words(strong) == "supported (all 18 conditions)"
    assert tables.where(strong) == "Holds everywhere"
    (weak,) = settled(run(tmp_path / "b", "scaling", results=scaling_rows(near(0.3))), "3")
    assert weak.verdict == "contradicted" and len(weak.of_state("contradicted")) == 18

    def good_near_data(rng, region, point, **_):
        return near(0.9 if region == "test" and point != "draw" else 0.3)(rng)

    (some,) = settled(run(tmp_path / "c", "scaling", results=scaling_rows(good_near_data)), "3")
    assert some.verdict == "supported under"
    assert tables.where(some).startswith("Holds: the MAP or a trained network, test. Fails: ")
    assert "supported under conditions (4 of 18, contradicted in 14)" == tables.words(some)
    # Seven of the eight problems are not the claim.
    seven = scaling_rows(near(0.9), problems=list(TABLE1)[:7])
    (part,) = settled(run(tmp_path / "d", "scaling", results=seven), "3")
    assert part.verdict == "supported under"
    assert part.findings[0].why == "without nonlinear_regression"


def test_a_seed_is_one_replicate_and_cells_that_failed_are_counted(tmp_path):
    def gate(width, seed, **_):
        return "fail" if (width, seed) == (8, 0) else "pass"

    def value(rng, width, seed, **_):
        bad = gate(width=width, seed=seed) == "fail"
        if (width, seed) == (16, 1):
            return {"pearson": None}
        return {"pearson": -0.99 if bad else 0.6 + 0.02 * seed + 0.001 * width}

    rows = scaling_rows(value, problems=["xor"], widths=(8, 16, 32, 64), gate=gate)
    path = run(tmp_path / "run", "scaling", results=rows)
    found, _ = gather(given([path]), ["3"])
    by_place = {(r["point"], r["region"], r["setting"]): r for r in found}
    row = by_place["map", "test", NARROW]
    z = [
        np.mean([np.arctanh(0.6 + 0.02 * s + 0.001 * w) for w in (8, 16)
                 if (w, s) not in ((8, 0), (16, 1))])
        for s in range(5)
    ]  # fmt: skip
    assert row["mean"] == pytest.approx(np.mean(z), abs=1e-5)
    assert row["se"] == pytest.approx(np.std(z, ddof=1) / math.sqrt(5), abs=1e-5)
    counts = [row[name] for name in ("num_seeds", "num_cells", "num_failed", "num_undefined")]
    assert counts == [5, 8, 1, 1]
    (claim,) = settled(path, "3")
    finding = next(f for f in claim.findings if f.condition[1:] == ("map", "test", WIDE))
    seeds = [np.tanh(np.mean([np.arctanh(0.6 + 0.02 * s + 0.001 * w) for w in (32, 64)]))
             for s in range(5)]  # fmt: skip
    house = interval_over_seeds(seeds)
    assert (finding.mean, finding.low, finding.high) == pytest.approx(house[:3], abs=1e-4)
    assert "9 were left out for a failed gate or check and 9 as undefined" in report.sentence(claim)


def test_what_p_holds_of_the_total_comes_back_from_the_levels(tmp_path):
    """A share of Var p is in p(1-p); the levels are those of sums that are made up."""

    def levels(share):
        def value(rng, quantity, estimator, **_):
            E, V, G = 0.15, 0.04, 3.0
            A = E + share * V
            slope = {"epistemic": V / G, "aleatoric": E / A, "total": (E + V) / (A + G)}[quantity]
            return {"slope": slope * (1 + 1e-4 * rng.normal()), "pearson": 0.5}

        return value

    for share in (1.0, 0.0):
        pairs = [("isotropic", quantity) for quantity in ("epistemic", "aleatoric", "total")]
        rows = scaling_rows(levels(share), problems=["xor"], pairs=pairs)
        found, _ = gather(given([run(tmp_path / f"{share}", "scaling", results=rows)]), ["6"])
        means = [r["mean"] for r in found if r["measure"] == "counted twice"]
        assert means == pytest.approx([(share - 0.5) * 0.04 / 0.19] * 12, abs=2e-3)


def test_slopes_by_width_and_by_protocol(tmp_path):
    def value(rng, width, seed, region, **_):
        slope = {"test": 0.05, "grid": -0.05, "far": 0.0}[region] + 0.001 * seed
        return {"pearson": 0.3 + slope * math.log2(width)}

    rows = scaling_rows(value, problems=["xor", "linear"])
    path = run(tmp_path / "run", "scaling", results=rows)
    found, _ = gather(given([path]), ["4"])
    by_setting = {(r["setting"], r["problem"]): r["mean"] for r in found if r["point"] == "map"}
    assert by_setting["protocol near", "xor"] == pytest.approx(0.052, abs=1e-5)
    assert by_setting["protocol wide", "linear"] == pytest.approx(-0.048, abs=1e-5)
    (claim,) = settled(path, "4")
    assert {f.condition.setting: f.state for f in claim.findings} == {
        "protocol near": "supported", "protocol wide": "contradicted"
    }  # fmt: skip
    slopes = [0.02, 0.03, 0.05]
    mean, low, high, n = interval_over_seeds(slopes, kind="mean")
    verdict = {
        "protocol": "prior", "problem": "xor", "setting": "prior sd 10", "point": "map",
        "estimator": "isotropic", "slope_mean": mean, "slope_low": low, "slope_high": high,
        "num_seeds": n, "num_passed": 5, "num_cells": 6,
    }  # fmt: skip
    other = run(tmp_path / "protocols", "scaling", results=rows[:60], verdicts=[verdict])
    (row,) = gather(given([other]), ["4"]).rows
    assert row["setting"] == "protocol prior, prior sd 10" and row["num_failed"] == 1
    assert row["se"] == pytest.approx(np.std(slopes, ddof=1) / math.sqrt(3), rel=1e-4)


def test_the_run_with_more_seeds_counts(tmp_path):
    some = {"problems": ["xor", "linear"]}
    few = run(tmp_path / "few", "scaling", results=scaling_rows(near(0.3), num_seeds=3, **some))
    many = run(tmp_path / "many", "scaling", results=scaling_rows(near(0.9), num_seeds=5, **some))
    for order in ([few, many], [many, few]):
        rows, _ = gather(given(order), ["3"])
        assert {row["source"] for row in rows} == {many} and len(rows) == 18 * 2
    # One width of a band does not stand for all that another run has, however many its seeds.
    wide = run(
        tmp_path / "wide", "scaling",
        results=scaling_rows(near(0.5), num_seeds=3, widths=(8, 32, 64), problems=["xor"]),
    )  # fmt: skip
    rows, _ = gather(given([many, wide]), ["3"])
    assert {(r["source"], r["widths"]) for r in rows if r["problem"] == "xor"} == {
        (wide, "32 64"), (many, "8")
    }  # fmt: skip
    # Nor does one with too few seeds to count.
    rows = scaling_rows(near(0.5), num_seeds=2, widths=(8, 16, 32), problems=["xor"])
    two = run(tmp_path / "two", "scaling", results=rows)
    assert {r["source"] for r in gather(given([two, few]), ["3"]).rows} == {few}
    high = run(
        tmp_path / "high", "scaling",
        results=scaling_rows(lambda rng, width, **_: near(0.9 if width > 8 else 0.3)(rng)),
    )  # fmt: skip
    (claim,) = settled(high, "3")
    assert tables.where(claim) == "Holds: width 32. Fails: width 8"
    assert "Widths: width below 32: 8 (8 problems)" in report.sentence(claim)


def qa_tables(gain, auroc, spearman):
    where = {"model": "m", "num_questions": 900}
    recall, conflict = where | {"benchmark": "triviaqa"}, where | {"benchmark": "truthfulqa_mc1"}
    best = {"against": "best of p_true, log_prob", "statistic": "auroc", "gain_se": 0.01}
    return {
        "results": [recall | {"score": "total_sum/choice", "auroc": auroc, "auroc_se": 0.01}],
        "tests": [conflict | {"score": "total_sum/choice", "gain": gain} | best],
        "correlations": [
            w | {"score": "epistemic/choice", "other": "p_true", "spearman": spearman,
                 "spearman_se": 0.02} for w in (recall, conflict)
        ],
        "gains": [w | {"extra": "epistemic/choice", "gain": 0.05, "gain_se": 0.01}
                  for w in (recall, conflict)],
    }  # fmt: skip


def test_language_models(tmp_path):
    both = settled(run(tmp_path / "a", "qa", **qa_tables(0.1, 0.51, 0.05)), "11", "12")
    # All that one model can show is about that model.
    assert [s.verdict for s in both] == ["supported under"] * 2
    assert tables.where(both[0]) == "Holds everywhere"
    both = settled(run(tmp_path / "b", "qa", **qa_tables(-0.1, 0.8, 0.9)), "11", "12")
    assert [s.verdict for s in both] == ["contradicted", "supported under"]
    assert tables.where(both[1]) == "Holds: adds to all baselines. Fails: unlike P(True)"
    # Three right answers say nothing.
    few = qa_tables(0.1, 0.01, 0.05)
    few["results"] = [row | {"num_wrong": 897} for row in few["results"]]
    found = gather(given([run(tmp_path / "few", "qa", **few)]), ["11", "12"])
    assert {row["region"] for row in found.rows} == {"truthfulqa_mc1"}
    assert {n["note"] for n in found.notes} == {
        "triviaqa has 3 right and 897 wrong answers, of which 10 each are asked for"
    }
    # Another way of asking is another condition, and does not take the place of the first.
    (tmp_path / "c").mkdir()
    for way in ("few_shot", "chat"):
        run(tmp_path / "c" / way, "qa", {"prompting": way}, **qa_tables(0.1, 0.51, 0.05))
    rows = gather(published(str(tmp_path / "c")), ["12"]).rows
    assert {row["point"] for row in rows} == {"m", "m, chat"} and len(rows) == 8


def world_tables(total, p_true, rivals=(0.7, 0.6)):
    """Six worlds, whose AUROCs differ by thousandths; earlier epochs and other parts are of no account."""
    rows = []
    for world, condition in itertools.product(range(6), ("all", "conflict16", "recall")):
        noise = 1e-3 * np.sin(7 * world)
        own = {"total": total, "log_p": rivals[world % 2], "entropy": rivals[1 - world % 2]}
        own |= {"p_true": p_true, "frequency": 0.4, "sq_norm": 0.6}
        for score, auroc in own.items():
            late = {
                "world": world, "width": 16, "depth": 2, "epochs": 30, "condition": condition,
                "part": "all", "temperature": 1.0, "score": score, "auroc": auroc + noise,
                "with_p_true": 0.05 + noise,
            }  # fmt: skip
            rows += [
                late,
                late | {"epochs": 3, "auroc": 0.1},
                late | {"part": "above", "auroc": 0.2},
            ]
            rows.append(late | {"temperature": 2.0, "auroc": 0.3})
    return {"results": rows}


def test_worlds_of_small_decoders(tmp_path):
    def found(name, *numbers):
        source = run(tmp_path / name, "world", **world_tables(*numbers))
        return {s.key: s for s in settled(source, "11", "12")}

    good = found("a", 0.75, 0.6)
    by_measure = {f.condition.measure: f for f in good["11"].findings}
    # The best rival has .7 in every world, though neither has it in all of them.
    assert by_measure["combined is best"].mean == pytest.approx(0.05, abs=2e-3)
    assert by_measure["combined is best"].state == "supported"
    assert by_measure["chance on recall"].mean == pytest.approx(0.25, abs=2e-3)
    assert by_measure["chance on recall"].state == "contradicted"
    (unlike,) = good["12"].findings
    assert unlike.mean == pytest.approx(-0.05, abs=2e-3) and unlike.state == "supported"
    # Of P(True) at chance nothing is said, whatever its correlation.
    chance = found("b", 0.75, 0.5)
    assert chance["12"].verdict == "not run" and not chance["12"].rows
    assert "P(True) of a decoder of width 16 is at chance" in chance["12"].notes[0]
    worse = found("c", 0.68, 0.6)
    assert worse["11"].verdict == "contradicted"


def routing_tables(*places, target=0.1):
    """Verdicts and cascades of ‖g‖² at widths 2, 4, ...: of each the log2 of its cost and its excess."""
    tables = {"verdicts": [], "cascades": [], "results": []}
    for i, numbers in enumerate(places):
        at = {"problem": "digits", "cheap_width": 2 ** (i + 1)}
        for hypothesis, mean in zip(("saves", "keeps the risk"), numbers, strict=True):
            row = at | {"hypothesis": hypothesis, "score": "isotropic", "target": target}
            row |= {"mean": mean, "low": mean - 0.001, "high": mean + 0.001, "num_seeds": 9}
            tables["verdicts"] += [row, row | {"problem": "all", "cheap_width": None, "mean": 9.0}]
            tables["verdicts"] += [row | {"score": "moderated"}, row | {"hypothesis": "routes"}]
        for seed, score in itertools.product(range(11), ("isotropic", "p")):
            # Seed 9 has no cascade, and the networks of seed 10 failed their check.
            cell = at | {"seed": seed, "gate": "fail" if seed == 10 else "pass", "score": score}
            tables["results"].append(cell | {"risk": 0.06})
            cascade = {"found": 1, "log2_cost": numbers[0] + 1e-3 * seed, "cascade_risk": 0.08}
            if score == "p":
                cascade |= {"log2_cost": numbers[0] - 0.5, "cascade_risk": 0.5}
            if seed == 9:
                cascade = {"found": 0, "log2_cost": None, "cascade_risk": None}
            tables["cascades"] += [
                cell | cascade | {"target": target},
                cell | {"target": 0.2, "found": 1, "log2_cost": 5.0, "cascade_risk": 0.9},
            ]
    return tables


def test_cascades_of_the_routing_study(tmp_path):
    def found(name, *places):
        (claim,) = settled(run(tmp_path / name, "routing", **routing_tables(*places)), "13")
        return claim

    good = found("a", (-1.0, -0.02), (-0.5, -0.03))
    assert (good.verdict, tables.where(good)) == ("supported", "Holds everywhere")
    assert {f.condition.setting for f in good.findings} == {"digits, width 2", "digits, width 4"}
    assert {f.condition.point for f in good.findings} == {"‖g‖²"}
    for row in good.rows:
        counts = [row[name] for name in ("num_cells", "num_failed", "num_undefined")]
        assert counts == [9, 1, 1] and row["num_seeds"] == 9
    beside = {f.condition[0]: f for f in good.findings if f.condition.setting == "digits, width 2"}
    assert beside["against the large network"].mean == pytest.approx(0.02)
    assert beside["against 1 − p"].mean == pytest.approx(0.5 + 1e-3 * 4)
    # Less cost at the price of the promise, or the promise at a higher cost: neither is the claim.
    costly = found("b", (0.1, -0.02), (-1.0, 0.02))
    assert costly.verdict == "contradicted" and len(costly.of_state("contradicted")) == 2
    some = found("c", (-1.0, -0.02), (-1.0, 0.0))
    assert some.verdict == "supported under" and tables.where(some, most=2) == (
        "Holds: costs less (digits, width 2); keeps its target (digits, width 2)"
    )
    assert found("d", (0.0, -0.02), (-1.0, 0.0)).verdict == "undecided"
    rows = routing_tables((-1.0, -0.02))
    rows["verdicts"] = [row for row in rows["verdicts"] if row["hypothesis"] == "routes"]
    (absent,) = settled(run(tmp_path / "e", "routing", **rows), "13")
    assert absent.verdict == "not run" and "no row that the claim is about" in absent.notes[0]


def test_cascades_of_other_networks_and_of_a_language_model(tmp_path):
    """Each is a condition of its own, and questions are the replications of the language model."""
    plain, conv = routing_tables((-1.0, -0.02)), routing_tables((-0.5, -0.03))
    for row in [row for table in conv.values() for row in table]:
        row["networks"] = "cnn"
    who = {"model": "tiny", "benchmark": "triviaqa", "second": "more", "score": "isotropic"}
    verdict = who | {"target": 0.9, "num_questions": 250}
    again = {
        "routing_verdicts": [
            verdict | {"hypothesis": name, "mean": mean, "low": mean - 0.01, "high": mean + 0.01}
            for name, mean in (("saves", -0.4), ("keeps the risk", -0.05), ("pays", 3.0))
        ]
        + [verdict | {"hypothesis": "saves", "score": "moderated", "mean": 5, "low": 4, "high": 6}],
        "routing_cascades": [
            who | {"split": i, "target": target, "found": int(i > 1), "log2_cost": -0.4}
            | {"cascade_risk": 0.85, "second_risk": 0.84}
            for i, target in itertools.product(range(10), (0.9, 0.95))
        ],
    }  # fmt: skip
    texts = dict.fromkeys(("score", "against", "statistic", "other", "extra"), "x")
    qa = {
        name.removesuffix(".csv"): [dict.fromkeys(needed) | texts | who]
        for name, needed in NEEDED["qa"].items()
    }
    paths = [
        run(tmp_path / "plain", "routing", **plain), run(tmp_path / "conv", "routing", **conv),
        run(tmp_path / "again", "qa", **qa, **again),
    ]  # fmt: skip
    rows, notes = gather(given(paths), ("13",))
    (claim,) = tables.settle(rows, notes, ("13",))
    cost = {f.condition.setting: f for f in claim.findings if f.condition.measure == "costs less"}
    model = "triviaqa, tiny before more"
    assert cost.keys() == {"digits, width 2", "digits, CNN of width 2", model}
    assert [cost[place].mean for place in cost] == pytest.approx([-1.0, -0.5, -0.4])
    assert claim.verdict == "supported"
    (row,) = [r for r in rows if r["setting"] == model and r["measure"] == "costs less"]
    counts = [row[name] for name in ("num_seeds", "num_cells", "num_undefined", "num_failed")]
    assert counts == [250, 8, 2, 0] and row["source"].endswith("again")
    assert row["se"] == pytest.approx(0.01 / 1.97, rel=0.01)


def test_verdicts_of_other_studies_and_costs(tmp_path):
    def verdict(hypothesis, mean, problem="xor", **where):
        return {
            "hypothesis": hypothesis, "problem": problem, "statistic": "s", "mean": mean,
            "low": mean - 0.001, "high": mean + 0.001, "num_seeds": 5, **where,
        }  # fmt: skip

    place = {"width": 16, "point": "map", "region": "test"}
    cells = {"num_cells": 6, "num_failed": 1, "problem": "xor"}
    proxy = place | {"proxy": "others"}
    paths = [
        run(
            tmp_path / "covariance", "covariance",
            verdicts=[
                verdict("distorts", -0.3, **proxy), verdict("structured", 1.0, **proxy),
                verdict("isotropic wins", 0.2, **proxy), verdict("distorts", 9.0, "all", **proxy),
                verdict("distorts", 9.0, **proxy | {"proxy": "fresh"}),
                verdict("structured", -3.0, **proxy | {"proxy": "fresh"}),
            ],
            summary=[place | cells | {"form": "full", "proxy": "train", "lam": 1.0}],
        ),
        run(
            tmp_path / "spectrum", "spectrum",
            verdicts=[
                verdict(h, mean, **place | {"width": w, "depth": 1, "parameterisation": "ntk", "n": 9})
                for w, mean in ((8, 0.99), (64, 0.01)) for h in ("isotropic in trace", "order kept")
            ],
            results=[
                place | {"problem": "xor", "seed": seed, "width": w, "depth": 1, "n": 9, "form": form,
                         "parameterisation": "ntk", "order": order + 1e-4 * seed, "check": check}
                for w, order, form in ((8, 0.99, "laplace"), (64, 0.3, "laplace"), (64, 0.9, "x"))
                for seed, check in enumerate(["pass"] * 5 + ["fail"])
            ],
            summary=[
                place | cells | {"form": "laplace", "statistic": "s", "width": 64, "depth": 1,
                                 "parameterisation": "ntk", "n": 9}
            ],
        ),
        run(
            tmp_path / "shift", "shift",
            verdicts=[
                verdict(h, mean, network="mlp", score=score, rival="", shift="far")
                for score, mean in (("isotropic", 0.9), ("energy", 0.1)) for h in ("detects",)
            ],
            summary=[cells | {"network": "mlp", "shift": "far", "score": "isotropic"}],
        ),
    ]  # fmt: skip
    (tmp_path / "cost").mkdir()
    lines = [
        f"{process},mlp,{width},64,{way},{ratio + 0.01 * process}"
        for process in range(5) for width in (32, 256) for way, ratio in (("isotropic", 2), ("x", 1))
    ]  # fmt: skip
    text = "\n".join(["process,model,width,examples,way,to_forward", *lines])
    (tmp_path / "cost" / "processes.csv").write_text(text)
    claims = ("7", "8", "9", "10")
    rows, notes = gather(given([*paths, str(tmp_path / "cost")]), claims)
    found = tables.settle(rows, notes, claims)
    assert [s.verdict for s in found] == [
        "supported", "supported under", "supported", "contradicted"
    ]  # fmt: skip
    assert {r["num_failed"] for r in rows if r["claim"] == "7"} == {1}
    # What fresh inputs do is shown, and decides nothing.
    (fresh,) = found[0].of_state("beside")
    assert fresh.mean == -3.0 and "decides nothing: the same slope with fresh" in report.sentence(
        found[0]
    )
    # Correlations are averaged on Fisher's scale, without cells that failed.
    (order,) = (r for r in rows if r["measure"] == "order of inputs kept")
    assert order["mean"] == pytest.approx(np.mean(np.arctanh(0.3 + 1e-4 * np.arange(5))))
    assert (order["num_seeds"], order["num_failed"]) == (5, 1)
    assert tables.where(found[1]) == "Holds: few parameters determined. Fails: order of inputs kept"
    renamed = run(
        tmp_path / "renamed", "shift", verdicts=[verdict("new", 0.9, network="mlp", score="isotropic",
        rival="", shift="far")], summary=[cells | {"network": "m", "shift": "f", "score": "s"}],
    )  # fmt: skip
    (claim,) = settled(renamed, "9")
    assert claim.verdict == "not run"
    assert claim.notes == (f"{renamed}: its tables have no row that the claim is about",)
    assert {f.condition.setting for f in found[1].findings} == {"ntk, width 64, depth 1, n 9"}
    assert found[3].findings[0].mean == pytest.approx(1.02)


def test_conditions_in_few_words():
    every = [
        Condition(m, p, r, s) for m in ("a", "b") for p in ("map", "draw") for r in ("test", "far")
        for s in (NARROW, WIDE)
    ]  # fmt: skip
    assert tables.condensed(every[:8], every) == ["a"]
    assert tables.condensed(every[:2], every) == ["a (the MAP, test)"]
    assert tables.condensed([every[0], every[4]], every) == [f"a (test, {NARROW})"]
    assert tables.condensed([every[0], every[15]], every) == [
        f"a (the MAP, test, {NARROW})", f"b (a posterior draw, far, {WIDE})"
    ]  # fmt: skip
    data = [
        Condition("a", "mlp", "", f"{d}, width {w}") for d in ("xor", "wine") for w in (8, 64, 256)
    ]
    assert tables.condensed(data[:2], data) == ["a (xor, width 8 or 64)"[3:-1]]
    assert tables.condensed([data[0], data[1], data[5]], data) == [
        "xor, width 8 or 64 or wine, width 256"
    ]


# The command, and what it refuses.


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["claims", *map(str, arguments)])
    return ended.value.code


def test_the_command_settles_and_says_what_was_not_run(tmp_path, capsys):
    path = run(
        tmp_path / "run", "scaling", results=scaling_rows(near(0.9), problems=["xor"], num_seeds=3)
    )  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- claims -->\nold\n<!-- /claims -->\n\nafter\n")
    out = tmp_path / "out"
    arguments = ("--runs", path, "--claims", "3", "9", "--out", out, "--figures", "shown")
    assert command(*arguments, "--pages", page) == 0
    said = capsys.readouterr().out
    assert "not run (isounc shift --preset standard)" in said
    loaded = RunFolder.load(out)
    verdicts = loaded.read_table("verdicts.csv")
    assert verdicts["verdict"].tolist()[1] == "not run" and verdicts["sources"][0] == path
    table = pages.table_of_page(page)
    assert table == report.front_page(records(verdicts))
    assert page.read_text().startswith("# Mine\n\n<!-- claims -->\n\n| ")
    assert page.read_text().endswith("<!-- /claims -->\n\nafter\n")
    html = (out / "report.html").read_text()
    assert "data:image/png;base64," in html and 'src="http' not in html
    assert CLAIMS["9"].sentence.split(".")[0] in (out / "report.md").read_text()
    # Evidence is gathered anew each time.
    assert command(*arguments[:2], "--out", out, "--claims", "9") == 0
    assert RunFolder.load(out).read_table("verdicts.csv")["claim"].tolist() == ["9"]


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = run(tmp_path / "good", "scaling", results=scaling_rows(near(0.9), problems=["xor"]))
    old = [{k: v for k, v in row.items() if k != "gate"} for row in scaling_rows(near(0.9))[:9]]
    run(tmp_path / "old", "scaling", results=old)
    run(tmp_path / "other", "agreement", results=[{"a": 1}])
    run(tmp_path / "nothing", "covariance", summary=[{"a": 1}])
    run(tmp_path / "unknown", "", results=[{"a": 1}])
    for name, value in (("word", "abc"), ("out", 1.5)):
        rows = [row | {"pearson": value} for row in scaling_rows(near(0.9))[:9]]
        run(tmp_path / name, "scaling", results=rows)
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.md").write_text("no markers")
    for arguments, says in (
        (("--runs", "none"), "none, which does not exist"),
        (("--runs", "empty"), "empty, which has no settings.json"),
        (("--runs", "other"), r"runs must be run folders of scaling, .*got other, which is one of agree"),
        (("--runs", "unknown"), "which is of an unknown study"),
        (("--runs", "good", "good"), "runs must name each folder once, got good again"),
        (("--runs", "old"), r"results.csv of old must have the columns problem, .*without gate: it is"),
        (("--runs", "nothing"), r"nothing must have verdicts.csv, as a finished run of covariance"),
        (("--runs", "word"), "pearson in results.csv of word must hold numbers from -1 to 1, got 'abc'"),
        (("--runs", "out"), "pearson in results.csv of out must hold numbers from -1 to 1, got 1.5"),
        (("--results", "empty"), "results must hold published runs of scaling.*which has none"),
        ((), r"results must be the folder of published results .*which does not exist"),
        (("--runs", "good", "--claims", "99"), "claims must be one of 1, 2, .*got '99'"),
        (("--runs", "good", "--claims", "3", "3"), "none twice"),
        (("--runs", "good", "--pages", "page.md"), r"pages must have the line <!-- claims -->"),
        (("--runs", "good", "--pages", "absent.md"), "which is none"),
    ):  # fmt: skip
        ended = command(*arguments, "--out", tmp_path / "made", "--figures", "shown")
        assert re.search(says, str(ended)), (arguments, ended)
        assert not (tmp_path / "made" / "verdicts.csv").exists()
    assert good and set(NEEDED) >= {claim.study for claim in CLAIMS.values()}


def test_a_figure_has_every_condition(tmp_path):
    pairs = [*ISOTROPIC, ("oracle", "epistemic"), ("laplace", "epistemic")]
    rows = scaling_rows(near(0.8), problems=["xor"], pairs=pairs)
    path = run(tmp_path / "run", "scaling", results=rows)
    (claim,) = settled(path, "2")
    figure = figures.forest(claim)
    assert [len(ax.get_yticklabels()) for ax in figure.axes] == [12, 12]
    assert figures.STATES.keys() == {"supported", "contradicted", "undecided", "beside"}
    (absent,) = settled(path, "9")
    with pytest.raises(figures.NothingToDraw):
        figures.forest(absent)


def test_the_readme_has_the_committed_verdicts():
    published = RunFolder.load(ROOT / "results" / "claims")
    verdicts = published.read_table("verdicts.csv")
    assert verdicts["claim"].astype(str).tolist() == list(CLAIMS)
    table = report.front_page(records(verdicts))
    assert pages.table_of_page(ROOT / "README.md") == table
    # And they are what the rules make of the committed evidence.
    again = report.make_report(published, Settings()).tables["verdicts.csv"].rows
    assert report.front_page(again) == table
