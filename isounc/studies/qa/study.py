"""Question answering: which uncertainty of a language model tells its wrong answers.

A model answers questions of TruthfulQA, TriviaQA and Natural Questions. For each answer the study
computes the isotropic estimate over all parameters, exactly (epistemic: the squared gradient norm
of a probability p of the answer; aleatoric: p (1 - p)), for several meanings of p. It compares them
with P(True), a stated percentage, and entropies of tokens and of sampled answers, by AUROC for a
wrong answer, with intervals and paired tests against the best baseline.

    isounc qa --data DATA                      100 questions each of two benchmarks
    isounc qa --data DATA --preset standard    1000 questions each of three benchmarks
    isounc qa --data DATA --preset paper       1000 questions each of all benchmarks
    isounc qa --data DATA --models PATH/TO/MODEL --benchmarks triviaqa --out runs/mine
    isounc qa --data DATA --prompting chat --benchmarks truthfulqa_mc1 truthfulqa_mc2 truthfulqa

DATA is a folder with the authors' files: truthfulqa_mc.json, truthfulqa.csv, triviaqa.csv,
natural_questions.csv. If one is missing, the error says where to download it. With the package
datasets and a network, DATA may be "hub". A run that was killed resumes when the same command is
given again; the same --out with more questions, benchmarks or models adds them.

Signs, in theory, while the gradient norm of f = log p - log(1 - p) stays the same: the squared norm
||grad p||^2 = (p (1 - p))^2 ||grad f||^2 (epistemic), p (1 - p) (aleatoric), their totals and
Var[sigmoid(f)] (link_aware) fall with p above p = 1/2 and rise below: they flip at 1/2, and among
answers of p < 1/2 point the wrong way. ||grad log p||^2 (epistemic_log) and the moderated
probability 1 - E[sigmoid(f)] (moderated; f Gaussian, its scale set by the first
--scores.num-reference answers without a look at which are right) fall everywhere and do not flip.
total_logistic is fitted and has the sign of other answers. The report shows AUROCs on either side.

Routing. With --second.num-samples K every short question is also put to a second, costlier answerer:
another model (--second.model), or the same one with more examples (--second.num-examples) and K samples
at --second.temperature, of which the most frequent by normal form counts (self-consistency; of several
as frequent the first). The tables then say when the first answer should be passed on:

    isounc qa --data DATA --benchmarks triviaqa --num-examples 0 --second.num-samples 10

Protocol of that part, fixed before its first result. The first answerer has the instruction and the
question, no examples; the second five examples and ten samples at temperature .7. Scores of the first
answer, high where uncertain (undefined ones, of empty answers, highest): 1 - p (length-normalised, the
null), -log p of the whole answer, mean token entropy, ||grad p||^2, that + p (1 - p) as above,
epistemic_log, moderated, and P(True). Routers decide before anybody answers, by what passing on is
worth: the difference of two logistic regressions, of the probability that the second answer is right
and that the first is, from the question's form (its length in words, capitals, digits, question word)
or from the first model's state at the last token of the prompt (16 principal components). best is the
score of the first answer with the largest gain on the guard questions. The questions are split at random
ten times into guard and test halves; routers, best and cascades are fitted to the guard half and
judged on the test half. Numbers are means over the splits of one set of questions: their 95% intervals
are a bootstrap of the questions (1000 resamples, the same in every split; what was fitted stays).

Costs are seconds of a question on the machine of the run: the median over questions of the mean of their
chunk, in batches of --measure.batch-size, by the clock on the wall or, on a machine with other work, the
processor's (--routing.clock cpu). A score pays for the first answer, one of a gradient also for the norms,
P(True) for its prompt; a cascade pays for all it tries. A router pays for reading the prompt where it looks at
the state, and for the answer of its choice alone. With a share e passed on, the most uncertain first and
ties at random, the risk is R(e), the cost a + b e: gain is that of isounc.guard.cost_risk.gain (0 by
chance, 1 by who is right; costs have no part), area the mean risk over the costs from that of the
dearest first answer to that of the second answer (undefined where the former is not the lower), to be
held against that of asking one of both at random. Hypotheses, by the 95% interval: "second is better"
its risk is lower than the first's; "routes" gain > 0; "beats p", "beats router" gain less theirs > 0;
"pays" area less than the random mixture's; "saves" the cheapest cascade certified on the guard half (by
isounc.guard.Cascade, confidence .9) costs less than the second answerer, at the smallest target risk (of
.8, .85, .9 and .95) at which half of the splits have one for 1 - p; "keeps the risk" its test risk is
below the target. Where the second answerer is not better, a cascade has nothing to gain, and this is
the result.

The protocol was fixed before the first result. The estimand that counts is --main-estimand: choice
if a benchmark gives choices, length_normalised if the model writes its answer. The total that
counts is total_sum with --scores.sigma. Everything else in the tables is for comparison. Prompts
are in isounc/llm/answers/prompts.py, by version; --prompting says whether a question comes with an
instruction and examples (few_shot), alone (completion), or in the form of the model's chat template,
with examples as earlier turns (chat; the model's own P(True) and percentage are asked for likewise).
Multiple choice takes the most probable of the choices, zero-shot; *_pairs is the choice between a
true and a false answer. Short answers are
judged by exact match after normalisation. TruthfulQA in generation form (truthfulqa, the
model's own sentences) is judged by words in common with its references: a proxy, and labelled so in
every table and figure, beside mc1 and mc2. The best baseline is chosen anew in every bootstrap resample, and
p-values are corrected for the number of scores (Benjamini and Hochberg). epistemic_log and
moderated, with their rules, were added after the results in results/qa and before any of their own.
"""

from __future__ import annotations

from isounc.runs.study import Study
from isounc.studies.qa.cell import evaluate, prepare
from isounc.studies.qa.report import make_report
from isounc.studies.qa.settings import PRESETS, check, plan

STUDY = Study(
    name="qa",
    description=__doc__ or "",
    presets=PRESETS,
    unit="questions",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=make_report,
    prepare=prepare,
    views=("scores", "nli", "bootstrap", "main_estimand", "routing"),
    growing=("preset", "models", "benchmarks", "num_questions", "second", "chunk", "data"),
    separable=True,
)
