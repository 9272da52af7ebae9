"""The table that holds isounc's sampler against NumPyro's."""

from benchmarks.samplers_table import pairs


def row(way: str, mean: int, var: int, seconds: float, gate: str = "pass", **place):
    posterior = {
        "n": 100, "parameterisation": "ntk", "prior_sd": 2.0, "width": 8, "problem": "moons",
        "chains": 4,
    }  # fmt: skip
    return posterior | place | {
        "way": way, "ess_mean": mean, "ess_var": var, "seconds": seconds, "rhat_max": 1.004,
        "gate": gate, "ess_mean_per_second": mean / seconds, "ess_var_per_second": var / seconds,
    }  # fmt: skip


def test_the_goal_is_that_of_the_worse_ratio_of_pairs_alone():
    rows = [
        row("hmc auto", 1000, 1000, 10.0), row("numpyro model", 400, 100, 20.0, "fail"),
        row("hmc auto", 900, 900, 3.0, problem="xor"), row("numpyro model", 100, 150, 2.0, problem="xor"),
        row("hmc auto", 1, 1, 1.0, n=1000),
        row("numpyro", 1, 1, 1.0, problem="rings"),
    ]  # fmt: skip
    page = pairs(rows)
    assert page.startswith("Of 2 posteriors 1 have 5 times")
    assert "divergences in 1." in page
    table = [line for line in page.splitlines() if line.startswith("| 1")]
    assert table[0].endswith(
        "| 1000, 1000 in 10 s, R-hat 1.004 | (400, 100 in 20 s, R-hat 1.004) | 5.0, 20.0 |"
    )
    assert table[1].endswith(
        "| 900, 900 in 3 s, R-hat 1.004 | 100, 150 in 2 s, R-hat 1.004 | 6.0, 4.0 |"
    )
