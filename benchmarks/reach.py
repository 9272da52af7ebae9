"""Which references pass their gate, and in what time: many data, wide priors.

    uv run benchmarks/reach.py                                  # n = 1000, width 8, prior sd 10
    uv run benchmarks/reach.py --problems xor --widths 2 8 32 --prior-sds 2 10 32
    uv run benchmarks/reach.py --samplers tempered_smc --seconds 600

Each posterior (all combinations of the options) is sampled by `sample_posterior` with its defaults
until its gate passes with a standard error of 3% of the variance, or the seconds are spent. A row
has what it was worth by then: R-hat, effective draws of p and of (p - mean)^2, the standard error
of the variance (median over the locations), the regions in which the gate passes, the reasons of one
that fails, and how many of the seconds pilots took. A table that
exists already is continued: only the rows that it lacks are measured. `reach.md` beside it says in
words what each row is worth.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from samplers_table import stored, write
from tqdm import tqdm

from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling.gate import RARE_DRAWS, TOO_COARSE
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.sampling.smc_driver import UNTEMPERED

PROBLEMS = (
    "linear", "moons", "xor", "rings", "clusters3", "spirals3", "linear_regression",
    "nonlinear_regression",
)  # fmt: skip
MOST_DRAWS = 100_000
"""More than the seconds allow."""
GATE = GateSettings()
TARGET = SamplerSettings().target_var_se
APART = 1.1
"""R-hat above which nothing is extrapolated: chains are in different places."""


@dataclass
class Options:
    """The posteriors, and how long each may take."""

    problems: tuple[str, ...] = PROBLEMS
    """Problems, by name."""
    widths: tuple[int, ...] = (8,)
    """Hidden units."""
    sizes: tuple[int, ...] = (1000,)
    """Training examples."""
    prior_sds: tuple[float, ...] = (10.0,)
    """Prior standard deviations."""
    parameterisations: tuple[str, ...] = ("standard",)
    """ntk, fan_in or standard."""
    activations: tuple[str, ...] = ("tanh",)
    """tanh or relu, say."""
    samplers: tuple[str, ...] = ("hmc",)
    """Samplers, by name; hmc is the default of `sample_posterior`."""
    seconds: float = 300.0
    """Seconds of each, compilation included."""
    seed: int = 0
    """Seed of the data and of the key."""
    out: Path = Path("runs/reach")
    """Folder for the table `reach.csv`."""


def measure(cell: dict[str, Any], options: Options) -> dict[str, Any]:
    """Sample a posterior for the seconds allowed and report its checks; None where undefined."""
    problem = make_problem(
        cell["problem"], n=cell["n"], seed=options.seed, num_test=64, num_far=64, grid_size=8
    )
    model = make_model(
        problem, width=cell["width"], parameterisation=cell["parameterisation"],
        activation=cell["activation"],
    )  # fmt: skip
    began = time.perf_counter()
    pilots = [math.inf, 0.0]
    with tqdm(total=1, bar_format="{desc}", leave=False) as bar:

        def tell(what: str, done: int, _: int) -> None:
            now = time.perf_counter() - began
            if what.startswith("pilot"):
                pilots[0] = min(pilots[0], now)
            elif math.isfinite(pilots[0]) and not pilots[1]:
                pilots[1] = now - pilots[0]
            bar.set_description_str(f"{what}, {done} draws")

        posterior = sample_posterior(
            problem, model, prior_sd=cell["prior_sd"], key=jax.random.key(options.seed),
            sampler=cell["sampler"], max_draws=MOST_DRAWS, max_seconds=options.seconds,
            progress=tell,
        )  # fmt: skip
    seconds, gate = time.perf_counter() - began, posterior.gate

    def rounded(number: float | None, digits: int) -> float | None:
        return None if number is None or not math.isfinite(number) else round(number, digits)

    return {
        "gate": "pass" if gate.passed else "fail",
        "regions": " ".join(r for r in posterior.regions if not gate.reasons_in(r)),
        "seconds": round(seconds, 1),
        "pilot_seconds": round(pilots[1], 1),
        "draws": posterior.num_draws,
        "rhat_max": rounded(gate.rhat_max, 4),
        "ess_mean": rounded(gate.ess_bulk_min, 0),
        "ess_var": rounded(gate.ess_var_min, 0),
        "var_se": rounded(gate.var_mcse_median, 4),
        "divergences": gate.divergences,
        "gradients": posterior.num_gradients,
        "step_size": float(f"{posterior.step_size.mean():.3g}"),
        "coordinates": posterior.coordinates,
        "reasons": "; ".join(gate.reasons),
    }


def verdict(row: dict[str, Any]) -> str:
    """Say in words whether the gate of a row passed or, if not, how far it is from passing."""
    least = min(row["ess_mean"] or 0.0, row["ess_var"] or 0.0)
    error, rhat = row["var_se"], row["rhat_max"]
    if row["gate"] == "pass" or row["regions"]:
        where = ""
        if row["gate"] != "pass":
            where = f" in {' and '.join(row['regions'].split())}"
        elif not row["regions"]:  # of a table from before regions were judged
            where = ", all regions taken together"
        if error is None or error <= TARGET:
            return f"passes{where}, and the variance is known to the target"
        minutes = row["seconds"] * (error / TARGET) ** 2 / 60
        return f"passes{where}; the variance to {TARGET:.0%} would take {_about(minutes)} in all"
    if UNTEMPERED in str(row["reasons"]):
        return "not yet: its particles are on the way from the prior to the posterior"
    if rhat is None or rhat > APART:
        return "out of reach: chains are in different places"
    if TOO_COARSE in str(row["reasons"]):
        return "fails: single precision is not enough"
    short = max(GATE.ess_min / max(least, 1.0), 1.0)
    # R-hat - 1 falls about as the effective draws grow.
    longer = max(short, (rhat - 1) / (GATE.rhat_max - 1))
    if longer > 1:
        return f"not yet: at this pace the gate takes {_about(row['seconds'] * longer / 60)} in all"
    if str(row["reasons"]).startswith(RARE_DRAWS):
        return f"converged, but {RARE_DRAWS}"
    return f"fails: {row['reasons']}"


def _about(minutes: float) -> str:
    return f"about {minutes:.0f} minutes" if minutes >= 1.5 else f"about {60 * minutes:.0f} seconds"


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, in the order in which a reader looks for them."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return (
            row["parameterisation"], row["prior_sd"], row["n"], row["activation"], row["width"],
            row["problem"], row["sampler"],
        )  # fmt: skip

    def shown(number: float | None, form: str) -> str:
        return "undefined" if number is None else format(number, form)

    words = [verdict(row) for row in rows]
    counts = "; ".join(
        f"{said}: {sum(word.startswith(start) for word in words)}"
        for start, said in (
            ("passes", "pass the gate"),
            (
                "passes in",
                "and of these in some regions alone, since rare draws decide in the others",
            ),
            ("converged", "converge, but rare draws decide"),
            ("not yet", "on the way"),
            ("out of reach", "out of reach"),
            ("fails", "fail otherwise"),
        )
    )
    lines = [
        f"What {len(rows)} posteriors are worth ({counts}).",
        "",
        "| prior | n | network | problem | sampler | seconds, cores | R-hat | effective draws of p, of"
        " (p - mean)² | error of the variance | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=place):
        ess = f"{shown(row['ess_mean'], '.0f')}, {shown(row['ess_var'], '.0f')}"
        cells = (
            f"{row['parameterisation']}, sd {row['prior_sd']:g}", row["n"],
            f"{row['activation']}, width {row['width']}", row["problem"], row["sampler"],
            f"{row['seconds']:.0f}, {row['cores']}", shown(row["rhat_max"], ".3f"), ess,
            shown(row["var_se"], ".1%"), verdict(row),
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure all posteriors, print the rows and write the table."""
    device = jax.devices()[0].device_kind
    # Those that this process may use, where the system can say so.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    print(
        f"{device}, {cores} cores, JAX {jax.__version__}, float32, at most {options.seconds:g} s each"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "reach.csv"
    rows = stored(table, {"seed": options.seed})
    names = ("problem", "width", "n", "prior_sd", "parameterisation", "activation", "sampler")
    done = {tuple(row[name] for name in names) for row in rows}
    cells = itertools.product(
        options.problems, options.widths, options.sizes, options.prior_sds,
        options.parameterisations, options.activations, options.samplers,
    )  # fmt: skip
    for values in tqdm([cell for cell in cells if cell not in done], unit="posterior"):
        cell: dict[str, Any] = dict(zip(names, values, strict=True))
        row = cell | {"seed": options.seed, "budget": options.seconds} | measure(cell, options)
        rows.append(row | {"device": device, "cores": cores, "jax": jax.__version__})
        tqdm.write(", ".join(f"{name} {row[name]}" for name in list(row) if row[name] != ""))
        write(rows, table)
        jax.clear_caches()
    if rows:
        (options.out / "reach.md").write_text(page(rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
