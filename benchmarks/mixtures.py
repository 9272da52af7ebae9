"""Do chains that agree stand where the mass is? Mixtures of two Gaussians, whose masses are known.

    uv run benchmarks/mixtures.py

The posterior of two parameters is a mixture of N(m, s_1^2 I) and N(-m, s_2^2 I), m = (2, 2), under
the prior N(0, I), from whose draws 64 chains begin. A row has the share of the chains that end in
the first mode, with annealed warm-up everywhere and without, the share of groups of four chains that
pass R-hat, and the p-value of `check_modes`, which compares chains with tempered particles.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from samplers_table import write

from isounc.models import make_model
from isounc.problems import Problem
from isounc.sampling import coordinates
from isounc.sampling.convergence import diagnose
from isounc.sampling.modes import modes_p_value, smc_settings
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import GateSettings, SamplerSettings

MIXTURES = {
    "equal widths": (0.8, 0.05, 0.05),
    "first narrower, 5 times": (0.8, 0.05, 0.25),
    "first narrower, 20 times": (0.8, 0.0125, 0.25),
}
"""Mass of the first mode, and the standard deviations of both."""
MODE = 2.0
SETTINGS = SamplerSettings(
    coordinates="prior", num_chains=64, num_draws=500, max_draws=500, trajectory_length=0.4
)
RHAT = GateSettings().rhat_max


class Mixture(NamedTuple):
    """Coordinates in which theta is x, and the density that of a mixture."""

    weights: Any
    sd: Any

    name = "mixture"

    def start(self, z: Any) -> Any:
        """A draw of the prior."""
        return z

    def theta(self, x: Any, model: Any, data: Any) -> Any:
        """The parameters themselves."""
        return x

    def remainder(self, x: Any, model: Any, data: Any) -> Any:
        """Log density of the mixture, minus that of the prior."""
        squares = jnp.stack([((x - MODE) ** 2).sum(), ((x + MODE) ** 2).sum()]) / self.sd**2
        of_parts = jnp.log(self.weights) - 0.5 * squares - len(x) * jnp.log(self.sd)
        return jax.nn.logsumexp(of_parts) + 0.5 * x @ x

    def log_volume(self, x: Any, model: Any, data: Any) -> Any:
        """The same everywhere."""
        return jnp.zeros((), x.dtype)


def main(seed: int = 0, out: Path = Path("runs/mixtures")) -> None:
    """Write `mixtures.csv`.

    Parameters
    ----------
    seed
        Of the keys.
    out
        Folder for the table.
    """
    problem = Problem.from_arrays(
        np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), noise_sd=1.0,
        regions={"q": np.array([[0.0], [1.0]])},
    )  # fmt: skip
    model = make_model(problem, depth=0, parameterisation="standard")

    def values(settings: SamplerSettings, key: int) -> np.ndarray:
        """Draws of f at 0 and 1, which is the sum of the parameters."""
        posterior = sample_posterior(
            problem, model, prior_sd=1.0, key=jax.random.key(key), settings=settings,
            keep_values=True,
        )  # fmt: skip
        assert posterior.values is not None
        return posterior.values["q"][..., 0].astype(float)

    rows = []
    for name, (weight, *sd) in MIXTURES.items():
        mixture = Mixture(jnp.array([[weight, 1 - weight]]), jnp.array([sd]))
        coordinates.COORDINATES["prior"] = lambda *_, mixture=mixture: mixture
        particles = values(smc_settings(SETTINGS, max_seconds=np.inf), seed + 1)
        for above in (0.0, np.inf):
            drawn = values(dataclasses.replace(SETTINGS, anneal_above=above), seed)
            groups = drawn.reshape(16, 4, *drawn.shape[1:])
            passing = [g for g in groups if np.nanmax(diagnose(g).rhat) < RHAT]
            p_values = [modes_p_value(g, particles) for g in passing]
            rows.append(
                {
                    "mixture": name,
                    "mass": weight,
                    "annealed": above == 0,
                    "chains_in_first": round(float((drawn[..., 1].mean(1) > 0).mean()), 3),
                    "particles_in_first": round(float((particles[..., 1] > 0).mean()), 3),
                    "pass_rhat": len(passing) / len(groups),
                    "pass_check_modes": sum(p > 0.01 for p in p_values) / len(groups),
                }
            )
            print(rows[-1])
    out.mkdir(parents=True, exist_ok=True)
    write(rows, out / "mixtures.csv")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
