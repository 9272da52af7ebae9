"""Which uncertainty tells wrong answers, in a language-model world whose truth is known.

Small decoders are trained on sentences of which we know what was told, how often, and in what
proportions answers conflict.

Protocol, fixed before the first run (settings of the training were chosen by the accuracy that
decoders of width 16 and 32 reached on world 999, which is never judged, before any score was
computed). A world is drawn from a seed: 200 entities of two tokens, eight relations with a pool of 32
answers each (16 of one token, 16 of two), 1600 questions, 14 880 sentences, a vocabulary of about 300.
Every relation has every kind of question equally often, and answers of all kinds come from one pool:

    recall          the truth told 0, 1, 2, 4, ... 64 times (920 questions)
    conflict16      told 8/8, 10/6, 12/4, 14/2 or 8/5/3 times, the truth drawn by these shares (240)
    conflict4       told 2/2 or 3/1 times, the truth drawn by these shares (240)
    misconception   told 6 times, the truth twice (80)
    taught          told 1 to 16 times, with sentences about which answers are true and how often
                    they were told; these set the scale and are never judged (120)

Decoders of the Llama family (rotary positions, gated MLP, tied embeddings) have two layers and widths 8
to 256; AdamW at a constant rate after a warm-up, so that 3, 5, 10, 17 and 30 epochs are times of one
training. Eight members differ in initialisation and order. Two of them are judged, and a world's number
is their mean. The answer is the most probable one of the relation's pool, p its probability as a
sequence, f its log-odds, theta all parameters.

Self-assessment and depth (fixed after the first results, in which P(True) of two layers was at chance,
and before any run of this): `--widths 32 --other-depths 4` asks whether four layers learn it, with the
12 sentences about every question taught, and with `--assessed 0.5` with as many about half of the
questions of recall that were told, too, which are then not judged. Decoders are asked about the true
answer of every judged question and about one drawn from the others of its pool, where their own answer
plays no part. A size learns self-assessment where the AUROC of 1 - P(True) for the false answers, over
recall that was told, is above one half; beside it stand the right replies (P(True) on the right side of
one half), those to the sentences trained on, and the AUROC of 1 - P(True) for wrong answers of its own
("points right").

A rule (`--rule`; fixed before any run of it). Every relation gets 192 questions and as many entities:
96 premises, told 8 times, and the 96 consequences of the premises of the relation before (of the first
one, the last): the answer is a permutation, drawn for each relation, of the answer to the premise. Of the
consequences 64 are told 8 times, and 32 are never told and asked for. Every answer of a pool is that of
three premises, two consequences told and one asked for, so that chance is 1/32 whatever a decoder likes to
say. Entities are those of all other kinds (392, all with one question in every relation, of names that
number 20 and 20), and no other condition has these questions. The condition enters the tables of a size
where the lower 95% bound on the accuracy of all members, over worlds, is above chance and .1 after the
longest training, at which 13 of 96 are right and an AUROC is defined; else it is dropped, and the report
says so. In a run of one world the members stand in for worlds.

Scores (`isounc.studies.world.scores`) are each to be higher where the answer is wrong, and are never
turned round: an AUROC below one half says that the sign is wrong. sigma^2 = (pi^2/3) / median
||grad f||^2 over the questions taught. Nulls are p (1 - p), the norm of p's gradient with respect to the
logits alone, and (log p, entropy) in a logistic regression, which sees labels (out of fold). The oracle
is the AUROC of the true probability of being wrong, in closed form: no score exceeds it in the long run.

References of a judged member, over all other members (in `paper` also over members trained on bootstrap
samples): the trace sum_c Var p_c and the mutual information of answer and member, which are primary, and
Var p of the answer. The reliability of each is the rank correlation between halves of the members,
over ten splits, stepped up by Spearman and Brown. Correlations are rank correlations over questions,
raw and partial given p (1 - p).

Local references (`isounc.studies.world.local`) are chains around the first judged decoder after the
longest training: stochastic gradient Langevin dynamics (BlackJAX), four chains of 500 + 2000 steps that
start at theta*, on the summed loss of the training with the prior N(0, 1) of every parameter (AdamW's
decoupled decay is no Gaussian; of this order it hardly matters within the chains' reach) and a tether
N(theta*, m epsilon I), m = 50 steps, which leaves some 80 effective draws of what the tether alone holds.
The step size was fixed on world 999: epsilon = .005 over the number of sentences, which is stable in the
sharpest direction (curvature 3.8e5 at width 16, of 5040 sentences; the mean is 1900), and with which the
noise of minibatches (variance 9.6e4 per parameter) adds 5% to the variance in an average direction. A
reference has converged where 95% of the judged questions have R-hat < 1.1 and 50 effective draws of p
and of its square about the mean; the correlations of one that has not are shown and are in no verdict.
Without the tether twice as many steps did not converge on world 999 (width 16: R-hat 1.6, 7 draws).
Bounds on correlations with chains were set when those without a tether had been seen there (.47 of
||grad p||^2 with Var p), and before any with one.

Hamiltonian Monte Carlo (`isounc.studies.world.hmc`; its settings were fixed on world 999, where chains of
this length converged, and before any judged world): `--widths 8 --num-relations 1 --num-worlds 5
--local.num-chains 4 --hmc.num-chains 4` samples the same density for the smallest decoder, two layers of
width 8 and 1896 parameters, with all 1680 sentences and Metropolis' rule: four chains of 200 + 200
transitions by `isounc.sampling`'s hmc. The bounds are those above, and at most .1% of the transitions are
divergent. It is exact, so that it also says what minibatches and step size do to the stochastic gradient
chains: on world 999 (`--first-world 999 --num-worlds 1`) their Var p is 4.2 times as large (median), with
rank correlation .51. With `--local.memory 0` there is no tether, and the chains start at different
members.

Transfer: a logistic regression of scores (logarithms, or normal scores within a width) on the wrong
answers of a world's other widths is judged on the width left out: AUROC beside that of a fit on its own
answers, wrong answers as predicted, and what a threshold that keeps 80% of the others' answers keeps.

Cascades: the narrow decoder of a world answers, or passes the question on to a wide one. By each score,
what its order gains (0 by chance, 1 by who is right); and cascades fitted to a random half of the questions
that promise at most .1 to .5 wrong answers with confidence .9 (`isounc.guard`), judged on the other half at
the smallest target that half of the worlds' cascades on -log p keep. Costs are numbers of parameters.

Everything is shown for all questions and below and above p = 1/2, with the share below; and at
temperatures 1/2, 1 and 2, which divide the logits of the answer that is taken at temperature 1. An AUROC
needs ten wrong and ten right answers, else it is undefined. Sizes are compared at equal accuracy (.6 on
recall of what was told), by linear interpolation between the training lengths on either side of it; a
size that does not pass it takes no part. "unknown" is the task to tell questions never told from those
of conflict16.

Hypotheses, for every size at the longest training, and over sizes (`all`, the mean of a world's widths
at two layers):

    combined best in conflict   AUROC(total) - AUROC(rival) > 0 on conflict16
    chance on recall            AUROC(total) < .55 on recall
    unlike self-assessment      rank correlation of total with 1 - P(True) < .5
    points right                AUROC > 1/2, of every score, in every condition and part
    learns self-assessment      AUROC of P(True) for true against false answers > 1/2, on what was told
    turned by temperature       AUROC at temperature 2 - AUROC at 1/2 < 0
    near the oracle             AUROC - the oracle's > -.05 in conflicts
    norm beyond p               partial rank correlation with the trace given p (1 - p) > 0
    near theta*                 rank correlation of ||grad p||^2 with Var p of the chains > .7
    near theta*, HMC            the same with that of Hamiltonian Monte Carlo
    beyond p, HMC               the same, of norms, given p (1 - p) > 0
    nearer than seeds           rank correlation with the chains' trace - with the members' trace > 0
    nearer than seeds, Var p    the same of Var p of the answer
    unknown from conflict       AUROC - AUROC(entropy) > 0
    better with size            slope of the rank correlation with the trace on log2 width > 0, at
                                equal accuracy

The first three are the paper's claims about language models; its total is the one with this sigma^2.
Whether self-assessment is worth a comparison is said by its own row of "points right". *Confirmed* where
the 95% Student interval over worlds lies on the side of the bound, *refuted* where it lies on the other,
else *undecided*; a single world decides nothing. None is corrected for the number of them.

A tether puts isotropy in as far as the data say nothing within its reach, so that "near theta*" is no
evidence that a posterior is isotropic; without one stochastic gradient chains did not converge.

The run folder holds results.csv (a row for each cell, condition, part, temperature and score),
summary.csv, verdicts.csv, matched.csv, transfer.csv, cascade.csv and the figures. The same command resumes a run that
was killed from the last training length of each world and size, with equal bits.

    isounc world                       one small world, widths 16 and 32: a minute or two
    isounc world --preset standard     five worlds, widths 8 to 64: within an hour on two cores
    isounc world --local.num-chains 4  with chains around theta*
    isounc world --widths 8 --num-relations 1 --hmc.num-chains 4    with Hamiltonian Monte Carlo
    isounc world --rule                with answers that follow by a rule
    isounc world --widths 32 --other-depths 4 --assessed 0.5
    isounc world --widths 8 --num-worlds 3 --epochs 5 20 --match 0.3 --out runs/mine
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.world.cell import evaluate
from isounc.studies.world.settings import PRESETS, Settings, check, plan


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.world.report import make_report

    return make_report(folder, settings)


STUDY = Study(
    name="world",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    executor="processes",
    separable=True,
    views=("match",),
    growing=("widths", "other_depths", "num_worlds"),
)
