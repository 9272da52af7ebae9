"""Sentences, generated from the tables, that say what a run of the shift study shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isounc.runs.words import interval, listed, short, signed
from isounc.statistics import VERDICTS
from isounc.studies.shift.cell import IN_DISTRIBUTION
from isounc.studies.shift.networks import NETWORKS
from isounc.studies.shift.scores import SCORES
from isounc.studies.shift.settings import ALL, BASE
from isounc.studies.shift.shifts import KINDS, SHIFTS
from isounc.studies.shift.tables import POOLED, Place, Results, Row, failing
from isounc.studies.shift.verdicts import CEILING, FACTORS, HYPOTHESES, NORMS


class Tables:
    """The tables of a run, for look-ups."""

    def __init__(
        self,
        results: Results,
        rows: Sequence[Row],
        summary: Sequence[Row],
        verdicts: Sequence[Row],
    ):
        self.results, self.rows, self.summary, self.verdicts = results, rows, summary, verdicts
        self._by_name: dict[str, list[Row]] = {name: [] for name in HYPOTHESES}
        for row in verdicts:
            self._by_name[row["hypothesis"]].append(row)
        self._lines = {(Place(*(r[n] for n in Place._fields)), r["score"]): r for r in summary}

    def line(self, place: Place, score: str) -> Row:
        """The line of the summary, or an empty one."""
        return self._lines.get((place, score), {})

    def mean(self, place: Place, score: str, column: str) -> float | None:
        """A mean of the summary."""
        return self.line(place, score).get(f"{column}_mean")

    def found(self, hypothesis: str, **where: Any) -> list[Row]:
        """The verdicts on a hypothesis with these values."""
        rows = self._by_name[hypothesis]
        return [r for r in rows if all(r[name] == v for name, v in where.items())]


def reading(tables: Tables) -> list[str]:
    """Paragraphs: what was run, AUROCs, each hypothesis, and the linear condition."""
    found = [_scope(tables)]
    for network in tables.results.networks:
        found.append(_aurocs(tables, network))
    found += [_detects(tables), _against(tables)]
    found += [_by_place(tables, name) for name in ("near the ceiling", "larger out")]
    found += [_factors(tables), _linear(tables), _rates(tables)]
    return [paragraph for paragraph in found if paragraph]


def _scope(tables: Tables) -> str:
    results = tables.results
    cells = {(row["problem"], row["network"], row["seed"]) for row in tables.rows}
    seeds = sorted({row["seed"] for row in tables.rows})
    words = (
        f"{len(cells)} cells: {listed(results.problems)}; {listed(results.networks)}; seeds "
        f"{seeds[0]} to {seeds[-1]}."
    )
    failed: dict[str, set[int]] = {}
    for row in failing(tables.rows):
        what = "the posterior" if row["score"] == CEILING else "the network"
        failed.setdefault(f"{what} of {row['problem']} ({row['network']})", set()).add(row["seed"])
    if failed:
        words += f" Failed, in one region or more, and in no number there: {_seeds(failed)}."
    else:
        words += " Every network passed its check and every posterior its gate."
    undefined: dict[str, set[int]] = {}
    for row in tables.rows:
        if row["reason"] and row["gate"] == "pass":
            what = f"{SCORES[row['score']].label} on {row['problem']} ({row['network']})"
            undefined.setdefault(f"{what}, {row['reason']}", set()).add(row["seed"])
    if undefined:
        words += f" Undefined, and in no number and no difference: {_seeds(undefined)}."
    return words


def _seeds(found: dict[str, set[int]]) -> str:
    return "; ".join(f"{what}: {len(seeds)} of the seeds" for what, seeds in found.items())


def _aurocs(tables: Tables, network: str) -> str:
    """Say the mean AUROC of every score over the problems, best first."""
    parts = []
    for kind in KINDS:
        place = Place(ALL, network, kind)
        known = [
            (value, name)
            for name in tables.results.scores
            if name != CEILING and (value := tables.mean(place, name, "auroc")) is not None
        ]
        if known:
            said = [f"{SCORES[name].label} {short(value)}" for value, name in sorted(known)[::-1]]
            parts.append(f"{kind}: {', '.join(said)}")
    if not parts:
        return ""
    return f"Mean AUROC over the problems, {NETWORKS[network]}. {'. '.join(_capital(parts))}."


def _capital(parts: Sequence[str]) -> list[str]:
    return [part[0].upper() + part[1:] for part in parts]


def _single(tables: Tables, name: str, **where: Any) -> list[Row]:
    """Verdicts of a hypothesis for single problems."""
    return [row for row in tables.found(name, **where) if row["problem"] != ALL]


def _counted(rows: Sequence[Row]) -> str:
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
    return listed([f"{count} {verdict}" for verdict, count in counts.items()])


def _where(row: Row) -> str:
    shift = SHIFTS[row["shift"]].label if row["shift"] in SHIFTS else row["shift"]
    return f"{row['problem']} {row['network']}, {shift}"


def _detects(tables: Tables) -> str:
    """Say where the isotropic estimate and the log norm are on the stated side of one half."""
    parts = []
    for score in (BASE, "log_norm", "gradnorm"):
        rows = _single(tables, "detects", score=score)
        if not rows:
            continue
        words = f"{SCORES[score].label}, higher means {SCORES[score].higher}: {_counted(rows)}"
        wrong = [f"{_where(r)} {short(r['mean'])}" for r in rows if r["verdict"] == "refuted"]
        parts.append(words + (f" (refuted: {'; '.join(wrong)})" if wrong else ""))
    if not parts:
        return ""
    claim = HYPOTHESES["detects"].claim
    return f"“Detects” ({claim}), places of a problem, network and shift. {'. '.join(parts)}."


def _against(tables: Tables) -> str:
    """Say which scores the isotropic estimate beats and which beat it, over the problems."""
    parts = []
    for network in (ALL, *[n for n in tables.results.networks if n not in POOLED]):
        for kind in KINDS:
            rows = tables.found("isotropic wins", problem=ALL, network=network, shift=kind)
            said = []
            for verdict, called in (("confirmed", "ahead of"), ("refuted", "behind")):
                names = [
                    f"{SCORES[row['rival']].label} ({signed(row['mean'])})"
                    for row in rows
                    if row["verdict"] == verdict
                ]
                said.append(f"{called} {listed(names)}" if names else f"{called} none")
            if rows:
                who = "MLP and CNN" if network == ALL else NETWORKS[network]
                parts.append(f"{who}, {kind}: {'; '.join(said)}")
    if not parts:
        return ""
    return (
        f"“Isotropic wins” ({HYPOTHESES['isotropic wins'].claim}), over the problems, beyond doubt. "
        f"{'. '.join(_capital(parts))}."
    )


def _by_place(tables: Tables, name: str) -> str:
    """Say the verdicts on the isotropic estimate for every place."""
    rows = _single(tables, name, score=BASE)
    if not rows:
        return ""
    said = [f"{_where(row)}: {row['verdict']} ({interval(row)})" for row in rows]
    return f"“{name.capitalize()}” ({HYPOTHESES[name].claim}), {BASE}. {'; '.join(said)}."


def _factors(tables: Tables) -> str:
    """Say whether the feature factor adds to the output factor."""
    parts = []
    for score in FACTORS:
        rows = _single(tables, "features help", score=score)
        if rows:
            parts.append(f"{SCORES[score].label}: {_counted(rows)}")
    if not parts:
        return ""
    claim = HYPOTHESES["features help"].claim
    return f"“Features help” ({claim}), places of a problem, network and shift. {'; '.join(parts)}."


def _linear(tables: Tables) -> str:
    """Say what norms do far away under a linear classifier, which grows sure there."""
    parts = []
    for problem in tables.results.problems:
        for score in NORMS:
            rows = _single(tables, "larger out", problem=problem, network="logistic", score=score)
            parts += [
                f"{problem}, {SCORES[score].label}: factors of 2 {interval(row)}, {row['verdict']}; "
                f"AUROC {short(tables.mean(_place(row), score, 'auroc'))}"
                for row in rows
            ]
    if not parts:
        return ""
    return (
        "Logistic regression, which is sure far from its boundary (the authors' caveat). Median norm "
        f"in the far region over that in distribution. {'. '.join(parts)}."
    )


def _place(row: Row) -> Place:
    return Place(row["problem"], row["network"], row["shift"])


def _rates(tables: Tables) -> str:
    """Say what rate of false alarms thresholds kept."""
    parts = []
    for network in tables.results.networks:
        place = Place(ALL, network, IN_DISTRIBUTION)
        expected = tables.mean(place, BASE, "expected")
        if expected is None:
            continue
        said = []
        for column, name, by in (
            ("alarms", "keeps its rate", "new inputs"),
            ("alarms_train", "keeps its rate from training", "the training inputs"),
        ):
            rows = tables.found(name, problem=ALL, network=network)
            means = {r["score"]: tables.mean(place, r["score"], column) for r in rows}
            known = {score: mean for score, mean in means.items() if mean is not None}
            if not known:
                continue
            most = max(known, key=lambda score: known[score])
            said.append(
                f"set by {by}, {BASE} {short(known.get(BASE))}, the largest rate {short(known[most])} "
                f"({SCORES[most].label}), “{name}” {_counted(rows)} of the scores"
            )
        parts.append(
            f"{NETWORKS[network][0].upper()}{NETWORKS[network][1:]}: expected {expected:.3f}; "
            f"{'; '.join(said)}"
        )
    if not parts:
        return ""
    return f"False alarms on further inputs of the distribution. {'. '.join(parts)}."
