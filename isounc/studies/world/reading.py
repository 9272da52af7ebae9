"""Sentences, generated from the tables, that say what a run of the world study shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isounc.runs.words import interval, listed, short, signed
from isounc.statistics import VERDICTS
from isounc.studies.world.cell import CONDITIONS
from isounc.studies.world.scores import SCORES
from isounc.studies.world.tables import ALL, Results, Row, Rows, Size, What
from isounc.studies.world.verdicts import HYPOTHESES, SIGNED

_MEMBERS = {
    "trace": "Σ_c Var p_c",
    "mi": "mutual information",
    "var_p": "Var p",
    "bootstrap": "Σ_c Var p_c of decoders trained on bootstrap samples",
}
"""References that other decoders make, in words."""

CHAIN_WORDS = {
    "local": "stochastic gradient chains around θ*",
    "hmc": "Hamiltonian Monte Carlo with all sentences",
}
"""Chains of one density, in words."""
_OF_CHAINS = {
    "local": ("near theta*", "nearer than seeds", "nearer than seeds, Var p"),
    "hmc": ("near theta*, HMC", "beyond p, HMC"),
}
"""Hypotheses about them."""


class Tables:
    """The tables of a run, for look-ups."""

    def __init__(
        self, results: Results, verdicts: Rows, at_match: Rows, why_none: str, match: float
    ):
        self.results, self.verdicts, self.at_match = results, verdicts, at_match
        self.why_none, self.match = why_none, match

    def found(self, hypothesis: str, **where: Any) -> list[Row]:
        """The verdicts on a hypothesis with these values."""
        rows = [row for row in self.verdicts if row["hypothesis"] == hypothesis]
        return [r for r in rows if all(r[name] == v for name, v in where.items())]


def reading(tables: Tables) -> list[str]:
    """Paragraphs: what was run, AUROCs by condition, each hypothesis, and what failed to match."""
    found = [_scope(tables), _aurocs(tables), _combined(tables)]
    found += [_single(tables, name) for name in ("chance on recall", "unlike self-assessment")]
    found += [
        _assessment(tables),
        _sign(tables),
        _temperature(tables),
        _oracle(tables),
        _correspondence(tables),
    ]
    found += [*(_chains(tables, name) for name in CHAIN_WORDS), _unknown(tables), _size(tables)]
    return [paragraph for paragraph in found if paragraph]


def _scope(tables: Tables) -> str:
    results = tables.results
    parts = []
    for size in results.longest:
        told = results.over(size, What("told"), "accuracy").mean
        below = results.over(size, What(), "share_below").mean
        every = results.over(size, What(), "accuracy").mean
        parts.append(
            f"{size.label}: {short(every)} of all, {short(told)} of recall that was told, p below one "
            f"half for {short(below)}"
        )
    worlds = f"{results.worlds[0]} to {results.worlds[-1]}"
    few = "" if len(results.worlds) > 1 else " One world has no interval, and decides nothing."
    return (
        f"Worlds {worlds} ({len(results.worlds)}). Right answers after {results.epochs[-1]} epochs, "
        f"{'; '.join(parts)}.{few}"
    )


def _aurocs(tables: Tables) -> str:
    """Say the mean AUROC of every score over the widths, best first, by condition."""
    results, parts = tables.results, []
    for condition in ("all", "recall", "conflict16", "conflict4", "misconception", "rule"):
        known, counts = [], []
        for score in results.scores:
            if score in ("oracle", "regression"):
                continue
            found = results.over_widths(results.epochs[-1], What(condition, score=score), "auroc")
            if found.mean is not None:
                known.append((found.mean, score))
                counts.append(found.num_seeds)
        oracle = results.over_widths(results.epochs[-1], What(condition), "oracle").mean
        if known:
            said = [f"{SCORES[name].label} {short(mean)}" for mean, name in sorted(known)[::-1]]
            few = fewer_worlds(results, min(counts))
            parts.append(f"{CONDITIONS[condition]}{few}: oracle {short(oracle)}, {', '.join(said)}")
    return f"Mean AUROC for a wrong answer over the widths. {'. '.join(_capital(parts))}." * bool(
        parts
    )


def fewer_worlds(results: Results, count: int) -> str:
    """Say in how many worlds a number is defined where that is not in all."""
    whole = len(results.worlds)
    return f" ({count} of {whole} worlds)" if count < whole else ""


def _capital(parts: Sequence[str]) -> list[str]:
    return [part[0].upper() + part[1:] for part in parts]


def _combined(tables: Tables) -> str:
    rows = tables.found("combined best in conflict", size=ALL)
    said = [f"{SCORES[r['rival']].label} {r['verdict']} ({interval(r)})" for r in rows]
    claim = HYPOTHESES["combined best in conflict"].claim
    return f"“Combined best in conflict” ({claim}). Against {'; '.join(said)}." * bool(said)


def _single(tables: Tables, name: str) -> str:
    """Say a verdict over the widths, with those of every size."""
    rows = tables.found(name)
    said = [f"{_size_words(r)} {short(r['mean'])}{_ends(r)}, {r['verdict']}" for r in rows]
    words = f"“{name.capitalize()}” ({HYPOTHESES[name].claim}). {'; '.join(_capital(said))}."
    if name == "unlike self-assessment":
        own = tables.found("points right", size=ALL, score="p_true", condition=ALL, part="all")
        words += "".join(
            f" P(True) itself ranks wrong answers with AUROC {short(r['mean'])}{_ends(r)}."
            for r in own
        )
    return words * bool(said)


def _assessment(tables: Tables) -> str:
    """Say of every size whether it learnt to say which answers are true."""
    results, parts = tables.results, []
    for row in tables.found("learns self-assessment"):
        said = f"{_size_words(row)} {short(row['mean'])}{_ends(row)}, {row['verdict']}"
        for size in results.longest:
            if size.label == row["size"]:
                what = What("told", score="p_true")
                right, taught = (
                    results.over(size, what, f"{name}_accuracy").mean
                    for name in ("asked", "taught")
                )
                own = results.over(size, What(score="p_true"), "auroc")
                said += (
                    f" (right replies {short(right)}, to the sentences trained on {short(taught)}; "
                    f"AUROC for its own wrong answers {short(own.mean)}{_ends(own._asdict())})"
                )
        parts.append(said)
    claim = HYPOTHESES["learns self-assessment"].claim
    return f"“Learns self-assessment” ({claim}). {'; '.join(_capital(parts))}." * bool(parts)


def _size_words(row: Row) -> str:
    return "all widths" if row["size"] == ALL else row["size"]


def _ends(row: Row) -> str:
    return "" if row["low"] is None else f" [{short(row['low'])}, {short(row['high'])}]"


def _sign(tables: Tables) -> str:
    """Say in which parts each score points right, over the widths."""
    parts = []
    for score in SIGNED:
        said = []
        for part, words in (("all", "all"), ("below", "p below ½"), ("above", "above")):
            rows = tables.found("points right", size=ALL, score=score, condition=ALL, part=part)
            said += [
                f"{words} {short(r['mean'])}{_ends(r)}{fewer_worlds(tables.results, r['num_worlds'])} "
                f"{r['verdict']}"
                for r in rows
            ]
        if said:
            parts.append(f"{SCORES[score].label}: {', '.join(said)}")
    if not parts:
        return ""
    claim = HYPOTHESES["points right"].claim
    return (
        f"“Points right” ({claim}), all judged questions, mean of the widths. {'; '.join(parts)}."
    )


def _temperature(tables: Tables) -> str:
    results, parts = tables.results, []
    for row in tables.found("turned by temperature", size=ALL):
        means = [
            results.over_widths(
                results.epochs[-1], What(temperature=t, score=row["score"]), "auroc"
            ).mean
            for t in results.temperatures
        ]
        said = " → ".join(short(mean) for mean in means)
        parts.append(f"{SCORES[row['score']].label} {said}, {row['verdict']} ({interval(row)})")
    if not parts:
        return ""
    heat = listed([f"{t:g}" for t in results.temperatures])
    return f"“Turned by temperature”, AUROC at {heat}. {'; '.join(parts)}."


def _oracle(tables: Tables) -> str:
    parts = []
    for condition in HYPOTHESES["near the oracle"].conditions:
        rows = tables.found("near the oracle", size=ALL, condition=condition)
        if not rows:
            continue
        best = max(rows, key=lambda row: row["mean"])
        counts = [f"{sum(r['verdict'] == v for r in rows)} {v}" for v in VERDICTS]
        parts.append(
            f"{CONDITIONS[condition]}: best {SCORES[best['score']].label} ({interval(best)} to the "
            f"oracle), {listed(counts)} of {len(rows)} scores"
        )
    claim = HYPOTHESES["near the oracle"].claim
    return f"“Near the oracle” ({claim}). {'. '.join(_capital(parts))}." * bool(parts)


def _correspondence(tables: Tables) -> str:
    """Say the reliability of the references, and what norms share with them."""
    results, parts = tables.results, []
    epochs = results.epochs[-1]
    for name, words in _MEMBERS.items():
        if name == "bootstrap":
            of = "its rank correlation with that of the other members"
            number = results.over_widths(epochs, What(score="ensemble_trace"), "r_bootstrap").mean
        else:
            of = "reliability"
            number = results.over_widths(epochs, What(), f"reliability_{name}").mean
        said = []
        for score in ("null", "sq_norm", "log_sq_norm", "logit_scaled", "entropy"):
            r, partial = (
                results.over_widths(epochs, What(score=score), f"{kind}_{name}").mean
                for kind in ("r", "partial")
            )
            given = "" if partial is None else f" (given p(1−p) {signed(partial)})"
            if r is not None:
                said.append(f"{SCORES[score].label} {signed(r)}{given}")
        if said:
            parts.append(f"{words}, {of} {short(number)}: {', '.join(said)}")
    for row in tables.found("norm beyond p", size=ALL):
        label = SCORES[row["score"]].label
        parts.append(f"“norm beyond p”, {label}: {row['verdict']} ({interval(row)})")
    return f"Rank correlation with the other members. {'. '.join(_capital(parts))}." * bool(parts)


def _chains(tables: Tables, name: str) -> str:
    """Say whether chains converged, and what norms share with their spread."""
    results, parts = tables.results, []
    for size in results.longest:
        passed, ess = (results.over(size, What(), f"{name}_{n}").mean for n in ("passed", "ess"))
        if passed is None or ess is None:
            continue
        said = []
        for score in ("sq_norm", "log_sq_norm", "logit_scaled", "null", "entropy"):
            trace, var_p = (
                results.over(size, What(score=score), f"r_{number}").mean
                for number in (name, f"{name}_var_p")
            )
            if trace is not None and var_p is not None:
                said.append(f"{SCORES[score].label} {signed(trace)} and {signed(var_p)}")
        part = f"{size.label}, {passed:.0%} converged ({ess:.0f} draws): {', '.join(said)}"
        if name == "hmc":
            part += _langevin(results, size)
        parts.append(part)
    if not parts:
        return ""
    verdicts = []
    for hypothesis in _OF_CHAINS[name]:
        for row in tables.found(hypothesis, size=ALL) or tables.found(hypothesis):
            is_all = row["size"] == ALL
            if not is_all and row["score"] not in ("sq_norm", "null"):
                continue
            words = [SCORES[row["score"]].label, *([] if is_all else [row["size"]])]
            few = row["num_worlds"] < len(results.worlds)
            those = f", the {row['num_worlds']} worlds whose chains converged" if few else ""
            said = f"{row['verdict']} ({interval(row)}{those})"
            verdicts.append(f"“{hypothesis}”, {', '.join(words)}: {said}")
    decided = "; ".join(verdicts) or (
        "no verdict, as a correlation with chains that did not converge is none"
    )
    if verdicts and not tables.found(_OF_CHAINS[name][0], size=ALL):
        decided += ". There is none over all widths, as not every width has chains that converged"
    return (
        f"Rank correlation with Σ_c Var p_c and Var p of {CHAIN_WORDS[name]}. "
        f"{'. '.join(_capital(parts))}. {_capital([decided])[0]}."
    )


def _langevin(results: Results, size: Size) -> str:
    """Say how the chains by stochastic gradients compare, where both converged."""
    r, ratio = (results.over(size, What(), f"langevin_{n}") for n in ("r", "ratio"))
    if r.mean is None or ratio.mean is None:
        return ""
    return (
        f"; Var p of the stochastic gradient chains has rank correlation {short(r.mean)}"
        f"{_ends(r._asdict())} with it and is {ratio.mean:.2g} times as large (median over questions, "
        "mean over worlds)"
    )


def _unknown(tables: Tables) -> str:
    results, parts = tables.results, []
    for score in ("entropy", "sq_norm", "log_sq_norm", "odds_sq_norm", "logit_scaled", "moderated"):
        mean = results.over_widths(results.epochs[-1], What("unknown", score=score), "auroc").mean
        rows = tables.found("unknown from conflict", size=ALL, score=score)
        said = "".join(f", {r['verdict']} against entropy ({interval(r)})" for r in rows)
        if mean is not None:
            parts.append(f"{SCORES[score].label} {short(mean)}{said}")
    return f"AUROC for what was never told against conflict. {'; '.join(parts)}." * bool(parts)


def _size(tables: Tables) -> str:
    if tables.why_none:
        return f"Sizes are not compared at equal accuracy: {tables.why_none}."
    widths = sorted({row["width"] for row in tables.at_match})
    rows = tables.found("better with size")
    said = [f"{SCORES[r['score']].label} {r['verdict']} ({interval(r)})" for r in rows]
    return (
        f"At accuracy {tables.match:g} on what was told, which widths {listed(map(str, widths))} "
        f"reach between two training lengths, the change of the rank correlation with Σ_c Var p_c per "
        f"doubling of the width: {'; '.join(said) or 'undefined, as no world has two of them'}."
    )
