"""`isounc doctor`: what is installed, where it computes, and whether it computes right here.

Two parts are checked against something independent of them: gradient norms against `jax.grad`, and
the sampler against a posterior with a closed form. A version of JAX, a driver or a device at fault
shows here before it shows in a study.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isounc.gradnorm import value_and_sq_grad_norm
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.references import compare, linear_gaussian
from isounc.references.zscores import Z_MAX
from isounc.runs.process import MEBIBYTE, use_compilation_cache
from isounc.runs.provenance import provenance
from isounc.runs.settings import RunSettings, use_device
from isounc.sampling import GateSettings, sample_posterior

NORM_ERROR_MAX = 1e-5
"""Largest relative error of a squared gradient norm: a hundred roundings of float32."""
EXTRAS = {
    "arviz": "arviz", "guard": "mapie", "llm": "tokenizers", "notebooks": "ipykernel",
    "ray": "ray", "serve": "fastapi", "slurm": "submitit",
}  # fmt: skip
"""By extra of the distribution, a package that it brings."""
PRIOR_SD = 2.0


class Check(NamedTuple):
    """The outcome of one check."""

    name: str
    """Name of the check."""
    found: str
    """The number that was found."""
    bound: str
    """The bound that the number must keep."""
    passed: bool
    """Whether it is."""

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: {self.found} ({self.bound})"


def main(arguments: Sequence[str]) -> bool:
    """Print the state of this installation and check it; False if a check fails."""
    parser = argparse.ArgumentParser(
        prog="isounc doctor",
        description="Show versions, devices and the compilation cache, and check gradient norms "
        "against jax.grad and the sampler against a closed form. The status is 1 if a check fails.",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu", "tpu"),
        default="auto",
        help="device that computes; auto is JAX's choice",
    )
    parser.add_argument(
        "--cache",
        default=RunSettings.cache,
        help="folder of compiled programs (default: %(default)s); '' means none",
    )
    options = parser.parse_args(arguments)
    use_device(options.device)
    for line in state(options.cache):
        print(line)
    use_compilation_cache(options.cache)
    start, passed = time.perf_counter(), []
    for run in (check_norms, check_sampler):
        for check in attempt(run):
            print(check, flush=True)
            passed.append(check.passed)
    seconds = time.perf_counter() - start
    print(f"{sum(passed)} of {len(passed)} checks passed in {seconds:.0f} s")
    return all(passed)


def state(cache: str) -> Iterator[str]:
    """Lines about versions, extras, devices, and the folder of compiled programs."""
    found = provenance()
    for package, version in found["versions"].items():
        yield f"{package:<12}{version or 'not installed'}"
    for extra, package in EXTRAS.items():
        try:
            yield f"{f'[{extra}]':<12}{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"{f'[{extra}]':<12}not installed: pip install 'isounc[{extra}]'"
    device = found["device"]
    yield f"{'system':<12}{found['system']}, {found['cpu_count']} cores"
    yield f"{'devices':<12}{device['count']} x {device['kind']} ({device['platform']})"
    yield f"{'precision':<12}{'float64 allowed' if device['x64'] else 'float32'}"
    yield f"{'cache':<12}{describe_folder(cache)}"


def describe_folder(cache: str) -> str:
    """The folder of compiled programs, with the number and size of its files."""
    if not cache:
        return "none"
    folder = Path(cache).expanduser()
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(place, name)).st_size)
            except OSError:  # another process may have removed it
                continue
    if not folder.is_dir():
        return f"{folder} (not there yet)"
    return f"{folder} ({len(sizes)} files, {sum(sizes) / MEBIBYTE:.1f} MiB)"


def attempt(run: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    """The checks of `run`; one that failed, if it ends in an error."""
    try:
        return run()
    except Exception as error:  # an accelerator's fault can have any type
        says = str(error).strip().partition("\n")[0]
        name = run.__name__.removeprefix("check_")
        return [Check(name, f"{type(error).__name__}: {says}", "it must end without error", False)]


def check_norms(num_examples: int = 32, width: int = 64) -> list[Check]:
    """Squared gradient norms of a small MLP beside the sums of squares of `jax.grad`, float32."""
    sizes = (8, width, width, 1)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params = [
        (jax.random.normal(key, (i, o)) / np.sqrt(i), jnp.zeros(o))
        for key, i, o in zip(keys[1:], sizes[:-1], sizes[1:], strict=True)
    ]
    X = jax.random.normal(keys[0], (num_examples, sizes[0]))

    def log_p(params, x):
        for kernel, bias in params[:-1]:
            x = jnp.tanh(x @ kernel + bias)
        kernel, bias = params[-1]
        return jax.nn.log_sigmoid((x @ kernel + bias)[0])

    # Without this, a GPU multiplies matrices with ten bits of mantissa, and both ways differ by that.
    with jax.default_matmul_precision("highest"):
        sq_norms = value_and_sq_grad_norm(log_p, in_axes=0)(params, X)[1]
        gradients = jax.jit(jax.vmap(jax.grad(log_p), (None, 0)))(params, X)
    plain = np.zeros(num_examples)
    for leaf in jax.tree.leaves(gradients):
        plain += (np.asarray(leaf, float) ** 2).reshape(num_examples, -1).sum(1)
    error = float(np.max(np.abs(np.asarray(sq_norms, float) - plain) / plain))
    return [
        Check(
            "gradient norms against jax.grad, largest relative error",
            f"{error:.1e}",
            f"at most {NORM_ERROR_MAX:g}",
            error <= NORM_ERROR_MAX,
        )
    ]


def check_sampler() -> list[Check]:
    """Draws of a Bayesian linear regression, their gate, and their moments beside the exact ones.

    z is the difference of a predictive moment from the closed form over its Monte Carlo standard
    error (`isounc.references.compare`), the largest over all locations.
    """
    problem = make_problem("linear_regression")
    model = make_model(problem, depth=0)
    exact = linear_gaussian(problem, model, prior_sd=PRIOR_SD)
    posterior = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=jax.random.key(1), max_draws=4000
    )
    gate, bounds = posterior.gate, GateSettings()
    checks = [
        Check(
            "sampler's own gate",
            f"largest R-hat {_number(gate.rhat_max, '.4f')}, "
            f"least effective sample size {_number(gate.ess_var_min, '.0f')}"
            + "".join(f"; {reason}" for reason in gate.reasons),
            f"below {bounds.rhat_max:g}, at least {bounds.ess_min:g}, and its other bounds",
            gate.passed,
        )
    ]
    regions = [region.summary() for region in compare(exact, posterior).regions.values()]
    for name, what in (("mean", "means"), ("var", "variances")):
        z = max(region[f"{name}_z_max"] for region in regions)
        checks.append(
            Check(
                f"sampler's {what} against a closed form, largest |z|",
                f"{z:.2f}",
                f"at most {Z_MAX:g}",
                z <= Z_MAX,
            )
        )
    return checks


def _number(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)
