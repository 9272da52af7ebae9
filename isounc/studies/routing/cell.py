"""A cell of the routing study: two networks, the scores of the cheap one, cascades and their costs."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

import isounc
from isounc.gradnorm import value_and_sq_grad_norm
from isounc.guard import Cascade
from isounc.guard.cost_risk import Answerers, cost_risk, gain
from isounc.llm.answers.logistic import share_smaller
from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.studies.routing.networks import CNN, train_cnn
from isounc.studies.routing.settings import (
    Cell,
    Settings,
    Split,
    make_split,
    networks_of,
    seed_of,
)
from isounc.training import fit_trained

DIGITS = 6
"""Significant digits of the numbers in rows."""
TIMED = 1000
"""Questions of a batch whose seconds are measured."""
SCORES = {
    "p": "1 − p",
    "entropy": "entropy",
    "isotropic": "‖∇p‖²",
    "total": "‖∇p‖² + p(1−p)",
    "logit_scaled": "logit-scaled",
    "moderated": "moderated",
    "router": "router",
}
"""Scores with their labels."""
GRADIENT = ("isotropic", "total", "logit_scaled", "moderated")
"""Scores that take a backward pass of the cheap network."""
NUMBERS = (
    *("cheap_risk", "risk", "auroc", "mean_risk", "random_risk", "oracle_risk", "gain"),
    *("cheap_microseconds", "microseconds"),
)
"""Columns of numbers of `results.csv`.

    cheap_risk, risk   share of wrong answers of the cheap and of the expensive network on the test rows
    auroc              of the score for a wrong answer of the cheap network
    mean_risk          mean of R(e) over the share e passed on; random_risk, oracle_risk likewise
    gain               (random_risk - mean_risk) / (random_risk - oracle_risk)
    cheap_microseconds of the cheap answer with its score, for a question
    microseconds       of the expensive answer
"""
CERTIFIED = ("found", "passed_on", "cost_share", "log2_cost", "cascade_risk", "excess")
"""Columns of `cascades.csv`.

    found          1 if a cascade keeps the promise, else 0
    passed_on      share of the test rows that it passes on
    cost_share     its mean cost on the test rows as a share of the expensive network's
    log2_cost      log2 of that
    cascade_risk   its share of wrong answers on the test rows
    excess         that less the target
"""
Row = dict[str, Any]
Network = Model | CNN


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Evaluate the cells of a batch, one record each."""
    records = []
    for cell in batch.cells:
        say(f"seed {cell.seed}")
        records.append(_record(cell, settings))
    return records


def _record(cell: Cell, settings: Settings) -> Record:
    split = make_split(cell.problem, cell.seed)
    models = networks_of(split, cell.cheap_width, settings)
    problem = Problem.from_arrays(
        split.train.X, split.train.y, likelihood="categorical", num_classes=split.num_classes
    )
    fits = []
    for i, model in enumerate(models):
        key = jax.random.key(seed_of(cell.problem, cell.seed, f"network {i}"))
        fits.append(
            train_cnn(problem, model, key=key, settings=settings.train)
            if isinstance(model, CNN)
            else fit_trained(problem, model, key=key, settings=settings.train)
        )
    reasons = [reason for fit in fits for reason in fit.reasons]
    thetas = [fit.theta for fit in fits]
    scores, right = {}, {}
    for part in ("guard", "test"):
        scores[part] = cheap_scores(models[0], thetas[0], split, part)
        rows = getattr(split, part)
        right[part] = np.stack(
            [
                predict(m, t, rows.X).argmax(axis=1) == rows.y
                for m, t in zip(models, thetas, strict=True)
            ],
            axis=1,
        )
    for part, log_odds in router_scores(split, right["guard"][:, 0]).items():
        scores[part]["router"] = log_odds
    seconds = measure_seconds(models, thetas, split, settings.num_timings)
    rows, cascades = [], []
    shared = dataclasses.asdict(cell) | {
        "networks": settings.networks,
        "gate": "fail" if reasons else "pass",
        "gate_reasons": "; ".join(reasons),
    }
    for name in SCORES:
        cheap = seconds["norm" if name in GRADIENT else "router" if name == "router" else "forward"]
        row = judge(scores["test"][name], right["test"])
        row |= {"cheap_microseconds": 1e6 * cheap, "microseconds": 1e6 * seconds["expensive"]}
        rows.append(shared | {"score": name} | _short(row))
        if name == "router":
            continue  # it is no cascade: the cheap network has not answered when it decides
        costs = (cheap, seconds["expensive"])
        for target in settings.target_risks:
            found = certify(
                {part: scores[part][name] for part in scores}, right, costs, target=target,
                confidence=settings.confidence, seed=seed_of(cell.problem, cell.seed, "halves"),
            )  # fmt: skip
            cascades.append(shared | {"score": name, "target": target} | _short(found))
    arrays = {f"score/{name}": values for name, values in scores["test"].items()}
    meta = {"cell": dataclasses.asdict(cell), "rows": rows, "cascades": cascades}
    return Record(cell.name, meta, arrays | {"right": right["test"]})


def predict(model: Network, theta: np.ndarray, X: np.ndarray) -> Float[np.ndarray, "N C"]:
    """Probabilities of the classes."""
    return np.asarray(_probabilities(jnp.asarray(theta), jnp.asarray(X, jnp.float32), model=model))


@functools.partial(jax.jit, static_argnames="model")
def _probabilities(theta, X, *, model: Network):
    return jax.nn.softmax(model.apply(theta, X), axis=1)


def cheap_scores(
    model: Network, theta: np.ndarray, split: Split, part: str
) -> dict[str, Float[np.ndarray, " N"]]:
    """Scores of the cheap answers, all but the router's; high is uncertain."""
    X = np.asarray(getattr(split, part).X, np.float32)
    reference = np.asarray(split.train.X, np.float32)
    probs = predict(model, theta, X).astype(np.float64)
    top = probs.max(axis=1)
    with warnings.catch_warnings():
        # It warns of p below 1/2, where a norm has the wrong sign: what that costs is the question here.
        warnings.simplefilter("ignore", UserWarning)
        asked: tuple[Any, ...] = (model, X, theta)
        how: dict[str, Any] = {"target": "predicted"}
        if isinstance(model, CNN):
            asked = (model.apply_params, X, model.unflatten(theta))
            how |= {"task": "multiclass", "outputs": "logits"}
        raw = isounc.isotropic(*asked, **how)
        scaled = isounc.isotropic(*asked, method="logit_scaled", reference=reference, **how)
    norm = np.asarray(raw.epistemic, np.float64)[:, 0]
    assert scaled.moderated is not None
    return {
        "p": 1 - top,
        "entropy": -(probs * np.log(np.maximum(probs, 1e-300))).sum(axis=1),
        "isotropic": norm,
        "total": norm + top * (1 - top),
        "logit_scaled": np.asarray(scaled.epistemic, np.float64)[:, 0],
        "moderated": 1 - np.asarray(scaled.moderated, np.float64)[:, 0],
    }


@functools.partial(jax.jit, static_argnames="model")
def _norms(params, X, *, model: Network):
    """Predicted probabilities and the squared norms of their gradients, as one compiled program."""

    def top(params, x):
        return jax.nn.softmax(model.apply_params(params, x[None])[0]).max()

    return value_and_sq_grad_norm(top, in_axes=0)(params, X)


def router_scores(
    split: Split, right: Bool[np.ndarray, " N"]
) -> dict[str, Float[np.ndarray, " N"]]:
    """Log odds that the cheap answer is wrong given the input, on guard rows and test rows."""
    from sklearn.linear_model import LogisticRegression

    if right.all() or not right.any():
        return {part: np.zeros(len(getattr(split, part).y)) for part in ("guard", "test")}
    fit = LogisticRegression(max_iter=2000).fit(split.guard.X, ~right)
    return {part: fit.decision_function(getattr(split, part).X) for part in ("guard", "test")}


def measure_seconds(
    models: tuple[Network, Network], thetas: list[np.ndarray], split: Split, num: int
) -> dict[str, float]:
    """Seconds of a question of what can be paid for, in a batch of `TIMED`."""
    questions = np.resize(split.test.X.astype(np.float32), (TIMED, split.test.X.shape[1]))
    weights = np.zeros((questions.shape[1], 1), np.float32)
    # All on the device beforehand, so that each way is its program alone.
    X, (cheap, expensive) = jnp.asarray(questions), [jnp.asarray(theta) for theta in thetas]
    params = models[0].unflatten(cheap)
    ways: dict[str, Callable[[], Any]] = {
        "forward": lambda: _probabilities(cheap, X, model=models[0]).block_until_ready(),
        "norm": lambda: jax.block_until_ready(_norms(params, X, model=models[0])),
        "expensive": lambda: _probabilities(expensive, X, model=models[1]).block_until_ready(),
        "router": lambda: questions @ weights,
    }
    best = dict.fromkeys(ways, np.inf)
    for _ in range(num + 1):  # the first compiles
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: seconds / TIMED for name, seconds in best.items()}


def judge(score: Float[np.ndarray, " N"], right: Bool[np.ndarray, "N 2"]) -> Row:
    """How well a score says whose questions to pass on; ties are passed on in random order."""
    wrong = ~right[:, 0]
    auroc = None
    if wrong.any() and not wrong.all():
        auroc = float(share_smaller(score[wrong], score[~wrong]).mean())
    return {
        "cheap_risk": float(wrong.mean()), "risk": float((~right[:, 1]).mean()), "auroc": auroc,
        **gain(score, right)._asdict(),
    }  # fmt: skip


def certify(
    scores: Mapping[str, Float[np.ndarray, " N"]],
    right: Mapping[str, Bool[np.ndarray, "N 2"]],
    costs: tuple[float, float],
    *,
    target: float,
    confidence: float,
    seed: int,
) -> Row:
    """Fit a cascade to the guard rows, and judge it on the test rows."""
    cascade = Cascade.fit(
        scores["guard"][:, None], right["guard"], costs, target_risk=target,
        confidence=confidence, seed=seed,
    )  # fmt: skip
    row: Row = dict.fromkeys(CERTIFIED)
    row["found"] = int(cascade.thresholds is not None)
    if cascade.thresholds is None:
        return row
    stages = cascade.choose(scores["test"][:, None])
    found = cost_risk(stages[None], Answerers(right["test"], np.array(costs)))
    share = float(found.cost[0] / costs[1])
    return row | {
        "passed_on": float(stages.mean()), "cost_share": share, "log2_cost": float(np.log2(share)),
        "cascade_risk": float(found.risk[0]), "excess": float(found.risk[0] - target),
    }  # fmt: skip


def _short(row: Mapping[str, Any]) -> Row:
    return {k: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for k, v in row.items()}
