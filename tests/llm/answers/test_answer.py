"""Records of measured answers: the layout in which they lie in run folders, and back."""

import copy
import dataclasses
import json

import pytest

from isounc.llm.answers.answer import from_record, to_record
from tests.llm.answers.made_up import assessment, empty_answer, measured

# As a run folder of the first version has it.
RECORD = {
    "id": "q-0",
    "benchmark": "triviaqa",
    "question": "Which city?",
    "prompt_version": "short_answer-1-5shot",
    "num_prompt_tokens": 7,
    "reasons": [],
    "answer": "Paris",
    "num_tokens": 2,
    "log_odds": {"sequence": 0.5, "choice": None},
    "log_sq_norms": {"sequence": {"all": 2.0, "last_layer": 1.0}, "choice": {"all": None}},
    "token_log_probs": [-0.5, -1.5],
    "token_entropies": [0.25, 1.25],
    "token_log_sq_norms_logits": [-1.25, 0.25],
    "token_log_sq_norms_head": [0.75, 2.25],
    "choice_log_probs": [-1.0, -2.0],
    "log_semgrad": -3.5,
    "correct": True,
    "judgement": {"correct": True, "rule": "mc1", "proxy": False, "score": 1.0, "matched": ""},
    "samples": [{"text": "Rome", "log_prob": -2.5, "num_tokens": 3}],
    "p_true": {"true": -0.5, "false": -2.0},
    "p_true_ideas": None,
    "confidence": 0.9,
    "confidence_text": "90%",
}
PARTS = {
    "token norms": ["token_log_sq_norms_logits", "token_log_sq_norms_head"],
    "semgrad": ["log_semgrad"],
    "samples": ["samples"],
    "self_assessment": ["p_true", "p_true_ideas", "confidence", "confidence_text"],
}


def test_a_record_is_read_field_by_field():
    answer = from_record(RECORD)
    assert (answer.text, answer.correct, answer.choice_log_probs) == ("Paris", True, (-1.0, -2.0))
    assert answer.judgement.rule == "mc1"
    assert answer.samples[0].log_prob == -2.5
    assert answer.self_assessment.p_true.false == -2.0
    assert answer.self_assessment.p_true_ideas is None


@pytest.mark.parametrize(
    "without",
    [(), ("samples",), ("self_assessment",), ("semgrad",), ("token norms",), tuple(PARTS)],
)
def test_records_come_back_word_for_word(without):
    """The same keys in the same order, so that the files of a resumed run are those of one go."""
    record = copy.deepcopy(RECORD)
    for part in without:
        for key in PARTS[part]:
            del record[key]
    again = to_record(from_record(record))
    assert json.dumps(again) == json.dumps(record)


@pytest.mark.parametrize(
    "answer",
    [
        measured(),
        measured(said=assessment(ideas=(0.2, 0.1)), choice_log_probs=(-1.0, -3.0)),
        measured(samples=None, self_assessment=None),
        dataclasses.replace(measured(), correct=None, judgement=None),
        empty_answer(),
    ],
)
def test_answers_come_back_from_json(answer):
    record = json.loads(json.dumps(to_record(answer), allow_nan=False))
    assert from_record(record) == answer


def test_an_empty_answer_has_no_numbers():
    record = to_record(empty_answer())
    assert record["answer"] == "" and record["reasons"] == ["the answer is empty"]
    assert not {"log_odds", "token_log_probs", "choice_log_probs"} & record.keys()
    assert record["p_true"] is None and record["confidence_text"] == ""
