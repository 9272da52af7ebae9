"""The question-answering study end to end: a tiny model, small files, resumption, errors."""

import dataclasses
import functools
import json
import shutil
import warnings
from itertools import pairwise

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from isounc.llm import load_model
from isounc.llm.answers import measure as measure_module
from isounc.llm.answers import prompts
from isounc.llm.answers.answer import from_record, to_record
from isounc.llm.answers.isotropic_scores import ScoreSettings
from isounc.llm.answers.measure import (
    AskedQuestion,
    MeasureSettings,
    _tokens_of_text,
    measure,
)
from isounc.llm.answers.question import Question
from isounc.llm.answers.rendering import rendered
from isounc.llm.answers.score_table import score_answers
from isounc.llm.answers.scores import Score, score_of_each
from isounc.llm.answers.segments import _parts, measure_segments
from isounc.llm.answers.text import normalise
from isounc.llm.model.gguf_tokenizer import tokenizer_from_gguf
from isounc.llm.model.huggingface_config import from_huggingface
from isounc.runs.figures import draw_plots
from isounc.runs.folder import RunFolder
from isounc.runs.publish import publish
from isounc.runs.study import report_run, run_study
from isounc.studies.qa import ask, cell, figures, report, tasks
from isounc.studies.qa.evaluation import BootstrapSettings, evaluate_scores
from isounc.studies.qa.routing.second import second_name
from isounc.studies.qa.routing.settings import RoutingSettings, SecondSettings
from isounc.studies.qa.scored_answers import ScoredAnswers
from isounc.studies.qa.settings import Settings
from isounc.studies.qa.study import STUDY
from isounc.studies.qa.tables import auroc_table
from tests.llm.answers.made_up import measured

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 257,
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
    "rope_theta": 1e4, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 256,
}  # fmt: skip
NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj", "attention_norm_in": "input_layernorm",
    "mlp_norm_in": "post_attention_layernorm",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two layers over bytes, with random weights."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in from_huggingface(CONFIG).shapes().items():
        weight = np.ones(shape) if len(shape) == 1 else rng.normal(size=shape) / 4
        if name == "embed":
            key = "model.embed_tokens.weight"
        elif name == "norm":
            key = "model.norm.weight"
        else:
            layer, part = name.removeprefix("layers.").split(".")
            key, weight = f"model.layers.{layer}.{NAMES[part]}.weight", weight.T
        tensors[key] = np.ascontiguousarray(weight, np.float32)
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: i for i, piece in enumerate([*letters, "<end>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(path / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '\\n' }}{% endfor %}<assistant>"
    )
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve sums in the forms of the authors' files."""
    path = tmp_path_factory.mktemp("data")
    sums = [(f"What is {a} + {b}?", str(a + b), str(a + b + 1)) for a in range(3) for b in range(4)]
    targets = [
        {"question": q, "mc1_targets": {right: 1, wrong: 0, "nothing": 0},
         "mc2_targets": {right: 1, f"{right}.0": 1, wrong: 0}}
        for q, right, wrong in sums
    ]  # fmt: skip
    (path / "truthfulqa_mc.json").write_text(json.dumps(targets))
    lines = ["question,answer,false_answer"] + [f"{q},{right},{wrong}" for q, right, wrong in sums]
    (path / "triviaqa.csv").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def settings(checkpoint, data):
    return Settings(
        models=(str(checkpoint),), benchmarks=("truthfulqa_mc1", "triviaqa"), data=str(data),
        num_questions=10, num_examples=1, chunk=5, cache="", figures="shown",
        measure=MeasureSettings(num_samples=2, max_new_tokens=3, batch_size=5, semgrad_token=1),
        bootstrap=BootstrapSettings(num_resamples=50),
    )  # fmt: skip


def answers_of(out):
    """Records of the model's answers, by name."""
    records = RunFolder.load(out).records()
    return {r.name: r.meta for r in records if not r.name.startswith(cell.ORDER)}


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A run that was interrupted after its first records, then resumed with more to do."""
    out = tmp_path_factory.mktemp("qa") / "run"
    mine = dataclasses.replace(settings, out=str(out))
    calls = []

    def interrupted(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return measure(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(
                STUDY, dataclasses.replace(mine, benchmarks=mine.benchmarks[:1], num_questions=7)
            )
    first = answers_of(out)
    assert len(first) == 5
    run_study(STUDY, mine)
    return out, first


def test_a_run_goes_on_where_it_was(finished):
    out, first = finished
    records = answers_of(out)
    assert len(records) == 20
    for name, meta in first.items():
        assert records[name] == meta


def test_tables_figures_and_report(finished):
    out, _ = finished
    folder = RunFolder.load(out)
    rows = folder.results.to_dict("records")
    by = {(row["benchmark"], row["score"]): row for row in rows}
    for benchmark, estimand in (("truthfulqa_mc1", "choice"), ("triviaqa", "length_normalised")):
        for kind in ("epistemic", "aleatoric", "total_sum", "link_aware"):
            assert by[benchmark, f"{kind}/{estimand}"]["num_questions"] == 10
        assert {(benchmark, s) for s in ("p_true", "semantic_entropy", "semgrad")} <= by.keys()
    assert ("triviaqa", "epistemic/choice") not in by
    answers = folder.read_table("answers.csv")
    right = answers.loc[answers["benchmark"] == "truthfulqa_mc1", "correct"].sum()
    row = by["truthfulqa_mc1", "epistemic/choice"]
    assert row["num_wrong"] == 10 - right
    if 0 < right < 10:
        assert 0 <= row["auroc_low"] <= row["auroc"] <= row["auroc_high"] <= 1
    # Each half holds the questions on its side, and the scores that were evaluated on all.
    halves = folder.read_table("halves.csv")
    of_aleatoric = halves[halves["score"].str.startswith("aleatoric")]
    for benchmark, estimand in (("truthfulqa_mc1", "choice"), ("triviaqa", "length_normalised")):
        metas = [m for m in answers_of(out).values() if m["benchmark"] == benchmark]
        below = sum(meta["log_odds"][estimand] < 0 for meta in metas if meta["num_tokens"])
        rows_of = of_aleatoric[of_aleatoric["benchmark"] == benchmark].set_index("half")
        assert rows_of["num_questions"].sum() == sum(m["num_tokens"] > 0 for m in metas)
        assert rows_of["num_questions"].get("p < 1/2", 0) == below
        assert rows_of["share"].sum() == pytest.approx(1)
    page = (out / "report.html").read_text()
    assert "flips at p = 1/2" in page and "moderated" in page
    assert "Table 2" in page and "of right and wrong answers" in page
    # Three choices, of which one is right; none where the model writes its answer.
    lines = (out / "report.md").read_text().splitlines()
    answers = [
        line.split(" | ") for line in lines if " | exact\\_match | " in line or " | mc1 | " in line
    ]
    assert [cells[3] for cells in answers] == ["0.333", ""]
    for name in ("auroc-tiny", "curves-tiny", "distributions-tiny"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    info = folder.read_info()
    assert info["models"]["tiny"]["sha256"] and info["questions"]["triviaqa"]["rows_read"] == 12


def test_records_hold_answers_and_nothing_else(finished):
    out, _ = finished
    for meta in answers_of(out).values():
        assert json.dumps(to_record(from_record(meta))) == json.dumps(meta)


def test_a_score_from_outside_stands_in_every_table(finished, tmp_path):
    """A baseline is compared with the isotropic scores, and has its line in the report."""
    out, _ = finished
    shutil.copytree(out, tmp_path / "run")
    folder = RunFolder.load(tmp_path / "run", writable=True)
    tokens = Score(
        family="prompt_length",
        is_baseline=True,
        values=score_of_each(lambda answer: answer.num_prompt_tokens),
    )
    mine = functools.partial(report.make_report, more=[tokens])
    assert report_run(dataclasses.replace(STUDY, report=mine), folder)
    for file in ("results.csv", "tests.csv", "correlations.csv"):
        assert "prompt_length" in (folder.path / file).read_text(), file
    assert any(
        line.startswith("| prompt\\_length |")
        for line in (folder.path / "report.md").read_text().splitlines()
    )


def test_what_is_measured_is_what_the_model_says(finished, checkpoint, data):
    """Choices, P(True) and samples of one question, each from a plain forward pass."""
    out, _ = finished
    model = load_model(checkpoint)
    asked = tasks.make_task("truthfulqa_mc1", str(data), num_questions=10).asked[0]
    meta = RunFolder.load(out).read(tasks.record_name("tiny", asked.question.id)).meta

    def log_prob(prompt, answer):
        ids = model.tokenizer.encode(prompt) + model.tokenizer.encode(answer, special=False)
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(ids)] = ids
        log_p = jax.nn.log_softmax(forward(padded)[0], axis=-1)
        start = len(model.tokenizer.encode(prompt))
        return sum(float(log_p[t - 1, ids[t]]) for t in range(start, len(ids)))

    forward = jax.jit(model.decoder)
    totals = [log_prob(asked.prompt.text, f" {c}") for c in asked.question.choices]
    np.testing.assert_allclose(meta["choice_log_probs"], totals, rtol=1e-4)
    assert meta["answer"] == asked.question.choices[int(np.argmax(totals))]
    assert meta["correct"] == bool(asked.question.labels[int(np.argmax(totals))])
    for key, ideas in (
        ("p_true", ()),
        ("p_true_ideas", [s["text"] for s in meta["samples"] if s["text"]]),
    ):
        if meta[key] is None:
            assert key == "p_true_ideas" and not ideas
            continue
        prompt = prompts.p_true(meta["question"], meta["answer"], ideas)
        for option, side in zip(prompt.options, ("true", "false"), strict=True):
            assert meta[key][side] == pytest.approx(log_prob(prompt.text, option), rel=1e-4)
    assert len(meta["samples"]) == 2


def test_pairs_are_choices_between_a_true_and_a_false_answer(data):
    asked = tasks.make_task("triviaqa_pairs", str(data), num_questions=12).asked
    assert len(asked) == 12
    for pair in asked:
        question = pair.question
        a, b = map(int, question.question.removeprefix("What is ").rstrip("?").split(" + "))
        labels = dict(zip(question.choices, question.labels, strict=True))
        assert labels == {str(a + b): 1, str(a + b + 1): 0}
        assert pair.form == "mc1" and "Q: What is" in pair.prompt.text
    assert {pair.question.labels for pair in asked} == {(0, 1), (1, 0)}


def test_a_question_is_put_in_three_ways(checkpoint, data):
    """The same questions, examples as earlier turns, and all of it in the model's own form."""
    model = load_model(checkpoint)
    ways = {
        way: tasks.make_task("triviaqa", str(data), num_questions=9, num_examples=2, prompting=way)
        for way in prompts.PROMPTINGS
    }
    chats = rendered(model, [asked.prompt for asked in ways["chat"].asked])
    columns = (*(ways[way].asked for way in ways), chats)
    for plain, alone, chat, given in zip(*columns, strict=True):
        assert plain.question == alone.question == chat.question
        text = plain.question.question
        assert alone.prompt.text == f"Q: {text}\nA:" and alone.prompt.version == "completion-1"
        assert chat.prompt.version == f"{plain.prompt.version}-chat"
        lines = given.text.splitlines()
        assert lines[0] == "<user>" + plain.prompt.text.splitlines()[0] and given.is_chat
        assert [lines[k][:6] for k in (2, 3, 4, 5, 6)] == [
            "What i", "<assis", "<user>", "<assis", "<user>",
        ]  # fmt: skip
        assert lines[-2] == f"<user>{text}" and lines[-1] == "<assistant>"
        for line in (lines[3], lines[5]):
            assert f"A: {line.removeprefix('<assistant>')}\n" in plain.prompt.text
        assert model.tokenizer.decode(given.answer_ids(model, "4")) == "4"
        (same,) = rendered(model, [plain.prompt])
        assert same.text == plain.prompt.text
        assert model.tokenizer.decode(same.answer_ids(model, "4")) == " 4"
    options = prompts.as_chat(prompts.p_true("Who?", "Ann"))
    assert options.options == ("A", "B") and options.version == "p_true-1-chat"
    bare = dataclasses.replace(model, chat_template=None)
    with pytest.raises(ValueError, match=r"prompting must be few_shot .* tiny, which has no chat"):
        measure(bare, ways["chat"].asked[:1])
    with pytest.raises(ValueError, match="prompting must be one of few_shot, completion, chat"):
        tasks.make_task("triviaqa", str(data), num_questions=9, prompting="chatty")


def test_examples_are_not_evaluated(data):
    asked = tasks.make_task("triviaqa", str(data), num_questions=100, num_examples=3).asked
    assert len(asked) == 9
    head = asked[0].prompt.text.rsplit("Q:", 1)[0]
    assert head.count("Q:") == 3
    assert not any(evaluated.question.question in head for evaluated in asked)


@pytest.fixture(scope="module")
def asked_again(settings, finished, tmp_path_factory):
    """A finished run, to which a second answerer is added."""
    out = tmp_path_factory.mktemp("again") / "run"
    shutil.copytree(finished[0], out)
    mine = dataclasses.replace(
        settings, out=str(out), benchmarks=("triviaqa",),
        second=SecondSettings(num_samples=3, num_examples=2),
        routing=RoutingSettings(num_splits=2, num_resamples=20, target_risks=(0.9,)),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run_study(STUDY, mine)
    return out, mine


def test_a_second_answerer_is_added_to_a_run(asked_again, finished, checkpoint, data):
    """The first answers stay; the second ones and the states are what the model itself gives."""
    out, mine = asked_again
    folder, model = RunFolder.load(out), load_model(checkpoint)
    for name, meta in answers_of(finished[0]).items():
        assert folder.read(name).meta == meta and set(meta["seconds"]) == {"wall", "cpu"}
    answerer = mine.second.name(str(checkpoint))
    assert answerer == "tiny-2shot-3votes-t0.7"
    ways = [
        tasks.make_task("triviaqa", str(data), num_questions=10, num_examples=n).asked
        for n in (1, 2)
    ]
    for asked, again in zip(*ways, strict=True):
        record = folder.read(second_name(answerer, "tiny", asked.question.id))
        ids = model.tokenizer.encode(asked.prompt.text)
        states = model.decoder.hidden(jax.numpy.asarray([ids]))[0, -1]
        np.testing.assert_allclose(record.arrays["state"], states, rtol=1e-3, atol=1e-4)
        samples = record.meta["answers"]
        assert len(samples) == 3 and record.meta["votes"] <= 3
        assert record.meta["prompt_version"] == again.prompt.version == "short_answer-1-2shot"
        forms = [normalise(text) for text in samples]
        counts = [forms.count(form) if form else 0 for form in forms]
        assert record.meta["answer"] == (samples[int(np.argmax(counts))] if any(counts) else "")
        assert record.meta["correct"] == (
            normalise(record.meta["answer"]) in again.question.aliases
        )
        assert record.meta["seconds"]["wall"]["second answers"] > 0
    assert (
        len({tuple(folder.read(n).meta["answers"]) for n in folder.names() if "second=" in n}) > 1
    )


def test_tables_of_a_second_answerer_and_what_is_published(asked_again, tmp_path):
    out, _ = asked_again
    folder = RunFolder.load(out)
    rows = folder.read_table("routing.csv")
    assert set(rows["score"]) >= {"p", "isotropic", "p_true", "router", "router_question", "best"}
    assert set(rows["benchmark"]) == {"triviaqa"} and (rows["num_test"] == 5).all()
    right = [folder.read(n).meta["correct"] for n in folder.names() if n.startswith("second=")]
    verdicts = folder.read_table("routing_verdicts.csv").set_index("hypothesis")
    first = folder.read_table("answers.csv").query("benchmark == 'triviaqa'")["correct"]
    better = np.mean(first.astype(float)) - np.mean(right)
    assert verdicts.loc["second is better", "mean"] == pytest.approx(better)
    assert "When should a second answerer be asked?" in (out / "report.html").read_text()
    goal = publish(STUDY, folder, tmp_path / "published", figures=["cost-risk"])
    said = (goal / "reading.md").read_text()
    assert "tiny, then tiny-2shot-3votes-t0.7" in said
    # The published form is read and published again to the same texts.
    assert publish(STUDY, RunFolder.load(goal), goal, figures=["*"]) == goal
    assert (goal / "reading.md").read_text() == said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"benchmarks": ("triviqa",)}, ("triviqa", "triviaqa")),
        ({"data": "/nowhere"}, ("truthfulqa_mc.json", "github.com")),
        ({"models": ()}, ("models", "at least one")),
        ({"models": ("no-such-model",)}, ("no-such-model",)),
        ({"num_questions": 0}, ("num_questions", "0")),
        ({"second": SecondSettings(num_samples=2)}, ("asked a second time", "truthfulqa_mc1")),
        (
            {"benchmarks": ("triviaqa",), "second": SecondSettings(num_samples=2, num_examples=3)},
            ("3 questions of triviaqa", "second.num_examples"),
        ),
        ({"num_examples": 12}, ("triviaqa.csv", "12 questions that are shown as examples")),
        (
            {"main_estimand": "mean_token", "measure": MeasureSettings(estimands=("choice",))},
            ("measure.estimands", "mean_token", "truthfulqa_mc1"),
        ),
    ],
)
def test_bad_settings(settings, tmp_path, changes, words):
    with pytest.raises((ValueError, OSError)) as error:
        run_study(STUDY, dataclasses.replace(settings, out=str(tmp_path / "run"), **changes))
    for word in words:
        assert word in str(error.value)


def test_a_model_of_the_same_name_is_refused(settings, finished, checkpoint, tmp_path):
    """Its answers would be taken for those of the first."""
    out, _ = finished
    with pytest.raises(ValueError, match=r"different names.*got tiny twice"):
        run_study(STUDY, dataclasses.replace(settings, models=(str(checkpoint),) * 2, out=str(out)))
    other = another(checkpoint, tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"models must be those .*tiny had sha256"):
        run_study(STUDY, dataclasses.replace(settings, models=(str(other),), out=str(out)))


def test_a_question_file_that_has_changed_is_refused(settings, finished, data, tmp_path):
    out, _ = finished
    for file in ("truthfulqa_mc.json", "triviaqa.csv"):
        text = (data / file).read_text()
        (tmp_path / file).write_text(text + "Who?,me,you\n" if file == "triviaqa.csv" else text)
    with pytest.raises(ValueError, match=r"questions must be those .*triviaqa had sha256"):
        run_study(STUDY, dataclasses.replace(settings, data=str(tmp_path), out=str(out)))


def another(checkpoint, path):
    """A checkpoint of the same form with other weights."""
    shutil.copytree(checkpoint, path)
    file = path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    key = "model.embed_tokens.weight"
    tensors[key] = np.ascontiguousarray(tensors[key][::-1])
    safetensors.numpy.save_file(tensors, file)
    return path


@pytest.mark.slow
def test_two_models_and_the_other_forms(settings, checkpoint, data, tmp_path):
    """Choices judged by mass, pairs and sentences; tables without samples; transfer."""
    lines = [
        f"Adversarial,Law,What is {a} + {b}?,{a + b},{a + b}; {a + b}.0,{a + b + 1}; nothing,there"
        for a in range(3) for b in range(4)
    ]  # fmt: skip
    head = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"
    for file in ("truthfulqa_mc.json", "triviaqa.csv"):
        shutil.copy(data / file, tmp_path / file)
    shutil.copy(data / "triviaqa.csv", tmp_path / "natural_questions.csv")
    (tmp_path / "truthfulqa.csv").write_text("\n".join([head, *lines]) + "\n")
    benchmarks = ("truthfulqa_mc2", "truthfulqa", "natural_questions", "natural_questions_pairs")
    out = tmp_path / "run"
    other = another(checkpoint, tmp_path / "other")
    mine = dataclasses.replace(
        settings, models=(str(checkpoint), str(other)), benchmarks=benchmarks, data=str(tmp_path),
        out=str(out), num_questions=5,
        measure=dataclasses.replace(settings.measure, num_samples=0, self_assessment=False),
        scores=ScoreSettings(rules=("sum",)),
    )  # fmt: skip
    run_study(STUDY, mine)
    folder = RunFolder.load(out)
    rules = {}
    for meta in answers_of(out).values():
        judgement = meta["judgement"]
        rules[meta["benchmark"]] = judgement["rule"], judgement["proxy"]
        if meta["benchmark"] == "truthfulqa_mc2":
            assert meta["correct"] == (judgement["score"] > 0.5)
    assert rules["truthfulqa_mc2"] == ("mc2", False) and rules["truthfulqa"][1]
    assert rules["natural_questions"] == ("exact_match", False)
    assert rules["natural_questions_pairs"] == ("mc1", False)
    rows = folder.read_table("transfer.csv").to_dict("records")
    assert {row["left_out"] for row in rows} == {"tiny", "other"}
    pairs = [row for row in rows if row["benchmark"] == "natural_questions_pairs"]
    assert {row["normalise"] for row in pairs} == {"raw", "z", "rank"}
    assert {row["features"].split("/")[0] for row in pairs} == {
        "epistemic",
        "epistemic_layer_scaled",
    }
    assert "Leave one model out" in (out / "report.html").read_text()


def test_a_report_of_hardly_any_right_answers(settings, finished):
    """Most resamples have no right answer at all: a value, but no interval."""
    out, _ = finished
    folder = RunFolder.load(out)
    names = [n for n in answers_of(out) if "truthfulqa_mc1" in n]
    answers = [
        dataclasses.replace(from_record(folder.read(name).meta), correct=i == 0)
        for i, name in enumerate(names)
    ]
    table = score_answers(answers, settings.scores)
    scored = ScoredAnswers("m", "b", "choice", answers, table)
    rows = [scored.key | row for row in evaluate_scores(table, settings=settings.bootstrap)]
    assert any(row["auroc"] is not None and row["auroc_low"] is None for row in rows)
    assert "(no interval)" in str(auroc_table([scored], rows).rows)
    plots = figures.plots([scored], rows)
    assert all(f.paths for f in draw_plots(plots, out / "few", shown_alone=True))


def test_an_empty_answer_is_wrong_and_has_no_scores(settings, checkpoint, data, monkeypatch):
    """The others of its batch are measured all the same."""
    model = load_model(checkpoint)
    asked = tasks.make_task("triviaqa", str(data), num_questions=5, num_examples=1).asked
    tokens = model.tokenizer.encode(" 4")
    numbers = np.zeros(len(tokens)), np.ones(len(tokens))
    written = [measure_module.WrittenAnswer("4", tokens, *numbers)] * 5
    empty = measure_module.WrittenAnswer("", [], *np.zeros((2, 0)))
    monkeypatch.setattr(measure_module, "_generated_answers", lambda *_: [empty, *written[1:]])
    seen = []
    first, *others = measure(model, asked, settings.measure, on_written=seen.extend)
    assert [answer.text for answer in seen] == ["", "4", "4", "4", "4"]
    assert first.text == "" and first.correct is False
    assert first.reasons == ("the answer is empty",) and first.self_assessment.p_true is None
    monkeypatch.setattr(measure_module, "_generated_answers", lambda *_: written)
    _, *same = measure(model, asked, settings.measure)
    for one, other in zip(others, same, strict=True):
        assert one.log_odds["sequence"] == pytest.approx(other.log_odds["sequence"], rel=1e-4)
        true, right = (answer.self_assessment.p_true.true for answer in (one, other))
        assert true == pytest.approx(right, rel=1e-4)
    table = score_answers([first, *others], ScoreSettings())
    for values in (table.uncertainty["epistemic/sequence"], table.uncertainty["p_true"]):
        assert np.isnan(values).tolist() == [True, False, False, False, False]
    assert table.wrong[0]


@pytest.mark.parametrize("choices", [(), ("It is 4. Or 5.",)])
@pytest.mark.filterwarnings("ignore:p of the answer is below")
def test_asking_one_question(checkpoint, capsys, choices):
    """Every printed number is that of `measure`, and the answer's tokens are its text."""
    given = {}
    if choices:
        given = {"answer": choices[0], "by": "sentence", "sigma": 0.5, "prompting": "chat"}
    settings = ask.Ask(
        "What is 2 + 2?", str(checkpoint), colour="none", max_new_tokens=3, cache="", **given
    )
    ask.answer_question(settings)
    lines = capsys.readouterr().out.splitlines()
    question = Question("asked", "asked", "What is 2 + 2?", choices=choices)
    form = "mc1" if choices else "generated"
    prompt = prompts.truthful(question.question, chat=bool(choices))
    asked = AskedQuestion(question, prompt, form, judged=False)
    ours = MeasureSettings(num_samples=0, max_new_tokens=3, batch_size=1)
    written = []
    (found,) = measure(load_model(checkpoint), [asked], ours, on_written=written.extend)
    assert bool(written) == (not choices)
    for answer in written:
        assert answer.text == found.text
        np.testing.assert_allclose(answer.log_probs, found.token_log_probs, rtol=1e-4)
        np.testing.assert_allclose(answer.entropies, found.token_entropies, rtol=1e-4)
    if not found.text:
        assert "A: (nothing)" in lines
        return
    (shown,) = (line for line in lines if line.startswith("A:"))
    assert shown.removeprefix("A:").strip() == found.text
    assert not choices or found.text == choices[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[1:2] != []}
    odds = found.log_odds["sequence"]
    assert odds is not None
    p = 1 / (1 + np.exp(-odds))
    assert float(rows["sequence"][0]) == pytest.approx(np.log(p), abs=0.006)
    assert float(rows["sequence"][1]) == pytest.approx(p * (1 - p), rel=6e-3)
    norm = found.log_sq_norms["sequence"]["all"]
    assert float(rows["sequence"][5]) == pytest.approx(settings.sigma**2 * np.exp(norm), rel=6e-3)
    assert 0 < float(rows["sequence"][6]) <= 1
    assert "choice" not in rows
    if choices:
        # Both sentences stand for themselves, and their tokens make up the answer.
        parts = measure_segments(
            load_model(checkpoint), prompt, found.text, estimands=("sequence",)
        )  # fmt: skip
        assert [part.text for part in parts] == ["It is 4.", "Or 5."]
        assert [lines[-2].endswith("It is 4."), lines[-1].endswith("Or 5.")] == [True, True]
        tokens = [p for part in parts for p in part.token_log_probs]
        np.testing.assert_allclose(tokens, found.token_log_probs, rtol=1e-4)
        mean = np.mean(parts[0].token_log_probs)
        assert float(lines[-2].split()[0]) == pytest.approx(mean, abs=0.006)


def test_the_parts_of_a_text(checkpoint):
    """Every token is in one part, and a character of several tokens is not torn apart."""
    model = load_model(checkpoint)
    text = " Déjà vu. Yes!\n\n  No"
    ids = model.tokenizer.encode(text, special=False)
    for by, expected in (
        ("word", ["Déjà", "vu.", "Yes!", "No"]),
        ("sentence", ["Déjà vu.", "Yes!", "No"]),
        ("line", ["Déjà vu. Yes!", "No"]),
    ):
        texts, starts = _parts(model, ids, by)
        assert texts == expected
        whole = [model.tokenizer.decode(ids[a:b]) for a, b in pairwise([*starts, len(ids)])]
        assert [part.strip() for part in whole] == expected and "".join(whole) == text
    texts, starts = _parts(model, ids, "token")
    assert starts == list(range(len(ids))) and len(texts) == len(ids)
    # Bytes of SentencePiece, of which a torn character has one sign each.
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a"]
    entries = {"model": "llama", "tokens": tokens, "scores": [0.0] * len(tokens),
               "token_type": [2] + [6] * 256 + [1] * 2, "unknown_token_id": 0}  # fmt: skip
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{k}": v for k, v in entries.items()}, "x")
    ids = tokenizer.encode("日本 a aa", special=False)
    texts, starts = _parts(dataclasses.replace(model, tokenizer=tokenizer), ids, "word")
    assert texts == ["日本", "a", "aa"]
    assert tokenizer.decode(ids[: starts[1]]).strip() == "日本"
    for given, words in (
        ({"by": "page"}, "by must be one of"),
        ({"text": " "}, "text must hold text, got ' '"),
        ({"text": "<end>"}, "text must hold text, got special tokens alone"),
    ):
        with pytest.raises(ValueError, match=words):
            measure_segments(model, "Q:", **{"text": " a"} | given)
    short = dataclasses.replace(model, context_length=20)
    with pytest.raises(ValueError, match=r"prompt and text must fit the context of 20 tokens"):
        measure_segments(short, "Q:", text)
    with pytest.raises(ValueError, match="answer must be left out where there are choices"):
        ask.answer_question(ask.Ask("Who?", str(checkpoint), choices=("a", "b"), answer="c"))


def test_a_warning_where_the_norm_rises_with_p():
    """At two of three meanings of p, not at one of three."""
    odds = {"sequence": -3.0, "mean_token": 2.0, "first_token": 1.0, "choice": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask.warn_of_signs(measured(log_odds=odds))
    with pytest.warns(UserWarning, match=r"p of the answer is below 1/2 at 2 of 3 of its meanings"):
        ask.warn_of_signs(measured(log_odds=odds | {"mean_token": -1.0}))


def test_an_answer_ends_before_the_next_question(checkpoint):
    """What follows in its line is neither judged nor measured."""
    model = load_model(checkpoint)
    tokens = model.tokenizer.encode(" 4. Q: What is 5?")
    assert model.tokenizer.decode(_tokens_of_text(model, "4.", tokens)) == " 4."
    assert _tokens_of_text(model, "4. Q: What is 5?", tokens) == tokens
    same = model.tokenizer.encode(" 4. Q: What is 4.")  # which ends as the answer does
    assert model.tokenizer.decode(_tokens_of_text(model, "4.", same)) == " 4."


def test_another_template_or_a_name_that_records_cannot_tell_apart_is_refused(tmp_path):
    folder = RunFolder.open(tmp_path / "run", {})
    before = {"source": "folder:tiny", "sha256": "0"}
    cell._add_sources(folder, "models", {"tiny": before})
    cell._add_sources(folder, "models", {"tiny": before | {"chat_template": "a"}})
    cell._add_sources(folder, "models", {"tiny": before | {"chat_template": "a"}})
    with pytest.raises(ValueError, match=r"models must be those .*tiny had another chat template"):
        cell._add_sources(folder, "models", {"tiny": before | {"chat_template": "b"}})
    cell._add_sources(folder, "models", {"tiny 2": before})
    with pytest.raises(ValueError, match=r"told apart, got 'tiny-2' beside 'tiny 2' of"):
        cell._add_sources(folder, "models", {"tiny-2": before})


def test_a_prompt_beyond_the_context(checkpoint, data):
    model = dataclasses.replace(load_model(checkpoint), context_length=20)
    for benchmark in ("truthfulqa_mc1", "triviaqa"):
        asked = tasks.make_task(benchmark, str(data), num_questions=1).asked
        with pytest.raises(ValueError, match=r"context of 20 tokens.*for question .*-"):
            measure(model, asked)
    # The question fits, but not the one about its answer.
    asked = tasks.make_task("truthfulqa_mc1", str(data), num_questions=1).asked
    longest = len(model.tokenizer.encode(asked[0].prompt.text)) + 12
    model = dataclasses.replace(model, context_length=longest)
    with pytest.raises(ValueError, match=r"prompt of p_true .*for question truthfulqa"):
        measure(model, asked, MeasureSettings(num_samples=0))
