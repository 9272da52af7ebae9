"""Sentences that say what the tables of a guard run show."""

from __future__ import annotations

from statistics import fmean

from isounc.runs.words import listed
from isounc.studies.guard.cell import PLUG_IN, QUANTILES, SCORES
from isounc.studies.guard.scenarios import SCENARIOS
from isounc.studies.guard.tables import GRIDS, LOOKS, Row, Rows, Tables, cell_name


def reading(tables: Tables) -> list[str]:
    """Say how often each method broke its promise, and what it accepted."""
    sentences = [
        _fitted(tables),
        *map(_promise, tables.verdicts),
        _plug_in(tables),
        _coverage(tables),
        _paired(tables),
        _grids(tables),
        _shifted(tables),
    ]
    return [sentence for sentence in sentences if sentence]


def _fitted(tables: Tables) -> str:
    checked = sum(row["num_checked"] for row in tables.rows)
    unlike = sum(row["num_unlike"] for row in tables.rows)
    if not checked:
        return "No threshold was compared with that of Guard.fit."
    return (
        f"Guard.fit has the same threshold in {checked - unlike} of {checked} samples that it saw."
    )


def _promise(row: Row) -> str:
    by_chance = f"by chance at most {row['expected_refuted']:.2g}"
    ends = f"[{row['highest_low']:.3f}, {row['highest_high']:.3f}]"
    return (
        f"{_called(row)}: {row['verdict']}. The promise is kept beyond doubt in {row['confirmed']} of "
        f"{row['num_cells']} cells, undecided in {row['undecided']} and broken in {row['refuted']} "
        f"({by_chance}). The highest rate of violations is {row['highest']:.3f} {ends} "
        f"({row['highest_cell']}); the smallest p-value after Holm is {row['p_adjusted']:.2g}. Half of "
        f"the samples or more have a threshold in {row['num_answering']} cells, of which it is kept "
        f"beyond doubt in {row['confirmed_answering']}; none has one in {row['num_silent']}."
    )


def _called(row: Row) -> str:
    name = LOOKS[row["method"]].label
    return f"{name[0].upper()}{name[1:]}, {GRIDS[row['grid']]}"


def _plug_in(tables: Tables) -> str:
    lines = _breakable(tables.found(grid=SCORES, method=PLUG_IN))
    if not lines:
        return ""
    nominal = 1 - lines[0]["confidence"]
    above = [line for line in lines if line["verdict"] == "refuted"]
    highest = max(lines, key=lambda line: line["rate"])
    excess = [line["excess_mean"] for line in lines if line["excess_mean"] is not None]
    words = (
        f"The plug-in threshold breaks the promise beyond doubt in {len(above)} of {len(lines)} of these "
        f"cells, with a mean rate of {fmean(line['rate'] for line in lines):.2f}, "
        f"{100 * (fmean(line['rate'] for line in lines) - nominal):.0f} points above the nominal one; "
        f"the highest is {highest['rate']:.2f} ({cell_name(highest)})."
    )
    if excess:
        words += (
            f" Where it breaks it, the true share of wrong answers is {100 * fmean(excess):.1f} points "
            f"above the target in the mean of the cells ({100 * min(excess):.2g} to "
            f"{100 * max(excess):.2g})."
        )
    return words


def _breakable(lines: Rows) -> Rows:
    """Those in which the promise can be broken, and that are no shift."""
    return [line for line in lines if line["can_exceed"] and not line["is_shifted"]]


def _coverage(tables: Tables) -> str:
    """Say the coverage of each method by n, where any threshold keeps the target."""
    parts = []
    for n in sorted({line["n"] for line in tables.summary}):
        means = []
        for method, look in LOOKS.items():
            grid = SCORES if method == PLUG_IN else QUANTILES
            lines = [
                line
                for line in _breakable(tables.found(grid=grid, method=method, n=n))
                if line["best_coverage"] >= 0.01
            ]
            if lines:
                means.append(f"{look.label} {fmean(line['of_best'] for line in lines):.2f}")
        if means:
            parts.append(f"n = {n}: {', '.join(means)}")
    if not parts:
        return ""
    return (
        "Coverage as a share of the best possible, mean over the cells in which that is at least .01. "
        f"{'; '.join(parts)}."
    )


def _paired(tables: Tables) -> str:
    parts = []
    for method in ("holm", "bonferroni"):
        lines = _breakable(tables.found(grid=QUANTILES, method=method))
        if not lines:
            continue
        ahead = sum(line["gain_mean"] > 1.96 * line["gain_se"] for line in lines)
        behind = [line for line in lines if line["gain_mean"] < -1.96 * line["gain_se"]]
        mean = fmean(line["gain_mean"] for line in lines)
        places = listed(dict.fromkeys(SCENARIOS[line["scenario"]].label for line in behind) or [""])
        parts.append(
            f"than {LOOKS[method].label} in {ahead} of {len(lines)} cells beyond doubt and fewer in "
            f"{len(behind)} (mean difference {mean:+.3f}{f'; fewer: {places}' * bool(behind)})"
        )
    return f"Fixed sequence accepts more {listed(parts)}." if parts else ""


def _grids(tables: Tables) -> str:
    """Say what thresholds of another sample change."""
    given = tables.found(grid="given", method="fixed_sequence")
    own = {
        (line["scenario"], line["n"], line["target"]): line
        for line in tables.found(grid=QUANTILES, method="fixed_sequence")
    }
    pairs = [
        (line, own[key])
        for line in _breakable(given)
        if (key := (line["scenario"], line["n"], line["target"])) in own
    ]
    if not pairs:
        return ""
    rates, coverages = (
        tuple(fmean(pair[i][name] for pair in pairs) for i in (0, 1))
        for name in ("rate", "coverage_mean")
    )
    return (
        f"Thresholds of another sample, fixed sequence, mean of {len(pairs)} cells: violations "
        f"{rates[0]:.4f} in place of {rates[1]:.4f}, coverage {coverages[0]:.3f} in place of "
        f"{coverages[1]:.3f}."
    )


def _shifted(tables: Tables) -> str:
    """Say the rates after a shift, by target, for the largest calibration sample."""
    lines = [line for line in tables.found(method="fixed_sequence") if line["is_shifted"]]
    if not lines:
        return ""
    n = max(line["n"] for line in lines)
    parts = []
    for name in dict.fromkeys(line["scenario"] for line in lines):
        found = [line for line in lines if (line["scenario"], line["n"]) == (name, n)]
        rates = listed(f"{line['rate']:.2f} at {line['target']:g}" for line in found)
        parts.append(f"{SCENARIOS[name].label}: {rates}")
    return (
        "After a shift nothing is promised. Rates at which fixed sequence violates the target then, "
        f"n = {n}: {'; '.join(parts)}."
    )
