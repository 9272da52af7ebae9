"""The bank of reference posteriors: made, checked, and copied into the package.

Samples the posterior of every problem x width x parameterisation until its convergence gate passes or the draws run
out, adds the exact references (logistic regression by quadrature, linear regression in closed form), and leaves a run
folder from which the bank is filled. A killed run goes on where it was. A posterior that fails its gate is kept and
says so.

    uv run experiments/reference_bank.py                             quick: two problems, one width, and the exact ones
    uv run experiments/reference_bank.py --preset full               eight problems, three widths, two parameterisations
    uv run experiments/reference_bank.py --preset full --install     copy that run into isounc/references/data
    uv run experiments/reference_bank.py --check xor-ntk-w8-v1       make it again with another key, and compare
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from tqdm import tqdm

from isounc import references
from isounc.checks import check_choice, check_count, check_real
from isounc.models import ACTIVATIONS, PARAMETERISATIONS, make_model
from isounc.problems import PROBLEMS, make_problem
from isounc.references import Reference, Thinning, linear_gaussian, logistic_by_quadrature
from isounc.references.bank import bank_page
from isounc.runs.command import command, settings_of_run
from isounc.runs.files import write_atomic
from isounc.runs.folder import Record, RunFolder
from isounc.runs.provenance import provenance
from isounc.sampling.posterior import sample_posteriors
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.scaling.paper import TABLE1
from isounc.sweep import use_compilation_cache

BANK = Path(references.__file__).parent / "data"
MAX_BYTES = 20_000_000
"""Most that a bank may take on disk."""

PAPER = tuple(TABLE1)
"""The paper's problems."""

# Batches of 500 draws are far longer than the autocorrelation of a posterior that passes the gate, and there are at
# least 32 of them: their standard errors are known to an eighth. Steps are shorter than by default: a bank is made
# once, and what is narrow in a posterior must not be missed.
SAMPLER = SamplerSettings(
    num_warmup=1000,
    num_draws=4000,
    max_draws=32000,
    target_acceptance=0.9,
    block=500,
    num_kept=Thinning.max_draws,
)


@dataclass(frozen=True)
class Settings:
    """Settings of the bank; every one that changes a number is stored with each reference."""

    preset: Literal["quick", "full"] = "quick"
    """Defaults of the other settings: quick (minutes), full (the bank that comes with isounc)."""
    problems: tuple[str, ...] = ("xor", "linear_regression")
    """Problems whose posteriors are sampled."""
    widths: tuple[int, ...] = (8,)
    """Hidden units per layer."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """ntk, fan_in or standard."""
    logistic: tuple[str, ...] = ("linear",)
    """Binary problems with two inputs whose logistic regression is worked out by quadrature."""
    gaussian: tuple[str, ...] = ("linear_regression",)
    """Regression problems whose Bayesian linear regression is worked out in closed form."""
    depth: int = 1
    """Hidden layers."""
    activation: str = "tanh"
    """tanh, relu, gelu or silu."""
    prior_sd: float = 2.0
    """Prior standard deviation."""
    n: int = 100
    """Training examples."""
    seed: int = 0
    """Of the problems."""
    version: int = 1
    """The v of the names: raise it where anything that is stored changes."""
    key: int = 0
    """Of the sampler's randomness, together with the name."""
    sampler: SamplerSettings = SAMPLER
    """How posteriors are sampled."""
    thinning: Thinning = field(default_factory=Thinning)
    """How much of each is kept."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs that later runs reuse; empty for none."""
    out: str = ""
    """Run folder; empty is runs/bank-PRESET."""
    bank: str = ""
    """Folder of the bank that --install writes and --check reads; empty is the one in the package."""
    check: tuple[str, ...] = ()
    """Make these references of the bank again, with another key, and compare; nothing is written."""
    install: bool = False
    """Copy the finished run into the bank and write the bank's page; nothing is sampled."""
    overwrite: bool = False
    """Let --install replace references of the same name."""


PRESETS = {
    "quick": Settings(sampler=dataclasses.replace(SAMPLER, max_draws=8000)),
    "full": Settings(
        preset="full", problems=PAPER, widths=(8, 64, 256), parameterisations=("ntk", "fan_in")
    ),
}

NOT_PART_OF_A_RUN = ("cache", "out", "bank", "check", "install", "overwrite")
"""Settings that change no number and may differ when a run is resumed."""


def validate(settings: Settings) -> None:
    """Refuse what cannot be run before anything is computed."""
    check_choice("activation", settings.activation, ACTIVATIONS)
    for value in settings.parameterisations:
        check_choice("parameterisations", value, PARAMETERISATIONS)
    for argument in ("problems", "logistic", "gaussian"):
        for value in getattr(settings, argument):
            check_choice(argument, value, PROBLEMS)
    check_real("prior_sd", settings.prior_sd, positive=True)
    for argument, least in (("depth", 0), ("n", 2), ("seed", 0), ("version", 1), ("key", 0)):
        check_count(argument, getattr(settings, argument), least)
    for width in settings.widths:
        check_count("widths", width, 1)


def recipes(settings: Settings) -> dict[str, dict[str, Any]]:
    """What to make, by name: the settings that are stored with a reference and from which `make` makes it."""
    shared = {
        "prior_sd": settings.prior_sd,
        "n": settings.n,
        "seed": settings.seed,
        "activation": settings.activation,
        "key": settings.key,
        "thinning": dataclasses.asdict(settings.thinning),
    }
    found: dict[str, dict[str, Any]] = {}
    for kind, problems in (("logistic", settings.logistic), ("gaussian", settings.gaussian)):
        for problem in problems:
            found[f"{problem}-{kind}-v{settings.version}"] = shared | {
                "kind": kind, "problem": problem, "width": 1, "depth": 0, "parameterisation": "standard",
            }  # fmt: skip
    # One shape after the other, so that its program is compiled once and then reused.
    cells = itertools.product(settings.widths, settings.parameterisations, settings.problems)
    for width, parameterisation, problem in cells:
        name = f"{problem}-{parameterisation}-w{width}"
        name += "" if settings.depth == 1 else f"-d{settings.depth}"
        found[f"{name}-v{settings.version}"] = shared | {
            "kind": "sampled", "problem": problem, "width": width, "depth": settings.depth,
            "parameterisation": parameterisation, "sampler": dataclasses.asdict(settings.sampler),
        }  # fmt: skip
    return found


def make(name: str, recipe: Mapping[str, Any], report: Callable[[str], None]) -> Reference:
    """One reference from the settings that are, or were, stored with it."""
    problem = make_problem(recipe["problem"], n=recipe["n"], seed=recipe["seed"])
    model = make_model(
        problem,
        **{k: recipe[k] for k in ("width", "depth", "activation", "parameterisation")},
    )
    prior_sd = recipe["prior_sd"]
    shared: dict[str, Any] = {
        "prior_sd": prior_sd,
        "settings": recipe,
        "versions": provenance(),
        "thinning": Thinning(**recipe["thinning"]),
    }
    # The randomness of a reference depends on what it is, not on where it stands in the run.
    seed = zlib.crc32(f"{name}/{recipe['key']}".encode())
    if recipe["kind"] != "sampled":
        solve = {"logistic": logistic_by_quadrature, "gaussian": linear_gaussian}[recipe["kind"]]
        report(solve.__name__)
        exact = solve(problem, model, prior_sd=prior_sd, seed=seed)
        return references.from_exact(name, problem, model, exact, **shared)
    sampler = sampler_settings(recipe["sampler"])
    posterior = sample_posteriors(
        [problem],
        model,
        prior_sd=prior_sd,
        keys=[jax.random.key(seed)],
        settings=sampler,
        keep_values=True,
        progress=lambda what, done, total: report(f"{what} {done}/{total}" if done else what),
    )[0]
    return references.from_posterior(name, problem, posterior, method=sampler.sampler, **shared)


def sampler_settings(stored: Mapping[str, Any]) -> SamplerSettings:
    """Sampler settings as they were stored, without those that this version of isounc does not have."""
    known = {f.name for f in dataclasses.fields(SamplerSettings)}
    unknown = sorted(set(stored) - known)
    if unknown:
        print(f"Without settings that this sampler does not have: {', '.join(unknown)}")
    chosen = {k: v for k, v in stored.items() if k in known}
    return SamplerSettings(**{**chosen, "gate": GateSettings(**stored["gate"])})


def build(settings: Settings) -> bool:
    """Make what the run folder lacks."""
    out = run_folder(settings)
    stored = settings_of_run(settings, NOT_PART_OF_A_RUN)
    folder = RunFolder.open(out, stored)
    wanted = recipes(settings)
    with tqdm(total=len(wanted), unit="reference") as bar:
        for name, recipe in wanted.items():
            if not folder.has(name):
                bar.set_description(name)
                started = time.perf_counter()
                reference = make(name, recipe, bar.set_postfix_str)
                meta, arrays = reference.to_record()
                seconds = round(time.perf_counter() - started, 1)
                folder.write(Record(name, {"reference": meta, "seconds": seconds}, arrays))
                bar.write(f"{name}: {verdict(reference)}; {seconds} s")
            bar.update()
    made = [read(folder, name) for name in wanted]
    folder.write_info(
        provenance() | {"checks": {"references": len(made), "passed": sum(r.passed for r in made)}}
    )
    print(f"{sum(r.passed for r in made)} of {len(made)} passed their checks: {out}")
    return True


def verdict(reference: Reference) -> str:
    return "passed" if reference.passed else f"FAILED: {'; '.join(reference.reasons)}"


def read(folder: RunFolder, name: str) -> Reference:
    record = folder.read(name)
    if record is None:
        raise ValueError(f"{folder.path} lacks {name!r}: run the same command again")
    return references.from_record(name, record.meta["reference"], record.arrays)


def install(settings: Settings) -> bool:
    """Copy a finished run into the bank and write its page."""
    folder = RunFolder.load(run_folder(settings))
    if "checks" not in folder.read_info():
        raise ValueError(
            f"{folder.path} is not finished: run the same command without --install first"
        )
    bank = Path(settings.bank or BANK)
    for name in folder.names():
        references.save(read(folder, name), bank, overwrite=settings.overwrite)
    num_bytes = sum(path.stat().st_size for path in bank.iterdir())
    page = bank_page(references.list(bank), num_bytes=num_bytes)
    write_atomic({bank / "README.md": page.encode()}, "the bank's page")
    print(page)
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"thinning must leave a bank of at most {MAX_BYTES / 1e6:g} MB; got {num_bytes / 1e6:.1f} MB"
        )
    return True


def check(settings: Settings) -> bool:
    """Make references again, with the next key, and compare them with what is stored."""
    bank = Path(settings.bank or BANK)
    agreed = True
    for name in settings.check:
        with warnings.catch_warnings():
            # Said below, with the verdict on the new one.
            warnings.simplefilter("ignore", references.FailedReferenceWarning)
            stored = references.load(name, bank)
        recipe = dict(stored.settings) | {"key": stored.settings["key"] + 1}
        with tqdm(desc=name, bar_format="{desc}{postfix}") as bar:
            again = make(name, recipe, bar.set_postfix_str)
        agreement = references.compare(stored, again)
        print(f"\n{name}\nstored: {verdict(stored)}\nagain: {verdict(again)}\n{agreement}")
        agreed &= agreement.agrees
    return agreed


def run_folder(settings: Settings) -> Path:
    return Path(settings.out or f"runs/bank-{settings.preset}")


def run(settings: Settings) -> bool:
    """Build, check or install."""
    validate(settings)
    use_compilation_cache(settings.cache)
    step = check if settings.check else install if settings.install else build
    return step(settings)


if __name__ == "__main__":
    command(PRESETS, run, description=__doc__, parts="references")
