"""Code in the README and in the documentation runs, and its commands are taken by the command line."""

from __future__ import annotations

import re
import tomllib

import numpy as np
import pytest

import isounc
from isounc.estimates.links import LINK_MOMENTS
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.kernels import SAMPLERS
from isounc.sampling.settings import SAMPLER_NAMES
from isounc.studies import load
from tests.llm.files import write_folder
from tests.pages import PAGES, ROOT, blocks, commands, isounc_arguments, run, same_output

ELSEWHERE = {"docs/serve.md"}
"""Pages whose Python blocks need a service and run in tests/serve/test_page.py."""
NOT_RUN: dict[str, list[str]] = {
    "docs/howto/cluster.md": [
        "it starts two hosts; tests/sampling/test_hosts.py has two processes"
    ],
}
"""Blocks that do not run, by page: the reasons that the page gives."""
NEEDS = {
    "docs/coming-from/laplace-torch.md": ["laplace"] * 2,
    "docs/coming-from/lm-polygraph.md": ["lm_polygraph"],
    "docs/coming-from/opacus.md": ["opacus"] * 2,
}
"""Blocks that run where another library is installed, by page."""
TOOLS = {"mkdocs", "pre-commit", "pyright", "pytest", "lint-imports", "ruff"}
"""Commands of the development tools, after `uv run`."""
WITH_PYTHON = [
    page
    for page in PAGES
    if page not in ELSEWHERE and any(b.language == "python" for b in blocks(page))
]
WITH_COMMANDS = [page for page in [*PAGES, "CONTRIBUTING.md"] if any(commands(page))]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def registries(monkeypatch):
    """Names that a page registers are gone after it."""
    from isounc import likelihoods, problems
    from isounc.estimates import estimators

    tables = (
        problems.PROBLEMS, likelihoods.LIKELIHOODS, LINK_MOMENTS, estimators.ESTIMATORS, SAMPLERS,
        DRIVERS,
    )  # fmt: skip
    load("scaling")  # its presets have the problems that there are when it is imported
    before, names = [dict(table) for table in tables], list(SAMPLER_NAMES)
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    SAMPLER_NAMES[:] = names


def holds_index(names):
    estimate = names["estimate"]
    assert estimate.epistemic.shape == (5, 3) and (estimate.epistemic > 0).all()


def holds_own_model(names):
    assert names["estimate"].moderated.shape == (5, 3)
    np.testing.assert_allclose(names["estimate"].moderated.sum(1), 1, rtol=1e-4)
    assert names["scale"].rule == "effective_dimension"


def holds_own_data(names):
    assert names["point"].passed and names["posterior"].gate.passed
    assert names["estimate"].epistemic.shape == names["reference"].var.shape == (20, 1)


def holds_references(names):
    assert names["grid"].var.shape == (441, 1)
    # The reference's own draws, of which it keeps few.
    assert names["agreement"].agrees and names["thetas"].shape[0] == 4
    assert np.isfinite(names["log_posterior"](names["start"]))


def holds_own_problem(names):
    assert set(np.unique(names["problem"].y)) == {0, 1}
    again = isounc.make_problem("stripes", n=40, seed=3)
    np.testing.assert_array_equal(again.X, names["problem"].X)
    # The studies take the name, where it is registered.
    options = ["--problems", "stripes", "--widths", "8", "--dry-run", "--cache", ""]
    with pytest.raises(SystemExit) as ended:
        names["main"](["scaling", *options])
    assert ended.value.code == 0


def holds_own_estimator(names):
    mine, whole = names["mine"].epistemic, names["whole"].epistemic
    assert (mine > 0).all() and (mine < whole).mean() > 0.9


def holds_own_likelihood(names):
    # E[exp(f)] exceeds exp(f) at the MAP; both are rates of the same counts.
    assert (names["estimate"].epistemic > 0).all() and names["point"].passed
    np.testing.assert_allclose(names["estimate"].prob[4], np.exp(0.4), rtol=0.5)


def holds_own_sampler(names):
    walked, moved = names["walked"], names["moved"]
    assert (walked.sampler, moved.sampler) == ("random_walk", "hmc") and moved.gate.passed
    # The same posterior, as far as the walk's own effective sample size says.
    for region, moments in moved.regions.items():
        error = np.abs(walked.regions[region].mean - moments.mean)
        sd = np.sqrt(moments.var / walked.gate.ess_bulk_min)
        assert (error < 5 * sd).all()


def holds_own_study(names):
    assert len(isounc.runs.load("runs/before").names()) == 6
    assert len(isounc.runs.load("runs/growing").names()) == 2
    with pytest.raises(ValueError, match="num_seeds: 3 in the folder, 4 asked for"):
        names["run_study"](names["STUDY"], names["Settings"](out="runs/before", num_seeds=4))


def holds_readme(names):
    assert names["posterior"].gate.passed and names["guard"].certificate.num_calibration == 200
    assert names["sq_norm"].shape == (8,)


HOLDS = {
    "README.md": holds_readme,
    "docs/index.md": holds_index,
    "docs/howto/own-data.md": holds_own_data,
    "docs/howto/own-model.md": holds_own_model,
    "docs/howto/own-problem.md": holds_own_problem,
    "docs/howto/own-estimator.md": holds_own_estimator,
    "docs/howto/own-likelihood.md": holds_own_likelihood,
    "docs/howto/own-sampler.md": holds_own_sampler,
    "docs/howto/own-study.md": holds_own_study,
    "docs/howto/references.md": holds_references,
}
"""What the names that a page leaves must be."""


@pytest.mark.parametrize("page", WITH_PYTHON)
@pytest.mark.filterwarnings("ignore:p of the predicted class")
@pytest.mark.usefixtures("registries")
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The notebook language_model has the real one, which takes a minute.
    tiny = {
        'load_model("smollm2")': f"load_model({str(write_folder(tmp_path / 'tiny', 'llama'))!r})"
    }
    names = run(page, tiny if page == "docs/howto/language-model.md" else None)
    HOLDS.get(page, lambda names: None)(names)


def test_every_block_runs_or_says_why_not():
    languages = {page: {b.language for b in blocks(page)} for page in PAGES}
    others = {"sh", "text", "yaml", "python", "given"}
    assert {page: found - others for page, found in languages.items() if found - others} == {}
    reasons = {page: [b.reason for b in blocks(page) if b.reason] for page in PAGES}
    assert {page: found for page, found in reasons.items() if found} == NOT_RUN
    needs = {page: [b.needs for b in blocks(page) if b.needs] for page in PAGES}
    assert {page: found for page, found in needs.items() if found} == NEEDS
    # Text is the output of the block before it, which `run` compares.
    for page in PAGES:
        kinds = [b.language for b in blocks(page)]
        alone = [
            i for i, kind in enumerate(kinds) if kind == "text" and kinds[:i][-1:] != ["python"]
        ]
        assert alone == [], page


class Parsed(SystemExit):
    """The command line took a command, which would run now."""


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_taken_by_the_command_line(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # where they are to be given
    stop_after_parsing(monkeypatch)
    for words in commands(page):
        check_extras(words)
        arguments = isounc_arguments(words)
        if arguments is not None:
            check_isounc(arguments)
        elif words[:2] == ["uv", "run"]:
            rest = [w for w in words[2:] if not w.startswith("-")]
            program = next(w for w in rest if w in TOOLS or w.endswith(".py"))
            of_the_page = f"`{program}`" in (ROOT / page).read_text(encoding="utf-8")
            assert program in TOOLS or (ROOT / program).is_file() or of_the_page, words


def check_isounc(arguments):
    from isounc.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    asked = {"--help", "--version"} & {*arguments}
    assert isinstance(ended.value, Parsed) or (asked and ended.value.code == 0), arguments


def check_extras(words):
    """The extras and groups of a command are those of the project."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    for option, known in (("--extra", extras), ("--group", PYPROJECT["dependency-groups"])):
        named = {words[i + 1] for i, word in enumerate(words) if word == option}
        assert named <= known.keys(), words
    for inside in re.findall(r"\bisounc\[([\w,]+)\]", " ".join(words)):
        assert {*inside.split(",")} <= extras.keys(), words


def stop_after_parsing(monkeypatch):
    """Let every command end where it has understood its arguments."""
    import argparse

    import tyro

    from isounc.runs import command, settings

    def stop(study, given):
        settings.check_run_settings(given)
        study.check(given)
        raise Parsed

    def parse(self, *args, **kwargs):
        found = parsed(self, *args, **kwargs)
        if self.prog == "isounc":  # which only finds the subcommand
            return found
        raise Parsed

    def fill(kind, **kwargs):
        value = filled(kind, **kwargs)
        if kwargs.get("prog") in ("isounc ask", "isounc serve"):
            raise Parsed
        return value

    parsed, filled = argparse.ArgumentParser.parse_args, tyro.cli
    monkeypatch.setattr(command, "run_study", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(tyro, "cli", fill)


@pytest.mark.parametrize(
    "arguments",
    [
        ["scaling", "--widht", "8"],
        ["scaling", "--widths", "-1"],
        ["guard", "fit", "a.csv", "--risk", "0.1"],
        ["doctor", "--devices", "cpu"],
        ["ask", "Who?", "--bye", "word"],
        ["serve", "smollm2", "--prot", "80"],
    ],
)
def test_a_wrong_option_is_refused(arguments, monkeypatch, tmp_path):
    """So that the test above can fail."""
    monkeypatch.chdir(tmp_path)
    stop_after_parsing(monkeypatch)
    with pytest.raises(AssertionError):
        check_isounc(arguments)


def test_shown_output_is_compared():
    """So that a page cannot show what its block does not print."""
    same_output("target 0.10\nn   22", "target 0.1\nn 22")
    for shown in ("target 0.2\nn 22", "target 0.1\nm 22", "target 0.1"):
        with pytest.raises(AssertionError):
            same_output(shown, "target 0.1\nn 22")
