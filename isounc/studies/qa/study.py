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

DATA is a folder with the authors' files: truthfulqa_mc.json, truthfulqa.csv, triviaqa.csv,
natural_questions.csv. If one is missing, the error says where to download it. With the package
datasets and a network, DATA may be "hub". A run that was killed resumes when the same command is
given again; the same --out with more questions, benchmarks or models adds them.

The protocol was fixed before the first result. The estimand that counts is --main-estimand: choice
if a benchmark gives choices, length_normalised if the model writes its answer. The total that
counts is total_sum with --scores.sigma. Everything else in the tables is for comparison. Prompts
are in isounc/llm/answers/prompts.py, by version. Multiple choice takes the most probable of the
choices, zero-shot; *_pairs is the choice between a true and a false answer. Short answers are
judged by exact match after normalisation. TruthfulQA's own sentences are judged by words in common
with references, as a proxy. The best baseline is chosen anew in every bootstrap resample, and
p-values are corrected for the number of scores (Benjamini and Hochberg).
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
    views=("scores", "nli", "bootstrap", "main_estimand"),
    growing=("preset", "models", "benchmarks", "num_questions", "chunk", "data"),
    separable=True,
)
