"""Mutation testing: the changes of a formula that no test notices.

    uv run --group mutation benchmarks/mutation.py comparison densities     # two modules
    uv run --group mutation benchmarks/mutation.py --sample 60              # 60 of each module

cosmic-ray makes the mutants and keeps the results, one SQLite file a module, which its own reports
(`cr-report`, `cr-html`) read too. `mutation.toml` says which operators it uses and which tests
belong to each module. This script runs the tests: in a fork of a process that has imported JAX
and the other libraries, which starts in 0 s instead of 8 s, on a copy of the repository, and the
fast tests first. A run that is stopped goes on where it was; `--again` repeats the survivors alone,
for new tests.

Survivors that change no number, only the way to it or its speed, are listed in `mutation.toml` and
have a column of their own in the table.

No mutants are changes of annotations, of docstrings, of what an error message says and of zip's
`strict`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = Path(__file__).with_suffix(".toml")
# BlackJAX is not among them: it starts the backend, whose threads a fork would lose.
PRELOADED = (
    "arviz beartype equinox flax.nnx flax.linen gguf hypothesis jaxtyping matplotlib.pyplot numpyro "
    "optax pandas pytest safetensors scipy.stats sklearn.datasets sklearn.linear_model "
    "sklearn.metrics sklearn.model_selection tokenizers typeguard"
).split()


class LikelyFirst:
    """A pytest plugin: tests that noticed mutants and fast ones first, slow ones not at all."""

    def __init__(self, seconds: dict[str, float], kills: Counter[str], slowest: float):
        self.seconds, self.kills, self.slowest = seconds, kills, slowest
        self.now: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if self.seconds.get(item.nodeid, 0) <= self.slowest]
        items.sort(key=lambda item: self.cost(item.nodeid))

    def cost(self, test: str) -> float:
        """Seconds for each mutant that the test noticed."""
        return (self.seconds.get(test, 0) + 0.02) / (1 + self.kills[test])

    def pytest_runtest_logreport(self, report):
        self.now[report.nodeid] += report.duration


def run_tests(
    tests: list[str],
    module: Path,
    log: Path,
    plugin: LikelyFirst,
    timeout: float,
    write: Path | None,
) -> int | None:
    """Exit status of pytest in a fork, None after `timeout` seconds; may write what each took."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for stream in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            # A file that has changed twice in a second must not be taken for its compiled form.
            sys.dont_write_bytecode = write is None
            # The annotations of the mutated module alone are checked, which saves seconds.
            name = module.with_suffix("").as_posix().replace("/", ".")
            checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
            options = ["-o", "addopts=", f"--jaxtyping-packages={name},{checker}"]
            options += ["-x", "-q", "-p", "no:cacheprovider", "--tb=line"]
            status = int(pytest.main([*options, *tests], plugins=[plugin]))
            if write is not None:
                write.write_text(json.dumps(plugin.now))
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:
        if pid:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class WhatRuns(ast.NodeTransformer):
    """A program without annotations, docstrings and the messages of errors."""

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_arguments(self, node):
        # cosmic-ray takes the bare * of a signature for a product.
        node.args, node.posonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], []
        node.defaults = [*node.defaults, *(default for default in node.kw_defaults if default)]
        node.kwonlyargs, node.kw_defaults = [], []
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node):
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Expr(self, node):
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg == "strict":
            node.value = ast.Constant(True)
        return self.generic_visit(node)

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call):
            node.exc.args = []
        return node


def what_runs(source: str) -> str | None:
    """A text that is the same for programs that do the same; None if the source is no program."""
    try:
        return ast.dump(WhatRuns().visit(ast.parse(source)))
    except SyntaxError:
        return None


def make_mutants(module: Path, database) -> None:
    """Fill a new database with the mutants of a module, without those that change nothing."""
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.tools.filters.operators_filter import OperatorsFilter
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    init([module], database, {})
    OperatorsFilter().filter(database, argparse.Namespace(config=CONFIG))
    source = module.read_text()
    seen = {what_runs(source), None}
    nothing = WorkResult(output="nothing that runs changes", worker_outcome=WorkerOutcome.SKIPPED)
    for item in database.pending_work_items:
        (mutation,) = item.mutations
        mutated = mutate_code(source, get_operator(mutation.operator_name)(), mutation.occurrence)
        program = None if mutated is None else what_runs(mutated)
        if program in seen:
            database.set_result(item.job_id, nothing)
        seen.add(program)


def draw(database, *, sample: int | None, seed: int) -> list:
    """At most `sample` mutants in random order; a larger sample of the same seed holds them too."""
    skipped = {job for job, result in database.results if result.worker_outcome == "skipped"}
    items = [item for item in database.work_items if item.job_id not in skipped]
    # Sorted, as cosmic-ray's identifiers are random.
    items.sort(
        key=lambda item: (
            item.mutations[0].start_pos,
            item.mutations[0].operator_name,
            item.mutations[0].occurrence,
        )
    )
    random.Random(seed).shuffle(items)
    return items[:sample]


def new_text(diff: str) -> str:
    """The lines that a mutant adds, joined into one."""
    return " ".join(" ".join(line[1:] for line in diff.splitlines()[3:] if line[:1] == "+").split())


def test_mutants(
    module: Path, tests: list[str], harmless: set[str], database, folder: Path, arguments
) -> None:
    """Run the tests against every mutant that has no result yet."""
    from cosmic_ray.mutating import _make_diff, use_mutation
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    outcomes = {
        job: "harmless" if new_text(result.diff or "") in harmless else result.test_outcome
        for job, result in database.results
    }
    drawn = draw(
        database, sample=None if arguments.again else arguments.sample, seed=arguments.seed
    )
    wanted = "survived" if arguments.again else None
    jobs = [item for item in drawn if outcomes.get(item.job_id) == wanted]
    if not jobs:
        return
    times_file, log = folder / "times.json", folder / "tests.log"
    plugin = LikelyFirst({}, Counter(), arguments.slowest)
    log.unlink(missing_ok=True)
    status = run_tests(tests, module, log, plugin, 1200, times_file)
    if status != 0:
        sys.exit(f"the tests of {module} fail without a mutant, status {status}: see {log}")
    plugin.seconds = json.loads(times_file.read_text())
    used = [t for t in plugin.seconds.values() if t <= arguments.slowest]
    left = len(plugin.seconds) - len(used)
    print(
        f"{module}: {len(jobs)} mutants, {len(used)} tests of {sum(used):.1f} s"
        + f" ({left} slow ones left out)" * (left > 0),
        flush=True,
    )
    for item in jobs:
        (mutation,) = item.mutations
        operator = get_operator(mutation.operator_name)()
        log.unlink(missing_ok=True)
        with use_mutation(module, operator, mutation.occurrence) as (before, after):
            status = run_tests(tests, module, log, plugin, 60 + 5 * sum(used), None)
            diff = "\n".join(_make_diff(before, after, module))
        plugin.kills.update(re.findall("^(?:FAILED|ERROR) (.+?)(?: - |$)", log.read_text(), re.M))
        if status in (4, 5):
            sys.exit(f"pytest found no tests for {module}: see {log}")
        outcome = TestOutcome.SURVIVED if status == 0 else TestOutcome.KILLED
        result = WorkResult(
            output=log.read_text()[-4000:] if status is not None else "timeout",
            test_outcome=outcome,
            worker_outcome=WorkerOutcome.NORMAL,
            diff=diff,
        )
        database.set_result(item.job_id, result)
        if outcome == TestOutcome.SURVIVED and new_text(diff) not in harmless:
            changed = [line for line in diff.splitlines()[3:] if line[:1] in "+-"]
            print(f"  survived, line {mutation.start_pos[0]} ({mutation.operator_name[5:]})")
            print("\n".join(f"    {line}" for line in changed), flush=True)


def count(database, harmless: set[str]) -> dict[str, int]:
    """How many mutants there are, were tested, change no number, were killed and survived."""
    results = [result for _, result in database.results]
    tested = [result for result in results if result.test_outcome is not None]
    alive = [result for result in tested if result.test_outcome == "survived"]
    listed = sum(new_text(result.diff) in harmless for result in alive)
    pending = len(database.pending_work_items)
    return {
        "mutants": len(tested) + pending,
        "tested": len(tested),
        "harmless": listed,
        "killed": len(tested) - len(alive),
        "survived": len(alive) - listed,
    }


def modules_named(names: list[str], tests: dict[str, list[str]]) -> Iterator[str]:
    """The modules of `mutation.toml` with these names, or all."""
    if not names:
        yield from tests
    for name in names:
        path = "isounc/" + name.removeprefix("isounc/").removesuffix(".py") + ".py"
        if path not in tests:
            sys.exit(f"{name!r} is no module of {CONFIG.name}: {', '.join(tests)}")
        yield path


def main() -> None:
    """Make and test mutants of the modules; print the survivors and a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="as in `estimates/links`; all without one")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".mutation")
    parser.add_argument("--sample", type=int, help="test at most so many mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--slowest", type=float, default=5.0, help="leave out tests of more seconds"
    )
    parser.add_argument("--again", action="store_true", help="test the survivors alone, again")
    parser.add_argument("--table", action="store_true", help="test nothing, print the table")
    arguments = parser.parse_args()

    from cosmic_ray.work_db import WorkDB

    # As for Ctrl-C: the tests that are running end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    config = tomllib.loads(CONFIG.read_text())
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "jax_cache")
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for name in [] if arguments.table else PRELOADED:
        importlib.import_module(name)

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for entry in REPOSITORY.iterdir():
            if entry.name in ("isounc", "tests", "pyproject.toml"):
                copy = shutil.copytree if entry.is_dir() else shutil.copy
                copy(entry, Path(temporary) / entry.name)
            else:
                (Path(temporary) / entry.name).symlink_to(entry)
        os.chdir(temporary)
        sys.path.insert(0, temporary)
        for path in modules_named(arguments.modules, config["tests"]):
            # Mutants are numbered by what stands in the module: another text has other mutants.
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
            file = folder / f"{path.removesuffix('.py').replace('/', '.')}.{digest}.sqlite"
            new = not file.exists()
            database = WorkDB(file, WorkDB.Mode.create)
            if new and not arguments.table:
                make_mutants(Path(path), database)
            harmless = {" ".join(text.split()) for text in config["harmless"].get(path, [])}
            if not arguments.table:
                tests = config["tests"][path]
                test_mutants(Path(path), tests, harmless, database, folder, arguments)
            rows.append((path, count(database, harmless)))
            database.close()
    print("| module | mutants | tested | harmless | killed | survived |\n|---|---|---|---|---|---|")
    for path, numbers in rows:
        print(f"| {path} | " + " | ".join(str(number) for number in numbers.values()) + " |")


if __name__ == "__main__":
    main()
