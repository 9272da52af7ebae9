"""Make tables, verdicts and the page of costs from the rows that `cost.py` wrote.

    uv run benchmarks/cost_table.py results/cost

Protocol, fixed before the first run with more than one process. The claim is that the estimate costs
next to nothing beside the forward pass, or, as it is put elsewhere, one forward-backward pass. Three
ratios of times stand for it, each of a whole way (its forward pass included) to a way of the same
batch in the same process:

    negligible    to the forward pass, at most 1.1: an estimate that comes with the prediction for a
                  tenth of its time or less is what nobody would notice
    one pass      to the backward way, a gradient of the batch's mean loss, at most 1.1: the estimate
                  is a forward-backward pass of a training step, within a tenth
    below five    to the ensemble's passes, at most 1: the simplest rival is not cheaper, training
                  left out

The unit is the process, which has its own compiled programs and memory. Of each model and size the
geometric mean over processes has Student's 95% interval of the logarithms. A verdict is *confirmed* if
the interval lies below the bound, *refuted* if it lies above, and *undecided* otherwise, also
with fewer than two processes. Of all sizes of a model, and of all models, it is confirmed
or refuted where every size is; the mean is that of the logarithms and the ends are the lowest and
the highest of the sizes. Sizes are not replications: they are listed, not averaged away. The verdicts
are of `isotropic` first; other ways stand beside it.

`cost.csv` has the means over processes of each way (to_forward with its interval, the largest memory,
the least `once`), and the ratio of the compiler's counts of operations, which no clock has a part in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isounc.statistics.intervals import Interval, interval_over_seeds
from isounc.statistics.verdicts import VERDICTS, verdict

SIZE = ["model", "width", "examples"]
ROW = ["process", *SIZE, "way"]
TIMED = ("isotropic", "isotropic, all", "call of isotropic", "call of logit_scaled")
HYPOTHESES = {
    "negligible": ("forward", 1.1),
    "one pass": ("backward", 1.1),
    "below five": ("ensemble", 1.0),
}
"""The way that a time is divided by, and the bound of the ratio."""
START, END = "<!-- made by cost_table.py: -->", "<!-- end -->"

Rows = list[dict[str, Any]]


def add_rows(rows: Rows, folder: Path) -> None:
    """Add rows of a process to `processes.csv`, in place of those of the same model and size."""
    folder.mkdir(parents=True, exist_ok=True)
    new, path = pd.DataFrame(rows), folder / "processes.csv"
    if path.exists():
        old = pd.read_csv(path)
        same = old.merge(new[ROW[:-1]].drop_duplicates(), how="left", indicator=True)["_merge"]
        new = pd.concat([old[same.eq("left_only").to_numpy()], new], ignore_index=True)
    new.sort_values(["model", "width", "examples", "process"], kind="stable").to_csv(
        path, index=False, lineterminator="\n"
    )


def _mean(values: Sequence[float]) -> Interval:
    return interval_over_seeds(values, kind="log")


def costs(processes: pd.DataFrame) -> Rows:
    """A row of each way of each size, over its processes."""
    rows = []
    for size, at in processes.groupby([*SIZE], sort=False):
        flops = at[at["way"].eq("forward")]["flops"].dropna()
        for way, of in at.groupby("way", sort=False):
            ratio, counted = _mean(of["to_forward"].tolist()), of["flops"].dropna()
            rows.append({
                **dict(zip(SIZE, size, strict=True)), "way": way,
                "once_seconds": of["once_seconds"].min(),
                "microseconds": _mean(of["microseconds"].tolist()).mean,
                "to_forward": ratio.mean, "to_forward_low": ratio.low,
                "to_forward_high": ratio.high,
                "flops_to_forward": counted.iloc[0] / flops.iloc[0] if len(counted) else None,
                "mebibytes": of["mebibytes"].max(),
                "program_mebibytes": of["program_mebibytes"].max(), "num_processes": len(of),
                "note": next((note for note in of["note"] if isinstance(note, str)), ""),
                "device": of["device"].iloc[0], "jax": of["jax"].iloc[0],
            })  # fmt: skip
    return rows


def verdicts(processes: pd.DataFrame) -> Rows:
    """Verdicts of each size, then of each model and of all."""
    rows = []
    for name, (other, bound) in HYPOTHESES.items():
        for way in TIMED:
            found = []
            for size, at in processes.groupby([*SIZE], sort=False):
                times = at.pivot(index="process", columns="way", values="to_forward")
                if way in times:
                    ratios = _mean((times[way] / times[other]).dropna().tolist())
                    found.append({
                        "hypothesis": name, **dict(zip(SIZE, size, strict=True)), "way": way,
                        "statistic": f"time over {other}", "bound": bound,
                        "mean": ratios.mean, "low": ratios.low, "high": ratios.high,
                        "num_processes": len(times), "num_sizes": 1,
                        "verdict": verdict(ratios, bound, below=True),
                    })  # fmt: skip
            models = list(dict.fromkeys(row["model"] for row in found))
            rows += found
            for model in [*models, *(["all"] if len(models) > 1 else [])]:
                rows.append(_joined([r for r in found if model in ("all", r["model"])], model))
    return rows


def _joined(found: Rows, model: str) -> dict[str, Any]:
    """The verdict of several sizes."""
    lows, highs = ([row[end] for row in found] for end in ("low", "high"))
    words = {row["verdict"] for row in found}
    return found[0] | {
        "model": model, "width": "all", "examples": "all",
        "mean": float(np.exp(np.mean(np.log([row["mean"] for row in found])))),
        "low": None if None in lows else min(lows), "high": None if None in highs else max(highs),
        "num_processes": min(row["num_processes"] for row in found), "num_sizes": len(found),
        "verdict": words.pop() if len(words) == 1 else "undecided",
    }  # fmt: skip


def page(processes: pd.DataFrame) -> str:
    """The tables of the page, in Markdown, and its sentences."""
    rows, found = costs(processes), verdicts(processes)
    sizes = list(dict.fromkeys(tuple(row[name] for name in SIZE) for row in rows))
    by = {(*(row[name] for name in SIZE), row["way"]): row for row in rows}
    ways = dict.fromkeys(row["way"] for row in rows)

    def table(of_cell: Any) -> str:
        heads = [f"{m} {w}, {n}" if m == "mlp" else f"{m}, {n}" for m, w, n in sizes]
        lines = [["", *heads], ["---"] * (len(heads) + 1)]
        lines += [[way, *(of_cell(by.get((*size, way))) for size in sizes)] for way in ways]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    marks = {"confirmed": "**{}**", "refuted": "~~{}~~", "undecided": "{}"}
    sentences = []
    for name, (other, bound) in HYPOTHESES.items():
        line = next(r for r in found[::-1] if (r["hypothesis"], r["way"]) == (name, "isotropic"))
        of = [
            r for r in found
            if (r["hypothesis"], r["way"], r["num_sizes"]) == (name, "isotropic", 1)
        ]  # fmt: skip
        numbers = ", ".join(
            marks[r["verdict"]].format(_interval(r["mean"], r["low"], r["high"])) for r in of
        )
        words = [row["verdict"] for row in of]
        counted = ", ".join(f"{words.count(word)} {word}" for word in VERDICTS if word in words)
        sentences.append(
            f"- *{name}* (time of isotropic over that of {other}, at most {bound:g}): "
            f"**{line['verdict']}** over {line['num_sizes']} sizes ({counted}); {numbers}."
        )
    return "\n\n".join([
        "Verdicts on `isotropic`, one column with its forward pass, by size in the order of the table; "
        "bold is confirmed, struck through refuted, 95% intervals over processes:",
        "\n".join(sentences),
        "Time of every example over that of the forward pass of the same batch; [interval over "
        "processes]; in brackets the same ratio of the compiler's counts of operations:",
        table(lambda row: "" if row is None else _ratio(row)),
        "Seconds of what is done once (fits, kernels, chains):",
        table(
            lambda row: "" if row is None or np.isnan(row["once_seconds"])
            else f"{row['once_seconds']:.3g}"
        ),
        "Memory, MiB: temporary values and results by the compiler's plan, or, after a ~, what the process "
        "held at most beyond what it held before:",
        table(lambda row: "" if row is None else _memory(row)),
        "\n".join(
            f"- {way}, {model} {width}: {note}."
            for way, model, width, note in dict.fromkeys(
                (row["way"], row["model"], row["width"], row["note"]) for row in rows if row["note"]
            )
        ),
    ])  # fmt: skip


def _interval(mean: float, low: float | None, high: float | None) -> str:
    """A number with its interval; one that is exact by definition has none."""
    if low is None or high is None or low == high:
        return _short(mean)
    return f"{_short(mean)} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(row: dict[str, Any]) -> str:
    flops = row["flops_to_forward"]
    text = _interval(row["to_forward"], row["to_forward_low"], row["to_forward_high"])
    return text if row["way"] == "forward" or flops is None else f"{text} ({flops:.3g})"


def _memory(row: dict[str, Any]) -> str:
    planned = row["program_mebibytes"]
    return f"~{_short(row['mebibytes'])}" if np.isnan(planned) else _short(planned)


def write_tables(folder: Path) -> None:
    """Write `cost.csv`, `verdicts.csv`, and the part of the page `README.md` that is made."""
    processes = pd.read_csv(folder / "processes.csv")
    for name, rows in (("cost", costs(processes)), ("verdicts", verdicts(processes))):
        pd.DataFrame(rows).to_csv(
            folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n"
        )
    path = folder / "README.md"
    text = path.read_text() if path.exists() else f"# What an estimate costs\n\n{START}\n{END}\n"
    head, _, rest = text.partition(START)
    path.write_text(f"{head}{START}\n\n{page(processes)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "processes.csv").is_file():
        sys.exit("error: give the folder of cost.py, which has processes.csv")
    write_tables(Path(sys.argv[1]))
