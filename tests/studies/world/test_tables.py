"""Verdicts, the match of accuracies, figures and the reading of made up rows; a run with made up
decoders, start to end."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.fields import Unreadable
from isounc.runs.folder import Record, RunFolder
from isounc.runs.publish import publish
from isounc.runs.settings import stored_settings
from isounc.runs.study import run_study
from isounc.runs.style import NothingToDraw
from isounc.runs.tables import rows_of_run
from isounc.statistics import interval_over_seeds
from isounc.studies.world import cell, figures, measures, references
from isounc.studies.world.cell import NUMBERS, PARTS
from isounc.studies.world.corpus import NUM_ANSWERS, make_world
from isounc.studies.world.hmc import Draws, HMCChains
from isounc.studies.world.local import LocalChains
from isounc.studies.world.reading import Tables, reading
from isounc.studies.world.report import auroc_table
from isounc.studies.world.scores import Said
from isounc.studies.world.settings import PRESETS, Cell, Settings, batches, check, plan
from isounc.studies.world.study import STUDY
from isounc.studies.world.tables import ALL, ROW, Results, Size, What, matched, summarise, verdicts
from isounc.studies.world.train import Members, num_params

EPOCHS, WIDTHS = (3, 10), (8, 16, 32)
DRAWN = ("log_p", "entropy", "null", "sq_norm", "total", "moderated", "p_true", "oracle")
SHOWN = ("all", "recall", "told", "conflict16", "unknown")


def made_up(worlds=4, change=lambda row: {}):
    """Rows in which accuracy rises from .3 to .9 and the correlation with the trace by .1 a doubling."""
    rng, rows = np.random.default_rng(0), []
    level = {"total": 0.4, "sq_norm": 0.3, "entropy": 0.8, "log_p": 0.8, "oracle": 0.9}
    for world, width, epochs in itertools.product(range(worlds), WIDTHS, EPOCHS):
        for condition, part, t in itertools.product(SHOWN, PARTS, (0.5, 1.0, 2.0)):
            if part != "all" and (t != 1 or condition == "unknown"):
                continue
            for score in DRAWN:
                noise = 0.01 * rng.standard_normal()
                auroc = level.get(score, 0.6) + noise
                late = epochs == 10
                r = 0.1 * np.log2(width) + 0.1 * late + noise if score == "sq_norm" else 0.2 + noise
                row = {
                    "world": world, "width": width, "depth": 2, "epochs": epochs, "score": score,
                    "condition": condition, "part": part, "temperature": t,
                    **dict.fromkeys(NUMBERS), "accuracy": 0.9 if late else 0.3, "oracle": 0.75,
                    "auroc": auroc, "below_oracle": auroc - 0.75, "auroc_turn": -0.5 + noise,
                    "with_p_true": 0.1 + noise, "r_trace": r, "partial_trace": r - 0.1,
                    "share_below": 0.4, "num_questions": 100, "reliability_trace": 0.9,
                }  # fmt: skip
                rows.append(row | change(row))
    return rows


ROWS = made_up()
RESULTS = Results(ROWS)


def test_means_and_verdicts_are_over_worlds():
    what, size = What("conflict16", score="total"), Size(8, 2, 10)
    wanted = ("conflict16", "all", 1.0, "total", 10)
    names = ("condition", "part", "temperature", "score", "epochs")
    chosen = [row for row in ROWS if tuple(row[name] for name in names) == wanted]
    each = [row["auroc"] for row in sorted(chosen, key=lambda r: (r["world"], r["width"]))]
    by_world = np.reshape(each, (4, 3))
    assert RESULTS.over(size, what, "auroc") == interval_over_seeds(by_world[:, 0], kind="mean")
    wanted = interval_over_seeds(by_world.mean(1), kind="mean")
    assert RESULTS.over_widths(10, what, "auroc") == pytest.approx(wanted)
    found = {
        (r["hypothesis"], r["score"], r["rival"], r["part"]): r["verdict"]
        for r in verdicts(RESULTS, matched(RESULTS, 0.6))
        if r["size"] == ALL and r["condition"] in (ALL, "recall", "conflict16", "unknown")
    }
    assert found["combined best in conflict", "total", "entropy", "all"] == "refuted"
    assert found["chance on recall", "total", "", "all"] == "confirmed"
    assert found["unlike self-assessment", "total", "", "all"] == "confirmed"
    assert found["points right", "sq_norm", "", "below"] == "refuted"
    assert found["points right", "entropy", "", "above"] == "confirmed"
    assert found["turned by temperature", "sq_norm", "", "all"] == "confirmed"
    assert found["near the oracle", "entropy", "", "all"] == "confirmed"
    assert found["unknown from conflict", "sq_norm", "entropy", "all"] == "refuted"
    assert found["better with size", "sq_norm", "", "all"] == "confirmed"
    assert found["better with size", "null", "", "all"] == "undecided"
    # One world decides nothing.
    alone = Results(made_up(1))
    assert {r["verdict"] for r in verdicts(alone, matched(alone, 0.6))} == {"undecided"}
    line = next(
        row for row in summarise(RESULTS)
        if (row["width"], row["epochs"]) == (8, 10)
        and What(*(row[n] for n in What._fields)) == what
    )  # fmt: skip
    assert line["num_worlds"] == line["auroc_worlds"] == 4 and line["r_local_worlds"] == 0
    assert line["auroc_mean"] == pytest.approx(by_world[:, 0].mean())


def test_numbers_that_only_some_worlds_have_say_in_how_many():
    """World 3 has too few wrong answers at the last width."""

    def few(row):
        is_few = (row["world"], row["width"], row["condition"]) == (3, 32, "recall")
        return {"auroc": None} if is_few else {}

    rows = [row | few(row) for row in ROWS if (row["epochs"], row["part"]) == (10, "all")]
    results = Results(row for row in rows if row["temperature"] == 1)
    what, size = What("recall", score="total"), Size(32, 2, 10)
    line = next(
        row
        for row in summarise(results)
        if Size(*(row[n] for n in Size._fields)) == size
        and What(*(row[n] for n in What._fields)) == what
    )
    assert (line["num_worlds"], line["auroc_worlds"], line["accuracy_worlds"]) == (4, 3, 4)
    table = auroc_table(results)
    place = table.columns.index(cell.CONDITIONS["recall"])
    cells = {row[0]: row[place] for row in table.rows}
    assert cells["entropy"].endswith("] (3 of 4 worlds)") and "worlds" not in cells["accuracy"]
    assert sum("worlds" in text for row in table.rows for text in row) == len(DRAWN)
    # What is an oracle of wrong answers is none of what was never told.
    assert cells["oracle"] != "-" and [r[-1] for r in table.rows if r[0] == "oracle"] == ["-"]
    said = "\n".join(reading(Tables(results, verdicts(results, []), [], "none", 0.6)))
    assert f"{cell.CONDITIONS['recall'].capitalize()} (3 of 4 worlds): oracle" in said
    assert "(3 of 4 worlds): oracle" not in "\n".join(
        reading(Tables(RESULTS, verdicts(RESULTS, []), [], "none", 0.6))
    )


def test_a_single_temperature_turns_nothing(monkeypatch):
    alone = Results(row | {"auroc_turn": 0.0} for row in ROWS if row["temperature"] == 1)
    said = {row["hypothesis"] for row in verdicts(alone, [])}
    assert "turned by temperature" not in said and "points right" in said
    world, rng = make_world(0, 1), np.random.default_rng(0)
    num = len(world.form)
    answer = np.where(rng.random(num) < 0.5, world.told[:, 1], world.told[:, 0])
    values = {name: rng.random(num) for name in ("log_p", "null", "p_true", "oracle")}
    asked = measures.Asked(*rng.random((2, num)), 0.5)
    monkeypatch.setattr(cell, "_fitted", lambda *_: None)
    found = {}
    for heated in ({1.0: values}, {1.0: values, 2.0: {k: v**2 for k, v in values.items()}}):
        judged = cell.Judged(
            world, answer, answer != world.truth, heated, dict.fromkeys(heated, answer < 0), {},
            {"all": dict.fromkeys(measures.REFERENCES)}, {}, asked, {},
        )  # fmt: skip
        rows = cell._rows(judged, cell.Place("all", "all", 1.0), np.ones(num, bool))
        found[len(heated)] = {row["score"]: row for row in rows}
    assert found[1]["log_p"]["auroc_turn"] is None and found[2]["log_p"]["auroc_turn"] == 0.0
    # Of two answers that were told as often, either is what was told most often.
    most = [
        told >= 0 and count == max(counts)
        for tolds, counts, own in zip(world.told, world.counts, answer, strict=True)
        for told, count in zip(tolds, counts, strict=True)
        if told == own
    ]
    assert found[1]["log_p"]["most_told"] == pytest.approx(sum(most) / num)
    ties = (world.counts[:, 0] == world.counts[:, 1]) & (world.counts[:, 0] > 0)
    assert ties.any() and world.is_most_told(world.told[:, 1])[ties].all()
    assert not world.is_most_told(world.told[:, 2])[ties].any()


def test_sizes_are_matched_by_interpolation_or_not_at_all():
    lines = matched(RESULTS, 0.45)  # a quarter of the way from .3 to .9
    row = next(r for r in lines if (r["world"], r["width"], r["score"]) == (2, 16, "sq_norm"))
    ends = [RESULTS.values(Size(16, 2, e), What(score="sq_norm"), "r_trace")[2] for e in EPOCHS]
    assert row["r_trace"] == pytest.approx(0.75 * ends[0] + 0.25 * ends[1])
    slow = Results(made_up(2, lambda row: {"accuracy": 0.2} if row["width"] == 8 else {}))
    assert {row["width"] for row in matched(slow, 0.6)} == {16, 32}
    # Too low throughout, lower at the end, or known at one length alone: no match.
    nowhere = "match must be an accuracy that a decoder passes .* reach 0.30 to 0.90.*, got 0.95"
    with pytest.raises(ValueError, match=nowhere):
        matched(RESULTS, 0.95)
    worse = Results(made_up(1, lambda r: {"accuracy": 0.9 if r["epochs"] == 3 else 0.3}))
    with pytest.raises(ValueError, match="match must be"):
        matched(worse, 0.6)
    with pytest.raises(ValueError, match="match must be"):
        matched(Results(made_up(1, lambda r: {"accuracy": None})), 0.6)


def test_the_reading_says_what_the_tables_say():
    at_match = matched(RESULTS, 0.6)
    tables = Tables(RESULTS, verdicts(RESULTS, at_match), at_match, "", 0.6)
    said = "\n".join(reading(tables))
    for words in (
        "Worlds 0 to 3 (4).", "oracle 0.75", "entropy refuted (-0.39", "‖∇p‖²: all 0.30",
        "AUROC at 0.5, 1 and 2", "widths 8, 16 and 32 reach", "‖∇p‖² confirmed (+0.10",
    ):  # fmt: skip
        assert words in said, words
    assert "One world" not in said and "nan" not in said and "bootstrap" not in said
    of_bootstrap = {"r_bootstrap": 0.25, "partial_bootstrap": -0.5}
    again = [row | {"score": "ensemble_trace"} for row in ROWS if row["score"] == "sq_norm"]
    drawn = Results([row | of_bootstrap for row in [*ROWS, *again]])
    said = "\n".join(reading(Tables(drawn, verdicts(drawn, at_match), at_match, "", 0.6)))
    other = "bootstrap samples, its rank correlation with that of the other members"
    assert f"{other} 0.25: " in said
    assert "‖∇p‖² +0.25 (given p(1−p) -0.50)" in said.partition(other)[2]
    alone = Results(made_up(1))
    tables = Tables(alone, verdicts(alone, []), [], "match must be lower", 0.6)
    said = "\n".join(reading(tables))
    assert "One world has no interval" in said
    assert "not compared at equal accuracy: match must be lower." in said


def test_chains_that_did_not_converge_are_in_no_verdict_and_said():
    """Chains converged in all worlds at the first width, in two at the second, in none at the last."""

    def local(row):
        if row["epochs"] != 10:
            return {}
        r = 0.9 + 0.02 * row["world"]
        passed = float(row["world"] < {8: 4, 16: 2, 32: 0}[row["width"]])
        near = {"near": r, "nearer": 0.3, "nearer_var_p": r - 0.5} if passed else {}
        shared = {"local_passed": passed, "local_rhat": 1.0, "local_ess": 60.0 * passed}
        return {**shared, "r_local": r, "r_local_var_p": r, **near}

    rows = made_up(4, local)
    results = Results(rows)
    said = "\n".join(reading(Tables(results, verdicts(results, []), [], "none", 0.6)))
    for words in (
        "Width 16, 50% converged (30 draws): ‖∇p‖² +0.93 and +0.93", "Width 32, 0% converged",
        "“near theta*”, ‖∇p‖², width 8: confirmed (+0.93 [+0.89, +0.97]);",
        "‖∇p‖², width 16: confirmed (+0.91 [+0.78, +1.04], the 2 worlds whose chains converged)",
        "none over all widths, as not every width has chains that converged.",
    ):  # fmt: skip
        assert words in said, words
    assert "‖∇p‖², width 32:" not in said
    everywhere = Results([row | {"near": 0.9} for row in rows if row["epochs"] == 10])
    said = "\n".join(reading(Tables(everywhere, verdicts(everywhere, []), [], "none", 0.6)))
    assert "“near theta*”, ‖∇p‖²: confirmed" in said and "none over all widths" not in said


def test_hamiltonian_monte_carlo_of_the_smallest_decoder_is_said_with_what_it_says_of_the_others():
    def exact(row):
        if row["epochs"] != 10 or row["width"] != 8:
            return {}
        r = 0.5 + 0.02 * row["world"]
        shared = {"hmc_passed": 1.0, "hmc_rhat": 1.0, "hmc_ess": 400.0, "langevin_r": r + 0.2}
        own = {"r_hmc": r, "r_hmc_var_p": r, "near_hmc": r, "beyond_hmc": r - 0.4}
        return {**shared, "langevin_ratio": 3.0, **own}

    results = Results(made_up(4, exact))
    said = "\n".join(reading(Tables(results, verdicts(results, []), [], "none", 0.6)))
    for words in (
        "Width 8, 100% converged (400 draws): ‖∇p‖² +0.53 and +0.53",
        "Var p of the stochastic gradient chains has rank correlation 0.73 [0.69, 0.77] with it and is "
        "3 times as large",
        "“near theta*, HMC”, ‖∇p‖², width 8: refuted (+0.53 [+0.49, +0.57]);",
        "“beyond p, HMC”, ‖∇p‖², width 8: confirmed (+0.13 [+0.09, +0.17])",
    ):  # fmt: skip
        assert words in said, (words, said)
    assert "stochastic gradient chains around θ*. W" not in said


def test_figures_show_the_rows_or_say_why_not():
    figures.against_accuracy(RESULTS)
    figure = figures.by_size(RESULTS, matched(RESULTS, 0.6), 0.6)
    line = figure.axes[0].lines[0]
    assert line.get_xdata() == pytest.approx(list(WIDTHS))
    assert len({ax.get_position().y0 for ax in figures.by_temperature(RESULTS).axes}) == 1
    many = [row | {"depth": depth} for row in made_up(2) for depth in (1, 2)]  # six sizes
    panels = figures.by_temperature(Results(many)).axes
    assert len(panels) == 6 and len({ax.get_position().y0 for ax in panels}) == 2
    asked = {"asked_auroc": 0.7, "taught_accuracy": 0.9}
    replies = Results(made_up(2, lambda row: asked if row["condition"] == "told" else {}))
    figure = figures.self_assessment(replies)
    assert [len(ax.lines) for ax in figure.axes] == [3 * 3 + 1] * 3
    record = Record("a", {"cell": {"width": 8, "world": 0, "epochs": 3}}, {
        "log_odds": np.array([-1.0, 1.0]), "sq_norm": np.array([0.1, 0.0]),
        "wrong": np.array([True, False]), "judged": np.array([True, True]),
    })  # fmt: skip
    figures.sign([record])
    nothing = Results(r | {"auroc": None, "oracle": None} for r in ROWS)
    narrow = Results(r for r in ROWS if r["width"] == 8 and r["temperature"] == 1)
    for draw in (
        lambda: figures.against_accuracy(nothing), lambda: figures.by_size(narrow, [], 0.6),
        lambda: figures.by_temperature(narrow), lambda: figures.sign([]),
        lambda: figures.self_assessment(RESULTS),
    ):  # fmt: skip
        with pytest.raises(NothingToDraw):
            draw()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_members": 1}, "num_members must be an integer from 5 to 1000, got 1"),
        ({"num_judged": 7}, "num_judged must be an integer from 1 to 6, got 7"),
        (
            {"local": LocalChains(num_chains=2, num_members=3)},
            "local.num_members must be .* 1 to 2",
        ),
        ({"num_bootstrap": 1}, "num_bootstrap must be an integer from 2"),
        ({"widths": (48,)}, "widths must be one of 8, 16, 32, 64, 128, 256, got '48'"),
        ({"depth_width": 7}, "depth_width must be one of 8, 16, 32"),
        ({"widths": ()}, "widths must have at least one value"),
        ({"epochs": (10, 3)}, r"epochs must rise, got \(10, 3\)"),
        ({"epochs": (0,)}, "epochs must be an integer from 1"),
        ({"other_depths": (2,)}, "other_depths must not have 2"),
        ({"temperatures": (0.5, 2.0)}, "temperatures must have 1 among them"),
        ({"temperatures": (0.0, 1.0)}, "temperatures must be a positive"),
        ({"match": 1.5}, "match must be between 0 and 1, got 1.5"),
        ({"num_worlds": 0}, "num_worlds must be an integer"),
        ({"num_relations": 0}, "num_relations must be an integer from 1 to 64, got 0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        check(dataclasses.replace(Settings(), **change))


def test_plans_hold_every_cell_once():
    for settings in PRESETS.values():
        check(settings)
        planned = [cell for group in plan(settings) for batch in group for cell in batch.cells]
        assert sorted(planned, key=str) == sorted(itertools.chain(*batches(settings)), key=str)
        assert len({cell.name for cell in planned}) == len(planned)
        seconds = [sum(batch.seconds for batch in group) for group in plan(settings)]
        assert seconds == sorted(seconds, reverse=True)
    standard = plan(PRESETS["standard"])  # no worker waits while another has worlds left
    assert len(standard) == 20 and {len(group) for group in standard} == {1}
    assert Cell(400, 8, 2, 3).name == "world400-width8-depth2-epochs3"


def test_a_number_of_a_world_is_the_mean_over_the_members_judged():
    a, b = ROWS[0] | {"auroc": 0.5, "oracle": None}, ROWS[0] | {"auroc": 0.7, "oracle": 0.6}
    mean = cell._mean_row((a, b), 1)
    assert (mean["auroc"], mean["oracle"], mean["score"]) == (0.6, None, "log_p")
    # Of chains, only members that are to have them count.
    a |= {"r_local": 0.4}
    assert (
        cell._mean_row((a, b), 1)["r_local"] == 0.4 and cell._mean_row((a, b), 2)["r_local"] is None
    )


def test_edited_records_are_refused(tmp_path):
    folder = RunFolder.open(tmp_path / "run", stored_settings(Settings()), study="world")
    for change, said in (
        ({"auroc": 1.5}, "auroc of row 0 of record 'a' must be a finite number from"),
        ({"condition": "gossip"}, "condition of row 0 .* must be one of"),
        ({"score": "sq_nrom"}, "score of row 0 .* must be one of"),
    ):
        folder.write(Record("a", {"rows": [ROWS[0] | change]}, {}))
        with pytest.raises(Unreadable, match=said):
            rows_of_run(folder, ROW)


def some_members(world, config, epochs, seeds, rows, settings, say, *, store):
    """In place of training: members that are their number, and the time."""
    assert rows.shape == (len(seeds), len(world.facts)) and num_params(config)
    for epoch in epochs:
        say(f"epoch {epoch}")
        numbers = np.stack([np.arange(len(seeds)), np.full(len(seeds), epoch)], axis=1)
        yield epoch, Members(nnx.graphdef(nnx.Module()), jnp.asarray(numbers))


def some_log_probs(graphdef, member, world, *, temperature=1.0):
    """What was told often is known, the more the later, with noise of the member's own."""
    member = np.asarray(member)
    rng = np.random.default_rng(member)
    logits = 0.5 * rng.standard_normal((len(world.form), NUM_ANSWERS))
    for told, count in zip(world.told.T, world.counts.T, strict=True):
        at = np.flatnonzero(told >= 0)
        logits[at, told[at]] += np.log1p(count[at] * member[1])
    logits /= temperature
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - 1e-6


def some_said(graphdef, member, world, *, temperature=1.0, answer=None):
    log_probs = some_log_probs(graphdef, member, world, temperature=temperature)
    answer = log_probs.argmax(1) if answer is None else answer
    log_p = np.take_along_axis(log_probs, answer[:, None], 1)[:, 0]
    norm = np.exp(np.random.default_rng(np.asarray(member)).standard_normal(len(answer)))
    p = np.exp(log_p)
    return Said(answer, log_p - np.log1p(-p), norm, (p * (1 - p)) ** 2, log_probs, p, 3 * p)


def some_replies(sentences):
    """P(True) that knows nothing of the answers."""
    return np.random.default_rng(len(sentences)).random(len(sentences))


def some_draws(graphdef, member, world, settings, seed):
    """In place of chains: the member with noise of every draw's own."""
    member, rng = np.asarray(member), np.random.default_rng(seed)
    base = some_log_probs(graphdef, member, world)
    noise = rng.standard_normal((settings.num_chains, settings.num_draws, *base.shape))
    logits = base + 0.5 * noise
    return logits - np.logaddexp.reduce(logits, axis=3, keepdims=True) - 1e-6


def some_hmc(members, i, world, local, settings, seed, say, store):
    """Draws of half the spread in place of Hamiltonian Monte Carlo."""
    draws = some_draws(members.graphdef, members.member(i), world, settings, seed)
    mean = draws.mean((0, 1))
    return Draws(mean + 0.5 * (draws - mean) - 1e-6, 0.0)


def test_a_run_is_computed_reported_and_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell, "train_members", some_members)
    monkeypatch.setattr(cell, "answer_log_probs", some_log_probs)
    monkeypatch.setattr(cell, "say", some_said)
    monkeypatch.setattr(references, "sample_locally", some_draws)
    monkeypatch.setattr(references, "sample_by_hmc", some_hmc)
    monkeypatch.setattr(measures, "SPLITS", 2)
    monkeypatch.setattr(measures, "p_true_of", lambda graphdef, params, rows: some_replies(rows))
    every = cell.conditions
    monkeypatch.setattr(cell, "conditions", lambda world: {n: every(world)[n] for n in SHOWN})
    monkeypatch.setattr("isounc.studies.world.report._plots", lambda *_: [])  # drawn above
    settings = Settings(
        widths=(8,), epochs=(1, 4), num_relations=1, num_bootstrap=2, cache="", num_judged=1, temperatures=(1.0, 2.0),
        executor="serial", out=str(tmp_path / "run"), match=0.5,
        local=LocalChains(num_chains=4, num_draws=50), hmc=HMCChains(num_chains=4, num_draws=50),
    )  # fmt: skip
    assert run_study(STUDY, settings)
    folder = RunFolder.load(tmp_path / "run")
    assert len(folder.names()) == 2
    rows = folder.results
    record = folder.require("world400-width8-depth2-epochs4")
    judged, wrong = record.arrays["judged"], record.arrays["wrong"]
    cells = "world == 400 and epochs == 4 and temperature == 1 and score == 'log_p'"
    (row,) = rows.query(f"{cells} and condition == 'all' and part == 'all'").to_dict("records")
    assert row["num_questions"] == judged.sum() == 185
    assert row["accuracy"] == pytest.approx(1 - wrong[judged].mean(), abs=1e-6)
    assert row["r_bootstrap"] == pytest.approx(row["r_trace"], abs=0.6)
    # Chains are drawn after the longest training alone, and these draws are independent.
    assert row["local_passed"] == 1 and row["local_rhat"] < 1.1 and row["local_ess"] > 50
    assert row["near"] == row["r_local_var_p"] and row["r_local"] is not None
    assert row["nearer"] == pytest.approx(row["r_local"] - row["r_trace"], abs=1e-5)
    assert rows.query("epochs == 1")["local_passed"].isna().all()
    assert row["hmc_passed"] == 1 and row["hmc_ess"] > 50 and row["hmc_divergent"] == 0
    assert row["near_hmc"] == row["r_hmc_var_p"] and row["beyond_hmc"] == row["partial_hmc_var_p"]
    assert row["langevin_r"] > 0.8 and 2 < row["langevin_ratio"] < 8
    assert not (tmp_path / "run" / "training").exists()
    assert 0.5 < row["auroc"] <= row["oracle"] + 0.05
    split = rows.query(f"{cells} and condition == 'all' and part != 'all'")
    assert set(split["part"]) == {"below", "above"} and set(split["share_below"]) == {0.0, 1.0}
    assert rows.query("score == 'regression'")["auroc"].max() > 0.5
    assert rows.query("score == 'p_true'")["temperature"].unique().tolist() == [1.0]
    assert set(rows["condition"]) == set(SHOWN) and (record.arrays["kind"] >= 0).all()
    assert len(folder.read_table("verdicts.csv")) and "has 2 of 2 cells" in capsys.readouterr().out
    published = (publish(STUDY, folder, tmp_path / "published") / "reading.md").read_text()
    said = published.replace("\\", "").split("\n\n")
    # Made again from the tables, it says what the run's page says.
    assert said[0] == "# Reading of published" and len(said) > 8
    page = (tmp_path / "run" / "report.md").read_text().replace("\\", "")
    assert all(paragraph in page for paragraph in said[1:-1] if not paragraph.startswith("#"))
