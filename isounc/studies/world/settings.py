"""Settings and cells of the world study."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from isounc.checks import check_choice, check_count, check_real
from isounc.runs.executors import Batch, Group
from isounc.runs.settings import MOST_CELLS, MOST_SEED, RunSettings, check_cells
from isounc.studies.world.corpus import EVERY_FORM, FORMS, NUM_ANSWERS, questions_of_relation
from isounc.studies.world.hmc import HMCChains, check_starts
from isounc.studies.world.local import LocalChains
from isounc.studies.world.train import HEAD_WIDTHS, WorldTraining, config_of, num_params

FEWEST_MEMBERS = 5
"""With one judged, four others make two halves of two, of which a variance can be taken."""
DEPTH = 2
"""Layers, unless the depth is what varies."""
_TOKENS_OF_WORLD = 300
_NARROW = 30_000
"""Parameters of width 32, up to which one more costs twice as long as beyond."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the world study."""

    widths: tuple[int, ...] = (16, 32)
    """Widths of the decoders, of two layers: 8 16 32 64 128 256."""
    other_depths: tuple[int, ...] = ()
    """Further depths, at `depth_width`."""
    depth_width: int = 32
    """Width of the decoders whose depth varies."""
    epochs: tuple[int, ...] = (3, 10, 30)
    """Training lengths, rising; a longer training is the continuation of a shorter one."""
    num_worlds: int = 1
    """Number of worlds, the unit of replication."""
    first_world: int = 400
    """The seeds of the worlds are this one and the next ones."""
    num_relations: int = 3
    """Relations of a world, each with 200 questions and 1680 sentences of fact; 8 is the protocol's
    world."""
    rule: bool = False
    """Whether worlds have a rule by which some answers follow that are never told; a relation then has
    192 more questions and 1280 more sentences of fact."""
    assessed: float = 0.0
    """Share of the questions of recall that were told which have sentences of self-assessment, too,
    and are then not judged."""
    num_members: int = 6
    """Decoders trained on a world, which differ in initialisation and order; at least 5."""
    num_bootstrap: int = 0
    """Further decoders, each trained on a bootstrap sample of the sentences, as another reference."""
    num_judged: int = 2
    """Decoders whose answers are judged; a world's number is their mean."""
    temperatures: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Temperatures, 1 among them; answers are those of temperature 1."""
    local: LocalChains = field(default_factory=LocalChains)
    """Chains around the decoders that are judged, after the longest training. The preset quick has
    none: they add half to its time, which is to stay within three minutes on a shared core."""
    hmc: HMCChains = field(default_factory=HMCChains)
    """Chains of Hamiltonian Monte Carlo, with all sentences, of the density of `local`, around the
    same decoders where they are small."""
    match: float = 0.6
    """Accuracy, on recall of what was told, at which sizes are compared."""
    train: WorldTraining = field(default_factory=WorldTraining)
    """Settings of the training."""


PRESETS = {
    "quick": Settings(figures="shown"),
    "standard": Settings(
        preset="standard", widths=(8, 16, 32, 64), num_worlds=5, num_relations=8, num_members=8,
        epochs=(3, 5, 10, 17, 30), local=LocalChains(num_chains=4),
    ),
    "paper": Settings(
        preset="paper", widths=(8, 16, 32, 64, 128, 256), other_depths=(1, 3, 4, 6), num_worlds=10,
        num_relations=8, num_members=8, num_bootstrap=8, epochs=(3, 5, 10, 17, 30),
        local=LocalChains(num_chains=4),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A world, a size and a training length."""

    world: int
    """Seed of the world."""
    width: int
    """Width of the decoder."""
    depth: int
    """Layers of the decoder."""
    epochs: int
    """Passes over the corpus."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"world{self.world}-width{self.width}-depth{self.depth}-epochs{self.epochs}"


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a list is empty, repeats a value or does not rise where it must, a number is out of its
        range, or there are too few members for a reference.
    """
    for argument in ("widths", "other_depths", "epochs", "temperatures"):
        values = getattr(settings, argument)
        if (not values and argument != "other_depths") or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice, got {values}"
            )
    for argument, widths in (("widths", settings.widths), ("depth_width", [settings.depth_width])):
        for width in widths:
            check_choice(argument, str(width), [str(known) for known in HEAD_WIDTHS])
    for depth in settings.other_depths:
        check_count("other_depths", depth, 1, 12)
    if DEPTH in settings.other_depths:
        raise ValueError(f"other_depths must not have {DEPTH}, the depth of widths, got it")
    for epochs in settings.epochs:
        check_count("epochs", epochs, 1, 10_000)
    if list(settings.epochs) != sorted(settings.epochs):
        raise ValueError(f"epochs must rise, got {settings.epochs}")
    for argument, least, most in (
        ("num_worlds", 1, MOST_CELLS), ("num_relations", 1, 64),
        ("num_members", FEWEST_MEMBERS, 1000), ("num_judged", 1, settings.num_members),
    ):  # fmt: skip
        check_count(argument, getattr(settings, argument), least, most)
    if settings.rule:
        check_count("num_relations", settings.num_relations, 2, 64)
    if not 0 <= check_real("assessed", settings.assessed) <= 1:
        raise ValueError(f"assessed must be from 0 to 1, got {settings.assessed:g}")
    if settings.local.num_chains:
        check_count("local.num_members", settings.local.num_members, 1, settings.num_judged)
    _check_hmc(settings)
    if settings.num_bootstrap != 0:
        check_count("num_bootstrap", settings.num_bootstrap, 2, 1000)
    check_count("first_world", settings.first_world, 0, MOST_SEED - settings.num_worlds)
    for temperature in settings.temperatures:
        check_real("temperatures", temperature, positive=True)
    if 1 not in settings.temperatures:
        raise ValueError(f"temperatures must have 1 among them, got {settings.temperatures}")
    if not 0 < check_real("match", settings.match) < 1:
        raise ValueError(f"match must be between 0 and 1, got {settings.match}")
    sizes = len(settings.widths) + len(settings.other_depths)
    check_cells(settings.num_worlds * sizes * len(settings.epochs), "num_worlds")


def _check_hmc(settings: Settings) -> None:
    """Check that there are members to start at, and a decoder that is small enough."""
    check_starts(settings.hmc, settings.local, settings.num_members)
    # A world has more tokens than answers, so that none of its decoders is smaller than this.
    tokens = settings.num_relations * NUM_ANSWERS
    smallest = num_params(config_of(tokens, min(settings.widths), DEPTH))
    if settings.hmc.num_chains and smallest > settings.hmc.max_params:
        raise ValueError(
            "hmc.max_params must be at least the number of parameters of the narrowest decoder, which "
            f"has more than {smallest}, got {settings.hmc.max_params}; width 8 has the fewest"
        )


def seed_of(cell: Cell, purpose: str) -> int:
    """A seed for one purpose, the same at every training length."""
    name = f"world/{cell.world}/{cell.width}/{cell.depth}/{purpose}"
    return zlib.crc32(name.encode())


def batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells, a tuple for each world and size with all its training lengths."""
    worlds = range(settings.first_world, settings.first_world + settings.num_worlds)
    sizes = [(width, DEPTH) for width in settings.widths]
    sizes += [(settings.depth_width, depth) for depth in settings.other_depths]
    return [
        tuple(Cell(world, width, depth, epochs) for epochs in settings.epochs)
        for width, depth in sizes
        for world in worlds
    ]


def plan(settings: Settings) -> list[Group]:
    """Make a batch, and a group, of the training lengths of each world and size; long ones first.

    Worlds of a size are computed by any worker that is free: minutes of training outweigh programs
    that are compiled twice.
    """
    planned: list[Batch] = []
    members = settings.num_members + settings.num_bootstrap
    forms = EVERY_FORM if settings.rule else FORMS
    sentences = settings.num_relations * sum(sum(form.tellings) * form.count for form in forms)
    for cells in batches(settings):
        width, depth = cells[0].width, cells[0].depth
        size = num_params(config_of(_TOKENS_OF_WORLD, width, depth))
        # Measured on one core of a 2-core server: .28 s a member and epoch of eight relations at
        # width 16, .53 s at width 32, 2.7 s at width 128 and 8.3 s at width 256, whose products keep
        # the core busier; the scores of a training length take some seconds.
        # A draw of a chain asks for all answers, eight short rows a question.
        local = settings.local
        questions = questions_of_relation(settings.rule) * settings.num_relations
        steps = local.num_chains * (local.num_warmup + local.num_draws * local.thin)
        draws = local.num_chains * local.num_draws * 2 * questions
        seen = members * settings.epochs[-1] * sentences
        seen += local.num_members * (steps * local.minibatch + draws)
        work = 9.3e-10 * min(size, _NARROW) + 4.6e-10 * max(size - _NARROW, 0)
        seconds = seen * (5.8e-6 * depth + work) + 6 * len(settings.epochs)
        if settings.hmc.num_chains and size <= settings.hmc.max_params:
            seconds += local.num_members * settings.hmc.seconds(local, sentences)
        mebibytes = 300 + 16e-6 * members * size
        label = f"width {width} depth {depth} world {cells[0].world}"
        planned.append(Batch(label, cells, seconds, mebibytes, sentences * size))
    return [(batch,) for batch in sorted(planned, key=lambda batch: -batch.seconds)]
