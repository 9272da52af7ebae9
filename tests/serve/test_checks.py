"""Checks over HTTP against the library, alone and from many clients at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isounc.llm.answers import isotropic_scores
from isounc.llm.answers.measure import AskedQuestion, MeasureSettings, measure
from isounc.llm.answers.norms import answer_norms
from isounc.llm.answers.prompts import Prompt
from isounc.llm.answers.question import Question
from isounc.serve.judgement import Judge, served_scores
from isounc.serve.settings import ESTIMANDS
from isounc.serve.shapes import check_shape
from isounc.serve.work import Check

MESSAGES = [{"role": "user", "content": "cafe"}]


def by_library(model, prompt, answer, *, messages=()):
    """The answer as `isounc ask --answer` measures it."""
    choice = answer if messages else answer.removeprefix(" ")
    question = Question("q", "q", "q", choices=(choice,))
    asked = AskedQuestion(question, Prompt(prompt, "given", (), messages), "mc1", judged=False)
    settings = MeasureSettings(num_samples=0, self_assessment=False, estimands=ESTIMANDS)
    return measure(model, [asked], settings)[0]


def assert_same(checked, measured):
    """To the rounding of single precision: sequences are padded to other lengths."""
    nothing = np.zeros(1, bool)
    for name, score in served_scores().items():
        np.testing.assert_allclose(
            checked["scores"][name], score.values([measured], nothing)[0], rtol=1e-5, atol=1e-5
        )
    for name, expected in (
        ("logprob", measured.token_log_probs), ("entropy", measured.token_entropies),
        ("log_sq_norm_logits", measured.token_log_sq_norms_logits),
        ("log_sq_norm_head", measured.token_log_sq_norms_head),
    ):  # fmt: skip
        found = [t[name] for t in checked["tokens"]]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_scores_are_those_of_the_library(client, model):
    answer = "face bad"
    checked = client.post("/v1/checks", json={"messages": MESSAGES, "answer": answer}).json()
    assert_same(checked, by_library(model, "", answer, messages=(("user", "cafe"),)))
    assert "".join(t["token"] for t in checked["tokens"]) == answer
    assert checked["usage"]["completion_tokens"] == len(checked["tokens"])
    text = {"prompt": "a cab", "answer": " bead"}
    assert_same(client.post("/v1/checks", json=text).json(), by_library(model, "a cab", " bead"))
    # Of one token, and so long that it is padded to another shape.
    for answer in (" b", " abc" * 13):
        checked = client.post("/v1/checks", json={"prompt": "a", "answer": answer}).json()
        assert_same(checked, by_library(model, "a", answer))


def test_padded_alike_the_scores_are_equal_to_1e_6(client, model):
    ids = [model.tokenizer.continuation("a cab", text) for text in (" bead", " abc" * 13)]
    for k, text in enumerate((" bead", " abc" * 13)):
        check = Check(model.tokenizer.encode("a cab"), ids[k], text)
        norms = answer_norms(
            model.decoder, [check.packed()], estimands=ESTIMANDS, scalings=("all",),
            shape=check_shape,
        )  # fmt: skip
        expected = Judge(model, None).scores(check.measured(norms, 0))
        served = client.post("/v1/checks", json={"prompt": "a cab", "answer": text}).json()
        assert served["scores"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_message_in_parts_is_its_text(client):
    parts = [{"type": "text", "text": "ca"}, {"type": "text", "text": "fe"}]
    bodies = [
        {"messages": [{"role": "user", "content": content}], "answer": "bad"}
        for content in ("cafe", parts)
    ]
    whole, parted = (client.post("/v1/checks", json=body).json()["scores"] for body in bodies)
    assert whole == parted


def test_the_guard_decides_by_its_score(client, guard):
    threshold = guard.threshold
    for answer in ("b", " abcdefgh" * 3):
        checked = client.post("/v1/checks", json={"prompt": "a", "answer": answer}).json()
        score = checked["scores"]["log_prob"]
        assert checked["decision"] == ("accept" if score >= threshold else "abstain")
        assert checked["guard"]["value"] == score
        assert checked["guard"]["threshold"] == pytest.approx(threshold)
    assert {"accept", "abstain"} == {
        client.post("/v1/checks", json={"prompt": "a", "answer": a}).json()["decision"]
        for a in ("b", " abcdefgh" * 3)
    }
    held = client.get("/v1/guard").json()
    assert held["sha256"] == checked["guard"]["certificate"]
    assert held["certificate"]["threshold"] == pytest.approx(threshold)


def test_many_clients_get_their_own_answers(client, model):
    letters = "abcdefgh"
    answers = [f" {x}{y}{'ad' * (k % 9)}" for k, x in enumerate(letters) for y in letters]

    def check(answer):
        return client.post("/v1/checks", json={"prompt": "a", "answer": answer}).json()

    with ThreadPoolExecutor(32) as pool:
        checked = list(pool.map(check, answers))
    assert len({c["id"] for c in checked}) == len(answers)
    for answer, found in zip(answers, checked, strict=True):
        assert "".join(t["token"] for t in found["tokens"]) == answer
    for k in (0, 13, 62, 63):
        assert_same(checked[k], by_library(model, "a", answers[k]))
    assert client.get("/metrics").text.count('isounc_batch_requests_count{kind="check"}') == 1


def test_scores_without_a_constant_are_served():
    names = served_scores()
    assert f"{isotropic_scores.epistemic('sequence').name}" in names
    # Of these a number depends on sigma or on a reference set, which a name would not say.
    assert not any(part in name for name in names for part in ("total", "moderated", "link_aware"))
