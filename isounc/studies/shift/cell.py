"""A cell of the shift study: its networks and its posterior, the scores, and a row for each shift."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from isounc.gradnorm import value_and_grad_gram
from isounc.problems import Problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.sampling.moments import Posterior
from isounc.sampling.posterior import sample_posteriors
from isounc.studies.shift.detection import alarm_rate, detect, fewest, fit_threshold
from isounc.studies.shift.networks import Network, Training, train
from isounc.studies.shift.scores import (
    SCORES,
    Options,
    Signals,
    Undefined,
    Values,
    evaluate_score,
)
from isounc.studies.shift.settings import (
    Cell,
    Settings,
    cell_network,
    cell_sets,
    is_sampled,
    score_options,
    seed_of,
)
from isounc.studies.shift.shifts import SHIFTS, Sets

DIGITS = 6
"""Significant digits of the numbers in rows."""
IN_DISTRIBUTION = "test"
"""What rows about new inputs of the same distribution have in place of a shift."""
_TRAIN, _VALIDATION = "train", "validation"
NUMBERS = (
    *("auroc", "aupr", "fpr95", "log2_ratio", "alarms"),
    *("expected", "excess", "alarms_train", "excess_train"),
)
"""Columns of numbers.

    auroc, aupr, fpr95   of the score for the shift against `test` (`isounc.studies.shift.detection`)
    log2_ratio           log2 of its median over the shift over that over `test`
    alarms               share beyond the threshold that the inputs of `validation` set
    expected             the exact mean of alarms on new inputs of the same distribution
    excess               alarms - expected, of `test`
    alarms_train, excess_train   the same with the threshold that the training inputs set
"""
Row = dict[str, Any]


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Evaluate a batch, whose cells differ in the seed alone; one record each."""
    cells: Sequence[Cell] = batch.cells
    sets = [cell_sets(cell, settings) for cell in cells]
    network = cell_network(sets[0], cells[0], settings)
    posteriors: Sequence[Posterior | None] = [None] * len(cells)
    if is_sampled(cells[0], settings):
        posteriors = sample_posteriors(
            [_problem(one) for one in sets], network.model, prior_sd=settings.prior_sd,
            keys=[_key(cell, "posterior") for cell in cells], settings=settings.sampling,
            progress=lambda what, done, total: say(f"{what} {done}/{total}" if done else what),
        )  # fmt: skip
    say("networks")
    trained = _train_all(cells, sets, network, settings)
    records = []
    for i, cell in enumerate(cells):
        say(f"scores of seed {cell.seed}")
        networks = jax.tree.map(lambda leaf, i=i: leaf[i], trained)
        signals = measure(cell, sets[i], network, networks, posteriors[i], settings)
        records.append(_record(cell, sets[i], signals, posteriors[i], settings))
    return records


def _key(cell: Cell, purpose: str) -> PRNGKeyArray:
    return jax.random.key(seed_of(cell, purpose))


def _problem(sets: Sets) -> Problem:
    """The problem of the posterior, whose regions are all sets but the training inputs."""
    regions = {_VALIDATION: sets.validation, IN_DISTRIBUTION: sets.test, **sets.shifted}
    return Problem.from_arrays(
        sets.X, sets.y, likelihood="categorical", num_classes=sets.num_classes, regions=regions
    )


def _places(sets: Sets) -> dict[str, slice]:
    """Where the inputs of each set are among those of all of them."""
    sizes = {
        _TRAIN: len(sets.X), _VALIDATION: len(sets.validation), IN_DISTRIBUTION: len(sets.test),
        **{name: len(x) for name, x in sets.shifted.items()},
    }  # fmt: skip
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return dict(zip(sizes, map(slice, ends[:-1], ends[1:]), strict=True))


def _train_all(
    cells: Sequence[Cell], sets: Sequence[Sets], network: Network, settings: Settings
) -> Any:
    """Parameters of the members of every cell's ensemble, and of its network with dropout (last)."""
    each = settings.num_members + 1
    rates = [0.0] * settings.num_members + [settings.dropout_rate]
    if network.kind == "logistic":  # it has no hidden layer, and its last network is not used
        rates[-1] = 0.0
    trainings = Training(
        jnp.repeat(jnp.arange(len(cells)), each),
        jnp.concatenate([jax.random.split(_key(cell, "networks"), each) for cell in cells]),
        jnp.tile(jnp.asarray(rates, jnp.result_type(float)), len(cells)),
    )
    X = jnp.asarray(np.stack([one.X for one in sets]), jnp.result_type(float))
    y = jnp.asarray(np.stack([one.y for one in sets]))
    how = settings.train_cnn if network.kind == "cnn" else settings.train
    params = train(trainings, X, y, network=network, settings=how)
    return jax.tree.map(lambda leaf: leaf.reshape(len(cells), each, *leaf.shape[1:]), params)


def measure(
    cell: Cell,
    sets: Sets,
    network: Network,
    networks: Any,
    posterior: Posterior | None,
    settings: Settings,
) -> Signals:
    """What the scores of a cell are made from, at all inputs, the training inputs first."""
    inputs = [sets.X, sets.validation, sets.test, *sets.shifted.values()]
    X = jnp.asarray(np.concatenate(inputs), jnp.result_type(float))
    first = jax.tree.map(lambda leaf: leaf[0], networks)
    epsilon = settings.epsilon * float(sets.X.max() - sets.X.min())
    scale = jnp.asarray([epsilon, settings.temperature], X.dtype)
    logits, hidden, gram, perturbed = jax.device_get(_forward(first, X, scale, network=network))
    kernel, bias = network.read_out(first)
    members = _members(networks, X, network=network, num=settings.num_members)
    passes = None
    if network.kind != "logistic":
        last = jax.tree.map(lambda leaf: leaf[-1], networks)
        passes = _passes(
            last, X, _key(cell, "dropout"), jnp.asarray(settings.dropout_rate, X.dtype),
            network=network, num=settings.num_passes,
        )  # fmt: skip
    mcmc = None
    if posterior is not None:
        found = [moments.var.sum(axis=1) for moments in posterior.regions.values()]
        mcmc = np.concatenate([np.full(len(sets.X), np.nan), *found])
    return Signals(
        sets.y, logits, hidden, gram, np.asarray(kernel), np.asarray(bias), perturbed,
        np.asarray(members), None if passes is None else np.asarray(passes), mcmc,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="network")
def _forward(
    params: Any, X: Float[Array, "N D"], scale: Float[Array, " 2"], *, network: Network
) -> tuple[Float[Array, "N C"], Float[Array, "N F"], Float[Array, "N C C"], Float[Array, "N C"]]:
    """Logits, features, products of the logits' gradients, and logits at ODIN's inputs."""
    epsilon, temperature = scale

    def logits_at(params, x):
        return network.logits(params, x[None])[0]

    def sum_of_log_p(X):
        tempered = network.logits(params, X) / temperature
        return jax.nn.log_softmax(tempered, axis=1).max(axis=1).sum()

    logits, gram = value_and_grad_gram(logits_at, in_axes=0, batch_size=256)(params, X)
    # x - epsilon sign(-grad log p): towards a surer prediction.
    moved = X + epsilon * jnp.sign(jax.grad(sum_of_log_p)(X))
    return logits, network.hidden(params, X), gram, network.logits(params, moved)


@functools.partial(jax.jit, static_argnames=("network", "num"))
def _members(
    networks: Any, X: Float[Array, "N D"], *, network: Network, num: int
) -> Float[Array, "E N C"]:
    members = jax.tree.map(lambda leaf: leaf[:num], networks)
    return jax.lax.map(lambda params: network.logits(params, X), members)


@functools.partial(jax.jit, static_argnames=("network", "num"))
def _passes(
    params: Any,
    X: Float[Array, "N D"],
    key: PRNGKeyArray,
    rate: Float[Array, ""],
    *,
    network: Network,
    num: int,
) -> Float[Array, "T N C"]:
    hidden = network.hidden(params, X)

    def one(key):
        kept = jax.random.bernoulli(key, 1 - rate, hidden.shape)
        return network.of_hidden(params, hidden * kept / (1 - rate))

    return jax.lax.map(one, jax.random.split(key, num))


def _reasons(sets: Sets, signals: Signals) -> tuple[str, ...]:
    """Why the network of a cell cannot be looked at."""
    at = signals.logits[_places(sets)[IN_DISTRIBUTION]]
    if not all(
        np.isfinite(a).all() for a in (signals.logits, signals.gram, signals.members)
        if a is not None
    ):  # fmt: skip
        return ("A network diverged: logits or gradients are not finite.",)
    accuracy = float((at.argmax(axis=1) == sets.test_y).mean())
    constant = float(np.bincount(sets.test_y).max() / len(sets.test_y))
    if accuracy > constant:
        return ()
    return (
        f"The network is no better than a constant: accuracy {accuracy:.2f} and {constant:.2f}.",
    )


def _values(name: str, signals: Signals, options: Options) -> tuple[Values | None, str]:
    """A score at all inputs, or why there is none."""
    try:
        values = evaluate_score(name, signals, options)
    except Undefined as error:
        return None, str(error)
    judged = values[len(signals.y) :]  # the reference has none at the training inputs
    bad = int(len(judged) - np.isfinite(judged).sum())
    return (None, f"it is not finite at {bad} of {len(judged)} inputs") if bad else (values, "")


def rows_of(
    score: str, values: Values | None, places: Mapping[str, slice], alarm: float
) -> list[Row]:
    """A row for new inputs of the same distribution and for each shift, of one score."""
    higher, rows = SCORES[score].higher, []
    for name, place in places.items():
        if name in (_TRAIN, _VALIDATION):
            continue
        row: Row = {"score": score, "higher": higher, "shift": name, **dict.fromkeys(NUMBERS)}
        row["kind"] = "in" if name == IN_DISTRIBUTION else SHIFTS[name].kind
        rows.append(row)
        if values is None:
            continue
        there, inside = values[place], values[places[IN_DISTRIBUTION]]
        for source, end in ((_VALIDATION, ""), (_TRAIN, "_train")):
            setting = values[places[source]]
            # A reference that was not computed there, or training inputs too few for a threshold.
            if not np.isfinite(setting).all() or len(setting) < fewest(alarm):
                continue
            threshold = fit_threshold(setting, higher=higher, alarm=alarm)
            rate = alarm_rate(there, threshold, higher=higher)
            row[f"alarms{end}"] = rate
            if name == IN_DISTRIBUTION:
                row[f"excess{end}"] = rate - threshold.expected
                if not end:
                    row["expected"] = threshold.expected
        if name != IN_DISTRIBUTION:
            row |= detect(inside, there, higher=higher)._asdict()
            middles = float(np.median(there)), float(np.median(inside))
            if min(middles) > 0:
                row["log2_ratio"] = math.log2(middles[0]) - math.log2(middles[1])
    return rows


def _record(
    cell: Cell, sets: Sets, signals: Signals, posterior: Posterior | None, settings: Settings
) -> Record:
    places, failed = _places(sets), _reasons(sets, signals)
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}
    options = score_options(settings)
    for name in settings.scores:
        needs = SCORES[name].needs
        if needs and getattr(signals, needs) is None:
            continue
        values, reason = (None, "the network failed") if failed else _values(name, signals, options)
        if values is not None:
            arrays |= {f"{place}/{name}": values[where] for place, where in places.items()}
        for row in rows_of(name, values, places, settings.alarm):
            reasons = list(failed)
            if name == "mcmc" and posterior is not None:
                for region in dict.fromkeys((_VALIDATION, IN_DISTRIBUTION, row["shift"])):
                    reasons += posterior.gate.reasons_in(region)
            row |= {
                "problem": cell.problem, "network": cell.network, "seed": cell.seed,
                "gate": "fail" if reasons else "pass",
                "gate_reasons": "; ".join(dict.fromkeys(reasons)), "reason": reason,
            }  # fmt: skip
            rows.append({key: _short(value) for key, value in row.items()})
    at = signals.logits[places[IN_DISTRIBUTION]]
    meta = {
        "cell": dataclasses.asdict(cell),
        "num_params": int(cell_network(sets, cell, settings).num_params),
        "accuracy": float((at.argmax(axis=1) == sets.test_y).mean()),
        "gate": None if posterior is None else posterior.gate._asdict(),
        "stopped": None if posterior is None else posterior.stopped,
        "rows": rows,
    }
    return Record(cell.name, meta, arrays)


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
